import json
import sqlite3
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emacore import RunConfig
from emacore.averaging.families import Constant
from emacore.experiments.evidence import bands, per_seed
from emacore.experiments.store import RunStore, StoreError
from emacore.experiments.studies import Study, Sweep
from emacore.tasks.regression.config import DataConfig
from emacore.training.history import columns
from tests.experiments.conftest import CONFIG, claimed, row
from tests.helpers import ME


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


def test_not_a_number_survives(store):
    run_id = claimed(store)
    store.append(run_id, ME, row(1, train_loss=float("nan"), val_loss_ema=float("inf")))
    history = store.history(run_id)
    assert history["train_loss"].isna().all()
    assert history["val_loss_ema"][0] == float("inf")


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


STUDY = Study(CONFIG, (4, 1), (Constant(0.5),))


@pytest.mark.parametrize("rows", [[0], [0, 1]])
def test_lost_losses_of_a_study_are_numbers_however_many_are_lost(store, rows):
    study_id = claimed(store, STUDY)
    losses = [{"seed": seed, "epoch": 1, "val_loss_original": None, "val_loss_ema": 0.5} for seed in STUDY.seeds]
    store.append(study_id, ME, {"epoch": 1, "rows": [losses[n] for n in rows]})
    history = store.history(study_id)
    assert history["val_loss_original"].dtype == np.float64
    assert per_seed(history)["final_original"].isna().all()
    assert (bands(history, {"val_loss_original": "original"})["seeds"] == 0).all()


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
