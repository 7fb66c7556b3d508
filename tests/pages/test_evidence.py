import json
from dataclasses import replace

import numpy as np
import pytest

from emacore import RunConfig
from emacore.averaging.families import Constant
from emacore.experiments import shipped
from emacore.experiments.evidence import AHEAD, TRAINING, answers, headline, per_seed
from emacore.experiments.statistics import BCA, CLASSICAL
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study, job_from_json
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import OptimizerConfig, StoppingConfig
from tests.helpers import ME
from tests.pages.conftest import STUDY_CONFIG as CONFIG
from tests.pages.conftest import assert_verdict_first, drawn, run, texts
from tests.pages.conftest import enter_study as enter


def seeds_table(app):
    return next(d.value for d in app.dataframe if "final_original" in d.value)


def test_an_empty_store_shows_the_shipped_study_as_ones_own(open_page, home):
    app = open_page("evidence")
    said = texts(app)
    assert "**Shipped with the app**, not trained here: 32 seeds of the article's run" in said
    assert f"`{shipped.COMMAND}`" in said
    assert_verdict_first(app, "**Over ", "pick-study")
    assert "Press **Start** to run your own" in said
    run_of_it, history = shipped.study()
    table = per_seed(history, patience=20)
    wins = int((table["final_ema"] < table["final_original"]).sum())
    assert f"**{headline(answers(table), run_of_it.config)}**" in said
    assert f"; the average was better in {wins}, while an early stop looked at the average's loss)" in said
    dots, curves, *_ = drawn(app)
    assert sorted(dots["gain_percent"]) == pytest.approx(
        sorted(100 * (1 - table["final_ema"] / table["final_original"]))
    )
    assert set(curves["curve"]) == {"original", "average"}
    assert "The article's one run gained 20 %" in said
    enter(home)
    assert "Shipped" not in texts(open_page("evidence"))


def test_a_study_starts_from_a_run_of_the_store(open_page, home):
    app = open_page("evidence")
    assert not [b for b in app.button if b.label == "Start from this run"]
    assert app.get("page_link")[-1].proto.label.startswith("Train a run")
    config = RunConfig(
        data=DataConfig(n_samples=400),
        optimizer=OptimizerConfig("sgd", 0.02, rate_rule="cosine"),
        schedule=Constant(0.97),
        stopping=StoppingConfig("none"),
        seed=7,
        max_epochs=9,
    )
    run_id = RunStore(home).create(config)
    RunStore(home).create(RunConfig(max_epochs=3))
    app = open_page("evidence")
    app.get_by_key("pick-start_from").set_value(run_id)
    run(app)
    next(b for b in app.button if b.label == "Start from this run").click()
    run(app)
    next(b for b in app.button if b.label == "Start").click()
    run(app)
    job = job_from_json(RunStore(home).studies()["config"][0])
    assert job.config == config
    assert job.seeds == tuple(range(32))


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
    assert table["final_ema"].to_dict() == pytest.approx(last["val_loss_ema"].to_dict())
    said = texts(app)
    for start in ("**Final.**", "**Best.**", "**Steadiness.**"):
        assert start in said
    wins = int((last["val_loss_ema"] < last["val_loss_original"]).sum())
    sentence = next(m.value for m in app.markdown if m.value.startswith("**Over 8 seeds, "))
    assert f"the average was better in {wins})" in sentence
    assert "The article's" not in said, "these are not its settings"
    assert "over 8 seeds" in said
    assert "All 8 seeds train up to epoch 25." in said
    assert "| the final loss | 8 |" in app.code[0].value


def uneven(home, config=CONFIG):
    """A study whose seeds end at different epochs, two of which lose a loss on their way."""
    rng = np.random.default_rng(0)
    store, study = RunStore(home), Study(config, tuple(range(3, 11)))
    study_id = store.enter(study, ME)
    lost = {(4, 2): (np.nan, 1.0), (5, 3): (np.nan, np.nan)}
    for epoch in range(1, 7):
        rows = []
        for seed in [seed for seed in study.seeds if epoch < 4 or seed % 3]:
            original, averaged = lost.get((seed, epoch), rng.lognormal(size=2))
            losses = {"val_loss_original": original, "val_loss_ema": averaged}
            rows.append({"seed": seed, "epoch": epoch, "seconds": 2.0 * epoch, **losses})
        store.append(study_id, ME, {"epoch": epoch, "rows": rows})
    return study_id


def test_the_bands_are_of_the_finite_losses_of_the_seeds_that_train(open_page, home):
    study_id = uneven(home)
    table = drawn(open_page("evidence", study=study_id))[1].set_index(["curve", "epoch"])
    history = RunStore(home).history(study_id)
    assert len(table) == 2 * 6
    for curve, column in (("original", "val_loss_original"), ("average", "val_loss_ema")):
        for epoch in range(1, 7):
            values = history.loc[history["epoch"] == epoch, column].dropna()
            row = table.loc[(curve, epoch)]
            assert row["seeds"] == len(values)
            assert row[["low", "median", "high"]].tolist() == pytest.approx(np.percentile(values, [5, 50, 95]))


def test_a_dot_is_a_seeds_gain_in_the_loss_of_its_own_last_epoch(open_page, home):
    study_id = uneven(home)
    table = drawn(open_page("evidence", study=study_id))[0]
    expected = {
        seed: 100 * (1 - last["val_loss_ema"] / last["val_loss_original"])
        for seed, rows in RunStore(home).history(study_id).groupby("seed")
        for last in [rows.loc[rows["epoch"].idxmax()]]
    }
    assert table.set_index("seed")["gain_percent"].to_dict() == pytest.approx(expected)
    assert table["gain_percent"].is_monotonic_increasing


