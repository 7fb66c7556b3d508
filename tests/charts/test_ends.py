"""Names at the ends of curves, and ticks of log axes."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from emacore.averaging.families import InversePower
from emacore.averaging.views import decay_table
from emacore.charts.ends import apart, names_at_ends, round_ticks
from emacore.charts.lines import lines
from emacore.charts.style import palette


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.floats(0, 0.3), st.floats(-2, 0), st.floats(0.1, 2))
def test_names_are_apart_inside_and_in_the_order_of_their_curves(places, gap, low, high):
    moved = np.asarray(apart(places, gap, low, high))
    assert np.all((moved >= low - 1e-9) & (moved <= high + 1e-9))
    order = np.argsort(np.clip(places, low, high), kind="stable")
    wanted = min(gap, (high - low) / max(1, len(places) - 1))
    assert np.all(np.diff(moved[order]) >= wanted - 1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8, unique=True))
def test_names_that_have_room_stay_where_they_are(places):
    nearest = min((abs(a - b) for a in places for b in places if a != b), default=1.0)
    assert apart(places, nearest, 0.0, 1.0) == pytest.approx(places)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 4)), min_size=1, max_size=6))
def test_names_of_several_lines_hang_apart_and_inside(names):
    places, lines = zip(*names, strict=True)
    gap, low = 0.03, 0.0
    first = np.asarray(apart(places, gap, low, 1.0, lines))
    bottom = first - gap * (np.asarray(lines) - 1)
    order = np.argsort(places, kind="stable")
    assert np.all((bottom >= low - 1e-9) & (first <= 1 + 1e-9))
    assert np.all(bottom[order][1:] - first[order][:-1] >= gap - 1e-9)


def test_long_names_wrap_and_take_their_lines():
    names = ("EMA from the first value", "PowerFunction(sigma_rel=0.1)", "now")
    table = pd.DataFrame({"x": 1.0, "y": [0.5, 0.5, 0.5], "curve": names})
    rows = names_at_ends(table, "x", "y", "curve", height=300, y_domain=(0.0, 1.0))
    first = [row["low"] for row in rows]
    # Of two lines, three and one, each 15 of 300 pixels high.
    assert np.diff(sorted(first)) == pytest.approx([3 * 0.05, 0.05])
    assert np.diff([row["y"] for row in rows]) == pytest.approx([0.05, 0.05])
    # A name that the most room does not have in one line takes two of it.
    long = table.assign(curve=[names[0], "constant 0.96, 110 epochs, seed 6, 20:33", names[2]])
    rows = names_at_ends(long, "x", "y", "curve", height=300, y_domain=(0.0, 1.0))
    assert np.diff([row["y"] for row in rows]) == pytest.approx([0.1, 0.05])


def test_a_name_is_at_the_last_point_that_the_axes_can_show():
    table = pd.DataFrame(
        {
            "step": [1, 10, 100, 1, 10, 100, 1, 2],
            "loss": [8.0, 4, 2, 8, 3, math.nan, 8, 0.5],
            "curve": ["whole"] * 3 + ["diverged"] * 3 + ["short"] * 2,
        },
        index=[0] * 8,
    )
    rows = names_at_ends(table, "step", "loss", "curve", height=300, x_scale="log", y_scale="log")
    assert [(row["name"], row["x"], round(row["y"], 9)) for row in rows] == [
        ("whole", 100, 2),
        ("diverged", 10, 3),
        ("short", 2, 0.5),
    ]
    assert names_at_ends(table.assign(loss=math.nan), "step", "loss", "curve", height=300) == []


@given(st.floats(1e-12, 1e12), st.floats(0.01, 20))
@example(1.0, 8.0)
def test_ticks_of_a_log_axis_are_round_few_and_regular(low, decades):
    high = low * 10**decades
    ticks = np.asarray(round_ticks(low, high))
    assert np.all((ticks >= low) & (ticks <= high))
    assert len(ticks) <= (8 if decades >= 3 else 10)
    if decades >= 3:
        assert len(ticks) >= 3
        powers = np.log10(ticks)
        assert powers == pytest.approx(np.round(powers), abs=1e-9)
        assert len(set(np.round(np.diff(powers)))) <= 1
    assert all(f"{tick:e}".split("e")[0].rstrip("0").rstrip(".") in "123456789" for tick in ticks)


def test_a_long_run_has_a_tick_at_each_power_of_ten():
    table = pd.DataFrame(decay_table(InversePower(), 400_000)).assign(curve="now")
    chart = lines(
        table.assign(step=table["step"] + 1),
        x="step",
        y="one_minus_decay",
        series="curve",
        colours=palette(["now"]),
        x_title="step",
        y_title="1 - decay",
        x_scale="log",
        y_scale="log",
    ).spec
    axis = chart["layer"][0]["encoding"]["x"]["axis"]
    assert axis["values"] == [1, 10, 100, 1000, 10_000, 100_000]
    assert axis["format"] == ",.4~r"
