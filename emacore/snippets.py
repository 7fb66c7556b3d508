"""A schedule as code for other libraries: by a rule of their own, or else with decays from emacore.

Each piece of code is complete but for three names of the reader's own: ``model``, ``batches`` and ``train_on(batch)``,
one optimiser step; a note says which others.  Every argument that matters is written out, so that nothing rests on a
library's defaults.  The tests run every one of them and compare the averages, but for those whose note says that it was
read only.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import NamedTuple

from emacore.averaging.families import (
    BiasCorrected,
    Constant,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
)
from emacore.averaging.schedules import Schedule
from emacore.formatting import number


class Snippet(NamedTuple):
    """``note`` says what differs from the schedule, and where the decays come from."""

    library: str
    code: str
    note: str = ""


_FIRST_MOVE = "Its first move after the warm-up averages with the rule's decay; the article's class copies there."
_FIRST_UPDATE = "It averages its first update with decay 2/11 instead of copying it."
#: Of bias corrections in single precision: up to this decay their memory is right within 0.03 %.
_SINGLE = 0.9999
#: A cap that never acts, where the library takes 1 for something else.
_NEVER = 0.9999999999


def snippets(schedule: Schedule, num_steps: int | None = None) -> list[Snippet]:
    """The schedule in emacore and in other people's libraries, one piece of code for each.

    Args:
        num_steps: Of the run, if known: how often snapshots are kept, where they are.
    """
    ours = [_emacore(schedule), _ema_pytorch(schedule)]
    if isinstance(schedule, PowerFunction):
        ours.append(_post_hoc(schedule, num_steps))
    return [
        *ours,
        _timm(schedule),
        _diffusers(schedule),
        _torch(schedule),
        _lightning(schedule),
        _transformers(schedule),
        _accelerate(schedule),
        _composer(schedule),
        _torchtitan(schedule),
        _optax(schedule),
        _keras(schedule),
    ]


def _waiting(start: int) -> str:
    """What is to be said of an average that is not asked for up to the schedule's start, where ours is a copy."""
    return f"Up to step {start:,} it holds the weights of before the training, not a copy of the current ones."


def _written(value: float) -> str:
    """A setting as code, with the six digits that matter: of a decay near 1 those by which it differs from 1."""
    if not isinstance(value, float) or not math.isfinite(value):
        return repr(value)
    if 0.9 < value < 1:
        return repr(round(value, 5 - math.floor(math.log10(1 - value))))
    return repr(float(f"{value:.6g}"))


def _settings(schedule: Schedule, *, timing: bool = True) -> str:
    """All settings of a schedule as arguments, its own first; those that are not given are left out.

    Args:
        timing: Whether to write a start at 0 and an update at every step, too.
    """
    ordered = sorted(fields(schedule), key=lambda f: bool(f.kw_only))
    given = {f.name: getattr(schedule, f.name) for f in ordered}
    plain = {"update_after_step": 0, "update_every": 1}
    return ", ".join(
        f"{name}={_written(value)}"
        for name, value in given.items()
        if value is not None and (timing or plain.get(name) != value)
    )


def explicit_code(schedule: Schedule, *, timing: bool = True) -> str:
    """The schedule as a Python expression with every setting, in the digits that matter.

    Args:
        timing: Whether to write a start at 0 and an update at every step, too.
    """
    return f"{type(schedule).__name__}({_settings(schedule, timing=timing)})"


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
    return f"{_imported(schedule)}\n\nschedule = {explicit_code(schedule)}\n"


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
        head = f"from emacore import EMA\n\nema = EMA(\n    model, {_settings(schedule)},\n)"
    else:
        head = f"{_imported(schedule, 'EMA')}\n\nema = EMA(model, schedule={explicit_code(schedule)})"
    return Snippet("emacore", f"{head}\n{_loop('ema.update()')}\n# ema.ema_model is the averaged model")


