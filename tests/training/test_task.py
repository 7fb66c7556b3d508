"""A task's networks, measured on its validation rows."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_squared_error, r2_score

from emacore import RunConfig
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import NetworkConfig
from emacore.training.task import Task, ValidationMeasure

CONFIG = RunConfig(data=DataConfig(n_samples=60, n_features=5, n_informative=3), network=NetworkConfig((4,), 0.5))


def some(count):
    """Modules of the task, what they predict on the validation rows, and their tensors stacked."""
    task = CONFIG.task()
    data = task.load(CONFIG)
    torch.manual_seed(1)
    modules = [task.network(CONFIG, data).build().eval() for _ in range(count)]
    states = [module.state_dict() for module in modules]
    with torch.no_grad():
        predicted = [module(data.x_val).numpy() for module in modules]
    return predicted, {name: torch.stack([state[name] for state in states]) for name in states[0]}, data.y_val.numpy()


def test_networks_are_measured_on_the_rows_that_they_did_not_see_and_without_dropout():
    predicted, networks, targets = some(3)
    measure = ValidationMeasure(CONFIG)
    assert measure.metrics == RunConfig.metrics
    found = measure(networks)
    assert list(found) == [metric.column for metric in RunConfig.metrics]
    np.testing.assert_allclose(found["loss"], [mean_squared_error(targets, one) for one in predicted], rtol=1e-5)
    np.testing.assert_allclose(found["r2"], [r2_score(targets, one) for one in predicted], rtol=1e-4)


def test_an_ensemble_is_the_mean_of_all_batches_predictions():
    predicted, networks, targets = some(3)
    batches = [{name: tensor[part] for name, tensor in networks.items()} for part in (slice(0, 1), slice(1, 3))]
    found = ValidationMeasure(CONFIG).ensemble(batches)
    assert found["loss"] == pytest.approx(mean_squared_error(targets, np.mean(predicted, axis=0)), rel=1e-5)


def test_a_task_says_all_of_it():
    class Half(Task):
        def load(self, config):
            raise NotImplementedError

    with pytest.raises(TypeError, match="abstract methods '?loss'?, '?network'?, '?score'?"):
        Half()
