"""A store with damage in it, links with nothing in them, and runs that came to no numbers: every page still stands."""

import json
import shutil
import sqlite3

import pytest

from emacore import RunConfig, train
from emacore.experiments.store import RunStore
from emacore.limits import QUEUED_OF_SESSION
from emacore.training.config import OptimizerConfig
from tests.helpers import ME
from tests.pages.conftest import FREE, STUDY, SWEEP, run

PAGES = ("train", "what_if", "evidence", "where_it_helps", "runs")
DAMAGES = {
    "unknown setting": ("config", json.dumps({"optimizer": {"nope": 1}})),
    "no JSON": ("config", "{"),
    "random bytes": ("config", b"\xff\xfe\x00\x93"),
    "deep": ("config", "[" * 100_000),
    "no state": ("state", "walking"),
    "no time": ("created", "yesterday"),
    "no name": ("name", b"\x80"),
    "another kind": ("kind", "sweep"),
}


@pytest.fixture
def damaged(home):
    """A store with a job that is damaged in each way, one whose last epoch is, and one that is whole."""
    store = RunStore(home)
    whole = store.create(RunConfig(seed=1))
    rows = {name: store.create(RunConfig()) for name in (*DAMAGES, "epoch", "no beat")}
    with sqlite3.connect(store.path) as connection:
        for name, (column, value) in DAMAGES.items():
            connection.execute(f"UPDATE runs SET {column} = ? WHERE id = ?", (value, rows[name]))
        connection.execute("INSERT INTO epochs VALUES (?, 1, '{')", (rows["epoch"],))
        connection.execute(
            "UPDATE runs SET state = 'running', worker = NULL, heartbeat = NULL WHERE id = ?", (rows["no beat"],)
        )
    return store, whole, rows


def test_damaged_jobs_are_told_and_all_pages_stand(open_page, damaged):
    store, whole, rows = damaged
    store.interrupt_abandoned()
    assert store.result(rows.pop("no beat")).state == "interrupted"
    for page in PAGES:
        app = open_page(page)
        assert not app.error, (page, app.error)
    assert set(store.damaged()) == set(rows.values())
    (told,) = [one for one in app.expander if "damaged jobs" in one.label]
    assert told.label.startswith("9 damaged jobs")
    next(one for one in app.button if one.label == "Delete what is damaged").click().run()
    assert store.damaged() == {}
    assert whole in set(store.jobs()["id"])


@pytest.mark.parametrize("page", ["train", "runs"])
def test_a_damaged_epoch_in_the_middle_is_that_runs_trouble(open_page, home, page):
    store = RunStore(home)
    run_id = store.create(FREE)
    store.claim(ME, 9)
    history = train(FREE).history
    for row in json.loads(history.to_json(orient="records")):
        store.append(run_id, ME, row)
    store.finish(run_id, ME, "done", stopped="max epochs")
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE epochs SET row = '{' WHERE epoch = 5")
    app = open_page(page, **({"run": run_id} if page == "train" else {"picked": run_id}))
    assert page == "runs" or [error for error in app.error if "is damaged" in error.value]
    assert page == "runs" or any(button.label == "Start" for button in app.button)


def test_what_if_of_a_run_that_diverged_says_so(open_page, home):
    config = RunConfig(optimizer=OptimizerConfig("sgd", learning_rate=10.0, momentum=0.99, rate_rule="constant"))
    store = RunStore(home)
    run_id = store.create(config)
    store.claim(ME, 9)
    found = train(config, lambda row: store.append(run_id, ME, row), record=store.recording(run_id))
    assert found.stopped == "diverged"
    store.finish(run_id, ME, "done", stopped="diverged")
    for view in ("Atlas", "Weight space"):
        app = open_page("what_if", replayed=run_id, view=view)
        assert any("diverged in its first epoch: no loss is finite" in one.value for one in app.warning)


def test_a_store_that_is_deleted_under_the_server_begins_anew(open_page, home):
    app = open_page("runs")
    RunStore(home).create(RunConfig())
    run(app)
    shutil.rmtree(home)
    run(app)
    assert any("deleted or replaced" in warning.value for warning in app.warning)
    assert RunStore(home).jobs().empty
    run(app)
    assert not any("deleted or replaced" in warning.value for warning in app.warning)


@pytest.mark.parametrize("page", ["runs", "train", "evidence", "where_it_helps"])
def test_another_store_in_its_place_is_told_to_each_session_and_used(open_page, home, tmp_path, page):
    job = {"evidence": STUDY, "where_it_helps": SWEEP}.get(page, RunConfig())
    RunStore(home).create(RunConfig(seed=7))
    app, other_session = open_page(page), open_page(page)
    other = RunStore(tmp_path / "other")
    other.rename(other.create(job), "of the other one")
    home.rename(tmp_path / "away")
    other.folder.rename(home)
    for session in (app, other_session):
        run(session)
        assert any("deleted or replaced" in warning.value for warning in session.warning)
        run(session)
        assert not any("deleted or replaced" in warning.value for warning in session.warning)
    assert RunStore(home).jobs()["name"].tolist() == ["of the other one"]
    if page != "runs":
        assert any("of the other one" in option for box in app.selectbox for option in box.options)


EMPTY = {
    "decay_schedule": ("quantity", "x_scale", "family", "steps", "weight_scale"),
    "low_pass_filter": ("signal", "x", "view", "scale"),
    "what_if": ("view", "x", "y", "loss_axis", "replayed"),
    "where_it_helps": ("question", "sweep_x", "sweep_y", "view"),
    "evidence": ("question", "view", "study"),
    "runs": ("overlaid", "overlay_x", "order", "kinds", "picked"),
    "train": ("data", "optimizer", "stop_curve", "run", "lr"),
    "for_my_run": ("quantity", "x", "view", "steps", "batch"),
    "overview": ("play", "quad_decay"),
}


@pytest.mark.parametrize("page", EMPTY)
def test_nothing_in_a_link_is_no_choice(open_page, page):
    open_page(page, **dict.fromkeys(EMPTY[page], ""))


def test_a_session_queues_so_many_jobs_and_no_more(open_page, home):
    app = open_page("train")
    start = next(button for button in app.button if button.label == "Start")
    for _ in range(QUEUED_OF_SESSION + 1):
        start.click().run()
    assert any("jobs of yours wait already" in error.value for error in app.error)
    assert RunStore(home).counts() == {"queued": QUEUED_OF_SESSION}


def test_no_folder_of_the_server_is_shown(open_page, home, monkeypatch):
    store = RunStore(home)
    run_id = store.create(RunConfig())
    store.claim(ME, 9)
    store.finish(run_id, ME, "failed", error=f"what it said is in {home}/workers/x.log")
    for page in ("train", "runs"):
        app = open_page(page, **({"run": run_id} if page == "train" else {}))
        assert not [one.value for one in [*app.error, *app.warning] if str(home) in one.value]
    store.path.write_bytes(b"not a store" * 100)
    app = open_page("runs")
    assert [error.value for error in app.error if "not a run store" in error.value]
    assert not [error.value for error in app.error if str(home) in error.value]
