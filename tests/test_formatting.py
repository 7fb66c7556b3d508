"""Numbers as people read them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore import formatting

FINITE = st.floats(-1e300, 1e300, allow_subnormal=False)


def read(text: str) -> float:
    return float(text.replace(",", ""))


@given(FINITE, st.integers(3, 6))
def test_a_number_is_read_back_to_its_digits(value, digits):
    assert read(formatting.number(value, digits)) == pytest.approx(value, rel=0.5001 * 10.0 ** (1 - digits))


@given(st.floats(1e-4, 1e7), st.sampled_from([-1, 1]))
def test_between_a_ten_thousandth_and_ten_million_no_number_has_an_exponent_or_idle_digits(value, sign):
    text = formatting.number(sign * value)
    assert "e" not in text
    assert len(text.lstrip("-").replace(",", "").partition(".")[2]) <= 7
    if "." in text:
        assert not text.endswith(("0", "."))
        assert len(text.lstrip("-0.").replace(".", "").replace(",", "")) <= 4


@given(st.floats(1e-7, 1e14, exclude_min=True), st.sampled_from([-1, 1]))
def test_beside_larger_numbers_none_has_an_exponent_and_all_are_read_back(value, sign):
    text = formatting.plain(sign * value)
    assert "e" not in text
    assert read(text) == pytest.approx(sign * value, rel=0.00051)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (2.5e-6, "0.0000025"),
        (1.811e-21, "< 0.0000001"),
        (-1e-9, "> -0.0000001"),
        (9.99999e-5, "0.0001"),
        (math.nan, "undefined"),
        (0.25, "0.25"),
    ],
)
def test_what_is_nearly_nothing_says_so(value, text):
    assert formatting.plain(value) == text


@given(st.integers(-(10**14), 10**14))
def test_whole_numbers_are_whole(value):
    assert formatting.number(value) == f"{value:,}"
    assert formatting.number(float(value)) == f"{value:,}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-0.0, "0"),
        (20000.0, "20,000"),
        (0.6176929390770008, "0.6177"),
        (6931.47, "6,931"),
        (135.84, "135.8"),
        (0.99999, "1"),
        (9.9999e-5, "0.0001"),
        (2.5e-6, "2.5e-06"),
        (34657359.3, "34,660,000"),
        (1e300, "1e+300"),
        (10**400, "beyond all bounds"),
        (math.nan, "undefined"),
        (-math.inf, "-infinite"),
    ],
)
def test_numbers_as_people_write_them(value, text):
    assert formatting.number(value) == text


@given(st.floats(0, 1))
def test_a_decay_keeps_three_digits_of_its_distance_from_one(value):
    shown = float(formatting.decay(value))
    assert 1 - shown == pytest.approx(1 - value, rel=0.006, abs=1e-16)
    assert (shown == 1) == (value == 1)


def test_decays_near_one_differ():
    texts = [formatting.decay(1 - 10.0**-k) for k in range(1, 16)]
    assert texts == [f"0.{'9' * k}" for k in range(1, 16)]


@pytest.mark.parametrize("digits", [2, 3])
def test_what_is_not_all_is_not_told_as_all(digits):
    texts = [formatting.percent(1 - 10.0**-k, digits) for k in range(3, 9)]
    assert texts == ["99.9 %", "99.99 %", "99.999 %", "99.9999 %", "99.99999 %", "99.999999 %"]
    assert formatting.percent(-0.99996, digits) == "-99.996 %"
    assert [formatting.percent(share, digits) for share in (1.0, -1.0, 1 - 1e-15)] == ["100 %", "-100 %", "100 %"]


@pytest.mark.parametrize(("share", "text"), [(0.123, "+12.3 %"), (-0.04, "-4 %"), (0.0, "0 %"), (13.8, "+1,380 %")])
def test_a_gain_has_its_sign(share, text):
    assert formatting.signed_percent(share) == text
    assert formatting.percent(share) == text.lstrip("+")


@pytest.mark.parametrize(
    ("p", "text"), [(0.03125, "= 0.031"), (0.000099, "< 0.0001"), (1.0, "= 1"), (math.nan, "undefined")]
)
def test_small_p_values_are_said_to_be_small(p, text):
    assert formatting.p_value(p) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.044, "0.044 s"),
        (0, "0 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (3599.7, "1 h"),
        (7800, "2 h 10 min"),
        (1e6, "12 days"),
        (math.inf, "an unknown time"),
    ],
)
def test_times_have_the_units_that_matter(seconds, text):
    assert formatting.duration(seconds) == text


def test_nouns_follow_their_number():
    assert [formatting.counted(n, "schedule") for n in (0, 1, 2)] == ["0 schedules", "1 schedule", "2 schedules"]
    assert formatting.counted(20000, "entry", "entries") == "20,000 entries"
    assert formatting.counted(1.00001, "epoch") == "1 epoch"
    assert formatting.counted(0.9994, "epoch", digits=3) == "0.999 epochs"
    assert formatting.counted(2.4e-5, "epoch") == "less than 0.0001 epochs"
    assert formatting.counted(2.41e15, "epoch") == "more than 10^15 epochs"


@given(st.floats(0, 1e300))
def test_in_words_no_number_has_an_exponent(value):
    assert "e" not in formatting.bounded(value).replace("less", "").replace("more", "")


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1,023 bytes"),
        (1024, "1 kB"),
        (300_000, "293 kB"),
        (2**20 - 1, "1 MB"),
        (400 * 2**20, "400 MB"),
        (4 * 2**30, "4 GB"),
    ],
)
def test_bytes_in_words(count, words):
    assert formatting.in_bytes(count) == words


@pytest.mark.parametrize(
    ("value", "reference", "words"),
    [
        (1.0, 1.0, "equal to"),
        (1.0 + 1e-9, 1.0, "equal in four digits to"),
        (0.5, 1.0, "50 % below"),
        (1.5, 1.0, "50 % above"),
        (-1.5, -1.0, "50 % below"),
        (-0.5, -1.0, "50 % above"),
        (0.5, 0.0, "above"),
        (-0.5, 0.0, "below"),
    ],
)
def test_numbers_are_compared_in_words_whatever_their_signs(value, reference, words):
    assert formatting.compared(value, reference, "below", "above") == words
