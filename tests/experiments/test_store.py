import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from emacore import RunConfig, limits
from emacore.averaging.families import Constant
from emacore.experiments import store as store_module
from emacore.experiments.jobs import carry_out
from emacore.experiments.names import PERSON, SERVER
from emacore.experiments.store import RunLost, RunStore, StoreError, default_folder, worker_name
from emacore.experiments.studies import Study, Sweep
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import NetworkConfig, OptimizerConfig, StoppingConfig
from emacore.training.history import columns

CONFIG = RunConfig()
ME = worker_name(os.getpid(), "test")


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path / "runs")


def row(epoch, **changes):
    return dict.fromkeys(columns(RunConfig.metrics), 0.1 * epoch) | {"epoch": epoch, "steps": 50 * epoch} | changes


def claimed(store, config=CONFIG):
    run_id = store.create(config)
    assert store.claim(ME, 99) == (run_id, config.to_json(indent=None))
    return run_id


def test_a_run_from_queue_to_end(store):
    run_id = store.create(CONFIG)
    assert store.result(run_id).state == "queued"
    assert store.claim(ME, 1)[0] == run_id
    store.append(run_id, ME, row(1))
    store.append(run_id, ME, row(2, val_loss_original=1 / 3))
    assert store.history(run_id)["val_loss_original"].tolist() == [0.1, 1 / 3]
    assert store.history(run_id).columns.tolist() == columns(RunConfig.metrics)
    assert not store.beat(run_id, ME)
    store.finish(run_id, ME, "done", stopped="early stop")
    result = RunStore(store.folder).result(run_id)
    assert (result.state, result.stopped, result.error) == ("done", "early stop", None)
    assert result.config == CONFIG
    assert result.summary["original"][0] == 1 / 3
    assert result.created <= result.started <= result.finished
    table = store.runs()
    assert table.loc[0, ["id", "state", "epochs"]].tolist() == [run_id, "done", 2]
    assert RunConfig.from_json(table.loc[0, "config"]) == CONFIG
    assert table["created"].dt.tz is not None


def test_an_empty_store(store):
    assert store.runs().empty
    assert store.claim(ME, 1) is None
    assert store.counts() == {}


def test_newest_first_but_oldest_works_first_and_the_limit_holds(store):
    ids = [store.create(replace(CONFIG, seed=n)) for n in range(3)]
    assert store.runs()["id"].tolist() == ids[::-1]
    assert store.claim(ME, 2)[0] == ids[0]
    assert store.claim(ME, 2)[0] == ids[1]
    assert store.claim(ME, 2) is None
    store.finish(ids[0], ME, "done")
    assert store.claim(ME, 2)[0] == ids[2]


def test_not_a_number_survives(store):
    run_id = claimed(store)
    store.append(run_id, ME, row(1, train_loss=float("nan"), val_loss_ema=float("inf")))
    history = store.history(run_id)
    assert history["train_loss"].isna().all()
    assert history["val_loss_ema"][0] == float("inf")


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


def test_deleting(store):
    run_id = claimed(store)
    store.append(run_id, ME, row(1))
    with pytest.raises(StoreError, match="still training: stop it"):
        store.delete(run_id)
    store.finish(run_id, ME, "done")
    store.delete(run_id)
    for read in (store.history, store.result, store.delete, store.request_stop):
        with pytest.raises(StoreError, match="no run"):
            read(run_id)
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("SELECT COUNT(*) FROM epochs").fetchone() == (0,)


def test_runs_left_behind_read_interrupted(store, monkeypatch):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, silent, alive = (store.create(CONFIG) for _ in range(3))
    store.claim(worker_name(gone.pid, "x"), 9)
    store.claim(worker_name(1, "x").replace("@", "@elsewhere-"), 9)
    store.interrupt_abandoned()
    assert [store.result(run).state for run in (dead, silent)] == ["interrupted", "running"]
    now = time.monotonic()
    monkeypatch.setattr(store_module.time, "monotonic", lambda: now + store_module.STALE_AFTER + 1)
    store.claim(ME, 9)
    store.interrupt_abandoned()
    assert [store.result(run).state for run in (dead, silent, alive)] == ["interrupted", "interrupted", "running"]


