"""What a merge of stored files is, and what is said of it."""

import numpy as np
import pytest

from emacore.averaging.coefficients import Averaged, Coefficients, LastFiles, RateDecay, Span, certificate
from emacore.averaging.families import Constant, PowerFunction, UniformAverage
from emacore.averaging.planned import planned, planned_in_words
from emacore.averaging.weights import weights
from emacore.averaging.windows import Window

RAW = [Span(call, call) for call in (9, 19, 29)]
WINDOWS = [Span(0, 9), Span(10, 19), Span(20, 29)]


def test_raw_files_share_the_weight_of_the_steps_between_them():
    found = planned(Window(10), RAW, 30)
    shares = np.arange(1, 11) / 10
    np.testing.assert_allclose(found.coefficients, [0, 1 - shares.mean(), shares.mean()])
    assert found.certificate == certificate(found.target, RAW, found.coefficients)


def test_means_of_windows_give_what_they_can_exactly():
    found = planned(Window(20), WINDOWS, 30)
    np.testing.assert_allclose(found.coefficients, [0, 0.5, 0.5], atol=1e-9)
    assert found.certificate.error < 1e-7
    assert found.nonnegative < 1e-7


def test_averages_are_combined_by_the_best_coefficients_of_any_sign():
    decays = PowerFunction(sigma_rel=0.1).decays(30), PowerFunction(sigma_rel=0.25).decays(30)
    profiles = [Averaged(end, one) for end in (14, 29) for one in decays]
    found = planned(PowerFunction(sigma_rel=0.15), profiles, 30)
    assert (found.coefficients < 0).any()
    assert found.certificate.error == pytest.approx(found.free)
    assert found.free < found.nonnegative


@pytest.mark.parametrize("asked", [LastFiles(2, Constant(0.5)), Coefficients((-0.5, 1.5))])
def test_what_stands_for_no_average_over_steps_is_compared_with_none(asked):
    found = planned(asked, RAW, 30)
    assert found.target is None
    assert np.isnan([found.certificate.error, found.certificate.wanted, found.free, found.nonnegative]).all()
    assert found.certificate.reached == pytest.approx(1 / (found.coefficients**2).sum())
    assert "stands for no average" in planned_in_words(found)


def test_the_last_raw_files_stand_for_all_steps_since_the_first_of_them():
    found = planned(LastFiles(2), RAW, 30)
    np.testing.assert_allclose(found.target, [0] * 19 + [1 / 11] * 11)
    of_windows = planned(LastFiles(2), WINDOWS, 30)
    np.testing.assert_allclose(of_windows.target, [0] * 10 + [1 / 20] * 20)
    assert of_windows.certificate.error == pytest.approx(0, abs=1e-9)
    assert of_windows.certificate.wanted == pytest.approx(20)


@pytest.mark.parametrize("fit", ["nonnegative", "free"])
def test_the_nearest_coefficients_are_at_least_as_near(fit):
    plain = planned(UniformAverage(), RAW, 30)
    found = planned(UniformAverage(), RAW, 30, fit)
    assert found.certificate.error <= plain.certificate.error + 1e-12
    assert found.certificate.error == pytest.approx(getattr(plain, fit))
    np.testing.assert_allclose(plain.target, weights(UniformAverage().decays(30)))


def test_what_these_files_cannot_give_is_refused():
    with pytest.raises(ValueError, match="linear"):
        planned(Window(10), WINDOWS, 30, "linear")
    with pytest.raises(ValueError, match="fit"):
        planned(Window(10), RAW, 30, "best")
    with pytest.raises(ValueError, match="two files"):
        planned(RateDecay(), RAW[-1:], 30)
    with pytest.raises(ValueError, match="4 coefficients"):
        planned(Coefficients((1.0,) * 4), RAW, 30)


def test_words_have_the_certificate_and_what_is_odd():
    told = planned_in_words(planned(Window(10), RAW, 30))
    assert "2 files weigh something" in told
    assert "the average over all steps that it stands for, as that of 10" in told
    odd = planned_in_words(planned(Coefficients((-2.0, 2.5)), RAW, 30))
    assert "add to 0.5, not 1" in odd
    assert "amplified by up to 4.5" in odd
