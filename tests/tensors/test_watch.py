import pytest
import torch
from torch import nn

from emacore.tensors.lending import OPEN
from emacore.tensors.moves import is_plain
from emacore.tensors.pairing import distinct
from emacore.tensors.watch import Watch
from tests.helpers import Tied


@pytest.fixture(autouse=True, params=[True, False], ids=["with the compiler's look", "without"])
def compiled(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr("torch._C._dynamo.guards.TensorGuards", None)


def swap_data(module):
    module.first.weight.data = torch.zeros(3, 2)


def replace(module):
    module.first.bias = nn.Parameter(torch.zeros(3))


def add(module):
    module.first.register_buffer("more", torch.zeros(1))


def add_a_module(module):
    module.third = nn.Linear(1, 1)


def remove(module):
    del module.wave


def slice_data(module):
    module.first.weight.data = module.first.weight.data[:2]


def transpose_data(module):
    module.square.data = module.square.data.t()


def unsqueeze_data(module):
    module.square.data = module.square.data.unsqueeze(0)


def reshape_data(module):
    module.first.weight.data = module.first.weight.data.view(2, 3)


def double(module):
    module.double()


@pytest.mark.parametrize("in_average", [False, True])
@pytest.mark.parametrize("change", [slice_data, transpose_data, unsqueeze_data, reshape_data])
def test_another_view_of_the_same_memory_is_noticed(change, in_average):
    model, average = Tied(), Tied()
    for module in (model, average):
        module.square = nn.Parameter(torch.randn(2, 2))
    aliases, watch = [distinct(model), distinct(average)], Watch(model, average)
    assert not watch.is_stale()
    change(average if in_average else model)
    assert watch.is_stale()
    assert aliases


@pytest.mark.parametrize("change", [swap_data, replace, add, add_a_module, remove])
def test_changed_tensors_are_noticed(change):
    module = Tied()
    aliases, watch = distinct(module), Watch(module)
    assert not watch.is_stale()
    with torch.no_grad():
        module.first.weight.mul_(2)
    assert not watch.is_stale(), "other values are no other tensor"
    change(module)
    assert watch.is_stale()
    assert aliases


@pytest.mark.parametrize(
    "shape", [(1, 4), (4, 3), (3, 4), (4,), (1, 1), (1,), (), (2, 3), (3, 1, 2), (1, 2, 3)], ids=str
)
@pytest.mark.parametrize("other", [(1, 4), (3, 4), (1,), (4,), (5, 1)], ids=str)
@pytest.mark.parametrize("in_target", [False, True])
def test_of_shapes_what_torch_would_not_refuse_is_noticed(shape, other, in_target):
    """Of a source that writes a target of its shape, one of the two takes another."""
    source, target = nn.ParameterList([torch.zeros(shape)]), nn.ParameterList([torch.ones(shape)])
    watch = Watch(source, target, data="sizes")
    assert not watch.is_stale()
    (target if in_target else source)[0].data = torch.zeros(other)
    try:
        target[0].detach().lerp_(source[0].detach(), 0.5)
    except RuntimeError:
        return
    assert watch.is_stale() == (shape != other)


def test_data_swapped_in_the_second_module_is_noticed():
    model, average = Tied(), Tied()
    aliases, watch = distinct(average), Watch(model, average)
    assert not watch.is_stale()
    swap_data(average)
    assert watch.is_stale()
    assert aliases


@pytest.mark.parametrize("change", [None, swap_data, slice_data, replace, add, add_a_module, remove, double])
def test_a_move_moves_or_leaves_all_as_it_is(change):
    """Tensors move if they are those that were looked up, in whatever memory; otherwise no share is taken."""
    model, average = Tied(), Tied().requires_grad_(False)
    sources, targets = [list(some.parameters()) for some in (model, average)]
    shares = iter([0.25, 0.75])
    move = Watch(model, average, data="sizes").mover(targets, sources, shares, is_plain(targets, sources))
    assert move()
    if change is not None:
        change(model)
    before, kept = list(model.parameters()), [target.clone() for target in targets]
    same = change in (None, swap_data)
    if change is double:
        with pytest.raises(RuntimeError, match="dtype"):
            move()
        return
    assert move() == same
    assert len(list(shares)) == (not same)
    for target, was, source in zip(targets, kept, before, strict=same):
        torch.testing.assert_close(target, was.lerp(source.detach(), 0.75) if same else was, rtol=0, atol=0)
    assert not move(), "no share is left"
    assert torch.is_grad_enabled()


def test_a_move_notices_what_was_frozen_cast_or_is_in_inference_mode_and_moves_on():
    model, average = Tied(), Tied().requires_grad_(False)
    sources, targets = [list(some.parameters()) for some in (model, average)]
    move = Watch(model, average, data="sizes").mover(targets, sources, iter([0.5, 0.4, 0.3, 0.2]), False)
    model.requires_grad_(False)
    assert move()
    with torch.inference_mode():
        assert move()
    with torch.no_grad():
        assert move()
        assert not torch.is_grad_enabled()
    OPEN.append(object())
    try:
        assert not move(), "averages stand in the place of weights"
    finally:
        OPEN.clear()
    assert move()


def turn(module):
    module.weight.data = module.weight.data.t()


def take_every_other(module):
    module.weight.data = torch.randn(6, 6)[::2, ::2]


def elsewhere(module):
    module.weight.data = torch.randn(3, 3)


def as_it_is(module):
    pass


@pytest.mark.parametrize("in_average", [False, True])
@pytest.mark.parametrize("change", [as_it_is, elsewhere, turn, take_every_other])
def test_weights_in_other_memory_move_by_what_they_are(change, in_average):
    """They are read and written as they lie, where they lie one by one: they may have come to lie otherwise."""
    model, average = nn.Linear(3, 3), nn.Linear(3, 3).requires_grad_(False)
    sources, targets = [list(some.parameters()) for some in (model, average)]
    plain = is_plain(targets, sources)  # in one thread
    move = Watch(model, average, data="sizes").mover(targets, sources, iter([0.25] * 3), plain)
    assert move()
    change(average if in_average else model)
    expected = [target.lerp(source.detach(), 0.25) for target, source in zip(targets, sources, strict=True)]
    assert move()
    torch.testing.assert_close([target.detach() for target in targets], expected)
    if not in_average:
        model.weight.data = torch.complex(torch.ones(3, 3), torch.ones(3, 3)).conj().imag  # lies there negated
        expected = [target.lerp(source.detach(), 0.25) for target, source in zip(targets, sources, strict=True)]
        assert move()
        torch.testing.assert_close([target.detach() for target in targets], expected)
