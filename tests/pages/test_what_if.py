import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df

from emacore import RunConfig, train
from emacore.averaging.code import from_code, scheme_from_code
from emacore.averaging.families import InversePower, PowerFunction
from emacore.averaging.weights import relative_width
from emacore.averaging.weights import weights as weights_of
from emacore.averaging.windows import decays_at_end
from emacore.experiments.store import RunStore
from emacore.formatting import number, percent
from emacore.replay.atlas import axes, plateau
from emacore.replay.curves import finite_range
from emacore.replay.frames import shown_epochs
from emacore.replay.recording import Recorder
from emacore.replay.weight_space import space
from emacore.tasks import open_run
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import OptimizerConfig, StoppingConfig
from emacore.widgets import moving, replay
from tests.helpers import ME
from tests.pages.conftest import FREE, drag, drawn, frames, marked, run, select, texts
from tests.pages.conftest import enter_recorded as enter
from tests.training.test_second_task import CONFIG as DIGITS


def figures(app):
    return next(d.value for d in app.dataframe if "best_epoch" in d.value).set_index("curve")


def test_without_a_recording_it_leads_to_training(open_page):
    app = open_page("what_if", view="Family")
    assert "Train a run first" in texts(app)
    assert len(app.get("page_link")) == 1


def test_the_runs_own_schedule_gives_its_own_curve_back_and_a_slider_moves_it(open_page, home):
    enter(home)
    app = open_page("what_if", beta="0.9", update_after_step="5", view="Family")
    table = figures(app)
    for figure in ("final", "best_mae", "final_r2"):
        assert table.loc["now", figure] == pytest.approx(table.loc["the run's own EMA", figure], rel=1e-4)
    app.get_by_key("power").set_value(0.3)
    moved = figures(run(app))
    assert moved.loc["now", "final"] != pytest.approx(table.loc["now", "final"], rel=1e-3)
    assert moved.loc["original", "final"] == table.loc["original", "final"]
    assert "looked at its own average" not in texts(app)


def test_the_family_has_the_curves_own_figures(open_page, home):
    enter(home)
    app = open_page("what_if", view="Family")
    table = next(d.value for d in app.dataframe if "copies_kept" in d.value).set_index("scheme")
    assert table.loc["EMA", "loss"] == pytest.approx(figures(app).loc["now", "final"], rel=1e-4)
    assert table.loc["original", "loss"] == pytest.approx(figures(app).loc["original", "final"], rel=1e-4)


def test_pinned_schedules_of_any_family(open_page, home):
    enter(home)
    codes = [
        "Constant(beta=0.9)",
        "PowerFunction(sigma_rel=0.1)",
        "UniformAverage(update_after_step=30)",
        "Window(size=9)",
        "Window(size=9, schedule=Constant(beta=0.5))",
    ]
    app = open_page("what_if", pins=codes, family="Bias-corrected", view="Atlas")
    assert figures(app).index.tolist() == ["original", "the run's own EMA", "now", *codes]
    cells = next(d.value for d in app.dataframe if "code" in d.value)
    assert cells["code"].str.startswith("BiasCorrected(").all()
    assert cells["loss"].nunique() > 100


def test_the_atlas_says_where_its_best_was_chosen_and_pins_it(open_page, home):
    enter(home)
    app = open_page("what_if", view="Atlas", atlas_x="beta", atlas_y="update_after_step")
    assert "chosen on these very validation rows" in texts(app)
    cells = next(d.value for d in app.dataframe if "code" in d.value)
    assert len(cells) == len(axes(InversePower)["beta"](60)) * len(axes(InversePower)["update_after_step"](60)) > 200
    next(b for b in app.button if b.label == "Pin the lowest cell").click()
    best = cells.loc[cells["loss"].idxmin()]
    table = figures(run(app))
    assert table.loc[best["code"], "final"] == pytest.approx(best["loss"], rel=1e-4)
    app.get_by_key("atlas_x").set_value("update_after_step")
    assert run(app).get_by_key("atlas_y").value != "update_after_step"


@pytest.mark.parametrize("metric", ["final", "best"])
def test_a_cell_of_the_atlas_that_is_the_original_is_drawn_level_with_it(open_page, home, metric):
    enter(
        home, replace(FREE, max_epochs=31, optimizer=OptimizerConfig(rate_rule="constant", learning_rate=0.03), seed=2)
    )
    app = open_page("what_if", view="Atlas", atlas_x="window", atlas_y="power", atlas_metric=metric)
    cells = drawn(app)[-1]
    alone = cells[cells["x"] == 1]
    assert len(alone) == 20
    assert alone["gain"].abs().max() < 0.01
    assert cells["gain"].abs().max() > 1
    reference = float(re.search(r"the original (?:at its lowest of the same epochs )?([\d.]+)\. It was", texts(app))[1])
    assert reference == pytest.approx(alone["loss"].iloc[0], rel=1e-3)
    assert ("lowest of the same epochs" in texts(app)) == (metric == "best")


