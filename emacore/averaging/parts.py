"""What the parts of a run weigh in its final average, for runs too long to look at every step.

The weight of a stretch of calls follows from products of decays.  Their logarithms are summed where decays change
fast, and integrated where they do not: the work and the memory are the same for a thousand steps and for 10^10.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emacore.averaging.schedules import Schedule, final_half_life, last_move
from emacore.averaging.windows import Scheme, Window
from emacore.checks import check_whole

Floats = NDArray[np.float64]

#: Stretches of up to so many moves are summed move by move.
_SHORT = 32
#: Stretches from end to end of a run, growing evenly, at first.
_STRETCHES = 400
#: Stretches for moments, which are small at both ends of the run.
_FINE = 2500
#: A stretch is halved until its integral agrees with that of its halves so well.
_AGREEMENT = 1e-11
_NODES, _SHARES = (np.asarray(part, dtype=np.float64) for part in np.polynomial.legendre.leggauss(8))
#: What part of the run a picture of its parts shows, at least: the last so many percent.
_SPANS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class Memory(NamedTuple):
    """What the average at the end of a run remembers.

    Half-life (of the decay that acts there) and mean age are in steps, the relative width (standard deviation of the
    weights in time) and what is left of the start are shares.
    """

    half_life: float
    mean_age: float
    relative_width: float
    start_share: float


def remaining(scheme: Scheme, num_steps: int, calls: ArrayLike) -> Floats:
    """The weight of all calls up to and including each of ``calls`` in the average after ``num_steps`` calls.

    It is the product of all later decays: 0 before the average begins, and 1 from the last move on.  Float64, in the
    shape of ``calls``.
    """
    check_whole("num_steps", num_steps, 1)
    asked = np.asarray(calls, dtype=np.float64)
    if isinstance(scheme, Window):
        size = min(scheme.size, num_steps)
        if scheme.schedule is None:
            return np.clip((asked - (num_steps - 1 - size)) / size, 0.0, 1.0)
        return remaining(scheme.schedule, size, asked - (num_steps - size))
    last = _moves(scheme, num_steps)
    if last == 1:  # a copy, and no move since
        copied = min(scheme.start, last_move(scheme, num_steps))
        return np.where(asked >= copied, 1.0, 0.0)
    moves = np.floor((asked - scheme.start) / scheme.update_every) + 1
    within = np.unique(np.clip(moves, 1, last))
    edges = np.unique(np.r_[within, _spaced(last, _STRETCHES), last])
    left = _left(scheme, edges)
    return np.where(moves < 1, 0.0, left[np.searchsorted(edges, np.clip(moves, 1, last))])


def memory(schedule: Schedule, num_steps: int) -> Memory:
    """What the average remembers after ``num_steps`` calls; to five digits, in bounded time and memory."""
    last = _moves(schedule, num_steps)
    first = np.arange(1.0, min(last, 2 * _SHORT) + 1)
    edges = np.unique(np.r_[first, _spaced(last, _FINE), last + 1 - _spaced(last, _FINE)])
    logs = _log_left(schedule, edges)
    tail = num_steps - 1 - last_move(schedule, num_steps)
    if last == 1:
        return Memory(final_half_life(schedule, num_steps), float(tail), 0.0, 1.0)
    # The mean of a whole number is the sum, over j = 1, 2, ..., of how likely it is to be at least j; that of its
    # square, the sum of (2 j - 1) times as much.  An age of at least j is a value of call num_steps - 1 - j or before.
    every = float(schedule.update_every)
    # Each move stands for ``every`` calls; over them 2 j - 1 adds up to every^2 (2 (last - move) - 1).
    mean = every * _sum_over_moves(edges, logs, np.ones_like)
    square = every**2 * _sum_over_moves(edges, logs, lambda moves: 2 * (last - moves) - 1)
    variance = square - mean**2
    return Memory(
        final_half_life(schedule, num_steps),
        mean + tail,
        math.sqrt(max(variance, 0.0)) / num_steps,
        float(np.exp(logs[0])),
    )


def part_table(schemes: Mapping[str, Scheme], num_steps: int, parts: int = 60) -> dict[str, NDArray[np.generic]]:
    """What equal parts of the run weigh in each final average, where they weigh something: the last so much of the run.

    A part is a whole number of steps and of updates, so that none seems to weigh less because it has one less; what is
    less than a part at the beginning is left out where it weighs less than the part after it, and than an equal share.

    Args:
        parts: So many at most.

    Returns:
        Columns, a row for each scheme and part: ``series``, ``from_step`` and ``to_step`` (the first call of the part
        and the first after it), ``run_percent`` and ``steps_to_end`` (its middle, in two ways; the latter is below 0),
        ``weight_percent`` (of the average).
    """
    every = max((one.update_every for one in schemes.values() if isinstance(one, Schedule)), default=1)
    shown = num_steps * span_shown(schemes, num_steps) / 100
    size = min(-(-math.ceil(shown / parts) // every) * every, num_steps)
    whole = (num_steps - size * np.arange(max(math.floor(shown / size + 1e-9), 1) + 1.0))[::-1]
    all_edges = np.array([min(num_steps - math.ceil(shown), whole[0]), *whole])
    columns: dict[str, list[NDArray[np.generic]]] = {}
    for name, scheme in schemes.items():
        shares = np.diff(remaining(scheme, num_steps, all_edges - 1))
        skip = 0 if shares[0] > min(shares[1] * (1 - 1e-9), 1 / parts) else 1
        edges = all_edges[skip:]
        rows = {
            "series": np.full(len(edges) - 1, name),
            "from_step": edges[:-1],
            "to_step": edges[1:],
            "run_percent": 100 * (edges[:-1] + edges[1:]) / 2 / num_steps,
            "steps_to_end": (edges[:-1] + edges[1:]) / 2 - num_steps,
            "weight_percent": 100 * shares[skip:],
        }
        for column, values in rows.items():
            columns.setdefault(column, []).append(values)
    return {column: np.concatenate(values) for column, values in columns.items()}


def outline(table: Mapping[str, NDArray[Any]], num_steps: int) -> dict[str, NDArray[Any]]:
    """The parts of :func:`part_table` as lines that are level over each: two rows a part, its begin and its end.

    Returns:
        Columns: ``series``, ``run_percent`` and ``steps_to_end`` (of that place, in two ways), ``weight_percent``.
    """
    edges = np.stack([table["from_step"], table["to_step"]], axis=1).ravel()
    return {
        "series": np.repeat(table["series"], 2),
        "run_percent": 100 * edges / num_steps,
        "steps_to_end": edges - num_steps,
        "weight_percent": np.repeat(table["weight_percent"], 2),
    }


def span_shown(schemes: Mapping[str, Scheme], num_steps: int) -> float:
    """The last so many percent of the run in which 99 % of every average lie: a round number, and 60 steps at least."""
    spans = np.array([span for span in _SPANS if num_steps * span / 100 >= min(60, num_steps)])
    before = np.floor(num_steps * (1 - spans / 100)) - 1
    earlier = np.max([remaining(scheme, num_steps, before) for scheme in schemes.values()], axis=0)
    return float(spans[np.argmax(earlier <= 0.01)])


def _moves(schedule: Schedule, num_steps: int) -> float:
    """How many moves the run has, the copy at the start included, and that copy if there are none."""
    last = last_move(schedule, num_steps)
    if last < schedule.start:  # it still copies
        return 1.0
    return float((last - schedule.start) // schedule.update_every + 1)


def _spaced(last: float, count: int) -> Floats:
    """Numbers of moves from 1 to ``last``, evenly growing."""
    return np.unique(np.round(np.geomspace(1, last, count)))


def _left(schedule: Schedule, edges: Floats) -> Floats:
    return np.exp(_log_left(schedule, edges))


def _log_left(schedule: Schedule, edges: Floats) -> Floats:
    """The logarithm of the product of all decays after each of some moves, up to the last of them."""
    sums = _log_decays(schedule, edges)
    return np.append(np.cumsum(sums[::-1])[::-1], 0.0)


def _log_decays(schedule: Schedule, edges: Floats) -> Floats:
    """The sums of log(decay) over the moves from after each edge up to the next; shape (len(edges) - 1,)."""

    def logs(moves: Floats) -> Floats:
        with np.errstate(divide="ignore"):
            return np.log(schedule.decays_of_moves(schedule.start + (moves - 1) * schedule.update_every))

    def integral(low: Floats, high: Floats) -> Floats:
        half = (high - low)[:, np.newaxis] / 2
        nodes = low[:, np.newaxis] + 0.5 + half * (1 + _NODES)
        return np.asarray((logs(nodes) * half) @ _SHARES)

    totals = np.zeros(len(edges) - 1)
    low, high, owner = edges[:-1], edges[1:], np.arange(len(edges) - 1)
    while len(low):
        short = high - low <= _SHORT
        if short.any():
            np.add.at(totals, owner[short], _exactly(logs, low[short], high[short]))
            low, high, owner = low[~short], high[~short], owner[~short]
        middle = np.floor((low + high) / 2)
        whole, halves = integral(low, high), integral(low, middle) + integral(middle, high)
        with np.errstate(invalid="ignore"):
            # Decays near 1 have no more digits than a float, which is felt where there are many.
            enough = np.maximum(_AGREEMENT * np.maximum(1, np.abs(halves)), np.finfo(np.float64).eps * (high - low))
            good = (whole == halves) | (np.abs(whole - halves) <= enough)
        np.add.at(totals, owner[good], halves[good])
        low, high, middle, owner = low[~good], high[~good], middle[~good], owner[~good]
        low, high, owner = np.r_[low, middle], np.r_[middle, high], np.r_[owner, owner]
    return totals


def _exactly(logs: Callable[[Floats], Floats], low: Floats, high: Floats) -> Floats:
    """The sums over short stretches, move by move."""
    moves = low[:, np.newaxis] + np.arange(1, _SHORT + 1)
    inside = moves <= high[:, np.newaxis]
    values = np.zeros(moves.shape)
    values[inside] = logs(moves[inside])
    return np.asarray(values.sum(axis=1))


def _sum_over_moves(edges: Floats, logs: Floats, factor: Callable[[Floats], Floats]) -> float:
    """The sum of exp(log) times a factor over all moves but the last; between edges the log is taken as a line."""
    low, high = edges[:-1], edges[1:]
    size = high - low
    with np.errstate(invalid="ignore"):
        slope = np.where(np.isfinite(logs[:-1]), (logs[1:] - logs[:-1]) / size, 0.0)

    def terms(moves: Floats, places: NDArray[np.intp]) -> Floats:
        with np.errstate(invalid="ignore"):
            log = logs[places, np.newaxis] + slope[places, np.newaxis] * (moves - low[places, np.newaxis])
        return np.asarray(np.exp(np.minimum(log, 0.0)) * factor(moves))

    short = np.flatnonzero(size <= _SHORT)
    moves = low[short, np.newaxis] + np.arange(_SHORT)
    total = float(np.where(moves < high[short, np.newaxis], terms(moves, short), 0.0).sum())
    long = np.flatnonzero(size > _SHORT)
    half = size[long, np.newaxis] / 2
    moves = low[long, np.newaxis] - 0.5 + half * (1 + _NODES)
    return total + float(((terms(moves, long) * half) @ _SHARES).sum())
