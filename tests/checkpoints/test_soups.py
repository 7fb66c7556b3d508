import multiprocessing
import os
import signal
import sys
import threading

import pytest
import torch

from emacore import open_checkpoints
from emacore.checkpoints import soups
from emacore.checkpoints.soups import EvaluationError, Tried, evaluated, evaluation, greedy_soup
from tests.forked import forking_spawned
from tests.helpers import wait_for

EVALUATION = """
from emacore.replay.measure import Metric


def near_ten(tensors):
    return -abs(float(tensors["w"][0]) - 10)


def broken(tensors):
    raise KeyError("labels")


def exits(tensors):
    raise SystemExit(3)


def both(tensors):
    return {"accuracy": 0.5, "loss": near_ten(tensors)}


both.metrics = [Metric("accuracy", "accuracy", higher_is_better=True), Metric("loss", "loss")]
"""

ENDLESS = """
import os
import signal
from pathlib import Path


def wait(tensors):
    if float(tensors["w"][0]) == 8:
        raise ValueError("not yet")
    Path("begun.part").write_text(str(os.getpid()))
    Path("begun.part").rename("begun")
    while True:
        signal.pause()
"""


@pytest.fixture
def folder(tmp_path):
    for step, value in [(1, 8.0), (2, 30.0), (3, 13.0), (4, 9.0)]:
        torch.save({"w": torch.full((2,), value)}, tmp_path / f"step_{step}.pt")
    return tmp_path


def value_at(path):
    return -abs(float(open_checkpoints(path)[0].sections[0].tensors["w"].value()[0]) - 10)


def test_a_greedy_soup_keeps_what_does_not_harm(folder):
    coefficients, tried = greedy_soup(open_checkpoints(folder), value_at)
    # From the nearest: 9, then 8, which is no help, 13, with which 11 is as near as 9 was, and 30.
    assert coefficients.values == (0, 0, 0.5, 0.5)
    assert tried == [
        Tried((1,), -2, False),
        Tried((2,), -20, False),
        Tried((3,), -3, False),
        Tried((4,), -1, False),
        Tried((1, 4), -1.5, False),
        Tried((3, 4), -1, True),
        Tried((2, 3, 4), pytest.approx(-22 / 3), False),
    ]


def test_lower_may_be_better_and_what_has_no_number_is_left_out(folder):
    coefficients, _ = greedy_soup(
        open_checkpoints(folder), lambda path: -value_at(path) if value_at(path) > -15 else float("nan"),
        higher_is_better=False, last=3,
    )  # fmt: skip
    assert coefficients.values == (0, 0.5, 0.5)
    coefficients, tried = greedy_soup(open_checkpoints(folder), value_at, at=3)
    assert coefficients.values == (0.5, 0, 0.5)
    assert max(step for one in tried for step in one.steps) == 3
    with pytest.raises(EvaluationError, match="no number for any"):
        greedy_soup(open_checkpoints(folder), lambda path: float("nan"))


def test_what_cannot_evaluate_is_told(folder, monkeypatch):
    (folder / "mine.py").write_text(EVALUATION)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = folder / "step_3.pt"
    (folder / "script.py").write_text("import os\n\nos.mkdir('made')\n")
    (folder / "ends.py").write_text("raise SystemExit(1)\n")
    (folder / "made").mkdir()
    monkeypatch.chdir(folder)
    assert evaluated("mine:near_ten", path, str(folder)) == -3
    assert evaluated("mine:near_ten", None, str(folder)) is None
    assert evaluated("mine:both", path, str(folder)) == 0.5
    assert evaluated("mine:both", None, str(folder)) is True
    for function, words in [
        ("mine:broken", r"mine:broken failed: KeyError: 'labels'"),
        ("mine:exits", "mine:exits failed: SystemExit: 3"),
        ("mine:nothing", "mine has no function 'nothing'"),
        ("nowhere:f", "No module named 'nowhere'"),
        ("nowhere", "must be given as module:function"),
        ("script:f", "the module script cannot be imported: FileExistsError: .*made"),
        ("ends:f", "the module ends cannot be imported: SystemExit: 1"),
    ]:
        with pytest.raises(EvaluationError, match=words):
            evaluated(function, path, str(folder))


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interruption_of_this_process_alone_ends_the_one_that_evaluates(folder, monkeypatch, stubborn):
    forking_spawned(monkeypatch)
    monkeypatch.setattr(soups, "_ENDS_WITHIN", 0.2 if stubborn else 60)
    ignores = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    (folder / "endless.py").write_text(ENDLESS + ignores)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def interrupt():
        wait_for((folder / "begun").exists, 60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()

    def evaluate_both():
        with evaluation("endless:wait") as evaluate:
            with pytest.raises(EvaluationError, match="endless:wait failed: ValueError: not yet"):
                evaluate(folder / "step_1.pt")
            evaluate(folder / "step_2.pt")

    with pytest.raises(KeyboardInterrupt):
        evaluate_both()
    pid = int((folder / "begun").read_text())
    wait_for(lambda: pid not in {child.pid for child in multiprocessing.active_children()})
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_function_that_ends_its_process_is_told(folder, monkeypatch):
    forking_spawned(monkeypatch)
    monkeypatch.chdir(folder)
    (folder / "dying.py").write_text("import os\n\n\ndef die(tensors):\n    os._exit(3)\n")
    with (
        pytest.raises(EvaluationError, match="the process that evaluates dying:die died"),
        evaluation("dying:die") as one,
    ):
        one(folder / "step_1.pt")
