import io
import json
import sqlite3
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import streamlit as st
import torch

from emacore import RunConfig, train
from emacore.averaging.families import Constant
from emacore.experiments import jobs, store
from emacore.experiments.article_claims import CLAIMS, beside_claims
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study, Sweep
from emacore.replay.recording import Recorder
from emacore.tasks.regression.article import PROGRESS
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import OptimizerConfig, StoppingConfig
from emacore.widgets.runs import RUN_DEFAULTS, run_state
from tests.helpers import ME, wait_for
from tests.pages.conftest import FREE, drawn, enter_recorded, run, texts
from tests.pages.conftest import enter_run as enter
from tests.training.test_second_task import CONFIG as DIGITS


def button(app, label):
    return next(b for b in app.button if b.label == label)


def test_a_first_visit_invites_to_press_start(open_page):
    app = open_page("train")
    assert "Press **Start**" in texts(app)
    assert button(app, "Stop").disabled
    button(app, "Start").click()
    run(app)
    run_id = app.session_state["run"]
    assert RunStore().result(run_id).config == RunConfig()
    assert app.get("progress")
    assert not button(app, "Stop").disabled
    button(app, "Stop").click()
    run(app)
    assert RunStore().result(run_id).state == "stopped"
    assert "you stopped it" in texts(app)


def test_controls_make_the_config(open_page):
    app = open_page(
        "train",
        data="friedman1",
        n_samples="300",
        n_features="7",
        widths="16, 8",
        optimizer="sgd",
        lr="0.0321",
        momentum="0.5",
        rate_rule="constant",
        family="Constant",
        beta="0.9",
        stop_curve="none",
        run_seed="7",
        max_epochs="12",
    )
    assert "1 - beta = 0.1, half-life 6.579 moves" in texts(app)
    assert app.get_by_key("beta").type == "select_slider", "where no chart has its handle"
    button(app, "Start").click()
    config = RunStore().result(run(app).session_state["run"]).config
    assert config.data == DataConfig("friedman1", 300, 7)
    assert config.network.widths == (16, 8)
    assert config.optimizer == OptimizerConfig("sgd", 0.0321, momentum=0.5, rate_rule="constant")
    assert config.schedule == Constant(0.9, update_after_step=100)
    assert (config.stopping.curve, config.seed, config.max_epochs) == ("none", 7, 12)


def test_a_finished_run_shows_its_figures_and_claims_nothing_general(open_page, home):
    run_id = enter(home)
    app = open_page("train", run=run_id)
    said = texts(app)
    assert "Ended after 30 epochs" in said
    assert "In this run, after epoch 30, the averaged model's validation loss is" in said
    assert "So it steers the training" not in said, "the plateau rule has not acted"
    assert "One run is one draw" in said
    assert "beta = 0.999 is never reached" in said
    history = RunStore(home).history(run_id)
    metrics = app.dataframe[0].value.set_index("metric")
    assert metrics.loc["mse", "ema"] == history["val_loss_ema"].iloc[-1]
    progress = next(d.value for d in app.dataframe if "val_loss_ema_article" in d.value)
    assert progress["epoch"].tolist() == [10, 20, 30]
    assert progress["val_loss_ema"].tolist() == history["val_loss_ema"].iloc[[9, 19, 29]].tolist()
    assert progress["val_loss_ema_article"].tolist() == [0.0233, 0.0110, 0.0075]


@pytest.mark.parametrize(("stop_patience", "plateau_patience"), [(2, 400), (400, 1)])
def test_rules_of_a_finished_run_are_told_where_they_acted(open_page, home, stop_patience, plateau_patience):
    optimizer = OptimizerConfig(learning_rate=0.03, plateau_patience=plateau_patience)
    config = RunConfig(
        data=DataConfig(n_samples=200),
        optimizer=optimizer,
        schedule=Constant(0.5),
        stopping=StoppingConfig("ema", stop_patience),
        max_epochs=12,
    )
    said = texts(open_page("train", run=enter(home, config)))
    assert "Ended after" in said
    assert ("early stop" in said) == ("past its best" in said) == ("2 epochs without a new best" in said)
    assert ("early stop" in said) == (stop_patience == 2)
    assert ("plateau rule of the learning rate" in said) == (plateau_patience == 1)


