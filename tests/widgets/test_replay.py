"""Which runs the page What if offers."""

import numpy as np
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


@pytest.mark.parametrize(("epochs", "count"), [(30, 69), (222, 69), (5_000, 3)])
def test_curves_are_replayed_in_parts_of_few_networks_that_can_be_left_between(epochs, count, monkeypatch):
    parts, left, codes = [], [], [str(number) for number in range(count)]

    def replayed(folder, epochs, codes, most):
        parts.append(len(codes))
        return np.array([codes] * epochs, dtype=np.float32)

    monkeypatch.setattr(replay, "_frames", replayed)
    monkeypatch.setattr(replay, "leave_if_run_anew", lambda: left.append(len(parts)))
    shown, found = replay.frames_of_codes("folder", epochs, codes, epochs)
    assert len(shown) == epochs
    assert found[0].tolist() == list(range(count))
    assert left == list(range(1, len(parts) + 1))
    assert all(schemes == 1 or schemes * epochs <= 1_000 for schemes in parts)
    assert len(parts) < count or epochs > 500, "not one at a time, which costs more"
