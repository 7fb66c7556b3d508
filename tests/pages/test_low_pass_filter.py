import json
import math

import numpy as np
import pandas as pd
import pytest

from emacore.averaging import measurements, views
from emacore.averaging.families import InversePower
from emacore.averaging.filters import cutoff_frequency, window_of_equal_noise
from emacore.averaging.signals import NOISES, SIGNALS, sequence
from emacore.charts.style import AVERAGED
from emacore.widgets import own_curves
from tests.pages.conftest import PANEL, drag, drawn, frames, marked, own, run, texts


def comparison(app):
    return app.dataframe[0].value.set_index("quantity")


@pytest.mark.parametrize(("signal", "noise"), [*zip(SIGNALS, (NOISES * 2)[: len(SIGNALS)], strict=True)])
def test_every_signal_and_noise_shows(open_page, signal, noise):
    app = open_page("low_pass_filter", signal=signal, noise=noise)
    assert app.get_by_key("signal").value == signal
    assert comparison(app).loc["share of the first value at the end", "remark"] == "exact"


@pytest.mark.parametrize(
    ("query", "quantity", "within"),
    [
        ({"noise": "white", "length_f": "20000"}, "variance of the noise, after / before", 0.15),
        ({"noise": "AR(1)", "length_f": "50000"}, "variance of the noise, after / before", 0.3),
        ({"length_f": "20000"}, "cut-off (cycles per step)", 0.15),
        ({"signal": "ramp", "noise": "none"}, "lag of slow changes (steps)", 0.01),
        ({"signal": "sine", "noise": "none", "length_f": "4000"}, "lag of the sine (steps)", 0.01),
        ({"signal": "step", "noise": "none"}, "half-life (steps)", 0.01),
        ({"length_f": "100"}, "share of a zero start at the end", 1e-9),
    ],
)
def test_measured_is_what_was_predicted(open_page, query, quantity, within):
    row = comparison(open_page("low_pass_filter", **query)).loc[quantity]
    assert row["measured"] == pytest.approx(row["predicted"], rel=within)


def test_too_short_to_measure_is_told(open_page):
    table = comparison(open_page("low_pass_filter", f_decay="0.999"))
    row = table.loc["variance of the noise, after / before"]
    assert np.isnan(row["measured"])
    assert "too few steps" in row["remark"]


def test_every_filter_and_the_schedule_of_the_other_page(open_page):
    everything = ["EMA from the first value", "EMA from zero", "EMA, bias-corrected", "moving average, equal delay"]
    everything += ["moving average, equal noise", "the schedule"]
    app = open_page("low_pass_filter", filters=everything, power="0.9")
    assert "InversePower(beta=0.999, power=0.9, update_every=1)" in texts(app)
    assert "a window of 99 steps; for white noise the two are one and the same" in texts(app)
    coloured = open_page("low_pass_filter", filters=everything[3:5], noise="AR(1)")
    assert "equal noise: a window of" in texts(coloured)
    assert "one and the same" not in texts(coloured)


def test_no_filter_at_all(open_page):
    app = open_page("low_pass_filter")
    app.get_by_key("filters").set_value([])
    run(app)


def test_presets_set_the_controls(open_page):
    app = open_page("low_pass_filter", seed_f="9")
    for button in [b for b in app.button if str(b.key).startswith("preset-")]:
        button.click()
        run(app)
    app.get_by_key("preset-Chirp").click()
    run(app)
    assert app.get_by_key("signal").value == "chirp"
    assert app.get_by_key("seed_f").value == 0


def test_each_preset_says_what_to_look_for(open_page):
    app = open_page("low_pass_filter")
    said = set()
    for button in [b for b in app.button if str(b.key).startswith("preset-")]:
        app.get_by_key(button.key).click()
        words = [text.value for text in run(app).markdown if text.value.startswith("**Look for:**")]
        assert len(words) == 1
        assert button.help in words[0]
        said |= set(words)
    assert len(said) == 7
    app.get_by_key("level").set_value(0.85)
    assert "**Look for:**" not in texts(run(app))


