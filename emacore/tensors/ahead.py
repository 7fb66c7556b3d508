"""The decays of many calls at once, for several schedules, and what follows from them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emacore.averaging.schedules import Schedule
from emacore.averaging.weights import Floats, stretch_weights

#: How many calls are looked ahead.
BLOCK = 1024
#: How many of them may be counted as one; divides a block.
STRETCH = 32


class Ahead:
    """A block of calls, for K schedules.

    Args:
        schedules: The schedules.
        start: The number of the block's first call.
        like: Averages, whose dtype and device numbers for them have.

    Attributes:
        decays: Shape (K, BLOCK).
        moves: Which of the calls are no skips, shape (K, BLOCK).
        plain: For each call whether all averages move in it, and none copies or skips.
        rests: How far they move, ``1 - decay``: shape (BLOCK, K, 1).
    """

    @torch.inference_mode(False)
    def __init__(self, schedules: Collection[Schedule], start: int, like: Tensor) -> None:
        calls = start + np.arange(BLOCK)
        decays = np.stack([schedule.at(calls) for schedule in schedules])
        skips = decays == 1
        if skips.any():  # a decay of 1 that is not a skip copies buffers; a skip leaves even them as they are
            every = np.array([[schedule.update_every] for schedule in schedules])
            skips &= calls % every != 0
        self.decays, self.moves = decays, ~skips
        self.plain: list[bool] = np.all((decays > 0) & (decays < 1), axis=0).tolist()
        self._like = like[:0]
        self.rests = as_tensor(1 - decays.T, like).unsqueeze(-1)
        shares, rests = shares_and_rest(decays.reshape(len(decays), -1, STRETCH))
        self._stretch_shares = shares.swapaxes(0, 1)
        self._stretch_rests = as_tensor(rests.swapaxes(0, 1), like)

    def mean_and_rest(self, offsets: Sequence[int], rows: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Calls of one stretch as one: the means of their weights, (K, P), and how far to move towards them, (K, 1).

        Args:
            offsets: Which calls of the block.
            rows: Their weights, (N, P).
        """
        if len(offsets) == STRETCH:
            stretch = offsets[0] // STRETCH
            return _mean(self._stretch_shares[stretch], rows, self._like), self._stretch_rests[stretch]
        shares, rests = shares_and_rest(self.decays[:, list(offsets)])
        return _mean(shares, rows, self._like), as_tensor(rests, self._like)


def counted(averages: Tensor, calls: Sequence[int], rows: NDArray[Any], schedules: Collection[Schedule]) -> Tensor:
    """Averages after the calls of one stretch, whose weights are rows, under schedules that need not be theirs now."""
    shares, rest = shares_and_rest(np.stack([schedule.at(np.array(calls)) for schedule in schedules]))
    return averages.lerp(_mean(shares, rows, averages), as_tensor(rest, averages))


def _mean(shares: Floats, rows: NDArray[Any], like: Tensor) -> Tensor:
    """Means of rows of weights, each by its shares."""
    # For matrices this small NumPy's product takes half the time of torch's.
    return as_tensor(shares.astype(rows.dtype) @ rows, like)


def as_tensor(numbers: NDArray[Any], like: Tensor) -> Tensor:
    """Numbers in the dtype and on the device of a tensor."""
    return torch.from_numpy(numbers).to(like)


def shares_and_rest(decays: Floats) -> tuple[Floats, Floats]:
    """A stretch of n calls as one: each call's share in their mean, and how far the average moves towards it.

    Moved towards a mean, an average of equal values keeps them, up to a rounding that does not add up.

    Args:
        decays: Shape (..., n), each row with a decay below 1; the rows of another are not numbers.

    Returns:
        Shapes (..., n), which adds to 1, and (..., 1).
    """
    shares, _ = stretch_weights(decays)
    rest = shares.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return shares / rest, rest
