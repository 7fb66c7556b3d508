import itertools
import math
import re
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from emacore.experiments import statistics
from emacore.experiments.statistics import (
    BCA,
    CLASSICAL,
    KINDS,
    Corrected,
    corrected,
    fewest_seeds,
    gains,
    holm,
    kind_of,
    known_gains,
    p_values_in_words,
    paired_comparison,
    seeds_in_words,
    seeds_needed,
    verdict,
)
from emacore.experiments.statistics import _mean as mean_interval
from emacore.experiments.statistics import _median as median_interval
from emacore.formatting import counted, p_value
from tests.experiments.conftest import INF, NAN, drawn_pairs, no_empty_words


def test_gains_are_above_zero_where_averaging_is_better():
    np.testing.assert_allclose(gains([2.0, 1.0, 4.0], [1.0, 2.0, 4.0]), [0.5, -1.0, 0.0])
    np.testing.assert_allclose(gains([0.5, -0.5], [0.75, -0.25], higher_is_better=True), [0.5, 0.5])
    assert gains([NAN, 1.0, INF, NAN, 0.0], [1.0, NAN, 1.0, INF, 0.0]).tolist() == [INF, -INF, INF, 0.0, 0.0]
    with pytest.raises(ValueError, match="same shape"):
        gains([1.0], [1.0, 2.0])


def test_a_comparison_by_hand():
    original = np.full(10, 1.0)
    averaged = 1 - np.array([0.1, 0.2, 0.3, 0.02, 0.04, 0.06, 0.08, 0.12, -0.05, 0.0])
    found = paired_comparison(original, averaged, wanted_gain=0.099)
    assert (found.seeds, found.wins, found.losses, found.ties, found.infinite) == (10, 8, 1, 1, 0)
    assert found.median.estimate == pytest.approx(0.07)
    assert found.mean.estimate == pytest.approx(0.087)
    assert found.sign_p == pytest.approx(2 * (1 + 9) / 2**9)
    assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(1 - averaged, zero_method="pratt").pvalue)
    assert found.chance.estimate == 0.4
    assert found.chance.low == pytest.approx(stats.beta.ppf(0.025, 4, 7))
    assert found.chance.high == pytest.approx(stats.beta.ppf(0.975, 5, 6))


def test_the_medians_interval_lies_between_order_statistics():
    values = np.arange(1.0, 9.0)
    interval = median_interval(values)
    # The outermost cover 99.2 %, the next 93.0 %: the interval lies between, nearer to the latter.
    assert 1.5 < interval.low < 2
    assert interval.low - 1 == pytest.approx(8 - interval.high)
    assert math.isnan(median_interval(values[:5]).low)