def test_a_running_run_shows_progress_and_why_it_may_end(open_page, home):
    run_id = enter(home, RunConfig(max_epochs=4), state="running")
    app = open_page("train", run=run_id)
    assert "Epoch 4 of at most 4" in app.get("progress")[0].proto.text
    assert "20 epochs without a new best validation loss of the EMA, " in app.get("progress")[0].proto.text
    assert "Metrics after epoch 4" in texts(app)


#: It diverges in its third epoch, and in its first.
LATE = replace(FREE, optimizer=OptimizerConfig("sgd", 0.5, momentum=0.9, rate_rule="constant"))
BURST = replace(FREE, optimizer=OptimizerConfig("sgd", 10.0, rate_rule="constant"))


def test_how_runs_end_is_told(open_page, home):
    diverged = enter(home, LATE)
    assert RunStore(home).result(diverged).stopped == "diverged"
    app = open_page("train", run=diverged)
    assert "no longer finite" in app.warning[0].value
    assert not app.success
    assert "Metrics after epoch 2, the last with a finite loss" in texts(app)
    assert app.dataframe[0].value["original"].notna().all()
    failed = enter(home, epochs=2, state="failed", error="The disk is full.")
    assert "The run failed after 2 epochs: The disk is full." in texts(open_page("train", run=failed))
    interrupted = enter(home, epochs=1, state="interrupted")
    assert "interrupted after 1 epoch, because" in texts(open_page("train", run=interrupted))


def test_a_run_without_any_finite_loss_is_one_sentence_and_leads_nowhere(open_page, home):
    good, lost = enter_recorded(home), enter_recorded(home, BURST)
    assert len(RunStore(home).history(lost)) == 1
    for page, key in (("train", "run"), ("what_if", "replayed")):
        app = open_page(page, **{key: lost})
        assert [warning.value[:39] for warning in app.warning] == ["The run diverged in its first epoch: no"], page
        assert not [*app.get("vega_lite_chart"), *app.dataframe, *app.success], page
        assert "Look" not in texts(app)
        assert "another seed" not in texts(app)
        assert "Replay this run" not in [button.label for button in app.button]
    assert "Replay this run" not in [button.label for button in open_page("runs", picked=lost).button]
    # The newest that can be replayed is begun with, and not called the newest.
    app = open_page("what_if", view="Family")
    assert app.get("vega_lite_chart")
    assert "The newest that did not diverge: " in app.get_by_key("pick-replayed").placeholder
    assert "Replay this run" in [button.label for button in open_page("train", run=good).button]


@pytest.mark.parametrize(
    ("kind", "job", "page", "first"),
    [
        ("run", RunConfig(), "train", "epoch"),
        ("study", Study(RunConfig(), (0, 1)), "evidence", "epoch"),
        ("sweep", Sweep(RunConfig(), {"max_epochs": [1, 2]}, (0, 1)), "where_it_helps", "cell"),
        ("replayed", RunConfig(), "what_if", "epoch"),
    ],
)
def test_a_job_that_ended_with_nothing_is_told_and_not_waited_for(open_page, home, kind, job, page, first):
    runs = RunStore(home)
    for state, words in (
        ("stopped", f"is over: you stopped it before its first {first} was"),
        ("failed", f"failed before its first {first} was over: No data"),
        ("interrupted", f"was interrupted before its first {first} was over, because"),
    ):
        job_id = runs.create(job)
        runs.claim(ME, 99)
        runs.finish(job_id, ME, state, stopped="stopped" if state == "stopped" else None, error="No data.")
        if kind == "run":
            Recorder(torch.nn.Linear(2, 1), runs.recording(job_id)).close()
        app = open_page(page, **{kind: job_id})
        said = texts(app)
        assert words in said, state
        assert "There is nothing to show of it" in said
        assert "Replay this run" not in [button.label for button in app.button]
        assert "may have been deleted" not in said
        assert "not over yet" not in said


def test_an_unknown_run_in_the_link_falls_back(open_page, home):
    enter(home, epochs=1)
    assert open_page("train", run="garbage").session_state["run"] is None


