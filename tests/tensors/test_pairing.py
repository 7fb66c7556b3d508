import pytest
import torch
from torch import nn

from emacore.tensors.pairing import (
    Watch,
    check_has_values,
    distinct,
    from_reals,
    in_plain_memory,
    is_averaged,
    layout,
    listed,
    paired,
    plain_name,
    real_count,
    reals,
    ties,
    unwrapped,
)


class Tied(nn.Module):
    """Two names of one parameter, a complex one, and a buffer of whole numbers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.second = nn.Linear(2, 3)
        self.second.weight = self.first.weight
        self.wave = nn.Parameter(torch.tensor([1 + 2j, 3 - 4j]))
        self.register_buffer("count", torch.tensor(7))


NAMES = ["wave", "first.weight", "first.bias", "second.weight", "second.bias", "count"]


def test_a_shared_tensor_has_each_name_and_is_kept_once():
    module = Tied()
    found = ties(module)
    assert list(found) == NAMES
    assert [tie.first_name for tie in found.values()] == [*NAMES[:3], "first.weight", *NAMES[4:]]
    kept = distinct(module)
    assert list(kept) == [name for name in NAMES if name != "second.weight"]
    assert all(not tensor.requires_grad for tensor in kept.values())
    kept["first.bias"].fill_(5.0)
    assert module.first.bias.tolist() == [5.0] * 3, "aliases, no copies"


def test_a_layout_has_shapes_kinds_and_ties_but_no_values():
    for name, tie in layout(module := Tied()).items():
        original = ties(module)[name]
        assert tie.tensor.is_meta
        assert (tie.tensor.shape, tie.tensor.dtype, tie.first_name) == (
            original.tensor.shape,
            original.tensor.dtype,
            original.first_name,
        )


def test_wrappers_are_looked_through_and_left_out_of_names():
    module = nn.Linear(2, 1)
    assert unwrapped(module) is module
    assert unwrapped(nn.DataParallel(torch.compile(module))) is module
    assert list(ties(torch.compile(module))) == ["weight", "bias"]
    assert plain_name("module._orig_mod.0.weight") == "0.weight"
    assert plain_name("a.module.weight") == "a.module.weight"


def test_pairs_of_two_modules_and_what_does_not_fit():
    one, other = Tied(), Tied()
    pairs = paired(ties(one), ties(other), "model")
    assert list(pairs) == [name for name in NAMES if name != "second.weight"]
    assert pairs["wave"][0].data_ptr() == one.wave.data_ptr()
    assert pairs["wave"][1].data_ptr() == other.wave.data_ptr()
    other.second.weight = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(RuntimeError, match=r"'second.weight' shares its tensor .* in only one of the model"):
        paired(ties(one), ties(other), "model")
    other = Tied()
    other.first.bias = nn.Parameter(torch.zeros(4))
    with pytest.raises(RuntimeError, match=r"'first.bias' and its average differ in shape: \(4,\) and \(3,\)"):
        paired(ties(one), ties(other), "model")
    other = Tied()
    other.extra = nn.Parameter(torch.zeros(1))
    del other.wave
    with pytest.raises(RuntimeError, match="the model has 'extra' more and lacks 'wave'; make"):
        paired(ties(one), ties(other), "model")


def test_what_can_be_averaged_and_read_as_it_lies():
    assert is_averaged(torch.zeros(1, dtype=torch.bfloat16))
    assert is_averaged(torch.zeros(1, dtype=torch.complex64))
    assert not is_averaged(torch.zeros(1, dtype=torch.int64))
    assert in_plain_memory(torch.zeros(1))
    assert not in_plain_memory(nn.Parameter(torch.zeros(1)))
    assert not in_plain_memory(torch.zeros(1, device="meta"))
    assert not in_plain_memory(torch.zeros(1, dtype=torch.complex64).conj().imag)


def test_real_numbers_there_and_back():
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "wave": torch.tensor([[1 + 2j], [3 - 4j]]), "b": torch.tensor(9.0)}
    assert reals(tensors["wave"]).tolist() == [1, 2, 3, -4]
    assert [real_count(tensor) for tensor in tensors.values()] == [6, 4, 1]
    flat = torch.cat([reals(tensor) for tensor in tensors.values()])
    back = from_reals(torch.stack([flat, -2 * flat]), tensors)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(back[name], torch.stack([tensor, -2 * tensor]))
    assert from_reals(flat.half()[None], {"all": flat})["all"].dtype == torch.float16


def test_tensors_without_values_are_told():
    check_has_values("model", Tied())
    with pytest.raises(ValueError, match="model: 'weight' is lazy"):
        check_has_values("model", nn.LazyLinear(3))
    with pytest.raises(ValueError, match="model: 'weight' is on the meta device"):
        check_has_values("model", nn.Linear(1, 1, device="meta"))
    placeholder = nn.Linear(1, 1)
    placeholder.weight.data = torch.empty(0)
    with pytest.raises(ValueError, match=r"model: 'weight' has shape \(0,\), as DeepSpeed's ZeRO-3 .*Gathered"):
        check_has_values("model", placeholder)
    module = nn.Module()
    module.register_buffer("empty", torch.zeros(0))
    check_has_values("model", module)
    module.register_buffer("mean", torch.zeros(1, device="meta"))
    with pytest.raises(ValueError, match="average: 'mean' is on"):
        check_has_values("average", module)


def test_names_are_listed_in_order_and_not_all():
    assert listed({"b", "a"}) == "'a', 'b'"
    assert listed(set("fedcba")) == "'a', 'b', 'c', 'd', 'e', 'f'"
    assert listed(set("hgfedcba")) == "'a', 'b', 'c', 'd', 'e', 'f' and 2 others"


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
