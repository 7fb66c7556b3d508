import math
from dataclasses import fields, replace

import numpy as np
import pandas as pd
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
from emacore.averaging.remarks import remarks
from emacore.averaging.schedules import Schedule
from emacore.averaging.weights import average, relative_width, weights
from tests.averaging.conftest import ANY, INVERSE_POWERS, SOLVABLE


def article_rule(num_steps, beta, inv_gamma, power, min_value, update_after_step, update_every):
    """The rule of the article's class, one call after the other."""
    result, moved = [], False
    for t in range(num_steps):
        if t % update_every != 0:
            result.append(1.0)
        elif t <= update_after_step or not moved:
            moved = t > update_after_step
            result.append(0.0)
        else:
            e = t - update_after_step
            result.append(min(max(1 - (1 + e / inv_gamma) ** -power, min_value), beta))
    return np.array(result)


@given(INVERSE_POWERS)
def test_inverse_power_follows_the_article_call_by_call(schedule):
    settings = schedule.to_dict()
    settings.pop("family")
    np.testing.assert_allclose(schedule.decays(200), article_rule(200, **settings), rtol=0, atol=1e-12)


def test_inverse_power_by_hand():
    schedule = InversePower(beta=0.7, inv_gamma=2, power=1, min_value=0.35, update_after_step=1, update_every=1)
    # calls 0 and 1 copy, 2 copies before it moves, then e = 2, 3, 4, ... of 1 - 1 / (1 + e/2)
    np.testing.assert_allclose(schedule.decays(8), [0, 0, 0, 0.5, 0.6, 4 / 6, 0.7, 0.7], atol=1e-15)
    assert schedule.start == 2


def test_beta_wins_over_min_value():
    assert InversePower(beta=0.5, min_value=0.9, update_after_step=0, update_every=1).decays(5)[-1] == 0.5


@pytest.mark.parametrize(
    ("power", "decay", "step"),
    [(2 / 3, 0.999, 31.6e3), (2 / 3, 0.9999, 1e6), (3 / 4, 0.999, 10e3), (3 / 4, 0.9999, 215.4e3)],
)
def test_steps_of_the_articles_notes(power, decay, step):
    schedule = InversePower(beta=1.0, power=power, update_after_step=0, update_every=1)
    assert schedule.reaches(decay) == pytest.approx(step, rel=2e-3)


def test_the_cap_of_the_articles_experiment_never_acts():
    schedule = InversePower(beta=0.999, power=2 / 3, update_after_step=100, update_every=1)
    assert schedule.decays(5000)[-1] == pytest.approx(1 - 4900 ** (-2 / 3), abs=1e-6)
    assert schedule.reaches(0.999) > 31_000


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


def test_bias_corrected_equals_pandas():
    values = np.random.default_rng(0).normal(size=400)
    for beta in (0.0, 0.3, 0.9, 0.999):
        expected = pd.Series(values).ewm(alpha=1 - beta, adjust=True).mean()
        np.testing.assert_allclose(average(values, BiasCorrected(beta).decays(400)), expected, rtol=1e-10)


def test_bias_corrected_is_the_zero_start_divided_by_what_is_left():
    values = np.random.default_rng(1).normal(size=300)
    plain = average(values, np.full(300, 0.97), initial=0.0)
    corrected = plain / (1 - 0.97 ** np.arange(1, 301))
    np.testing.assert_allclose(average(values, BiasCorrected(0.97).decays(300)), corrected, rtol=1e-12)


def test_rational_warmup_counts_as_tensorflow_does():
    np.testing.assert_allclose(RationalWarmup(0.9).decays(4), [0, 3 / 12, 4 / 13, 5 / 14])
    assert RationalWarmup(0.9).decays(200)[-1] == 0.9


def test_exponential_ramp_by_hand():
    rates = ExponentialRamp(0.99, tau=10, update_after_step=2).decays(6)
    np.testing.assert_allclose(rates[2:], [0, *(0.99 * (1 - math.exp(-n / 10)) for n in (2, 3, 4))])


