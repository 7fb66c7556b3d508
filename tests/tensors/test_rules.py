import torch
from torch import nn

from emacore.tensors.rules import Rules


def test_each_name_is_averaged_copied_ignored_or_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    rules = Rules(None, frozenset({"0.bias"}), frozenset(), frozenset({"1.bias"}), frozenset({"1.weight"}), frozenset())
    assert rules.look_again(model) == rules.copied == {"mask", "1.num_batches_tracked"}
    assert rules.look_again(model) == frozenset()
    state = model.state_dict()
    assert {name for name in state if rules.is_copied(name, state[name])} == {"1.bias", *rules.copied}
    assert [name for name in state if rules.is_ignored(name)] == ["1.weight"]
    assert rules.free(model) == {"1.weight", "0.bias", *rules.copied}
    assert rules.kept(state).keys() == state.keys() - {"0.bias"}
    rules.ignored_starts = frozenset({"1.r"})
    assert {name for name in state if rules.is_ignored(name)} == {"1.weight", "1.running_mean", "1.running_var"}


def test_a_copied_buffer_that_becomes_a_parameter_is_averaged_and_a_mark_stays_one():
    model = nn.Module()
    model.register_buffer("scale_mask", torch.ones(2))
    model.mark = nn.Parameter(torch.tensor([0.0, -torch.inf]), requires_grad=False)
    rules = Rules(None, frozenset(), frozenset({"mark"}))
    rules.look_again(model)
    assert rules.copied == {"mark", "scale_mask"}
    del model.scale_mask
    model.scale_mask = nn.Parameter(torch.ones(2))
    rules.look_again(model)
    assert rules.copied == {"mark"}
