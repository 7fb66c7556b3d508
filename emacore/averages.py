"""``Averages``: many averages of one module at once, in anybody's loop."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from emacore.averaging.schedules import Schedule
from emacore.averaging.weights import Floats, stretch_weights
from emacore.chosen import chosen
from emacore.sharded import check_not_sharded
from emacore.steps import after_each_step
from emacore.tensors import (
    Watch,
    check_has_values,
    distinct,
    from_reals,
    in_plain_memory,
    is_averaged,
    layout,
    listed,
    own_buffers,
    paired,
    reals,
    restore,
    ties,
    unwrapped,
)

_BLOCK = 1024
_STRETCH = 32  # divides a block
_WAITING_BYTES = 2**20  # for each average; beyond it, waiting costs more memory than it saves time


class Averages:
    """Keeps one average of a module's weights for each schedule, as one tensor that all schedules move together.

    Tensors are paired by name.  Floating-point and complex parameters and buffers are averaged, in float32, or in
    float64 if one of them has it; others (BatchNorm's counter, and the buffers that EMA copies) are copied at every
    move.  Each average equals that of
    :class:`emacore.EMA` with the same schedule.  All tensors of the module must be on one device.

    On the CPU, the weights of up to 32 calls wait side by side until one matrix product moves the averages by them, if
    that takes at most 1 MiB for each average.  Reading an average in between counts those that wait, and changes
    nothing: a run that is read, or stopped and resumed, goes on bit for bit like one that is not.

    Args:
        module: The module being trained.  A ``torch.compile``d or (Distributed)DataParallel one is looked into.
        schedules: A schedule by the name of its average.
        names: Only these parameters and buffers are averaged; by default all.  The others are left as they are.
        trainable_only: The same for the parameters that require a gradient now, and the buffers of their modules.

    Attributes:
        step: How many calls of :meth:`update` there have been.

    Raises:
        ValueError: for no schedule, a module that has no values yet, nothing to average, or several devices.

    Example:
        >>> from emacore import Constant, UniformAverage
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

    def __init__(
        self,
        module: nn.Module,
        schedules: Mapping[str, Schedule],
        *,
        names: Collection[str] | None = None,
        trainable_only: bool = False,
    ) -> None:
        if not schedules:
            raise ValueError("schedules must name at least one schedule")
        for name, schedule in schedules.items():
            if not isinstance(schedule, Schedule):
                raise TypeError(f"schedules: {name!r} must be a schedule, got {schedule!r}")
        check_has_values("module", module)
        check_not_sharded("module", module, "use an EMA for each schedule")
        self.module = module
        self.schedules = dict(schedules)
        self.step = 0
        self._inside = None
        online = unwrapped(module)
        self._is_partial = names is not None or trainable_only
        wanted = chosen(online, names, trainable_only)
        self._layout = {name: tie for name, tie in layout(online).items() if tie.first_name in wanted}
        tensors = {name: tensor for name, tensor in distinct(online).items() if name in wanted}
        self._own_buffers = own_buffers(online)
        averaged = [tensor for name, tensor in tensors.items() if self._is_averaged(name, tensor)]
        if not averaged:
            raise ValueError("the module has no floating-point tensor to average")
        dtype = torch.float64 if any(t.dtype in (torch.float64, torch.complex128) for t in averaged) else torch.float32
        flat = torch.cat([reals(tensor).to(dtype) for tensor in _on_one_device(averaged)])
        self._averages = flat.repeat(len(schedules), 1)  # after the calls before those that wait
        self._waiting: list[int] = []  # which calls of the block wait, all of one stretch: a row each
        self._rows = self._new_rows(0)
        self._copied = [
            {name: tensor.clone() for name, tensor in tensors.items() if not self._is_averaged(name, tensor)}
            for _ in schedules
        ]
        self._reset()

    @property
    def averages(self) -> Tensor:
        """Shape (K, P): an average a row, in the order of ``schedules``; the tensors lie one after the other.

        A tensor of its own at each reading, which later calls leave alone.
        """
        return torch.lerp(self._averages, *self._mean_and_rest()) if self._waiting else self._averages.clone()

    def update(self) -> None:
        """Take one call of every schedule: each average copies, moves, or skips.

        Raises:
            RuntimeError: if the module gained, lost or reshaped a tensor, or inside :meth:`average_parameters`.
        """
        if self._inside is not None:
            raise RuntimeError("update() inside average_parameters() would average the average; call it outside")
        offset = self.step % _BLOCK
        if not (offset and self._plain):
            self._look_ahead()
        if self._watch is None or self._watch.is_stale():
            self._look_up()
        if self._plain[offset]:
            if self._inputs:
                self._rows_as_bytes[len(self._waiting)][:] = b"".join(self._inputs)
                self._waiting.append(offset)
            else:
                self._averages.lerp_(self._flat_now(), self._rests[offset])
            if self._others:
                for copies in self._copied:
                    self._copy_into(copies)
        elif self._moves[:, offset].any():
            self._move_one_by_one(offset)
        self.step += 1
        if self._waiting and not self.step % _STRETCH:
            self._catch_up()

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call :meth:`update` after each step that the optimiser really takes; call it no more yourself.

        See :func:`emacore.steps.after_each_step`.
        """
        return after_each_step(optimizer, unwrapped(self.module), self.update)

    @contextmanager
    def average_parameters(self, name: str) -> Iterator[nn.Module]:
        """Put one of the averages into the training module for the time of a ``with`` block; then restore it exactly.

        The module's mode is left alone: call ``module.eval()`` where that is meant.
        """
        values = self._tensors_of(name)
        if self._inside is not None:
            raise RuntimeError(f"average_parameters({self._inside!r}) is already open: leave its with block first")
        online = unwrapped(self.module)
        pairs = self._paired(online)
        kept = {name: source.clone() for name, (_, source) in pairs.items()}
        self._inside = name
        try:
            for key, (_, source) in pairs.items():
                source.copy_(values[key])
            yield self.module
        finally:
            self._inside = None
            restore(online, kept, self._left_out(online))

    def copy_to(self, module: nn.Module, name: str) -> None:
        """Copy one of the averages into another module that has the same tensors by name.

        Tensors of which no average is kept are copied from the module that trains.

        Raises:
            KeyError: if there is no such average.
            RuntimeError: if names or shapes differ.
        """
        values = self._tensors_of(name)
        online = unwrapped(self.module)
        for key, (source, target) in paired(ties(online), ties(unwrapped(module)), "module").items():
            target.copy_(values.get(key, source))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors, numbers and text: ``torch.load(..., weights_only=True)`` reads it.

        Its ``averages`` do not hold the calls yet whose weights are in ``waiting``.
        """
        return {
            "step": self.step,
            "averages": self._averages.clone(),
            "waiting": {
                "calls": [self._block_start() + offset for offset in self._waiting],
                "weights": torch.tensor(self._rows[: len(self._waiting)]),
            },
            "copied": [{name: tensor.clone() for name, tensor in copies.items()} for copies in self._copied],
            "schedules": {name: schedule.to_dict() for name, schedule in self.schedules.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            ValueError: if it is of other schedules, or of another module.
        """
        if self._inside is not None:
            raise RuntimeError("load_state_dict() inside average_parameters(): leave its with block first")
        told = {name: schedule.to_dict() for name, schedule in self.schedules.items()}
        if state["schedules"] != told:
            raise ValueError(f"the state is of the schedules {state['schedules']}, these are {told}")
        if state["averages"].shape != self._averages.shape or any(
            {name: tensor.shape for name, tensor in theirs.items()}
            != {name: tensor.shape for name, tensor in ours.items()}
            for theirs, ours in zip(state["copied"], self._copied, strict=True)
        ):
            raise ValueError(
                f"the state holds averages of {state['averages'].shape[-1]} weights, "
                f"this module has {self._averages.shape[-1]}, or other buffers"
            )
        self._reset()
        self.step = int(state["step"])
        self._averages.copy_(state["averages"])
        self._waiting.clear()
        if "waiting" in state:  # older states hold the averages after all calls
            self._waiting = [call - self._block_start() for call in state["waiting"]["calls"]]
            self._rows = self._new_rows(_STRETCH)
            self._rows[: len(self._waiting)] = state["waiting"]["weights"].numpy(force=True)
        for ours, theirs in zip(self._copied, state["copied"], strict=True):
            for name, tensor in ours.items():
                tensor.copy_(theirs[name])

    def to(self, device: torch.device | str) -> Averages:
        """Move the averages to the device of the module."""
        self._averages = self._averages.to(device)
        self._copied = [{name: tensor.to(device) for name, tensor in copies.items()} for copies in self._copied]
        self._reset()
        return self

    def _reset(self) -> None:
        """Forget what is derived: it is looked up again at the next call."""
        self._watch = None
        self._plain = []

    def _is_averaged(self, name: str, tensor: Tensor) -> bool:
        return is_averaged(tensor) and name not in self._own_buffers

    def _block_start(self) -> int:
        return self.step - self.step % _BLOCK

    def _look_ahead(self) -> None:
        """The decays of the block of calls that this one is in, for all schedules."""
        calls = self._block_start() + np.arange(_BLOCK)
        decays = np.stack([schedule.at(calls) for schedule in self.schedules.values()])
        skips = decays == 1
        if skips.any():  # a decay of 1 that is not a skip copies buffers; a skip leaves even them as they are
            every = np.array([[schedule.update_every] for schedule in self.schedules.values()])
            skips &= calls % every != 0
        self._decays, self._moves = decays, ~skips
        self._plain = np.all((decays > 0) & (decays < 1), axis=0).tolist()
        self._rests = self._as_tensor(1 - decays.T).unsqueeze(-1)
        shares, rests = _shares_and_rest(decays.reshape(len(decays), -1, _STRETCH))
        self._stretch_shares = shares.swapaxes(0, 1).astype(self._rows.dtype)
        self._stretch_rests = self._as_tensor(rests.swapaxes(0, 1))

    def _left_out(self, online: nn.Module) -> set[str]:
        return (set(ties(online)) - set(self._layout)) if self._is_partial else set()

    def _paired(self, online: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
        left_out = self._left_out(online)
        found = {name: tie for name, tie in ties(online).items() if name not in left_out}
        return paired(self._layout, found, "module")

    def _look_up(self) -> None:
        online = unwrapped(self.module)
        pairs = self._paired(online)
        sources = {name: source for name, (_, source) in pairs.items()}
        averaged = _on_one_device([source for name, source in sources.items() if self._is_averaged(name, source)])
        self._others = {name: source for name, source in sources.items() if not self._is_averaged(name, source)}
        # Aliases of the memory itself, where the module's tensors are flat as they lie.
        self._direct = all(tensor.dtype == self._averages.dtype and tensor.is_contiguous() for tensor in averaged)
        self._sources = [tensor.view(-1) for tensor in averaged] if self._direct else averaged
        self._flat = torch.empty_like(self._averages[0])
        few = _STRETCH * self._flat.nbytes <= _WAITING_BYTES * len(self.schedules)
        if few and self._direct and all(map(in_plain_memory, averaged)):
            # Python joins the bytes of small tensors in a fifth of the time that torch.cat takes for its checks.
            self._inputs = [np.from_dlpack(source).view(np.uint8).data for source in self._sources]
            if not len(self._rows):
                self._rows = self._new_rows(_STRETCH)
            self._rows_as_bytes = [row.view(np.uint8).data for row in self._rows]
        else:
            self._inputs = []
            self._catch_up()
        self._watch = Watch(online)

    def _catch_up(self) -> None:
        """Move the averages by the calls that wait."""
        if self._waiting:
            self._averages.lerp_(*self._mean_and_rest())
            self._waiting.clear()

    def _mean_and_rest(self) -> tuple[Tensor, Tensor]:
        """The calls that wait as one: the means of their weights, (K, P), and how far to move towards them, (K, 1)."""
        if not self._plain:
            self._look_ahead()
        count = len(self._waiting)
        if count == _STRETCH:
            stretch = self._waiting[0] // _STRETCH
            shares, rest = self._stretch_shares[stretch], self._stretch_rests[stretch]
        else:
            exact, rests = _shares_and_rest(self._decays[:, self._waiting])
            shares, rest = exact.astype(self._rows.dtype), self._as_tensor(rests)
        # For matrices this small NumPy's product takes half the time of torch's.
        return self._as_tensor(shares @ self._rows[:count]), rest

    def _new_rows(self, count: int) -> NDArray[Any]:
        return self._averages.new_zeros(count, self._averages.shape[1], device="cpu").numpy()

    def _as_tensor(self, numbers: NDArray[Any]) -> Tensor:
        return torch.from_numpy(numbers).to(self._averages)

    def _flat_now(self) -> Tensor:
        if self._direct:
            return torch.cat(self._sources, out=self._flat)
        return torch.cat([reals(tensor).to(self._averages) for tensor in self._sources])

    def _move_one_by_one(self, offset: int) -> None:
        """A call in which some average copies or skips: even a value that is not finite is copied, or counts for 0."""
        self._catch_up()
        flat = self._flat_now()
        decays, moves = self._decays[:, offset].tolist(), self._moves[:, offset]
        for average, copies, decay, moved in zip(self._averages, self._copied, decays, moves, strict=True):
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
            key: tie.tensor
            for key, tie in self._layout.items()
            if tie.first_name == key and self._is_averaged(key, tie.tensor)
        }
        found = from_reals(self.averages[row : row + 1], averaged)
        return {**self._copied[row], **{key: tensor[0] for key, tensor in found.items()}}

    def __getstate__(self) -> dict[str, Any]:
        if self._inside is not None:
            raise RuntimeError("a copy made inside average_parameters() would train from the average; copy it outside")
        kept = (
            "module",
            "schedules",
            "step",
            "_is_partial",
            "_averages",
            "_waiting",
            "_rows",
            "_layout",
            "_copied",
            "_own_buffers",
        )
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._inside = None
        self._reset()


def _shares_and_rest(decays: Floats) -> tuple[Floats, Floats]:
    """A stretch of n calls as one: each call's share in their mean, and how far the average moves towards it.

    Moved towards a mean, an average of equal values keeps them, up to a rounding that does not add up.

    Args:
        decays: Shape (..., n), each row with a decay below 1; the rows of another are not numbers.

    Returns:
        Shapes (..., n), which adds to 1, and (..., 1).
    """
    shares, _ = stretch_weights(decays)
    rest = shares.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return shares / rest, rest


def _on_one_device(tensors: list[Tensor]) -> list[Tensor]:
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(
            f"the module's tensors are on several devices ({', '.join(sorted(map(str, devices)))}): "
            "use an EMA for each schedule"
        )
    return tensors
