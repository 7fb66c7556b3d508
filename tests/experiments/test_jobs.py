"""Real worker processes.  Most are forked: each that is started anew imports torch."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from emacore import RunConfig, train
from emacore.averaging.families import Constant
from emacore.experiments import jobs
from emacore.experiments.jobs import JobQueue, work_off
from emacore.experiments.store import RunStore, StoreError
from emacore.experiments.studies import Study, Sweep
from emacore.tasks import open_run
from emacore.tasks.regression.config import DataConfig
from emacore.training import loop
from tests import forked
from tests.experiments.conftest import ENDLESS
from tests.forked import Forked, forking
from tests.helpers import ME, lives, wait_for

QUICK = RunConfig(data=DataConfig(n_samples=200), max_epochs=3)


@pytest.fixture
def forked_workers(monkeypatch):
    forking(monkeypatch, jobs)


@pytest.fixture
def queue(tmp_path, forked_workers):
    queue = JobQueue(RunStore(tmp_path), limit=1)
    yield queue
    queue.close()


@pytest.mark.slow
def test_runs_queue_stop_and_give_the_numbers_of_train(queue):
    store = queue.store
    endless, quick, unwanted = queue.submit(ENDLESS), queue.submit(QUICK), queue.submit(QUICK)
    wait_for(lambda: len(store.history(endless)) >= 2)
    assert store.result(quick).state == "queued"
    assert len(queue._workers) == 1
    queue.stop(unwanted)
    queue.stop(endless)
    wait_for(lambda: store.result(endless).state == "stopped", 5)
    wait_for(lambda: store.result(quick).state == "done")
    assert store.result(quick).stopped == "max epochs"
    assert store.result(unwanted).state == "stopped"
    assert store.history(unwanted).empty
    expected = train(QUICK).history.drop(columns="seconds")
    pd.testing.assert_frame_equal(store.history(quick).drop(columns="seconds"), expected, rtol=1e-6)
    final = open_run(store.recording(quick)).final({"own": QUICK.schedule})
    assert final["loss"][0] == pytest.approx(store.history(quick)["val_loss_ema"].iloc[-1], rel=1e-4)
    # the worker is kept, so the next run starts at once
    process = next(iter(queue._workers.values()))
    again = queue.submit(QUICK)
    wait_for(lambda: store.result(again).state == "done", 10)
    assert next(iter(queue._workers.values())) is process
    # one that dies while it has no run fails none, and the next run gets a new one
    process.kill()
    process.wait()
    again = queue.submit(QUICK)
    assert store.result(again).state in ("queued", "running")
    wait_for(lambda: store.result(again).state == "done")
    process = next(iter(queue._workers.values()))
    # one that dies with a run fails it with the reason
    endless = queue.submit(ENDLESS)
    wait_for(lambda: len(store.history(endless)) >= 1)
    process.kill()
    process.wait()
    after = queue.submit(QUICK)
    assert store.result(endless).state == "failed"
    assert "signal 9" in store.result(endless).error
    wait_for(lambda: store.result(after).state == "done")


@pytest.mark.slow
def test_two_servers_share_a_store_and_its_limit(tmp_path, forked_workers):
    one, two = JobQueue(RunStore(tmp_path), limit=1), JobQueue(RunStore(tmp_path), limit=1)
    try:
        endless = one.submit(ENDLESS)
        wait_for(lambda: len(one.store.history(endless)) >= 1)
        quick = two.submit(QUICK)
        wait_for(lambda: two._workers and _came_up(next(iter(two._workers.values())).pid))
        assert two.store.counts() == {"running": 1, "queued": 1}
        two.stop(endless)
        wait_for(lambda: two.store.result(quick).state == "done")
        assert one.store.result(endless).state == "stopped"
    finally:
        one.close()
        two.close()


def _came_up(pid):
    """Whether a worker has said so, after which it prints into its log, and looks for runs."""
    return Path(f"/proc/{pid}/fd/1").samefile(f"/proc/{pid}/fd/2")


SERVER = """
import sys
from emacore.experiments.jobs import JobQueue
from emacore.experiments.store import RunStore
from tests.experiments.conftest import ENDLESS
queue = JobQueue(RunStore(sys.argv[1]), limit=1)
queue.submit(ENDLESS)
print(next(iter(queue._workers.values())).pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_killed_server_takes_its_worker_along_and_the_run_reads_interrupted(tmp_path):
    """The worker is started anew, as the app does it."""
    command = [sys.executable, "-c", SERVER, str(tmp_path)]
    server = Forked(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        worker = int(server.stdout.readline())
        store = RunStore(tmp_path)
        wait_for(lambda: len(store.runs()) and len(store.history(store.runs()["id"][0])) >= 1)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
        server.stdin.close()
        server.stdout.close()
    run_id = store.runs()["id"][0]
    wait_for(lambda: not lives(worker), 5)
    assert not list((tmp_path / "workers").glob("*.lock"))
    queue = JobQueue(store, limit=1)
    assert store.result(run_id).state == "interrupted"
    assert not queue._workers
    assert len(store.history(run_id)) >= 1


def worked_off(tmp_path, config="{}"):
    store = RunStore(tmp_path)
    run_id = store.create(RunConfig())
    store.claim(ME, 1)
    work_off(store, ME, run_id, config)
    return store.result(run_id)


def test_failures_are_told_in_the_run(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise KeyError("gone")

    assert worked_off(tmp_path, '{"data": {"kind": "csv", "path": "/no.csv", "target": "y"}}').error.startswith(
        "The file 'no.csv' cannot be read"
    )
    result = worked_off(tmp_path, '{"optimizer": {"nope": 1}}')
    assert result.state == "failed"
    assert "no setting optimizer.nope" in result.error
    monkeypatch.setattr(loop, "train", broken)
    assert worked_off(tmp_path).error == "KeyError: 'gone'"


def test_a_store_that_cannot_be_written_fails_the_run_and_keeps_its_epochs(tmp_path, monkeypatch):
    append, calls = RunStore.append, []

    def full(self, run_id, worker, row):
        calls.append(row)
        if len(calls) == 3:
            raise StoreError("The disk is full.")
        append(self, run_id, worker, row)

    monkeypatch.setattr(RunStore, "append", full)
    result = worked_off(tmp_path, QUICK.to_json())
    assert (result.state, result.error) == ("failed", "The disk is full.")
    assert len(RunStore(tmp_path).history(result.id)) == 2


def test_a_run_deleted_under_its_worker_ends_quietly(tmp_path, monkeypatch):
    store = RunStore(tmp_path)
    run_id = store.create(ENDLESS)
    store.claim(ME, 1)

    def delete_then_train(config, on_epoch, should_stop, **_):
        store.finish(run_id, ME, "done")
        store.delete(run_id)
        return train(config, on_epoch=on_epoch, should_stop=should_stop)

    monkeypatch.setattr(loop, "train", delete_then_train)
    work_off(store, ME, run_id, ENDLESS.to_json())
    assert store.runs().empty


def test_a_worker_that_cannot_start_fails_the_run_it_was_for(tmp_path, monkeypatch):
    queue = JobQueue(RunStore(tmp_path), limit=1)
    monkeypatch.setattr(jobs.sys, "executable", "/bin/false")
    run_id = queue.submit(QUICK)
    wait_for(lambda: all(p.poll() is not None for p in queue._workers.values()), 5)
    queue.tend()
    assert "exit status 1" in queue.store.result(run_id).error
    queue.close()


def test_a_worker_that_cannot_start_fails_no_run_that_others_can_take_up(tmp_path, monkeypatch):
    queue = saying(tmp_path, monkeypatch, "exit 3")
    others = queue.store.enter(QUICK, ME)
    waiting = queue.submit(QUICK)
    for _ in range(3):
        buried(queue)
        assert queue.store.result(waiting).state == "queued"
    queue.store.finish(others, ME, "done")
    buried(queue)
    assert "exit status 3" in queue.store.result(waiting).error
    assert queue.store.result(others).state == "done"
    queue.close()


def saying(tmp_path, monkeypatch, script):
    """Workers that run a script in place of Python."""
    program = tmp_path / "worker"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(program))
    return JobQueue(RunStore(tmp_path / "store"), limit=1)


def buried(queue):
    wait_for(lambda: all(p.poll() is not None for p in queue._workers.values()), 5)
    queue.tend()


def log_named_in(error):
    return Path(error.partition("what it said is in ")[2].removesuffix("."))


@pytest.mark.parametrize("size", [0, 1, jobs.LOG_BYTES - 5, jobs.LOG_BYTES, 10 * jobs.LOG_BYTES])
def test_what_a_dead_worker_said_is_kept_though_others_start_and_is_bounded(tmp_path, monkeypatch, size):
    queue = saying(tmp_path, monkeypatch, f"head -c {size} /dev/zero | tr '\\0' x >&2; echo $0 went wrong >&2; exit 3")
    logs = []
    for _ in range(3):
        run_id = queue.submit(QUICK)
        buried(queue)
        error = queue.store.result(run_id).error
        assert error.startswith("No worker process could be started (exit status 3); what it said is in ")
        logs.append(log_named_in(error))
    for log in logs:
        said = log.read_text()
        assert said.endswith("worker went wrong\n")
        assert said.count("went wrong") == 1
        assert len(said) <= jobs.LOG_BYTES
        assert len(said) >= min(size, jobs.LOG_BYTES)
    queue.close()


def test_of_many_dead_workers_the_last_are_kept(tmp_path, monkeypatch):
    queue = saying(tmp_path, monkeypatch, "echo wrong >&2; exit 3")
    monkeypatch.setattr(jobs, "LOGS_KEPT", 3)
    runs = []
    for _ in range(7):
        runs.append(queue.submit(QUICK))
        buried(queue)
    kept = [log_named_in(queue.store.result(run).error).exists() for run in runs]
    assert kept[-2:] == [True, True]
    assert sum(kept) <= 3
    queue.close()


def test_what_a_worker_said_that_still_lives_is_kept(tmp_path, monkeypatch):
    queue = saying(tmp_path, monkeypatch, "echo wrong >&2; exit 3")
    monkeypatch.setattr(jobs, "LOGS_KEPT", 3)
    with queue.store.workers.working("elder"):
        log = queue.store.folder / "workers" / "elder.log"
        log.write_text("a warning")
        os.utime(log, (0, 0))
        for _ in range(4):
            queue.submit(QUICK)
            buried(queue)
        assert log.read_text() == "a warning"
    queue.submit(QUICK)
    buried(queue)
    assert not log.exists()
    queue.close()


def test_what_killed_workers_said_is_dropped_in_its_turn(tmp_path, monkeypatch):
    queue = saying(tmp_path, monkeypatch, "echo wrong >&2; exit 3")
    monkeypatch.setattr(jobs, "LOGS_KEPT", 3)
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom emacore.experiments.workers import Workers\n"
        "with Workers(Path(sys.argv[1])).working(sys.argv[2]):\n    os.kill(os.getpid(), 9)"
    )
    folder = queue.store.folder / "workers"
    for token in "abcd":
        forked.run([sys.executable, "-c", code, str(folder), token])
        (folder / f"{token}.log").write_text("a warning")
        os.utime(folder / f"{token}.log", (0, 0))
    for _ in range(3):
        queue.submit(QUICK)
        buried(queue)
    assert len(list(folder.glob("*.log"))) <= 3
    assert not list(folder.glob("*.lock"))
    queue.close()


def test_a_worker_finds_the_package_wherever_the_server_was_started(tmp_path, monkeypatch):
    queue = saying(tmp_path, monkeypatch, 'echo "$PYTHONPATH" >&2; exit 3')
    run_id = queue.submit(QUICK)
    buried(queue)
    paths = log_named_in(queue.store.result(run_id).error).read_text().strip().split(os.pathsep)
    assert (Path(paths[0]) / "emacore" / "experiments" / "jobs.py").samefile(jobs.__file__)
    queue.close()


def test_a_worker_that_says_nothing_leaves_no_log(tmp_path, monkeypatch):
    queue = saying(tmp_path, monkeypatch, "exit 3")
    run_id = queue.submit(QUICK)
    buried(queue)
    assert queue.store.result(run_id).error == "No worker process could be started (exit status 3); it said nothing."
    queue.close()
    assert not list((tmp_path / "store" / "workers").iterdir())


def test_a_worker_does_without_a_log_that_cannot_be_made(tmp_path, monkeypatch):
    queue = saying(tmp_path, monkeypatch, "echo wrong >&2; exit 3")
    (tmp_path / "no folder").write_text("")
    monkeypatch.setattr(jobs, "_log", lambda folder, token: tmp_path / "no folder" / f"{token}.log")
    run_id = queue.submit(QUICK)
    buried(queue)
    assert queue.store.result(run_id).error == "No worker process could be started (exit status 3); it said nothing."
    queue.close()


def test_a_log_is_bounded_while_its_worker_lives(tmp_path, monkeypatch):
    script = "head -c 999999 /dev/zero | tr '\\0' x >&2; echo told >&2; read end; echo the end >&2"
    queue = saying(tmp_path, monkeypatch, script)
    queue.tend(warm=True)
    (log,) = (tmp_path / "store" / "workers").iterdir()
    wait_for(lambda: log.stat().st_size == 999999 + len("told\n"))
    queue.tend()
    assert log.stat().st_size == jobs.LOG_BYTES
    queue.close()
    assert log.read_text().endswith("told\nthe end\n")
    assert log.stat().st_size <= jobs.LOG_BYTES


def test_a_worker_that_came_up_is_told_from_one_that_did_not(tmp_path, monkeypatch):
    queue = saying(tmp_path, monkeypatch, "printf ready; exit 4")
    waiting = queue.submit(QUICK)
    for _ in range(3):
        buried(queue)
        assert queue.store.result(waiting).state == "queued"
    queue.close()


def test_what_a_worker_prints_once_it_is_ready_goes_where_its_errors_go(capfd):
    jobs._say_ready()
    os.write(1, b"an epoch\n")  # the server reads the first pipe no more: a full one would hold the run up
    assert capfd.readouterr() == (jobs._READY.decode(), "an epoch\n")


def test_one_core_is_left_for_the_pages(monkeypatch):
    monkeypatch.setattr(jobs.joblib, "cpu_count", lambda: 8)
    assert jobs.most_workers() == 7
    monkeypatch.setattr(jobs.joblib, "cpu_count", lambda: 1)
    assert jobs.most_workers() == 1


@pytest.mark.slow
def test_sweeps_and_studies_train_in_a_worker_and_stop(queue):
    store, grid = queue.store, {"optimizer.learning_rate": [0.001, 0.01]}
    short = queue.submit(Sweep(replace(ENDLESS, max_epochs=1), grid, (0, 1)))
    wait_for(lambda: store.result(short).state == "done")
    assert store.result(short).stopped == "all cells trained"
    assert store.history(short)["optimizer.learning_rate"].tolist() == [0.001, 0.001, 0.01, 0.01]
    endless = queue.submit(Sweep(ENDLESS, grid, (0, 1)))
    wait_for(lambda: store.result(endless).state == "running")
    queue.stop(endless)
    wait_for(lambda: store.result(endless).state == "stopped")
    assert store.history(endless).empty
    assert store.sweeps()["epochs"].tolist() == [0, 2]

    short = queue.submit(Study(replace(ENDLESS, max_epochs=3), (0, 1, 2), (Constant(0.5),)))
    wait_for(lambda: store.result(short).state == "done")
    history = store.history(short)
    assert len(history) == 9
    assert "val_loss_Constant(beta=0.5)" in history
    assert store.result(short).stopped == "all seeds ended"
    endless = queue.submit(Study(ENDLESS, (0, 1)))
    wait_for(lambda: len(store.history(endless)) > 2)
    queue.stop(endless)
    wait_for(lambda: store.result(endless).state == "stopped")


@pytest.fixture
def unattended(tmp_path, monkeypatch):
    """A queue whose workers are only counted."""
    started = []
    monkeypatch.setattr(JobQueue, "tend", lambda self, *, warm=False: started.append(self))
    return JobQueue(RunStore(tmp_path)), started


@pytest.mark.parametrize(("value", "trains"), [(None, True), ("1", True), ("", True), ("0", False), (" 0 ", False)])
def test_the_server_trains_an_example_unless_it_is_told_not_to(unattended, monkeypatch, value, trains):
    queue, started = unattended
    monkeypatch.delenv("EMACORE_EXAMPLE") if value is None else monkeypatch.setenv("EMACORE_EXAMPLE", value)
    before = len(started)
    queue.train_example()
    runs = queue.store.runs()
    assert len(runs) == len(started) - before == int(trains)
    if trains:
        assert queue.store.result(runs["id"][0]).job == RunConfig()
        queue.train_example()
        queue.store.delete(runs["id"][0])
        queue.train_example()
        assert queue.store.runs().empty


@pytest.mark.slow
def test_the_example_gives_way_to_a_persons_run_and_is_trained_after_it(queue, monkeypatch):
    small = RunConfig(data=DataConfig(n_samples=400))  # in place of the article's run, a fifth of its rows
    monkeypatch.setattr(jobs, "RunConfig", lambda: small)
    monkeypatch.setenv("EMACORE_EXAMPLE", "1")
    store = queue.store
    queue.train_example()
    (example,) = store.runs()["id"]
    wait_for(lambda: len(store.history(example)) >= 2)
    assert open_run(store.recording(example)).epoch_ends
    mine = queue.submit(replace(QUICK, seed=1))
    wait_for(lambda: store.result(mine).state == "done", 20)
    assert store.result(mine).started < store.result(mine).finished
    assert store.result(example).state in ("queued", "running")
    wait_for(lambda: store.result(example).state == "done", 120)
    assert store.result(example).started >= store.result(mine).finished - 1
    history = store.history(example)
    assert history["epoch"].tolist() == list(range(1, len(history) + 1))
    final = open_run(store.recording(example)).final({"own": small.schedule})
    assert final["loss"][0] == pytest.approx(history["val_loss_ema"].iloc[-1], rel=1e-4)
    assert store.result(example).stopped == "early stop"
