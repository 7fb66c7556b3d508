"""A module's tensors by name: wrappers looked through, ties kept, changes noticed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from operator import is_
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from emacore.sharded import check_not_flat, is_sharded, local, reshard

_COMPILED = "_orig_mod"


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside ``torch.compile`` and (Distributed)DataParallel."""
    while True:
        if isinstance(inner := module._modules.get(_COMPILED), nn.Module):
            module = inner
        elif isinstance(module, (DataParallel, DistributedDataParallel)):
            module = module.module
        else:
            return module


def plain_name(name: str) -> str:
    """A state's name without the prefixes of ``torch.compile`` and DataParallel."""
    return name.replace(f"{_COMPILED}.", "").removeprefix("module.")


class Tie(NamedTuple):
    """A tensor, and the first of the names under which a module has it."""

    tensor: Tensor
    first_name: str


def ties(module: nn.Module) -> dict[str, Tie]:
    """Every parameter and buffer by its name without the prefix of ``torch.compile``; a shared one by each name.

    Of a module sharded by FSDP2, the parts that each process keeps.
    """
    reshard(module)
    first: dict[int, str] = {}
    found: dict[str, Tie] = {}
    named: Iterable[tuple[str, Tensor]] = chain(
        module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    )
    for raw, tensor in named:
        name = raw.replace(f"{_COMPILED}.", "")
        found[name] = Tie(tensor, first.setdefault(id(tensor), name))
    return found


def layout(module: nn.Module) -> dict[str, Tie]:
    """The same without values: names, shapes, dtypes and ties."""
    return {name: Tie(tie.tensor.detach().to("meta"), tie.first_name) for name, tie in ties(module).items()}


def distinct(module: nn.Module) -> dict[str, Tensor]:
    """Detached aliases of the parameters and buffers by name; a shared one once, under its first name."""
    return {name: tie.tensor.detach() for name, tie in ties(module).items() if tie.first_name == name}


