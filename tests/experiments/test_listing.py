"""Stored jobs beside each other.  Histories are made here: what a list says must follow from them."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from emacore import RunConfig
from emacore.averaging.families import Constant
from emacore.experiments.evidence import bands
from emacore.experiments.listing import (
    ORDERS,
    chosen,
    differences,
    final_numbers,
    listing,
    measured_alike,
    ordered,
    overlay,
    short_names,
)
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import OptimizerConfig, StoppingConfig
from tests.experiments.conftest import CONFIG, LOSSES, STUDY, SWEEP, entered, history, seeds
from tests.training.test_second_task import CONFIG as DIGITS


def later():
    """Five minutes after the jobs that a test enters; asked when it runs, which may be long after it was collected."""
    return datetime.now(UTC) + timedelta(minutes=5, seconds=30)


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


def test_final_numbers_are_those_of_the_last_epoch_or_the_medians_over_seeds():
    assert final_numbers(CONFIG, history([4.0, 2.0], [4.0, 1.5])) == (2.0, 1.5, 25.0)
    original, ema, gain = final_numbers(STUDY, seeds(LOSSES))
    assert (original, ema) == (2.0, 1.0)  # of (2, 1, 5) and (1, 0.9, 5)
    assert gain == pytest.approx(10.0)  # of 50, 10 and 0 %
    for nothing in (
        final_numbers(CONFIG, history([], [])),
        final_numbers(SWEEP, pd.DataFrame({"seed": [1]})),
        final_numbers(STUDY, pd.DataFrame(columns=["seed"])),
    ):
        assert all(map(math.isnan, nothing))
    assert math.isnan(final_numbers(CONFIG, history([2.0], [math.nan])).ema)
    # Seeds that diverged on both sides are no gain of 0.
    assert final_numbers(STUDY, seeds({1: ([2.0], [1.0]), 2: ([math.nan], [math.inf])}))[1:] == (1.0, 50.0)


def test_the_list_says_name_state_age_and_numbers(store):
    done = entered(store, CONFIG, history([4.0, 2.0], [4.0, 1.23456]))
    running = entered(store, replace(CONFIG, seed=1), history([4.0], [3.0]), "running")
    study, sweep = entered(store, STUDY), entered(store, SWEEP)
    failed = entered(store, CONFIG, state="failed", error="x")
    diverged = entered(store, CONFIG, history([math.nan], [math.nan]), stopped="diverged")
    stopped = entered(store, CONFIG, history([1.0], [1.0]), "stopped")
    queued = entered(store, CONFIG, state="queued")
    found = {study: final_numbers(STUDY, seeds(LOSSES))}
    table = listing(store.jobs(), later(), UTC, found).set_index("id")
    assert table["state"].to_dict() == {
        done: "done",
        running: "running",
        study: "done before the first epoch",
        sweep: "done before the first epoch",
        failed: "failed before the first epoch",
        diverged: "diverged",
        stopped: "stopped",
        queued: "queued",
    }
    assert table.loc[done, ["original", "ema"]].tolist() == [2.0, 1.23456]
    assert table.loc[done, "gain_percent"] == pytest.approx(38.272)
    assert table.loc[study, ["original", "ema"]].tolist() == [2.0, 1.0]
    assert table.loc[[failed, queued, sweep, diverged], ["original", "ema", "gain_percent"]].isna().all(axis=None)
    name = table.loc[done, "name"]
    assert table.loc[done, "label"] == f"{name} · done · 5 min ago · loss 2, EMA 1.235"
    assert table.loc[queued, "label"].endswith(" · queued · 5 min ago")
    assert table.loc[sweep, "label"].endswith(" · 0 cells")
    assert len(set(table["name"])) == len(table)
    assert "trained for you" not in " ".join(table["name"])


def test_an_empty_store_gives_an_empty_list(store):
    empty = listing(store.jobs(), later(), UTC)
    assert empty.empty
    assert {"id", "kind", "name", "state", "gain_percent", "label"} <= set(empty.columns)
    for order in ORDERS:
        assert ordered(chosen(empty, text="x", kinds=["run"], states=["done"]), order).empty


def test_filters_ask_for_words_kinds_and_states(store):
    one = entered(store, replace(CONFIG, max_epochs=60), history([2.0], [1.0]))
    two = entered(store, STUDY)
    three = entered(store, CONFIG, state="failed", error="x")
    store.rename(three, "Ünlucky (one)")
    table = listing(store.jobs(), later(), UTC)
    for query, expected in (
        ({}, [three, two, one]),
        ({"text": "60 REGRESSION"}, [one]),
        ({"text": "ünlucky ("}, [three]),
        ({"text": "nothing"}, []),
        ({"kinds": ["run"]}, [three, one]),
        ({"kinds": ["study", "sweep"]}, [two]),
        ({"states": ["failed"]}, [three]),
        ({"states": ["failed", "done"], "kinds": ["run"]}, [three, one]),
    ):
        assert chosen(table, **query)["id"].tolist() == expected, query


def test_orders(store):
    numbers = {"b": (4.0, 3.0), "A": (3.0, 3.5), "c": (5.0, 1.0)}
    ids = {name: entered(store, CONFIG, history([one], [other])) for name, (one, other) in numbers.items()}
    ids["d"] = entered(store, CONFIG, state="queued")
    for name, job_id in ids.items():
        store.rename(job_id, name)
    table = listing(store.jobs(), later(), UTC)
    expected = {
        "newest": "dcAb",
        "oldest": "bAcd",
        "name": "Abcd",
        "lowest loss of the EMA": "cbAd",
        "largest gain": "cbAd",
    }
    for order, names in expected.items():
        assert "".join(ordered(table, order)["name"]) == names, order
    assert ordered(table, "longest")["name"].iloc[-1] == "d"
    took = table.assign(seconds=table["name"].map({"b": 2.0, "A": 30.0, "c": 7.0}))
    assert "".join(ordered(took, "longest")["name"]) == "Acbd"


def test_overlaid_curves_are_the_histories():
    runs = {"one": history([4.0, 2.0], [8.0, 1.0]), "two": history([3.0], [2.0], steps=7)}
    study = seeds(LOSSES)
    jobs = {"one": CONFIG, "two": CONFIG, "many": STUDY, "map": SWEEP, "new": CONFIG}
    table = overlay(jobs, {**runs, "many": study, "map": pd.DataFrame({"seed": [1]}), "new": history([], [])})
    assert table.columns.tolist() == ["name", "model", "curve", "epoch", "steps", "loss"]
    assert table["curve"].unique().tolist()[:2] == ["one: original", "one: EMA"]
    assert table["name"].unique().tolist() == ["one", "two", "many"]
    for name, run in runs.items():
        for model in ("original", "ema"):
            rows = table[(table["name"] == name) & (table["model"] == model)]
            assert rows["loss"].tolist() == run[f"val_loss_{model}"].tolist()
            assert rows["steps"].tolist() == run["steps"].tolist()
            assert rows["epoch"].tolist() == run["epoch"].tolist()
    many = table[table["name"] == "many"].set_index(["model", "epoch"])["loss"]
    assert many["original"].tolist() == [5.0, 2.5, 1.0]  # medians of those that train at that epoch
    assert many["ema"].tolist() == [8.0, 2.0, 0.9]
    assert overlay({"new": CONFIG}, {"new": history([], [])}).empty
    alone = overlay({"one": CONFIG}, runs, ["ema"])
    assert (alone["curve"].tolist(), alone["loss"].tolist()) == (["one", "one"], [8.0, 1.0])


def test_the_curve_of_a_study_is_the_median_line_of_its_bands():
    rng = np.random.default_rng(2)
    ends = rng.integers(1, 9, 12)
    history = seeds({seed: rng.lognormal(size=(2, end)) for seed, end in enumerate(ends)})
    for model in ("original", "ema"):
        history.loc[rng.random(len(history)) < 0.3, f"val_loss_{model}"] = rng.choice([np.nan, np.inf])
    table = overlay({"many": STUDY}, {"many": history}).set_index(["model", "epoch"])["loss"]
    medians = bands(history, {f"val_loss_{model}": model for model in ("original", "ema")})
    for row in medians.itertuples():
        assert table[row.curve, row.epoch] == pytest.approx(row.median, nan_ok=True)


def test_losses_are_alike_on_the_same_rows_only():
    assert measured_alike({})
    assert measured_alike({"a": CONFIG, "b": replace(CONFIG, seed=3, max_epochs=2), "c": STUDY, "d": SWEEP})
    assert not measured_alike({"a": CONFIG, "b": DIGITS})
    assert not measured_alike({"a": CONFIG, "b": replace(CONFIG, data=DataConfig(noise=3.0))})


def test_differences_are_those_of_the_settings():
    other = RunConfig(
        optimizer=OptimizerConfig("sgd", 0.01, momentum=0.5),
        schedule=Constant(0.9),
        stopping=StoppingConfig("none", 7),
        seed=1,
    )
    table = differences({"one": CONFIG, "two": other}).set_index("setting")
    assert table.columns.tolist() == ["one", "two"]
    assert table.loc["optimizer.name"].tolist() == ["adam", "sgd"]
    assert table.loc["optimizer.learning_rate"].tolist() == ["0.001", "0.01"]
    assert table.loc["optimizer.momentum"].tolist() == ["0.9 (no effect)", "0.5"]
    assert table.loc["stopping.patience"].tolist() == ["20", "7 (no effect)"]
    assert table.loc["schedule.family"].tolist() == ["InversePower", "Constant"]
    assert table.loc["schedule.power"].tolist() == ["0.6666666666666666", ""]
    assert table.loc["seed"].tolist() == ["42", "1"]
    assert not {"optimizer.batch_size", "max_epochs", "data.kind"} & set(table.index)
    assert differences({"one": CONFIG, "two": RunConfig()}).empty
    assert differences({}).empty


def test_differences_of_studies_and_sweeps():
    table = differences({"run": CONFIG, "study": STUDY, "sweep": SWEEP}).set_index("setting")
    assert table.loc["kind"].tolist() == ["run", "study", "sweep"]
    assert table.loc["seed"].tolist() == ["42", "", ""]
    assert table.loc["seeds"].tolist() == ["", "3, 3 to 5", "2, 0 to 1"]
    assert table.loc["further schedules"].tolist() == ["", "Constant(beta=0.5)", ""]
    assert table.loc["grid of max_epochs"].tolist() == ["", "", "[1, 2]"]
    odd = differences({"a": Study(CONFIG, (1, 5)), "b": Study(CONFIG, (7,))}).set_index("setting")
    assert odd.loc["seeds"].tolist() == ["2, 1, 5", "[7]"]


def test_legends_leave_out_what_all_names_have_in_common_and_times_that_tell_nothing_apart():
    one, other = "regression, Adam 0.01 constant, 60 epochs, 14:03", "regression, Adam 0.1 constant, 60 epochs, 14:05"
    short = {one: "Adam 0.01 constant", other: "Adam 0.1 constant"}
    assert short_names([one, other]) == short
    assert short_names([one, other, "mine, all mine"], ["mine, all mine"]) == {
        **short,
        "mine, all mine": "mine, all mine",
    }
    study = "8 seeds: regression, Adam 0.1 constant, 60 epochs, 14:03"
    assert short_names([one, study])[study] == "8 seeds, Adam 0.1 constant"
    alone = one.removesuffix(", 14:03")
    assert short_names([one]) == {one: alone}
    assert short_names([one, "mine"], ["mine"]) == {one: alone, "mine": "mine"}
    again, later = one.replace("14:03", "3 Mar 14:07"), one.replace("14:03", "14:03:58")
    assert short_names([one, again, later]) == {one: "14:03", again: "3 Mar 14:07", later: "14:03:58"}
    assert short_names([one, again, other]) == {
        one: "Adam 0.01 constant, 14:03",
        again: "Adam 0.01 constant, 3 Mar 14:07",
        other: "Adam 0.1 constant, 14:05",
    }
    assert short_names([]) == {}
    assert short_names(["a, b", "a, b, c"]) == {"a, b": "a, b", "a, b, c": "c"}
    taken = ["a, b", "a, c", "b"]
    assert short_names(taken, ["b"]) == {name: name for name in taken}  # one would be called as another is