@pytest.mark.parametrize("seeds", [6, 7, 8, 10, 16, 31, 32, 100, 256])
def test_the_medians_interval_is_interpolated_as_hettmansperger_and_sheather_say(seeds):
    def covered(k):
        """By the k-th values from both ends, exactly."""
        return 1 - Fraction(2 * sum(math.comb(seeds, i) for i in range(k)), 2**seeds)

    k = max(k for k in range(1, seeds // 2) if covered(k) >= Fraction(95, 100))
    rest = (covered(k) - Fraction(95, 100)) / (covered(k) - covered(k + 1))
    share = float((seeds - k) * rest / (k + (seeds - 2 * k) * rest))
    values = np.random.default_rng(seeds).standard_t(3, seeds)
    ordered = np.sort(values)
    interval = median_interval(values)
    assert interval.low == pytest.approx(ordered[k - 1] + share * (ordered[k] - ordered[k - 1]))
    assert interval.high == pytest.approx(ordered[-k] - share * (ordered[-k] - ordered[-k - 1]))
    if seeds == 8:  # worked out by hand: 0.675 of the way in coverage is 4.725 / 5.05 of that in values
        assert share == pytest.approx(0.935644, abs=1e-6)


def test_the_medians_interval_covers_as_exactly_as_it_says():
    studies = np.random.default_rng(8).normal(size=(5000, 8))
    covered = [interval.low <= 0 <= interval.high for interval in map(median_interval, studies)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.01)  # without interpolation it is 0.93 or 0.992


NOT_FINITE = {
    "one won": [INF, -1, -2, -3, -4, -5, -6],
    "one lost": [-INF, 1, 2, 3, 4, 5, 6],
    "two won": [INF, INF, -0.1, -0.2, -0.3, -0.4, 0.5],
    "won and lost": [INF, -INF, 0.1, 0.2, 0.3, 0.4, 0.5],
    "among large ones": [INF, -1e9, -2e9, 3e9, -4e9, -5e9, -6e9],
    "among ties": [INF, 0, 0, 0, 0, 0, -1],
    "alone": [INF] * 7,
    "all lost": [-INF] * 7,
}


@pytest.mark.parametrize("found", NOT_FINITE.values(), ids=NOT_FINITE)
def test_pairs_that_are_not_finite_have_the_largest_ranks_on_their_side(found):
    original = [NAN if gain == INF else 1.0 for gain in found]
    averaged = [NAN if gain == -INF else 1.0 - (gain if math.isfinite(gain) else 0) for gain in found]
    # Wilcoxon's test looks at ranks only, and Pratt's at those above the zeros'.
    ranks = np.sign(found) * stats.rankdata(np.abs(found))
    expected = stats.wilcoxon(ranks, zero_method="pratt").pvalue
    assert paired_comparison(original, averaged).wilcoxon_p == pytest.approx(expected)


def test_a_pair_without_numbers_has_no_gain_to_show_though_it_is_a_tie():
    one, other = [2.0, NAN, 1.0, INF, INF, NAN, 2.0], [1.0, 1.0, INF, INF, NAN, NAN, 2.0]
    assert gains(one, other).tolist() == [0.5, INF, -INF, 0, 0, 0, 0]
    np.testing.assert_array_equal(known_gains(one, other), [0.5, INF, -INF, NAN, NAN, NAN, 0])


def test_pairs_that_are_not_finite_decide_alone_too():
    won = paired_comparison([NAN] * 8, [1.0] * 8)
    assert (won.wins, won.wilcoxon_p) == (8, 2 / 2**8)
    lost = paired_comparison([1.0] * 8, [INF] * 8)
    assert (lost.losses, lost.wilcoxon_p) == (8, 2 / 2**8)
    assert math.isnan(paired_comparison([NAN] * 8, [INF] * 8).wilcoxon_p)


@settings(max_examples=20)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6).filter(any))
def test_wilcoxons_p_of_tied_and_equal_pairs_is_scipys(gains):
    found = paired_comparison([4.0] * len(gains), [4.0 - gain for gain in gains]).wilcoxon_p
    assert found == pytest.approx(stats.wilcoxon(np.array(gains, float), zero_method="pratt").pvalue)


@given(st.integers(0, 250), st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_wilcoxons_p_is_the_share_of_all_signs_however_many_pairs_are_equal(equal, differences):
    different = [one for one in differences if one]
    assume(different)
    values = np.array([0.0] * (equal + len(differences) - len(different)) + different)
    ranks = stats.rankdata(np.abs(values))[values != 0]
    sums = np.array(list(itertools.product([0, 1], repeat=len(different)))) @ ranks
    won = ranks[np.array(different) > 0].sum()
    expected = min(1, 2 * min((sums <= won).mean(), (sums >= won).mean()))
    found = paired_comparison(np.full(len(values), 9.0), 9 - values)
    assert found.wilcoxon_p == pytest.approx(expected)
    assert found.wilcoxon_p >= min(1, 2 / 2 ** len(different))


@pytest.mark.parametrize("equal", [0, 150])
def test_of_more_pairs_wilcoxons_p_is_near_that_of_all_signs(monkeypatch, equal):
    values = np.concatenate([np.zeros(equal), np.random.default_rng(5).normal(0.05, 1, 200)])
    near = statistics._wilcoxon(values)
    monkeypatch.setattr(statistics, "_ADDITIONS", 10**9)
    exact = statistics._wilcoxon(values)
    assert 0.01 < exact < 0.5
    assert exact != near == pytest.approx(exact, abs=0.003)


def test_the_means_interval_is_students():
    values = np.random.default_rng(3).exponential(size=11)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_the_bootstraps_intervals_are_scipys_and_the_same_at_each_call():
    values = np.random.default_rng(1).lognormal(0, 0.5, 40) - 1
    found = paired_comparison(np.ones(40), 1 - values, intervals=BCA)
    for interval, statistic in ((found.median, np.median), (found.mean, np.mean)):
        theirs = stats.bootstrap((values,), statistic, method="BCa", n_resamples=20_000, rng=2).confidence_interval
        assert interval.estimate == pytest.approx(statistic(values))
        assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)
    assert found == paired_comparison(np.ones(40), 1 - values, intervals=BCA)
    assert found.median != paired_comparison(np.ones(40), 1 - values).median
    with pytest.raises(ValueError, match="intervals must be one of 'order statistics and t', 'BCa bootstrap'"):
        paired_comparison([1.0], [1.0], intervals="guess")