@pytest.mark.parametrize("jump", [3600, -3600, 1e6])
def test_a_worker_lives_as_long_as_it_holds_its_lock_whatever_the_clock_says(store, monkeypatch, jump):
    now = time.time()
    with store.working("token") as name:
        run_id = store.create(CONFIG)
        store.claim(name, 9)
        store.append(run_id, name, row(1))
        monkeypatch.setattr(store_module.time, "time", lambda: now + jump)
        other = RunStore(store.folder)
        for _ in range(2):
            other.interrupt_abandoned()
            assert other.result(run_id).state == "running"
        store.append(run_id, name, row(2))
        assert 0 <= store.result(run_id).seconds < 60
        assert 0 <= store.runs()["seconds"][0] < 60
    other.interrupt_abandoned()  # its process lives, as a later one of the same number might
    assert other.result(run_id).state == "running"


def test_a_worker_that_was_killed_holds_no_lock(store):
    code = (
        "import os, sys\nfrom emacore.experiments.store import RunStore\nstore = RunStore(sys.argv[1])\n"
        "with store.working('token') as name:\n    store.claim(name, 9)\n    os.kill(os.getpid(), 9)"
    )
    run_id = store.create(CONFIG)
    subprocess.run([sys.executable, "-c", code, str(store.folder)], check=False)
    assert store.result(run_id).state == "running"
    assert len(list((store.folder / "workers").glob("*.lock"))) == 1
    store.interrupt_abandoned()
    assert store.result(run_id).state == "interrupted"
    assert not list((store.folder / "workers").glob("*.lock"))


def test_a_worker_that_died_fails_the_run_that_it_had_claimed_and_no_other(store):
    run_id, waiting = claimed(store), store.create(CONFIG)
    for idle in ("another", ME.replace(":test", ":test2")):
        store.fail_run_of(idle, "signal 9")
        assert [store.result(run).state for run in (run_id, waiting)] == ["running", "queued"]
    for _ in range(2):
        store.fail_run_of(ME, "signal 9")
        assert (store.result(run_id).state, store.result(run_id).error) == ("failed", "signal 9")
        assert store.result(waiting).state == "queued"


def test_where_no_worker_can_be_started_the_oldest_run_that_waits_fails(store):
    running, first, second = claimed(store), store.create(CONFIG), store.create(CONFIG)
    store.fail_next("exit status 1")
    assert [store.result(run).state for run in (running, first, second)] == ["running", "failed", "queued"]
    assert store.result(first).error == "exit status 1"
    store.fail_next("exit status 1")
    store.fail_next("exit status 1")
    assert [store.result(run).state for run in (running, second)] == ["running", "failed"]


def test_a_newer_store_is_left_alone(tmp_path):
    RunStore(tmp_path)
    with sqlite3.connect(tmp_path / "runs.sqlite") as connection:
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
    real = sqlite3.connect
    monkeypatch.setattr(store_module.sqlite3, "connect", lambda path, **k: real(path, **(k | {"timeout": 0.1})))
    with real(store.path, isolation_level=None) as other:
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

    monkeypatch.setattr(store_module.sqlite3, "connect", small)

    def fill():
        for epoch in range(2, 500):
            store.append(run_id, ME, row(epoch))

    with pytest.raises(StoreError, match="full: free some space"):
        fill()
    monkeypatch.setattr(store_module.sqlite3, "connect", real)
    assert store.history(run_id)["epoch"].tolist() == list(range(1, len(store.history(run_id)) + 1))


def _write(folder, worker, first):
    store = RunStore(folder)
    for epoch in range(first, first + 20):
        store.append(store.runs()["id"][0], worker, row(epoch))


@pytest.mark.slow
def test_several_processes_share_it(store):
    claimed(store)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(store.folder, ME, first)) for first in (1, 101, 201)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(store.history(store.runs()["id"][0])) == 60


def test_tables_are_kept_once(store):
    one, two = store.add_table(b"a,b\n1,2\n"), store.add_table(b"a,b\n1,2\n")
    assert one == two
    assert one.read_bytes() == b"a,b\n1,2\n"
    assert len(list(one.parent.iterdir())) == 1


