"""``EMA``: a drop-in average of a module's weights, under any schedule."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from emacore.averaging.families import InversePower
from emacore.averaging.schedules import Schedule
from emacore.checks import check_unit
from emacore.tensors.attributes import Attributes, Follower
from emacore.tensors.buffers import Policy, copied_buffers, follow_buffers
from emacore.tensors.calls import LOOK
from emacore.tensors.exchange import Exchange
from emacore.tensors.exports import load_tensors, save_tensors
from emacore.tensors.lending import OPEN, Lending, check_not_lent
from emacore.tensors.pairing import (
    check_takes_values,
    distinct,
    is_averaged,
    listed,
    named_parts,
    paired,
    plain_name,
    slots,
    ties,
    unwrapped,
)
from emacore.tensors.plan import Plan
from emacore.tensors.settings import (
    Followed,
    Names,
    OnNonfinite,
    ScheduleSetting,
    checked_every,
    checked_methods,
    checked_share,
)
from emacore.tensors.shadowed import Shadowed
from emacore.tensors.sharded import copy_each, laid_out, local
from emacore.tensors.steps import after_each_step


class EMA(Shadowed):
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
    as far as the schedule has them; they and the three of names, ``on_nonfinite``, ``strict_schedule``,
    ``forward_method_names`` and the two of ``update_model_with_ema`` may be set in the middle of a run.  An average
    that has begun goes on from where it is.  The others cannot be assigned: they are chosen when the wrapper is built.

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
        ValueError: for a setting out of range, a name that matches nothing, a device that cannot be used, a model that
            has no values yet or nothing to average, or a shadow that shares modules or memory with it.
        TypeError: for a model that is none, cannot be copied, or is a ScriptModule, or a setting of another kind.
        RuntimeError: for a shadow that has other tensors than the model.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> ema = EMA(model, beta=0.9, update_after_step=0, update_every=1, power=1.0)
        >>> for value in (1.0, 1.0, 4.0):  # copy, copy, then 2/3 of the old and 1/3 of the new
        ...     _ = nn.init.constant_(model.weight, value)
        ...     ema.update()
        >>> [round(x, 4) for x in ema.ema_model.weight.flatten().tolist()]
        [2.0, 2.0]
    """

    beta = ScheduleSetting()
    update_after_step = ScheduleSetting()
    update_every = ScheduleSetting()
    inv_gamma = ScheduleSetting()
    power = ScheduleSetting()
    min_value = ScheduleSetting()
    param_or_buffer_names_no_ema = Names("no_ema")
    ignore_names = Names("ignored")
    ignore_startswith_names = Names("ignored_starts", starts=True)
    on_nonfinite = OnNonfinite(lambda ema: ema._now.forget_decays())
    update_model_with_ema_every = Followed(checked_every)
    update_model_with_ema_beta = Followed(checked_share)
    forward_method_names = Followed(checked_methods)

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
        settings = InversePower(
            beta, inv_gamma, power, min_value, update_after_step=update_after_step, update_every=update_every
        )
        if schedule is not None and settings != InversePower():
            raise ValueError(f"give either schedule or its settings, not both: got {schedule!r} and {settings!r}")
        super().__init__(
            model,
            ema_model,
            settings if schedule is None else schedule,
            include_online_model=include_online_model,
            chosen=(names, trainable_only),
            device=device,
            buffers=buffers,
            accumulator_dtype=accumulator_dtype,
            keep_half=keep_half,
            strict_schedule=strict_schedule,
        )
        self.on_nonfinite = on_nonfinite
        self.update_model_with_ema_every = update_model_with_ema_every
        self.update_model_with_ema_beta = update_model_with_ema_beta
        self.forward_method_names = forward_method_names
        self.param_or_buffer_names_no_ema = param_or_buffer_names_no_ema
        self.ignore_names = ignore_names
        self.ignore_startswith_names = ignore_startswith_names
        self._now.plan = self._make_plan()

    def get_current_decay(self) -> float:
        """The decay of the last call by the schedule's rule, even where that call was skipped or copied."""
        return self.schedule.rule(self._now.step - 1)

    def __getattr__(self, name: str) -> Any:
        if name == "ema_model":
            self._finish()
        setting = type(self).__dict__.get(name)
        if isinstance(setting, ScheduleSetting):  # a property's AttributeError ends up here: say what it said
            setting.check(self)
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
        move = self._now.move
        if move is not None:
            try:
                if move():
                    return
            except RuntimeError:
                self._repeat_call()
                return
        self._update()

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
        decay, simple = now.block[offset], False
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
        now.step = call + 1
        if simple:
            now.go_on(plan)
        if now.writes.waiting:
            now.writes.after_update(local(next(iter(self._weights_now().values()))))
        if not call % LOOK:
            self._tell_attributes()
            if now.plan is not None and now.plan.has_buffers:
                now.forget_plan()
        every = self.update_model_with_ema_every
        if every and not call % every and now.initted and call > self._schedule.start:
            self.update_model_with_ema()

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call :meth:`update` after each step that the optimiser really takes; call it no more yourself.

        Batches whose gradients are only accumulated are no steps, and those that AMP's ``GradScaler`` skips are none.
        With several optimisers, attach to the one that steps last.  See :func:`emacore.tensors.steps.after_each_step`.
        """
        return after_each_step(optimizer, unwrapped(self.model), self.update)

    def add_to_optimizer_post_step_hook(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """:meth:`attach` under its name in ema-pytorch."""
        return self.attach(optimizer)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages by name, a shared tensor once, as they are now: aliases of the shadow's, without gradients.

        For a teacher in the model's own mode, as with dropout: ``torch.func.functional_call(model, ema.weights, x)``.
        """
        return self._rules.kept(distinct(self.ema_model))

    def followed(self) -> dict[str, Tensor]:
        """The model's tensors in whose place :meth:`average_parameters` puts averages, by name: aliases of them."""
        return self._rules.kept(self._weights_now())

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

        Raises:
            OSError: if the file cannot be written.
            ValueError: if a tensor has no place in such a file: of complex128, sparse or quantised.
        """
        self._look_again()
        about = {"step": str(self._now.step), "initted": str(int(self._now.initted))}
        save_tensors(self.ema_model, path, self._rules.left_out, about)

    def load(self, path: str | Path) -> None:
        """Take the averages from a safetensors file: of :meth:`save`, or of a plain model.

        Where the file says at which step it was written, the schedule goes on from there; a plain model's does not,
        so that the schedule's warm-up, if there is one to come, copies over what was loaded.

        Raises:
            OSError, ValueError: if there is no such file, or it is damaged or of another kind.
            RuntimeError: if names or shapes differ, or inside :meth:`average_parameters`.
        """
        if self._now.lent is not None:
            raise RuntimeError("load() inside average_parameters(): leave its with block first")
        about = load_tensors(self.ema_model, path, self._rules.left_out)
        self._accumulators = {}
        self._now.forget_plan()
        step, initted = about.get("step", ""), about.get("initted", "")
        if step.isdecimal() and initted in ("0", "1"):  # others' files have what they call so
            self.step, self.initted = int(step), initted == "1"

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
        self._now.move = None

    def _repeat_call(self) -> None:
        """After a move that failed when it was counted already."""
        now = self._now
        now.step -= 1
        if now.plan is None:
            raise
        self._move_again(now.plan, now.block[now.step - now.block_start])
        now.step += 1

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

    def _look_again(self) -> None:
        """Have buffers copied that have come to hold what cannot be averaged."""
        if self._now.plan is not None and self._now.plan.has_buffers and not OPEN:
            self._now.forget_plan()
            self._current_plan()

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
        now, rules = self._now, self._rules
        if now.lent is not None:
            raise RuntimeError("average_parameters() is already open: leave its with block first")
        self._tell_attributes()
        plan = now.plan = self._make_plan()
        online = unwrapped(self.model)
        lent = now.lent = Exchange(online, plan.pairs, rules.left_out, swap)
        now.move = None
        free = self._free_names()
        changed: list[str] = []
        with Lending(online, rules.left_out, unwatched=lent.loans) as lending:
            try:
                lent.put_in()
                lending.begin()
                yield self.model
            finally:
                lending.look()
                now.lent = None
                free |= copied_buffers(online, rules.policy)  # which may have come inside
                changed = lent.take_out(free)
        if changed:
            raise RuntimeError(
                f"{listed(changed)} were written inside average_parameters(swap=True), and so the averages of them: "
                "leave weights alone there, or let it make a copy"
            )

    def copy_to(self, module: nn.Module) -> None:
        """Copy the averages into another module that has the same tensors by name.

        Raises:
            RuntimeError: if names or shapes differ.
            TypeError, ValueError: if it is no module, or has no values yet.
        """
        check_takes_values("module", module, ties(self.ema_model).keys())
        target = unwrapped(module)
        self._tell_attributes()
        self._look_again()
        follow_buffers(target, self.ema_model, self._rules.copied, new=False)
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
            if not self._rules.is_ignored(name):
                _move(kept, source, 0.0 if self._rules.is_copied(name, kept) else decay)

    def restore_ema_model_device(self) -> None:
        """Bring the shadow, which may have been moved elsewhere for a while, back to the training model's device."""
        self.ema_model.to(next(iter(ties(unwrapped(self.model)).values())).tensor.device)
        self._now.forget_plan()

    def get_params_iter(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of a module, of those that are floating-point or complex in the shadow."""
        known = {name for name, parameter in self.ema_model.named_parameters() if is_averaged(parameter)}
        return ((name, tensor) for name, tensor in unwrapped(model).named_parameters() if plain_name(name) in known)

    def get_buffers_iter(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Names and buffers of a module, of those that are floating-point or complex in the shadow."""
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

    @torch.no_grad()
    def forward_eval(self, *args: Any, **kwargs: Any) -> Any:
        """Call the shadow model, which is in eval mode always, without gradients."""
        return self(*args, **kwargs)

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

    def _current_plan(self) -> Plan:
        if OPEN:
            why = "a move inside average_parameters() would average the average, or be undone; make it outside"
            check_not_lent(unwrapped(self.model), why)
        self._finish()
        now = self._now
        if now.plan is None or now.plan.is_stale():
            now.forget_plan()
            now.plan = self._make_plan()
        return now.plan


def _move(kept: Tensor, source: Tensor, decay: float) -> None:
    value = laid_out(source, kept)
    if decay:
        kept.lerp_(value.to(kept.device, kept.dtype), 1.0 - decay)
    else:
        kept.copy_(value)
