import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from emacore.averaging import families, schedules
from emacore.averaging.filters import half_lives
from emacore.averaging.weights import weights
from emacore.charts.lines import lines
from emacore.charts.seeds import bands
from emacore.charts.style import AVERAGED, ORIGINAL
from emacore.charts.thin import MAX_POINTS, axis_ends, drawable, kept_rows, left_out, roomy_ends, rows_with_gaps, thin

SCALES = st.sampled_from(["linear", "log"])
#: How far a drawn line may be from a smooth curve, as a share of the axis.
MOST_MISSED = 0.005

START = st.integers(0, 20_000)
EVERY = st.sampled_from([1, 1, 1, 10])
BETA = st.sampled_from([0.5, 0.9, 0.99, 0.999, 0.9999, 0.999999, 1.0])
CALLS = {"update_after_step": START, "update_every": EVERY}
FAMILIES = {
    families.InversePower: {
        "beta": BETA,
        "power": st.floats(0.05, 3.0),
        "inv_gamma": st.floats(0.01, 1e4),
        "min_value": st.sampled_from([0.0, 0.5, 0.999]),
    },
    families.Constant: {"beta": BETA},
    families.BiasCorrected: {"beta": BETA},
    families.RationalWarmup: {"beta": BETA},
    families.ExponentialRamp: {"beta": BETA, "tau": st.floats(1.0, 1e6)},
    families.PowerFunction: {"sigma_rel": st.floats(0.005, 0.288)},
    families.UniformAverage: {},
}
SCHEDULES = st.one_of(*(st.builds(family, **own, **CALLS) for family, own in FAMILIES.items()))


def test_every_family_is_drawn_here():
    assert {family.__name__ for family in FAMILIES} == set(schedules.FAMILIES)


def on_axis(values, scale):
    """From 0 to 1, as an axis from the least to the greatest value shows them; values one up to rounding are one."""
    values = np.log10(values) if scale == "log" else values
    spread = np.ptp(values)
    rounding = 1e-15 * len(values) * np.abs(values).max()
    return (values - values.min()) / spread if spread > rounding else np.zeros(len(values))


def missed(x, y, kept, x_scale, y_scale):
    """The furthest that straight lines between the kept rows are from a row, as a share of the axis; gaps aside."""
    shown = np.flatnonzero(drawable(x, x_scale) & drawable(y, y_scale))
    u, v = on_axis(x[shown], x_scale), on_axis(y[shown], y_scale)
    places = np.searchsorted(shown, kept)
    assert np.array_equal(shown[places], kept)
    return np.abs(v - np.interp(u, u[places], v[places])).max()


def quantities(schedule, num_steps):
    """What the pages draw of a schedule, over its calls that are not skipped."""
    calls = np.arange(0, num_steps, schedule.update_every)
    decays = schedule.decays(num_steps)
    return calls, {
        "decay": (decays[calls], "linear"),
        "1 - decay": (1 - decays[calls], "log"),
        "memory": (half_lives(decays[calls]), "log"),
        "weights": (weights(decays)[calls], "linear"),
        "weights, log": (weights(decays)[calls], "log"),
    }


