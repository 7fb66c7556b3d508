import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore.averaging.recovery import LEAST_RATE, MOST_RATE, Rate, inner_products, reach, recovered_rate
from emacore.averaging.weights import stretch_weights


@given(st.floats(1e-6, 30), st.integers(1, 300))
def test_reach_is_the_sum_it_stands_for(rate, calls):
    decays = np.full(calls, math.exp(-rate / calls))
    shares, _ = stretch_weights(decays)
    assert reach(rate, calls) == pytest.approx(shares @ np.arange(1, calls + 1) / calls, rel=1e-6)


def path(kind, steps, weights, rng):
    """Raw weights of shape (steps, weights): what they do between two files is what nobody sees."""
    walk = np.cumsum(rng.normal(size=(steps, weights)), axis=0)
    jitter = rng.normal(size=(steps, weights))
    time = np.arange(steps)[:, None]
    return {
        "walk": walk,
        "line": time * rng.normal(size=weights) + 3 * walk / math.sqrt(steps),
        "slowing": -50 * np.exp(-time / (steps * rng.uniform(0.2, 2, weights))) + walk / 10,
        "jitter": 3 * jitter - 10 * np.exp(-time / steps) * rng.normal(size=weights),
        "jittering walk": walk + 5 * jitter,
    }[kind]


def recovered(raw, decay, files, third=True, groups=24):
    averages, average = {}, raw[0]
    for step, value in enumerate(raw):
        average = decay * average + (1 - decay) * value
        averages[step] = average
    begin, end, last = files
    cuts = np.array_split(np.arange(raw.shape[1]), groups)
    products = [
        inner_products(
            raw[begin][cut],
            raw[end][cut],
            averages[begin][cut],
            averages[end][cut],
            raw[last][cut] if third else None,
        )
        for cut in cuts
    ]
    return recovered_rate(products, [len(cut) for cut in cuts], end - begin)


@pytest.mark.parametrize("kind", ["walk", "line", "slowing", "jitter", "jittering walk"])
@pytest.mark.parametrize("third", [True, False])
def test_the_interval_holds_the_decay_whatever_the_weights_did_between_the_files(kind, third):
    for seed, decay in enumerate((0.9, 0.98, 0.998, 0.9999)):
        raw = path(kind, 500, 600, np.random.default_rng(seed))
        for files in ((300, 350, 400), (350, 499, 200)):
            calls = files[1] - files[0]
            found = recovered(raw, decay, files, third)
            # What assumptions of independence leave over, they leave over up to a few percent.
            assert found.allows(-calls * math.log(decay), 1.1), (decay, files, found)


def test_within_a_memory_of_a_plain_path_it_is_narrow():
    raw = path("walk", 700, 4000, np.random.default_rng(1))
    for decay, most in ((0.99, 0.2), (0.998, 0.1), (0.9995, 0.1)):
        found = recovered(raw, decay, (600, 650, 699))
        assert found.has_low
        assert found.has_high
        low, best, high = found.decays(50)
        assert low <= decay <= high
        assert low < best < high
        assert high - low < most * 2 * (1 - decay)
        assert best == pytest.approx(decay, abs=most / 2 * (1 - decay))


def test_a_short_memory_has_one_end_only_and_no_movement_none():
    raw = path("walk", 700, 1500, np.random.default_rng(1))
    short = recovered(raw, 0.8, (400, 600, 699))
    assert short.has_low
    assert not short.has_high
    assert short.decays(200)[0] == 0
    still = recovered(np.ones((700, 100)), 0.99, (400, 600, 699))
    assert (still.low, still.high) == (LEAST_RATE, MOST_RATE)
    assert still.decays(200)[::2] == (0, 1)
    assert still.allows(1e-9)
    assert still.allows(1e9)


@pytest.mark.parametrize("moved", [-1, 0, 3])
def test_an_average_that_is_not_made_of_these_weights_says_nothing(moved):
    raw = path("walk", 500, 600, np.random.default_rng(0))
    begin, end, last = raw[300], raw[350], raw[400]
    after = begin + moved * (end - begin)
    cuts = np.array_split(np.arange(600), 24)
    products = [inner_products(begin[c], end[c], begin[c], after[c], last[c]) for c in cuts]
    found = recovered_rate(products, [len(c) for c in cuts], 50)
    assert (found.low, found.high) == (LEAST_RATE, MOST_RATE)


@pytest.mark.parametrize("unit", [1e-6, 3.0, 1e6])
def test_units_do_not_matter(unit):
    raw = path("jittering walk", 120, 300, np.random.default_rng(1))
    one, other = (recovered(scale * raw, 0.99, (60, 90, 110)) for scale in (1.0, unit))
    assert other == pytest.approx(one, rel=1e-3)


def test_rounding_of_what_is_stored_widens_the_interval_instead_of_moving_it():
    rng = np.random.default_rng(3)
    raw = 100 + path("walk", 300, 3000, rng) / 10
    average, kept = raw[0], []
    for value in raw:
        average = 0.99 * average + 0.01 * value
        kept.append(np.round(average))
    cuts = np.array_split(np.arange(3000), 24)
    products = [inner_products(raw[200][c], raw[240][c], kept[200][c], kept[240][c]) for c in cuts]
    counts = [len(cut) for cut in cuts]
    plain = recovered_rate(products, counts, 40)
    aware = recovered_rate(products, counts, 40, [len(cut) / 12 for cut in cuts])
    truth = -40 * math.log(0.99)
    assert not plain.allows(truth)
    assert aware.allows(truth)
    assert aware.low <= plain.low < plain.high <= aware.high


def test_what_an_interval_allows():
    rate = Rate(0.1, 0.2, 0.4)
    assert [rate.allows(one) for one in (0.09, 0.1, 0.4, 0.41)] == [False, True, True, False]
    assert rate.allows(0.09, 1.15)
    assert rate.decays(10) == pytest.approx((math.exp(-0.04), math.exp(-0.02), math.exp(-0.01)))
