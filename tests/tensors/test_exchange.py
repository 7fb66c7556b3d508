import copy

import pytest
import torch
from torch import nn

from emacore.tensors.exchange import Exchange, loans_of


def build():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    shadow = copy.deepcopy(model).requires_grad_(False)
    for parameter in shadow.parameters():
        nn.init.constant_(parameter, 7.0)
    return model, shadow, {n: (shadow.get_parameter(n), p) for n, p in model.named_parameters()}


@pytest.mark.parametrize("swap", [False, True])
def test_weights_are_back_to_the_bit_and_stay_out_of_what_is_left_out(swap):
    model, _, pairs = build()
    before = copy.deepcopy(model.state_dict())
    left_out = {"1.bias"}
    lent = Exchange(model, {name: pair for name, pair in pairs.items() if name not in left_out}, left_out, swap)
    assert set(lent.loans) == (set(pairs) - left_out if swap else set())
    lent.put_in()
    sevens = {name for name, tensor in model.state_dict().items() if tensor.eq(7.0).all()}
    assert sevens == set(pairs) - left_out
    with lent.undone(left_out):
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[0].weight.eq(7.0).all()
    assert lent.take_out(left_out) == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_only_memory_that_is_alike_and_nobody_elses_is_lent():
    model, shadow, pairs = build()
    assert set(loans_of(pairs)) == set(pairs)
    model[0].weight.data = model[0].weight.data.t()
    model[0].bias.data = torch.zeros(4)[:2]
    shadow[1].weight.data = shadow[1].weight.data.double()
    loans = loans_of(pairs)
    assert set(loans) == {"1.bias"}
    places = model[1].bias.data_ptr(), shadow[1].bias.data_ptr()
    loans["1.bias"].lend()
    assert (shadow[1].bias.data_ptr(), model[1].bias.data_ptr()) == places
    assert not loans["1.bias"].is_written()
    assert loans["1.bias"].give_back()
    assert (model[1].bias.data_ptr(), shadow[1].bias.data_ptr()) == places