def test_where_it_lives(monkeypatch, tmp_path):
    monkeypatch.setenv("EMACORE_HOME", str(tmp_path / "here"))
    assert default_folder() == tmp_path / "here"
    monkeypatch.delenv("EMACORE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder().name == "emacore"


def test_reading_runs_imports_no_torch():
    code = "import sys, emacore.experiments.jobs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_frames_read_back_from_csv_unchanged(store, tmp_path):
    run_id = claimed(store)
    for epoch in range(1, 4):
        store.append(run_id, ME, row(epoch, train_loss=epoch / 3))
    history = store.history(run_id)
    history.to_csv(tmp_path / "h.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "h.csv"), history, check_exact=True)


def test_the_oldest_recordings_go_first_and_their_histories_never(store, monkeypatch):
    monkeypatch.setattr(limits, "RECORDING_BYTES", 100)
    monkeypatch.setattr(limits, "RECORDINGS_BYTES", 350)
    runs = []
    for age in range(4):
        run_id = claimed(store)
        store.append(run_id, ME, row(1))
        store.finish(run_id, ME, "done")
        store.recording(run_id).mkdir(parents=True)
        (store.recording(run_id) / "weights.npy").write_bytes(b"x" * 100)
        os.utime(store.recording(run_id), (1e9 + age, 1e9 + age))
        runs.append(run_id)
    assert store.make_room("new") == 100
    assert [store.recording(run_id).exists() for run_id in runs] == [False, False, True, True]
    for _ in range(3):  # which train, and may take all but 50
        claimed(store)
    assert store.make_room(runs[0]) == 50
    assert not any(store.recording(run_id).exists() for run_id in runs)
    claimed(store)
    assert store.make_room(runs[0]) == 0
    assert all(len(store.history(run_id)) == 1 for run_id in runs)
    store.recording(runs[3]).mkdir()
    store.delete(runs[3])
    assert not store.recording(runs[3]).exists()


def test_the_budget_of_all_recordings_holds_while_runs_go_on(store, monkeypatch):
    monkeypatch.setattr(limits, "RECORDING_BYTES", 60_000)
    monkeypatch.setattr(limits, "RECORDINGS_BYTES", 120_000)
    config = RunConfig(
        data=DataConfig(n_samples=40),
        network=NetworkConfig((4,)),
        max_epochs=60,
        optimizer=OptimizerConfig(batch_size=2),
    )
    config = replace(config, stopping=StoppingConfig("none"))
    most, runs = [], []

    def look(rows):
        most.append(store.taken()["recordings"])

    def train(further):
        """A run; in its first epoch another one begins, and trains to its end, and so on."""
        run_id = claimed(store, config)
        runs.append(run_id)

        def tell(rows):
            look(rows)
            if rows[0]["epoch"] == 1 and further:
                train(further - 1)

        ended = carry_out(store, run_id, ME, config, threading.Event(), tell)
        assert len(ended.history) == 60

    train(2)  # three train at a time: two may take all, so the third records nothing
    train(0)
    descriptions = 4 * 2_000
    assert 80_000 < max(most) <= 120_000 + descriptions
    assert [len(store.history(run_id)) for run_id in runs] == [60] * 4
    assert "may take 0 MB at most" in store.result(runs[2]).note


def test_tables_have_a_budget_in_which_those_of_jobs_are_safe(store, monkeypatch):
    monkeypatch.setattr(limits, "TABLES_BYTES", 30)
    used, old, new = (store.add_table(content) for content in (b"a,b\n1,2\n", b"a,b\n1,3\n", b"a,b\n1,4\n"))
    for age, table in enumerate((used, old, new)):
        os.utime(table, (1e9 + age, 1e9 + age))
    run_id = store.create(replace(CONFIG, data=DataConfig("csv", path=str(used), target="b")))
    store.add_table(b"a,b\n1,5\n")
    assert (used.exists(), old.exists(), new.exists()) == (True, False, True)
    with pytest.raises(StoreError, match="of tables that jobs train on are possible.*delete jobs that train on others"):
        store.add_table(b"a,b\n1,6\n" * 3)
    assert list(store.unused_tables()) == []
    assert used.exists()
    store.add_table(b"a,b\n1,7\n")
    store.drop_tables()
    assert [path.name for path in used.parent.iterdir()] == [used.name]
    store.delete(run_id)
    assert not used.exists()


def test_cells_have_a_budget_and_the_oldest_go_first(store, monkeypatch):
    rows = [{"seed": 0, "loss": "x" * 100}]
    size = len(json.dumps(rows))
    monkeypatch.setattr(limits, "CELLS_BYTES", 3 * size)
    for place in range(5):
        store.add_cell(f"key{place}", rows)
    assert [store.cell(f"key{place}") is None for place in range(5)] == [True, True, False, False, False]
    assert store.taken()["cells"] == 3 * size
    store.add_cell("large", rows * 9)  # whoever asked for it gets it
    assert store.cell("large") == rows * 9
    assert store.cell("key4") is None
    store.drop_cells()
    assert (store.taken()["cells"], store.cell("large")) == (0, None)


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


STUDY = Study(CONFIG, (4, 1), (Constant(0.5),))


def test_a_study_is_kept_beside_the_runs(store):
    run_id, study_id = store.create(CONFIG), store.create(STUDY)
    assert store.runs()["id"].tolist() == [run_id]
    assert store.studies()["id"].tolist() == [study_id]
    assert store.result(study_id).job == STUDY
    assert store.result(study_id).config == CONFIG
    assert isinstance(store.result(run_id).job, RunConfig)
    assert store.history(study_id).empty
    store.claim(ME, 9)
    assert store.claim(ME, 9) == (study_id, STUDY.to_json(indent=None))
    rows = [{"seed": seed, "epoch": 1, "val_loss_original": 0.5 + seed} for seed in STUDY.seeds]
    store.append(study_id, ME, {"epoch": 1, "rows": rows})
    store.append(study_id, ME, {"epoch": 2, "rows": rows[:1]})
    found = store.history(study_id)
    assert found[["seed", "val_loss_original"]].to_numpy().tolist() == [[4, 4.5], [1, 1.5], [4, 4.5]]
    assert store.studies()["epochs"].tolist() == [2]
    assert store.result(study_id).summary.empty


def test_the_cells_of_a_sweep_come_in_the_grids_order_whichever_was_done_first(store):
    sweep = Sweep(CONFIG, {"optimizer.batch_size": [8, 128], "network.widths": [[4], [2, 2]]}, (4, 1))
    sweep_id = store.create(sweep)
    store.claim(ME, 9)
    cells = [settings | {"seed": seed} for settings, _ in sweep.cells() for seed in sweep.seeds]
    for done, cell in enumerate((2, 0, 3, 1), 1):
        store.append(sweep_id, ME, {"epoch": done, "rows": cells[2 * cell : 2 * cell + 2]})
    assert store.history(sweep_id).to_dict("records") == cells


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


def test_jobs_of_all_kinds_in_one_list(store):
    sweep = Sweep(CONFIG, {"max_epochs": [1, 2]}, (0,))
    ids = [store.create(job) for job in (CONFIG, STUDY, sweep)]
    assert store.jobs()["id"].tolist() == ids[::-1]
    assert store.jobs()["kind"].tolist() == ["sweep", "study", "run"]
    store.claim(ME, 9)
    store.append(ids[0], ME, row(1))
    store.append(ids[0], ME, row(2, val_loss_ema=0.125))
    table = store.jobs().set_index("id")
    assert json.loads(table.loc[ids[0], "last"])["val_loss_ema"] == 0.125
    assert table["last"].isna().tolist() == [True, True, False]
    assert table["epochs"].tolist() == [0, 0, 2]


def test_renaming(store):
    run_id = store.create(CONFIG)
    assert store.runs()["name"].isna().all()
    store.rename(run_id, "  the\n good\tone ")
    assert store.runs()["name"].tolist() == [store.result(run_id).name] == ["the good one"]
    with pytest.raises(StoreError, match="at most 80 letters of a name are possible, got 81"):
        store.rename(run_id, "x" * 81)
    with pytest.raises(StoreError, match="no run 'nothing'"):
        store.rename("nothing", "x")
    assert store.result(run_id).name == "the good one"
    store.rename(run_id, " ")
    assert store.result(run_id).name is None


def test_a_table_goes_with_the_last_job_that_uses_it(store):
    table, other = store.add_table(b"a,b\n1,2\n"), store.add_table(b"a,b\n3,4\n")

    def on(path):
        return replace(CONFIG, data=DataConfig("csv", path=str(path), target="b"))

    run_id, study_id = store.create(on(table)), store.create(Study(on(table), (0, 1)))
    third = store.create(on(other))
    store.delete(run_id)
    assert table.exists()
    store.delete(study_id)
    assert (table.exists(), other.exists()) == (False, True)
    other.unlink()  # by hand
    store.delete(third)


def test_the_cells_of_a_sweep_go_with_it_unless_another_has_them(store):
    one = Sweep(CONFIG, {"max_epochs": [1, 2, 3]}, (0, 1))
    other = Sweep(CONFIG, {"max_epochs": [3, 4]}, (0, 1))
    ids = [store.create(one), store.create(other)]
    for key in {*one.cell_keys(), *other.cell_keys()}:
        store.add_cell(key, [{"seed": 0}])
    store.delete(ids[0])
    assert [store.cell(key) is None for key in one.cell_keys()] == [True, True, False]
    assert [store.cell(key) is None for key in other.cell_keys()] == [False, False]


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
