"""Memory in, settings out; and the same memory elsewhere, against the product of decays that defines it."""

import math
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from emacore.averaging import schedules, solving
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
from emacore.averaging.weights import relative_width
from emacore.averaging.windows import Window
from tests.averaging.conftest import ANY, SOLVABLE, extremes


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


@pytest.mark.parametrize("schedule", SOLVABLE, ids=repr)
def test_in_a_long_run_the_width_by_integrals_is_that_of_the_weights(schedule):
    solved = solving.with_relative_width(schedule, 400_000, 0.05)
    tolerance = 0.02 if isinstance(schedule, UniformAverage) else 1e-5
    exact = relative_width(solved.decays(400_000))
    assert exact == pytest.approx(0.05, rel=tolerance)
    assert solving.final_width(solved, 400_000) == pytest.approx(exact, rel=1e-5)


def test_what_cannot_be_reached_says_so():
    with pytest.raises(
        ValueError, match="starts at step 200 and would first move at step 201, but the run ends at step 50"
    ):
        solving.with_half_life(Constant(update_after_step=200), 51, 10)
    with pytest.raises(
        ValueError, match="starts at step 299 and would first move at step 312, but the run ends at step 311"
    ):
        solving.with_relative_width(RationalWarmup(update_after_step=311, update_every=13), 312, 0.1)
    with pytest.raises(ValueError, match="at most the plain mean"):
        solving.with_half_life(BiasCorrected(), 100, 500)
    with pytest.raises(ValueError, match="half-life of 9000 steps"):
        solving.with_half_life(PowerFunction(gamma=0), 100, 9000)


@pytest.mark.parametrize("wanted", [0, -1.0, math.nan, math.inf, True, "5"])
@pytest.mark.parametrize(("solve", "name"), [(solving.with_half_life, "steps"), (solving.with_relative_width, "width")])
def test_what_is_no_memory_is_told_by_its_name(solve, name, wanted):
    with pytest.raises(ValueError, match=f"{name} must be"):
        solve(Constant(), 100, wanted)


@pytest.mark.parametrize("wrong", [Window(5), "Constant()", Constant, None])
def test_what_is_no_schedule_is_told(wrong):
    for ask in (
        lambda: solving.with_half_life(wrong, 100, 5),
        lambda: solving.with_relative_width(wrong, 100, 0.1),
        lambda: at_batch_size(wrong, 2.0),
        lambda: at_length(wrong, 2.0),
    ):
        with pytest.raises(TypeError, match="schedule must be a schedule, such as .*, got"):
            ask()


RUNS = st.one_of(st.integers(1, 12), st.integers(13, 400))
LONG = st.sampled_from([10_600, 10**9, schedules.MOST_CALLS])
#: What can be asked for, and runs that it can be asked for.
ASKED = st.one_of(
    st.tuples(st.just(solving.with_half_life), st.one_of(RUNS, LONG)),
    st.tuples(st.just(solving.with_relative_width), RUNS),
)
#: Memories that few or none can have, in steps or as a share of the run.
HARDLY = st.one_of(st.floats(1e-7, 10), st.sampled_from([1e-90, 1e-9, 5e-4, 1e6, 1e9, 1e12, 1e16, 1e90]))


def told_to_be_possible(said):
    """The numbers that a refusal names as what can be asked for."""
    told = [re.findall(r"nearest (?:with five digits )?is (\d\S*):", said)]
    told += [re.findall(r"(\d\S*)", part) for part in re.findall(r"; \D+((?:\S+ )+)are within reach", said)]
    return [float(text.replace(",", "")) for part in told for text in part]


@example((solving.with_relative_width, 400), InversePower(0.9994, 0.08, 12.0, 0.99996, update_every=238), 0.3)
@example((solving.with_relative_width, 300), InversePower(0.47, 1e4, 8.0, 1 - 1e-8, update_every=7), 0.005)
@example((solving.with_relative_width, 300), InversePower(0.86, 1e5, update_every=1), 1e9)
@example((solving.with_relative_width, 20), UniformAverage(update_every=3), 0.02)
@example((solving.with_half_life, 400), InversePower(update_every=5), 1e-9)
@example((solving.with_half_life, 400), InversePower(1.0, min_value=1.0, update_every=1, update_after_step=0), 1.0)
@example((solving.with_half_life, 400), Constant(), 1e12)
@example((solving.with_half_life, 400), ExponentialRamp(0.99, 1e6), 1e9)
@given(ASKED, st.one_of(ANY, extremes()), HARDLY)
def test_what_a_refusal_says_is_possible_is(asked, schedule, wanted):
    solve, num_steps = asked
    try:
        solve(schedule, num_steps, wanted)
    except ValueError as error:
        said = str(error)
    else:
        return
    told = told_to_be_possible(said)
    assert told or any(words in said for words in ("run ends at step", "whatever that setting", "is infinite"))
    for possible in told:
        solve(schedule, num_steps, possible)


