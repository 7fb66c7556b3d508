"""Paired comparison of original and averaged networks over seeds.  Imports no torch."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import scipy  # whose parts are loaded where they are used
from numpy.typing import ArrayLike, NDArray

from emacore.formatting import counted, number, p_value, percent, signed_percent

Floats = NDArray[np.float64]

#: Below so many finite pairs no test can reach 5 %, and nothing is said of a difference.
FEWEST_SEEDS = 6
LEVEL = 0.95
POWER = 0.8
#: The ways to an interval, of the median and of the mean.
CLASSICAL, BCA = INTERVALS = ("order statistics and t", "BCa bootstrap")
#: What a comparison can show.
KINDS = ("helps", "hurts", "no difference shown", "unclear", "cannot tell")
_RESAMPLES = 9999
#: Up to so many additions, which take milliseconds, Wilcoxon's p is counted exactly: 170 pairs, or more with ties.
_ADDITIONS = 5_000_000


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; NaN where there is none."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedComparison:
    """What :func:`paired_comparison` found.  Gains are shares of the original's value: above 0, averaging is better.

    Args:
        seeds: How many pairs there were.
        wins, losses, ties: Of the averaged network.  A finite value beats one that is not; two that are not finite tie.
        infinite: Pairs without a finite gain: a value was not finite, or the original's was 0 and the other's was not.
            They count above and in the p-values, but not in the two intervals.
        median, mean: Of the gains of the other ``pairs``, with 95 % intervals.
        sign_p, wilcoxon_p: Two-sided p-values of no difference; NaN where there is nothing to test.
        chance: Of a single seed to show a gain of at least ``wanted_gain``, with the Clopper-Pearson interval.
        seeds_needed: With how many seeds a paired t-test at 5 % would find a mean gain like this in 80 % of studies;
            ``None`` if the mean gain is 0 or there are fewer than two finite pairs.
        intervals: How those of median and mean were found: :data:`CLASSICAL` or :data:`BCA`.
    """

    seeds: int
    wins: int
    losses: int
    ties: int
    infinite: int
    median: Interval
    mean: Interval
    sign_p: float
    wilcoxon_p: float
    wanted_gain: float
    chance: Interval
    seeds_needed: int | None
    intervals: str = CLASSICAL

    @property
    def pairs(self) -> int:
        """The pairs with a finite gain, on which median, mean and their intervals rest."""
        return self.seeds - self.infinite


def gains(original: ArrayLike, averaged: ArrayLike, *, higher_is_better: bool = False) -> Floats:
    """The relative gains of averaging, one a seed: above 0 where it is better; infinite where only one is finite.

    Two equal values, and two that are not finite, give 0.

    Raises:
        ValueError: if the shapes differ or are not (seeds,).
    """
    one, other = np.asarray(original, dtype=np.float64), np.asarray(averaged, dtype=np.float64)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"original and averaged must have the same shape (seeds,), got {one.shape} and {other.shape}")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = (other - one if higher_is_better else one - other) / np.abs(one)
    found[one == other] = 0.0
    finite_one, finite_other = np.isfinite(one), np.isfinite(other)
    found[finite_one & ~finite_other] = -np.inf
    found[~finite_one & finite_other] = np.inf
    found[~finite_one & ~finite_other] = 0.0
    return np.asarray(found)


def known_gains(original: ArrayLike, averaged: ArrayLike, *, higher_is_better: bool = False) -> Floats:
    """:func:`gains` as they are shown, NaN where neither value is finite: two runs that diverged are a tie to a test,
    but no measured "no difference"."""
    found = gains(original, averaged, higher_is_better=higher_is_better)
    values = np.asarray([original, averaged], dtype=np.float64)
    return np.where(np.isfinite(values).any(axis=0), found, np.nan)


def paired_comparison(
    original: ArrayLike,
    averaged: ArrayLike,
    *,
    higher_is_better: bool = False,
    wanted_gain: float = 0.05,
    intervals: str = CLASSICAL,
) -> PairedComparison:
    """Compare the same metric of the original and the averaged network over seeds, both of shape (seeds,).

    Args:
        wanted_gain: As a share of the original's value.
        intervals: :data:`CLASSICAL`: the median's between order statistics, interpolated (Hettmansperger and Sheather
            1986), the mean's from t.  :data:`BCA`: SciPy's bias-corrected and accelerated bootstrap (Efron 1987), with
            the same resamples at each call.  How far each can be trusted says :mod:`emacore.experiments.coverage`.

    Raises:
        ValueError: if the shapes differ, there are no seeds, or there are no such intervals.
    """
    if intervals not in INTERVALS:
        raise ValueError(f"intervals must be one of {', '.join(map(repr, INTERVALS))}, got {intervals!r}")
    found = gains(original, averaged, higher_is_better=higher_is_better)
    if not len(found):
        raise ValueError("there are no seeds to compare")
    both = np.isfinite(np.asarray([original, averaged], dtype=np.float64)).all(axis=0)
    finite = found[both & np.isfinite(found)]
    compare = _compared if len(found) <= _SEEDS_OF_KEPT else _compared.__wrapped__
    return compare(found.tobytes(), finite.tobytes(), wanted_gain, intervals)


#: Pages ask for the same comparisons again at each click: so many of at most so many seeds are kept, 16 MB in all.
_KEPT, _SEEDS_OF_KEPT = 2048, 512


@lru_cache(maxsize=_KEPT)
def _compared(all_gains: bytes, finite_gains: bytes, wanted_gain: float, intervals: str) -> PairedComparison:
    found, finite = np.frombuffer(all_gains), np.frombuffer(finite_gains)
    wins, losses = int((found > 0).sum()), int((found < 0).sum())
    reached = int((found >= wanted_gain).sum())
    share = scipy.stats.binomtest(reached, len(found)).proportion_ci(LEVEL)
    return PairedComparison(
        seeds=len(found),
        wins=wins,
        losses=losses,
        ties=len(found) - wins - losses,
        infinite=len(found) - len(finite),
        median=_bca(finite, np.median) if intervals == BCA else _median(finite),
        mean=_bca(finite, np.mean) if intervals == BCA else _mean(finite),
        sign_p=float(scipy.stats.binomtest(wins, wins + losses).pvalue) if wins + losses else math.nan,
        wilcoxon_p=_wilcoxon(found),
        wanted_gain=wanted_gain,
        chance=Interval(reached / len(found), float(share.low), float(share.high)),
        seeds_needed=seeds_needed(finite),
        intervals=intervals,
    )


def seeds_needed(differences: ArrayLike) -> int | None:
    """How many seeds a two-sided paired t-test at 5 % needs to find the mean of ``differences`` with 80 % power.

    Uses the noncentral t distribution.  ``None`` if the mean is 0 or there are fewer than two differences; at most a
    million.
    """
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not values.mean():
        return None
    spread = values.std(ddof=1)
    if not spread:
        return 2
    effect = abs(float(values.mean() / spread))

    def power(n: int) -> float:
        critical = scipy.stats.t.ppf(1 - (1 - LEVEL) / 2, n - 1)
        return float(scipy.stats.nct.sf(critical, n - 1, effect * math.sqrt(n)))

    low, high = 1, 2
    while high < 1_000_000 and power(high) < POWER:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return min(high, 1_000_000)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's (1979) adjusted p-values of several tests: below 5 % for all that can be claimed together.

    NaN (no test) stays NaN and does not count.
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


@dataclass(frozen=True)
class Corrected:
    """A comparison as one of several tests.

    Args:
        p: Holm's adjusted p-value; NaN where there is nothing to test.
        tests: How many there are.
        least: The least that ``p`` could have been, had one network won all of this comparison's pairs.
        final: Whether these are all tests that there will be; with each further one ``p`` stays or grows.
    """

    p: float
    tests: int
    least: float
    final: bool = True

    def in_words(self) -> str:
        """What the p-value is corrected for."""
        tests = counted(self.tests, "test")
        return tests if self.final else f"the {tests} so far, with more to come"


def corrected(comparisons: Sequence[PairedComparison], *, final: bool = True) -> list[Corrected]:
    """Each comparison as one of all these tests, or, if they are not ``final``, of those so far."""
    p_values = np.array([one.wilcoxon_p for one in comparisons])
    adjusted = holm(p_values)
    found = []
    for n, one in enumerate(comparisons):
        others = p_values.copy()
        others[n] = least_p(one.seeds)
        found.append(Corrected(float(adjusted[n]), int((~np.isnan(p_values)).sum()), float(holm(others)[n]), final))
    return found


def least_p(pairs: int) -> float:
    """The least p-value of Wilcoxon's two-sided test of so many pairs: 2 / 2^n."""
    return min(1.0, 2.0 ** (1 - pairs))


