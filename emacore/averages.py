"""``Averages``: many averages of one module at once, in anybody's loop."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from emacore.averaging.schedules import Schedule, check_schedule, schedule_from_dict
from emacore.checks import check_named, check_whole
from emacore.tensors.ahead import BLOCK, STRETCH, Ahead, counted
from emacore.tensors.attributes import Follower
from emacore.tensors.buffers import Policy, copied_buffers, holds, marks, put_buffers
from emacore.tensors.chosen import chosen, tell_late
from emacore.tensors.lending import OPEN, Lending, check_not_lent
from emacore.tensors.pairing import (
    Tie,
    check_has_values,
    check_takes_values,
    distinct,
    in_plain_memory,
    is_averaged,
    layout,
    listed,
    name_at,
    paired,
    reals,
    restore,
    slots,
    ties,
    unwrapped,
    writable,
)
from emacore.tensors.processes import Writes
from emacore.tensors.rows import by_name, in_rows, rows_of_state
from emacore.tensors.settings import OnNonfinite
from emacore.tensors.sharded import alike, anywhere, is_sharded, laid_out, local
from emacore.tensors.steps import after_each_step
from emacore.tensors.watch import Watch

# What is not derived.
_KEPT = (
    "_module",
    "_schedules",
    "_step",
    "_on_nonfinite",
    "nonfinite_calls",
    "_averages",
    "_waiting",
    "_rows",
    "_owed",
    "_is_partial",
    "_trainable_only",
    "_layout",
    "_copied",
    "_copied_buffers",
    "_policy",
)
_NUMBERS = (int, float, np.number, Tensor)
_WAITING_BYTES = 2**20  # for each average; beyond it, waiting costs more memory than it saves time


class Averages:
    """Keeps one average of a module's weights for each schedule, as one tensor that all schedules move together.

    Tensors are paired by name.  Floating-point and complex parameters and buffers are averaged, in float32, or in
    float64 if one of them has it; others (BatchNorm's counter, and the buffers that EMA copies) are copied at every
    move, and may come, go and grow.  Each average equals that of :class:`emacore.EMA` with the same schedule.  All
    tensors of the module must be on one device.

    Of a sharded module (FSDP2, or another whose parameters are ``DTensor``), each process averages the parts that it
    holds, and all of them make the same calls.  Then ``state_dict()`` holds tensors that are sharded likewise, for
    ``torch.distributed.checkpoint``, by which another number of processes can go on.

    On the CPU, the weights of up to 32 calls wait side by side until one matrix product moves the averages by them, if
    that takes at most 1 MiB for each average.  Reading an average in between counts those that wait, and changes
    nothing: a run that is read, or stopped and resumed, goes on bit for bit like one that is not.

    Args:
        module: The module being trained.  A ``torch.compile``d or (Distributed)DataParallel one is looked into.
        schedules: A schedule by the name of its average.
        buffers: Which floating-point buffers are averaged and which copied, as for :class:`emacore.EMA`.
        names: Only these parameters and buffers are averaged; by default all.  The others are left as they are.
        trainable_only: The same for the parameters that require a gradient now, and the buffers of their modules.
        on_nonfinite: What becomes of a call where a weight is not finite: ``"take"`` it into the averages, where it
            stays; ``"skip"`` the call, and warn of the first; or ``"raise"``.  The last two read all weights once more.

    Attributes:
        step: How many calls of :meth:`update` there have been.
        nonfinite_calls: How many of them ``on_nonfinite="skip"`` has skipped.

    Raises:
        ValueError: for no schedule, a module that has no values yet, nothing to average, or several devices.
        TypeError: for a module or a schedule that is none, or schedules without names.

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

    on_nonfinite = OnNonfinite()
    _inside: str | None
    _watch: Watch | None
    _ahead: Ahead | None

    @torch.inference_mode(False)
    def __init__(
        self,
        module: nn.Module,
        schedules: Mapping[str, Schedule],
        *,
        buffers: Policy = None,
        on_nonfinite: str = "take",
        names: Collection[str] | None = None,
        trainable_only: bool = False,
    ) -> None:
        _check_schedules(schedules)
        check_has_values("module", module)
        self._module = module
        self._schedules = dict(schedules)
        self.on_nonfinite = on_nonfinite
        self._step = 0
        self.nonfinite_calls = 0
        self._inside = None
        self._writes = Writes()
        online = unwrapped(module)
        self._policy = buffers
        self._is_partial, self._trainable_only = names is not None or trainable_only, trainable_only
        self._told: frozenset[str] = frozenset()
        wanted = chosen(online, names, trainable_only)
        self._layout = {name: tie for name, tie in layout(online).items() if tie.first_name in wanted}
        tensors = {name: tensor for name, tensor in distinct(online).items() if name in wanted}
        self._copied_buffers = (copied_buffers(online, buffers) | marks(online)) & self._layout.keys()
        averaged = [tensor for name, tensor in tensors.items() if self._is_averaged(name, tensor)]
        if not averaged:
            raise ValueError("the module has no floating-point tensor to average")
        dtype = torch.float64 if any(t.dtype in (torch.float64, torch.complex128) for t in averaged) else torch.float32
        flat = torch.cat([reals(tensor).to(dtype) for tensor in _on_one_device(list(map(local, averaged)))])
        self._averages = flat.repeat(len(schedules), 1)  # after the calls before those that wait
        self._waiting: list[int] = []  # which calls of the block wait, all of one stretch: a row each
        self._rows = self._new_rows(0)
        self._owed = [False] * len(schedules)  # a copy that was skipped, which the next call makes up for
        self._copied = [
            {name: tensor.clone() for name, tensor in tensors.items() if not self._is_averaged(name, tensor)}
            for _ in schedules
        ]
        self._reset()

    @property
    def module(self) -> nn.Module:
        """The module being trained."""
        return self._module

    @property
    def schedules(self) -> Mapping[str, Schedule]:
        """A schedule by the name of its average; others may be assigned to it, and are asked from the next call on."""
        return MappingProxyType(self._schedules)

    @schedules.setter
    def schedules(self, schedules: Mapping[str, Schedule]) -> None:
        _check_schedules(schedules)
        if list(schedules) != list(self._schedules):
            raise ValueError(
                f"schedules must keep their names and order, {listed(self._schedules)}: got {list(schedules)}"
            )
        self._settle()
        self._schedules = dict(schedules)

    @property
    def step(self) -> int:
        """How many calls of :meth:`update` there have been.  Assign to it to change it."""
        return self._step

    @step.setter
    def step(self, value: int) -> None:
        check_whole("step", value, 0)
        self._settle()
        self._step = int(value)

    @property
    def averages(self) -> Tensor:
        """Shape (K, P): an average a row, in the order of ``schedules``; the tensors lie one after the other.

        A tensor of its own at each reading, which later calls leave alone.  Of a sharded module, what this process
        holds.
        """
        return torch.lerp(self._averages, *self._mean_and_rest()) if self._waiting else self._averages.clone()

    def update(self) -> None:
        """Take one call of every schedule: each average copies, moves, or skips.

        Raises:
            RuntimeError: if the module gained, lost or reshaped a tensor, or inside :meth:`average_parameters`.
        """
        if OPEN:
            why = "update() inside average_parameters() would average the average; call it outside"
            check_not_lent(unwrapped(self.module), why)
        offset = self.step % BLOCK
        if (ahead := self._ahead) is None or not offset:
            ahead = self._look_ahead()
        if self._watch is None or self._watch.is_stale():
            self._look_up()
        if self.on_nonfinite != "take" and self._is_not_finite(ahead, offset):
            self._step += 1
            return
        if ahead.plain[offset] and not any(self._owed):
            if self._inputs:
                self._rows_as_bytes[len(self._waiting)][:] = b"".join(self._inputs)
                self._waiting.append(offset)
            else:
                self._averages.lerp_(self._flat_now(), ahead.rests[offset])
            if self._others:
                for copies in self._copied:
                    self._copy_into(copies)
        elif ahead.moves[:, offset].any():  # not plain, or a copy is owed
            self._move_one_by_one(ahead, offset)
        self._step += 1
        if self._waiting and not self.step % STRETCH:
            self._catch_up()
        if self._writes.waiting:
            self._writes.after_update(self._sources[0])

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call :meth:`update` after each step that the optimiser really takes; call it no more yourself.

        See :func:`emacore.tensors.steps.after_each_step`.
        """
        return after_each_step(optimizer, unwrapped(self.module), self.update)

    @contextmanager
    def average_parameters(self, name: str, bema: tuple[float, str] | None = None) -> Iterator[nn.Module]:
        """Put one of the averages into the training module for the time of a ``with`` block; then restore it exactly.

        The module's mode is left alone: call ``module.eval()`` where that is meant.

        Args:
            bema: Take out some of the average's lag (Block and Zhang, "EMA Without the Lag", 2025, arXiv 2508.00180):
                with ``(alpha, first)``, ``alpha`` times the way that the weights have gone since an average called
                ``first`` is added.  That is one of ``Constant(1.0)``, which stays at the first weights; BEMA's alpha
                after t calls is ``(lag + t) ** -power``, with a lag of 10 and a power of 0.2, say.
        """
        values = self._tensors_of(name, bema)
        if self._inside is not None:
            raise RuntimeError(f"average_parameters({self._inside!r}) is already open: leave its with block first")
        online = unwrapped(self.module)
        left_out = self._left_out(online)
        self._tell_late(online, left_out)
        free = self._copied_now(online) | left_out
        pairs = paired(self._layout, ties(online), "module", free)
        kept = {key: tensor.clone() for key, tensor in writable(online).items() if key not in left_out}
        self._inside = name
        with Lending(online, left_out) as lending:
            try:
                for key, (_, source) in pairs.items():
                    if key in kept and key in values and values[key].shape == source.shape:
                        source.copy_(laid_out(values[key], source))
                lending.begin()
                yield self.module
            finally:
                lending.look()
                self._inside = None
                restore(online, kept, free | self._copied_now(online))

    def copy_to(self, module: nn.Module, name: str, bema: tuple[float, str] | None = None) -> None:
        """Copy one of the averages into another module that has the same tensors by name.

        Tensors of which no average is kept are copied from the module that trains.

        Args:
            bema: As for :meth:`average_parameters`.

        Raises:
            KeyError: if there is no such average.
            RuntimeError: if names or shapes differ.
            TypeError, ValueError: if ``module`` is none, or has no values yet.
        """
        values = self._tensors_of(name, bema)
        check_takes_values("module", module, self._layout.keys())
        target = unwrapped(module)
        online = unwrapped(self.module)
        now = ties(online)
        copied = copied_buffers(online, self._policy) | self._copied_buffers
        buffers = {key: tie.tensor for key, tie in now.items() if key in copied} | values
        put_buffers(target, {key: value for key, value in buffers.items() if key in copied})
        for key, (source, tensor) in paired(now, ties(target), "module", copied & slots(target)).items():
            if key not in copied or isinstance(now[key].tensor, nn.Parameter):  # a mark, which is no buffer
                tensor.copy_(laid_out(values.get(key, source), tensor))
        Follower(target, online).follow()
        if target is online:
            self._writes.note(self.module, "copy_to()")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors, numbers and text: ``torch.load(..., weights_only=True)`` reads it.

        Its ``averages`` do not hold the calls yet whose weights are in ``waiting``.  Of a sharded module they are
        sharded tensors by name, for each schedule, and no calls wait.
        """
        self._lay_out(ties(unwrapped(self.module)))
        averages: dict[str, Any] = {"averages": self._averages.clone()}
        if self._is_sharded():
            named = by_name(averages["averages"], self._averaged_layout())
            averages = {"averages": dict(zip(self._schedules, named, strict=True))}
        else:
            averages["waiting"] = {
                "calls": [self._block_start() + offset for offset in self._waiting],
                "weights": torch.tensor(self._rows[: len(self._waiting)]),
            }
        return averages | {
            "step": self.step,
            "copied": [{name: tensor.clone() for name, tensor in copies.items()} for copies in self._copied],
            "owed": list(self._owed),
            "nonfinite_calls": self.nonfinite_calls,
            "schedules": {name: schedule.to_dict() for name, schedule in self.schedules.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], *, strict_schedule: bool = True) -> None:
        """Go on where :meth:`state_dict` was taken.

        Args:
            strict_schedule: Whether to refuse a state of other schedules.  Otherwise averages of the same names go on
                under those that they have now.

        Raises:
            ValueError: if it is of other schedules, or of another module, or none of :meth:`state_dict`.
        """
        if self._inside is not None:
            raise RuntimeError("load_state_dict() inside average_parameters(): leave its with block first")
        if not (isinstance(state, Mapping) and {"schedules", "averages", "copied", "step"} <= state.keys()):
            what = list(state)[:6] if isinstance(state, Mapping) else state
            raise ValueError(f"the state is none of Averages.state_dict(), but {what!r:.200}")
        told = {name: schedule.to_dict() for name, schedule in self.schedules.items()}
        if list(state["schedules"]) != list(told) or (strict_schedule and state["schedules"] != told):
            raise ValueError(
                f"the state is of the schedules {state['schedules']}, these are {told}; build it with the same, or, if "
                "the names are, go on under these with strict_schedule=False"
            )
        copied = [{name: tensor.clone() for name, tensor in copies.items()} for copies in state["copied"]]
        fixed = [name for name in self._copied[0] if name not in self._copied_buffers]
        self._lay_out(ties(unwrapped(self.module)))
        theirs = {name: schedule_from_dict(one) for name, one in state["schedules"].items()}
        averages, waiting = state["averages"], state.get("waiting")  # older states hold the averages after all calls
        if waiting and waiting["calls"] and (self._is_sharded() or not strict_schedule):
            averages = counted(averages, waiting["calls"], waiting["weights"].numpy(force=True), theirs.values())
            waiting = None
        averages = rows_of_state(averages, self._schedules, self._averaged_layout(), self._averages)
        if any(
            name not in copies or copies[name].shape != self._copied[0][name].shape
            for copies in copied
            for name in fixed
        ):
            raise ValueError("the state holds buffers that this module has not, or of other shapes")
        self._reset()
        self._step = int(state["step"])
        self.nonfinite_calls = state.get("nonfinite_calls", 0)
        self._owed = list(state.get("owed", self._owed))
        self._averages.copy_(averages)
        self._waiting.clear()
        if waiting and waiting["calls"]:
            self._waiting = [call - self._block_start() for call in waiting["calls"]]
            self._rows = self._new_rows(STRETCH)
            self._rows[: len(self._waiting)] = waiting["weights"].numpy(force=True)
        if not strict_schedule and state["schedules"] != told:
            self._owe_beginnings(theirs)
        device = self._averages.device
        self._copied = [{name: tensor.to(device) for name, tensor in copies.items()} for copies in copied]

    def to(self, device: torch.device | str) -> Averages:
        """Move the averages to the device of the module."""
        self._averages = self._averages.to(device)
        self._copied = [{name: tensor.to(device) for name, tensor in copies.items()} for copies in self._copied]
        self._reset()
        return self

    def _reset(self) -> None:
        """Forget what is derived: it is looked up again at the next call."""
        self._watch = None
        self._ahead = None

    def _is_averaged(self, name: str, tensor: Tensor) -> bool:
        return is_averaged(tensor) and name not in self._copied_buffers

    def _copied_now(self, online: nn.Module) -> frozenset[str]:
        """What is averaged is so for good; a buffer that has come into being may be copied."""
        if self._is_partial:
            return self._copied_buffers
        return self._copied_buffers | (copied_buffers(online, self._policy) - self._layout.keys())

    def _tell_late(self, online: nn.Module, left_out: Collection[str]) -> None:
        if self._trainable_only:
            self._told = tell_late(online, left_out, self._told, "no averages of them are kept")

    def _left_out(self, online: nn.Module) -> set[str]:
        return (set(ties(online)) - set(self._layout)) if self._is_partial else set()

    def _is_averaged_one(self, name: str) -> bool:
        return name in self._layout and self._is_averaged(name, self._layout[name].tensor)

    def _averaged_layout(self) -> dict[str, Tensor]:
        """Each tensor that is averaged, without its values; a shared one once."""
        return {
            key: tie.tensor for key, tie in self._layout.items() if tie.first_name == key and self._is_averaged_one(key)
        }

    def _is_sharded(self) -> bool:
        return any(map(is_sharded, self._averaged_layout().values()))

    def _block_start(self) -> int:
        return self.step - self.step % BLOCK

    def _is_not_finite(self, ahead: Ahead, offset: int) -> bool:
        flat = self._flat_now()
        is_finite = not flat.numel() or bool(torch.stack(torch.aminmax(flat)).isfinite().all())
        if not anywhere(not is_finite, self._averaged_layout().values()):
            return False
        where = "a part of a tensor on another process" if is_finite else repr(self._first_bad(flat))
        what = f"call {self.step}: the module's {where} holds values that are not finite"
        if self.on_nonfinite == "raise":
            raise RuntimeError(f"{what}; the averages have not taken them")
        if not self.nonfinite_calls:
            warnings.warn(f"{what}: the averages skip it, and count in nonfinite_calls", stacklevel=3)
        self.nonfinite_calls += 1
        copies = (ahead.moves & (ahead.decays == 0))[:, offset].tolist()
        self._owed = [owed or skipped for owed, skipped in zip(self._owed, copies, strict=True)]
        return True

    def _first_bad(self, flat: Tensor) -> str:
        place = int((~flat.isfinite()).nonzero()[0])
        return name_at(place, {name: local(tensor) for name, tensor in self._averaged_layout().items()})

    def _look_ahead(self) -> Ahead:
        """The decays of the block of calls that this one is in, for all schedules."""
        self._ahead = ahead = Ahead(self.schedules.values(), self._block_start(), self._averages)
        return ahead

    @torch.inference_mode(False)
    def _look_up(self) -> None:
        online = unwrapped(self.module)
        found = ties(online)
        self._copied_buffers = self._copied_now(online)
        left_out = self._left_out(online)
        self._tell_late(online, left_out)
        pairs = paired(self._layout, found, "module", self._copied_buffers | left_out)
        self._lay_out(found)
        averaged = _on_one_device([local(found[name].tensor.detach()) for name in pairs if self._is_averaged_one(name)])
        self._others = {
            name: tie.tensor.detach()
            for name, tie in found.items()
            if name not in left_out
            and not self._is_averaged_one(name)
            and (tie.first_name == name or name in self._copied_buffers)
        }
        # Aliases of the memory itself, where the module's tensors are flat as they lie.
        self._direct = all(tensor.dtype == self._averages.dtype and tensor.is_contiguous() for tensor in averaged)
        self._sources = [tensor.view(-1) for tensor in averaged] if self._direct else averaged
        self._flat = torch.empty_like(self._averages[0])
        few = STRETCH * self._flat.nbytes <= _WAITING_BYTES * len(self.schedules)
        if few and self._direct and all(map(in_plain_memory, averaged)) and not self._is_sharded():
            # Python joins the bytes of small tensors in a fifth of the time that torch.cat takes for its checks.
            self._inputs = [np.from_dlpack(source).view(np.uint8).data for source in self._sources]
            if not len(self._rows):
                self._rows = self._new_rows(STRETCH)
            self._rows_as_bytes = [row.view(np.uint8).data for row in self._rows]
        else:
            self._inputs = []
            self._catch_up()
        self._watch = Watch(online)

    def _lay_out(self, found: Mapping[str, Tie]) -> None:
        """Have each process hold of the averages what it holds of the module, which may have been sharded since."""
        like = self._averaged_layout()
        if all(alike(found[name].tensor, tensor) for name, tensor in like.items() if name in found):
            return
        self._catch_up()
        averages = by_name(self._averages, like)
        for name in self._layout.keys() & found.keys():
            self._layout[name] = self._layout[name]._replace(tensor=found[name].tensor.detach().to("meta"))
        self._averages = in_rows(averages, self._averaged_layout(), self._averages)
        self._rows = self._new_rows(0)

    def _catch_up(self) -> None:
        """Move the averages by the calls that wait."""
        if self._waiting:
            self._averages.lerp_(*self._mean_and_rest())
            self._waiting.clear()

    def _mean_and_rest(self) -> tuple[Tensor, Tensor]:
        """The calls that wait as one: the means of their weights, (K, P), and how far to move towards them, (K, 1)."""
        ahead = self._ahead or self._look_ahead()
        return ahead.mean_and_rest(self._waiting, self._rows[: len(self._waiting)])

    def _settle(self) -> None:
        """Count all that has been under the schedules as they are, before they or the step change."""
        self._catch_up()
        self._owe_beginnings(self._schedules)
        self._reset()

    def _owe_beginnings(self, schedules: Mapping[str, Schedule]) -> None:
        """Have averages that have not begun under these schedules begin with a copy under others."""
        waits = [self._step <= schedule.start for schedule in schedules.values()]
        self._owed = [owed or wait for owed, wait in zip(self._owed, waits, strict=True)]

    def _new_rows(self, count: int) -> NDArray[Any]:
        return self._averages.new_zeros(count, self._averages.shape[1], device="cpu").numpy()

    def _flat_now(self) -> Tensor:
        if self._direct:
            return torch.cat(self._sources, out=self._flat)
        return torch.cat([reals(tensor).to(self._averages) for tensor in self._sources])

    def _move_one_by_one(self, ahead: Ahead, offset: int) -> None:
        """A call in which some average copies or skips: even a value that is not finite is copied, or counts for 0."""
        self._catch_up()
        flat = self._flat_now()
        decays, moves = ahead.decays[:, offset].tolist(), ahead.moves[:, offset]
        for n, (average, copies, decay, moved) in enumerate(
            zip(self._averages, self._copied, decays, moves, strict=True)
        ):
            if moved:
                self._copy_into(copies)
            if moved and self._owed[n]:
                decay, self._owed[n] = 0.0, False
            if decay == 0:
                average.copy_(flat)
            elif decay < 1:
                average.lerp_(flat, 1 - decay)

    def _copy_into(self, copies: dict[str, Tensor]) -> None:
        for name, source in self._others.items():
            if name in copies and holds(copies[name], source):
                copies[name].copy_(source)
            else:
                copies[name] = source.clone()
        for name in copies.keys() - self._others.keys():
            del copies[name]

    @torch.no_grad()
    def _tensors_of(self, name: str, bema: tuple[float, str] | None = None) -> dict[str, Tensor]:
        """An average as tensors by name, a shared one once."""
        names, averages = list(self.schedules), self.averages
        if bema is not None and not (
            isinstance(bema, (tuple, list)) and len(bema) == 2 and isinstance(bema[0], _NUMBERS)
        ):
            raise ValueError(f"bema must be a number and the name of an average, such as (0.5, 'first'), got {bema!r}")
        alpha, first = bema or (0.0, name)
        for one in (name, first):
            if one not in names:
                raise KeyError(f"there is no average {one!r}; there are {listed(names)}")
        row = names.index(name)
        if bema and self._inside is None:
            if self._watch is None or self._watch.is_stale():
                self._look_up()
            averages[row] += alpha * (self._flat_now() - averages[names.index(first)])
        values = by_name(averages[row : row + 1], self._averaged_layout())[0]
        online = unwrapped(self.module)
        found = ties(online)
        # Of what has come to hold infinities since it was averaged, there is no average.
        marks = (copied_buffers(online, self._policy) & values.keys()) if self._inside is None else set()
        return {**self._copied[row], **values, **{key: found[key].tensor.detach().clone() for key in marks}}

    def __getstate__(self) -> dict[str, Any]:
        if self._inside is not None:
            raise RuntimeError("a copy made inside average_parameters() would train from the average; copy it outside")
        return {name: self.__dict__[name] for name in _KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._inside = None
        self._told = frozenset()
        self._writes = Writes()
        self._reset()


def _check_schedules(schedules: Mapping[str, Schedule]) -> None:
    check_named("schedules", schedules)
    if not schedules:
        raise ValueError("schedules must name at least one schedule")
    for name, schedule in schedules.items():
        check_schedule(f"schedules: {name!r}", schedule)


def _on_one_device(tensors: list[Tensor]) -> list[Tensor]:
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(
            f"the module's tensors are on several devices ({', '.join(sorted(map(str, devices)))}): "
            "use an EMA for each schedule"
        )
    return tensors