@pytest.mark.parametrize("gain", [[0.0] * 8 + [0.3], [0.1] * 9, [0.1] * 5])
def test_the_bootstrap_bears_ties_and_few_seeds(gain):
    found = paired_comparison(np.ones(len(gain)), 1 - np.array(gain), intervals=BCA)
    assert found.median.estimate == pytest.approx(gain[0])
    if len(gain) < 6:
        assert math.isnan(found.median.low)
    else:
        assert found.median.low == pytest.approx(gain[0])
        assert found.mean.low <= np.mean(gain) + 1e-12 <= found.mean.high + 2e-12


@pytest.mark.parametrize("effect", [0.4, 1.0])
def test_the_seeds_needed_have_the_power_they_promise(effect):
    rng = np.random.default_rng(0)
    needed = seeds_needed(stats.zscore(rng.normal(size=50), ddof=1) + effect)
    studies = rng.normal(effect, 1, (4000, needed))
    power = (stats.ttest_1samp(studies, 0, axis=1).pvalue < 0.05).mean()
    assert power == pytest.approx(0.8, abs=0.03 + 0.05 / effect * (needed < 12))
    assert seeds_needed([1.0]) is None
    assert seeds_needed([1.0, -1.0]) is None
    assert seeds_needed([1.0, 1.0]) == 2
    assert seeds_needed([1.0, -0.9999]) == 1_000_000


def test_holm_by_hand_and_by_what_it_promises():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, NAN, 0.7]).tolist()[::2] == [1.0, 1.0]
    assert math.isnan(holm([0.6, NAN])[1])
    rng = np.random.default_rng(0)
    families = np.array([holm(row).min() < 0.05 for row in rng.random((4000, 10))])
    assert families.mean() == pytest.approx(0.05, abs=0.015)


def test_a_corrected_p_stays_or_grows_with_each_further_test():
    rng = np.random.default_rng(1)
    for _ in range(200):
        p_values = rng.random(rng.integers(1, 12)) ** 4
        so_far = holm(p_values[:-1])
        assert (holm(p_values)[:-1] >= so_far).all()


def test_it_is_told_beside_a_p_value_what_it_is_corrected_for():
    rng = np.random.default_rng(2)
    one, other = (paired_comparison(np.ones(12), 1 - 0.1 * rng.random(12)) for _ in range(2))
    assert f"Wilcoxon p {p_value(one.wilcoxon_p)}, corrected for no other test; averaging" in verdict(one)
    among = corrected([one, other])[0]
    assert f", p {p_value(among.p)} corrected for 2 tests; averaging" in verdict(one, among=among)
    early = corrected([one], final=False)[0]
    assert "corrected for the 1 test so far, with more to come; averaging" in verdict(one, among=early)
    assert "Only the 2 tests so far are counted" in p_values_in_words(2, final=False)
    assert "so far" not in p_values_in_words(2)
    assert "at most one test here so far" in p_values_in_words(1, final=False)


@pytest.mark.parametrize(
    ("gain", "kind", "start"),
    [
        ([0.2, 0.3, 0.1, 0.25, 0.2, 0.15, 0.3, 0.2], "helps", "Averaging helps: the final loss is better by 20 %"),
        ([-0.2, -0.3, -0.1, -0.2, -0.2, -0.1, -0.3, -0.2], "hurts", "Averaging hurts: the final loss is worse by 20 %"),
        ([-0.2, 0.3, -0.1, 0.2, -0.2, 0.1, -0.3, 0.2], "no difference shown", "No difference larger than"),
        ([0.2, 0.3, 0.1, 0.2, 0.2], "cannot tell", "Cannot tell from 5 seeds whether averaging changes the final loss"),
        (
            [*np.arange(1, 11) / 50, -0.9, -0.8],
            "unclear",
            "Unclear for the final loss over 12 seeds: averaging won 10 of",
        ),
        (
            [0.0] * 14 + [0.2],
            "no difference shown",
            "No difference shown for the final loss over 15 seeds: 14 of 15 tie",
        ),
    ],
)
def test_the_verdicts_words_follow_the_numbers(gain, kind, start):
    found = paired_comparison(np.ones(len(gain)), 1 - np.array(gain))
    assert kind_of(found) == kind
    assert verdict(found).startswith(start)
    if kind == "helps":
        assert kind_of(found, Corrected(0.06, 3, 0.01)) == "unclear"
        assert kind_of(found, Corrected(0.16, 20, 0.16)) == "cannot tell"


