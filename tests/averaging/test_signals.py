import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore.averaging import signals
from emacore.averaging.families import Constant
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


def test_a_rate_that_is_lost_in_rounding_has_one():
    assert signals.stationary_variance((1e-300,), 1e-300, 3.0)[0] == pytest.approx(4.5)
    assert signals.stationary_loss((1e-300,), 1e-300, 1.0, 0.0) == pytest.approx(2.5e-301)


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
        lambda: signals.final_loss((1.0,), 0.1, 1.0, 0, [0.5]),
        lambda: signals.final_loss((1.0,), 0.1, 1.0, 10, [1.5]),
        lambda: signals.final_loss((-1.0,), 0.1, 1.0, 10, [0.5]),
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


def plain_moments(curvature, rate, noise, num_steps, beta, start):
    """Mean and variance of the final average in one direction, from the rule: each noise's share is carried along."""
    mean, shares = start, np.zeros(num_steps)  # of the iterate
    averaged, averaged_shares = mean, shares.copy()
    for step in range(1, num_steps):
        mean, shares = mean - rate * curvature * mean, shares - rate * curvature * shares
        shares[step] -= rate * noise
        averaged = beta * averaged + (1 - beta) * mean
        averaged_shares = beta * averaged_shares + (1 - beta) * shares
    return averaged, math.fsum(averaged_shares**2)


@given(
    st.floats(0.01, 3.0),
    st.floats(0.001, 2.0),
    st.floats(0, 3),
    st.integers(1, 120),
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.98, 0.9999, 0.999999, 1 - 2.0**-53, 1.0])),
    st.floats(-3, 3),
)
def test_the_final_average_has_the_mean_and_variance_that_its_rule_gives(c, rate, noise, steps, beta, start):
    mean, variance = signals.final_moments([c, 1.0], rate, noise, steps, beta, (start, 0.0))
    expected = plain_moments(c, rate, noise, steps, beta, start)
    # What cancels are terms as large as |a|^n, so they set how exact both can be.
    size = 1e-11 * (1 + max(abs(1 - rate * c), 1) ** steps)
    assert mean[0] == pytest.approx(expected[0], rel=1e-9, abs=size * abs(start))
    assert mean[1] == 0
    assert variance[0] == pytest.approx(expected[1], rel=1e-9, abs=max((size * rate * noise) ** 2, 1e-300))


@pytest.mark.parametrize("beta", [0.5, 0.7, 0.7 + 1e-15, 0.7 - 1e-9, 0.98, 0.999999])
def test_nothing_cancels_where_the_decay_is_close_to_that_of_the_steps(beta):
    mean, variance = signals.final_moments([1.0], 0.3, 1.0, 300, beta, 2.0)
    assert (mean[0], variance[0]) == pytest.approx(plain_moments(1.0, 0.3, 1.0, 300, beta, 2.0), rel=1e-12)


@pytest.mark.parametrize("rate", [0.05, 0.3, 1.5, 2.1])
def test_simulated_runs_have_that_mean_and_variance(rate):
    curvatures, start, steps, runs = np.array([1.0, 0.25]), np.array([2.0, 1.6]), 40, 40_000
    noise = np.random.default_rng(7).standard_normal((steps, runs, 2))
    place = np.tile(start, (runs, 1))
    averaged = {beta: place.copy() for beta in (0.0, 0.9, 0.9999)}
    for step in range(1, steps):
        place = place - rate * (curvatures * place + 0.8 * noise[step])
        averaged = {beta: beta * old + (1 - beta) * place for beta, old in averaged.items()}
    means, variances = signals.final_moments(curvatures, rate, 0.8, steps, list(averaged), start)
    losses = signals.final_loss(curvatures, rate, 0.8, steps, list(averaged), start)
    for row, ends in enumerate(averaged.values()):
        np.testing.assert_allclose(ends.mean(axis=0), means[row], atol=5 * np.sqrt(variances[row].max() / runs))
        np.testing.assert_allclose(ends.var(axis=0), variances[row], rtol=0.05)
        measured = (ends**2 @ curvatures) / 2
        assert measured.mean() == pytest.approx(losses.total[row], abs=5 * measured.std() / math.sqrt(runs))


