"""What tests of several modules share."""

import os
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from emacore.checkpoints.sections import Section
from emacore.checkpoints.stored import StoredTensor
from emacore.experiments.store import worker_name

#: A worker of the run store whose process lives as long as the test.
ME = worker_name(os.getpid(), "test")


#: Inputs at random that each test of a parser takes; more of them by the command in docs/contributing.md.
FUZZED = int(os.environ.get("EMACORE_FUZZ", "60"))


def wait_for(condition, seconds=60):
    """Wait until ``condition()`` is true, and return what it gave."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def lives(pid):
    """Whether a process is there."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # a zombie waiting for init has ended too


def interrupted(act, at, modules):
    """Call ``act()``, with a KeyboardInterrupt, as of a signal, before the ``at``-th line of these modules; 0 for none.

    A line counts twice at most, not in each turn of a loop.  Returns how many there were.
    """
    seen = Counter()

    def trace(frame, event, argument):
        place = frame.f_code.co_filename, frame.f_lineno
        if Path(place[0]).name not in modules:
            return None
        if event == "line" and seen[place] < 2:
            seen[place] += 1
            if seen.total() == at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return seen.total()


class Network(nn.Module):
    """Parameters, float buffers and an integer counter."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu())


def change(model, seed):
    """As a training step would: every tensor takes other values, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(values.abs() if name.endswith("running_var") else values)
            else:
                tensor.fill_(seed)


def section_of(tensors, kind="raw", ties=None, **about):
    """Tensors as a section of a file."""
    stored = {
        name: StoredTensor(tuple(one.shape), one.dtype, Path(), read_flat=partial(_stretch, one))
        for name, one in tensors.items()
    }
    return Section(kind, kind, stored, ties or {}, about)


def _stretch(tensor, start, stop):
    return tensor.reshape(-1)[start:stop]


def tensors(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def averaged(noted, schedule):
    """A plain loop over weights that were written down after each step: the average, by name."""
    average = None
    for weights, decay in zip(noted, schedule.decays(len(noted)), strict=True):
        if average is None or decay == 0:
            average = {name: tensor.clone() for name, tensor in weights.items()}
            continue
        for name, tensor in weights.items():
            average[name] = average[name].lerp(tensor, 1 - decay) if tensor.is_floating_point() else tensor
    return average


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6, msg=name)


def assert_same_files(one, other):
    """The same safetensors files in two folders: what lies in them, and what they say of it."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert names
    for name in names:
        assert_same(load_file(one / name), load_file(other / name))
        with safe_open(one / name, "pt") as mine, safe_open(other / name, "pt") as theirs:
            assert mine.metadata() == theirs.metadata()


def join_group(rank, folder, count=2):
    """Make this process one of a group of torch.distributed on this machine."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)


def meet(rank, folder):
    """Make this process one of two that train together by accelerate, as a launcher would."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a forked process has that of its parent
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update(own, ACCELERATE_CPU_AFFINITY="0")
    join_group(rank, folder)


def shard_on_the_cpu(accelerator):
    """Have accelerate shard by FSDP2, which it does on accelerators only: on the CPU it takes DDP without a word."""
    from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState

    options = {"auto_wrap_policy": "no_wrap", "state_dict_type": "FULL_STATE_DICT", "cpu_ram_efficient_loading": False}
    state = accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, **options)
    PartialState._shared_state["distributed_type"] = state.distributed_type = DistributedType.FSDP


def in_processes(run, folder, count=2):
    """Call ``run(rank, folder)`` in processes, forked because importing what they need takes longer than the rest."""
    forked = torch.multiprocessing.start_processes(run, (folder,), nprocs=count, join=False, start_method="fork")
    end = time.monotonic() + 120
    try:
        while not forked.join(timeout=end - time.monotonic()):  # one of them has ended
            assert time.monotonic() < end, "some of the processes wait for the others"
    finally:
        for process in forked.processes:
            process.kill()


def check_in_two_processes(run, folder):
    """Call ``run(rank, folder)`` in two; each leaves a file there, ``right0`` or ``right1``, if all is right."""
    in_processes(run, folder)
    assert {path.name for path in folder.glob("right*")} == {"right0", "right1"}


class Tied(nn.Module):
    """Two names of one parameter, a complex one, and a buffer of whole numbers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.second = nn.Linear(2, 3)
        self.second.weight = self.first.weight
        self.wave = nn.Parameter(torch.tensor([1 + 2j, 3 - 4j]))
        self.register_buffer("count", torch.tensor(7))
