"""Distances between stored sets of weights."""

import numpy as np
import torch

from emacore import Constant, UniformAverage, Window, open_checkpoints
from emacore.averaging.coefficients import Coefficients
from emacore.checkpoints.distances import expected_of, sampled_distances
from emacore.checkpoints.planning import plan_merge


def walk(folder, steps=8, every=10, size=3000):
    """Raw weights of a random walk, and the average over all its steps."""
    generator = torch.Generator().manual_seed(0)
    state = {"a": torch.zeros(size), "b": torch.zeros(5, dtype=torch.complex64)}
    total = torch.zeros(size, dtype=torch.float64)
    for step in range(1, steps * every + 1):
        state = {
            name: one + torch.randn(one.shape, dtype=one.dtype, generator=generator) for name, one in state.items()
        }
        total += state["a"]
        if step % every == 0:
            torch.save({**state, "count": torch.tensor(step)}, folder / f"step_{step}.pt")
    return total / (steps * every)


def test_all_numbers_are_looked_at_or_some_stand_for_them(tmp_path):
    walk(tmp_path)
    sections = [one.sections[0] for one in open_checkpoints(tmp_path)]
    rows = [torch.cat([s.tensors["a"].value(), torch.view_as_real(s.tensors["b"].value()).flatten()]) for s in sections]
    rows = torch.stack(rows).double().numpy()
    exact = ((rows[:, np.newaxis] - rows) ** 2).sum(axis=2)
    np.testing.assert_allclose(sampled_distances(sections), exact, rtol=1e-9)
    some = sampled_distances(sections, 900)
    assert not np.allclose(some, exact, rtol=1e-6)
    np.testing.assert_allclose(some, exact, rtol=0.15)


def test_the_distance_to_be_expected_is_told_of_raw_weights(tmp_path):
    mean = walk(tmp_path)
    found = open_checkpoints(tmp_path)
    schemes = {"mean": UniformAverage(), "own": Coefficients((0.5, 0.5))}
    plan = plan_merge(found, schemes)
    told = expected_of(plan)
    assert list(told) == ["mean"]
    merged = sum(c * one.sections[0].tensors["a"].value() for c, one in zip(plan.results[0].coefficients, found))  # noqa: B905
    real = float((merged.double() - mean).norm())
    distance = float(told["mean"].split()[3])
    assert 0.7 < distance / real < 1.4
    assert "of the way between the last two files" in told["mean"]
    assert expected_of(plan_merge(found, {"short": Window(30), "ema": Constant(0.9)})).keys() == {"short", "ema"}
    assert expected_of(plan_merge(found, schemes, last=2)) == {}
