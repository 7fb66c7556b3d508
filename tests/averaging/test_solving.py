"""The same memory at another batch size or run length, against the product of decays that defines it."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emacore.averaging.families import (
    BiasCorrected,
    Constant,
    ExponentialRamp,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
)
from emacore.averaging.schedules import Schedule
from emacore.averaging.solving import at_batch_size, at_length
from tests.averaging.conftest import ANY

FACTORS = st.integers(2, 16)


def products(schedule, factor, moves):
    """What ``factor`` moves do at once, by the definition: move j of the new run spans moves (j-1)k+1 to jk of the old.

    Moves are counted from the copy at the start; shape (moves,), the first with that copy in it.
    """
    every = schedule.update_every
    calls = schedule.start + every * np.arange(1, factor * moves + 1)
    return schedule.at(calls).reshape(moves, factor).prod(axis=1)


def decays_of_moves(schedule, moves):
    return schedule.at(schedule.start + schedule.update_every * np.arange(1, moves + 1))


@given(
    st.one_of(
        st.builds(Constant, st.floats(0, 1), update_every=st.integers(1, 12)),
        st.builds(BiasCorrected, st.floats(0, 1), update_every=st.integers(1, 12)),
        st.builds(PowerFunction, st.floats(0, 100), update_every=st.integers(1, 12)),
        st.builds(UniformAverage, update_every=st.integers(1, 12)),
    ),
    FACTORS,
)
def test_where_it_is_exact_a_step_does_what_its_steps_did(schedule, factor):
    assert schedule.rescaling == ""
    found = at_batch_size(schedule, factor)
    # Families that count n from 1 at the copy: the new move n = 2 spans the old moves n = k + 1 to 2k.
    shift = factor - 1
    every = schedule.update_every
    calls = every * (shift + np.arange(1, factor * 40 + 1))
    exact = schedule.at(calls).reshape(40, factor).prod(axis=1)
    np.testing.assert_allclose(decays_of_moves(found, 40), exact, rtol=1e-9, atol=1e-12)


def test_a_constant_decay_is_taken_to_the_power_of_the_factor():
    assert at_batch_size(Constant(0.9999), 8) == Constant(0.9999**8)
    assert at_batch_size(Constant(0.9999), 0.5) == Constant(0.9999**0.5)


def test_a_power_function_stays_as_it_is():
    schedule = PowerFunction(sigma_rel=0.1)
    assert at_batch_size(schedule, 64) is not None
    assert at_batch_size(schedule, 64) == schedule
    assert at_length(schedule, 64) == schedule


@pytest.mark.parametrize("every", [1, 5])
def test_an_inverse_power_is_within_two_percent(every):
    schedule = InversePower(beta=1 - 1e-4, power=2 / 3, update_after_step=0, update_every=every)
    found = at_batch_size(schedule, 8)
    assert found.beta == pytest.approx(schedule.beta**8, rel=1e-15)
    assert found.inv_gamma == pytest.approx(8**0.5)
    moves = 200_000 // every
    # The rule itself, without the copy that its first move is.
    old, new = (
        rule.decays_of_moves(every * np.arange(1.0, n + 1)) for rule, n in ((schedule, 8 * moves), (found, moves))
    )
    off = np.abs((1 - new) / (1 - old.reshape(moves, 8).prod(axis=1)) - 1)
    assert off[6:].max() < 0.025
    assert off[101:].max() < 0.02
    assert old[0] < 0.8
    assert old[-1] == schedule.beta
    assert off[-1] == pytest.approx(0, abs=1e-9)


def test_what_is_not_exact_is_within_what_is_said():
    factor, moves = 8, 2000
    warm = RationalWarmup(0.9999)
    off = (1 - decays_of_moves(at_batch_size(warm, factor), moves)) / (1 - products(warm, factor, moves)) - 1
    assert np.abs(off[100:]).max() < 0.055
    ramp = ExponentialRamp(0.99, 400.0)
    ours, exact = decays_of_moves(at_batch_size(ramp, factor), moves), products(ramp, factor, moves)
    assert np.all(ours >= exact - 1e-12)
    assert ours[-1] == pytest.approx(exact[-1], rel=1e-9)
    for family in (warm, ramp, InversePower()):
        assert family.rescaling.endswith(".")


@given(ANY, st.floats(0.05, 20))
def test_there_and_back_is_the_same(schedule, factor):
    assume(getattr(schedule, "power", 1) > 0.05)  # else inv_gamma is beyond all use
    there = at_batch_size(schedule, factor)
    back = at_length(there, factor)
    assert type(back) is type(schedule)
    assert back.update_every == schedule.update_every
    for name, value in schedule.to_dict().items():
        if name == "update_after_step":
            assert abs(getattr(back, name) - value) <= factor / 2 + 0.5
        elif isinstance(value, float) and 1e-3 < value < 1:
            assert getattr(back, name) == pytest.approx(value, rel=1e-6)


def test_the_warm_up_scales_too():
    assert at_batch_size(Constant(0.99, update_after_step=1000, update_every=10), 4) == Constant(
        0.99**4, update_after_step=250, update_every=10
    )
    assert at_length(Constant(0.99, update_after_step=1000), 3).update_after_step == 3000


def test_a_family_that_does_not_say_is_told():
    class Silent(Schedule):
        pass

    with pytest.raises(ValueError, match="Silent does not say which of its settings would do in one step"):
        at_batch_size(Silent(), 4)
    with pytest.raises(ValueError, match="factor must be"):
        at_batch_size(Constant(), 0.0)
