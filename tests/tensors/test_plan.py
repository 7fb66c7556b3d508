import copy

import pytest
import torch
from torch import nn

from emacore.tensors.plan import Plan, Wide, follow_writes, planned
from emacore.tensors.rules import Rules


def build(wide=()):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    shadow = copy.deepcopy(model).requires_grad_(False)
    pairs = dict(
        zip(dict(model.named_parameters()), zip(shadow.parameters(), model.parameters(), strict=True), strict=True)
    )
    found = [Wide(name, pairs[name][0].double(), *pairs[name]) for name in wide]
    return model, shadow, Plan(shadow, model, pairs, [name for name in pairs if name not in wide], found, [])


def test_a_move_is_one_call_unless_something_else_is_to_be_done():
    assert build()[2].is_simple
    assert not build(["0.bias"])[2].is_simple


@pytest.mark.parametrize(("decay", "shadows"), [(0.0, 3.0), (0.5, 2.0), (1.0, 1.0)])
@pytest.mark.parametrize("wide", [[], ["0.bias"]])
def test_a_move_is_of_the_shadow_towards_the_model(decay, shadows, wide):
    model, shadow, plan = build(wide)
    for tensor in shadow.parameters():
        nn.init.ones_(tensor)
    for tensor in model.parameters():
        nn.init.constant_(tensor, 3)
    plan.move(decay)
    assert {value for tensor in model.parameters() for value in tensor.unique().tolist()} == {3}
    assert {value for tensor in shadow.parameters() for value in tensor.unique().tolist()} == {shadows}


def test_what_has_moved_before_data_of_another_dtype_does_not_move_again():
    model, shadow, plan = build()
    nn.init.zeros_(shadow[0].weight)
    nn.init.ones_(model[0].weight)
    assert plan.moved_before_misfit() is None
    model[1].weight.data = model[1].weight.data.double()
    try:
        plan.move(0.5)
    except RuntimeError:
        done = plan.moved_before_misfit()
    assert done == ["0.weight", "0.bias"]
    assert shadow[0].weight.unique().tolist() == [0.5]
    model[1].weight.data = model[1].weight.data.float()
    plan.move(0.5, done)
    assert shadow[0].weight.unique().tolist() == [0.5]


def test_the_first_tensor_that_is_not_finite_is_named():
    model, _, plan = build(["1.bias"])
    assert plan.not_finite() is None
    for name in ("1.bias", "0.weight"):
        parameter = model.get_parameter(name)
        for value in (torch.nan, torch.inf, -torch.inf):
            parameter.data.view(-1)[-1] = value
            assert plan.not_finite() == name
        nn.init.zeros_(parameter)
    assert plan.not_finite() is None


def test_an_accumulator_takes_over_what_was_written_and_keeps_its_precision_elsewhere():
    accumulator = torch.tensor([1.001, 2.002, 3.003])
    shadow = accumulator.bfloat16()
    follow_writes(accumulator, shadow)
    assert accumulator.tolist() == torch.tensor([1.001, 2.002, 3.003]).tolist()
    shadow.data[1] = 100.0
    follow_writes(accumulator, shadow)
    assert accumulator.tolist() == torch.tensor([1.001, 100.0, 3.003]).tolist()


def test_what_is_looked_up_tells_moved_wide_copied_and_ignored_apart():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16(), nn.BatchNorm1d(2))
    shadow = copy.deepcopy(model).requires_grad_(False)
    rules = Rules(None, frozenset(), frozenset(), no_ema=frozenset({"0.bias"}), ignored_starts=frozenset({"2.running"}))
    plan, accumulators = planned(shadow, model, rules, {})
    assert plan.moved == ["0.weight", "2.weight", "2.bias"]
    assert {wide.name for wide in plan.wide} == set(accumulators) == {"1.weight", "1.bias"}
    assert {accumulator.dtype for accumulator in accumulators.values()} == {torch.float32}
    assert len(plan.followed()) == 7  # with the bias and the counter, which are copied
    assert planned(shadow, model, rules, accumulators)[1]["1.bias"] is accumulators["1.bias"]
    assert not planned(shadow, model, rules, accumulators, keep_half=False)[1]
    assert shadow[1].weight.dtype == torch.float32