def test_no_two_curves_look_alike_with_five_pins(open_page, home):
    enter(home)
    app = open_page("what_if", pins=[f"Constant(beta=0.{n})" for n in range(1, 6)], view="Family")
    spec = json.loads(app.get("vega_lite_chart")[0].proto.spec)
    colours, dashes = {}, {}
    for scale in scales(spec):
        own = dashes if isinstance(scale["range"][0], list) else colours
        for name, look in zip(scale["domain"], scale["range"], strict=True):
            assert own.setdefault(name, look) == look, "each is the same in all of the picture"
    assert len(set(colours.values())) == len(colours) == len(dashes) == 8
    assert len({json.dumps(dashes[f"Constant(beta=0.{n})"]) for n in range(1, 6)}) == 5


def scales(spec):
    """The scales of a picture that list what each name looks like."""
    if isinstance(spec, list):
        return [scale for part in spec for scale in scales(part)]
    if not isinstance(spec, dict):
        return []
    scale = spec.get("scale")
    own = [scale] if isinstance(scale, dict) and isinstance(scale.get("domain"), list) and "range" in scale else []
    return [*own, *(scale for part in spec.values() for scale in scales(part))]


def test_widths_that_no_average_has_are_told(open_page, home):
    enter(home)
    app = open_page("what_if", view="Atlas", atlas_x="relative_width", atlas_y="beta", update_after_step="3")
    assert "Empty cells: no such average can be had" in texts(app)
    cells = next(d.value for d in app.dataframe if "code" in d.value)
    there = cells[cells["code"].notna()]
    assert len(there) < len(cells)
    assert f"{percent(plateau(there['loss']), 2)} of the cells lie within 5 %" in texts(app)
    assert f"{percent(plateau(cells['loss']), 2)} of" not in texts(app)
    next(b for b in app.button if b.label == "Pin the lowest cell").click()
    best = cells.loc[cells["loss"].idxmin()]
    assert figures(run(app)).loc[best["code"], "final"] == pytest.approx(best["loss"], rel=1e-4)


def test_a_training_that_looked_at_its_average_is_told_and_can_be_trained_without(open_page, home):
    impatient = {"optimizer": OptimizerConfig(plateau_patience=1), "stopping": StoppingConfig("ema", 3)}
    config = RunConfig(data=DataConfig(n_samples=200), max_epochs=4)
    enter(home, config)
    app = open_page("what_if", view="Family")
    assert "looked at its own average" not in texts(app), "no rule can act in so few epochs"
    enter(home, replace(config, **impatient))
    app = open_page("what_if", view="Family")
    assert "the plateau rule of its learning rate and its early stop" in texts(app)
    next(b for b in app.button if b.label.startswith("Train it again")).click()
    run(app)
    newest = RunStore(home).runs().iloc[0]
    again = json.loads(newest["config"])
    assert newest["state"] == "queued"
    assert app.get_by_key("pick-replayed").value == newest["id"]
    assert "The first epoch is not over yet" in texts(app)
    assert again["optimizer"]["plateau_curve"] == again["stopping"]["curve"] == "original"


def test_a_thinned_and_a_short_recording_are_told(open_page, home):
    run_id = enter(home, record_bytes=4e5)
    app = open_page("what_if", beta="0.9", update_after_step="5", view="Family")
    own = figures(app)["final"]
    missed = abs(own["now"] / own["the run's own EMA"] - 1)
    assert missed > 1e-4
    assert "one step in 5 only, to stay within its budget, so replays are close, not exact" in texts(app)
    assert f"misses the loss that the training measured by {percent(missed, 2)} after epoch 12" in texts(app)
    about = RunStore(home).recording(run_id) / "run.json"
    kept = json.loads(about.read_text())
    about.write_text(json.dumps(kept | {"epoch_ends": kept["epoch_ends"][:5]}))
    assert "ends after epoch 5 of 12" in texts(open_page("what_if", view="Family"))


def test_a_running_run_can_be_replayed_already(open_page, home):
    enter(home, state="running")
    assert len(figures(open_page("what_if", view="Family"))) == 3


def test_a_recording_damaged_or_deleted_under_the_page_is_told(open_page, home):
    run_id = enter(home)
    app = open_page("what_if", replayed=run_id, view="Family")
    (RunStore(home).recording(run_id) / "weights.npy").unlink()
    run(app)
    assert "The recording cannot be used" in app.error[0].value
    shutil.rmtree(RunStore(home).recording(run_id))
    run(app)
    assert "Train a run first" in texts(app)


