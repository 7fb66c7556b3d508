"""The same schedule as code for other libraries, where it exists there.

Each piece of code is complete but for three names of the reader's own: ``model``, ``batches`` and ``train_on(batch)``,
one optimiser step.  The tests run every one of them and compare the averages.
"""

from __future__ import annotations

from typing import NamedTuple

from emacore.averaging.code import to_code
from emacore.averaging.schedules import (
    BiasCorrected,
    Constant,
    InversePower,
    PowerFunction,
    RationalWarmup,
    Schedule,
    UniformAverage,
    changed_settings,
)


class Snippet(NamedTuple):
    """``code`` is ``None`` where the library cannot do it; ``note`` then says why, or else what differs."""

    library: str
    code: str | None
    note: str = ""


_FIRST_MOVE = "Its first move after the warm-up averages with the rule's decay; the article's class copies there."
_NO_RULE = "Not possible there: it has no such rule."


def snippets(schedule: Schedule) -> list[Snippet]:
    """The schedule in emacore, ema-pytorch, timm, diffusers, torch and optax."""
    return [
        _emacore(schedule),
        _ema_pytorch(schedule),
        _timm(schedule),
        _diffusers(schedule),
        _torch(schedule),
        _optax(schedule),
    ]


def _loop(body: str, schedule: Schedule | None = None, *, from_start: bool = False) -> str:
    """The reader's training loop around ``body``, on the calls at which ``schedule`` acts."""
    conditions = []
    if schedule is not None and from_start and schedule.start > 0:
        conditions.append(f"step >= {schedule.start}")
    if schedule is not None and schedule.update_every > 1:
        conditions.append(f"step % {schedule.update_every} == 0")
    lines = ["for step, batch in enumerate(batches):", "    train_on(batch)"]
    if conditions:
        lines += [f"    if {' and '.join(conditions)}:", f"        {body}"]
    else:
        lines.append(f"    {body}")
    return "\n".join(lines)


def _emacore(schedule: Schedule) -> Snippet:
    if isinstance(schedule, InversePower):
        settings = "".join(f", {name}={value!r}" for name, value in changed_settings(schedule).items())
        head = f"from emacore import EMA\n\nema = EMA(model{settings})"
    else:
        head = (
            f"from emacore import EMA\nfrom emacore.averaging.schedules import {type(schedule).__name__}\n\n"
            f"ema = EMA(model, schedule={to_code(schedule)})"
        )
    return Snippet("emacore", f"{head}\n{_loop('ema.update()')}\n# ema.ema_model is the averaged model")


def _ema_pytorch(schedule: Schedule) -> Snippet:
    note = ""
    after = schedule.start
    match schedule:
        case InversePower():
            if schedule.beta == 1:
                return Snippet("ema-pytorch", None, "Not possible there: beta = 1 freezes the average.")
            after = schedule.update_after_step
            rule = (
                f"beta={schedule.beta!r}, inv_gamma={schedule.inv_gamma!r}, power={schedule.power!r}, "
                f"min_value={min(schedule.min_value, schedule.beta)!r}"
            )
            note = f"{_FIRST_MOVE} (Version 0.2 is the article's class.)"
        case Constant() if schedule.beta < 1:
            rule = f"beta={schedule.beta!r}, min_value={schedule.beta!r}"
        case UniformAverage():
            rule = f"beta=0.9999999999, inv_gamma={schedule.update_every}, power=1"
            note = "Its rule counts steps; inv_gamma = update_every makes it count moves."
        case _:
            return Snippet("ema-pytorch", None, _NO_RULE)
    return Snippet(
        "ema-pytorch",
        f"from ema_pytorch import EMA\n\nema = EMA(\n    model, {rule},\n"
        f"    update_after_step={after}, update_every={schedule.update_every},\n)\n"
        f"{_loop('ema.update()')}\n# ema.ema_model is the averaged model",
        note,
    )


