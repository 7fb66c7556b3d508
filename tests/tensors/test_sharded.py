"""Averages of sharded models, in four processes on this machine, forked once; the tests read what their checks said."""

import copy
import json
import traceback
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch._dynamo  # which each of the processes would import
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_model
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from emacore import EMA, Averages, Constant, InversePower, Recorder
from emacore.replay.recording import read_recording
from emacore.tensors.pairing import ties
from emacore.tensors.processes import LATER
from emacore.tensors.sharded import alike, gathered, is_sharded, laid_out, local
from tests.helpers import in_processes, join_group

PROCESSES = 4
SCHEDULE = InversePower(0.9, update_after_step=1, update_every=2)
PARTLY = [
    ("built before", {"names": ["first.weight", "norm.running_mean", "middle.0.bias"]}),
    ("sharded by EMA", {"trainable_only": True}),
]


class Tied(nn.Module):
    """Weights of odd sizes, a tie, statistics, and a buffer that is not averaged."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.middle = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))
        self.last = nn.Linear(3, 5, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("mask", torch.tensor([0.0, float("-inf")]))

    def forward(self, x):
        return self.last(self.middle(self.norm(self.first(x))))


def made(dtype=torch.float32):
    torch.manual_seed(0)
    return Tied().to(dtype)


def sharded(model, mesh, **options):
    fully_shard(model.middle, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def change(model, seed):
    """A step of training that is the same however the model is sharded."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator).abs().to(tensor.dtype)  # variances, too
                tensor.copy_(laid_out(values, tensor.detach()))
            else:
                tensor.fill_(seed)


def train(model, ema, steps):
    for step in steps:
        change(model, step)
        ema.update()


def whole(module):
    return {name: gathered(tensor.detach()).clone() for name, tensor in module.state_dict().items()}


def check_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-6, msg=name)


def reference(steps, dtype=torch.float32):
    model = made(dtype)
    ema = EMA(model, schedule=SCHEDULE)
    train(model, ema, steps)
    return model, ema


def both_sharded(mesh, order, dtype=torch.float32):
    model = made(dtype)
    if order == "sharded by EMA":
        ema = EMA(sharded(model, mesh), schedule=SCHEDULE)
    elif order == "built before":
        ema = EMA(model, schedule=SCHEDULE)
        sharded(model, mesh)
        sharded(ema.ema_model, mesh)
    elif order == "whole shadow":
        ema = EMA(model, schedule=SCHEDULE)
        sharded(model, mesh)
    else:
        shadow = copy.deepcopy(model)
        ema = EMA(sharded(model, mesh), ema_model=sharded(shadow, mesh), schedule=SCHEDULE)
    return model, ema


def check_equal_to_the_unsharded_run(mesh, order, dtype=torch.float32):
    plain, expected = reference(range(6), dtype)
    model, ema = both_sharded(mesh, order, dtype)
    train(model, ema, range(6))
    assert all(is_sharded(p) for p in model.parameters())
    assert all(is_sharded(p) == (order != "whole shadow") for p in ema.ema_model.parameters())
    check_same(whole(ema.ema_model), expected.ema_model.state_dict())
    x = torch.randn(6, 3, dtype=dtype)
    torch.testing.assert_close(ema(x), expected(x), rtol=1e-5, atol=1e-5)
    train(model, ema, range(6, 8))  # after a forward pass has gathered the shadow's weights
    train(plain, expected, range(6, 8))
    check_same(whole(ema.ema_model), expected.ema_model.state_dict())
    torch.testing.assert_close(ema(x), expected(x), rtol=1e-5, atol=1e-5)