def test_a_run_that_is_not_there_is_not_silently_another(open_page, home):
    older, newer = enter(home), enter(home)
    app = open_page("what_if", replayed=older, view="Family")
    assert app.get_by_key("pick-replayed").value == older
    assert not app.warning
    shutil.rmtree(RunStore(home).recording(older))
    told = f"There is no recorded run {older}: it may have been deleted. This is the newest recorded run."
    for _ in range(2):
        assert run(app).warning[0].value == told
        assert len(figures(app)) == 3
    for choice in (newer, None):
        app.get_by_key("pick-replayed").set_value(choice)
        assert not run(app).warning
    assert "There is no recorded run abc:" in open_page("what_if", replayed="abc", view="Family").warning[0].value
    assert "There is no run abc:" in open_page("train", run="abc").warning[0].value
    assert not open_page("what_if", view="Family").warning


def test_where_beta_never_acts_is_told_in_the_atlas(open_page, home):
    enter(home)
    app = open_page("what_if", view="Atlas")
    assert "Dotted cells: this run is too short for beta" in texts(app)
    cells = next(d.value for d in app.dataframe if "beta_from" in d.value)
    assert cells["beta_from"].isna().any()
    app.get_by_key("atlas_x").set_value("window")
    assert "Dotted" not in texts(run(app))
    assert run(app).get_by_key("atlas_y").value == "beta"
    app.get_by_key("atlas_metric").set_value("best")
    assert "epoch" in next(d.value for d in run(app).dataframe if "code" in d.value)


@pytest.mark.parametrize("plane", ["principal components", "three points"])
def test_the_weights_space_states_what_it_shows(open_page, home, plane):
    enter(home)
    app = open_page("what_if", view="Weight space", plane=plane, update_after_step="5")
    assert re.search(r"The plane shows \d+ % of the variance of the weights' path and \d+ %", texts(app))
    assert len(drawn(app)) == 5


def test_a_plane_that_does_not_exist_is_told(open_page, home):
    enter(home)
    app = open_page("what_if", view="Weight space", plane="three points", family="Constant", beta="0.5")
    app.get_by_key("update_after_step").set_value(10_000)
    assert "three points lie on a line" in run(app).warning[0].value


def test_the_best_width_is_carried_to_another_run(open_page, home):
    enter(home)
    app = open_page("what_if", view="Best width", other_steps="20000")
    width = float(re.search(r"relative width \*\*([\d.]+) %", texts(app))[1])
    answer = next(from_code(code.value) for code in app.code if "import" not in code.value)
    assert 100 * relative_width(answer.decays(20_000)) == pytest.approx(width, abs=0.06)
    link = next(link for link in app.get("page_link") if "schedule page" in link.proto.label)
    assert f"&beta={answer.beta:.12g}&" in link.proto.query_string
    assert "steps=20000" in link.proto.query_string


def test_in_words_and_a_run_that_grows(open_page, home):
    runs = RunStore(home)
    run_id = enter(home, state="running")
    app = open_page("what_if", view="Family")
    assert "In this run the average ends" in texts(app)
    assert "cannot say whether a smaller one" in texts(app)
    runs.finish(run_id, ME, "done", stopped="max epochs")
    assert len(figures(run(app))) == 3


def test_two_pages_replay_the_same_growing_run(open_page, home):
    runs = RunStore(home)
    run_id = runs.create(FREE)
    runs.claim(ME, 99)
    seen = []

    def grow(row):
        runs.append(run_id, ME, row)
        if row["epoch"] in (3, 7):
            seen.append(
                [figures(open_page("what_if", replayed=run_id, view="Family")).loc["now", "final"] for _ in range(2)]
            )

    train(FREE, grow, record=runs.recording(run_id))
    assert [one == two for one, two in seen] == [True, True]
    assert seen[0] != seen[1]


PIN = "Window(size=9, schedule=Constant(beta=0.5))"


def test_the_curves_are_what_was_measured_and_what_a_trajectory_replays(open_page, home):
    run_id = enter(home)
    app = open_page("what_if", beta="0.8", power="1", update_after_step="7", pins=[PIN], view="Family")
    history, opened = RunStore(home).history(run_id), open_run(RunStore(home).recording(run_id))
    losses, weights = drawn(app)[:2]
    now = InversePower(0.8, power=1.0, update_after_step=7, update_every=1)
    expected = {
        "original": history["val_loss_original"],
        "the run's own EMA": history["val_loss_ema"],
        "now": opened.replay({"": now})["loss"],
        PIN: opened.replay({"": scheme_from_code(PIN)})["loss"],
    }
    assert losses["curve"].unique().tolist() == list(expected)
    assert expected["now"][-1] != pytest.approx(history["val_loss_ema"].iloc[-1], rel=1e-3), "else this shows nothing"
    per_epoch = int(history["steps"].iloc[0])
    for name, values in expected.items():
        own = losses[losses["curve"] == name]
        assert own["step"].tolist() == [per_epoch * epoch - 1 for epoch in range(1, 13)]
        np.testing.assert_allclose(own["loss"], values, rtol=1e-6)
    assert set(weights["curve"]) == {"now", PIN}
    steps = per_epoch * 12
    for name, scheme in (("now", now), (PIN, scheme_from_code(PIN))):
        own = weights[weights["curve"] == name].sort_values("step")
        whole = weights_of(decays_at_end(scheme, steps))
        assert own["step"].tolist() == np.flatnonzero(whole).tolist()
        np.testing.assert_allclose(own["weight"], whole[whole > 0], rtol=1e-6)
    titles = json.dumps(json.loads(app.get("vega_lite_chart")[0].proto.spec))
    assert "validation loss (MSE)" in titles


