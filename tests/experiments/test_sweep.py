import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import replace

import joblib
import numpy as np
import pandas as pd
import pytest
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.backend import context

from emacore import RunConfig
from emacore.averaging.code import to_code
from emacore.averaging.families import Constant, InversePower
from emacore.charts.heatmap import evidence_map
from emacore.experiments import sweep as sweep_module
from emacore.experiments.evidence import per_seed, training_in_words
from emacore.experiments.statistics import holm, kind_of, verdict
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Sweep, job_from_json, with_settings
from emacore.experiments.sweep import (
    SCHEDULER,
    SweepError,
    before_start,
    cells_of,
    failures,
    for_map,
    has_losses_below_0,
    headline,
    in_words,
    number_of_tests,
    progress,
    questions_of,
    summary,
    sweep,
    trainings_in_words,
    value_label,
)
from emacore.tasks.regression.config import DataConfig
from emacore.training.acting import idle_settings
from emacore.training.config import OptimizerConfig, StoppingConfig, article_schedule
from emacore.training.replicas import replicate
from tests.experiments.conftest import no_empty_words
from tests.forked import Forked
from tests.helpers import lives, wait_for

CONFIG = RunConfig(
    data=DataConfig(n_samples=120, n_features=5, n_informative=3),
    optimizer=OptimizerConfig(rate_rule="constant"),
    stopping=StoppingConfig("none"),
    max_epochs=3,
)
GRID = {"optimizer.learning_rate": [0.001, 0.03], "schedule": ["Constant(beta=0.5)", "Constant(beta=0.9)"]}
SEEDS = [4, 1, 9]
SAME = ["seed", "final_original", "final_ema", "epochs", "stopped"]


