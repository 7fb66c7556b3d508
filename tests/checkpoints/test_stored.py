import argparse
import builtins
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from emacore.checkpoints import open_checkpoints, stored
from emacore.checkpoints.stored import CheckpointError, find_units, open_distributed, open_file, open_index, parts_of
from tests.helpers import in_processes, join_group

STATE = {
    "weight": torch.arange(30.0).reshape(5, 3, 2),
    "half": torch.linspace(-1, 1, 7).to(torch.bfloat16),
    "small": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "pair": torch.tensor([1 + 2j, 3 - 1j]),
    "count": torch.tensor([3, 4]),
}


@given(st.data())
def test_parts_hold_the_numbers_in_order_once(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), max_size=4)))
    tensor = torch.arange(torch.Size(shape).numel()).reshape(shape)
    start = data.draw(st.integers(0, tensor.numel() - 1))
    stop = data.draw(st.integers(start + 1, tensor.numel()))
    found = torch.cat([tensor[box].reshape(-1) for box in parts_of(shape, start, stop)])
    assert found.tolist() == list(range(start, stop))


def written(folder, form):
    """``STATE`` in a format, opened again."""
    if form == "safetensors":
        save_file(STATE, folder / "a.safetensors")
        return open_file(folder / "a.safetensors")
    if form == "sharded":
        names = list(STATE)
        places = {name: f"model-{n % 2 + 1:05d}-of-00002.safetensors" for n, name in enumerate(names)}
        for file in set(places.values()):
            save_file({name: STATE[name] for name in names if places[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        return open_index(folder / "model.safetensors.index.json")
    if form == "distributed":
        dcp.save(STATE, checkpoint_id=folder / "dcp")
        return open_distributed(folder / "dcp")
    torch.save(STATE, folder / "a.pt", _use_new_zipfile_serialization=form == "zip")
    return open_file(folder / "a.pt")


@pytest.mark.parametrize("form", ["safetensors", "sharded", "zip", "before 1.6", "distributed"])
def test_each_format_gives_any_stretch_of_a_tensor(tmp_path, form):
    content = written(tmp_path, form).content
    assert content.keys() == STATE.keys()
    for name, tensor in STATE.items():
        stored = content[name]
        assert (stored.shape, stored.dtype, stored.nbytes) == (tuple(tensor.shape), tensor.dtype, tensor.nbytes)
        assert torch.equal(stored.value(), tensor)
        middle = tensor.numel() // 2
        for start, stop in [(0, middle), (middle, tensor.numel()), (middle, middle)]:
            assert torch.equal(stored.read(start, stop), tensor.reshape(-1)[start:stop])
    with pytest.raises(ValueError, match="from 0 to 30"):
        content["weight"].read(3, 31)


@pytest.mark.parametrize("form", ["safetensors", "sharded", "zip", "distributed", "pickled"])
def test_a_file_that_is_cut_while_it_is_read_is_a_sentence(tmp_path, monkeypatch, form):
    if form == "pickled":
        (tmp_path / "network-snapshot-0000001-0.100.pkl").write_bytes(pickle.dumps({"ema": torch.nn.Linear(30_000, 2)}))
        tensor = open_file(tmp_path / "network-snapshot-0000001-0.100.pkl").content["ema"]["weight"]
    else:
        tensor = written(tmp_path, form).content["weight"]
    first = tensor.read(0, 4).tolist()
    assert len(first) == 4
    mapped = Path("/proc/self/maps")
    assert not mapped.exists() or str(tmp_path) not in mapped.read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".json", ".metadata")]
    preadv, reading = os.preadv, builtins.open

    def cut(read):
        """Within the reading of one block: after all that could have been looked at before."""

        def read_cut(*arguments, **named):
            for path in files:
                os.truncate(path, 9)
            return read(*arguments, **named)

        return read_cut

    monkeypatch.setattr(os, "preadv", cut(preadv))
    monkeypatch.setattr(io, "open", cut(reading))  # as Path.open calls it
    with pytest.raises(CheckpointError, match="has got shorter since it was opened|its end is missing"):
        tensor.read(2, 30)


def test_shared_and_strided_tensors_of_a_saved_dictionary(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": weight, "b": weight, "turned": weight.T, "parts": [weight[0], weight[1]]}, tmp_path / "a.pt")
    content = open_file(tmp_path / "a.pt").content
    assert content["a"].identity == content["b"].identity != content["turned"].identity
    assert torch.equal(content["turned"].read(1, 4), weight.T.reshape(-1)[1:4])
    assert torch.equal(content["parts"]["1"].value(), weight[1])


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_that_a_file_names_is_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": STATE, "evil": Evil()}, "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="could run what it holds"):
        open_file(tmp_path / "a.pt")
    folder = tmp_path / "dcp"
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="no metadata of a checkpoint needs"):
        open_distributed(folder)
    assert not (tmp_path / "pwned").exists()


