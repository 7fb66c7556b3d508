"""What stored jobs are called."""

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from emacore import RunConfig
from emacore.averaging.families import Constant
from emacore.experiments.names import PERSON, SERVER, ago, checked_name, names, words_of
from emacore.experiments.studies import Study, Sweep, job_in_words
from emacore.training.config import OptimizerConfig
from tests.training.test_second_task import CONFIG as DIGITS

FAST = RunConfig(optimizer=OptimizerConfig(learning_rate=0.01, rate_rule="constant"))
NOW = datetime(2026, 3, 5, 14, 30, tzinfo=UTC)


def table(*rows):
    """Of jobs with (job, created, name, asked)."""
    found = [
        {"id": f"id{n}", "config": job.to_json(indent=None), "created": created, "name": name, "asked": asked}
        for n, (job, created, name, asked) in enumerate(rows)
    ]
    return pd.DataFrame(found).assign(created=lambda t: pd.to_datetime(t["created"], utc=True))


def entered(job, created, name=None, asked=PERSON):
    return job, created, name, asked


def test_a_name_is_the_settings_and_the_time():
    at = NOW.replace(hour=14, minute=3, second=9)
    found = names(
        table(
            entered(FAST, at),
            entered(FAST, at - timedelta(days=1)),
            entered(FAST, at.replace(year=2025)),
            entered(FAST, at, "mine"),
            entered(DIGITS, at),
        ),
        NOW,
        UTC,
    )
    words = "regression, Adam 0.01 constant, inverse power 0.999"
    assert found[:4] == [f"{words}, 14:03", f"{words}, 4 Mar 14:03", f"{words}, 5 Mar 2025 14:03", "mine"]
    assert found[4].startswith("digits in a test, SGD 0.05 constant, inverse power 0.95, 6 epochs")


def test_times_are_told_in_a_zone():
    zone = ZoneInfo("Asia/Shanghai")
    found = names(table(entered(FAST, NOW), entered(FAST, NOW - timedelta(hours=23))), NOW, zone)
    assert [name.rpartition(", ")[2] for name in found] == ["22:30", "4 Mar 23:30"]
    east = timezone(timedelta(hours=10))  # where it is the next day already
    assert names(table(entered(FAST, NOW - timedelta(hours=1))), NOW, east)[0].endswith(", 5 Mar 23:30")
    late = datetime(2026, 3, 5, 23, 0, tzinfo=timezone(timedelta(hours=8)))
    assert names(table(entered(FAST, late)), NOW, zone)[0].endswith(", 23:00")


def test_no_two_are_called_the_same():
    second = NOW.replace(second=7)
    found = names(
        table(
            entered(FAST, NOW),
            entered(FAST, second),
            entered(FAST, second),
            entered(RunConfig(), NOW, "twin"),
            entered(FAST, NOW, "twin"),
            entered(FAST, NOW, "only"),
        ),
        NOW,
        UTC,
    )
    assert len(set(found)) == 6
    assert found[0].endswith(", 14:30:00")
    assert found[2].endswith(", 14:30:07 (id2)")
    assert found[3:] == ["twin (id3)", "twin (id4)", "only"]


def test_what_the_server_trained_says_so_until_it_is_renamed():
    found = names(table(entered(RunConfig(), NOW, None, SERVER), entered(RunConfig(), NOW, "mine", SERVER)), NOW, UTC)
    assert found == ["the article's run, trained for you", "mine"]


def test_studies_and_sweeps_have_names():
    assert job_in_words(Study(FAST, tuple(range(32)))) == (
        "32 seeds: regression, Adam 0.01 constant, inverse power 0.999"
    )
    assert Study(FAST, (5,), (Constant(0.9),)).in_words().startswith("1 seed from 5: regression")
    sweep = Sweep(FAST, {"optimizer.learning_rate": [0.1, 0.2], "schedule": ["Constant(beta=0.9)"]}, (0, 1))
    assert job_in_words(sweep) == "map of learning rate and schedule, 2 seeds: regression, Adam constant"
    three = Sweep(FAST, {"max_epochs": [1], "network.dropout": [0.1], "schedule.beta": [0.9]}, (0,))
    assert three.in_words() == (
        "map of max epochs, dropout and beta, 1 seed: regression, Adam 0.01 constant, inverse power"
    )
    assert Sweep(FAST, {}, (0,)).in_words().startswith("map of no setting, 1 seed: regression")


def test_settings_that_cannot_be_read_have_a_name_too():
    assert words_of('{"schedule": {"family": "Lost"}}') == "settings that this program cannot read"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "just now"),
        (59, "just now"),
        (60, "1 min ago"),
        (3599, "59 min ago"),
        (3600, "1 h ago"),
        (47 * 3600, "47 h ago"),
        (48 * 3600, "2 days ago"),
        (4000 * 86400, "4,000 days ago"),
    ],
)
def test_ages(seconds, words):
    assert ago(seconds) == words


def test_names_of_people_are_one_bounded_line():
    assert checked_name(" a\n\x00b\u200b\tc ") == "a b c"
    assert checked_name("x" * 80) == "x" * 80
    with pytest.raises(ValueError, match="at most 80 letters of a name are possible, got 81"):
        checked_name("x" * 81)
