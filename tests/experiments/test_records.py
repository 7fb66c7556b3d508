import json

import pytest

from emacore.experiments.records import as_now, damage, epoch_of, kind_of, seconds_of
from tests.experiments.conftest import CONFIG, STUDY, SWEEP, row

WHOLE = {
    **dict.fromkeys(("name", "stopped", "error", "started", "finished", "heartbeat", "took")),
    "id": "1",
    "kind": "run",
    "state": "done",
    "created": 1e9,
    "config": CONFIG.to_json(),
    "last": json.dumps(row(1)),
}


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("id", b"1", "its id is no text"),
        ("state", "asleep", "its state is 'asleep'"),
        ("created", None, "the time created is None"),
        ("finished", float("inf"), "the time finished is inf"),
        ("heartbeat", "noon", "the time heartbeat is 'noon'"),
        ("error", 3, "its error is no text"),
        ("config", None, "its settings are no text"),
        ("config", "{", "its settings cannot be read"),
        ("config", "[" * 100_000, "its settings cannot be read"),
        ("kind", "study", "it is no study, but a run"),
        ("last", "[1]", "its last epoch cannot be read: an epoch must be an object of numbers"),
        ("last", '{"epoch": "one"}', "its last epoch cannot be read"),
    ],
)
def test_what_is_wrong_with_a_row_is_told(column, value, words):
    assert damage(WHOLE) is None
    assert words in damage(WHOLE | {column: value})


def test_kinds():
    assert [kind_of(job) for job in (CONFIG, STUDY, SWEEP)] == ["run", "study", "sweep"]


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ({"took": 3.5, "started": 0.0, "finished": 9.0}, 3.5),
        ({"took": -1.0}, 0),
        ({"started": 2.0, "finished": 9.0, "heartbeat": 8.0}, 7),
        ({"started": 2.0, "heartbeat": 8.0}, 6),
        ({"started": 9.0, "finished": 2.0}, 0),
        ({"finished": 9.0}, None),
    ],
)
def test_how_long_it_trained(times, seconds):
    assert seconds_of(WHOLE | times) == pytest.approx(float("nan") if seconds is None else seconds, nan_ok=True)


def test_an_epoch_has_numbers_or_none():
    assert epoch_of('{"epoch": 1, "loss": null, "other": NaN}')["loss"] is None


def test_columns_of_before_have_the_names_of_now():
    assert as_now({"seed": 1, "final_averaged": 2, "averaged": 3}) == {"seed": 1, "final_ema": 2, "averaged": 3}
