"""What pages draw and say of the above: tables as plain arrays, and sentences that follow the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emacore.averaging import filters, measurements
from emacore.averaging.families import BiasCorrected, Constant
from emacore.averaging.filters import half_lives
from emacore.averaging.schedules import Schedule
from emacore.averaging.signals import FinalLoss, final_loss, quadratic_loss, simulated_final_losses
from emacore.averaging.weights import (
    average,
    effective_count,
    mean_age,
    moving_average,
    relative_width,
    start_share,
    weights,
)
from emacore.averaging.windows import Scheme, decays_at_end
from emacore.formatting import bounded, percent
from emacore.formatting import decay as decay_in_words

Floats = NDArray[np.float64]
#: Columns by their names, all of one length.
Table = dict[str, NDArray[Any]]

LEVELS = (0.9, 0.99, 0.999, 0.9999)

FIRST, ZERO, CORRECTED = "EMA from the first value", "EMA from zero", "EMA, bias-corrected"
DELAY, NOISE = "moving average, equal delay", "moving average, equal noise"
SCHEDULE = "the schedule"
FILTERS = (FIRST, ZERO, CORRECTED, DELAY, NOISE, SCHEDULE)

#: By how many standard errors a simulated mean may miss its formula: of normal means one in 16,000 misses by more.
MOST_ERRORS = 4.0


class LossByDecay(NamedTuple):
    """The loss of the final average over its decay; all of shape (d,), in the order of ``decays``.

    ``expected`` is the formula's; ``simulated`` the mean of so many runs, and ``error`` its standard error.
    """

    decays: Floats
    expected: FinalLoss
    simulated: Floats
    error: Floats

    def at(self, decay: float) -> int:
        """The place of ``decay`` in the columns."""
        return int(np.flatnonzero(self.decays == decay)[0])

    def agrees(self, decay: float) -> bool:
        """Whether formula and simulation differ by no more than chance does."""
        place = self.at(decay)
        expected, simulated = float(self.expected.total[place]), float(self.simulated[place])
        if expected == simulated:
            return True
        return abs(expected - simulated) <= MOST_ERRORS * float(self.error[place]) + 1e-9 * expected

    @property
    def lowest(self) -> int:
        """Where the average of the lowest expected loss stands; the last iterate (decay 0) is no average."""
        total = np.where(self.decays > 0, self.expected.total, np.inf)
        return int(total.argmin())

    def table(self) -> dict[str, Floats]:
        """All of it as columns: decay, half_life (steps), bias, variance, expected (both), simulated, standard_error.

        And last, the expected loss of the last iterate, beside each.
        """
        expected = self.expected.total
        return {
            "decay": self.decays,
            "half_life": half_lives(self.decays),
            "bias": self.expected.bias,
            "variance": self.expected.variance,
            "expected": expected,
            "simulated": self.simulated,
            "standard_error": self.error,
            "last": np.full(len(expected), expected[self.at(0.0)]),
        }


class Path(NamedTuple):
    """Iterates around a minimum, and their average after each; both of shape (T, 2)."""

    iterates: Floats
    averaged: Floats

    @property
    def reach(self) -> float:
        """The greatest distance of an iterate from the minimum along one of the two weights."""
        return float(np.abs(self.iterates).max())

    def table(self) -> dict[str, NDArray[Any]]:
        """Columns: step, sgd_w1, sgd_w2, ema_w1, ema_w2."""
        (sgd_1, sgd_2), (average_1, average_2) = self.iterates.T, self.averaged.T
        return {
            "step": np.arange(len(self.iterates)),
            "sgd_w1": sgd_1,
            "sgd_w2": sgd_2,
            "ema_w1": average_1,
            "ema_w2": average_2,
        }

    def final_losses(self, curvatures: ArrayLike) -> list[float]:
        """The loss of the last iterate, and of its average."""
        return [float(quadratic_loss(curvatures, path[-1])) for path in (self.iterates, self.averaged)]


def averaged_path(iterates: ArrayLike, beta: float) -> Path:
    """Iterates, shape (T, 2), with their average of constant decay ``beta``."""
    path = np.asarray(iterates, dtype=np.float64)
    return Path(path, average(path, Constant(beta).decays(len(path))))


def loss_by_decay(
    curvatures: ArrayLike,
    learning_rate: float,
    gradient_noise: float,
    num_steps: int,
    start: ArrayLike,
    beta: float,
    *,
    runs: int = 1000,
) -> LossByDecay:
    """The loss after ``num_steps`` iterates of :func:`sgd_on_quadratic`, averaged with each of a grid of decays.

    The decays go from 0.2 to 0.999999, even in log(1 - decay), and 0 (the last iterate itself) and ``beta`` are among
    them.

    Args:
        runs: So many are simulated; with 0 ``simulated`` and ``error`` are NaN.
    """
    decays = np.unique(np.r_[0.0, beta, 1 - np.geomspace(0.8, 1e-6, 132)])
    expected = final_loss(curvatures, learning_rate, gradient_noise, num_steps, decays, start)
    if not runs:
        missing = np.full(len(decays), np.nan)
        return LossByDecay(decays, expected, missing, missing)
    losses = simulated_final_losses(curvatures, learning_rate, gradient_noise, num_steps, decays, start, runs=runs)
    with np.errstate(over="ignore", invalid="ignore"):
        return LossByDecay(decays, expected, losses.mean(axis=0), losses.std(axis=0, ddof=1) / math.sqrt(runs))


#: A loss so near to that of the minimum, 0, is told to be there.
AT_MINIMUM = 1e-4


def change_in_words(before: float, after: float) -> str:
    """What averaging does to the expected loss of a run, from ``before`` to ``after``, as a headline."""
    if not math.isfinite(before):
        return "This run diverges, and averaging cannot mend it"
    if math.isclose(before, after, rel_tol=5e-4, abs_tol=0.0):
        return "Averaging leaves the expected loss of this run as it is"
    if after < before:
        by = 1 - after / before
        return f"Averaging lowers the expected loss of this run by {percent(by) if by < 0.995 else 'more than 99.5 %'}"
    if after < AT_MINIMUM:
        return "This run ends practically at the minimum, with and without averaging"
    if after < 10 * before:
        return f"Averaging raises the expected loss of this run by {percent(after / before - 1)}"
    return f"Averaging raises the expected loss of this run from {bounded(before, 3)} to {bounded(after, 3)}"


def acting_calls(num_steps: int, scheme: Scheme) -> NDArray[np.int64]:
    """The calls of a run that are not skipped; of a window all, as its start moves."""
    return np.arange(0, num_steps, scheme.update_every if isinstance(scheme, Schedule) else 1)


def decay_table(schedule: Schedule, num_steps: int) -> Table:
    """The decays of a run, a row each call that is not skipped: step, decay, one_minus_decay, half_life_steps.

    ``half_life_steps`` is how long, in steps, the decay of that call takes to halve what is in the average.
    """
    calls = acting_calls(num_steps, schedule)
    decays = schedule.at(calls)
    return {"step": calls, **{name: column_of(schedule, decays, name) for name in _COLUMNS}}


def decays_at(schedule: Schedule, calls: NDArray[np.integer[Any]], column: str) -> Floats:
    """A column of :func:`decay_table` at some calls that are not skipped, in their shape."""
    return column_of(schedule, schedule.at(calls), column)


_COLUMNS: dict[str, Callable[[Schedule, Floats], Floats]] = {
    "decay": lambda _, decays: decays,
    "one_minus_decay": lambda _, decays: 1 - decays,
    "half_life_steps": lambda schedule, decays: filters.half_lives(decays) * schedule.update_every,
}


def column_of(schedule: Schedule, decays: Floats, column: str) -> Floats:
    """A column of :func:`decay_table` for decays of a schedule at calls that are not skipped, in their shape."""
    return _COLUMNS[column](schedule, decays)


def weight_table(scheme: Scheme, step: int) -> Table:
    """What each call up to ``step`` weighs in the average after it: step, weight."""
    calls = acting_calls(step + 1, scheme)
    return {"step": calls, "weight": weights_at(scheme, step, calls)}


def sampled_calls(num_steps: int, scheme: Scheme, most: int) -> NDArray[np.int64]:
    """About ``most`` calls of a run that are not skipped, the first, the last and those around the begin of the final
    average among them: a schedule's start, in a window that of the window's own.

    They are even in the steps and in the logarithms of the steps since the run's begin, since the average's, and up to
    the run's end.
    """
    if isinstance(scheme, Schedule):
        every, first = scheme.update_every, scheme.start
    else:
        every, first = 1, max(num_steps - scheme.size, 0) + scheme.rule.start
    count, start = -(-num_steps // every), -(-first // every)
    if count <= most:
        return acting_calls(num_steps, scheme)
    far = np.geomspace(1, count, most // 4).astype(np.int64) - 1
    even = np.linspace(0, count - 1, most // 4).astype(np.int64)
    places = np.unique(np.concatenate([even, far, start + far, count - 1 - far, start + np.arange(-1, 2)]))
    return places[(places >= 0) & (places < count)] * every


def weights_at(scheme: Scheme, step: int, calls: NDArray[np.integer[Any]]) -> Floats:
    """What a run's :func:`acting_calls`, shape (rows,), weigh in the average after ``step``; NaN for later ones."""
    return weight_lines(scheme, [step], calls)[0]()


