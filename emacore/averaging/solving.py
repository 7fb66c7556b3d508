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

#: The longest run whose weights are all looked at for a relative width: 8 MB each time an array of them is made.
_MOST_WEIGHTS = 10**6
#: So near, relatively, an answer must be to what was asked for, whole numbers aside.
_EXACT = 1e-5
#: Below so much a width is lost in rounding.
_NARROWEST = 1e-6
#: What stands for an endless half-life.
_ENDLESS = 1e300


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
    decay = decay_from_half_life(steps / every)
    if not 0 < decay < 1:
        raise ValueError(
            f"no decay in double precision has a half-life of {steps:g} steps at update_every = {every}: "
            f"ask for one from {number(half_life(5e-324) * every, 2)} to "
            f"{counted(half_life(LARGEST_DECAY) * every, 'step', digits=2)}"
        )
    found = schedule.with_decay(last_move(schedule, num_steps), decay)
    if found is None:
        return _searched(schedule, num_steps, steps, final_half_life, "half-life", f"{steps:g} steps at the end of")
    nearest = final_half_life(found, num_steps)
    if math.isclose(nearest, steps, rel_tol=_tolerance(schedule)):
        return found
    usual = "ask for that" if nearest > steps else "ask for that, or make the run longer"
    raise ValueError(
        f"no {schedule.tuned} of {type(schedule).__name__} gives a half-life of {steps:g} steps at the end of "
        f"{counted(num_steps, 'step')}; the nearest is {_towards(nearest, steps > nearest)}: "
        f"{schedule.cure(decay, usual)}"
    )


def with_relative_width(schedule: S, num_steps: int, width: float) -> S:
    """``schedule`` with its tuned setting changed so that the final average has a relative width of ``width``.

    The relative width is the standard deviation in time of the weights, divided by the length of the whole run,
    whenever the average starts.  Found by bisection on the weights of the run, so skipped calls and the copy at the
    start count; in runs of more than a million steps its width is known to six digits, by integrals.  A setting
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
    return _searched(schedule, num_steps, width, final_width, "relative width", f"{width:g} over")


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
        ValueError: for a family that has no such settings.
    """
    check_positive("factor", factor)
    factor = plain(factor)
    found = schedule.rescaled(factor)
    if found is None:
        raise ValueError(
            f"{type(schedule).__name__} does not say which of its settings would do in one step what it does in "
            f"{factor:g}: solve for its half-life at the end of the run instead"
        )
    return found.varied(update_after_step=round(schedule.update_after_step / factor))


def at_length(schedule: S, factor: float) -> S:
    """``schedule`` for a run that is ``factor`` times as long: the same memory as a share of the run.

    It is stretched in time: ``factor`` steps do what one did.  So it is :func:`at_batch_size` with ``1 / factor``.
    """
    check_positive("factor", factor)
    return at_batch_size(schedule, 1 / plain(factor))


def _searched(
    schedule: S, num_steps: int, wanted: float, measure: Callable[[Schedule, int], float], name: str, told: str
) -> S:
    """``schedule`` with its tuned setting such that ``measure`` of it is ``wanted``."""
    # A cap is out of the way at first; the user's stays where the answer does not need more.
    capped = schedule.attains_beta and schedule.tuned != "beta" and hasattr(schedule, "beta")
    lowest, highest = math.inf, 0.0
    for start in [schedule.varied(beta=LARGEST_DECAY), schedule] if capped else [schedule]:
        found, low, high = _first_with(start, num_steps, wanted, measure)
        if found is not None and capped:
            largest = float(found.at([last_move(found, num_steps)])[0])
            found = found.varied(beta=max(getattr(schedule, "beta", 0.0), largest))
        if found is not None and math.isclose(measure(found, num_steps), wanted, rel_tol=_tolerance(schedule)):
            return found
        lowest, highest = min(lowest, low), max(highest, high)
    raise ValueError(
        f"no {schedule.tuned} of {type(schedule).__name__} gives a {name} of {told} {num_steps} "
        f"steps; {_within_reach(name, lowest, highest)}"
        + (", but not each of them" if lowest < wanted < highest else "")
    )


