"""The stacked networks are the modules, one by one."""

import pytest
import torch
from torch import nn

from emacore.training.config import NetworkConfig
from emacore.training.network import Perceptron


def built(perceptron, count):
    """Some modules, and their tensors stacked."""
    torch.manual_seed(0)
    modules = [perceptron.build().eval() for _ in range(count)]
    states = [module.state_dict() for module in modules]
    return modules, {name: torch.stack([state[name] for state in states]) for name in states[0]}


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu"])
@pytest.mark.parametrize("widths", [(), (5,), (5, 3, 4)])
def test_stacked_networks_predict_as_their_modules(activation, widths):
    modules, tensors = built(Perceptron(6, 2, NetworkConfig(widths, 0.3, activation)), 3)
    shared, own = torch.randn(7, 6), torch.randn(3, 7, 6)
    network = Perceptron(6, 2, NetworkConfig(widths, 0.3, activation))
    for x in (shared, own):
        found = network.forward(tensors, x)
        assert found.shape == (3, 7, 2)
        for n, module in enumerate(modules):
            torch.testing.assert_close(found[n], module(x if x.ndim == 2 else x[n]))


def test_masks_multiply_the_hidden_units():
    network = Perceptron(6, 2, NetworkConfig((5, 4), 0.5))
    modules, tensors = built(network, 2)
    masks = [2.0 * torch.randint(0, 2, (2, 7, width)) for width in network.mask_widths]
    x = torch.randn(7, 6)
    found = network.forward(tensors, x, masks)
    for n, module in enumerate(modules):
        first = module[1](module[0](x)) * masks[0][n]
        torch.testing.assert_close(found[n], module[6](module[4](module[3](first)) * masks[1][n]))


def test_without_dropout_there_is_nothing_to_mask():
    assert Perceptron(6, 2, NetworkConfig((5, 4), 0.0)).mask_widths == ()
    assert Perceptron(6, 2, NetworkConfig((5, 4), 0.25)).mask_widths == (5, 4)
    assert Perceptron(6, 2, NetworkConfig((5, 4), 0.25)).dropout == 0.25


def test_it_begins_with_xavier_normal_weights_and_no_biases():
    torch.manual_seed(0)
    module = Perceptron(300, 200, NetworkConfig((400,), 0.1, "silu")).build()
    assert [type(layer) for layer in module] == [nn.Linear, nn.SiLU, nn.Dropout, nn.Linear]
    assert module[2].p == 0.1
    for layer in (module[0], module[3]):
        assert not layer.bias.any()
        expected = (2 / (layer.in_features + layer.out_features)) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.02)
        assert float(layer.weight.detach().abs().max()) > 3 * expected  # a uniform one would end at 1.7
