import os
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from emacore.experiments import database
from emacore.experiments.names import PERSON
from emacore.experiments.store import RunLost, RunStore, StoreError, default_folder
from tests.experiments.conftest import CONFIG, STUDY, claimed, row
from tests.forked import Forked
from tests.helpers import ME


def test_a_newer_store_is_left_alone(tmp_path):
    RunStore(tmp_path)
    with sqlite3.connect(tmp_path / "runs.sqlite") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (database.VERSION,)
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"newer version of this program \(format 99"):
        RunStore(tmp_path)


def test_what_is_not_a_store_is_told(tmp_path):
    (tmp_path / "runs.sqlite").write_bytes(b"these are not the bytes you are looking for" * 40)
    with pytest.raises(StoreError, match="damaged or not a run store: move it away"):
        RunStore(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        RunStore(tmp_path / "file" / "below")


def test_a_locked_store_is_told_and_loses_nothing(store, monkeypatch):
    run_id = claimed(store)
    monkeypatch.setattr(database, "BUSY_MILLISECONDS", 100)
    with sqlite3.connect(store.path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked by another program"):
            store.append(run_id, ME, row(1))
        other.execute("ROLLBACK")
    store.append(run_id, ME, row(1))
    assert len(store.history(run_id)) == 1


def test_a_full_disk_is_told_and_what_was_written_stays(store, monkeypatch):
    run_id = claimed(store)
    store.append(run_id, ME, row(1))
    real = sqlite3.connect

    def small(path, **arguments):
        connection = real(path, **arguments)
        connection.execute("PRAGMA max_page_count = 1")  # SQLite raises it to the pages there are
        return connection

    monkeypatch.setattr(sqlite3, "connect", small)

    def fill():
        for epoch in range(2, 500):
            store.append(run_id, ME, row(epoch))

    with pytest.raises(StoreError, match="full: free some space"):
        fill()
    monkeypatch.setattr(sqlite3, "connect", real)
    assert store.history(run_id)["epoch"].tolist() == list(range(1, len(store.history(run_id)) + 1))


def test_several_processes_share_it(store):
    run_id = claimed(store)
    code = (
        "import sys\nfrom emacore.experiments.store import RunStore\nfolder, run_id, worker, first = sys.argv[1:]\n"
        "for epoch in range(20):\n"
        "    RunStore(folder).append(run_id, worker, {'epoch': int(first) + epoch})"
    )
    command = [sys.executable, "-c", code, str(store.folder), run_id, ME]
    for process in [Forked([*command, first]) for first in ("1", "101", "201")]:
        assert process.wait(60) == 0
    assert len(store.history(run_id)) == 60


def test_where_it_lives(monkeypatch, tmp_path):
    monkeypatch.setenv("EMACORE_HOME", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here"
    monkeypatch.delenv("EMACORE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder().name == "emacore"


def moved(store, other):
    store.path.unlink()
    other.path.rename(store.path)


def copied(store, other):
    store.path.write_bytes(other.path.read_bytes())


@pytest.mark.parametrize("put", [moved, copied])
def test_another_store_in_its_place_is_used_without_a_restart(store, tmp_path, put):
    mine = claimed(store)
    other = RunStore(tmp_path / "other")
    theirs = other.create(replace(CONFIG, seed=7))
    put(store, other)
    with pytest.raises(RunLost):
        store.append(mine, ME, row(1))
    assert store.replacements == 1
    assert store.jobs()["id"].tolist() == [theirs]
    assert store.claim(ME, 9)[0] == theirs
    store.append(theirs, ME, row(1))
    store.finish(theirs, ME, "done")
    assert (store.result(theirs).state, store.replacements) == ("done", 1)


def test_an_older_store_or_an_emptied_file_in_its_place_is_brought_up_to_date(store, tmp_path):
    store.create(CONFIG)
    old = Path(__file__).parents[1] / "data" / "store_of_0_1" / "runs.sqlite"
    store.path.write_bytes(old.read_bytes())
    assert len(store.runs()) == 1
    os.truncate(store.path, 0)
    assert store.jobs().empty
    store.create(CONFIG)
    assert (len(store.jobs()), store.replacements) == (1, 2)
    store.path.write_bytes(b"something else" * 1000)
    with pytest.raises(StoreError, match="damaged or not a run store"):
        store.jobs()


@pytest.mark.parametrize(("version", "missing"), [(1, ("kind", "name", "asked")), (3, ("name", "asked"))])
def test_a_store_of_an_older_format_is_taken_over(tmp_path, version, missing):
    store = RunStore(tmp_path)
    run_id = store.create(CONFIG)
    with sqlite3.connect(store.path) as connection:
        for column in missing:
            connection.execute(f"ALTER TABLE runs DROP COLUMN {column}")
        connection.execute("DROP TABLE once")
        connection.execute(f"PRAGMA user_version = {version}")
    with ThreadPoolExecutor(4) as programs:  # that open it at once
        taken = list(programs.map(RunStore, [tmp_path] * 4)).pop()
    assert taken.runs()["id"].tolist() == [run_id]
    assert taken.studies().empty
    assert RunStore(tmp_path).result(taken.create(STUDY)).job == STUDY
    taken.rename(run_id, "mine")
    assert (taken.result(run_id).name, taken.result(run_id).asked) == ("mine", PERSON)
