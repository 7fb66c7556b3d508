"""What the marks of the pictures mean: which are seen, which stand out, and by what they are told apart."""

import math
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emacore.averaging.signals import sgd_on_quadratic
from emacore.charts.heatmap import evidence_map, heatmap
from emacore.charts.lines import lines
from emacore.charts.plane import paths, paths_on_landscape
from emacore.charts.seeds import bands, differences, histogram
from emacore.charts.style import (
    AVERAGED,
    CHOSEN,
    CLEAN,
    DARK_PAGE,
    LIGHT_PAGE,
    ORIGINAL,
    OTHERS,
    contrast,
    mixed,
)


def values_of(channel):
    """What a channel shows where its conditions hold, and where none does."""
    condition = channel["condition"]
    conditions = condition if isinstance(condition, list) else [condition]
    return [part["value"] for part in conditions], channel["value"]


def test_in_a_heatmap_only_the_chosen_and_the_pointed_cell_have_frames_which_lie_above_the_others():
    table = pd.DataFrame({"x": [1, 2], "y": [1, 1], "code": ["a", "b"], "loss": [0.5, 8.0], "idle": [True, False]})
    figure = heatmap(
        table, reference=1.0, x_title="power", y_title="beta", loss_title="loss", dotted="idle", chosen="b", height=300
    )
    cells, dots, lowest, places = figure.spec["layer"]
    encoding = cells["encoding"]
    assert cells["mark"]["stroke"] == CHOSEN
    assert values_of(encoding["strokeWidth"]) == ([3, 2], 0)
    assert [part.get("test", part.get("param")) for part in encoding["strokeWidth"]["condition"]] == [
        "datum.chosen",
        "pointed",
    ]
    assert values_of(encoding["order"]) == ([1], 0)
    (condition,) = encoding["order"]["condition"]
    assert condition["test"] == {"or": [{"param": "pointed", "empty": False}, "datum.chosen"]}
    assert figure.data["chosen"].tolist() == [False, True]
    assert figure.data["cell"].tolist() == ["0", "1"]
    clicked, pointed = figure.spec["params"]
    assert clicked["select"]["fields"] == ["code", "clicks"]
    assert (pointed["select"]["on"], pointed["select"]["clear"]) == ("pointerover", "pointerout")
    assert "bind" not in pointed
    assert encoding["fill"]["scale"]["domain"] == [-2, 0, 0, 2]
    assert encoding["y"]["sort"] == "descending"
    assert [(tip["field"], tip["title"]) for tip in encoding["tooltip"]] == [
        ("x", "power"),
        ("y", "beta"),
        ("loss", "loss"),
        ("gain", "gain over the original (%)"),
    ]
    assert dots["transform"] == [{"filter": "datum.dot"}]
    assert (dots["mark"]["opacity"], dots["mark"]["color"]) == (1, CLEAN)
    assert figure.data["dot"].tolist() == [True, False]
    assert lowest["transform"] == [{"filter": "datum.best"}]
    assert lowest["mark"]["opacity"] == 1
    assert places["mark"]["opacity"] == 0
    assert figure.spec["height"] == 300
    plain = heatmap(table, reference=1.0, x_title="x", y_title="y", loss_title="loss")
    assert not plain.data[["dot", "chosen"]].any(axis=None)


def test_a_heatmap_shares_its_pointed_cell_and_a_click_after_other_moves_is_another_one():
    table = pd.DataFrame({"x": [1, 2], "y": [1, 1], "code": ["a", "b"], "loss": [0.5, 8.0]})
    shared = {"reference": 1.0, "x_title": "x", "y_title": "y", "loss_title": "loss"}
    figure = heatmap(table, **shared, shared="cell-moved", clicks=3)
    assert figure.spec["params"][1]["bind"] == {"element": "body", "event": "cell-moved"}
    assert figure.data["clicks"].tolist() == [3, 3]


def test_what_is_level_has_the_colour_of_the_page_and_the_legend_says_what_colours_mean():
    table = pd.DataFrame({"x": [1, 2], "y": [1, 1], "code": ["a", "b"], "loss": [0.5, 8.0]})
    fill = heatmap(table, reference=1.0, x_title="x", y_title="y", loss_title="").spec["layer"][0]["encoding"]["fill"]
    assert fill["scale"]["range"] == [AVERAGED, f"{AVERAGED}00", f"{ORIGINAL}00", ORIGINAL]
    assert fill["legend"]["values"] == [-2, -1, 0, 1, 2]
    assert 'datum.value == -1 ? "half"' in fill["legend"]["labelExpr"]
    assert 'datum.value == 2 ? "4 times"' in fill["legend"]["labelExpr"]


