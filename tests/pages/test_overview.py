import json
import re

import numpy as np
import pytest

from emacore.averaging.families import Constant
from emacore.averaging.signals import final_loss, sgd_on_quadratic
from emacore.averaging.weights import average
from emacore.experiments.article_study import in_words, shipped
from tests.pages.conftest import drawn, run, texts

CURVATURES, START, STEPS = (1.0, 0.25), (2.0, 1.6), 300


def figures(app):
    table = app.dataframe[0].value
    return table.set_index(table.columns[0])


def heading(app):
    return app.subheader[0].value


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
    np.testing.assert_allclose(table["simulated"], bias + variance, rtol=0.2)
    assert [float(metric.value) for metric in app.metric] == pytest.approx(bias + variance, rel=0.005)
    before, after = bias + variance
    assert heading(app).startswith("Averaging lowers" if after < before else "Averaging raises")
    assert app.subheader[1].value == "Formula and simulation agree"
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
    spec = app.get("vega_lite_chart")[1].proto.spec
    assert '"label": "decay 0.9"' in spec
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
    chart = app.get("vega_lite_chart")[0].proto
    picture = drawn(app)[0]
    for name, expected in (("SGD", path), ("average", averaged)):
        own = picture[picture["path"] == name]
        assert own["step"].tolist() == list(range(STEPS))
        np.testing.assert_allclose(own[["u", "v"]], expected, rtol=1e-9, atol=1e-12)
    border = max(np.ceil(2 * np.abs(path).max()) / 2, 0.5)
    axes = json.loads(chart.spec)["layer"][0]["encoding"]
    assert [axes[axis]["scale"]["domain"] for axis in ("x", "y")] == [[-border, border]] * 2


def test_while_it_plays_the_first_steps_are_shown_as_far_as_the_caption_says(open_page):
    app = open_page("overview")
    shown = int(re.search(r"Step (\d+) of 299", texts(app))[1])
    assert 0 < shown < STEPS - 1
    picture = drawn(app)[0]
    assert picture.groupby("path")["step"].agg(["min", "max"]).to_numpy().tolist() == [[0, shown]] * 2
    assert set(picture.loc[picture["newest"], "step"]) == {shown}


def test_the_marked_decay_stands_at_its_half_life(open_page):
    app = open_page("overview", quad_decay="0.9", play="false")
    spec = json.loads(app.get("vega_lite_chart")[1].proto.spec)
    marks = [layer["data"]["values"] for layer in spec["layer"] if "data" in layer]
    assert marks == [[{"at": pytest.approx(np.log(0.5) / np.log(0.9)), "label": "decay 0.9"}]] * 2
    table = drawn(app)[1]
    np.testing.assert_allclose(table["half_life"], np.log(0.5) / np.log(table["decay"]))
    lowest = table[(table["part"] == "formula") & (table["curve"] == "average")]["loss"].min()
    assert f"Lowest of these: {lowest:.3g}, at decay" in texts(app)
    assert "It forgets half in 6.6 steps." in texts(app)


def test_titles_follow_the_numbers(open_page, monkeypatch):
    from emacore.averaging import views

    monkeypatch.setattr(views.LossByDecay, "agrees", lambda self, decay: decay != 0)
    assert open_page("overview").subheader[1].value == "Formula and simulation do not agree"


def test_reset_brings_the_first_settings_back(open_page):
    app = open_page("overview", quad_rate="1.2", quad_noise="2")
    assert app.get_by_key("quad_rate").value == 1.2
    next(button for button in app.button if button.label == "Reset").click()
    assert run(app).get_by_key("quad_rate").value == 0.3


def test_without_noise_averaging_only_keeps_the_start(open_page):
    app = open_page("overview", quad_noise="0")
    assert heading(app).startswith("Averaging raises the expected loss of this run from")
    assert figures(app)["from the noise"].tolist() == [0.0, 0.0]
    assert app.subheader[1].value == "Formula and simulation agree"


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
