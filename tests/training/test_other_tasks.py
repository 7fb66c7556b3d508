"""Tasks unlike the article's: other networks, other metrics, losses below 0."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from emacore import RunConfig, open_run, train
from emacore.averaging.families import Constant, InversePower
from emacore.experiments.sweep import SweepError, sweep
from emacore.replay.measure import Metric
from emacore.tasks.regression.config import DataConfig
from emacore.tasks.regression.task import Regression
from emacore.training.config import NetworkConfig, OptimizerConfig, StoppingConfig
from emacore.training.network import Perceptron
from emacore.training.replicas import replicate

SETTINGS = {
    "data": DataConfig(n_samples=200, n_features=4, n_informative=2),
    "network": NetworkConfig((6,), 0.0),
    "optimizer": OptimizerConfig(learning_rate=0.01, rate_rule="constant"),
    "schedule": InversePower(0.9, update_after_step=5, update_every=1),
    "stopping": StoppingConfig("none"),
    "max_epochs": 3,
}


@dataclass(frozen=True)
class OwnConfig(RunConfig):
    """Its metrics are named after the models that they measure."""

    task_name = "own words in a test"
    metrics = (Metric("loss", "loss"), Metric("ema_original", "one"), Metric("schema", "two", higher_is_better=True))

    def task(self):
        return Own()


class Own(Regression):
    def score(self, predicted, target):
        found = super().score(predicted, target)
        return {"loss": found["loss"] - 5, "ema_original": found["mae"], "schema": found["r2"]}


class Fixed(Perceptron):
    """What ``change`` makes of a perceptron."""

    change = staticmethod(lambda module: None)

    def build(self):
        module = super().build()
        self.change(module)
        return module


@dataclass(frozen=True)
class FixedConfig(RunConfig):
    task_name = "fixed in a test"

    def task(self):
        return FixedTask()


class FixedTask(Regression):
    def network(self, config, data):
        return Fixed(data.x_train.shape[1], 1, config.network)


def test_a_sweep_finds_metrics_that_are_named_after_models():
    schedules = ["Constant(beta=0.9)", "Constant(beta=0.5)"]
    table = sweep(OwnConfig(**SETTINGS), {"schedule": schedules}, [0, 1], workers=1)
    assert table["error"].isna().all()
    config = replace(OwnConfig(**SETTINGS), schedule=Constant(0.9))
    study = replicate(config, [0, 1], schedules={"other": Constant(0.5)}).history
    last = study[study["epoch"] == 3]
    for code, name in zip(schedules, ("ema", "other"), strict=True):
        cell = table[table["schedule"] == code]
        for metric in ("ema_original", "schema"):
            for model, column in (("original", "original"), ("ema", name)):
                expected = last[f"val_{metric}_{column}"].to_numpy()
                np.testing.assert_allclose(cell[f"val_{metric}_{model}"], expected, rtol=1e-4)


@pytest.mark.slow
def test_the_processes_of_a_sweep_know_a_task_of_ones_own():
    config = OwnConfig(**SETTINGS)
    here, there = (sweep(config, {"max_epochs": [1, 2]}, [0, 1], workers=workers) for workers in (1, 2))
    assert there["error"].isna().all()
    np.testing.assert_allclose(there["final_ema"], here["final_ema"], rtol=1e-4)


def test_they_cannot_know_what_is_in_a_script(monkeypatch):
    monkeypatch.setattr(OwnConfig, "__module__", "__main__")
    with pytest.raises(SweepError, match=r"put it into a module of its own, or sweep with workers=1"):
        sweep(OwnConfig(**SETTINGS), {"max_epochs": [1, 2]}, [0], workers=2)
    assert sweep(OwnConfig(**SETTINGS), {"max_epochs": [1, 2]}, [0], workers=1)["error"].isna().all()


def test_what_makes_a_task_known_and_cannot_be_imported_is_told_of_each_cell(monkeypatch):
    from emacore.experiments import sweep as module

    index, error = module.train_cell(3, "{}", None, ["no_such_module"])
    assert (index, error) == (3, "ModuleNotFoundError: No module named 'no_such_module'")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda module: module.register_buffer("shift", torch.zeros(2)), "shift, which is not"),
        (lambda module: module[0].requires_grad_(False), "0.weight, 0.bias, which are not"),
        (
            lambda module: module.append(nn.BatchNorm1d(1)),
            r"4.running_mean, 4.running_var, 4.num_batches_tracked, which are not",
        ),
    ],
)
def test_a_stack_refuses_what_it_would_train_though_it_is_not_to_be_trained(monkeypatch, change, named):
    monkeypatch.setattr(Fixed, "change", staticmethod(change))
    with pytest.raises(ValueError, match=f"this one has {named}: train its seeds one by one"):
        replicate(FixedConfig(**SETTINGS), [0, 1])


def test_a_recording_of_a_network_with_buffers_is_thinned_to_what_it_may_take(monkeypatch, tmp_path):
    monkeypatch.setattr(Fixed, "change", staticmethod(lambda module: module.register_buffer("many", torch.ones(500))))
    config = FixedConfig(**SETTINGS)
    room = 4 * 500 * 15 + 8000  # of 15 steps, of which each has these and 37 weights
    result = train(config, record=tmp_path / "run", record_bytes=room / 4)
    assert result.recording_error is None
    trajectory = open_run(tmp_path / "run")
    assert trajectory.every > 1
    assert len(trajectory.epoch_ends) == 3


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ((Metric("error", "error"),), "the first metric of Wrong must be the loss"),
        ((Metric("loss", "accuracy", higher_is_better=True),), "must be the loss: .* lower is better"),
        ((Metric("loss", "a"), Metric("loss", "b")), "two metrics have the column 'loss'"),
        ((Metric("loss", "a"), Metric("epoch", "b")), "cannot have the column 'epoch'"),
    ],
)
def test_a_task_whose_metrics_could_not_be_told_apart_is_refused(metrics, message):
    with pytest.raises(ValueError, match=message):
        type("Wrong", (RunConfig,), {"task_name": "wrong in a test", "metrics": metrics})
    assert "wrong in a test" not in RunConfig._by_task
