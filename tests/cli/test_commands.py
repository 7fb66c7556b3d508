import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from emacore import RunConfig, train
from emacore.averaging.code import from_code
from emacore.averaging.families import BiasCorrected, Constant, InversePower
from emacore.averaging.schedules import FAMILIES
from emacore.averaging.trackers import halflife_decays, tensorboard_decays, wandb_decays
from emacore.averaging.weights import average, weights
from emacore.averaging.windows import Window
from emacore.cli import commands as command_line
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study
from emacore.tasks import open_run
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import NetworkConfig, dotted

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "max_epochs=3", "--set", "data.n_samples=100"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EMACORE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EMACORE_SCHEDULER", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def emacore(*arguments, code=0):
    result = CliRunner().invoke(command_line.cli, list(arguments))
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def table(result):
    return pd.read_csv(io.StringIO(result.stdout))


def examples():
    """Every example of every --help."""
    commands = [command_line.cli, *command_line.cli.commands.values()]
    return sorted(
        {line.strip() for c in commands for line in (c.help or "").splitlines() if "    emacore " in f"   {line}"}
    )


def store_checkpoints():
    """What the examples of checkpoints name: files with raw weights and their average, and what evaluates them."""
    for folder in (Path(), Path("runs/mine"), Path("snapshots"), Path("older/run")):
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(0)
        weights = average = torch.zeros(50)
        for step in range(1, 1201):
            weights = weights + torch.randn(50, generator=generator)
            average = torch.lerp(average, weights, 0.001)
            if step in (1000, 1100, 1200):
                contents = {"model": {"w": weights}, "model_ema": {"w": average}, "global_step": step}
                torch.save(contents, folder / f"step_{step}.pt")
    Path("my_eval.py").write_text("def accuracy(tensors):\n    return float(tensors['w'].sum())\n\n\nloss = accuracy\n")


@pytest.mark.parametrize("example", examples())
def test_the_examples_of_the_help_run(example, tmp_path, monkeypatch):
    pd.DataFrame({"loss": [3.0, 1.0, 2.0]}).to_csv("losses.csv", index=False)
    if example.split()[1] in ("app", "checkpoints", "diagnose", "merge"):
        store_checkpoints()
    if example.startswith("emacore replay"):
        train(RunConfig(max_epochs=2), record="recording")
    run_id = RunStore().create(RunConfig())
    monkeypatch.setattr(os, "execve", lambda path, arguments, environment: print(arguments))
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)  # so that a sweep starts no processes
    words = shlex.split(example.replace("0123456789ab", run_id))[1:]
    if words[0] in ("train", "replicate", "sweep"):
        words += ["--set", "max_epochs=2", "--set", "data.n_samples=100"]  # the last of two is taken
    result = emacore(*words)
    written = re.search(r"(?:-o|--output) (\S+)", example)
    if written and written[1].endswith(".csv"):
        assert pd.read_csv(written[1]).shape[0] > 0
    else:
        assert Path(written[1]).exists() if written else result.stdout


def test_settings_that_change_nothing_are_told():
    told = emacore("train", *SMALL, "--set", "data.kind=diabetes", "--set", "seed=1").stderr.splitlines()
    assert "data.n_samples changes nothing here: the rows of diabetes are given" in told
    assert not any(line.startswith(("max_epochs ", "data.kind ", "seed ")) for line in told)
    told = emacore("replicate", "--seeds", "1", *SMALL, "--set", "seed=1").stderr
    assert "seed changes nothing here: a study has seeds of its own; --seeds and --first-seed say which" in told
    assert "Cannot tell from 1 seed whether" in told


def test_there_are_examples_of_every_command():
    named = {example.split()[1] for example in examples()}
    assert named == set(command_line.cli.commands)
    assert "emacore schedule" in emacore("--help").stdout