def _ema_pytorch(schedule: Schedule) -> Snippet:
    every, after, note = schedule.update_every, schedule.start, ""
    loop = _loop("ema.update()")
    match schedule:
        case InversePower():
            after = schedule.update_after_step
            beta = schedule.beta if schedule.beta < 1 else _NEVER
            rule = (
                f"beta={_written(beta)}, inv_gamma={_written(schedule.inv_gamma)}, power={_written(schedule.power)}, "
                f"min_value={_written(min(schedule.min_value, beta))}"
            )
            note = f"{_FIRST_MOVE} (Version 0.2 is the article's class.)"
            if schedule.beta == 1:
                note += " beta = 1 would freeze the average there, so it is a little less."
        case Constant():
            same = _written(schedule.beta)
            rule = f"beta={same}, min_value={same}, inv_gamma=1.0, power=1.0"
            note = "min_value = beta leaves its warm-up nothing to do."
        case RationalWarmup():
            # (1 + n) / (10 + n) is 1 - 1 / (1 + e / 9) with e = n + 1, and its first call copies in any case.
            beta = schedule.beta if schedule.beta < 1 else _NEVER
            rule = f"beta={_written(beta)}, inv_gamma={9 * every}, power=1, min_value=0.0"
            after, loop = -2 * every, _loop("ema.update()", start=schedule.start)
            note = "Its rule with inv_gamma 9 and power 1, two moves ahead, is this one."
            if schedule.start:
                note += f" {_waiting(schedule.start)}"
        case UniformAverage():
            rule = f"beta={_NEVER!r}, inv_gamma={every}, power=1, min_value=0.0"
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
    if schedule.start:
        note += f" {_waiting(schedule.start)}"
    loop = _loop("ema.update()", start=schedule.start)
    return Snippet(
        "ema-pytorch",
        f"from ema_pytorch import KarrasEMA\n\nema = KarrasEMA(model, gamma={_written(every * (exponent + 1) - 1)}, "
        f"update_every={every})\n{loop}\n# ema.ema_model is the averaged model",
        note,
    )


def _post_hoc(schedule: PowerFunction, num_steps: int | None) -> Snippet:
    """ema-pytorch's averages of two widths with snapshots, from which that of the schedule is made afterwards."""
    every, start = schedule.update_every, schedule.start
    # Its steps are its calls: one call a move, so that its widths are what they say.
    calls = ((num_steps or 100_000) - start) // every
    apart = max(1, round(float(f"{calls / 100:.1g}")))
    loop = _loop("ema.update()", start=start, every=every)
    width = _written(schedule.width)
    return Snippet(
        "ema-pytorch PostHocEMA",
        "import torch\nfrom ema_pytorch import PostHocEMA\n\nema = PostHocEMA(\n    model, sigma_rels=(0.05, 0.1), "
        f"update_every=1, checkpoint_every_num_steps={apart},\n"
        '    checkpoint_folder="./post-hoc-ema-checkpoints", checkpoint_dtype=torch.float32,\n)\n'
        f"{loop}\nema.checkpoint()\naveraged = ema.synthesize_ema_model(sigma_rel={width})\n"
        "# averaged.ema_model is the averaged model; any other width can be made of the same snapshots",
        f"It keeps two averages, of widths 5 and 10 % (EDM2's), and a snapshot of both every "
        f"{'update' if apart == 1 else f'{apart:,} updates'}. What it "
        "makes of them is near the width that is asked for, the nearer the more snapshots there are.",
    )


