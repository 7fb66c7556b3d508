import pytest
import torch
from torch import nn

from emacore.tensors.states import (
    add_left_out,
    check_same_schedule,
    drop_left_out,
    match,
    put_accumulators,
    taken_accumulators,
)


def test_accumulators_come_from_their_own_keys_or_from_a_shadow_that_was_wide_alone():
    average, state = nn.Linear(2, 1).bfloat16(), {"ema_model.bias": torch.ones(1), "ema_model.weight": torch.ones(1, 2)}
    put_accumulators(state, "", {"weight": torch.full((1, 2), 3.0)})
    found = taken_accumulators(state, "", average, lambda tensor: torch.float32)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"weight": [[3.0, 3.0]], "bias": [1.0]}
    assert set(state) == {"ema_model.bias", "ema_model.weight"}


def test_names_of_wrappers_are_matched_and_what_is_left_out_comes_and_goes():
    module = nn.Sequential(nn.Linear(1, 1))
    state = {"m._orig_mod.0.weight": 1, "m.module.0.bias": 2, "m.strange": 3}
    match(state, "m.", module)
    assert state == {"m.0.weight": 1, "m.0.bias": 2, "m.strange": 3}
    drop_left_out(state, "m.", {"0.bias"})
    assert state == {"m.0.weight": 1, "m.strange": 3}
    add_left_out(state, "m.", module, {"0.bias"})
    assert state["m.0.bias"] is not None
    assert len(state) == 3


def test_another_schedule_is_told():
    check_same_schedule({"beta": 0.9}, {"beta": 0.9})
    with pytest.raises(ValueError, match="saved under the schedule {'beta': 0.8}, this average has {'beta': 0.9}"):
        check_same_schedule({"beta": 0.9}, {"beta": 0.8})
