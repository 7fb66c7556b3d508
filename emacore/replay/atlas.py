"""One recorded run under hundreds of settings: its metrics over a plane of two of them, and over one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import scipy  # whose parts are loaded where they are used
from numpy.typing import ArrayLike, NDArray

from emacore.averaging.code import scheme_to_code
from emacore.averaging.families import MAX_SIGMA_REL, InversePower, PowerFunction, gamma_from_sigma_rel
from emacore.averaging.filters import decay_from_half_life
from emacore.averaging.rounding import round_and_even, round_and_even_in_log
from emacore.averaging.schedules import TIMING, Schedule, last_move
from emacore.averaging.solving import can_have, possible_positions
from emacore.averaging.weights import relative_width
from emacore.averaging.windows import Scheme, Window
from emacore.replay.trajectory import Table, Trajectory

S = TypeVar("S", bound=Schedule)

SIZE = 20
#: How many epochs, evenly spread, are looked at for a cell's best.
BEST_OF = 12


def _whole(values: NDArray[Any]) -> NDArray[Any]:
    """Those that are whole numbers."""
    return np.asarray(values[values == values.round()], dtype=np.int64)


#: Axes of all families: the round values they take in a run of so many steps.  None but the start is a setting.
_DERIVED: dict[str, Callable[[int], NDArray[Any]]] = {
    "half_life": lambda steps: round_and_even_in_log(1, steps, SIZE),
    "update_after_step": lambda steps: _whole(round_and_even(0, 0.95 * steps, SIZE)),
    "relative_width": lambda steps: round_and_even(0.01, 0.28, SIZE),
    "window": lambda steps: _whole(round_and_even_in_log(1, steps, SIZE)),
}

#: The axes whose values have a unit, as charts name them.
TITLES = {
    "half_life": "half_life (steps)",
    "update_after_step": "update_after_step (step)",
    "relative_width": "relative_width (share of the run)",
    "window": "window (steps)",
}

_BETA = {"beta", "half_life"}
#: Beside these a relative width is that of a power function which begins there.
_PLACES = {"update_after_step", "window"}


def axes(family: type[Schedule]) -> dict[str, Callable[[int], NDArray[Any]]]:
    """The axes that an atlas of a family can have, and the values of each in a run of so many steps.

    Those of the family's own controls come first.  ``half_life`` (steps) is another way to say ``beta``.
    """

    def fixed(values: NDArray[Any]) -> Callable[[int], NDArray[Any]]:
        return lambda steps: values

    own = {control.key: fixed(control.on_axis(SIZE)) for control in family.controls if control.axis}
    return own | {name: values for name, values in _DERIVED.items() if name != "half_life" or "beta" in own}


def partners(axis: str, family: type[Schedule] = InversePower) -> list[str]:
    """The axes that go with ``axis``: the others, but ``half_life`` is that of ``beta``, so they are one.

    And a relative width needs another setting that it can be reached by.
    """

    def together(pair: set[str]) -> bool:
        if "relative_width" in pair and not pair & _PLACES:
            return _reaching(family, pair) is not None
        return pair != _BETA

    return [name for name in axes(family) if name != axis and together({name, axis})]


def _reaching(family: type[Schedule], given: Iterable[str]) -> str | None:
    """The setting by which a relative width is reached where others are given, if one is left for it."""
    names = {control.key: control.name for control in family.controls} | {"half_life": "beta"}
    taken = {names.get(key, key) for key in given}
    return next((setting for setting in family.spreading or (family.tuned,) if setting not in taken), None)


def has_beta(schedule: Schedule, *axes: str) -> bool:
    """Whether each cell over these axes is a rule with a cap, so that ``beta_from`` says whether it acts."""
    replaced = {"relative_width", "window"} & set(axes)
    return schedule.attains_beta and hasattr(schedule, "beta") and not replaced


def without_axes(schedule: Schedule, x: str, y: str) -> Schedule:
    """The schedule with first values for all that the cells over these axes replace.

    Schedules for which this is the same have the same atlas, so that one need not be made again while a slider moves
    what is an axis.  The schedule itself where these values do not go with its others.
    """
    pair = {x, y}
    replaced = {"beta" if axis == "half_life" else axis for axis in pair} - {"relative_width", "window"}
    if "window" in pair:
        replaced |= {"update_after_step", "update_every"}
    if "relative_width" in pair and not pair & _PLACES:
        replaced |= {setting for setting in [_reaching(type(schedule), pair)] if setting}
    if ("relative_width" in pair and pair & _PLACES) or pair == {"window", "update_after_step"}:
        replaced |= {control.key for control in (*schedule.controls, *TIMING)}
    first = {
        control.key: control.default
        for control in (*schedule.controls, *TIMING)
        if {control.key, control.name} & replaced
    }
    return schedule.varied(**first) if can_have(schedule, **first) else schedule


def atlas(trajectory: Trajectory, schedule: Schedule, x: str, y: str, metric: str = "final") -> Table:
    """The metrics of ``schedule`` with two of its settings varied, a row each cell.

    Three axes are no settings of its own.  ``half_life`` (steps) is that of ``beta``, which acts once in
    ``update_every`` steps.  ``relative_width`` is that of the weights at the end of the run, always as a
    share of the whole run: it is reached by the first setting that the family names for it and the other axis does not
    give (of the inverse power ``inv_gamma``, or ``power`` beside that or ``beta``), and beside a start or a window by
    the exponent of EDM2's power function, begun there.  ``window`` (steps) is how far the average looks back: the rule
    begins anew so many steps before, at once and with every step; beside a start the average is the plain mean.

    Args:
        metric: "final", or "best": each cell's lowest loss of :data:`BEST_OF` epochs, evenly spread up to the last.

    Returns:
        x, y, code (``None`` where nothing has that relative width, or the family refuses these settings together),
        beta_from (the first step at which beta acts; NaN where it never does in this run), each metric's column (NaN
        where there is no code), and, of "best", epoch.

    Raises:
        ValueError: if ``x`` and ``y`` are not two settings, or while there is nothing to measure.
    """
    values = axes(type(schedule))
    if x not in values or y not in partners(x, type(schedule)):
        raise ValueError(
            f"x and y must be two of {', '.join(values)} (beta and half_life are one) that leave a setting to vary; "
            f"got {x!r} and {y!r}"
        )
    rows, epochs = _looked_at(trajectory, metric)
    if not rows:
        raise ValueError("the recording has no whole epoch yet")
    steps, schedule = trajectory.steps, without_axes(schedule, x, y)
    cells: list[dict[str, Any]] = []
    schemes: dict[str, Scheme] = {}
    for vertical in values[y](steps).tolist():
        for horizontal in values[x](steps).tolist():
            settings = {x: _short(horizontal), y: _short(vertical)}
            scheme = _possible_scheme(schedule, settings, steps)
            code = scheme and scheme_to_code(scheme)
            if scheme and code:
                schemes[code] = scheme
            cells.append({"x": settings[x], "y": settings[y], "code": code, "beta_from": _beta_from(scheme, steps)})
    found = _chosen(trajectory, trajectory.metrics(schemes, rows), epochs)
    place = {code: n for n, code in enumerate(schemes)}
    at = np.array([place.get(cell["code"], -1) for cell in cells])
    known = {name: np.where(at >= 0, np.append(values, np.nan)[at], np.nan) for name, values in found.items()}
    return {name: np.array([cell[name] for cell in cells]) for name in ("x", "y", "code", "beta_from")} | known


def original(trajectory: Trajectory, metric: str = "final") -> dict[str, float]:
    """The metrics of the trained weights on the terms of :func:`atlas`: each by its column and, of "best", epoch.

    Of "best", of the very epochs at which the cells are looked at: the lowest of more epochs would be lower by that.

    Raises:
        ValueError: for another metric, or while no epoch is whole.
    """
    rows, epochs = _looked_at(trajectory, metric)
    if not rows:
        raise ValueError("the recording has no whole epoch yet")
    found = _chosen(trajectory, trajectory.measure(np.asarray(trajectory.weights[rows])), epochs)
    return {name: float(values[0]) for name, values in found.items()}


def plateau(losses: ArrayLike, within: float = 0.05) -> float:
    """The share of an atlas' losses that are at most ``within`` of its size above the lowest; a NaN is not."""
    numbers = np.asarray(losses, dtype=np.float64)
    lowest = np.nanmin(numbers)
    return float((numbers <= lowest + within * abs(lowest)).mean())


