"""Memory in, settings out."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
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
from emacore.averaging.weights import relative_width
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


def test_what_cannot_be_reached_says_so():
    with pytest.raises(ValueError, match="run ends at step 50"):
        solving.with_half_life(Constant(update_after_step=200), 51, 10)
    with pytest.raises(ValueError, match="at most the plain mean"):
        solving.with_half_life(BiasCorrected(), 100, 500)
    with pytest.raises(ValueError, match="half-life of 9000 steps"):
        solving.with_half_life(PowerFunction(gamma=0), 100, 9000)


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
