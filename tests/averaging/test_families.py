"""Each family's rule, held against a plain loop, a hand, or another library."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore.averaging import families, schedules
from emacore.averaging.families import (
    BiasCorrected,
    ExponentialRamp,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
)
from emacore.averaging.weights import average, relative_width, weights
from tests.averaging.conftest import INVERSE_POWERS


@pytest.mark.parametrize("family", schedules.FAMILIES.values(), ids=lambda family: family.__name__)
def test_how_its_decays_go_is_told_in_its_own_settings(family):
    named = re.findall("`(.*?)`", family.course)
    own = [control.key for control in family.controls if not control.rare]
    assert sorted(named) == sorted(own) or "relative width" in family.course
    assert family.course.endswith(".")


def article_rule(num_steps, beta, inv_gamma, power, min_value, update_after_step, update_every):
    """The rule of the article's class, one call after the other."""
    result, moved = [], False
    for t in range(num_steps):
        if t % update_every != 0:
            result.append(1.0)
        elif t <= update_after_step or not moved:
            moved = t > update_after_step
            result.append(0.0)
        else:
            e = t - update_after_step
            result.append(min(max(1 - (1 + e / inv_gamma) ** -power, min_value), beta))
    return np.array(result)


@given(INVERSE_POWERS)
def test_inverse_power_follows_the_article_call_by_call(schedule):
    settings = schedule.to_dict()
    settings.pop("family")
    np.testing.assert_allclose(schedule.decays(200), article_rule(200, **settings), rtol=0, atol=1e-12)


def test_inverse_power_by_hand():
    schedule = InversePower(beta=0.7, inv_gamma=2, power=1, min_value=0.35, update_after_step=1, update_every=1)
    # calls 0 and 1 copy, 2 copies before it moves, then e = 2, 3, 4, ... of 1 - 1 / (1 + e/2)
    np.testing.assert_allclose(schedule.decays(8), [0, 0, 0, 0.5, 0.6, 4 / 6, 0.7, 0.7], atol=1e-15)
    assert schedule.start == 2


def test_beta_wins_over_min_value():
    assert InversePower(beta=0.5, min_value=0.9, update_after_step=0, update_every=1).decays(5)[-1] == 0.5


@pytest.mark.parametrize(
    ("power", "decay", "step"),
    [(2 / 3, 0.999, 31.6e3), (2 / 3, 0.9999, 1e6), (3 / 4, 0.999, 10e3), (3 / 4, 0.9999, 215.4e3)],
)
def test_steps_of_the_articles_notes(power, decay, step):
    schedule = InversePower(beta=1.0, power=power, update_after_step=0, update_every=1)
    assert schedule.reaches(decay) == pytest.approx(step, rel=2e-3)


def test_the_cap_of_the_articles_experiment_never_acts():
    schedule = InversePower(beta=0.999, power=2 / 3, update_after_step=100, update_every=1)
    assert schedule.decays(5000)[-1] == pytest.approx(1 - 4900 ** (-2 / 3), abs=1e-6)
    assert schedule.reaches(0.999) > 31_000


def test_bias_corrected_equals_pandas():
    values = np.random.default_rng(0).normal(size=400)
    for beta in (0.0, 0.3, 0.9, 0.999):
        expected = pd.Series(values).ewm(alpha=1 - beta, adjust=True).mean()
        np.testing.assert_allclose(average(values, BiasCorrected(beta).decays(400)), expected, rtol=1e-10)


def test_bias_corrected_is_the_zero_start_divided_by_what_is_left():
    values = np.random.default_rng(1).normal(size=300)
    plain = average(values, np.full(300, 0.97), initial=0.0)
    corrected = plain / (1 - 0.97 ** np.arange(1, 301))
    np.testing.assert_allclose(average(values, BiasCorrected(0.97).decays(300)), corrected, rtol=1e-12)


def test_rational_warmup_counts_as_tensorflow_does():
    np.testing.assert_allclose(RationalWarmup(0.9).decays(4), [0, 3 / 12, 4 / 13, 5 / 14])
    assert RationalWarmup(0.9).decays(200)[-1] == 0.9


def test_exponential_ramp_by_hand():
    rates = ExponentialRamp(0.99, tau=10, update_after_step=2).decays(6)
    np.testing.assert_allclose(rates[2:], [0, *(0.99 * (1 - math.exp(-n / 10)) for n in (2, 3, 4))])


def test_uniform_average_is_the_mean_of_its_snapshots():
    values = np.random.default_rng(2).normal(size=100)
    np.testing.assert_allclose(average(values, UniformAverage().decays(100)), np.cumsum(values) / np.arange(1, 101))
    swa = UniformAverage(update_after_step=40, update_every=10)
    assert average(values, swa.decays(100))[-1] == pytest.approx(values[40:100:10].mean())


def test_power_function_has_its_width_and_its_profile():
    schedule = PowerFunction(sigma_rel=0.1)
    assert relative_width(schedule.decays(20_000)) == pytest.approx(0.1, rel=1e-3)
    profile = weights(PowerFunction(gamma=3).decays(5000))
    expected = np.arange(1, 5001) ** 3.0
    np.testing.assert_allclose(profile[100:], (expected / expected.sum())[100:], rtol=0.05)


@given(st.floats(0, 1e4))
def test_width_and_exponent_invert_each_other(gamma):
    assert families.gamma_from_sigma_rel(families.sigma_rel_from_gamma(gamma)) == pytest.approx(
        gamma, rel=1e-6, abs=1e-6
    )
    assert PowerFunction(gamma=gamma).width == pytest.approx(
        PowerFunction(sigma_rel=PowerFunction(gamma=gamma).width).width
    )


@given(st.floats(0.05, 0.99999), st.integers(200, 10**7), st.floats(0.1, 100))
def test_a_power_reaches_what_it_was_asked(decay, step, inv_gamma):
    solved = InversePower(1.0, inv_gamma, update_after_step=100, update_every=1).with_decay(step, decay)
    assert solved.at([step])[0] == pytest.approx(decay, abs=1e-9)


@given(st.floats(1e-100, families.MAX_SIGMA_REL))
def test_any_width_has_an_exponent_that_gives_it_back(width):
    assert "equation 123" in families.sigma_rel_from_gamma.__doc__
    assert "equation 126" in families.gamma_from_sigma_rel.__doc__
    exponent = families.gamma_from_sigma_rel(width)
    assert families.sigma_rel_from_gamma(exponent) == pytest.approx(width, rel=1e-9)
