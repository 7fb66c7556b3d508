"""Weight averaging in deep learning: the mathematics, an EMA class to use, and experiments to learn from.

The public names are loaded when first used, so that importing the package does not import torch.
"""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and "emacore" in sys.orig_argv:  # it is about to be run: then Ctrl-C just ends it
    from _signal import SIG_DFL, SIGINT, signal  # type: ignore[import-not-found]

    signal(SIGINT, SIG_DFL)

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emacore.averages import Averages
    from emacore.averaging.coefficients import Coefficients, LastFiles, RateDecay
    from emacore.averaging.families import (
        BiasCorrected,
        Constant,
        ExponentialRamp,
        InversePower,
        PowerFunction,
        RationalWarmup,
        UniformAverage,
    )
    from emacore.averaging.schedules import Schedule
    from emacore.averaging.solving import with_half_life, with_relative_width
    from emacore.averaging.weights import effective_count, mean_age
    from emacore.averaging.windows import Window
    from emacore.avg_fn import averaging_function
    from emacore.checkpoints.diagnosis import diagnose
    from emacore.checkpoints.merging import merge
    from emacore.checkpoints.reading import open_checkpoints
    from emacore.checkpoints.snapshots import Snapshots
    from emacore.ema import EMA
    from emacore.experiments.evidence import answers, per_seed
    from emacore.experiments.statistics import verdict
    from emacore.replay.recording import Recorder
    from emacore.replay.trajectory import Trajectory
    from emacore.tasks import open_run
    from emacore.tasks.regression.config import RunConfig
    from emacore.training.loop import train
    from emacore.training.replicas import replicate

_HOMES = {
    "Averages": "averages",
    "BiasCorrected": "averaging.families",
    "Coefficients": "averaging.coefficients",
    "Constant": "averaging.families",
    "EMA": "ema",
    "ExponentialRamp": "averaging.families",
    "InversePower": "averaging.families",
    "LastFiles": "averaging.coefficients",
    "PowerFunction": "averaging.families",
    "RateDecay": "averaging.coefficients",
    "RationalWarmup": "averaging.families",
    "Recorder": "replay.recording",
    "RunConfig": "tasks.regression.config",
    "Schedule": "averaging.schedules",
    "Snapshots": "checkpoints.snapshots",
    "Trajectory": "replay.trajectory",
    "UniformAverage": "averaging.families",
    "Window": "averaging.windows",
    "answers": "experiments.evidence",
    "averaging_function": "avg_fn",
    "diagnose": "checkpoints.diagnosis",
    "effective_count": "averaging.weights",
    "mean_age": "averaging.weights",
    "merge": "checkpoints.merging",
    "open_checkpoints": "checkpoints.reading",
    "open_run": "tasks",
    "per_seed": "experiments.evidence",
    "replicate": "training.replicas",
    "train": "training.loop",
    "verdict": "experiments.statistics",
    "with_half_life": "averaging.solving",
    "with_relative_width": "averaging.solving",
}

__all__ = [
    "EMA",
    "Averages",
    "BiasCorrected",
    "Coefficients",
    "Constant",
    "ExponentialRamp",
    "InversePower",
    "LastFiles",
    "PowerFunction",
    "RateDecay",
    "RationalWarmup",
    "Recorder",
    "RunConfig",
    "Schedule",
    "Snapshots",
    "Trajectory",
    "UniformAverage",
    "Window",
    "answers",
    "averaging_function",
    "diagnose",
    "effective_count",
    "mean_age",
    "merge",
    "open_checkpoints",
    "open_run",
    "per_seed",
    "replicate",
    "train",
    "verdict",
    "with_half_life",
    "with_relative_width",
]
__version__ = "0.1.0"

#: What the extra ``experiments`` brings, by the names under which it is imported.
_EXPERIMENTS = ("joblib", "pandas", "platformdirs", "sklearn")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name not in _EXPERIMENTS:
            raise
        raise ImportError(f"{__name__}.{name} needs {error.name}: pip install 'emacore[experiments]'") from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
