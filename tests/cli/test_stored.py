import io
import sqlite3

import pandas as pd
import pytest
from click.testing import CliRunner

from emacore import RunConfig
from emacore.cli import commands as command_line
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study
from tests.helpers import ME


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("EMACORE_HOME", str(tmp_path))
    return RunStore(tmp_path)


def emacore(*arguments, code=0, **further):
    result = CliRunner().invoke(command_line.cli, list(arguments), **further)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_a_list_a_name_and_what_is_known_of_one(store):
    run_id, study_id = store.create(RunConfig(seed=5)), store.create(Study(RunConfig(), (1, 2)))
    for command in (("runs",), ("runs", "list")):
        listed = pd.read_csv(io.StringIO(emacore(*command).stdout))
        assert listed["id"].tolist() == [study_id, run_id]
    emacore("runs", "rename", run_id, "mine")
    shown = emacore("runs", "show", run_id).stdout.splitlines()
    assert {"name: mine", "state: queued", "seed: 5", "optimizer.learning_rate: 0.001"} <= set(shown)
    assert len(emacore("runs", "show", study_id).stdout.splitlines()) > 10


def test_deleting_asks(store):
    one, other, third = (store.create(RunConfig(seed=n)) for n in range(3))
    asked = emacore("runs", "delete", one, input="n\n", code=1)
    assert "Delete for good?" in asked.output
    assert len(store.runs()) == 3
    emacore("runs", "delete", one, input="y\n")
    emacore("runs", "delete", other, "--yes")
    assert store.runs()["id"].tolist() == [third]
    store.claim(ME, 1)
    assert "still training" in str(emacore("runs", "delete", third, "--yes", code=1).exception)


def test_recordings_are_freed_by_age_size_and_state(store):
    ids = [store.create(RunConfig(seed=n)) for n in range(4)]
    for _ in ids:
        store.claim(ME, 9)
    for job_id, state in zip(ids, ("done", "failed", "stopped"), strict=False):
        store.finish(job_id, ME, state)
    for job_id, size in zip([*ids, "gone"], (3, 1, 2, 5, 1), strict=True):
        store.recording(job_id).mkdir(parents=True)
        (store.recording(job_id) / "weights.npy").write_bytes(bytes(size * 2**20))

    def left():
        return [job_id for job_id in [*ids, "gone"] if store.recording(job_id).exists()]

    asked = emacore("runs", "--prune", "--larger-than", "1.5", input="n\n", code=1).output
    assert "recorded weights 12 MB of at most 4 GB" in asked
    assert "2 jobs, 5 MB to free" in asked
    assert len(left()) == 5
    emacore("runs", "prune", "--state", "failed", "--yes")
    assert left() == [ids[0], ids[2], ids[3], "gone"]
    assert "0 jobs" in emacore("runs", "prune", "--older-than", "1", "--state", "done").output
    emacore("runs", "prune", "--yes")
    assert left() == [ids[3]], "one that trains keeps its own"
    assert len(store.jobs()) == 4
    emacore("runs", "prune", "--whole", "--state", "failed", "--yes")
    assert len(store.jobs()) == 3
    assert "one of done, stopped" in emacore("runs", "prune", "--state", "running", code=2).output


def test_tables_of_no_job_and_cells_are_freed_too(store):
    store.add_table(b"a,b\n1,2\n")
    store.add_cell("key", [{"seed": 0, "error": "x" * 3_000_000}])
    asked = emacore("runs", "prune", "--cells", input="n\n", code=1).output
    assert "0 jobs, 2.9 MB to free" in asked
    assert "1 table that no job trains on" in asked
    assert "cells of sweeps" in asked
    emacore("runs", "prune", "--yes")
    assert (store.taken()["tables"], store.cell("key")[0]["seed"]) == (0, 0)
    emacore("runs", "--prune", "--cells", "--yes")
    assert store.cell("key") is None


def test_a_damaged_job_is_told_and_the_others_are_listed(store):
    whole, damaged = store.create(RunConfig()), store.create(RunConfig(seed=1))
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE runs SET config = '{' WHERE id = ?", (damaged,))
    listed = emacore("runs")
    assert pd.read_csv(io.StringIO(listed.stdout))["id"].tolist() == [whole]
    assert f"{damaged} is damaged and left out: its settings cannot be read" in listed.stderr
    for command in (("export", damaged), ("runs", "show", damaged)):
        assert "is damaged" in str(emacore(*command, code=1).exception)
    emacore("runs", "prune", "--yes")
