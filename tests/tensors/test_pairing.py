import pytest
import torch
from torch import nn

from emacore.tensors.pairing import (
    as_names,
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
from tests.helpers import Tied

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


def test_names_are_a_collection_of_texts_used_up_or_not_and_no_string():
    for names in (["a", "b", "a"], ("a", "b"), {"a", "b"}, {"a": 1, "b": 2}, (name for name in "ab")):
        assert as_names("names", names) == {"a", "b"}
    with pytest.raises(TypeError, match="names must be a collection of names, got the string 'ab'"):
        as_names("names", "ab")
    for other in (5, None, [5], ["a", None]):
        with pytest.raises(TypeError, match=r"names must be a collection of names, such as \['weight'\], got "):
            as_names("names", other)
