"""On a GPU, where there is one: the same numbers as on the CPU, and no wait for it in an ordinary call."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from emacore import (
    EMA,
    Averages,
    Constant,
    InversePower,
    Recorder,
    Snapshots,
    Trajectory,
    UniformAverage,
    averaging_function,
    open_checkpoints,
)
from tests.helpers import Network, tensors

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SCHEDULES = {
    "warm-up": InversePower(0.99, update_after_step=3, update_every=2),
    "constant": Constant(0.9),
    "long": Constant(0.999),
}


def weights_of(run, kind=torch.float32):
    """A run's weights at each of its 40 steps, made on the CPU: what both sides average."""
    generator = torch.Generator().manual_seed(run)
    model = Network().to(kind)
    for step in range(40):
        state = {
            name: torch.randn(tensor.shape, generator=generator).abs().to(tensor.dtype)
            if tensor.is_floating_point()
            else torch.full_like(tensor, step)
            for name, tensor in model.state_dict().items()
        }
        yield state


def close(found, wanted, **tolerance):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name].cpu(), tensor.cpu(), **tolerance)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("options", [{}, {"device": "cpu"}, {"keep_half": False}, {"on_nonfinite": "skip"}])
def test_an_average_there_equals_that_on_the_cpu(kind, options):
    here, there = Network().to(kind), Network().to(kind).cuda()
    for name, schedule in SCHEDULES.items():
        mine = EMA(here, schedule=schedule, **{key: value for key, value in options.items() if key != "device"})
        theirs = EMA(there, schedule=schedule, **options)
        for state in weights_of(1, kind):
            here.load_state_dict(state)
            there.load_state_dict(state)
            mine.update()
            theirs.update()
        assert next(theirs.ema_model.parameters()).device.type == options.get("device", "cuda"), name
        close(tensors(theirs.ema_model), tensors(mine.ema_model))
        close(dict(theirs.state_dict()), dict(mine.state_dict()))


def test_an_ordinary_call_does_not_wait_for_the_gpu():
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 1)).cuda()
    made = [
        EMA(model, schedule=Constant(0.9)),
        EMA(model, schedule=SCHEDULES["warm-up"]),
        EMA(copy.deepcopy(model).bfloat16(), schedule=Constant(0.9)),
        EMA(model, device="cpu", schedule=Constant(0.9)),
        Averages(model, SCHEDULES),
    ]
    for _ in range(8):  # looked up and copied
        for average in made:
            average.update()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for average in made:
            for _ in range(3):
                average.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_many_averages_equal_one_each():
    model = Network().cuda()
    many = Averages(model, SCHEDULES)
    single = {name: EMA(model, schedule=schedule) for name, schedule in SCHEDULES.items()}
    for state in weights_of(2):
        model.load_state_dict(state)
        many.update()
        for ema in single.values():
            ema.update()
    for name, ema in single.items():
        with many.average_parameters(name):
            found = {key: tensor.clone() for key, tensor in tensors(model).items()}
        close(found, tensors(ema.ema_model))
    fresh = Averages(Network().cuda(), SCHEDULES)
    fresh.load_state_dict(many.state_dict())
    assert torch.equal(fresh.averages, many.averages)