def test_settings_of_other_classes_do_not_hide_the_weights(tmp_path):
    torch.save({"args": argparse.Namespace(lr=0.1), "model": STATE}, tmp_path / "a.pth")
    assert torch.equal(open_file(tmp_path / "a.pth").content["model"]["half"].value(), STATE["half"])


@pytest.mark.parametrize("zipped", [True, False])
def test_arrays_and_states_of_generators_do_not_hide_the_weights(tmp_path, zipped):
    beside = {"rng": np.random.get_state(), "best": np.float64(0.5), "losses": np.ones(3)}  # noqa: NPY002  as loops do
    torch.save({**beside, "model": STATE}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    if zipped:
        assert torch.equal(open_file(tmp_path / "a.pth").content["model"]["half"].value(), STATE["half"])
    else:  # which torch reads whole, and without stand-ins
        with pytest.raises(CheckpointError, match="holds more than tensors, numbers and text"):
            open_file(tmp_path / "a.pth")


@pytest.mark.parametrize(("packed", "words"), [
    (gzip.compress, "is compressed by gzip: unpack it first"), (bz2.compress, "is compressed by bzip2"),
    (lzma.compress, "is compressed by xz"), (lambda whole: b"#!x" + whole, "is of another format than its"),
])  # fmt: skip
def test_a_file_of_another_format_is_told_from_a_damaged_one(tmp_path, packed, words):
    written(tmp_path, "zip")
    (tmp_path / "a.pt").write_bytes(packed((tmp_path / "a.pt").read_bytes()[:-30]))
    with pytest.raises(CheckpointError, match=words):
        open_file(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ".ckpt", ".pth.tar"])