def test_uniform_average_is_the_mean_of_its_snapshots():
    values = np.random.default_rng(2).normal(size=100)
    np.testing.assert_allclose(average(values, UniformAverage().decays(100)), np.cumsum(values) / np.arange(1, 101))
    swa = UniformAverage(update_after_step=40, update_every=10)
    assert average(values, swa.decays(100))[-1] == pytest.approx(values[40:100:10].mean())


def test_power_function_has_its_width_and_its_profile():
    schedule = PowerFunction(sigma_rel=0.1)
    assert relative_width(schedule.decays(20_000)) == pytest.approx(0.1, rel=1e-3)
    profile = weights(PowerFunction(gamma=3).decays(5000))
    expected = np.arange(1, 5001) ** 3.0
    np.testing.assert_allclose(profile[100:], (expected / expected.sum())[100:], rtol=0.05)


@given(st.floats(0, 1e4))
def test_width_and_exponent_invert_each_other(gamma):
    assert families.gamma_from_sigma_rel(families.sigma_rel_from_gamma(gamma)) == pytest.approx(
        gamma, rel=1e-6, abs=1e-6
    )
    assert PowerFunction(gamma=gamma).width == pytest.approx(
        PowerFunction(sigma_rel=PowerFunction(gamma=gamma).width).width
    )


@given(st.floats(0.05, 0.99999), st.integers(200, 10**7), st.floats(0.1, 100), st.floats(0.2, 5))
def test_power_and_inv_gamma_reach_what_they_were_asked(decay, step, inv_gamma, power):
    def at_step(schedule):
        return schedule.at([step])[0]

    solved = families.power_reaching(decay, step, inv_gamma=inv_gamma, update_after_step=100)
    assert at_step(InversePower(1.0, inv_gamma, solved, update_every=1)) == pytest.approx(decay, abs=1e-9)
    solved = families.inv_gamma_reaching(decay, step, power=power, update_after_step=100)
    assert at_step(InversePower(1.0, solved, power, update_every=1)) == pytest.approx(decay, abs=1e-9)


@pytest.mark.parametrize("schedule", SOLVABLE, ids=repr)
@pytest.mark.parametrize("steps", [50, 300])
def test_half_life_at_the_end_is_the_one_asked_for(schedule, steps):
    solved = solving.with_half_life(schedule, 5000, steps)
    tolerance = 0.03 if isinstance(schedule, UniformAverage) else 1e-6  # its start is a whole number of cycles
    assert schedules.final_half_life(solved, 5000) == pytest.approx(steps, rel=tolerance)
    assert type(solved) is type(schedule)


@pytest.mark.parametrize("schedule", SOLVABLE, ids=repr)
@pytest.mark.parametrize("width", [0.03, 0.12])
def test_relative_width_is_the_one_asked_for(schedule, width):
    if isinstance(schedule, RationalWarmup) and width > 0.1:
        with pytest.raises(ValueError, match="within reach"):
            solving.with_relative_width(schedule, 3000, width)
        return
    solved = solving.with_relative_width(schedule, 3000, width)
    tolerance = 0.02 if isinstance(schedule, UniformAverage) else 1e-5
    assert relative_width(solved.decays(3000)) == pytest.approx(width, rel=tolerance)


@given(
    st.sampled_from([solving.with_half_life, solving.with_relative_width]),
    st.floats(0.5, 0.99999),
    st.floats(0.02, 0.2),
    st.integers(1, 7),
)
def test_a_solution_keeps_the_cap_or_lifts_it_to_where_it_ends(solve, beta, share, every):
    """A cap below the decay that is needed must not keep it from its end; one above it is the user's."""
    steps, schedule = 3000, InversePower(beta, update_after_step=20, update_every=every)
    half_life = solve is solving.with_half_life
    solved = solve(schedule, steps, share * steps if half_life else share)
    if half_life:
        assert schedules.final_half_life(solved, steps) == pytest.approx(share * steps, rel=1e-6)
    else:
        assert relative_width(solved.decays(steps)) == pytest.approx(share, rel=1e-4)
    end = float(solved.at([schedules.last_move(solved, steps)])[0])
    free = float(replace(solved, beta=1.0).at([schedules.last_move(solved, steps)])[0])
    assert end == pytest.approx(free, abs=1e-12), "the cap does not act before the end"
    assert solved.beta == pytest.approx(max(beta, end), abs=1e-12)
    assert replace(solved, power=schedule.power, beta=beta) == schedule


