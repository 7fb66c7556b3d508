"""Results of merges on the disk: written block by block, beside their place, with what they were made of."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emacore.checkpoints.planning import MergePlan, MergeSource, dtype_of
from emacore.checkpoints.stored import DTYPE_NAMES, CheckpointError, stem_of
from emacore.formatting import number


class Writer:
    """The weights of one result, written in any order into safetensors files like those of the input."""

    def __init__(self, stage: Path, plan: MergePlan, one_file: bool) -> None:
        stage.mkdir()
        self._stage, self._plan, self._as_torch = stage, plan, one_file
        tensors = plan.sources[-1].section.tensors
        shards = _shards(plan.sources[-1]) if not one_file else {"model.safetensors": list(tensors)}
        self._files: dict[str, SafetensorsFile] = {}
        self._of: dict[str, SafetensorsFile] = {}
        for file_name, names in shards.items():
            layout = {name: (tensors[name].shape, dtype_of(tensors[name], plan.dtype)) for name in names}
            self._files[file_name] = SafetensorsFile(stage / file_name, layout, _HEADER_ROOM + 512 * len(plan.sources))
            self._of |= dict.fromkeys(names, self._files[file_name])

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Numbers of a tensor, from ``start`` on; they are rounded to its dtype."""
        self._of[name].write(name, start, values)

    def finish(self, about: Mapping[str, Any], target: Path) -> None:
        """Close the files and put beside them what tells of them; all lies in the stage as it will in its place."""
        told = {"kind": "average", "scheme": about["scheme"]}
        header = {
            "format": "pt",
            "step": str(about["step"]),
            "emacore": json.dumps(told),
            "emacore_merge": json.dumps({key: about[key] for key in ("made_by", "sources")}),
        }
        for file in self._files.values():
            file.close(header)
        stage = self._stage
        text = json.dumps(about, indent=1)
        if self._as_torch:
            _as_torch_file(stage / "model.safetensors", about["ties"], stage / "model.pt")
        if _is_folder(self._plan):
            if len(self._files) > 1:
                _write_index(stage, {name: file.path.name for name, file in self._of.items()})
            for path in _configs(self._plan.sources[-1]):
                shutil.copy(path, stage / path.name)
            (stage / "merge.json").write_text(text)
        else:
            (stage / ("model.pt" if self._as_torch else "model.safetensors")).rename(stage / target.name)
            (stage / told_beside(target).name).write_text(text)


#: Bytes of the header for what it says besides tensors.
_HEADER_ROOM = 4096


