"""Pickles with the structure of EDM2's snapshots: modules that bring the source code of their class along."""

import pickle
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from emacore import PowerFunction, open_checkpoints
from emacore.averaging.weights import weights
from emacore.checkpoints.merging import merge
from emacore.checkpoints.planning import plan_merge
from emacore.checkpoints.stored import CheckpointError, open_file


def reconstruct(meta):
    raise AssertionError("nothing that a file names is called")


class Settings(dict):
    __getattr__ = dict.__getitem__


class Persistent(nn.Module):
    """Pickles itself as a call of a function with its state and with code that would be run."""

    def __reduce__(self):
        state = super().__reduce__()[2]
        code = "import os; os.system('touch pwned')"
        meta = {"type": "class", "version": 6, "module_src": code, "class_name": type(self).__name__, "state": state}
        return reconstruct, (meta,), None


class Block(Persistent):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size, 1, 1))
        self.register_buffer("freqs", torch.randn(3))
        self.register_buffer("cache", torch.ones(2), persistent=False)


class Net(Persistent):
    def __init__(self, size=60):
        super().__init__()
        self.first, self.plain = Block(size), nn.Linear(size, 2)
        self.rest = nn.ModuleDict({"a": Block(2)})
        self.turned = nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
        self.tied = self.plain.weight


for thing, module, known_as in [
    (reconstruct, "torch_utils.persistence", "_reconstruct_persistent_obj"),
    (Settings, "dnnlib.util", "EasyDict"),
]:
    thing.__module__, thing.__qualname__, thing.__name__ = module, known_as, known_as


@pytest.fixture(autouse=True)
def named_as_theirs(monkeypatch):
    """What is pickled has the names of their modules."""
    for thing in (reconstruct, Settings):
        module = ModuleType(thing.__module__)
        setattr(module, thing.__name__, thing)
        monkeypatch.setitem(sys.modules, thing.__module__.partition(".")[0], ModuleType("above"))
        monkeypatch.setitem(sys.modules, thing.__module__, module)


def write(path, net, protocol=4):
    content = Settings(encoder=Block(2), dataset_kwargs=Settings(path="x"), loss_fn=None, ema=net)
    path.write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_pickled_network_is_its_state_dict_and_nothing_in_it_is_run(tmp_path, monkeypatch, protocol, dtype):
    monkeypatch.chdir(tmp_path)
    net = Net().to(dtype)
    write(tmp_path / "network-snapshot-0000123-0.100.pkl", net, protocol)
    [section] = open_checkpoints(tmp_path)[0].sections
    assert (section.name, section.kind, section.about) == ("ema", "average", {"sigma_rel": 0.1})
    wanted = net.state_dict()
    assert section.tensors.keys() | section.ties.keys() == wanted.keys()
    for name, tensor in section.tensors.items():
        assert torch.equal(tensor.value(), wanted[name])
        assert torch.equal(tensor.read(1, 2), wanted[name].reshape(-1)[1:2])
    assert section.ties == {"plain.weight": "tied"}
    assert not (tmp_path / "pwned").exists()


def test_large_tensors_stay_in_the_file_until_they_are_read(tmp_path):
    net = Net(300)
    write(tmp_path / "net-snapshot-1.pkl", net)
    whole = (tmp_path / "net-snapshot-1.pkl").read_bytes()
    tensor = open_file(tmp_path / "net-snapshot-1.pkl").content["ema"]["first.weight"]
    assert whole[tensor.offset : tensor.offset + tensor.nbytes] == net.first.weight.detach().numpy().tobytes()
    (tmp_path / "net-snapshot-1.pkl").write_bytes(whole[: tensor.offset + 8])
    with pytest.raises(CheckpointError, match="net-snapshot-1.pkl cannot be read"):
        tensor.value()


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04cposix\nsystem\n(X\x0b\x00\x00\x00touch pwnedtR.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f",
        b"\x80\x04ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02tR.",
        b"\x80\x04]q\x00h\x00a.",
        b"<html>",
    ],
)
def test_a_pickle_of_something_else_is_a_sentence(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-snapshot-1.pkl").write_bytes(content)
    with pytest.raises(CheckpointError, match="a-snapshot-1.pkl") as caught:
        open_checkpoints(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a-snapshot-1.pkl"]


def test_pairs_become_the_averages_that_were_not_kept(tmp_path):
    """Beside a file of another kind, and training states with the same averages at some of the steps."""
    generator = torch.Generator().manual_seed(1)
    widths, last = (0.05, 0.1), 400
    net, path = Block(3), []
    emas = {width: torch.zeros(9) for width in widths}
    decays = {width: PowerFunction(sigma_rel=width).decays(last) for width in widths}
    for step in range(last):
        path.append((path[-1] if path else torch.zeros(9)) + 0.1 * torch.randn(9, generator=generator))
        for width, ema in emas.items():
            ema.mul_(decays[width][step]).add_(path[-1], alpha=1 - decays[width][step])
        if (step + 1) % 50 == 0:
            for width, ema in emas.items():
                net.weight.data = ema.reshape(3, 3, 1, 1).clone()
                write(tmp_path / f"network-snapshot-{step + 1:07d}-{width:.3f}.pkl", net)
    states = [{"weight": ema.reshape(3, 3, 1, 1), "freqs": net.freqs} for ema in emas.values()]
    torch.save(
        {"net": states[0], "state": Settings(cur_nimg=1), "ema": {"stds": list(widths), "emas": states}},
        tmp_path / "training-state-0000400.pt",
    )
    (tmp_path / "stats.pkl").write_bytes(pickle.dumps({"loss": 1}))
    found = open_checkpoints(tmp_path)
    assert found.steps.tolist() == list(range(50, 401, 50))
    assert any("stats.pkl" in words for words in found.told)
    asked = {"power": PowerFunction(sigma_rel=0.15)}
    [result] = plan_merge(found, asked).results
    assert result.told.error < 0.05
    [place] = merge(found, asked, tmp_path / "merged")
    exact = sum(w * row for w, row in zip(weights(PowerFunction(sigma_rel=0.15).decays(last)), path, strict=True))
    merged = load_file(place)["weight"].reshape(-1)
    assert np.linalg.norm(merged - exact) < 0.05 * np.linalg.norm(path[-1] - exact)