def test_maps_of_losses_below_0_speak_of_shares_of_their_size_and_never_of_multiples():
    table = pd.DataFrame({"x": [1, 2, 3], "y": 1, "code": ["a", "b", "c"], "loss": [-3.0, -1.0, 2.0]})
    figure = heatmap(table, reference=-2.0, x_title="x", y_title="y", loss_title="")
    said = figure.spec["layer"][0]["encoding"]["fill"]["legend"]["labelExpr"]
    for change, gain in figure.data[["change", "gain"]].iloc[:2].itertuples(index=False):
        words = f"{abs(gain):.0f} % {'lower' if gain > 0 else 'higher'}"
        assert f'datum.value == {change:.0f} ? "{words}"' in said
    cells = pd.DataFrame({"x": ["1", "2", "3"], "y": "a", "code": ["a", "b", "c"], "verdict": "unclear"})
    cells = cells.assign(wins=3, seeds=8, untrained=0, median_gain_percent=[50.0, -50.0, -1900.0])
    shown = evidence_map(cells, ["1", "2", "3"], ["a"], x_title="x", y_title="y", signed=True).data
    assert shown["change"].tolist() == [-1, 1, 2]
    assert [text.split("\n")[0] for text in shown["text"]] == ["+50 %", "-50 %", "-1,900 %"]


@pytest.mark.parametrize("dark", [False, True])
def test_numbers_on_a_map_of_evidence_can_be_read_on_any_page(dark):
    gains = [*np.linspace(-3.5, 0.99, 40), -100.0, math.nan]
    cells = [
        {
            "x": str(n),
            "y": "a",
            "code": str(n),
            "median_gain_percent": 100 * gain,
            "wins": 3,
            "seeds": 8,
            "untrained": 0,
            "verdict": "unclear",
        }
        for n, gain in enumerate(gains)
    ]
    figure = evidence_map(
        pd.DataFrame(cells), [cell["x"] for cell in cells], ["a"], x_title="x", y_title="y", dark=dark
    )
    assert figure.spec["layer"][2]["encoding"]["color"] == {"field": "letters", "scale": None, "type": "nominal"}
    page = DARK_PAGE if dark else LIGHT_PAGE
    for change, letters in figure.data[["change", "letters"]].fillna(0.0).itertuples(index=False):
        seen = mixed(ORIGINAL if change > 0 else AVERAGED, page, abs(change) / 2)
        assert contrast(letters, seen) > 3.7, "the least that the better of two greys can have"
    themes = tomllib.loads((Path(__file__).parents[2] / ".streamlit" / "config.toml").read_text())["theme"]
    assert themes["dark" if dark else "light"]["backgroundColor"] == page


def test_contrast_is_that_of_the_standard():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.005)  # the known grey that just fails 4.5
    assert mixed("#FF0080", "#000000", 0.5) == "#800040"


def test_a_map_of_evidence_is_hatched_from_edge_to_edge_and_as_high_as_its_rows():
    cell = {"x": "1", "y": "a", "code": "1a", "median_gain_percent": 25.0, "wins": 3, "seeds": 8, "untrained": 0}
    cell["verdict"] = "unclear"
    figure = evidence_map(pd.DataFrame([cell]), ["1", "2"], ["a", "b", "c"], x_title="x", y_title="y")
    cells, hatches, numbers = figure.spec["layer"]
    ends = pd.DataFrame(hatches["data"]["values"]).groupby("line")[["across", "up"]].agg(list)
    assert len(ends) == 7
    for across, up in zip(ends["across"], ends["up"], strict=True):
        assert np.ptp(across) == pytest.approx(np.ptp(up)), "each goes up as it goes right"
        for place in zip(across, up, strict=True):
            assert {0.0, 1.0} & set(place), "from an edge to an edge"
            assert all(0 <= part <= 1 for part in place)
    shifts = [up[0] - across[0] for across, up in zip(ends["across"], ends["up"], strict=True)]
    assert sorted(shifts) == [-0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75]
    for offset in ("xOffset", "yOffset"):
        assert hatches["encoding"][offset]["scale"] == {"domain": [0, 1], "nice": False, "zero": False}
        assert figure.spec["resolve"]["scale"][offset] == "independent"
    assert cells["encoding"]["fill"]["scale"]["domain"] == [-2, 0, 0, 2]
    assert figure.data["change"].tolist() == [pytest.approx(np.log2(0.75))]
    assert figure.data["median_gain_percent"].tolist() == [25.0]
    assert numbers["encoding"]["text"]["field"] == "text"
    mark = numbers["mark"]
    assert mark["opacity"] == {"expr": "width / 2 < 32 ? 0 : 1"}, "numbers that would run into each other are not drawn"
    assert mark["fontSize"] == {"expr": "clamp(width / 2 / 4, 8, 12)"}
    lower = evidence_map(pd.DataFrame([cell]), ["1"], ["a"], x_title="x", y_title="y").spec
    assert figure.spec["height"] - lower["height"] == 2 * 62


