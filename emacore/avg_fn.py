"""A schedule as the ``avg_fn`` of ``torch.optim.swa_utils.AveragedModel``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from emacore.averaging.schedules import Schedule, check_schedule
from emacore.tensors.buffers import Policy, copied_buffers
from emacore.tensors.pairing import accumulator_dtype, is_averaged, unwrapped


def averaging_function(
    schedule: Schedule, module: nn.Module | None = None, buffers: Policy = None
) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The schedule as ``avg_fn`` of ``torch.optim.swa_utils.AveragedModel`` (and of callbacks built on it).

    ``AveragedModel`` copies at its first call and counts the calls after it from 1, so its ``num_averaged`` is the
    schedule's call number t.  By default it copies buffers itself; with ``use_buffers=True`` it hands them over without
    their names: then infinities (masks) are copied, number by number, and which buffers are copied as a whole takes
    ``module``.

    Args:
        module: The module being trained, whose buffers are told apart as :class:`EMA` does.
        buffers: Which of them to average, as for :class:`EMA`; it needs ``module``.

    The returned function raises ``TypeError`` for an average of less than 32 bits, which it has nowhere to keep wider.
    """
    check_schedule("schedule", schedule)
    if buffers is not None and module is None:
        raise ValueError("buffers needs module, because AveragedModel hands tensors over without their names")
    own = None if module is None else _OwnBuffers(unwrapped(module), buffers)

    def averaged(average: Tensor, value: Tensor, num_averaged: Tensor | int) -> Tensor:
        decay = float(schedule.at(int(num_averaged)))
        if decay == 1.0:
            return average
        if decay == 0.0 or not is_averaged(average) or (own is not None and value in own):
            return value
        if accumulator_dtype(average.dtype) != average.dtype:
            raise TypeError(
                f"an average kept in {average.dtype} would round away the steps of a decay near 1: use emacore.EMA, "
                "which keeps a float32 one beside it, or give AveragedModel a float32 copy of the model"
            )
        moved = torch.lerp(average, value.to(average.dtype), 1 - decay)
        if moved.is_cpu and moved.isfinite().all():  # elsewhere the look would wait for the accelerator
            return moved
        return torch.where(average.isinf(), value.to(average.dtype), moved)

    return averaged


class _OwnBuffers:
    """The buffers of a module that are copied, found again by where they lie in memory."""

    def __init__(self, module: nn.Module, policy: Policy) -> None:
        self._module, self._policy, self._names = module, policy, copied_buffers(module, policy)

    def __contains__(self, tensor: Tensor) -> bool:
        return any(
            buffer.data_ptr() == tensor.data_ptr() and buffer.shape == tensor.shape and buffer.numel()
            for name, buffer in self._module.named_buffers()
            if name in self._names
        )
