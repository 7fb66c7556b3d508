"""What modules keep beside their tensors: it follows into an average, or is told."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from emacore.tensors.pairing import listed, named_parts

#: Attributes that an average takes over: PEFT's factor of an adapter, and which adapters act or are merged.
FOLLOWED = ("scaling", "merged_adapters", "active_adapter", "_active_adapter", "_disable_adapters")
# What is copied to be compared later is small.
_ARRAY_BYTES = 2**16


class Follower:
    """Gives the parts of an average what those of its model keep beside their tensors.

    That is what ``get_extra_state()`` returns, and the attributes in :data:`FOLLOWED`.
    """

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        theirs = named_parts(average)
        pairs = [(part, theirs[start]) for start, part in named_parts(model).items() if start in theirs]
        self._states = [
            (part, other)
            for part, other in pairs
            if type(part).get_extra_state is not nn.Module.get_extra_state
            and type(other).set_extra_state is not nn.Module.set_extra_state
        ]
        self._attributes = [
            (vars(part), vars(other), name)
            for part, other in pairs
            for name in FOLLOWED
            if name in vars(part) and _is_plain(vars(part)[name])
        ]
        #: Whether there is anything to do.
        self.needed = bool(self._states or self._attributes)

    def follow(self) -> None:
        """Take over what the model keeps now."""
        for part, other in self._states:
            other.set_extra_state(copy.deepcopy(part.get_extra_state()))
        for ours, theirs, name in self._attributes:
            value = ours.get(name)
            if not _is_same(value, theirs.get(name)):
                theirs[name] = copy.deepcopy(value)


class Attributes:
    """Tells, once, which plain attributes and parts of a model have changed without its average's following.

    Looked at are public attributes that hold numbers, text, truth values, members of enumerations, small NumPy arrays,
    tensors that are neither parameters nor buffers, and lists and dictionaries of these; but not those of modules whose
    ``get_extra_state()`` says what counts, and not those of torchmetrics' metrics, which measure and are no part of
    what is measured.  Of parts that came, went or were replaced, those with tensors are noticed elsewhere.
    """

    def __init__(self, model: nn.Module) -> None:
        self._told = self._told_kinds = False
        self._kinds = {start: type(part) for start, part in named_parts(model).items()}
        self._first = {
            start: {name: _kept(value) for name, value in _plain_ones(part)}
            for start, part in named_parts(model).items()
        }

    def tell(self, average: nn.Module, model: nn.Module) -> None:
        """Warn of attributes that have another value than at first, and another than the average's; and of parts."""
        ours = named_parts(model)
        if not self._told_kinds:
            self._tell_kinds(average, ours)
        if self._told:
            return
        others = [
            (start, name, value)
            for start, values in self._first.items()
            if start in ours
            for name, first in values.items()
            if (value := vars(ours[start]).get(name, first)) is not first
            and _is_plain(value)
            and not _is_same(value, first)
            and not _says_itself(type(ours[start]))
        ]
        theirs = named_parts(average) if others else {}
        changed = [
            start + name
            for start, name, value in others
            if start in theirs and not _is_same(value, vars(theirs[start]).get(name))
        ]
        if changed:
            self._told = True
            warnings.warn(
                f"the model's {listed(changed)} changed, and the average keeps its own: of what is neither parameter "
                f"nor buffer, only get_extra_state() and {', '.join(FOLLOWED)} follow; set it on the average too "
                "(ema.ema_model), or make it a buffer (register_buffer)",
                stacklevel=3,
            )

    def _tell_kinds(self, average: nn.Module, ours: Mapping[str, nn.Module]) -> None:
        kinds = {start: type(part) for start, part in ours.items()}
        # What shards a module makes a subclass of its class.
        changed = {
            start
            for start in kinds.keys() | self._kinds.keys()
            if not issubclass(kinds.get(start, type(None)), self._kinds.get(start, type(None)))
        }
        theirs = {start: type(part) for start, part in named_parts(average).items()} if changed else {}
        if changed := {start for start in changed if theirs.get(start) != kinds.get(start)}:
            self._told_kinds = True
            told = [
                f"{start.removesuffix('.')!r} ({_called(kinds, start)}, in the average {_called(theirs, start)})"
                for start in sorted(changed)
            ]
            warnings.warn(
                f"parts of the model were replaced, added or removed: {', '.join(told)}; an average follows tensors, "
                "not parts: change it (ema.ema_model) in the same way",
                stacklevel=4,
            )


def _called(kinds: Mapping[str, type], start: str) -> str:
    return kinds[start].__name__ if start in kinds else "none"


def _plain_ones(part: nn.Module) -> list[tuple[str, Any]]:
    if _says_itself(type(part)):
        return []
    return [
        (name, value)
        for name, value in vars(part).items()
        if not name.startswith("_") and name != "training" and name not in FOLLOWED and _is_plain(value)
    ]


def _says_itself(kind: type[nn.Module]) -> bool:
    """Whether modules of a class say themselves what counts of them, or only measure."""
    # By name: where nobody has imported them, there are none.
    measures = any(base.__module__.startswith("torchmetrics.") for base in kind.__mro__)
    return measures or kind.get_extra_state is not nn.Module.get_extra_state


def _is_plain(value: object, depth: int = 3) -> bool:
    if value is None or isinstance(value, (bool, int, float, complex, str, Enum, np.generic)):
        return True
    if isinstance(value, np.ndarray):
        return value.dtype != object and value.nbytes <= _ARRAY_BYTES
    if isinstance(value, Tensor):
        return value.grad_fn is None and not value.is_meta
    if depth and isinstance(value, (list, tuple)):
        return all(_is_plain(item, depth - 1) for item in value)
    if depth and isinstance(value, dict):
        return all(isinstance(key, (str, int)) and _is_plain(item, depth - 1) for key, item in value.items())
    return False


class _Seen(NamedTuple):
    """A tensor as it was, without a copy of it."""

    tensor: Tensor
    version: int


def _kept(value: Any) -> Any:
    """A value as it is now, to be compared with later; tensors by themselves and their version."""
    if isinstance(value, Tensor):
        return _Seen(value, _version(value))
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_kept(item) for item in value]
    return value


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(other, _Seen):
        return one is other.tensor and _version(one) == other.version
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
            return False
        return one is other or (one.shape == other.shape and torch.equal(one, other.to(one)))
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return type(one) is type(other) and np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(item, other[key]) for key, item in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other or (one != one and other != other))