def _timm(schedule: Schedule) -> Snippet:
    every, after, note = schedule.update_every, schedule.start, ""
    begin = 0
    match schedule:
        case InversePower():
            after = schedule.update_after_step
            rule = (
                f"decay={_written(schedule.beta)}, min_decay={_written(min(schedule.min_value, schedule.beta))}, "
                f"use_warmup=True,\n    warmup_gamma={_written(schedule.inv_gamma)}, "
                f"warmup_power={_written(schedule.power)}"
            )
            note = _FIRST_MOVE
        case Constant():
            rule = f"decay={_written(schedule.beta)}, min_decay=0.0, use_warmup=False"
        case RationalWarmup():
            # (1 + n) / (10 + n) is 1 - 1 / (1 + e / 9) with e = n + 1.
            rule = (
                f"decay={_written(schedule.beta)}, min_decay=0.0, use_warmup=True, warmup_gamma={9 * every}, "
                "warmup_power=1"
            )
            after, begin = schedule.start - 2 * every, schedule.start
            note = f"Its warm-up of gamma 9 and power 1, two moves ahead, is this one. {_FIRST_UPDATE}"
            if schedule.start:
                note += f" {_waiting(schedule.start)}"
        case UniformAverage():
            rule = f"decay=1.0, min_decay=0.0, use_warmup=True, warmup_gamma={every}, warmup_power=1"
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
                f"decay={_written(schedule.beta)}, min_decay={_written(min(schedule.min_value, schedule.beta))}, "
                f"use_ema_warmup=True,\n    inv_gamma={_written(schedule.inv_gamma / every)}, "
                f"power={_written(schedule.power)}"
            )
            note = f"{note} {_FIRST_MOVE}".strip()
        case Constant():
            beta = _written(schedule.beta)
            rule = f"decay={beta}, min_decay={beta}, use_ema_warmup=False"
        case RationalWarmup():
            rule = f"decay={_written(schedule.beta)}, min_decay=0.0, use_ema_warmup=False"
            after -= 1
            note = f"{note} {_FIRST_UPDATE}".strip()
        case UniformAverage():
            rule = "decay=1.0, min_decay=0.0, use_ema_warmup=True, inv_gamma=1.0, power=1.0"
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
                f"averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay={_written(schedule.beta)}))\n"
            )
            loop = _loop("averaged.update_parameters(model)", start=schedule.start, every=schedule.update_every)
            note = _waiting(schedule.start) if schedule.start else ""
        case UniformAverage():
            code = f"{head}\n\naveraged = AveragedModel(model)\n"
            loop = _loop("averaged.update_parameters(model)", start=schedule.start, every=schedule.update_every)
            note = _waiting(schedule.start) if schedule.start else ""
        case _:
            code = (
                f"{_imported(schedule, 'averaging_function')}\n{head}\n\n"
                f"schedule = {explicit_code(schedule)}\n"
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
            body = f"{move}{_written(1 - schedule.beta)})"
        case BiasCorrected() if schedule.beta <= _SINGLE:
            made = f"ema = optax.ema(decay={_written(schedule.beta)}, debias=True)"
            head = f"import optax\n\n{made}\naverage = state = None\n"
            body = "average, state = ema.update(params, ema.init(params) if state is None else state)"
        case _:
            head = f"import optax\n{_given(schedule)}average = None\n"
            body = f"{move}1 - float(schedule.at(step)))"
            start, every = 0, 1
            lacks = (
                "optax corrects in single precision, in which so large a decay loses its digits; incremental_update "
                "takes the decay that emacore gives for each step."
                if isinstance(schedule, BiasCorrected) and schedule.beta < 1
                else _no_rule("optax", "incremental_update")
            )
            note = f"{lacks} {note}"
    loop = _loop(body, start=start, every=every).replace("train_on(batch)", "params = train_on(batch)")
    return Snippet("optax", head + loop, note)


def _lightning(schedule: Schedule) -> Snippet:
    start, every = schedule.start, schedule.update_every
    note = "model is a LightningModule, batches its DataLoader. fit puts the averages into the model at its end."
    if isinstance(schedule, Constant):
        head = "from lightning.pytorch import Trainer\nfrom lightning.pytorch.callbacks import EMAWeightAveraging\n"
        average = (
            f"EMAWeightAveraging(\n    decay={_written(schedule.beta)}, update_every_n_steps={every}, "
            f"update_starting_at_step={start},\n    update_starting_at_epoch=None, use_buffers=True,\n)"
        )
        if start:
            note += f" {_waiting(start)}"
        note += (
            " Checkpoints of weights alone hold those that trained; emacore.integrations.lightning.AveragingCallback "
            "saves the averages there, too."
        )
    else:
        head = (
            f"{_imported(schedule)}\nfrom emacore.integrations.lightning import AveragingCallback\n"
            f"from lightning.pytorch import Trainer\n\nschedule = {explicit_code(schedule)}"
        )
        average = 'AveragingCallback(schedule, validate="average", at_end="average")'
        note = f"Lightning has no such rule of its own; emacore's callback gives it one. {note}"
    return Snippet(
        "Lightning",
        f"{head}\naverage = {average}\ntrainer = Trainer(max_epochs=1, callbacks=[average])  # and your arguments\n"
        "trainer.fit(model, batches)\n# model holds the averages now",
        note,
    )


def _transformers(schedule: Schedule) -> Snippet:
    return Snippet(
        "Transformers",
        f"{_imported(schedule)}\nfrom emacore.integrations.transformers import Averaging\n"
        f"from transformers import Trainer, TrainingArguments\n\nschedule = {explicit_code(schedule)}\n"
        'arguments = TrainingArguments("checkpoints", report_to="none")  # and yours\n'
        "trainer = Trainer(model, arguments, train_dataset=batches)\n"
        'averaging = Averaging(trainer, schedule, validate="average", at_end="average")\ntrainer.train()\n'
        "# model holds the averages now, and each checkpoint does",
        "Transformers has no averages of its own; emacore's callback keeps them. model is a PreTrainedModel, batches "
        "its data set. With adapters (PEFT), trainable_only=True averages them alone.",
    )


def _accelerate(schedule: Schedule) -> Snippet:
    return Snippet(
        "accelerate",
        f"from accelerate import Accelerator\n{_imported(schedule)}\n"
        f"from emacore.integrations.accelerate import Averaging\n\nschedule = {explicit_code(schedule)}\n"
        "accelerator = Accelerator()\nmodel, optimizer, batches = accelerator.prepare(model, optimizer, batches)\n"
        "averaging = Averaging(accelerator, model, optimizer, schedule)\nfor batch in batches:\n"
        '    train_on(batch)\naveraging.save_model("averaged")\n'
        "# averaging.swapped() puts the averages into the model for a while",
        "accelerate has no averages of its own; emacore keeps them, moves them when the optimizer really steps, and "
        "saves them with accelerator.save_state. optimizer is yours, batches a DataLoader, and train_on(batch) calls "
        "accelerator.backward and optimizer.step.",
    )


def _composer(schedule: Schedule) -> Snippet:
    start, every = schedule.start, schedule.update_every
    note = (
        "Read from the source of composer 0.32, which needs an older torch than emacore, and not run. model is a "
        "ComposerModel, batches its DataLoader."
    )
    if isinstance(schedule, Constant):
        head = "from composer import Trainer\nfrom composer.algorithms import EMA\n\n"
        average = (
            f'EMA(half_life=None, smoothing={_written(schedule.beta)}, ema_start="{start}ba", '
            f'update_interval="{every}ba")'
        )
        body = f"average = {average}\ntrainer = Trainer(\n    model=model, train_dataloader=batches, max_duration="
        return Snippet(
            "composer",
            f'{head}{body}"1ep", algorithms=[average],\n)  # and your arguments\ntrainer.fit()\n'
            "# it evaluates, and saves, the averages",
            f"{note} It counts batches from 1: with update_every above 1 its moves are a step earlier."
            if every > 1
            else note,
        )
    return Snippet(
        "composer",
        f"{_imported(schedule, 'EMA')}\nfrom composer import Callback, Trainer\n\n"
        f"ema = EMA(model, schedule={explicit_code(schedule)})\n\n\nclass Averaging(Callback):\n"
        "    def batch_end(self, state, logger):\n        ema.update()\n\n\n"
        'trainer = Trainer(\n    model=model, train_dataloader=batches, max_duration="1ep", callbacks=[Averaging()],\n'
        ")  # and your arguments\ntrainer.fit()\n# ema.ema_model is the averaged model",
        f"composer has no such rule of its own; emacore's class keeps the average. {note}",
    )


def _torchtitan(schedule: Schedule) -> Snippet:
    """Its trainer shards the weights, and a sharded module cannot be copied: so the average is a list of tensors."""
    return Snippet(
        "torchtitan",
        f"import torch\nfrom torchtitan.trainer import Trainer\n{_given(schedule)}\n\n"
        "class AveragingTrainer(Trainer):\n    average, calls = None, 0\n\n"
        "    def train_step(self, data_iterator):\n        super().train_step(data_iterator)\n"
        "        weights = [weight.detach() for part in self.model_parts for weight in part.parameters()]\n"
        "        decay = float(schedule.at(self.calls))\n        self.calls += 1\n"
        "        if self.average is None:\n            self.average = [weight.clone() for weight in weights]\n"
        "        elif decay < 1:\n            torch._foreach_lerp_(self.average, weights, 1 - decay)\n\n\n"
        "# trainer.average holds the averages, in the order of the parameters, sharded as they are",
        "torchtitan has no averages of its own. Read from the source of torchtitan 0.3, and run with a trainer that "
        "stands in for its own, which needs accelerators. Where its train.py has config.build(), put "
        "AveragingTrainer(config). Keep the averages in float32: bfloat16 swallows small moves.",
    )


def _keras(schedule: Schedule) -> Snippet:
    note = "model is a Keras model that was compiled with a loss, batches its data. "
    if isinstance(schedule, Constant) and schedule.start == 0 and schedule.update_every == 1:
        return Snippet(
            "Keras",
            "import keras\n\noptimizer = keras.optimizers.AdamW(\n    learning_rate=0.0001, use_ema=True, "
            f"ema_momentum={_written(schedule.beta)}, ema_overwrite_frequency=None,\n)  # or your own, with these\n"
            "model.compile(optimizer=optimizer, loss=model.loss)\nmodel.fit(batches, epochs=1)\n"
            "# model holds the averages now",
            f"{note}fit puts the averages into the model at its end.",
        )
    return Snippet(
        "Keras",
        f"import keras\n{_given(schedule)}\n\nclass Averaging(keras.callbacks.Callback):\n"
        "    average, calls = None, 0\n\n    def on_train_batch_end(self, batch, logs=None):\n"
        "        weights = self.model.get_weights()\n        decay = float(schedule.at(self.calls))\n"
        "        self.calls += 1\n        if self.average is None:\n            self.average = weights\n"
        "        elif decay < 1:\n"
        "            self.average = [decay * a + (1 - decay) * w for a, w in zip(self.average, weights)]\n\n\n"
        "averaging = Averaging()\nmodel.fit(batches, epochs=1, callbacks=[averaging])\n"
        "model.set_weights(averaging.average)",
        f"{note}{_no_rule('Keras', 'this callback')}",
    )
