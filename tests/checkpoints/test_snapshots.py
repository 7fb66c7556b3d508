import shutil
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch._dynamo  # which each of two processes would import
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from emacore import Constant, PowerFunction, Snapshots, Trajectory, UniformAverage, Window, merge, open_checkpoints
from emacore.averaging.weights import weights
from emacore.checkpoints import snapshots as snapshots_module
from emacore.checkpoints.planning import plan_merge
from emacore.tensors.sharded import laid_out
from tests.helpers import Network, assert_same, change, check_in_two_processes, interrupted, join_group, tensors


def trained(folder, steps, kind, every=10, model=None, **options):
    """Snapshots of a run, and what the network was after each step."""
    model = Network() if model is None else model
    states = []
    with Snapshots(model, folder, every, kind, **options) as snapshots:
        assert (snapshots.every, snapshots.kind) == (every, kind)
        for step in range(1, steps + 1):
            change(model, step)
            snapshots.update()
            states.append(tensors(model))
    return states


def averaged(states, scheme):
    shares = weights(scheme.decays(len(states)))
    return {
        name: sum(share * state[name].double() for share, state in zip(shares, states, strict=True))
        for name, tensor in states[-1].items()
        if tensor.is_floating_point()
    }


def distance(one, other):
    return sum(float((one[name].double() - other[name].double()).square().sum()) for name in other) ** 0.5


def test_windows_are_means_of_consecutive_steps(tmp_path):
    states = trained(tmp_path, 34, "windows")
    found = open_checkpoints(tmp_path)
    assert found.steps.tolist() == [10, 20, 30, 34]
    assert {(section.name, section.kind) for one in found for section in one.sections} == {("model", "window")}
    for one, part in zip(found, (states[:10], states[10:20], states[20:30], states[30:]), strict=True):
        stored = {name: tensor.value() for name, tensor in one.sections[0].tensors.items()}
        assert distance(stored, averaged(part, UniformAverage())) < 1e-5
        assert torch.equal(stored["norm.num_batches_tracked"], part[-1]["norm.num_batches_tracked"])
    replayed = Trajectory(found.rows()).state(UniformAverage())
    assert distance(replayed, averaged(states, UniformAverage())) < 1e-5


@pytest.mark.parametrize("kind", ["windows", "power"])
def test_any_average_can_be_made_of_them(tmp_path, kind):
    """As near to the real one as the certificate says of independent noise, which these weights are."""
    states = trained(tmp_path / "snapshots", 200, kind)
    found = open_checkpoints(tmp_path / "snapshots")
    schemes = {"power": PowerFunction(sigma_rel=0.13), "short": PowerFunction(sigma_rel=0.06), "mean": UniformAverage()}
    places = merge(found, schemes, tmp_path / "out", form="pt")
    for place, result in zip(places, plan_merge(found, schemes).results, strict=True):
        exact = averaged(states, result.merge)
        noise = sum(float(states[-1][name].double().square().sum()) for name in exact) ** 0.5
        norm = (weights(result.merge.decays(200)) @ weights(result.merge.decays(200))) ** 0.5
        missed = distance(torch.load(place), exact) / (noise * norm)
        assert missed < 2 * result.told.error + 1e-5
        assert result.told.error < {"windows": 0.25, "power": 0.3}[kind]


@pytest.mark.parametrize("kind", ["windows", "power"])
@pytest.mark.parametrize("cut", [13, 20])
def test_a_run_that_goes_on_writes_the_same_files(tmp_path, kind, cut):
    trained(tmp_path / "whole", 40, kind)
    model = Network()
    before = Snapshots(model, tmp_path / "cut", 10, kind)
    for step in range(1, 33):
        change(model, step)
        before.update()
        if step == cut:
            torch.save(before.state_dict(), tmp_path / "state.pt")
    with pytest.raises(FileExistsError, match="holds snapshots already"):
        Snapshots(model, tmp_path / "cut", 10, kind)
    after = Snapshots(model, tmp_path / "cut", 10, kind, resume=True)
    after.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(cut + 1, 41):
        change(model, step)
        after.update()
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "cut").iterdir())
    for name in names:
        assert_same(load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name))
    with pytest.raises(ValueError, match="the state is of snapshots every 10 steps"):
        Snapshots(model, tmp_path / "new", 20, kind).load_state_dict(before.state_dict())


