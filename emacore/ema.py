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
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from emacore.averaging.families import InversePower
from emacore.averaging.schedules import Schedule
from emacore.checks import check_choice, check_unit, check_whole
from emacore.tensors.attributes import Attributes, Follower
from emacore.tensors.buffers import Policy, copied_buffers, follow_buffers, marks
from emacore.tensors.chosen import chosen, link, trainable, unlink
from emacore.tensors.exports import load_tensors, save_tensors
from emacore.tensors.lending import OPEN, Lending, by_ourselves, check_not_lent
from emacore.tensors.pairing import (
    accumulator_dtype,
    check_apart,
    check_has_values,
    distinct,
    is_averaged,
    listed,
    named_parts,
    paired,
    plain_name,
    restore,
    slots,
    ties,
    unwrapped,
    writable,
)
from emacore.tensors.plan import Loan, Plan, Wide, follow_writes, loans_of
from emacore.tensors.processes import Writes
from emacore.tensors.shadow import built, copy_of, set_dtype
from emacore.tensors.sharded import alike, check_not_sharded, copy_each, laid_out, local
from emacore.tensors.steps import after_each_step

_ACCUMULATOR = "accumulator."
_BLOCK = 1024
# As torch.no_grad() does it, which costs as much as averaging a small tensor.
_set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled


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
        known = set(ties(ema.ema_model)) | slots(ema.ema_model)
        by_start = self._name == "ignore_startswith_names"
        for name in sorted(chosen):
            if by_start and not any(other.startswith(name) for other in known):
                raise ValueError(f"{self._name}: no tensor of the model starts with {name!r}; it has {listed(known)}")
            if not by_start and name not in known:
                raise ValueError(f"{self._name}: the model has no tensor {name!r}; it has {listed(known)}")
        ema.__dict__["_" + self._name] = chosen
        ema._now.forget_plan()


