import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore.averaging.code import (
    from_code,
    merge_from_code,
    merge_to_code,
    scheme_from_code,
    scheme_to_code,
    to_code,
)
from emacore.averaging.coefficients import Coefficients, LastFiles, RateDecay, Span
from emacore.averaging.families import Constant, InversePower, PowerFunction
from emacore.averaging.parts import remaining
from emacore.averaging.windows import Window, decays_at_end
from tests.averaging.conftest import ANY

SCHEMES = ANY | st.builds(Window, st.integers(1, 10**15), st.none() | ANY)


@given(SCHEMES)
def test_every_scheme_is_read_back_from_its_code(scheme):
    code = scheme_to_code(scheme)
    assert scheme_from_code(code) == scheme
    if not isinstance(scheme, Window):
        assert code == to_code(scheme)
        assert from_code(code) == scheme


def test_code_leaves_defaults_out():
    assert to_code(InversePower()) == "InversePower()"
    assert to_code(InversePower(0.99, update_every=1)) == "InversePower(beta=0.99, update_every=1)"
    assert to_code(PowerFunction(sigma_rel=0.1)) == "PowerFunction(sigma_rel=0.1)"
    assert scheme_to_code(Window(12)) == "Window(size=12)"
    assert scheme_to_code(Window(12, Constant(0.5))) == "Window(size=12, schedule=Constant(beta=0.5))"


@pytest.mark.parametrize(
    "text",
    [
        "Window(12, Constant(beta=0.5))",
        " Window( 12,schedule = Constant(beta=0.5) ) ",
        "Window(schedule=Constant(beta=0.5), size=12)",
        "Window(\n    size=1_2,\n    schedule=Constant(beta=0.5),\n)",
    ],
)
def test_a_windows_code_is_read_as_python_reads_it(text):
    assert scheme_from_code(text) == Window(12, Constant(0.5)) == eval(text, {"Window": Window, "Constant": Constant})


WRONG = [
    "",
    "3",
    "Nope()",
    "Constant(0.9)",
    "Constant(beta=2)",
    "Constant(beta=open('x'))",
    "Constant(**{})",
    "Constant(beta=0.9, beta=0.8)",
    "Constant(beta=0.9) or Constant(beta=0.8)",
    "(" * 999,
    "Window",
    "Window()",
    "Window(size=0)",
    "Window(size=1.5)",
    "Window(size=a)",
    "Window(size=Constant())",
    "Window(3, 4)",
    "Window(3, size=4)",
    "Window(3, size=4, schedule=None)",
    "Window(3, None, None)",
    "Window(3, Window(2))",
    "Window(3, Nope())",
    "Window(3, shape=2)",
    "Window(*[3])",
]


@pytest.mark.parametrize("text", WRONG)
def test_other_code_is_refused(text):
    with pytest.raises(ValueError, match="not a schedule or window: "):
        scheme_from_code(text)
    with pytest.raises(ValueError, match="not a schedule: "):
        from_code(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Constant(beta=0.9, beta=0.8)", "beta is given twice"),
        ("Constant(beta=1 - 0.1)", "'1 - 0.1' is no number or text as it stands"),
        ("Constant(beta=0.9, update_every=2, beta=0.9)", "beta is given twice"),
        ("Constant(0.9, beta=0.8)", "not of the form"),
        ("Constant(family='InversePower')", "no setting 'family'"),
        ("PowerFunction(gamma=1, gamma=2)", "gamma is given twice"),
        ("Window(3, schedule=Constant(beta=0.9, beta=0.8))", "beta is given twice"),
        ("Window(3, size=4)", "size is given twice"),
        ("Window(3, Constant(beta=0.9), schedule=Constant(beta=0.8))", "schedule is given twice"),
        ("Window()", "needs its size, as in"),
        ("Constant(**{'beta': 0.9})", "is not read: write each setting as name=value"),
        ("Window(size=0)", "size must be a whole number of at least 1, got 0"),
        ("Window(3, Window(2))", "a window's schedule must be a schedule or None, got Window"),
        ("Window(3, shape=2)", "Window has no setting 'shape'; it has size, schedule"),
    ],
)
def test_it_is_said_what_is_wrong(text, why):
    with pytest.raises(ValueError, match=why):
        scheme_from_code(text)