@pytest.mark.parametrize("kind", ["windows", "power"])
def test_an_interruption_at_any_line_of_writing_leaves_all_averages_of_a_step_or_none(tmp_path, kind):
    """The last one is that of a process that was killed: it leaves what is no file yet, until the run goes on."""
    model = Network()

    def lines(folder, at):
        snapshots = Snapshots(model, folder, 2, kind)
        for _ in range(3):
            snapshots.update()
        return interrupted(snapshots.update, at, ("snapshots.py",))

    last = lines(tmp_path / "0", 0)
    whole = sorted(path.name for path in (tmp_path / "0").iterdir())
    assert last > 20
    for at in range(1, last + 1):
        with suppress(KeyboardInterrupt):
            lines(tmp_path / str(at), at)
        names = sorted(path.name for path in (tmp_path / str(at)).iterdir())
        assert names in (whole, whole[: len(whole) // 2]), at
        assert plan_merge(open_checkpoints(tmp_path / str(at)), {"mean": UniformAverage()}).results
    (tmp_path / "0" / ".step_000000006.partial").write_bytes(b"half")
    assert open_checkpoints(tmp_path / "0").steps.tolist() == [2, 4]
    again = Snapshots(model, tmp_path / "0", 2, kind, resume=True)
    again.load_state_dict(again.state_dict())
    for _ in range(4):
        again.update()
    assert sorted(path.name for path in (tmp_path / "0").iterdir()) == whole


@pytest.mark.parametrize("kind", ["windows", "power"])
@pytest.mark.parametrize("cut", [12, 20])
def test_what_was_written_after_the_state_gives_way_to_the_next_file(tmp_path, kind, cut):
    """Also the unfinished window of that very step; until then all files are those of the run before."""
    model = Network()
    with Snapshots(model, tmp_path, 10, kind) as before:
        for step in range(1, 47):
            change(model, step)
            before.update()
            if step == cut:
                state = before.state_dict()
                before.close()
    (tmp_path / "step_by_step.txt").write_text("notes of somebody")
    there = sorted(tmp_path.iterdir())
    after = Snapshots(model, tmp_path, 10, kind, resume=True)
    after.load_state_dict(state)
    steps = list(range(cut + 1, cut // 10 * 10 + 11))
    for step in steps[:-1]:
        change(model, step)
        after.update()
    assert sorted(tmp_path.iterdir()) == there
    after.update()
    assert open_checkpoints(tmp_path).steps.tolist() == list(range(10, steps[-1] + 1, 10))
    assert (tmp_path / "step_by_step.txt").exists()


def test_a_file_that_cannot_be_removed_is_told(tmp_path, monkeypatch):
    model = Network()
    first = Snapshots(model, tmp_path, 2)
    state = first.state_dict()
    for _ in range(4):
        first.update()

    def locked(path, *arguments):
        raise OSError(1, "Operation not permitted")

    after = Snapshots(model, tmp_path, 2, resume=True)
    after.load_state_dict(state)
    monkeypatch.setattr(Path, "unlink", locked)
    after.update()
    with pytest.warns(UserWarning, match=r"step_000000004\.safetensors cannot be removed \(Operation not permitted"):
        after.update()
    assert (after.step, after.error) == (2, None)


def test_means_of_coarse_weights_are_kept_finer_and_ties_once(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).bfloat16()
    model[1].weight = model[0].weight
    snapshots = Snapshots(model, tmp_path, 300)
    for step in range(300):
        nn.init.constant_(model[0].weight, 1.0 if step % 3 else 1.0078125)
        snapshots.update()
    state = load_file(next(tmp_path.iterdir()))
    assert list(state) == ["0.weight"]
    assert state["0.weight"].flatten().tolist() == pytest.approx([1 + 0.0078125 / 3] * 4, abs=1e-6)


def test_they_follow_an_optimizer_and_end_with_the_disk(tmp_path):
    model, tmp_path = nn.Linear(2, 1), tmp_path / "kept"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    snapshots = Snapshots(model, tmp_path, 2)
    snapshots.attach(optimizer)
    for _ in range(4):
        model(torch.ones(3, 2)).sum().backward()
        optimizer.step()
    assert open_checkpoints(tmp_path).steps.tolist() == [2, 4]

    shutil.rmtree(tmp_path)  # the library tells of it by an exception of its own, as of a full disk
    optimizer.step()
    with pytest.warns(UserWarning, match="the snapshots end before step 6: .*No such file or directory"):
        optimizer.step()
    optimizer.step()
    optimizer.step()
    assert snapshots.step == 8
    assert snapshots.error.startswith("the snapshots end before step 6: ")


@pytest.mark.parametrize(("settings", "words"), [({"every": 0}, "every must be"), ({"kind": "raw"}, "kind must be"),
    ({"kind": "power", "sigma_rel": (0.1,)}, "at least two different widths"),
    ({"kind": "power", "sigma_rel": (0.05, 0.0501)}, "at least two different widths, to three"),
    ({"kind": "power", "sigma_rel": 0.1}, "at least two different widths"),
    ({"module": [nn.Linear(1, 1)]}, r"module must be a torch.nn.Module, got \[Linear"),
    ({"folder": __file__}, "cannot be a folder .*: choose another one"),
    ({"folder": f"{__file__}/below"}, "cannot be a folder .*: choose another one")])  # fmt: skip
def test_what_cannot_be_kept_is_told(tmp_path, settings, words):
    with pytest.raises((ValueError, TypeError, OSError), match=words):
        Snapshots(**({"module": Network(), "folder": tmp_path, "every": 5} | settings))


@pytest.mark.parametrize("state", [None, {}, {"model": 1}, [1]])
def test_a_state_of_something_else_is_told(tmp_path, state):
    with pytest.raises(ValueError, match="none of Snapshots.state_dict"):
        Snapshots(Network(), tmp_path, 5).load_state_dict(state)


def test_a_run_that_begins_again_without_a_state_keeps_none_of_the_files_before(tmp_path):
    model = nn.Linear(2, 1)
    for length, steps in ((6, [2, 4, 6]), (2, [2])):
        snapshots = Snapshots(model, tmp_path, 2, resume=True)
        for _ in range(length):
            snapshots.update()
        assert open_checkpoints(tmp_path).steps.tolist() == steps


@pytest.mark.parametrize("kind", ["windows", "power"])
def test_tied_weights_have_all_their_names_in_what_is_merged(tmp_path, kind):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = model[0].weight
    snapshots = Snapshots(model, tmp_path / "kept", 2, kind)
    for _ in range(4):
        snapshots.update()
    [place] = merge(tmp_path / "kept", {"mean": UniformAverage()}, tmp_path / "merged.pt", form="pt")
    state = torch.load(place)
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr()
    model.load_state_dict(state)


def sharded_run(rank, folder):
    """In one of two processes: snapshots of a sharded model, and what ends them."""
    join_group(rank, folder)
    model = nn.Linear(3, 5)
    model.tied = model.weight
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    both = [Snapshots(model, folder / kind, 2, kind) for kind in ("windows", "power")]
    for step in range(1, 5):
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.copy_(laid_out(torch.full(tensor.shape, float(step**2)), tensor.detach()))
        for snapshots in both:
            snapshots.update()

    # What only one process cannot do ends the snapshots of all, and no process waits for another.
    def full(moves):
        raise OSError(28, "No space left on device")

    if rank == 0:
        snapshots_module._move = full
    for words, snapshots, lost in (("No space left", both[1], None), ("director", both[0], folder / "windows")):
        if lost and rank == 0:
            lost.rename(folder / "away")
            lost.touch()
        dist.barrier()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(4):
                snapshots.update()
        assert words in snapshots.error, snapshots.error
    (folder / f"right{rank}").touch()
    dist.destroy_process_group()


@pytest.mark.slow
def test_each_process_of_a_sharded_model_writes_its_part(tmp_path):
    check_in_two_processes(sharded_run, tmp_path)
    found = open_checkpoints(tmp_path / "away")
    assert (found.steps.tolist(), found.names("window")) == ([2, 4], ["model"])
    assert {"__0_0.distcp", "__1_0.distcp"} <= {file.name for file in found[0].files}
    [place] = merge(found, {"mean": Window(4)}, tmp_path / "out", form="pt")
    state = torch.load(place)
    assert torch.equal(state["weight"], torch.full((5, 3), (1 + 4 + 9 + 16) / 4))
    assert state["tied"].data_ptr() == state["weight"].data_ptr()
    power = open_checkpoints(tmp_path / "power")
    assert power.names("average") == ["step_*.power-0.050", "step_*.power-0.100"]
    assert plan_merge(power, {"a": Constant(0.5)}).results[0].coefficients.sum() == pytest.approx(1)
