"""What the article reports of its run: its two tables, as printed there, and its text.

The run stopped at epoch 97; its seed is not stated.

Source: the article's tables 4.1 and 4.3.
"""

from __future__ import annotations

import pandas as pd

from emacore.tasks.regression.config import RunConfig
from emacore.training.config import TaskConfig

#: Epochs, losses (MSE) and R2 of its table 4.1.
PROGRESS = pd.DataFrame(
    [
        (10, 0.0843, 0.0209, 0.9796, 0.0233, 0.9773),
        (20, 0.0536, 0.0100, 0.9902, 0.0110, 0.9892),
        (30, 0.0398, 0.0055, 0.9947, 0.0075, 0.9927),
        (40, 0.0367, 0.0043, 0.9958, 0.0051, 0.9950),
        (50, 0.0369, 0.0037, 0.9964, 0.0051, 0.9951),
        (60, 0.0297, 0.0053, 0.9949, 0.0041, 0.9960),
        (70, 0.0271, 0.0053, 0.9948, 0.0043, 0.9958),
        (80, 0.0251, 0.0052, 0.9950, 0.0044, 0.9957),
        (90, 0.0274, 0.0051, 0.9950, 0.0044, 0.9957),
    ],
    columns=["epoch", "train_loss", "val_loss_original", "val_r2_original", "val_loss_ema", "val_r2_ema"],
)

#: The final metrics of its table 4.3, whose "improvement" in percent is ``gain_percent`` here.
FINAL = pd.DataFrame(
    [("mse", 0.0055, 0.0044, 20.0), ("mae", 0.0581, 0.0526, 9.5), ("r2", 0.9946, 0.9957, 0.11)],
    columns=["metric", "original", "ema", "gain_percent"],
)

#: Its three phases: the first and the last epoch of each, and where its table has the average there.
PHASES = (
    (1, 30, "behind"),
    (31, 60, "catching up"),
    (61, 97, "ahead"),
)

#: The epoch after which it stopped, and the standard deviations of both validation curves, from an epoch not stated.
LAST_EPOCH = 97
STEADINESS = {"original": 0.0023, "ema": 0.0015}
STEADINESS_RATIO = STEADINESS["ema"] / STEADINESS["original"]


def is_article(config: TaskConfig) -> bool:
    """Whether these are the article's settings, with whatever seed: it does not state its own."""
    return config == RunConfig(seed=config.seed)


def beside_progress(history: pd.DataFrame) -> pd.DataFrame:
    """Table 4.1 with the run's own figures of the same epochs: each ``<column>`` beside its ``<column>_article``."""
    return _paired(history[list(PROGRESS.columns)], PROGRESS, "epoch")


def beside_final(summary: pd.DataFrame) -> pd.DataFrame:
    """Table 4.3 with the run's own final metrics: each ``<column>`` beside its ``<column>_article``."""
    return _paired(summary, FINAL, "metric")


def _paired(own: pd.DataFrame, theirs: pd.DataFrame, key: str) -> pd.DataFrame:
    names = [name for name in theirs.columns if name != key]
    merged = own.merge(theirs, on=key, suffixes=("", "_article"))
    return merged[[key, *(f"{name}{suffix}" for name in names for suffix in ("", "_article"))]]
