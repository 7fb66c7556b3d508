"""Signals, exit codes and pipes, of real processes."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import joblib
import pandas as pd
import pytest

from emacore.cli import terminal
from emacore.cli.terminal import print_out
from emacore.experiments.store import RunStore
from emacore.training import loop
from tests.forked import Forked
from tests.helpers import lives, wait_for

ROOT, FULL = Path(__file__).parents[2], Path("/dev/full")
ENDLESS = ["train", "--set", "max_epochs=100000", "--set", "stopping.curve=none", "--set", "data.n_samples=200"]
ROUGH = ["--set", "optimizer.name=sgd", "--set", "optimizer.learning_rate=1e30", "--set", "max_epochs=3"]
ENDINGS = {
    "done": ({"arguments": ["train", "--set", "max_epochs=2"], "signals": []}, 0, "done"),
    "diverged": ({"arguments": ["train", *ROUGH], "signals": []}, 3, "done"),
    "all seeds diverged": ({"arguments": ["replicate", "--seeds", "2", *ROUGH], "signals": []}, 3, "done"),
    "Ctrl-C": ({"arguments": ENDLESS, "signals": [signal.SIGINT]}, 130, "stopped"),
    "SIGTERM": ({"arguments": ENDLESS, "signals": [signal.SIGTERM]}, 143, "stopped"),
    "SIGHUP": ({"arguments": ENDLESS, "signals": [signal.SIGHUP]}, 129, "stopped"),
    "nohup": (
        {"arguments": ENDLESS, "signals": [signal.SIGHUP, signal.SIGTERM], "ignored": [signal.SIGHUP]},
        143,
        "stopped",
    ),
    "twice": ({"arguments": ENDLESS, "signals": [signal.SIGINT, signal.SIGINT], "deaf": True}, 130, "stopped"),
}


def deaf(train):
    """Training that no request stops."""
    return lambda config, on_epoch, should_stop, **more: train(config, on_epoch, None, **more)


def epochs(home):
    jobs = RunStore(home).jobs()
    return int(jobs["epochs"].max()) if len(jobs) else 0


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """How a case ends that gets its signals once it has some epochs: the exit code, what it printed and said."""

    def end(case):
        if case.get("deaf"):
            monkeypatch.setattr(loop, "train", deaf(loop.train))
        kept = {number: signal.signal(number, signal.SIG_IGN) for number in case.get("ignored", [])}
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            command = [sys.executable, "-m", "emacore", *case["arguments"]]
            process = Forked(command, stdout=out, stderr=err, env=os.environ | {"EMACORE_HOME": str(tmp_path)})
        for number, handler in kept.items():
            signal.signal(number, handler)
        for number in case["signals"]:
            before = epochs(tmp_path)
            wait_for(lambda before=before: epochs(tmp_path) >= before + 2)
            process.send_signal(number)
        return process.wait(60), (tmp_path / "out").read_text(), (tmp_path / "err").read_text()

    return end


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDINGS)
def test_signals_and_exit_codes(ended, name, tmp_path):
    case, expected, state = ENDINGS[name]
    code, out, err = ended(case)
    assert code == expected, err
    store = RunStore(tmp_path)
    (job,) = store.jobs().itertuples()
    assert job.state == state
    kept = store.history(job.id)
    assert len(kept) >= 1
    assert "Traceback" not in err
    assert err.startswith(("2 seeds", job.id)), "the id is said at the start"
    if name != "twice":  # a second Ctrl-C ends at once, but the store has it all
        written = pd.read_csv(io.StringIO(out))
        assert len(written) == len(kept)
    assert kept["epoch"].tolist() == sorted(kept["epoch"])
    assert not list((tmp_path / "workers").glob("*.lock")) or name == "twice"


ENDLESS_CELLS = """
import os, signal, sys
from pathlib import Path
from emacore.cli.commands import cli
from emacore.experiments import sweep

def forever(index, job, should_stop, modules):
    Path("training", str(os.getpid())).touch()
    while True:
        signal.pause()

