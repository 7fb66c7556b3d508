"""A store, and in it a recording, that version 0.1 wrote before there were tasks."""

import shutil
from pathlib import Path

import pytest

from emacore.averaging.families import Constant, InversePower
from emacore.experiments.names import PERSON
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study, Sweep
from emacore.tasks import open_run
from emacore.tasks.regression.config import DataConfig, RunConfig
from emacore.training.config import NetworkConfig
from emacore.training.history import columns
from emacore.training.loop import train

CONFIG = RunConfig(
    data=DataConfig(n_samples=60, n_features=5, n_informative=3),
    network=NetworkConfig((4,), 0.2),
    schedule=InversePower(beta=0.99, update_after_step=2, update_every=1),
    seed=3,
    max_epochs=4,
)


@pytest.fixture
def store(tmp_path):
    return RunStore(shutil.copytree(Path(__file__).parents[1] / "data/store_of_0_1", tmp_path / "store"))


def test_its_runs_studies_and_sweeps_are_read(store):
    run, study, sweep = (table["id"][0] for table in (store.runs(), store.studies(), store.sweeps()))
    found = store.result(run)
    assert (found.job, found.state) == (CONFIG, "done")
    assert found.summary["metric"].tolist() == ["mse", "mae", "r2"]
    history = store.history(run)
    assert history.columns.tolist() == columns(RunConfig.metrics)
    assert history["val_loss_ema"].iloc[-1] == pytest.approx(0.468909, abs=1e-6)
    again = train(CONFIG).history  # and the numbers are still those
    for column in ("train_loss", "val_loss_original", "val_loss_ema", "val_r2_ema"):
        assert again[column].tolist() == pytest.approx(history[column].tolist(), rel=1e-5)
    assert store.result(study).job == Study(CONFIG, (1, 2), (Constant(0.9),))
    assert len(store.history(study)) == 8
    assert isinstance(store.result(sweep).job, Sweep)
    assert store.history(sweep)["optimizer.learning_rate"].tolist() == [0.001, 0.001, 0.01, 0.01]


def test_its_jobs_can_be_named_and_deleted(store):
    table = store.jobs()
    assert sorted(table["kind"]) == ["run", "study", "sweep"]
    assert table["asked"].tolist() == [PERSON] * 3
    for job_id in table["id"]:
        store.rename(job_id, "old")
        assert store.result(job_id).name == "old"
        store.delete(job_id)
    assert store.jobs().empty


def test_its_recording_is_replayed(store):
    run = store.runs()["id"][0]
    opened = open_run(store.recording(run))
    curve = opened.replay({"own": CONFIG.schedule})
    assert curve["loss"].tolist() == pytest.approx(store.history(run)["val_loss_ema"].tolist(), rel=1e-4)
