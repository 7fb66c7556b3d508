import numpy as np
import pytest

from emacore.experiments.coverage import NARROW, SHAPES, SHIPPED, coverage, in_words, shipped
from emacore.experiments.statistics import BCA, CLASSICAL, paired_comparison


def held(**case):
    """The rows of the shipped result for a case."""
    table = shipped()
    for name, value in case.items():
        table = table[table[name] == value]
    return table.set_index("shape")["held"]


def comparison(seeds, intervals=CLASSICAL, infinite=0):
    averaged = 1 - np.linspace(0.1, 0.2, seeds)
    averaged[:infinite] = np.nan
    return paired_comparison(np.ones(seeds), averaged, intervals=intervals)


def test_the_shapes_have_the_means_and_medians_that_are_counted_as_true():
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        values = shape.draw(rng, (2_000_000,))
        assert np.median(values) == pytest.approx(shape.median, abs=0.005), name
        assert np.mean(values) == pytest.approx(shape.mean, abs=0.05 if "t " in name else 0.01), name


@pytest.mark.parametrize("seeds", [6, 16, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_shipped_result_is_what_a_simulation_shows(shape, seeds):
    found = coverage(shape, CLASSICAL, seeds, 20_000, np.random.default_rng(7))
    for statistic, share in found.items():
        expected = held(statistic=statistic, intervals=CLASSICAL, seeds=seeds)[shape]
        assert share == pytest.approx(expected, abs=4 * np.sqrt(0.25 * 0.25 / 20_000)), statistic


@pytest.mark.parametrize("shape", ["normal", "lognormal with sigma 1"])
def test_the_shipped_result_of_the_bootstrap_too(shape):
    found = coverage(shape, BCA, 8, 1000, np.random.default_rng(7))
    for statistic, share in found.items():
        assert share == pytest.approx(held(statistic=statistic, intervals=BCA, seeds=8)[shape], abs=0.05)


def test_the_medians_interval_holds_whatever_the_shape_and_the_means_does_not():
    table = shipped()
    classical = table[table["intervals"] == CLASSICAL]
    assert (classical["studies"] >= 20_000).all()
    median, mean = (classical[classical["statistic"] == name] for name in ("median", "mean"))
    assert median["held"].between(0.935, 0.965).all()
    assert held(statistic="mean", intervals=CLASSICAL, seeds=6)["exponential"] == pytest.approx(0.883, abs=0.01)
    assert held(statistic="mean", intervals=CLASSICAL, seeds=16)["exponential"] == pytest.approx(0.913, abs=0.01)
    assert mean["held"].min() < 0.84
    assert SHIPPED.read_text().startswith("# python -m benchmarks.coverage, 20")


@pytest.mark.parametrize("intervals", [CLASSICAL, BCA])
@pytest.mark.parametrize("pairs", [6, 7, 8, 9, 16, 31, 33, 200, 1000])
def test_the_words_are_those_of_the_shipped_result(intervals, pairs):
    table = shipped()
    seeds = table[table["intervals"] == intervals]["seeds"]
    fewer = (seeds <= pairs).any()
    simulated = seeds[seeds <= pairs].max() if fewer else seeds.min()
    said = in_words(comparison(pairs + 2, intervals, infinite=2))
    which = f"the largest number up to {pairs}" if fewer else "the smallest number"
    instead = "" if simulated == pairs else f" ({which} that was simulated)"
    assert f"simulated studies of {simulated} seeds{instead} for each" in said
    assert said.index("the median held") < said.index("that of the mean")
    for statistic, words in (("median", "the median held the truth in"), ("mean", "that of the mean in")):
        shares = 100 * held(statistic=statistic, intervals=intervals, seeds=simulated)
        assert f"{words} {shares.min():.1f} to {shares.max():.1f} %" in said
        narrow = {"median": "the median's is too narrow", "mean": "The mean's is too narrow"}[statistic]
        assert (narrow in said) == (shares.min() < 100 * NARROW)
        if statistic == "mean" and narrow in said:
            own = table[(table["intervals"] == intervals) & (table["seeds"] == simulated)]
            worst = own[own["statistic"] == "mean"].sort_values("held")["shape"].iloc[0]
            assert f"most for gains that are {worst}: go by the median" in said
    assert in_words(comparison(5)) == "95 % intervals need 6 finite pairs."
