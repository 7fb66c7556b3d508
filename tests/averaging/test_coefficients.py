import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from emacore import Constant, InversePower, PowerFunction, UniformAverage, Window
from emacore.averaging.coefficients import (
    Averaged,
    Coefficients,
    LastFiles,
    RateDecay,
    Span,
    best_coefficients,
    certificate,
    split_linearly,
    target_of,
)
from emacore.averaging.weights import effective_count, weights

SCHEMES = [
    Constant(0.9),
    PowerFunction(sigma_rel=0.13),
    InversePower(),
    UniformAverage(),
    Window(25),
    RateDecay("cosine"),
]


def dense(profiles, calls):
    """The profiles as a matrix, written from what they mean."""
    result = np.zeros((len(profiles), calls))
    for row, profile in zip(result, profiles, strict=True):
        if isinstance(profile, Span):
            row[profile.begin : profile.end + 1] = 1 / (profile.end + 1 - profile.begin)
        else:
            row[: profile.end + 1] = weights(profile.decays[: profile.end + 1])
    return result


def some_files(kind, ends, calls):
    if kind == "raw":
        return [Span(end, end) for end in ends]
    if kind == "windows":
        return [Span(begin, end) for begin, end in zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True)]
    both = [PowerFunction(sigma_rel=width, update_after_step=0).decays(calls) for width in (0.05, 0.1)]
    return [Averaged(end, decays) for end in ends for decays in both]


@pytest.mark.parametrize("kind", ["raw", "windows", "power"])
@pytest.mark.parametrize("calls", [97, 9000])
def test_certificate_and_best_coefficients_against_whole_profiles(kind, calls):
    ends = np.unique(np.linspace(calls // 9, calls - 1, 8).astype(int) - np.array([3, 0, 1, 0, 0, 2, 0, 0])).tolist()
    profiles = some_files(kind, ends, calls)
    matrix = dense(profiles, calls)
    for scheme in SCHEMES:
        target = target_of(scheme, ends[0], calls)
        for nonnegative in (False, True):
            found = best_coefficients(target, profiles, nonnegative=nonnegative)
            assert found.sum() == pytest.approx(target.sum())
            told = certificate(target, profiles, found)
            merged = found @ matrix
            assert told.error == pytest.approx(np.linalg.norm(merged - target) / np.linalg.norm(target), rel=1e-6)
            assert told.reached == pytest.approx(1 / (merged @ merged), rel=1e-6)
            assert told.amplification == pytest.approx(np.abs(found).sum())
            if nonnegative:
                assert (found >= 0).all()
            # Nobody finds a better one: not by moving weight between two files.
            for one in range(len(found)):
                for other in range(len(found)):
                    moved = found.copy()
                    change = 1e-3 if not nonnegative else min(1e-3, found[one])
                    moved[one] -= change
                    moved[other] += change
                    assert np.linalg.norm(moved @ matrix - target) >= np.linalg.norm(merged - target) * (1 - 1e-7)


def test_best_coefficients_are_those_of_a_general_solver():
    generator = np.random.default_rng(5)
    calls = 60
    profiles = [Span(*sorted(generator.integers(0, calls, 2).tolist())) for _ in range(5)]
    matrix, target = dense(profiles, calls), weights(Constant(0.9).decays(calls))
    for nonnegative in (False, True):
        slow = minimize(
            lambda c: np.sum((c @ matrix - target) ** 2),
            np.full(5, 0.2),
            bounds=[(0 if nonnegative else None, None)] * 5,
            constraints=[{"type": "eq", "fun": lambda c: c.sum() - 1}],
            tol=1e-14,
            options={"maxiter": 1000},
        )
        found = best_coefficients(target, profiles, nonnegative=nonnegative)
        assert found == pytest.approx(slow.x, abs=1e-4)
        of_another_sum = best_coefficients(-3 * target, profiles, nonnegative=nonnegative)
        assert of_another_sum == pytest.approx(-3 * found, abs=1e-9)


def test_what_is_wanted_counts_as_the_scheme_does():
    for scheme in SCHEMES[:4]:
        decays = scheme.decays(500)
        told = certificate(weights(decays), [Span(499, 499)], [1.0])
        assert told.wanted == pytest.approx(effective_count(decays))
        assert told.reached == 1


@given(st.data())
def test_a_linear_split_keeps_the_sum_and_the_mean_step(data):
    calls = np.unique(data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=9)))
    count = int(calls[-1]) + 1
    target = np.array(data.draw(st.lists(st.floats(-1, 1, width=16), min_size=count, max_size=count)))
    found = split_linearly(target, calls)
    slow = np.zeros(len(calls))
    for call, weight in enumerate(target):
        after = int(np.searchsorted(calls, call))
        if calls[after] == call or after == 0:
            slow[after] += weight
        else:
            gap = calls[after] - calls[after - 1]
            slow[after - 1] += weight * (calls[after] - call) / gap
            slow[after] += weight * (call - calls[after - 1]) / gap
    assert found == pytest.approx(slow, abs=1e-12)
    assert found.sum() == pytest.approx(target.sum(), abs=1e-12)
    if not target[: calls[0]].any():
        assert found @ calls == pytest.approx(target @ np.arange(len(target)), abs=1e-9)


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt"])
def test_a_rate_decay_is_a_descent_with_these_rates(shape):
    """Steps that do not depend on the weights, as first order has it: the merge is where the decayed descent ends."""
    generator = np.random.default_rng(1)
    calls = np.array([4, 9, 10, 30, 47])
    steps = generator.normal(size=48)
    path = np.cumsum(steps)
    decay = RateDecay(shape)
    assert decay.rates([0, 1]).tolist() == [1, 0]
    target = decay.target(4, 48)
    progress = (np.arange(5, 48) - 0.5 - 4) / 43
    ended = path[4] + decay.rates(progress) @ steps[5:]
    assert target @ path == pytest.approx(ended)
    # Of the files alone it is the descent whose rates are the means between the files: c_j = w_j - w_(j+1).
    found = split_linearly(target, calls)
    between = list(itertools.pairwise(calls.tolist()))
    means = [decay.rates(progress[a - 4 : b - 4]).mean() for a, b in between]
    rates = np.array([1, *means, 0])
    assert found == pytest.approx(rates[:-1] - rates[1:])
    ended = path[4] + sum(rate * (path[b] - path[a]) for rate, (a, b) in zip(means, between, strict=True))
    assert found @ path[calls] == pytest.approx(ended)