@pytest.mark.parametrize(("key", "mark"), [("f_decay", 5), ("level", 3), ("rho", 1), ("period", 2)])
def test_a_frame_is_the_sequence_and_its_average_at_its_mark(open_page, key, mark):
    settings = {"signal": "sine", "noise": "AR(1)", "length_f": "200"}
    app = open_page("low_pass_filter", **settings)
    tables = {table["line"].iloc[0]: table for table in frames(app).values()}
    place = ["f_decay", "level", "rho", "period"].index(key)
    drag(app, **{key: mark})
    level, rho, period = (app.session_state[name] for name in ("level", "rho", "period"))
    clean, noisy = sequence("sine", "AR(1)", 200, 0, noise_level=level, period=period, autocorrelation=rho)
    lines = {"EMA from the first value": smoothed(noisy, app.get_by_key("f_decay").value, noisy[0])}
    lines |= {"sequence": noisy} if key != "f_decay" else {}
    lines |= {"clean part": clean} if key == "period" else {}
    for name, line in lines.items():
        table = tables[name]
        expected = line[table["step"].astype(int)]
        np.testing.assert_allclose(table[f"value_{place}_{mark}"], expected, rtol=1e-12, atol=1e-12)
    moved = {name for name, table in tables.items() if f"value_{place}_{mark}" in table}
    assert moved == set(lines)


@pytest.mark.parametrize("length", ["3000", "3001"])
def test_frames_are_small_and_a_long_sequence_has_none(open_page, length):
    everything = ["EMA from the first value", "EMA from zero", "EMA, bias-corrected", "moving average, equal delay"]
    app = open_page("low_pass_filter", length_f=length, filters=everything, signal="chirp", noise="AR(1)")
    data = [data.data.data for data in app.get("vega_lite_chart")[0].proto.datasets]
    assert sum(map(len, data)) < 3_000_000
    assert bool(frames(app)) == (length == "3000")
    assert ("is drawn anew once a value is typed" in texts(app)) == (length == "3001")


def test_the_small_pictures_share_their_rules_and_colours(open_page):
    app = open_page("low_pass_filter", filters=["EMA from the first value", "moving average, equal delay"])
    specs = [json.loads(chart.proto.spec) for chart in app.get("vega_lite_chart")[1:]]
    rules = [
        [row["label"] for layer in spec["layer"] for row in layer.get("data", {}).get("values", []) if "label" in row]
        for spec in specs
    ]
    assert [sorted(set(labels)) for labels in rules] == [["cut-off, -3 dB"]] * 2 + [["half-life", "mean age"]] * 2
    colours = [
        dict(zip(*(spec["layer"][0]["encoding"]["color"]["scale"][k] for k in ("domain", "range")), strict=True))
        for spec in specs
    ]
    assert colours[0] == colours[2] == colours[3]
    assert colours[0]["EMA"] == colours[1]["EMA"] == AVERAGED


def test_low_decays_have_no_cutoff(open_page):
    assert "No cut-off" not in texts(open_page("low_pass_filter"))
    assert open_page("low_pass_filter", f_decay="0.2").get_by_key("f_decay").value == 0.2


