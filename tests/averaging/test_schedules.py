import math
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from emacore.averaging import code, families, schedules, solving
from emacore.averaging.families import (
    BiasCorrected,
    Constant,
    ExponentialRamp,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
)
from emacore.averaging.parts import memory
from emacore.averaging.remarks import remarks
from emacore.averaging.schedules import Schedule
from emacore.averaging.weights import mean_age, relative_width, weights
from tests.averaging.conftest import ANY, extremes


@given(ANY, st.integers(1, 300))
def test_decays_are_decays_and_copy_up_to_the_start(schedule, num_steps):
    rates = schedule.decays(num_steps)
    assert rates.shape == (num_steps,)
    assert rates.dtype == np.float64
    assert np.all((rates >= 0) & (rates <= 1))
    calls = np.arange(num_steps)
    acts = calls % schedule.update_every == 0
    assert np.all(rates[~acts] == 1)
    assert np.all(rates[acts & (calls <= schedule.start)] == 0)
    assert schedule.start % schedule.update_every == 0


@given(ANY, st.floats(0.01, 1.0))
def test_reaches_names_the_first_call(schedule, decay):
    if isinstance(schedule, (BiasCorrected, ExponentialRamp)):  # within rounding of its limit no call is the first
        assume(decay >= schedule.beta or decay < schedule.beta * (1 - 1e-12))
    call = schedule.reaches(decay)
    rates = schedule.decays(2000)
    rates[np.arange(2000) % schedule.update_every != 0] = 0
    found = np.flatnonzero(rates >= decay)
    if call is None or call >= 2000:
        assert not found.size
    else:
        assert found[0] == call


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: InversePower(beta=1.5), "beta must be in .* got 1.5"),
        (lambda: InversePower(beta=float("nan")), "beta"),
        (lambda: InversePower(power=0), "power must be .* above 0, got 0"),
        (lambda: InversePower(inv_gamma=-1), "inv_gamma"),
        (lambda: Constant(update_every=0), "update_every must be a whole number of at least 1, got 0"),
        (lambda: Constant(update_after_step=-1), "update_after_step"),
        (lambda: Constant(update_every=2.5), "update_every"),
        (lambda: PowerFunction(), "exactly one"),
        (lambda: PowerFunction(gamma=1, sigma_rel=0.1), "exactly one"),
        (lambda: PowerFunction(sigma_rel=0.4), "sigma_rel"),
        (lambda: ExponentialRamp(tau=0), "tau"),
        (lambda: schedules.schedule_from_dict({"family": "Nope"}), "one of InversePower.*'Nope'"),
        (lambda: schedules.schedule_from_dict({"family": "Constant", "power": 1}), "no setting 'power'"),
        (lambda: Constant().reaches(0), "decay must be in"),
    ],
)
def test_wrong_settings_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()


@given(ANY)
def test_dict_round_trip(schedule):
    assert schedules.schedule_from_dict(schedule.to_dict()) == schedule


@pytest.mark.parametrize("beta", [5e-324, 0.3, 0.9, schedules.LARGEST_DECAY, 1.0])
@pytest.mark.parametrize("family", [BiasCorrected, ExponentialRamp])
def test_a_limit_is_never_reached(family, beta):
    for schedule in (family(beta), *([ExponentialRamp(beta, tau=0.5)] if family is ExponentialRamp else [])):
        assert schedule.reaches(beta) is None
        assert schedule.decays(5000).max() < beta
        assert schedule.at([2**50])[0] < beta


@pytest.mark.parametrize(
    "schedule",
    [
        InversePower(beta=1.0, power=5.0, update_after_step=0, update_every=1),
        InversePower(beta=1.0, inv_gamma=1e-100, power=1e100, update_every=1),
        BiasCorrected(1.0),
        RationalWarmup(1.0),
        ExponentialRamp(1.0, tau=1e-100),
        PowerFunction(gamma=0),
        UniformAverage(),
    ],
    ids=repr,
)
def test_no_call_is_skipped_because_a_decay_was_rounded_to_1(schedule):
    """In double precision 1 - (1 + e) ** -5 is 1 from e = 1782 on, but a decay of 1 takes nothing in any more."""
    late = schedule.start + schedule.update_every * np.array([1, 2, 1782, 5000, 10**9, 2**50])
    assert schedule.at(late).max() < 1
    assert schedule.reaches(1.0) is None


def test_a_decay_of_1_that_is_meant_is_kept():
    assert Constant(1.0).decays(9)[1:].tolist() == [1] * 8
    assert InversePower(beta=1.0, min_value=1.0, update_after_step=0, update_every=1).reaches(1.0) == 2


