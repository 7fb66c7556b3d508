"""A perceptron, one at a time or many stacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from emacore.training.config import NetworkConfig

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}
_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "gelu": functional.gelu,
    "silu": functional.silu,
}
#: Modules of a hidden layer: linear, activation, dropout.
_PER_LAYER = 3


@dataclass(frozen=True)
class Perceptron:
    """From ``inputs`` features to ``outputs`` numbers."""

    inputs: int
    outputs: int
    config: NetworkConfig

    @property
    def dropout(self) -> float:
        """The share of the hidden units that a training step leaves out."""
        return self.config.dropout

    @property
    def mask_widths(self) -> tuple[int, ...]:
        """For each mask of dropout that :meth:`forward` takes, how many units it has."""
        return self.config.widths if self.config.dropout else ()

    def build(self) -> nn.Sequential:
        """The module: Xavier-normal weights, zero biases.

        Takes random numbers from torch's global generator.
        """
        layers: list[nn.Module] = []
        inputs = self.inputs
        for width in self.config.widths:
            layers += [
                nn.Linear(inputs, width),
                _ACTIVATIONS[self.config.activation](),
                nn.Dropout(self.config.dropout),
            ]
            inputs = width
        layers.append(nn.Linear(inputs, self.outputs))
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        return nn.Sequential(*layers)

    def forward(self, tensors: Mapping[str, Tensor], x: Tensor, masks: Sequence[Tensor] | None = None) -> Tensor:
        """What N networks of :meth:`build`, stacked, predict: shape (N, rows, outputs).

        Args:
            tensors: The networks' parameters by name, each of shape (N, *its own shape*).
            x: Shape (rows, features), the same for all networks, or (N, rows, features).
            masks: Of dropout, one for each hidden layer, of shape (N, rows, width): 0, or what a unit is multiplied
                with.
        """
        activation = _FUNCTIONS[self.config.activation]
        for layer in range(len(self.config.widths) + 1):
            weight, bias = (tensors[f"{_PER_LAYER * layer}.{name}"] for name in ("weight", "bias"))
            x = torch.baddbmm(bias.unsqueeze(1), x.expand(len(weight), *x.shape[-2:]), weight.mT)
            if layer < len(self.config.widths):
                x = activation(x)
                if masks is not None:
                    x = x * masks[layer]
        return x
