"""Tensors of which each process holds a part: the ``DTensor`` of FSDP2 and of tensor parallelism."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Importing what shards takes a second, and where nobody has imported it, there is nothing sharded: so modules are
# looked up only, by name.
_TENSOR = "torch.distributed.tensor"
_FSDP = "torch.distributed.fsdp"


def _looked_up(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, ())  # isinstance(x, ()) is false


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor only."""
    return type(tensor) is not Tensor and isinstance(tensor, _looked_up(_TENSOR, "DTensor"))


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: shares its memory; a whole tensor itself."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():  # with gradients it would be another object each time
        part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor; of a sharded one, all of its processes have to ask for it together."""
    if not is_sharded(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return whole


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether each process holds the same part of both."""
    if not is_sharded(one) or not is_sharded(other):
        return is_sharded(one) == is_sharded(other)
    same: bool = one.device_mesh == other.device_mesh and one.placements == other.placements  # type: ignore[attr-defined]
    return same


def laid_out(source: Tensor, like: Tensor) -> Tensor:
    """The values of ``source``, sharded as ``like`` is; where that takes other processes, all have to call it."""
    if alike(source, like):
        return source
    if not is_sharded(like):
        return gathered(source)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    if is_sharded(source) and source.device_mesh == mesh:  # type: ignore[attr-defined]
        moved: Tensor = source.redistribute(mesh, placements)  # type: ignore[attr-defined]
        return moved
    # Every process has the whole and takes its own part.
    return distribute_tensor(gathered(source), mesh, placements, src_data_rank=None)


def as_part(part: Tensor, like: Tensor) -> Tensor:
    """What this process holds, as the whole that is sharded as ``like`` is (on the meta device, say)."""
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def anywhere(flag: bool, tensors: Iterable[Tensor]) -> bool:
    """Whether it is true in any of the processes that hold parts of these tensors; all have to ask together."""
    meshes = dict.fromkeys(tensor.device_mesh for tensor in tensors if is_sharded(tensor))  # type: ignore[attr-defined]
    for mesh in meshes:
        told = torch.tensor(int(flag), device=mesh.device_type)
        for dimension in range(mesh.ndim):
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, mesh.get_group(dimension))
        flag = bool(told)
    return flag


def is_first(tensors: Iterable[Tensor]) -> bool:
    """Whether this process is the first of those that hold parts of these tensors, or the only one."""
    meshes = [tensor.device_mesh for tensor in tensors if is_sharded(tensor)]  # type: ignore[attr-defined]
    return not meshes or not any(meshes[0].get_coordinate())


def copy_each(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """Copy tensors into tensors of the same shapes, however each is sharded."""
    pairs = [(target, laid_out(source, target)) for target, source in zip(targets, sources, strict=True)]
    if pairs:
        torch._foreach_copy_([local(target) for target, _ in pairs], [local(source) for _, source in pairs])


def reshard(module: nn.Module) -> None:
    """Have FSDP2 let go of whole weights that a forward pass has left behind, because it keeps the parts only."""
    if kind := _looked_up(_FSDP, "FSDPModule"):
        for part in module.modules():
            if isinstance(part, kind):
                part.reshard()


def check_not_flat(role: str, module: nn.Module) -> None:
    """Raise ``TypeError`` for FSDP1, whose processes hold pieces of flattened weights."""
    if kind := _looked_up(_FSDP, "FullyShardedDataParallel"):
        for name, part in module.named_modules():
            if isinstance(part, kind):
                raise TypeError(
                    f"{role}: {f'its module {name!r}' if name else 'it'} is a FullyShardedDataParallel (FSDP1), which "
                    "flattens weights and keeps pieces of them; shard it with torch.distributed.fsdp.fully_shard "
                    "(FSDP2), whose weights can be averaged where they lie"
                )


def is_fully_sharded(module: nn.Module) -> bool:
    """Whether ``fully_shard`` has been applied to a module or a part of it."""
    kind = _looked_up(_FSDP, "FSDPModule")
    return any(isinstance(part, kind) for part in module.modules())


def sharded_alike(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A copy of a module that ``fully_shard`` has been applied to, sharded alike; what is sharded has no values yet.

    FSDP2's modules cannot be copied: so plain ones without values are, and sharded as they are.  No process ever holds
    more than its part.

    Args:
        memo: By the ``id`` of a tensor what the copy is to have in its place, where it is not sharded.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    reshard(model)
    placements = {}
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            empty = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))
            memo[id(parameter)] = empty
            placements[id(empty)] = _placement(name, parameter)
    parts = list(model.modules())
    for part in parts:
        kind: Any = type(part).__mro__[part._orig_cls_mro_index] if isinstance(part, FSDPModule) else type(part)
        memo[id(part)] = kind.__new__(kind)
    for part in parts:
        hooks = _fsdp_hooks(part)
        for key, value in part.__dict__.items():
            if key in ("_is_fsdp_managed_module", "_fsdp_use_orig_params") or key.startswith("__composable_api"):
                continue
            if isinstance(value, dict) and hooks & set(value):
                value = type(value)((k, v) for k, v in value.items() if k not in hooks)
            memo[id(part)].__dict__[key] = copy.deepcopy(value, memo)
    for part in reversed(parts):  # the inner ones first, as whoever shards has to
        if isinstance(part, FSDPModule):
            fully_shard(memo[id(part)], **_options(part, placements))
    shadow: nn.Module = memo[id(model)]
    return shadow


