"""A task of one's own, in one file: a classifier of scikit-learn's digits, of which more accuracy is better."""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.nn.functional import cross_entropy

from emacore import Recorder, train
from emacore.averaging.families import Constant, InversePower, UniformAverage
from emacore.experiments.evidence import answers, per_seed
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study, Sweep, job_from_json
from emacore.experiments.sweep import sweep
from emacore.replay.atlas import atlas
from emacore.replay.measure import Metric
from emacore.replay.relatives import relatives
from emacore.tasks import open_run
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import NetworkConfig, OptimizerConfig, StoppingConfig, TaskConfig, TaskData
from emacore.training.history import columns, in_words
from emacore.training.network import Perceptron
from emacore.training.replicas import replicate
from emacore.training.task import Dataset, Task


@dataclass(frozen=True)
class DigitsData(TaskData):
    train_rows: int = 600


@dataclass(frozen=True)
class DigitsConfig(TaskConfig):
    task_name = "digits in a test"
    metrics = (Metric("loss", "cross-entropy"), Metric("accuracy", "accuracy", higher_is_better=True))

    data: DigitsData = field(default_factory=DigitsData)
    network: NetworkConfig = field(default_factory=lambda: NetworkConfig((16,), 0.1))

    def task(self):
        return Digits()


class Digits(Task):
    def load(self, config):
        x, y = load_digits(return_X_y=True)
        x, y = torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y)
        rows = config.data.train_rows
        return Dataset(x[:rows], x[rows:], y[:rows], y[rows:])

    def network(self, config, data):
        return Perceptron(data.x_train.shape[1], 10, config.network)

    def loss(self, predicted, target):
        target = target.expand(predicted.shape[:-1])
        return cross_entropy(predicted.movedim(-1, 1), target, reduction="none").mean(dim=-1)

    def score(self, predicted, target):
        predicted = predicted.double()
        right = (predicted.argmax(dim=-1) == target).double().mean(dim=-1)
        chosen = torch.log_softmax(predicted, dim=-1).gather(-1, target.expand(predicted.shape[:-1]).unsqueeze(-1))
        return {"loss": -chosen.mean(dim=(-2, -1)), "accuracy": right}


CONFIG = DigitsConfig(
    optimizer=OptimizerConfig("sgd", 0.05, rate_rule="constant"),
    schedule=InversePower(0.95, update_after_step=5, update_every=1),
    stopping=StoppingConfig("none"),
    max_epochs=6,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "run"
    return train(CONFIG, record=folder), folder


def test_it_trains_and_its_metrics_are_scikit_learns(run):
    result, _ = run
    assert result.history.columns.tolist() == columns(DigitsConfig.metrics)
    assert not {"val_mae_ema", "val_r2_ema"} & set(result.history.columns)
    data = Digits().load(CONFIG)
    for model, module in (("original", result.ema.model), ("ema", result.ema)):
        with torch.no_grad():
            predicted = module.eval()(data.x_val)
        last = result.history.iloc[-1]
        assert last[f"val_accuracy_{model}"] == accuracy_score(data.y_val, predicted.argmax(dim=1)) > 0.8
        assert last[f"val_loss_{model}"] == pytest.approx(log_loss(data.y_val, predicted.softmax(dim=1)), rel=1e-5)
    assert result.summary["metric"].tolist() == ["cross-entropy", "accuracy"]
    for row in result.summary.itertuples():
        better = row.ema > row.original if row.metric == "accuracy" else row.ema < row.original
        assert (row.gain_percent > 0) == better
    assert len(in_words(result.history)) >= 2


def test_its_recording_is_replayed(run):
    result, folder = run
    opened = open_run(folder)
    curve = opened.replay({"own": CONFIG.schedule})
    assert list(curve) == ["schedule", "epoch", "loss", "accuracy"]
    for column in ("loss", "accuracy"):
        np.testing.assert_allclose(curve[column], result.history[f"val_{column}_ema"], rtol=1e-4)
    cells = pd.DataFrame(atlas(opened, CONFIG.schedule, "power", "beta", "best"))
    row = cells.iloc[200]
    alone = opened.replay({"a": InversePower(row["y"], power=row["x"], update_after_step=5, update_every=1)})
    assert row["loss"] == pytest.approx(alone["loss"].min(), rel=1e-4)
    table = pd.DataFrame(relatives(opened)).set_index("scheme")
    assert table.loc["original", "accuracy"] == pytest.approx(result.summary["original"][1])
    networks = [opened.weights[end] for end in opened.epoch_ends[-2:]]
    data = Digits().load(CONFIG)
    outputs = []
    for network in networks:
        module = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10)).eval()
        nn.utils.vector_to_parameters(torch.tensor(network), module.parameters())
        with torch.no_grad():
            outputs.append(module(data.x_val).numpy())
    expected = accuracy_score(data.y_val, np.mean(outputs, axis=0).argmax(axis=1))
    assert table.loc["ensemble of predictions", "accuracy"] == pytest.approx(expected)
    assert table.loc["ensemble of predictions", "copies_kept"] == 2