def test_the_simulation_is_the_average_of_sgd_with_the_same_noise():
    noise = np.random.default_rng(3)
    white = np.stack([noise.standard_normal((19, 5)) for _ in range(2)], axis=-1)
    found = signals.simulated_final_losses((1.0, 0.5), 0.4, 0.9, 20, [0.0, 0.8], (1.0, -2.0), runs=5, seed=3)
    assert found.shape == (5, 2)
    for run in range(5):
        path = [np.array([1.0, -2.0])]
        for step in range(19):
            path.append(path[-1] - 0.4 * (np.array([1.0, 0.5]) * path[-1] + 0.9 * white[step, run]))
        averaged = average(np.array(path), Constant(0.8).decays(20))[-1]
        expected = [signals.quadratic_loss((1.0, 0.5), end) for end in (path[-1], averaged)]
        np.testing.assert_allclose(found[run], expected)


def test_a_long_run_ends_in_the_stationary_loss_and_no_length_is_too_long():
    # Whoever went step by step would not come back from so many.
    last, averaged = signals.final_loss((1.0, 0.25), 0.3, 1.0, 10**15, [0.0, 0.9999], (2.0, 1.6)).total
    assert last == pytest.approx(signals.stationary_loss((1.0, 0.25), 0.3, 1.0))
    assert averaged == pytest.approx(signals.stationary_loss((1.0, 0.25), 0.3, 1.0, 0.9999))


def test_what_diverges_is_infinite_and_what_stays_stays():
    bias, variance = signals.final_loss((1.0, 0.1), 2.5, 1.0, 1_000_000, [0.0, 0.9, 1.0], (2.0, 0.0))
    assert bias.tolist() == [np.inf, np.inf, 2.0]
    assert variance.tolist() == [np.inf, np.inf, 0.0]
    assert signals.final_loss((1.0,), 2.5, 0.0, 1_000_000, [0.5], 0.0).total.tolist() == [0.0]
    assert np.isposinf(signals.simulated_final_losses((1.0,), 2.5, 1.0, 2000, [0.5], 1.0, runs=3)).all()
    assert signals.final_loss((2.0,), 1.0, 1.0, 50, [0.0]).variance[0] == pytest.approx(49)  # |a| = 1: a random walk


def test_a_run_of_its_start_only_is_its_start():
    bias, variance = signals.final_loss((2.0,), 0.1, 1.0, 1, [0.0, 0.5], 3.0)
    assert bias.tolist() == [9.0, 9.0]
    assert variance.tolist() == [0.0, 0.0]


def test_signals_are_their_formulas_and_the_least_period_is_two():
    t = np.arange(100)
    made = {name: signals.sequence(name, "none", 100, period=2).clean for name in signals.SIGNALS}
    np.testing.assert_allclose(made["sine"], np.sin(np.pi * t), atol=1e-12)
    np.testing.assert_allclose(made["converging"], 1 - np.exp(-8 * t / 100))
    np.testing.assert_array_equal(made["constant"], 1)
    assert made["ramp"][-1] == 1
    assert signals.sequence("ramp", "none", 1).clean.tolist() == [0]
    # A chirp's frequency rises evenly, to ten times the first or to half a cycle a step.
    for period, last in ((200, 1 / 20), (10, 0.5)):
        phase = 2 * np.pi * (t / period + (last - 1 / period) * t**2 / (2 * 99))
        np.testing.assert_allclose(
            signals.sequence("chirp", "none", 100, period=period).clean, np.sin(phase), atol=1e-9
        )
    walks = [signals.sequence("random walk", "none", 400, seed=seed).clean[-1] for seed in range(400)]
    assert np.std(walks) == pytest.approx(1, abs=0.12)


def test_noise_may_be_none_at_all():
    quiet = signals.sequence("sine", "white", 50, noise_level=0)
    np.testing.assert_array_equal(quiet.noisy, quiet.clean)
    still = signals.sgd_on_quadratic((1.0,), 0.1, 0.0, 20)
    np.testing.assert_array_equal(still.noisy, still.clean)


def test_spikes_are_rare_and_of_one_size():
    noise = signals.unit_noise("spikes", 100_000, np.random.default_rng(0))
    assert np.unique(np.abs(noise)).tolist() == pytest.approx([0, 1 / np.sqrt(0.02)])
    assert (noise != 0).mean() == pytest.approx(0.02, rel=0.1)
    assert (noise > 0).mean() == pytest.approx(0.01, rel=0.15)


def test_autoregressive_noise_is_stationary_from_its_first_step():
    firsts = [signals.unit_noise("AR(1)", 3, np.random.default_rng(seed), 0.9) for seed in range(4000)]
    np.testing.assert_allclose(np.std(firsts, axis=0), 1, atol=0.05)
