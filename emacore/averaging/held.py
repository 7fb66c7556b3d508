"""Averages of a run that moved only when something was stored: each set stands for the calls since the one before.

What each set weighs follows from the decays alone, and how far an average is from a stored set from the distances
between the sets: so both are known of every schedule before any network is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emacore.averaging.coefficients import Profile, Span, certificate
from emacore.averaging.schedules import Schedule
from emacore.averaging.weights import weights
from emacore.averaging.windows import Scheme, Window, decays_at_end

Floats = NDArray[np.float64]


class Held(NamedTuple):
    """What is known of a scheme's averages over N stored sets.

    Attributes:
        shares: What each set weighs in the last average, shape (N,).
        distances: How far the average is from the set, after each of them, shape (N,); NaN where none are known.
        error, reached: Of the last average's :class:`~emacore.averaging.coefficients.Certificate`.
    """

    shares: Floats
    distances: Floats
    error: float
    reached: float


def held(scheme: Scheme, profiles: Sequence[Profile], squared: ArrayLike | None = None) -> Held:
    """A scheme's averages over stored sets.

    Args:
        profiles: Of N sets, by rising calls.
        squared: Shape (N, N): the squared distances between the sets.

    Raises:
        ValueError: for no sets, or sets that do not rise.
    """
    ends = np.array([one.end for one in profiles], dtype=np.int64)
    if not ends.size or (np.diff(ends) <= 0).any():
        raise ValueError(f"there must be sets of rising calls, got {ends.tolist()}")
    decays = decays_at_end(scheme, int(ends[-1]) + 1)
    coefficients = (
        held_coefficients(decays, ends)
        if isinstance(scheme, Schedule)
        else np.stack([_of_window(scheme, ends, number) for number in range(len(ends))])
    )
    apart = np.full(len(ends), np.nan) if squared is None else distances_from_sets(coefficients, squared)
    return Held(coefficients[-1], apart, *_certified(weights(decays), profiles, ends, coefficients[-1]))


def _certified(
    target: Floats, profiles: Sequence[Profile], ends: NDArray[np.int64], coefficients: Floats
) -> tuple[float, float]:
    """Error and reached of the certificate; of raw weights from the sums of squares alone, since a page asks often."""
    if not all(isinstance(one, Span) and one.begin == one.end for one in profiles):
        found = certificate(target, profiles, coefficients)
        return found.error, found.reached
    norm, there = float(target @ target), target[ends]
    missed = norm - float(there @ there) + float(((coefficients - there) ** 2).sum())
    error = float(np.sqrt(max(missed, 0.0) / norm))
    return (error if error > 1e-7 else 0.0), float(1 / (coefficients @ coefficients))


def held_coefficients(decays: ArrayLike, ends: ArrayLike) -> Floats:
    """What each stored set weighs in the average after each of them: shape (N, N), by rows.

    Args:
        decays: Shape (T,), of all calls; the first is 0.
        ends: The calls after which sets were stored, rising, below T: shape (N,).
    """
    rates, stored = np.asarray(decays, dtype=np.float64), np.asarray(ends, dtype=np.int64)
    kept = np.multiply.reduceat(rates, np.concatenate([[0], stored[:-1] + 1]))
    result = np.zeros((len(stored), len(stored)))
    row = np.zeros(len(stored))
    for number, share in enumerate(kept):
        row = share * row
        row[number] += 1 - share
        result[number] = row
    return result


def _of_window(window: Window, ends: NDArray[np.int64], number: int) -> Floats:
    """What each set weighs in a window that ends at one of them."""
    row = np.zeros(len(ends))
    upto = ends[: number + 1]
    row[: number + 1] = held_coefficients(decays_at_end(window, int(upto[-1]) + 1), upto)[-1]
    return row


def distances_from_sets(coefficients: ArrayLike, squared: ArrayLike) -> Floats:
    """How far the n-th of N sums of sets is from the n-th set: shape (N,).

    With differences ``d`` of coefficients that add to 0, the squared norm of the sum is ``-d @ squared @ d / 2``.

    Args:
        coefficients: Shape (N, N), rows that add to 1.
        squared: Shape (N, N): the squared distances between the sets.
    """
    apart = np.asarray(squared, dtype=np.float64)
    differences = np.asarray(coefficients, dtype=np.float64) - np.eye(len(apart))
    found = -0.5 * np.einsum("ij,ij->i", differences @ apart, differences)
    return np.asarray(np.sqrt(np.maximum(found, 0.0)))


def squared_distances(
    rows: NDArray[np.floating], columns: int = 2**20, tell: Callable[[float], None] = lambda share: None
) -> Floats:
    """The squared distances between rows, shape (N, P), which are read ``columns`` at a time: shape (N, N).

    Sums are float64 and taken from the differences to the last row, so that rows close to each other and far from 0
    lose no digits.

    Args:
        tell: Called with the share that is done, before each block.
    """
    count, size = rows.shape
    gram = np.zeros((count, count))
    for first in range(0, size, columns):
        tell(first / size)
        block = np.asarray(rows[:, first : first + columns], dtype=np.float64)
        block = block - block[-1]
        gram += block @ block.T
    lengths = gram.diagonal()
    return np.asarray(np.maximum(lengths[:, np.newaxis] + lengths - 2 * gram, 0.0))