def fewest_seeds(tests: int) -> int:
    """With how many seeds each, if no pair ties, the least p-value of so many tests can be below 5 % after Holm."""
    return next(n for n in itertools.count(1) if tests * least_p(n) < 1 - LEVEL)


def seeds_in_words(seeds: int, tests: int) -> str:
    """Whether so many tests of so many seeds each can show anything."""
    fewest = fewest_seeds(tests)
    several = f"{tests} tests" if tests > 1 else "one test"
    if seeds >= fewest:
        return f"For {several} {fewest} seeds each are the least that can show anything, if no pair ties."
    holm_too = f", and {number(tests * least_p(seeds), 2)} after Holm's correction for {several}" if tests > 1 else ""
    return (
        f"{counted(seeds, 'seed')} cannot show anything here, whatever {'they find' if seeds > 1 else 'it finds'}: the "
        f"least p-value that Wilcoxon's test has for {'them' if seeds > 1 else 'it'} is 2/2^{seeds} = "
        f"{number(least_p(seeds), 2)}{holm_too}. {several.capitalize()} need{'' if tests > 1 else 's'} at least "
        f"{fewest} seeds{' each' if tests > 1 else ''}."
    )


def p_values_in_words(tests: int, *, final: bool = True) -> str:
    """What the two p-values of one of several tests are, and which decides.

    Args:
        final: Whether these are all tests that there will be.
    """
    growing = (
        ""
        if final
        else f" Only the {tests} tests so far are counted: with each further one a corrected p-value stays or grows, "
        "so a verdict may be taken back before the last cell is trained."
    )
    return (
        "Two p-values: Wilcoxon's is that of the cell alone. Each of many cells has its own chance to seem to show "
        f"something, so Holm's correction multiplies the least of {tests} p-values by {tests}, the next by {tests - 1} "
        f"and so on. Every verdict of this map goes by the corrected one.{growing}"
        if tests > 1
        else f"There is at most one test here{'' if final else ' so far'}, so no p-value is corrected."
    )