def weight_lines(scheme: Scheme, steps: Iterable[int], calls: NDArray[np.integer[Any]]) -> list[Callable[[], Floats]]:
    """What computes :func:`weights_at` after each of some steps; all share the decays of a schedule."""
    # Calls that are skipped change nothing, so a schedule needs its others only.
    decays = scheme.at(calls) if isinstance(scheme, Schedule) else None

    def line(step: int) -> Floats:
        count = int(np.searchsorted(calls, step, side="right"))
        own = weights(decays_at_end(scheme, step + 1) if decays is None else decays[:count])
        return np.concatenate([own, np.full(len(calls) - count, np.nan)])

    return [partial(line, step) for step in steps]


class Figures(NamedTuple):
    """What an average is after a step: ages in steps, the count in snapshots, width and start as shares."""

    mean_age: float
    effective_count: float
    relative_width: float
    start_share: float


def figures(scheme: Scheme, step: int) -> Figures:
    """The figures of the average after ``step``; its width is a share of the steps so far."""
    decays = decays_at_end(scheme, step + 1)
    start = scheme.start if isinstance(scheme, Schedule) else None
    return Figures(mean_age(decays), effective_count(decays), relative_width(decays), start_share(decays, start=start))


def reached_table(schedule: Schedule, num_steps: int) -> Table:
    """When a schedule has each of :data:`LEVELS` and its own ``beta``, if it has one above 0.

    Returns:
        decay (a text), half-life there (moves), first step (NaN where there is none), in this run (a text).
    """
    levels = {f"{level:g}": level for level in LEVELS}
    beta = getattr(schedule, "beta", 0.0)
    if beta > 0:
        levels[f"beta = {decay_in_words(beta)}"] = beta
    calls = [schedule.reaches(level) for level in levels.values()]
    told = ["never, by this rule" if c is None else "yes" if c < num_steps else "no, too short" for c in calls]
    return {
        "decay": np.array(list(levels)),
        "half-life there (moves)": np.array([filters.half_life(level) for level in levels.values()]),
        "first step": np.array([np.nan if call is None else float(call) for call in calls]),
        "in this run": np.array(told),
    }