def test_a_run_is_in_the_store_with_its_recording():
    result = emacore("train", "--verbose", *SMALL, "--set", "seed=3", "--set", "schedule=Constant(beta=0.5)")
    store = RunStore()
    run_id = store.runs()["id"][0]
    stored = store.result(run_id)
    assert stored.state == "done"
    assert (stored.config.seed, stored.config.schedule) == (3, Constant(0.5))
    pd.testing.assert_frame_equal(table(result), store.history(run_id))
    assert "epoch 3: loss" in result.stderr
    replayed = table(emacore("replay", str(store.recording(run_id)), "Constant(beta=0.5)"))
    np.testing.assert_allclose(replayed["loss"], store.history(run_id)["val_loss_ema"], rtol=1e-4)
    pd.testing.assert_frame_equal(table(emacore("export", run_id)), store.history(run_id))
    assert RunConfig.from_json(emacore("export", run_id, "--as", "json").stdout) == stored.config


@pytest.mark.parametrize("final", [(), ("--final",)])
def test_windows_are_replayed_beside_schedules(final):
    emacore("train", *SMALL)
    store = RunStore()
    folder = store.recording(store.runs()["id"][0])
    codes = ["Window(size=4)", "Window(size=4, schedule=Constant(beta=0.5))", "Constant(beta=0.5)"]
    found = table(emacore("replay", str(folder), *codes, *final))
    assert found["schedule"].unique().tolist() == codes
    trajectory = open_run(folder)
    schemes = dict(zip(codes, [Window(4), Window(4, Constant(0.5)), Constant(0.5)], strict=True))
    expected = pd.DataFrame(trajectory.final(schemes) if final else trajectory.replay(schemes))
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)


def test_a_thinned_recording_is_told_when_it_is_replayed(tmp_path):
    for name, most in (("whole", math.inf), ("thin", 500)):
        config = RunConfig(data=DataConfig(n_samples=200), network=NetworkConfig((4,)), max_epochs=1)
        train(config, record=tmp_path / name, record_bytes=most)
        told = emacore("replay", str(tmp_path / name), "Constant(beta=0.5)").stderr
        assert ("One step in 5 was recorded, so this is close, not exact" in told) == (name == "thin")
        assert ("or still hold much of their start, miss theirs by more" in told) == (name == "thin")


def test_many_seeds_and_a_verdict():
    result = emacore("replicate", *SMALL, "--seeds", "6", "--first-seed", "4")
    assert table(result)["seed"].unique().tolist() == [4, 5, 6, 7, 8, 9]
    assert "over 6 seeds" in result.stderr
    store = RunStore()
    study = store.result(store.studies()["id"][0]).job
    assert study.seeds == (4, 5, 6, 7, 8, 9)
    assert Study(study.config, study.seeds) == study


def test_settings_come_from_the_pages_json_and_can_be_changed():
    config = RunConfig(max_epochs=2, seed=8)
    Path("config.json").write_text(config.to_json())
    Path("study.json").write_text(Study(config, (1, 2)).to_json())
    for file in ("config.json", "study.json"):
        emacore("train", "--config", file, "--set", "data.n_samples=100")
        stored = RunStore().result(RunStore().runs()["id"][0]).config
        assert (stored.max_epochs, stored.seed, stored.data.n_samples) == (2, 8, 100)


def test_a_grid_is_bounded_before_its_cells_are_made():
    values = json.dumps(list(range(1, 1001)))
    grid = ["--grid", f"max_epochs={values}", "--grid", f"stopping.patience={values}"]
    told = emacore("sweep", *grid, code=2).output
    assert "at most 2,500 cells of a grid are possible, got 1,000,000" in " ".join(told.split())


def test_another_family_drops_what_does_not_belong():
    for family, kept in (("Constant", {}), ("BiasCorrected", {}), ("InversePower", {"power": 2 / 3})):
        config = command_line._config(None, (("schedule.family", family),))
        assert type(config.schedule).__name__ == family
        assert config.schedule.update_after_step == RunConfig().schedule.update_after_step
        assert all(getattr(config.schedule, name) == value for name, value in kept.items())


