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
from emacore.training.recording import RowFile
from emacore.training.trajectory import Trajectory

from emacore import RunConfig, train
from emacore.averaging.code import scheme_to_code
from emacore.averaging.schedules import Constant, PowerFunction
from emacore.averaging.windows import Scheme, Window

SEEDS = range(8)
EVERY = (2, 5, 10)
#: Before this epoch averages of few steps are compared, and the weights still move far in each.
FROM_EPOCH = 10
SCHEMES: list[Scheme] = [
    RunConfig().schedule,
    replace(RunConfig().schedule, update_every=10),
    Constant(0.9),
    Constant(0.99),
    PowerFunction(sigma_rel=0.1),
    Window(500),
]


def thinned(folder: Path, every: int) -> Trajectory:
    """The recording in ``folder`` as it were of every so many steps; they must divide an epoch's."""
    whole, about = Trajectory.open(folder), json.loads((folder / "run.json").read_text())
    target = folder / f"every-{every}"
    target.mkdir()
    file = RowFile(target / "weights.npy", "<f4", whole.weights.shape[1])
    file.append(np.ascontiguousarray(whole.weights[every - 1 :: every]))
    file.close()
    ends = [(end + 1) // every - 1 for end in whole.epoch_ends]
    (target / "run.json").write_text(json.dumps(about | {"every": every, "epoch_ends": ends}))
    return Trajectory.open(target)


def missed(folder: Path) -> pd.DataFrame:
    """By how much of the exact loss each thinned replay misses it: every, schedule, epoch, miss (a share)."""
    schemes = {scheme_to_code(scheme): scheme for scheme in SCHEMES}
    exact = Trajectory.open(folder).replay(schemes)
    parts = []
    for every in EVERY:
        found = thinned(folder, every).replay(schemes)
        parts.append(found.assign(every=every, miss=(found["loss"] / exact["loss"] - 1).abs()))
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
