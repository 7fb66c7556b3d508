"""``EMA``: a drop-in average of a module's weights, under any schedule."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from emacore.averaging.families import InversePower
from emacore.averaging.schedules import Schedule
from emacore.checks import check_unit, check_whole
from emacore.chosen import chosen, link, linked_copy, trainable, unlink
from emacore.exports import load_tensors, save_tensors
from emacore.offload import Arrivals, is_offloaded
from emacore.sharded import alike, check_not_sharded, copy_each, is_sharded, laid_out, local, sharded_copy
from emacore.steps import after_each_step
from emacore.tensors import (
    Watch,
    check_apart,
    check_has_values,
    distinct,
    is_averaged,
    listed,
    own_buffers,
    paired,
    plain_name,
    restore,
    ties,
    unwrapped,
)

_ACCUMULATOR = "accumulator."
_BLOCK = 1024


class _Setting:
    """A setting of the schedule as an attribute of the wrapper, as the article's class has them."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, ema: EMA | None, owner: type) -> Any:
        if ema is None:
            return self
        self._check(ema)
        return getattr(ema.schedule, self._name)

    def __set__(self, ema: EMA, value: Any) -> None:
        self._check(ema)
        ema.schedule = replace(ema.schedule, **{self._name: value})

    def _check(self, ema: EMA) -> None:
        if self._name not in {field.name for field in fields(ema.schedule)}:
            raise AttributeError(f"the schedule {ema.schedule!r} has no setting {self._name}: replace ema.schedule")