def widths(trajectory: Trajectory) -> Table:
    """The final metrics of power-function averages over their width: width, relative_width, each metric's column.

    ``width`` is the setting ``sigma_rel``, ``relative_width`` that of the weights: in a short run they differ.
    """
    schedules = [PowerFunction(sigma_rel=width) for width in np.geomspace(0.005, 0.28, 2 * SIZE).round(4).tolist()]
    found = trajectory.final({scheme_to_code(schedule): schedule for schedule in schedules})
    return {
        "width": np.array([schedule.width for schedule in schedules]),
        "relative_width": np.array([relative_width(schedule.decays(trajectory.steps)) for schedule in schedules]),
        **{metric.column: found[metric.column] for metric in trajectory.measured},
    }


def _possible_scheme(schedule: Schedule, settings: dict[str, Any], steps: int) -> Scheme | None:
    """The scheme of a cell, if the family has one with these settings beside its others."""
    try:
        return _scheme(schedule, settings, steps)
    except ValueError:
        return None


def _scheme(schedule: Schedule, settings: dict[str, Any], steps: int) -> Scheme | None:
    rest = dict(settings)
    if "half_life" in rest:
        every = 1 if "window" in rest else schedule.update_every  # beta acts once in so many steps
        rest["beta"] = decay_from_half_life(rest.pop("half_life") / every)
    if "window" in rest:
        return _within(rest.pop("window"), schedule, rest, steps)
    if "relative_width" in rest:
        width = rest.pop("relative_width")
        if "update_after_step" in rest:
            start = rest["update_after_step"]
            function = _power_function(width * steps, steps - start)
            return None if function is None else replace(function, update_after_step=start)
        setting = _reaching(type(schedule), rest)
        return _of_width(schedule.varied(**rest), setting, steps, width) if setting else None
    return schedule.varied(**rest)


