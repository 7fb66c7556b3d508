"""Which settings of a run act, so that configs that train alike are known as such.  Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np

from emacore.averaging.code import to_code
from emacore.averaging.schedules import Schedule
from emacore.training.config import TaskConfig, dotted

#: The decays of more steps than this are not compared, but the settings that make them.
_MOST_STEPS = 2_000_000


def idle_settings(config: TaskConfig) -> dict[str, str]:
    """The settings that change nothing in a run over seeds, by their dotted names, with the reason.

    Beside other settings, that is: ``optimizer.momentum`` acts with sgd, not with adam.
    """
    optimizer, epochs = config.optimizer, config.max_epochs
    idle = {"seed": "a study has seeds of its own"}
    idle |= {f"data.{name}": why for name, why in config.data.idle().items()}
    idle |= {f"network.{name}": why for name, why in config.network.idle().items()}
    if optimizer.name != "sgd":
        idle["optimizer.momentum"] = f"{optimizer.name} has none, only sgd has"
    plateau = ("optimizer.plateau_factor", "optimizer.plateau_patience", "optimizer.plateau_curve")
    if optimizer.rate_rule != "plateau":
        idle |= dict.fromkeys(plateau, f"the learning rate is {optimizer.rate_rule}")
    elif not _plateau_acts(config):
        idle |= dict.fromkeys(plateau, f"{_over(epochs)} before the plateau rule can act")
    if config.stopping.curve == "none":
        idle["stopping.patience"] = "there is no early stop"
    elif config.stopping.patience >= epochs:
        why = f"{_over(epochs)} before the early stop can act"
        idle |= dict.fromkeys(("stopping.curve", "stopping.patience"), why)
    return idle


def _over(epochs: int) -> str:
    return "one epoch is over" if epochs == 1 else f"{epochs} epochs are over"


def acting(config: TaskConfig) -> dict[str, Any]:
    """What decides the numbers of a run over seeds: configs with equal ones give the same numbers.

    Returns:
        The settings by dotted name without those of :func:`idle_settings`; the schedule as what it does in the steps of
        the run, the data as what their settings come to.
    """
    optimizer = config.optimizer
    found = dotted({"task": config.task_name, **asdict(config), "data": config.data.effective(), "schedule": None})
    for name in idle_settings(config):
        del found[name]
    if optimizer.name == "adamw" and not optimizer.weight_decay:
        found["optimizer.name"] = "adam"  # they differ in their weight decay only
    never_lowered = {"plateau": not _plateau_acts(config), "cosine": config.max_epochs == 1, "constant": True}
    if never_lowered[optimizer.rate_rule]:
        found["optimizer.rate_rule"] = "constant"
    found["schedule"] = _effect(config.schedule, config.steps_per_epoch, config.max_epochs)
    return found


def _plateau_acts(config: TaskConfig) -> bool:
    """Whether the plateau rule can lower the rate of an epoch: the first epoch is a best, the last has no successor."""
    return config.optimizer.plateau_patience < config.max_epochs - 2


@lru_cache(maxsize=4096)
def _effect(schedule: Schedule, steps: int | None, epochs: int) -> str:
    """What tells schedules apart whose averages differ after one of the epochs, of so many steps each."""
    if steps is None or steps * epochs > _MOST_STEPS:
        return to_code(schedule)
    rests = (1 - schedule.decays(steps * epochs)).astype(np.float32).reshape(epochs, steps)  # as the stack uses them
    copied = np.maximum.accumulate((rests == 1)[:, ::-1], axis=1)[:, ::-1]
    rests[copied] = 1  # what an epoch's last copy overwrites leaves no trace
    return hashlib.sha256(rests.tobytes()).hexdigest()