NUMBER = r"([+-]?[\d,.]+(?:e[+-]\d+)?) %"


def read(words, pattern):
    """The numbers, in percent, that a sentence has in a place."""
    return [float(text.replace(",", "")) for text in re.search(pattern, words).groups()]


@pytest.mark.parametrize("intervals", [CLASSICAL, BCA])
def test_words_never_contradict_the_numbers(intervals):
    rng = np.random.default_rng(0)
    kinds = Counter()
    for _ in range(300 if intervals == CLASSICAL else 30):
        found = paired_comparison(*drawn_pairs(rng), intervals=intervals)
        kind, words = kind_of(found), verdict(found)
        kinds[kind] += 1
        no_empty_words(words)
        assert words.split()[0] == {"cannot tell": "Cannot", "unclear": "Unclear"}.get(kind, words.split()[0])
        assert f"averaging won {found.wins} of {found.seeds}" in words
        assert found.pairs == found.seeds - found.infinite
        if kind == "cannot tell":
            assert f"from {counted(found.seeds, 'seed')} whether" in words
            assert found.pairs < 6
            assert not found.infinite or f"only {found.pairs} of the pairs" in words
            continue
        assert f"over {found.pairs} of {counted(found.seeds, 'seed')}" in words or not found.infinite
        if "tie;" in words:
            assert found.median.low == found.median.estimate == found.median.high == 0
            continue
        if found.median.low == found.median.high:
            assert "interval is this value alone" in words
            continue
        if "both ends of its" in words:
            low, high = 2 * read(words, f"interval are {NUMBER}")
        else:
            low, high = read(words, f"interval {NUMBER} to {NUMBER}")
            assert low != high
        assert [low, high] == pytest.approx([100 * found.median.low, 100 * found.median.high], rel=6e-3)
        aside = low > 0 or high < 0
        assert aside == (kind in ("helps", "hurts")) or kind == "unclear"
        if kind == "no difference shown":
            assert read(words, f"larger than {NUMBER}") == pytest.approx([max(abs(low), abs(high))], rel=1e-9)
        elif kind == "unclear":
            assert aside == ("leaves out 0" in words) == (found.wilcoxon_p >= 0.05)
        else:
            assert found.wilcoxon_p < 0.05
            assert (low > 0) == (kind == "helps") == ("is better by" in words)
            assert read(words, f"(?:better|worse) by {NUMBER}")[0] == pytest.approx(
                abs(100 * found.median.estimate), 6e-3
            )
    assert intervals == BCA or (set(kinds) == set(KINDS) and min(kinds.values()) > 9), kinds


def test_words_never_contradict_the_numbers_of_many_tests():
    rng = np.random.default_rng(5)
    kinds = Counter()
    for _ in range(16):
        comparisons = [paired_comparison(*drawn_pairs(rng)) for _ in range(rng.integers(1, 30))]
        p_values = np.array([one.wilcoxon_p for one in comparisons])
        for n, (one, among, adjusted) in enumerate(
            zip(comparisons, corrected(comparisons), holm(p_values), strict=True)
        ):
            kind, words = kind_of(one, among), verdict(one, "the final loss", among)
            kinds[kind] += 1
            no_empty_words(words)
            assert among.p == pytest.approx(adjusted, nan_ok=True)
            assert among.tests == np.isfinite(p_values).sum()
            assert f"averaging won {one.wins} of {one.seeds}" in words
            start = {
                "helps": "Averaging helps",
                "hurts": "Averaging hurts",
                "unclear": "Unclear",
                "cannot tell": "Cannot",
            }
            assert words.startswith(start.get(kind, "No difference"))
            if "Wilcoxon p" in words and among.tests > 1:
                assert f"corrected for {among.tests} tests" in words
            if kind in ("helps", "hurts"):
                assert adjusted < 0.05
                assert kind_of(one) == kind, "a correction takes claims away and makes none"
            elif kind == "no difference shown":
                assert one.median.low <= 0 <= one.median.high
                assert among.least < 0.05 or one.wins + one.losses == 0
            elif kind == "cannot tell" and one.pairs >= 6:
                assert f"the corrected p would be {among.least:.2g}" in words
                assert among.least >= 0.05
                won = paired_comparison(np.full(one.seeds, 2.0), np.linspace(1, 1.5, one.seeds))
                assert corrected([*comparisons[:n], won, *comparisons[n + 1 :]])[n].p == pytest.approx(among.least)
                assert one.seeds < fewest_seeds(among.tests)
    assert set(kinds) == set(KINDS)