def _within(steps: int, schedule: Schedule, rest: dict[str, Any], all_steps: int) -> Window | None:
    """The average that looks back no more than so many steps."""
    size = min(steps, max(1, all_steps - rest.get("update_after_step", 0)))
    if "update_after_step" in rest:
        return Window(size)
    if "relative_width" in rest:
        function = _power_function(rest["relative_width"] * all_steps, size)
        return None if function is None else Window(size, function)
    return Window(size, schedule.varied(**rest, update_after_step=0, update_every=1))


def _of_width(schedule: S, setting: str, steps: int, width: float) -> S | None:
    """``schedule`` with ``setting`` such that its weights have this relative width after so many steps, if any does.

    The setting has five digits, or as many as it takes to meet the width within 0.1 %.
    """
    positions, widths = _reach(schedule, setting, steps)
    crossed = np.flatnonzero((widths[:-1] - width) * (widths[1:] - width) <= 0)
    if not crossed.size:
        return None
    ends = positions[crossed[0] : crossed[0] + 2]
    value = schedule.search(setting, steps).value
    found = scipy.optimize.brentq(
        lambda position: _width(schedule, setting, steps, value(position)) - width, *ends, xtol=1e-7
    )
    return _short_setting(
        value(found),
        lambda short: schedule.varied(**{setting: short}),
        lambda answer: relative_width(answer.decays(steps)) / width,
    )


