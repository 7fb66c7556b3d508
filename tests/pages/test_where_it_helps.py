import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from emacore import RunConfig
from emacore.averaging.code import to_code
from emacore.charts.heatmap import CELL as CELL_OF_MAP
from emacore.charts.heatmap import evidence_map
from emacore.experiments import shipped
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Sweep, job_from_json
from emacore.formatting import p_value
from emacore.training.config import StoppingConfig, article_schedule
from tests.helpers import ME
from tests.pages.conftest import CELL, SWEEP, assert_verdict_first, drawn, run, select, texts
from tests.pages.conftest import SWEEP_CONFIG as CONFIG
from tests.pages.conftest import enter_sweep as enter


def press(app, label):
    next(b for b in app.button if b.label == label).click()
    return run(app)


def test_each_question_can_be_started(open_page, home):
    app = open_page("where_it_helps")
    labels = [b.label for b in app.button if (b.key or "").startswith("preset-")]
    assert len(labels) == 6
    for label in labels:
        press(app, label)
        press(app, "Start")
    jobs = [job_from_json(text) for text in RunStore(home).sweeps()["config"]][::-1]
    assert [tuple(job.grid) for job in jobs[:3]] == [
        ("optimizer.learning_rate", "schedule"),
        ("network.dropout", "optimizer.batch_size"),
        ("max_epochs", "schedule"),
    ]
    assert jobs[0] == shipped.SWEEP
    assert all(job.seeds == tuple(range(32)) for job in jobs)
    assert {job.config.stopping.curve for job in jobs} == {"none"}
    assert jobs[4].config.optimizer.name == "sgd"
    assert {job.config.data.noise for job in jobs} == {0.1}


def test_an_empty_store_shows_the_shipped_sweep_as_ones_own(open_page, home):
    app = open_page("where_it_helps")
    said = texts(app)
    assert "**Shipped with the app**, not trained here: the first question above, over 32 seeds" in said
    assert f"`{shipped.COMMAND}`" in said
    assert_verdict_first(app, "**Of ", "pick-sweep")
    assert "To run your own, choose a question above" in said
    (cells,) = drawn(app)
    _, table = shipped.sweep()
    wins = (table["final_ema"] < table["final_original"]).groupby(table.index // 32).sum()
    assert cells["wins"].tolist() == wins.tolist()
    light, dark = (
        evidence_map(cells, [], [], x_title="", y_title="", dark=dark).data["letters"] for dark in (False, True)
    )
    assert cells["letters"].tolist() == light.tolist() != dark.tolist(), "numbers are readable on a light page"
    best = cells.loc[cells["median_gain_percent"].idxmax()]
    assert best["verdict"] == "helps"
    place = best["code"].replace("optimizer.learning_rate", "learning rate")
    assert f"averaging helps in {(cells['verdict'] == 'helps').sum()}, most at {place} (median" in said
    assert "optimizer." not in said, "sentences have the settings' words"
    app.get_by_key("sweep_cell").set_value(best["code"])
    assert f"averaging won {best['wins']} of 32" in texts(run(app))
    enter(home)
    assert "Shipped" not in texts(open_page("where_it_helps"))


def test_what_is_corrected_while_a_sweep_trains_is_told_with_what_is_to_come(open_page, home):
    sweep_id, _ = enter(home, state="running")
    app = open_page("where_it_helps", sweep=sweep_id, sweep_cell=CELL)
    said = texts(app)
    assert "Of the 3 different cells so far" in said or "Of the 4 cells so far" in said
    assert "(p-values corrected after Holm for the 2 tests so far, with more to come)" in said
    assert "Only the 2 tests so far are counted" in said
    assert "corrected for the 2 tests so far, with more to come" in next(
        m.value for m in app.markdown if "**Final.**" in m.value
    )


def test_own_settings_and_values(open_page, home):
    app = open_page(
        "where_it_helps", sweep_x="max_epochs", values_max_epochs="2, 3", sweep_y="network.dropout", sweep_seeds="16"
    )
    press(app, "Start")
    job = job_from_json(RunStore(home).sweeps()["config"][0])
    assert job == Sweep(RunConfig(), {"max_epochs": [2, 3], "network.dropout": [0, 0.1, 0.2, 0.4]}, tuple(range(16)))


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"sweep_y": "optimizer.learning_rate"}, "both are the learning rate"),
        ({"values_optimizer_learning_rate": "0.1, -1"}, "optimizer.learning_rate must be"),
        ({"values_optimizer_learning_rate": ""}, "at least one value"),
        ({"values_schedule": "Constant(beta=2)"}, "beta"),
    ],
)
def test_what_cannot_be_started_is_told(open_page, query, words):
    app = open_page("where_it_helps", **query)
    assert words in app.error[0].value
    assert next(b for b in app.button if b.label == "Start").disabled


