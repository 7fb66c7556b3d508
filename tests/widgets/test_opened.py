"""What the page Your checkpoints says of what it does not look at."""

import pytest
import streamlit as st

from emacore.experiments.measuring import MOST_APART
from emacore.experiments.opened import example
from emacore.widgets import opened


@pytest.mark.parametrize("files", [MOST_APART, MOST_APART + 1])
def test_of_more_sets_than_are_compared_it_is_told_and_no_worker_is_asked(files, monkeypatch):
    told, asked = [], []
    monkeypatch.setattr(st, "caption", told.append)
    monkeypatch.setattr(opened, "answer_to", lambda question, *words, **how: asked.append(question.kind))
    contents = type("Contents", (), {"identity": "of its files"})
    assert opened.distances_between("mine", contents, example(10_000, files, "raw")) is None
    sentence = "How far 401 sets are from each other is not looked at; it is for up to 400."
    assert (told, asked) == (([], ["distances"]) if files == MOST_APART else ([sentence], []))