def test_a_file_of_a_tracker_is_drawn_and_smoothed_at_once_as_the_tracker_does_it(open_page):
    app = own(open_page, PANEL, ways=["TensorBoard", "Weights & Biases"])
    assert not app.error
    assert app.get_by_key("metrics").value == ["run-1 - loss", "run-2 - loss"]
    assert app.get_by_key("own_x").value == "Step"
    assert "delimited text, 7 rows; x is Step; metrics: run-1 - loss, run-2 - loss" in texts(app)
    assert "(the smallest where W&B has several values at a step)" in texts(app).replace("\\", "")
    tables = drawn(app)[:2]
    for table, steps, values in zip(tables, ([0, 10, 20, 30], [5, 15, 25]), ([4, 2, 3, 1], [8, 6, 7]), strict=True):
        lines = dict(list(table.groupby("line")))
        assert lines["value"]["x"].tolist() == steps
        assert lines["value"]["value"].tolist() == values
        kept, weight, expected = 0.0, 0.0, []
        for place, value in enumerate(values):
            # The x-axis spans both runs, from 0 to 30.
            fade = math.sqrt(0.6) ** ((steps[place] - steps[max(place - 1, 0)]) / 30 * 1000)
            kept, weight = kept * fade + value, weight * fade + 1
            expected.append(kept / weight)
        np.testing.assert_allclose(lines["Weights & Biases"]["value"], expected, rtol=1e-12)
        debiased = smoothed(values, 0.6, 0.0) / (1 - 0.6 ** np.arange(1, len(values) + 1))
        np.testing.assert_allclose(lines["TensorBoard"]["value"], debiased, rtol=1e-12)
    figures = app.dataframe[0].value
    assert len(figures) == 4
    assert figures["lag"][0] == pytest.approx(0.6 / 0.4 * 10)
    app.get_by_key("viewport_scale").set_value(30.0)
    faded = drawn(run(app))[0]
    last = faded[faded["line"] == "Weights & Biases"]["value"].iloc[1]
    assert last == pytest.approx((4 * 0.6**5 + 2) / (0.6**5 + 1))


def test_a_frame_of_a_file_is_its_curve_smoothed_at_that_mark(open_page):
    values = np.random.default_rng(3).normal(size=40)
    content = pd.DataFrame({"step": 5 * np.arange(40), "loss": values}).to_csv(index=False).encode()
    app = own(open_page, content, ways=["EMA from the first value"])
    (table,) = frames(app).values()
    drag(app, first_decay=4)
    beta = app.get_by_key("first_decay").value
    expected = smoothed(values, beta, values[0])[(table["x"] / 5).astype(int)]
    np.testing.assert_allclose(table["value_0_4"], expected, rtol=1e-9)


def test_the_pictures_of_a_file_are_in_its_steps(open_page):
    values = np.random.default_rng(5).normal(size=200)
    content = pd.DataFrame({"step": 10 * np.arange(200), "loss": values}).to_csv(index=False).encode()
    app = own(open_page, content, ways=[own_curves.SCHEDULE])
    assert "`InversePower(beta=0.999, update_every=1)`" in texts(app)
    tables = {list(table)[1]: table for table in drawn(app)}
    assert tables["gain"]["frequency"].max() == pytest.approx(0.05)  # half a cycle in ten steps
    assert tables["density"]["frequency"].max() == pytest.approx(0.05)
    assert tables["answer"]["age"].iloc[1] == 10
    beta = InversePower(0.999, update_every=1).decays(200)[-1]
    assert marked(app) == pytest.approx(
        {
            "cut-off, -3 dB": cutoff_frequency(beta) / 10,
            "half-life": 10 * math.log(0.5) / math.log(beta),
            "half of the jump": 10 * (math.log(0.5) / math.log(beta) - 1),
            "lag": 10 * beta / (1 - beta),
        }
    )


def test_x_and_what_stands_twice_are_choices(open_page):
    app = own(
        open_page,
        b"step,when,loss\n0,5,4\n2,6,2\n1,7,8\n2,9,0\n",
        ways=["EMA from the first value"],
        first_decay="0.5",
        own_x="a column of another file",
    )
    assert app.get_by_key("own_x").value == "step"
    assert app.get_by_key("metrics").value == ["when", "loss"]
    app.get_by_key("metrics").set_value(["loss"])
    lines = {name: line["value"].tolist() for name, line in drawn(run(app))[0].groupby("line")}
    assert lines == {"value": [4, 8, 2, 0], "EMA from the first value": [4, 6, 4, 2]}
    app.get_by_key("own_repeats").set_value("last")
    kept = drawn(run(app))[0]
    assert kept[kept["line"] == "value"]["value"].tolist() == [4, 8, 0]
    app.get_by_key("own_repeats").set_value("all")
    app.get_by_key("own_order").set_value("rows")
    app.get_by_key("ways").set_value(["pandas ewm, half-life"])
    assert "sort them first" in run(app).error[0].value
    app.get_by_key("own_x").set_value("number of the row")
    assert drawn(run(app))[0]["x"].max() == 3


