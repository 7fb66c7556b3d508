"""The decay that was really run between two files, from the raw and the averaged weights in both.

Between two files a and b, ``n`` calls apart, every number of an average follows

    e_b = kept * e_a + sum_j c_j * w_j,    kept = product of the decays,    sum_j c_j = 1 - kept

of which the files hold ``e_a``, ``e_b``, ``w_a`` and ``w_b``, but no weights between them.  What those did has to be
assumed, and there is no assumption that is always right.  So there are several, each an equation in ``kept`` that the
truth fulfils on average over the weights if its assumption holds:

- *line*: on average they went straight from ``w_a`` to ``w_b``, as a random walk between two known ends does; then
  ``sum c_j w_j = (1 - kept) w_a + reach (w_b - w_a)``, and this is least squares over one number, the decay.
- *curve*: they went along that line at a speed that nobody knows: ``reach`` is free, least squares over two numbers.
- *centre*: they jittered about one place, and ``w_a`` and ``w_b`` are two independent looks at it.
- *third*: a line whose ends jitter, with the raw weights of a third file as instrument: its jitter is in neither end.

Under each, a decay is refuted if the equation's two sides differ, summed over groups of weights, by more than their
spread over the groups lets expect (the test of Anderson and Rubin, 1949, clustered; it stays right where the files say
little, and then refutes nothing).  The interval goes from the smallest to the largest decay that one of them leaves
over, so it is wide where the assumptions disagree: that is the error of what moved unseen.  One thing is asked under
all of them: along ``w_b - w_a`` the weights between were on average at most half its length beyond its ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are loaded where they are used
from numpy.typing import ArrayLike, NDArray

from emacore.checks import check_whole

Floats = NDArray[np.float64]

#: Rates looked at: so little is forgotten that no file shows it, up to nothing that is left.
LEAST_RATE, MOST_RATE = 1e-7, 40.0
#: How likely chance alone may break an equation, two-sided: small, because an alarm must mean something.
_CHANCE = 1e-4
_RATES = np.geomspace(LEAST_RATE, MOST_RATE, 2001)
#: What the rows and columns of the products are of.
_LAG, _PATH, _MOVE, _THIRD = range(4)


class Rate(NamedTuple):
    """How much an average forgot in a stretch, as ``-log(kept)``: the sum of ``-log(decay)`` over its calls.

    Attributes:
        low, high: Ends of the interval; ``LEAST_RATE`` and ``MOST_RATE`` where the files set no end.
        best: Within them, that of the assumption which the files contradict least.
    """

    low: float
    best: float
    high: float

    @property
    def has_low(self) -> bool:
        """Whether the files show that it forgot at least something."""
        return self.low > LEAST_RATE * 1.001

    @property
    def has_high(self) -> bool:
        """Whether the files show that something of the average before was left."""
        return self.high < MOST_RATE / 1.001

    def allows(self, rate: float, slack: float = 1.0) -> bool:
        """Whether a rate lies in the interval, or within so many times its ends."""
        low = self.low / slack if self.has_low else 0.0
        high = self.high * slack if self.has_high else math.inf
        return low <= rate <= high

    def decays(self, calls: int) -> tuple[float, float, float]:
        """Low, best and high decay of a call, if all of the stretch had the same; the low one is 0 without end."""
        low = math.exp(-self.high / calls) if self.has_high else 0.0
        high = math.exp(-self.low / calls) if self.has_low else 1.0
        return low, math.exp(-self.best / calls), high


_UNKNOWN = Rate(LEAST_RATE, 1.0, MOST_RATE)


def reach(rate: ArrayLike, calls: int) -> Floats:
    """``sum_j c_j j / n``: how far from ``w_a`` to ``w_b`` the new part of an average lies, times its weight.

    For ``n`` calls of the one decay d that has this rate: ``1 - d (1 - d**n) / (n (1 - d))``.
    """
    check_whole("calls", calls, 1)
    rates = np.asarray(rate, dtype=np.float64)
    forgotten, each = -np.expm1(-rates), -np.expm1(-rates / calls)
    small = rates < 1e-5  # where the two parts cancel: (n + 1) / 2n of what is forgotten
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = 1 - np.exp(-rates / calls) * forgotten / (calls * each)
    return np.where(small, rates * (calls + 1) / (2 * calls), exact)


def inner_products(
    raw_before: ArrayLike,
    raw_after: ArrayLike,
    average_before: ArrayLike,
    average_after: ArrayLike,
    raw_of_third: ArrayLike | None = None,
) -> Floats:
    """Inner products, shape (4, 4), of what a group of weights says of a stretch; all of shape (k,).

    They are those of ``e_a - w_a``, ``w_b - w_a``, ``e_b - e_a`` and, zero without a third file, ``w_c - e_a``.
    """
    before = np.asarray(average_before, dtype=np.float64)
    origin = np.asarray(raw_before, dtype=np.float64)
    third = before if raw_of_third is None else np.asarray(raw_of_third, np.float64)
    vectors = np.stack(
        [
            before - origin,
            np.asarray(raw_after, np.float64) - origin,
            np.asarray(average_after) - before,
            third - before,
        ]
    )
    return np.asarray(vectors @ vectors.T)


def recovered_rate(products: ArrayLike, counts: ArrayLike, calls: int, rounding: ArrayLike | None = None) -> Rate:
    """How much was forgotten in a stretch, with an interval.

    Args:
        products: Shape (G, 4, 4): :func:`inner_products` of each group of weights.
        counts: Shape (G,): how many weights each has.
        calls: Steps of the stretch.
        rounding: Shape (G,): the expected square of what rounding added to the averaged weights of each group, where
            they are stored coarsely.  Whether the average itself was so coarse is not known, so both are tried.
    """
    moments = np.array(products, dtype=np.float64)
    size = moments[:, 0, 0] + moments[:, 1, 1]
    used = size > 0
    if np.count_nonzero(used) < 2:
        return _UNKNOWN
    # Tensors differ in scale by orders of magnitude; each group has its say by how many weights it has.
    scale = (np.sqrt(np.asarray(counts, dtype=np.float64))[used] / size[used])[:, None, None]
    found = [_of_models(moments[used] * scale, calls)]
    noise = np.zeros(len(moments)) if rounding is None else np.asarray(rounding, dtype=np.float64)
    if np.any(noise[used] > 0):
        moments[:, _LAG, _LAG] -= noise
        moments[:, _LAG, _MOVE] += noise
        found.append(_of_models(moments[used] * scale, calls))
    return Rate(min(one.low for one in found), found[0].best, max(one.high for one in found))


def _of_models(moments: Floats, calls: int) -> Rate:
    total = moments.sum(axis=0)
    equations = list(_equations(total, calls))
    centred = (moments - total / len(moments)).reshape(len(moments), 16)
    scatter = centred.T @ centred * len(moments) / (len(moments) - 1)
    limit = float(scipy.stats.t.isf(_CHANCE / 2, len(moments) - 1))

    def sides(equation: Floats) -> tuple[Floats, Floats]:
        """Their difference at each rate, and how far it may be from 0 by chance."""
        terms = np.flatnonzero(equation.any(axis=1))
        found = equation[terms]
        squares = (found * (scatter[np.ix_(terms, terms)] @ found)).sum(axis=0)
        return total.reshape(16)[terms] @ found, limit * np.sqrt(np.maximum(squares, 0))

    possible = np.ones(len(_RATES), dtype=bool)
    for bound in _bounds():
        difference, allowed = sides(bound)
        possible &= difference <= allowed
    ends = [_left_over(*sides(equation), possible) for equation in equations]
    low, high = min(one[0] for one in ends), max(one[1] for one in ends)
    if low > high:  # every rate is refuted under every assumption: the average is not made of these weights at all
        return _UNKNOWN
    # Weights that come back towards the average, as jitter does, are no line's.
    returning = total[_LAG, _PATH] > 0.2 * total[_LAG, _LAG]
    best = _roots(total.reshape(16) @ equations[-1 if returning else 0])
    if not returning:
        best = best[np.argsort(_misfit(total, best, calls))]
    return Rate(low, float(np.clip(best[0], low, high)) if len(best) else math.sqrt(low * high), high)


def _equation(*terms: tuple[int, int, ArrayLike]) -> Floats:
    """Coefficients of the products, shape (16, R), by their rows and columns."""
    found = np.zeros((4, 4, len(_RATES)))
    for one, other, coefficient in terms:
        found[one, other] += coefficient
    return found.reshape(16, -1)


def _bounds() -> Iterable[Floats]:
    """What is at most 0 at a possible rate: how far the new part of the average lies beyond the ends of the path."""
    forgotten = -np.expm1(-_RATES)
    yield _equation((_PATH, _MOVE, 1.0), (_PATH, _LAG, forgotten), (_PATH, _PATH, -1.5 * forgotten))
    yield _equation((_PATH, _MOVE, -1.0), (_PATH, _LAG, -forgotten), (_PATH, _PATH, -0.5 * forgotten))


def _equations(total: Floats, calls: int) -> Iterable[Floats]:
    """For each assumption, by rate, the coefficients of the products in the difference of its two sides, shape
    (16, R)."""
    forgotten, reached = -np.expm1(-_RATES), reach(_RATES, calls)

    def line(against: int, factor: ArrayLike) -> list[tuple[int, int, ArrayLike]]:
        shares = (_MOVE, 1.0), (_LAG, forgotten), (_PATH, -reached)
        return [(against, one, np.multiply(share, factor)) for one, share in shares]

    slope = np.gradient(reached, _RATES)
    yield _equation(*line(_PATH, slope), *line(_LAG, forgotten - 1))
    along = total[_LAG, _PATH] / total[_PATH, _PATH] if total[_PATH, _PATH] > 0 else 0.0
    yield _equation(
        (_LAG, _MOVE, 1.0), (_PATH, _MOVE, -along), (_LAG, _LAG, forgotten), (_LAG, _PATH, -along * forgotten)
    )
    yield _equation((_LAG, _MOVE, 1.0), (_LAG, _LAG, forgotten), (_LAG, _PATH, -forgotten))
    if total[_THIRD, _THIRD] > 0:
        yield _equation(*line(_THIRD, 1.0))


def _left_over(total: Floats, allowed: Floats, possible: NDArray[np.bool_]) -> tuple[float, float]:
    """The smallest and the largest possible rate that an equation does not refute; a root of it counts always."""
    roots = _roots(total)
    roots = roots[possible[np.searchsorted(_RATES, roots)]]
    kept = np.concatenate([_RATES[possible & (np.abs(total) <= allowed)], roots])
    if not len(kept):
        return math.inf, -math.inf
    step = float(_RATES[1] / _RATES[0])  # the end lies between two of the rates looked at
    return max(float(kept.min()) / step, LEAST_RATE), min(float(kept.max()) * step, MOST_RATE)


def _roots(total: Floats) -> Floats:
    at = np.flatnonzero(np.sign(total[:-1]) * np.sign(total[1:]) < 0)
    share = total[at] / (total[at] - total[at + 1])
    return np.asarray(_RATES[at] * (_RATES[at + 1] / _RATES[at]) ** share)


def _misfit(total: Floats, rates: Floats, calls: int) -> Floats:
    """Sum of squares of what the line leaves over, at each rate."""
    fit = np.stack([-np.expm1(-rates), -reach(rates, calls), np.ones_like(rates)])
    return np.asarray(np.einsum("ir,ij,jr->r", fit, total[:3, :3], fit))
