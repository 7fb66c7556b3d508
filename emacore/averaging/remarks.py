"""A schedule in words: what its settings do, and do not do, in a run of a given length."""

from __future__ import annotations

import numpy as np

from emacore.averaging.schedules import (
    BiasCorrected,
    ExponentialRamp,
    InversePower,
    RationalWarmup,
    Schedule,
    last_move,
)
from emacore.averaging.weights import start_share, weights


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
    return [
        *_cap(schedule, num_steps, float(decays[last])),
        *_floor(schedule),
        *_counting(schedule, decays),
        *_start(schedule, decays),
    ]


def _cap(schedule: Schedule, num_steps: int, final: float) -> list[str]:
    beta = getattr(schedule, "beta", None)
    if isinstance(schedule, (InversePower, RationalWarmup)) and beta is not None and final < beta:
        call = schedule.reaches(beta) if beta < 1 else None
        when = f"it would be from step {call:,} on" if call is not None else "no run is long enough for it"
        return [f"beta = {beta:g} is never reached in this run: the decay ends at {final:.6g}; {when}."]
    if isinstance(schedule, (BiasCorrected, ExponentialRamp)) and beta and final < 0.99 * beta:
        return [f"The decay ends at {final:.6g}, {final / beta:.0%} of beta = {beta:g}: the run is too short for it."]
    return []


def _floor(schedule: Schedule) -> list[str]:
    if not isinstance(schedule, InversePower) or schedule.min_value == 0:
        return []
    if schedule.min_value >= schedule.beta:
        return [
            f"min_value = {schedule.min_value:g} is not below beta = {schedule.beta:g}: beta wins, and every move has "
            "that decay."
        ]
    first = schedule.start + schedule.update_every
    warm = 1 - (1 + (first - schedule.update_after_step) / schedule.inv_gamma) ** -schedule.power
    if warm >= schedule.min_value:
        return [f"min_value = {schedule.min_value:g} has no effect: the first move already has decay {warm:.4g}."]
    return []


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
    share = start_share(decays)
    snapshots = int(np.count_nonzero(decays < 1)) - int(np.count_nonzero(decays[: schedule.start + 1] < 1)) + 1
    if share < 0.01 or share < 3 / snapshots:
        return []
    return [
        f"{share:.0%} of the final average are still the weights of step {schedule.start:,}, where it began: the "
        "memory is long for this run."
    ]
