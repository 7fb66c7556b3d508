import hashlib
import json
import struct

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from emacore import merge, open_checkpoints
from emacore.averaging.coefficients import Coefficients, LastFiles
from emacore.checkpoints import lanes
from emacore.checkpoints.files import PartsOf
from emacore.checkpoints.lanes import blocks_of, lanes_of
from emacore.checkpoints.planning import plan_merge


def state_of(step):
    generator = torch.Generator().manual_seed(step)
    state = {f"layer{n}": torch.randn(37, 41, generator=generator).to(torch.bfloat16) for n in range(5)}
    return state | {"norm": torch.randn(5, generator=generator), "none": torch.zeros(0, 3), "count": torch.tensor(step)}


def as_safetensors(path, state):
    save_file(state, path / "model.safetensors")


def in_another_order(path, state):
    """Each file in one of its own: the library itself has but one."""
    names = sorted(state, key=lambda name: hashlib.sha256(f"{path}{name}".encode()).digest())
    header, data = {}, b""
    for name in names:
        part = state[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        kind = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64"}[state[name].dtype]
        header[name] = {
            "dtype": kind,
            "shape": list(state[name].shape),
            "data_offsets": [len(data), len(data) + len(part)],
        }
        data += part
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def sharded(path, state):
    parts = {"model-00001-of-00002.safetensors": dict(list(state.items())[:3])}
    parts["model-00002-of-00002.safetensors"] = dict(list(state.items())[3:])
    for name, part in parts.items():
        save_file(part, path / name)
    places = {key: name for name, part in parts.items() for key in part}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def as_torch(path, state):
    torch.save(state, path / "model.pt")


def after_an_optimizer(path, state):
    torch.save({"optimizer": {"state": {0: torch.randn(9000)}, "param_groups": []}, "model": state}, path / "model.pt")


def before_an_optimizer(path, state):
    torch.save({"model": state, "optimizer": {"state": {0: torch.randn(9000)}, "param_groups": []}}, path / "model.pt")


def as_before(path, state):
    torch.save(state, path / "model.pt", _use_new_zipfile_serialization=False)


def tied(path, state):
    torch.save({"first": state["layer0"], **state, "transposed": state["layer4"].T}, path / "model.pt")


def distributed(path, state):
    dcp.save(state, checkpoint_id=path, no_dist=True)


def in_turns(path, state):
    """Not all files in the same order of layers."""
    torch.save(dict(reversed(state.items())) if int(path.name) % 2 else state, path / "model.pt")


LAYOUTS = [
    as_safetensors, in_another_order, sharded, as_torch, after_an_optimizer, before_an_optimizer, as_before, tied,
    distributed, in_turns,
]  # fmt: skip


@pytest.mark.parametrize("write", LAYOUTS)
def test_hashes_and_sums_are_the_same_however_the_numbers_lie(tmp_path, monkeypatch, write):
    monkeypatch.setattr(lanes, "_BLOCK", 192)
    states = []
    for step in (1, 2, 3, 4):
        (place := tmp_path / f"{step}").mkdir()
        write(place, state := state_of(step))
        states.append(state)
    found = open_checkpoints(tmp_path)
    merges = {"mean": LastFiles(3), "other": Coefficients((0.5, 0.0, 0.0, 0.5))}
    places = merge(found, merges, tmp_path / "out", form="pt")
    for place, numbers in zip(places, ((2, 3, 4), (1, 4)), strict=True):
        beside = place / "merge.json" if place.is_dir() else place.with_name(f"{place.name}.merge.json")
        about = json.loads(beside.read_text())
        assert [one["step"] for one in about["sources"]] == list(numbers)
        for one in about["sources"]:
            files = {file.name: file for file in found[one["step"] - 1].files}
            assert one["files"] == {key: hashlib.sha256(file.read_bytes()).hexdigest() for key, file in files.items()}
        merged = torch.load(place / "model.pt" if place.is_dir() else place)
        assert merged["count"] == 4
        for key in ("layer0", "layer4", "norm"):
            total = torch.zeros(states[0][key].shape)
            for number in numbers:
                total.add_(states[number - 1][key].float(), alpha=1 / len(numbers))
            assert torch.equal(
                merged["first" if write is tied and key == "layer0" else key], total.to(merged[key].dtype)
            )


def test_no_byte_of_a_file_in_order_is_read_twice(tmp_path, monkeypatch):
    """A second read, for the hashes, would take longer than the hashes themselves do."""
    monkeypatch.setattr(lanes, "_BLOCK", 192)
    for step in (1, 2, 3):
        (place := tmp_path / f"{step}").mkdir()
        sharded(place, state_of(step))
    found = open_checkpoints(tmp_path)
    read = {}
    real = PartsOf.read

    def counted(self, at, into):
        read[self.path] = read.get(self.path, 0) + into.nbytes
        real(self, at, into)

    monkeypatch.setattr(PartsOf, "read", counted)
    merge(found, {"mean": LastFiles(3)}, tmp_path / "out")
    weights = {file: file.stat().st_size for file in found.files if file.suffix == ".safetensors"}
    assert {file: size for file, size in read.items() if file in weights} == weights


def test_blocks_are_all_of_the_bytes_and_lanes_all_of_the_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes, "_BLOCK", 192)
    for step in range(1, 8):
        torch.save(state_of(step), tmp_path / f"{step}.pt")
    plan = plan_merge(open_checkpoints(tmp_path), {"some": Coefficients((1.0, 0.0, 1.0, 1.0, 0.0))})
    blocks = list(blocks_of(plan))
    assert sum(block.nbytes for block in blocks) == plan.read_bytes
    assert [block.share for block in blocks] == sorted(block.share for block in blocks)
    assert blocks[-1].share == 1
    block = max(blocks, key=lambda block: block.stop - block.start)
    for count in (1, 2, 9):
        found = lanes_of(plan, count, hashed=True)
        assert len(found) == min(count, 4)
        numbers = [n for lane in found for n in lane.read(block, lane.buffers(block.stop - block.start))]
        assert sorted(numbers) == [2, 4, 5]
        files = [file.name for lane in found for file in lane.finish()]
        assert sorted(files) == ["3.pt", "5.pt", "6.pt"]