def test_what_is_not_taken_from_settings_of_another_kind_is_told():
    Path("study.json").write_text(Study(RunConfig(max_epochs=1), (7, 8)).to_json())
    told = emacore("train", "--config", "study.json", "--set", "data.n_samples=100").stderr
    assert "study.json describes a study, whose seeds are not taken from it" in told
    Path("large.json").write_text(" " * 2**21)
    assert "at most 1,048,576 bytes" in emacore("train", "--config", "large.json", code=2).output


def test_a_long_run_is_sampled():
    code = "InversePower(beta=0.9999, update_after_step=50)"
    decays = from_code(code).decays(1_000_001)
    sampled = emacore("schedule", code, "--steps", "1000001")
    found = table(sampled).set_index("step")
    assert 1000 < len(found) < 3000
    assert "of 1,000,001 are printed" in sampled.stderr
    np.testing.assert_array_equal(found["decay"], decays[found.index])
    np.testing.assert_allclose(found["weight"], weights(decays)[found.index], rtol=1e-6, atol=1e-15)
    assert len(table(emacore("schedule", code, "--steps", "1e10"))) < 3000  # which all take 80 GB


def test_the_help_has_every_family_and_setting():
    told = emacore("train", "--help").output
    for family in FAMILIES:
        assert family in told
        assert family in emacore("schedule", "--help").output
    for name, value in dotted(json.loads(RunConfig().to_json())).items():
        assert name == "task" or f"{name} " in told, (name, value)


def test_shells_complete():
    for shell in ("bash", "zsh", "fish"):
        assert "_EMACORE_COMPLETE" in emacore("completion", shell).stdout
    complete = ShellComplete(command_line.cli, {}, "emacore", "_EMACORE_COMPLETE")
    run_id = RunStore().create(RunConfig())

    def found(arguments, incomplete):
        return [item.value for item in complete.get_completions(arguments, incomplete)]

    assert "Constant(" in found(["schedule"], "Con")
    assert "Window(" in found(["replay", "."], "W")
    assert found(["train", "--set"], "optimizer.l") == ["optimizer.learning_rate="]
    assert found(["export"], run_id[:4]) == [run_id]
    assert "delete" in found(["runs"], "d")


def test_what_is_there_stays_until_the_output_is_written():
    Path("there.csv").write_text("mine")
    emacore("train", "--set", "max_epochs=0", "-o", "there.csv", code=2)
    emacore("schedule", "Constant()", "--steps", "nope", "-o", "new.csv", code=2)
    assert Path("there.csv").read_text() == "mine"
    assert not Path("new.csv").exists()


def test_a_sweep_is_one_table_and_a_summary():
    grid = ["--grid", "optimizer.learning_rate=[0.001, 0.01]", "--grid", "network.dropout=0"]
    result = emacore("sweep", "-v", *SMALL, *grid, "--seeds", "2")
    assert len(table(result)) == 4
    assert "cell 2 of 2" in result.stderr
    assert "verdict" in result.stderr
    listed = RunStore().sweeps()
    assert listed[["state", "stopped"]].to_numpy().tolist() == [["done", "all cells trained"]]
    stored = RunStore().history(listed["id"][0]).drop(columns="error")
    pd.testing.assert_frame_equal(stored, table(result).drop(columns="error"), check_dtype=False)


def test_a_schedule_and_a_smoothed_column_are_those_of_the_package():
    decays = table(emacore("schedule", "InversePower(beta=0.999)", "--steps", "300"))
    np.testing.assert_array_equal(decays["decay"], InversePower(0.999).decays(300))
    values = np.array([3.0, 1.0, 2.0])
    pd.DataFrame({"name": list("abc"), "x": values}).to_csv("data.csv", index=False)
    found = table(emacore("smooth", "data.csv", "BiasCorrected(beta=0.9)"))
    np.testing.assert_allclose(found["x_smoothed"], average(values, BiasCorrected(0.9).decays(3), 3.0))