def test_where_a_schedule_is_wanted_a_window_is_named():
    with pytest.raises(ValueError, match="a window has no decays"):
        from_code("Window(size=9)")


def test_reading_code_needs_no_torch():
    code = "import sys, emacore.averaging.code; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("text", "merge"),
    [
        ("Window(files=10)", LastFiles(10)),
        ("Window(files=3, schedule=Constant(beta=0.5))", LastFiles(3, Constant(0.5))),
        ("RateDecay(shape='1-sqrt')", RateDecay("1-sqrt")),
        ("RateDecay(shape='cosine', steps=500)", RateDecay("cosine", 500)),
        ("Coefficients(-0.5, 1.5)", Coefficients((-0.5, 1.5))),
        ("Window(size=100)", Window(100)),
        ("Constant(beta=0.99)", Constant(0.99)),
    ],
)
def test_merges_both_ways(text, merge):
    assert merge_from_code(text) == merge
    assert merge_from_code(merge_to_code(merge)) == merge


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Window(files=10, size=3)", "Window has no setting 'size'; it has files, schedule"),
        ("RateDecay('exp')", "shape must be one of linear, cosine, 1-sqrt"),
        ("Coefficients(nan)", "'nan' is no number or text as it stands"),
        ("Coefficients(1e300, -1e300)", "that fit into float32"),
        (f"Coefficients({10**400})", "that fit into float32"),
        ("Coefficients(1e400)", "must be finite numbers"),
        ("Window(files=10**2)", r"'10 \*\* 2' is no number or text as it stands"),
        ("RateDecay(step=3)", "RateDecay has no setting 'step'; it has shape, steps"),
        ("Coefficients()", "at least one"),
        ("Coefficients(a=1)", "without names"),
        ("Coefficients(1, 'x')", "values must be a list of numbers"),
        ("Coefficients([1, 2], 3)", "values must be a list of numbers"),
        ("Coefficients(True)", "values must be a list of numbers"),
        ("Coefficients(print('x'))", "not a schedule, window, RateDecay or Coefficients"),
    ],
)
def test_what_is_no_merge_is_told(text, words):
    with pytest.raises(ValueError, match=words):
        merge_from_code(text)


@pytest.mark.parametrize("text", ["Coefficients([-0.5, 1.5])", "Coefficients((-0.5, 1.5))", "Coefficients(-0.5, 1.5)"])
def test_coefficients_may_stand_as_in_python(text):
    assert merge_from_code(text) == Coefficients([-0.5, 1.5])
    assert merge_to_code(Coefficients([-0.5, 1.5])) == "Coefficients(-0.5, 1.5)"


@pytest.mark.parametrize("kind", [np.int8, np.uint64, np.int64])
def test_narrow_numbers_are_plain_ones(kind):
    """Of NumPy's own numbers narrow ones overflow, and what they write is not read back."""
    for own, plain in (
        (Window(kind(100)), Window(100)),
        (LastFiles(kind(100)), LastFiles(100)),
        (RateDecay("linear", kind(100)), RateDecay("linear", 100)),
        (Coefficients(np.array([1, 2], kind)), Coefficients((1.0, 2.0))),
        (Coefficients([kind(1), 2.5]), Coefficients((1.0, 2.5))),
    ):
        assert own == plain
        assert hash(own) == hash(plain)
        assert repr(own) == repr(plain)
        assert merge_from_code(merge_to_code(own)) == plain
    np.testing.assert_array_equal(decays_at_end(Window(kind(100)), 1000), decays_at_end(Window(100), 1000))
    np.testing.assert_array_equal(remaining(Window(kind(100)), 1000, [950]), [0.51])
    assert Span(kind(100), kind(127)) == Span(100, 127)
    assert type(Span(kind(100), kind(127)).end) is int
