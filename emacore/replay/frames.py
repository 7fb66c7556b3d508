"""Curves of many schemes at once, for pictures that follow the pointer: each the replay of that very scheme."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from emacore.averaging.windows import Scheme
from emacore.replay.trajectory import Trajectory

#: Networks measured for the curves of one picture: two seconds' work, with networks of the article's size.
MOST_NETWORKS = 16_000


def most_epochs(schemes: int) -> int:
    """At how many epochs at most the curves of so many schemes are shown, so that they are soon there."""
    return max(2, MOST_NETWORKS // max(schemes, 1))


def shown_epochs(count: int, most: int) -> NDArray[np.int64]:
    """Which of ``count`` epochs to show, counted from 1: all, or about ``most`` evenly spread, the first and the last
    among them."""
    if not count:
        return np.empty(0, dtype=np.int64)
    return np.unique(np.linspace(1, count, min(count, most)).round().astype(np.int64))


def loss_frames(trajectory: Trajectory, schemes: Sequence[Scheme], epochs: NDArray[np.integer]) -> NDArray[np.float32]:
    """The loss of each scheme's average after some epochs, by exact replay: shape (epochs, schemes).

    Args:
        epochs: Increasing, counted from 1, as of :func:`shown_epochs`.

    Raises:
        ValueError: if there is no such epoch, or nothing says how networks are measured.
    """
    ends = trajectory.epoch_ends
    if len(epochs) and not (epochs[0] >= 1 and epochs[-1] <= len(ends)):
        raise ValueError(f"epochs must be from 1 to {len(ends)}, got {epochs[0]} to {epochs[-1]}")
    found = trajectory.metrics(
        {str(number): scheme for number, scheme in enumerate(schemes)}, [ends[epoch - 1] for epoch in epochs.tolist()]
    )
    loss = found[trajectory.measured[0].column]
    with np.errstate(over="ignore"):  # beyond 3e38, which a run on its way to diverge can reach, it is infinite
        return loss.reshape(len(schemes), len(epochs)).T.astype(np.float32)
