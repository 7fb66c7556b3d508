"""The regression: mean squared error of standardised targets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from emacore.tasks.regression.config import RunConfig
from emacore.tasks.regression.data import load
from emacore.training.network import Perceptron
from emacore.training.task import Dataset, Task


class Regression(Task):
    """The article's task, on its data and others."""

    def load(self, config: RunConfig) -> Dataset:
        """Features (rows, features) and targets (rows, 1), float32, standardised over all rows."""
        return Dataset(*(torch.from_numpy(part) for part in load(config.data)))

    def network(self, config: RunConfig, data: Dataset) -> Perceptron:
        """The perceptron of the settings, with one output."""
        return Perceptron(data.x_train.shape[1], 1, config.network)

    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The mean squared error."""
        return mse_loss(predicted, target.expand_as(predicted), reduction="none").mean(dim=(-2, -1))

    def score(self, predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
        """MSE, MAE and R2.

        R2 follows scikit-learn's convention for targets that are all alike: 1 where the error is 0, else 0.
        """
        target = target.double()
        error = predicted.double() - target
        loss = error.square().mean(dim=(-2, -1))
        spread = (target - target.mean()).square().mean()
        r2 = 1 - loss / spread if spread else (loss == 0).double()
        return {"loss": loss, "mae": error.abs().mean(dim=(-2, -1)), "r2": torch.as_tensor(r2)}
