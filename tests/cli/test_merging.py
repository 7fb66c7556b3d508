import csv
import os
import re
import signal
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from emacore.cli.commands import cli
from tests.forked import Forked
from tests.helpers import wait_for


@pytest.fixture
def run():
    def run(*arguments, **options):
        return CliRunner().invoke(cli, [str(one) for one in arguments], **options)

    return run


@pytest.fixture
def folder(tmp_path):
    for step in (100, 200, 300, 350):
        state = {"w": torch.full((4,), float(step)), "running_mean": torch.ones(2)}
        torch.save({"model": state, "model_ema": state, "global_step": step}, tmp_path / f"c{step}.pt")
    return tmp_path


def test_what_is_in_a_folder(run, folder):
    (folder / "c400.pt").write_bytes(b"PK\x03\x04")
    found = run("checkpoints", folder)
    assert found.exit_code == 0, found.output
    table = list(csv.DictReader(found.stdout.splitlines()))
    assert [(row["step"], row["section"], row["kind"]) for row in table[:2]] == [
        ("100", "model", "raw"),
        ("100", "model_ema", "average"),
    ]
    for words in (
        "4 checkpoints, step 100 to 350, told by global_step",
        "the steps are uneven: from 50 to 100 apart",
        "model: raw weights, in 4 checkpoints, 2 tensors, 24 bytes each",
        "model_ema: an average, in",
        "cannot be read: c400.pt is truncated",
    ):
        assert words in found.stderr
    assert run("checkpoints", folder, "-o", folder / "table.csv").stdout == ""
    assert (folder / "table.csv").read_text() == found.stdout
    told = run("checkpoints", folder, "-o", folder / "nowhere" / "table.csv")
    assert (told.exit_code, "table.csv cannot be written: No such file" in told.output) == (2, True)


def test_a_dry_run_prints_coefficients_and_writes_nothing(run, folder):
    before = sorted(folder.iterdir())
    found = run(
        "merge", folder, "--scheme", "Window(size=100)", "--scheme", "RateDecay('1-sqrt')", "--last", 3, "--dry-run"
    )
    assert found.exit_code == 0, found.output
    table = list(csv.DictReader(found.stdout.splitlines()))
    assert [row["step"] for row in table] == ["200", "300", "350"]
    for name in ("Window(size=100)", "RateDecay(shape=1-sqrt)"):
        assert sum(float(row[name]) for row in table) == pytest.approx(1)
    assert "3 files of 3, steps 200 to 350: 72 bytes to read, 48 bytes to write" in found.stderr
    assert "averages noise as" in found.stderr
    assert "call torch.optim.swa_utils.update_bn" in found.stderr
    assert sorted(folder.iterdir()) == before


def test_two_schemes_are_merged_at_once(run, folder):
    schemes = ["--scheme", "Window(files=2)", "--scheme", "Coefficients(-1, 2)"]
    found = run("merge", folder, *schemes, "-o", folder / "out")
    assert found.exit_code == 0, found.output
    [window, beyond] = found.stdout.splitlines()
    assert load_file(window)["w"].tolist() == [325.0] * 4
    assert load_file(beyond)["w"].tolist() == [400.0] * 4
    again = run("merge", folder, *schemes, "-o", folder / "out")
    assert again.exit_code != 0
    assert run("merge", folder, "--scheme", "Window(files=2)", "--as", "pt", "-o", folder / "a.pt").exit_code == 0
    assert torch.load(folder / "a.pt")["w"].tolist() == [325.0] * 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scheme", "Window(files=2)"], "say where the results go"),
        (["--dry-run"], "say what to merge by: --scheme, or --soup"),
        (["--soup", "greedy", "--dry-run"], "a greedy soup needs --evaluate"),
        (["--scheme", "Widow(3)", "--dry-run"], "not a schedule, window, RateDecay or Coefficients"),
        (["--scheme", "Window(5)", "--scheme", "Window(size=5)", "--dry-run"], "given twice"),
        (
            ["--scheme", "Window(5)", "--section", "ema", "--dry-run"],
            "no section 'ema'; there are 'model', 'model_ema'",
        ),
        (["--scheme", "RateDecay(steps=1000)", "--dry-run"], "would begin before the first file"),
        (["--scheme", "Window(5)", "--update-every", 7, "--dry-run"], "of stored averages whose widths sigma_rel"),
        (["--scheme", "Window(5)", "--lower-is-better", "--dry-run"], "said of --evaluate, and there is none"),
        (["--scheme", "Window(5)", "--as", "pt", "-o", "a.safetensors"], "is named like a file, but .* written as .pt"),
        (
            ["--scheme", "Window(5)", "--scheme", "Window(6)", "-o", "a.pt"],
            "named like a file, but there are 2 results",
        ),
    ],
)
def test_what_cannot_be_merged_is_told(run, folder, arguments, words):
    found = run("merge", folder, *arguments)
    assert found.exit_code != 0
    assert re.search(words, found.output)