def test_its_seeds_train_as_a_stack():
    study = replicate(CONFIG, range(3), schedules={"copy": Constant(0.0)})
    assert study.history.columns.tolist() == ["seed", *columns(CONFIG.metrics), "val_loss_copy", "val_accuracy_copy"]
    np.testing.assert_allclose(study.history["val_accuracy_copy"], study.history["val_accuracy_original"])
    last = study.history[study.history["epoch"] == 6]
    assert (last["val_accuracy_ema"] > 0.8).all()
    assert answers(per_seed(study.history))["final"].seeds == 3
    whole = replace(CONFIG, network=NetworkConfig((), 0.0), optimizer=replace(CONFIG.optimizer, batch_size=600))
    one = replicate(whole, [7]).history  # whole batches and no dropout: nothing random but the initial weights
    plain = train(replace(whole, seed=7)).history
    for column in ("train_loss", "val_loss_ema", "val_accuracy_ema"):
        np.testing.assert_allclose(one[column], plain[column], rtol=1e-4)


def test_its_settings_go_through_json_store_and_sweep(tmp_path):
    assert TaskConfig.from_json(CONFIG.to_json()) == CONFIG
    assert DigitsConfig.from_json("{}") == DigitsConfig()
    assert TaskConfig.from_json("{}") == RunConfig()
    with pytest.raises(ValueError, match="no task 'regression' here"):
        DigitsConfig.from_json(RunConfig().to_json())
    with pytest.raises(ValueError, match="no task 'nothing'"):
        TaskConfig.from_json('{"task": "nothing"}')
    study = Study(CONFIG, (1, 2), (UniformAverage(),))
    assert job_from_json(study.to_json()) == study
    store = RunStore(tmp_path)
    run_id = store.create(CONFIG)
    assert store.result(run_id).job == CONFIG
    assert store.history(run_id).columns.tolist() == columns(CONFIG.metrics)
    table = sweep(replace(CONFIG, max_epochs=1), {"optimizer.learning_rate": [0.1, 0.3]}, [0, 1], workers=1)
    assert {"val_accuracy_original", "val_accuracy_ema"} <= set(table.columns)
    assert table["error"].isna().all()
    assert isinstance(job_from_json(Sweep(CONFIG, {"max_epochs": [1, 2]}, (0,)).to_json()).config, DigitsConfig)
    assert json.loads(CONFIG.to_json())["task"] == "digits in a test"


def test_a_recording_of_another_loop_is_told_how_it_is_opened(tmp_path):
    model = nn.Linear(2, 1)
    recorder = Recorder(model, tmp_path / "rows")
    recorder.record()
    recorder.close()
    with pytest.raises(ValueError, match="open others by Trajectory.open"):
        open_run(tmp_path / "rows")
