"""What the store keeps when things go wrong: a table of faults, and what was lost, damaged or left behind in each.

    python -m benchmarks.faults                 # all, with 50 kills: a few minutes
    python -m benchmarks.faults --kills 3       # the short form

No epoch that the store has once shown may be lost, the database must be whole, no process may be left, and the queue
must go on.  The full disk and the one mounted read-only are small tmpfs in a user namespace; where these are not
allowed, their rows say so.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from emacore.experiments.store import RunStore

ROOT = Path(__file__).parents[1]
#: A server without pages: it holds the queue, as the app does.
SERVER = """
import sys
from emacore import RunConfig
from emacore.experiments.jobs import JobQueue
from emacore.experiments.store import RunStore
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import StoppingConfig
queue = JobQueue(RunStore(sys.argv[1]), limit=1)
if sys.argv[2:] == ["endless"]:
    queue.submit(RunConfig(data=DataConfig(n_samples=400), max_epochs=100_000, stopping=StoppingConfig("none")))
while True:
    queue.tend()
    print(*(process.pid for process in queue._workers.values()), flush=True)
    sys.stdin.readline()
"""
#: A namespace of its own, in which this process is root and has a small disk; it leaves the rest of the machine alone.
SMALL_DISK = """
import ctypes, os, subprocess, sys
from pathlib import Path

def mount(*arguments):
    if subprocess.run(["mount", *arguments]).returncode:
        sys.exit(77)

mounted, size = sys.argv[1:3]
ids = {"setgroups": "deny", "uid_map": f"0 {os.getuid()} 1", "gid_map": f"0 {os.getgid()} 1"}
if ctypes.CDLL(None).unshare(0x10000000 | 0x20000):  # CLONE_NEWUSER, CLONE_NEWNS
    sys.exit(77)
for name, text in ids.items():
    Path("/proc/self", name).write_text(text)
