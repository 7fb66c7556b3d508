"""A module's tensors by name: wrappers looked through, ties kept, changes noticed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from emacore.tensors.sharded import check_not_flat, local, reshard

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
    """:func:`ties` without values: names, shapes, dtypes, and which names share a tensor."""
    return {name: Tie(_outline(tie.tensor.detach()), tie.first_name) for name, tie in ties(module).items()}


def _outline(tensor: Tensor) -> Tensor:
    # Of quantised numbers there is no kind without values.
    return torch.empty(tensor.shape, dtype=torch.uint8, device="meta") if tensor.is_quantized else tensor.to("meta")


def distinct(module: nn.Module) -> dict[str, Tensor]:
    """Detached aliases of the parameters and buffers by name; a shared one once, under its first name."""
    return {name: tie.tensor.detach() for name, tie in ties(module).items() if tie.first_name == name}


def paired(
    kept: Mapping[str, Tie], found: Mapping[str, Tie], role: str, free: Collection[str] = ()
) -> dict[str, tuple[Tensor, Tensor]]:
    """Detached aliases of the tensors of both, by name; a shared tensor once.

    Args:
        kept: Of the average.
        found: Of the module that goes with it, which ``role`` names in messages.
        free: Names that may be missing, of another shape or shared otherwise; they are paired where they fit.

    Raises:
        RuntimeError: if names, shapes or ties differ.
    """
    gained, lost = sorted(set(found) - set(kept) - set(free)), sorted(set(kept) - set(found) - set(free))
    if gained or lost:
        changes = [f"has {listed(gained)} more"] * bool(gained) + [f"lacks {listed(lost)}"] * bool(lost)
        raise RuntimeError(
            f"the {role} and its average do not have the same tensors: the {role} {' and '.join(changes)}; "
            "make a new average of it, or give its tensors back their names; a buffer that comes, goes or grows is "
            'followed where buffers= says "copy"'
        )
    fitting: dict[str, tuple[Tensor, Tensor]] = {}
    for name, tie in kept.items():
        if name in free:
            if name in found and tie.tensor.shape == found[name].tensor.shape and tie.first_name == name:
                fitting[name] = tie.tensor.detach(), found[name].tensor.detach()
            continue
        if tie.tensor.shape != found[name].tensor.shape:
            raise RuntimeError(
                f"the {role}'s tensor {name!r} and its average differ in shape: "
                f"{tuple(found[name].tensor.shape)} and {tuple(tie.tensor.shape)}; make a new average of it, or, if it "
                'is a buffer that grows, let buffers= say "copy" for it'
            )
        if tie.first_name != found[name].first_name:
            raise RuntimeError(
                f"{name!r} shares its tensor with another name in only one of the {role} and its average; "
                "tie or untie both alike"
            )
        if tie.first_name == name:
            fitting[name] = tie.tensor.detach(), found[name].tensor.detach()
    return fitting


def writable(module: nn.Module) -> dict[str, Tensor]:
    """:func:`distinct` without the tensors that cannot be written number by number: expanded and sparse ones."""
    return {
        name: tensor
        for name, tensor in distinct(module).items()
        if tensor.layout == torch.strided and not is_expanded(tensor)
    }


def restore(module: nn.Module, kept: Mapping[str, Tensor], free: Collection[str] = ()) -> None:
    """Copy values back into the tensors that the module has now, which may have been cast or moved meanwhile.

    Args:
        free: Names that may have come, gone or grown meanwhile (caches); such a one stays as it is.

    Raises:
        RuntimeError: if names or shapes differ by now; what still fits has been restored.
    """
    found = writable(module)
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


def is_expanded(tensor: Tensor) -> bool:
    """Whether several numbers of a tensor lie in the same place, so that it cannot be written number by number."""
    return tensor.layout == torch.strided and any(
        size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def named_parts(module: nn.Module) -> dict[str, nn.Module]:
    """A module and all that it is made of, by what their tensors' names begin with (``""``, ``"encoder.0."``)."""
    # The module inside torch.compile comes after its wrapper, and takes its place.
    return {
        "".join(f"{level}." for level in name.split(".") if level not in ("", _COMPILED)): part
        for name, part in module.named_modules(remove_duplicate=False)
    }


def slots(module: nn.Module) -> set[str]:
    """Names under which a module has a place for a parameter or buffer, filled or not."""
    return {start + name for start, part in named_parts(module).items() for name in (*part._parameters, *part._buffers)}


def accumulator_dtype(dtype: torch.dtype, wanted: torch.dtype | None = None) -> torch.dtype:
    """In which dtype the average of a tensor is kept: its own, or float32, whose steps a decay near 1 can take."""
    real = dtype.to_real()
    accumulator = wanted or (torch.float32 if real.itemsize < 4 else real)
    return accumulator.to_complex() if dtype.is_complex else accumulator