def paired(kept: Mapping[str, Tie], found: Mapping[str, Tie], role: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Detached aliases of the tensors of both, by name; a shared tensor once.

    Args:
        kept: Of the average.
        found: Of the module that goes with it, which ``role`` names in messages.

    Raises:
        RuntimeError: if names, shapes or ties differ.
    """
    gained, lost = sorted(set(found) - set(kept)), sorted(set(kept) - set(found))
    if gained or lost:
        changes = [f"has {listed(gained)} more"] * bool(gained) + [f"lacks {listed(lost)}"] * bool(lost)
        raise RuntimeError(
            f"the {role} and its average do not have the same tensors: the {role} {' and '.join(changes)}; "
            "make a new average of it, or give its tensors back their names"
        )
    for name, tie in kept.items():
        if tie.tensor.shape != found[name].tensor.shape:
            raise RuntimeError(
                f"the {role}'s tensor {name!r} and its average differ in shape: "
                f"{tuple(found[name].tensor.shape)} and {tuple(tie.tensor.shape)}; make a new average of it"
            )
        if tie.first_name != found[name].first_name:
            raise RuntimeError(
                f"{name!r} shares its tensor with another name in only one of the {role} and its average; "
                "tie or untie both alike"
            )
    return {
        name: (tie.tensor.detach(), found[name].tensor.detach()) for name, tie in kept.items() if tie.first_name == name
    }


def restore(module: nn.Module, kept: Mapping[str, Tensor], free: Collection[str] = ()) -> None:
    """Copy values back into the tensors that the module has now, which may have been cast or moved meanwhile.

    Args:
        free: Names that may have come, gone or grown meanwhile; such a one stays as it is.

    Raises:
        RuntimeError: if names or shapes differ by now; what still fits has been restored.
    """
    found = distinct(module)
    fitting = {name for name, tensor in kept.items() if name in found and found[name].shape == tensor.shape}
    for name in fitting:
        found[name].copy_(kept[name])
    if strangers := (kept.keys() | found.keys()) - fitting - set(free):
        raise RuntimeError(
            f"the model's tensors {listed(strangers)} were added, removed or reshaped inside average_parameters(), so "
            "that they cannot be restored; change the model outside"
        )


def is_averaged(tensor: Tensor) -> bool:
    """Whether a tensor can be averaged: floating-point or complex.  Others (BatchNorm's counter) are copied."""
    return tensor.is_floating_point() or tensor.is_complex()


def own_buffers(module: nn.Module) -> frozenset[str]:
    """Names of the floating-point buffers whose averages would mean nothing: they are copied.

    These are buffers with values that are not finite (masks of -inf, ranges that begin at inf), the singular vectors of
    spectral normalisation, which fit one weight matrix only, and what torch's quantisation observers keep.
    """
    found = {name for name, buffer in module.named_buffers(remove_duplicate=False) if not buffer.isfinite().all()}
    for prefix, part in module.named_modules(remove_duplicate=False):
        start = f"{prefix}." if prefix else ""
        if isinstance(part, _SpectralNorm):
            found |= {f"{start}_u", f"{start}_v"}
        # By name, because importing them takes long, and where nobody has, there are none.
        if any(base.__module__.startswith("torch.ao.quantization.") for base in type(part).__mro__):
            found |= {start + name for name, _ in part.named_buffers(remove_duplicate=False)}
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                found |= {f"{start}{hook.name}_u", f"{start}{hook.name}_v"}
    return frozenset(name.replace(f"{_COMPILED}.", "") for name in found)


def in_plain_memory(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read as they lie in the machine's memory."""
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not tensor.is_neg()


def reals(tensor: Tensor) -> Tensor:
    """A tensor's real numbers, flat: of complex ones real and imaginary parts in turns."""
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)


def real_count(tensor: Tensor) -> int:
    """How many real numbers a tensor holds."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def from_reals(flat: Tensor, layout: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of N modules whose real numbers lie one after the other in ``flat``, of shape (N, P).

    Args:
        layout: Tensors (on the meta device, say) by name, which tell the shapes and which are complex.

    Returns:
        Each of shape (N, *its own shape*), in the precision of ``flat``.
    """
    found = {}
    parts = torch.split(flat, [real_count(tensor) for tensor in layout.values()], dim=1)
    for (name, tensor), part in zip(layout.items(), parts, strict=True):
        shape = (len(part), *tensor.shape)
        if tensor.is_complex():
            pairs = part.reshape(*shape, 2)
            found[name] = torch.complex(pairs[..., 0], pairs[..., 1])
        else:
            found[name] = part.reshape(shape)
    return found


def check_has_values(role: str, module: nn.Module) -> None:
    """Raise ``ValueError`` if a tensor of the module has no values yet, or values that no average could follow."""
    check_not_flat(role, module)
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{role}: {name!r} is lazy and has no shape yet; run one batch through it first")
        if tensor.is_meta:
            raise ValueError(f"{role}: {name!r} is on the meta device and has no values; load or initialise it first")
        if isinstance(tensor, nn.Parameter) and tensor.shape == (0,):
            raise ValueError(
                f"{role}: {name!r} has shape (0,), as DeepSpeed's ZeRO-3 leaves in place of weights that lie on other "
                "processes; gather them (deepspeed.zero.GatheredParameters) around building and update(), or use ZeRO-2"
            )


def check_apart(role: str, average: nn.Module, model: nn.Module) -> None:
    """Raise ``ValueError`` if an average shares modules or memory with its model, which it would freeze."""
    names = {id(part): name for name, part in model.named_modules()}
    for name, part in average.named_modules():
        if id(part) in names:
            shared = f"its module {name!r} is {names[id(part)]!r} of it" if name else "it is the model, or a part of it"
            raise ValueError(f"{role} must be apart from the model, but {shared}: build a second one, or deepcopy it")
    owners = {_memory(local(tie.tensor)): name for name, tie in ties(model).items()}
    for name, tie in ties(average).items():
        if (place := _memory(local(tie.tensor))) is not None and place in owners:
            raise ValueError(
                f"{role} must be apart from the model, but its tensor {name!r} shares memory with {owners[place]!r} "
                "of it: clone it"
            )


def _memory(tensor: Tensor) -> tuple[torch.device, int] | None:
    """Where a plain tensor's memory begins; ``None`` for one that has none, or of a kind that does not tell."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or not tensor.numel():
        return None
    return tensor.device, tensor.untyped_storage().data_ptr()


def listed(names: Collection[str], most: int = 6) -> str:
    """Some names for a message."""
    shown = [repr(name) for name in sorted(names)[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} others" if len(names) > most else "")


class Watch:
    """Notices when tensors of modules were replaced, added or removed since they were looked up.

    The looked-up tensors must be kept alive meanwhile (detached aliases do), so that no address is given away twice.
    """

    def __init__(self, *modules: nn.Module) -> None:
        for module in modules:
            reshard(module)
        # Identity of parameters, buffers and submodules tells a replaced one; the modules' empty dictionaries tell a
        # new one; addresses, strides and shapes tell a tensor whose data was swapped, as module.half() does, be it for
        # another view of the same memory.
        tables = [
            table
            for module in modules
            for part in module.modules()
            for table in (part._parameters, part._buffers, part._modules)
        ]
        self._empty = [table for table in tables if not table]
        # The None at the end makes one more or less show up as a difference.
        self._values = [*(table.values() for table in tables if table), (None,)]
        self._seen = list(chain.from_iterable(self._values))
        tensors = [tie.tensor for module in modules for tie in ties(module).values()]
        self._tensors = [local(tensor) for tensor in tensors]
        self._shards = [(tensor, local(tensor)) for tensor in tensors if is_sharded(tensor)]
        self._places = self._now()

    def is_stale(self) -> bool:
        """Whether anything has changed."""
        same = not any(self._empty) and all(map(is_, chain.from_iterable(self._values), self._seen))
        if not same or self._now() != self._places:
            return True
        return any(local(tensor) is not part for tensor, part in self._shards)

    def _now(self) -> tuple[list[int], list[tuple[int, ...]], list[int]]:
        tensors = self._tensors
        # With the strides, the count tells the shape, and costs less.
        return list(map(Tensor.data_ptr, tensors)), list(map(Tensor.stride, tensors)), list(map(Tensor.numel, tensors))