@pytest.fixture(scope="module")
def table():
    """Of two processes, which are forked: torch is there."""
    context.set_start_method("fork", force=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`fork` start method")  # said where joblib starts such processes itself
            return sweep(CONFIG, GRID, SEEDS, workers=2)
    finally:
        get_reusable_executor().shutdown()
        context.set_start_method(None, force=True)


def test_a_grid_is_checked_before_anything_starts():
    assert len(Sweep(CONFIG, GRID, SEEDS).cells()) == 4
    for grid, message in (
        ({"nope": [1]}, "no setting"),
        ({"max_epochs": []}, "at least one value"),
        ({"seed": [1]}, "leave 'seed' out"),
        ({"optimizer.learning_rate": [0.1, 0]}, "above 0"),
        ({"schedule": "Constant()"}, "needs a list"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep(CONFIG, grid, SEEDS)
    with pytest.raises(ValueError, match="seeds must be different"):
        sweep(CONFIG, GRID, [1, 1])


@pytest.mark.slow
def test_one_row_for_each_cell_and_seed(table):
    assert table.columns.tolist()[:3] == ["optimizer.learning_rate", "schedule", "seed"]
    assert table["seed"].tolist() == SEEDS * 4
    assert table["error"].isna().all()
    cell = table[(table["optimizer.learning_rate"] == 0.03) & (table["schedule"] == "Constant(beta=0.9)")]
    config = with_settings(CONFIG, {"optimizer.learning_rate": 0.03, "schedule": "Constant(beta=0.9)"})
    expected = per_seed(replicate(config, SEEDS).history)
    np.testing.assert_allclose(cell["final_ema"], expected["final_ema"], rtol=1e-4)
    np.testing.assert_allclose(cell["best_original"], expected["best_original"], rtol=1e-4)


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_what_is_missing(table, tmp_path, monkeypatch):
    store, seen = RunStore(tmp_path), []
    part = sweep(CONFIG, GRID, SEEDS, on_result=seen.append, should_stop=lambda: len(seen) == 2, store=store, workers=1)
    assert len(part) == 6
    trained = []
    real = sweep_module.train_cell

    def counted(index, job, should_stop):
        trained.append(index)
        return real(index, job, should_stop)

    monkeypatch.setattr(sweep_module, "train_cell", counted)
    whole = sweep(CONFIG, GRID, SEEDS, store=store, workers=1)
    assert trained == [2]
    pd.testing.assert_frame_equal(whole[SAME], table[SAME], rtol=1e-4)


def test_a_cell_that_fails_is_reported_with_its_error(tmp_path):
    grid = {"optimizer.batch_size": [8, 32], "data.test_size": [0.2, 0.95]}
    path = tmp_path / "data.csv"
    path.write_text("a,b\n" + "".join(f"{n},{n % 7}\n" for n in range(60)))
    config = replace(CONFIG, data=replace(CONFIG.data, kind="csv", path=str(path), target="b"))
    found = sweep(config, grid, SEEDS, workers=1)
    failed = found[found["error"].notna()]
    assert set(failed["data.test_size"]) == {0.95}
    assert failed["error"].str.contains("batch_size").all()
    assert found["seed"].tolist() == SEEDS * 4
    verdicts = summary(found, list(grid)).set_index(list(grid))["verdict"]
    assert (verdicts == "cannot tell").all()


@pytest.mark.slow
def test_cells_that_differ_in_their_average_share_a_training(table, monkeypatch):
    jobs = []
    real = sweep_module.train_cell

    def counted(index, job, should_stop):
        jobs.append(job_from_json(job))
        return real(index, job, should_stop)

    monkeypatch.setattr(sweep_module, "train_cell", counted)
    shared = sweep(CONFIG, GRID, SEEDS, workers=1)
    assert [len(job.schedules) for job in jobs] == [1, 1]
    alone = [sweep(CONFIG, GRID | {"schedule": [code]}, SEEDS, workers=1) for code in GRID["schedule"]]
    order = ["optimizer.learning_rate", "schedule"]
    alone = pd.concat(alone).sort_values(order, kind="stable", ignore_index=True)
    columns = [name for name in shared if name not in ("seconds", "elapsed")]
    pd.testing.assert_frame_equal(shared[columns], alone[columns], rtol=1e-4)
    jobs.clear()
    looking = replace(CONFIG, stopping=StoppingConfig("ema", 1), max_epochs=2)
    sweep(looking, GRID, SEEDS, workers=1)
    assert len(jobs) == 4


def test_a_schedule_written_in_two_ways_is_one_average_in_two_cells():
    codes = ["Constant(beta=0.9)", "Constant(beta=0.5)", "Constant(beta=0.50)", "Constant( beta=0.9 )"]
    table = sweep(CONFIG, {"schedule": codes}, SEEDS, workers=1)
    assert table["error"].isna().all()
    final = {code: cell["final_ema"].tolist() for code, cell in table.groupby("schedule")}
    assert final[codes[0]] == final[codes[3]] != final[codes[1]] == final[codes[2]]


def test_a_cell_under_way_is_stopped_and_leaves_nothing(tmp_path):
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) > 4

    store = RunStore(tmp_path)
    endless = replace(CONFIG, max_epochs=10**5)
    found = sweep(endless, GRID, SEEDS, should_stop=should_stop, store=store, workers=1)
    assert found.empty
    assert found.columns.tolist() == sweep(CONFIG, GRID, [1], workers=1).columns.tolist()


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_own_cell_only(monkeypatch):
    # In here, so that the processes import nothing for it, as each of them would torch.
    def deadly(index, job, should_stop, modules):
        if '"learning_rate": 0.03' in job:
            os.kill(os.getpid(), signal.SIGKILL)
        return index, {code: [{"seed": 1, "error": None}] for code in GRID["schedule"]}

    monkeypatch.setattr(sweep_module, "train_cell", deadly)
    found = sweep(CONFIG, GRID, SEEDS, workers=2)
    dead = found["error"].notna()
    assert set(found.loc[dead, "optimizer.learning_rate"]) == {0.03}
    assert found.loc[dead, "error"].str.contains("died 3 times").all()
    assert (~dead).sum() == 2


def test_a_sweep_that_is_stopped_hears_nothing_of_what_is_cut_short(monkeypatch, recwarn):
    gate = threading.Event()

    def waiting(index, job, should_stop, modules):
        if index:
            gate.wait()
        return index, "no training"

    monkeypatch.setattr(sweep_module, "train_cell", waiting)
    with joblib.parallel_config("threading", n_jobs=2):
        results = sweep_module._parallel(dict.fromkeys(range(4), "{}"), ())
        assert next(results) == (0, "no training")
        timer = threading.Timer(0, gate.set)
        timer.start()
        results.close()
    assert not recwarn.list


ENDLESS_CELLS = """
import os, signal, sys
from pathlib import Path
from emacore.experiments import sweep
from tests.experiments.test_sweep import CONFIG, GRID, SEEDS

def forever(index, job, should_stop, modules):
    Path(sys.argv[1], str(os.getpid())).touch()
    while True:
        signal.pause()

sweep.train_cell = forever
sweep.sweep(CONFIG, GRID | {"max_epochs": [3, 4]}, SEEDS, workers=2)
"""


def test_processes_of_a_sweep_end_with_the_one_that_is_killed(tmp_path):
    code = ENDLESS_CELLS.replace("sys.argv[1]", repr(str(tmp_path)))
    with Forked([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
        finally:
            process.kill()
    training = [int(path.name) for path in tmp_path.iterdir()]
    try:
        wait_for(lambda: not any(map(lives, training)), 20)
    finally:
        for number in filter(lives, training):
            os.kill(number, signal.SIGKILL)


def test_a_summary_of_the_cells():
    rng = np.random.default_rng(0)
    rows = [
        {"a": a, "seed": seed, "final_original": 1.0, "final_ema": 1 - gain + 0.05 * rng.normal(), "error": None}
        for a, gain in ((1, 0.3), (2, 0.0), (3, -0.3))
        for seed in range(12)
    ]
    found = summary(pd.DataFrame(rows), ["a"])
    assert found["a"].tolist() == [1, 2, 3]
    assert found["verdict"].tolist() == ["helps", "no difference shown", "hurts"]
    assert found["wins"].tolist()[::2] == [12, 0]
    assert found["p"].iloc[0] == pytest.approx(3 * 2 / 2**12)
    said = in_words(found, ["a"])
    assert said.startswith(
        "Of 3 cells of 12 seeds, averaging helps in 1 and hurts in 1; no difference is shown in 1 (p"
    )
    assert "corrected for 3 tests" in said
    assert (
        f"It helps most at a 1: in the median the final loss is {found['median_gain_percent'][0]:.3g} % lower" in said
    )
    assert "averaging won in 0 of 12 seeds" in said
    ruined = found.assign(median_gain_percent=[30, 0.0, -9900])
    assert "the final loss is 100 times the original's" in in_words(ruined, ["a"])
    assert "loss 100 times the original's)" in headline(ruined, ["a"])
    below = pd.DataFrame(rows).assign(final_original=-0.01)
    assert has_losses_below_0(below)
    assert not has_losses_below_0(pd.DataFrame(rows))
    assert not has_losses_below_0(pd.DataFrame({"final_original": [None, 1.0], "final_ema": [None, None]}))
    for said in (in_words(ruined, ["a"], signed=True), headline(ruined, ["a"], signed=True)):
        assert "9,900 % higher" in said
        assert "times" not in said


def test_the_cells_in_one_sentence():
    columns = {"a": [1, 2, 3], "b": 5, "seeds": 12, "pairs": 12, "test": [1, 2, 3], "wilcoxon_p": 0.01}
    found = pd.DataFrame(columns | {"verdict": ["helps", "helps", "hurts"], "median_gain_percent": [10, 60, -9900]})
    assert headline(found, ["a", "b"]) == (
        "Of 3 cells, 12 seeds each, averaging helps in 2, most at a 2, b 5 (median final loss 60 % lower) and hurts in "
        "1, most at a 3, b 5 (median final loss 100 times the original's)."
    )
    assert headline(found, ["a", "b"], complete=False).startswith("Of the 3 cells so far, 12 seeds each, ")
    one = found.assign(verdict=["helps", "unclear", "cannot tell"])
    assert headline(one, ["a", "b"]).endswith(
        "averaging helps in 1, most at a 1, b 5 (median final loss 10 % lower); 2 show neither."
    )
    none = found.assign(verdict="no difference shown")
    assert headline(none, ["a", "b"]) == "Of 3 cells, 12 seeds each, none shows whether averaging helps or hurts."
    same = found.assign(test=[1, 1, 2], verdict=["helps", "helps", "hurts"])
    assert headline(same, ["a", "b"]).startswith("Of 2 different cells, 12 seeds each, averaging helps in 1, most at")


@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("seeds", [1, 2])
def test_one_cell_and_one_seed_are_told_in_the_singular(cells, seeds):
    rows = [
        {"a": a, "seed": seed, "final_original": 1.0, "final_ema": 0.5, "error": None}
        for a in range(cells)
        for seed in range(seeds)
    ]
    table = pd.DataFrame(rows)
    found = summary(table, ["a"])
    job = Sweep(replace(CONFIG, max_epochs=1), {"network.dropout": [0, 0.1][:cells]}, tuple(range(seeds)))
    written = [headline(found, ["a"]), in_words(found, ["a"]), trainings_in_words(job), *before_start(job)]
    written += [verdict(cell.comparison, "the final loss", cell.among) for cell in cells_of(table, ["a"])]
    looking = replace(job.config, stopping=StoppingConfig("ema"))
    history = pd.DataFrame(
        [{"seed": n, "epoch": e, "val_loss_original": np.nan, "val_loss_ema": 1} for e in (1, 2) for n in range(seeds)]
    )
    written += [training_in_words(history), *idle_settings(looking).values()]
    for words in written:
        no_empty_words(words)
    assert written[0].startswith("Of 1 cell, " if cells == 1 else "Of 1 different cell, ")


def test_cells_of_a_sweep_that_still_trains_say_so():
    rng = np.random.default_rng(4)
    table, _ = drawn_table(rng)
    found = summary(table, ["a", "b"])
    assert "(p-values corrected after Holm for the" in in_words(found, ["a", "b"], complete=False)
    assert "so far, with more to come)" in in_words(found, ["a", "b"], complete=False)
    for one in questions_of(table, ["a", "b"], 0, complete=False).values():
        assert not one.among.final
    assert questions_of(table, ["a", "b"], 0)["final"].among.final


def drawn_table(rng):
    """A sweep's table over two settings, of cells that may be the same, diverge or fail."""
    rows, grid = [], {"a": [1, 2, 3], "b": ["x", "y"]}
    seeds, cells = int(rng.choice([6, 15, 20])), []
    for a in grid["a"]:
        for b in grid["b"]:
            if cells and rng.random() < 0.3:
                pairs = cells[rng.integers(len(cells))]
            else:
                pairs = (np.ones(seeds), 1 - rng.choice([-0.3, 0, 0.02, 0.3]) - 0.1 * rng.normal(size=seeds))
                pairs[1][rng.random(seeds) < rng.choice([0, 0, 0.3])] = np.nan
            cells.append(pairs)
            rows += [
                {"a": a, "b": b, "seed": seed, "final_original": one, "final_ema": other, "error": None}
                for seed, (one, other) in enumerate(zip(*pairs, strict=True))
            ]
    return pd.DataFrame(rows), cells


def test_a_cell_has_one_verdict_and_cells_that_are_the_same_are_one_test():
    rng = np.random.default_rng(0)
    repeated = some = 0
    for _ in range(30):
        table, pairs = drawn_table(rng)
        found, cells = summary(table, ["a", "b"]), cells_of(table, ["a", "b"])
        same = {tuple(np.array(pair).tobytes() for pair in one): n for n, one in enumerate(pairs)}
        repeated += len(same) < len(pairs)
        assert found["test"].nunique() == len(same)
        firsts = found.drop_duplicates("test").index
        np.testing.assert_allclose(found["p"][firsts], holm(found["wilcoxon_p"][firsts]))
        for cell, row in zip(cells, found.to_dict("records"), strict=True):
            assert cell.verdict == row["verdict"] == kind_of(cell.comparison, cell.among)
            assert row["pairs"] == np.isfinite(cell.rows["final_ema"]).sum()
            twins = found[found["test"] == row["test"]]
            assert twins["verdict"].nunique() == twins["p"].nunique(dropna=False) == 1
        said = in_words(found, ["a", "b"])
        counted = found.drop_duplicates("test")["verdict"].value_counts()
        assert f"helps in {counted.get('helps', 0)} and hurts in {counted.get('hurts', 0)}" in said
        tested = {n for n, (one, other) in enumerate(pairs) if n in same.values() and (one != other).any()}
        assert number_of_tests(found) == len(tested)
        assert (f"are {len(same)} different ones" in said) == (len(same) < len(pairs))
        no_empty_words(said)
        short, different = headline(found, ["a", "b"]), found.drop_duplicates("test")
        sides = [different[different["verdict"] == kind] for kind in ("helps", "hurts")]
        most = [side.loc[side["median_gain_percent"].abs().idxmax()] for side in sides if len(side)]
        over = [f" over {cell['pairs']} of {cell['seeds']} seeds" for cell in most if cell["pairs"] < cell["seeds"]]
        some += len(over)
        for words in (said, short):
            assert words.count(" over ") == len(over), "where a median is not of all seeds"
            assert all(pairs in words for pairs in over)
    assert repeated > 5
    assert some > 3


def test_lists_are_values_too():
    grid = {"network.widths": [[4], [8, 4]], "network.activation": ["relu", "tanh"]}
    found = summary(sweep(replace(CONFIG, max_epochs=1), grid, SEEDS, workers=1), list(grid))
    assert found["network.widths"].tolist() == ["[4]", "[4]", "[8, 4]", "[8, 4]"]
    assert "Of 4 cells of 3 seeds" in in_words(found, list(grid))


def test_values_are_written_for_an_axis():
    values = (0.1 + 0.2, 1e-5, 32, "adam", "Constant(beta=0.9)", to_code(article_schedule()), [8, 4])
    labels = ["0.3", "1e-05", "32", "adam", "Constant\n(beta=0.9)", "the article's", "[8, 4]"]
    assert [value_label(value) for value in values] == labels


def test_values_that_differ_have_places_of_their_own_on_a_map():
    for values in (
        [10**12, 0.1],
        [0.5, 0.5 + 1e-14],
        [0.1, 0.1000000000001, 0.2],
        [0, 1e-13],
        [8, 32, 128],
        [10**9, 2.5],
    ):
        cells = for_map(pd.DataFrame({"a": values, "b": "x"}), ["a", "b"])
        assert cells["x"].tolist() == [value_label(value) for value in values]
        assert cells["code"].is_unique


def test_a_map_has_the_places_of_its_cells_and_the_codes_that_choose_them():
    rows = [
        {
            "optimizer.learning_rate": rate,
            "schedule": schedule,
            "seed": seed,
            "final_original": 1,
            "final_ema": 2,
            "error": None,
        }
        for rate in (0.01, 0.001)
        for schedule in ("Constant(beta=0.9)", to_code(article_schedule()))
        for seed in (0, 1)
    ]
    grid = ["optimizer.learning_rate", "schedule"]
    found = summary(pd.DataFrame(rows), grid)
    cells = for_map(found, grid)
    pd.testing.assert_frame_equal(cells.drop(columns=["x", "y", "code"]), found)
    assert cells["x"].tolist() == ["0.01", "0.01", "0.001", "0.001"]
    assert cells["y"].tolist() == ["Constant\n(beta=0.9)", "the article's"] * 2
    assert cells["code"].tolist()[::3] == [
        "optimizer.learning_rate 0.01, schedule Constant(beta=0.9)",
        "optimizer.learning_rate 0.001, schedule the article's",
    ]


def test_a_cell_is_one_under_each_question_that_was_answered(table):
    grid = list(GRID)
    found = questions_of(table.drop(columns=["best_original", "best_ema"]), grid, 2)
    assert list(found) == ["final", "fixed", "own", "steadiness"]
    for question, cell in found.items():
        assert cell.settings == {"optimizer.learning_rate": 0.03, "schedule": "Constant(beta=0.5)"}
        assert cell.rows["seed"].tolist() == SEEDS
        assert cell.comparison == cells_of(table, grid, question)[2].comparison
    assert not found["final"].failed


def test_how_far_a_sweep_is_and_what_failed():
    job = Sweep(CONFIG, {"network.widths": [[4], [8, 4]], "max_epochs": [1, 2]}, (0, 1))
    rows = [
        {"network.widths": [4], "max_epochs": epochs, "seed": seed, "error": error}
        for epochs, errors in ((1, ("late", None)), (2, ("early", "late")))
        for seed, error in enumerate(errors)
    ]
    table = pd.DataFrame(rows)
    found = progress(table[:2], job, 5.0)
    assert (found.cells, found.share) == (1, 0.25)
    assert found.left.seconds == pytest.approx(25.0), "each of its cells of two epochs takes twice as long"
    found = progress(table, job, 5.0)
    assert (found.cells, found.share, found.left.seconds) == (2, 0.5, pytest.approx(5.0))
    nothing = progress(table[:0], job, 5.0)
    assert (nothing.cells, nothing.share, nothing.left) == (0, 0.0, None)
    assert list(failures(table).items()) == [("late", 2), ("early", 1)]
    without_numbers = table.assign(final_original=np.nan, final_ema=np.nan)
    assert [cell.failed for cell in cells_of(without_numbers, list(job.grid))] == [False, True]
    found = summary(without_numbers, list(job.grid))
    assert found["untrained"].tolist() == [1, 2]
    drawn = evidence_map(for_map(found, list(job.grid)), ["[4]"], ["1", "2"], x_title="x", y_title="y").data
    assert drawn["text"].tolist() == ["not finite\n0 of 2", "not\ntrained"]


def test_the_time_a_sweep_still_takes_does_not_count_up():
    job = Sweep(CONFIG, {"network.widths": [[4], [8]], "max_epochs": [1, 3, 4]}, (0, 1))
    ends = [2.0, 8.0, 16.0, 18.5, 30.0, 60.0]
    cells = [dict(settings) | {"elapsed": end} for (settings, _), end in zip(job.cells(), ends, strict=True)]
    table = pd.DataFrame([cell | {"seed": seed} for cell in cells for seed in job.seeds])
    looks = []
    for second in range(60):
        done = sum(end <= second for end in ends)
        found = progress(table[: 2 * done], job, float(second))
        if done:
            looks.append(found.left)
        else:
            assert found.left is None
    assert looks[0] == looks[5] == (pytest.approx(30.0), False), "a sixteenth of the steps took two seconds"
    assert looks[14] == (pytest.approx(16.0), False), "at the same pace as long as its first half"
    seconds = [left.seconds for left in looks]
    assert seconds == sorted(seconds, reverse=True)
    assert looks[-1] == (pytest.approx(30.0 / 3), False)
    cached = table.assign(elapsed=[0.0] * 6 + [8.0] * 2 + [16.0] * 4)
    assert progress(cached[:6], job, 1.0).left is None, "nothing was trained yet"
    assert progress(cached[:8], job, 9.0).left.seconds == pytest.approx(8.0 * 7)


def test_how_many_trainings_a_sweep_takes_is_told():
    assert trainings_in_words(Sweep(CONFIG, GRID, (0, 1, 2))).startswith("4 cells in 2 trainings of 3 seeds. Cells")
    looking = replace(CONFIG, stopping=StoppingConfig("ema", 1))
    assert trainings_in_words(Sweep(looking, GRID, (0, 1))).startswith("4 cells in 4 trainings of 2 seeds. Cells")


def test_a_setting_that_acts_on_nothing_is_told_before_and_after(monkeypatch):
    grid = {"optimizer.learning_rate": [0.001, 0.03], "optimizer.momentum": [0, 0.9, 0.99]}
    config = replace(CONFIG, schedule=Constant(0.5))
    asked = Sweep(config, grid, tuple(range(6)))
    warning, needs = before_start(asked)
    assert "6 cells are 2 different experiments: momentum acts on nothing (adam has none" in warning
    assert "6 seeds cannot show anything here" in warning
    assert not needs
    trained = []
    real = sweep_module.train_cell
    monkeypatch.setattr(sweep_module, "train_cell", lambda *job: trained.append(job[0]) or real(*job))
    table = sweep(config, grid, asked.seeds, workers=1)
    assert trained == [0, 3]
    found = summary(table, list(grid))
    assert found["test"].tolist() == [1, 1, 1, 2, 2, 2]
    assert found["p"].tolist() == pytest.approx(np.repeat(holm(found["wilcoxon_p"][::3]), 3))
    made = found.assign(verdict="hurts", median_gain_percent=[-50] * 3 + [-10] * 3)
    said = in_words(made, list(grid))
    assert "6 cells of 6 seeds are 2 different ones" in said
    assert in_words(made.iloc[:3], list(grid)).startswith(
        "All 3 cells of 6 seeds show exactly the same. Of this one, averaging helps in 0 and hurts in 1"
    )
    assert "hurts most at learning rate 0.001, any momentum: in the median" in said


def test_cells_that_do_the_same_are_told_with_their_values():
    def told(grid, config=CONFIG, seeds=32):
        return before_start(Sweep(config, grid, tuple(range(seeds))))

    longer = replace(CONFIG, schedule=InversePower(update_every=1, update_after_step=0), max_epochs=30)
    assert told({"schedule.beta": [0.9, 0.99, 0.999]}, longer)[0] == (
        "3 cells are 2 different experiments: beta 0.99/0.999 do the same in these runs. Cells that are the "
        "same are trained once and are one test."
    )
    assert told({"schedule.beta": [0.99, 0.999]}, longer)[0].startswith("2 cells are one and the same experiment: ")
    warning, _ = told({"optimizer.name": ["adam", "sgd"], "optimizer.momentum": [0, 0.9]})
    assert "momentum acts on nothing in 2 of the cells (adam has none, only sgd has)" in warning
    warning, _ = told({"data.kind": ["make_regression", "diabetes"], "data.noise": [0.1, 50]})
    assert "noise acts on nothing in 2 of the cells (the rows of diabetes are given)" in warning
    assert told(GRID) == ("", "For 4 tests 8 seeds each are the least that can show anything, if no pair ties.")
    assert "4 tests need at least 8 seeds each" in told(GRID, seeds=7)[0]


@pytest.mark.slow
def test_an_unreachable_scheduler_is_one_sentence(monkeypatch):
    monkeypatch.setenv(SCHEDULER, "tcp://127.0.0.1:9")
    with pytest.raises(SweepError, match="cannot be reached"):
        sweep(CONFIG, GRID, SEEDS)


@pytest.fixture
def cluster(tmp_path):
    """A Dask scheduler and two worker processes on loopback; the second has started as it does on another machine."""
    address = tmp_path / "scheduler.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(kind, *arguments, how=Forked):
        code = f"from distributed.cli.dask_{kind} import main; main()"
        return how(
            [sys.executable, "-c", code, "--scheduler-file", str(address), *arguments],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    processes = [start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")]
    try:
        wait_for(address.exists)
        options = ("--no-nanny", "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard")
        processes += [start("worker", *options, how=how) for how in (Forked, subprocess.Popen)]

        from distributed import Client

        url = json.loads(address.read_text())["address"]
        with Client(url, timeout=30, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
        yield url, processes
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_cluster_gives_the_same_numbers_though_a_worker_is_killed(table, cluster):
    url, processes = cluster
    seen = []

    def kill_one(rows):
        if not seen:
            processes[1].kill()
        seen.append(rows)

    found = sweep(CONFIG, GRID, SEEDS, scheduler=url, on_result=kill_one)
    assert len(seen) == 4
    assert found["error"].isna().all()
    pd.testing.assert_frame_equal(found[SAME], table[SAME], rtol=1e-4)


@pytest.mark.slow
def test_other_versions_on_the_cluster_are_one_sentence(cluster, monkeypatch):
    monkeypatch.setattr(sweep_module.emacore, "__version__", "9.9")
    with pytest.raises(SweepError, match=r"has emacore 0.1.0, here it is 9.9"):
        sweep(CONFIG, GRID, SEEDS, scheduler=cluster[0])
