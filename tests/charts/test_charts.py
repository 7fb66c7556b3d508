import numpy as np
import pandas as pd
import pytest

from emacore.averaging.signals import sgd_on_quadratic
from emacore.charts.article import article_panel
from emacore.charts.heatmap import evidence_map, heatmap
from emacore.charts.lines import lines
from emacore.charts.plane import paths, paths_on_landscape
from emacore.charts.seeds import bands, bins, differences, histogram
from emacore.charts.style import AVERAGED, CHOSEN, ORIGINAL, OTHERS, palette
from emacore.charts.tradeoff import tradeoff
from emacore.formatting import number


def chart_of(table=None, **changes):
    if table is None:
        table = pd.DataFrame({"x": [0, 1, 2] * 2, "y": [0.0, 1, 2, 3, 4, 5], "who": ["one"] * 3 + ["two"] * 3})
    arguments = {
        "x": "x",
        "y": "y",
        "series": "who",
        "colours": {"two": AVERAGED, "one": ORIGINAL},
        "x_title": "step",
        "y_title": "loss (MSE)",
    }
    return lines(table, **(arguments | changes))


def test_a_line_chart_has_titles_colours_tooltip_and_names_that_highlight():
    chart = chart_of(x_rules={"cut-off": 1.0}).spec
    assert "data" not in chart["layer"][0]
    assert "data" not in chart["layer"][1]
    encoding = chart["layer"][0]["encoding"]
    assert encoding["x"]["title"] == "step"
    assert encoding["y"]["title"] == "loss (MSE)"
    assert encoding["color"]["scale"] == {"domain": ["two", "one"], "range": [AVERAGED, ORIGINAL]}
    assert [t["title"] for t in chart["layer"][1]["encoding"]["tooltip"]] == [" ", "step", "loss (MSE)"]
    assert encoding["color"]["legend"] is None
    assert [row["name"] for row in chart["layer"][2]["data"]["values"]] == ["one", "two"]
    assert {"highlight": ["name"]}.items() <= {p["name"]: p["select"].get("fields") for p in chart["params"]}.items()
    assert chart["layer"][3]["mark"]["type"] == "rule"
    assert chart["layer"][3]["data"] == {"values": [{"label": "cut-off", "at": 1.0, "height": -6}]}


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("value", [0.518, 7e-5, 3e8, 0.0, -2.0])
def test_names_of_curves_that_are_one_number_stand_apart(scale, value):
    figure = chart_of(pd.DataFrame({"x": [1, 1], "y": value, "who": ["one", "two"]}), y_scale=scale, height=240)
    if value <= 0 and scale == "log":
        assert figure.empty
        return
    low, high = figure.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert low < value < high
    on = np.log if scale == "log" else np.asarray
    places = [on(row["y"]) for row in figure.spec["layer"][2]["data"]["values"]]
    assert abs(places[1] - places[0]) / (on(high) - on(low)) * 145 > 14.9  # pixels of a line of text


@pytest.mark.parametrize(("epochs", "whole"), [([0, 1, 5], True), ([0.0, 1.0, np.nan], True), ([0.5, 1.0, 2.0], False)])
def test_an_axis_of_whole_numbers_has_no_ticks_between_them_whatever_holds_them(epochs, whole):
    chart = chart_of(pd.DataFrame({"x": epochs, "y": [1.0, 2.0, 3.0], "who": "one"}))
    axis = chart.spec["layer"][0]["encoding"]["x"]["axis"]
    assert (axis.get("tickMinStep") == 1) == whole
    assert (axis.get("format") == ",d") == whole


def test_of_two_curves_the_one_that_can_be_drawn_has_its_name():
    table = pd.DataFrame({"x": [1, 2, 1, 2], "y": [1.0, 2.0, np.nan, np.inf], "who": ["one", "one", "two", "two"]})
    figure = chart_of(table)
    assert [row["name"] for row in figure.spec["layer"][2]["data"]["values"]] == ["one"]
    assert "2 of 2 values of two (missing, infinite)" in figure.left_out
    assert not figure.empty
    assert chart_of(table[2:]).empty