def trained(model, *averages, steps=30):
    """Steps that are short beside the copies of the weights: whatever overtakes a copy tears it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5 if step % 2 else -0.25)
        optimizer.step()
        for average in averages:
            average.update()


def test_copies_beside_the_computation_are_of_one_step():
    """Every weight is the same number, so a torn copy shows as two."""
    model = nn.ModuleList([nn.Linear(4096, 4096, bias=False) for _ in range(8)]).cuda()  # 512 MiB
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    away, near = EMA(model, device="cpu", schedule=Constant(0.5)), EMA(model, schedule=Constant(0.5))
    trained(model, away, near)
    for found, wanted in zip(away.weights.values(), near.weights.values(), strict=True):
        assert found.min() == found.max()
        assert torch.equal(found, wanted.cpu())


def test_what_another_writes_meanwhile_is_told_and_taken_whole():
    model = nn.Linear(8192, 8192, bias=False).cuda()
    nn.init.zeros_(model.weight)
    ema = EMA(model, device="cpu", schedule=Constant(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    ema.attach(optimizer)
    for _ in range(3):
        model.weight.grad = torch.full_like(model.weight, -1.0)
        optimizer.step()
    with torch.no_grad():
        model.weight.mul_(2)
    with pytest.warns(UserWarning, match="written by something other than an optimiser"):
        found = ema.weights["weight"]
    assert found.min() == found.max()
    for _ in range(3):
        optimizer.step()
        with torch.no_grad():
            model.weight.mul_(2)
    found = ema.weights["weight"]
    assert found.min() == found.max()


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_are_not_counted(fused):
    model = nn.Linear(3, 2).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cuda", init_scale=1.0, growth_interval=1000)
    ema = EMA(model, schedule=Constant(0.5))
    ema.attach(optimizer)
    for value in (1.0, 1.0, float("inf"), 1.0):
        with torch.autocast("cuda", torch.float16):
            loss = model(torch.full((2, 3), value, device="cuda")).square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert ema.step.item() == 3


def test_what_is_written_into_a_half_precision_shadow_stays():
    model = Network().bfloat16().cuda()
    ema = EMA(model, schedule=Constant(0.9))
    ema.update()
    written = ema.ema_model.first.weight
    written.data.fill_(2.0)
    ema.update()
    torch.testing.assert_close(written, (1.8 + 0.1 * model.first.weight.float()).bfloat16())


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("device", [None, "cpu"])
def test_averages_are_lent_kept_and_moved(swap, device, tmp_path):
    model = Network().cuda()
    ema = EMA(model, device=device, schedule=Constant(0.5))
    for state in weights_of(3):
        model.load_state_dict(state)
        ema.update()
    before, average = {k: t.clone() for k, t in tensors(model).items()}, {k: t.clone() for k, t in ema.weights.items()}
    with ema.average_parameters(swap=swap):
        close({key: tensors(model)[key] for key in average}, average, rtol=0, atol=0)
    close(tensors(model), before, rtol=0, atol=0)
    ema.save(tmp_path / "average.safetensors")
    other = EMA(Network().cuda(), device=device, schedule=Constant(0.5))
    other.load(tmp_path / "average.safetensors")
    close(dict(other.weights), average, rtol=0, atol=0)
    ema.cpu()
    model.cpu()
    ema.update()
    assert next(ema.ema_model.parameters()).device.type == "cpu"


def test_moving_the_wrapper_to_a_gpu_in_the_middle_changes_no_number():
    stays, moves = Network(), Network()
    kept, moved = EMA(stays, schedule=Constant(0.9)), EMA(moves, schedule=Constant(0.9))
    for step, state in enumerate(weights_of(4)):
        if step == 20:
            moved.cuda()
        stays.load_state_dict(state)
        moves.load_state_dict(state)
        kept.update()
        moved.update()
    assert next(moved.ema_model.parameters()).is_cuda
    close(tensors(moved.ema_model), tensors(kept.ema_model))


def test_a_recording_and_snapshots_hold_what_was_on_the_gpu(tmp_path):
    model = Network().cuda()
    ema = EMA(model, schedule=Constant(0.9))
    snapshots = Snapshots(model, tmp_path / "snapshots", every=8)
    seen = []
    with Recorder(model, tmp_path / "recording") as recorder:
        for state in weights_of(5):
            model.load_state_dict(state)
            ema.update()
            snapshots.update()
            recorder.record()
            seen.append(model.last.weight.detach().clone())
    found = Trajectory.open(tmp_path / "recording").state(Constant(0.9))
    close({"last.weight": found["last.weight"]}, {"last.weight": ema.weights["last.weight"]}, rtol=1e-5, atol=1e-6)
    mean = Trajectory(open_checkpoints(tmp_path / "snapshots").rows()).state(UniformAverage())["last.weight"]
    torch.testing.assert_close(mean, torch.stack(seen).mean(dim=0).cpu(), rtol=1e-5, atol=1e-6)


def test_avg_fn_does_what_ema_does():
    model = nn.Linear(5, 3).cuda()
    averaged, ema = AveragedModel(model, avg_fn=averaging_function(Constant(0.9))), EMA(model, schedule=Constant(0.9))
    for step in range(12):
        nn.init.normal_(model.weight, generator=torch.Generator("cuda").manual_seed(step))
        averaged.update_parameters(model)
        ema.update()
    torch.testing.assert_close(averaged.module.weight, ema.ema_model.weight)


@pytest.mark.parametrize("choice", ["skip", "raise"])
def test_weights_that_are_not_finite_are_noticed(choice):
    model = Network().cuda()
    ema = EMA(model, schedule=Constant(0.9), on_nonfinite=choice)
    ema.update()
    before = {key: tensor.clone() for key, tensor in ema.weights.items()}
    with torch.no_grad():
        model.first.weight[1, 1] = float("nan")
    if choice == "skip":
        with pytest.warns(UserWarning, match=r"first\.weight"):
            ema.update()
    else:
        with pytest.raises(RuntimeError, match=r"first\.weight"):
            ema.update()
    close(dict(ema.weights), before, rtol=0, atol=0)


def test_a_compiled_model_is_followed():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)).cuda()
    compiled = torch.compile(model)
    ema = EMA(compiled, schedule=Constant(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = None
    for _ in range(4):
        compiled(torch.ones(2, 8, device="cuda")).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update()
        weight = model[0].weight.detach()
        kept = weight.clone() if kept is None else kept.lerp(weight, 0.5)
    torch.testing.assert_close(ema.weights["0.weight"], kept)


def test_a_sharded_model_is_averaged_over_nccl():
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain = Network().cuda()
        mesh = init_device_mesh("cuda", (1,))
        sharded, shadow = (fully_shard(copy.deepcopy(plain), mesh=mesh) for _ in range(2))
        wanted, found = EMA(plain, schedule=Constant(0.9)), EMA(sharded, shadow, schedule=Constant(0.9))
        for step in range(10):
            for parameter, other in zip(plain.parameters(), sharded.parameters(), strict=True):
                with torch.no_grad():
                    parameter.add_(0.1 * step)
                    other.add_(0.1 * step)
            wanted.update()
            found.update()
        whole = Network().cuda()
        found.copy_to(whole)
        close(tensors(whole), tensors(wanted.ema_model))
    finally:
        dist.destroy_process_group()
