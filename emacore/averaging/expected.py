"""How far a merge of raw files is likely to be from the true average, by how the files themselves lie to each other.

The weights of steps alone cannot say it: whether what lies between two files matters depends on how far, and how
straight, the run went there.  The distances between the files tell both.  Where their squares grow as a power h of the
steps between (h = 0: independent noise of each step; 1: a random walk; 2: a straight line), the run is taken for a
fractional Brownian motion of that power, whose clock runs as fast as each gap between neighbours says.  Then the
squared distance from the true average is ``-d @ K @ d / 2`` on average, with the difference d of the two profiles,
which adds to 0, and ``K[s, t] = |clock(s) - clock(t)| ** h``.

Source of that motion: Mandelbrot and van Ness, "Fractional Brownian motions, fractional noises and applications", 1968.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emacore.averaging.coefficients import Profile, Span

Floats = NDArray[np.float64]
#: How many files apart those are that are compared.
_LAGS = (1, 2, 4)
#: The least and the largest power: at 0 the clock would stand still or jump, and more than 2 no motion has.
_POWERS = (0.1, 1.95)
#: About so many points stand for all calls.
_POINTS = 700


def expected_distances(
    targets: Sequence[ArrayLike | None], profiles: Sequence[Profile], coefficients: ArrayLike, squared: ArrayLike
) -> Floats:
    """The distances to be expected of several merges of the same files from the averages that they stand for.

    Args:
        targets: Of each of R merges, what each of T calls weighs, adding to 1: shape (T,), the same T for all; ``None``
            where it stands for no average.
        profiles: Of N files, by rising calls.
        coefficients: Shape (R, N), rows that add to 1.
        squared: Shape (N, N): the squared distances between the files.

    Returns:
        Shape (R,), in the unit of the distances; NaN without a target, for files that are not all raw weights, and for
        fewer than three of them.
    """
    result = np.full(len(targets), np.nan)
    ends = np.array([one.end for one in profiles], dtype=np.int64)
    if len(ends) < 3 or not all(isinstance(one, Span) and one.begin == one.end for one in profiles):
        return result
    apart = np.asarray(squared, dtype=np.float64)
    if not np.isfinite(apart).all():
        return result
    calls = max((len(np.asarray(target)) for target in targets if target is not None), default=0)
    power, edges = growth_of(apart), _edges(ends, calls)
    middles = (edges + np.append(edges[1:], calls) - 1) / 2
    clock = _clock(apart, ends, power, middles)
    kernel = np.abs(clock[:, np.newaxis] - clock) ** power
    factors = np.asarray(coefficients, dtype=np.float64)
    for number, target in enumerate(targets):
        if target is not None:
            differences = -np.add.reduceat(np.asarray(target, dtype=np.float64), edges)
            differences[np.searchsorted(edges, ends)] += factors[number]
            result[number] = np.sqrt(max(0.0, -0.5 * float(differences @ kernel @ differences)))
    return result


def growth_of(squared: ArrayLike) -> float:
    """The power h with which the squared distances of files grow, by what their clock needs: it adds up.

    So for each three files in a row, with the squared distances a and b of neighbours and c of the outer ones,
    ``c ** (1 / h)`` is ``a ** (1 / h) + b ** (1 / h)``, however uneven their steps and however the run slows down; h is
    that with which ``c`` is so on average over the logarithms.  Between independent noise and a straight line.

    Args:
        squared: Shape (N, N).
    """
    apart = np.asarray(squared, dtype=np.float64)
    threes = [(n, n + lag, n + 2 * lag) for lag in _LAGS for n in range(len(apart) - 2 * lag)]
    sides = np.array([(apart[a, b], apart[b, c], apart[a, c]) for a, b, c in threes]).reshape(-1, 3)
    sides = np.log(sides[(sides > 0).all(axis=1)])
    low, high = _POWERS
    if not len(sides):
        return 1.0
    for _ in range(30):
        power = (low + high) / 2
        added = power * np.logaddexp(sides[:, 0] / power, sides[:, 1] / power)
        low, high = (power, high) if np.mean(sides[:, 2] - added) > 0 else (low, power)
    return (low + high) / 2


def _clock(squared: Floats, ends: NDArray[np.int64], power: float, at: Floats) -> Floats:
    """When the motion has come to each call of ``at``; before the first file it is as fast as after it."""
    sizes = np.diagonal(squared, 1) ** (1 / power)
    times = np.concatenate([[0.0], np.cumsum(sizes)])
    before = (at - ends[0]) * sizes[0] / (ends[1] - ends[0])
    return np.asarray(np.where(at < ends[0], before, np.interp(at, ends, times)))


def _edges(ends: NDArray[np.int64], calls: int) -> NDArray[np.int64]:
    """Where the groups of calls begin that are looked at as one; each file has one of its own."""
    edges = np.unique(np.concatenate([np.linspace(0, calls, _POINTS).astype(np.int64), ends, ends + 1]))
    return edges[edges < calls]
