"""Which buffers of a module are copied at every move of an average, and which are averaged."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from emacore.tensors.pairing import comparable, is_averaged, is_expanded, named_parts
from emacore.tensors.sharded import is_sharded

#: ``"average"``, ``"copy"``, or a function of a buffer's name and the buffer that returns one of them, or ``None`` for
#: what the rules below say.
Policy = str | Callable[[str, Tensor], str | None] | None

_CHOICES = ("average", "copy")
#: Beyond it values are no statistics but marks, and their sums would leave float32.
_LARGEST = 1e30
#: What is looked up (masks, caches, rings of past values), not learned.
_LOOKED_UP = re.compile(r"mask|cache|queue|bank|inv_freq|freqs_cis|position")
#: A single number of such a name counts or marks something.
_COUNTED = re.compile(
    r"(^|_)(num|n|t|counts?|counter|steps?|iters?|iterations?|epochs?|seen|calls|init|inite?d|initted|"
    r"initiali[sz]ed|flag|ptr|pointer|index)(_|\d*$)"
)
_QUANTISATION = ("torch.ao.quantization.", "torchao.quantization.")


def copied_buffers(module: nn.Module, policy: Policy = None, largest: float = _LARGEST) -> frozenset[str]:
    """Names of the buffers that are copied; the other ones are averaged.

    Whatever the policy, buffers of whole numbers and truth values are copied, and so are those that cannot be written
    number by number (sparse ones, and expanded ones, whose numbers share memory).  Without one, copied are

    - buffers that are not part of the state (``persistent=False``): masks, rotary tables and other caches,
    - those whose names hold *mask*, *cache*, *queue*, *bank*, *position*, *inv_freq* or *freqs_cis*,
    - those with values that are not finite, or beyond ``largest``: masks of -inf, ranges that begin at inf,
    - single numbers whose names say that they count or mark (*step*, *count*, *initted*, ...),
    - the singular vectors of spectral normalisation and the base of orthogonal parametrisations, which fit one weight
      matrix only,
    - what torch's quantisation observers keep,

    and averaged are the rest, such as BatchNorm's means and variances and the codebooks of vector quantisers.

    See :func:`marks` for parameters that are such.

    Raises:
        ValueError: if the policy, or what it returns, is something else.
    """
    if isinstance(policy, str) and policy not in _CHOICES:
        raise ValueError(f"buffers must be 'average', 'copy' or a function of name and tensor, got {policy!r}")
    if not (policy is None or isinstance(policy, str) or callable(policy)):
        raise TypeError(f"buffers must be 'average', 'copy' or a function of name and tensor, got {policy!r}")
    return frozenset(
        full
        for full, part, name, buffer in named_buffers(module)
        if not is_averaged(buffer)
        or buffer.layout != torch.strided
        or is_expanded(buffer)
        or _choice(policy, full, part, name, buffer, largest) == "copy"
    )


def marks(module: nn.Module) -> frozenset[str]:
    """Names of the parameters that are copied like buffers: masks of -inf which somebody has made parameters.

    They require no gradient and hold values that are not finite.  Each frozen parameter is read once; parts of sharded
    ones are not.
    """
    return frozenset(
        start + name
        for start, part in named_parts(module).items()
        for name, parameter in part._parameters.items()
        if parameter is not None
        and not (parameter.requires_grad or is_sharded(parameter))
        and is_averaged(parameter)
        and parameter.numel()
        and not bool(torch.stack(torch.aminmax(comparable(parameter.detach()))).isfinite().all())
    )


def named_buffers(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Each buffer's full name, without the prefix of ``torch.compile``, its part, its name there, and the buffer."""
    for start, part in named_parts(module).items():
        for name, buffer in part._buffers.items():
            if buffer is not None:
                yield start + name, part, name, buffer