mount("--make-rprivate", "/")
Path(mounted).mkdir(exist_ok=True)
mount("-t", "tmpfs", "-o", f"size={size}", "small", mounted)
"""
#: Fills it with one recorded run, and says what is left of that.
FILL = """
import json, runpy, traceback
out = Path(sys.argv[3])
os.environ["EMACORE_HOME"] = str(Path(mounted, "store"))
os.dup2(os.open(out / "err", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)

def emacore(*arguments):
    sys.argv = ["emacore", *map(str, arguments)]
    try:
        runpy.run_module("emacore", run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

few = ["--set", "max_epochs=12", "--set", "stopping.curve=none", "--set", "network.widths=[256, 64]"]
code = emacore("train", *few, "-o", out / "history.csv")
(out / "code").write_text(f"exit {code}\\n")
sys.stderr.flush()
emacore("runs", "-o", out / "runs.csv")
emacore("export", (out / "err").read_text().partition(":")[0], "-o", out / "kept.csv")
recorded = Path(mounted, "store", "recordings").rglob("*")
(out / "recorded").write_text(str(sum(file.stat().st_blocks for file in recorded if file.is_file()) // 2))
"""
#: Copies a store onto it, where then nobody can write, not even root.
WRITE_PROTECT = """
import shutil
shutil.copytree(sys.argv[3], mounted, dirs_exist_ok=True)
mount("-o", "remount,ro", mounted)
if os.access(mounted, os.W_OK):
    sys.exit(77)
"""
#: The exit code where a namespace may not mount.
NOT_ALLOWED = 77
#: The pages that show jobs of the store; a run is among those of the first ones.
WITH_JOBS = ("train", "what_if", "runs", "evidence", "where_it_helps")
WITH_RUNS = WITH_JOBS[:3]
#: Tries commands and opens pages, and prints as JSON what each said.
LOOK_AND_TRY = """
import json, sys
from click.testing import CliRunner
from streamlit.testing.v1 import AppTest
from emacore.cli.commands import cli
app, run, *pages_with_jobs = sys.argv[4:]
train = "train --set max_epochs=1 --set stopping.curve=none"
tried = ["runs", f"export {run}", f"runs rename {run} x", f"runs delete {run} --yes", "runs prune --yes", train]
commands = {one: CliRunner().invoke(cli, one.split()) for one in tried}
pages = {}
seen = AppTest.from_file(app, default_timeout=120).run()
for page in pages_with_jobs:
    seen.switch_page(f"pages/{page}.py").run()
    pages[page] = {
        "failed": [one.value for one in seen.exception] + [one.value for one in seen.error],
        "told": any("cannot be written" in one.value for one in seen.warning),
        "shown": any("inverse power" in str(one.value) + str(getattr(one, "options", ""))
                     for one in (*seen.dataframe, *seen.selectbox, *seen.main.get("table"))),
    }
commands = {one: (found.exit_code, found.output, str(found.exception)) for one, found in commands.items()}
print(json.dumps({"pages": pages, "commands": commands}))
"""

Row = dict[str, object]


class Served:
    """A server in a process of its own, and its workers."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.workers: list[int] = []
        self.tend()

    def tend(self) -> None:
        """Wait until it has looked after its workers once more, and note their processes."""
        assert self.process.stdout is not None
        self.workers = [int(number) for number in self.process.stdout.readline().split()]

    def again(self) -> None:
        """Have it look after its workers once more."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.tend()

    def end(self) -> None:
        """End it, in whatever state it is."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def served(folder: Path, *arguments: str) -> Iterator[Served]:
    """A server for the block; it is killed after it."""
    server = Served(folder, *arguments)
    try:
        yield server
    finally:
        server.end()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> bool:
    """Whether a condition came true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def lives(number: int) -> bool:
    """Whether there is a process with this number that is no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_whole(folder: Path) -> bool:
    """Whether the store's database is intact, as SQLite checks it."""
    with sqlite3.connect(folder / "runs.sqlite") as connection:
        return connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def kills(folder: Path, count: int, draws: random.Random) -> Iterator[Row]:
    """SIGKILL of worker, server or both, at random moments of an endless run, again and again on one store."""
    from emacore.experiments.store import RunStore

    store = RunStore(folder)
    found = {
        who: {"times": 0, "epochs lost": 0, "left behind": 0, "not whole": 0} for who in ("worker", "server", "both")
    }
    for kill in range(count):
        who = list(found)[kill % 3]
        with served(folder, "endless") as server:
            newest = store.runs()["id"][0]
            wait_for(lambda run=newest: len(store.history(run)) >= 1)
            time.sleep(draws.random())
            told = len(store.history(newest))
            for number in {"worker": server.workers, "server": [], "both": server.workers}[who]:
                os.kill(number, signal.SIGKILL)
            if who != "worker":
                server.process.kill()
                server.process.wait()
            else:
                wait_for(lambda process=server: not any(map(lives, process.workers)), 30)
            workers = list(server.workers)
        left = not wait_for(lambda numbers=workers: not any(map(lives, numbers)), 60)
        # A killed process holds its lock until its last thread is gone, which may be a moment later.
        given_up = wait_for(lambda run=newest: _is_given_up(store, run), 60)
        row = found[who]
        row["times"] += 1
        row["epochs lost"] += max(0, told - len(store.history(newest)))
        row["left behind"] += left
        row["not whole"] += not is_whole(folder)
        row["left behind"] += not given_up
        store.fail_next("the next fault")
    for who, row in found.items():
        yield {"fault": f"SIGKILL of {who}", **row}


def _is_given_up(store: RunStore, run_id: str) -> bool:
    """Whether the run of a worker that is gone no longer counts as running."""
    store.interrupt_abandoned()
    return store.result(run_id).state != "running"


def two_servers(folder: Path) -> Row:
    """Two servers on one store: each epoch of a run is trained once, and no more runs train than one server allows."""
    from emacore.experiments.store import RunStore

    store = RunStore(folder)
    with served(folder, "endless") as one, served(folder) as two:
        newest = store.runs()["id"][0]
        wait_for(lambda: len(store.history(newest)) >= 3)
        for _ in range(3):
            one.again()
            two.again()
        epochs = store.history(newest)["epoch"].tolist()
        running = store.counts().get("running", 0)
    lost = epochs != list(range(1, len(epochs) + 1)) or running != 1
    return {"fault": "two servers", "times": 1, "epochs lost": int(lost), "not whole": int(not is_whole(folder))}


def stopped_for_long(folder: Path) -> Row:
    """A laptop that sleeps: the worker is stopped while the clock jumps an hour, and then trains on where it was."""
    from emacore.experiments import store as module
    from emacore.experiments.store import RunStore

    store, lost, real = RunStore(folder), 0, time.time
    with served(folder, "endless") as server:
        newest = store.runs()["id"][0]
        wait_for(lambda: len(store.history(newest)) >= 1)
        for number in server.workers:
            os.kill(number, signal.SIGSTOP)
        try:
            for jump in (3600, -3600):
                module.time.time = lambda jump=jump: real() + jump
                store.interrupt_abandoned()
                lost += store.result(newest).state != "running"
        finally:
            module.time.time = real
            for number in server.workers:
                os.kill(number, signal.SIGCONT)
        told = len(store.history(newest))
        lost += not wait_for(lambda: len(store.history(newest)) > told)
    return {
        "fault": "sleep, clock +1 h and -1 h",
        "times": 2,
        "epochs lost": lost,
        "not whole": int(not is_whole(folder)),
    }


def deleted(folder: Path) -> Row:
    """The store is deleted under a server: its worker gives up, and a fresh store works without a restart."""
    from emacore import RunConfig
    from emacore.experiments.store import RunStore

    store = RunStore(folder)
    with served(folder, "endless") as server:
        newest = store.runs()["id"][0]
        wait_for(lambda: len(store.history(newest)) >= 1)
        shutil.rmtree(folder, ignore_errors=True)
        fresh = store.create(RunConfig(max_epochs=1))
        server.again()
        went_on = wait_for(lambda: store.result(fresh).state == "done")
    return {
        "fault": "store deleted",
        "times": 1,
        "epochs lost": int(not went_on),
        "not whole": int(not is_whole(folder)),
    }


def replaced(folder: Path) -> Row:
    """Another store is put in its place under a server: its worker gives up, and takes what waits in that one."""
    from emacore import RunConfig
    from emacore.experiments.store import RunStore

    other = RunStore(folder.with_name("other"))
    waits = other.create(RunConfig(max_epochs=1))
    store = RunStore(folder)
    with served(folder, "endless") as server:
        newest = store.runs()["id"][0]
        wait_for(lambda: len(store.history(newest)) >= 1)
        folder.rename(folder.with_name("away"))
        other.folder.rename(folder)
        server.again()
        went_on = wait_for(lambda: store.result(waits).state == "done")
    return {
        "fault": "store replaced",
        "times": 1,
        "epochs lost": int(not went_on),
        "not whole": int(not is_whole(folder)),
    }


def read_only(folder: Path) -> Row:
    """A store on a disk that is mounted read-only: pages and terminal show what is there, and say what cannot be done.

    The store is made in ``folder``, with one finished run, and copied onto that disk, where root cannot write either.
    """
    from emacore import RunConfig
    from emacore.experiments.jobs import carry_out
    from emacore.experiments.store import RunStore
    from emacore.training.config import StoppingConfig

    store, job = RunStore(folder), RunConfig(max_epochs=2, stopping=StoppingConfig("none"))
    run = store.enter(job, "here")
    carry_out(store, run, "here", job, threading.Event())
    mount = folder.with_name(f"{folder.name}-read-only")
    arguments = [mount, "64m", folder, ROOT / "app.py", run, *WITH_JOBS]
    result = subprocess.run(
        [sys.executable, "-c", SMALL_DISK + WRITE_PROTECT + LOOK_AND_TRY, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"EMACORE_HOME": str(mount), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    fault = "store mounted read-only"
    if result.returncode == NOT_ALLOWED:
        return {"fault": fault, "times": 0, "note": f"skipped: no user namespace here ({result.stderr.strip()[-80:]})"}
    if result.returncode:
        raise RuntimeError(result.stderr[-2000:])
    found = json.loads(result.stdout.splitlines()[-1])
    pages, commands = found["pages"], found["commands"]
    reading = ("runs", f"export {run}")
    shown = [pages[page]["shown"] for page in WITH_RUNS] + [commands[name][0] == 0 for name in reading]
    wrong = [name for name, (_, _, said) in commands.items() if name not in reading and "cannot be" not in said]
    wrong += [page for page, one in pages.items() if one["failed"] or not one["told"]]
    return {
        "fault": fault,
        "times": 1,
        "epochs lost": shown.count(False),
        "note": f"not told by {', '.join(wrong)}" if wrong else "all is shown, and that nothing can be kept is told",
    }


def full_disk(folder: Path, size: str) -> Row:
    """A run whose recording does not fit on the disk: it must end well, with its whole history in store and file."""
    out = folder / f"small-{size}"
    out.mkdir(parents=True)
    command = [sys.executable, "-c", SMALL_DISK + FILL, str(out / "mount"), size, str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    fault = f"disk of {size}"
    if not (out / "code").exists():
        return {"fault": fault, "times": 0, "note": f"skipped: no user namespace here ({result.stderr.strip()[-80:]})"}
    rows = {
        name: len((out / name).read_text().splitlines()) - 1 if (out / name).exists() else 0
        for name in ("history.csv", "kept.csv")
    }
    said = (out / "err").read_text()
    return {
        "fault": fault,
        "times": 1,
        "epochs lost": 12 - min(rows.values()),
        "not whole": int((out / "code").read_text() != "exit 0\n"),
        "note": next((line for line in said.splitlines() if line.startswith("weights:")), "no word of the recording")
        + f" ({int((out / 'recorded').read_text() or 0):,} kB)",
    }


def table(count: int, seed: int = 0) -> list[Row]:
    """All faults, each as a row: how often, epochs lost, processes or runs left behind, databases not whole."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = list(kills(folder / "kills", count, random.Random(seed)))
        rows += [two_servers(folder / "two"), stopped_for_long(folder / "sleep"), deleted(folder / "deleted")]
        rows.append(replaced(folder / "replaced"))
        rows += [read_only(folder / "read"), *(full_disk(folder, size) for size in ("3m", "8m"))]
    return rows


@click.command()
@click.option("--kills", "count", default=50, show_default=True, help="How many times a process is killed.")
@click.option("--seed", default=0, show_default=True, help="Decides the moments of the kills.")
def main(count: int, seed: int) -> None:
    """Print a row for each fault; the exit code is 1 if anything was lost, left behind or damaged."""
    import pandas as pd

    found = pd.DataFrame(table(count, seed)).astype(object).fillna("")
    click.echo(found.to_string(index=False))
    numbers = found[["epochs lost", "left behind", "not whole"]].replace("", 0)
    sys.exit(int(numbers.to_numpy().sum() > 0))


if __name__ == "__main__":
    main()