sweep.train_cell = forever
cli(["sweep", "--grid", "optimizer.learning_rate=[0.001, 0.002, 0.003]", "--seeds", "2"])
"""


def test_a_second_ctrl_c_ends_a_sweep_at_once_though_its_cells_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
    place, said = tmp_path / "training", tmp_path / "err"
    place.mkdir()
    with said.open("w") as err:
        run = Forked(
            [sys.executable, "-c", ENDLESS_CELLS],
            stdout=subprocess.DEVNULL,
            stderr=err,
            cwd=tmp_path,
            env=os.environ | {"EMACORE_HOME": str(tmp_path / "home")},
        )
    wait_for(lambda: len(list(place.iterdir())) == 2)
    training = [int(path.name) for path in place.iterdir()]
    try:
        run.send_signal(signal.SIGINT)  # to it alone, as kill sends it
        wait_for(lambda: "Ctrl-C once more ends at once" in said.read_text())
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 130
        assert RunStore(tmp_path / "home").jobs()["state"].tolist() == ["stopped"]
        wait_for(lambda: not any(map(lives, training)), 20)
    finally:
        for number in (run.pid, *training):
            if lives(number):
                os.kill(number, signal.SIGKILL)
        run.wait()


@pytest.mark.skipif(not FULL.exists(), reason="nothing here is always full")
def test_a_full_disk_behind_standard_output_is_told(monkeypatch):
    with FULL.open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(click.ClickException, match="standard output cannot be written: No space left"):
            print_out("a table\n")


@pytest.mark.slow
def test_closed_pipes_end_the_printing_and_not_the_run(tmp_path):
    command = [sys.executable, "-m", "emacore", "train", "--verbose", "--set", "max_epochs=60"]
    with subprocess.Popen(["head", "-1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as head:
        run = Forked(
            [*command, "--set", "data.n_samples=200"],
            stdout=head.stdin,
            stderr=subprocess.STDOUT,
            env=os.environ | {"EMACORE_HOME": str(tmp_path)},
        )
        head.stdin.close()
        assert len(head.stdout.read().splitlines()) == 1
    assert run.wait(60) == 0
    (run,) = RunStore(tmp_path).runs().itertuples()
    assert (run.state, run.epochs) == ("done", 60)


def test_a_bar_where_there_is_a_terminal_and_nothing_elsewhere(monkeypatch, capsys):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    for stream, expected in ((screen, True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with terminal.ProgressBar("epoch", 3) as progress:
            for _ in range(3):
                progress.step("loss 0.5")
        assert bool(stream.getvalue()) == expected
    assert "3/3" in screen.getvalue()
    assert screen.getvalue().rstrip(" \x1b[?25h").endswith("\n"), "what is printed next begins a line of its own"
    assert "an epoch; loss 0.5" in screen.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with terminal.ProgressBar("cell", 1, each=True) as progress:
        progress.step("cell 1 of 1")
    assert sys.stderr.getvalue() == "cell 1 of 1\n"


def test_without_a_signal_nothing_stays_changed():
    before = [signal.getsignal(number) for number in terminal.ENDING_SIGNALS]
    with terminal.Interruption() as by_hand:
        assert not by_hand.stop.is_set()
    assert [signal.getsignal(number) for number in terminal.ENDING_SIGNALS] == before
    assert [by_hand.exit_code(how) for how in ("max epochs", "diverged", "stopped")] == [0, 3, 0]


NAMES = "日本語,значение\n1,2\n3,1\n"


def test_names_in_any_language_in_any_locale(tmp_path):
    (tmp_path / "names.csv").write_text(NAMES, encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    environment["PYTHONCOERCECLOCALE"] = "0"
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "emacore",
            "smooth",
            tmp_path / "names.csv",
            "Constant(beta=0.5)",
            "--column",
            "значение",
        ],
        capture_output=True,
        cwd=ROOT,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().splitlines()[0] == "日本語,значение,значение_smoothed"