class _Names:
    """Names of tensors as an attribute of the wrapper: checked, and followed from the next call on."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, ema: EMA | None, owner: type) -> Any:
        return self if ema is None else ema.__dict__["_" + self._name]

    def __set__(self, ema: EMA, names: Collection[str]) -> None:
        chosen = _names(self._name, names)
        known = set(ties(ema.ema_model))
        by_start = self._name == "ignore_startswith_names"
        for name in sorted(chosen):
            if by_start and not any(other.startswith(name) for other in known):
                raise ValueError(f"{self._name}: no tensor of the model starts with {name!r}; it has {listed(known)}")
            if not by_start and name not in known:
                raise ValueError(f"{self._name}: the model has no tensor {name!r}; it has {listed(known)}")
        ema.__dict__["_" + self._name] = chosen
        ema._now.plan = None


class EMA(nn.Module):
    """Keeps a shadow copy of a module whose weights follow the module's as a moving average.

    Calling the wrapper calls the shadow.  The shadow is in eval mode, and ``train()`` and ``eval()`` of the wrapper
    reach neither it nor the training module.

    Tensors are paired by name.  Floating-point and complex parameters and buffers are averaged, others (BatchNorm's
    counter) are copied at every move, and so are the buffers whose averages would mean nothing: those that are not
    finite when the wrapper is built (masks of -inf), the singular vectors of spectral normalisation, and those of
    torch's quantisation observers.  Each :meth:`update` is one call of the schedule.

    ``beta``, ``update_after_step``, ``update_every``, ``inv_gamma``, ``power`` and ``min_value`` are attributes, too,
    as far as the schedule has them; they and the three of names may be set in the middle of a run.  An average that has
    begun goes on from where it is.

    Args:
        model: The module being trained.  A ``torch.compile``d or (Distributed)DataParallel one is looked into.
        ema_model: The shadow, if it should not be a deep copy of ``model``.  The two may share neither modules nor
            memory.
        beta, update_after_step, update_every, inv_gamma, power, min_value: Settings of
            :class:`~emacore.averaging.families.InversePower`, the default schedule.
        param_or_buffer_names_no_ema: Names that are copied at every move instead of averaged.
        ignore_names: Names that stay as the last copy of the warm-up left them.
        ignore_startswith_names: The same for all names that start so.
        include_online_model: Whether ``model`` belongs to the module tree and so to ``state_dict()``.
        names: Only these parameters and buffers are kept as averages; by default all.  The others of the shadow are
            the model's own, and take neither memory nor time; they are no part of ``state_dict()["ema_model..."]``.
        trainable_only: The same for the parameters that require a gradient when the wrapper is built, and the buffers
            of their modules: of a model with adapters (LoRA), the adapters.
        device: Where the averages are kept, by default where the model is: ``"cpu"`` keeps them off an accelerator.
            There, from CUDA, a move is queued behind the step and counted at the next call or when the averages are
            asked for through the wrapper; a reference to the shadow that was taken before lags by that one move.
        update_model_with_ema_every: Feed the averages back into the model at every so many calls, once they have begun
            (see :meth:`update_model_with_ema`).
        update_model_with_ema_beta: How much of the model's own weights stays then.
        schedule: Any schedule of :mod:`emacore.averaging.schedules`, in place of the six settings.
        accumulator_dtype: The real dtype in which averages are kept.  By default each tensor's own, but float32 for
            those of less than 32 bits, whose rounding would swallow the small steps of a decay near 1.  Accumulators
            that differ from the shadow's dtype are part of ``state_dict()``.

    Raises:
        ValueError: for a setting out of range, a name that matches nothing, a model that has no values yet, or a
            shadow that shares modules or memory with it.
        TypeError: for a model that cannot be copied.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> ema = EMA(model, beta=0.9, update_after_step=0, update_every=1, power=1.0)
        >>> for value in (1.0, 1.0, 4.0):  # copy, copy, then 2/3 of the old and 1/3 of the new
        ...     _ = nn.init.constant_(model.weight, value)
        ...     ema.update()
        >>> [round(x, 4) for x in ema.ema_model.weight.flatten().tolist()]
        [2.0, 2.0]
    """

    beta = _Setting()
    update_after_step = _Setting()
    update_every = _Setting()
    inv_gamma = _Setting()
    power = _Setting()
    min_value = _Setting()
    param_or_buffer_names_no_ema = _Names()
    ignore_names = _Names()
    ignore_startswith_names = _Names()

    def __init__(
        self,
        model: nn.Module,
        ema_model: nn.Module | None = None,
        beta: float = 0.9999,
        update_after_step: int = 100,
        update_every: int = 10,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        min_value: float = 0.0,
        param_or_buffer_names_no_ema: Collection[str] = (),
        ignore_names: Collection[str] = (),
        ignore_startswith_names: Collection[str] = (),
        include_online_model: bool = True,
        *,
        schedule: Schedule | None = None,
        accumulator_dtype: torch.dtype | None = None,
        names: Collection[str] | None = None,
        trainable_only: bool = False,
        device: torch.device | str | None = None,
        update_model_with_ema_every: int | None = None,
        update_model_with_ema_beta: float = 0.0,
    ) -> None:
        super().__init__()
        if update_model_with_ema_every is not None:
            check_whole("update_model_with_ema_every", update_model_with_ema_every, 1)
        check_unit("update_model_with_ema_beta", update_model_with_ema_beta)
        settings = InversePower(
            beta, inv_gamma, power, min_value, update_after_step=update_after_step, update_every=update_every
        )
        if schedule is not None and settings != InversePower():
            raise ValueError(f"give either schedule or its settings, not both: got {schedule!r} and {settings!r}")
        if accumulator_dtype is not None and not accumulator_dtype.is_floating_point:
            raise ValueError(f"accumulator_dtype must be a real floating-point dtype, got {accumulator_dtype}")
        # An object of its own, because nn.Module's attribute assignment costs as much as averaging a tensor.
        self._now = _Now()
        self.schedule = settings if schedule is None else schedule
        self.accumulator_dtype = accumulator_dtype
        self.include_online_model = include_online_model
        check_has_values("model", model)
        if include_online_model:
            self.online_model = model
        else:
            self._hidden_model = [model]  # a list keeps it out of the module tree
        online = unwrapped(model)
        self._trainable_only = trainable_only
        self._left_out = frozenset(ties(online)) - _with_aliases(online, chosen(online, names, trainable_only))
        if self._left_out:
            instead = "names and trainable_only are for models that are not sharded"
            check_not_sharded("model", online, instead)
        if ema_model is None:
            ema_model = _copy_of(online, self._left_out, device)
        else:
            check_has_values("ema_model", ema_model)
            check_apart("ema_model", ema_model, online)
            if device is not None:
                ema_model.to(device)
        self.update_model_with_ema_every = update_model_with_ema_every
        self.update_model_with_ema_beta = update_model_with_ema_beta
        self.ema_model = ema_model.requires_grad_(False).eval()
        self.param_or_buffer_names_no_ema = param_or_buffer_names_no_ema
        self.ignore_names = ignore_names
        self.ignore_startswith_names = ignore_startswith_names
        self._own_buffers = own_buffers(online)
        self._told: frozenset[str] = frozenset()
        self._accumulators: dict[str, Tensor] = {}
        self._now.plan = self._make_plan()

    @property
    def model(self) -> nn.Module:
        """The training model."""
        return self.online_model if self.include_online_model else self._hidden_model[0]

    @property
    def schedule(self) -> Schedule:
        """The schedule; it may be replaced in the middle of a run and is asked from the next call on."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._now.block = []

    @property
    def step(self) -> Tensor:
        """How many calls of :meth:`update` there have been: int64, shape (1,).  Assign to it to change it."""
        return torch.tensor([self._now.step])

    @step.setter
    def step(self, value: int | Tensor) -> None:
        self._now.step = int(value)

    @property
    def initted(self) -> Tensor:
        """Whether the warm-up is over and the average has begun: bool, shape (1,).  Set it to false to begin anew."""
        return torch.tensor([self._now.initted])

    @initted.setter
    def initted(self, value: bool | Tensor) -> None:
        self._now.initted = bool(value)

    def get_current_decay(self) -> float:
        """The decay of the last call by the schedule's rule, even where that call was skipped or copied."""
        return self.schedule.rule(self._now.step - 1)

    def __getattr__(self, name: str) -> Any:
        if name == "ema_model":
            self._finish()
        setting = type(self).__dict__.get(name)
        if isinstance(setting, _Setting):  # a property's AttributeError ends up here: say what it said
            setting._check(self)
        return super().__getattr__(name)

    def update(self) -> None:
        """Take one call of the schedule: copy, move the average, or skip.

        Raises:
            RuntimeError: if the model gained, lost or reshaped a tensor, or inside :meth:`average_parameters`.
        """
        now = self._now
        if now.kept is not None:
            raise RuntimeError("update() inside average_parameters() would average the average; call it outside")
        if now.plan is not None and now.plan.on_its_way is not None:
            now.plan.finish()
        call = now.step
        offset = call - now.block_start
        if not 0 <= offset < len(now.block):
            now.block_start, offset = call, 0
            now.block = self._schedule.at(np.arange(call, call + _BLOCK)).tolist()
        decay = now.block[offset]
        if decay != 1.0 or call % self._schedule.update_every == 0:
            plan = now.plan
            if plan is None or plan.is_stale():
                plan = now.plan = self._make_plan()
            if now.initted and call > self._schedule.start:
                plan.move(decay)
            elif now.initted and call > self._schedule.update_after_step:
                # The schedule would begin here, but the average has begun under earlier settings.
                plan.move(self._schedule.rule(call))
            else:
                plan.copy_all()
                now.initted = call >= self._schedule.start
        now.step = call + 1
        every = self.update_model_with_ema_every
        if every and not call % every and now.initted and call > self._schedule.start:
            self.update_model_with_ema()

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call :meth:`update` after each step that the optimiser really takes; call it no more yourself.

        Batches whose gradients are only accumulated are no steps, and those that AMP's ``GradScaler`` skips are none.
        With several optimisers, attach to the one that steps last.  See :func:`emacore.steps.after_each_step`.
        """
        return after_each_step(optimizer, unwrapped(self.model), self.update)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages by name, a shared tensor once, as they are now: aliases of the shadow's, without gradients.

        For a teacher in the model's own mode, as with dropout: ``torch.func.functional_call(model, ema.weights, x)``.
        """
        return {name: tensor for name, tensor in distinct(self.ema_model).items() if name not in self._left_out}

    def update_model_with_ema(self, decay: float | None = None) -> None:
        """Feed the averages back: the model becomes ``decay`` of itself and ``1 - decay`` of its average.

        Every process of a distributed run has to call it.  Names that the average ignores stay as the model has them.

        Args:
            decay: By default ``update_model_with_ema_beta``.  0 makes the model its average, as the switch of Li et
                al., "Switch EMA", 2024 (arXiv 2402.09240), does after each epoch.

        Raises:
            RuntimeError: inside :meth:`average_parameters`.
        """
        if self._now.kept is not None:
            raise RuntimeError("update_model_with_ema() inside average_parameters() would be undone; call it outside")
        share = self.update_model_with_ema_beta if decay is None else decay
        check_unit("decay", share)
        plan = self._now.plan = self._make_plan()
        for source, shadow in plan.followed():
            value = laid_out(shadow, source)
            if share and is_averaged(source):
                source.lerp_(_as(source, value), 1.0 - share)
            else:
                source.copy_(value)

    def save(self, path: str | Path) -> None:
        """Write the averages alone as a safetensors file that the plain model loads; a shared tensor once.

        Buffers that are not persistent are left out, as everywhere, and so are tensors of which no average is kept.
        To go on training, keep :meth:`state_dict`.  The processes of a sharded model call it together; the first
        writes.
        """
        about = {"step": str(self._now.step), "initted": str(int(self._now.initted))}
        save_tensors(self.ema_model, path, self._left_out, about)

    def load(self, path: str | Path) -> None:
        """Take the averages from a safetensors file: of :meth:`save`, or of a plain model.

        Where the file says at which step it was written, the schedule goes on from there; a plain model's does not,
        so that the schedule's warm-up, if there is one to come, copies over what was loaded.

        Raises:
            RuntimeError: if names or shapes differ, or inside :meth:`average_parameters`.
        """
        if self._now.kept is not None:
            raise RuntimeError("load() inside average_parameters(): leave its with block first")
        about = load_tensors(self.ema_model, path, self._left_out)
        self._accumulators = {}
        self._now.plan = None
        if "step" in about and "initted" in about:
            self.step, self.initted = int(about["step"]), bool(int(about["initted"]))

    @contextmanager
    def average_parameters(self) -> Iterator[nn.Module]:
        """Put the averages into the training model for the time of a ``with`` block; then restore it exactly.

        Its mode is left alone: call ``model.eval()`` where that is meant.  :meth:`state_dict` of the wrapper holds the
        training weights inside, too; that of the model holds the averages.
        """
        if self._now.kept is not None:
            raise RuntimeError("average_parameters() is already open: leave its with block first")
        plan = self._now.plan = self._make_plan()
        online = unwrapped(self.model)
        self._now.kept = kept = {
            name: tensor.clone() for name, tensor in distinct(online).items() if name not in self._left_out
        }
        try:
            copy_each(plan.model, plan.shadow)
            yield self.model
        finally:
            self._now.kept = None
            restore(online, kept, self._left_out)

    def copy_to(self, module: nn.Module) -> None:
        """Copy the averages into another module that has the same tensors by name.

        Raises:
            RuntimeError: if names or shapes differ.
        """
        pairs = paired(ties(self.ema_model), ties(unwrapped(module)), "module")
        copy_each([to for _, to in pairs.values()], [source for source, _ in pairs.values()])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the shadow model."""
        return self.ema_model(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Set the wrapper's own flag only: the shadow stays in eval mode, the training model in its own."""
        self.training = mode
        return self

    def _make_plan(self) -> _Plan:
        self._finish()
        online = unwrapped(self.model)
        if self._left_out:
            self._link(online)
        pairs = paired(ties(self.ema_model), ties(online), "model")
        pairs = {name: pair for name, pair in pairs.items() if name not in self._left_out}
        moved: list[tuple[Tensor, Tensor]] = []
        wide: list[tuple[Tensor, Tensor, Tensor]] = []
        copied: list[tuple[Tensor, Tensor]] = []
        accumulators: dict[str, Tensor] = {}
        for name, (shadow, source) in pairs.items():
            if name in self.ignore_names or name.startswith(tuple(self.ignore_startswith_names)):
                continue
            if name in self.param_or_buffer_names_no_ema or name in self._own_buffers or not is_averaged(shadow):
                copied.append((shadow, source))
                continue
            dtype = _accumulator_dtype(shadow.dtype, self.accumulator_dtype)
            kept = self._accumulators.get(name)
            if dtype != shadow.dtype:
                same = kept is not None and kept.dtype == dtype
                accumulators[name] = laid_out(kept, shadow) if kept is not None and same else shadow.to(dtype)
                wide.append((accumulators[name], shadow, source))
                continue
            if kept is not None:  # the shadow has been cast to the accumulator's dtype
                shadow.copy_(laid_out(kept, shadow))
            if source.dtype == dtype and source.device == shadow.device and alike(shadow, source):
                moved.append((shadow, source))
            else:
                wide.append((shadow, shadow, source))
        self._accumulators = accumulators
        return _Plan(self.ema_model, online, list(pairs.values()), moved, wide, copied)

    def _finish(self) -> None:
        """Count the move whose weights are on their way to another device."""
        if (plan := self._now.plan) is not None and plan.on_its_way is not None:
            plan.finish()

    def __getstate__(self) -> dict[str, Any]:
        self._finish()
        return self.__dict__.copy()

    def _link(self, online: nn.Module) -> None:
        link(self.ema_model, online, self._left_out)
        # Unfrozen since: whoever asked for what trains would not expect them to be left out.
        if self._trainable_only and (late := trainable(online) & self._left_out - self._told):
            self._told |= late
            warnings.warn(
                f"{listed(late)} train by now, but did not when the EMA was built with trainable_only=True, so that no "
                "average of them is kept; build a new one to have it",
                stacklevel=3,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._finish()
        # What the shadow has of the model is the model's to move.
        taken = unlink(self.ema_model, self._left_out)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for table, leaf, tensor in taken:
            table[leaf] = tensor
        if taken:
            link(self.ema_model, unwrapped(self.model), self._left_out)
        # Accumulators follow to another device, but keep their dtype: that is what they are for.
        self._accumulators = {name: t.to(fn(t).device) for name, t in self._accumulators.items()}
        self._now.plan = None
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As any module's; inside :meth:`average_parameters` with the training weights of the model, as copies."""
        self._finish()
        kept, start = self._now.kept, kwargs.get("prefix", args[1] if len(args) > 1 else "") + "online_model."
        if kept is None or not self.include_online_model:
            return self._without_left_out(super().state_dict(*args, **kwargs), start)
        online = unwrapped(self.model)
        averages = {name: tensor.clone() for name, tensor in distinct(online).items()}
        restore(online, kept, self._left_out)
        try:
            state = self._without_left_out(super().state_dict(*args, **kwargs), start)
            for name, value in state.items():
                if name.startswith(start) and isinstance(value, Tensor):
                    state[name] = value.clone()
        finally:
            restore(online, averages)
        return state

    def _without_left_out(self, state: Any, start: str) -> Any:
        shadow = start.removesuffix("online_model.") + "ema_model."
        for name in list(state) if self._left_out else ():
            if name.startswith(shadow) and plain_name(name.removeprefix(shadow)) in self._left_out:
                del state[name]
        return state

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "initted"] = self.initted
        destination[prefix + "step"] = self.step
        for name, tensor in self._accumulators.items():
            destination[prefix + _ACCUMULATOR + name] = tensor.clone()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if self._now.kept is not None:
            raise RuntimeError("what is loaded inside average_parameters() would be undone at its end; load it outside")
        for name in ("step", "initted"):
            if prefix + name in state_dict:
                setattr(self, name, state_dict.pop(prefix + name).reshape(-1)[0])
            else:
                missing_keys.append(prefix + name)
        start = prefix + _ACCUMULATOR
        devices = {name: tie.tensor.device for name, tie in ties(self.ema_model).items()}
        self._accumulators = {
            name: state_dict.pop(start + name).to(device, copy=True)
            for name, device in devices.items()
            if start + name in state_dict
        }
        for child in ("online_model", "ema_model"):
            if child in self._modules:
                _rename_wrapped(state_dict, f"{prefix}{child}.", list(getattr(self, child).state_dict()))
        if self._left_out:  # they are the model's, and no part of the state
            shadow = self.ema_model.state_dict()
            for name in shadow:
                if plain_name(name) in self._left_out:
                    state_dict[f"{prefix}ema_model.{name}"] = shadow[name]
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._now.plan = None


