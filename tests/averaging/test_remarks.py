import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore.averaging import schedules
from emacore.averaging.families import (
    BiasCorrected,
    Constant,
    ExponentialRamp,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
)
from emacore.averaging.filters import half_life
from emacore.averaging.remarks import remarks
from emacore.averaging.weights import relative_width

ARTICLE = InversePower(beta=0.999, update_after_step=100, update_every=1)


@pytest.mark.parametrize(
    ("schedule", "num_steps", "words"),
    [
        (
            ARTICLE,
            5000,
            ["beta = 0.999 is never reached in this run: the decay ends at 0.99653", "from step 31,722 on"],
        ),
        (ARTICLE, 80, ["warm-up is longer than the run: the average begins at step 101, and the run ends at step 79"]),
        (ARTICLE, 101, ["warm-up is as long as the run: the average begins at step 101, and the run ends at step 100"]),
        (ARTICLE, 102, ["The average begins at step 101 with a copy of the weights and would move at step 102, but"]),
        (
            Constant(0.9, update_after_step=40, update_every=40),
            50,
            ["begins at step 40 with a copy of the weights and would move at step 80, but the run ends at step 49"],
        ),
        (UniformAverage(), 1, ["begins at step 0 with a copy", "would move at step 1, but the run ends at step 0"]),
        (InversePower(update_every=500), 400, ["update_every = 500 is longer than the run (400 steps)"]),
        (
            InversePower(power=1.0, update_after_step=0, update_every=10),
            2000,
            ["first of the 199 snapshots weighs", "inv_gamma = 10 counts moves"],
        ),
        (InversePower(beta=0.5, min_value=0.7, update_every=1), 500, ["min_value = 0.7 is not below beta = 0.5"]),
        (InversePower(beta=0.5, min_value=0.1, update_every=1), 500, ["min_value = 0.1 has no effect"]),
        (Constant(0.999999), 1000, ["99.9 % of the final average are still the weights of step 0"]),
        (Constant(0.9999999), 1000, ["99.99 % of the final average are still the weights of step 0"]),
        (Constant(0.9), 7, ["53 % of the final average"]),
        (InversePower(update_every=500), 500, ["update_every = 500 is as long as the run (500 steps)"]),
        (Constant(0.9999), 1000, ["90 % of the final average are still the weights of step 0"]),
        (RationalWarmup(1.0), 1000, ["beta = 1 is never reached", "no run is long enough"]),
        (ExponentialRamp(0.99, tau=1000), 500, ["39 % of beta = 0.99"]),
        (BiasCorrected(0.9999), 50, ["% of beta"]),
    ],
)
def test_what_a_reader_should_know_is_said(schedule, num_steps, words):
    text = " ".join(remarks(schedule, num_steps))
    for expected in words:
        assert expected in text


@pytest.mark.parametrize(
    ("schedule", "num_steps"),
    [
        (Constant(0.99), 5000),
        (UniformAverage(), 100),
        (UniformAverage(update_after_step=50, update_every=10), 100),
        (InversePower(beta=0.9, update_after_step=0, update_every=1), 5000),
        (BiasCorrected(0.99), 3000),
        (PowerFunction(sigma_rel=0.1), 5000),
    ],
)
def test_nothing_is_said_where_nothing_is_odd(schedule, num_steps):
    assert remarks(schedule, num_steps) == []


@pytest.mark.parametrize("settings", [{"beta": 0.9999, "min_value": 0.9999}, {"beta": 0.9999, "power": 3.0}])
def test_a_rule_that_counts_steps_is_not_blamed_for_what_another_setting_does(settings):
    """There ``inv_gamma * update_every``, which counts moves, leaves the first snapshot as heavy."""
    schedule = InversePower(inv_gamma=1.0, update_every=10, update_after_step=0, **settings)
    assert "counts steps" not in " ".join(remarks(schedule, 1000))


@pytest.mark.parametrize("schedule", [Constant(1.0), InversePower(1.0, min_value=1.0), Constant(1.0, update_every=7)])
def test_a_decay_of_1_at_every_move_is_told_as_keeping_the_start(schedule):
    assert remarks(schedule, 1000) == [
        f"A decay of 1 at every move keeps the weights of step {schedule.start}: nothing is averaged."
    ]