def test_own_column(open_page):
    table = pd.DataFrame({"word": ["x"] * 300, "loss": np.random.default_rng(0).normal(size=300), "other": 1.0})
    app = own(open_page, table.to_csv(index=False).encode())
    assert app.get_by_key("metrics").options == ["loss", "other"]
    assert not app.error
    app.get_by_key("metrics").set_value(["other"])
    run(app)
    app.get_by_key("metrics").set_value([])
    assert "Choose a metric" in run(app).error[0].value


def test_a_file_outlives_a_page_change_and_goes_when_it_is_removed(open_page):
    app = own(open_page, b"step,loss\n0,1\n1,2\n")
    app.switch_page("pages/decay_schedule.py")
    run(app)
    app.switch_page("pages/low_pass_filter.py")
    assert "From mine.csv" in texts(run(app))
    app.get_by_key("forget_own").click()
    assert "Drop a file" in texts(run(app))
    assert "From mine.csv" not in texts(app)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x00\x01\x02", "binary"),
        ("loss\n\xe9".encode("latin-1"), "not UTF-8"),
        (b"loss\n", "header but no rows"),
        (b"word\nx\ny\n", "no column of numbers"),
        (b"step,loss\n1,2,3\n", "line 2 has 3 fields"),
    ],
)
def test_bad_files_are_told_in_a_sentence(open_page, content, message):
    app = own(open_page, content)
    assert message in app.error[0].value


def test_gaps_are_told_and_spoil_nothing(open_page):
    app = own(open_page, b"loss\n1\n\n3\nnan\n7\n", ways=["EMA from the first value"], first_decay="0.5")
    assert "loss: blank or no number in 1 of 4 rows, first in line 5" in texts(app)
    lines = {name: line["value"].tolist() for name, line in drawn(app)[0].groupby("line")}
    assert lines["EMA from the first value"] == [1, 2, 4.5]


def test_a_million_rows_are_read_in_another_process_and_drawn_thinned(open_page, monkeypatch):
    sizes = []
    monkeypatch.setattr(own_curves, "call_apart", lambda read, content: sizes.append(len(content)) or read(content))
    values = (np.random.default_rng(0).random(200_000) - 0.01).round(4)
    content = ("loss\n" + "\n".join(f"{value:.4f}" for value in values)).encode()
    app = own(open_page, content, own_y="log")
    assert sizes == [len(content)]
    table = drawn(app)[0]
    assert table["value"].max() == values.max()
    assert table["value"][table["value"] > 0].min() == values[values > 0].min()
    assert len(table) < 20_000
    assert "200,000 rows" in texts(app)
    assert f"{(values <= 0).sum():,} of 200,000 values of value (0, below 0)" in texts(app)


def test_two_rows_are_enough(open_page):
    assert "at least 32 steps" in texts(own(open_page, b"loss\n1\n2\n"))


def smoothed(values, beta, average):
    found = []
    for value in values:
        average = beta * average + (1 - beta) * value
        found.append(average)
    return np.array(found)


