"""What people call a run: its settings in a few words.  Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from emacore.averaging.schedules import TIMING, Schedule, changed_settings
from emacore.training.acting import idle_settings
from emacore.training.config import TaskConfig, dotted

#: How optimisers are written.
OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}
#: A setting's value is cut to so many letters.
MOST_LETTERS = 24

#: Settings whose own name says too little without that of the part they belong to.
_WORDS = {"optimizer.name": "optimiser", "stopping.curve": "early stop", "data.kind": "data set"}
_TIMING = tuple(control.name for control in TIMING)
#: What every name says first.
_SAID = ("optimizer.name", "optimizer.learning_rate", "optimizer.rate_rule")
#: What tells runs apart most often is said before the rest.
_FIRST = ("max_epochs", "stopping.curve", "seed")


def in_words(config: TaskConfig, *, most: int = 3, but: Collection[str] = ()) -> str:
    """A run's settings in a few words: "regression, Adam 0.01 constant, inverse power 0.999, 60 epochs".

    What is trained, the optimiser with its learning rate and rule, and the schedule are always said; of the other
    settings, those that act and differ from the task's defaults.

    Args:
        most: So many of those others are said, the rest is counted.
        but: Dotted names of settings that are left out, ``schedule`` for the whole of it: those that a sweep varies.
    """
    optimizer = config.optimizer
    steps = [
        "" if "optimizer.name" in but else OPTIMIZERS.get(optimizer.name, optimizer.name),
        "" if "optimizer.learning_rate" in but else _value(optimizer.learning_rate),
        "" if "optimizer.rate_rule" in but else optimizer.rate_rule,
    ]
    parts = [config.subject, " ".join(filter(None, steps))]
    if "schedule" not in but:
        parts.append(schedule_in_words(config.schedule, but=[name.removeprefix("schedule.") for name in but]))
    others = _others(config, but)
    parts += others[:most]
    if len(others) > most:
        parts.append(f"{len(others) - most} more")
    return ", ".join(filter(None, parts))


def setting_in_words(name: str) -> str:
    """What people call a setting, by its dotted name: "learning rate" for ``optimizer.learning_rate``.

    For sentences, titles and names of runs; files, links and the command line have the dotted name.
    """
    own = name.rpartition(".")[2]
    words = f"number of {own[2:]}" if own.startswith("n_") else own
    return _WORDS.get(name) or words.replace("_", " ")


def schedule_in_words(schedule: Schedule, *, but: Collection[str] = ()) -> str:
    """A schedule's family with its beta, and its other settings that are not the family's defaults, timing apart:
    "inverse power 0.999, power 0.75"."""
    family = schedule.label[0].lower() + schedule.label[1:]
    own = {name: value for name, value in changed_settings(schedule).items() if name not in (*_TIMING, "beta", *but)}
    beta = getattr(schedule, "beta", None)
    first = family if beta is None or "beta" in but else f"{family} {_value(beta)}"
    return ", ".join([first, *(_said(name, value) for name, value in own.items())])


def _others(config: TaskConfig, but: Collection[str]) -> list[str]:
    """The other settings that act and differ from the task's defaults, in words."""
    usual = _flat(type(config)())
    idle = {*idle_settings(config)} - {"seed"}  # that of a study is left out by whoever names it
    found = {
        name: value
        for name, value in _flat(config).items()
        if name not in (*_SAID, *config.told_by_subject, *idle, *but) and value != usual.get(name)
    }
    ordered = sorted(found, key=lambda name: (name not in _FIRST, _FIRST.index(name) if name in _FIRST else 0))
    return [_said(name, found[name]) for name in ordered]


def _flat(config: TaskConfig) -> dict[str, Any]:
    """The settings by dotted names; of the schedule the timing only, which all families have."""
    timing = {name: getattr(config.schedule, name) for name in _TIMING}
    return dotted({**asdict(config), "data": asdict(config.data), "schedule": timing})


def _said(name: str, value: Any) -> str:
    if name == "max_epochs":
        return f"{value:,} epoch{'s' if value != 1 else ''}"
    if name == "stopping.curve":
        return "no early stop" if value == "none" else f"early stop on the {'EMA' if value == 'ema' else value}"
    return f"{setting_in_words(name)} {_value(value)}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, (list, tuple)):
        text = "-".join(map(str, value)) or "none"
    elif isinstance(value, Mapping):
        text = ", ".join(map(str, value.values()))
    else:
        text = " ".join(str(value).split())
    return cut(text)


def cut(text: str, most: int = MOST_LETTERS) -> str:
    """``text`` in at most so many letters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
