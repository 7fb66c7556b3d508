import os
import subprocess
import sys
import time

import filelock
import pytest

from emacore.experiments.store import RunStore, worker_name
from emacore.experiments.workers import STALE_AFTER
from tests import forked
from tests.experiments.conftest import CONFIG, row
from tests.helpers import ME


def test_runs_left_behind_read_interrupted(store, monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, silent, alive = (store.create(CONFIG) for _ in range(3))
    store.claim(worker_name(gone.pid, "x"), 9)
    store.claim(worker_name(1, "x").replace("@", "@elsewhere-"), 9)
    store.interrupt_abandoned()
    assert [store.result(run).state for run in (dead, silent)] == ["interrupted", "running"]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + STALE_AFTER + 1)
    store.claim(ME, 9)
    store.interrupt_abandoned()
    assert [store.result(run).state for run in (dead, silent, alive)] == ["interrupted", "interrupted", "running"]


@pytest.mark.parametrize("jump", [3600, -3600, 1e6])
def test_a_worker_lives_as_long_as_it_holds_its_lock_whatever_the_clock_says(store, monkeypatch, jump):
    now = time.time()
    with store.workers.working("token") as name:
        run_id = store.create(CONFIG)
        store.claim(name, 9)
        store.append(run_id, name, row(1))
        monkeypatch.setattr(time, "time", lambda: now + jump)
        other = RunStore(store.folder)
        for _ in range(2):
            other.interrupt_abandoned()
            assert other.result(run_id).state == "running"
        store.append(run_id, name, row(2))
        assert 0 <= store.result(run_id).seconds < 60
        assert 0 <= store.runs()["seconds"][0] < 60
    assert not list((store.folder / "workers").glob("*.lock"))
    other.interrupt_abandoned()  # its process lives, as a later one of the same number might
    assert other.result(run_id).state == "running"


def test_a_worker_does_without_a_lock_that_cannot_be_kept(store):
    (store.folder / "workers").write_text("no folder")
    with store.workers.working("token") as name:
        assert store.workers.lives("run", name, None)
    assert (store.folder / "workers").read_text() == "no folder"


def test_a_worker_that_was_killed_holds_no_lock(store):
    code = (
        "import os, sys\nfrom emacore.experiments.store import RunStore\nstore = RunStore(sys.argv[1])\n"
        "with store.workers.working('token') as name:\n    store.claim(name, 9)\n    os.kill(os.getpid(), 9)"
    )
    run_id = store.create(CONFIG)
    forked.run([sys.executable, "-c", code, str(store.folder)])
    assert store.result(run_id).state == "running"
    assert len(list((store.folder / "workers").glob("*.lock"))) == 1
    store.interrupt_abandoned()
    assert store.result(run_id).state == "interrupted"
    assert not list((store.folder / "workers").glob("*.lock"))


def test_where_no_lock_can_be_taken_a_process_is_asked_for_by_its_number(store, monkeypatch):
    def refuse(*arguments):
        raise NotImplementedError

    with store.workers.working("token") as name:
        monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        assert store.workers.lives("run", name, None)
        assert not store.workers.lives("run", name.replace(str(os.getpid()), str(gone.pid), 1), None)
