"""Averages over stored sets, from their weights and the distances between them alone."""

import numpy as np
import pytest

from emacore import Constant, InversePower, PowerFunction, UniformAverage, Window
from emacore.averaging.coefficients import Span, certificate
from emacore.averaging.held import held, held_coefficients, squared_distances
from emacore.averaging.weights import weights

ENDS = [0, 4, 9, 30, 31, 59]
SCHEDULES = [
    Constant(0.0),
    Constant(0.9),
    InversePower(0.99, update_after_step=7, update_every=5),
    PowerFunction(sigma_rel=0.1),
    UniformAverage(),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda one: type(one).__name__ + str(getattr(one, "beta", "")))
def test_shares_and_distances_are_those_of_an_average_that_is_really_kept(schedule):
    rows = np.random.default_rng(0).standard_normal((len(ENDS), 50)) + 1000
    decays = schedule.decays(60)
    average, apart = np.zeros(50), []
    for call in range(60):
        value = rows[np.searchsorted(ENDS, call)]
        average = decays[call] * average + (1 - decays[call]) * value
        if call in ENDS:
            apart.append(np.linalg.norm(average - value))
    profiles = [Span(end, end) for end in ENDS]
    found = held(schedule, profiles, squared_distances(rows, 7))
    np.testing.assert_allclose(found.shares @ rows, average, rtol=1e-12)
    np.testing.assert_allclose(found.distances, apart, rtol=1e-6, atol=1e-5)
    told = certificate(weights(decays), profiles, found.shares)
    assert (found.error, found.reached) == pytest.approx((told.error, told.reached))
    means = [Span(begin + 1, end) for begin, end in zip([-1, *ENDS[:-1]], ENDS, strict=True)]
    told = certificate(weights(decays), means, found.shares)
    assert (held(schedule, means).error, held(schedule, means).reached) == (told.error, told.reached)
    assert np.isnan(held(schedule, profiles).distances).all()
    assert held_coefficients(decays, ENDS)[0].tolist() == [1, 0, 0, 0, 0, 0]


def test_a_window_is_followed_from_set_to_set():
    rows = np.random.default_rng(2).standard_normal((len(ENDS), 20))
    values = rows[np.searchsorted(ENDS, np.arange(60))]
    found = held(Window(10), [Span(end, end) for end in ENDS], squared_distances(rows))
    means = [values[max(0, end - 9) : end + 1].mean(axis=0) for end in ENDS]
    np.testing.assert_allclose(found.shares @ rows, means[-1], rtol=1e-12)
    np.testing.assert_allclose(found.distances, np.linalg.norm(means - rows, axis=1), atol=1e-6)


def test_distances_keep_their_digits_however_far_the_rows_are_from_0():
    rows = np.random.default_rng(1).standard_normal((4, 300))
    expected = ((rows[:, np.newaxis] - rows) ** 2).sum(axis=2)
    shares = []
    np.testing.assert_allclose(squared_distances(rows + 1e6, 100, shares.append), expected, rtol=1e-8, atol=1e-9)
    assert shares == [0, 1 / 3, 2 / 3]


@pytest.mark.parametrize("ends", [[], [3, 3], [5, 2]])
def test_sets_that_do_not_rise_are_refused(ends):
    with pytest.raises(ValueError, match="rising calls"):
        held(Constant(0.9), [Span(end, end) for end in ends])
