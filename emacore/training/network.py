"""The regression network."""

from __future__ import annotations

from torch import nn

from emacore.training.config import NetworkConfig

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


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
