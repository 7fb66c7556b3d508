import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from emacore import EMA, Averages, Constant
from emacore.tensors.buffers import copied_buffers, follow_buffers, holds, marks, put_buffers
from emacore.tensors.calls import LOOK


class Buffers(nn.Module):
    """A module of the buffers that it is given, by name; those that begin with an underscore are not in its state."""

    def __init__(self, **buffers):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=not name.startswith("_"))


COPIED = {
    "mask of -inf": {"bias": torch.full((2, 2), -torch.inf).triu(1)},
    "range that begins at inf": {"least": torch.tensor(torch.inf)},
    "not numbers": {"unknown": torch.full((2,), torch.nan)},
    "mask of the least float": {"bias": torch.full((2,), torch.finfo(torch.float32).min)},
    "the same in bfloat16": {"bias": torch.full((2,), torch.finfo(torch.bfloat16).min, dtype=torch.bfloat16)},
    "pruning": {"weight_mask": torch.ones(2)},
    "cache": {"cos_cached": torch.ones(2)},
    "rotary": {"inv_freq": torch.ones(2)},
    "no part of the state": {"_angles": torch.ones(2)},
    "queue of keys": {"queue": torch.randn(4, 2)},
    "counter": {"steps": torch.tensor(3.0)},
    "counter with a name before it": {"num_seen": torch.tensor([3.0])},
    "flag": {"initted": torch.tensor([0.0])},
    "whole numbers": {"positions": torch.arange(3)},
    "truth values": {"used": torch.ones(2, dtype=torch.bool)},
    "expanded": {"grid": torch.zeros(1).expand(4)},
    "sparse": {"adjacency": torch.eye(3).to_sparse()},
}
AVERAGED = {
    "statistics": {"running_mean": torch.zeros(2), "running_var": torch.ones(2)},
    "a statistic of one number": {"running_std": torch.tensor(1.0)},
    "codebook": {"embed": torch.randn(4, 2), "cluster_size": torch.zeros(4)},
    "centre": {"center": torch.zeros(1, 2)},
    "complex": {"wave": torch.zeros(2, dtype=torch.complex64)},
    "nothing in it": {"empty": torch.zeros(0)},
}


@pytest.mark.parametrize("case", COPIED)
def test_what_is_no_statistic_is_copied(case):
    assert copied_buffers(Buffers(**COPIED[case])) == set(COPIED[case])


@pytest.mark.parametrize("case", AVERAGED)
def test_statistics_are_averaged(case):
    assert not copied_buffers(Buffers(**AVERAGED[case]))
    assert copied_buffers(Buffers(**AVERAGED[case]), "copy") == set(AVERAGED[case])


def test_of_normalisation_the_counter_alone_is_copied():
    for kind in (nn.BatchNorm1d, nn.InstanceNorm1d, nn.SyncBatchNorm):
        module = nn.Sequential(kind(1, track_running_stats=True))
        module[0].running_var.fill_(torch.inf)  # after a step that diverged
        assert copied_buffers(module) == {"0.num_batches_tracked"}


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: nn.utils.spectral_norm(nn.Linear(2, 2)), {"weight_u", "weight_v"}),
        (
            lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
            {"parametrizations.weight.0._u", "parametrizations.weight.0._v"},
        ),
        (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)), {"parametrizations.weight.0.base"}),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), set()),
        (lambda: torch.ao.quantization.MinMaxObserver(), {"min_val", "max_val", "eps"}),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_what_fits_one_matrix_only_is_copied(build, expected, compiled):
    module = torch.compile(nn.Sequential(build())) if compiled else nn.Sequential(build())
    assert copied_buffers(module) == {f"0.{name}" for name in expected}


def test_a_policy_says_which():
    module = Buffers(mask=torch.full((2,), -torch.inf), mean=torch.zeros(2), count=torch.tensor(1))
    assert copied_buffers(module, "average") == {"count"}
    assert copied_buffers(module, "copy") == {"mask", "mean", "count"}
    seen = {}

    def policy(name, tensor):
        seen[name] = tensor
        return {"mean": "copy", "mask": None}[name]

    assert copied_buffers(module, policy) == {"mask", "mean", "count"}
    assert seen["mean"] is module.mean
    assert set(seen) == {"mask", "mean"}
    with pytest.raises(ValueError, match="gave 'keep' for 'mask'; it must give 'average', 'copy' or None"):
        copied_buffers(module, lambda name, tensor: "keep")
    with pytest.raises(ValueError, match="buffers must be .*got 'keep'"):
        copied_buffers(module, "keep")
    with pytest.raises(TypeError, match="buffers must be .*got 3"):
        copied_buffers(module, 3)


