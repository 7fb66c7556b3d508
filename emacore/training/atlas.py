"""One recorded run under hundreds of settings: the final metric over a plane of two of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emacore.averaging.schedules import InversePower, to_code
from emacore.training.trajectory import Trajectory

SIZE = 20

#: The settings that an axis can have: the values it takes in a run of so many steps.
AXES: dict[str, Callable[[int], NDArray[Any]]] = {
    "power": lambda steps: np.linspace(0.1, 2.0, SIZE).round(12),
    "inv_gamma": lambda steps: np.geomspace(0.1, 1000.0, SIZE),
    "beta": lambda steps: 1 - np.geomspace(0.3, 1e-5, SIZE),
    "update_after_step": lambda steps: np.unique(np.linspace(0, 0.95 * steps, SIZE).astype(int)),
}


def atlas(trajectory: Trajectory, schedule: InversePower, x: str, y: str) -> pd.DataFrame:
    """The final metrics of ``schedule`` with two of its settings varied: x, y, code, loss, mae, r2; a row each cell.

    Raises:
        ValueError: if ``x`` and ``y`` are not two different ones of :data:`AXES`.
    """
    if x == y or x not in AXES or y not in AXES:
        raise ValueError(f"x and y must be two different ones of {', '.join(AXES)}; got {x!r} and {y!r}")
    steps = len(trajectory.weights) * trajectory.every
    cells = []
    for vertical in AXES[y](steps).tolist():
        for horizontal in AXES[x](steps).tolist():
            changes: dict[str, Any] = {x: _short(horizontal), y: _short(vertical)}
            cells.append((changes[x], changes[y], replace(schedule, **changes)))
    found = trajectory.final({to_code(cell): cell for *_, cell in cells}).set_index("schedule")
    codes = [to_code(cell) for *_, cell in cells]
    table = pd.DataFrame({"x": [c[0] for c in cells], "y": [c[1] for c in cells], "code": codes})
    return table.join(found, on="code")


def plateau(table: pd.DataFrame, within: float = 0.05) -> float:
    """The share of an atlas' cells whose loss is at most ``within`` (relative) above the lowest."""
    losses = table["loss"]
    return float((losses <= (1 + within) * losses.min()).mean())


def _short(value: float) -> float:
    """Four digits that matter, counted from 1 where a value is near it: readable, and the same in code and chart."""
    if isinstance(value, int):
        return value
    return round(1 - float(f"{1 - value:.4g}"), 12) if 0.5 < value < 1 else float(f"{value:.4g}")