def test_log_axes_leave_out_what_they_cannot_show():
    chart = chart_of(x_scale="log", y_scale="log")
    assert (chart.data[["x", "y"]] > 0).all(axis=None)
    assert len(chart.data) == 4
    assert chart.spec["layer"][0]["encoding"]["y"]["scale"]["type"] == "log"


def test_an_empty_table_still_draws():
    assert lines(
        pd.DataFrame({"x": [0, 0], "y": [0.0, 0.0], "who": ["a", "a"]}),
        x="x",
        y="y",
        series="who",
        colours={"a": ORIGINAL},
        x_title="x",
        y_title="y",
        y_scale="log",
    ).data.empty


def test_paths_reach_the_borders_of_the_picture():
    path = sgd_on_quadratic((1.0, 0.25), 0.3, 1.0, 100, start=(2.0, 1.6)).noisy
    figure = paths(path, path / 2, (1.0, 0.25), reach=np.abs(path).max())
    chart = figure.spec
    assert ["data" in layer for layer in chart["layer"]] == [True, False, True, False, False, False]
    assert figure.data.groupby("path", sort=False)["newest"].sum().tolist() == [1, 1]
    assert figure.data[figure.data["newest"]]["step"].tolist() == [99, 99]
    low, high = chart["layer"][1]["encoding"]["x"]["scale"]["domain"]
    assert low == -high
    assert high >= np.abs(path).max()
    assert chart["layer"][1]["encoding"]["color"]["scale"]["range"] == [ORIGINAL, AVERAGED]


def test_a_specification_is_made_once_and_data_never_leak_from_one_chart_to_the_next():
    one, two = chart_of(x_rules={"a": 1.0}), chart_of(x_rules={"b": 2.0})
    assert one.spec["layer"][0] is two.spec["layer"][0]
    assert one.spec["layer"][4]["data"]["values"][0]["label"] == "a"
    assert two.spec["layer"][4]["data"]["values"][0]["label"] == "b"
    assert "data" not in chart_of().spec


def test_a_heatmap_of_losses_below_0_is_blue_where_they_are_lower():
    table = pd.DataFrame({"x": [1, 2, 3], "y": 1, "code": ["a", "b", "c"], "loss": [-3.0, -2.0, -1.0]})
    figure = heatmap(table, reference=-2.0, x_title="x", y_title="y", loss_title="loss (nats)")
    assert figure.data["change"].tolist() == [-1.0, 0.0, 1.0]
    assert figure.data["gain"].tolist() == [50.0, 0.0, -50.0]


def test_a_heatmap_marks_the_lowest_cell_and_is_blue_below_the_reference():
    table = pd.DataFrame({"x": [1, 2, 3], "y": 1, "code": ["a", "b", "c"], "loss": [0.5, 8.0, 0.125]})
    figure = heatmap(table, reference=1.0, x_title="power", y_title="beta", loss_title="loss (MSE)")
    assert figure.data["change"].tolist() == [-1.0, 2.0, -2.0], "no colour says more than 4 times, or a quarter"
    assert figure.data["gain"].tolist() == [50.0, -700.0, 87.5]
    assert figure.data["best"].tolist() == [False, False, True]
    colours = figure.spec["layer"][0]["encoding"]["fill"]["scale"]["range"]
    assert (colours[0], colours[-1]) == (AVERAGED, ORIGINAL)
    assert "data" not in figure.spec
    lost = heatmap(table.assign(loss=np.nan), reference=1.0, x_title="power", y_title="beta", loss_title="loss (MSE)")
    assert not lost.data["best"].any()


def test_a_row_without_any_value_keeps_its_place():
    table = pd.DataFrame({"x": [1, 2], "y": [1, 1], "code": [None, "a"], "loss": [np.nan, 1.0]})
    layers = heatmap(table, reference=1.0, x_title="x", y_title="y", loss_title="loss (nats)").spec["layer"]
    # Vega-Lite leaves a row out of the axes where a quantity is missing, unless a layer draws none.
    assert any(set(layer["encoding"]) == {"x", "y"} and "transform" not in layer for layer in layers)