class SafetensorsFile:
    """A safetensors file of known tensors whose numbers come in any order: the library itself writes whole ones only.

    Source: the format's description, https://github.com/huggingface/safetensors#format.
    """

    def __init__(self, path: Path, layout: Mapping[str, tuple[tuple[int, ...], torch.dtype]], room: int) -> None:
        self.path = path
        if "__metadata__" in layout:
            raise CheckpointError(
                "no tensor of a safetensors file can have the name '__metadata__': write .pt (--as pt)"
            )
        # Wide dtypes first, as the library does, so that all lie aligned.
        order = sorted(layout, key=lambda name: -layout[name][1].itemsize)
        self._entries: dict[str, dict[str, Any]] = {}
        self._dtypes = {name: dtype for name, (_, dtype) in layout.items()}
        offset = 0
        for name in order:
            shape, dtype = layout[name]
            end = offset + math.prod(shape) * dtype.itemsize
            self._entries[name] = {
                "dtype": DTYPE_NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [offset, end],
            }
            offset = end
        self._room = -(-(len(json.dumps(self._entries)) + room) // 8) * 8
        self._file = path.open("xb", buffering=0)
        self._file.truncate(8 + self._room + offset)

    def write(self, name: str, start: int, values: Tensor) -> None:
        dtype = self._dtypes[name]
        flat = values.to(dtype).contiguous()
        if not flat.numel():
            return
        if dtype != values.dtype and dtype.is_floating_point and (largest := _beyond(values, dtype)):
            raise CheckpointError(
                f"{name!r} does not fit into {str(dtype).removeprefix('torch.')}: the result has a number of size "
                f"{number(largest)}; write another dtype"
            )
        place = 8 + self._room + self._entries[name]["data_offsets"][0] + start * dtype.itemsize
        left = memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
        while left:
            count = os.pwrite(self._file.fileno(), left, place)
            left, place = left[count:], place + count

    def close(self, metadata: Mapping[str, str]) -> None:
        told = dict(metadata)
        header = json.dumps({"__metadata__": told, **self._entries}).encode()
        while len(header) > self._room:  # what it says is in the JSON file, too
            del told[max(told, key=lambda key: len(told[key]))]
            header = json.dumps({"__metadata__": told, **self._entries}).encode()
        os.pwrite(self._file.fileno(), self._room.to_bytes(8, "little") + header.ljust(self._room), 0)
        os.fsync(self._file.fileno())
        self._file.close()


def _beyond(values: Tensor, dtype: torch.dtype) -> float | None:
    """The largest finite number, where that is more than a dtype of another range can hold."""
    most = torch.finfo(dtype).max
    if most * 1.01 > torch.finfo(values.dtype).max:
        return None
    low, high = torch.aminmax(values)
    if max(-low.item(), high.item()) <= most:
        return None
    largest = float(values[values.isfinite()].abs().max()) if values.isfinite().any() else 0.0
    return largest if largest > most else None


def _as_torch_file(source: Path, ties: Mapping[str, str], target: Path) -> None:
    """Write a safetensors file anew by ``torch.save``, mapped, so that it need not fit into memory; shared tensors get
    all their names."""
    from safetensors import safe_open

    with safe_open(source, "pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        # One without numbers begins where the next does, and torch takes them for one memory of two dtypes.
        state = {name: tensor if tensor.numel() else tensor.clone() for name, tensor in state.items()}
        torch.save(state | {name: state[first] for name, first in ties.items()}, target)
    source.unlink()


def _shards(source: MergeSource) -> dict[str, list[str]]:
    """The names of the result's files and what lies in each: as in the input, where that is of several safetensors."""
    files = dict.fromkeys(tensor.file for tensor in source.section.tensors.values())
    if len(files) == 1 or any(file.suffix != ".safetensors" for file in files):
        return {"model.safetensors": list(source.section.tensors)}
    return {
        file.name: [name for name, tensor in source.section.tensors.items() if tensor.file == file] for file in files
    }


def _write_index(folder: Path, places: Mapping[str, str]) -> None:
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    stem = stem_of(folder / next(iter(places.values())))
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(content, indent=1))


def _configs(source: MergeSource) -> list[Path]:
    """What libraries need beside weights to load a model."""
    folder = source.checkpoint.files[0].parent
    names = ("config.json", "generation_config.json", "adapter_config.json", "tokenizer*", "special_tokens_map.json")
    return sorted({path for name in names for path in folder.glob(name) if path.is_file()})


def _is_folder(plan: MergePlan) -> bool:
    """Whether a result is a folder: of several files, or with what says how to load it."""
    source = plan.sources[-1]
    return len(_shards(source)) > 1 or any("config" in path.name for path in _configs(source))


def targets_of(plan: MergePlan, out: Path, form: str) -> list[Path]:
    """The file or folder of each result."""
    suffix = ".pt" if form == "pt" else ".safetensors"
    if len(plan.results) == 1 and out.suffix == suffix and not _is_folder(plan):
        return [out]
    if out.suffix in (".pt", ".safetensors") and not out.exists():
        why = (
            f"the results are written as {suffix}"
            if out.suffix != suffix
            else "each result is a folder, as the files are"
            if _is_folder(plan)
            else f"there are {len(plan.results)} results"
        )
        raise ValueError(f"{out} is named like a file, but {why}: name a folder, or another form")
    for result in plan.results:
        if not isinstance(result.name, str):
            raise TypeError(f"a result's name must be a text, got {result.name!r}")
        if len(result.name.encode()) > 200:
            raise ValueError(f"a result's name must be one of at most 200 bytes, got {result.name[:60]!r}...")
        if (
            Path(result.name).name != result.name
            or result.name.startswith(".")
            or not result.name
            or "\0" in result.name
        ):
            raise ValueError(f"a result's name must be that of a file, got {result.name!r}")
    return [out / (result.name if _is_folder(plan) else f"{result.name}{suffix}") for result in plan.results]


def told_beside(target: Path) -> Path:
    return target.with_name(f"{target.name}.merge.json")