@pytest.mark.parametrize("tests", [1, 2, 3, 4, 12, 20, 21, 100])
def test_so_many_tests_need_so_many_seeds(tests):
    needed = fewest_seeds(tests)
    assert needed == math.ceil(math.log2(2 * tests / 0.05))
    for seeds, kind in ((needed, "helps"), (needed - 1, "cannot tell")):
        clear = [paired_comparison(np.ones(seeds), 0.9 - np.arange(seeds) / 1000)] * tests  # the best there can be
        assert {kind_of(one, among) for one, among in zip(clear, corrected(clear), strict=True)} == {kind}
        said = seeds_in_words(seeds, tests)
        assert ("cannot show anything" in said) == (kind == "cannot tell")
        assert f" {needed} seeds" in said
        assert ("one test" in said.lower()) == (tests == 1)
        assert ("Holm" in said) == (tests > 1 and kind == "cannot tell")
    assert fewest_seeds(20) == 10


@pytest.mark.parametrize("intervals", [CLASSICAL, BCA])
@pytest.mark.parametrize("pairs", range(6, 31))
def test_gains_that_are_all_the_same_have_an_interval_of_this_gain_alone(pairs, intervals):
    found = paired_comparison(np.ones(pairs), np.full(pairs, 0.7), intervals=intervals)
    for interval in (found.median, found.mean):
        assert interval.low == interval.estimate == interval.high == 1 - 0.7


@pytest.mark.parametrize("intervals", [CLASSICAL, BCA])
def test_where_no_gain_is_finite_there_is_no_estimate(intervals):
    found = paired_comparison([NAN] * 8, [1.0] * 8, intervals=intervals)
    assert np.isnan([found.median.estimate, found.median.low, found.mean.estimate, found.mean.high]).all()


def test_ties_and_diverged_seeds_are_told_and_never_dropped():
    ties = paired_comparison(np.ones(8), np.ones(8))
    assert (ties.wins, ties.ties) == (0, 8)
    assert math.isnan(ties.sign_p)
    assert kind_of(ties) == "no difference shown"
    assert "8 of 8 tie" in verdict(ties)
    diverged = paired_comparison([NAN] * 3 + [1.0] * 7, [0.5] * 2 + [NAN] + [0.9] * 7)
    assert (diverged.seeds, diverged.wins, diverged.ties, diverged.infinite) == (10, 9, 1, 3)
    assert diverged.mean.estimate == pytest.approx(0.1)
    assert "in the median over 7 of 10 seeds" in verdict(diverged)
    assert "3 of the 10 pairs have no finite gain" in verdict(diverged)
    lost = paired_comparison([NAN] * 8, [NAN] * 8)
    assert kind_of(lost) == "cannot tell"
    few = paired_comparison([NAN] * 3 + [1.0] * 5, [NAN] * 3 + [0.9] * 5)
    assert verdict(few) == (
        "Cannot tell from 8 seeds whether averaging changes the final loss: only 5 of the pairs have a finite gain, "
        "and 6 are the least; averaging won 5 of 8."
    )
    zero = paired_comparison([0.0] * 4 + [1.0] * 8, [1.0] * 4 + [0.9] * 8)
    assert (zero.infinite, zero.pairs, zero.losses) == (4, 8, 4)
    assert "over 8 of 12 seeds" in verdict(zero)
    with pytest.raises(ValueError, match="no seeds"):
        paired_comparison([], [])


def test_a_comparison_is_kept_for_the_next_click_unless_it_is_large():
    rng = np.random.default_rng(7)
    for seeds, kept in ((20, 1), (600, 0)):
        original, averaged = rng.uniform(1, 2, (2, seeds))
        before = statistics._compared.cache_info().currsize
        first = statistics.paired_comparison(original, averaged)
        assert statistics._compared.cache_info().currsize - before == kept
        assert statistics.paired_comparison(original.copy(), averaged) == first
        other = statistics.paired_comparison(original, averaged, wanted_gain=0.2)
        assert other != first, "another question is another comparison"


def test_an_interval_whose_ends_look_the_same_is_told_once():
    original = np.linspace(1.0, 2.0, 8)
    found = paired_comparison(original, original * (0.9 + 1e-9 * np.arange(8)))
    assert "both ends of its 95 % interval are +10 %" in verdict(found)
