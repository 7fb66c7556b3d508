"""A part of a module's tensors: which it is, and a shadow that holds only that part itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from emacore.tensors.pairing import as_names, listed, ties
from emacore.tensors.sharded import fill, is_fully_sharded, is_sharded, reshard, sharded_alike, share_parts

_COMPILED = "_orig_mod."


def chosen(module: nn.Module, names: Collection[str] | None, trainable_only: bool) -> frozenset[str]:
    """The first names of the tensors that are meant; by default all.

    Args:
        names: Names of parameters and buffers.
        trainable_only: The parameters that require a gradient now, and the buffers of the modules that have one
            (BatchNorm's statistics go with its weights).

    Raises:
        ValueError: for a name that the module does not have, for both arguments at once, or if nothing is left.
        TypeError: for what are no names, such as a string in place of a collection.
    """
    known = ties(module)
    if names is None and not trainable_only:
        return frozenset(tie.first_name for tie in known.values())
    if names is not None and trainable_only:
        raise ValueError("give either names or trainable_only, not both")
    wanted = trainable(module) if names is None else as_names("names", names)
    for name in sorted(wanted - set(known)):
        raise ValueError(f"names: the module has no tensor {name!r}; it has {listed(known)}")
    found = frozenset(known[name].first_name for name in wanted)
    if not found:
        why = "no parameter of the module requires a gradient" if trainable_only else "names is empty"
        raise ValueError(f"{why}, so that there is nothing to average")
    return found


def left_out_names(module: nn.Module, names: Collection[str] | None, trainable_only: bool) -> frozenset[str]:
    """The other ones, under all names that they have.

    Raises:
        ValueError, TypeError: as :func:`chosen`.
    """
    kept = chosen(module, names, trainable_only)
    return frozenset(name for name, tie in ties(module).items() if tie.first_name not in kept)


def trainable(module: nn.Module) -> set[str]:
    """Names of the parameters that require a gradient, and of the buffers beside them."""
    found = set()
    for prefix, part in module.named_modules(remove_duplicate=False):
        own = [
            name for name, parameter in part._parameters.items() if parameter is not None and parameter.requires_grad
        ]
        if own:
            own += [name for name, buffer in part._buffers.items() if buffer is not None]
        found |= {_plain(prefix, name) for name in own}
    return found


def tell_late(module: nn.Module, left_out: Collection[str], told: frozenset[str], kept: str) -> frozenset[str]:
    """Warn of what was left out because it did not train, and trains by now: whoever asked for what trains may want it.

    Args:
        told: Of which it has been told.
        kept: What is missing, for the message.

    Returns:
        Of which it has been told by now.
    """
    late = frozenset(trainable(module) & set(left_out)) - told
    if late:
        warnings.warn(
            f"{listed(late)} train by now, but did not when trainable_only=True chose what to keep, so that {kept}; "
            "build a new one to have it",
            stacklevel=4,
        )
    return told | late


def linked_copy(module: nn.Module, left_out: Collection[str], device: torch.device | str | None = None) -> nn.Module:
    """A deep copy whose tensors of these names are those of the module itself, so that they cost nothing.

    Args:
        device: Where the other tensors go, without a copy of them where they are; not for sharded modules.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        _detach_results(vars(part), memo)
    for name, _, _, tensor in _places(module):
        if name in left_out:
            memo[id(tensor)] = _link(tensor)
        elif device is not None and id(tensor) not in memo:
            moved = tensor.detach().to(device, copy=True)
            memo[id(tensor)] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
    if not is_fully_sharded(module):
        return copy.deepcopy(module, memo)
    shadow = sharded_alike(module, memo)
    link(shadow, module, left_out)
    fill(shadow, module)
    return shadow


def _detach_results(value: Any, memo: dict[int, Any], depth: int = 3) -> None:
    """Note copies of what an earlier forward pass has left in attributes, which torch refuses to copy.

    The older weight normalisation and pruning leave the weight there that they have computed.
    """
    if isinstance(value, Tensor):
        if not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    elif depth and isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            _detach_results(item, memo, depth - 1)


def link(shadow: nn.Module, module: nn.Module, left_out: Collection[str]) -> None:
    """Make the shadow's tensors of these names those that the module has now.

    Raises:
        RuntimeError: if only one of the two is sharded by ``fully_shard``, or otherwise.
    """
    if not left_out:
        return
    reshard(module)
    reshard(shadow)
    now = {name: tensor for name, _, _, tensor in _places(module) if name in left_out}
    links: dict[int, Tensor] = {}
    for name, table, leaf, _ in list(_places(shadow)):
        if name in now:
            tensor = now[name]
            table[leaf] = links.setdefault(id(tensor), _link(tensor))
    share_parts(shadow, module)


def unlink(shadow: nn.Module, left_out: Collection[str]) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Take the tensors of these names out of the shadow; where they were, for putting them back."""
    taken = [(table, leaf, tensor) for name, table, leaf, tensor in _places(shadow) if name in left_out]
    for table, leaf, _ in taken:
        table[leaf] = None
    return taken


def _link(tensor: Tensor) -> Tensor:
    """The tensor itself, or, of a trainable parameter, an alias: a shadow's must not require a gradient.

    Of a sharded one, too, because each FSDP2 module manages its own.
    """
    if isinstance(tensor, nn.Parameter) and (tensor.requires_grad or is_sharded(tensor)):
        return nn.Parameter(tensor.detach(), requires_grad=False)
    return tensor


def _places(module: nn.Module) -> Iterator[tuple[str, dict[str, Any], str, Tensor]]:
    """Every parameter and buffer: its name, the table in which it is, its key there, and the tensor."""
    for prefix, part in module.named_modules(remove_duplicate=False):
        for table in (part._parameters, part._buffers):
            for leaf, tensor in table.items():
                if tensor is not None:
                    yield _plain(prefix, leaf), table, leaf, tensor


def _plain(prefix: str, leaf: str) -> str:
    return f"{prefix}.{leaf}".removeprefix(".").replace(_COMPILED, "")
