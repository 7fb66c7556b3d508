"""A schedule in words: what its settings do, and do not do, in a run of a given length."""

from __future__ import annotations

import math

import numpy as np

from emacore.averaging.filters import half_life
from emacore.averaging.schedules import (
    InversePower,
    PowerFunction,
    RationalWarmup,
    Schedule,
    final_half_life,
    last_move,
)
from emacore.averaging.weights import relative_width, start_share, weights


def remarks(schedule: Schedule, num_steps: int) -> list[str]:
    """Sentences about settings that have no effect on a run of ``num_steps`` calls, or another than they seem to."""
    last = last_move(schedule, num_steps)
    if schedule.update_every >= num_steps > 1:
        return [
            f"update_every = {schedule.update_every:,} is as long as the run ({num_steps:,} steps): only step 0 is "
            "looked at, and nothing is averaged."
        ]
    if last <= schedule.start:
        return [
            f"The warm-up is longer than the run: the average begins at step {schedule.start:,}, and the run ends at "
            f"step {num_steps - 1:,}. Until then it is a copy of the weights."
        ]
    decays = schedule.decays(num_steps)
    if not decays[last]:
        cap = getattr(schedule, "beta", None)
        reason = "beta = 0" if cap == 0 else f"A decay of 0 up to step {last:,}"
        return [f"{reason} copies the weights at every move: nothing is averaged."]
    return [
        *_cap(schedule, num_steps, float(decays[last])),
        *_floor(schedule),
        *_width(schedule, decays),
        *_counting(schedule, decays),
        *_start(schedule, decays),
    ]


def _cap(schedule: Schedule, num_steps: int, final: float) -> list[str]:
    beta = getattr(schedule, "beta", None)
    if beta is None or final >= beta:
        return []
    # Near 1 a decay can be close to another and remember a tenth as long, so half-lives are compared.
    memory, capped = final_half_life(schedule, num_steps), half_life(beta) * schedule.update_every
    ends = f"the decay ends at {_decay(final)}"
    instead = f"a half-life of {_steps(memory)} steps, " + (
        f"not the {_steps(capped)} of beta" if beta < 1 else "while that of beta has no end"
    )
    if isinstance(schedule, (InversePower, RationalWarmup)):
        call = schedule.reaches(beta) if beta < 1 else None
        when = f"it would be from step {call:,} on" if call is not None else "no run is long enough for it"
        return [f"beta = {_decay(beta)} is never reached in this run: {ends}, {instead}; {when}."]
    share = final / beta
    if share >= 0.99 and memory >= 0.99 * capped:
        return []
    percent = f"{share:.0%}" if share < 0.99 else f"{min(share, 0.9999):.2%}"
    reason = "the run is too short for it" if beta < 1 else "no run is long enough for it"
    return [f"{ends[0].upper()}{ends[1:]}, {percent} of beta = {_decay(beta)}: {instead}; {reason}."]


def _decay(decay: float) -> str:
    """Six digits, or as many as show how far below 1 it is."""
    return f"{decay:.{max(6, 3 - math.floor(math.log10(1 - decay)))}g}" if decay < 1 else "1"


def _steps(steps: float) -> str:
    return f"{steps:,.0f}" if steps >= 1000 else f"{steps:.4g}"


def _floor(schedule: Schedule) -> list[str]:
    if not isinstance(schedule, InversePower) or schedule.min_value == 0:
        return []
    if schedule.min_value >= schedule.beta:
        return [
            f"min_value = {_decay(schedule.min_value)} is not below beta = {_decay(schedule.beta)}: beta wins, and "
            "every move has that decay."
        ]
    first = schedule.start + schedule.update_every
    warm = 1 - (1 + (first - schedule.update_after_step) / schedule.inv_gamma) ** -schedule.power
    if warm >= schedule.min_value:
        return [f"min_value = {_decay(schedule.min_value)} has no effect: the first move already has decay {warm:.4g}."]
    return []


def _width(schedule: Schedule, decays: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[str]:
    if not isinstance(schedule, PowerFunction):
        return []
    width = relative_width(decays)
    if math.isclose(width, schedule.width, rel_tol=0.05):
        return []
    moves = int(np.count_nonzero(decays[schedule.start :] < 1))
    reason = (
        f"its own width is a share of the {len(decays) - schedule.start:,} steps since step {schedule.start:,}"
        if schedule.start
        else f"its {moves:,} moves are too few for it"
    )
    return [f"The weights are {100 * width:.3g} % of this run wide, not {100 * schedule.width:.3g} %: {reason}."]


def _counting(schedule: Schedule, decays: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[str]:
    if not isinstance(schedule, InversePower) or schedule.update_every == 1:
        return []
    shares = weights(decays)[schedule.start :: schedule.update_every]
    factor = float(shares[0] * len(shares))
    if factor < 2:
        return []
    return [
        f"The rule counts steps, not moves: with update_every = {schedule.update_every} the first of the "
        f"{len(shares):,} snapshots weighs {factor:,.3g} times an equal share. inv_gamma = "
        f"{schedule.inv_gamma * schedule.update_every:g} counts moves instead."
    ]


def _start(schedule: Schedule, decays: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[str]:
    share = start_share(decays, start=schedule.start)
    snapshots = int(np.count_nonzero(decays < 1)) - int(np.count_nonzero(decays[: schedule.start + 1] < 1)) + 1
    if share < 0.01 or share < 3 / snapshots:
        return []
    return [
        f"{share:.0%} of the final average are still the weights of step {schedule.start:,}, where it began: the "
        "memory is long for this run."
    ]