def test_whatever_a_link_has_for_values_is_told_or_can_be_started(open_page):
    garbage = ("[]", "null", "9" * 400, "[[1]]", "{", "true", "NaN")
    app = open_page("where_it_helps", sweep_y="max_epochs", values_max_epochs="2")
    for n, name in enumerate(app.get_by_key("sweep_x").options):
        if name != "max_epochs":
            app.get_by_key("sweep_x").set_value(name)
            app.session_state[f"values_{name.replace('.', '_')}"] = garbage[n % len(garbage)]
            run(app)
            assert app.error, name
            assert next(b for b in app.button if b.label == "Start").disabled


@pytest.mark.parametrize("values", ["0.9, 0.99", "0.9,0.99", "0.9; 0.99", " .9, 0.99"])
def test_bare_decays_are_schedules(open_page, home, values):
    app = open_page("where_it_helps", values_schedule=values)
    press(app, "Start")
    grid = job_from_json(RunStore(home).sweeps()["config"][0]).grid
    assert grid["schedule"] == ["Constant(beta=0.9)", "Constant(beta=0.99)"]


def test_what_cannot_be_shown_is_told_before_it_is_started(open_page):
    axes = {"sweep_x": "optimizer.learning_rate", "values_optimizer_learning_rate": "0.001, 0.002, 0.003, 0.004"}
    twenty = {**axes, "sweep_y": "network.dropout", "values_network_dropout": "0, 0.1, 0.2, 0.3, 0.4"}
    app = open_page("where_it_helps", sweep_seeds="8", **twenty)
    assert "20 tests need at least 10 seeds each." in app.warning[0].value
    app = open_page("where_it_helps", sweep_seeds="16", **twenty)
    assert not app.warning
    assert "For 20 tests 10 seeds each are the least" in texts(app)
    app = open_page("where_it_helps", **axes, sweep_y="optimizer.momentum", values_optimizer_momentum="0, 0.9")
    assert "8 cells are 4 different experiments: momentum acts on nothing" in app.warning[0].value
    assert "in 4 trainings of 32 seeds" in texts(app)


def test_the_map_has_every_cell_and_a_cell_its_evidence(open_page, home):
    _, table = enter(home)
    app = open_page("where_it_helps")
    assert "Of 4 cells of 8 seeds" in texts(app)
    cells = next(d.value for d in app.dataframe if "median_gain_percent" in d.value)
    assert cells["wins"].tolist() == [
        int((rows["final_ema"] < rows["final_original"]).sum())
        for _, rows in table.groupby(list(SWEEP.grid), sort=False)
    ]
    assert "**Final.**" not in texts(app)
    select(app, app.get("vega_lite_chart")[0].proto.id, **{CELL_OF_MAP: [{"code": CELL}]})
    rows = table[(table["optimizer.learning_rate"] == 0.01) & (table["schedule"] == "Constant(beta=0.9)")]
    wins = int((rows["final_ema"] < rows["final_original"]).sum())
    assert np.isfinite(rows["final_ema"]).all()
    final = next(m.value for m in app.markdown if "**Final.**" in m.value)
    assert f"averaging won {wins} of 8" in final
    starts = {
        "helps": "Averaging helps",
        "hurts": "Averaging hurts",
        "unclear": "Unclear",
        "cannot tell": "Cannot tell",
    }
    chosen = cells.set_index(list(SWEEP.grid)).loc[(0.01, "Constant(beta=0.9)")]
    assert f"**Final.** {starts.get(chosen['verdict'], 'No difference')}" in final
    # With the article's schedule 15 steps are all copies, so that two of the four cells have nothing to test.
    assert f"Wilcoxon p {p_value(chosen['wilcoxon_p'])}, p {p_value(chosen['p'])} corrected for 2 tests" in final
    assert "Two p-values: Wilcoxon's is that of the cell alone." in texts(app)
    assert "so far" not in texts(app)


def test_the_map_draws_the_median_change_and_the_wins_of_each_cell(open_page, home):
    _, table = enter(home)
    (cells,) = drawn(open_page("where_it_helps"))
    own = to_code(article_schedule())
    assert cells["code"].tolist() == [
        f"optimizer.learning_rate {rate}, schedule {name}"
        for rate in ("0.001", "0.01")
        for name in ("the article's", "Constant(beta=0.9)")
    ]
    assert cells["x"].tolist() == ["0.001", "0.001", "0.01", "0.01"]
    assert cells["y"].tolist() == ["the article's", "Constant\n(beta=0.9)"] * 2
    places = [(rate, schedule) for rate in (0.001, 0.01) for schedule in (own, "Constant(beta=0.9)")]
    for (rate, schedule), cell in zip(places, cells.to_dict("records"), strict=True):
        rows = table[(table["optimizer.learning_rate"] == rate) & (table["schedule"] == schedule)]
        ratio = np.median(rows["final_ema"] / rows["final_original"])
        assert cell["median_gain_percent"] == pytest.approx(100 * (1 - ratio), abs=1e-9)
        assert cell["change"] == pytest.approx(np.clip(np.log2(ratio), -2, 2), abs=1e-9)
        assert cell["wins"] == (rows["final_ema"] < rows["final_original"]).sum()
        assert cell["text"].endswith(f"\n{cell['wins']} of 8")
    assert (cells["median_gain_percent"] != 0).any()