def equal_windows(beta: float, autocorrelation: float = 0.0) -> dict[str, int]:
    """The moving averages, in steps, that an EMA is held against: of equal delay, and of equal noise."""
    return {
        DELAY: max(1, round(filters.equivalent_window(beta))),
        NOISE: filters.window_of_equal_noise(beta, autocorrelation),
    }


def filtered(
    values: ArrayLike, name: str, beta: float, windows: Mapping[str, int], schedule: Schedule | None = None
) -> Floats:
    """The answer of one of :data:`FILTERS` to a sequence, in its shape.

    Raises:
        ValueError: for another name, or for the schedule where there is none.
    """
    numbers = np.asarray(values, dtype=np.float64)
    match name:
        case "EMA from the first value":
            return average(numbers, Constant(beta).decays(len(numbers)))
        case "EMA from zero":
            return average(numbers, np.full(len(numbers), beta), initial=0.0)
        case "EMA, bias-corrected":
            return average(numbers, BiasCorrected(beta).decays(len(numbers)))
    if name in windows:
        return moving_average(numbers, windows[name])
    if name != SCHEDULE or schedule is None:
        raise ValueError(f"name must be one of {', '.join(FILTERS)}, the last with a schedule; got {name!r}")
    return average(numbers, schedule.decays(len(numbers)))


