import os
import threading

import pytest

from emacore import courtesy
from emacore.courtesy import answering, let_others_first, step_aside
from tests.helpers import wait_for


@pytest.fixture
def told(monkeypatch):
    found = []
    monkeypatch.setattr(courtesy, "LISTENERS", {found.append})
    return found


def test_it_is_told_when_the_first_begins_to_wait_and_when_the_last_is_answered(told):
    with answering():
        assert told == [True]
        with answering():
            pass
        assert told == [True]
    assert told == [True, False]


def test_an_answer_that_fails_is_over_too(told):
    with pytest.raises(ZeroDivisionError), answering():
        _ = 1 / 0
    assert told == [True, False]


def test_a_step_waits_while_others_do_and_not_for_ever(monkeypatch):
    step_aside()
    monkeypatch.setattr(courtesy, "PATIENCE", 60)
    let_others_first(True)
    step = threading.Thread(target=step_aside)
    step.start()
    try:
        assert step.is_alive()
    finally:
        let_others_first(False)
    step.join(30)
    assert not step.is_alive()
    let_others_first(True)
    monkeypatch.setattr(courtesy, "PATIENCE", 0.01)
    try:
        step_aside()  # comes back by itself
    finally:
        let_others_first(False)


def test_a_server_tells_its_workers(tmp_path, monkeypatch):
    from emacore.experiments import jobs
    from emacore.experiments.store import RunStore

    monkeypatch.setattr(courtesy, "LISTENERS", set())
    queue = jobs.JobQueue(RunStore(tmp_path), limit=1)
    heard, said = os.pipe()

    class Worker:
        stdin = os.fdopen(said, "wb", buffering=0)

    queue._workers["worker"] = Worker
    with answering():
        assert os.read(heard, 9) == b"+"
    assert os.read(heard, 9) == b"-"
    Worker.stdin.close()
    with answering():  # one that has ended
        pass
    queue._workers.clear()
    queue.close()
    assert set() == courtesy.LISTENERS
    os.close(heard)


def test_a_worker_takes_note_until_its_server_ends(monkeypatch, tmp_path):
    from emacore.experiments import jobs
    from emacore.experiments.store import RunStore

    heard, said = os.pipe()
    ended = threading.Event()
    monkeypatch.setattr(jobs, "_SERVER", heard)
    monkeypatch.setattr(jobs.os, "_exit", lambda code: ended.set())
    listening = threading.Thread(
        target=jobs._end_with_server, args=(RunStore(tmp_path), "name", [], tmp_path / "no.log")
    )
    listening.start()
    try:
        os.write(said, b"-+")
        wait_for(lambda: not courtesy._nobody_waits.is_set())
        os.write(said, b"+-")
        wait_for(courtesy._nobody_waits.is_set)
    finally:
        os.close(said)
        listening.join(30)
        let_others_first(False)
    assert ended.is_set()
    os.close(heard)