def test_what_cannot_be_reached_says_so():
    with pytest.raises(ValueError, match="run ends at step 50"):
        solving.with_half_life(Constant(update_after_step=200), 51, 10)
    with pytest.raises(ValueError, match="at most the plain mean"):
        solving.with_half_life(BiasCorrected(), 100, 500)
    with pytest.raises(ValueError, match="half-life of 9000 steps"):
        solving.with_half_life(PowerFunction(gamma=0), 100, 9000)


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
UNIT = st.sampled_from([0.0, 5e-324, 1e-300, 1e-16, 0.1, 0.5, 1 - 1e-9, schedules.LARGEST_DECAY, 1.0, 0, 1])
POSITIVE = st.sampled_from([1e-100, 1e-12, 1.0, 10**30, 1e100])
WHOLE = st.sampled_from([0, 1, 2, 7, 199, 200, 10**6, schedules.MOST_CALLS])
#: The edges of what each setting may be, and some values between.
EDGES = {
    "beta": UNIT,
    "min_value": UNIT,
    "inv_gamma": POSITIVE,
    "power": POSITIVE,
    "tau": POSITIVE,
    "gamma": st.one_of(st.none(), st.sampled_from([0, 0.0, 1e-12, 1.0, 10**30, 1e100])),
    "sigma_rel": st.sampled_from([1e-100, 1e-12, 0.1, families.MAX_SIGMA_REL]),
    "update_after_step": WHOLE,
    "update_every": WHOLE.filter(bool),
}


@st.composite
def extremes(draw):
    family = draw(st.sampled_from(sorted(schedules.FAMILIES)))
    settings = {f.name: draw(EDGES[f.name]) for f in fields(schedules.FAMILIES[family])}
    if settings.get("gamma") is not None:
        settings["sigma_rel"] = None
    return schedules.FAMILIES[family](**settings)


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


@given(st.floats(1e-100, families.MAX_SIGMA_REL))
def test_any_width_has_an_exponent_that_gives_it_back(width):
    assert "equation 123" in families.sigma_rel_from_gamma.__doc__
    assert "equation 126" in families.gamma_from_sigma_rel.__doc__
    exponent = families.gamma_from_sigma_rel(width)
    assert families.sigma_rel_from_gamma(exponent) == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: PowerFunction(sigma_rel=1e-300), "sigma_rel must be from 1e-100 to 0.2887, got 1e-300"),
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
        (lambda: families.power_reaching(0.5, float("nan")), "step must be above .* got nan"),
        (lambda: families.inv_gamma_reaching(0.999, 100, power=1e-3), "no inv_gamma from .* at step 100"),
        (lambda: families.inv_gamma_reaching(1e-300, 100, power=1e90), "no inv_gamma from .* at step 100"),
        (lambda: families.power_reaching(5e-324, 100), "no power from .* at step 100"),
    ],
)
def test_values_beyond_all_use_get_a_sentence(build, named):
    with pytest.raises(ValueError, match=named):
        build()


@pytest.mark.parametrize("family", [BiasCorrected, ExponentialRamp, RationalWarmup, Constant, InversePower])
@pytest.mark.parametrize("beta", [0.9, 1e-300, schedules.LARGEST_DECAY])
def test_a_decay_next_to_beta_is_reached_or_not_at_all(family, beta):
    level = math.nextafter(beta, 0)
    call = family(beta=beta).reaches(level)
    assert call is None or family(beta=beta).at(call) >= level