def _power_function(spread: float, steps: int) -> PowerFunction | None:
    """The power function whose weights after so many steps have a standard deviation of ``spread`` steps, if any does.

    Its exponent has five digits, or as many as it takes to meet that within 0.1 %.
    """

    def ratio(function: PowerFunction) -> float:
        return relative_width(function.decays(steps)) * steps / spread

    def error(log: float) -> float:
        return ratio(PowerFunction(gamma=math.expm1(log))) - 1

    if error(0.0) < 0:  # the plain mean is the widest
        return None
    # Where steps are not few, the exponent is nearly that of the continuous formula.
    near = math.log1p(gamma_from_sigma_rel(min(spread / steps, MAX_SIGMA_REL)))
    low, high = max(near - 0.1, 0.0), near + 0.1
    while error(low) < 0:
        low = max(low - 1, 0.0)
    while error(high) > 0:
        high += 1
    found = math.expm1(scipy.optimize.brentq(error, low, high, xtol=1e-9))
    return _short_setting(found, lambda gamma: PowerFunction(gamma=gamma), ratio)


def _short_setting(value: float, build: Callable[[float], S], ratio: Callable[[S], float]) -> S | None:
    """What ``build`` makes of ``value`` with few digits, such that ``ratio`` is 1 within 0.1 %."""
    for digits in (5, 8):
        answer = build(float(f"{value:.{digits}g}"))
        if math.isclose(ratio(answer), 1, rel_tol=1e-3):
            return answer
    return None


@lru_cache(maxsize=4 * SIZE)
def _reach(schedule: Schedule, setting: str, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions in the search for a setting, and the widths that they give, up to the widest.

    Beyond it the average keeps so much of its start that it is narrow again, around that.
    """
    value = schedule.search(setting, steps).value
    positions = np.array(possible_positions(schedule, setting, steps))
    widths = np.array([_width(schedule, setting, steps, value(position)) for position in positions.tolist()])
    top = int(widths.argmax())
    around = positions[max(top - 1, 0)], positions[min(top + 1, len(positions) - 1)]
    peak = scipy.optimize.minimize_scalar(
        lambda position: -_width(schedule, setting, steps, value(position)), bounds=around, options={"xatol": 1e-3}
    )
    return np.append(positions[:top], peak.x), np.append(widths[:top], -peak.fun)


def _width(schedule: Schedule, setting: str, steps: int, value: float) -> float:
    return relative_width(schedule.varied(**{setting: value}).decays(steps))


def _beta_from(scheme: Scheme | None, steps: int) -> float:
    beta = getattr(scheme, "beta", 0)
    if not isinstance(scheme, Schedule) or not scheme.attains_beta or not beta > 0:
        return np.nan
    if scheme.at([last_move(scheme, steps)])[0] < beta:  # quickly told, where a rule without an inverse is searched
        return np.nan
    call = scheme.reaches(beta)
    return call if call is not None and call < steps else np.nan


def _looked_at(trajectory: Trajectory, metric: str) -> tuple[list[int], list[int]]:
    """The rows at which a metric looks, and the epochs that end there, if it looks at ends of epochs."""
    if metric not in ("final", "best"):
        raise ValueError(f'metric must be "final" or "best", got {metric!r}')
    if metric == "final":
        return ([len(trajectory.weights) - 1] if len(trajectory.weights) else []), []
    ends = trajectory.epoch_ends
    epochs = np.unique(np.linspace(1, len(ends), BEST_OF).round().astype(int)).tolist() if ends else []
    return [ends[epoch - 1] for epoch in epochs], epochs


def _chosen(trajectory: Trajectory, table: Table, epochs: list[int]) -> Table:
    """The row of the best loss of each scheme: each metric's column and, where there are epochs, epoch."""
    loss = trajectory.measured[0]
    per_scheme = max(1, len(epochs))
    columns = {metric.column: table[metric.column].reshape(-1, per_scheme) for metric in trajectory.measured}
    best = np.array([loss.best(losses) for losses in columns[loss.column]], dtype=int)
    chosen = {name: values[np.arange(len(best)), best] for name, values in columns.items()}
    return chosen | ({"epoch": np.array(epochs)[best]} if epochs else {})


def _short(value: float) -> float:
    """Four digits that matter, counted from 1 where a value is near it: readable, and the same in code and chart."""
    if isinstance(value, int):
        return value
    return round(1 - float(f"{1 - value:.4g}"), 12) if 0.5 < value < 1 else float(f"{value:.4g}")
