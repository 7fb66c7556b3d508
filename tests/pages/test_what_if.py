import json
import shutil

import pytest

from emacore import RunConfig, train
from emacore.averaging.schedules import InversePower
from emacore.experiments.store import RunStore
from emacore.training.config import DataConfig, OptimizerConfig, StoppingConfig
from tests.pages.conftest import run, texts
from tests.pages.test_train import ME

FREE = RunConfig(
    data=DataConfig(n_samples=200),
    optimizer=OptimizerConfig(rate_rule="constant", learning_rate=0.01),
    stopping=StoppingConfig("none"),
    schedule=InversePower(0.9, update_after_step=5, update_every=1),
    max_epochs=12,
)


def enter(home, config=FREE, state="done", **options):
    runs = RunStore(home)
    run_id = runs.create(config)
    runs.claim(ME, 99)
    result = train(config, lambda row: runs.append(run_id, ME, row), record=runs.recording(run_id), **options)
    if state != "running":
        runs.finish(run_id, ME, state, stopped=result.stopped)
    return run_id


def figures(app):
    return next(d.value for d in app.dataframe if "best_epoch" in d.value).set_index("curve")


def test_without_a_recording_it_leads_to_training(open_page):
    app = open_page("what_if")
    assert "Train a run first" in texts(app)
    assert len(app.get("page_link")) == 1


def test_the_runs_own_schedule_gives_its_own_curve_back_and_a_slider_moves_it(open_page, home):
    enter(home)
    app = open_page("what_if", beta="0.9", update_after_step="5")
    table = figures(app)
    assert table.loc["now", "final"] == pytest.approx(table.loc["the run's own EMA", "final"], rel=1e-4)
    app.get_by_key("power").set_value(0.3)
    moved = figures(run(app))
    assert moved.loc["now", "final"] != pytest.approx(table.loc["now", "final"], rel=1e-3)
    assert moved.loc["original", "final"] == table.loc["original", "final"]
    assert "looked at its own average" not in texts(app)


def test_the_family_has_the_curves_own_figures(open_page, home):
    enter(home)
    app = open_page("what_if")
    table = next(d.value for d in app.dataframe if "copies_kept" in d.value).set_index("scheme")
    assert table.loc["EMA", "loss"] == pytest.approx(figures(app).loc["now", "final"], rel=1e-4)
    assert table.loc["original", "loss"] == pytest.approx(figures(app).loc["original", "final"], rel=1e-4)


def test_pinned_schedules_of_any_family(open_page, home):
    enter(home)
    codes = ["Constant(beta=0.9)", "PowerFunction(sigma_rel=0.1)", "UniformAverage(update_after_step=30)"]
    app = open_page("what_if", pins=codes, family="Bias-corrected")
    assert figures(app).index.tolist() == ["original", "the run's own EMA", "now", *codes]
    assert "choose it above" in texts(app)


def test_the_atlas_says_where_its_best_was_chosen_and_pins_it(open_page, home):
    enter(home)
    app = open_page("what_if", atlas_x="beta", atlas_y="update_after_step")
    assert "chosen on these very validation rows" in texts(app)
    cells = next(d.value for d in app.dataframe if "code" in d.value)
    assert len(cells) == 400
    next(b for b in app.button if b.label == "Pin the lowest cell").click()
    best = cells.loc[cells["loss"].idxmin()]
    table = figures(run(app))
    assert table.loc[best["code"], "final"] == pytest.approx(best["loss"], rel=1e-4)
    app.get_by_key("atlas_x").set_value("update_after_step")
    assert run(app).get_by_key("atlas_y").value != "update_after_step"


def test_a_training_that_looked_at_its_average_is_told_and_can_be_trained_without(open_page, home):
    config = RunConfig(data=DataConfig(n_samples=200), max_epochs=4)
    enter(home, config)
    app = open_page("what_if")
    assert "the plateau rule of its learning rate and its early stop" in texts(app)
    next(b for b in app.button if b.label.startswith("Train it again")).click()
    run(app)
    newest = RunStore(home).runs().iloc[0]
    again = json.loads(newest["config"])
    assert newest["state"] == "queued"
    assert again["optimizer"]["plateau_curve"] == again["stopping"]["curve"] == "original"


def test_a_thinned_and_a_short_recording_are_told(open_page, home):
    run_id = enter(home, record_bytes=4e5)
    assert "every 5th step only" in texts(open_page("what_if"))
    about = RunStore(home).recording(run_id) / "run.json"
    kept = json.loads(about.read_text())
    about.write_text(json.dumps(kept | {"epoch_ends": kept["epoch_ends"][:5]}))
    assert "ends after epoch 5 of 12" in texts(open_page("what_if"))


def test_a_running_run_can_be_replayed_already(open_page, home):
    enter(home, state="running")
    assert len(figures(open_page("what_if"))) == 3


def test_a_recording_damaged_or_deleted_under_the_page_is_told(open_page, home):
    run_id = enter(home)
    app = open_page("what_if", replayed=run_id)
    (RunStore(home).recording(run_id) / "weights.npy").unlink()
    run(app)
    assert "The recording cannot be used" in app.error[0].value
    shutil.rmtree(RunStore(home).recording(run_id))
    run(app)
    assert "Train a run first" in texts(app)