@pytest.mark.parametrize("family", [BiasCorrected, Constant, ExponentialRamp, InversePower, RationalWarmup])
def test_a_beta_of_0_is_told_as_copying(family):
    assert remarks(family(beta=0.0, update_after_step=101, update_every=1), 5000) == [
        "beta = 0 copies the weights at every move: nothing is averaged."
    ]


@pytest.mark.parametrize(
    ("schedule", "num_steps", "words"),
    [
        (PowerFunction(sigma_rel=0.1, update_after_step=4000), 5000, "2 % of this run wide, not 10 %"),
        (PowerFunction(gamma=0, update_after_step=2500), 5000, "share of the 2,500 steps since step 2,500"),
        (PowerFunction(sigma_rel=0.005), 50, "its 50 moves are too few for it"),
        (PowerFunction(sigma_rel=0.005, update_every=100), 5000, "its 50 moves are too few for it"),
    ],
)
def test_a_width_that_the_weights_do_not_have_is_told(schedule, num_steps, words):
    (told,) = [remark for remark in remarks(schedule, num_steps) if "wide" in remark]
    assert words in told
    assert f"{100 * relative_width(schedule.decays(num_steps)):.3g} % of this run" in told


def told_of_beta(schedule, num_steps):
    return [remark for remark in remarks(schedule, num_steps) if "of beta" in remark or "beta = " in remark]


@pytest.mark.parametrize(
    ("schedule", "num_steps", "final", "memory", "capped"),
    [
        (ExponentialRamp(), 10_600, 0.9999 * (1 - math.exp(-10_600 / 2000)), "135.8", "6,931"),
        (ExponentialRamp(0.99, tau=500), 3000, 0.99 * (1 - math.exp(-6)), "55.31", "68.97"),
        (BiasCorrected(0.9999), 10_000, 1 - 0.0001 / (1 - 0.9999**10_000), "4,381", "6,931"),
        (BiasCorrected(0.9999, update_every=10), 20_000, 1 - 0.0001 / (1 - 0.9999**2000), "12,560", "69,310"),
        (InversePower(0.9999, update_after_step=0, update_every=1), 500_000, 1 - 500_000 ** (-2 / 3), "4,366", "6,931"),
        (RationalWarmup(0.9999), 50_000, 50_001 / 50_010, "3,851", "6,931"),
    ],
)
def test_a_cap_is_held_against_the_memory_not_the_decay(schedule, num_steps, final, memory, capped):
    (told,) = told_of_beta(schedule, num_steps)
    half_life_in_steps = -math.log(2) / math.log(final) * schedule.update_every
    assert half_life_in_steps == pytest.approx(float(memory.replace(",", "")), rel=1e-3)
    assert f"a half-life of {memory} steps, not the {capped} of beta" in told


@given(
    st.sampled_from([BiasCorrected, ExponentialRamp, RationalWarmup, InversePower, Constant]),
    st.floats(0.05, 0.999999),
    st.integers(2, 20_000),
    st.sampled_from([1, 3]),
)
def test_a_memory_that_falls_short_of_betas_is_always_told(family, beta, num_steps, every):
    schedule = family(beta=beta, update_after_step=0, update_every=every)
    if schedules.last_move(schedule, num_steps) <= schedule.start:
        return
    memory, capped = schedules.final_half_life(schedule, num_steps), half_life(beta) * every
    if memory < 0.99 * capped:
        assert told_of_beta(schedule, num_steps)
    if memory > 0.999 * capped and schedule.reaches(beta) is not None and schedule.reaches(beta) < num_steps:
        assert not told_of_beta(schedule, num_steps)


def test_a_beta_next_to_1_is_not_told_as_1():
    assert "beta = 0.9999999 is never reached" in remarks(InversePower(0.9999999, update_every=1), 5000)[0]
    assert "100 %" not in remarks(BiasCorrected(0.9999999), 500_000)[0]
    assert "while that of beta has no end; no run is long enough" in remarks(BiasCorrected(1.0), 500)[0]
