import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore.averaging.rounding import round_and_even, round_and_even_in_log
from emacore.averaging.schedules import FAMILIES

LOW = st.floats(1e-6, 1e6)
MOST = st.integers(2, 40)


def digits(value):
    """How many digits of a number matter."""
    return len(f"{value:.9e}".partition("e")[0].replace(".", "").rstrip("0"))


@given(LOW, st.floats(1, 1e6), MOST)
def test_numbers_that_are_even_are_multiples_of_a_round_step_within_the_range(low, ratio, most):
    high = low * ratio
    values = round_and_even(low, high, most)
    if ratio <= 1 + 1e-9:
        assert values.tolist() == [low]
        return
    assert len(values) <= most
    if len(values) > 2:
        steps = np.diff(values)
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
        assert f"{steps[0]:.6e}"[:4].rstrip("0.") in ("1", "2", "2.5", "5")
        np.testing.assert_allclose(values / steps[0], np.round(values / steps[0]), atol=1e-4)
    if len(values):
        assert low * (1 - 1e-6) <= values[0] <= values[-1] <= high * (1 + 1e-6)
    elif most > 3:
        assert ratio < 1.1, "a wide range has round numbers in it"


@given(LOW, st.floats(1, 1e9), MOST)
def test_numbers_that_are_even_in_their_logarithm_have_two_digits_and_no_gap_is_wide(low, ratio, most):
    high = low * ratio
    values = round_and_even_in_log(low, high, most)
    assert 1 <= len(values) <= most
    assert low * (1 - 1e-6) <= values[0] <= values[-1] <= high * (1 + 1e-6)
    assert (np.diff(values) > 0).all()
    if ratio > 20 and most > 2 * np.log10(ratio) + 2:
        assert max(map(digits, values)) <= 2
        gaps = np.diff(np.log10([low, *values, high]))
        assert gaps.max() < 1.01
        assert len(values) > most / 4, "as many as there may be"


@pytest.mark.parametrize("family", FAMILIES.values())
def test_the_axes_of_every_family_are_round(family):
    for control in family.controls:
        if control.axis:
            values = control.on_axis(20)
            assert 10 <= len(np.unique(values)) == len(values) <= 20
            assert control.axis[0] <= values[0] < values[-1] <= control.axis[1]
            rest = (1 - values).round(12) if control.scale == "log(1 - value)" else values
            assert max(map(digits, rest)) <= 2


def test_known_axes():
    assert round_and_even(0.1, 2, 20).tolist() == [round(n / 10, 1) for n in range(1, 21)]
    assert round_and_even(0, 0.95 * 5300, 20).tolist() == [500.0 * n for n in range(11)]
    assert round_and_even_in_log(0.1, 1000, 20)[:5].tolist() == [0.1, 0.2, 0.3, 0.5, 1.0]
    assert round_and_even_in_log(1, 1, 20).tolist() == [1.0]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: round_and_even(2, 1, 5), "low must be at most high, got 2 and 1"),
        (lambda: round_and_even_in_log(0, 1, 5), "low must be above 0, got 0"),
    ],
)
def test_what_is_no_range_is_told(call, told):
    with pytest.raises(ValueError, match=told):
        call()