def averaging_function(schedule: Schedule) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """The schedule as ``avg_fn`` of ``torch.optim.swa_utils.AveragedModel`` (and of callbacks built on it).

    ``AveragedModel`` copies at its first call and counts the calls after it from 1, so its ``num_averaged`` is the
    schedule's call number t.

    The returned function raises ``TypeError`` for an average of less than 32 bits, which it has nowhere to keep wider.
    """

    def averaged(average: Tensor, value: Tensor, num_averaged: Tensor | int) -> Tensor:
        decay = float(schedule.at(int(num_averaged)))
        if decay == 1.0:
            return average
        if decay == 0.0 or not is_averaged(average):
            return value
        if _accumulator_dtype(average.dtype, None) != average.dtype:
            raise TypeError(
                f"an average kept in {average.dtype} would round away the steps of a decay near 1: use emacore.EMA, "
                "which keeps a float32 one beside it, or give AveragedModel a float32 copy of the model"
            )
        return torch.lerp(average, value.to(average.dtype), 1 - decay)

    return averaged


class _Now:
    """Where the wrapper stands; the plan and the block of decays are derived, and neither copied nor pickled."""

    def __init__(self, step: int = 0, initted: bool = False) -> None:
        self.step = step
        self.initted = initted
        self.kept: dict[str, Tensor] | None = None  # the training weights inside average_parameters()
        self.plan: _Plan | None = None
        self.block: list[float] = []
        self.block_start = 0

    def __reduce__(self) -> tuple[type[_Now], tuple[int, bool]]:
        if self.kept is not None:
            raise RuntimeError("a copy made inside average_parameters() would train from the average; copy it outside")
        return _Now, (self.step, self.initted)


