"""Memory in, settings out: the schedule of a family that has a given half-life or relative width in a given run.

And the same memory at another batch size or run length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import scipy  # whose parts are loaded where they are used

from emacore.averaging.filters import decay_from_half_life, half_life
from emacore.averaging.parts import memory
from emacore.averaging.schedules import LARGEST_DECAY, Schedule, check_schedule, final_half_life, last_move
from emacore.averaging.weights import relative_width
from emacore.checks import check_positive, plain
from emacore.formatting import counted, number

S = TypeVar("S", bound=Schedule)
T = TypeVar("T")

#: The longest run whose weights are all looked at for a relative width, some hundred times; beyond it integrals are
#: many times as fast.
_MOST_WEIGHTS = 10**5
#: So near, relatively, an answer must be to what was asked for, whole numbers aside.
_EXACT = 1e-5
#: Below so much a width is lost in rounding.
_NARROWEST = 1e-6
#: What stands for an endless half-life.
_ENDLESS = 1e300
#: The decays between which double precision has every half-life to five digits.
_PRECISE = float(np.finfo(np.float64).tiny), 1 - 1e-10


def with_half_life(schedule: S, num_steps: int, steps: float) -> S:
    """``schedule`` with its tuned setting changed so that the decay at the end of the run halves in ``steps`` steps.

    By the family's formula, or else by bisection.  The tuned setting is the family's: ``power``, ``beta``, ``gamma``,
    or, for the running mean, its start.  A whole number, as that is, may miss the half-life by up to 2 %.  A cap
    ``beta`` that is in the way, where another setting is tuned, is raised.

    Raises:
        ValueError: where no value of the setting does it; the message says what would.  Also for numbers out of range.
        TypeError: if ``schedule`` is none.
    """
    check_schedule("schedule", schedule)
    check_positive("steps", steps)
    num_steps, steps = plain(num_steps), plain(steps)
    _check_moves(schedule, num_steps)
    every = schedule.update_every
    last, decay = last_move(schedule, num_steps), decay_from_half_life(steps / every)
    precise = min(max(decay, _PRECISE[0]), _PRECISE[1])
    found = schedule.with_decay(last, decay if 0 < decay < 1 else precise)
    if found is None:
        most = half_life(_PRECISE[1]) * every
        return _searched(schedule, num_steps, steps, final_half_life, f"{steps:g} steps at the end of", most)
    if _answers(schedule, final_half_life(found, num_steps), steps):
        return found
    nearest = final_half_life(schedule.with_decay(last, precise) or found, num_steps)
    by_rounding = precise != decay and math.isclose(nearest, half_life(precise) * every, rel_tol=_EXACT)
    coarse = nearest > half_life(_PRECISE[1]) * every * (1 + _EXACT)
    told = number(nearest, 17) if coarse else _towards(nearest, steps > nearest)
    usual = "ask for that" if nearest > steps or by_rounding else "ask for that, or make the run longer"
    raise ValueError(
        f"no {schedule.tuned} of {type(schedule).__name__} gives a half-life of {steps:g} steps at the end of "
        f"{counted(num_steps, 'step')}; the nearest {'with five digits ' if by_rounding else ''}is "
        f"{told}: {schedule.cure(decay, usual)}"
    )


def with_relative_width(schedule: S, num_steps: int, width: float) -> S:
    """``schedule`` with its tuned setting changed so that the final average has a relative width of ``width``.

    The relative width is the standard deviation in time of the weights, divided by the length of the whole run,
    whenever the average starts.  Found by bisection on the weights of the run, so skipped calls and the copy at the
    start count; in runs of more than 100,000 steps its width is known to five digits, by integrals.  A setting
    that is a whole number, as the start of the running mean, may miss the width by up to 2 %.
    A cap ``beta`` that is in the way, where another setting is tuned, is raised.

    Raises:
        ValueError: where no value of the setting does it; the message gives the widths within reach.  Also for numbers
            out of range.
        TypeError: if ``schedule`` is none.
    """
    check_schedule("schedule", schedule)
    check_positive("width", width)
    num_steps, width = plain(num_steps), plain(width)
    _check_moves(schedule, num_steps)
    return _searched(schedule, num_steps, width, final_width, f"{width:g} over")


def final_width(schedule: Schedule, num_steps: int) -> float:
    """Relative width, as a share of the whole run, of the average at the end of a run of ``num_steps`` calls."""
    if num_steps > _MOST_WEIGHTS:
        return memory(schedule, num_steps).relative_width
    return relative_width(schedule.decays(num_steps))


def at_batch_size(schedule: S, factor: float) -> S:
    """``schedule`` for ``factor`` times the batch size: the same memory in samples, in ``factor`` times fewer steps.

    A step then stands for ``factor`` steps, so its decay is the product of theirs: ``beta ** factor`` for a constant
    decay, and for a power function the very same settings.  ``update_after_step`` is divided, ``update_every`` stays.
    The family's ``rescaling`` says in which respect it is not exact.  A learning rate that was chosen for the first
    batch size must be scaled as well.

    Source: Busbridge et al., "How to Scale Your EMA", 2023, arXiv 2307.13813, for a constant decay; the rest follows
    from the product.

    Args:
        factor: New batch size by old one, above 0.

    Raises:
        ValueError: for a family that has no such settings, or where they would be out of range.
    """
    check_schedule("schedule", schedule)
    check_positive("factor", factor)
    factor = plain(factor)
    try:
        found = schedule.rescaled(factor)
        if found is not None:
            return found.varied(update_after_step=round(schedule.update_after_step / factor))
    except ValueError as error:
        raise ValueError(
            f"no {type(schedule).__name__} does in one step what this one does in {factor:g}: {error}"
        ) from error
    raise ValueError(
        f"{type(schedule).__name__} does not say which of its settings would do in one step what it does in "
        f"{factor:g}: solve for its half-life at the end of the run instead"
    )


def at_length(schedule: S, factor: float) -> S:
    """``schedule`` for a run that is ``factor`` times as long: the same memory as a share of the run.

    It is stretched in time: ``factor`` steps do what one did.  So it is :func:`at_batch_size` with ``1 / factor``.
    """
    check_positive("factor", factor)
    return at_batch_size(schedule, 1 / plain(factor))


#: What is measured, in words: of one, and of many.
_NAMES: dict[Callable[[Schedule, int], float], tuple[str, str]] = {
    final_half_life: ("half-life", "half-lives"),
    final_width: ("relative width", "relative widths"),
}


def _searched(
    schedule: S,
    num_steps: int,
    wanted: float,
    measure: Callable[[Schedule, int], float],
    told: str,
    most: float = math.inf,
) -> S:
    """``schedule`` with its tuned setting such that ``measure`` of it is ``wanted``.

    Args:
        told: What was asked for, in words.
        most: Beyond it rounding leaves gaps.
    """
    # A cap is out of the way at first; the user's stays where the answer does not need more.
    capped = schedule.attains_beta and schedule.tuned != "beta" and hasattr(schedule, "beta")
    ranges = []
    for start in [schedule.varied(beta=LARGEST_DECAY), schedule] if capped else [schedule]:
        found, low, high = _nearest_with(start, num_steps, wanted, measure)
        if capped:
            largest = float(found.at([last_move(found, num_steps)])[0])
            found = found.varied(beta=max(getattr(schedule, "beta", 0.0), largest))
        if _answers(schedule, measure(found, num_steps), wanted):
            return found
        ranges.append((low, max(low, min(high, most))))
    raise ValueError(
        f"no {schedule.tuned} of {type(schedule).__name__} gives a {_NAMES[measure][0]} of {told} "
        f"{num_steps} steps; {_within_reach(*_NAMES[measure], ranges)}"
        + (", but not each of them" if any(low < wanted < high for low, high in ranges) else "")
    )


def _within_reach(name: str, plural: str, ranges: list[tuple[float, float]]) -> str:
    """What can be asked for: all that lies in one of some ranges."""
    joined: list[tuple[float, float]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    highest = joined[-1][1]
    if highest <= _NARROWEST:
        return f"its {name} is {'0' if highest == 0 else f'below {_NARROWEST:f}'} whatever that setting"
    told = [_range_in_words(low, high) for low, high in joined if high > _NARROWEST]
    return f"{plural} {' and '.join(told)} are within reach"


def _range_in_words(low: float, high: float) -> str:
    highest = _towards(high, True, 3)
    if low <= _NARROWEST:
        return f"up to {highest}"
    lowest = _towards(low, False, 3)
    if float(lowest.replace(",", "")) < float(highest.replace(",", "")):
        return f"from {lowest} to {highest}"
    return f"of {number(low, 6)}"


def _towards(bound: float, from_below: bool, digits: int = 4) -> str:
    """The greatest or the least that can be asked for, in so many digits: rounded to what can be, not beyond it."""
    if not math.isfinite(bound) or math.isclose(float(f"{bound:.{digits}g}"), bound, rel_tol=_EXACT / 10):
        return number(bound, digits)
    power = digits - 1 - math.floor(math.log10(bound))
    scaled = bound * 10.0**power if abs(power) < 300 else bound
    rounded = math.floor(scaled) if from_below else math.ceil(scaled)
    return number(float(f"{rounded}e{-power}"), digits) if abs(power) < 300 else number(bound, digits)


def _nearest_with(
    schedule: S, num_steps: int, wanted: float, measure: Callable[[Schedule, int], float]
) -> tuple[S, float, float]:
    """``schedule`` with its tuned setting where ``wanted`` is first crossed, or else nearest, and the range of measures
    seen.

    An average that barely moves is narrow again, around its start; the first crossing follows the run instead.
    """
    value, _ = schedule.search(schedule.tuned, num_steps)
    positions = possible_positions(schedule, schedule.tuned, num_steps)

    def candidate(position: float) -> S:
        return schedule.varied(**{schedule.tuned: value(position)})

    def measured(position: float) -> float:
        return min(measure(candidate(position), num_steps), _ENDLESS)

    position, low, high = _nearest_position(measured, wanted, positions)
    found = candidate(position)
    if _tunes_the_start(schedule):  # named by the call at which it begins, not by one that is skipped
        found = found.varied(update_after_step=found.start)
    return found, low, high


def _nearest_position(
    measured: Callable[[float], float], wanted: float, positions: list[float]
) -> tuple[float, float, float]:
    """Where ``measured`` is first ``wanted``, or else nearest to it, and the least and the greatest that was seen."""

    def crossing(low: float, high: float) -> float:
        # Of whole numbers none may be exact: of the two around the crossing it returns the one that misses less.
        return float(scipy.optimize.brentq(lambda position: measured(position) - wanted, low, high, xtol=1e-12))

    seen = [measured(positions[0])]
    for previous, position in pairwise(positions):
        seen.append(measured(position))
        if np.sign(seen[-2] - wanted) * np.sign(seen[-1] - wanted) <= 0:
            return crossing(previous, position), min(seen), max(seen)
    top = int(np.argmax(seen))
    bounds = positions[max(top - 1, 0)], positions[min(top + 1, len(positions) - 1)]
    # The greatest may lie between two of the positions.
    peak = scipy.optimize.minimize_scalar(lambda position: -measured(position), bounds=bounds, options={"xatol": 1e-9})
    greatest = max(seen[top], -float(peak.fun))
    if seen[top] < wanted <= greatest:
        return crossing(bounds[0], float(peak.x)), min(seen), greatest
    places, found = [*positions, float(peak.x)], np.array([*seen, -float(peak.fun)])
    return places[int(np.argmin(np.abs(found - wanted)))], min(seen), greatest


def possible(schedule: Schedule, key: str, values: Iterable[T]) -> tuple[T, ...]:
    """Those ``values`` of a setting, by its name or its control's key, that the schedule can have beside its others."""
    return tuple(value for value in values if can_have(schedule, **{key: value}))