def test_the_figures_are_of_the_curves_that_are_drawn(open_page, home):
    run_id = enter(home)
    app = open_page("what_if", beta="0.8", update_after_step="5", steady_from="5", view="Family")
    history, table = RunStore(home).history(run_id), figures(app)
    for name, model in (("original", "original"), ("the run's own EMA", "ema")):
        own = history[[f"val_{metric}_{model}" for metric in ("loss", "mae", "r2")]]
        own.columns = ["loss", "mae", "r2"]
        row = table.loc[name]
        assert row["final"] == own["loss"].iloc[-1]
        assert row["best"] == own["loss"].min()
        assert row["best_epoch"] == history["epoch"][own["loss"].idxmin()]
        assert row["steadiness"] == pytest.approx(own["loss"].iloc[4:].std())
        assert row[["final_mae", "best_mae"]].tolist() == [own["mae"].iloc[-1], own["mae"].min()]
        assert row[["final_r2", "best_r2"]].tolist() == [own["r2"].iloc[-1], own["r2"].max()]
    ended = table["final"]
    change = percent(abs(ended["now"] / ended["original"] - 1))
    assert f"In this run the average ends {change} " in texts(app)
    shown = json.loads(next(d for d in app.dataframe if "best_epoch" in d.value).proto.columns)
    assert shown["final_mae"]["label"] == "final MAE"
    assert shown["best_r2"]["label"] == "best R2"
    assert drawn(app)[0].groupby("curve", sort=False)["loss"].last().to_dict() == pytest.approx(ended.to_dict())


def test_the_words_on_a_smaller_rate_are_of_the_schedule_of_the_sliders(open_page, home):
    run_id = enter(home)
    app = open_page("what_if", beta="0.8", update_after_step="5", view="Family")
    history, opened = RunStore(home).history(run_id), open_run(RunStore(home).recording(run_id))
    now = opened.replay({"": InversePower(0.8, update_after_step=5, update_every=1)})["loss"]
    late = slice(6, None)
    original, average = np.median(history["val_loss_original"][late]), np.median(now[late])
    assert f"(epochs 7 to 12), the average's median loss was {percent(abs(average / original - 1))} " in texts(app)


@pytest.mark.parametrize("metric", ["final", "best"])
def test_the_cells_of_the_atlas_are_coloured_by_their_own_loss_against_the_originals(open_page, home, metric):
    run_id = enter(home)
    app = open_page("what_if", view="Atlas", atlas_x="power", atlas_y="beta", atlas_metric=metric, update_every="1")
    history, opened = RunStore(home).history(run_id), open_run(RunStore(home).recording(run_id))
    cells = drawn(app)[-1]
    losses = history["val_loss_original"]
    reference = losses.iloc[-1] if metric == "final" else losses.min()
    for row in cells.iloc[[3, 150, 376]].itertuples():
        curve = opened.replay({"": InversePower(row.y, power=row.x, update_after_step=100, update_every=1)})["loss"]
        assert row.loss == pytest.approx(curve[-1] if metric == "final" else curve.min(), rel=1e-4)
        assert row.gain == pytest.approx(100 * (1 - row.loss / reference), abs=0.02)
    assert cells["best"].sum() == 1
    assert cells.loc[cells["best"], "loss"].iloc[0] == cells["loss"].min()
    for row in cells.iloc[::37].itertuples():
        decays = from_code(row.code).decays(len(opened.weights))
        assert row.dot == (not ((decays == row.y) & (decays > 0)).any())
    assert f"has {number(cells['loss'].min())}; the original" in texts(app)
    assert '"loss (MSE)"' in app.get("vega_lite_chart")[-1].proto.spec


def test_a_map_without_a_beta_has_no_dots(open_page, home):
    enter(home)
    app = open_page("what_if", view="Atlas", atlas_x="window", atlas_y="beta")
    assert not drawn(app)[-1]["dot"].any()