class _Plan:
    """Which tensors of the shadow and of the model go together, looked up once."""

    def __init__(
        self,
        ema_model: nn.Module,
        online: nn.Module,
        pairs: list[tuple[Tensor, Tensor]],
        moved: list[tuple[Tensor, Tensor]],
        wide: list[tuple[Tensor, Tensor, Tensor]],
        copied: list[tuple[Tensor, Tensor]],
    ) -> None:
        self.shadow = [shadow for shadow, _ in pairs]
        self.model = [source for _, source in pairs]
        self.moved_shadow = [local(shadow) for shadow, _ in moved]
        self.moved_model = [local(source) for _, source in moved]
        far = [not any(map(is_sharded, entry)) and is_offloaded(entry[0], entry[2]) for entry in wide]
        self.far = [entry for entry, is_far in zip(wide, far, strict=True) if is_far]
        self.wide = [entry for entry, is_far in zip(wide, far, strict=True) if not is_far]
        self.arrivals: Arrivals | None = None  # made for the first move, for which alone there must be room
        self.on_its_way: float | None = None  # the decay of the move whose weights are sent and not yet counted
        self.copied = copied
        self._watch = Watch(online, ema_model)

    def is_stale(self) -> bool:
        return self._watch.is_stale()

    def copy_all(self) -> None:
        copy_each(self.shadow, self.model)
        for accumulator, _, source in self.wide + self.far:
            accumulator.copy_(laid_out(source, accumulator))

    def move(self, decay: float) -> None:
        for shadow, source in self.copied:
            shadow.copy_(laid_out(source, shadow))
        if decay == 1.0:  # not even a value that is not finite counts
            return
        if self.moved_shadow:
            if decay:
                torch._foreach_lerp_(self.moved_shadow, self.moved_model, 1.0 - decay)
            else:  # a copy also replaces what is not finite
                torch._foreach_copy_(self.moved_shadow, self.moved_model)
        for accumulator, shadow, online in self.wide:
            source = laid_out(online, accumulator)
            accumulator.lerp_(_as(accumulator, source), 1.0 - decay) if decay else accumulator.copy_(source)
            if accumulator is not shadow:
                shadow.copy_(accumulator)
        if self.far:
            sources = [source for _, _, source in self.far]
            if self.arrivals is None:
                self.arrivals = Arrivals(sources)
            self.arrivals.send(sources)
            self.on_its_way = decay

    def followed(self) -> list[tuple[Tensor, Tensor]]:
        """The model's tensors that an average follows, each with its average."""
        return [
            *zip(self.moved_model, self.moved_shadow, strict=True),
            *((source, shadow) for _, shadow, source in self.wide + self.far),
            *((source, shadow) for shadow, source in self.copied),
        ]

    def finish(self) -> None:
        """Count the weights that have been sent."""
        decay, self.on_its_way = self.on_its_way, None
        if decay is None or self.arrivals is None:
            return
        for (accumulator, shadow, _), source in zip(self.far, self.arrivals.received(), strict=True):
            accumulator.lerp_(_as(accumulator, source), 1.0 - decay) if decay else accumulator.copy_(source)
            if accumulator is not shadow:
                shadow.copy_(accumulator)