@given(SCHEDULES, st.integers(2, 200_000), SCALES, st.sampled_from([MAX_POINTS, MAX_POINTS // 2]))
@example(families.InversePower(beta=0.999, update_every=1), 400_000, "log", MAX_POINTS)
@example(families.Constant(update_after_step=100), 400_000, "log", MAX_POINTS)
@example(families.Constant(update_after_step=100), 1_000_000, "linear", MAX_POINTS)
@example(families.UniformAverage(), 400_000, "linear", MAX_POINTS)
@settings(deadline=None, max_examples=150)
def test_a_smooth_curve_is_drawn_to_half_a_percent_of_the_axis(schedule, num_steps, x_scale, most):
    calls, drawn = quantities(schedule, num_steps)
    for name, (y, y_scale) in drawn.items():
        x = calls + (x_scale == "log")
        if not drawable(y, y_scale).any():
            continue
        kept = kept_rows(x, y, most, x_scale=x_scale, y_scale=y_scale)
        assert len(kept) <= most, name
        assert missed(x, y, kept, x_scale, y_scale) <= MOST_MISSED, name


@pytest.mark.parametrize("x_scale", ["linear", "log"])
@pytest.mark.parametrize(
    "schedule", [families.InversePower(update_every=1), families.Constant(update_after_step=100)], ids=str
)
def test_ten_million_steps_are_drawn_as_well(schedule, x_scale):
    steps = 10_000_000
    x, y = np.arange(steps) + 1, 1 - schedule.decays(steps)
    kept = kept_rows(x, y, x_scale=x_scale, y_scale="log")
    assert len(kept) <= MAX_POINTS
    assert missed(x, y, kept, x_scale, "log") <= MOST_MISSED


@given(st.integers(2, 60_000), st.integers(20, 800), st.integers(1, 3), SCALES, SCALES, st.integers(0, 99))
@settings(deadline=None)
def test_a_noisy_line_keeps_the_least_and_the_greatest_of_each_pixel_column(rows, most, count, x_scale, y_scale, seed):
    x = np.arange(1, rows + 1)
    y = np.exp(np.random.default_rng(seed).normal(size=(rows, count)))
    kept = kept_rows(x, y, most, x_scale=x_scale, y_scale=y_scale)
    assert len(kept) <= max(most, 2 + 2 * count)
    assert kept[0] == 0
    assert kept[-1] == rows - 1
    assert np.all(np.diff(kept) > 0)
    if rows <= most:
        assert len(kept) == rows
    columns = max(1, (most - most // 8 - 2) // (2 * count))
    assert columns >= most // (2 * count) * 0.75 - 1  # a column is not much wider than the budget allows
    column = np.minimum(np.floor(on_axis(x, x_scale) * columns + 1e-9), columns - 1)
    for line in y.T:
        whole, drawn = (pd.Series(line[some]).groupby(column[some]).agg(["min", "max"]) for some in (slice(None), kept))
        pd.testing.assert_frame_equal(whole, drawn)


@given(st.integers(1000, 50_000), SCALES, st.data())
@settings(deadline=None)
def test_plateaus_and_cliffs_are_drawn_as_such(rows, x_scale, data):
    cliffs = sorted(data.draw(st.sets(st.integers(1, rows - 1), min_size=1, max_size=30)))
    y = np.zeros(rows)
    for n, cliff in enumerate(cliffs):
        y[cliff:] = 1.0 - n % 2
    x = np.arange(1, rows + 1)
    kept = kept_rows(x, y, x_scale=x_scale)
    assert set(cliffs) | {cliff - 1 for cliff in cliffs} <= set(kept.tolist())
    assert missed(x, y, kept, x_scale, "linear") < 1e-9


@given(st.floats(-200, 200), st.floats(0, 1e-9), SCALES)
def test_values_of_any_size_are_drawn(exponent, wiggle, scale):
    size = 10.0**exponent
    x = np.arange(1, 5001)
    smooth = size * (1 + np.sin(x / 400) ** 2)
    assert missed(x, smooth, kept_rows(x, smooth, y_scale=scale), "linear", scale) <= MOST_MISSED
    flat = np.full(5000, size) * (1 + wiggle * (x == 2500))
    kept = kept_rows(x, flat, y_scale=scale)
    assert len(kept) <= MAX_POINTS
    assume(wiggle == 0 or wiggle > 1e-11)
    assert (2499 in kept) or wiggle == 0


def test_rows_may_come_in_any_order():
    x = np.random.default_rng(0).permutation(5000) + 1
    y = 1 / x
    kept = kept_rows(x, y, x_scale="log", y_scale="log")
    assert np.all(np.diff(x[kept]) > 0)
    order = np.argsort(x)
    assert missed(x[order], y[order], np.sort(x[kept] - 1), "log", "log") <= MOST_MISSED


def test_short_lines_are_left_alone_and_gaps_do_no_harm():
    assert kept_rows(np.arange(5.0), np.arange(5.0), 10).tolist() == [0, 1, 2, 3, 4]
    gaps = np.full(1000, np.nan)
    gaps[500] = 7.0
    assert kept_rows(np.arange(1000), gaps, 50).tolist() == [500]
    assert kept_rows(np.arange(1000), np.full(1000, np.nan), 50).tolist() == []


def test_thin_works_series_by_series():
    table = pd.DataFrame({"x": [*range(1000)] * 2, "y": np.sin(np.arange(2000)), "s": ["a"] * 1000 + ["b"] * 1000})
    counts = thin(table, "x", "y", "s", 100).groupby("s").size()
    assert counts.max() <= 100
    assert counts.min() > 50


def test_a_line_ends_where_the_axis_cannot_show_it_and_that_is_told():
    y = np.ones(10_000)
    y[3000:4000], y[6000], y[8000], y[8002] = 0.0, np.inf, np.nan, -1.0
    table = pd.DataFrame({"x": np.arange(10_000), "y": y, "s": "a"})
    drawn = thin(table, "x", "y", "s", y_scale="log")
    ends = drawn.groupby("piece")["x"].agg(["min", "max"]).to_numpy().tolist()
    assert ends == [[0, 2999], [4000, 5999], [6001, 7999], [8001, 8001], [8003, 9999]]
    assert drawn.loc[drawn["alone"], "x"].tolist() == [8001]
    assert left_out(table, {"x": "linear", "y": "log"}, "s") == (
        "Not drawn, because the axis cannot show them: 1,003 of 10,000 values of a (missing, infinite, 0, below 0)."
    )
    assert left_out(table[:3000], {"x": "linear", "y": "log"}, "s") == ""
    assert "1 of 1 values of a (0)" in left_out(table[:1], {"x": "log", "y": "log"}, "s")
    linear = thin(table, "x", "y", "s")
    assert linear["piece"].nunique() == 3


def arguments(y_scale="linear", **changes):
    named = {"x": "x", "y": "y", "series": "s", "colours": {"a": AVERAGED, "b": ORIGINAL}, "x_title": "", "y_title": ""}
    return {**named, "y_scale": y_scale, **changes}


def test_charts_break_their_lines_and_tell_it():
    y = np.ones(10_000)
    y[5000] = 0.0
    table = pd.DataFrame({"x": np.arange(10_000), "y": y, "s": "a"})
    figure = lines(table, **arguments("log"))
    assert figure.left_out == "Not drawn, because the axis cannot show them: 1 of 10,000 values of a (0)."
    assert figure.data["piece"].nunique() == 2
    assert figure.spec["layer"][0]["encoding"]["detail"] == {"field": "piece", "type": "nominal"}
    assert lines(table, **arguments()).left_out == ""
    epochs = pd.DataFrame({"curve": "a", "epoch": np.arange(10_000), "low": y, "median": 2.0, "high": 3.0, "seeds": 8})
    banded = bands(epochs, {"a": AVERAGED}, y_title="")
    assert banded.left_out == figure.left_out
    assert banded.data["piece"].nunique() == 2
    assert len(banded.data) <= MAX_POINTS


def test_a_chart_is_thinned_for_the_axis_that_all_its_lines_share():
    x = np.arange(50_000)
    tiny = 1e-7 * np.random.default_rng(0).normal(size=50_000)
    table = pd.DataFrame({"x": [*x, *x], "y": [*(1 + tiny), *np.exp(-x / 50)], "s": ["a"] * 50_000 + ["b"] * 50_000})
    drawn = lines(table, **arguments()).data
    b = drawn[drawn["s"] == "b"]
    assert missed(x, np.exp(-x / 50), b["x"].to_numpy(), "linear", "linear") <= MOST_MISSED


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("values", [[], [0.0], [np.nan], [5.0], [-3.0, -3.0], [1e-9], [2.0, 7.0]])
def test_an_axis_has_a_length_and_what_it_shows_within(values, scale):
    low, high = roomy_ends(values, scale)
    assert low < high
    shown = np.array(values)[drawable(values, scale)]
    assert ((low <= shown) & (shown <= high)).all()
    assert scale == "linear" or low > 0


def test_rounding_is_not_blown_up_to_the_height_of_the_chart():
    share = weights(families.UniformAverage().decays(100_000))
    assert 0 < np.ptp(share) < 1e-12
    table = pd.DataFrame({"x": np.arange(100_000), "y": share, "s": "a"})
    for scale in ("linear", "log"):
        figure = lines(table, **arguments(scale))
        low, high = figure.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
        assert [low, high] == pytest.approx([0.9e-5, 1.1e-5])
    assert "domain" not in lines(table.assign(y=1.0), **arguments()).spec["layer"][0]["encoding"]["y"]["scale"]


@pytest.mark.parametrize("y_scale", ["linear", "log"])
@pytest.mark.parametrize("missing", ["none", "a stretch", "every third", "all"])
@pytest.mark.parametrize("kind", ["noise", "decay"])
def test_a_line_thinned_before_it_is_a_table_is_drawn_as_the_whole(kind, missing, y_scale):
    x = np.arange(60_000.0)
    y = np.random.default_rng(0).normal(0.1, 0.1, len(x)) if kind == "noise" else np.exp(-x / 2_000)
    y[
        {"none": slice(0), "a stretch": slice(10_000, 20_000), "every third": slice(0, None, 3), "all": slice(None)}[
            missing
        ]
    ] = np.nan
    rows = rows_with_gaps(x, y, y_scale=y_scale, y_range=axis_ends(y, y_scale))
    assert len(rows) <= 2 * MAX_POINTS + 1
    whole = pd.DataFrame({"x": x, "y": y, "line": "one"})
    drawn = [thin(table, "x", "y", "line", y_scale=y_scale) for table in (whole, whole.iloc[rows])]
    for column in ("x", "y", "alone"):
        np.testing.assert_array_equal(drawn[0][column], drawn[1][column])
    breaks = [np.diff(table["piece"]) > 0 for table in drawn]
    np.testing.assert_array_equal(*breaks)
