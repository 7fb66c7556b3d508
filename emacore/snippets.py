"""The same schedule as code for other libraries: by a rule of their own, or else with decays from emacore.

Each piece of code is complete but for three names of the reader's own: ``model``, ``batches`` and ``train_on(batch)``,
one optimiser step.  The tests run every one of them and compare the averages.
"""

from __future__ import annotations

from typing import NamedTuple

from emacore.averaging.code import to_code
from emacore.averaging.families import (
    BiasCorrected,
    Constant,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
)
from emacore.averaging.schedules import Schedule, changed_settings
from emacore.formatting import number


class Snippet(NamedTuple):
    """``note`` says what differs from the schedule, and where the decays come from."""

    library: str
    code: str
    note: str = ""


_FIRST_MOVE = "Its first move after the warm-up averages with the rule's decay; the article's class copies there."
_FIRST_UPDATE = "It averages its first update with decay 2/11 instead of copying it."
#: A cap that never acts, where the library takes 1 for something else.
_NEVER = 0.9999999999


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


def _loop(body: str, *, start: int = 0, every: int = 1) -> str:
    """The reader's training loop around ``body``, run from step ``start`` on at multiples of ``every``."""
    conditions = [f"step >= {start}"] * (start > 0) + [f"step % {every} == 0"] * (every > 1)
    lines = ["for step, batch in enumerate(batches):", "    train_on(batch)"]
    if conditions:
        lines += [f"    if {' and '.join(conditions)}:", f"        {body}"]
    else:
        lines.append(f"    {body}")
    return "\n".join(lines)


def _given(schedule: Schedule) -> str:
    """The schedule itself, for libraries that take the decay of each step from it."""
    return f"{_imported(schedule)}\n\nschedule = {to_code(schedule)}\n"


def _imported(schedule: Schedule, *names: str) -> str:
    """The lines that import the schedule's family, a person's own from where it is, and further names of emacore."""
    family = type(schedule)
    if family.__module__ == "emacore.averaging.families":
        return f"from emacore import {', '.join([*names, family.__name__])}"
    own = f"from {family.__module__} import {family.__name__}"
    return f"from emacore import {', '.join(names)}\n{own}" if names else own


def _no_rule(library: str, how: str) -> str:
    return f"{library} has no such rule of its own; {how} takes the decay that emacore gives for each step."


def _emacore(schedule: Schedule) -> Snippet:
    if isinstance(schedule, InversePower):
        settings = "".join(f", {name}={value!r}" for name, value in changed_settings(schedule).items())
        head = f"from emacore import EMA\n\nema = EMA(model{settings})"
    else:
        head = f"{_imported(schedule, 'EMA')}\n\nema = EMA(model, schedule={to_code(schedule)})"
    return Snippet("emacore", f"{head}\n{_loop('ema.update()')}\n# ema.ema_model is the averaged model")


def _ema_pytorch(schedule: Schedule) -> Snippet:
    every, after, note = schedule.update_every, schedule.start, ""
    loop = _loop("ema.update()")
    match schedule:
        case InversePower():
            after = schedule.update_after_step
            beta = schedule.beta if schedule.beta < 1 else _NEVER
            rule = (
                f"beta={beta!r}, inv_gamma={schedule.inv_gamma!r}, power={schedule.power!r}, "
                f"min_value={min(schedule.min_value, beta)!r}"
            )
            note = f"{_FIRST_MOVE} (Version 0.2 is the article's class.)"
            if schedule.beta == 1:
                note += " beta = 1 would freeze the average there, so it is a little less."
        case Constant():
            rule = f"beta={schedule.beta!r}, min_value={schedule.beta!r}"
        case RationalWarmup():
            # (1 + n) / (10 + n) is 1 - 1 / (1 + e / 9) with e = n + 1, and its first call copies in any case.
            rule = f"beta={schedule.beta if schedule.beta < 1 else _NEVER!r}, inv_gamma={9 * every}, power=1"
            after, loop = -2 * every, _loop("ema.update()", start=schedule.start)
            note = "Its rule with inv_gamma 9 and power 1, two moves ahead, is this one."
        case UniformAverage():
            rule = f"beta={_NEVER!r}, inv_gamma={every}, power=1"
            note = "Its rule counts steps; inv_gamma = update_every makes it count moves."
        case PowerFunction():
            return _karras(schedule)
        case _:
            return Snippet(
                "ema-pytorch",
                f"from ema_pytorch import EMA\n{_given(schedule)}ema = EMA(model)\n"
                f"{_loop('ema.update_moving_average(ema.ema_model, model, float(schedule.at(step)))')}\n"
                "# ema.ema_model is the averaged model",
                _no_rule("ema-pytorch", "update_moving_average"),
            )
    return Snippet(
        "ema-pytorch",
        f"from ema_pytorch import EMA\n\nema = EMA(\n    model, {rule},\n"
        f"    update_after_step={after}, update_every={every},\n)\n"
        f"{loop}\n# ema.ema_model is the averaged model",
        note,
    )