@pytest.mark.parametrize(
    "name", ["The article", "A higher learning rate", "A decay too long for the run", "Five epochs"]
)
def test_presets(open_page, name):
    app = open_page("train", lr="0.5", run_seed="3", family="Running mean")
    app.get_by_key(f"preset-{name}").click()
    run(app)
    button(app, "Start").click()
    config = RunStore().result(run(app).session_state["run"]).config
    assert config.seed == 42
    assert (config == RunConfig()) == (name == "The article")
    assert config.max_epochs == {"The article": 500, "Five epochs": 5}.get(name, 60)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"widths": "64, many"}, "Hidden layers must be whole numbers such as 64, 32; got '64, many'"),
        ({"widths": "0"}, "network.widths must be"),
        ({"batch_size": "5000"}, "batch_size = 5000 is larger than the 1600 training rows"),
        ({"n_samples": "200000", "n_features": "1000"}, "At most 20,000,000 numbers of data"),
        ({"data": "csv"}, "Choose a CSV file first"),
    ],
)
def test_settings_that_mean_nothing_are_told(open_page, query, message):
    app = open_page("train", **query)
    assert message in app.error[0].value
    assert button(app, "Start").disabled


def test_a_table_of_ones_own(open_page):
    app = open_page("train", data="csv", batch_size="8")
    app.get_by_key("own_data").set_value(("t.csv", b"a,b,y\n" + b"1,2,3\n4,5,7\n0,1,2\n" * 20, "text/csv"))
    run(app)
    assert not app.error
    assert app.get_by_key("target").value == "y"
    button(app, "Start").click()
    config = RunStore().result(run(app).session_state["run"]).config
    assert (config.data.kind, config.data.target) == ("csv", "y")
    assert train(RunConfig(data=config.data, optimizer=config.optimizer, max_epochs=1)).stopped == "max epochs"
    assert config.data.path == "t.csv"
    assert len(config.data.sha256) == 64
    assert "/" not in config.to_json()


def test_what_columns_are_taken_as_is_told_and_chosen_before_start(open_page):
    rows = "".join(f"{n},{n * n % 7},{'xy'[n % 2]},{'?' if n == 3 else n % 5},{n % 2 == 0}\n" for n in range(40))
    app = open_page("train", data="csv", batch_size="8")
    app.get_by_key("own_data").set_value(("t.csv", f"a,b,word,c,y\n{rows}".encode(), "text/csv"))
    assert "'?' in line 5" in run(app).error[0].value
    assert button(app, "Start").disabled
    app.get_by_key("blanks").set_value("drop")
    app.get_by_key("words").set_value("one-hot")
    assert not run(app).error
    taken = next(frame.value for frame in app.dataframe if "taken as" in frame.value).set_index("column")
    assert taken["used as"].to_dict() == {
        "a": "feature",
        "b": "feature",
        "word": "feature",
        "c": "feature",
        "y": "target",
    }
    assert taken.loc["word", "remark"] == "one-hot: text, 2 different: x, y"
    assert "1 of 40 rows have a blank" in texts(app)
    assert "y: truth values are taken as 1 and 0" in texts(app)
    app.get_by_key("features").set_value(["a", "word"])
    app.get_by_key("scaled_on").set_value("train")
    button(run(app), "Start").click()
    data = RunStore().result(run(app).session_state["run"]).config.data
    assert (data.features, data.blanks, data.text, data.scaled_on) == (("a", "word"), "drop", "one-hot", "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"a,b\nx,y\n", "no column of numbers; it has a, b"),
        (b"a,b\n1,2\n", "1 rows"),
        (b"a,b\n1,\n2,3\n4,5\n5,6\n", "missing"),
    ],
)
def test_bad_tables_are_told(open_page, content, message):
    app = open_page("train", data="csv")
    app.get_by_key("own_data").set_value(("t.csv", content, "text/csv"))
    assert message in run(app).error[0].value


