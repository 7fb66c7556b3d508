import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from emacore import EMA, averaging_function
from emacore.averaging.families import BiasCorrected, Constant, UniformAverage
from emacore.averaging.windows import Window
from tests.helpers import Network, change, tensors


@pytest.mark.parametrize(
    "schedule", [UniformAverage(update_every=2), BiasCorrected(0.8, update_after_step=3)], ids=repr
)
def test_averaging_function_in_torchs_averaged_model(schedule):
    model = Network()
    theirs = AveragedModel(model, avg_fn=averaging_function(schedule), use_buffers=True)
    ours = EMA(model, schedule=schedule)
    for step in range(15):
        change(model, step)
        theirs.update_parameters(model)
        ours.update()
    for name, tensor in tensors(theirs.module).items():
        torch.testing.assert_close(tensor, ours.ema_model.state_dict()[name])


def test_what_is_no_schedule_is_told_before_it_averages():
    for wrong in (None, 0.99, Window(5), "Constant()"):
        with pytest.raises(TypeError, match="schedule must be a schedule, such as .*, got"):
            averaging_function(wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averaging_function_refuses_an_average_that_would_not_move(dtype):
    model = nn.Linear(1, 1).to(dtype)
    theirs = AveragedModel(model, avg_fn=averaging_function(Constant(0.9999)))
    theirs.update_parameters(model)  # a copy
    with pytest.raises(TypeError, match=f"kept in {dtype} .*use emacore.EMA"):
        theirs.update_parameters(model)
    wide = AveragedModel(copy.deepcopy(model).float(), avg_fn=averaging_function(Constant(0.5)))
    nn.init.constant_(model.weight, 1.0)
    wide.update_parameters(model)
    nn.init.constant_(model.weight, 2.0)
    wide.update_parameters(model)
    assert wide.module.weight.item() == 1.5


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("hidden", torch.tensor([0.0, -torch.inf]))
        self.register_buffer("least", torch.tensor([torch.inf, 0.0]))


def test_infinities_in_buffers_are_copied_number_by_number():
    model = Masked()
    average = AveragedModel(model, avg_fn=averaging_function(Constant(0.5)), use_buffers=True)
    for value in (1.0, 2.0, 4.0):
        model.weight.data.fill_(value)
        model.least = torch.tensor([value, value])
        average.update_parameters(model)
        assert average.module.hidden.tolist() == [0.0, -torch.inf]
    assert average.module.least.tolist() == average.module.weight.tolist() == [2.75, 2.75]
    model.weight.data[0] = torch.nan  # a bad step is taken, as EMA does
    average.update_parameters(model)
    model.weight.data.fill_(1.0)
    average.update_parameters(model)
    assert average.module.weight.isnan().tolist() == [True, False]


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_with_the_module_the_buffers_are_those_that_ema_copies(norm):
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(8, 8)), nn.BatchNorm1d(8))
    average = AveragedModel(model, avg_fn=averaging_function(Constant(0.9), model), use_buffers=True)
    ema = EMA(model, schedule=Constant(0.9))
    for _ in range(20):
        model(torch.randn(4, 8))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        average.update_parameters(model)
        ema.update()
    found = tensors(average.module)
    for name, expected in tensors(ema.ema_model).items():
        torch.testing.assert_close(found[name], expected)
    with pytest.raises(ValueError, match="buffers needs module"):
        averaging_function(Constant(0.9), buffers="copy")