@given(ANY, st.floats(0.01, 1.0))
def test_without_a_formula_the_same_call_is_found(schedule, decay):
    if isinstance(schedule, (BiasCorrected, ExponentialRamp)):
        assume(decay >= schedule.beta or decay < schedule.beta * (1 - 1e-12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(schedule), "call_reaching", Schedule.call_reaching)
        by_search = schedule.reaches(decay)
    assert schedule.reaches(decay) == by_search


LATE = [1, 100, 10**4, 10**6, 10**9, 10**12, 10**15]
NEAR_1 = [1 - 10.0**-k for k in range(1, 16)] + [1 - k * 2.0**-53 for k in (0, 1, 2, 3, 8, 1000)]


@pytest.mark.parametrize("beta", [0.5, 0.999, 1 - 1e-9, 1 - 2.0**-52, schedules.LARGEST_DECAY, 1.0])
@pytest.mark.parametrize("family", [InversePower, BiasCorrected, RationalWarmup, ExponentialRamp])
def test_no_decay_falls_by_rounding_however_late(family, beta):
    schedule = family(beta=beta, update_after_step=0, update_every=1)
    for first in LATE:
        assert (np.diff(schedule.at(np.arange(first, first + 1000))) >= 0).all(), first


@pytest.mark.parametrize(
    "schedule",
    [
        BiasCorrected(1.0),
        BiasCorrected(1 - 2.0**-52, update_every=3),
        ExponentialRamp(1.0, tau=0.1),
        InversePower(beta=1.0, power=10.0),
        PowerFunction(gamma=0),
        PowerFunction(gamma=100, update_every=10),
        RationalWarmup(1.0),
        UniformAverage(update_after_step=100),
    ],
    ids=repr,
)
def test_decays_next_to_1_are_reached_where_they_first_are(schedule):
    for level in NEAR_1:
        call = schedule.reaches(level)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(schedule), "call_reaching", Schedule.call_reaching)
            assert schedule.reaches(level) == call, level
        if call is not None:
            before, there = schedule.at([call - schedule.update_every, call])
            assert before < level <= there, level


def test_families_are_all_listed():
    here = {family for family in vars(families).values() if isinstance(family, type) and issubclass(family, Schedule)}
    assert set(schedules.FAMILIES.values()) == here - {Schedule}
    assert replace(Constant(0.5), beta=0.25).beta == 0.25


WILD = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([10**22, -(10**22), 10**400, 10**5000, 5e-324, 1e-300, 1e300, True, None, "a", (), 1j]),
    st.sampled_from([np.float16(0.9), np.float32(0.999), np.float64(0.5), np.int8(100), np.uint64(7), np.bool_(True)]),
)


@given(st.sampled_from(sorted(schedules.FAMILIES)), st.data())
def test_any_value_of_any_setting_gives_a_schedule_or_a_sentence_that_names_it(family, data):
    own = [f.name for f in fields(schedules.FAMILIES[family])]
    name = data.draw(st.sampled_from(own))
    settings = {name: data.draw(WILD)}
    if family == "PowerFunction" and name not in ("gamma", "sigma_rel"):
        settings["gamma"] = 1.0
    told = ""
    try:
        schedule = schedules.FAMILIES[family](**settings)
    except ValueError as error:
        told = str(error)
    if told:
        assert f"{name} must be" in told or "exactly one of gamma and sigma_rel" in told
    else:
        assert np.all(np.isfinite(schedule.decays(50)))
        assert code.from_code(code.to_code(schedule)) == schedule