def _timm(schedule: Schedule) -> Snippet:
    note = ""
    after = schedule.start
    match schedule:
        case InversePower():
            after = schedule.update_after_step
            rule = (
                f"decay={schedule.beta!r}, min_decay={min(schedule.min_value, schedule.beta)!r}, use_warmup=True,\n"
                f"    warmup_gamma={schedule.inv_gamma!r}, warmup_power={schedule.power!r}"
            )
            note = _FIRST_MOVE
        case Constant():
            rule = f"decay={schedule.beta!r}"
        case UniformAverage():
            rule = f"decay=1.0, use_warmup=True, warmup_gamma={schedule.update_every}, warmup_power=1"
        case _:
            return Snippet("timm", None, _NO_RULE)
    return Snippet(
        "timm",
        f"from timm.utils import ModelEmaV3\n\nema = ModelEmaV3(\n    model, {rule}, update_after_step={after},\n)\n"
        f"{_loop('ema.update(model, step=step + 1)', schedule)}\n# ema.module is the averaged model",
        note,
    )


def _diffusers(schedule: Schedule) -> Snippet:
    # EMAModel counts its own calls, so steps are divided by update_every.
    every = schedule.update_every
    note = "" if every == 1 else "It counts its own calls, so update_after_step and inv_gamma are in moves."
    after: float = schedule.start // every
    match schedule:
        case InversePower():
            after = schedule.update_after_step if every == 1 else schedule.update_after_step / every
            rule = (
                f"decay={schedule.beta!r}, min_decay={min(schedule.min_value, schedule.beta)!r}, "
                f"use_ema_warmup=True,\n    inv_gamma={schedule.inv_gamma / every!r}, power={schedule.power!r}"
            )
            note = f"{note} {_FIRST_MOVE}".strip()
        case Constant():
            rule = f"decay={schedule.beta!r}, min_decay={schedule.beta!r}"
        case RationalWarmup():
            rule = f"decay={schedule.beta!r}"
            after -= 1
            note = f"{note} It averages its first update with decay 2/11 instead of copying it.".strip()
        case UniformAverage():
            rule = "decay=1.0, use_ema_warmup=True, inv_gamma=1.0, power=1.0"
        case _:
            return Snippet("diffusers", None, _NO_RULE)
    return Snippet(
        "diffusers",
        "from diffusers.training_utils import EMAModel\n\nema = EMAModel(\n"
        f"    model.parameters(), {rule}, update_after_step={after!r},\n)\n"
        f"{_loop('ema.step(model.parameters())', schedule)}\n"
        "# ema.copy_to(model.parameters()) puts the averages into a model",
        note,
    )


def _torch(schedule: Schedule) -> Snippet:
    head = "from torch.optim.swa_utils import AveragedModel"
    tail = "# averaged.module is the averaged model"
    match schedule:
        case Constant():
            code = (
                f"{head}, get_ema_multi_avg_fn\n\n"
                f"averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn({schedule.beta!r}))\n"
            )
            loop = _loop("averaged.update_parameters(model)", schedule, from_start=True)
            note = ""
        case UniformAverage():
            code = f"{head}\n\naveraged = AveragedModel(model)\n"
            loop = _loop("averaged.update_parameters(model)", schedule, from_start=True)
            note = ""
        case _:
            code = (
                f"from emacore import averaging_function\n"
                f"from emacore.averaging.schedules import {type(schedule).__name__}\n{head}\n\n"
                f"schedule = {to_code(schedule)}\n"
                "averaged = AveragedModel(model, avg_fn=averaging_function(schedule))\n"
            )
            loop = _loop("averaged.update_parameters(model)")
            note = "torch has no such rule of its own; emacore's function gives it one."
    return Snippet("torch AveragedModel", f"{code}{loop}\n{tail}", note)


def _optax(schedule: Schedule) -> Snippet:
    note = "train_on(batch) returns the new parameters there."
    match schedule:
        case Constant():
            body = (
                "average = params if average is None else "
                f"optax.incremental_update(params, average, step_size={1 - schedule.beta!r})"
            )
            head = "import optax\n\naverage = None\n"
        case BiasCorrected() if schedule.beta < 1:
            head = f"import optax\n\nema = optax.ema(decay={schedule.beta!r}, debias=True)\nstate = None\n"
            body = "average, state = ema.update(params, ema.init(params) if state is None else state)"
        case PowerFunction() | InversePower() | RationalWarmup() | UniformAverage():
            return Snippet("optax", None, f"{_NO_RULE} incremental_update takes a step size of one's own at each step.")
        case _:
            return Snippet("optax", None, _NO_RULE)
    loop = _loop(body, schedule, from_start=True).replace("train_on(batch)", "params = train_on(batch)")
    return Snippet("optax", head + loop, note)
