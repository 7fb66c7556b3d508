"""Where an average stands: how many calls there have been, and what is known of those to come."""

from __future__ import annotations

from collections.abc import Callable
from operator import length_hint
from typing import Any

import numpy as np

from emacore.averaging.schedules import Schedule
from emacore.tensors.attributes import Attributes
from emacore.tensors.exchange import Exchange
from emacore.tensors.plan import Plan
from emacore.tensors.processes import Writes

#: Every so many calls something else is looked at beside the tensors.
LOOK = 1024
# The first block is short, for those who set the decay at each call; later ones are long, for those who do not.
_FIRST, _LONGEST = 64, 4096
_NO_SHARES: list[float] = []


class Calls:
    """How many calls there have been; what is derived is neither copied nor pickled.

    Attributes:
        initted: Whether the warm-up is over and the average has begun.
        nonfinite_calls: How many calls were skipped for weights that are not finite.
        lent: The training weights inside ``average_parameters()``.
        plan: Which tensors move, while they are those that were looked up.
        attributes: What the model keeps beside its tensors, as it was first.
        norms: Of each normalisation layer the shadow's and the model's.
        writes: What has been written into the model, until all processes are known to have done it.
        block: The decays of calls from ``block_start`` on.
        move: All that a call does, while calls are moves and nothing else, up to the next look; see
            :meth:`emacore.tensors.plan.Plan.mover`.
    """

    def __init__(self, step: int = 0, initted: bool = False, nonfinite_calls: int = 0) -> None:
        self._shares, self._end = iter(_NO_SHARES), step
        self.initted = initted
        self.nonfinite_calls = nonfinite_calls
        self.lent: Exchange | None = None
        self.plan: Plan | None = None
        self.attributes: Attributes | None = None
        self.norms: list[tuple[Any, Any]] | None = None
        self.writes = Writes()
        self.move: Callable[[], bool] | None = None
        self.forget_decays()

    @property
    def step(self) -> int:
        """The number of the next call."""
        return self._end - length_hint(self._shares)

    @step.setter
    def step(self, step: int) -> None:
        self.move = None
        self._shares, self._end = iter(_NO_SHARES), step

    def forget_decays(self) -> None:
        """Have them asked for again, because the schedule or the step is another."""
        self.block: list[float] = []
        self.block_start = self.step
        self.move = None
        self._length = _FIRST

    def forget_plan(self) -> None:
        """Have tensors looked up again."""
        self.plan = self.norms = self.move = None

    def look_ahead(self, schedule: Schedule) -> None:
        """Ask for the decays of the calls from here on."""
        decays = schedule.at(np.arange(self.step, self.step + self._length))
        self._length = min(4 * self._length, _LONGEST)
        others = np.flatnonzero((decays <= 0) | (decays >= 1))
        self.block_start, self.block = self.step, decays.tolist()
        self._shares_of_block = (1.0 - decays).tolist()
        self._moves_from = int(others[-1]) + 1 if others.size else 0

    def go_on(self, plan: Plan) -> None:
        """Have the calls from here on be moves and nothing else, as far as they are known to be."""
        offset = self.step - self.block_start
        if offset < self._moves_from or self.step % LOOK == 0:
            return
        shares = self._shares_of_block[offset : offset + LOOK - self.step % LOOK]
        self._shares, self._end = iter(shares), self.step + len(shares)
        self.move = plan.mover(self._shares)

    def __reduce__(self) -> tuple[type[Calls], tuple[int, bool, int]]:
        if self.lent is not None:
            raise RuntimeError("a copy made inside average_parameters() would train from the average; copy it outside")
        return Calls, (self.step, self.initted, self.nonfinite_calls)
