"""What was opened: its names, what is in it, and that no path of the server is told."""

import json
import os
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from emacore import Constant, Snapshots
from emacore.averaging.code import from_code, merge_from_code
from emacore.averaging.coefficients import Averaged, Span, merged_profile
from emacore.averaging.planned import planned
from emacore.charts.thin import kept_rows
from emacore.checkpoints import open_checkpoints
from emacore.checkpoints.planning import plan_merge
from emacore.experiments import opened as module
from emacore.experiments.opened import (
    Contents,
    OpenedError,
    certificate_table,
    checked_evaluator,
    checked_paths,
    contents_of,
    decay_table,
    example,
    growth,
    growth_calls,
    growth_table,
    identity_of,
    merge_command,
    opened,
    weight_table,
    without_paths,
)
from tests.experiments.opened_folders import small_run
from tests.forked import forking

MERGES = (
    "InversePower(beta=0.99)",
    "PowerFunction(sigma_rel=0.1)",
    "Window(size=25)",
    "Window(files=3)",
    "RateDecay(shape='cosine')",
    "Coefficients(-0.5, 1.5)",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("secret") / "runs" / "tiny"
    small_run(path)
    return path


@pytest.fixture(scope="module")
def contents(folder):
    return Contents.from_json(json.dumps({**module._read(folder), "identity": identity_of(folder)}))


def test_names_are_the_ends_of_paths_and_as_much_as_tells_two_apart(monkeypatch, tmp_path):
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other"]
    monkeypatch.setenv("EMACORE_OPEN", checked_paths([*paths, paths[0]]))
    assert opened() == {"a/run": paths[0], "b/run": paths[1], "other": paths[2]}
    monkeypatch.delenv("EMACORE_OPEN")
    assert opened() == {}


def test_a_path_that_would_be_read_as_two_is_refused(tmp_path):
    with pytest.raises(ValueError, match="in its name"):
        checked_paths([tmp_path / f"a{os.pathsep}b"])


def test_contents_are_read_in_another_process_and_hold_no_path(folder, monkeypatch):
    forking(monkeypatch, module)
    found = contents_of("tiny", folder)
    assert found.first == "model"
    assert found.series["model"].steps == (10, 20, 30, 40, 50, 60)
    assert {one.kind for one in found.series.values()} == {"raw", "average"}
    assert "secret" not in str(found)


def test_what_cannot_be_read_is_told_by_its_name(folder, monkeypatch, capsys):
    def here(name, path):
        module._main(path)
        return capsys.readouterr().out

    monkeypatch.setattr(module, "asked_elsewhere", here)
    (folder.parent / "empty").mkdir(exist_ok=True)
    for name in ("empty", "gone"):
        with pytest.raises(OpenedError, match=f"{name}") as error:
            contents_of(name, folder.parent / name)
        assert "secret" not in str(error.value)


@pytest.mark.parametrize("text", ["{path} is damaged", "in {path}/step_1.pt and /usr/lib/python3/x.py: no", "{path}"])
def test_a_message_keeps_its_words_and_loses_its_paths(tmp_path, text):
    told = without_paths(text.format(path=tmp_path / "x"), tmp_path / "x", "x")
    assert str(tmp_path) not in told
    assert "/usr/lib" not in told
    assert told.startswith(text.partition("{path}")[0] + "x")


@pytest.mark.parametrize("code", MERGES)
@pytest.mark.parametrize("fit", [None, "free"])
def test_a_page_plans_what_the_command_merges(contents, folder, code, fit):
    series = contents.series["model"]
    mine = planned(merge_from_code(code), series.profiles, series.calls, fit)
    (theirs,) = plan_merge(open_checkpoints(folder), {"x": merge_from_code(code)}, fit=fit).results
    np.testing.assert_allclose(mine.coefficients, theirs.coefficients)
    np.testing.assert_allclose(mine.certificate, theirs.told)
    assert weight_table(series, {"x": mine})["coefficient"].tolist() == mine.coefficients.tolist()
    assert certificate_table({"x": mine})["files"] == (mine.coefficients != 0).sum()


@pytest.mark.parametrize("kind", ["windows", "power"])
def test_snapshots_are_planned_as_the_command_merges_them(tmp_path, kind):
    model = torch.nn.Linear(2, 1)
    snapshots = Snapshots(model, tmp_path / "snapshots", every=10, kind=kind)
    for _ in range(60):
        snapshots.update()
    answer = {**module._read(tmp_path / "snapshots"), "identity": ""}
    contents = Contents.from_json(json.dumps(answer))
    series = contents.series[contents.first]
    assert len(series.steps) == (6 if kind == "windows" else 12)
    for code in ("PowerFunction(sigma_rel=0.15)", "Window(size=30)"):
        mine = planned(merge_from_code(code), series.profiles, series.calls)
        (theirs,) = plan_merge(open_checkpoints(tmp_path / "snapshots"), {"x": merge_from_code(code)}).results
        np.testing.assert_allclose(mine.coefficients, theirs.coefficients, atol=1e-9)
        np.testing.assert_allclose(mine.certificate, theirs.told, atol=1e-9)


@pytest.mark.parametrize("kind", ["raw", "window"])
@pytest.mark.parametrize("code", ["Window(size=30)", "Constant(beta=0.9)"])
def test_weights_add_up_as_the_merge_does_at_every_step(kind, code):
    series = example(60, 6, kind)
    found = planned(merge_from_code(code), series.profiles, series.calls)
    table = growth_table(series, growth(series, found))
    wanted = table["curve"] == "all steps"
    np.testing.assert_allclose(table["weight"][wanted], np.cumsum(found.target)[table["step"][wanted] - 1])
    sums = np.cumsum(merged_profile(60, series.profiles, found.coefficients))
    np.testing.assert_allclose(table["weight"][~wanted], sums[table["step"][~wanted] - 1])
    assert table["weight"][-1] == pytest.approx(1)


def test_an_example_of_windows_covers_every_step_once():
    spans = example(1000, 7, "window").profiles
    assert spans[0].begin == 0
    assert spans[-1].end == 999
    assert all(after.begin == before.end + 1 for before, after in pairwise(spans))
    assert all(isinstance(one, Span) and one.begin == one.end for one in example(1000, 7, "raw").profiles)


@pytest.mark.parametrize("kind", ["raw", "window", "average"])
@pytest.mark.parametrize(("steps", "files"), [(2_000, 20), (200_000, 40), (1_000_000, 5)])
@pytest.mark.parametrize(
    "code",
    [
        "Constant(beta=0.9)",
        "Constant(beta=0.999, update_after_step=1000)",
        "Constant(beta=0.9, update_every=5000)",
        "InversePower()",
        "PowerFunction(sigma_rel=0.1)",
    ],
)
def test_few_points_show_how_the_weights_add_up_however_long_the_run(kind, steps, files, code):
    series = example(steps, files, kind)
    if kind == "average":
        decays = Constant(0.99).decays(steps)
        series = replace(series, profiles=tuple(Averaged(one.end, decays) for one in series.profiles))
    schedule = from_code(code)
    whole = growth(series, planned(schedule, series.profiles, steps, bests=False))
    at = growth_calls(series, schedule)
    table, every = growth_table(series, whole, at), growth_table(series, whole)
    assert every["step"].tolist() == 2 * list(range(1, steps + 1))
    assert every["weight"].tolist() == [*whole["all steps"], *whole["these files"]]
    assert len(at) <= 50_000
    for name, weights in whole.items():
        own = table["curve"] == name
        kept = kept_rows(table["step"][own], table["weight"][own])
        drawn = np.interp(np.arange(1, steps + 1), table["step"][own][kept], table["weight"][own][kept])
        np.testing.assert_allclose(drawn, weights, atol=0.005 * np.ptp(weights))


def test_decays_of_a_diagnosis_have_both_ends_of_each_stretch():
    decays = {
        "from_step": np.array([0, 10]),
        "to_step": np.array([10, 20]),
        "low": np.array([0.8, 0.7]),
        "decay": np.array([0.9, 0.9]),
        "high": np.array([0.95, 0.99]),
        "configured": np.array([np.nan, np.nan]),
    }
    table = decay_table(decays)
    assert set(table["curve"]) == {"found", "at least", "at most"}
    least = table["curve"] == "at least"
    np.testing.assert_allclose(table["forgets"][least], [0.05, 0.05, 0.01, 0.01])
    assert table["step"][least].tolist() == [0, 10, 10, 20]
    assert "configured" in decay_table({**decays, "configured": np.array([0.9, 0.9])})["curve"]


def test_the_command_is_read_back_by_a_shell():
    import shlex

    codes = ["RateDecay(shape='1-sqrt')", "Window(size=10)"]
    words = shlex.split(merge_command("a/my run", codes, "ema model", "free").replace("\\\n", " "))
    assert words[:5] == ["python", "-m", "emacore", "merge", "my run"]
    assert words[5:9] == ["--scheme", codes[0], "--scheme", codes[1]]
    assert words[9:] == ["--section", "ema model", "--fit", "free", "-o", "my run-merged"]


def test_what_evaluates_is_looked_for_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_eval.py").write_text("raise SystemExit")
    assert checked_evaluator("my_own_eval:loss") == "my_own_eval:loss"
    for wrong in ("my_own_eval", "my_own_eval:", "no_such_module_here:loss", "my_own_eval:1+1"):
        with pytest.raises(ValueError, match=r"module"):
            checked_evaluator(wrong)


def test_the_small_model_of_the_docs_measures_and_leaves_what_the_page_reads(tmp_path, monkeypatch):
    text = (Path(module.__file__).parents[2] / "docs" / "your_checkpoints.md").read_text()
    script = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1].replace("range(1, 2001)", "range(1, 201)")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    exec(compile(script, "small.py", "exec"), names)
    stored, windows = (
        Contents.from_json(json.dumps({**module._read(tmp_path / name), "identity": ""}))
        for name in ("stored", "snapshots")
    )
    assert {one.kind for one in stored.series.values()} == {"raw", "average"}
    assert windows.series[windows.first].kind == "window"
    assert windows.series[windows.first].steps == (100, 200)
    assert names["loss"](torch.load("stored/step_200.pt")["ema"]) > 0


def test_what_follows_the_pointer_is_what_each_schedule_alone_would_show(contents):
    series = contents.series["model"]
    codes = ["InversePower(beta=0.99)", "PowerFunction(sigma_rel=0.1)", "RateDecay(shape='cosine', steps=10**6)"]
    at = np.array([0, 7, 30])
    found = module.moved(series, codes, None, at)
    for place, code in enumerate(codes[:2]):
        alone = planned(merge_from_code(code), series.profiles, series.calls, bests=False)
        curves = growth(series, alone)
        np.testing.assert_array_equal(found.coefficients[:, place], alone.coefficients)
        np.testing.assert_array_equal(found.all_steps[:, place], curves["all steps"][at])
        np.testing.assert_array_equal(found.these_files[:, place], curves["these files"][at])
        assert (found.error[place], found.reached[place]) == (alone.certificate.error, alone.certificate.reached)
    assert all(np.isnan(values[..., 2]).all() for values in found)
