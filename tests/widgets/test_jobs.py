"""Who looks again by himself, and how often."""

import pandas as pd
import pytest
import streamlit as st

from emacore.widgets.jobs import follow_states


@pytest.mark.parametrize(
    ("states", "looks"),
    [([], []), (["done", "failed", "interrupted"], []), (["done", "running"], [2.5]), (["queued"], [2.5])],
)
def test_a_list_is_looked_at_again_while_a_job_is_under_way(monkeypatch, states, looks):
    found = []
    monkeypatch.setattr(st, "fragment", lambda look, run_every: found.append(run_every) or (lambda: None))
    follow_states(pd.DataFrame({"id": [str(n) for n in range(len(states))], "state": states, "epochs": 1}), 2.5)
    assert found == looks