def check_solved(solve, measure, schedule, num_steps, wanted):
    """The answer is right and changes nothing but what it may, or a sentence says why there is none."""
    try:
        solved = solve(schedule, num_steps, wanted)
    except ValueError as error:
        told = str(error)
        assert any(words in told for words in ("within reach", "nearest is", "ask for", "run ends at step", "no power"))
        return None
    tolerance = 0.02 if isinstance(schedule, UniformAverage) else 1e-5
    assert measure(solved, num_steps) == pytest.approx(wanted, rel=tolerance, abs=0)
    rest = {f.name for f in fields(schedule)} - {solved.tuned, "sigma_rel"}
    if isinstance(schedule, InversePower):
        rest.remove("beta")
        final = solved.at([schedules.last_move(solved, num_steps)])[0]
        assert solved.beta == pytest.approx(max(schedule.beta, final), abs=1e-12)
    assert all(getattr(solved, name) == getattr(schedule, name) for name in rest)
    return solved


def width_over(schedule, num_steps):
    return relative_width(schedule.decays(num_steps))


RUNS = st.one_of(st.integers(1, 12), st.integers(13, 400))


@given(
    st.one_of(ANY, extremes()),
    st.one_of(RUNS, st.sampled_from([10_600, 10**9, schedules.MOST_CALLS])),
    st.one_of(st.floats(1e-3, 1e6), st.sampled_from([1e-90, 5e-4, 1.0, 250, 1e12, 1e90])),
)
def test_a_half_life_is_solved_or_refused(schedule, num_steps, steps):
    check_solved(solving.with_half_life, schedules.final_half_life, schedule, num_steps, steps)


@given(st.one_of(ANY, extremes()), RUNS, st.one_of(st.floats(1e-4, 0.6), st.sampled_from([1e-90, 1e-12, 0.2887, 7.0])))
def test_a_width_is_solved_or_refused(schedule, num_steps, width):
    check_solved(solving.with_relative_width, width_over, schedule, num_steps, width)


@given(ANY, RUNS)
def test_what_a_schedule_has_is_found_again(schedule, num_steps):
    half_life = schedules.final_half_life(schedule, num_steps)
    if 0.01 * schedule.update_every < half_life < math.inf:
        assert check_solved(solving.with_half_life, schedules.final_half_life, schedule, num_steps, half_life)
    width = width_over(schedule, num_steps)
    if width > 1e-3 and not (isinstance(schedule, InversePower) and schedule.min_value >= schedule.beta):
        assert check_solved(solving.with_relative_width, width_over, schedule, num_steps, width)


def test_a_floor_under_the_decay_that_is_asked_for_is_told():
    floored = InversePower(beta=0.9999, min_value=0.999)
    with pytest.raises(ValueError, match="nearest is 6,928: ask for that, or lower min_value = 0.999"):
        solving.with_half_life(floored, 5000, 250)
    solved = solving.with_half_life(InversePower(0.95, min_value=0.999, update_every=1), 5000, 100)  # beta wins
    assert schedules.final_half_life(solved, 5000) == pytest.approx(100)


def test_the_start_of_a_running_mean_is_sought_wherever_it_was():
    late = UniformAverage(update_after_step=200)
    assert solving.with_half_life(late, 51, 10).start == 36
    assert width_over(solving.with_relative_width(late, 51, 0.1), 51) == pytest.approx(0.1, rel=0.02)
    with pytest.raises(ValueError, match=r"half-life of 2 steps .* nearest is 1.71"):
        solving.with_half_life(UniformAverage(), 100, 2)


def test_a_width_near_the_widest_is_found():
    for schedule in (Constant(), ExponentialRamp(tau=30), InversePower(inv_gamma=1e6, update_every=3)):
        value, positions = schedule.search(schedule.tuned, 300)
        grid = [replace(schedule, **{schedule.tuned: value(p)}) for p in np.linspace(positions[0], positions[-1], 3001)]
        if isinstance(schedule, InversePower):
            grid = [replace(one, beta=schedules.LARGEST_DECAY) for one in grid]
        widest = max(width_over(one, 300) for one in grid)
        solved = solving.with_relative_width(schedule, 300, 0.9999 * widest)
        assert width_over(solved, 300) == pytest.approx(0.9999 * widest, rel=1e-5)
        with pytest.raises(ValueError, match="within reach"):
            solving.with_relative_width(schedule, 300, 1.001 * widest)