def test_a_map_of_evidence_hatches_what_shows_nothing():
    table = pd.DataFrame(
        {
            "x": ["1", "2", "1"],
            "y": ["a", "a", "b"],
            "code": ["1a", "2a", "1b"],
            "median_gain_percent": [50.0, -9900.0, 1.0],
        }
    ).assign(
        wins=[12, 0, 6],
        seeds=12,
        untrained=0,
        low=0.0,
        high=0.0,
        p=0.01,
        verdict=["helps", "hurts", "no difference shown"],
    )
    figure = evidence_map(table, ["1", "2"], ["a", "b"], x_title="x", y_title="y")
    assert figure.data["change"].round(3).tolist() == [-1.0, 2.0, -0.014]
    assert figure.data["text"].tolist() == ["+50 %\n12 of 12", "x 100\n0 of 12", "+1 %\n6 of 12"]
    lines_ = pd.DataFrame(figure.spec["layer"][1]["data"]["values"])
    assert set(lines_["code"]) == {"1b"}
    assert set(lines_.groupby("line").size()) == {2}
    assert figure.spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == ["b", "a"]
    for layer in (0, 2):
        assert "data" not in figure.spec["layer"][layer]


@pytest.mark.parametrize(
    ("gain", "text"),
    [(0.5, "+50 %"), (-0.003, "-0.3 %"), (4e-5, "+0.004 %"), (0.0, "equal"), (-1.76, "-176 %"), (-99.0, "x 100")],
)
def test_a_cell_of_the_map_never_says_that_a_change_is_0(gain, text):
    cell = {
        "x": "1",
        "y": "a",
        "code": "1a",
        "median_gain_percent": 100 * gain,
        "wins": 3,
        "seeds": 8,
        "untrained": 0,
        "verdict": "hurts",
    }
    figure = evidence_map(pd.DataFrame([cell]), ["1"], ["a"], x_title="x", y_title="y")
    assert figure.data["text"].tolist() == [f"{text}\n3 of 8"]


def test_palette_gives_each_name_its_colour():
    assert palette(["a", "b", "c"], {"b": AVERAGED}) == {"a": OTHERS[0], "b": AVERAGED, "c": OTHERS[1]}
    assert len(set(palette(list("abcdefg"), {"d": AVERAGED}).values())) == 7
    chosen = palette(list("abcdefg"), {"d": AVERAGED, "e": CHOSEN})
    assert len(set(chosen.values())) == 7


def test_a_landscape_is_drawn_as_lines_of_equal_loss():
    u, v = np.meshgrid(np.linspace(-2, 2, 21), np.linspace(-1, 1, 21))
    grid = pd.DataFrame({"u": u.ravel(), "v": v.ravel(), "loss": (1 + u**2 + v**2).ravel()})
    path = np.array([[0.0, 0.0], [1.0, 0.5], [0.5, 0.5]])
    figure = paths_on_landscape(path, path / 2, np.array([3, 6, 9]), grid, titles=("a", "b"))
    rows = pd.DataFrame(figure.spec["layer"][0]["data"]["values"])
    np.testing.assert_allclose(1 + rows["u"] ** 2 + rows["v"] ** 2, rows["level"], rtol=0.02)
    assert rows["level"].nunique() == 10
    assert figure.data[figure.data["newest"]]["step"].tolist() == [9, 9]
    flat = paths_on_landscape(path, path, np.arange(3), grid.assign(loss=1.0), titles=("a", "b"))
    assert flat.spec["layer"][0]["data"]["values"] == []
    holes = grid.assign(loss=grid["loss"].where(grid["u"] < 1, np.inf))
    assert paths_on_landscape(path, path, np.arange(3), holes, titles=("a", "b")).spec["layer"][0]["data"]["values"]


def test_differences_are_ordered_and_rules_drawn():
    table = pd.DataFrame({"seed": [1, 2, 3], "gain_percent": [5.0, -2.0, np.inf]})
    figure = differences(table, x_title="gain", interval=(-3.0, 6.0), rules={"article": 20.0})
    assert figure.data[["seed", "rank", "won"]].to_numpy().tolist() == [[2, 1, False], [1, 2, True]]
    data = [layer.get("data", {}).get("values") for layer in figure.spec["layer"]]
    assert data[1] == [{"low": -3.0, "high": 6.0}]
    assert data[2][0]["at"] == 20.0
    assert data[4] is None
    none = differences(table, x_title="gain", interval=(np.nan, np.nan), rules={})
    assert none.spec["layer"][1]["data"]["values"] == []