def test_where_nothing_can_be_written_is_told_before_anything_is_evaluated(run, folder, monkeypatch):
    monkeypatch.setattr("emacore.checkpoints.soups.greedy_soup", None)
    monkeypatch.setattr("emacore.checkpoints.soups.evaluation", nullcontext)
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to("nowhere/there")
    for out, words in [
        ("c200.pt/a", "c200.pt is a file, and the results need a folder"),
        ("link", "link is a link to nothing, and"),
        ("/proc/here", r"nothing can be written into /proc \(.*\): choose another place"),
    ]:
        with pytest.raises(OSError, match=words):
            run("merge", folder, "--section", "model", "--scheme", "Window(5)", "-o", out, catch_exceptions=False)
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda place, mode: mode == os.R_OK)
        with pytest.raises(PermissionError, match=r"nothing can be written into .*: choose another place"):
            run("merge", folder, "--section", "model", "--scheme", "Window(5)", "-o", "out", catch_exceptions=False)
    (folder / "out").mkdir()
    (folder / "out/greedy-soup.safetensors").touch()
    soup = ("--soup", "greedy", "--evaluate", "judge:near", "--section", "model")
    with pytest.raises(FileExistsError, match="greedy-soup.safetensors is there already"):
        run("merge", "c200.pt", "c300.pt", *soup, "-o", "out", catch_exceptions=False)


def test_a_scheme_that_is_too_long_for_a_name_has_a_short_one(run, folder):
    many = [f"Coefficients({'0.1000000001, ' * 20}{last})" for last in (1, 2)]
    for step in range(30):
        torch.save({"w": torch.ones(2)}, folder / f"one_{step}.pt")
    ones = [folder / f"one_{step}.pt" for step in range(30)]
    found = run("merge", *ones, "--scheme", many[0], "--scheme", many[1], "-o", folder / "out")
    assert found.exit_code == 0, found.output
    names = {place.rpartition("/")[2] for place in found.stdout.splitlines()}
    assert len(names) == 2
    assert all(name.startswith("Coefficients(0.1") and len(name) < 140 for name in names)


@pytest.mark.slow
def test_soups_are_told_with_what_they_were_chosen_on(run, folder, monkeypatch):
    (folder / "judge.py").write_text("def near(tensors):\n    return abs(float(tensors['w'][0]) - 240)\n")
    monkeypatch.chdir(folder)
    found = run(
        "merge", folder, "--soup", "greedy", "--soup", "uniform", "--evaluate", "judge:near", "--lower-is-better",
        "--section", "model", "-o", folder / "out",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    [uniform, greedy] = found.stdout.splitlines()
    assert load_file(uniform)["w"].tolist() == [237.5] * 4
    assert load_file(greedy)["w"].tolist() == [250.0] * 4  # 200 alone, then 300 with it; neither of the others helps
    for words in ("step 200: 40", "steps 200, 300: 10, kept", "steps 200, 300, 350: 43.33, not kept"):
        assert words in found.stderr
    assert "the greedy soup was chosen on judge:near, whose number flatters it" in found.stderr
    assert "greedy-soup: judge:near is 10" in found.stderr
    which = "judge:near does not say which is better by its metrics: higher is taken for it"
    assert which not in found.stderr
    unsaid = run(
        "merge", folder, "--soup", "greedy", "--evaluate", "judge:near", "--section", "model", "-o", folder / "b"
    )
    assert which in unsaid.stderr
    assert run("merge", folder, "--soup", "greedy", "--dry-run").exit_code == 2


def test_an_interrupted_merge_leaves_nothing_behind(folder, monkeypatch):
    for step in (1, 2):
        torch.save({"w": torch.ones(3)}, folder / f"step_{step}.pt")
    (folder / "results").mkdir()
    # The process, which is forked from this one, writes all and stops before it gives the results their places.
    stop = lambda *given: (folder / "written").touch() or signal.pause()  # noqa: E731
    monkeypatch.setattr("emacore.checkpoints.merging._moves", stop)
    command = [sys.executable, "-m", "emacore", "merge", folder / "step_1.pt", folder / "step_2.pt"]
    process = Forked(
        [*command, "--scheme", "Coefficients(1)", "-o", folder / "results" / "out"], stderr=subprocess.PIPE
    )
    wait_for(lambda: (folder / "written").exists() or process.poll() is not None)
    assert list((folder / "results").iterdir())
    process.send_signal(signal.SIGINT)
    assert process.wait(100) != 0
    assert not list((folder / "results").iterdir())
