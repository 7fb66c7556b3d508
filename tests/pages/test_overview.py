import json

import numpy as np
import pytest
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df

from emacore.averaging.families import Constant
from emacore.averaging.signals import final_loss, sgd_on_quadratic
from emacore.averaging.weights import average
from emacore.experiments.article_study import in_words, shipped
from tests.pages.conftest import drag, drawn, frames, run, texts

CURVATURES, START, STEPS = (1.0, 0.25), (2.0, 1.6), 300


def table_of(app, name):
    (data,) = (data for data in app.get("vega_lite_chart")[0].proto.datasets if data.name == name)
    return convert_arrow_bytes_to_pandas_df(data.data.data)


def figures(app):
    table = app.dataframe[0].value
    return table.set_index(table.columns[0])


def heading(app):
    return app.header[0].value


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.5])
@pytest.mark.parametrize("decay", ["0.2", "0.98", "0.9999", "0.999999"])
def test_the_page_says_what_holds_for_the_run_it_draws(open_page, rate, decay):
    app = open_page("overview", quad_rate=str(rate), quad_decay=decay, play="false")
    beta = float(decay)
    bias, variance = final_loss(CURVATURES, rate, 1.0, STEPS, [0.0, beta], START)
    table = figures(app)
    np.testing.assert_allclose(table["left of the start"], bias)
    np.testing.assert_allclose(table["from the noise"], variance)
    np.testing.assert_allclose(table["expected: both"], bias + variance)
    for row, kept in zip(table["after endless steps"], (0.0, beta), strict=True):
        keep = 1 - rate * np.array(CURVATURES)  # AR(1), seen through (1 - kept) / (1 - kept z^-1)
        gain = (1 - kept) / (1 + kept) * (1 + kept * keep) / (1 - kept * keep)
        assert row == pytest.approx(gain * rate**2 / (1 - keep**2) @ CURVATURES / 2)
    np.testing.assert_allclose(table["simulated"], bias + variance, rtol=0.2)
    assert [float(metric.value) for metric in app.metric] == pytest.approx(bias + variance, rel=0.005)
    before, after = bias + variance
    assert heading(app).startswith("Averaging lowers" if after < before else "Averaging raises")
    assert app.header[1].value == "Formula and simulation agree"
    path = sgd_on_quadratic(CURVATURES, rate, 1.0, STEPS, seed=1, start=START).noisy
    ends = [path[-1], average(path, Constant(beta).decays(STEPS))[-1]]
    np.testing.assert_allclose(table["the path drawn"], [end**2 @ CURVATURES / 2 for end in ends])
    picture = drawn(app)[0]
    np.testing.assert_allclose(picture.loc[picture["newest"], ["u", "v"]], ends)


def test_a_decay_too_large_for_the_run_is_not_praised(open_page):
    app = open_page("overview", quad_decay="0.9999")
    assert heading(app) == "Averaging raises the expected loss of this run from 0.166 to 2.19"
    assert heading(open_page("overview")) == "Averaging lowers the expected loss of this run by 87.5 %"


def test_the_chart_is_the_formula_over_the_decay_with_the_chosen_one_marked(open_page):
    app = open_page("overview", quad_decay="0.9")
    table = drawn(app)[1]
    lines = table[table["part"] == "formula"].pivot(index="decay", columns="curve", values="loss")
    bias, variance = final_loss(CURVATURES, 0.3, 1.0, STEPS, lines.index, START)
    np.testing.assert_allclose(lines["average"], bias + variance)
    np.testing.assert_allclose(lines["noise left in it"], variance)
    shown = lines["start left in it"].notna()
    np.testing.assert_allclose(lines["start left in it"][shown], bias[shown])
    np.testing.assert_allclose(lines["SGD's last step"], final_loss(CURVATURES, 0.3, 1.0, STEPS, 0.0, START).total)
    assert table_of(app, "rows1_3")["label"].tolist() == ["decay 0.9"]
    assert f"at decay {lines['average'].idxmin():.6g}" in texts(app)
    dots = table[table["part"] == "simulated"].set_index("decay")["loss"]
    assert len(dots) > 20
    np.testing.assert_allclose(dots, lines["average"][dots.index], rtol=0.2)


@pytest.mark.parametrize(
    ("rate", "noise", "decay"), [("0.3", "1", "0.98"), ("1.2", "2.5", "0.5"), ("0.05", "0", "0.9")]
)
def test_the_picture_is_the_path_and_its_average_step_by_step(open_page, rate, noise, decay):
    app = open_page("overview", quad_rate=rate, quad_noise=noise, quad_decay=decay, play="false")
    path = sgd_on_quadratic(CURVATURES, float(rate), float(noise), STEPS, seed=1, start=START).noisy
    averaged = [path[0]]
    for value in path[1:]:
        averaged.append(float(decay) * averaged[-1] + (1 - float(decay)) * value)
    picture = drawn(app)[0]
    for name, expected in (("SGD", path), ("average", averaged)):
        own = picture[picture["path"] == name]
        assert own["step"].tolist() == list(range(STEPS))
        np.testing.assert_allclose(own[["u", "v"]], expected, rtol=1e-9, atol=1e-12)
    border = max(np.ceil(2 * np.abs(path).max()) / 2, 0.5)
    # A unit is as long across as it is up.
    ends = table_of(app, "ends0").iloc[0]
    assert [ends["y_0"], ends["y_1"]] == [-border, border]
    view = json.loads(app.get("vega_lite_chart")[0].proto.spec)["vconcat"][0]
    for layer in view["layer"][:3]:
        sides = [f"data('ends0')[0]['y_{end}'] * width / {view['height']}" for end in (0, 1)]
        assert layer["encoding"]["x"]["scale"]["domain"] == {"expr": f"[{', '.join(sides)}]"}