def possible_positions(schedule: Schedule, setting: str, num_steps: int) -> list[float]:
    """The positions at which the solvers look for a setting, without those whose value the schedule cannot have.

    Where these begin or end between two positions, it is found by bisection.  Where there are none, all are given, so
    that the family says why.
    """
    value, positions = schedule.search(setting, num_steps)

    def can_be(position: float) -> bool:
        return can_have(schedule, **{setting: value(position)})

    every = positions.tolist()
    able = [can_be(position) for position in every]
    found = []
    for n, position in enumerate(every):
        if n and able[n] != able[n - 1]:
            inside, outside = (position, every[n - 1]) if able[n] else (every[n - 1], position)
            for _ in range(50):
                middle = (inside + outside) / 2
                inside, outside = (middle, outside) if can_be(middle) else (inside, middle)
            found.append(inside)
        if able[n]:
            found.append(position)
    return found or every


def can_have(schedule: Schedule, **settings: Any) -> bool:
    """Whether the schedule can have these settings, by their names or their controls' keys, beside its others."""
    try:
        schedule.varied(**settings)
    except ValueError:
        return False
    return True


def _check_moves(schedule: Schedule, num_steps: int) -> None:
    """Raise ``ValueError`` if a run is over before the average moves, whatever the tuned setting."""
    last = last_move(schedule, num_steps)
    if last <= schedule.start and not (_tunes_the_start(schedule) and last > 0):
        raise ValueError(
            f"the average starts at step {schedule.start:,} and would first move at step "
            f"{schedule.start + schedule.update_every:,}, but the run ends at step {num_steps - 1:,}: "
            "make the run longer or update_after_step and update_every smaller"
        )


def _tunes_the_start(schedule: Schedule) -> bool:
    return schedule.tuned == "update_after_step"


def _tunes_a_whole_number(schedule: Schedule) -> bool:
    own = (control for control in schedule.controls if schedule.tuned in (control.name, control.key))
    return _tunes_the_start(schedule) or any(control.whole for control in own)


def _answers(schedule: Schedule, reached: float, wanted: float) -> bool:
    return abs(reached - wanted) <= wanted * (0.02 if _tunes_a_whole_number(schedule) else _EXACT)
