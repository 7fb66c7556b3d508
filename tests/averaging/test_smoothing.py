"""Each way to smooth, against its rule written out, and what is said of it against what it does."""

import math

import numpy as np
import pandas as pd
import pytest

from emacore.averaging.families import InversePower
from emacore.averaging.smoothing import WAYS, Settled, Smoothing, moving_average_cutoff
from emacore.averaging.trackers import tensorboard_decays, wandb_decays
from emacore.averaging.weights import average

VALUES = np.random.default_rng(0).standard_normal(60) + 3
STEPS = np.cumsum(np.random.default_rng(1).integers(1, 40, 60)).astype(float)


def zero(values):
    found, last = [], 0.0
    for value in values:
        last = 0.9 * last + 0.1 * value
        found.append(last)
    return found


RULES = {
    ("tensorboard", 0.6): average(VALUES, tensorboard_decays(0.6, 60)),
    ("wandb", 0.6): average(VALUES, wandb_decays(STEPS, 0.6, x_range=5000.0)),
    ("pandas", 30.0): pd.Series(VALUES)
    .ewm(halflife=pd.Timedelta(seconds=30), times=pd.Timestamp("2026-01-01") + pd.to_timedelta(STEPS, unit="s"))
    .mean(),
    ("first", 0.9): pd.Series(VALUES).ewm(alpha=0.1, adjust=False).mean(),
    ("zero", 0.9): zero(VALUES),
    ("moving-average", 7.0): pd.Series(VALUES).rolling(7, min_periods=1).mean(),
}


@pytest.mark.parametrize(("way", "amount"), RULES)
def test_each_way_is_its_rule_and_what_is_not_finite_spoils_nothing(way, amount):
    smoothing = Smoothing(way, amount)
    expected = np.asarray(RULES[way, amount])
    np.testing.assert_allclose(smoothing.smooth(VALUES, STEPS, 5000.0), expected, rtol=1e-10)
    places = np.array([0, 5, 5, 40, 60])
    broken = np.insert(VALUES, places, [np.nan, np.inf, -np.inf, np.nan, np.inf])
    found = smoothing.smooth(broken, np.insert(STEPS, places, 0.0), 5000.0)
    np.testing.assert_allclose(found[np.isfinite(broken)], expected, rtol=1e-10)
    np.testing.assert_array_equal(found[~np.isfinite(broken)], broken[~np.isfinite(broken)])


def test_every_way_is_tried():
    assert {way for way, _ in RULES} == set(WAYS)
    for name, way in WAYS.items():
        assert Smoothing(name, way.default).smooth([], []).shape == (0,)
        assert Smoothing(name, way.low).by_distance == way.by_distance


def test_of_an_average_that_never_moves_nothing_passes():
    found = Smoothing("first", 1.0).settled(np.arange(9.0))
    assert found == Settled(1.0, 1.0, math.inf, math.inf, 0.0, 0.0)


@pytest.mark.parametrize(
    ("way", "amount"),
    [("tensorboard", 0.8), ("wandb", 0.9), ("pandas", 35.0), ("first", 0.7), ("zero", 0.7), ("moving-average", 9.0)],
)
def test_the_figures_are_those_of_what_comes_out(way, amount):
    """Measured on even steps 7 apart: the lag of a ramp, one value's answer, a wave at the cut-off, noise."""
    steps = 7.0 * np.arange(40_000)
    smoothing, span = Smoothing(way, amount), 7000.0
    settled = smoothing.settled(steps, span)
    assert settled.distance == 7
    late = (steps - smoothing.smooth(steps, steps, span))[-1]
    assert settled.lag == pytest.approx(late, rel=1e-6)
    wave = smoothing.smooth(np.sin(2 * np.pi * settled.cutoff * steps), steps, span)[20_000:]
    assert np.abs(wave).max() == pytest.approx(math.sqrt(0.5), rel=1e-2)
    noise = smoothing.smooth(np.random.default_rng(0).standard_normal(40_000), steps, span)[1000:]
    assert noise.std() == pytest.approx(settled.noise, rel=0.1)
    spike = np.zeros(40_000)
    spike[30_000] = 1.0
    answer = smoothing.smooth(spike, steps, span)[30_000:]
    table = smoothing.weight_table(settled)
    places = np.round(table["age"] / 7).astype(int)
    np.testing.assert_allclose(table["weight"], answer[places], atol=1e-9)
    np.testing.assert_allclose(table["answer"], np.cumsum(answer)[places], atol=1e-8)
    if way != "moving-average":
        half = round(settled.half_life / 7)
        assert answer[half] / answer[0] == pytest.approx(0.5 ** (7 * half / settled.half_life), rel=1e-6)
    gains = smoothing.gain_table(settled)
    turns = np.exp(-2j * np.pi * gains["frequency"][:, None] * steps[None, :400])
    np.testing.assert_allclose(gains["gain"], np.abs(turns @ answer[:400]), atol=1e-6)
    assert gains["frequency"][-1] == pytest.approx(0.5 / 7)