def signals(app):
    spec = json.loads(app.get("vega_lite_chart")[0].proto.spec)
    return {param["name"]: param for param in spec["params"]}


def test_it_plays_in_the_browser_when_it_is_opened_and_when_it_is_asked_to(open_page):
    app = open_page("overview")
    shown = signals(app)["shown"]
    assert shown["value"] == 20
    assert shown["on"][0]["events"]["type"] == "timer"
    layers = json.loads(app.get("vega_lite_chart")[0].proto.spec)["vconcat"][0]["layer"]
    assert sum({"filter": "datum.step <= shown"} in layer.get("transform", []) for layer in layers) == 3
    app.get_by_key("quad_rate").set_value(0.5)
    assert signals(run(app))["shown"] == {"name": "shown", "value": STEPS - 1, "on": []}
    next(button for button in app.button if button.label == "Play again").click()
    assert signals(run(app))["shown"]["value"] == 20
    app.get_by_key("play").set_value(False)
    assert signals(run(app))["shown"]["value"] == STEPS - 1
    assert signals(open_page("overview", play="false"))["shown"]["on"] == []


@pytest.mark.parametrize(("key", "mark"), [("quad_rate", 12), ("quad_noise", 25), ("quad_decay", 9)])
def test_frames_are_the_runs_of_their_marks(open_page, key, mark):
    app = open_page("overview", play="false")
    tables = frames(app)
    drag(app, **{key: mark})
    now = {name: app.get_by_key(name).value for name in ("quad_rate", "quad_noise", "quad_decay")}
    place = list(now).index(key)
    path = sgd_on_quadratic(CURVATURES, now["quad_rate"], now["quad_noise"], STEPS, seed=1, start=START).noisy
    averaged = average(path, Constant(now["quad_decay"]).decays(STEPS))
    for table, expected in (("frames0_0", path), ("frames0_1", averaged)):
        if table == "frames0_0" and key == "quad_decay":
            assert not any(column.startswith("u_2") for column in tables[table])
            continue
        np.testing.assert_array_equal(tables[table][[f"u_{place}_{mark}", f"v_{place}_{mark}"]], expected)
    if key == "quad_decay":
        (at,) = tables["frames1_1"][f"at_2_{mark}"]
        assert at == pytest.approx(np.log(0.5) / np.log(now[key]))
    else:
        curves = tables["frames1_0"].pivot(index="decay", columns="curve", values=f"loss_{place}_{mark}")
        bias, variance = final_loss(CURVATURES, now["quad_rate"], now["quad_noise"], STEPS, curves.index, START)
        np.testing.assert_allclose(curves["average"], bias + variance)
        np.testing.assert_allclose(curves["noise left in it"], variance)


def test_all_of_it_is_small(open_page):
    data = [data.data.data for data in open_page("overview").get("vega_lite_chart")[0].proto.datasets]
    assert sum(map(len, data)) < 3_000_000


def test_the_marked_decay_stands_at_its_half_life(open_page):
    app = open_page("overview", quad_decay="0.9", play="false")
    for place in (2, 3):
        row = table_of(app, f"rows1_{place}").iloc[0]
        assert (row["at"], row["label"]) == (pytest.approx(np.log(0.5) / np.log(0.9)), "decay 0.9")
    table = drawn(app)[1]
    np.testing.assert_allclose(table["half_life"], np.log(0.5) / np.log(table["decay"]))
    lowest = table[(table["part"] == "formula") & (table["curve"] == "average")]["loss"].min()
    assert f"Lowest of these: {lowest:.3g}, at decay" in texts(app)
    assert "It forgets half in 6.58 steps." in texts(app)


def test_titles_follow_the_numbers(open_page, monkeypatch):
    from emacore.averaging import views

    monkeypatch.setattr(views.LossByDecay, "agrees", lambda self, decay: decay != 0)
    app = open_page("overview")
    assert app.header[1].value == "Formula and simulation do not agree"
    assert "**Look for:** a larger decay makes the blue path calmer" in texts(app)


def test_reset_brings_the_first_settings_back(open_page):
    app = open_page("overview", quad_rate="1.2", quad_noise="2")
    assert app.get_by_key("quad_rate").value == 1.2
    next(button for button in app.button if button.label == "Reset").click()
    assert run(app).get_by_key("quad_rate").value == 0.3


def test_without_noise_averaging_only_keeps_the_start(open_page):
    app = open_page("overview", quad_noise="0")
    assert heading(app) == "This run ends practically at the minimum, with and without averaging"
    assert [box.value for box in app.metric] == ["< 0.0001", "< 0.0001"]
    assert "there is no noise to average out" in texts(app)
    assert figures(app)["from the noise"].tolist() == [0.0, 0.0]
    assert app.header[1].value == "Formula and simulation agree"


def test_garbage_in_the_link_falls_back(open_page):
    app = open_page("overview", quad_rate="large", quad_decay="1.5", play="perhaps")
    assert app.get_by_key("quad_rate").value == 0.3
    assert app.get_by_key("quad_decay").value == 0.98


def test_a_decay_between_the_marks_is_kept(open_page):
    assert open_page("overview", quad_decay="0.98765").get_by_key("quad_decay").value == 0.98765


def test_the_articles_experiment_is_told_as_the_shipped_study_shows_it(open_page):
    app = open_page("overview")
    for sentence in in_words(shipped()[0]):
        assert f"- {sentence}" in texts(app)


def test_three_questions_lead_to_the_pages(open_page):
    assert len(open_page("overview").get("page_link")) == 3
