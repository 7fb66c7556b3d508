import copy
import warnings
from enum import Enum

import numpy as np
import pytest
import torch
from torch import nn

from emacore.tensors.attributes import FOLLOWED, Attributes, Follower


class Kind(Enum):
    FIRST, SECOND = 1, 2


class Keeper(nn.Module):
    """Keeps what is no tensor as plain attributes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.temperature, self.sizes, self.plain = 1.0, {"a": [1, 2]}, torch.zeros(2)
        self.array, self.kind = np.array([1.0, np.nan]), Kind.FIRST
        self.scaling, self.merged_adapters = {"default": 1.0}, []
        self.active_adapter, self._active_adapter, self._disable_adapters = "default", ["default"], False


class WithExtraState(Keeper):
    """Says itself what counts of it."""

    def __init__(self):
        super().__init__()
        self.state = {"codes": torch.zeros(1)}

    def get_extra_state(self):
        return self.state

    def set_extra_state(self, state):
        self.state = state


def test_extra_state_and_the_listed_attributes_follow_as_copies():
    model = nn.Sequential(WithExtraState())
    average, attributes = copy.deepcopy(model), Attributes(model)
    follower = Follower(average, model)
    assert follower.needed
    for name, value in zip(FOLLOWED, ({"default": 3.0}, ["default"], "other", ["other"], True), strict=True):
        assert getattr(model[0], name) != value
        setattr(model[0], name, value)
    model[0].state["codes"].fill_(4.0)
    follower.follow()
    assert all(getattr(average[0], name) == getattr(model[0], name) for name in FOLLOWED)
    assert average[0].state["codes"].tolist() == [4.0]
    model[0].scaling["default"], model[0].state["codes"][0] = 7.0, 8.0
    assert average[0].scaling == {"default": 3.0}
    assert average[0].state["codes"].tolist() == [4.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model[0].temperature = 5.0
        attributes.tell(average, model)
    assert not Follower(nn.Linear(1, 1), nn.Linear(1, 1)).needed


def set_number(part):
    part.temperature = 2.0


def set_inside(part):
    part.sizes["a"][0] = 5


def write_tensor(part):
    part.plain.fill_(1.0)


def replace_tensor(part):
    part.plain = torch.ones(2)


def write_array(part):
    part.array[0] = 2.0


def set_member(part):
    part.kind = Kind.SECOND


CHANGES = [set_number, set_inside, write_tensor, replace_tensor, write_array, set_member]


@pytest.mark.parametrize("change", CHANGES)
def test_other_attributes_that_change_are_told_once_and_not_where_the_average_has_them_too(change):
    model = nn.Sequential(Keeper())
    average = copy.deepcopy(model)
    attributes = Attributes(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attributes.tell(average, model)
        model.eval()
        model[0].linear.weight.data.fill_(1.0)
        model[0].seen = model[0]._steps = 3  # new ones, and private ones, are nobody's settings
        model[0].scaling["default"] = 2.0
        attributes.tell(average, model)
        change(model[0])
        change(average[0])
        attributes.tell(average, model)
    average = copy.deepcopy(model)
    model[0].temperature = 9.0
    with pytest.warns(
        UserWarning, match=r"the model's '0\.temperature' changed.*set it on the average too.*register_buffer"
    ):
        attributes.tell(average, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attributes.tell(average, model)


@pytest.mark.parametrize("change", CHANGES)
def test_each_kind_of_change_is_told(change):
    model = nn.Sequential(Keeper())
    average, attributes = copy.deepcopy(model), Attributes(model)
    change(model[0])
    with pytest.warns(UserWarning, match="changed, and the average keeps its own"):
        attributes.tell(average, model)


def replace_part(model):
    model[1] = nn.Sigmoid()


def add_part(model):
    model.append(nn.ReLU())


def remove_part(model):
    del model[1]


class Sharded(nn.ReLU):
    """As fully_shard makes them."""


def make_subclass(model):
    model[1].__class__ = Sharded


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (replace_part, r"'1' \(Sigmoid, in the average ReLU\)"),
        (add_part, r"'2' \(ReLU, in the average none\)"),
        (remove_part, r"'1' \(none, in the average ReLU\)"),
    ],
)
def test_parts_without_tensors_that_come_go_or_are_replaced_are_told_once(change, told):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    average, attributes = copy.deepcopy(model), Attributes(model)
    make_subclass(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attributes.tell(average, model)
    change(model)
    with pytest.warns(UserWarning, match=f"were replaced, added or removed: {told}; .*change it"):
        attributes.tell(average, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attributes.tell(average, model)
        attributes = Attributes(copy.deepcopy(average))
        attributes.tell(copy.deepcopy(model), model)  # the average was changed in the same way
