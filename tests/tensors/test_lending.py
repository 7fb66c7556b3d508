"""Averages in place of the weights, and who must not take them for weights: every pair of what follows a model."""

import copy
from contextlib import ExitStack
from functools import partial

import pytest
import torch
from torch import nn

from emacore import EMA, Averages, Constant, Recorder, Snapshots
from tests.helpers import Network, assert_same, change, tensors

LENDERS = {
    "EMA": lambda model: EMA(model, schedule=Constant(0.9)).average_parameters,
    "EMA, swapped": lambda model: partial(EMA(model, schedule=Constant(0.9)).average_parameters, swap=True),
    "Averages": lambda model: partial(Averages(model, {"a": Constant(0.9)}).average_parameters, "a"),
    "EMA of a part": lambda model: EMA(model.first, schedule=Constant(0.9)).average_parameters,
}
FOLLOWERS = {
    "EMA": lambda model, path: EMA(model, schedule=Constant(0.5)).update,
    "EMA of many calls": lambda model, path: called(EMA(model, schedule=Constant(0.5))),
    "EMA of nothing but weights": lambda model, path: called(EMA(model.first, schedule=Constant(0.5))),
    "EMA that skips": lambda model, path: called(EMA(model, schedule=Constant(0.5, update_every=50))),
    "Averages": lambda model, path: Averages(model, {"b": Constant(0.5)}).update,
    "Recorder": lambda model, path: Recorder(model, path / "recording").record,
    "Snapshots": lambda model, path: Snapshots(model, path / "snapshots", every=2).update,
    "feeding back": lambda model, path: EMA(model).update_model_with_ema,
    "copying": lambda model, path: EMA(model).copy_params_from_model_to_ema,
    "state": lambda model, path: EMA(model).state_dict,
    "loading": lambda model, path: partial(EMA(model).load_state_dict, EMA(copy.deepcopy(model)).state_dict()),
}


def called(ema):
    for _ in range(5):
        ema.update()
    return ema.update


@pytest.mark.parametrize("lender", LENDERS)
@pytest.mark.parametrize("follower", FOLLOWERS)
def test_no_average_takes_another_for_the_weights(lender, follower, tmp_path):
    model = Network()
    lent, follow = LENDERS[lender](model), FOLLOWERS[follower](model, tmp_path)
    with lent(), pytest.raises(RuntimeError, match=r"inside (another's )?average_parameters\(\) would"):
        follow()
    follow()


def test_other_weights_are_not_concerned():
    one, other = Network(), Network()
    ema, far = EMA(one), EMA(other)
    with ema.average_parameters():
        far.update()
    part = EMA(one.first, schedule=Constant(0.9))
    with part.average_parameters():
        EMA(one.last, schedule=Constant(0.9)).update()


def test_blocks_in_turn_leave_the_weights_and_others_are_told():
    model = Network()
    first, second = EMA(model, schedule=Constant(0.9)), Averages(model, {"a": Constant(0.1)})
    for step in range(3):
        change(model, step)
        first.update()
        second.update()
    before = {name: tensor.clone() for name, tensor in tensors(model).items()}
    with first.average_parameters(), second.average_parameters("a"):
        pass
    assert_same(tensors(model), before)
    outer, inner = first.average_parameters(), second.average_parameters("a")
    outer.__enter__()
    inner.__enter__()
    with pytest.raises(RuntimeError, match="leave the blocks in turn"):
        outer.__exit__(None, None, None)
    inner.__exit__(None, None, None)
    with ExitStack() as stack:  # nothing is left open
        stack.enter_context(second.average_parameters("a"))
    first.update()


@pytest.mark.parametrize("lender", ["EMA", "Averages"])
def test_weights_written_inside_are_told(lender):
    model = Network()
    lent = LENDERS[lender](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.last.bias.detach().clone()
    model(torch.randn(5, 3)).sum().backward()
    with pytest.warns(UserWarning, match=r"'last\.bias'.* written inside average_parameters"), lent():
        optimizer.step()
    assert torch.equal(model.last.bias, before)


@pytest.mark.filterwarnings("error")
def test_what_may_happen_inside_is_not_told():
    model = Network()
    ema, averages = EMA(model, schedule=Constant(0.9)), Averages(model, {"a": Constant(0.5)})
    with ema.average_parameters():
        model.train()(torch.randn(5, 3)).sum().backward()  # statistics move, and go back
        with averages.average_parameters("a"):
            ema.state_dict()
        ema.state_dict()
        model.double()


def test_an_error_inside_is_the_one_that_is_seen():
    model = Network()
    block = EMA(model).average_parameters()
    block.__enter__()
    nn.init.zeros_(model.last.weight)
    assert block.__exit__(ZeroDivisionError, ZeroDivisionError(), None) is False