def gain_table(beta: float, windows: Mapping[str, int]) -> Table:
    """Amplitude out by amplitude in, over the frequency (cycles per step): frequency, EMA, and each window's.

    Windows of one size have one gain, so only the first of them is in the table.
    From a twentieth of the cut-off, at most 0.0001, to the highest frequency a sequence has, 0.5, so densely that on a
    log axis the lobes of a window that lie between two points are small.
    """
    cutoff = filters.cutoff_frequency(beta)
    frequency = np.geomspace(min(1e-4, (cutoff or 0.01) / 20), 0.5, 2000)
    first = {size: name for name, size in reversed(list(windows.items()))}
    moving = {first[n]: np.abs(filters.moving_average_response(n, frequency)) for n in dict.fromkeys(windows.values())}
    return {"frequency": frequency, "EMA": np.abs(filters.frequency_response(beta, frequency)), **moving}


def spectrum_table(noisy: ArrayLike, averaged: ArrayLike) -> Table:
    """Power densities (value^2 per cycle per step) by Welch's method: frequency, sequence, average."""
    frequency, before, after = measurements.spectra(noisy, averaged)
    return {"frequency": frequency, "sequence": before, "EMA": after}


#: Two small pictures have at most about this many rows.
_MOST_AGES = 20_000


def _ages(beta: float, windows: Mapping[str, int]) -> NDArray[np.int64]:
    """The steps, from 0, in which an EMA answers a jump: three of its equivalent windows, at least 20.

    Where they are many, some of them, evenly spread, and those around the end of each window.
    """
    steps = int(max(20, 3 * filters.equivalent_window(beta)))
    if steps <= _MOST_AGES:
        return np.arange(steps)
    even = np.linspace(0, steps - 1, _MOST_AGES).round().astype(np.int64)
    ends = np.array([size + side for size in windows.values() for side in (-1, 0)], dtype=np.int64)
    return np.union1d(even, ends[ends < steps])


def step_table(beta: float, windows: Mapping[str, int]) -> Table:
    """The answer to a jump from 0 to 1, as a share of it: steps (since the jump, from 1), EMA, and each window's."""
    steps = _ages(beta, windows) + 1
    moving = {name: np.minimum(steps / size, 1) for name, size in windows.items()}
    return {"steps": steps, "EMA": filters.step_response(beta, steps), **moving}


def age_table(beta: float, windows: Mapping[str, int]) -> Table:
    """What a value of each age (steps) weighs: age, EMA, and each window's."""
    ages = _ages(beta, windows)
    moving = {name: np.where(ages < size, 1 / size, 0.0) for name, size in windows.items()}
    return {"age": ages, "EMA": filters.impulse_response(beta, ages), **moving}


def shown_windows(chosen: Collection[str], windows: Mapping[str, int]) -> dict[str, int]:
    """The windows of the chosen filters."""
    return {name: size for name, size in windows.items() if name in chosen}
