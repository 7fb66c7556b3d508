"""The zip of stored jobs: all that is in it can be read back, and no more than one job is in memory."""

import io
import zipfile
from dataclasses import replace
from datetime import UTC, datetime

import pandas as pd
import pytest

from emacore import RunConfig
from emacore.experiments import archive
from emacore.experiments.archive import slug, write_archive
from emacore.experiments.evidence import per_seed
from emacore.experiments.listing import listing
from emacore.experiments.store import RunStore
from emacore.experiments.studies import job_from_json
from emacore.tasks.regression.config import DataConfig
from tests.experiments.conftest import CONFIG, LOSSES, STUDY, SWEEP, entered, history, seeds
from tests.helpers import ME


@pytest.fixture
def store(tmp_path):
    return RunStore(tmp_path)


def written(store, listed=None):
    file = io.BytesIO()
    write_archive(file, store, listing(store.jobs(), datetime.now(UTC), UTC) if listed is None else listed)
    return zipfile.ZipFile(file)


def frame(zipped, name):
    return pd.read_csv(zipped.open(name))


def test_it_holds_settings_histories_and_figures(store):
    run = entered(store, CONFIG, history([4.0, 1 / 3], [4.0, 0.1]))
    study, sweep = entered(store, STUDY, state="running"), entered(store, SWEEP, state="running")
    by_epoch = seeds(LOSSES)
    for epoch, rows in by_epoch.groupby("epoch"):
        store.append(study, ME, {"epoch": epoch, "rows": rows.to_dict("records")})
    cell = {"seed": 0, "epochs": 1, "error": None} | {f"final_{which}": 1.0 for which in ("original", "averaged")}
    for number in (1, 2):
        rows = [{"max_epochs": number} | cell | {"seed": seed} for seed in (0, 1)]
        store.append(sweep, ME, {"epoch": number, "rows": rows})
    failed = entered(store, CONFIG, state="failed", error="x")
    store.rename(run, "My run: ü/..\\ 0.9")
    zipped = written(store)
    jobs = frame(zipped, "jobs.csv").set_index("id")
    assert set(jobs.index) == {run, study, sweep, failed}
    assert jobs.loc[run, "name"] == "My run: ü/..\\ 0.9"
    assert jobs.loc[run, "folder"] == f"my-run-..-0.9-{run}"
    folders = jobs["folder"]
    for job_id in jobs.index:
        text = zipped.read(f"{folders[job_id]}/settings.json")
        assert job_from_json(text) == store.result(job_id).job
        pd.testing.assert_frame_equal(
            frame(zipped, f"{folders[job_id]}/history.csv"),
            store.history(job_id),
            check_exact=True,
            check_dtype=False,
        )
    assert frame(zipped, f"{folders[run]}/metrics.csv")["ema"][0] == 0.1
    found = frame(zipped, f"{folders[study]}/seeds.csv")
    pd.testing.assert_frame_equal(found, per_seed(by_epoch), check_exact=True, check_dtype=False)
    assert frame(zipped, f"{folders[sweep]}/cells.csv")["max_epochs"].tolist() == [1, 2]
    assert f"{folders[failed]}/metrics.csv" not in zipped.namelist()
    assert all(".." not in name.split("/") for name in zipped.namelist())


def test_the_tables_of_ones_own_come_along_once(store):
    path = store.add_table(b"a,b\n1,2\n")
    store.add_table(b"of nobody\n")
    for seed in (1, 2):
        store.create(replace(CONFIG, data=DataConfig("csv", path=str(path), target="b"), seed=seed))
    zipped = written(store)
    assert [name for name in zipped.namelist() if name.startswith("tables/")] == [f"tables/{path.name}"]
    assert zipped.read(f"tables/{path.name}") == b"a,b\n1,2\n"


def test_a_job_that_is_deleted_meanwhile_is_left_out(store):
    kept, gone = entered(store, CONFIG, history([1.0], [1.0])), entered(store, CONFIG, history([1.0], [1.0]))
    listed = listing(store.jobs(), datetime.now(UTC), UTC)
    store.delete(gone)
    zipped = written(store, listed)
    assert frame(zipped, "jobs.csv")["id"].tolist() == [kept]
    assert not [name for name in zipped.namelist() if gone in name]


def test_an_empty_one_is_a_zip_too(store):
    assert frame(written(store), "jobs.csv").empty


def test_one_history_at_a_time_is_in_memory(store, monkeypatch):
    for seed in range(5):
        entered(store, RunConfig(seed=seed), history([1.0], [1.0]))
    alive = []
    real = RunStore.history

    def counted(self, job_id):
        found = real(self, job_id)
        alive.append(found)
        return found

    written_frames = []
    monkeypatch.setattr(RunStore, "history", counted)
    monkeypatch.setattr(archive, "_write_csv", lambda zipped, name, table: written_frames.append(len(alive)))
    written(store)
    assert written_frames == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5]  # each is written before the next is read


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("regression, Adam 0.01 constant, 14:03", "regression-adam-0.01-constant-14-03"),
        ("../../etc", "etc"),
        ("ü", "job"),
        ("x" * 200, "x" * 60),
    ],
)
def test_names_of_folders(name, expected):
    assert slug(name) == expected
