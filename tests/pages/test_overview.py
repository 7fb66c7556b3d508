import pytest

from emacore.experiments.article import in_words, shipped
from tests.pages.conftest import run, texts


def figures(app):
    return app.dataframe[0].value.set_index("mean loss around the minimum")


def test_formula_and_simulation_agree(open_page):
    app = open_page("overview")
    table = figures(app)
    assert (table["formula"] / table["simulated"]).tolist() == pytest.approx([1, 1, 1], rel=0.1)
    before = app.metric[0].value
    app.get_by_key("quad_decay").set_value(0.999)
    assert run(app).metric[0].value != before
    assert figures(app).loc["average", "simulated"] < table.loc["average", "simulated"]


def test_reset_brings_the_first_settings_back(open_page):
    app = open_page("overview", quad_rate="1.2", quad_noise="2")
    assert app.get_by_key("quad_rate").value == 1.2
    next(button for button in app.button if button.label == "Reset").click()
    assert run(app).get_by_key("quad_rate").value == 0.3


def test_no_noise_is_told(open_page):
    assert open_page("overview", quad_noise="0").metric[0].value == "no noise, no difference"


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