def in_plain_memory(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read as they lie in the machine's memory."""
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not tensor.is_neg()


def view_of_reals(tensor: Tensor) -> Tensor:
    """A tensor's real numbers where they lie: of complex ones real and imaginary parts in turns."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def comparable(tensor: Tensor) -> Tensor:
    """A tensor's real numbers, in a precision in which torch can tell the largest of them."""
    found = view_of_reals(tensor)
    return found.float() if found.dtype.itemsize == 1 else found


def reals(tensor: Tensor) -> Tensor:
    """A tensor's real numbers, flat."""
    return view_of_reals(tensor).reshape(-1)


def real_count(tensor: Tensor) -> int:
    """How many real numbers a tensor holds."""
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def name_at(place: int, like: Mapping[str, Tensor]) -> str:
    """Which of tensors that lie one after the other in a row has the real number at a place."""
    ends = accumulate(map(real_count, like.values()))
    return next(name for name, end in zip(like, ends, strict=True) if place < end)


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


def check_module(role: str, module: object) -> None:
    """Raise ``TypeError`` unless it is a module of torch."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"{role} must be a torch.nn.Module, got {module!r:.200}")


def check_takes_values(role: str, module: nn.Module, names: Collection[str]) -> None:
    """Raise if values cannot be copied into a module: ``TypeError`` if it is none, or ``ValueError``.

    Args:
        names: Of the tensors that are to take them; a module may lack some.
    """
    check_module(role, module)
    for name, tie in ties(unwrapped(module)).items():
        if name in names:
            _check_value(role, name, tie.tensor)


def _check_value(role: str, name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise ValueError(f"{role}: {name!r} is lazy and has no shape yet; run one batch through it first")
    if tensor.is_meta:
        raise ValueError(f"{role}: {name!r} is on the meta device and has no values; load or initialise it first")


def check_has_values(role: str, module: nn.Module) -> None:
    """Raise if it is no module or was compiled to a script (``TypeError``), or a tensor of it cannot be averaged.

    It may have no values yet, lie on other processes, or be a parameter of a sparse or expanded kind.
    """
    check_module(role, module)
    check_not_flat(role, module)
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            where = f"its part {name!r} is" if name else "it is"
            raise TypeError(
                f"{role}: {where} a ScriptModule ({type(part).__name__}), whose tensors cannot be looked up; average "
                "the module from which it was made, and script the average"
            )
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        _check_value(role, name, tensor)
        if isinstance(tensor, nn.Parameter) and tensor.shape == (0,):
            raise ValueError(
                f"{role}: {name!r} has shape (0,), as DeepSpeed's ZeRO-3 leaves in place of weights that lie on other "
                "processes; gather them (deepspeed.zero.GatheredParameters) around building and update(), or use "
                "ZeRO-2; one that is to hold nothing may be a buffer"
            )
        if isinstance(tensor, nn.Parameter) and (tensor.layout != torch.strided or is_expanded(tensor)):
            kind = f"of layout {tensor.layout}" if tensor.layout != torch.strided else "expanded (some strides are 0)"
            raise ValueError(
                f"{role}: the parameter {name!r} is {kind}, which cannot be averaged in place; make it dense "
                "(to_dense(), clone()), or keep it as a buffer, which is copied"
            )


def check_apart(role: str, average: nn.Module, model: nn.Module, left_out: Collection[str] = ()) -> None:
    """Raise ``ValueError`` if an average shares modules or memory with its model, which it would freeze.

    Args:
        left_out: Names of tensors that it may have of the model.
    """
    names = {id(part): name for name, part in model.named_modules()}
    for name, part in average.named_modules():
        if id(part) in names:
            shared = f"its module {name!r} is {names[id(part)]!r} of it" if name else "it is the model, or a part of it"
            raise ValueError(f"{role} must be apart from the model, but {shared}: build a second one, or deepcopy it")
    owners = {_memory(local(tie.tensor)): name for name, tie in ties(model).items()}
    for name, tie in ties(average).items():
        if name not in left_out and (place := _memory(local(tie.tensor))) is not None and place in owners:
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
    """At most ``most`` of some names, for a message, and how many more there are."""
    shown = [repr(name) for name in sorted(names)[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} others" if len(names) > most else "")


def as_names(argument: str, names: Iterable[str]) -> frozenset[str]:
    """Names as a set.

    Raises:
        TypeError: for what are no names, and for a string, whose letters would be taken for names.
    """
    if isinstance(names, str):
        raise TypeError(f"{argument} must be a collection of names, got the string {names!r}: write [{names!r}]")
    found = frozenset(names) if isinstance(names, Iterable) else None
    if found is None or not all(isinstance(name, str) for name in found):
        raise TypeError(f"{argument} must be a collection of names, such as ['weight'], got {names!r}")
    return found