def kind_of(comparison: PairedComparison, among: Corrected | None = None) -> str:
    """One of :data:`KINDS`, fixed by the numbers.

    A difference is claimed where the median's interval lies on one side of 0 and the p-value, corrected if it is one of
    several, is below 5 %.  It cannot tell with fewer than :data:`FEWEST_SEEDS` finite pairs, which have no interval,
    nor where no outcome of the pairs could have claimed anything.  Where one of interval and test finds a difference
    and the other does not, it is unclear.
    """
    median, p = comparison.median, comparison.wilcoxon_p if among is None else among.p
    if math.isnan(median.low):
        return "cannot tell"
    small, aside = p < 1 - LEVEL, median.low > 0 or median.high < 0
    if small and aside:
        return "helps" if median.low > 0 else "hurts"
    if among is not None and among.least >= 1 - LEVEL and comparison.wins + comparison.losses:
        return "cannot tell"
    return "unclear" if small or aside else "no difference shown"


def verdict(comparison: PairedComparison, what: str = "the final loss", among: Corrected | None = None) -> str:
    """A sentence or two that the numbers bear out; each number names the pairs it rests on.

    Args:
        among: The comparison as one of several tests, if it is.

    Raises:
        TypeError: if ``comparison`` is none.
    """
    if not isinstance(comparison, PairedComparison):
        raise TypeError(
            f"comparison must be one of answers(...), such as answers(table)['final'], got {comparison!r:.200}"
        )
    kind, median = kind_of(comparison, among), comparison.median
    won = f"averaging won {comparison.wins} of {comparison.seeds}"
    over = f"over {over_pairs(comparison)}"
    rest = (
        f" {comparison.infinite} of the {comparison.seeds} pairs {'has' if comparison.infinite == 1 else 'have'} no "
        "finite gain: such pairs count as wins, losses or ties and in p, but not in the median."
        if comparison.infinite
        else ""
    )
    if math.isnan(median.low):
        have = "has" if comparison.pairs == 1 else "have"
        only = f"only {comparison.pairs} of the pairs {have} a finite gain, and " if comparison.infinite else ""
        return (
            f"Cannot tell from {counted(comparison.seeds, 'seed')} whether averaging changes {what}: {only}"
            f"{FEWEST_SEEDS} are the least; {won}."
        )
    if kind == "no difference shown" and median.low == median.high:
        return f"No difference shown for {what} {over}: {comparison.ties} of {comparison.seeds} tie; {won}.{rest}"
    numbers = f"{interval_in_words(median)}; Wilcoxon p {p_value(comparison.wilcoxon_p)}"
    if among is None:
        numbers += ", corrected for no other test"
    elif among.tests > 1 or not among.final:
        numbers += f", p {p_value(among.p)} corrected for {among.in_words()}"
    if kind in ("helps", "hurts"):
        return (
            f"Averaging {kind}: {what} is {'better' if kind == 'helps' else 'worse'} by "
            f"{percent(abs(median.estimate))} in the median {over} ({numbers}; {won}).{rest}"
        )
    found = f"{won}, and the median gain is {signed_percent(median.estimate)} ({numbers})"
    if kind == "cannot tell" and among is not None:
        return (
            f"Cannot tell from {counted(comparison.seeds, 'seed')} whether averaging changes {what}: even if it had "
            f"won every pair, or none, the corrected p would be {number(among.least, 2)}; {fewest_seeds(among.tests)} "
            f"seeds are the least for {among.tests} tests. Over {over_pairs(comparison)} {found}.{rest}"
        )
    if kind == "unclear":
        but = "the test finds a difference, but the interval holds 0"
        if not median.low <= 0 <= median.high:
            but = "the interval leaves out 0, but the test finds no difference"
        return f"Unclear for {what} {over}: {found}: {but}.{rest}"
    largest = percent(max(abs(median.low), abs(median.high)))
    return f"No difference larger than {largest} shown for {what} {over}: {found}.{rest}"