def _karras(schedule: PowerFunction) -> Snippet:
    """ema-pytorch's power function: ``(1 - 1 / (c + 2)) ** (gamma + 1)`` at its call c = 0, 1, 2, ...

    It counts raw calls, so over the k calls from one move to the next the exponent has to act k times: k (gamma + 1).
    """
    every, exponent = schedule.update_every, schedule.exponent
    note = "Its n is one more than here, so its first moves keep more of the old average, and its last ones agree."
    if every > 1:
        note += (
            f" It counts raw calls, not moves: its gamma is {every} (gamma + 1) - 1, of the {number(exponent, 6)} here."
        )
    note += " PostHocEMA keeps snapshots of two or more such averages and makes those of other widths from them."
    loop = _loop("ema.update()", start=schedule.start)
    return Snippet(
        "ema-pytorch",
        f"from ema_pytorch import KarrasEMA\n\nema = KarrasEMA(model, gamma={every * (exponent + 1) - 1!r}, "
        f"update_every={every})\n{loop}\n# ema.ema_model is the averaged model",
        note,
    )


def _timm(schedule: Schedule) -> Snippet:
    every, after, note = schedule.update_every, schedule.start, ""
    begin = 0
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
        case RationalWarmup():
            # (1 + n) / (10 + n) is 1 - 1 / (1 + e / 9) with e = n + 1.
            rule = f"decay={schedule.beta!r}, use_warmup=True, warmup_gamma={9 * every}, warmup_power=1"
            after, begin = schedule.start - 2 * every, schedule.start
            note = f"Its warm-up of gamma 9 and power 1, two moves ahead, is this one. {_FIRST_UPDATE}"
        case UniformAverage():
            rule = f"decay=1.0, use_warmup=True, warmup_gamma={every}, warmup_power=1"
        case _:
            return Snippet(
                "timm",
                f"from timm.utils import ModelEmaV3\n{_given(schedule)}ema = ModelEmaV3(model)\n"
                f"{_loop('ema.apply_update_(model, float(schedule.at(step)))')}\n# ema.module is the averaged model",
                _no_rule("timm", "apply_update_"),
            )
    loop = _loop("ema.update(model, step=step + 1)", start=begin, every=every)
    return Snippet(
        "timm",
        f"from timm.utils import ModelEmaV3\n\nema = ModelEmaV3(\n    model, {rule}, update_after_step={after},\n)\n"
        f"{loop}\n# ema.module is the averaged model",
        note,
    )


def _diffusers(schedule: Schedule) -> Snippet:
    # EMAModel counts its own calls, so steps are divided by update_every.
    every = schedule.update_every
    note = "" if every == 1 else "It counts its own calls, so update_after_step and inv_gamma are in moves."
    tail = "# ema.copy_to(model.parameters()) puts the averages into a model"
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
            note = f"{note} {_FIRST_UPDATE}".strip()
        case UniformAverage():
            rule = "decay=1.0, use_ema_warmup=True, inv_gamma=1.0, power=1.0"
        case _:
            return Snippet(
                "diffusers",
                f"from diffusers.training_utils import EMAModel\n{_given(schedule)}\n"
                "class ScheduledEMA(EMAModel):\n    def get_decay(self, optimization_step):  # counted from 1\n"
                "        return float(schedule.at(optimization_step - 1))\n\n\n"
                f"ema = ScheduledEMA(model.parameters())\n{_loop('ema.step(model.parameters())')}\n{tail}",
                _no_rule("diffusers", "get_decay"),
            )
    return Snippet(
        "diffusers",
        "from diffusers.training_utils import EMAModel\n\nema = EMAModel(\n"
        f"    model.parameters(), {rule}, update_after_step={after!r},\n)\n"
        f"{_loop('ema.step(model.parameters())', every=every)}\n{tail}",
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
            loop = _loop("averaged.update_parameters(model)", start=schedule.start, every=schedule.update_every)
            note = ""
        case UniformAverage():
            code = f"{head}\n\naveraged = AveragedModel(model)\n"
            loop = _loop("averaged.update_parameters(model)", start=schedule.start, every=schedule.update_every)
            note = ""
        case _:
            code = (
                f"{_imported(schedule, 'averaging_function')}\n{head}\n\n"
                f"schedule = {to_code(schedule)}\n"
                "averaged = AveragedModel(model, avg_fn=averaging_function(schedule))\n"
            )
            loop = _loop("averaged.update_parameters(model)")
            note = "torch has no such rule of its own; emacore's function gives it one."
    return Snippet("torch AveragedModel", f"{code}{loop}\n{tail}", note)


def _optax(schedule: Schedule) -> Snippet:
    note = "train_on(batch) returns the new parameters there."
    move = "average = params if average is None else optax.incremental_update(params, average, step_size="
    start, every = schedule.start, schedule.update_every
    match schedule:
        case Constant():
            head = "import optax\n\naverage = None\n"
            body = f"{move}{1 - schedule.beta!r})"
        case BiasCorrected() if schedule.beta < 1:
            head = f"import optax\n\nema = optax.ema(decay={schedule.beta!r}, debias=True)\nstate = None\n"
            body = "average, state = ema.update(params, ema.init(params) if state is None else state)"
        case _:
            head = f"import optax\n{_given(schedule)}average = None\n"
            body = f"{move}1 - float(schedule.at(step)))"
            start, every = 0, 1
            note = f"{_no_rule('optax', 'incremental_update')} {note}"
    loop = _loop(body, start=start, every=every).replace("train_on(batch)", "params = train_on(batch)")
    return Snippet("optax", head + loop, note)
