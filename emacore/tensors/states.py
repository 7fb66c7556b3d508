"""What an average's state holds beside the tensors of its modules, and under which names those are found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from emacore.tensors.pairing import plain_name, ties
from emacore.tensors.sharded import is_sharded, laid_out

_ACCUMULATOR = "accumulator."


def put_accumulators(state: MutableMapping[str, Any], prefix: str, accumulators: Mapping[str, Tensor]) -> None:
    """Put copies of the accumulators into a state."""
    for name, tensor in accumulators.items():
        state[prefix + _ACCUMULATOR + name] = tensor.clone()


def taken_accumulators(
    state: MutableMapping[str, Any], prefix: str, average: nn.Module, dtype_of: Callable[[Tensor], torch.dtype]
) -> dict[str, Tensor]:
    """The accumulators of a state, out of which they are taken.

    Those of a shadow that was kept in the wide dtype alone are its own tensors.

    Args:
        average: The shadow that the state is for.
        dtype_of: In which dtype the average of one of its tensors is kept.
    """
    found: dict[str, Tensor] = {}
    for name, tie in ties(average).items():
        key, value = prefix + _ACCUMULATOR + name, state.get(f"{prefix}ema_model.{name}")
        if key in state:
            found[name] = state.pop(key).to(tie.tensor.device, copy=True)
        elif isinstance(value, Tensor) and value.dtype == dtype_of(tie.tensor) != tie.tensor.dtype:
            found[name] = value.to(tie.tensor.device, copy=True)
    return found


def match(state: MutableMapping[str, Any], prefix: str, module: nn.Module) -> None:
    """Make what is under ``prefix`` fit a module where it is the same otherwise told.

    Names get the prefixes that its wrappers have, and whole tensors are sharded, or sharded ones gathered, as it is.
    """
    expected = module.state_dict()
    by_plain_name = {plain_name(name): name for name in expected}
    for key in [key for key in state if key.startswith(prefix)]:
        name = key[len(prefix) :]
        wanted = by_plain_name.get(plain_name(name), name)
        if name not in expected and prefix + wanted not in state:
            state[prefix + wanted] = state.pop(key)
    for name, tensor in expected.items():
        value = state.get(prefix + name)
        if torch.is_tensor(value) and torch.is_tensor(tensor) and is_sharded(value) != is_sharded(tensor):
            state[prefix + name] = laid_out(value, tensor)


def drop_left_out(state: MutableMapping[str, Any], prefix: str, left_out: Collection[str]) -> None:
    """Take out of a state what a shadow, under ``prefix``, has of its model."""
    for name in list(state) if left_out else ():
        if name.startswith(prefix) and plain_name(name.removeprefix(prefix)) in left_out:
            del state[name]


def add_left_out(state: MutableMapping[str, Any], prefix: str, average: nn.Module, left_out: Collection[str]) -> None:
    """Put into a state what a shadow has of its model, as it is, because the shadow's loading asks for it."""
    if left_out:
        found = average.state_dict()
        state.update({prefix + name: found[name] for name in found if plain_name(name) in left_out})


def check_same_schedule(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` if a state was saved under another schedule, both told as plain values."""
    if theirs != ours:
        raise ValueError(
            f"the state was saved under the schedule {theirs}, this average has {ours}; build it "
            "with the same settings, or go on under these with load_state_dict(..., strict_schedule=False) or "
            "EMA(..., strict_schedule=False)"
        )
