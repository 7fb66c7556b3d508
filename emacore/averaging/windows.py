"""Averages of the last calls only; and what a scheme is: a schedule, or a window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emacore.averaging.families import UniformAverage
from emacore.averaging.schedules import Schedule
from emacore.checks import check_whole, keep_plain

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Window:
    """An average of the values of the last ``size`` calls only (of all so far, while there are fewer).

    Without a schedule it is their plain mean: LAWA, or SMA.  With one it is what that schedule, begun at the first of
    these calls, has made of them.  A window has no decays: what leaves it cannot be told from the average before.

    Args:
        size: Unit: calls, at least 1.
        schedule: Its call 0 is the first call in the window.

    Raises:
        ValueError: for another size.
        TypeError: if ``schedule`` is none.
    """

    size: int
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        keep_plain(self)
        check_whole("size", self.size, 1)
        if self.schedule is not None and not isinstance(self.schedule, Schedule):
            raise TypeError(f"a window's schedule must be a schedule or None, got {self.schedule!r}")

    @property
    def rule(self) -> Schedule:
        """The schedule that begins at the first call in the window; of a plain mean the running one."""
        return self.schedule or UniformAverage()


Scheme = Schedule | Window


def check_scheme(scheme: object) -> None:
    """Raise ``TypeError`` unless ``scheme`` is a schedule or a window."""
    if not isinstance(scheme, (Schedule, Window)):
        raise TypeError(f"a scheme must be a schedule or a window, such as Constant(beta=0.99), got {scheme!r}")


def decays_at_end(
    scheme: Scheme, num_steps: int, decays: Callable[[Schedule, int], Floats] = Schedule.decays
) -> Floats:
    """Decays that give the scheme's average after the last of ``num_steps`` calls, if not the averages before it.

    A schedule's are its own.  In place of a window a schedule that begins there holds the same: the calls before the
    window copy, and the first in it copies over them.  So the functions of :mod:`emacore.averaging.weights` hold for
    both.

    Args:
        decays: A schedule's decays over so many calls.

    Returns:
        Float64, shape (num_steps,), each in [0, 1].

    Raises:
        TypeError: if ``scheme`` is none.
    """
    check_scheme(scheme)
    if isinstance(scheme, Schedule):
        return decays(scheme, num_steps)
    result = np.zeros(num_steps)
    size = min(scheme.size, num_steps)
    result[num_steps - size :] = decays(scheme.rule, size)
    return result
