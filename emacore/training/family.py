"""The ways to average that the article names, side by side on one recorded run, with what each costs."""

from __future__ import annotations

import numpy as np
import pandas as pd

from emacore.averaging.code import to_code
from emacore.averaging.schedules import PowerFunction, Schedule, UniformAverage
from emacore.averaging.windows import Scheme, Window
from emacore.training.trajectory import Trajectory

COLUMNS = ["scheme", "setting", "loss", "mae", "r2", "copies_kept", "forward_passes"]


def family(trajectory: Trajectory, own: Schedule) -> pd.DataFrame:
    """Final metrics of an EMA, ``own``, and of :func:`relatives`, in the columns of those."""
    final = trajectory.final({"EMA": own})
    if final.empty:
        raise ValueError("the recording has no whole epoch yet")
    return with_ema(relatives(trajectory), own, final.iloc[-1])


def with_ema(others: pd.DataFrame, own: Schedule, metrics: pd.Series[float]) -> pd.DataFrame:
    """The table of :func:`relatives` with an EMA of known final metrics on top."""
    row = ("EMA", to_code(own), *(metrics[name] for name in ("loss", "mae", "r2")), 1, 1)
    return pd.concat([pd.DataFrame([row], columns=COLUMNS), others], ignore_index=True)


def relatives(trajectory: Trajectory) -> pd.DataFrame:
    """Final metrics: scheme, setting, loss, mae, r2, copies_kept, forward_passes.

    SWA takes the ends of epochs from three quarters of the run on, the window the last tenth of the steps, and the
    ensemble averages the *predictions* of the very networks whose weights SWA averages.  ``copies_kept`` counts copies
    of the weights during training besides the trained ones.

    Raises:
        ValueError: if no epoch is whole yet.
    """
    rows = len(trajectory.weights)
    ends = np.array(trajectory.epoch_ends)
    if not len(ends):
        raise ValueError("the recording has no whole epoch yet")
    per_epoch = int(ends[0]) + 1
    snapshots = ends[ends >= 0.75 * rows] if (ends >= 0.75 * rows).any() else ends[-1:]
    window = Window(max(1, trajectory.steps // 10))
    schemes: dict[str, tuple[Scheme, str, int]] = {
        "running mean": (UniformAverage(), "all steps alike", 1),
        "EDM2 power function": (PowerFunction(sigma_rel=0.1), "relative width 10 %", 1),
        "SMA (window)": (window, f"the last {window.size:,} steps", window.size),
    }
    final = trajectory.final({name: scheme for name, (scheme, *_) in schemes.items()})
    table = [
        (name, setting, *metrics, copies, 1)
        for (name, (_, setting, copies)), metrics in zip(
            schemes.items(), final[["loss", "mae", "r2"]].itertuples(index=False), strict=True
        )
    ]
    told = f"{len(snapshots)} epoch ends, from step {(int(snapshots[0]) + 1) * trajectory.every - 1:,} on"
    networks = np.asarray(trajectory.weights[snapshots])
    swa = trajectory.measure(networks.mean(axis=0, dtype=np.float64)[np.newaxis].astype(np.float32))
    table.append(("SWA", f"{told} (every {per_epoch * trajectory.every} steps)", *swa.iloc[0], 1, 1))
    together = trajectory.ensemble(networks)
    table.append(("ensemble of predictions", told, *together.iloc[0], len(snapshots), len(snapshots)))
    last = trajectory.measure(np.asarray(trajectory.weights[-1:]))
    table.append(("original", "the last step", *last.iloc[0], 0, 1))
    return pd.DataFrame(table, columns=COLUMNS)
