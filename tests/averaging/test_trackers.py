import math

import numpy as np
import pandas as pd
import pytest

from emacore.averaging.families import BiasCorrected
from emacore.averaging.trackers import halflife_decays, smoothed, tensorboard_decays, wandb_decays

VALUES = np.random.default_rng(0).standard_normal(200) + 3
STEPS = np.cumsum(np.random.default_rng(1).integers(0, 40, 200)).astype(float)


def tensorboard(values, weight):
    """The loop of its line chart, where a value that is not finite is drawn as it is."""
    last, count, out = 0.0, 0, []
    for value in values:
        if not math.isfinite(value):
            out.append(value)
            continue
        last = last * weight + (1 - weight) * value
        count += 1
        out.append(last / (1 - weight**count))
    return out


def wandb(steps, values, parameter, span, scale):
    """The sample code of its documentation, in Python."""
    weight = min(math.sqrt(parameter), 0.999)
    last = debias = 0.0
    out = []
    for place, value in enumerate(values):
        change = (steps[place] - steps[max(place - 1, 0)]) / span * scale
        last = last * weight**change + value
        debias = debias * weight**change + 1
        out.append(last / debias)
    return out


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.6, 0.999])
def test_tensorboard(weight):
    np.testing.assert_allclose(
        smoothed(VALUES, tensorboard_decays(weight, 200)), tensorboard(VALUES, weight), rtol=1e-13
    )
    if weight:
        np.testing.assert_array_equal(tensorboard_decays(weight, 200), BiasCorrected(beta=weight).decays(200))


@pytest.mark.parametrize("parameter", [0.0, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize(("span", "scale"), [(None, 1000), (2 * np.ptp(STEPS), 1000), (None, 1)])
def test_weights_and_biases(parameter, span, scale):
    expected = wandb(STEPS, VALUES, parameter, span or np.ptp(STEPS), scale)
    decays = wandb_decays(STEPS, parameter, x_range=span, viewport_scale=scale)
    np.testing.assert_allclose(smoothed(VALUES, decays), expected, rtol=1e-12)


@pytest.mark.parametrize("halflife", [0.5, 30.0, 1e6])
def test_pandas(halflife):
    times = pd.Timestamp("2026-01-01") + pd.to_timedelta(STEPS, unit="s")
    expected = pd.Series(VALUES).ewm(halflife=pd.Timedelta(seconds=halflife), times=times).mean()
    np.testing.assert_allclose(smoothed(VALUES, halflife_decays(STEPS, halflife)), expected, rtol=1e-10)
    even = pd.Series(VALUES).ewm(halflife=halflife).mean()
    np.testing.assert_allclose(smoothed(VALUES, halflife_decays(np.arange(200), halflife)), even, rtol=1e-10)


def test_what_is_not_finite_stays_and_spoils_nothing():
    values = VALUES.copy()
    values[[0, 7, 8, 199]] = np.nan, np.inf, np.nan, -np.inf
    finite = np.isfinite(values)
    np.testing.assert_allclose(smoothed(values, tensorboard_decays(0.9, 196)), tensorboard(values, 0.9), rtol=1e-13)
    found = smoothed(values, wandb_decays(STEPS[finite], 0.9))
    np.testing.assert_array_equal(found[~finite], values[~finite])
    np.testing.assert_allclose(
        found[finite], wandb(STEPS[finite], values[finite], 0.9, np.ptp(STEPS[finite]), 1000), rtol=1e-12
    )
    np.testing.assert_array_equal(smoothed([np.nan], []), [np.nan])


def test_one_place_is_a_mean_and_nothing_is_nothing():
    np.testing.assert_allclose(smoothed([1, 2, 6], wandb_decays([5, 5, 5], 0.5))[-1], 3)
    assert wandb_decays([], 0.5).shape == halflife_decays([], 1).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tensorboard_decays(1.0, 3), "smoothing"),
        (lambda: wandb_decays([0, 1], math.nan), "smoothing"),
        (lambda: wandb_decays([0, 2, 1], 0.5), "got 2 before 1"),
        (lambda: wandb_decays([0, 1], 0.5, x_range=0.0), "x_range"),
        (lambda: halflife_decays([0, math.nan], 1), "finite"),
        (lambda: halflife_decays([0, 1], 0), "halflife"),
    ],
)
def test_what_is_out_of_range_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
