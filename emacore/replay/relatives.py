"""The ways to average that the article names, side by side on one run, with what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emacore.averaging.code import to_code
from emacore.averaging.families import PowerFunction, UniformAverage
from emacore.averaging.schedules import Schedule
from emacore.averaging.windows import Scheme, Window
from emacore.replay.trajectory import Table, Trajectory


def family(trajectory: Trajectory, own: Schedule) -> Table:
    """Final metrics of an EMA, ``own``, and of :func:`relatives`, in the columns of those."""
    others = relatives(trajectory)
    final = trajectory.final({"EMA": own})
    return with_ema(others, own, {metric.column: final[metric.column][0] for metric in trajectory.measured})


def with_ema(others: Table, own: Schedule, metrics: Mapping[str, float]) -> Table:
    """The table of :func:`relatives` with an EMA of known final metrics on top."""
    first = {"scheme": "EMA", "setting": to_code(own), **metrics, "copies_kept": 1, "forward_passes": 1}
    return {
        name: np.concatenate([np.array([first[name]], dtype=values.dtype), values]) for name, values in others.items()
    }


def relatives(trajectory: Trajectory) -> Table:
    """Final metrics: scheme, setting, each metric's column, copies_kept, forward_passes.

    SWA takes the ends of epochs from three quarters of the run on, the window the last tenth of the steps, and the
    ensemble averages the *predictions* of the very networks whose weights SWA averages (NaN where the measure knows no
    predictions).  ``copies_kept`` counts copies of the weights during training besides the trained ones.

    Raises:
        ValueError: if no epoch is whole yet.
    """
    ends = np.array(trajectory.epoch_ends)
    if not len(ends):
        raise ValueError("the recording has no whole epoch yet")
    steps = trajectory.rows.steps
    late = ends[steps[ends] >= 0.75 * trajectory.steps]
    snapshots = late if len(late) else ends[-1:]
    window = Window(max(1, trajectory.steps // 10))
    schemes: dict[str, tuple[Scheme, str, int]] = {
        "running mean": (UniformAverage(), "all steps alike", 1),
        "EDM2 power function": (PowerFunction(sigma_rel=0.1), "relative width 10 %", 1),
        "SMA (window)": (window, f"the last {window.size:,} steps", window.size),
    }
    final = trajectory.final({name: scheme for name, (scheme, *_) in schemes.items()})
    columns = [metric.column for metric in trajectory.measured]
    told = f"{len(snapshots)} epoch ends, from step {steps[snapshots[0]]:,} on"
    networks = np.asarray(trajectory.weights[snapshots])
    mean = networks.mean(axis=0, dtype=np.float64).astype(np.float32)
    single = trajectory.measure(np.stack([mean, np.asarray(trajectory.weights[-1], dtype=np.float32)]))
    try:
        together = trajectory.ensemble(networks)
    except NotImplementedError:
        together = dict.fromkeys(columns, np.nan)
    table = [
        (name, setting, *(final[column][n] for column in columns), copies, 1)
        for n, (name, (_, setting, copies)) in enumerate(schemes.items())
    ]
    table += [
        ("SWA", f"{told} (every {steps[ends[0]] + 1} steps)", *(single[column][0] for column in columns), 1, 1),
        ("ensemble of predictions", told, *(together[c] for c in columns), len(snapshots), len(snapshots)),
        ("original", "the last step", *(single[column][1] for column in columns), 0, 1),
    ]
    return _columns(["scheme", "setting", *columns, "copies_kept", "forward_passes"], table)


def costs_in_words(table: Table) -> str:
    """Which rows of :func:`relatives` keep several copies of the weights in training, or need several predictions."""
    costs = []
    for name, copies, passes in zip(table["scheme"], table["copies_kept"], table["forward_passes"], strict=True):
        if copies > 1:
            predicts = f" and predicts {passes:,} times" if passes > 1 else ""
            costs.append(f"{name} keeps {copies:,} copies of the weights{predicts}")
    return (
        f"{'; '.join(costs)}; the others keep one at most."
        if costs
        else "None keeps more than one copy of the weights."
    )


def _columns(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    columns = zip(*rows, strict=True)
    return {
        name: np.array(values, dtype=object if isinstance(values[0], str) else None)
        for name, values in zip(names, columns, strict=True)
    }