def line_chart(**changes):
    table = pd.DataFrame({"x": [0, 1, 2, 0, 1, 2], "y": [0.0, 1, 2, 3, 4, 5], "who": ["one"] * 3 + ["two"] * 3})
    arguments = {"colours": {"two": AVERAGED, "one": ORIGINAL}, "x_title": "step", "y_title": "loss"}
    return lines(table, x="x", y="y", series="who", **(arguments | changes))


def test_the_line_whose_name_is_clicked_stands_out_and_what_is_context_is_thin():
    drawn, points, _ = line_chart(faint=["one"]).spec["layer"]
    (shown,), other = values_of(drawn["encoding"]["opacity"])
    assert shown >= 0.9
    assert other <= 0.15
    assert values_of(drawn["encoding"]["strokeWidth"]) == ([1], 2.2)
    assert drawn["encoding"]["strokeWidth"]["condition"][0]["test"] == {"field": "name", "oneOf": ["one"]}
    assert values_of(points["encoding"]["opacity"]) == ([1, 0.6], 0)  # pointed at, alone in its line, any other
    assert drawn["encoding"]["x"]["scale"]["nice"] is False
    assert drawn["encoding"]["y"]["scale"] == {"type": "linear", "zero": False, "clamp": True}
    assert drawn["encoding"]["strokeDash"]["scale"]["range"] == [[1, 0], [1, 0]]
    assert len(set(map(str, dashes(line_chart(colours={"one": OTHERS[0], "two": OTHERS[1]}))))) == 2


def dashes(figure):
    return figure.spec["layer"][0]["encoding"]["strokeDash"]["scale"]["range"]


def test_rules_are_labelled_above_the_plot_and_each_other():
    chart = line_chart(x_rules={"cut-off": 1.0, "end": 2.0}).spec
    for layer in chart["layer"][3:]:
        assert [rule["height"] for rule in layer["data"]["values"]] == [-6, -20]
        assert [rule["label"] for rule in layer["data"]["values"]] == ["cut-off", "end"]
    assert [layer["mark"]["type"] for layer in chart["layer"][3:]] == ["rule", "text"]
    assert chart["layer"][4]["encoding"]["y"]["scale"] is None


def test_some_points_of_each_line_answer_the_pointer():
    steps = np.arange(1000)
    table = pd.DataFrame({"x": steps, "y": np.sin(steps), "who": "one"})
    figure = lines(table, x="x", y="y", series="who", colours={"one": ORIGINAL}, x_title="", y_title="")
    probes = np.flatnonzero(figure.data["probe"])
    assert probes[0] == 0
    assert 50 <= len(probes) <= 200
    assert set(np.diff(probes)) == {probes[1]}


def test_bands_show_the_spread_faintly_and_the_median_clearly():
    table = pd.DataFrame({"curve": "a", "epoch": [1, 2], "low": [0.5, 1.0], "median": 2.0, "high": 3.0, "seeds": 8})
    area, line, points, _ = bands(table, {"a": ORIGINAL, "b": AVERAGED}, y_title="loss").spec["layer"][0]["layer"]
    assert values_of(area["encoding"]["opacity"]) == ([0.22], 0.04)
    assert values_of(line["encoding"]["opacity"]) == ([0.95], 0.12)
    assert values_of(points["encoding"]["opacity"]) == ([0.6], 0)
    assert (area["encoding"]["y"]["field"], area["encoding"]["y2"]["field"]) == ("low", "high")
    assert line["encoding"]["y"]["field"] == "median"
    assert line["encoding"]["color"]["scale"] == {"domain": ["a", "b"], "range": [ORIGINAL, AVERAGED]}
    assert line["encoding"]["y"]["scale"] == {"type": "log", "nice": False}
    straight = bands(table, {"a": ORIGINAL}, y_title="loss", y_scale="linear").spec["layer"][0]["layer"][1]
    assert straight["encoding"]["y"]["scale"] == {"type": "linear", "zero": False}