def test_metrics_are_smoothed_and_counters_are_not():
    text = "epoch,step,wall_time,train_loss,val_loss\n0,9,1e9,2.5,\n0,19,1.1e9,1.5,\n0,19,1.2e9,,3\n1,29,1.3e9,2,1\n"
    Path("metrics.csv").write_text(text)
    result = emacore("smooth", "metrics.csv", "Constant(beta=0.5)")
    found = table(result)
    assert found.columns.tolist()[-2:] == ["train_loss_smoothed", "val_loss_smoothed"]
    np.testing.assert_array_equal(found["train_loss_smoothed"], [2.5, 2, np.nan, 2])
    np.testing.assert_array_equal(found["val_loss_smoothed"], [np.nan, np.nan, 3, 2])
    assert "4 rows; x is step; metrics: train_loss" in result.stderr
    assert "epoch (a counter); wall_time (a time)" in result.stderr
    assert "blank or no number in 2 of 4 rows" in result.stderr
    chosen = table(emacore("smooth", "metrics.csv", "Constant(beta=0.5)", "--column", "epoch", "--suffix", "_ema"))
    assert chosen["epoch_ema"].tolist() == [0, 0, 0, 0.5]


@pytest.mark.parametrize("name", ["step", "epoch", "Iteration", "Wall time", "_timestamp", "", "index", "global_step"])
def test_what_counts_or_tells_the_time_is_never_smoothed_unasked(name):
    Path("one.csv").write_text(f"{name},loss\n1700000000,3\n1700000001,1\n")
    assert table(emacore("smooth", "one.csv", "Constant(beta=0.5)")).columns.tolist()[2:] == ["loss_smoothed"]
    Path("two.csv").write_text(f"loss,{name or 'Unnamed: 0'}\n3,1700000000\n1,1700000001\n")
    assert table(emacore("smooth", "two.csv", "Constant(beta=0.5)")).columns.tolist()[2:] == ["loss_smoothed"]


def test_a_trackers_smoothing_has_its_name():
    data = pd.DataFrame({"step": [0, 1, 5, 30], "loss": [4.0, 2.0, 3.0, 1.0]})
    text = data.to_csv(index=False)
    expected = {
        ("tensorboard", "--smoothing", "0.6"): tensorboard_decays(0.6, 4),
        ("wandb", "--smoothing", "0.6", "--viewport-scale", "10"): wandb_decays(data["step"], 0.6, viewport_scale=10),
        ("pandas", "--half-life", "3"): halflife_decays(data["step"], 3.0),
    }
    for arguments, decays in expected.items():
        result = CliRunner().invoke(command_line.cli, ["smooth", "-", "--like", *arguments], input=text)
        assert result.exit_code == 0, result.output
        np.testing.assert_allclose(table(result)["loss_smoothed"], average(data["loss"], decays), rtol=1e-14)
        assert "uneven, from 1 to 25" in result.stderr


def test_plain_averages_and_a_time_as_x_have_names_too():
    Path("data.csv").write_text("time,step,loss\n2026-01-01 00:00:00,0,4\n2026-01-01 00:00:10,1,2\n")
    zero = emacore("smooth", "data.csv", "--like", "zero", "--decay", "0.5")
    assert table(zero)["loss_smoothed"].tolist() == [2, 2]
    assert "half-life 1" in zero.stderr
    assert table(emacore("smooth", "data.csv", "--like", "first", "--decay", "0.5"))["loss_smoothed"].tolist() == [4, 3]
    alone = table(emacore("smooth", "data.csv", "--like", "moving-average", "--window", "1"))
    assert alone["loss_smoothed"].tolist() == [4, 2]
    moving = table(emacore("smooth", "data.csv", "--like", "moving-average", "--window", "2"))
    assert moving["loss_smoothed"].tolist() == [4, 3]
    timed = emacore("smooth", "data.csv", "--like", "pandas", "--half-life", "10", "--x", "time")
    assert table(timed)["loss_smoothed"].tolist() == [4, pytest.approx((0.5 * 4 + 2) / 1.5)]
    assert "time is counted in seconds since 2026-01-01 00:00:00" in timed.stderr
    assert "'loss' cannot be x" in emacore("smooth", "data.csv", "Constant()", "--x", "loss", code=2).stderr
    idle = emacore("smooth", "data.csv", "--like", "zero", "--decay", "0.5", "--window", "2", code=2).stderr
    assert "--window does nothing with --like zero" in idle


