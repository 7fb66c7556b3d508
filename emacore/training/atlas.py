"""One recorded run under hundreds of settings: its metrics over a plane of two of them, and over one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emacore.averaging.filters import decay_from_half_life
from emacore.averaging.schedules import InversePower, PowerFunction
from emacore.training.metrics import METRICS
from emacore.training.trajectory import Scheme, Trajectory, Window, scheme_to_code

SIZE = 20
#: So many epochs, evenly spread, are looked at for a cell's best.
BEST_OF = 12

#: The settings that an axis can have: the values it takes in a run of so many steps.
AXES: dict[str, Callable[[int], NDArray[Any]]] = {
    "power": lambda steps: np.linspace(0.1, 2.0, SIZE).round(12),
    "inv_gamma": lambda steps: np.geomspace(0.1, 1000.0, SIZE),
    "beta": lambda steps: 1 - np.geomspace(0.3, 1e-5, SIZE),
    "half_life": lambda steps: np.geomspace(1, steps, SIZE),
    "update_after_step": lambda steps: np.unique(np.linspace(0, 0.95 * steps, SIZE).astype(int)),
    "relative_width": lambda steps: np.linspace(0.01, 0.28, SIZE),
    "window": lambda steps: np.unique(np.geomspace(1, steps, SIZE).astype(int)),
}

_INVERSE_POWER = ("power", "inv_gamma", "beta", "half_life", "update_after_step")


def partners(axis: str) -> list[str]:
    """The axes that mean something together with ``axis``.

    ``half_life`` (steps) is that of ``beta``, so they are one setting.  ``relative_width`` is of the power function and
    ``window`` (steps) of a sliding mean, which have a start but none of the other settings.
    """
    if axis in ("relative_width", "window"):
        return ["update_after_step"]
    excluded = {axis, *(("beta", "half_life") if axis in ("beta", "half_life") else ())}
    others = [name for name in _INVERSE_POWER if name not in excluded]
    return others + ["relative_width", "window"] * (axis == "update_after_step")


def atlas(trajectory: Trajectory, schedule: InversePower, x: str, y: str, metric: str = "final") -> pd.DataFrame:
    """The metrics of ``schedule`` with two of its settings varied, a row each cell.

    Args:
        metric: "final", or "best": each cell's lowest loss of :data:`BEST_OF` epochs, evenly spread up to the last.

    Returns:
        x, y, code, beta_from (the first step at which beta acts; missing where it never does in this run), loss, mae,
        r2, and, of "best", epoch.

    Raises:
        ValueError: if ``x`` and ``y`` do not go together.
    """
    if x not in AXES or y not in partners(x):
        raise ValueError(f"x and y must be two of {', '.join(AXES)} that go together; got {x!r} and {y!r}")
    if metric not in ("final", "best"):
        raise ValueError(f'metric must be "final" or "best", got {metric!r}')
    steps = trajectory.steps
    cells: list[dict[str, Any]] = []
    schemes: dict[str, Scheme] = {}
    for vertical in AXES[y](steps).tolist():
        for horizontal in AXES[x](steps).tolist():
            settings = {x: _short(horizontal), y: _short(vertical)}
            scheme = _scheme(schedule, settings, trajectory)
            code = scheme_to_code(scheme)
            schemes[code] = scheme
            cells.append({"x": settings[x], "y": settings[y], "code": code, "beta_from": _beta_from(scheme, steps)})
    found = trajectory.final(schemes) if metric == "final" else _best(trajectory, schemes)
    return pd.DataFrame(cells).astype({"beta_from": "Int64"}).join(found.set_index("schedule"), on="code")


def plateau(table: pd.DataFrame, within: float = 0.05) -> float:
    """The share of an atlas' cells whose loss is at most ``within`` (relative) above the lowest."""
    losses = table["loss"]
    return float((losses <= (1 + within) * losses.min()).mean())


def widths(trajectory: Trajectory) -> pd.DataFrame:
    """The final metrics of power-function averages over their relative width: width, loss, mae, r2."""
    values = np.geomspace(0.005, 0.28, 2 * SIZE).round(4).tolist()
    found = trajectory.final({f"{width:g}": PowerFunction(sigma_rel=width) for width in values})
    return pd.DataFrame({"width": values}).join(found[list(METRICS)])


def _scheme(schedule: InversePower, settings: dict[str, Any], trajectory: Trajectory) -> Scheme:
    start = settings.get("update_after_step", 0)
    if "relative_width" in settings:
        return PowerFunction(sigma_rel=settings["relative_width"], update_after_step=start)
    if "window" in settings:
        rows = min(settings["window"], max(1, trajectory.steps - start)) // trajectory.every
        return Window(max(1, rows))
    if "half_life" in settings:
        settings = {**settings, "beta": decay_from_half_life(settings["half_life"])}
        settings.pop("half_life")
    return replace(schedule, **settings)


def _beta_from(scheme: Scheme, steps: int) -> int | None:
    if not isinstance(scheme, InversePower) or not scheme.beta > 0:
        return None
    call = scheme.reaches(scheme.beta)
    return call if call is not None and call < steps else None


def _best(trajectory: Trajectory, schemes: dict[str, Scheme]) -> pd.DataFrame:
    ends = np.array(trajectory.epoch_ends)
    epochs = np.unique(np.linspace(1, len(ends), BEST_OF).round().astype(int)) if len(ends) else np.array([], dtype=int)
    table = trajectory.metrics(schemes, ends[epochs - 1].tolist())
    table["epoch"] = np.tile(epochs, len(schemes))
    best = table.groupby("schedule", sort=False)["loss"].idxmin()
    return table.loc[best.dropna(), ["schedule", *METRICS, "epoch"]]


def _short(value: float) -> float:
    """Four digits that matter, counted from 1 where a value is near it: readable, and the same in code and chart."""
    if isinstance(value, int):
        return value
    return round(1 - float(f"{1 - value:.4g}"), 12) if 0.5 < value < 1 else float(f"{value:.4g}")
