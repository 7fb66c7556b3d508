"""What a task is: data, a network, a loss, and how the network is measured."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emacore.replay.measure import Measure
from emacore.training.config import TaskConfig
from emacore.training.network import Perceptron


class Dataset(NamedTuple):
    """Features of shape (rows, ...) and targets of shape (rows, ...), to train on and to validate on."""

    x_train: Tensor
    x_val: Tensor
    y_train: Tensor
    y_val: Tensor


class Task(ABC):
    """What is trained, and how it is measured.  A task's settings are a :class:`~emacore.training.config.TaskConfig`.

    Predictions and targets of the methods are batches, with any number of dimensions before that of the rows: one
    network, or N stacked ones, on the same targets or each on its own.
    """

    @abstractmethod
    def load(self, config: Any) -> Dataset:
        """Make or read the data.

        Raises:
            ValueError: if they do not fit the settings.
        """

    @abstractmethod
    def network(self, config: Any, data: Dataset) -> Perceptron:
        """The network that is trained on such data.

        Many seeds at once, as studies and sweeps train them, need one without buffers or frozen parameters.
        """

    @abstractmethod
    def loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """The mean loss over the rows, which training lowers: of (..., rows, outputs), shape (...)."""

    @abstractmethod
    def score(self, predicted: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        """Each metric of the settings by its column, float64, of (..., rows, outputs): shape (...)."""


class ValidationMeasure(Measure):
    """Measures the networks of a run on its validation rows."""

    def __init__(self, config: TaskConfig) -> None:
        self.metrics = config.metrics
        self._task = config.task()
        self._data = self._task.load(config)
        self._network = self._task.network(config, self._data)

    def __call__(self, networks: dict[str, Tensor]) -> Mapping[str, Any]:
        return {name: found.numpy() for name, found in self._scored(self._predicted(networks)).items()}

    def ensemble(self, batches: Sequence[dict[str, Tensor]]) -> Mapping[str, float]:
        """The metrics of the mean of the networks' outputs."""
        predicted = torch.cat([self._predicted(batch).double() for batch in batches])
        return {name: float(found) for name, found in self._scored(predicted.mean(dim=0)).items()}

    @torch.no_grad()
    def _predicted(self, networks: dict[str, Tensor]) -> Tensor:
        return self._network.forward(networks, self._data.x_val)

    def _scored(self, predicted: Tensor) -> Mapping[str, Tensor]:
        return self._task.score(predicted, self._data.y_val)
