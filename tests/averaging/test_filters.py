import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import signal

from emacore.averaging import filters
from emacore.averaging.weights import average, moving_average

betas = st.floats(0.0, 0.99999)
inner = st.floats(0.01, 0.9999)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_response_and_delay_equal_scipys(beta):
    frequency = np.linspace(0, 0.5, 51)
    _, expected = signal.freqz([1 - beta], [1, -beta], worN=frequency, fs=1)
    np.testing.assert_allclose(filters.frequency_response(beta, frequency), expected, atol=1e-12)
    phase = np.unwrap(np.angle(filters.frequency_response(beta, np.linspace(0, 0.5, 200_001))))
    numeric = -np.gradient(phase, 2 * np.pi * 0.5 / 200_000)[::4000]
    np.testing.assert_allclose(filters.group_delay(beta, frequency)[1:-1], numeric[1:-1], rtol=1e-3, atol=1e-5)
    assert filters.group_delay(beta) == pytest.approx(beta / (1 - beta))


@pytest.mark.parametrize("power", range(1, 16))
def test_a_delay_keeps_its_digits_where_beta_is_near_1(power):
    beta = 1 - 10.0**-power
    rest = 1 - beta
    assert filters.group_delay(beta) == pytest.approx(beta / rest, rel=1e-12)
    frequency = rest * np.array([0.0, 0.01, 0.16, 3.0])
    turn = np.exp(-2j * np.pi * frequency)
    behind = (beta * turn / (rest - beta * np.expm1(-2j * np.pi * frequency))).real
    np.testing.assert_allclose(filters.group_delay(beta, frequency), behind, rtol=1e-6)


@given(betas)
def test_cutoff_halves_the_power(beta):
    cutoff = filters.cutoff_frequency(beta)
    if beta < 3 - math.sqrt(8):
        assert cutoff is None
        assert abs(filters.frequency_response(beta, 0.5)) ** 2 > 0.5
    else:
        assert abs(filters.frequency_response(beta, cutoff)) ** 2 == pytest.approx(0.5, rel=1e-9)


def test_cutoff_edge_is_the_highest_frequency():
    assert filters.cutoff_frequency(filters.SMALLEST_BETA_WITH_CUTOFF) == pytest.approx(0.5, abs=1e-6)
    assert filters.cutoff_frequency(0.1715) is None


def test_impulse_and_step_responses_are_what_the_recursion_answers():
    impulse = np.eye(1, 50)[0]
    rates = np.full(50, 0.8)
    np.testing.assert_allclose(filters.impulse_response(0.8, np.arange(50)), average(impulse, rates))
    np.testing.assert_allclose(filters.step_response(0.8, np.arange(1, 51)), average(np.ones(50), rates))
    assert filters.step_response(0.8, [1, 2, 3]) == pytest.approx([0.2, 0.36, 0.488])


@given(inner, st.floats(-0.95, 0.95))
def test_variance_gain_is_the_quadratic_form_of_the_weights(beta, rho):
    if beta > 0.98:
        beta = 0.98
    ages = np.arange(1500)
    weights = filters.impulse_response(beta, np.arange(1500))
    covariance = rho ** np.abs(ages).astype(float)
    correlated = signal.fftconvolve(np.concatenate([covariance[:0:-1], covariance]), weights)[1499:2999]
    assert filters.variance_gain(beta, rho) == pytest.approx(weights @ correlated, rel=1e-6)


@pytest.mark.parametrize("rho", [0.0, 0.5, -0.4, 0.95])
@pytest.mark.parametrize("window", [1, 2, 7, 40])
def test_moving_average_gain_is_the_double_sum(rho, window):
    ages = np.arange(window)
    expected = (float(rho) ** np.abs(ages[:, None] - ages)).sum() / window**2
    assert filters.moving_average_variance_gain(window, rho) == pytest.approx(expected)


@example(0.5, -0.9)  # where even windows are calmer than the odd ones beside them
@given(st.floats(0.0, 0.9999), st.floats(-0.99, 0.99))
def test_window_of_equal_noise_is_the_closest_one(beta, rho):
    window, target = filters.window_of_equal_noise(beta, rho), filters.variance_gain(beta, rho)
    near = range(max(window - 30, 1), window + 30)
    misses = [abs(filters.moving_average_variance_gain(n, rho) - target) for n in near]
    assert misses[near.index(window)] <= min(misses) + 1e-12


def test_window_matches_delay_and_white_noise_at_once():
    window = filters.equivalent_window(0.9)
    assert window == pytest.approx(19)
    assert filters.moving_average_variance_gain(19) == pytest.approx(filters.variance_gain(0.9))
    assert (window - 1) / 2 == pytest.approx(float(filters.group_delay(0.9)))
    assert filters.window_of_equal_noise(0.9) == 19


def test_moving_average_response_is_the_sum_of_its_delays():
    frequency = np.linspace(0, 0.5, 20)
    expected = np.exp(-2j * np.pi * np.outer(frequency, np.arange(5))).mean(axis=1)
    np.testing.assert_allclose(filters.moving_average_response(5, frequency), expected, atol=1e-12)
    sine = np.sin(2 * np.pi * 0.05 * np.arange(400))
    assert moving_average(sine, 5)[50:].std() / sine[50:].std() == pytest.approx(
        abs(filters.moving_average_response(5, 0.05)), rel=0.01
    )


@given(inner)
def test_memory_conversions_invert_each_other(beta):
    assert filters.decay_from_half_life(filters.half_life(beta)) == pytest.approx(beta)
    assert filters.decay_from_time_constant(filters.time_constant(beta)) == pytest.approx(beta)
    assert filters.decay_from_window(filters.equivalent_window(beta)) == pytest.approx(beta)
    assert beta ** filters.half_life(beta) == pytest.approx(0.5)
    assert beta ** filters.time_constant(beta) == pytest.approx(1 / math.e)


def test_edges_of_the_conversions():
    assert filters.half_life(0) == 0
    assert filters.half_life(1) == math.inf
    assert filters.equivalent_window(1) == math.inf
    assert filters.decay_from_window(math.inf) == 1
    assert filters.decay_from_half_life(0) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda: filters.frequency_response(1.0, 0.1),
        lambda: filters.cutoff_frequency(-0.1),
        lambda: filters.variance_gain(0.9, 1.0),
        lambda: filters.half_life(1.1),
        lambda: filters.decay_from_half_life(-1),
        lambda: filters.decay_from_window(0.5),
        lambda: filters.moving_average_variance_gain(0),
        lambda: filters.moving_average_variance_gain(3, 1.0),
    ],
)
def test_values_outside_their_range_raise(call):
    with pytest.raises(ValueError, match="must be"):
        call()


def test_half_lives_are_those_of_each_decay():
    decays = np.array([[0.0, 0.5, 0.9], [0.999999, 1.0, 1e-300]])
    expected = [[filters.half_life(float(decay)) for decay in row] for row in decays]
    np.testing.assert_allclose(filters.half_lives(decays), expected)
    assert filters.half_lives([0.0, 1.0]).tolist() == [0.0, np.inf]
