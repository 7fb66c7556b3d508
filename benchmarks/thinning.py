"""By how much replays of every k-th step miss the exact loss, on the article's run.

Run: python -m benchmarks.thinning
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from emacore import RunConfig, train
from emacore.averaging.code import scheme_to_code
from emacore.averaging.families import Constant, PowerFunction
from emacore.averaging.windows import Scheme, Window
from emacore.replay.measure import Measure
from emacore.replay.rows import Rows
from emacore.replay.trajectory import Trajectory
from emacore.tasks import open_run
from emacore.training.task import ValidationMeasure

SEEDS = range(8)
EVERY = (2, 5, 10)
#: Misses are also told without the epochs before this one, in which averages have few steps, and weights move far.
FROM_EPOCH = 10
SCHEMES: list[Scheme] = [
    RunConfig().schedule,
    replace(RunConfig().schedule, update_every=10),
    Constant(0.9),
    Constant(0.99),
    Constant(0.999),
    PowerFunction(sigma_rel=0.1),
    Window(500),
]


def thinned(run: Trajectory, every: int, measure: Measure) -> Trajectory:
    """The run as if it had recorded only every ``every``-th step; ``every`` must divide the steps of an epoch."""
    ends = [(end + 1) // every - 1 for end in run.epoch_ends]
    kept = slice(every - 1, None, every)
    return Trajectory(Rows(run.weights[kept], run.rows.steps[kept], run.tensors, ends), measure)


def missed(folder: Path) -> pd.DataFrame:
    """How far the loss of each thinned replay is from the exact one: every, schedule, epoch, miss (a share of it)."""
    schemes = {scheme_to_code(scheme): scheme for scheme in SCHEMES}
    run = open_run(folder)
    measure = ValidationMeasure(RunConfig.from_json(json.dumps(run.settings)))
    exact = run.replay(schemes)
    parts = []
    for every in EVERY:
        found = thinned(run, every, measure).replay(schemes)
        parts.append(pd.DataFrame(found).assign(every=every, miss=np.abs(found["loss"] / exact["loss"] - 1)))
    return pd.concat(parts, ignore_index=True)[["every", "schedule", "epoch", "miss"]]


def main() -> None:
    tables = []
    for seed in SEEDS:
        folder = Path(tempfile.mkdtemp())
        train(RunConfig(seed=seed), record=folder / "run")
        tables.append(missed(folder / "run").assign(seed=seed))
        shutil.rmtree(folder)
    table = pd.concat(tables)
    last = table[table["epoch"] == table.groupby("seed")["epoch"].transform("max")]
    late = table[table["epoch"] >= FROM_EPOCH]
    for name, part in (("after the last epoch", last), (f"epochs from {FROM_EPOCH} on", late), ("all epochs", table)):
        wide = part.pivot_table(index="schedule", columns="every", values="miss", aggfunc="max")
        print(f"\nThe largest miss over {len(SEEDS)} seeds, {name}, by how many steps were recorded\n")
        print(wide.map("{:.2%}".format).to_string())


if __name__ == "__main__":
    main()