def test_the_dots_of_a_cell_are_the_gains_of_its_seeds(open_page, home):
    _, table = enter(home)
    _, dots = drawn(open_page("where_it_helps", sweep_cell=CELL))
    rows = table[(table["optimizer.learning_rate"] == 0.01) & (table["schedule"] == "Constant(beta=0.9)")]
    gains = 100 * (1 - rows["final_ema"] / rows["final_original"])
    assert dots.set_index("seed")["gain_percent"].to_dict() == pytest.approx(
        dict(zip(rows["seed"], gains, strict=True))
    )


def test_the_progress_of_a_sweep_is_told(open_page, home, monkeypatch):
    store = RunStore(home)
    sweep_id = store.enter(SWEEP, ME)
    _, table = enter(home)
    cell = table[: len(SWEEP.seeds)].assign(elapsed=20.0)
    store.append(sweep_id, ME, {"epoch": 1, "rows": json.loads(cell.to_json(orient="records"))})
    now = store.result(sweep_id).started + 30
    monkeypatch.setattr("emacore.widgets.sweeps.time", SimpleNamespace(time=lambda: now))
    bar = open_page("where_it_helps", sweep=sweep_id).get("progress")[0].proto
    assert bar.value == 25
    assert bar.text == "1 of 4 cells, 30 s so far, about 1 min left.", "as it was when the cell ended"


def test_rules_that_look_at_the_average_are_told_beside_the_map_and_the_cell(open_page, home):
    looking = Sweep(replace(CONFIG, stopping=StoppingConfig("ema", 1)), SWEEP.grid, SWEEP.seeds)
    enter(home, looking)
    words = "Here the early stop looks at this average."
    assert texts(open_page("where_it_helps")).count(words) == 1
    assert texts(open_page("where_it_helps", sweep_cell=CELL)).count(words) == 2


def test_the_curves_of_a_cell_are_a_study_trained_once(open_page, home):
    enter(home)
    app = open_page("where_it_helps", sweep_cell=CELL)
    press(app, "Its curves, on the Evidence page")
    studies = RunStore(home).studies()
    job = json.loads(studies["config"][0])
    assert job["seeds"] == list(SWEEP.seeds)
    assert job["config"]["optimizer"]["learning_rate"] == 0.01
    assert job["config"]["schedule"]["beta"] == 0.9
    assert app.session_state["study"] == studies["id"][0]
    RunStore(home).claim(ME, 9)
    press(open_page("where_it_helps", sweep_cell=CELL), "Its curves, on the Evidence page")
    assert RunStore(home).studies()["id"].tolist() == studies["id"].tolist()


def test_cells_without_a_number_are_told(open_page, home):
    hopeless = Sweep(CONFIG, {"optimizer.batch_size": [16, 32], "data.n_samples": [100, 200]}, (0, 1))
    store = RunStore(home)
    sweep_id = store.enter(hopeless, ME)
    rows = [{"optimizer.batch_size": 16, "data.n_samples": 100, "seed": seed, "error": "it died"} for seed in (0, 1)]
    columns = {f"{q}_{w}": None for q in ("final", "best", "steadiness") for w in ("original", "ema")}
    store.append(sweep_id, ME, {"epoch": 1, "rows": [columns | row for row in rows]})
    app = open_page("where_it_helps", sweep_cell="optimizer.batch_size 16, data.n_samples 100")
    assert "2 runs could not be trained: it died" in texts(app)
    assert "2 seeds cannot tell in 1" in texts(app)


def test_a_sweep_of_another_number_of_settings_is_a_table(open_page, home):
    enter(home, Sweep(CONFIG, {"max_epochs": [1, 2]}, SWEEP.seeds))
    app = open_page("where_it_helps")
    assert "A map needs two settings; this sweep varies 1." in texts(app)
    assert "Of 2 cells of 8 seeds" in texts(app)
    assert next(d.value for d in app.dataframe if "median_gain_percent" in d.value)["max_epochs"].tolist() == [1, 2]


def test_a_sweep_that_trains_can_be_stopped(open_page, home):
    sweep_id, _ = enter(home, state="running")
    app = open_page("where_it_helps", sweep=sweep_id)
    press(app, "Stop")
    assert RunStore(home).beat(sweep_id, ME)