def test_settings_go_out_and_in_as_json(open_page):
    app = open_page("train")
    wanted = RunConfig(optimizer=OptimizerConfig(learning_rate=0.02), schedule=Constant(0.97), seed=5, max_epochs=9)
    app.get_by_key("config_file").set_value(("c.json", wanted.to_json().encode(), "application/json"))
    run(app)
    button(app, "Use these settings").click()
    run(app)
    button(app, "Start").click()
    assert RunStore().result(run(app).session_state["run"]).config == wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not json", "not JSON"),
        (b'{"seed": -1}', "seed must be"),
        (b'{"optimizer": {"lr": 1}}', "no setting optimizer.lr"),
        (b'{"schedule": {"family": "InversePower", "power": 99}}', "outside the slider's range"),
    ],
)
def test_bad_json_is_told(open_page, content, message):
    app = open_page("train")
    app.get_by_key("config_file").set_value(("c.json", content, "application/json"))
    assert message in run(app).error[0].value


def test_a_store_that_cannot_be_used_is_told(open_page, home, monkeypatch):
    RunStore(home)
    with sqlite3.connect(home / "runs.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "newer version" in open_page("train").error[0].value


def test_a_store_locked_at_start_is_told_and_nothing_is_lost(open_page, home, monkeypatch):
    app = open_page("train")
    real = sqlite3.connect
    monkeypatch.setattr(store.sqlite3, "connect", lambda path, **k: real(path, **(k | {"timeout": 0.1})))
    with real(home / "runs.sqlite", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        button(app, "Start").click()
        run(app)
        assert "locked by another program" in app.error[0].value
        other.execute("ROLLBACK")
    button(app, "Start").click()
    assert run(app).session_state["run"] is not None


def test_the_defaults_of_the_controls_are_the_articles():
    assert run_state(RunConfig()) == RUN_DEFAULTS


@pytest.mark.slow
def test_from_start_to_end_with_a_real_worker(open_page, home, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("EMACORE_HOME", str(home))
    queue = None
    try:
        app = open_page("train", max_epochs="3")
        button(app, "Start").click()
        run_id = run(app).session_state["run"]
        wait_for(lambda: RunStore(home).result(run_id).state == "done")
        assert "Ended after 3 epochs" in texts(run(app))
        queue = jobs.JobQueue(RunStore(home))
    finally:
        from emacore.widgets.jobs import job_queue

        job_queue().close()
        if queue:
            queue.close()
        st.cache_resource.clear()


def curves_of(table, series, column):
    return {name: own.set_index("epoch")[column] for name, own in table.groupby(series)}


def test_the_charts_are_the_runs_history(open_page, home):
    config = RunConfig(
        optimizer=OptimizerConfig(learning_rate=0.01, rate_rule="cosine"),
        schedule=Constant(0.97, update_after_step=100),
        stopping=StoppingConfig("none"),
        max_epochs=24,
    )
    run_id = enter(home, config)
    app = open_page("train", run=run_id, steady_from="15")
    history = RunStore(home).history(run_id).set_index("epoch")
    losses, r2, rate, decay = drawn(app)
    for table, series, column, expected in (
        (losses, "curve", "loss", {"train": "train_loss", "original": "val_loss_original", "EMA": "val_loss_ema"}),
        (r2, "curve", "r2", {"original": "val_r2_original", "EMA": "val_r2_ema"}),
    ):
        found = curves_of(table, series, column)
        assert set(found) == set(expected)
        for name, own in expected.items():
            pd.testing.assert_series_equal(found[name], history[own], check_names=False)
    found = curves_of(pd.concat([rate, decay]), "rate", "value")
    assert [set(rate["rate"]), set(decay["rate"])] == [{"learning rate"}, {"1 - decay of the EMA"}], "own axes"
    shown = history["decay"] < 1
    pd.testing.assert_series_equal(found["learning rate"], history["learning_rate"], check_names=False)
    np.testing.assert_allclose(found["1 - decay of the EMA"], 1 - history["decay"][shown])
    assert found["learning rate"].nunique() == 24
    assert found["1 - decay of the EMA"].nunique() == 2
    specs = [chart.proto.spec for chart in app.get("vega_lite_chart")]
    assert '"loss (MSE)"' in specs[0]
    assert '"R2 (validation rows)"' in specs[1]
    low, high = json.loads(specs[1])["layer"][0]["encoding"]["y"]["scale"]["domain"]
    values = np.concatenate([history["val_r2_original"], history["val_r2_ema"]])
    assert high > values.max()
    assert 0.05 < (values < low).mean() <= 0.1
    late = history.loc[15:]
    for name, model in (("Std. original", "original"), ("Std. EMA", "ema")):
        value = next(metric.value for metric in app.metric if metric.label == name)
        assert float(value) == pytest.approx(late[f"val_loss_{model}"].std(), rel=0.05)
    summary = app.dataframe[0].value.set_index("metric")
    for metric in ("loss", "mae", "r2"):
        row = summary.loc["mse" if metric == "loss" else metric]
        original, ema = (history[f"val_{metric}_{model}"].iloc[-1] for model in ("original", "ema"))
        assert row[["original", "ema"]].tolist() == [original, ema]
        better = ema - original if metric == "r2" else original - ema
        assert row["gain_percent"] == pytest.approx(100 * better / abs(original))


def test_downloads_of_a_run_are_named_after_what_they_hold(open_page, home, monkeypatch):
    config = RunConfig(schedule=Constant(0.9, update_after_step=60), stopping=StoppingConfig("none"), max_epochs=3)
    run_id = enter(home, config)
    files = {}
    monkeypatch.setattr(st, "download_button", lambda label, data, file_name, *_, **__: files.update({file_name: data}))
    open_page("train", run=run_id)
    history = RunStore(home).history(run_id)
    epochs = history["epoch"].tolist()
    for name, columns in {
        "learning_rate": {"epoch": epochs, "rate": ["learning rate"] * 3, "value": history["learning_rate"].tolist()},
        "one_minus_decay": {"epoch": epochs, "rate": ["1 - decay of the EMA"] * 3, "value": [1, 0.1, 0.1]},
        "losses": {"epoch": epochs * 3, "curve": ["train"] * 3 + ["original"] * 3 + ["EMA"] * 3},
        "r2": {"epoch": epochs * 2, "curve": ["original"] * 3 + ["EMA"] * 3},
        "metrics": {"metric": ["mse", "mae", "r2"]},
        "history": {"epoch": epochs, "train_loss": history["train_loss"].tolist()},
    }.items():
        table = pd.read_csv(io.BytesIO(files[f"{name}-{run_id}.csv"]()))
        for column, values in columns.items():
            assert table[column].tolist() == pytest.approx(values), (name, column)


def test_another_run_lies_over_this_one(open_page, home):
    config = RunConfig(stopping=StoppingConfig("none"), max_epochs=3)
    first = enter(home, config)
    enter(home, replace(config, data=DataConfig(n_samples=200)))
    run_id = enter(home, replace(config, optimizer=OptimizerConfig(learning_rate=0.01)))
    app = open_page("train", run=run_id)
    assert len(app.get_by_key("pick-overlay").options) == 1, "the losses of the third are of other rows"
    assert {"train", "original", "EMA"} == set(drawn(app)[0]["curve"])
    app.get_by_key("pick-overlay").set_value(first)
    run(app)
    assert first in app.query_params["overlay"]
    own, theirs = (RunStore(home).history(one) for one in (run_id, first))
    losses, r2, *_ = drawn(app)
    for table, column, name in ((losses, "loss", "loss"), (r2, "r2", "r2")):
        found = {curve: rows[column].tolist() for curve, rows in table.groupby("curve")}
        assert found["EMA"] == own[f"val_{name}_ema"].tolist()
        assert found["EMA, other run"] == theirs[f"val_{name}_ema"].tolist()
        assert found["original, other run"] == theirs[f"val_{name}_original"].tolist()
    assert "train, other run" not in set(losses["curve"])
    linked = drawn(open_page("train", run=run_id, overlay=first))[0]
    assert linked["curve"].nunique() == 5


def test_a_run_with_the_articles_settings_stands_in_its_figure_and_beside_its_claims(open_page, home):
    run_id = enter(home, RunConfig(seed=3, max_epochs=500), state="running", stop_after=12)
    app = open_page("train", run=run_id)
    history = RunStore(home).history(run_id)
    assert "Beside the article's run" in [header.value for header in app.header]
    loss, r2 = drawn(app)[-2:]
    for table, name in ((loss, "loss"), (r2, "r2")):
        for part, expected in (("run", history), ("article", PROGRESS)):
            rows = table[(table["part"] == part) & (table["curve"] == "EMA")]
            assert rows["value"].tolist() == expected[f"val_{name}_ema"].tolist()
        assert (table["part"] == "seeds").any()
    spec = json.loads(app.get("vega_lite_chart")[-1].proto.spec)
    assert [row["at"] for row in spec["layer"][-1]["data"]["values"]] == [30, 60, 97], "its three phases"
    claims = app.table[0].value
    assert claims["claim"].tolist() == [claim.text for claim in CLAIMS]
    assert claims["holds in"].tolist() == beside_claims(history)["holds in"].tolist()
    assert "- **Epochs 31 to 60**: the average is catching up in the article" in texts(app)
    other = enter(home, epochs=1)
    app = open_page("train", run=other)
    assert not app.table
    assert "This run has other settings" in texts(app)


def test_why_the_train_loss_lies_above_is_told(open_page, home):
    words = "because of dropout: in training it leaves out 20 % of the hidden units"
    assert words in texts(open_page("train", run=enter(home, epochs=8)))
    free = RunConfig(network=replace(RunConfig().network, dropout=0.0), stopping=StoppingConfig("none"), max_epochs=8)
    run_id = enter(home, free)
    last = RunStore(home).history(run_id).iloc[-1]
    said = texts(open_page("train", run=run_id))
    assert "dropout" not in said
    assert ("it is the mean over the epoch" in said) == (last["train_loss"] > last["val_loss_original"])


def test_progress_is_of_the_epochs_so_far(open_page, home):
    config = RunConfig(stopping=StoppingConfig("none"), max_epochs=3)
    run_id = enter(home, config, state="running")
    runs = RunStore(home)
    with sqlite3.connect(home / "runs.sqlite") as connection:  # as it was after two of eight epochs, 3 s each
        rows = connection.execute("SELECT epoch, row FROM epochs WHERE run_id = ?", (run_id,)).fetchall()
        for epoch, row in rows:
            connection.execute(
                "UPDATE epochs SET row = ? WHERE run_id = ? AND epoch = ?",
                (json.dumps(json.loads(row) | {"seconds": 3.0 * epoch}), run_id, epoch),
            )
        connection.execute("DELETE FROM epochs WHERE run_id = ? AND epoch > 2", (run_id,))
        connection.execute("UPDATE runs SET config = ? WHERE id = ?", (replace(config, max_epochs=8).to_json(), run_id))
    assert len(runs.history(run_id)) == 2
    bar = open_page("train", run=run_id).get("progress")[0].proto
    assert bar.text == "Epoch 2 of at most 8: at most 18 s left (3 s an epoch)."
    assert bar.value == 25


def test_a_run_of_another_task_is_shown_by_its_own_metrics(open_page, home):
    run_id = enter(home, replace(DIGITS, max_epochs=4))
    app = open_page("train", run=run_id)
    history = RunStore(home).history(run_id).set_index("epoch")
    losses, accuracy, *_ = drawn(app)
    found = curves_of(accuracy, "curve", "accuracy")
    for name, model in (("original", "original"), ("EMA", "ema")):
        pd.testing.assert_series_equal(found[name], history[f"val_accuracy_{model}"], check_names=False)
    specs = [chart.proto.spec for chart in app.get("vega_lite_chart")]
    assert '"loss (cross-entropy)"' in specs[0]
    assert '"accuracy (validation rows)"' in specs[1]
    assert curves_of(losses, "curve", "loss")["EMA"].tolist() == history["val_loss_ema"].tolist()
    assert "accuracy: higher is better." in texts(app)
    assert "article" not in texts(app).partition("The article's experiment")[2]
    assert app.dataframe[0].value["metric"].tolist() == ["cross-entropy", "accuracy"]
    assert "digits in a test, SGD 0.05 constant, inverse power 0.95" in app.get_by_key("pick-run").placeholder