def test_dots_of_seeds_are_blue_where_averaging_won_and_nothing_is_no_win():
    table = pd.DataFrame({"seed": [1, 2, 3], "gain_percent": [5.0, 0.0, -2.0]})
    figure = differences(table, x_title="gain", interval=(-1.0, 4.0), rules={"a": 1.0, "b": 2.0}, height=200)
    assert figure.data["won"].tolist() == [False, False, True]
    zero, interval, rules, labels, dots = figure.spec["layer"]
    assert values_of(dots["encoding"]["color"]) == ([AVERAGED], ORIGINAL)
    assert dots["encoding"]["color"]["condition"][0]["test"] == "datum.won"
    assert zero["data"]["values"] == [{"at": 0.0}]
    assert (interval["encoding"]["x"]["field"], interval["encoding"]["x2"]["field"]) == ("low", "high")
    assert 0 < interval["mark"]["opacity"] < 0.5
    assert [rule["height"] for rule in labels["data"]["values"]] == [-6, -20]
    assert rules["data"] == labels["data"]
    assert figure.spec["height"] == 200
    assert differences(table, x_title="", interval=(0.0, np.inf), rules={}).spec["layer"][1]["data"]["values"] == []


def test_a_histogram_counts_seeds():
    bars, rules, labels = histogram(pd.Series([1.0, 2.0]), x_title="loss", rules={"a": 1.5}, height=120).spec["layer"]
    assert (bars["encoding"]["x"]["field"], bars["encoding"]["x2"]["field"]) == ("low", "high")
    assert (bars["encoding"]["y"]["field"], bars["encoding"]["y"]["title"]) == ("seeds", "seeds")
    assert (
        bars["encoding"]["x"]["title"] == rules["encoding"]["x"]["title"] == labels["encoding"]["x"]["title"] == "loss"
    )
    assert labels["encoding"]["y"] == {"value": -8}, "above the bars"


def test_around_a_quadratic_lines_of_equal_loss_are_told_their_loss():
    path = sgd_on_quadratic((2.0, 0.5), 0.3, 1.0, 50, start=(2.0, 1.6)).noisy
    figure = paths(path, path / 2, (2.0, 0.5), reach=1.7)
    contours, drawn, marks, heads, halos, names = figure.spec["layer"]
    rows = pd.DataFrame(contours["data"]["values"])
    np.testing.assert_allclose((2.0 * rows["u"] ** 2 + 0.5 * rows["v"] ** 2) / 2, rows["level"])
    border = drawn["encoding"]["x"]["scale"]["domain"][1]
    assert border == 2.0, "rounded up to halves"
    largest = rows.groupby("piece")["v"].max()
    assert largest.tolist() == pytest.approx([0.5, 1.0, 1.5, 2.0]), "the flatter weight's reaches the border"
    assert rows.groupby("piece")["order"].apply(list).map(lambda order: order == list(range(73))).all()
    assert rows.groupby("piece")[["u", "v"]].agg(lambda side: side.iloc[-1] - side.iloc[0]).abs().max(axis=None) < 1e-9
    assert marks["data"]["values"] == [{"u": 0.0, "v": 0.0, "mark": "minimum"}]
    assert heads["transform"] == halos["transform"] == names["transform"] == [{"filter": "datum.newest"}]
    assert names["encoding"]["text"]["field"] == "path"
    assert drawn["encoding"]["color"]["legend"] is None
    assert values_of(drawn["encoding"]["opacity"]) == ([0.9], 0.1)
    assert values_of(drawn["encoding"]["strokeWidth"]) == ([1], 2.6)
    assert drawn["encoding"]["strokeWidth"]["condition"][0]["test"] == "(datum.path === 'SGD')"
    assert paths(path, path, (1.0, 1.0), reach=0.0).spec["layer"][1]["encoding"]["y"]["scale"]["domain"] == [-0.5, 0.5]


def test_over_a_landscape_the_axes_are_its_own_and_no_minimum_is_claimed():
    u, v = np.meshgrid(np.linspace(-2, 3, 11), np.linspace(-1, 4, 11))
    grid = pd.DataFrame({"u": u.ravel(), "v": v.ravel(), "loss": (1 + u**2 + v**2).ravel()})
    path = np.array([[0.0, 0.0], [1.0, 0.5]])
    figure = paths_on_landscape(path, path / 2, np.array([3, 6]), grid, titles=("first", "second"))
    contours, drawn, marks, *_ = figure.spec["layer"]
    assert drawn["encoding"]["x"]["scale"]["domain"] == [-2, 3]
    assert drawn["encoding"]["y"]["scale"]["domain"] == [-1, 4]
    assert (drawn["encoding"]["x"]["title"], drawn["encoding"]["y"]["title"]) == ("first", "second")
    assert marks["data"]["values"] == []
    levels = np.unique(pd.DataFrame(contours["data"]["values"])["level"])
    np.testing.assert_allclose(levels, np.geomspace(1, 26, 12)[1:-1])
    assert figure.data[["u", "v", "step"]].to_numpy().tolist() == [[0, 0, 3], [1, 0.5, 6], [0, 0, 3], [0.5, 0.25, 6]]