def check_a_swap_is_seen_by_forward_passes(mesh):
    plain, expected = reference(range(6))
    model, ema = both_sharded(mesh, "sharded by EMA")
    train(model, ema, range(6))
    x = torch.randn(6, 3)
    for one in (model, plain):
        one.eval()
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
            with ema.average_parameters():
                torch.testing.assert_close(model(x), expected(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-5, atol=1e-5)
    check_same(whole(model), plain.state_dict())


def check_copies_into_a_plain_module(mesh):
    _, expected = reference(range(6))
    model, ema = both_sharded(mesh, "sharded by EMA")
    train(model, ema, range(6))
    other = made()
    ema.copy_to(other)
    check_same(other.state_dict(), expected.ema_model.state_dict())
    assert not any(is_sharded(p) for p in other.parameters())


def check_saved_and_fed_back(mesh, folder):
    _, expected = reference(range(6))
    model, ema = both_sharded(mesh, "sharded by EMA")
    train(model, ema, range(6))
    ema.save(folder / "averages.safetensors")
    dist.barrier()
    other = made()
    load_model(other, folder / "averages.safetensors")
    check_same(other.state_dict(), expected.ema_model.state_dict())
    model, ema = both_sharded(mesh, "built before")
    ema.load(folder / "averages.safetensors")
    check_same(whole(ema.ema_model), expected.ema_model.state_dict())
    ema.update_model_with_ema()
    check_same(whole(model), expected.ema_model.state_dict())


def partly_trained(mesh, order, options):
    """The same part of it, averaged where it is whole and where it is sharded."""
    runs = []
    for parts in (None, mesh):
        model = made()
        model.middle.requires_grad_(False)
        if parts is not None and order == "sharded by EMA":
            sharded(model, parts)
        ema = EMA(model, schedule=SCHEDULE, **options)
        if parts is not None and order == "built before":
            sharded(model, parts)
            sharded(ema.ema_model, parts)
        runs.append((model, ema))
    return runs


def check_a_part_of_the_model(mesh, order, options):
    """What is left out stays the model's memory, sharded as it is, and forward passes of the average see it."""
    (plain, expected), (model, ema) = partly_trained(mesh, order, options)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    for steps in (range(6), range(6, 8)):  # the later ones after forward passes
        train(plain, expected, steps)
        train(model, ema, steps)
        check_same({name: gathered(tensor) for name, tensor in ema.weights.items()}, expected.weights)
        check_same(whole(ema.ema_model), expected.ema_model.state_dict())
        theirs, ours = ties(model), ties(ema.ema_model)
        left_out = theirs.keys() - ema.weights.keys() - {"last.weight"}  # that is tied to the first
        assert len(left_out) >= 4
        for name in left_out:
            places = {local(tied[name].tensor.detach()).data_ptr() for tied in (theirs, ours)}
            assert len(places) == 1, name
        torch.testing.assert_close(ema(x), expected(x), rtol=1e-5, atol=1e-5)
        ema.to("cpu")
        torch.testing.assert_close(ema(x), expected(x), rtol=1e-5, atol=1e-5)
        with ema.average_parameters():
            check_same(whole(model), expected.ema_model.state_dict())


def check_a_part_resumed(folder, few):
    (order, options), (other_order, _) = PARTLY
    plain, expected = partly_trained(None, order, options)[0]
    train(plain, expected, range(8))
    if dist.get_rank() < 2:
        model, ema = partly_trained(few, order, options)[1]
        train(model, ema, range(6))
        dcp.save({"ema": ema}, checkpoint_id=folder, process_group=few.get_group())
    dist.barrier()
    model, ema = partly_trained(init_device_mesh("cpu", (PROCESSES,)), other_order, options)[1]
    dcp.load({"ema": ema}, checkpoint_id=folder)
    train(model, ema, range(6, 8))
    check_same(whole(ema.ema_model), expected.ema_model.state_dict())


def check_averages(mesh, order):
    schedules = {"fast": SCHEDULE, "slow": Constant(0.95)}
    plain, model = made(), made()
    expected = Averages(plain, schedules)
    averages = Averages(model if order == "built before" else sharded(model, mesh), schedules, on_nonfinite="skip")
    if order == "built before":
        sharded(model, mesh)
    train(plain, expected, range(40))
    train(model, averages, range(40))
    assert averages.averages.shape[1] < expected.averages.shape[1]
    model.eval()
    for name in schedules:
        ones = made(), made()
        averages.copy_to(ones[0], name)
        expected.copy_to(ones[1], name)
        check_same(ones[0].state_dict(), ones[1].state_dict())
        with averages.average_parameters(name, bema=(0.1, "slow")):
            found = whole(model)
        with expected.average_parameters(name, bema=(0.1, "slow")):
            check_same(found, plain.state_dict())
    check_same(whole(model), plain.state_dict())
    kept, ema = averages.averages, EMA(model, on_nonfinite="skip")
    if mesh.get_local_rank() == 1:
        local(model.middle[0].weight.detach())[:] = torch.nan
    for average in (averages, ema):  # what one process sees, all skip
        average.update()
        assert average.nonfinite_calls == 1
    assert torch.equal(averages.averages, kept)


def check_averages_resumed(folder, few):
    """Two processes save, and four go on; and one alone from a plain state."""
    schedules = {"fast": SCHEDULE, "slow": Constant(0.95)}
    plain = made()
    expected = Averages(plain, schedules)
    train(plain, expected, range(6))
    before = expected.state_dict()
    train(plain, expected, range(6, 8))
    if dist.get_rank() < 2:
        model = sharded(made(), few)
        averages = Averages(model, schedules)
        train(model, averages, range(6))
        dcp.save({"averages": averages}, checkpoint_id=folder, process_group=few.get_group())
    dist.barrier()
    for state in ("sharded", "plain"):
        model = made()
        averages = Averages(model, schedules)
        sharded(model, init_device_mesh("cpu", (PROCESSES,)))
        if state == "sharded":
            dcp.load({"averages": averages}, checkpoint_id=folder)
        else:
            averages.load_state_dict(before)
        assert averages.step == 6
        train(model, averages, range(6, 8))
        for name in schedules:
            ones = made(), made()
            averages.copy_to(ones[0], name)
            expected.copy_to(ones[1], name)
            check_same(ones[0].state_dict(), ones[1].state_dict())
    with pytest.raises(ValueError, match="the state has .* in place of this module's weights"):
        Averages(nn.Linear(2, 3), schedules).load_state_dict(averages.state_dict())


def check_recorder(mesh, folder):
    plain, model = made(), sharded(made(), mesh)
    assert mesh.size() == PROCESSES
    whole_one = Recorder(plain, folder / f"whole{dist.get_rank()}", every=2)
    with Recorder(model, folder / "parts", every=2) as recorder, whole_one:
        assert recorder.row_bytes == whole_one.row_bytes
        for step in range(6):
            for one, record in ((plain, whole_one), (model, recorder)):
                change(one, step)
                record.record()
            model(torch.randn(4, 3)).sum().backward()  # gathers weights, and lets go of them
        recorder.end_epoch()
        whole_one.end_epoch()
    dist.barrier()
    found, wanted = read_recording(folder / "parts"), read_recording(folder / f"whole{dist.get_rank()}")
    assert np.array_equal(found.weights, wanted.weights)
    assert np.array_equal(found.copied, wanted.copied)
    assert found.epoch_ends == wanted.epoch_ends
    with pytest.raises(
        FileExistsError if dist.get_rank() == 0 else RuntimeError, match="holds a recording already|cannot begin"
    ):
        Recorder(model, folder / "parts")
    with Recorder(model, folder / "small", most_bytes=600) as small:
        for _ in range(3):
            small.record()
        small.end_epoch()
        assert small.error.startswith("nothing was recorded" if dist.get_rank() == 0 else "the process that writes")
        small.record()


def check_tensor_parallel(mesh, grid):
    """Weights that lie in parts without fully_shard."""
    results = []
    for parts in (None, mesh):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        if parts is not None:
            parallelize_module(model, parts, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        ema = EMA(model, schedule=SCHEDULE)
        train(model, ema, range(6))
        results.append((whole(ema.ema_model), ema(torch.ones(2, 4))))
        assert all(is_sharded(p) == (parts is not None) for p in ema.ema_model.parameters())
    check_same(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-5)
    both = fully_shard(parallelize_module(nn.Linear(4, 8), grid["parts"], ColwiseParallel()), mesh=grid["copies"])
    with pytest.raises(TypeError, match="build a second one and pass it as ema_model"):
        EMA(both)


def check_training_steps_with_an_optimiser(mesh):
    """The same batch in all processes, so that the unsharded run takes the same steps."""
    results = []
    for parts in (None, mesh):
        model = made()
        if parts is not None:
            sharded(model, parts, mp_policy=MixedPrecisionPolicy(), reshard_after_forward=False)
        ema = EMA(model, schedule=Constant(0.7))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            x = torch.randn(8, 3, generator=generator)
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update()
        results.append(whole(ema.ema_model))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def check_resumed_on_another_number(folder, few, dtype):
    """Two processes save, four go on, and with the shadow built the other way round."""
    plain, expected = reference(range(8), dtype)
    if dist.get_rank() < 2:
        model, ema = both_sharded(few, "sharded by EMA", dtype)
        train(model, ema, range(6))
        dcp.save({"ema": ema}, checkpoint_id=folder, process_group=few.get_group())
    dist.barrier()
    model, ema = both_sharded(init_device_mesh("cpu", (PROCESSES,)), "built before", dtype)
    dcp.load({"ema": ema}, checkpoint_id=folder)
    assert ema.step.item() == 6
    train(model, ema, range(6, 8))
    check_same(whole(ema.ema_model), expected.ema_model.state_dict())
    check_same(whole(model), plain.state_dict())
    if dtype == torch.bfloat16:
        found, wanted = ema.state_dict(), expected.state_dict()
        accumulators = [name for name in wanted if name.startswith("accumulator.")]
        assert accumulators
        check_same(
            {name: gathered(found[name]) for name in accumulators}, {name: wanted[name] for name in accumulators}
        )


def check_ddp(folder):
    """Each process keeps the same average of the weights, and its own of what differs between them."""
    plain = nn.Linear(3, 2)
    nn.init.ones_(plain.weight), nn.init.zeros_(plain.bias)
    model = DistributedDataParallel(plain)
    ema = EMA(model, schedule=Constant(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = copy.deepcopy(plain)
    for step in range(4):
        x = torch.full((2, 3), float(dist.get_rank() + step))
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        with torch.no_grad():
            for average, value in zip(kept.parameters(), plain.parameters(), strict=True):
                average.copy_(value) if step == 0 else average.lerp_(value, 0.5)
    check_same(ema.ema_model.state_dict(), kept.state_dict())
    found = [None] * PROCESSES
    dist.all_gather_object(found, ema.ema_model.state_dict())
    for other in found:
        check_same(other, kept.state_dict())
    if dist.get_rank() == 0:
        torch.save(ema.state_dict(), folder / "ddp.pt")
    dist.barrier()
    fresh = EMA(DistributedDataParallel(nn.Linear(3, 2)), schedule=Constant(0.5))
    fresh.load_state_dict(torch.load(folder / "ddp.pt"))
    check_same(fresh.ema_model.state_dict(), kept.state_dict())


def check_a_write_in_one_process_is_told():
    """And those that all make are not, though they are not at the same time."""
    model = DistributedDataParallel(nn.Linear(3, 2))
    ema = EMA(model, schedule=Constant(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema.attach(optimizer)

    def told(steps):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            for step in range(steps):
                model(torch.full((2, 3), float(dist.get_rank() + step))).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        return [str(one.message) for one in found]

    ema.update_model_with_ema_every = 3
    assert told(12) == []
    ema.update_model_with_ema_every = None
    for _ in range(4):
        ema.update_model_with_ema()
        assert told(2) == []
    assert told(LATER) == []
    with ema.average_parameters() if dist.get_rank() == 1 else nullcontext():
        pass  # what one of them looks at is put back
    if dist.get_rank() == 2:
        for _ in range(8):
            ema.copy_params_from_ema_to_model()
    assert told(LATER - 1) == []
    said = [one.partition(" of the run")[0] for one in told(1)]
    expected = (
        "update_model_with_ema() has written an average into the model in process 2, but not in processes 0, 1, 3"
    )
    assert said == ([expected] if dist.get_rank() == 2 else [])


def check_errors(mesh, folder):
    model = made()
    ema, recorder = EMA(model, names=["first.weight"]), Recorder(model, folder / f"before{dist.get_rank()}")
    sharded(model, mesh)
    with pytest.raises(RuntimeError, match=r"not sharded alike .*fully_shard to both .*ema.ema_model"):
        ema.update()
    with pytest.raises(RuntimeError, match="sharded, or gathered, after its Recorder was built"):
        recorder.record()
    with pytest.raises(ValueError, match=r"keep_half=False is for models that are not sharded.*MixedPrecisionPolicy"):
        EMA(sharded(made(torch.bfloat16), mesh), keep_half=False)
    flat = FullyShardedDataParallel(made(), device_id=torch.device("cpu"))
    for build in (
        lambda: EMA(flat),
        lambda: EMA(made(), ema_model=flat),
        lambda: Averages(flat, {"a": Constant(0.9)}),
        lambda: Recorder(flat, folder / "never"),
    ):
        with pytest.raises(TypeError, match="FSDP1.*fully_shard"):
            build()


def check_states_of_whole_and_sharded_runs_are_exchanged(mesh):
    for dtype in (torch.float32, torch.bfloat16):
        expected = reference(range(8), dtype)[1]
        whole_run = reference(range(6), dtype)[1]
        model, ema = both_sharded(mesh, "sharded by EMA", dtype)
        train(model, ema, range(6))
        for state in (whole_run.state_dict(), ema.state_dict()):
            model, ema = both_sharded(mesh, "built before", dtype)
            other = EMA(made(dtype), schedule=SCHEDULE)
            for one in (ema, other):
                one.load_state_dict(state)
                train(one.model, one, range(6, 8))
                check_same(whole(one.ema_model), expected.ema_model.state_dict())


def check_layouts(mesh):
    whole_one = torch.arange(15.0).reshape(5, 3)
    like = sharded(made(), mesh).first.weight.detach()
    part = laid_out(whole_one, like)
    assert isinstance(part, DTensor)
    assert alike(part, like)
    assert not alike(part, whole_one)
    assert local(part).numel() < 15
    assert torch.equal(gathered(part), whole_one)
    assert torch.equal(laid_out(part, whole_one), whole_one)


def checks(folder, few):
    rank = dist.get_rank()
    everybody = init_device_mesh("cpu", (PROCESSES,))
    for mesh, size in ((few, 2), (everybody, 4)):
        if rank < size:
            for order in ("sharded by EMA", "built before", *(("given", "whole shadow") if size == 2 else ())):
                yield f"{size} processes, {order}", lambda m=mesh, o=order: check_equal_to_the_unsharded_run(m, o)
            yield (
                f"{size} processes, bfloat16",
                lambda m=mesh: check_equal_to_the_unsharded_run(m, "sharded by EMA", torch.bfloat16),
            )
            yield f"{size} processes, swap", lambda m=mesh: check_a_swap_is_seen_by_forward_passes(m)
            yield f"{size} processes, copy", lambda m=mesh: check_copies_into_a_plain_module(m)
            for order, options in PARTLY[: 4 // size]:
                yield (
                    f"{size} processes, a part, {order}",
                    lambda m=mesh, o=order, options=options: check_a_part_of_the_model(m, o, options),
                )
            order = "built before" if size == 2 else "sharded first"
            yield f"{size} processes, Averages", lambda m=mesh, o=order: check_averages(m, o)
    yield "files", lambda: check_saved_and_fed_back(everybody, folder)
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts"))
    yield "kinds, copies of shards", lambda: check_equal_to_the_unsharded_run(grid, "sharded by EMA")
    yield "kinds, tensor parallel", lambda: check_tensor_parallel(everybody, grid)
    yield "training", lambda: check_training_steps_with_an_optimiser(everybody)
    for dtype in (torch.float32, torch.bfloat16):
        yield f"resumed, {dtype}", lambda d=dtype: check_resumed_on_another_number(folder / str(d), few, d)
    yield "resumed, a part", lambda: check_a_part_resumed(folder / "part", few)
    yield "resumed, Averages", lambda: check_averages_resumed(folder / "averages", few)
    yield "recorded", lambda: check_recorder(everybody, folder)
    yield "DDP", lambda: check_ddp(folder)
    yield "DDP, a write in one process", lambda: check_a_write_in_one_process_is_told()
    yield "errors", lambda: check_errors(everybody, folder)
    yield "exchanged", lambda: check_states_of_whole_and_sharded_runs_are_exchanged(everybody)
    yield "layouts", lambda: check_layouts(everybody)


def work(rank, folder):
    warnings.simplefilter("ignore")
    join_group(rank, folder, PROCESSES)
    few = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pair", "member"))["member"]
    told = {}
    for name, check in checks(folder, few):
        try:
            check()
            told[name] = "right"
        except Exception:  # whatever it was, the test tells it
            told[name] = traceback.format_exc()
    (folder / f"told{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    in_processes(work, folder, PROCESSES)
    return [json.loads((folder / f"told{rank}.json").read_text()) for rank in range(PROCESSES)]


#: What each test looks at: the start of the checks' names, and how many there are.
PARTS = {
    "2 processes": 10,
    "4 processes": 7,
    "training": 1,
    "resumed": 4,
    "recorded": 1,
    "DDP": 2,
    "errors": 1,
    "layouts": 1,
    "exchanged": 1,
    "files": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_sharded(part, told):
    for rank, found in enumerate(told):
        chosen = {name: said for name, said in found.items() if name.startswith(part)}
        assert len(chosen) == (0 if part == "2 processes" and rank > 1 else PARTS[part])
        wrong = {name: said for name, said in chosen.items() if said != "right"}
        assert not wrong, "\n".join(f"process {rank}, {name}:\n{said}" for name, said in wrong.items())
