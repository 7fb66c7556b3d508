import pytest
import torch
from torch import nn

from emacore.averaging.families import Constant
from emacore.tensors.shadowed import Shadowed

DEFAULTS = {
    "chosen": (None, False),
    "device": None,
    "buffers": None,
    "accumulator_dtype": None,
    "keep_half": True,
    "strict_schedule": True,
}


@pytest.mark.parametrize("include", [True, False])
def test_the_model_is_in_the_tree_if_asked_for_and_never_among_the_parts(include):
    model = nn.Linear(2, 1)
    kept = Shadowed(model, None, Constant(0.9), include_online_model=include, **DEFAULTS)
    assert kept.model is model
    assert ("online_model.weight" in kept.state_dict()) is include
    assert model not in list(kept.modules())
    assert kept.ema_model in list(kept.modules())
    other = nn.Linear(2, 1)
    kept.model = other
    assert kept.model is other
    assert kept.train().training
    assert not kept.ema_model.training


def test_where_the_average_stands_is_part_of_the_state():
    kept = Shadowed(nn.Linear(2, 1), None, Constant(0.9), include_online_model=True, **DEFAULTS)
    kept.step, kept.initted = 7, True
    other = Shadowed(nn.Linear(2, 1), None, Constant(0.9), include_online_model=True, **DEFAULTS)
    other.load_state_dict(kept.state_dict())
    assert (other.step.tolist(), other.initted.tolist()) == ([7], [True])
    assert torch.equal(other.ema_model.weight, kept.ema_model.weight)