class EMA(nn.Module):
    """Keeps a shadow copy of a module whose weights follow the module's as a moving average.

    Calling the wrapper calls the shadow.  The shadow is in eval mode, and ``train()`` and ``eval()`` of the wrapper
    reach neither it nor the training module; ``modules()`` leaves the training module's parts out, so that
    ``torch.optim.swa_utils.update_bn(loader, ema)`` recomputes the shadow's statistics and no others.

    Tensors are paired by name.  Floating-point and complex parameters are averaged, those of other kinds copied at
    every move.  Of the buffers, ``buffers`` says which are averaged.  What a module keeps beside its tensors follows
    where ``get_extra_state()`` returns it, and so do the attributes in
    :data:`emacore.tensors.attributes.FOLLOWED`; of others that change a warning tells once.  Each :meth:`update` is one
    call of the schedule.

    ``beta``, ``update_after_step``, ``update_every``, ``inv_gamma``, ``power`` and ``min_value`` are attributes, too,
    as far as the schedule has them; they and the three of names may be set in the middle of a run.  An average that has
    begun goes on from where it is.

    Args:
        model: The module being trained.  A ``torch.compile``d or (Distributed)DataParallel one is looked into.
        ema_model: The shadow, or a function that builds it, if it should not be a deep copy of ``model``.  The two may
            share neither modules nor memory.
        beta, update_after_step, update_every, inv_gamma, power, min_value: Settings of
            :class:`~emacore.averaging.families.InversePower`, the default schedule.
        param_or_buffer_names_no_ema: Names that are copied at every move instead of averaged.
        ignore_names: Names that stay as the last copy of the warm-up left them; in model and shadow they may have
            different shapes, or be missing.
        ignore_startswith_names: The same for all names that start so.
        include_online_model: Whether ``model`` belongs to the module tree and so to ``state_dict()``.
        forward_method_names: Methods of the shadow that the wrapper offers as its own.
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
            that differ from the shadow's dtype are part of ``state_dict()``; what is written into the shadow, they
            take over.
        buffers: ``"average"`` or ``"copy"`` for all floating-point buffers, or a function of a buffer's name and the
            buffer that returns one of the two, or ``None`` for the default of
            :func:`emacore.tensors.buffers.copied_buffers`: masks, caches, counters, observers' ranges and vectors of a
            power iteration are copied, statistics averaged.  Copied buffers may come, go and grow.
        on_nonfinite: What becomes of a call where a weight is not finite: ``"take"`` it into the average, where it
            stays, which costs nothing; ``"skip"`` the call, count it in ``nonfinite_calls`` and warn of the first; or
            ``"raise"``.  The last two read all weights once more.
        keep_half: Whether the shadow of half-precision weights is in half precision itself, beside the float32
            averages: three times the model's size in all.  Without, it is twice: the shadow's dtype is float32 then,
            and half precision is made when the wrapper is called, and inside :meth:`average_parameters`.
        strict_schedule: Whether ``load_state_dict()`` refuses a state that was saved under another schedule.

    Raises:
        ValueError: for a setting out of range, a name that matches nothing, a model that has no values yet or nothing
            to average, or a shadow that shares modules or memory with it.
        TypeError: for a model that cannot be copied, or is a ScriptModule.

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
        ema_model: nn.Module | Callable[[], nn.Module] | None = None,
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
        forward_method_names: Collection[str] = (),
        schedule: Schedule | None = None,
        accumulator_dtype: torch.dtype | None = None,
        buffers: Policy = None,
        on_nonfinite: str = "take",
        keep_half: bool = True,
        strict_schedule: bool = True,
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
        self.on_nonfinite = on_nonfinite
        self.keep_half = keep_half
        self.strict_schedule = strict_schedule
        check_has_values("model", model)
        if not ties(unwrapped(model)):
            raise ValueError(
                f"model: {type(unwrapped(model)).__name__} has no parameters and no buffers, so that there is nothing "
                "to average; build its layers first (one batch through it may do)"
            )
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
            ema_model = copy_of(online, self._left_out, device)
        else:
            if not isinstance(ema_model, nn.Module):
                ema_model = built(ema_model)
            check_has_values("ema_model", ema_model)
            check_apart("ema_model", ema_model, online)
            if device is not None:
                ema_model.to(device)
        self.update_model_with_ema_every = update_model_with_ema_every
        self.update_model_with_ema_beta = update_model_with_ema_beta
        self.ema_model: nn.Module = ema_model.requires_grad_(False).eval()
        self.forward_method_names = _names("forward_method_names", forward_method_names)
        missing = [name for name in self.forward_method_names if not callable(getattr(ema_model, name, None))]
        if missing:
            raise ValueError(f"forward_method_names: {type(ema_model).__name__} has no method {listed(missing)}")
        self.param_or_buffer_names_no_ema = param_or_buffer_names_no_ema
        self.ignore_names = ignore_names
        self.ignore_startswith_names = ignore_startswith_names
        self._policy = buffers
        self._copied_buffers: frozenset[str] = marks(online) - self._left_out
        self._told: frozenset[str] = frozenset()
        self._accumulators: dict[str, Tensor] = {}
        self._now.plan = self._make_plan()
        self._now.attributes = Attributes(online)

    @property
    def model(self) -> nn.Module:
        """The training model; another one with the same tensors may take its place."""
        return self.online_model if self.include_online_model else self._hidden_model[0]

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module keeps modules before any property is asked.
        if name not in ("model", "online_model", "ema_model") or not hasattr(self, "_told"):
            super().__setattr__(name, value)
            return
        if not isinstance(value, nn.Module):
            raise TypeError(f"{name} must be a module, got {value!r}")
        check_has_values(name, value)
        self._finish()
        if OPEN:
            why = f"{name} inside average_parameters() would leave the average in the weights; assign it outside"
            check_not_lent(unwrapped(self.model), why)
        if name == "ema_model":
            check_apart(name, value, unwrapped(self.model))
            super().__setattr__(name, value.requires_grad_(False).eval())
            self._accumulators = {}
        else:
            check_apart("ema_model", self.ema_model, unwrapped(value))
            if self.include_online_model:
                super().__setattr__("online_model", value)
            else:
                self._hidden_model = [value]
        self._now.forget_plan()
        self._now.attributes = None

    @property
    def schedule(self) -> Schedule:
        """The schedule; it may be replaced in the middle of a run and is asked from the next call on."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Schedule) -> None:
        if not isinstance(schedule, Schedule):
            raise TypeError(f"schedule must be a schedule, such as Constant(0.999), got {schedule!r}")
        self._schedule = schedule
        self._now.forget_decays()

    @property
    def step(self) -> Tensor:
        """How many calls of :meth:`update` there have been: int64, shape (1,).  Assign to it to change it."""
        return torch.tensor([self._now.step])

    @step.setter
    def step(self, value: int | Tensor) -> None:
        self._now.step = int(value)
        self._now.forget_decays()

    @property
    def initted(self) -> Tensor:
        """Whether the warm-up is over and the average has begun: bool, shape (1,).  Set it to false to begin anew."""
        return torch.tensor([self._now.initted])

    @initted.setter
    def initted(self, value: bool | Tensor) -> None:
        self._now.initted = bool(value)
        self._now.forget_decays()

    @property
    def on_nonfinite(self) -> str:
        """What becomes of a call where a weight is not finite."""
        return self._on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, choice: str) -> None:
        check_choice("on_nonfinite", choice, ("take", "skip", "raise"))
        self._on_nonfinite = choice
        self._now.forget_decays()

    @property
    def nonfinite_calls(self) -> int:
        """How many calls ``on_nonfinite="skip"`` has skipped."""
        return self._now.nonfinite_calls

    def get_current_decay(self) -> float:
        """The decay of the last call by the schedule's rule, even where that call was skipped or copied."""
        return self.schedule.rule(self._now.step - 1)

    def __getattr__(self, name: str) -> Any:
        if name == "ema_model":
            self._finish()
        setting = type(self).__dict__.get(name)
        if isinstance(setting, _Setting):  # a property's AttributeError ends up here: say what it said
            setting._check(self)
        if name in self.__dict__.get("forward_method_names", ()):
            return getattr(self.ema_model, name)
        if name == "accumulator":  # torch.distributed.checkpoint looks up each name of the state
            return self.ema_model
        return super().__getattr__(name)

    def update(self) -> None:
        """Take one call of the schedule: copy, move the average, or skip.

        Raises:
            RuntimeError: if the model gained, lost or reshaped a tensor, or inside :meth:`average_parameters`; with
                ``on_nonfinite="raise"``, if a weight is not finite.
        """
        # Most calls are moves and nothing else: then this is all there is.
        now = self._now
        offset = now.step - now.block_start
        if offset >= len(now.shares) or OPEN or (plan := now.plan) is None or plan.is_stale():
            self._update()
            return
        enabled = torch.is_grad_enabled()
        _set_grad_enabled(False)
        try:
            torch._foreach_lerp_(plan.moved_shadow, plan.moved_model, now.shares[offset])
        except RuntimeError:
            self._move_again(plan, now.block[offset])
        finally:
            _set_grad_enabled(enabled)
        now.step += 1

    def _update(self) -> None:
        now, call = self._now, self._now.step
        if OPEN:
            why = "update() inside average_parameters() would average the average; call it outside"
            check_not_lent(unwrapped(self.model), why)
        self._finish()
        offset = call - now.block_start
        if not 0 <= offset < len(now.block):
            offset = 0
            now.look_ahead(self._schedule)
        decay = now.block[offset]
        if decay != 1.0 or call % self._schedule.update_every == 0:
            plan = self._current_plan()
            if self._on_nonfinite != "take" and self._is_not_finite(plan):
                return
            if now.initted and call > self._schedule.start:
                self._move(plan, decay)
            elif now.initted and call > self._schedule.update_after_step:
                # The schedule would begin here, but the average has begun under earlier settings.
                self._move(plan, self._schedule.rule(call))
            else:
                plan.copy_all()
                now.initted = call >= self._schedule.start
            simple = plan.is_simple and now.initted and self._on_nonfinite == "take"
            simple = simple and self.update_model_with_ema_every is None and not now.writes.waiting
            now.shares = now.shares_of_block if simple and now.moves_from <= offset + 1 else []
        now.step = call + 1
        if now.writes.waiting:
            now.writes.after_update(local(next(iter(self._weights_now().values()))))
        if not offset:
            self._tell_attributes()
        every = self.update_model_with_ema_every
        if every and not call % every and now.initted and call > self._schedule.start:
            self.update_model_with_ema()

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call :meth:`update` after each step that the optimiser really takes; call it no more yourself.

        Batches whose gradients are only accumulated are no steps, and those that AMP's ``GradScaler`` skips are none.
        With several optimisers, attach to the one that steps last.  See :func:`emacore.tensors.steps.after_each_step`.
        """
        return after_each_step(optimizer, unwrapped(self.model), self.update)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages by name, a shared tensor once, as they are now: aliases of the shadow's, without gradients.

        For a teacher in the model's own mode, as with dropout: ``torch.func.functional_call(model, ema.weights, x)``.
        """
        return {name: tensor for name, tensor in distinct(self.ema_model).items() if name not in self._left_out}

    def followed(self) -> dict[str, Tensor]:
        """The model's tensors in whose place :meth:`average_parameters` puts averages, by name: aliases of them."""
        found = distinct(unwrapped(self.model))
        return {name: tensor for name, tensor in found.items() if name not in self._left_out}

    @torch.no_grad()
    def update_model_with_ema(self, decay: float | None = None) -> None:
        """Feed the averages back: the model becomes ``decay`` of itself and ``1 - decay`` of its average.

        Every process of a distributed run has to call it: where some do not, those that do warn some calls later.
        Names that the average ignores stay as the model has them.

        Args:
            decay: By default ``update_model_with_ema_beta``.  0 makes the model its average, as the switch of Li et
                al., "Switch EMA", 2024 (arXiv 2402.09240), does after each epoch.

        Raises:
            RuntimeError: inside :meth:`average_parameters`.
        """
        share = self.update_model_with_ema_beta if decay is None else decay
        check_unit("decay", share)
        for source, shadow in self._current_plan().followed():
            value = laid_out(shadow, source)
            if share and is_averaged(source):
                source.lerp_(value.to(source.device, source.dtype), 1.0 - share)
            else:
                source.copy_(value)
        self._note_write("update_model_with_ema()")

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
            OSError, ValueError: if there is no such file, or it is damaged or of another kind.
            RuntimeError: if names or shapes differ, or inside :meth:`average_parameters`.
        """
        if self._now.kept is not None:
            raise RuntimeError("load() inside average_parameters(): leave its with block first")
        about = load_tensors(self.ema_model, path, self._left_out)
        self._accumulators = {}
        self._now.forget_plan()
        if "step" in about and "initted" in about:
            self.step, self.initted = int(about["step"]), bool(int(about["initted"]))

    def _move(self, plan: Plan, decay: float) -> None:
        try:
            plan.move(decay)
        except RuntimeError:
            self._move_again(plan, decay)

    def _move_again(self, plan: Plan, decay: float) -> None:
        """After a move that failed, because data of another dtype or on another device was put into a tensor."""
        done = plan.moved_before_misfit()
        if done is None:
            raise
        new = self._now.plan = self._make_plan()
        new.move(decay, done)
        self._now.shares = []

    def _is_not_finite(self, plan: Plan) -> bool:
        now = self._now
        name = plan.not_finite()
        if name is None:
            return False
        what = f"call {now.step}: the model's {name!r} holds values that are not finite"
        if self._on_nonfinite == "raise":
            raise RuntimeError(f"{what}; the average has not taken them")
        if not now.nonfinite_calls:
            warnings.warn(f"{what}: the average skips it, and counts in nonfinite_calls", stacklevel=4)
        now.nonfinite_calls += 1
        now.step += 1
        return True

    def _tell_attributes(self) -> None:
        now, online = self._now, unwrapped(self.model)
        if now.attributes is None:
            now.attributes = Attributes(online)
        now.attributes.tell(self.ema_model, online)

    @contextmanager
    def average_parameters(self, swap: bool = False) -> Iterator[nn.Module]:
        """Put the averages into the training model for the time of a ``with`` block; then restore it exactly.

        Its mode is left alone: call ``model.eval()`` where that is meant.  :meth:`state_dict` of the wrapper holds the
        training weights inside, too; that of the model holds the averages.

        Args:
            swap: Whether model and shadow exchange the memory of their parameters instead, where both are alike, which
                takes no second copy of the weights.  Then weights must not be written inside.

        Raises:
            RuntimeError: if it is open already, or, at its end, if memory that was exchanged has been written.
        """
        now = self._now
        if now.kept is not None:
            raise RuntimeError("average_parameters() is already open: leave its with block first")
        self._tell_attributes()
        plan = now.plan = self._make_plan()
        online = unwrapped(self.model)
        loans = loans_of(plan.pairs) if swap else {}
        found = {name: tensor for name, tensor in writable(online).items() if name not in self._left_out}
        for name in plan.pairs:
            if name in found and found[name].is_inference() and not torch.is_inference_mode_enabled():
                raise RuntimeError(f"the model's {name!r} was made inside torch.inference_mode() and cannot be written")
        written = [pair for name, pair in plan.pairs.items() if name in found and name not in loans]
        with torch.inference_mode(False):
            now.kept = {name: loans[name].own if name in loans else t.clone() for name, t in found.items()}
        now.loans, now.shares = loans, []
        free = self._free_names() | loans.keys()
        changed: list[str] = []
        with Lending(online, self._left_out, unwatched=loans) as lending:
            try:
                with torch.no_grad():
                    copy_each([source for _, source in written], [shadow for shadow, _ in written])
                for loan in loans.values():
                    loan.lend()
                lending.begin()
                yield self.model
            finally:
                lending.look()
                loans = now.loans
                changed = [name for name, loan in loans.items() if loan.is_written()]
                back = {name for name, loan in loans.items() if loan.give_back()}
                kept, now.kept, now.loans = now.kept, None, {}
                free |= copied_buffers(online, self._policy)  # which may have come inside
                restore(online, {name: tensor for name, tensor in kept.items() if name not in back}, free)
        if changed:
            raise RuntimeError(
                f"{listed(changed)} were written inside average_parameters(swap=True), and so the averages of them: "
                "leave weights alone there, or let it make a copy"
            )

    def copy_to(self, module: nn.Module) -> None:
        """Copy the averages into another module that has the same tensors by name.

        Raises:
            RuntimeError: if names or shapes differ.
        """
        target = unwrapped(module)
        self._tell_attributes()
        follow_buffers(target, self.ema_model, self._copied_buffers, new=False)
        pairs = paired(ties(self.ema_model), ties(target), "module", self._free_names() & slots(target))
        copy_each([to for _, to in pairs.values()], [source for source, _ in pairs.values()])
        Follower(target, self.ema_model).follow()
        if target is unwrapped(self.model):
            self._note_write("copy_to()")

    def copy_params_from_model_to_ema(self) -> None:
        """Copy the model, as the calls of the warm-up do; :attr:`step` and :attr:`initted` stay."""
        self._current_plan().copy_all()

    def copy_params_from_ema_to_model(self) -> None:
        """Copy the averages into the training model."""
        self.update_model_with_ema(0.0)

    @torch.no_grad()
    def update_moving_average(
        self, ma_model: nn.Module, current_model: nn.Module, current_decay: float | None = None
    ) -> None:
        """Move one module towards another, by name, as a move of :meth:`update` does: by the decay of the last call.

        For the wrapper's own two modules call :meth:`update`, which counts calls as well.
        """
        decay = self.get_current_decay() if current_decay is None else current_decay
        average, online = unwrapped(ma_model), unwrapped(current_model)
        if average is self.ema_model and online is unwrapped(self.model):
            self._move(self._current_plan(), decay)
            return
        for name, (kept, source) in paired(ties(average), ties(online), "model", self._free_names()).items():
            if not self._is_ignored(name):
                _move(kept, source, 0.0 if self._is_copied(name, kept) else decay)

    def restore_ema_model_device(self) -> None:
        """Bring the shadow, which may have been moved elsewhere for a while, back to the training model's device."""
        self.ema_model.to(next(iter(ties(unwrapped(self.model)).values())).tensor.device)
        self._now.forget_plan()

    def get_params_iter(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of a module, of those that are floating-point or complex in the shadow."""
        known = {name for name, parameter in self.ema_model.named_parameters() if is_averaged(parameter)}
        return ((name, tensor) for name, tensor in unwrapped(model).named_parameters() if plain_name(name) in known)

    def get_buffers_iter(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The same of its buffers."""
        known = {name for name, buffer in self.ema_model.named_buffers() if is_averaged(buffer)}
        return ((name, tensor) for name, tensor in unwrapped(model).named_buffers() if plain_name(name) in known)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the shadow model."""
        if self._is_recomputing():
            self.ema_model.train()
            try:
                return self.ema_model(*args, **kwargs)
            finally:
                self.ema_model.eval()
        if self.keep_half:
            return self.ema_model(*args, **kwargs)
        online = ties(unwrapped(self.model))
        rounded = {
            name: tie.tensor.to(online[name].tensor.dtype)
            for name, tie in ties(self.ema_model).items()
            if tie.first_name == name and name in online and tie.tensor.dtype != online[name].tensor.dtype
        }
        return torch.func.functional_call(self.ema_model, rounded, args, kwargs)

    def _is_recomputing(self) -> bool:
        """Whether ``update_bn`` is at work: it takes the momentum from the shadow's normalisation, not the model's."""
        if self._now.norms is None:
            online = named_parts(unwrapped(self.model))
            self._now.norms = [
                (part, online[start])
                for start, part in named_parts(self.ema_model).items()
                if isinstance(part, _BatchNorm) and start in online
            ]
        return any(part.momentum is None and other.momentum is not None for part, other in self._now.norms)

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """The wrapper's parts without those of the training model, whose statistics are not for others to reset."""
        theirs = set(map(id, self.model.modules()))
        return (part for part in super().modules(remove_duplicate) if id(part) not in theirs)

    def train(self, mode: bool = True) -> Self:
        """Set the wrapper's own flag only: the shadow stays in eval mode, the training model in its own."""
        self.training = mode
        return self

    def _current_plan(self) -> Plan:
        if OPEN:
            why = "a move inside average_parameters() would average the average, or be undone; make it outside"
            check_not_lent(unwrapped(self.model), why)
        self._finish()
        now = self._now
        if now.plan is None or now.plan.is_stale():
            now.plan, now.norms = self._make_plan(), None
        return now.plan

    @torch.inference_mode(False)
    @torch.no_grad()
    def _make_plan(self) -> Plan:
        self._finish()
        online = unwrapped(self.model)
        check_has_values("model", online)
        if self._left_out:
            self._link(online)
        new = copied_buffers(online, self._policy) - self._copied_buffers
        self._copied_buffers |= new
        kept_apart = {name for name in self._copied_buffers if self._is_ignored(name)} | self._left_out
        follow_buffers(self.ema_model, online, self._copied_buffers - kept_apart)
        kept, found = ties(self.ema_model), ties(online)
        pairs = {
            name: (kept[name].tensor, found[name].tensor)
            for name in paired(kept, found, "model", self._free_names())
            if name not in self._left_out
        }
        moved: list[str] = []
        wide: list[Wide] = []
        copied: list[str] = []
        accumulators: dict[str, Tensor] = {}
        for name, (shadow, source) in pairs.items():
            if shadow.is_inference():
                raise RuntimeError(
                    f"the average's {name!r} was made inside torch.inference_mode(), and cannot be written outside; "
                    "build, load or cast the average outside of it (torch.no_grad() does for that)"
                )
            if self._is_ignored(name):
                continue
            if self._is_copied(name, shadow):
                if name in new:  # a mark of what is not finite may have come into it since it was averaged
                    shadow.copy_(laid_out(source, shadow))
                copied.append(name)
                continue
            dtype = self._accumulator_dtype(shadow)
            accumulator = self._accumulators.get(name)
            if dtype != shadow.dtype and not self.keep_half:
                shadow = set_dtype(self.ema_model, kept, name, dtype)
                pairs[name] = shadow, source
            if dtype != shadow.dtype:
                if accumulator is not None and accumulator.dtype == dtype:
                    accumulators[name] = laid_out(accumulator.to(shadow.device), shadow)
                else:
                    accumulators[name] = shadow.detach().to(dtype)
                wide.append(Wide(name, accumulators[name], shadow, source))
                continue
            if accumulator is not None:  # the shadow has been cast to the accumulator's dtype
                shadow.copy_(laid_out(accumulator, shadow))
            if source.dtype == dtype and source.device == shadow.device and alike(shadow, source):
                moved.append(name)
            else:
                wide.append(Wide(name, shadow, shadow, source))
        self._accumulators = accumulators
        return Plan(self.ema_model, online, pairs, moved, wide, copied)

    def _accumulator_dtype(self, shadow: Tensor) -> torch.dtype:
        return accumulator_dtype(shadow.dtype, self.accumulator_dtype)

    def _is_copied(self, name: str, tensor: Tensor) -> bool:
        return name in self.param_or_buffer_names_no_ema or name in self._copied_buffers or not is_averaged(tensor)

    def _is_ignored(self, name: str) -> bool:
        return name in self.ignore_names or name.startswith(tuple(self.ignore_startswith_names))

    def _note_write(self, call: str) -> None:
        """Have the next calls of :meth:`update` look whether all processes have written into the model."""
        self._now.writes.note(self.model, call)
        if self._now.writes.waiting:
            self._now.shares = []  # or else they look at nothing

    def _weights_now(self) -> dict[str, Tensor]:
        return distinct(unwrapped(self.model))

    def _free_names(self) -> set[str]:
        """What may differ in model and shadow: copied buffers, and what is ignored."""
        names = {*ties(self.ema_model), *ties(unwrapped(self.model)), *self._copied_buffers}
        return {name for name in names if name in self._copied_buffers or self._is_ignored(name)} | self._left_out

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

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._finish()
        self._follow_writes()
        # What the shadow has of the model is the model's to move.
        taken = unlink(self.ema_model, self._left_out)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for table, leaf, tensor in taken:
            table[leaf] = tensor
        if taken:
            link(self.ema_model, unwrapped(self.model), self._left_out)
        # Accumulators follow to another device, but keep their dtype: that is what they are for.
        self._accumulators = {name: t.to(fn(t).device) for name, t in self._accumulators.items()}
        self._now.forget_plan()
        return self

    def _follow_writes(self) -> None:
        """Have the accumulators take over what was written into their shadow."""
        shadows = ties(self.ema_model)
        for name, accumulator in list(self._accumulators.items()):
            shadow = shadows[name].tensor
            if not alike(accumulator, shadow):  # the shadow has been sharded since
                accumulator = self._accumulators[name] = laid_out(accumulator, shadow.detach())
                self._now.forget_plan()
            if shadow.dtype != accumulator.dtype and shadow.shape == accumulator.shape:
                follow_writes(accumulator, shadow)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False, *, strict_schedule: bool = True
    ) -> Any:
        """As any module's.

        Args:
            strict_schedule: Whether to refuse a state that was saved under another schedule; it has to be true here
                and in the constructor.

        Raises:
            ValueError: if the state was saved under another schedule.  States say so unless something has made a plain
                dictionary of them on their way.
        """
        asked, self.strict_schedule = self.strict_schedule, self.strict_schedule and strict_schedule
        spread = self.include_online_model and isinstance(self.model, DistributedDataParallel)
        before = {name: t.to("cpu", copy=True) for name, t in self._weights_now().items()} if spread else {}
        try:
            found = super().load_state_dict(state_dict, strict, assign)
        finally:
            self.strict_schedule = asked
        if spread and any(not torch.equal(t.cpu(), before[name]) for name, t in self._weights_now().items()):
            self._note_write("load_state_dict()")
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As any module's; inside :meth:`average_parameters` with the training weights of the model, as copies."""
        self._finish()
        kept, start = self._now.kept, kwargs.get("prefix", args[1] if len(args) > 1 else "") + "online_model."
        if kept is None or not self.include_online_model:
            if OPEN and self.include_online_model:
                why = "state_dict() inside another's average_parameters() would store that average as the weights"
                check_not_lent(unwrapped(self.model), f"{why}; call it outside")
            return self._without_left_out(super().state_dict(*args, **kwargs), start)
        online = unwrapped(self.model)
        averages = {name: tensor.clone() for name, tensor in writable(online).items()}
        free = self._free_names()
        with by_ourselves():
            restore(online, kept, free)
            try:
                state = self._without_left_out(super().state_dict(*args, **kwargs), start)
                for name, value in state.items():
                    if name.startswith(start) and isinstance(value, Tensor):
                        state[name] = value.clone()
            finally:
                restore(online, averages, free)
                self._now.loans = {name: loan.as_it_is() for name, loan in self._now.loans.items()}
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
        # Not among the tensors, whose names are those of ema-pytorch's states.
        if (metadata := getattr(destination, "_metadata", {}).get(prefix[:-1])) is not None:
            metadata["schedule"] = self.schedule.to_dict()
            metadata["nonfinite_calls"] = self.nonfinite_calls
        self._follow_writes()
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
        if self._now.kept is not None or (OPEN and self.include_online_model):
            why = "what is loaded inside average_parameters() would be undone at its end; load it outside"
            check_not_lent(unwrapped(self.model), why)
        ours = self.schedule.to_dict()
        theirs = local_metadata.get("schedule", ours)
        if self.strict_schedule and theirs != ours:
            raise ValueError(
                f"the state was saved under the schedule {theirs}, this average has {ours}; build it "
                "with the same settings, or go on under these with load_state_dict(..., strict_schedule=False) or "
                "EMA(..., strict_schedule=False)"
            )
        self._now.nonfinite_calls = local_metadata.get("nonfinite_calls", 0)
        for name in ("step", "initted"):
            if prefix + name in state_dict:
                setattr(self, name, state_dict.pop(prefix + name).reshape(-1)[0])
            else:
                missing_keys.append(prefix + name)
        start = prefix + _ACCUMULATOR
        shadows = ties(self.ema_model)
        self._accumulators = {
            name: state_dict.pop(start + name).to(tie.tensor.device, copy=True)
            for name, tie in shadows.items()
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
        for name, tie in shadows.items():  # a shadow that was kept in float32 alone
            value, wanted = state_dict.get(f"{prefix}ema_model.{name}"), self._accumulator_dtype(tie.tensor)
            if isinstance(value, Tensor) and value.dtype == wanted != tie.tensor.dtype:
                self._accumulators.setdefault(name, value.to(tie.tensor.device, copy=True))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._now.forget_plan()


def _with_aliases(module: nn.Module, first_names: Collection[str]) -> set[str]:
    """All names of the tensors that have these first names."""
    return {name for name, tie in ties(module).items() if tie.first_name in first_names}


class _Now:
    """Where the wrapper stands; what is derived is neither copied nor pickled."""

    def __init__(self, step: int = 0, initted: bool = False, nonfinite_calls: int = 0) -> None:
        self.step = step
        self.initted = initted
        self.nonfinite_calls = nonfinite_calls
        self.kept: dict[str, Tensor] | None = None  # the training weights inside average_parameters()
        self.loans: dict[str, Loan] = {}
        self.plan: Plan | None = None
        self.attributes: Attributes | None = None
        self.norms: list[tuple[Any, Any]] | None = None
        self.writes = Writes()
        self.forget_decays()

    def forget_decays(self) -> None:
        self.block: list[float] = []
        self.block_start = self.step
        self.shares: list[float] = []  # 1 - decay for each call of the block, while calls are moves and nothing else

    def forget_plan(self) -> None:
        self.plan = self.norms = None
        self.shares = []

    def look_ahead(self, schedule: Schedule) -> None:
        """The decays of the calls from here on."""
        decays = schedule.at(np.arange(self.step, self.step + _BLOCK))
        others = np.flatnonzero((decays <= 0) | (decays >= 1))
        self.block_start, self.block, self.shares = self.step, decays.tolist(), []
        self.shares_of_block = (1.0 - decays).tolist()
        self.moves_from = int(others[-1]) + 1 if others.size else 0

    def __reduce__(self) -> tuple[type[_Now], tuple[int, bool, int]]:
        if self.kept is not None:
            raise RuntimeError("a copy made inside average_parameters() would train from the average; copy it outside")
        return _Now, (self.step, self.initted, self.nonfinite_calls)


def _move(kept: Tensor, source: Tensor, decay: float) -> None:
    value = laid_out(source, kept)
    if decay:
        kept.lerp_(value.to(kept.device, kept.dtype), 1.0 - decay)
    else:
        kept.copy_(value)


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
