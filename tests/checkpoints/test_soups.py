import sys

import pytest
import torch

from emacore import open_checkpoints
from emacore.checkpoints.soups import EvaluationError, Tried, evaluated, greedy_soup

EVALUATION = """
def near_ten(tensors):
    return -abs(float(tensors["w"][0]) - 10)


def broken(tensors):
    raise KeyError("labels")
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
    with pytest.raises(EvaluationError, match="no number for any"):
        greedy_soup(open_checkpoints(folder), lambda path: float("nan"))


def test_what_cannot_evaluate_is_told(folder, monkeypatch):
    (folder / "mine.py").write_text(EVALUATION)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = folder / "step_3.pt"
    assert evaluated("mine:near_ten", path, str(folder)) == -3
    for function, words in [
        ("mine:broken", r"mine:broken failed: KeyError: 'labels'"),
        ("mine:nothing", "there is no function 'mine:nothing', as module:function"),
        ("nowhere:f", "No module named 'nowhere'"),
    ]:
        with pytest.raises(EvaluationError, match=words):
            evaluated(function, path, str(folder))
