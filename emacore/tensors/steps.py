"""Calling an average after each step that an optimiser really takes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from emacore.tensors.pairing import ties
from emacore.tensors.sharded import anywhere, local

# What optimisers call at present: an optimiser keeps its hooks, and nothing else does.
_ATTACHED: weakref.WeakSet[_AfterStep] = weakref.WeakSet()


def after_each_step(
    optimizer: torch.optim.Optimizer, module: nn.Module, update: Callable[[], None], *, several: bool = False
) -> RemovableHandle:
    """Have ``update`` called after each step of an optimiser, but not after those that AMP skips.

    Neither is it called after a step with learning rates and gradients of zero: ``torch.distributed.checkpoint`` makes
    one, to have a new optimiser make room for the state that it loads.

    Args:
        optimizer: An optimiser of the module's weights, or accelerate's or Lightning's wrapper of one.
        module: What is averaged.
        several: Whether ``update`` may be called after the steps of others, too.

    Returns:
        A handle whose ``remove()`` ends it.

    Raises:
        TypeError: if it is no optimiser of torch's kind.
        ValueError: if it trains none of the module's weights, if ``update`` is called by it or by another one already,
            or if it is schedule-free and so averages by itself.
    """
    optimizer = stepping(optimizer)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if trained.isdisjoint(id(tie.tensor) for tie in ties(module).values()):
        raise ValueError(
            "the optimizer trains none of the model's weights: it may be of another model, or made before the model "
            "was sharded or moved; make it of the weights as they are now"
        )
    hooks = optimizer._optimizer_step_post_hooks.values()
    if any(isinstance(hook, _AfterStep) and hook.update == update for hook in hooks):
        raise ValueError("the average is attached to this optimizer already, and would move twice a step")
    if not several and _is_attached(update):
        gc.collect()  # an optimizer that is gone may wait for it
        if _is_attached(update):
            raise ValueError(
                "the average is attached to another optimizer already, and would move at the steps of both: with "
                "several, attach it to the one that steps last; to change it, call remove() of what attach() returned"
            )
    return optimizer.register_step_post_hook(_AfterStep(update))


def stepping(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser that steps, inside accelerate's and Lightning's wrappers."""
    inner = getattr(optimizer, "optimizer", None)
    while inner is not optimizer and (isinstance(inner, torch.optim.Optimizer) or averages_by_itself(inner)):
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    if averages_by_itself(optimizer):
        raise ValueError(
            f"{type(optimizer).__name__} is schedule-free: it averages by itself, and a second average would lag "
            "behind its own. The model holds its average after optimizer.eval() (always, with a closure): use that, or "
            "call update() yourself then"
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {optimizer!r}")
    return optimizer


def averages_by_itself(optimizer: Any) -> bool:
    """Whether it is of the schedulefree package's kind, whose groups weight the steps of its own average."""
    groups = getattr(optimizer, "param_groups", None) or [{}]
    return hasattr(optimizer, "train_mode") or "weight_lr_power" in groups[0]


def _is_attached(update: Callable[[], None]) -> bool:
    return any(hook.update == update for hook in _ATTACHED)


class _AfterStep:
    def __init__(self, update: Callable[[], None]) -> None:
        self.update = update
        _ATTACHED.add(self)

    def __call__(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # Fused optimisers are called at skipped steps, too, and look at this themselves.
        skipped = getattr(optimizer, "found_inf", None)
        if (skipped is None or not bool(skipped)) and not _is_for_room(optimizer):
            self.update()


def _is_for_room(optimizer: torch.optim.Optimizer) -> bool:
    rates = [group.get("lr") for group in optimizer.param_groups]
    # Those of an accelerator are not looked at, because that would wait for it, and are not what torch puts there.
    if any(rate is None or (isinstance(rate, Tensor) and not rate.is_cpu) or bool(rate != 0) for rate in rates):
        return False
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # A part of them may be zero while others, on other processes, are not.
    return bool(grads) and not anywhere(any(bool(local(grad).any()) for grad in grads), grads)
