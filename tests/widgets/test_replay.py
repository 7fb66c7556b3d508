"""Which runs the page What if offers."""

import pytest
import torch

from emacore import Recorder
from emacore.experiments.store import RunStore
from emacore.tasks.regression.config import RunConfig
from emacore.widgets import replay
from tests.helpers import ME


@pytest.mark.parametrize("asked", [None, "bare", "recorded"])
def test_of_runs_without_an_epoch_those_are_offered_that_are_recorded_or_asked_for(asked, tmp_path, monkeypatch):
    store, runs, offered = RunStore(tmp_path), {}, []
    for name in ("recorded", "bare", "another"):
        runs[name] = store.create(RunConfig())
        store.claim(ME, 99)
        if name == "recorded":
            Recorder(torch.nn.Linear(2, 1), store.recording(runs[name])).close()
        store.finish(runs[name], ME, "failed", error="out of memory")
    monkeypatch.setattr(replay, "from_link", lambda key: runs.get(asked))
    monkeypatch.setattr(replay, "chosen_job", lambda label, jobs, *how, **named: (offered.extend(jobs["id"]), None))
    replay.chosen_run(store)
    assert set(offered) == {runs[name] for name in ("recorded", asked) if name}
