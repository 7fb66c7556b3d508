"""Weights of the parts of a run, without looking at every step, against the weights of every step."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emacore.averaging.families import (
    BiasCorrected,
    Constant,
    ExponentialRamp,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
    gamma_from_sigma_rel,
    sigma_rel_from_gamma,
)
from emacore.averaging.parts import memory, outline, part_table, remaining, span_shown
from emacore.averaging.schedules import Schedule, final_half_life
from emacore.averaging.solving import with_relative_width
from emacore.averaging.weights import mean_age, relative_width, start_share, weights
from emacore.averaging.windows import Window, decays_at_end
from tests.averaging.conftest import ANY

LONG = [
    InversePower(0.9999),
    InversePower(0.999, 5.0, 0.8, 0.99, update_every=3, update_after_step=5000),
    Constant(0.99999),
    Constant(0.0),
    Constant(1.0),
    BiasCorrected(0.9999, update_every=2),
    RationalWarmup(0.9999),
    ExponentialRamp(0.9999, 5000.0),
    PowerFunction(sigma_rel=0.1, update_every=4, update_after_step=1000),
    PowerFunction(gamma=500.0),
    UniformAverage(update_after_step=150_000, update_every=100),
]
TEN_BILLION = 10**10


def agrees(schedule, num_steps):
    decays = schedule.decays(num_steps)
    found = memory(schedule, num_steps)
    assert found.half_life == final_half_life(schedule, num_steps)
    assert found.mean_age == pytest.approx(mean_age(decays), rel=1e-6, abs=1e-9)
    # Of a variance that is a difference of squares, rounding leaves 1e-16, so a width of 1e-8, where all is the start.
    assert found.relative_width == pytest.approx(relative_width(decays), rel=2e-6, abs=1e-7)
    assert found.start_share == pytest.approx(start_share(decays, start=schedule.start), rel=1e-9, abs=1e-12)
    calls = np.unique(np.linspace(0, num_steps - 1, 50).astype(int))
    np.testing.assert_allclose(remaining(schedule, num_steps, calls), np.cumsum(weights(decays))[calls], atol=1e-10)


@settings(max_examples=60)
@given(ANY, st.integers(1, 300))
def test_a_short_run_is_as_its_weights_are(schedule, num_steps):
    agrees(schedule, num_steps)


@pytest.mark.parametrize("schedule", LONG, ids=str)
def test_a_long_run_is_as_its_weights_are(schedule):
    agrees(schedule, 200_003)


@pytest.mark.parametrize("schedule", [None, Constant(0.9), InversePower(0.9, update_every=2)], ids=str)
@pytest.mark.parametrize("size", [1, 20, 1000])
def test_a_window_is_as_its_weights_are(schedule, size):
    window = Window(size, schedule)
    calls = np.arange(300)
    found = np.cumsum(weights(decays_at_end(window, 300)))
    np.testing.assert_allclose(remaining(window, 300, calls), found, atol=1e-12)


def test_ten_billion_steps_by_the_closed_forms():
    calls = np.array([0, 10, 10**6, 10**9, 5 * 10**9, 9_999_000_000, 9_999_999_000, 9_999_999_999])
    ages = TEN_BILLION - 1 - calls
    np.testing.assert_allclose(remaining(Constant(0.9999), TEN_BILLION, calls), 0.9999**ages, rtol=1e-9)
    gamma = gamma_from_sigma_rel(0.1)
    shares = ((calls + 1) / TEN_BILLION) ** (gamma + 1)
    np.testing.assert_allclose(remaining(PowerFunction(gamma), TEN_BILLION, calls), shares, rtol=2e-6)
    np.testing.assert_allclose(remaining(UniformAverage(), TEN_BILLION, calls), (calls + 1) / TEN_BILLION, rtol=2e-6)
    beta = 1 - 1e-9
    zeros = np.expm1((calls + 1) * np.log(beta)) / np.expm1(TEN_BILLION * np.log(beta)) * np.exp(ages * np.log(beta))
    np.testing.assert_allclose(remaining(BiasCorrected(beta), TEN_BILLION, calls), zeros, rtol=2e-6)
    assert memory(PowerFunction(gamma), TEN_BILLION).relative_width == pytest.approx(0.1, rel=1e-5)
    assert memory(Constant(0.9999), TEN_BILLION).mean_age == pytest.approx(9999, rel=1e-9)


def test_the_work_does_not_grow_with_the_run(monkeypatch):
    asked = []

    def counting(self, calls):
        asked.append(calls.size)
        return rule(self, calls)

    rule = InversePower.decays_of_moves
    monkeypatch.setattr(InversePower, "decays_of_moves", counting)
    schedule = InversePower(0.99999999, update_every=1)
    work = {}
    for num_steps in (10**9, TEN_BILLION):
        asked.clear()
        table = part_table({"a": schedule}, num_steps)
        memory(schedule, num_steps)
        work[num_steps] = sum(asked)
        assert max(asked) < 200_000
        assert 55 <= len(table["weight_percent"]) <= 60
    assert work[TEN_BILLION] < 1.2 * work[10**9] < 1_500_000


def test_a_rule_with_steps_in_it_is_followed():
    class Stairs(Schedule):
        def decays_of_moves(self, calls):
            return np.where(calls < 777_777, 0.999, np.where(calls < 1_999_000, 0.99999, 0.9))

    agrees(Stairs(), 2_000_000)


def test_the_parts_are_where_the_average_is():
    schemes = {"short": Constant(0.99), "long": PowerFunction(sigma_rel=0.02)}
    assert span_shown(schemes, 10_000) == 10
    table = part_table(schemes, 10_000)
    for name, scheme in schemes.items():
        own = table["series"] == name
        exact = weights(scheme.decays(10_000))
        shares = [
            100 * exact[int(a) : int(b)].sum()
            for a, b in zip(table["from_step"][own], table["to_step"][own], strict=True)
        ]
        np.testing.assert_allclose(table["weight_percent"][own], shares, atol=1e-9)
        assert 98 <= table["weight_percent"][own].sum() <= 100 + 1e-9
        assert set(table["to_step"][own] - table["from_step"][own]) == {17}
        assert table["to_step"][own].max() == 10_000
    assert span_shown({"a": UniformAverage()}, 10_000) == 100
    assert span_shown({"a": Constant(0.5)}, 10) == 100
    assert len(part_table({"a": Constant(0.5)}, 10)["series"]) == 10
    assert part_table({"a": Constant(0.0, update_every=100)}, 601)["weight_percent"].tolist() == [100]


@pytest.mark.parametrize("num_steps", [10, 61, 1234, 5003])
@pytest.mark.parametrize("every", [1, 7, 700])
@pytest.mark.parametrize("start", [0, 0.3, 0.505])
def test_what_weighs_much_lies_in_a_part(num_steps, every, start):
    copied = Constant(0.99999, update_every=every, update_after_step=int(start * num_steps))
    schemes = {"copied": copied, "mean": UniformAverage(update_every=every), "window": Window(num_steps // 6)}
    table = part_table(schemes, num_steps)
    assert table["weight_percent"][table["series"] == "copied"].sum() > 98.9
    for name in schemes:
        own = table["series"] == name
        assert table["weight_percent"][own].sum() > 97.3
        assert table["from_step"][own][1:].tolist() == table["to_step"][own][:-1].tolist()
        assert own.sum() <= 60


def test_lines_of_parts_are_level_over_each_and_reach_from_end_to_end():
    schemes = {"short": Constant(0.5), "long": UniformAverage()}
    table, lines = part_table(schemes, 10_000), outline(part_table(schemes, 10_000), 10_000)
    for name in schemes:
        own = lines["series"] == name
        steps = lines["steps_to_end"][own] + 10_000
        np.testing.assert_allclose(lines["run_percent"][own], steps / 100)
        assert (steps[0], steps[-1]) == (table["from_step"][0], 10_000)
        for row in np.flatnonzero(table["series"] == name):
            inside = np.linspace(table["from_step"][row], table["to_step"][row], 9)[1:-1]
            np.testing.assert_allclose(
                np.interp(inside, steps, lines["weight_percent"][own]), table["weight_percent"][row]
            )


@pytest.mark.parametrize("num_steps", [2, 7, 100, 601, 5003])
@pytest.mark.parametrize("every", [1, 4])
def test_equal_parts_of_a_plain_mean_weigh_the_same(num_steps, every):
    shares = part_table({"a": UniformAverage(update_every=every)}, num_steps)["weight_percent"]
    np.testing.assert_allclose(shares[1:-1], shares.mean(), rtol=0.1 if num_steps < 100 else 0.02)
    assert 1 <= len(shares) <= 60


def test_a_width_is_solved_for_in_a_run_of_any_length():
    solved = with_relative_width(PowerFunction(gamma=1), TEN_BILLION, 0.05)
    assert solved.width == pytest.approx(0.05, rel=1e-4)
    assert sigma_rel_from_gamma(solved.exponent) == pytest.approx(0.05, rel=1e-4)
    longer = with_relative_width(Constant(), TEN_BILLION, 0.01)
    assert 1 / (1 - longer.beta) == pytest.approx(1e8, rel=1e-3)


def test_the_memory_of_three_moves_by_hand():
    found = memory(Constant(0.9, update_every=2), 5)
    assert found.half_life == pytest.approx(2 * np.log(2) / -np.log(0.9))
    assert found.mean_age == pytest.approx(0.81 * 4 + 0.09 * 2)
    assert found.relative_width == pytest.approx(np.sqrt(0.81 * 16 + 0.09 * 4 - 3.42**2) / 5)
