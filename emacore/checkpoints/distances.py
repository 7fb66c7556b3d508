"""How far stored sets of weights are from each other, by some of their numbers; and what that says of a merge."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emacore.averaging.expected import expected_distances
from emacore.averaging.held import squared_distances
from emacore.averaging.planned import planned
from emacore.checkpoints.planning import MergePlan, is_copied
from emacore.checkpoints.sections import Section
from emacore.formatting import number, percent
from emacore.tensors.pairing import reals

Floats = NDArray[np.float64]
#: About so many numbers of each set are looked at.
_SAMPLE = 2**19
#: In so many stretches of a tensor.
_STRETCHES = 4
#: Between more sets than these it takes too long.
_MOST = 400


def sampled_distances(sections: Sequence[Section], numbers: int = _SAMPLE) -> Floats:
    """The squared distances between sets of weights with the same tensors: shape (N, N).

    Of each tensor the same share is read, evenly spread, and stands for the rest.

    Raises:
        CheckpointError: if a file cannot be read.
    """
    tensors = {name: one for name, one in sections[0].tensors.items() if one.numel and not is_copied(name, one)}
    share = min(1.0, numbers / max(1, sum(one.numel for one in tensors.values())))
    result = np.zeros((len(sections), len(sections)))
    for name, tensor in tensors.items():
        taken = math.ceil(share * tensor.numel)
        pieces = 1 if share == 1 else min(_STRETCHES, taken)
        length = taken // pieces
        begins = np.linspace(0, tensor.numel - length, pieces).astype(int).tolist()
        rows = np.stack(
            [
                np.concatenate([reals(one.tensors[name].read(at, at + length)).double().numpy() for at in begins])
                for one in sections
            ]
        )
        result += squared_distances(rows) * (tensor.numel / (length * pieces))
    return result


def expected_of(plan: MergePlan) -> dict[str, str]:
    """A sentence on each merge of raw weights: how far it is likely to be from the average over all steps."""
    sections = [source.section for source in plan.sources]
    if len(sections) < 3 or len(sections) > _MOST or {one.kind for one in sections} != {"raw"}:
        return {}
    profiles = [source.profile for source in plan.sources]
    targets = [planned(one.merge, profiles, plan.calls, plan.fit, bests=False).target for one in plan.results]
    squared = sampled_distances(sections)
    found = expected_distances(targets, profiles, np.stack([one.coefficients for one in plan.results]), squared)
    last = math.sqrt(squared[-2, -1])
    told = {}
    for result, distance in zip(plan.results, found.tolist(), strict=True):
        if math.isfinite(distance):
            beside = f", {percent(distance / last)} of the way between the last two files" if last else ""
            told[result.name] = f"expected to be {number(distance, 3)} from the average over all steps (L2{beside})"
    return told
