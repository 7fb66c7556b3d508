"""Real worker processes.  They are few, because each imports torch."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from emacore import RunConfig, train
from emacore.averaging.schedules import Constant
from emacore.experiments import jobs
from emacore.experiments.jobs import JobQueue, work_off
from emacore.experiments.store import RunStore, StoreError, worker_name
from emacore.experiments.studies import Study, Sweep
from emacore.replay.trajectory import Trajectory
from emacore.tasks.regression.config import DataConfig
from emacore.training import loop
from emacore.training.config import StoppingConfig

QUICK = RunConfig(data=DataConfig(n_samples=200), max_epochs=3)
ENDLESS = replace(RunConfig(), max_epochs=100_000, stopping=StoppingConfig("none"))
ME = worker_name(os.getpid(), "test")


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


@pytest.fixture
def queue(tmp_path):
    queue = JobQueue(RunStore(tmp_path), limit=1)
    yield queue
    queue.close()


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
    final = Trajectory.open(store.recording(quick)).final({"own": QUICK.schedule})
    assert final["loss"][0] == pytest.approx(store.history(quick)["val_loss_ema"].iloc[-1], rel=1e-4)
    # the worker is kept, so the next run starts at once
    process = next(iter(queue._workers.values()))
    again = queue.submit(QUICK)
    wait_for(lambda: store.result(again).state == "done", 10)
    assert next(iter(queue._workers.values())) is process
    # and one that dies fails its run with the reason, while the next run gets a new one
    endless = queue.submit(ENDLESS)
    wait_for(lambda: len(store.history(endless)) >= 1)
    process.kill()
    process.wait()
    after = queue.submit(QUICK)
    assert store.result(endless).state == "failed"
    assert "signal 9" in store.result(endless).error
    wait_for(lambda: store.result(after).state == "done")


def test_two_servers_share_a_store_and_its_limit(tmp_path):
    one, two = JobQueue(RunStore(tmp_path), limit=1), JobQueue(RunStore(tmp_path), limit=1)
    try:
        endless = one.submit(ENDLESS)
        wait_for(lambda: len(one.store.history(endless)) >= 1)
        quick = two.submit(QUICK)
        wait_for(lambda: two._workers and _imported_torch(next(iter(two._workers.values())).pid))
        assert two.store.counts() == {"running": 1, "queued": 1}
        two.stop(endless)
        wait_for(lambda: two.store.result(quick).state == "done")
        assert one.store.result(endless).state == "stopped"
    finally:
        one.close()
        two.close()


def _imported_torch(pid):
    maps = Path(f"/proc/{pid}/maps")
    return not maps.exists() or "libtorch" in maps.read_text()


SERVER = """
import sys, time
from emacore.experiments.jobs import JobQueue
from emacore.experiments.store import RunStore
from tests.experiments.test_jobs import ENDLESS
queue = JobQueue(RunStore(sys.argv[1]), limit=1)
queue.submit(ENDLESS)
print(next(iter(queue._workers.values())).pid, flush=True)
time.sleep(600)
"""


def test_a_killed_server_takes_its_worker_along_and_the_run_reads_interrupted(tmp_path):
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        worker = int(server.stdout.readline())
        store = RunStore(tmp_path)
        wait_for(lambda: len(store.runs()) and len(store.history(store.runs()["id"][0])) >= 1)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
        server.stdout.close()
    run_id = store.runs()["id"][0]
    wait_for(lambda: not _exists(worker), 5)
    queue = JobQueue(store, limit=1)
    assert store.result(run_id).state == "interrupted"
    assert not queue._workers
    assert len(store.history(run_id)) >= 1


def _exists(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a zombie waiting for init has ended too


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


def test_one_core_is_left_for_the_pages(monkeypatch):
    monkeypatch.setattr(jobs.joblib, "cpu_count", lambda: 8)
    assert jobs.most_workers() == 7
    monkeypatch.setattr(jobs.joblib, "cpu_count", lambda: 1)
    assert jobs.most_workers() == 1


def test_a_sweep_trains_in_a_worker_and_stops(tmp_path):
    queue = JobQueue(RunStore(tmp_path), limit=1)
    grid = {"optimizer.learning_rate": [0.001, 0.01]}
    try:
        short = queue.submit(Sweep(replace(ENDLESS, max_epochs=1), grid, (0, 1)))
        wait_for(lambda: queue.store.result(short).state == "done")
        assert queue.store.result(short).stopped == "all cells trained"
        table = queue.store.history(short)
        assert table["optimizer.learning_rate"].tolist() == [0.001, 0.001, 0.01, 0.01]
        endless = queue.submit(Sweep(ENDLESS, grid, (0, 1)))
        wait_for(lambda: queue.store.result(endless).state == "running")
        queue.stop(endless)
        wait_for(lambda: queue.store.result(endless).state == "stopped")
        assert queue.store.history(endless).empty
        assert queue.store.sweeps()["epochs"].tolist() == [0, 2]
    finally:
        queue.close()


def test_a_study_trains_in_a_worker_and_stops(tmp_path):
    queue = JobQueue(RunStore(tmp_path))
    try:
        short = queue.submit(Study(replace(ENDLESS, max_epochs=3), (0, 1, 2), (Constant(0.5),)))
        wait_for(lambda: queue.store.result(short).state == "done")
        history = queue.store.history(short)
        assert len(history) == 9
        assert "val_loss_Constant(beta=0.5)" in history
        assert queue.store.result(short).stopped == "all seeds ended"
        endless = queue.submit(Study(ENDLESS, (0, 1)))
        wait_for(lambda: len(queue.store.history(endless)) > 2)
        queue.stop(endless)
        wait_for(lambda: queue.store.result(endless).state == "stopped")
    finally:
        queue.close()
