import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore.averaging.coefficients import LastFiles
from emacore.averaging.families import Constant, InversePower
from emacore.averaging.weights import (
    average,
    effective_count,
    mean_age,
    moving_average,
    relative_width,
    start_share,
    weights,
)
from emacore.averaging.windows import Window, decays_at_end
from tests.averaging.conftest import ANY

VALUES = np.random.default_rng(0).normal(size=200)


@given(st.integers(1, 300), st.integers(1, 200))
def test_a_plain_windows_weights_are_those_of_the_moving_average(size, steps):
    shares = weights(decays_at_end(Window(size), steps))
    assert shares.shape == (steps,)
    np.testing.assert_allclose(shares @ VALUES[:steps], moving_average(VALUES, size)[steps - 1], atol=1e-12)
    inside = min(size, steps)
    np.testing.assert_allclose(shares, np.repeat([0, 1 / inside], [steps - inside, inside]), rtol=1e-12)


@given(ANY, st.integers(1, 300), st.integers(1, 200))
def test_a_schedule_in_a_window_begins_at_the_windows_first_call(schedule, size, steps):
    shares = weights(decays_at_end(Window(size, schedule), steps))
    looked_at = VALUES[max(0, steps - size) : steps]
    expected = average(looked_at, schedule.decays(len(looked_at)))[-1]
    np.testing.assert_allclose(shares @ VALUES[:steps], expected, atol=1e-12)


@given(ANY, st.integers(0, 100))
def test_a_schedules_own_decays_are_left_as_they_are(schedule, steps):
    np.testing.assert_array_equal(decays_at_end(schedule, steps), schedule.decays(steps))


def test_figures_of_a_window_by_hand():
    decays = decays_at_end(Window(100), 5000)
    assert mean_age(decays) == pytest.approx(49.5)
    assert effective_count(decays) == pytest.approx(100)
    assert relative_width(decays) == pytest.approx(np.sqrt((100**2 - 1) / 12) / 5000)
    assert start_share(decays) == pytest.approx(0.01)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="size must be a whole number of at least 1, got 0"):
        Window(0)
    for wrong in (Window(2), 0.9, "Constant()"):
        with pytest.raises(TypeError, match="schedule must be a schedule or None, got"):
            Window(3, wrong)
        with pytest.raises(TypeError, match="schedule must be a schedule, such as .*, got"):
            LastFiles(3, wrong)
    assert Window(3, InversePower()).rule == InversePower()
    assert Window(3, Constant(0.5)) == Window(size=3, schedule=Constant(0.5))


def test_what_is_no_scheme_is_refused():
    with pytest.raises(TypeError, match=r"a schedule or a window, such as .* got 0\.9"):
        decays_at_end(0.9, 10)
