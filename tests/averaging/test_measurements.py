import math

import numpy as np
import pandas as pd
import pytest

from emacore.averaging import filters, measurements
from emacore.averaging.signals import sequence
from emacore.averaging.weights import average


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.98])
def test_cutoff_is_found_in_spectra_of_white_noise(beta):
    noise = np.random.default_rng(0).normal(size=200_000)
    f, before, after = measurements.spectra(noise, average(noise, np.full(len(noise), beta)))
    assert f[0] > 0
    assert f[-1] == 0.5
    assert measurements.cutoff(f, before, after) == pytest.approx(filters.cutoff_frequency(beta), rel=0.05)


def test_no_cutoff_where_there_is_none():
    noise = np.random.default_rng(0).normal(size=20_000)
    assert measurements.cutoff(*measurements.spectra(noise, average(noise, np.full(20_000, 0.1)))) is None
    assert measurements.cutoff([0.1], [0.0], [0.0]) is None


@pytest.mark.parametrize("period", [20, 50.5, 300])
@pytest.mark.parametrize("beta", [0.3, 0.95])
def test_lag_of_a_sine_is_its_phase_delay(period, beta):
    clean = sequence("sine", "none", 6000, period=period).clean
    lag = measurements.lag_of_sine(clean, average(clean, np.full(6000, beta)), period, settled_from=500)
    phase = -np.angle(filters.frequency_response(beta, 1 / period)) / (2 * np.pi) * period
    assert lag == pytest.approx(float(phase), rel=0.02)
    assert math.isnan(measurements.lag_of_sine(clean[:10], clean[:10], period))


def test_lag_of_a_ramp_is_the_mean_age():
    ramp = sequence("ramp", "none", 2000).clean
    assert measurements.lag_of_ramp(ramp, average(ramp, np.full(2000, 0.9))) == pytest.approx(9)


def test_rise_time_by_hand():
    assert measurements.rise_time([0.25, 0.5, 0.75]) == 2
    assert measurements.rise_time([0.2, 0.8]) == pytest.approx(1.5)
    assert measurements.rise_time([0.0, 0.1]) != measurements.rise_time([1.0])
    assert math.isnan(measurements.rise_time([0.1, 0.2]))
    assert measurements.rise_time(filters.step_response(0.99, np.arange(1, 501))) == pytest.approx(
        filters.half_life(0.99), rel=0.01
    )


def test_variance_ratio():
    assert measurements.variance_ratio([9, 1, -1], [9, 0.5, -0.5], settled_from=1) == 0.25
    assert math.isnan(measurements.variance_ratio([0.0, 0.0], [1.0, 1.0]))
    assert math.isnan(measurements.variance_ratio([1.0], [1.0], settled_from=5))


@pytest.mark.parametrize("beta", [0.5, 0.95])
@pytest.mark.parametrize(("noise", "rho"), [("white", 0.0), ("AR(1)", 0.8)])
def test_comparison_agrees_wherever_it_measures(beta, noise, rho):
    made = sequence("sine", noise, 60_000, seed=1, period=80, autocorrelation=0.8)
    table = pd.DataFrame(measurements.comparison(made, beta, autocorrelation=rho, period=80))
    assert table["measured"].notna().all()
    np.testing.assert_allclose(table["measured"], table["predicted"], rtol=0.12, atol=1e-300)


def test_comparison_says_why_it_has_no_number():
    quiet = pd.DataFrame(measurements.comparison(sequence("step", "none", 1000), 0.9)).set_index("quantity")
    assert quiet.loc["cut-off (cycles per step)", "remark"] == "there is no noise"
    short = pd.DataFrame(measurements.comparison(sequence("step", "white", 100), 0.999)).set_index("quantity")
    assert short["measured"].isna().sum() == 4
    assert set(short.loc[short["measured"].isna(), "remark"]) == {"too few steps for it"}


def test_a_half_life_of_less_than_a_step_is_not_measured_in_steps():
    """Between steps there is nothing: its first value alone brings more than half of a jump."""
    for beta, remark in (
        (0.2, "shorter than one step"),
        (0.49, "shorter than one step"),
        (0.5, "time to half of a jump"),
    ):
        rows = {row.quantity: row for row in measurements.comparison(sequence("step", "none", 1000), beta)}
        found = rows["half-life (steps)"]
        assert found.remark == remark
        assert math.isnan(found.measured) == (beta < 0.5)
        assert found.predicted == filters.half_life(beta)


@pytest.mark.parametrize("beta", [0.5, 0.7767, 0.9, 0.98])
@pytest.mark.parametrize("steps", [1060, 3000, 7100, 36_441, 50_000])
def test_what_is_left_of_a_start_is_nothing_where_a_float_has_no_digits_for_it(beta, steps):
    for row in measurements.comparison(sequence("constant", "none", steps), beta)[-2:]:
        assert row.measured == pytest.approx(row.predicted, rel=1e-9, abs=0)


def test_noise_is_taken_to_be_white_unless_it_is_told_otherwise():
    made = sequence("ramp", "white", 20_000, seed=1)
    of_itself, told = measurements.comparison(made, 0.9), measurements.comparison(made, 0.9, autocorrelation=0.0)
    np.testing.assert_equal([row[:3] for row in of_itself], [row[:3] for row in told])
    assert of_itself[0].predicted == pytest.approx(0.1 / 1.9)
    assert of_itself[0].predicted != measurements.comparison(made, 0.9, autocorrelation=0.5)[0].predicted
