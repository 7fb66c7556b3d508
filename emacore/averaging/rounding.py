"""Round numbers within a range, as people would choose them themselves: for the axes of maps."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: What numbers of a decade begin with, the fewest first.
_LEADS = (
    (1.0,),
    (1.0, 3.0),
    (1.0, 2.0, 5.0),
    (1.0, 2.0, 3.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0),
    (1.0, 1.5, 2.0, 3.0, 5.0, 7.0),
    (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
)
_STEPS = (1.0, 2.0, 2.5, 5.0)
#: An end of a range that is a round number is in it, whatever its last bit.
_SLACK = 1e-9


def round_and_even(low: float, high: float, most: int) -> Floats:
    """Multiples of one step (1, 2, 2.5 or 5 times a power of ten) from ``low`` to ``high``: as many as ``most`` allows.

    None where no multiple lies between.

    Raises:
        ValueError: unless ``low`` is at most ``high``.
    """
    _check(low, high)
    if high - low <= _SLACK * max(abs(low), abs(high)):
        return np.array([low], dtype=np.float64)  # nothing fits between numbers that are one up to rounding
    finest = math.floor(math.log10((high - low) / most))
    for step in (float(f"{lead:g}e{decade}") for decade in (finest, finest + 1) for lead in _STEPS):
        first, last = math.ceil(low / step - _SLACK), math.floor(high / step + _SLACK)
        if last - first < most:
            return np.array([float(f"{n * step:.12g}") for n in range(first, last + 1)])
    raise AssertionError("ten times the finest step has at most as many")


def round_and_even_in_log(low: float, high: float, most: int) -> Floats:
    """Numbers of at most two digits, about even in their logarithm, from ``low`` to ``high``: up to ``most`` of them.

    The ends where no such number lies between, or the powers of ten are too many.

    Raises:
        ValueError: unless ``low`` is above 0 and at most ``high``.
    """
    _check(low, high)
    if not low > 0:
        raise ValueError(f"low must be above 0, got {low!r}")
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    found = np.unique([low, high]).astype(np.float64)
    for leads in _LEADS:
        every = np.array([float(f"{lead:g}e{decade}") for decade in decades for lead in leads])
        within = every[(every >= low * (1 - _SLACK)) & (every <= high * (1 + _SLACK))]
        if len(within) > most:
            break
        found = within if len(within) else found
    return found


def _check(low: float, high: float) -> None:
    if not low <= high:
        raise ValueError(f"low must be at most high, got {low!r} and {high!r}")