def test_an_own_table_is_told_and_found_again_from_any_folder(home, tmp_path, monkeypatch):
    rows = "".join(f"{n},{n * n % 7},{n % 5},w{n % 3}\n" for n in range(40))
    Path("mine.csv").write_text(f"a,3,y,word\n{rows}")
    chosen = ["--set", "data.kind=csv", "--set", "data.path=mine.csv", "--set", "data.target=3"]
    chosen += ["--set", "data.features=a,y", "--set", "optimizer.batch_size=8"]
    result = emacore("train", *chosen, "--set", "max_epochs=2")
    assert "left out: word (text, 3 different: w0, w1, w2" in result.stderr
    assert "a counts the rows" in result.stderr
    store = RunStore(home)
    (run_id,) = store.runs()["id"]
    config = store.result(run_id).config
    assert (config.data.path, config.data.target, config.data.features) == ("mine.csv", "3", ("a", "y"))
    assert str(tmp_path) not in emacore("export", run_id, "--as", "json").stdout
    Path("mine.csv").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = table(emacore("replay", str(store.recording(run_id)), "Constant(beta=0.5)", "--final"))
    assert len(again) == 1
    assert "cannot be read" in emacore("train", *chosen, code=1).stderr
    assert "'123' cannot be read" in emacore("train", *chosen, "--set", "data.path=123", code=1).stderr


def test_the_order_of_steps_and_a_restart_are_choices():
    Path("restart.csv").write_text("step,loss\n0,4\n2,2\n1,8\n2,0\n")
    smoothing = ["smooth", "restart.csv", "Constant(beta=0.5)"]
    result = emacore(*smoothing)
    assert table(result)["loss_smoothed"].tolist() == [4, 4, 6, 2]
    assert "step goes back 1 time" in result.stderr
    assert "1 value where step has one already" in result.stderr
    assert "smoothed in the order of the step" in result.stderr
    assert table(emacore(*smoothing, "--order", "file"))["loss_smoothed"].tolist() == [4, 3, 5.5, 2.75]
    kept = table(emacore(*smoothing, "--repeats", "last"))["loss_smoothed"]
    np.testing.assert_array_equal(kept, [4, np.nan, 6, 3])
    told = emacore("smooth", "restart.csv", "--like", "pandas", "--half-life", "1", "--order", "file", code=1).stderr
    assert "got 2 before 1: sort them first" in told


def test_the_app_is_found_in_a_checkout_or_where_it_was_installed(tmp_path, monkeypatch):
    assert command_line._app_file(ROOT) == ROOT / "app.py"
    installed = tmp_path / "share" / "emacore" / "app.py"
    packages = tmp_path / "lib" / "site-packages"
    about = packages / "emacore-0.1.0.dist-info"
    for folder in (installed.parent, about):
        folder.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: emacore\nVersion: 0.1.0\n")
    (about / "RECORD").write_text("emacore/__init__.py,,\n../../share/emacore/app.py,,\n")
    monkeypatch.setattr(sys, "path", [str(packages)])
    assert command_line._app_file(packages) is None
    (packages / "app.py").write_text("of another package")
    installed.write_text("ours")
    assert command_line._app_file(packages) == installed
    monkeypatch.setattr(sys, "path", [])
    assert command_line._app_file(packages) is None


