"""What the browser is given to draw while a handle moves."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as some

from emacore.charts.ends import plot_height
from emacore.charts.lines import lines
from emacore.charts.moving import Frames, Handle, View, line_frames, moving
from emacore.charts.thin import common_rows

STEPS = np.arange(2000.0)
POWERS = (0.5, 0.75, 1.0)
POWER = Handle("power", "power", POWERS, ("0.5", "0.75", "1"), 1)
SIZE = Handle("size", "it's size", (1.0, 2.0), ("one", "two"), 0)


def curve(power, size=1.0):
    return size * (1 + STEPS) ** -power


def picture(handles, **ends):
    table = pd.DataFrame(
        {"step": np.tile(STEPS, 2), "curve": np.repeat(["now", "pin"], 2000), "y": np.r_[curve(0.75), curve(2.0)]}
    )
    figure = lines(
        table, x="step", y="y", series="curve", colours={"now": "#111", "pin": "#222"}, x_title="s", y_title="y"
    )
    values = {
        "power": [curve(power) for power in POWERS],
        "size": [curve(0.75, size) for size in SIZE.values],
    }
    frames = line_frames("step", "y", "curve", "now", STEPS, values, y_ends=(0.0, 2.0))
    return moving([View(figure, (frames,), ends)], handles), frames


def test_each_frame_has_the_numbers_of_its_mark():
    shown, frames = picture([POWER, SIZE])
    table = shown.tables["frames0_0"].to_pandas()
    kept = table["step"].to_numpy().astype(int)
    for mark, power in enumerate(POWERS):
        assert (table[f"y_0_{mark}"] == curve(power)[kept]).all()
    for mark, size in enumerate(SIZE.values):
        assert (table[f"y_1_{mark}"] == curve(0.75, size)[kept]).all()
    assert set(table["curve"]) == {"now"}
    assert frames.size == 8 * len(kept) * 5


def test_handles_start_at_their_marks_and_say_their_values():
    shown, _ = picture([POWER, SIZE])
    params = {param["name"]: param for param in shown.spec["params"]}
    assert [name for name in params if "bind" in params[name]] == ["drag_power_mark", "drag_size_mark"]
    assert params["drag_power_mark"]["value"] == 1
    assert params["drag_power_mark"]["bind"] == {"input": "range", "min": 0, "max": 2, "step": 1, "name": "power"}
    said = shown.spec["title"]["text"]["expr"]
    assert '["0.5", "0.75", "1"][drag_power_mark]' in said
    assert "it\\'s size" in said
    slashed = picture([SIZE._replace(title="a\\b")])[0].spec["title"]["text"]["expr"]
    assert slashed.startswith("'a\\\\b: '")
    assert said.startswith("width < "), "on a short line they stand below each other"
    assert not picture([POWER])[0].spec["title"]["text"]["expr"].startswith("width")


def test_the_server_is_told_where_a_handle_is_let_go_not_while_it_moves():
    shown, _ = picture([POWER, SIZE])
    params = {param["name"]: param for param in shown.spec["params"]}
    assert params["drag_power"]["value"] == [{"mark": 1}]
    assert "bind" not in params["drag_power"]
    told = params["drag_power_told"]["on"]
    assert [one["events"]["type"] for one in told] == ["change"]
    assert told[0]["events"]["filter"] == "event.target.name === 'drag_power_mark'"
    assert "modify('drag_power_store'" in told[0]["update"]
    assert "values: [drag_power_mark]" in told[0]["update"]


def test_a_name_stands_at_the_last_point_that_the_axis_can_show():
    for ends in ({}, {"y": (0.0, 2.0)}, {"y": (0.01, 2.0)}, {"y": (2.0, 3.0)}):
        shown, _ = picture([POWER, SIZE], **ends)
        names, (low, high) = shown.tables["names0_0"].to_pandas(), ends.get("y", (-np.inf, np.inf))
        assert names["name"].tolist() == ["now"]
        for handle, curves in enumerate(([curve(power) for power in POWERS], [curve(0.75, size) for size in (1, 2)])):
            for mark, drawn in enumerate(curves):
                inside = np.flatnonzero((drawn >= low) & (drawn <= high))
                (x,), (y,) = names[f"x_{handle}_{mark}"], names[f"y_{handle}_{mark}"]
                if not len(inside):
                    assert np.isnan(y), "no name at a curve that cannot be seen"
                    assert shown.tables["names0_0"][f"y_{handle}_{mark}"].null_count == 1, "empty, as pandas sends it"
                else:
                    # The curve is drawn by some of its rows: the name stands at the last of those.
                    kept = shown.tables["frames0_0"]["step"].to_numpy()
                    assert x == kept[kept <= inside[-1]].max()
                    assert y == pytest.approx(drawn[int(x)])


def test_names_of_curves_that_move_together_stay_apart():
    rows = pd.DataFrame({"step": [0.0, 1.0, 0.0, 1.0], "curve": ["a", "a", "b", "b"]})
    frames = Frames(
        rows, {"power": {"y": np.array([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.8]])}}, "curve", ("step", "y")
    )
    table = rows.assign(y=1.0)
    figure = lines(
        table, x="step", y="y", series="curve", colours={"a": "#111", "b": "#222"}, x_title="s", y_title="y", height=200
    )
    shown = moving([View(figure, (frames,), {"y": (0.0, 2.0)})], [POWER])
    near, far = (shown.tables["names0_0"][f"y_0_{mark}"].to_numpy() for mark in (0, 1))
    assert abs(near[0] - near[1]) / 2 * plot_height(200) == pytest.approx(15, abs=1e-6)
    assert far == pytest.approx([1.0, 1.8])


def test_the_current_curve_is_hidden_only_while_its_handle_is_away_and_pins_stay():
    shown, _ = picture([POWER, SIZE])
    tests = {}
    for layer in shown.spec["layer"]:
        for one in layer.get("transform", []):
            if "moved" in one.get("filter", ""):
                tests.setdefault(layer["data"]["name"], []).append(one["filter"])
    assert set(tests) == {"still0", "frames0_0", "names0_0", "rows0_2"}
    for test in tests["still0"]:
        assert test == '!(indexof([0, 1], moved) >= 0 && indexof(["now"], datum["curve"]) >= 0)'
    # Points that answer the pointer come when the handle is let go.
    assert tests["frames0_0"] == ["indexof([0, 1], moved) >= 0", "indexof([0, 1], moved) >= 0 && !held"]
    # The names at the ends go with their curves.
    assert tests["names0_0"] == ["indexof([0, 1], moved) >= 0"]
    assert tests["rows0_2"] == ['!(indexof([0, 1], moved) >= 0 && indexof(["now"], datum["name"]) >= 0)']


def test_a_layers_own_transforms_that_read_what_moves_come_after_it():
    table = pd.DataFrame({"step": STEPS, "curve": "now", "y": curve(0.75)})
    figure = lines(table, x="step", y="y", series="curve", colours={"now": "#111"}, x_title="s", y_title="y")
    own = [{"filter": "datum.probe"}, {"filter": "datum.y > 0.5"}, {"calculate": "1", "as": "one"}]
    layers = [{**figure.spec["layer"][0], "transform": own}, *figure.spec["layer"][1:]]
    frames = line_frames(
        "step", "y", "curve", "now", STEPS, {"power": [curve(power) for power in POWERS]}, y_ends=(0.0, 1.0)
    )
    shown = moving([View(figure._replace(spec={**figure.spec, "layer": layers}), (frames,))], [POWER])
    [drawn] = [layer for layer in shown.spec["layer"] if layer.get("name") == "view0_layer0_0"]
    moved = {"calculate": "datum['y' + frame]", "as": "y"}
    assert drawn["transform"] == [own[0], {"filter": "indexof([0], moved) >= 0"}, moved, *own[1:]]


def test_points_that_answer_the_pointer_wait_until_the_handle_is_let_go():
    shown, _ = picture([POWER, SIZE])
    (held,) = (param for param in shown.spec["params"] if param["name"] == "held")
    assert held["value"] is False
    moved, let_go = held["on"]
    assert moved == {"events": [{"signal": "drag_power_mark"}, {"signal": "drag_size_mark"}], "update": "true"}
    assert let_go["update"] == "false"
    assert [one["filter"] for one in let_go["events"]] == [
        f"event.target.name === 'drag_{key}_mark'" for key in ("power", "size")
    ]


def test_what_is_the_same_for_a_whole_curve_is_no_test_of_each_row():
    shown, _ = picture([POWER])
    (still,) = (layer for layer in shown.spec["layer"] if layer.get("name") == "view0_layer0")
    (drawn,) = (layer for layer in shown.spec["layer"] if layer.get("name") == "view0_layer0_0")
    found = drawn["encoding"]
    assert found["color"] == {"value": "#111"}
    assert found["strokeDash"] == {"value": [1, 0]}
    assert found["strokeWidth"] == {"value": 2.2}
    assert found["opacity"] == {"value": {"expr": "lit0_0 ? 0.9 : 0.12"}}
    assert drawn["mark"]["invalid"] is None, "all of its numbers are finite"
    assert "value" not in still["encoding"]["color"], "the figure has two curves"
    (lit,) = (param for param in shown.spec["params"] if param["name"] == "lit0_0")
    row = '{"name": "now", "curve": "now"}'
    assert lit["expr"] == f"!length(data('highlight_store')) || vlSelectionTest('highlight_store', {row})"


def test_names_that_stand_still_are_apart_on_the_axis_that_is_drawn():
    table = pd.DataFrame({"step": [0.0, 1.0] * 2, "curve": ["a", "a", "b", "b"], "y": [0.0, 0.40, 0.1, 0.44]})
    figure = lines(
        table, x="step", y="y", series="curve", colours={"a": "#111", "b": "#222"}, x_title="s", y_title="y", height=200
    )
    shown = moving([View(figure, (), {"y": (0.0, 4.0)})], [POWER])
    low, high = sorted(shown.tables["rows0_2"]["y"].to_pylist())
    assert (high - low) / 4 * plot_height(200) == pytest.approx(15, abs=1e-6)


def test_what_does_not_move_is_found_once_and_not_at_each_move():
    shown, _ = picture([POWER, SIZE])
    for layer in shown.spec["layer"]:
        if layer["data"]["name"].startswith(("frames", "names")):
            moves = ["frame" in str(one.get("calculate", "")) for one in layer["transform"]]
            fixed = [place for place, one in enumerate(layer["transform"]) if "probe" in str(one)]
            assert all(place < moves.index(True) for place in fixed)
            assert not layer["mark"]["aria"]
            assert layer["mark"]["type"] != "line" or "tooltip" not in layer["encoding"]


def test_a_selection_of_points_is_each_layers_own():
    shown, _ = picture([POWER])
    names = [param["name"] for param in shown.spec["params"]]
    assert len(names) == len(set(names))
    layers = [layer["name"] for layer in shown.spec["layer"] if "name" in layer]
    assert len(layers) == len(set(layers))
    for param in shown.spec["params"]:
        if param["name"].startswith("nearest"):
            (view,) = param["views"]
            layer = next(layer for layer in shown.spec["layer"] if layer.get("name") == view)
            assert param["name"] in str(layer["encoding"]["opacity"])


def test_two_pictures_have_one_highlight_and_all_that_their_layers_ask_for():
    table = pd.DataFrame({"step": STEPS, "curve": "now", "y": curve(0.75)})
    figure = lines(table, x="step", y="y", series="curve", colours={"now": "#111"}, x_title="s", y_title="y")
    shown = moving([View(figure), View(figure)], [])
    params = {param["name"]: param for param in shown.spec["params"]}
    assert len(params) == len(shown.spec["params"])
    asked = set(re.findall(r'"param": "(\w+)"', json.dumps(shown.spec["vconcat"])))
    assert asked == {"highlight", *(name for name in params if name.startswith("nearest"))}
    assert params.keys() >= asked
    assert params["highlight"]["views"] == ["view0_layer2"]


def test_fixed_ends_are_data_and_change_no_specification():
    one, _ = picture([POWER], y=(0.0, 2.0))
    other, _ = picture([POWER], y=(0.0, 3.0))
    assert one.spec == other.spec
    assert one.tables["ends0"]["y_1"].to_pylist() == [2.0]
    assert other.tables["ends0"]["y_1"].to_pylist() == [3.0]
    scale = one.spec["layer"][0]["encoding"]["y"]["scale"]
    assert scale["domain"] == {"expr": "[data('ends0')[0]['y_0'], data('ends0')[0]['y_1']]"}


def test_no_axis_finds_its_ends_in_what_moves():
    """A scale that did would be another one at each move, and all that stands still would be drawn anew."""
    shown, _ = picture([POWER, SIZE], y=(0.0, 2.0))
    for layer in shown.spec["layer"]:
        for channel in ("x", "y"):
            if (told := layer.get("encoding", {}).get(channel)) and told.get("scale", {}) is not None:
                assert "ends0" in told["scale"]["domain"]["expr"]
    assert shown.tables["ends0"].select(["x_0", "x_1"]).to_pylist() == [{"x_0": STEPS[0], "x_1": STEPS[-1]}]


def test_an_axis_that_a_layer_gives_reaches_as_far_with_handles():
    table = pd.DataFrame({"step": STEPS, "curve": "now", "y": curve(0.75)})
    figure = lines(table, x="step", y="y", series="curve", colours={"now": "#111"}, x_title="s", y_title="y")
    figure.spec["layer"][0]["encoding"]["x"]["scale"] = {"domain": [-5.0, 9000.0]}
    values = {"power": [curve(power) for power in POWERS]}
    frames = line_frames("step", "y", "curve", "now", STEPS, values, y_ends=(0.0, 2.0))
    shown = moving([View(figure, (frames,), {"y": (0.0, 2.0)})], [POWER])
    assert shown.tables["ends0"].select(["x_0", "x_1"]).to_pylist() == [{"x_0": -5.0, "x_1": 9000.0}]


def test_without_handles_it_is_the_picture_that_stands_still():
    shown, _ = picture([])
    assert list(shown.tables) == ["still0", "rows0_2", "ends0"]
    assert "title" not in shown.spec


def missed(line, kept, across, x_scale, y_scale, ends):
    """The most by which a line drawn through its kept rows misses the rest, as a share of an axis that cuts it off."""
    on_x, on_y = (np.log if scale == "log" else np.asarray for scale in (x_scale, y_scale))
    low, high = (float(on_y(end)) for end in ends)
    drawn = np.interp(on_x(across), on_x(across[kept]), on_y(line[kept]))
    return np.abs(np.clip(drawn, low, high) - np.clip(on_y(line), low, high)).max() / (high - low)


SCALES = some.sampled_from(["linear", "log"])


@given(some.lists(some.floats(0.05, 3.0), min_size=1, max_size=12), SCALES, SCALES, some.floats(0.01, 1.0))
def test_common_rows_miss_no_line(powers, x_scale, y_scale, seen):
    curves = [curve(power) for power in powers]
    low, high = min(map(np.min, curves)), max(map(np.max, curves))
    ends = (low, low + seen * (high - low))
    kept = common_rows(1 + STEPS, curves, x_scale=x_scale, y_scale=y_scale, y_range=ends)
    for line in curves:
        assert missed(line, kept, 1 + STEPS, x_scale, y_scale, ends) <= 0.005


@given(some.lists(some.tuples(some.integers(0, 1999), some.floats(0, 3)), min_size=1, max_size=30), some.data())
def test_common_rows_keep_every_cliff_and_plateau(parts, data):
    flat = np.zeros(2000)
    for begin, height in sorted(parts):
        flat[begin:] = height
    curves = [flat, np.roll(flat, data.draw(some.integers(0, 1999))), curve(0.75)]
    kept = common_rows(STEPS, curves, y_range=(0.0, 2.0))
    assert len(kept) < 2 * (4 * len(parts) + 4) + 40
    for line in curves:
        assert missed(line, kept, STEPS, "linear", "linear", (0.0, 2.0)) <= 0.005


@pytest.mark.parametrize("border", [1, 777, 1998])
@pytest.mark.parametrize("from_the_end", [False, True])
def test_where_a_line_ends_its_last_row_is_kept(border, from_the_end):
    shown = (np.arange(2000) > border) == from_the_end
    shown[border] = True
    kept = common_rows(STEPS, [np.where(shown, 1.0, np.nan)], y_range=(0.0, 2.0))
    assert border in kept
    assert len(kept) < 40


def test_a_line_may_come_as_what_computes_it():
    whole = {"power": [curve(power) for power in POWERS]}
    made = {"power": [lambda power=power: curve(power) for power in POWERS]}
    one, other = (line_frames("step", "y", "curve", "now", STEPS, own, y_ends=(0.0, 2.0)) for own in (whole, made))
    pd.testing.assert_frame_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.moving["power"]["y"], other.moving["power"]["y"])
