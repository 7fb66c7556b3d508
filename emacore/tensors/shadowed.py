"""A module that keeps a model's shadow: both in one module tree, and their state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from emacore.averaging.schedules import Schedule, check_schedule
from emacore.checks import check_whole
from emacore.tensors.attributes import Attributes
from emacore.tensors.buffers import Policy, marks
from emacore.tensors.calls import Calls
from emacore.tensors.chosen import left_out_names, link, tell_late, unlink
from emacore.tensors.lending import OPEN, check_not_lent
from emacore.tensors.pairing import (
    accumulator_dtype,
    check_apart,
    check_has_values,
    distinct,
    ties,
    unwrapped,
)
from emacore.tensors.plan import Plan, follow_writes, planned
from emacore.tensors.rules import Rules
from emacore.tensors.shadow import built, copy_of
from emacore.tensors.sharded import alike, is_fully_sharded, laid_out
from emacore.tensors.states import (
    add_left_out,
    check_same_schedule,
    drop_left_out,
    match,
    put_accumulators,
    taken_accumulators,
)

_MODULES = frozenset({"model", "online_model", "ema_model"})
_FIXED = frozenset(
    {"accumulator_dtype", "buffers", "device", "include_online_model", "keep_half", "names", "trainable_only"}
)


class Shadowed(nn.Module):
    """Keeps a model and its shadow, and knows where their average stands; what moves it is its subclass.

    Args:
        model: The module being trained.
        ema_model: Its shadow, or a function that builds it; by default a deep copy.
        schedule: The schedule of the average.
        include_online_model: Whether ``model`` belongs to the module tree.
        chosen: Of which tensors averages are kept: ``names`` and ``trainable_only``.
        device: Where they are kept.
        buffers: Which buffers are averaged.
        accumulator_dtype: The real dtype in which averages are kept.
        keep_half: Whether a shadow in half precision is kept beside its averages.
        strict_schedule: Whether a state that was saved under another schedule is refused.
    """

    def __init__(
        self,
        model: nn.Module,
        ema_model: nn.Module | Callable[[], nn.Module] | None,
        schedule: Schedule,
        *,
        include_online_model: bool,
        chosen: tuple[Collection[str] | None, bool],
        device: torch.device | str | None,
        buffers: Policy,
        accumulator_dtype: torch.dtype | None,
        keep_half: bool,
        strict_schedule: bool,
    ) -> None:
        super().__init__()
        if accumulator_dtype is not None and not _is_wide(accumulator_dtype):
            raise ValueError(
                "accumulator_dtype must be a real floating-point dtype of at least 16 bits, such as torch.float32, got "
                f"{accumulator_dtype!r}"
            )
        # An object of its own, because nn.Module's attribute assignment costs as much as averaging a tensor.
        self._now = Calls()
        self.schedule = schedule
        self.accumulator_dtype = accumulator_dtype
        self.include_online_model = include_online_model
        self.keep_half = keep_half
        self.strict_schedule = strict_schedule
        check_has_values("model", model)
        if device is not None:
            _check_device(device)
        online = unwrapped(model)
        if not ties(online):
            raise ValueError(
                f"model: {type(online).__name__} has no parameters and no buffers, so that there is nothing "
                "to average; build its layers first (one batch through it may do)"
            )
        if include_online_model:
            self.online_model = model
        else:
            self._hidden_model = [model]  # a list keeps it out of the module tree
        names, self._trainable_only = chosen
        left_out = left_out_names(online, names, self._trainable_only)
        if ema_model is None:
            ema_model = copy_of(online, left_out, device)
        else:
            if not isinstance(ema_model, nn.Module):
                ema_model = built(ema_model)
            check_has_values("ema_model", ema_model)
            check_apart("ema_model", ema_model, online)
            if device is not None:
                ema_model.to(device)
        self.ema_model: nn.Module = ema_model.requires_grad_(False).eval()
        self._rules = Rules(buffers, left_out, marks(online) - left_out)
        self._told: frozenset[str] = frozenset()
        self._accumulators: dict[str, Tensor] = {}
        self._now.attributes = Attributes(online)

    @property
    def model(self) -> nn.Module:
        """The training model; another one with the same tensors may take its place."""
        return self.online_model if self.include_online_model else self._hidden_model[0]

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module keeps modules before any property is asked.
        if name not in _MODULES | _FIXED or not hasattr(self, "_told"):
            super().__setattr__(name, value)
            return
        if name in _FIXED:
            raise AttributeError(
                f"{name} is chosen when the average is built, and would have no effect by now: build another one, and "
                "load the state of this one into it"
            )
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
        check_schedule("schedule", schedule)
        self._schedule = schedule
        self._now.forget_decays()

    @property
    def step(self) -> Tensor:
        """How many calls of :meth:`update` there have been: int64, shape (1,).  Assign to it to change it."""
        return torch.tensor([self._now.step])

    @step.setter
    def step(self, value: int | Tensor) -> None:
        step = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        check_whole("step", step, 0)
        self._now.step = int(step)
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
    def nonfinite_calls(self) -> int:
        """How many calls ``on_nonfinite="skip"`` has skipped."""
        return self._now.nonfinite_calls

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """The wrapper's parts without those of the training model, whose statistics are not for others to reset."""
        theirs = set(map(id, self.model.modules()))
        return (part for part in super().modules(remove_duplicate) if id(part) not in theirs)

    def train(self, mode: bool = True) -> Self:
        """Set the wrapper's own flag only: the shadow stays in eval mode, the training model in its own."""
        self.training = mode
        return self

    @torch.inference_mode(False)
    def _make_plan(self) -> Plan:
        self._finish()
        online = unwrapped(self.model)
        check_has_values("model", online)
        self._link(online)
        accumulators, wanted = self._accumulators, self.accumulator_dtype
        plan, self._accumulators = planned(self.ema_model, online, self._rules, accumulators, wanted, self.keep_half)
        return plan

    def _note_write(self, call: str) -> None:
        """Have the next calls of :meth:`update` look whether all processes have written into the model."""
        self._now.writes.note(self.model, call)
        if self._now.writes.waiting:
            self._now.move = None  # or else they look at nothing

    def _weights_now(self) -> dict[str, Tensor]:
        return distinct(unwrapped(self.model))

    def _free_names(self) -> set[str]:
        """What may differ in model and shadow."""
        return self._rules.free(self.ema_model, unwrapped(self.model))

    def _finish(self) -> None:
        """Count the move whose weights are on their way to another device."""
        if (plan := self._now.plan) is not None and plan.on_its_way is not None:
            plan.finish()

    def __getstate__(self) -> dict[str, Any]:
        self._finish()
        return self.__dict__.copy()

    def _link(self, online: nn.Module) -> None:
        link(self.ema_model, online, self._rules.left_out)
        if self._trainable_only:
            self._told = tell_late(online, self._rules.left_out, self._told, "no average of them is kept")

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._finish()
        self._follow_writes()
        # What the shadow has of the model is the model's to move; FSDP2 wants to see all that it shards.
        left_out = frozenset() if is_fully_sharded(self.ema_model) else self._rules.left_out
        taken = unlink(self.ema_model, left_out)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for table, leaf, tensor in taken:
            table[leaf] = tensor
        link(self.ema_model, unwrapped(self.model), self._rules.left_out)
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
        """Load a state, as any module does.

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
        """The state, as any module has it; inside :meth:`average_parameters` the model's training weights are in it, as
        copies."""
        self._finish()
        start = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        if (lent := self._now.lent) is not None and self.include_online_model:
            with lent.undone(self._free_names()):
                state = super().state_dict(*args, **kwargs)
                weights = start + "online_model."
                state.update({k: v.clone() for k, v in state.items() if k.startswith(weights) and torch.is_tensor(v)})
        else:
            if OPEN and self.include_online_model:
                why = "state_dict() inside another's average_parameters() would store that average as the weights"
                check_not_lent(unwrapped(self.model), f"{why}; call it outside")
            state = super().state_dict(*args, **kwargs)
        drop_left_out(state, start + "ema_model.", self._rules.left_out)
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
        put_accumulators(destination, prefix, self._accumulators)

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
        if self._now.lent is not None or (OPEN and self.include_online_model):
            why = "what is loaded inside average_parameters() would be undone at its end; load it outside"
            check_not_lent(unwrapped(self.model), why)
        ours = self.schedule.to_dict()
        if self.strict_schedule:
            check_same_schedule(ours, local_metadata.get("schedule", ours))
        self._now.nonfinite_calls = local_metadata.get("nonfinite_calls", 0)
        for name in ("step", "initted"):
            if prefix + name in state_dict:
                setattr(self, name, state_dict.pop(prefix + name).reshape(-1)[0])
            else:
                missing_keys.append(prefix + name)
        for child in ("online_model", "ema_model"):
            if child in self._modules:
                match(state_dict, f"{prefix}{child}.", getattr(self, child))
        add_left_out(state_dict, f"{prefix}ema_model.", self.ema_model, self._rules.left_out)
        self._accumulators = taken_accumulators(
            state_dict, prefix, self.ema_model, lambda t: accumulator_dtype(t.dtype, self.accumulator_dtype)
        )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self._now.forget_plan()


def _is_wide(dtype: object) -> bool:
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point and dtype.itemsize > 1


def _check_device(device: torch.device | str) -> None:
    """Raise ``ValueError`` unless values can be kept there."""
    try:
        tensor = torch.empty(0, device=device)
    except Exception as error:  # of many kinds: a word that is none, a library without it, a machine without it
        raise ValueError(f"device: nothing can be kept on {device!r} ({error})") from error
    if tensor.is_meta:
        raise ValueError("device: the meta device keeps no values")