def follow_buffers(average: nn.Module, model: nn.Module, copied: Collection[str], *, new: bool = True) -> None:
    """Give an average the copied buffers that its model has now, where they are others: new, gone, of another shape.

    So a cache may grow, or come into being at a first forward pass.  Buffers that an average cannot hold as they are,
    because they are expanded, or shared as they are not in the model, become its own.

    Args:
        new: Whether names may come that it had no place for, not even an empty one, and go.
    """
    of_model = named_parts(model)
    partner: dict[int, int] = {}
    for start, part in named_parts(average).items():
        source_part = of_model.get(start)
        if source_part is None:
            continue
        gone = [name for name in part._buffers if name not in source_part._buffers and start + name in copied]
        for name in gone if new else ():
            delattr(part, name)
        for name, source in source_part._buffers.items():
            kept = part._buffers.get(name)
            if source is None:
                if kept is not None and start + name in copied:
                    part._buffers[name] = None
            elif start + name in copied and (new or name in part._buffers):
                shared_alike = kept is not None and partner.setdefault(id(kept), id(source)) == id(source)
                if kept is None or not shared_alike or not holds(kept, source):
                    persistent = name not in source_part._non_persistent_buffers_set
                    if kept is None and hasattr(part, name) and name not in part._buffers:
                        delattr(part, name)  # a plain attribute that has become a buffer
                    part.register_buffer(name, _own(source, kept), persistent=persistent)


def put_buffers(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put values into the buffers of these names that a module has a place for, whatever they have been."""
    for start, part in named_parts(module).items():
        for name, kept in list(part._buffers.items()):
            if (value := values.get(start + name)) is None:
                continue
            if kept is not None and holds(kept, value):
                kept.detach().copy_(value)
            else:
                part._buffers[name] = _own(value, kept)


def holds(kept: Tensor, source: Tensor) -> bool:
    """Whether a buffer can take what another one holds, written in place."""
    alike = kept.shape == source.shape and kept.layout == source.layout and is_averaged(kept) == is_averaged(source)
    return alike and not is_expanded(kept)


def _own(source: Tensor, kept: Tensor | None) -> Tensor:
    if kept is None:
        return source.detach().clone()
    dtype = kept.dtype if is_averaged(kept) and is_averaged(source) else source.dtype
    return source.detach().to(kept.device, dtype, copy=True)


def _choice(policy: Policy, full: str, part: nn.Module, name: str, buffer: Tensor, largest: float) -> str:
    if isinstance(policy, str):
        return policy
    chosen = None if policy is None else policy(full, buffer)
    if chosen is None:
        return "copy" if _is_looked_up(part, name) or _is_out_of_range(part, buffer, largest) else "average"
    if chosen not in _CHOICES:
        raise ValueError(
            f"buffers: the function gave {chosen!r} for {full!r}; it must give 'average', 'copy' or None (by the rules)"
        )
    return chosen


def _is_looked_up(part: nn.Module, name: str) -> bool:
    """Whether what a part calls so is no statistic of what it has seen."""
    if isinstance(part, _NormBase):
        return False
    vectors = {
        f"{hook.name}{end}"
        for hook in part._forward_pre_hooks.values()
        if isinstance(hook, SpectralNorm)
        for end in ("_u", "_v")
    }
    buffer = part._buffers[name]
    return (
        name in part._non_persistent_buffers_set
        or name in vectors
        or isinstance(part, (_SpectralNorm, _Orthogonal))
        # By name, because importing them takes long, and where nobody has, there are none.
        or any(base.__module__.startswith(_QUANTISATION) for base in type(part).__mro__)
        or _LOOKED_UP.search(name) is not None
        or (buffer is not None and buffer.numel() == 1 and _COUNTED.search(name) is not None)
    )


def _is_out_of_range(part: nn.Module, buffer: Tensor, largest: float) -> bool:
    """Whether a buffer holds marks (infinities, the least of all floats) rather than statistics."""
    if isinstance(part, _NormBase) or not buffer.numel():
        return False
    return not bool(comparable(buffer.detach()).abs().amax() <= largest)  # not a number compares as false