def test_no_width_at_all_is_told():
    with pytest.raises(ValueError, match="its relative width is below 0.000001 whatever that setting"):
        solving.with_relative_width(ExponentialRamp(tau=1e90), 1000, 0.1)


def check_solved(solve, measure, schedule, num_steps, wanted):
    """The answer is right and changes nothing but what it may, or a sentence says why there is none."""
    try:
        solved = solve(schedule, num_steps, wanted)
    except ValueError as error:
        told = str(error)
        said = ("within reach", "nearest is", "ask for", "run ends at step", "whatever that setting")
        assert any(words in told for words in said)
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


@given(
    st.one_of(ANY, extremes()),
    st.one_of(RUNS, LONG),
    st.one_of(st.floats(1e-3, 1e6), st.sampled_from([1e-90, 5e-4, 1.0, 250, 1e12, 1e90])),
)
def test_a_half_life_is_solved_or_refused(schedule, num_steps, steps):
    check_solved(solving.with_half_life, schedules.final_half_life, schedule, num_steps, steps)


@example(ExponentialRamp(beta=0.0, tau=1e100), 13, 0.5)
@example(UniformAverage(update_every=8), 151, 0.1341)
@given(st.one_of(ANY, extremes()), RUNS, st.one_of(st.floats(1e-4, 0.6), st.sampled_from([1e-90, 1e-12, 0.2887, 7.0])))
def test_a_width_is_solved_or_refused(schedule, num_steps, width):
    check_solved(solving.with_relative_width, width_over, schedule, num_steps, width)


@example(InversePower(0.9999, 20_000.0, 0.05, update_after_step=9, update_every=1), 78)
@given(ANY, RUNS)
def test_what_a_schedule_has_is_found_again(schedule, num_steps):
    half_life = schedules.final_half_life(schedule, num_steps)
    if 0.01 * schedule.update_every < half_life < math.inf:
        assert check_solved(solving.with_half_life, schedules.final_half_life, schedule, num_steps, half_life)
    width = width_over(schedule, num_steps)
    if width > 1e-5:
        assert check_solved(solving.with_relative_width, width_over, schedule, num_steps, width)


def test_a_floor_under_the_decay_that_is_asked_for_is_told():
    floored = InversePower(beta=0.9999, min_value=0.999)
    with pytest.raises(ValueError, match="nearest is 6,928: ask for that, or lower min_value = 0.999"):
        solving.with_half_life(floored, 5000, 250)
    solved = solving.with_half_life(InversePower(0.95, min_value=0.999, update_every=1), 5000, 100)  # beta wins
    assert schedules.final_half_life(solved, 5000) == pytest.approx(100)


@pytest.mark.parametrize(
    ("capped", "num_steps"),
    [
        (InversePower(0.93, inv_gamma=95.0, min_value=0.59, update_after_step=5, update_every=1), 20),
        (InversePower(0.99, inv_gamma=0.06, update_after_step=5, update_every=3), 400),
        (InversePower(0.9, inv_gamma=1.0, min_value=0.12, update_after_step=5, update_every=10), 100),
    ],
)
def test_a_width_that_only_a_cap_gives_is_found_with_it(capped, num_steps):
    wanted = width_over(capped, num_steps)
    solved = solving.with_relative_width(capped, num_steps, wanted)
    assert width_over(solved, num_steps) == pytest.approx(wanted, rel=1e-5)
    assert solved.beta == capped.beta


def test_the_start_of_a_running_mean_is_sought_wherever_it_was():
    late = UniformAverage(update_after_step=200)
    assert solving.with_half_life(late, 51, 10).start == 36
    assert width_over(solving.with_relative_width(late, 51, 0.1), 51) == pytest.approx(0.1, rel=0.02)
    with pytest.raises(ValueError, match=r"half-life of 2 steps .* nearest is 1.709: ask for that"):
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


@example(InversePower(power=0.01), 1e50)
@given(st.one_of(ANY, extremes()), st.floats(1e-3, 1e3) | st.sampled_from([1e-100, 1e-50, 1e50, 1e100]))
def test_whatever_the_factor_there_is_a_schedule_or_a_sentence(schedule, factor):
    refused = rf"no {type(schedule).__name__} does in one step what this one does in \S+: \w+ must be .*, got"
    for rescaled in (at_batch_size, at_length):
        said = ""
        try:
            assert type(rescaled(schedule, factor)) is type(schedule)
        except ValueError as error:
            said = str(error)
        assert not said or re.match(refused, said)


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


@pytest.mark.parametrize(("every", "steps"), [(1, 370), (3, 1500), (7, 2111), (10, 4004)])
@pytest.mark.parametrize("width", [0.05, 0.11, 0.2])
def test_of_the_starts_of_a_running_mean_none_beside_is_nearer(every, steps, width):
    found = solving.with_relative_width(UniformAverage(update_every=every), steps, width)
    misses = [
        abs(width_over(replace(found, update_after_step=found.start + k * every), steps) - width) for k in (-1, 0, 1)
    ]
    assert misses[1] == min(misses)
