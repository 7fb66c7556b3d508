import numpy as np
import pytest

from emacore.averaging import signals
from emacore.averaging.filters import variance_gain
from emacore.averaging.weights import average


@pytest.mark.parametrize("signal", signals.SIGNALS)
@pytest.mark.parametrize("noise", signals.NOISES)
def test_every_pair_is_seeded_finite_and_of_the_wanted_size(signal, noise):
    one = signals.sequence(signal, noise, 20_000, seed=3, noise_level=0.5)
    same = signals.sequence(signal, noise, 20_000, seed=3, noise_level=0.5)
    other = signals.sequence(signal, noise, 20_000, seed=4, noise_level=0.5)
    assert one.clean.shape == one.noisy.shape == (20_000,)
    np.testing.assert_array_equal(one.noisy, same.noisy)
    assert np.all(np.isfinite(one.noisy))
    difference = one.noisy - one.clean
    if noise == "none":
        assert not difference.any()
    else:
        assert difference.std() == pytest.approx(0.5, rel=0.15)
        assert abs(difference.mean()) < 0.1
        assert not np.array_equal(one.noisy, other.noisy)


def test_changing_the_noise_keeps_the_signal():
    walks = [signals.sequence("random walk", noise, 500, seed=1).clean for noise in ("white", "spikes")]
    np.testing.assert_array_equal(*walks)


def test_shapes_of_the_signals():
    assert signals.sequence("step", "none", 100).clean.tolist() == [0.0] * 25 + [1.0] * 75
    np.testing.assert_allclose(signals.sequence("ramp", "none", 5).clean, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(signals.sequence("sine", "none", 101, period=50).clean[[0, 25, 50]], 0, atol=1e-12)
    chirp = signals.sequence("chirp", "none", 1000, period=200).clean
    crossings = np.flatnonzero(np.diff(np.sign(chirp)))
    assert np.diff(crossings)[:2].mean() > 3 * np.diff(crossings)[-5:].mean()
    assert signals.sequence("converging", "none", 1000).clean[-1] == pytest.approx(1, abs=1e-3)


def test_autoregressive_noise_has_its_autocorrelation():
    noise = signals.sequence("constant", "AR(1)", 200_000, autocorrelation=0.8, noise_level=1).noisy - 1
    assert noise.std() == pytest.approx(1, rel=0.03)
    for lag in (1, 3):
        assert np.corrcoef(noise[:-lag], noise[lag:])[0, 1] == pytest.approx(0.8**lag, abs=0.02)


def test_sgd_is_the_loop_it_stands_for():
    result = signals.sgd_on_quadratic((2.0, 0.5), 0.2, 0.7, 30, seed=5, start=(1.0, -1.0))
    noise = np.random.default_rng(5).standard_normal((29, 2))
    w, clean = np.array([1.0, -1.0]), np.array([1.0, -1.0])
    for t in range(29):
        w = w - 0.2 * (np.array([2.0, 0.5]) * w + 0.7 * noise[t])
        clean = clean - 0.2 * np.array([2.0, 0.5]) * clean
    np.testing.assert_allclose(result.noisy[-1], w)
    np.testing.assert_allclose(result.clean[-1], clean)


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.98])
def test_the_filters_formulas_predict_what_averaging_does_near_a_minimum(beta):
    curvatures = np.array([1.0, 0.3])
    path = signals.sgd_on_quadratic(curvatures, 0.1, 1.0, 400_000, seed=0, start=0.0).noisy
    predicted = signals.stationary_variance(curvatures, 0.1, 1.0)
    np.testing.assert_allclose(path[2000:].var(axis=0), predicted, rtol=0.06)
    averaged = average(path, np.full(len(path), beta))
    gains = [variance_gain(beta, 1 - 0.1 * c) for c in curvatures]
    np.testing.assert_allclose(averaged[2000:].var(axis=0) / path[2000:].var(axis=0), gains, rtol=0.06)


def test_a_learning_rate_too_large_has_no_stationary_state():
    assert signals.stationary_variance((1.0,), 2.0, 1.0)[0] == np.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: signals.sequence("saw"),
        lambda: signals.sequence(noise="pink"),
        lambda: signals.sequence(length=0),
        lambda: signals.sequence(period=1),
        lambda: signals.sequence(noise_level=-1),
        lambda: signals.sequence(noise="AR(1)", autocorrelation=1),
        lambda: signals.sgd_on_quadratic(curvatures=(0.0,)),
        lambda: signals.sgd_on_quadratic(learning_rate=0),
    ],
)
def test_wrong_arguments_raise(call):
    with pytest.raises(ValueError, match="must be"):
        call()


@pytest.mark.parametrize("rate", [2.0, 2.0 + 1e-12, 3.0, 1e9])
@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("beta", [None, 0.0, 0.9])
def test_from_twice_the_inverse_curvature_on_every_loss_is_infinite(rate, noise, beta):
    assert signals.stationary_loss((1.0, 0.01), rate, noise, beta) == np.inf
    assert signals.stationary_loss((0.01,), min(rate, 3.0), noise, beta) < np.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: signals.stationary_loss((0.0, 1.0), 0.1, 1.0), "curvatures must be above 0"),
        (lambda: signals.stationary_loss((1.0,), 0.0, 1.0, 0.9), "learning_rate must be above 0"),
        (lambda: signals.stationary_loss((1.0,), 0.1, -1.0), "gradient_noise must be at least 0"),
        (lambda: signals.stationary_loss((1.0,), 2.0, 1.0, 1.0), "beta must be in"),
        (lambda: signals.stationary_variance((1.0,), float("nan"), 1.0), "learning_rate must be above 0"),
    ],
)
def test_what_no_sgd_has_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_rate_that_is_lost_beside_1_still_has_a_loss():
    assert 0 <= signals.stationary_loss((1.0,), 1e-17, 1.0, 0.9) < 1e-16


def test_stationary_loss_is_that_of_a_long_run():
    curvatures = (1.0, 0.25)
    path = signals.sgd_on_quadratic(curvatures, 0.3, 1.0, 300_000, seed=2, start=0.0).noisy[1000:]
    averaged = average(path, np.full(len(path), 0.98))[1000:]
    for values, beta in ((path, None), (averaged, 0.98)):
        predicted = signals.stationary_loss(curvatures, 0.3, 1.0, beta)
        assert np.mean(values**2 @ curvatures) / 2 == pytest.approx(predicted, rel=0.05)