def test_a_decay_that_would_begin_before_the_files_is_refused():
    with pytest.raises(ValueError, match="last 50 steps would begin before the first file, which is 43 steps before"):
        RateDecay("linear", steps=50).target(4, 48)
    assert np.flatnonzero(RateDecay("linear", steps=10).target(4, 48))[0] == 37
    with pytest.raises(ValueError, match="one of linear, cosine, 1-sqrt; got 'exp'"):
        RateDecay("exp")


def test_windows_of_files_and_coefficients():
    assert LastFiles(2).coefficients(4).tolist() == [0, 0, 0.5, 0.5]
    assert LastFiles(9).coefficients(4).tolist() == [0.25] * 4
    assert LastFiles(3, Constant(0.5)).coefficients(4).tolist() == [0, 0.25, 0.25, 0.5]
    assert Coefficients((-0.5, 1.5)).coefficients(3).tolist() == [0, -0.5, 1.5]
    for nothing in ((), (0.0, 0.0), (float("nan"),)):
        with pytest.raises(ValueError, match="at least one of them not 0"):
            Coefficients(nothing)
    for other in (1.0, np.array(1.0), [[1.0]], "1", ["1"], [None], {1: 2}):
        with pytest.raises(ValueError, match="must be a list of numbers"):
            Coefficients(other)
    with pytest.raises(ValueError, match="2 coefficients for 1 files"):
        Coefficients((-0.5, 1.5)).coefficients(1)


def test_a_file_later_than_what_is_wanted_is_refused():
    wanted = weights(Constant(0.9).decays(10))
    for late in (10, 12):
        with pytest.raises(ValueError, match=f"a file of call {late} is later than what is wanted, which ends at 9"):
            best_coefficients(wanted, [Span(late, late)])
    assert best_coefficients(wanted, [Span(9, 9)]).shape == (1,)


@pytest.mark.parametrize(
    ("kind", "expected", "amplified"),
    [
        ("power", {0.02: 0.040, 0.07: 0.001, 0.15: 0.0023, 0.25: 0.034}, 28),
        ("windows", {0.02: 0.39, 0.07: 0.11, 0.15: 0.037, 0.25: 0.015}, 1.001),
    ],
)
def test_what_snapshots_of_a_run_can_become(kind, expected, amplified):
    calls = 20_000
    ends = (np.arange(1, 33) * calls // 32 - 1).tolist()
    profiles = some_files(kind, ends, calls)
    for width, error in expected.items():
        target = target_of(PowerFunction(sigma_rel=width, update_after_step=0), ends[0], calls)
        found = best_coefficients(target, profiles, nonnegative=kind == "windows")
        told = certificate(target, profiles, found)
        assert told.amplification < amplified
        assert told.error == pytest.approx(error, rel=0.05)
