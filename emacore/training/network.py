"""The regression network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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


def build(inputs: int, config: NetworkConfig) -> nn.Sequential:
    """A perceptron from ``inputs`` features to one output: Xavier-normal weights, zero biases.

    Takes random numbers from torch's global generator.
    """
    layers: list[nn.Module] = []
    for width in config.widths:
        layers += [nn.Linear(inputs, width), _ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)]
        inputs = width
    layers.append(nn.Linear(inputs, 1))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def forward(
    tensors: Mapping[str, Tensor], x: Tensor, config: NetworkConfig, masks: Sequence[Tensor] | None = None
) -> Tensor:
    """What N networks of :func:`build`, stacked, predict: shape (N, rows, 1).

    Args:
        tensors: The networks' parameters by name, each of shape (N, *its own shape*).
        x: Shape (rows, features), the same for all networks, or (N, rows, features).
        masks: Of dropout, one for each hidden layer, of shape (N, rows, width): 0, or what a unit is multiplied with.
    """
    activation = _FUNCTIONS[config.activation]
    for layer in range(len(config.widths) + 1):
        weight, bias = (tensors[f"{_PER_LAYER * layer}.{name}"] for name in ("weight", "bias"))
        x = torch.baddbmm(bias.unsqueeze(1), x.expand(len(weight), *x.shape[-2:]), weight.mT)
        if layer < len(config.widths):
            x = activation(x)
            if masks is not None:
                x = x * masks[layer]
    return x
