"""Averages in loops with accelerate."""

from functools import partial
from itertools import islice

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from emacore import Constant, InversePower, PowerFunction, Snapshots, open_checkpoints
from emacore.integrations.accelerate import Averaging
from emacore.snippets import snippets
from emacore.tensors.sharded import gathered, is_sharded
from tests.helpers import (
    assert_same,
    assert_same_files,
    averaged,
    check_in_two_processes,
    meet,
    shard_on_the_cpu,
    tensors,
)

SCHEDULES = {"fast": InversePower(0.8, update_after_step=1, update_every=1), "slow": Constant(0.95)}
DATA = TensorDataset(torch.randn(24, 3, generator=torch.Generator().manual_seed(0)))


def made(every=1, schedule=SCHEDULES, **options):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=every)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model, optimizer, batches = accelerator.prepare(model, optimizer, DataLoader(DATA, 4))
    return accelerator, model, optimizer, batches, Averaging(accelerator, model, optimizer, schedule, **options)


def train(accelerator, model, optimizer, batches, averaging):
    """An epoch; the weights after each step of the optimiser."""
    noted = []
    for (x,) in batches:
        with accelerator.accumulate(model):
            accelerator.backward((model(x) - x.sum(1, keepdim=True)).square().mean())
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            noted.append(tensors(model))
    return noted


@pytest.mark.parametrize("every", [1, 2])
def test_each_step_of_the_optimiser_is_a_call(every, tmp_path):
    setup = made(every)
    _, model, *_, averaging = setup
    noted = train(*setup)
    assert len(noted) == 6 // every
    for name, schedule in SCHEDULES.items():
        assert averaging.averages[name].step.item() == len(noted)
        expected = averaged(noted, schedule)
        for key, tensor in tensors(averaging.averages[name].ema_model).items():
            torch.testing.assert_close(tensor, expected[key])
        with averaging.swapped(name):
            assert_same(tensors(model), tensors(averaging.averages[name].ema_model))
    assert_same(tensors(model), noted[-1])
    averaging.save_model(tmp_path)
    assert_same(load_file(tmp_path / "model.safetensors"), tensors(averaging.averages["fast"].ema_model))


@pytest.mark.parametrize("options", [{}, {"names": ["2.weight"], "feed_back": 3}], ids=["all", "a part, fed back"])
def test_a_run_goes_on_where_its_state_was_saved(options, tmp_path):
    whole = made(**options)
    train(*whole)
    whole[0].save_state(tmp_path)
    train(*whole)
    resumed = made(**options)
    resumed[0].load_state(tmp_path)
    train(*resumed)
    assert_same(tensors(resumed[1]), tensors(whole[1]))
    for name in SCHEDULES:
        assert_same(resumed[-1].averages[name].state_dict(), whole[-1].averages[name].state_dict())


def test_snapshots_go_on_with_the_averages(tmp_path):
    """Saved in the middle of an epoch of six steps."""

    def run(name, resume=False):
        setup = made(snapshots=partial(Snapshots, folder=tmp_path / name, every=4))
        accelerator, *parts, batches, averaging = setup
        if resume:
            accelerator.load_state(tmp_path / f"{name}-state")
            batches = accelerator.skip_first_batches(batches, 3)
        else:
            train(accelerator, *parts, islice(batches, 3), averaging)
            accelerator.save_state(tmp_path / f"{name}-state")
            batches = accelerator.skip_first_batches(batches, 3)
        noted = train(accelerator, *parts, batches, averaging)
        averaging.close()
        return noted

    run("whole")
    run("cut")
    for later in (tmp_path / "cut").iterdir():
        later.write_bytes(b"what a run wrote that did not go on")
    run("cut", resume=True)
    assert_same_files(tmp_path / "cut", tmp_path / "whole")
    assert open_checkpoints(tmp_path / "cut").steps.tolist() == [4, 6]
    with pytest.raises(FileExistsError, match="holds snapshots already"):
        run("cut")


def sharded_run(rank, folder):
    """In one of two processes: what is right of averages of a model that accelerate shards by FSDP2."""
    meet(rank, folder)

    def prepared():
        torch.manual_seed(0)
        accelerator = Accelerator(cpu=True)
        shard_on_the_cpu(accelerator)
        model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
        model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.05))
        snapshots = partial(Snapshots, folder=folder / "snapshots", every=4)
        return accelerator, model, optimizer, Averaging(accelerator, model, optimizer, SCHEDULES, snapshots=snapshots)

    def steps(accelerator, model, optimizer, averaging):
        noted = []
        for batch in DataLoader(DATA, 4):
            accelerator.backward(model(batch[0]).square().mean())
            optimizer.step()
            optimizer.zero_grad()
            noted.append(tensors_of(model))
        return noted

    def tensors_of(module):
        return {name: gathered(tensor.detach()).clone() for name, tensor in module.state_dict().items()}

    whole = prepared()
    noted = steps(*whole)
    assert all(map(is_sharded, whole[1].parameters()))
    whole[0].save_state(folder / "state")
    with whole[-1].swapped("slow"):
        torch.testing.assert_close(tensors_of(whole[1]), averaged(noted, SCHEDULES["slow"]))
    whole[-1].save_model(folder / "averaged")
    whole[0].wait_for_everyone()
    found = load_file(folder / "averaged" / "model.safetensors")
    torch.testing.assert_close(found, averaged(noted, SCHEDULES["fast"]))
    noted = steps(*whole)
    resumed = prepared()
    resumed[0].load_state(folder / "state")
    torch.testing.assert_close(steps(*resumed), noted, rtol=0, atol=0)
    for name in SCHEDULES:
        one, other = (tensors_of(run[-1].averages[name].ema_model) for run in (whole, resumed))
        assert_same(one, other)
    resumed[-1].close()
    assert open_checkpoints(folder / "snapshots").steps.tolist() == [4, 8, 12]
    (folder / f"right{rank}").touch()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_model_sharded_by_fsdp2_is_averaged_saved_and_resumed(tmp_path):
    check_in_two_processes(sharded_run, tmp_path)


def test_what_cannot_be_is_told():
    with pytest.raises(TypeError, match="'average' must be a schedule, such as .*, got 0.9"):
        made(schedule={"average": 0.9})
    with pytest.raises(ValueError, match="ema_model is set by the integration"):
        made(ema_model=nn.Linear(1, 1))
    averaging = made()[-1]
    with pytest.raises(KeyError, match="no average 'other'; there are 'fast', 'slow'"), averaging.swapped("other"):
        pass
    with pytest.raises(ValueError, match="of the averages 'fast', these are"):
        averaging.load_state_dict({"fast": averaging.state_dict()["fast"]})


def test_the_snippet_averages_as_the_schedule_says(tmp_path, monkeypatch):
    schedule = PowerFunction(sigma_rel=0.1)
    (code,) = [snippet.code for snippet in snippets(schedule) if snippet.library == "accelerate"]
    monkeypatch.chdir(tmp_path)
    model, noted = nn.Linear(3, 1), []
    names = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.05),
        "batches": DataLoader(DATA, 2),
    }

    def train_on(batch):
        names["accelerator"].backward(names["model"](batch[0]).square().mean())
        names["optimizer"].step()
        names["optimizer"].zero_grad()
        noted.append(tensors(model))

    names["train_on"] = train_on
    exec(code, names)
    for name, tensor in averaged(noted, schedule).items():
        torch.testing.assert_close(load_file(tmp_path / "averaged" / "model.safetensors")[name], tensor)