def test_every_chart_draws_what_it_says(open_page):
    windows = ["moving average, equal delay", "moving average, equal noise"]
    chosen = ["EMA from the first value", "EMA from zero", "EMA, bias-corrected", *windows, "the schedule"]
    settings = {"signal": "constant", "noise": "AR(1)", "rho": "0.5", "length_f": "300", "f_decay": "0.9"}
    app = open_page("low_pass_filter", filters=chosen, family="Running mean", update_after_step="0", **settings)
    lines, gains, spectra, jumps, ages = drawn(app)
    (clean, noisy) = sequence("constant", "AR(1)", 300, 0, noise_level=0.3, autocorrelation=0.5)
    sizes = dict(zip(windows, (19, window_of_equal_noise(0.9, 0.5)), strict=True))
    assert sizes[windows[1]] != 19
    zero = smoothed(noisy, 0.9, 0.0)
    expected = {
        "sequence": noisy,
        "clean part": clean,
        chosen[0]: smoothed(noisy, 0.9, noisy[0]),
        chosen[1]: zero,
        chosen[2]: zero / (1 - 0.9 ** np.arange(1, 301)),
        **{name: [noisy[max(0, t - n + 1) : t + 1].mean() for t in range(300)] for name, n in sizes.items()},
        chosen[5]: np.cumsum(noisy) / np.arange(1, 301),
    }
    assert set(lines["line"]) == set(expected)
    for name, line in lines.groupby("line"):
        np.testing.assert_allclose(line["value"], np.asarray(expected[name])[line["step"]], atol=1e-12)

    for name, line in gains.groupby("filter"):
        turns = np.exp(-2j * np.pi * line["frequency"].to_numpy()[:, None] * np.arange(400))
        shares = 0.1 * 0.9 ** np.arange(400) if name == "EMA" else (np.arange(400) < sizes[name]) / sizes[name]
        np.testing.assert_allclose(line["gain"], np.abs(turns @ shares), atol=1e-12)
    assert set(gains["filter"]) == {"EMA", *windows}

    frequency, before, after = measurements.spectra(noisy, expected[chosen[0]])
    for name, density in (("sequence", before), ("EMA", after)):
        line = spectra[spectra["line"] == name].set_index("frequency")["density"]
        assert len(line) > 10
        np.testing.assert_allclose(line, np.interp(line.index, frequency, density))

    for name, line in jumps.groupby("filter"):
        steps = line["steps"].to_numpy()
        share = 1 - 0.9**steps if name == "EMA" else np.minimum(steps / sizes[name], 1)
        np.testing.assert_allclose(line["answer"], share, atol=1e-12)
    for name, line in ages.groupby("filter"):
        age = line["age"].to_numpy()
        share = 0.1 * 0.9**age if name == "EMA" else (age < sizes[name]) / sizes[name]
        np.testing.assert_allclose(line["weight"], share, atol=1e-12)
    assert set(jumps["filter"]) == set(ages["filter"]) == {"EMA", *windows}


@pytest.mark.parametrize("first", [views.DELAY, views.NOISE, views.SCHEDULE, views.FIRST])
def test_no_two_lines_of_a_picture_have_one_colour(open_page, first):
    app = open_page("low_pass_filter", filters=[first, *(name for name in views.FILTERS if name != first)])
    charts = [json.loads(chart.proto.spec) for chart in app.get("vega_lite_chart")]
    assert len(charts) == 5
    for chart in charts:
        scale = chart["layer"][0]["encoding"]["color"]["scale"]
        assert len(set(scale["range"])) == len(scale["domain"]) > 1


def test_the_table_is_of_the_sequence_that_is_drawn(open_page):
    settings = {"signal": "sine", "period": "100", "noise": "white", "length_f": "2000", "f_decay": "0.95"}
    table = comparison(open_page("low_pass_filter", **settings))
    made = sequence("sine", "white", 2000, 0, noise_level=0.3, period=100)
    expected = pd.DataFrame(measurements.comparison(made, 0.95, autocorrelation=0.0, period=100)).set_index("quantity")
    pd.testing.assert_frame_equal(table, expected)
    assert "lag of the sine (steps)" in table.index
