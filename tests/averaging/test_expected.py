"""The distance from the true average that is to be expected of a merge of raw files."""

import numpy as np
import pytest

from emacore import Constant, PowerFunction, UniformAverage, Window
from emacore.averaging.coefficients import Span, split_linearly, target_of
from emacore.averaging.expected import expected_distances, growth_of
from emacore.averaging.held import squared_distances

CALLS, ENDS = 3000, np.array([0, 120, 240, 260, 500, 900, 1200, 1500, 1800, 2100, 2300, 2700, 2999])
SCHEMES = [Constant(0.99), Constant(0.999), Window(400), PowerFunction(sigma_rel=0.1), UniformAverage()]
GENERATOR = np.random.default_rng(0)


def noise():
    return GENERATOR.standard_normal((CALLS, 800))


WALKS = {
    "noise": (0.0, noise),
    "walk": (1.0, lambda: np.cumsum(noise(), axis=0)),
    "slower and slower": (1.0, lambda: np.cumsum(noise() / np.linspace(1, 30, CALLS)[:, None], axis=0)),
    "line": (2.0, lambda: np.linspace(0, 9, CALLS)[:, None] + 1e-6 * noise()),
}


@pytest.mark.parametrize("kind", WALKS)
def test_it_is_the_real_distance_of_motions_of_a_known_power(kind):
    power, make = WALKS[kind]
    rows = make()
    squared = squared_distances(rows[ENDS])
    assert growth_of(squared) == pytest.approx(np.clip(power, 0.1, 1.95), abs=0.12)
    targets = [target_of(scheme, 0, CALLS) for scheme in SCHEMES]
    factors = np.stack([split_linearly(target, ENDS) for target in targets])
    real = np.linalg.norm(factors @ rows[ENDS] - np.stack(targets) @ rows, axis=1)
    found = expected_distances(targets, [Span(end, end) for end in ENDS.tolist()], factors, squared)
    if kind == "line":  # whose interpolation is exact between files
        assert (found < 0.02 * np.sqrt(squared.max())).all()
    else:
        np.testing.assert_allclose(found, real, rtol=0.25)


def test_where_nothing_can_be_expected_it_says_nothing():
    targets, factors = [target_of(UniformAverage(), 0, 30), None], np.full((2, 3), 1 / 3)
    raw = [Span(end, end) for end in (9, 19, 29)]
    apart = np.array([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]])
    assert np.isnan(expected_distances(targets, raw, factors, apart)).tolist() == [False, True]
    for profiles, squared in (
        (raw[:2], apart[:2, :2]),
        ([Span(0, 9), Span(10, 19), Span(20, 29)], apart),
        (raw, np.where(apart == 2, np.nan, apart)),
    ):
        assert np.isnan(expected_distances(targets, profiles, factors[:, : len(profiles)], squared)).all()
    assert expected_distances(targets[:1], raw, factors[:1], np.zeros((3, 3))).tolist() == [0]
