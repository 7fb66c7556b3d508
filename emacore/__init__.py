"""Weight averaging in deep learning: the mathematics, an EMA class to use, and experiments to learn from.

The public names are loaded when first used, so that importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emacore.averages import Averages
    from emacore.ema import EMA, averaging_function
    from emacore.replay.recording import Recorder
    from emacore.tasks.regression.config import RunConfig
    from emacore.training.loop import train

_HOMES = {
    "Averages": "emacore.averages",
    "EMA": "emacore.ema",
    "averaging_function": "emacore.ema",
    "RunConfig": "emacore.tasks.regression.config",
    "Recorder": "emacore.replay.recording",
    "train": "emacore.training.loop",
}

__all__ = ["EMA", "Averages", "Recorder", "RunConfig", "averaging_function", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