def test_the_share_ahead_is_of_the_seeds_counted_and_these_are_of_all(open_page, home):
    study_id = uneven(home)
    table = drawn(open_page("evidence", study=study_id))[2]
    history = RunStore(home).history(study_id)
    ahead, training = {}, {}
    for epoch, rows in history.groupby("epoch"):
        pairs = [
            (a, b) for a, b in rows[["val_loss_original", "val_loss_ema"]].to_numpy() if not np.isnan([a, b]).all()
        ]
        ahead[epoch] = 100 * sum(b < a or np.isnan(a) for a, b in pairs) / len(pairs)
        training[epoch] = 100 * len(pairs) / 8
    found = {name: own.set_index("epoch")["share"].to_dict() for name, own in table.groupby("curve")}
    assert found == {AHEAD: pytest.approx(ahead), TRAINING: pytest.approx(training)}
    assert training == pytest.approx({1: 100, 2: 100, 3: 87.5, 4: 62.5, 5: 62.5, 6: 62.5})


def test_the_histograms_are_of_the_ratio_of_deviations_and_the_last_epochs(open_page, home):
    study_id = uneven(home)
    *_, steadiness, epochs = drawn(open_page("evidence", study=study_id, steady_from="2"))
    late = RunStore(home).history(study_id).query("epoch >= 2")
    late = late[late[["val_loss_ema", "val_loss_original"]].notna().all(axis=1)]
    expected = [rows["val_loss_ema"].std() / rows["val_loss_original"].std() for _, rows in late.groupby("seed")]
    expected = np.array(expected)[np.isfinite(expected)]
    inside = [((expected >= bar.low) & (expected < bar.high)).sum() for bar in steadiness.itertuples()]
    assert steadiness["seeds"].tolist() == inside
    assert sum(inside) == len(expected)
    assert epochs[["label", "seeds"]].to_numpy().tolist() == [["3", 3], ["6", 5]]
    study_id, _ = enter(home)
    app = open_page("evidence", study=study_id)
    assert drawn(app)[-1][["label", "seeds"]].to_numpy().tolist() == [["25", 8]]
    assert "All ended at epoch 25, so all are compared at the same length." in texts(app)


def test_the_axis_of_the_losses_is_named_by_the_task_and_scaled_as_chosen(open_page, home):
    uneven(home)
    for scale in ("log", "linear"):
        spec = json.loads(open_page("evidence", loss_axis=scale).get("vega_lite_chart")[1].proto.spec)
        axes = [layer["encoding"]["y"] for layer in spec["layer"][0]["layer"]]
        assert {axis["title"] for axis in axes if "title" in axis} == {"validation loss (MSE)"}
        assert {axis["scale"]["type"] for axis in axes if "scale" in axis} == {scale}


def test_the_progress_of_a_study_is_told(open_page, home):
    study_id = uneven(home)
    app = open_page("evidence", study=study_id)
    bar = app.get("progress")[0].proto
    assert bar.value == 100 * 6 // 25
    assert bar.text == "Epoch 6 of at most 25: 5 of 8 seeds still train, at most 38 s left."
    assert "All 8 seeds train up to epoch 3, 5 up to epoch 6, and 5 up to the last, 6" in texts(app)


def test_the_articles_ratio_is_marked_among_the_seeds_ratios(open_page, home):
    study_id = uneven(home, RunConfig())
    app = open_page("evidence", study=study_id, steady_from="2")
    *_, steadiness, epochs = app.get("vega_lite_chart")
    for chart, at in ((steadiness, 15 / 23), (epochs, 97)):
        rules = json.loads(chart.proto.spec)["layer"][1]["data"]["values"]
        assert rules == [{"at": pytest.approx(at), "label": "the article's run"}]
    late = RunStore(home).history(study_id).query("epoch >= 2").groupby("seed")
    less = 100 * (late["val_loss_ema"].std() / late["val_loss_original"].std() < 15 / 23).mean()
    assert f"The article's run has 0.65, from an epoch it does not state: {less:.0f} % of these seeds" in texts(app)


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
    assert seeds_table(app).set_index("seed")["final_ema"].to_dict() == pytest.approx(last.to_dict())


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


def test_rules_that_look_at_an_average_are_told_beside_the_final_loss(open_page, home):
    config = replace(CONFIG, stopping=StoppingConfig("ema", 2), schedule=Constant(0.9))
    study_id, _ = enter(home, Study(config, tuple(range(8)), (Constant(0.5),)))
    said = [m.value for m in open_page("evidence", study=study_id).markdown]
    final = next(n for n, text in enumerate(said) if "**Final.**" in text)
    assert "Here the early stop looks at this average." in said[final + 1]
    assert any("**Fixed.**" in text for text in said)
    assert any("**Own.**" in text for text in said)
    other = open_page("evidence", study=study_id, average="Constant(beta=0.5)")
    assert "the early stop looks at another average, Constant(beta=0.9)." in texts(other)
    assert "the early stop looks at another average, Constant(beta=0.9)." in other.code[0].value
    enter(home)
    assert "looks at" not in texts(open_page("evidence")).replace("that looks at itself", "")


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