def test_what_of_many_seeds_cannot_be_drawn_is_told():
    gains = pd.DataFrame({"seed": [1, 2, 3, 4], "gain_percent": [5.0, np.nan, np.inf, -np.inf]})
    for lost, told in (
        (gains, "3 of 4 values of the gain (missing, infinite)"),
        (gains[:2], "1 of 2"),
        (gains[:1], ""),
    ):
        figure = differences(lost, x_title="gain", interval=(np.nan, np.nan), rules={})
        bars = histogram(lost["gain_percent"], x_title="gain")
        assert figure.left_out == bars.left_out
        assert told in figure.left_out
        assert bool(told) == bool(figure.left_out)


def test_bands_and_histograms():
    table = pd.DataFrame({"curve": "a", "epoch": [1, 2], "low": [0.0, 1.0], "median": 2.0, "high": 3.0, "seeds": 8})
    assert len(bands(table, {"a": ORIGINAL}, y_title="loss").data) == 1  # a log axis has no 0
    assert len(bands(table, {"a": ORIGINAL}, y_title="loss", y_scale="linear").data) == 2
    curves, strip, *counts = bands(table, {"a": ORIGINAL}, y_title="loss").spec["layer"]
    *drawn, names = curves["layer"]
    for part in (*drawn, strip, *counts):
        assert "data" not in part
    assert names["data"]["values"] == [{"name": "a", "x": 2.0, "y": 2.0, "low": 2.0}]
    for part in (strip, *counts):
        assert part["transform"][0]["aggregate"] == [{"op": "min", "field": "seeds", "as": "seeds"}]
        assert part["encoding"]["y"]["scale"] is None, "in pixels, beside the scale of the losses"
    assert histogram(pd.Series([1.0, np.nan, np.inf, 2.0]), x_title="x").data["seeds"].tolist() == [1, 1]
    ruled = histogram(pd.Series([1.0, 2.0]), x_title="x", rules={"theirs": 1.5}).spec["layer"]
    assert ruled[1]["data"]["values"] == ruled[2]["data"]["values"] == [{"at": 1.5, "label": "theirs"}]
    assert histogram(pd.Series([1.0]), x_title="x").spec["layer"][1]["data"]["values"] == []
    assert ruled[0]["mark"]["binSpacing"] == 1, "bars of four pixels are seen"


@pytest.mark.parametrize("whole", [True, False])
def test_every_value_lies_in_the_bin_that_counts_it(whole):
    rng = np.random.default_rng(0)
    for _ in range(200):
        scale = 10.0 ** rng.integers(0 if whole else -8, 6)
        values = rng.choice([-1, 1]) * scale * (rng.random() * 10 + rng.random(rng.integers(1, 60)))
        values = np.round(values) if whole else values
        if rng.random() < 0.3:
            values[:] = values[0]
        table = bins(values, whole=whole)
        counts = [int(((values >= row.low) & (values < row.high)).sum()) for row in table.itertuples()]
        assert table["seeds"].tolist() == counts
        assert sum(counts) == len(values)
        width = (table["high"] - table["low"]).to_numpy()
        assert (width > 0).all()
        np.testing.assert_allclose(width, width[0], rtol=1e-6)
        assert (table["high"].iloc[-1] - table["low"].iloc[0]) / width[0] <= 25.5
        if not whole:
            ends = zip(table["low"], table["high"], strict=True)
            assert table["label"].tolist() == [f"{number(low)} to {number(high)}" for low, high in ends]
        if whole:
            assert not (table[["low", "high"]].to_numpy() % 1 - 0.5).any(), "half way between whole numbers"


def test_seeds_that_all_end_at_the_same_epoch_are_one_bar_at_it():
    table = histogram(pd.Series([60] * 32), x_title="last epoch", whole=True).data
    assert table.to_dict("records") == [{"low": 59.5, "high": 60.5, "seeds": 32, "label": "60"}]
    assert bins([80, 83, 110], whole=True)["label"].tolist() == ["80 to 81", "82 to 83", "110 to 111"]
    assert bins([0.0, 0.0])["seeds"].tolist() == [2]
    assert bins([np.nan]).empty
    assert len(bins([0.5] * 3)) == len(bins([1e-9] * 3)) == 1