def interval_in_words(found: Interval) -> str:
    """The 95 % interval of an estimate, for brackets."""
    if math.isnan(found.low):
        return "too few finite pairs for an interval"
    if found.low == found.high:
        return "its 95 % interval is this value alone"
    low, high = signed_percent(found.low), signed_percent(found.high)
    return f"95 % interval {low} to {high}" if low != high else f"both ends of its 95 % interval are {low}"


def over_pairs(comparison: PairedComparison) -> str:
    """The pairs on which median and mean rest: "8 seeds", or "5 of 8 seeds"."""
    seeds = counted(comparison.seeds, "seed")
    return f"{comparison.pairs} of {seeds}" if comparison.infinite else seeds


def median_ends(values: Floats) -> tuple[Floats, Floats]:
    """The ends of the median's 95 % intervals over the last axis, which has at least :data:`FEWEST_SEEDS` values.

    They lie between order statistics (Hettmansperger and Sheather 1986).
    """
    n = values.shape[-1]
    k, share = _order_statistics(n)
    ordered = np.sort(values, axis=-1)
    low = (1 - share) * ordered[..., k - 1] + share * ordered[..., k]
    high = (1 - share) * ordered[..., n - k] + share * ordered[..., n - k - 1]
    return low, high


@cache
def _order_statistics(n: int) -> tuple[int, float]:
    """Where among ``n`` ordered values a 95 % interval of the median ends: at the k-th from each end, moved by a share
    towards the next one."""
    covered = 1 - 2 * scipy.stats.binom.cdf(np.arange(n // 2), n, 0.5)  # by the k-th value from both ends
    k = int(np.flatnonzero(covered >= LEVEL)[-1]) + 1
    rest = (covered[k - 1] - LEVEL) / (covered[k - 1] - covered[k]) if k < len(covered) else 0.0
    return k, float((n - k) * rest / (k + (n - 2 * k) * rest))


def mean_ends(values: Floats) -> tuple[Floats, Floats]:
    """The ends of the mean's 95 % intervals by Student's t, over the last axis, which has at least two values."""
    n = values.shape[-1]
    mean = values.mean(axis=-1)
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, n - 1) * values.std(axis=-1, ddof=1) / math.sqrt(n)
    return mean - half, mean + half


def _median(values: Floats) -> Interval:
    return _interval(values, np.median, median_ends)


def _mean(values: Floats) -> Interval:
    return _interval(values, np.mean, mean_ends)


def _interval(
    values: Floats, statistic: Callable[..., Any], ends: Callable[[Floats], tuple[Floats, Floats]]
) -> Interval:
    if len(values) < FEWEST_SEEDS:
        return Interval(float(statistic(values)) if len(values) else math.nan, math.nan, math.nan)
    if not np.ptp(values):
        return Interval(*[float(values[0])] * 3)
    low, high = ends(values)
    return Interval(float(statistic(values)), float(low), float(high))


def _bca(values: Floats, statistic: Callable[..., Any]) -> Interval:
    def ends(values: Floats) -> tuple[Any, Any]:
        low, high = _resampled(values, statistic, "BCa")
        if math.isnan(low):  # where most gains are equal, leaving one out changes no median: nothing tells the skew
            low, high = _resampled(values, statistic, "percentile")
        return low, high

    return _interval(values, statistic, ends)


def _resampled(values: Floats, statistic: Callable[..., Any], method: str) -> tuple[float, float]:
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        found = scipy.stats.bootstrap(
            (values,),
            statistic,
            confidence_level=LEVEL,
            n_resamples=_RESAMPLES,
            batch=1000,
            method=method,
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(found.low), float(found.high)


def _wilcoxon(values: Floats) -> float:
    """Wilcoxon's signed-rank p; pairs of which one value is not finite have the largest ranks."""
    if not values.any():
        return math.nan
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    ranked = np.where(np.isfinite(values), values, np.sign(values) * (2 * largest + 1))
    halves = np.rint(2 * scipy.stats.rankdata(np.abs(ranked))).astype(int)  # ties share a mean rank, maybe half a one
    different = ranked != 0
    if halves[different].sum() * different.sum() <= _ADDITIONS:
        return _exact_p(halves[different], ranked[different] > 0)
    return float(scipy.stats.wilcoxon(ranked, zero_method="pratt").pvalue)


def _exact_p(halves: NDArray[np.int64], wins: NDArray[np.bool_]) -> float:
    """The two-sided p of a sum of ranks, which are given in halves; SciPy's normal curve is far off where many tie.

    Counts, for each sum, the signs that give it: one rank more adds to each sum, or does not.
    """
    counts = np.ones(1)
    for rank in halves:
        nothing = np.zeros(rank)
        counts = np.concatenate([counts, nothing]) + np.concatenate([nothing, counts])
    won = int(halves[wins].sum())
    tail = min(counts[: won + 1].sum(), counts[won:].sum())
    return min(1.0, float(2 * tail / counts.sum()))
