"""One move of many tensors towards others, as fast as torch has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_foreach_lerp_ = torch._foreach_lerp_
_fused_sgd_: Callable[..., object] | None = getattr(torch, "_fused_sgd_", None)
_increment_version: Callable[..., object] | None = getattr(torch._C, "_increment_version", None)

#: From this share on, torch counts from the other end.
HALF = 0.5
_NOTHING: list[Tensor] = []


@torch.no_grad()
def move(targets: list[Tensor], sources: list[Tensor], share: float) -> None:
    """Move each target by a share of the way towards its source."""
    if share < HALF and is_plain(targets, sources):
        step(targets, sources, share)
    else:
        _foreach_lerp_(targets, sources, share)


def step(targets: list[Tensor], sources: list[Tensor], share: float) -> None:
    """:func:`move` for plain tensors and shares below a half; to be called without gradients.

    To move towards a source is a step of plain SGD with the learning rate ``share``, the gradient ``-source`` and a
    weight decay of 1.  On the CPU torch's fused SGD looks at a tensor's memory and nothing else, where each ``lerp_``
    first finds out how its arguments go together: that takes longer than to move a small tensor.  It gives the same
    numbers, but counts no write, which autograd has to know of.
    """
    _fused_sgd_(  # type: ignore[misc]
        targets,
        sources,
        _NOTHING,
        weight_decay=1.0,
        momentum=0.0,
        lr=share,
        dampening=0.0,
        nesterov=False,
        maximize=True,
        is_first_step=False,
    )
    _increment_version(targets)  # type: ignore[misc]


def is_plain(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> bool:
    """Whether tensors lie number by number in the host's memory, all in one precision, each like its source.

    None are where torch computes with several threads, among which such a step divides even small tensors.
    """
    first = targets[0]
    return (
        torch.get_num_threads() == 1
        and first.dtype in (torch.float32, torch.float64)
        and all(map(_is_plain, targets))
        and all(map(_is_plain, sources))
        and {(tensor.dtype, tensor.device) for some in (targets, sources) for tensor in some}
        == {(first.dtype, torch.device("cpu"))}
        and list(map(Tensor.size, targets)) == list(map(Tensor.size, sources))
        and _is_right()
    )


def _is_plain(tensor: Tensor) -> bool:
    strided = tensor.layout == torch.strided and type(tensor) in (Tensor, nn.Parameter)
    return strided and tensor.is_contiguous() and not tensor.is_neg()


@cache
def _is_right() -> bool:
    """Whether this torch has such a step, and it does what it is taken for."""
    with torch.inference_mode(False), torch.no_grad():
        targets, sources = [torch.linspace(-3.0, 5.0, 67)], [torch.linspace(2.0, -1.0, 67)]
        expected: Any = targets[0].lerp(sources[0], 0.3)
        before = targets[0]._version
        try:
            step(targets, sources, 0.3)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False
    return bool(torch.allclose(targets[0], expected, rtol=1e-6, atol=1e-6)) and targets[0]._version > before