def test_a_bound_of_the_precision_in_which_they_are_kept():
    module = Buffers(bias=torch.tensor([-1e9]))
    assert not copied_buffers(module)
    assert copied_buffers(module, largest=65504.0) == {"bias"}


def test_buffers_follow_that_come_go_grow_or_are_shared_otherwise():
    average = Buffers(grows=torch.zeros(2), goes=torch.zeros(1), becomes=None, ends=torch.zeros(1), stays=torch.ones(1))
    shared = torch.arange(4.0)
    model = Buffers(grows=torch.ones(5), becomes=shared, again=shared, ends=None, stays=torch.zeros(1), _new=shared)
    average.register_buffer("again", average.stays)
    names = {"grows", "goes", "becomes", "again", "ends", "_new"}
    follow_buffers(average, model, names)
    found = dict(average.named_buffers(remove_duplicate=False))
    assert set(found) == {"grows", "becomes", "again", "stays", "_new"}
    for name in names & set(found):
        assert torch.equal(found[name], model.get_buffer(name))
        assert found[name].data_ptr() != model.get_buffer(name).data_ptr()
    assert found["stays"].tolist() == [1.0], "it is not copied"
    assert "_new" not in average.state_dict()
    kept = average.grows
    follow_buffers(average, model, names)
    assert average.grows is kept, "what fits stays where it is"


def test_what_holds_what_and_what_is_put_where_there_is_a_place():
    assert holds(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    for other in (torch.zeros(3), torch.zeros(2, dtype=torch.int64), torch.zeros(2).to_sparse()):
        assert not holds(torch.zeros(2), other)
    assert not holds(torch.zeros(1).expand(2), torch.zeros(2))
    module = Buffers(cache=None, table=torch.zeros(2, dtype=torch.bfloat16))
    kept = module.table
    put_buffers(module, {"cache": torch.ones(3), "table": torch.ones(2), "stranger": torch.ones(1)})
    assert module.cache.tolist() == [1.0] * 3
    assert module.table is kept
    assert module.table.tolist() == [1.0] * 2
    assert not hasattr(module, "stranger")


def test_a_frozen_parameter_that_is_not_finite_is_a_mark():
    model = nn.Linear(2, 2)
    model.mask = nn.Parameter(torch.tensor([0.0, -float("inf")]), requires_grad=False)
    model.scale = nn.Parameter(torch.ones(2), requires_grad=False)
    assert marks(model) == {"mask"}
    ema, averages = EMA(model, schedule=Constant(0.5)), Averages(model, {"a": Constant(0.5)})
    for _ in range(3):
        ema.update()
        averages.update()
    other = copy.deepcopy(model)
    nn.init.zeros_(other.mask)
    averages.copy_to(other, "a")
    for found in (ema.ema_model, other):
        assert torch.equal(found.mask, model.mask)


def swapped(average, model, folder):
    with average.average_parameters(*(["a"] if isinstance(average, Averages) else [])):
        return model.bias_of_places.clone()


def copied(average, model, folder):
    other = copy.deepcopy(model)
    average.copy_to(other, *(["a"] if isinstance(average, Averages) else []))
    return other.bias_of_places


def saved(ema, model, folder):
    ema.save(folder / "average.safetensors")
    return load_file(folder / "average.safetensors")["bias_of_places"]


def looked_at_later(ema, model, folder):
    for _ in range(LOOK):
        ema.update()
    return ema.ema_model.bias_of_places


@pytest.mark.parametrize(
    ("build", "read"),
    [(EMA, swapped), (EMA, copied), (EMA, saved), (EMA, looked_at_later), (Averages, swapped), (Averages, copied)],
)
def test_a_buffer_that_became_a_mask_meanwhile_is_one_at_the_next_evaluation(build, read, tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("bias_of_places", torch.zeros(2))
    average = EMA(model, schedule=Constant(0.5)) if build is EMA else Averages(model, {"a": Constant(0.5)})
    for _ in range(3):
        average.update()
    model.bias_of_places[1] = -float("inf")
    for _ in range(2):
        average.update()
    assert torch.equal(read(average, model, tmp_path), torch.tensor([0.0, -float("inf")]))