@pytest.mark.parametrize(
    ("way", "amount"),
    [("tensorboard", 0.6), ("pandas", 1e12), ("first", 0.9999999), ("moving-average", 10.0), ("moving-average", 1e7)],
)
def test_an_answer_is_seen_whole_however_long_the_memory(way, amount):
    smoothing = Smoothing(way, amount)
    settled = smoothing.settled(np.arange(100.0))
    table = smoothing.weight_table(settled)
    ages = np.linspace(0, table["age"][-1], 100_000).round()
    if way == "moving-average":
        ages = np.union1d(ages, [amount - 1, amount])
        weight, answer = np.where(ages < amount, 1 / amount, 0), np.minimum((ages + 1) / amount, 1)
    else:
        assert table["age"][-1] > 2 * settled.half_life
        weight, answer = (1 - settled.decay) * settled.decay**ages, 1 - settled.decay ** (ages + 1)
    for name, truth in {"weight": weight, "answer": answer}.items():
        drawn = np.interp(ages, table["age"], table[name])
        np.testing.assert_allclose(drawn, truth, atol=0.005 * truth.max())


def test_a_schedule_has_the_figures_of_its_last_decay():
    schedule = InversePower(0.99, update_after_step=5, update_every=1)
    smoothing = Smoothing("schedule", schedule=schedule)
    np.testing.assert_allclose(
        smoothing.smooth(VALUES, STEPS), average(VALUES, schedule.decays(60), VALUES[0]), rtol=1e-12
    )
    assert smoothing.settled(np.arange(60.0)).decay == schedule.decays(60)[-1]
    seldom = Smoothing("schedule", schedule=InversePower(0.9, update_after_step=0, update_every=4))
    assert seldom.settled(np.arange(400.0)).half_life == pytest.approx(4 * math.log(0.5) / math.log(0.9))


@pytest.mark.parametrize("amount", [0.5, 0.6, 0.9, 0.98])
def test_the_answer_to_a_jump_is_marked_where_half_of_it_has_come(amount):
    smoothing = Smoothing("first", amount)
    settled = smoothing.settled([0, 10, 20])
    table, marked = smoothing.weight_table(settled), settled.answer_times
    missing = np.exp(np.interp(marked["half of the jump"], table["age"], np.log(1 - table["answer"])))
    assert missing == pytest.approx(0.5, rel=1e-6)
    gained = np.diff(table["answer"], prepend=0.0)
    assert marked["lag"] == pytest.approx(table["age"] @ gained / gained.sum(), rel=0.03)


def test_pictures_mark_the_times_and_frequencies_that_there_are():
    half = Smoothing("first", 0.5).settled([0, 10, 20])
    assert half.times == {"lag": 10, "half-life": 10}
    assert half.answer_times == {"lag": 10, "half of the jump": 0}
    assert set(Smoothing("first", 0.4).settled([0, 10, 20]).answer_times) == {"lag"}  # its first value brings more
    assert 1 / half.frequencies["cut-off, -3 dB"] == pytest.approx(86.94, abs=0.005)
    mean = Smoothing("moving-average", 5).settled([0, 10, 20])
    assert mean.times == mean.answer_times == {"lag": 20}  # each value weighs the same until it weighs nothing
    assert Smoothing("moving-average", 1).settled([0, 10]).frequencies == {}


def test_words_and_ends():
    assert Smoothing("first", 0.5).settled([0, 10, 20]).in_words("step") == (
        "slow changes come out 10 late (in step), half-life 10, cut-off at one cycle in 86.94, "
        "57.7 % of white noise left"
    )
    assert moving_average_cutoff(1) is None
    assert "no cut-off" in Smoothing("first", 0.1).settled([0, 1]).in_words("step")
    short = Smoothing("first", 1e-50).settled([0, 1]).in_words("step")
    assert short.startswith("slow changes come out < 0.0000001 late"), "no exponent"
    assert Smoothing("first", 1.0).settled([]).lag == math.inf
    assert Smoothing("wandb", 0.5).settled([3.0]).distance == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Smoothing("wanb", 0.5), "way must be one of tensorboard, wandb"),
        (lambda: Smoothing("tensorboard", 1.0), "smoothing must be in"),
        (lambda: Smoothing("wandb", 0.5, viewport_scale=0), "viewport_scale"),
        (lambda: Smoothing("pandas", 0.0), "halflife must be above 0"),
        (lambda: Smoothing("first", 1.5), "decay must be in"),
        (lambda: Smoothing("moving-average", 2.5), "whole number"),
        (lambda: Smoothing("moving-average", 0), "at least 1"),
        (lambda: Smoothing("schedule"), "needs a schedule"),
        (lambda: Smoothing("pandas", 3.0).smooth([1, 2], [5, 4]), "sort them first"),
    ],
)
def test_what_is_out_of_range_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
