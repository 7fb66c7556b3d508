"""Pairs of losses of every kind, and what no sentence about them may say; a run without end; jobs in a store."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from emacore import RunConfig
from emacore.averaging.families import Constant
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study, Sweep
from emacore.training.config import StoppingConfig
from emacore.training.history import columns
from tests.helpers import ME

CONFIG = RunConfig()
STUDY = Study(CONFIG, (3, 4, 5), (Constant(0.5),))
SWEEP = Sweep(CONFIG, {"max_epochs": [1, 2]}, (0, 1))
ENDLESS = RunConfig(max_epochs=100_000, stopping=StoppingConfig("none"))
NAN, INF = float("nan"), float("inf")


def drawn_pairs(rng):
    """Losses of the original and the average, as good and as bad as they come."""
    n = int(rng.integers(1, 40))
    shape = rng.choice(["normal", "skewed", "heavy", "few values"])
    draws = {
        "normal": rng.normal(size=n),
        "skewed": rng.exponential(size=n) - rng.choice([0.0, 1.0]),
        "heavy": rng.standard_t(1, size=n),
        "few values": rng.integers(-1, 2, n).astype(float),
    }
    original = rng.lognormal(0, 2, n) * 10.0 ** rng.integers(-12, 6)
    averaged = original * (1 - 10.0 ** rng.integers(-6, 3) * (draws[shape] + rng.normal()))
    for values in (original, averaged):
        for odd in (NAN, INF, -INF, 0.0):
            if rng.random() < 0.15:
                values[rng.random(n) < rng.random()] = odd
    tied = rng.random(n) < (rng.random() if rng.random() < 0.3 else 0)
    averaged[tied] = original[tied]
    return original, averaged


def no_empty_words(words):
    assert not re.search(r"\b(nan|inf)\b|[+-]0 %|(by|than) 0 %|\b0 % (higher|lower|better|worse)", words), words
    assert not re.search(r"(?<![\d.,])1 (seeds|cells|different ones|trainings|epochs|runs|tests)\b", words), words


def history(original, ema, steps=50):
    """Of a run with these losses."""
    epochs = np.arange(1, len(original) + 1)
    made = {"epoch": epochs, "val_loss_original": original, "val_loss_ema": ema, "steps": steps * epochs}
    return pd.DataFrame({**dict.fromkeys(columns(RunConfig.metrics), 0.5), **made})


def seeds(losses):
    """A study's history: by seed, the losses of both models over its epochs."""
    parts = [history(*pair).assign(seed=seed) for seed, pair in losses.items()]
    return pd.concat(parts).sort_values("epoch", kind="stable").reset_index(drop=True)


LOSSES = {3: ([4.0, 2.0], [8.0, 1.0]), 4: ([6.0, 3.0, 1.0], [9.0, 3.0, 0.9]), 5: ([5.0], [5.0])}


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def row(epoch, **changes):
    """Of a run's history."""
    return dict.fromkeys(columns(RunConfig.metrics), 0.1 * epoch) | {"epoch": epoch, "steps": 50 * epoch} | changes


def claimed(store, config=CONFIG):
    """A run that trains, as far as the store knows."""
    run_id = store.create(config)
    assert store.claim(ME, 99) == (run_id, config.to_json(indent=None))
    return run_id


def entered(store, job, rows=None, state="done", **ending):
    """A job in the store; of a run with its history."""
    job_id = store.create(job)
    if state == "queued":
        return job_id
    store.claim(ME, 99)
    for row in [] if rows is None else json.loads(rows.to_json(orient="records", double_precision=15)):
        store.append(job_id, ME, row)
    if state != "running":
        store.finish(job_id, ME, state, **ending)
    return job_id
