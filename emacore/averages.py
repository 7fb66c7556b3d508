"""``Averages``: many averages of one module at once, in anybody's loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from emacore.averaging.schedules import Schedule
from emacore.tensors import (
    Watch,
    check_has_values,
    distinct,
    from_reals,
    is_averaged,
    layout,
    listed,
    paired,
    reals,
    ties,
    unwrapped,
)

_BLOCK = 1024


class Averages:
    """Keeps one average of a module's weights for each schedule, as one tensor that a single call moves.

    Tensors are paired by name.  Floating-point and complex parameters and buffers are averaged, in float32, or in
    float64 if one of them has it; others (BatchNorm's counter) are copied at every move.  Each average equals that of
    :class:`emacore.EMA` with the same schedule.  All tensors of the module must be on one device.

    Args:
        module: The module being trained.  A ``torch.compile``d or (Distributed)DataParallel one is looked into.
        schedules: A schedule by the name of its average.

    Attributes:
        averages: Shape (K, P): an average a row, in the order of ``schedules``; the tensors lie one after the other.
        step: How many calls of :meth:`update` there have been.

    Raises:
        ValueError: for no schedule, a module that has no values yet, nothing to average, or several devices.

    Example:
        >>> from emacore.averaging.schedules import Constant, UniformAverage
        >>> model = nn.Linear(1, 1, bias=False)
        >>> averages = Averages(model, {"mean": UniformAverage(), "short": Constant(0.5)})
        >>> for value in (1.0, 1.0, 4.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     averages.update()
        >>> averages.averages.tolist()
        [[2.0], [2.5]]
        >>> with averages.average_parameters("mean"):
        ...     model.weight.item()
        2.0
    """

    _inside: str | None
    _watch: Watch | None
    _plain: list[bool]

    def __init__(self, module: nn.Module, schedules: Mapping[str, Schedule]) -> None:
        if not schedules:
            raise ValueError("schedules must name at least one schedule")
        for name, schedule in schedules.items():
            if not isinstance(schedule, Schedule):
                raise TypeError(f"schedules: {name!r} must be a schedule, got {schedule!r}")
        check_has_values("module", module)
        self.module = module
        self.schedules = dict(schedules)
        self.step = 0
        online = unwrapped(module)
        self._layout = layout(online)
        tensors = distinct(online)
        averaged = [tensor for tensor in tensors.values() if is_averaged(tensor)]
        if not averaged:
            raise ValueError("the module has no floating-point tensor to average")
        dtype = torch.float64 if any(t.dtype in (torch.float64, torch.complex128) for t in averaged) else torch.float32
        flat = torch.cat([reals(tensor).to(dtype) for tensor in _on_one_device(averaged)])
        self.averages = flat.repeat(len(schedules), 1)
        self._copied = [
            {name: tensor.clone() for name, tensor in tensors.items() if not is_averaged(tensor)} for _ in schedules
        ]
        self._reset()

    def update(self) -> None:
        """Take one call of every schedule: each average copies, moves, or skips.

        Raises:
            RuntimeError: if the module gained, lost or reshaped a tensor, or inside :meth:`average_parameters`.
        """
        if self._inside is not None:
            raise RuntimeError("update() inside average_parameters() would average the average; call it outside")
        offset = self.step - self._block_start
        if not 0 <= offset < len(self._plain):
            self._look_ahead()
            offset = 0
        if self._watch is None or self._watch.is_stale():
            self._look_up()
        if self._plain[offset]:
            self.averages.lerp_(self._flat_now(), self._rests[offset])
            if self._others:
                for copies in self._copied:
                    self._copy_into(copies)
        elif self._moves[offset].any():
            self._move_one_by_one(offset)
        self.step += 1

    @contextmanager
    def average_parameters(self, name: str) -> Iterator[nn.Module]:
        """Put one of the averages into the training module for the time of a ``with`` block; then restore it exactly.

        The module's mode is left alone: call ``module.eval()`` where that is meant.
        """
        values = self._tensors_of(name)
        if self._inside is not None:
            raise RuntimeError(f"average_parameters({self._inside!r}) is already open: leave its with block first")
        pairs = paired(self._layout, ties(unwrapped(self.module)), "module")
        kept = {name: source.clone() for name, (_, source) in pairs.items()}
        self._inside = name
        try:
            for key, (_, source) in pairs.items():
                source.copy_(values[key])
            yield self.module
        finally:
            self._inside = None
            for key, (_, source) in pairs.items():
                source.copy_(kept[key])

    def copy_to(self, module: nn.Module, name: str) -> None:
        """Copy one of the averages into another module that has the same tensors by name.

        Raises:
            KeyError: if there is no such average.
            RuntimeError: if names or shapes differ.
        """
        values = self._tensors_of(name)
        for key, (_, target) in paired(self._layout, ties(unwrapped(module)), "module").items():
            target.copy_(values[key])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors, numbers and text: ``torch.load(..., weights_only=True)`` reads it."""
        return {
            "step": self.step,
            "averages": self.averages.clone(),
            "copied": [{name: tensor.clone() for name, tensor in copies.items()} for copies in self._copied],
            "schedules": {name: schedule.to_dict() for name, schedule in self.schedules.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            ValueError: if it is of other schedules, or of another module.
        """
        told = {name: schedule.to_dict() for name, schedule in self.schedules.items()}
        if state["schedules"] != told:
            raise ValueError(f"the state is of the schedules {state['schedules']}, these are {told}")
        if state["averages"].shape != self.averages.shape or any(
            {name: tensor.shape for name, tensor in theirs.items()}
            != {name: tensor.shape for name, tensor in ours.items()}
            for theirs, ours in zip(state["copied"], self._copied, strict=True)
        ):
            raise ValueError(
                f"the state holds averages of {state['averages'].shape[-1]} weights, "
                f"this module has {self.averages.shape[-1]}, or other buffers"
            )
        self.step = int(state["step"])
        self.averages.copy_(state["averages"])
        for ours, theirs in zip(self._copied, state["copied"], strict=True):
            for name, tensor in ours.items():
                tensor.copy_(theirs[name])

    def to(self, device: torch.device | str) -> Averages:
        """Move the averages to the device of the module."""
        self.averages = self.averages.to(device)
        self._copied = [{name: tensor.to(device) for name, tensor in copies.items()} for copies in self._copied]
        self._reset()
        return self

    def _reset(self) -> None:
        """Forget what is derived: it is looked up again at the next call."""
        self._inside = None
        self._watch = None
        self._plain = []
        self._block_start = 0

    def _look_ahead(self) -> None:
        """The decays of the calls that come next, for all schedules."""
        calls = np.arange(self.step, self.step + _BLOCK)
        decays = np.stack([schedule.at(calls) for schedule in self.schedules.values()], axis=1)
        every = np.array([schedule.update_every for schedule in self.schedules.values()])
        self._decays = decays
        # A skip leaves even buffers as they are; a decay of 1 that is not a skip copies them.
        self._moves = (decays != 1) | (calls[:, np.newaxis] % every == 0)
        self._plain = np.all((decays > 0) & (decays < 1), axis=1).tolist()
        rests = torch.from_numpy(1 - decays).to(self.averages)
        self._rests = list(rests.unsqueeze(-1))
        self._block_start = self.step

    def _look_up(self) -> None:
        online = unwrapped(self.module)
        pairs = paired(self._layout, ties(online), "module")
        sources = {name: source for name, (_, source) in pairs.items()}
        averaged = _on_one_device([source for source in sources.values() if is_averaged(source)])
        self._others = {name: source for name, source in sources.items() if not is_averaged(source)}
        # Aliases of the memory itself, where the module's tensors are flat as they lie.
        self._direct = all(tensor.dtype == self.averages.dtype and tensor.is_contiguous() for tensor in averaged)
        self._sources = [tensor.view(-1) for tensor in averaged] if self._direct else averaged
        self._flat = torch.empty_like(self.averages[0])
        self._watch = Watch(online)

    def _flat_now(self) -> Tensor:
        if self._direct:
            return torch.cat(self._sources, out=self._flat)
        return torch.cat([reals(tensor).to(self.averages) for tensor in self._sources])

    def _move_one_by_one(self, offset: int) -> None:
        """A call in which some average copies or skips: even a value that is not finite is copied, or counts for 0."""
        flat = self._flat_now()
        decays, moves = self._decays[offset].tolist(), self._moves[offset]
        for average, copies, decay, moved in zip(self.averages, self._copied, decays, moves, strict=True):
            if moved:
                self._copy_into(copies)
            if decay == 0:
                average.copy_(flat)
            elif decay < 1:
                average.lerp_(flat, 1 - decay)

    def _copy_into(self, copies: dict[str, Tensor]) -> None:
        for name, tensor in copies.items():
            tensor.copy_(self._others[name])

    def _tensors_of(self, name: str) -> dict[str, Tensor]:
        """An average as tensors by name, a shared one once."""
        names = list(self.schedules)
        if name not in self.schedules:
            raise KeyError(f"there is no average {name!r}; there are {listed(names)}")
        row = names.index(name)
        averaged = {
            key: tie.tensor for key, tie in self._layout.items() if tie.first_name == key and is_averaged(tie.tensor)
        }
        found = from_reals(self.averages[row : row + 1], averaged)
        return {**self._copied[row], **{key: tensor[0] for key, tensor in found.items()}}

    def __getstate__(self) -> dict[str, Any]:
        kept = ("module", "schedules", "step", "averages", "_layout", "_copied")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def _on_one_device(tensors: list[Tensor]) -> list[Tensor]:
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(
            f"the module's tensors are on several devices ({', '.join(sorted(map(str, devices)))}): "
            "use an EMA for each schedule"
        )
    return tensors
