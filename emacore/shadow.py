"""Where the shadow of a module comes from."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from emacore.sharded import is_sharded, sharded_copy
from emacore.tensors import Tie, named_parts


def set_dtype(module: nn.Module, tied: Mapping[str, Tie], name: str, dtype: torch.dtype) -> Tensor:
    """Give a tensor of a module another dtype, under each of its names."""
    tensor = tied[name].tensor
    if isinstance(tensor, nn.Parameter):
        tensor.data = tensor.data.to(dtype)
        return tensor
    wide = tensor.to(dtype)
    for other, tie in tied.items():
        if tie.tensor is tensor:
            start, _, leaf = other.rpartition(".")
            named_parts(module)[f"{start}." if start else ""]._buffers[leaf] = wide
    return wide


def built(build: object) -> nn.Module:
    """What a function given as ``ema_model`` returns."""
    if not callable(build):
        raise TypeError(f"ema_model must be a module or a function that builds one, got {build!r}")
    built = build()
    if not isinstance(built, nn.Module):
        raise TypeError(f"ema_model must build a module, and gave {built!r}")
    return built


@torch.inference_mode(False)
def copy_of(model: nn.Module) -> nn.Module:
    """A copy of a module, without gradients.

    Raises:
        TypeError: if it cannot be copied.
    """
    sharded = any(is_sharded(parameter) for parameter in model.parameters())
    try:
        shadow = sharded_copy(model) if sharded else copy.deepcopy(model)
    except Exception as error:
        raise TypeError(
            f"{type(model).__name__} cannot be copied ({error}); build a second one and pass it as ema_model"
        ) from error
    for parameter in shadow.parameters():
        parameter.grad = None
    return shadow