def _as(like: Tensor, source: Tensor) -> Tensor:
    """In the precision and on the device of ``like``."""
    return source.to(like.device, like.dtype)


def _with_aliases(module: nn.Module, first_names: Collection[str]) -> set[str]:
    """All names of the tensors that have these first names."""
    return {name for name, tie in ties(module).items() if tie.first_name in first_names}


def _copy_of(model: nn.Module, left_out: Collection[str], device: torch.device | str | None) -> nn.Module:
    sharded = any(is_sharded(parameter) for parameter in model.parameters())
    if sharded and device is not None:
        raise ValueError("device is for models that are not sharded; shard an ema_model with offload_policy instead")
    try:
        shadow = sharded_copy(model) if sharded else linked_copy(model, left_out, device)
    except Exception as error:
        raise TypeError(
            f"{type(model).__name__} cannot be copied ({error}); build a second one and pass it as ema_model"
        ) from error
    for name, tie in ties(shadow).items():
        if name not in left_out:
            tie.tensor.grad = None
    return shadow


def _accumulator_dtype(dtype: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    real = dtype.to_real()
    accumulator = wanted or (torch.float32 if real.itemsize < 4 else real)
    return accumulator.to_complex() if dtype.is_complex else accumulator


def _names(argument: str, names: Collection[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise TypeError(f"{argument} must be a collection of names, got the string {names!r}: write [{names!r}]")
    return frozenset(names)


def _rename_wrapped(state_dict: dict[str, Any], prefix: str, expected: list[str]) -> None:
    """Give keys under ``prefix`` the names the module expects, where only wrappers' prefixes tell them apart."""
    by_plain_name = {plain_name(name): name for name in expected}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = key[len(prefix) :]
        wanted = by_plain_name.get(plain_name(name), name)
        if name not in expected and prefix + wanted not in state_dict:
            state_dict[prefix + wanted] = state_dict.pop(key)
