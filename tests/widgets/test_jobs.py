"""Who looks again by himself, and how often; and what a list has a worker made ready for."""

from types import SimpleNamespace

import pandas as pd
import pytest
import streamlit as st

from emacore.experiments.store import RunStore
from emacore.widgets import jobs
from emacore.widgets.jobs import follow_states, listed


@pytest.mark.parametrize(
    ("states", "looks"),
    [([], []), (["done", "failed", "interrupted"], []), (["done", "running"], [2.5]), (["queued"], [2.5])],
)
def test_a_list_is_looked_at_again_while_a_job_is_under_way(monkeypatch, states, looks):
    found = []
    monkeypatch.setattr(st, "fragment", lambda look, run_every: found.append(run_every) or (lambda: None))
    follow_states(pd.DataFrame({"id": [str(n) for n in range(len(states))], "state": states, "epochs": 1}), 2.5)
    assert found == looks


def test_whoever_lists_jobs_may_start_one_so_a_worker_is_made_ready(monkeypatch, tmp_path):
    asked = []
    queue = SimpleNamespace(store=RunStore(tmp_path), tend=lambda **how: asked.append(how))
    monkeypatch.setattr(jobs, "job_queue", lambda: queue)
    assert listed("sweeps").empty
    assert asked == [{"warm": True}]
