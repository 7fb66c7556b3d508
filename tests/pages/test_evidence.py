import json

import pytest

from emacore import RunConfig
from emacore.experiments.statistics import BCA, CLASSICAL
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study
from tests.helpers import ME
from tests.pages.conftest import enter_study as enter
from tests.pages.conftest import run, texts


def seeds_table(app):
    return next(d.value for d in app.dataframe if "final_original" in d.value)


def test_a_study_is_queued_as_it_is_set(open_page, home):
    app = open_page("evidence", seeds="16", first_seed="5", pins=["Constant(beta=0.5)"])
    assert "Press **Start**" in texts(app)
    next(b for b in app.button if b.label == "Start").click()
    run(app)
    listed = RunStore(home).studies()
    assert listed["state"].tolist() == ["queued"]
    job = json.loads(listed["config"][0])
    assert job["seeds"] == list(range(5, 21))
    assert [schedule["beta"] for schedule in job["schedules"]] == [0.5]
    assert RunConfig.from_json(json.dumps(job["config"])) == RunConfig()
    assert RunStore(home).runs().empty


def test_the_figures_are_those_of_the_seeds(open_page, home):
    _, result = enter(home)
    app = open_page("evidence")
    table = seeds_table(app).set_index("seed")
    last = result.history[result.history["epoch"] == 25].set_index("seed")
    assert table["final_averaged"].to_dict() == pytest.approx(last["val_loss_ema"].to_dict())
    said = texts(app)
    for start in ("**Final.**", "**Best.**", "**Steadiness.**", "The article's one run gained 20 %"):
        assert start in said
    assert "over 8 seeds" in said
    assert "All 8 seeds train up to epoch 25." in said
    assert "| the final loss | 8 |" in app.code[0].value


def test_the_intervals_can_be_bootstrapped_and_their_limits_are_told(open_page, home):
    enter(home)
    app = open_page("evidence")
    assert "by order statistics and t. In 40,000 simulated studies of 8 seeds" in texts(app)
    paper = app.code[0].value
    app.get_by_key("intervals").set_value(BCA)
    run(app)
    assert "95 % intervals by BCa bootstrap. In 2,000 simulated studies of 8 seeds" in texts(app)
    assert "(BCa bootstrap)" in app.code[0].value
    assert app.code[0].value != paper.replace(CLASSICAL, BCA), "its numbers must change too"
    linked = open_page("evidence", intervals=BCA, steady_from="3")
    assert linked.code[0].value != paper
    assert "(BCa bootstrap)" in linked.code[0].value
    of_link, of_page = (seeds_table(page).set_index("seed")["steadiness_original"] for page in (linked, app))
    assert (of_link != of_page).all()


def test_another_average_of_the_same_networks(open_page, home):
    _, result = enter(home)
    app = open_page("evidence", average="Constant(beta=0.5)")
    last = result.history[result.history["epoch"] == 25].set_index("seed")["val_loss_Constant(beta=0.5)"]
    assert seeds_table(app).set_index("seed")["final_averaged"].to_dict() == pytest.approx(last.to_dict())


def test_the_articles_run_lies_in_the_distribution_of_its_own_settings_only(open_page, home):
    words = "The article's run ended at 97: "
    enter(home)
    assert words not in texts(open_page("evidence"))
    store = RunStore(home)
    study_id = store.enter(Study(RunConfig(), tuple(range(8))), ME)
    _, result = enter(home / "other")
    for epoch in (96, 98):
        rows = result.history[result.history["epoch"] == 25].assign(epoch=epoch).to_dict("records")
        store.append(study_id, ME, {"epoch": epoch, "rows": rows if epoch == 96 else rows[:2]})
    assert f"{words}75 % ended sooner" in texts(open_page("evidence", study=study_id))


def test_a_study_that_trains_can_be_stopped(open_page, home):
    study_id, _ = enter(home, state="running")
    app = open_page("evidence", study=study_id)
    assert "So far; the seeds still train" in texts(app)
    next(b for b in app.button if b.label == "Stop").click()
    run(app)
    assert RunStore(home).beat(study_id, ME)


@pytest.mark.parametrize(("state", "words"), [("failed", "The study failed"), ("interrupted", "was interrupted")])
def test_how_a_study_ended_is_told(open_page, home, state, words):
    enter(home, state=state)
    assert words in texts(open_page("evidence"))


def test_garbage_in_the_link_is_left_aside(open_page, home):
    enter(home)
    app = open_page("evidence", seeds="many", study="nope", steady_from="-1")
    assert app.get_by_key("seeds").value == 32
    assert len(seeds_table(app)) == 8
