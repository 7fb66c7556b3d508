import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from emacore.averaging.families import Constant, UniformAverage
from emacore.averaging.weights import (
    average,
    effective_count,
    initial_share,
    mean_age,
    moving_average,
    recursion,
    relative_width,
    start_share,
    weights,
)

rates = st.integers(1, 60).flatmap(
    lambda n: arrays(np.float64, n, elements=st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])))
)


def plain(values, decays, initial=0.0):
    result, current = [], initial
    for value, decay in zip(values, decays, strict=True):
        current = decay * current + (1 - decay) * value
        result.append(current)
    return np.array(result)


@given(rates, st.floats(-10, 10), st.randoms(use_true_random=False))
def test_average_is_the_recursion_and_weights_add_to_one(decays, initial, random):
    values = np.array([random.uniform(-5, 5) for _ in decays])
    result = average(values, decays, initial)
    np.testing.assert_allclose(result, plain(values, decays, initial), atol=1e-12)
    for step in (-1, len(decays) // 2):
        shares, rest = weights(decays, step), initial_share(decays, step)
        assert np.all(shares >= 0)
        assert shares.sum() + rest == pytest.approx(1)
        assert result[step] == pytest.approx(shares @ values + rest * initial, abs=1e-10)


def test_average_of_several_columns_with_their_own_start():
    decays = np.array([0.5, 0.0, 1.0, 0.25])
    values = np.arange(8.0).reshape(4, 2)
    result = average(values, decays, initial=[10, 20])
    expected = [[5, 10.5], [2, 3], [2, 3], [0.25 * 2 + 0.75 * 6, 0.25 * 3 + 0.75 * 7]]
    np.testing.assert_allclose(result, expected)
    np.testing.assert_array_equal(average(values[:, 1], decays, 20.0), result[:, 1])


def test_a_million_varying_decays_neither_overflow_nor_vanish():
    rng = np.random.default_rng(0)
    decays, values = rng.random(1_000_000), rng.normal(size=1_000_000)
    decays[::1000] = 0.0
    decays[500::1000] = 1.0
    np.testing.assert_allclose(average(values, decays), plain(values.tolist(), decays.tolist()), atol=1e-9)
    np.testing.assert_allclose(weights(decays).sum() + initial_share(decays), 1)
    tiny = np.full(1_000_000, 1e-300)
    np.testing.assert_allclose(average(values, tiny), values, atol=1e-9)
    assert np.all(np.isfinite(weights(tiny)))


def test_a_skipped_value_does_not_spread_even_if_it_is_nan():
    result = average([1.0, np.nan, 3.0], [0.0, 1.0, 0.5])
    np.testing.assert_array_equal(result, [1.0, 1.0, 2.0])


@pytest.mark.parametrize("step", [1.0, "1", None, [1]])
def test_a_step_is_a_whole_number(step):
    for ask in (weights, initial_share, start_share, mean_age, effective_count, relative_width):
        with pytest.raises(TypeError, match="step must be a whole number, got"):
            ask([0.0, 0.5, 0.5], step)


@pytest.mark.parametrize("values", [3.0, np.zeros((2, 2, 2))])
def test_the_values_of_a_window_have_one_shape_or_the_other(values):
    with pytest.raises(ValueError, match=r"values must have shape \(T,\) or \(T, k\), got"):
        moving_average(values, 2)


def test_shares_of_the_start_and_of_the_initial_average():
    decays = Constant(0.9, update_after_step=10).decays(51)
    assert initial_share(decays) == 0
    assert start_share(decays) == pytest.approx(0.9**40)
    assert initial_share(np.full(10_000, 0.9)) == start_share(np.full(10_000, 0.9)) == 0  # where rounding would stop
    assert weights(decays)[10] == pytest.approx(0.9**40)
    no_copy = np.full(40, 0.9)
    assert start_share(no_copy) == initial_share(no_copy) == pytest.approx(0.9**40)


def test_age_count_and_width_by_hand():
    uniform = UniformAverage().decays(100)
    assert mean_age(uniform) == pytest.approx(49.5)
    assert effective_count(uniform) == pytest.approx(100)
    assert relative_width(uniform) == pytest.approx(np.sqrt((100**2 - 1) / 12) / 100)
    long = np.full(5000, 0.9)
    assert mean_age(long) == pytest.approx(0.9 / 0.1)
    assert effective_count(long) == pytest.approx(1.9 / 0.1)
    assert relative_width(long) == pytest.approx(np.sqrt(0.9) / 0.1 / 5000)
    assert mean_age([0.0]) == 0
    assert effective_count([0.5]) == 2


def test_skipping_makes_the_first_snapshot_weigh_123_times_its_share():
    # 2000 steps of the article's class with power 1 and update_every 10: meant as the plain mean of 200 snapshots.
    from emacore.averaging.families import InversePower

    decays = InversePower(beta=1.0, power=1.0, update_after_step=0, update_every=10).decays(2000)
    shares = weights(decays)[10::10]
    assert effective_count(decays) == pytest.approx(2.6, abs=0.05)
    assert shares[0] * len(shares) == pytest.approx(123, rel=0.02)


@given(st.integers(1, 30), st.integers(1, 80))
def test_moving_average_equals_pandas(window, length):
    values = np.random.default_rng(length).normal(size=(length, 2)) + 1e6
    expected = pd.DataFrame(values).rolling(window, min_periods=1).mean()
    np.testing.assert_allclose(moving_average(values, window), expected, rtol=1e-12)


def plain_windows(values, window):
    with np.errstate(invalid="ignore"):
        return np.array([values[max(0, t + 1 - window) : t + 1].mean(axis=0) for t in range(len(values))])


@given(
    st.integers(1, 30),
    st.integers(1, 50).flatmap(
        lambda n: arrays(
            np.float64,
            (n, 2),
            elements=st.one_of(st.floats(-1, 1), st.sampled_from([np.nan, np.inf, -np.inf, 1e17, -1e200])),
        )
    ),
)
def test_a_moving_average_is_touched_only_by_what_is_in_its_window(window, values):
    expected = plain_windows(values, window)
    found = moving_average(values, window)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    # Each as exact as its own largest value allows.
    largest = np.array([np.abs(values[max(0, t + 1 - window) : t + 1]).max(axis=0) for t in range(len(values))])
    fine = np.isfinite(expected)
    assert np.all(np.abs(found[fine] - expected[fine]) <= 1e-14 * largest[fine])


def test_a_nan_spoils_the_windows_that_hold_it_alone():
    np.testing.assert_array_equal(moving_average([1, 2, np.nan, 4, 6], 2), [1, 1.5, np.nan, np.nan, 5])
    np.testing.assert_array_equal(moving_average([1, np.inf, 3, 5, -np.inf], 2), [1, np.inf, np.inf, 4, -np.inf])
    np.testing.assert_array_equal(moving_average([np.inf, -np.inf, 3], 2), [np.inf, np.nan, -np.inf])


def test_what_copies_all_along_keeps_nothing_of_its_start():
    copying = Constant(0.0, update_after_step=10).decays(51)
    assert start_share(copying, start=10) == 0
    assert start_share(copying, step=5, start=10) == 1
    decays = Constant(0.9, update_after_step=10).decays(51)
    assert start_share(decays, start=10) == start_share(decays) == pytest.approx(0.9**40)


@pytest.mark.parametrize(("inv_gamma", "every", "plain"), [(1, 1, True), (10, 10, True), (1, 10, False), (5, 1, False)])
def test_power_1_is_the_plain_mean_with_some_settings_only(inv_gamma, every, plain):
    from emacore.averaging.families import InversePower

    schedule = InversePower(1.0, inv_gamma, 1.0, update_after_step=0, update_every=every)
    shares = weights(schedule.decays(500))[schedule.start :: every]
    assert np.allclose(shares[1:], 1 / (len(shares) + 1)) == plain
    assert not plain or shares[0] == pytest.approx(2 / (len(shares) + 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average([1.0, 2.0], [0.5]), r"values must have shape \(1,\)"),
        (lambda: average([1.0], [1.5]), r"decays\[0\] is .*1\.5"),
        (lambda: weights([0.5, float("nan")]), r"decays\[1\]"),
        (lambda: weights([[0.5]]), "shape"),
        (lambda: weights([0.5], step=1), "step must be one of the 1 calls"),
        (lambda: moving_average([1.0], 0), "window"),
        (lambda: moving_average([1.0], float("inf")), "window must be a whole number of at least 1, got inf"),
        (lambda: moving_average([1.0], "3"), "window must be a whole number of at least 1, got '3'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_empty_sequences():
    assert average([], []).shape == (0,)
    assert moving_average([], 3).shape == (0,)


@pytest.mark.parametrize("shape", [(1,), (400,), (401,), (300, 3), (300, 40), (1000, 2), (0,), (0, 3)])
@pytest.mark.parametrize("one", [True, False])
def test_the_recursion_is_that_of_a_plain_loop_short_and_long(shape, one):
    rng = np.random.default_rng(1)
    driven, factors = rng.normal(size=shape), 0.9 if one else rng.uniform(-1.2, 1.0, shape[0])
    expected, value = np.empty(shape), np.zeros(shape[1:])
    for step in range(shape[0]):
        value = (factors if one else factors[step]) * value + driven[step]
        expected[step] = value
    found = recursion(factors, driven.copy())
    assert found.shape == shape
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.3, 0.9, 0.999, 0.99999])
def test_weights_fall_to_nothing_and_do_not_stop_at_the_smallest_number(beta):
    ages = np.arange(min(int(2000 / -np.log(beta)), 10**7))[::-1]
    logs = np.log(1 - beta) + ages * np.log(beta)
    found = weights(np.full(len(ages), beta))
    assert (found[logs < np.log(1e-308) - 30] == 0).all()
    large = logs > np.log(1e-290)
    np.testing.assert_allclose(np.log(found[large]), logs[large], rtol=1e-9)


def test_decays_of_no_call_are_told_as_that():
    for function in (weights, initial_share, mean_age, effective_count, relative_width):
        with pytest.raises(ValueError, match="decays must be those of at least one call"):
            function([])
