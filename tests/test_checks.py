import math
from dataclasses import dataclass

import numpy as np
import pytest

from emacore.checks import (
    LARGEST,
    SMALLEST,
    check_at_least_zero,
    check_choice,
    check_positive,
    check_unit,
    check_whole,
    is_real,
    keep_plain,
    numbers,
    shown,
)

NO_NUMBERS = [None, "1", True, False, np.bool_(True), 1j, [1.0], np.array([1.0])]


@pytest.mark.parametrize("value", [2, 3, np.int8(2), np.uint64(7), 10**30])
def test_a_whole_number_from_a_minimum_on(value):
    check_whole("steps", value, 2)


@pytest.mark.parametrize("value", [1, -2, 2.0, math.nan, math.inf, *NO_NUMBERS])
def test_what_is_no_such_number_is_refused_by_name_and_value(value):
    with pytest.raises(ValueError, match="steps must be a whole number of at least 2, got ") as refused:
        check_whole("steps", value, 2)
    assert str(refused.value).endswith(repr(value))


def test_a_whole_number_between_two():
    check_whole("steps", 1, 1, 5000)
    check_whole("steps", 5000, 1, 5000)
    with pytest.raises(ValueError, match=r"steps must be a whole number from 1 to 5,000, got 5,001"):
        check_whole("steps", 5001, 1, 5000)


@pytest.mark.parametrize(
    ("check", "taken", "refused"),
    [
        (check_unit, [0, 1, 0.0, 1.0, 0.5, np.float32(0.25), 5e-324], [-1e-300, 1 + 1e-15, 2, -math.inf]),
        (check_positive, [1, SMALLEST, LARGEST, np.float16(0.5)], [0, -0.0, -1, SMALLEST / 2, LARGEST * 2, 10**101]),
        (check_at_least_zero, [0, -0.0, 5e-324, 1e300, np.int64(3)], [-5e-324, -1]),
    ],
)
def test_numbers_within_their_bounds(check, taken, refused):
    for value in taken:
        check("rate", value)
    for value in [*refused, math.nan, math.inf, *NO_NUMBERS]:
        with pytest.raises(ValueError, match="rate must be "):
            check("rate", value)


def test_a_number_beyond_all_use_is_told_the_bounds():
    with pytest.raises(ValueError, match=r"rate must be from 1e-100 to 1e\+100, got 1e-200"):
        check_positive("rate", 1e-200)


def test_a_choice():
    check_choice("curve", "ema", ["ema", "none"])
    with pytest.raises(ValueError, match="curve must be one of ema, none; got 'EMA'"):
        check_choice("curve", "EMA", ["ema", "none"])


def test_what_is_a_number():
    assert all(map(is_real, [0, -1, 2.5, math.nan, np.float16(1), np.int8(1)]))
    assert not any(map(is_real, NO_NUMBERS))


def test_numbers_of_very_many_digits_are_written_by_their_bits():
    assert shown(10**100) == "1" + "0" * 100
    assert shown(2**333) == "a whole number of 334 bits"
    assert shown(-(2**20_000)) == "a whole number of 20,001 bits"
    assert shown("x") == "'x'"


def test_settings_keep_python_s_own_numbers_also_in_their_parts():
    @dataclass(frozen=True)
    class Part:
        widths: tuple = (np.int8(3), (np.float16(0.5), "a"))

    @dataclass(frozen=True, slots=True)
    class Closed:
        size: int = 1

    @dataclass(frozen=True)
    class Whole:
        number: float = np.float32(0.25)
        flag: bool = True
        text: str = "1"
        part: Part = Part()
        closed: Closed = Closed()
        kind: type = Part

    keep_plain(whole := Whole())
    assert repr((whole.number, whole.part.widths)) == "(0.25, (3, (0.5, 'a')))"
    assert (whole.flag, whole.text, whole.closed.size, whole.kind) == (True, "1", 1, Part)
    assert numbers("widths", np.array([0.5, 2])) == numbers("widths", {0.5, np.int8(2)}) == [0.5, 2]
    assert numbers("widths", 3) == [3]
    for other in (None, "12", ["1"], [None], 1j, {"a": 1}):
        with pytest.raises(ValueError, match=r"widths must be a list of numbers, such as \[0\.05, 0\.1\], got "):
            numbers("widths", other)