def _within_reach(name: str, lowest: float, highest: float) -> str:
    if highest <= 0:
        return f"its {name} is 0 whatever that setting"
    least = f"from {_towards(lowest, False, 3)} to" if lowest > _NARROWEST else "up to"
    return f"{name}s {least} {_towards(highest, True, 3)} are within reach"


def _towards(bound: float, from_below: bool, digits: int = 4) -> str:
    """The greatest or the least that can be asked for, in so many digits: rounded to what can be, not beyond it."""
    if not math.isfinite(bound) or math.isclose(float(f"{bound:.{digits}g}"), bound, rel_tol=_EXACT / 10):
        return number(bound, digits)
    power = digits - 1 - math.floor(math.log10(bound))
    scaled = bound * 10.0**power if abs(power) < 300 else bound
    rounded = math.floor(scaled) if from_below else math.ceil(scaled)
    return number(float(f"{rounded}e{-power}"), digits) if abs(power) < 300 else number(bound, digits)


def _first_with(
    schedule: S, num_steps: int, wanted: float, measure: Callable[[Schedule, int], float]
) -> tuple[S | None, float, float]:
    """``schedule`` with its tuned setting where ``wanted`` is first crossed, if it is, and the range of measures seen.

    An average that barely moves is narrow again, around its start; the first crossing follows the run instead.
    """
    value, _ = schedule.search(schedule.tuned, num_steps)
    positions = possible_positions(schedule, schedule.tuned, num_steps)

    def candidate(position: float) -> S:
        return schedule.varied(**{schedule.tuned: value(position)})

    def error(position: float) -> float:
        return min(measure(candidate(position), num_steps), _ENDLESS) - wanted

    bracket, low, high = _first_crossing(error, positions)
    if bracket is None:
        return None, low + wanted, high + wanted
    # Of whole numbers none may be exact: of the two around the crossing it returns the one that misses less.
    found = candidate(float(scipy.optimize.brentq(error, *bracket, xtol=1e-12)))
    if _tunes_the_start(schedule):  # named by the call at which it begins, not by one that is skipped
        found = found.varied(update_after_step=found.start)
    return found, low + wanted, high + wanted


def _first_crossing(
    error: Callable[[float], float], positions: list[float]
) -> tuple[tuple[float, float] | None, float, float]:
    """Between which positions ``error`` first changes its sign, if it does, and its least and greatest."""
    errors = [error(positions[0])]
    for previous, position in pairwise(positions):
        errors.append(error(position))
        if np.sign(errors[-2]) * np.sign(errors[-1]) <= 0:
            return (previous, position), min(errors), max(errors)
    top = int(np.argmax(errors))
    bounds = positions[max(top - 1, 0)], positions[min(top + 1, len(positions) - 1)]
    # The greatest may lie between two of the positions.
    peak = scipy.optimize.minimize_scalar(lambda position: -error(position), bounds=bounds, options={"xatol": 1e-9})
    greatest = max(errors[top], -float(peak.fun))
    return (bounds[0], float(peak.x)) if errors[top] < 0 <= greatest else None, min(errors), greatest


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
            f"the average starts at step {schedule.start}, but the run ends at step {num_steps - 1}: "
            "make the run longer or update_after_step and update_every smaller"
        )


def _tunes_the_start(schedule: Schedule) -> bool:
    return schedule.tuned == "update_after_step"


def _tunes_a_whole_number(schedule: Schedule) -> bool:
    own = (control for control in schedule.controls if schedule.tuned in (control.name, control.key))
    return _tunes_the_start(schedule) or any(control.whole for control in own)


def _tolerance(schedule: Schedule) -> float:
    return 0.02 if _tunes_a_whole_number(schedule) else _EXACT