def fill(shadow: nn.Module, model: nn.Module) -> None:
    """Give such a copy memory and values, where it has not the model's.

    Raises:
        TypeError: if the model is sharded in another way, too.
    """
    devices = {name: local(parameter).device for name, parameter in model.named_parameters()}
    device = next(iter(devices.values()))
    shadow._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)  # type: ignore[no-untyped-call]
    theirs = dict(model.named_parameters())
    for name, parameter in shadow.named_parameters():
        if not alike(parameter, theirs[name]):
            raise TypeError(f"{name!r} is sharded in another way, too (tensor parallelism)")
    pairs = [(own.detach(), theirs[name].detach()) for name, own in shadow.named_parameters()]
    apart = [pair for pair in pairs if len({local(tensor).data_ptr() for tensor in pair}) > 1]
    with torch.no_grad():
        copy_each([own for own, _ in apart], [source for _, source in apart])


def share_parts(shadow: nn.Module, model: nn.Module) -> None:
    """Have a sharded shadow gather the parameters that were replaced by the model's from where the model has them.

    Raises:
        RuntimeError: if one of the two is sharded by ``fully_shard`` and the other is not, or otherwise.
    """
    theirs, ours = _managed(model), _managed(shadow)
    for name in theirs.keys() | ours.keys():
        if name not in theirs or name not in ours or not alike(theirs[name].sharded_param, ours[name].sharded_param):
            raise RuntimeError(
                f"{name!r} is not sharded alike in the model and its average, so that they cannot have the same memory "
                "for what names or trainable_only leaves out: apply fully_shard to both in the same way (to "
                "ema.ema_model, too), or build the EMA of the sharded model"
            )
    for name, own in ours.items():
        now = own._module_info.module._parameters[own._module_info.param_name]
        if now is not own.sharded_param:
            # As FSDP2 does it after load_state_dict(assign=True), but without padding once more what is padded.
            own.sharded_param, own._sharded_param_data = now, theirs[name]._sharded_param_data


def _managed(module: nn.Module) -> dict[str, Any]:
    """By its name, what FSDP2 keeps of each parameter that it shards."""
    kind = _looked_up(_FSDP, "FSDPModule")
    names = {id(part): name for name, part in module.named_modules()}
    return {
        f"{names[id(found._module_info.module)]}.{found._module_info.param_name}".removeprefix("."): found
        for part in module.modules()
        if isinstance(part, kind)
        for group in part._get_fsdp_state()._fsdp_param_groups
        for found in group.fsdp_params
    }


def _options(part: Any, placements: dict[int, Any]) -> dict[str, Any]:
    """What ``fully_shard`` was called with."""
    state = part._get_fsdp_state()
    groups = state._fsdp_param_groups
    if len(groups) > 1 or len(state._modules) > 1:
        raise TypeError("fully_shard was applied to a list of modules, or with several meshes")
    found: dict[str, Any] = {
        "mp_policy": state._mp_policy,
        "shard_placement_fn": lambda parameter: placements[id(parameter)],
    }
    if groups:
        found["mesh"] = groups[0].mesh_info.mesh
        found["offload_policy"] = groups[0].offload_policy
        if not state._auto_reshard_after_forward:
            found["reshard_after_forward"] = groups[0].post_forward_mesh_info is not None
    return found


def _placement(name: str, parameter: Any) -> Any:
    from torch.distributed.tensor import Shard

    shards = [placement for placement in parameter.placements if isinstance(placement, Shard)]
    if len(shards) != 1:
        raise TypeError(f"{name!r} is sharded {len(shards)} times")
    return shards[0]


def _fsdp_hooks(part: nn.Module) -> set[int]:
    """The keys under which FSDP2 has hooks on a module."""
    return {
        key
        for hooks in (part._forward_pre_hooks, part._forward_hooks)
        for key, hook in hooks.items()
        if str(getattr(hook, "__module__", "")).startswith("torch.distributed")
    }
