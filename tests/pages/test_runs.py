"""The page of all jobs: what it lists, draws, renames, deletes and takes home."""

import io
import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emacore import RunConfig
from emacore.averaging.families import Constant
from emacore.experiments.names import EXAMPLE
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study, Sweep
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import OptimizerConfig
from emacore.training.loop import train
from emacore.widgets import stored_jobs
from emacore.widgets.again import PAGES, job_state, start_state
from emacore.widgets.runs import ENDS, run_state
from emacore.widgets.stored_jobs import KINDS
from tests.helpers import ME
from tests.pages.conftest import APP, FREE, drawn, enter_recorded, enter_run, enter_study, enter_sweep, run, texts
from tests.training.test_second_task import CONFIG as DIGITS

SHORT = replace(FREE, max_epochs=2)


def button(app, label):
    return next(b for b in app.button if b.label == label)


def pick(app, *names):
    """Tick the rows of these names."""
    table = app.dataframe[0]
    rows = [table.value["name"].tolist().index(name) for name in names]
    app.session_state[table.key] = {"selection": {"rows": rows, "columns": [], "cells": []}}
    return run(app)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with jobs of all kinds, named "one" and so on; their ids by name."""
    home = tmp_path_factory.mktemp("made")
    runs = RunStore(home)
    ids = {"one": enter_run(home, SHORT), "two": enter_run(home, replace(SHORT, seed=7, schedule=Constant(0.5)))}
    ids["study"] = enter_study(home, Study(replace(SHORT, max_epochs=3), tuple(range(8))))[0]
    ids["sweep"] = enter_sweep(home)[0]
    for name, state, error in (("failed", "failed", "No [x](http://evil) data."), ("stopped", "stopped", None)):
        ids[name] = runs.create(RunConfig())
        runs.claim(ME, 99)
        runs.finish(ids[name], ME, state, error=error)
    for name, job_id in ids.items():
        runs.rename(job_id, name)
    return home, ids


@pytest.fixture
def jobs(home, made):
    """The ids by name, in a copy of that store."""
    shutil.copytree(made[0], home)
    return made[1]


def test_an_empty_store_says_so(open_page):
    app = open_page("runs")
    assert "Nothing has been trained yet" in texts(app)
    assert not app.dataframe


def test_it_lists_all_kinds_with_their_numbers(open_page, home, jobs):
    app = open_page("runs")
    table = app.dataframe[0].value.set_index("name")
    assert set(table.index) == set(jobs)
    assert table["kind"].to_dict() == {
        **dict.fromkeys(("one", "two", "failed", "stopped"), "run"),
        "study": "study",
        "sweep": "sweep",
    }
    assert table.loc[["failed", "stopped", "one"], "state"].tolist() == ["failed", "stopped", "done"]
    for name in ("one", "two"):
        last = RunStore(home).history(jobs[name]).iloc[-1]
        assert table.loc[name, ["original", "ema"]].tolist() == last[["val_loss_original", "val_loss_ema"]].tolist()
        assert table.loc[name, "gain_percent"] == pytest.approx(
            100 * (1 - last["val_loss_ema"] / last["val_loss_original"])
        )
    last = RunStore(home).history(jobs["study"]).query("epoch == 3")
    assert table.loc["study", "ema"] == np.median(last["val_loss_ema"])
    assert table.loc["sweep", "epochs"] == 4
    assert "6 jobs" in texts(app)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"find_job": "STOP"}, ["stopped"]),
        ({"kinds": "Sweeps"}, ["sweep"]),
        ({"kinds": ["Runs", "Studies"], "states": "done"}, ["study", "two", "one"]),
        ({"order": "name"}, ["failed", "one", "stopped", "study", "sweep", "two"]),
        ({"order": "oldest", "states": ["done"]}, ["one", "two", "study", "sweep"]),
        ({"find_job": "nothing like it"}, []),
    ],
)
def test_filters_and_orders_are_in_the_link(open_page, jobs, query, names):
    app = open_page("runs", **query)
    if names:
        assert app.dataframe[0].value["name"].tolist() == names
    else:
        assert not app.dataframe
        assert "None of the 6 jobs is like that" in texts(app)


def test_one_job_that_a_filter_leaves_out_is_one(open_page, home):
    RunStore(home).create(RunConfig())
    assert "The one job is not like that" in texts(open_page("runs", find_job="nothing like it"))


def test_curves_of_several_are_overlaid_and_their_differences_told(open_page, home, jobs):
    app = pick(open_page("runs"), "one", "two")
    assert app.query_params["picked"] == f"{jobs['one']},{jobs['two']}"
    for which, models in (("EMA", ["ema"]), ("original", ["original"]), ("both", ["original", "ema"])):
        app.get_by_key("overlaid").set_value(which)
        table = drawn(run(app))[0]
        assert table["curve"].nunique() == 2 * len(models)
        for name in ("one", "two"):
            history = RunStore(home).history(jobs[name])
            for model in models:
                curve = name if len(models) == 1 else f"{name}: {'EMA' if model == 'ema' else model}"
                rows = table[table["curve"] == curve]
                np.testing.assert_allclose(rows["loss"], history[f"val_loss_{model}"])
    app.get_by_key("overlay_x").set_value("steps")
    assert drawn(run(app))[0]["steps"].tolist()[:2] == RunStore(home).history(jobs["one"])["steps"].tolist()
    differ = app.table[0].value.set_index("setting")
    assert differ.loc["seed"].to_dict() == {"one": "42", "two": "7"}
    assert differ.loc["schedule.family"].to_dict() == {"one": "InversePower", "two": "Constant"}
    assert "cannot be compared" not in texts(app)


def test_a_link_chooses_rows_and_a_filter_drops_them(open_page, home, jobs):
    link = f"{jobs['study']},{jobs['one']},gone"
    app = open_page("runs", picked=link)
    table = drawn(app)[0]
    assert set(table["curve"]) == {"study", "one"}
    found = RunStore(home).history(jobs["study"]).groupby("epoch")["val_loss_ema"].median()
    np.testing.assert_allclose(table[table["curve"] == "study"]["loss"], found)
    assert "the median over the seeds" in texts(app)
    app.get_by_key("kinds").set_value(["Runs"])
    assert set(drawn(run(app))[0]["curve"]) == {"one"}
    app.get_by_key("kinds").set_value([])
    assert set(drawn(run(app))[0]["curve"]) == {"one"}
    assert app.query_params["picked"] == jobs["one"]


def test_what_has_no_curve_and_what_cannot_be_compared_is_told(open_page, home, jobs):
    app = pick(open_page("runs"), "sweep", "failed")
    assert "None of these has a curve" in texts(app)
    RunStore(home).rename(enter_run(home, replace(SHORT, data=DataConfig(n_samples=300))), "other rows")
    assert "cannot be compared" in texts(pick(open_page("runs"), "one", "other rows"))
    RunStore(home).rename(enter_run(home, SHORT), "twin")
    assert "the same experiment with the same seed" in texts(pick(open_page("runs"), "one", "twin"))


def test_curves_and_differences_are_called_after_what_is_not_common_beside_the_servers_run_too(open_page, home):
    runs, one = RunStore(home), replace(SHORT, max_epochs=1)
    run_id = runs.create_once("example", one)
    for seed in (4, 5, 6):
        enter_run(home, replace(one, seed=seed))
    assert run_id in runs.claim(ME, 99)
    train(one, lambda row: runs.append(run_id, ME, row))
    runs.finish(run_id, ME, "done", stopped="max epochs")
    app = open_page("runs")
    app = pick(app, *app.dataframe[0].value["name"])
    *short, example = sorted(drawn(app)[0]["curve"].unique())
    assert example == EXAMPLE
    assert [name.partition(",")[0] for name in short] == ["seed 4", "seed 5", "seed 6"]
    assert sorted(app.table[0].value) == sorted(["setting", example, *short])


def test_so_many_curves_are_drawn_as_there_are_colours(open_page, home, monkeypatch):
    for seed in range(4):
        enter_run(home, replace(SHORT, seed=seed, max_epochs=1))
    monkeypatch.setattr(stored_jobs, "MOST_CURVES", 3)
    app = open_page("runs")
    assert all(", 1 epoch," in name for name in app.dataframe[0].value["name"])
    app = pick(app, *app.dataframe[0].value["name"])
    curves = drawn(app)[0]["curve"].unique()
    assert sorted(name[:6] for name in curves) == ["seed 1", "seed 2", "seed 3"]
    assert "The first 3 of 4 are drawn" in texts(app)


def test_renaming(open_page, home, jobs):
    app = pick(open_page("runs"), "one")
    planted = "![x](http://evil/p.png) :material/x:"
    field = app.get_by_key(f"new-name-{jobs['one']}")
    assert field.value == "one"
    assert field.proto.max_chars == 80
    field.set_value(planted)
    button(app, "Rename").click()
    assert planted in run(app).dataframe[0].value["name"].tolist()
    assert RunStore(home).result(jobs["one"]).name == planted
    assert planted in app.get_by_key(f"new-name-{jobs['one']}").value
    assert planted not in texts(app)  # in the list of what would be deleted, it is escaped
    assert "http:" in texts(app)
    app.get_by_key(f"new-name-{jobs['one']}").set_value("")
    button(app, "Rename").click()
    assert any(name.startswith("regression, Adam 0.01 constant") for name in run(app).dataframe[0].value["name"])


def test_deleting_is_asked_twice(open_page, home, jobs):
    runs = RunStore(home)
    runs.rename(runs.enter(RunConfig(), ME), "training")
    app = pick(open_page("runs"), "one", "failed", "training")
    assert "1 of these still trains: stop it first" in texts(app)
    assert app.get_by_key("delete").disabled
    app.checkbox[0].check()
    assert app.checkbox[0].label == "Yes, these 2"
    run(app).get_by_key("delete").click()
    assert set(run(app).dataframe[0].value["name"]) == {"two", "study", "sweep", "stopped", "training"}
    assert set(runs.jobs()["name"]) == {"two", "study", "sweep", "stopped", "training"}
    app = pick(app, "two")
    assert not app.checkbox[0].value
    assert app.get_by_key("delete").disabled


def test_what_cannot_be_deleted_is_told_and_the_others_go(open_page, home, jobs):
    app = pick(open_page("runs"), "one", "two")
    app.checkbox[0].check()
    run(app)
    RunStore(home).delete(jobs["two"])  # by somebody else
    app.get_by_key("delete").click()
    assert "There is no run" in run(app).error[0].value
    assert set(app.dataframe[0].value["name"]) == {"study", "sweep", "failed", "stopped"}


def test_stopping(open_page, home, jobs):
    runs = RunStore(home)
    waiting = runs.create(RunConfig())
    runs.rename(waiting, "waiting")
    app = pick(open_page("runs"), "waiting", "one")
    button(app, "Stop").click()
    run(app)
    assert runs.result(waiting).state == "stopped"
    assert runs.result(jobs["one"]).state == "done"
    assert "Stop" not in [b.label for b in app.button]


def test_the_zip_is_made_when_asked(open_page, home, jobs, monkeypatch):
    asked = []
    monkeypatch.setattr(stored_jobs, "write_archive", lambda file, store, listed: asked.append(set(listed["name"])))
    app = open_page("runs")
    labels = [b.proto.label for b in app.get("download_button")]
    assert "6 jobs as one zip" in labels
    labels = [b.proto.label for b in pick(app, "one", "study").get("download_button")]
    assert "2 jobs as one zip" in labels
    assert asked == []
    monkeypatch.undo()
    listed = pd.DataFrame({"id": [jobs["one"]], "name": ["one"], "label": [""], "config": [""]})
    names = zipfile.ZipFile(io.BytesIO(stored_jobs._zipped(RunStore(home), listed))).namelist()
    assert f"one-{jobs['one']}/history.csv" in names


def test_train_again_opens_the_page_with_the_settings(open_page, home):
    config = replace(SHORT, optimizer=OptimizerConfig("sgd", 0.02, momentum=0.5, rate_rule="constant"), seed=5)
    RunStore(home).rename(enter_run(home, config), "mine")
    app = pick(open_page("runs"), "mine")
    button(app, "Train again with these").click()
    app = run(app)
    assert app.title[0].value == "Train"
    button(app, "Start").click()
    assert RunStore(home).result(run(app).session_state["run"]).config == config


def test_a_job_that_no_page_can_show_is_trained_as_it_was(open_page, home):
    RunStore(home).rename(enter_run(home, replace(DIGITS, max_epochs=1)), "digits")
    app = pick(open_page("runs"), "digits")
    again = button(app, "Train the same again")
    assert "no controls for digits in a test" in again.help
    again.click()
    run(app)
    queued = RunStore(home).runs().iloc[0]
    assert queued["state"] == "queued"
    assert RunStore(home).result(queued["id"]).job == replace(DIGITS, max_epochs=1)


def test_replaying_begins_with_the_runs_own_schedule(open_page, home):
    run_id = enter_recorded(home, SHORT)
    enter_recorded(home, SHORT)
    assert "Replay this run" in [b.label for b in open_page("runs", picked=run_id).button]
    app = open_page("train", run=run_id, family="Constant", beta="0.3")
    button(app, "Replay this run").click()
    app = run(app)
    assert app.title[0].value == "What if?"
    assert app.session_state["replayed"] == run_id
    figures = next(table.value for table in app.dataframe if "curve" in table.value).set_index("curve")
    assert figures.loc["now", "final"] == pytest.approx(figures.loc["the run's own EMA", "final"], rel=1e-4)


def test_a_run_without_a_recording_is_not_offered_for_replay(open_page, home):
    run_id = enter_run(home, SHORT)
    for page, query in (("train", {"run": run_id}), ("runs", {"picked": run_id})):
        assert "Replay this run" not in [b.label for b in open_page(page, **query).button]


@pytest.mark.parametrize(
    "job",
    [
        RunConfig(),
        replace(FREE, schedule=Constant(0.97)),
        RunConfig(data=DataConfig("friedman1", 300, 7)),
        Study(FREE, tuple(range(8)), (Constant(0.5),)),
        Study(FREE, tuple(range(5, 37))),
        Sweep(
            FREE,
            {"optimizer.learning_rate": [0.001, 0.5], "schedule": ["Constant(beta=0.9)", "UniformAverage()"]},
            tuple(range(8)),
        ),
        Sweep(FREE, {"max_epochs": [5, 20], "network.activation": ["relu", "tanh"]}, tuple(range(16))),
    ],
)
def test_the_controls_show_a_job_as_it_was(open_page, home, job):
    page = {RunConfig: "train", Study: "evidence", Sweep: "where_it_helps"}[type(job)]
    kind = {RunConfig: "run", Study: "study", Sweep: "sweep"}[type(job)]
    app = open_page(page)
    for key, value in job_state(job).items():
        app.session_state[key] = value
    button(run(app), "Start").click()
    if kind != "run":
        assert app.get_by_key({"study": "seeds", "sweep": "sweep_seeds"}[kind]).step == 8, "others are not shown again"
    found = RunStore(home).result(run(app).session_state[kind]).job
    expected = (
        replace(job, seed=found.seed)
        if isinstance(job, RunConfig)
        else replace(job, config=replace(job.config, seed=found.config.seed))
    )
    assert found == expected


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (DIGITS, "no controls for digits"),
        (
            RunConfig(data=DataConfig(n_samples=10), optimizer=OptimizerConfig(batch_size=4)),
            "rows = 10 is outside its control's range, 20 to 200000",
        ),
        (RunConfig(schedule=Constant(0.1)), "outside the slider's range"),
        (Study(RunConfig(), (1, 2)), "8 to 256 seeds, in steps of 8, that follow each other; these are 2 from 1"),
        (Study(RunConfig(), (*range(7), 9)), "that follow each other"),
        (Study(RunConfig(), tuple(range(8)), tuple(Constant(0.3 + n / 10) for n in range(6))), "keeps 5 further"),
        (Sweep(RunConfig(), {"max_epochs": [1]}, tuple(range(8))), "two of the settings"),
        (Sweep(RunConfig(), {"max_epochs": [1], "network.widths": [[1]]}, tuple(range(8))), "two of the settings"),
        (Sweep(RunConfig(), {"max_epochs": [1], "data.noise": [1]}, tuple(range(8, 16))), "from 0; these are 8 from 8"),
    ],
)
def test_what_the_controls_cannot_show_is_told(job, message):
    with pytest.raises(ValueError, match=message):
        job_state(job)


def test_the_ends_of_the_controls_are_those_that_are_checked(open_page):
    seen = {}
    for query in ({"optimizer": "sgd"}, {"rate_rule": "plateau"}):
        app = open_page("train", **query)
        for control in (*app.number_input, *app.slider):
            seen[control.key] = (control.min, control.max)
        marks = app.get_by_key("lr").options
        seen["lr"] = (float(marks[0]), float(marks[-1]))
    assert {key: tuple(map(float, seen[key])) for key in ENDS} == {
        key: tuple(map(float, ends)) for key, ends in ENDS.items()
    }


def test_a_schedule_that_the_controls_cannot_show_begins_with_nothing():
    assert start_state(RunConfig(schedule=Constant(0.1))) == {}
    state = start_state(replace(RunConfig(), schedule=Constant(0.97)))
    assert (state["family"], state["beta"]) == ("Constant", 0.97)
    assert run_state(RunConfig()).items() >= start_state(RunConfig()).items()


def test_a_job_opens_on_the_page_of_its_kind(open_page, home, jobs):
    app = pick(open_page("runs"), "study")
    button(app, "Open").click()
    app = run(app)
    assert app.title[0].value == "Evidence"
    assert app.session_state["study"] == jobs["study"]
    assert set(PAGES) == set(KINDS.values())
    assert all((APP.parent / page).exists() for page, _ in PAGES.values())


def test_the_list_goes_home_as_csv_with_all_digits(open_page, home, jobs):
    from emacore.widgets.jobs import shown

    table = shown(RunStore(home).jobs()).set_index("id")
    last = json.loads(RunStore(home).runs().set_index("id").loc[jobs["one"], "last"])
    assert table.loc[jobs["one"], "ema"] == last["val_loss_ema"]
    assert "jobs.csv" in [b.proto.label for b in open_page("runs").get("download_button")]


def test_recordings_of_ended_jobs_tables_that_no_job_trains_on_and_cells_are_freed(open_page, home):
    store = RunStore(home)
    ended, training = enter_recorded(home, SHORT), enter_recorded(home, SHORT, state="running")
    table = store.add_table(b"a,b\n1,2\n")
    store.add_cell("key", [{"seed": 0}])
    app = open_page("runs", free_days="0")
    app.button(key="free").click()
    run(app)
    assert [store.recording(job).exists() for job in (ended, training)] == [False, True]
    app.button(key="free_tables").click()
    run(app)
    assert (table.exists(), store.cell("key")) == (False, [{"seed": 0}])
    app.button(key="free_cells").click()
    run(app)
    assert store.cell("key") is None
    assert app.button(key="free_tables").disabled
    assert [app.button(key=key).disabled for key in ("free", "free_cells")] == [True, True]
    assert len(store.jobs()) == 2