def test_the_app_opens_what_its_command_names(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(
        command_line.os, "execve", lambda program, words, environment: started.append((words, environment))
    )
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "eval_of_mine.py").write_text("raise SystemExit")
    words = ["app", "--open", "run", "--open", str(tmp_path), "--evaluate", "eval_of_mine:loss", "--server.port", "1"]
    assert CliRunner().invoke(command_line.cli, words).exit_code == 0
    ((words, environment),) = started
    assert words[1:4] == ["-m", "streamlit", "run"]
    assert words[-2:] == ["--server.port", "1"]
    assert environment["EMACORE_OPEN"] == os.pathsep.join([str(tmp_path / "run"), str(tmp_path)])
    assert environment["EMACORE_EVALUATE"] == "eval_of_mine:loss"
    assert environment["MALLOC_ARENA_MAX"] == "2"
    assert dict(os.environ) == before, "what is opened is told to the app alone"
    for wrong in (["--open", "gone"], ["--evaluate", "eval_of_mine"], ["--evaluate", "no_such_module_here:loss"]):
        assert CliRunner().invoke(command_line.cli, ["app", *wrong]).exit_code == 2
    assert len(started) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--set", "nope=1"], 2, "there is no setting 'nope'"),
        (["train", "--set", "nope"], 2, "name=value"),
        (["train", "--set", "max_epochs=0"], 2, "max_epochs"),
        (["schedule", "Nope()"], 2, "not a schedule"),
        (["replay", ".", "Window(size=0)"], 2, "size must be a whole number of at least 1"),
        (["schedule", "Window(size=9)"], 2, "a window has no decays"),
        (["sweep", "--grid", "nope=[1]"], 2, "there is no setting"),
        (["smooth", "missing.csv", "Constant()"], 2, "does not exist"),
        (["smooth", "empty.csv", "Constant()"], 1, "The file is empty"),
        (["smooth", "smoothed.csv", "Constant()"], 2, "has a column loss_smoothed already"),
        (["smooth", "smoothed.csv"], 2, "either a schedule"),
        (["smooth", "smoothed.csv", "--like", "wandb"], 2, "--like wandb needs --smoothing"),
        (["smooth", "smoothed.csv", "--like", "pandas"], 2, "--like pandas needs --half-life"),
        (["smooth", ".", "Constant()"], 2, "is a directory"),
        (["smooth", "smoothed.csv", "--like", "moving-average", "--window", "0"], 2, "--window"),
        (["smooth", "smoothed.csv", "--like", "wandb", "--smoothing", "0.5", "--viewport-scale", "0"], 2, "x>0"),
        (["smooth", "smoothed.csv", "Constant()", "--column", "nope"], 2, "there are loss, loss_smoothed"),
        (["smooth", "steps.csv", "Constant()"], 1, "no column looks like a metric: choose by --column among step"),
        (["smooth", "broken.jsonl", "Constant()"], 1, "Line 2 is not valid JSON"),
        (["replay", ".", "Constant()", "Constant( )"], 2, "the same schedule is given twice"),
        (
            ["replicate", "--schedule", "Constant(beta=0.5)", "--schedule", "Constant(beta=0.50)"],
            2,
            "got Constant(beta=0.5) twice",
        ),
        (["replay", ".", "Constant()"], 1, "no recording"),
        (["export", "nope"], 1, "There is no run"),
        (["runs", "show", "nope"], 1, "There is no run"),
        (["replicate", "--seeds", "1e8"], 2, "must be from 1 to 10,000, got 100000000"),
        (["replicate", "--seeds", "2.5"], 2, "'2.5' is not a whole number"),
        (["schedule", "Constant()", "--steps", "1e11"], 2, "must be from 2 to 10,000,000,000"),
        (
            ["schedule", "Constant()", "-o", "missing/decays.csv"],
            2,
            "missing/decays.csv cannot be written: No such file",
        ),
        (["train", "-o", "."], 2, "is a directory"),
        (["train", "--set", "=5"], 2, "not of the form name=value"),
        (["train", "--set", "schedule=5"], 2, "beta must be in [0, 1]"),
        (["train", "--set", "schedule=[1]"], 2, "schedule must be code such as"),
        (["train", "--set", "schedule.family=Nope"], 2, "family must be one of"),
        (
            ["train", "--set", "data.path=123"],
            2,
            "data.path needs data.kind=csv and data.target=COLUMN beside it: make",
        ),
        (["train", "--set", "network.widths=64"], 2, "network.widths must be a list"),
        (["train", "--set", "data=5"], 2, "there is no setting 'data'"),
        (["train", "--set", "max_epochs=1e999"], 2, "max_epochs must be a whole number"),
        (["sweep", "--grid", "max_epochs=[1]", "--scheduler", "127.0.0.1"], 2, "has a host and a port"),
        (["sweep", "--grid", "max_epochs=[1]", "--scheduler", "tcp://a b:1"], 2, "has a host and a port"),
        (["sweep", "--grid", "max_epochs=[1]", "--scheduler", "tcp://127.0.0.1:9"], 1, "cannot be reached"),
        (["sweep", "--grid", "max_epochs=many.json"], 2, "max_epochs"),
        (["train", *SMALL, "-o", "/dev/full"], 1, "/dev/full cannot be written: No space left on device; what"),
        (["runs", "prune", "--older-than", "nan"], 2, "must be a finite number, got nan"),
        (["runs", "prune", "--older-than", "1e30"], 2, "is not in the range 0<=x<=36525"),
        (["smooth", "steps.csv", "--like", "wandb", "--smoothing", "nan"], 2, "must be a finite number, got nan"),
        (["sweep", "--grid", "seed=[1]"], 2, "the seeds are those of every cell"),
    ],
)
def test_exit_codes_and_one_sentence(arguments, code, message, monkeypatch, capsys):
    Path("empty.csv").write_text("")
    Path("steps.csv").write_text("step,epoch\n0,0\n1,0\n")
    Path("broken.jsonl").write_text('{"loss": 1}\n{"loss": \n{"loss": 2}\n')
    Path("smoothed.csv").write_text("loss,loss_smoothed\n1,2\n3,4\n")
    monkeypatch.setattr(sys, "argv", ["emacore", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code == code
    assert message in capsys.readouterr().err


def test_the_help_needs_no_torch():
    code = "import sys, emacore.cli.commands; sys.exit('torch' in sys.modules or 'streamlit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_json_of_a_study_goes_out_and_in(tmp_path):
    run_id = RunStore().create(Study(RunConfig(), (1, 2)))
    assert json.loads(emacore("export", run_id, "--as", "json").stdout)["seeds"] == [1, 2]
    emacore("export", run_id, "--as", "json", "-o", "out.json")
    assert json.loads(Path("out.json").read_text())["seeds"] == [1, 2]


def test_jobs_are_listed_and_named():
    emacore("train", *SMALL)
    emacore("replicate", *SMALL, "--seeds", "2")
    store = RunStore()
    run_id, study_id = store.runs()["id"][0], store.studies()["id"][0]
    listed = table(emacore("runs")).set_index("id")
    assert listed["kind"].to_dict() == {study_id: "study", run_id: "run"}
    assert listed.loc[run_id, "name"].startswith("regression, Adam 0.001 plateau, inverse power 0.999, 3 epochs")
    assert listed.loc[study_id, "name"].startswith("2 seeds: regression")
    for job_id, last in ((run_id, store.history(run_id)), (study_id, store.history(study_id))):
        last = last[last["epoch"] == 3]
        assert listed.loc[job_id, "ema"] == pytest.approx(last["val_loss_ema"].median())
    assert f"{run_id}: mine" in emacore("rename", run_id, "mine").stdout
    assert table(emacore("runs"))["name"].tolist()[1] == "mine"
    assert "named after its settings" in emacore("rename", run_id, "").stdout
    assert "at most 80 letters" in str(emacore("rename", run_id, "x" * 81, code=1).exception)


def test_the_end_of_a_training_says_what_it_was():
    assert "(regression, Adam 0.001 plateau, inverse power 0.999, 3 epochs, number of samples 100): max epochs" in (
        emacore("train", *SMALL).stderr
    )