@pytest.mark.parametrize(("names", "room"), [(["one alone"], False), (["one", "two"], True)])
def test_where_several_curves_have_names_there_is_room_for_them(names, room):
    table = pd.DataFrame({"x": [0, 1] * len(names), "y": 1.0, "s": np.repeat(names, 2)})
    figure = lines(table, x="x", y="y", series="s", colours=dict.fromkeys(names, "#111"), x_title="x", y_title="y")
    _, right = figure.spec["layer"][0]["encoding"]["x"]["scale"]["range"]
    assert ("min(0," not in right["expr"]) == room


def test_axes_that_count_have_whole_numbers_only():
    table = pd.DataFrame({"curve": "a", "epoch": [1, 2], "low": 1.0, "median": 2.0, "high": 3.0, "seeds": 8})
    gains = pd.DataFrame({"seed": [1, 2], "gain_percent": [1.0, 2.0]})
    bar = histogram(pd.Series([3, 4]), x_title="last epoch", whole=True).spec["layer"][0]["encoding"]
    axes = [
        bands(table, {"a": ORIGINAL}, y_title="loss").spec["layer"][0]["layer"][0]["encoding"]["x"]["axis"],
        differences(gains, x_title="gain", interval=(0.0, 1.0), rules={}).spec["layer"][4]["encoding"]["y"]["axis"],
        bar["x"]["axis"],
        bar["y"]["axis"],
    ]
    assert axes == [{"format": ",d", "tickMinStep": 1}] * 4


def test_a_run_beside_the_article_has_its_three_parts_and_its_phases():
    table = pd.DataFrame(
        {"part": ["run", "article", "seeds"], "curve": "EMA", "epoch": 1, "value": 2.0, "low": 1.0, "high": 3.0}
    )
    figure = article_panel(table, colours={"EMA": AVERAGED}, phases=[10, 40], y_title="loss", y_scale="log")
    parts = [layer["transform"][0]["filter"] for layer in figure.spec["layer"] if "transform" in layer]
    assert [part for part in ("run", "article", "seeds") if any(f"'{part}'" in told for told in parts)] == list(
        table["part"]
    )
    phases = [layer["data"]["values"] for layer in figure.spec["layer"] if "data" in layer]
    assert phases == [[{"at": 10}, {"at": 40}]] * len(phases) != []


def test_a_tradeoff_leaves_the_picture_far_below_its_lowest_average():
    table = pd.DataFrame({"decay": [0.5, 0.9, 0.99], "half_life": [1.0, 6.6, 69.0], "bias": [1e-40, 1e-9, 1.0]})
    table = table.assign(variance=[0.3, 0.1, 0.0], simulated=0.2, last=0.4)
    table["expected"] = table["bias"] + table["variance"]
    figure = tradeoff(table, chosen=6.6, label="decay 0.9")
    assert figure.spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == [0.033, 1.5]
    assert figure.spec["layer"][2]["data"]["values"] == [
        {"at": 6.6, "label": "decay 0.9", "early": True, "mark": "chosen"}
    ]
    assert figure.data.groupby("curve").size().to_dict() == {
        "average": 4,  # and a dot
        "SGD's last step": 3,
        "start left in it": 3,
        "noise left in it": 2,  # a log axis has no 0
    }
    ends = {row["name"]: row["x"] for row in figure.spec["layer"][4]["data"]["values"]}
    assert ends == {"average": 69.0, "SGD's last step": 69.0, "start left in it": 69.0, "noise left in it": 6.6}
    deep = tradeoff(table.assign(expected=[1e-40, 1e-9, 1.0]), chosen=69.0, label="").spec["layer"]
    assert deep[0]["encoding"]["y"]["scale"]["domain"] == [1e-6, 1.5]
    assert [layers[3]["data"]["values"][0]["early"] for layers in (figure.spec["layer"], deep)] == [True, False]


def test_a_tradeoff_of_nothing_that_can_be_drawn_has_an_axis_still():
    columns = ["decay", "half_life", "bias", "variance", "expected", "simulated", "last"]
    table = pd.DataFrame([[0.5, 1.0, *[np.inf] * 5]], columns=columns)
    figure = tradeoff(table, chosen=1.0, label="")
    assert figure.data.empty
    assert figure.spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == [0.1, 1.5]