@given(extremes(), st.integers(1, 200), st.floats(0, 1, exclude_min=True))
def test_the_edges_of_the_settings_give_numbers(schedule, num_steps, level):
    rates = schedule.decays(num_steps)
    assert np.all((rates >= 0) & (rates <= 1))
    assert schedules.final_half_life(schedule, num_steps) >= 0
    call = schedule.reaches(level)
    assert call is None or call > schedule.start
    assert 0 <= relative_width(rates) <= 1
    assert schedules.schedule_from_dict(schedule.to_dict()) == code.from_code(code.to_code(schedule)) == schedule
    assert all(isinstance(remark, str) for remark in remarks(schedule, num_steps))


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: PowerFunction(sigma_rel=1e-300), "sigma_rel must be from 1e-100 to 0.288675, got 1e-300"),
        (lambda: PowerFunction(gamma=10**400), "gamma must be finite and at least 0|gamma must be from 0 to 1e.100"),
        (lambda: PowerFunction(gamma="a"), "gamma must be finite and at least 0, got 'a'"),
        (lambda: PowerFunction(sigma_rel="a"), "sigma_rel must be in .* got 'a'"),
        (lambda: PowerFunction(gamma=True), "gamma must be"),
        (lambda: Constant(update_every=10**22), "update_every must be a whole number from 1 to 2,251,799,813,685,248"),
        (
            lambda: Constant(update_after_step=10**5000),
            "update_after_step must be .* got a whole number of 16,610 bits",
        ),
        (lambda: Constant().decays(10**22), "num_steps must be a whole number from 0"),
        (lambda: schedules.last_move(Constant(), 10**22), "num_steps must be"),
        (lambda: InversePower(inv_gamma=10**400), "inv_gamma must be from 1e-100 to 1e.100"),
        (lambda: InversePower(power=1e-300), "power must be from 1e-100 to 1e.100, got 1e-300"),
        (lambda: ExponentialRamp(tau=1e300), "tau must be from"),
        (lambda: Constant(beta=np.complex128(0.5)), "beta must be in"),
        (lambda: schedules.schedule_from_dict({"family": ["Constant"]}), "family must be one of"),
    ],
)
def test_values_beyond_all_use_get_a_sentence(build, named):
    with pytest.raises(ValueError, match=named):
        build()


@pytest.mark.parametrize(
    ("family", "setting"),
    [(family, f.name) for family in schedules.FAMILIES.values() for f in fields(family)],
    ids=lambda part: getattr(part, "__name__", part),
)
def test_the_bounds_that_a_refusal_names_are_possible(family, setting):
    others = {"gamma": 1.0} if family is PowerFunction and setting not in ("gamma", "sigma_rel") else {}
    told = set()
    for value in (-1, 1e-300, 1e300, 10**400, 2, 0.5, math.nan, "a"):
        try:
            family(**{setting: value}, **others)
        except ValueError as error:
            bounds = str(error).split(", got ")[0]
            told |= {*re.findall(r"at least (\S+)", bounds), *sum(re.findall(r"from (\S+) to (\S+)", bounds), ())}
            told |= set(re.findall(r"(?:= |, |\[)([\d.]+)(?=[],])", bounds))
    assert told
    for text in told:
        bound = text.replace(",", "").rstrip(".")
        family(**{setting: int(bound) if bound.isdigit() else float(bound)}, **others)


@pytest.mark.parametrize("family", [BiasCorrected, ExponentialRamp, RationalWarmup, Constant, InversePower])
@pytest.mark.parametrize("beta", [0.9, 1e-300, schedules.LARGEST_DECAY])
def test_a_decay_next_to_beta_is_reached_or_not_at_all(family, beta):
    level = math.nextafter(beta, 0)
    call = family(beta=beta).reaches(level)
    assert call is None or family(beta=beta).at(call) >= level


def test_what_was_here_before_it_had_a_module_of_its_own_is_still_imported_from_here():
    from emacore.averaging.schedules import Constant, with_half_life

    assert Constant is families.Constant
    assert with_half_life(Constant(0.9), 100, 7).beta == pytest.approx(0.5 ** (1 / 7))
    for name in ("Nothing", "_first"):
        with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
            exec(f"from emacore.averaging.schedules import {name}")


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.int32, np.uint64])
@pytest.mark.parametrize(
    "schedule", [Constant(0.9, update_every=300), InversePower(update_after_step=900), Constant(0.9)]
)
def test_counts_may_be_numpys_own(schedule, kind):
    """Narrow ones overflow beside larger numbers."""
    num_steps = kind(100)
    decays = schedule.decays(100)
    np.testing.assert_array_equal(schedule.decays(num_steps), decays)
    np.testing.assert_array_equal(schedule.at(np.arange(100, dtype=kind)), decays)
    assert schedules.last_move(schedule, num_steps) == schedules.last_move(schedule, 100)
    assert schedules.final_half_life(schedule, num_steps) == schedules.final_half_life(schedule, 100)
    assert remarks(schedule, num_steps) == remarks(schedule, 100)
    assert memory(schedule, num_steps) == memory(schedule, 100)
    long = Constant(0.9).decays(1000)
    assert mean_age(long, kind(99)) == mean_age(long, 99)
    np.testing.assert_array_equal(weights(long, kind(99)), weights(long, 99))
    assert solving.with_half_life(Constant(0.9), num_steps, kind(7)) == solving.with_half_life(Constant(0.9), 100, 7)
