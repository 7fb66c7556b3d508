"""Averages as safetensors files that the plain model loads."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from emacore.tensors.pairing import Tie, listed, plain_name, ties, unwrapped
from emacore.tensors.sharded import copy_each, gathered, local


def save_tensors(module: nn.Module, path: str | Path, left_out: Collection[str], about: Mapping[str, str]) -> None:
    """Write a module's tensors under the names of its plain state, a shared one once.

    Args:
        left_out: Names that are not written.
        about: What the file is to say of itself.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if a tensor has no place in such a file.
    """
    export = _exported(module, left_out)
    check_storable({name: tie.tensor for name, tie in export.items()})
    tensors = {
        name: gathered(tie.tensor).detach().contiguous() for name, tie in export.items() if tie.first_name == name
    }
    # What safetensors' own save_model says of ties, and what transformers asks for.
    aliases = {name: tie.first_name for name, tie in export.items() if tie.first_name != name}
    if dist.is_available() and dist.is_initialized() and dist.get_rank():
        return
    try:
        save_file(tensors, path, {**aliases, "format": "pt", **about})
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def check_storable(tensors: Mapping[str, Tensor], cure: str = "keep state_dict() by torch.save") -> None:
    """Raise ``ValueError`` if a tensor has no place in a safetensors file."""
    for name, tensor in tensors.items():
        if tensor.is_quantized or tensor.layout != torch.strided or tensor.dtype in (torch.complex32, torch.complex128):
            kind = tensor.dtype if tensor.layout == torch.strided else f"layout {tensor.layout}"
            raise ValueError(f"{name!r} is of {kind}, which safetensors files cannot hold: {cure}")


def load_tensors(module: nn.Module, path: str | Path, left_out: Collection[str]) -> dict[str, str]:
    """Copy such a file, or that of a plain model, into a module; return what it says of itself.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no safetensors file, or a damaged one.
        RuntimeError: if names or shapes differ; then nothing has been copied.
    """
    try:
        with safe_open(path, "pt") as file:
            names, about = list(file.keys()), file.metadata() or {}
            found = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    export = _exported(module, left_out)
    values: dict[str, Tensor] = {}
    for name, tie in export.items():  # a shared tensor may be there under any of its names
        if name in found:
            values.setdefault(tie.first_name, found[name])
    lacking, strange = {tie.first_name for tie in export.values()} - set(values), set(found) - set(export)
    if lacking or strange:
        told = [f"lacks {listed(lacking)}"] * bool(lacking) + [f"has {listed(strange)} more"] * bool(strange)
        raise RuntimeError(f"{path} is of another model: it {' and '.join(told)}")
    for name, value in values.items():
        if value.shape != (shape := export[name].tensor.shape):
            raise RuntimeError(f"{path}: {name!r} has shape {tuple(value.shape)}, in the model {tuple(shape)}")
    targets = [export[name].tensor.detach() for name in values]
    sources = [value.to(local(target).device) for value, target in zip(values.values(), targets, strict=True)]
    copy_each(targets, sources)
    return dict(about)


def _exported(module: nn.Module, left_out: Collection[str]) -> dict[str, Tie]:
    """What a plain module's state has, by its names; ties among those."""
    state = {plain_name(name): value for name, value in unwrapped(module).state_dict().items()}
    if strange := {name for name, value in state.items() if not isinstance(value, Tensor)}:
        warnings.warn(f"{listed(strange)} are no tensors, which safetensors cannot hold: left out", stacklevel=4)
    found = {name: tie for name, tie in ties(module).items() if name in state and name not in left_out}
    first: dict[str, str] = {}
    for name, tie in found.items():
        first.setdefault(tie.first_name, name)
    return {name: Tie(tie.tensor, first[tie.first_name]) for name, tie in found.items()}
