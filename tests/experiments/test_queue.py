import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from emacore.experiments.names import SERVER
from emacore.experiments.store import RunLost, RunStore, worker_name
from tests.experiments.conftest import CONFIG, STUDY, claimed, row
from tests.helpers import ME


def test_newest_first_but_oldest_works_first_and_the_limit_holds(store):
    ids = [store.create(replace(CONFIG, seed=n)) for n in range(3)]
    assert store.runs()["id"].tolist() == ids[::-1]
    assert store.claim(ME, 2)[0] == ids[0]
    assert store.claim(ME, 2)[0] == ids[1]
    assert store.claim(ME, 2) is None
    store.finish(ids[0], ME, "done")
    assert store.claim(ME, 2)[0] == ids[2]


def test_stopping(store):
    queued, running = store.create(CONFIG), None
    store.request_stop(queued)
    assert store.result(queued).state == "stopped"
    running = claimed(store)
    store.request_stop(running)
    assert store.result(running).state == "running"
    assert store.beat(running, ME)
    store.finish(running, ME, "stopped", stopped="stopped")
    store.request_stop(running)
    assert store.result(running).state == "stopped"


def test_only_the_owner_writes_and_only_while_it_runs(store):
    run_id = claimed(store)
    with pytest.raises(RunLost):
        store.append(run_id, "another", row(1))
    store.finish(run_id, "another", "done")
    assert store.result(run_id).state == "running"
    store.finish(run_id, ME, "done")
    with pytest.raises(RunLost):
        store.append(run_id, ME, row(1))
    assert store.history(run_id).empty


def test_a_worker_that_died_fails_the_run_that_it_had_claimed_and_no_other(store):
    before = [claimed(store) for _ in range(3)]
    for ended, state in zip(before, ("done", "stopped", "interrupted"), strict=True):
        store.finish(ended, ME, state)
    run_id, waiting = claimed(store), store.create(CONFIG)
    for idle in ("another", ME.replace(":test", ":test2")):
        store.fail_run_of(idle, "signal 9")
        assert [store.result(run).state for run in (run_id, waiting)] == ["running", "queued"]
    for _ in range(2):
        store.fail_run_of(ME, "signal 9")
        assert (store.result(run_id).state, store.result(run_id).error) == ("failed", "signal 9")
        assert store.result(waiting).state == "queued"
        assert [store.result(run).state for run in before] == ["done", "stopped", "interrupted"]


def test_where_no_worker_can_be_started_the_oldest_run_that_waits_fails(store):
    running, first, second = claimed(store), store.create(CONFIG), store.create(CONFIG)
    store.fail_next("exit status 1")
    assert [store.result(run).state for run in (running, first, second)] == ["running", "failed", "queued"]
    assert store.result(first).error == "exit status 1"
    store.fail_next("exit status 1")
    store.fail_next("exit status 1")
    assert [store.result(run).state for run in (running, second)] == ["running", "failed"]


def test_what_nobody_asked_for_is_entered_once(store):
    run_id = store.create_once("example", CONFIG)
    assert (store.result(run_id).asked, store.result(run_id).job) == (SERVER, CONFIG)
    assert store.create_once("example", CONFIG) is None
    store.delete(run_id)
    assert store.create_once("example", CONFIG) is None
    assert store.runs().empty


def test_it_is_entered_once_by_many_servers(tmp_path):
    def serve(_):
        return RunStore(tmp_path).create_once("example", CONFIG)

    with ThreadPoolExecutor(8) as servers:
        found = list(servers.map(serve, range(16)))
    assert len(set(found)) == 2
    assert RunStore(tmp_path).runs()["id"].tolist() == [run_id for run_id in found if run_id]


@pytest.mark.parametrize("state", ["queued", "running", "done"])
def test_it_is_not_entered_where_there_is_a_run_to_look_at(store, state):
    run_id = store.create(CONFIG)
    if state != "queued":
        store.claim(ME, 9)
    if state == "done":
        store.finish(run_id, ME, "done")
    assert store.create_once("example", CONFIG) is None
    store.request_stop(run_id)
    if state == "running":
        store.finish(run_id, ME, "failed")
    if state != "done":
        assert store.create_once("example", CONFIG) is not None


def test_it_waits_for_all_that_people_asked_for(store):
    example, first, second = store.create_once("example", CONFIG), store.create(CONFIG), store.create(STUDY)
    assert [store.claim(ME, 9)[0] for _ in range(3)] == [first, second, example]


def test_it_gives_way_and_begins_anew_once_nobody_waits(store):
    example = store.create_once("example", CONFIG)
    assert store.claim(ME, 1)[0] == example
    store.append(example, ME, row(1))
    store.recording(example).mkdir(parents=True)
    assert not store.beat(example, ME)
    mine = store.create(CONFIG)
    assert store.beat(example, ME)
    store.finish(example, ME, "stopped", stopped="stopped")
    assert store.result(example).state == "queued"
    assert store.history(example).empty
    assert not store.recording(example).exists()
    assert store.claim(ME, 1)[0] == mine
    assert not store.beat(mine, ME)
    store.create(CONFIG)
    assert not store.beat(mine, ME)  # what people asked for never gives way
    store.finish(mine, ME, "done")
    store.request_stop(store.claim(ME, 1)[0])
    assert store.result(example).state == "queued"


def test_it_ends_where_a_person_stops_it_and_begins_anew_where_its_worker_went_away(store):
    example = store.create_once("example", CONFIG)
    store.claim(ME, 1)
    store.append(example, ME, row(1))
    store.finish(example, ME, "interrupted")
    assert store.result(example).state == "queued"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    store.claim(worker_name(gone.pid, "x"), 1)
    store.interrupt_abandoned()
    assert store.result(example).state == "queued"
    store.claim(ME, 1)
    store.append(example, ME, row(1))
    store.request_stop(example)
    assert store.beat(example, ME)
    store.finish(example, ME, "stopped", stopped="stopped")
    assert store.result(example).state == "stopped"
    assert len(store.history(example)) == 1
