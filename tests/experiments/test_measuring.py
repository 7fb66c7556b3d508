"""Questions about what was opened: what a worker measures by the owner's function, and what is kept of it."""

import json
import os
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from emacore import Constant, RunConfig, Trajectory
from emacore.averaging.code import to_code
from emacore.averaging.families import PowerFunction
from emacore.checkpoints import open_checkpoints
from emacore.experiments import jobs, measuring
from emacore.experiments.jobs import JobQueue, work_off
from emacore.experiments.measuring import Question, answer, evaluator, question_from_json, read
from emacore.experiments.opened import identity_of
from emacore.experiments.store import RunStore
from emacore.replay.measure import Metric, named_measure
from emacore.tasks import open_run
from emacore.training.loop import train
from tests.experiments.opened_folders import MEASURE, small_run, stored_rows
from tests.forked import forking
from tests.helpers import ME, wait_for


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with a run and what measures it."""
    path = tmp_path_factory.mktemp("place")
    small_run(path / "tiny")
    (path / "small_eval.py").write_text(MEASURE)
    return path


@pytest.fixture
def store(place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("EMACORE_OPEN", str(place / "tiny"))
    monkeypatch.setenv("EMACORE_EVALUATE", "small_eval:distance")
    yield RunStore(tmp_path / "home")
    sys.modules.pop("small_eval", None)


def asking(place, kind, settings, by=None, sections=("model",)):
    return Question("tiny", identity_of(place / "tiny"), sections, kind, settings, evaluator() if by is None else by)


def calls():
    return len(sys.modules["small_eval"].calls)


def over(asked):
    return asked if asked.state not in ("queued", "running") else None


def carried_out(store, question):
    store.ask(question.to_json())
    work_off(store, ME, *store.claim(ME, 1))
    return store.asked(question.to_json())


def test_a_question_is_read_back_and_is_no_job(place, store):
    question = asking(place, "curves", {"codes": ["Constant(beta=0.5)"]})
    assert question_from_json(question.to_json()) == question
    assert question_from_json('{"task": "regression"}') is None
    asked = store.ask(question.to_json())
    assert store.ask(question.to_json()) == asked
    assert store.asked(question.to_json()).state == "queued"
    assert store.jobs().empty


def test_merges_are_measured_as_their_coefficients_say(place, store):
    coefficients = [[0, 0, 0, 0, 0, 1.0], [0, 0, 0.25, 0.25, 0.25, 0.25], [0, 0, 0, 0, -0.5, 1.5]]
    question = asking(place, "merges", {"coefficients": coefficients})
    assert carried_out(store, question).state == "done"
    found = read(store.cell(question.key)[0]["answer"])
    merged = np.array(coefficients) @ stored_rows(place / "tiny").astype(np.float64)
    np.testing.assert_allclose(found["found"]["loss"], (merged**2).sum(axis=1), rtol=1e-5)
    assert found["metrics"] == [{"column": "loss", "name": "loss", "higher_is_better": False}]


def test_what_was_measured_is_kept_now_and_then_and_not_network_by_network(place, store, monkeypatch):
    written, add = [], RunStore.add_cells
    monkeypatch.setattr(RunStore, "add_cells", lambda self, cells: written.append(len(cells)) or add(self, cells))
    for code, seconds, pieces in (("Constant(beta=0.9)", 3600, [6]), ("Constant(beta=0.8)", -1, [1] * 5)):
        monkeypatch.setattr(measuring, "_BETWEEN", seconds)
        written.clear()
        answer(asking(place, "curves", {"codes": [code]}), store)
        assert [count for count in written if count] == pieces, "both begin with the same copy"


def test_curves_are_those_of_a_trajectory_and_nothing_is_measured_twice(place, store):
    codes = [to_code(Constant(0.0)), to_code(PowerFunction(sigma_rel=0.1))]
    question = asking(place, "curves", {"codes": codes})
    carried_out(store, question)
    curves = read(store.cell(question.key)[0]["answer"])["found"]
    raw = (stored_rows(place / "tiny").astype(np.float64) ** 2).sum(axis=1)
    np.testing.assert_allclose(curves[codes[0]]["loss"], raw, rtol=1e-5)
    assert curves[codes[0]]["step"].tolist() == [9, 19, 29, 39, 49, 59]
    trajectory = Trajectory(open_checkpoints(place / "tiny").rows("model"))
    averages = trajectory.average([PowerFunction(sigma_rel=0.1)], range(6))[0].astype(np.float64)
    np.testing.assert_allclose(curves[codes[1]]["loss"], (averages**2).sum(axis=1), rtol=1e-5)
    before = calls()
    again = asking(place, "curves", {"codes": [*reversed(codes), "Constant(beta=0.5)"]})
    carried_out(store, again)
    assert calls() - before <= len(raw)


def test_distances_need_nothing_that_measures_and_can_be_stopped(place, store, monkeypatch):
    question = asking(place, "distances", {}, by="")
    assert carried_out(store, question).state == "done"
    rows = stored_rows(place / "tiny").astype(np.float64)
    found = read(store.cell(question.key)[0]["answer"])["squared"]
    np.testing.assert_allclose(found, ((rows[:, np.newaxis] - rows) ** 2).sum(axis=2), rtol=1e-9, atol=1e-12)

    def stop(done, of):
        raise measuring.Stopped

    with pytest.raises(measuring.Stopped):
        answer(question, store, stop)
    monkeypatch.setattr(measuring, "MOST_APART", 5)
    assert read(answer(question, store))["squared"] is None


@pytest.mark.parametrize(
    ("kind", "settings", "least"),
    [
        ("atlas", {"code": "Constant(beta=0.9)", "x": "beta", "y": "update_after_step", "metric": "final"}, 100),
        ("family", {}, 4),
        ("widths", {}, 20),
        ("space", {"code": "Constant(beta=0.9)", "plane": "principal components", "since": 0}, 700),
    ],
)
def test_views_get_the_tables_that_they_get_of_a_run(place, store, kind, settings, least):
    question = asking(place, kind, settings)
    ended = carried_out(store, question)
    assert (ended.state, ended.error) == ("done", None)
    found = read(store.cell(question.key)[0]["answer"])["found"]
    whole = measuring.KINDS[kind](
        Trajectory(measuring._trajectory(place / "tiny", "model").rows, named_measure("small_eval:distance")),
        **settings,
    )
    if kind == "space":
        found, whole = found.landscape, whole.landscape
    if kind == "atlas":
        assert found["original"] == pytest.approx(whole["original"])
        found, whole = found["cells"], whole["cells"]
    assert found.keys() == whole.keys()
    assert len(next(iter(found.values()))) >= least
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values)
    assert measuring.count_of(question, 6) >= np.isfinite(whole["loss"]).sum()


def test_a_stopped_question_goes_on_where_it_was(place, store):
    question = asking(place, "widths", {})
    seen = []

    def stop_soon(done, of):
        seen.append((done, of))
        if done >= 5:
            raise measuring.Stopped

    with pytest.raises(measuring.Stopped):
        answer(question, store, stop_soon)
    measured = calls()
    read(answer(question, store))
    assert calls() < 2 * measured + 40 - measured + 1
    assert seen[0] == (0, 40)
    stop = threading.Event()
    stop.set()
    store.ask(question.to_json())
    run_id, _ = store.claim(ME, 1)
    measuring.work_on(store, run_id, ME, question, stop.is_set)
    assert store.asked(question.to_json()).state == "stopped"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda q: Question("other", q.files, q.sections, q.kind, q.settings, q.by), "nothing is opened"),
        (lambda q: Question(q.of, "0" * 16, q.sections, q.kind, q.settings, q.by), "has changed"),
        (lambda q: Question(q.of, q.files, q.sections, q.kind, q.settings, "os:system@1"), "what measures has changed"),
        (lambda q: Question(q.of, q.files, ("none",), q.kind, q.settings, q.by), "there is no section"),
    ],
)
def test_what_cannot_be_answered_fails_with_a_sentence_without_a_path(place, store, change, told):
    question = change(asking(place, "curves", {"codes": ["Constant(beta=0.5)"]}))
    ended = carried_out(store, question)
    assert ended.state == "failed"
    assert told in ended.error
    assert str(place) not in ended.error


def test_a_function_that_fails_is_told(place, store, monkeypatch):
    monkeypatch.setenv("EMACORE_EVALUATE", "small_eval:broken")
    ended = carried_out(store, asking(place, "widths", {}))
    assert ended.state == "failed"
    assert "the data are not there" in ended.error


def test_the_files_and_the_function_decide_which_answer_is_kept(place, store, monkeypatch, tmp_path):
    one = asking(place, "widths", {})
    os.utime(place / "tiny" / "step_10.pt", ns=(1, 1))
    assert asking(place, "widths", {}).key != one.key
    (tmp_path / "small_eval.py").write_text(MEASURE + "\n# another version")
    monkeypatch.chdir(tmp_path)
    assert evaluator() != one.by
    monkeypatch.delenv("EMACORE_EVALUATE")
    assert evaluator() == ""


def test_what_would_not_fit_into_memory_is_refused(place, store, monkeypatch):
    monkeypatch.setattr(measuring, "MEASURED_BYTES", 1000)
    for kind, settings in (
        ("widths", {}),
        ("atlas", {"code": "Constant(beta=0.9)", "x": "beta", "y": "update_after_step", "metric": "final"}),
    ):
        with pytest.raises(ValueError, match="in memory"):
            answer(asking(place, kind, settings), store)


@pytest.mark.slow
def test_a_worker_of_the_server_answers(place, store, monkeypatch):
    forking(monkeypatch, jobs)
    question = asking(place, "widths", {})
    sys.path.remove(str(place))  # the worker finds what measures in its working directory
    queue = JobQueue(store)
    try:
        store.ask(question.to_json())
        queue.tend()
        ended = wait_for(
            lambda: (asked := store.asked(question.to_json())).state not in ("queued", "running") and asked
        )
        assert (ended.state, ended.error) == ("done", None)
        assert len(read(store.cell(question.key)[0]["answer"])["found"]["loss"]) == 40
    finally:
        queue.close()


def test_what_measures_is_a_function_or_a_measure(place, store):
    module = __import__("small_eval")
    assert named_measure("small_eval:distance").metrics == (Metric("loss", "loss"),)
    module.distance.metrics = (Metric("accuracy", "accuracy", higher_is_better=True),)
    assert named_measure("small_eval:distance").metrics[0].higher_is_better
    for wrong in ("small_eval", "small_eval:none", "small_eval_none:loss", "small_eval:calls"):
        with pytest.raises(ValueError, match=r"small_eval"):
            named_measure(wrong)


@pytest.mark.parametrize("error", [KeyError("labels"), SystemExit(2)])
def test_whatever_the_own_function_does_is_told_with_its_name(place, store, monkeypatch, error):
    def broken(tensors):
        raise error

    monkeypatch.setattr(__import__("small_eval"), "distance", broken)
    ended = carried_out(store, asking(place, "merges", {"coefficients": [[0, 0, 0, 0, 0, 1.0]]}))
    assert (ended.state, ended.error) == ("failed", f"small_eval:distance failed: {type(error).__name__}: {error}")


def test_an_average_is_diagnosed(place, store):
    question = asking(place, "diagnosis", {"configured": "Constant(beta=0.9)", "average": "ema"}, by="")
    found = json.loads(answer(question, store))
    assert found["findings"] == []
    decays = read(json.dumps(found["decays"]))
    assert (decays["low"] <= 0.9).all()
    assert (decays["high"] >= 0.9).all()
    assert (decays["high"] - decays["low"]).min() < 0.1
    np.testing.assert_allclose(decays["configured"], 0.9)


def test_without_a_named_function_a_recording_says_how_it_is_measured_and_a_folder_is_refused(
    place, store, tmp_path, monkeypatch
):
    monkeypatch.delenv("EMACORE_EVALUATE")
    with pytest.raises(ValueError, match=r"nothing says how these networks are measured: .* --evaluate"):
        answer(asking(place, "widths", {}, by=""), store)
    train(replace(RunConfig(), max_epochs=2), record=tmp_path / "run")
    monkeypatch.setenv("EMACORE_OPEN", str(tmp_path / "run"))
    curves = {"codes": ["Constant(beta=0.9)"]}
    found = read(answer(Question("run", identity_of(tmp_path / "run"), ("model",), "curves", curves, ""), store))
    whole = open_run(tmp_path / "run").replay({"x": Constant(0.9)})
    np.testing.assert_allclose(found["found"]["Constant(beta=0.9)"]["mae"], whole["mae"])
