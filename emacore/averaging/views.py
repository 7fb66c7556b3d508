"""What pages draw and say of the above: tables as plain arrays, and sentences that follow the numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emacore.averaging.filters import half_lives
from emacore.averaging.schedules import Constant
from emacore.averaging.signals import FinalLoss, final_loss, quadratic_loss, simulated_final_losses
from emacore.averaging.weights import average

Floats = NDArray[np.float64]

#: By how many standard errors a simulated mean may miss its formula: of normal means one in 16,000 misses by more.
MOST_ERRORS = 4.0


class LossByDecay(NamedTuple):
    """The loss of the final average over its decay; all of shape (d,), in the order of ``decays``.

    ``expected`` is the formula's; ``simulated`` the mean of so many runs, and ``error`` its standard error.
    """

    decays: Floats
    expected: FinalLoss
    simulated: Floats
    error: Floats

    def at(self, decay: float) -> int:
        """Where ``decay`` stands."""
        return int(np.flatnonzero(self.decays == decay)[0])

    def agrees(self, decay: float) -> bool:
        """Whether formula and simulation differ by no more than chance does."""
        place = self.at(decay)
        expected, simulated = float(self.expected.total[place]), float(self.simulated[place])
        if expected == simulated:
            return True
        return abs(expected - simulated) <= MOST_ERRORS * float(self.error[place]) + 1e-9 * expected

    @property
    def lowest(self) -> int:
        """Where the average of the lowest expected loss stands; the last iterate (decay 0) is no average."""
        total = np.where(self.decays > 0, self.expected.total, np.inf)
        return int(total.argmin())

    def table(self) -> dict[str, Floats]:
        """All of it as columns: decay, half_life (steps), bias, variance, expected (both), simulated, standard_error.

        And last, the expected loss of the last iterate, beside each.
        """
        expected = self.expected.total
        return {
            "decay": self.decays,
            "half_life": half_lives(self.decays),
            "bias": self.expected.bias,
            "variance": self.expected.variance,
            "expected": expected,
            "simulated": self.simulated,
            "standard_error": self.error,
            "last": np.full(len(expected), expected[self.at(0.0)]),
        }


class Path(NamedTuple):
    """Iterates around a minimum, and their average after each; both of shape (T, 2)."""

    iterates: Floats
    averaged: Floats

    @property
    def reach(self) -> float:
        """The greatest distance of an iterate from the minimum along one of the two weights."""
        return float(np.abs(self.iterates).max())

    def table(self) -> dict[str, NDArray[Any]]:
        """Columns: step, sgd_w1, sgd_w2, average_w1, average_w2."""
        (sgd_1, sgd_2), (average_1, average_2) = self.iterates.T, self.averaged.T
        return {
            "step": np.arange(len(self.iterates)),
            "sgd_w1": sgd_1,
            "sgd_w2": sgd_2,
            "average_w1": average_1,
            "average_w2": average_2,
        }

    def final_losses(self, curvatures: ArrayLike) -> list[float]:
        """The loss of the last iterate, and of its average."""
        return [float(quadratic_loss(curvatures, path[-1])) for path in (self.iterates, self.averaged)]


def averaged_path(iterates: ArrayLike, beta: float) -> Path:
    """Iterates, shape (T, 2), with their average of constant decay ``beta``."""
    path = np.asarray(iterates, dtype=np.float64)
    return Path(path, average(path, Constant(beta).decays(len(path))))


def loss_by_decay(
    curvatures: ArrayLike,
    learning_rate: float,
    gradient_noise: float,
    num_steps: int,
    start: ArrayLike,
    beta: float,
    *,
    runs: int = 1000,
) -> LossByDecay:
    """The loss after ``num_steps`` iterates of :func:`sgd_on_quadratic`, averaged with each of a grid of decays.

    The decays go from 0.2 to 0.999999, even in log(1 - decay), and 0 (the last iterate itself) and ``beta`` are among
    them.
    """
    decays = np.unique(np.r_[0.0, beta, 1 - np.geomspace(0.8, 1e-6, 120)])
    expected = final_loss(curvatures, learning_rate, gradient_noise, num_steps, decays, start)
    losses = simulated_final_losses(curvatures, learning_rate, gradient_noise, num_steps, decays, start, runs=runs)
    with np.errstate(over="ignore", invalid="ignore"):
        return LossByDecay(decays, expected, losses.mean(axis=0), losses.std(axis=0, ddof=1) / math.sqrt(runs))


def change_in_words(before: float, after: float) -> str:
    """What averaging does to the expected loss of a run, from ``before`` to ``after``, as a headline."""
    if not math.isfinite(before):
        return "This run diverges, and averaging cannot mend it"
    if math.isclose(before, after, rel_tol=5e-4, abs_tol=0.0):
        return "Averaging leaves the expected loss of this run as it is"
    if after < before:
        by = 100 * (1 - after / before)
        return f"Averaging lowers the expected loss of this run by {f'{by:.3g} %' if by < 99.5 else 'more than 99.5 %'}"
    if after < 10 * before:
        return f"Averaging raises the expected loss of this run by {100 * (after / before - 1):.3g} %"
    return f"Averaging raises the expected loss of this run from {before:.3g} to {after:.3g}"