@pytest.mark.parametrize("plane", ["principal components", "three points"])
def test_the_space_of_the_weights_is_that_of_the_run_from_there_on(open_page, home, plane):
    run_id = enter(home)
    app = open_page("what_if", view="Weight space", plane=plane, path_from="25", beta="0.8", update_after_step="5")
    opened = open_run(RunStore(home).recording(run_id))
    scheme = InversePower(0.8, update_after_step=5, update_every=1)
    rows = list(range(len(opened.weights) // 4, len(opened.weights)))
    weights, averaged = opened.weights[rows].astype(float), opened.average([scheme], rows)[0].astype(float)
    _, _, paths, line, distances = drawn(app)
    for name, path in (("original", weights), ("now", averaged)):
        own = distances[distances["curve"] == name]
        assert own["step"].tolist() == rows
        np.testing.assert_allclose(own["distance"], np.linalg.norm(path - weights[-1], axis=1), rtol=1e-4, atol=1e-5)
    ends = opened.measure(np.stack([weights[-1], averaged[-1]]).astype(np.float32))["loss"]
    for position, loss in zip((0, 1), ends, strict=True):
        assert line.loc[line["position"].sub(position).abs().idxmin(), "loss"] == pytest.approx(loss, rel=1e-4)
    assert marked(app) == {"original": 0, "average": 1}
    found = space(opened, scheme, plane, 0.25)
    for name, places in (("original", found.original), ("average", found.averaged)):
        own = paths[paths["path"] == name]
        assert own["step"].tolist() == rows
        assert own["newest"].tolist() == [False] * (len(rows) - 1) + [True]
        np.testing.assert_allclose(own[["u", "v"]], places, rtol=1e-6)
    if plane == "three points":  # distances in a plane through the points are those between them
        first, last = paths[paths["path"] == "original"][["u", "v"]].to_numpy()[[0, -1]]
        assert np.linalg.norm(last - first) == pytest.approx(np.linalg.norm(weights[-1] - weights[0]), rel=1e-4)
    assert f"The plane shows {percent(found.original_share, 2)} of" in texts(app)
    assert f"and {percent(found.averaged_share, 2)} of the average's" in texts(app)
    low, high = found.landscape["loss"].min(), found.landscape["loss"].max()
    assert f"from {number(low)} to {number(high)}." in texts(app)


def test_the_widths_that_are_drawn_are_of_power_functions_and_the_original_lies_level(open_page, home):
    run_id = enter(home)
    app = open_page("what_if", view="Best width")
    history, opened = RunStore(home).history(run_id), open_run(RunStore(home).recording(run_id))
    table = drawn(app)[-1]
    level = table.loc[table["curve"] == "original", "loss"]
    assert level.tolist() == [history["val_loss_original"].iloc[-1]] * len(level)
    average = table[table["curve"] == "average"].reset_index(drop=True)
    settings = np.geomspace(0.005, 0.28, 40).round(4)
    for n in (0, 17, 39):
        schedule = PowerFunction(sigma_rel=settings[n])
        assert average["width"][n] == pytest.approx(100 * relative_width(schedule.decays(len(opened.weights))))
        assert average["loss"][n] == pytest.approx(opened.final({"": schedule})["loss"][0], rel=1e-4)
    best = average["loss"].idxmin()
    width, loss = percent(average["width"][best] / 100), number(average["loss"][best])
    assert f"the relative width **{width}** was best: {loss}" in texts(app)
    assert f"the original {number(level.iloc[0])};" in texts(app)


def test_what_takes_long_stays_as_it_was_while_a_run_grows(open_page, home):
    runs, config = RunStore(home), replace(FREE, max_epochs=6)
    run_id = runs.create(config)
    runs.claim(ME, 99)
    pages = []

    def grow(row):
        runs.append(run_id, ME, row)
        if row["epoch"] == 3:
            pages.append(open_page("what_if", replayed=run_id, view="Best width"))

    train(config, grow, record=runs.recording(run_id))
    history = runs.history(run_id)
    [app] = pages
    assert "bring up to date" in next(b.label for b in run(app).button if b.label.startswith("As of epoch 3"))
    assert figures(app).loc["original", "final"] == history["val_loss_original"].iloc[5]
    assert drawn(app)[-1]["loss"].iloc[-1] == history["val_loss_original"].iloc[2]
    app.get_by_key("view").set_value("Family")
    family = next(d.value for d in run(app).dataframe if "copies_kept" in d.value).set_index("scheme")
    assert family.loc["original", "loss"] == pytest.approx(history["val_loss_original"].iloc[2], rel=1e-4)
    assert family.loc["EMA", "loss"] == pytest.approx(
        open_run(runs.recording(run_id), 3).final({"": FREE.schedule})["loss"][0], rel=1e-4
    )


def test_a_run_of_another_task_is_replayed_by_its_own_metrics(open_page, home):
    run_id = enter(home, DIGITS)
    app = open_page("what_if", beta="0.9", update_after_step="5", view="Family")
    history, opened = RunStore(home).history(run_id), open_run(RunStore(home).recording(run_id))
    table = figures(app)
    found = opened.replay({"": InversePower(0.9, update_after_step=5, update_every=1)})
    row = table.loc["now"]
    assert row[["final_accuracy", "best_accuracy"]].tolist() == [found["accuracy"][-1], found["accuracy"].max()]
    assert table.loc["original", "best_accuracy"] == history["val_accuracy_original"].max()
    shown = json.loads(next(d for d in app.dataframe if "best_epoch" in d.value).proto.columns)
    assert shown["best_accuracy"]["label"] == "best accuracy"
    assert "validation loss (cross-entropy)" in app.get("vega_lite_chart")[0].proto.spec
    family = next(d.value for d in app.dataframe if "copies_kept" in d.value).set_index("scheme")
    assert family.loc["EMA", "accuracy"] == found["accuracy"][-1]
    for view, title in (("Atlas", "loss (cross-entropy)"), ("Best width", "final validation loss (cross-entropy)")):
        app.get_by_key("view").set_value(view)
        assert title in run(app).get("vega_lite_chart")[-1].proto.spec
    app.get_by_key("view").set_value("Weight space")
    assert "validation loss (cross-entropy)" in run(app).get("vega_lite_chart")[-2].proto.spec


def own_pictures(app):
    """The first chart's tables by name, those of its frames and cells too."""
    chart = app.get("vega_lite_chart")[0]
    return {data.name: convert_arrow_bytes_to_pandas_df(data.data.data) for data in chart.proto.datasets}


def test_every_mark_of_every_handle_is_the_replay_of_that_very_schedule(open_page, home, monkeypatch):
    monkeypatch.setattr(moving, "_MOST_MARKS", 80)
    run_id = enter(home)
    app = open_page("what_if", view="Family", beta="0.8", power="1", update_after_step="7", more_settings="true")
    opened, table = open_run(RunStore(home).recording(run_id)), frames(app)
    chart = json.loads(app.get("vega_lite_chart")[0].proto.spec)
    marks = {param["name"]: param["bind"] for param in chart["params"] if "bind" in param}
    base = InversePower(0.8, power=1.0, update_after_step=7, update_every=1)
    losses, weights = table["frames0_0"], table["frames1_0"]
    told = chart["title"]["text"]["expr"]
    steps = list(range(4, 60, 5))
    assert losses["step"].tolist() == steps
    for place, key in enumerate(("power", "inv_gamma", "beta")):
        most = marks[f"drag_{key}_mark"]["max"]
        labels = json.loads(re.search(r'(\["[^]]*\])\[drag_' + key, told)[1])
        assert len(labels) == most + 1 >= 15
        for mark in (0, most // 2, most):
            value = float(labels[mark].replace(",", ""))
            scheme = base.varied(**{key: value})
            own = losses[f"loss_{place}_{mark}"]
            np.testing.assert_allclose(own, opened.replay({"": scheme})["loss"], rtol=1e-3 if key == "beta" else 1e-5)
            whole = weights_of(scheme.decays(60))
            np.testing.assert_allclose(weights[f"weight_{place}_{mark}"], whole[weights["step"].astype(int)], atol=1e-4)
        assert losses.filter(regex=f"loss_{place}_").iloc[-1].nunique() > most / 3, "else this shows nothing"


@pytest.mark.parametrize("most", [16_000, 900])
def test_a_moved_curve_misses_no_epoch_or_the_page_says_at_how_many_it_is_drawn(open_page, home, monkeypatch, most):
    monkeypatch.setattr(replay.frames, "MOST_NETWORKS", most)
    run_id = enter(home, replace(FREE, max_epochs=75, data=DataConfig(n_samples=100)))
    app = open_page("what_if", view="Atlas", beta="0.8", update_after_step="7")
    losses, opened = frames(app)["frames0_0"], open_run(RunStore(home).recording(run_id))
    [cells] = [table for table in own_pictures(app).values() if "cell_0" in table]
    steps = opened.rows.steps[opened.epoch_ends]
    ends = finite_range(np.concatenate([drawn(app)[0]["loss"], losses.filter(regex="loss_").to_numpy().ravel()]))
    told = re.search(r"A curve that a handle moves is drawn at (\d+) of the 75 epochs", texts(app))
    shown = shown_epochs(75, int(told[1]) if told else 75)
    assert bool(told) == (most == 900)
    title = json.loads(app.get("vega_lite_chart")[0].proto.spec)["title"]["text"]["expr"]
    powers = json.loads(re.search(r'(\["[^]]*\])\[drag_power', title)[1])
    for mark, power in enumerate(powers):
        column = f"loss_0_{mark}"
        scheme = InversePower(0.8, power=float(power), update_after_step=7, update_every=1)
        whole = opened.replay({"": scheme})["loss"]
        missed = np.abs(np.interp(steps, losses["step"], losses[column]) - whole)[shown - 1]
        assert missed.max() <= 0.005 * (ends[1] - ends[0])
        assert set(losses["step"]) <= set(steps[shown - 1])
    assert f"Under the pointer, a curve is drawn at {len(cells)} of the 75 epochs; kept, at all." in texts(app)


@pytest.mark.parametrize("axis", ["log", "linear"])
@pytest.mark.parametrize("family", ["Inverse power", "Running mean"])
def test_no_curve_that_a_handle_or_the_pointer_shows_leaves_the_picture(open_page, home, family, axis, monkeypatch):
    monkeypatch.setattr(moving, "_MOST_MARKS", 80)
    noisy = OptimizerConfig(rate_rule="constant", learning_rate=0.03)
    enter(home, replace(FREE, max_epochs=40, optimizer=noisy, data=DataConfig(n_samples=100)))
    app = open_page("what_if", family=family, view="Atlas", loss_axis=axis, beta="0.999", update_after_step="0")
    tables = own_pictures(app)
    [cells] = [table for table in tables.values() if "cell_0" in table]
    moved = tables["frames0_0"].filter(regex="loss_").to_numpy() if "frames0_0" in tables else np.empty(0)
    assert moved.any() == (family == "Inverse power")
    shown = np.concatenate([moved.ravel(), cells.filter(regex="cell_").to_numpy().ravel(), tables["still0"]["loss"]])
    low, high = tables["ends0"][["y_0", "y_1"]].iloc[0]
    assert low == pytest.approx(np.nanmin(shown), rel=1e-6)
    assert high == pytest.approx(np.nanmax(shown), rel=1e-6)


@pytest.mark.parametrize("metric", ["final", "best"])
def test_a_map_of_which_no_average_can_be_had_says_so_and_nothing_of_losses(open_page, home, metric):
    enter(home)
    axes_of = {"atlas_x": "beta", "atlas_y": "relative_width", "atlas_metric": metric}
    app = open_page("what_if", view="Atlas", update_after_step="1000", **axes_of)
    assert "All cells of this map are empty: no such average can be had in this run." in texts(app)
    assert "finite" not in texts(app)


def test_steps_that_are_skipped_are_no_teeth_while_a_handle_moves(open_page, home):
    enter(home)
    app = open_page("what_if", view="Family", beta="0.8", update_after_step="7", update_every="5")
    assert set(frames(app)["frames1_0"]["step"]) <= set(range(5, 60, 5))


def test_a_handle_that_is_let_go_sets_its_setting_and_all_that_shows_it(open_page, home):
    run_id = enter(home)
    app = open_page("what_if", view="Family", beta="0.8")
    opened = open_run(RunStore(home).recording(run_id))
    before = app.get_by_key("power").value
    drag(app, power=0)
    assert app.get_by_key("power").value < before
    now = FREE.schedule.varied(beta=0.8, power=app.get_by_key("power").value, update_after_step=100)
    assert figures(app).loc["now", "final"] == pytest.approx(opened.final({"": now})["loss"][0], rel=1e-5)


def test_the_curve_of_each_cell_comes_with_the_page_and_all_that_moves_is_small(open_page, home):
    run_id = enter(home)
    app = open_page("what_if", view="Atlas", atlas_x="power", atlas_y="beta", update_after_step="7")
    opened = open_run(RunStore(home).recording(run_id))
    cells, tables = drawn(app)[-1], own_pictures(app)
    [curves] = [table for table in tables.values() if "cell_0" in table]
    assert len(cells) == len(curves.columns) - 1 == 380
    assert curves["step"].tolist() == list(range(4, 60, 5))
    for row in cells.iloc[[0, 140, 379]].itertuples():
        np.testing.assert_allclose(
            curves[f"cell_{row.cell}"], opened.replay({"": from_code(row.code)})["loss"], rtol=1e-5
        )
    sent = sum(len(chart.proto.SerializeToString()) for chart in app.get("vega_lite_chart"))
    assert sent < 3_000_000 / 4, "a run of five times as many epochs has as much room"
    layers = json.loads(app.get("vega_lite_chart")[0].proto.spec)["vconcat"][0]["layer"]
    [line] = [layer for layer in layers if "pointed_cell" in json.dumps(layer.get("transform"))]
    assert tables[line["data"]["name"]].equals(curves)


def test_moves_of_the_axes_settings_replay_no_map_again(open_page, home, monkeypatch):
    enter(home)
    app = open_page("what_if", view="Atlas", atlas_x="power", atlas_y="beta")

    def again(*arguments):
        raise AssertionError("the map was made again")

    monkeypatch.setattr(replay, "atlas", again)
    for key, value in (("power", 0.3), ("beta", 0.5)):
        app.get_by_key(key).set_value(value)
        run(app)
    monkeypatch.undo()


def test_a_kept_cell_is_a_curve_until_another_map_or_view_is_shown(open_page, home):
    run_id = enter(home)
    app = open_page("what_if", view="Atlas", atlas_x="power", atlas_y="beta", update_after_step="7")
    cells = drawn(app)[-1]
    row = cells.iloc[150]
    chart = app.get("vega_lite_chart")[-1].proto
    select(app, chart.id, cell=[{"code": row["code"], "clicks": 0}])
    opened = open_run(RunStore(home).recording(run_id))
    kept = figures(app).loc["the cell"]
    assert kept["final"] == pytest.approx(opened.final({"": from_code(row["code"])})["loss"][0], rel=1e-5)
    assert drawn(app)[-1].loc[lambda table: table["chosen"], "code"].tolist() == [row["code"]]
    assert any(button.label == f"Pin {row['code']}" for button in app.button)
    app.get_by_key("atlas_metric").set_value("best")
    # A click on the map of before may come as late as the choice of another one.
    select(app, chart.id, cell=[{"code": cells["code"].iloc[3], "clicks": 0}])
    assert "the cell" not in figures(app).index
    app.get_by_key("atlas_metric").set_value("final")
    assert "the cell" not in figures(run(app)).index


def shown_settings(app):
    return {key: app.get_by_key(key).value for key in ("power", "beta", "update_after_step", "update_every")}


OWN = {"power": FREE.schedule.power, "beta": 0.9, "update_after_step": 5, "update_every": 1}
FIRST = {"power": 2 / 3, "beta": 0.999, "update_after_step": 100, "update_every": 1}


def test_it_begins_with_the_settings_of_the_run(open_page, home):
    other = replace(FREE, schedule=FREE.schedule.varied(beta=0.5, power=1.5))
    second, first = enter(home, other), enter(home)
    app = open_page("what_if", view="Family")
    assert shown_settings(app) == OWN
    table = figures(app)
    assert table.loc["now", "final"] == pytest.approx(table.loc["the run's own EMA", "final"], rel=1e-4)
    # Another run has its own, as long as nobody has set them.
    app.get_by_key("pick-replayed").set_value(second)
    assert shown_settings(run(app)) == OWN | {"beta": 0.5, "power": 1.5}
    app.get_by_key("beta").set_value(0.7)
    run(app)
    app.get_by_key("pick-replayed").set_value(first)
    assert shown_settings(run(app)) == OWN | {"beta": 0.7, "power": 1.5}


def test_a_link_with_settings_keeps_them_and_one_of_the_first_settings_says_so(open_page, home):
    enter(home)
    assert shown_settings(open_page("what_if", view="Family", beta="0.8")) == FIRST | {"beta": 0.8}
    app = open_page("what_if", view="Family")
    next(button for button in app.button if button.label == "Reset").click()
    assert shown_settings(run(app)) == FIRST
    assert app.query_params["begin"] == "article"
    assert shown_settings(open_page("what_if", view="Family", begin="article")) == FIRST
    app.get_by_key("beta").set_value(0.7)
    assert "begin" not in run(app).query_params


@pytest.mark.parametrize("view", ["Atlas", "Family", "Weight space", "Best width"])
def test_a_run_that_diverged_is_told_in_every_view(open_page, home, view):
    enter(home, replace(FREE, optimizer=OptimizerConfig("sgd", 0.5, momentum=0.9, rate_rule="constant")))
    app = open_page("what_if", view=view)
    assert "This run diverged in epoch 3" in texts(app)
    told = {
        "Atlas": "no schedule of this map has a finite loss",
        "Family": "no mean of this run's weights has a finite loss",
        "Weight space": "its weights are not finite at step",
        "Best width": "no average of this run has a finite loss",
    }
    assert told[view] in texts(app).replace("No ", "no ")
    assert len(app.get("vega_lite_chart")) == 1, "only the curves of its first epochs"
    assert "Look" not in texts(app)
    assert "plateau" not in texts(app)
    assert "nan" not in texts(app).split()


@pytest.mark.parametrize("state", ["failed", "interrupted", "stopped"])
def test_a_run_that_ended_before_its_first_epoch_is_told_and_not_chosen_first(open_page, home, state):
    runs = RunStore(home)
    good = enter(home)
    lost = runs.create(FREE)
    runs.claim(ME, 99)
    Recorder(torch.nn.Linear(2, 1), runs.recording(lost)).close()
    runs.finish(lost, ME, state, error="out of memory")
    app = open_page("what_if", view="Family")
    assert len(figures(app)) == 3
    app.get_by_key("pick-replayed").set_value(lost)
    assert "before its first epoch" in texts(run(app))
    assert "not over yet" not in texts(app)
    assert RunStore(home).result(good).state == "done"
