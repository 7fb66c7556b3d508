"""Where the shadow of a module comes from."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from emacore.tensors.chosen import linked_copy
from emacore.tensors.pairing import Tie, check_apart, named_parts, ties
from emacore.tensors.sharded import is_sharded


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
def copy_of(model: nn.Module, left_out: Collection[str] = (), device: torch.device | str | None = None) -> nn.Module:
    """A copy of a module, without gradients.

    Args:
        left_out: Names of tensors that remain the model's.
        device: Where the others go, by default where they are.

    Raises:
        TypeError: if it cannot be copied.
        ValueError: for a device with a model that is sharded, or if what copies a part shares it instead.
    """
    sharded = any(is_sharded(parameter) for parameter in model.parameters())
    if sharded and device is not None:
        raise ValueError("device is for models that are not sharded; shard an ema_model with offload_policy instead")
    try:
        shadow = linked_copy(model, left_out, device)
    except Exception as error:
        raise TypeError(
            f"{type(model).__name__} cannot be copied ({error}); build a second one and pass it as ema_model"
        ) from error
    check_apart(f"the copy of {type(model).__name__}, as its __deepcopy__ makes it,", shadow, model, left_out)
    for name, tie in ties(shadow).items():
        if name not in left_out:
            tie.tensor.grad = None
    return shadow