@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "zeros"])
def test_a_damaged_file_is_a_sentence(tmp_path, suffix, damage):
    path = tmp_path / f"a{suffix}"
    if suffix == ".safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path)
    whole = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "cut": whole[: len(whole) // 2],
            "foreign": b"<html>Not found</html>\n" * 9,
            "zeros": b"\0" * 400,
        }[damage]
    )
    with pytest.raises(CheckpointError, match=f"a{suffix}") as caught:
        open_file(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_whole_module_is_not_unpickled(tmp_path):
    torch.save(torch.nn.Linear(2, 1), tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"holds a whole object \(torch.nn.modules.linear.Linear\), not its tensors"
    ):
        open_file(tmp_path / "a.pt")


def test_what_is_no_file_or_too_deep_is_a_sentence(tmp_path):
    os.mkfifo(tmp_path / "step_1.pt")
    os.mkfifo(tmp_path / "step_2.safetensors")
    deep = {"w": torch.zeros(2)}
    for _ in range(300):
        deep = {"model": deep}
    torch.save(deep, tmp_path / "step_3.pt")
    torch.save({"w": torch.zeros(2)}, tmp_path / "step_4.pt")
    damaged = {
        "step_1.pt": "no file, but a pipe",
        "step_2.safetensors": "no file, but a pipe",
        "step_3.pt": "nested more",
    }
    found = open_checkpoints(tmp_path)
    assert found.steps.tolist() == [4]
    dcp.save(deep, checkpoint_id=tmp_path / "deep", no_dist=True)
    with pytest.raises(CheckpointError, match="more than 100 deep"):
        open_distributed(tmp_path / "deep")
    assert len(found.damaged) == 3
    for (name, words), told in zip(damaged.items(), found.damaged, strict=True):
        assert told.startswith(f"{name} is {words}")
    try:
        odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/step_\xff.pt"))
        (tmp_path / "step_4.pt").rename(odd)
    except OSError:
        return  # no such names here
    with pytest.raises(CheckpointError, match=r"step_.*has a name that is no UTF-8: rename it"):
        open_file(odd)


def test_links_in_circles_are_followed_once(tmp_path):
    (tmp_path / "in").mkdir()
    written(tmp_path / "in", "zip")
    (tmp_path / "in" / "back").symlink_to(tmp_path, target_is_directory=True)
    openers, passed = find_units(tmp_path)
    assert (len(openers), passed) == (1, ["back: a link to a folder that it is in"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_that_may_not_be_read_is_a_sentence(tmp_path, name):
    (tmp_path / name).write_bytes(b"x" * 100)
    (tmp_path / name).chmod(0)
    with pytest.raises(CheckpointError, match=f"{name} .*[Pp]ermission denied"):
        open_file(tmp_path / name)


def test_a_missing_part_of_a_set_is_told(tmp_path):
    written(tmp_path, "sharded")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00002.safetensors, which is not there \(1 of 2\)"):
        open_index(tmp_path / "model.safetensors.index.json")
    (tmp_path / "model.safetensors.index.json").unlink()
    [opener], _ = find_units(tmp_path)
    with pytest.raises(CheckpointError, match="of the 2 files .* only 1 are there"):
        opener()
    (tmp_path / "out.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    with pytest.raises(CheckpointError, match="not beside it"):
        open_index(tmp_path / "out.safetensors.index.json")


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ("{", "is no index of files"),
        ("[]", "is no index of files"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "which is not beside it"),
        ('{"weight_map": {"a": "b.safetensors"}}', "which is not there"),
    ],
)
def test_a_broken_index_takes_no_other_file_of_its_folder_along(tmp_path, index, told):
    torch.save({"model": {"w": torch.ones(2)}, "step": 3}, tmp_path / "step_3.pt")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    found = open_checkpoints(tmp_path)
    assert found.steps.tolist() == [3]
    assert len(found.damaged) == 1
    assert told in found.damaged[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.complex64])
def test_a_distributed_chunk_is_looked_up_once_however_small_the_parts(tmp_path, monkeypatch, dtype):
    weight = torch.arange(600.0).reshape(20, 5, 6).to(dtype)
    dcp.save({"model": {"w": weight, "turned": weight.permute(2, 0, 1)}}, checkpoint_id=tmp_path)
    looked_up, whole = [], []
    lookup, read = stored.archive_in, FileSystemReader.read_data
    monkeypatch.setattr(stored, "archive_in", lambda *place: looked_up.append(place) or lookup(*place))
    monkeypatch.setattr(FileSystemReader, "read_data", lambda *plan: whole.append(plan) or read(*plan))
    content = open_distributed(tmp_path).content["model"]
    for name, expected in {"w": weight, "turned": weight.permute(2, 0, 1).contiguous()}.items():
        parts = [content[name].read(start, min(start + 7, 600)) for start in range(0, 600, 7)]
        assert torch.equal(torch.cat(parts).view(torch.uint8), expected.reshape(-1).view(torch.uint8))
    assert len(looked_up) == 2
    assert whole == []
    monkeypatch.setattr(stored, "archive_in", lambda *place: lookup("nowhere"))  # torch's own reader, then
    again = open_distributed(tmp_path).content["model"]["w"]
    assert torch.equal(again.read(8, 99).view(torch.uint8), weight.reshape(-1)[8:99].view(torch.uint8))
    assert whole


def sharded_parts(rank, folder):
    """In one of two processes: write its part of tensors."""
    join_group(rank, folder)
    mesh = init_device_mesh("cpu", (2,))
    weight = distribute_tensor(torch.arange(35.0).reshape(7, 5), mesh, [Shard(0)])
    turned = distribute_tensor(torch.arange(35.0).reshape(7, 5), mesh, [Shard(1)])
    state = {"model": {"a.weight": weight, "turned": turned}, "step": torch.tensor(12)}
    dcp.save(state, checkpoint_id=folder / "dcp")
    dist.destroy_process_group()


def test_shards_of_several_processes_are_one_tensor(tmp_path):
    in_processes(sharded_parts, tmp_path)
    content = open_distributed(tmp_path / "dcp").content
    whole = torch.arange(35.0)
    for name in ("a.weight", "turned"):
        assert torch.equal(content["model"][name].read(), whole)
        assert torch.equal(content["model"][name].read(8, 29), whole[8:29])
    assert content["step"].value().item() == 12
