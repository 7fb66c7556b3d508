"""A schedule in words: what its settings do, and do not do, in a run of a given length."""

from __future__ import annotations

import numpy as np

from emacore.averaging.filters import half_life
from emacore.averaging.schedules import Schedule, final_half_life, last_move
from emacore.averaging.weights import start_share
from emacore.formatting import counted, decay, number, percent


def remarks(schedule: Schedule, num_steps: int) -> list[str]:
    """Sentences about settings that have no effect on a run of ``num_steps`` calls, or another than they seem to."""
    last = last_move(schedule, num_steps)
    if schedule.update_every >= num_steps > 1:
        so_long = "as long as" if schedule.update_every == num_steps else "longer than"
        return [
            f"update_every = {schedule.update_every:,} is {so_long} the run ({num_steps:,} steps): only step 0 is "
            "looked at, and nothing is averaged."
        ]
    if last < schedule.start:
        so_long = "as long as" if schedule.start == num_steps else "longer than"
        return [
            f"The warm-up is {so_long} the run: the average begins at step {schedule.start:,}, and the run ends at "
            f"step {num_steps - 1:,}. Until then it is a copy of the weights."
        ]
    if last == schedule.start:
        return [
            f"The average begins at step {last:,} with a copy of the weights and would move at step "
            f"{last + schedule.update_every:,}, but the run ends at step {num_steps - 1:,}: nothing is averaged."
        ]
    decays = schedule.decays(num_steps)
    if not decays[last]:
        cap = getattr(schedule, "beta", None)
        reason = "beta = 0" if cap == 0 else f"A decay of 0 up to step {last:,}"
        return [f"{reason} copies the weights at every move: nothing is averaged."]
    if (decays[schedule.start + 1 :] == 1).all():
        return [f"A decay of 1 at every move keeps the weights of step {schedule.start:,}: nothing is averaged."]
    return [
        *_cap(schedule, num_steps, float(decays[last])),
        *schedule.remarks(decays),
        *_start(schedule, decays),
    ]


def _cap(schedule: Schedule, num_steps: int, final: float) -> list[str]:
    beta = getattr(schedule, "beta", None)
    if beta is None or final >= beta:
        return []
    # Near 1 a decay can be close to another and remember a tenth as long, so half-lives are compared.
    memory, capped = final_half_life(schedule, num_steps), half_life(beta) * schedule.update_every
    ends = f"the decay ends at {decay(final)}"
    instead = f"a half-life of {counted(memory, 'step')}, " + (
        f"not the {number(capped)} of beta" if beta < 1 else "while that of beta has no end"
    )
    if schedule.attains_beta:
        call = schedule.reaches(beta) if beta < 1 else None
        when = f"it would be from step {call:,} on" if call is not None else "no run is long enough for it"
        return [f"beta = {decay(beta)} is never reached in this run: {ends}, {instead}; {when}."]
    share = final / beta
    if share >= 0.99 and memory >= 0.99 * capped:
        return []
    part = percent(share, 2 if share < 0.99 else 4)
    reason = "the run is too short for it" if beta < 1 else "no run is long enough for it"
    return [f"{ends[0].upper()}{ends[1:]}, {part} of beta = {decay(beta)}: {instead}; {reason}."]


def _start(schedule: Schedule, decays: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[str]:
    share = start_share(decays, start=schedule.start)
    snapshots = int(np.count_nonzero(decays < 1)) - int(np.count_nonzero(decays[: schedule.start + 1] < 1)) + 1
    if share < 0.01 or share < 3 / snapshots:
        return []
    return [
        f"{percent(share, 2)} of the final average are still the weights of step {schedule.start:,}, where it "
        "began: the "
        "memory is long for this run."
    ]
