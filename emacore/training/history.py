"""What a run leaves behind: one row an epoch, and the figures drawn from them.  Imports no torch."""

from __future__ import annotations

import pandas as pd

#: Columns of a history.  Losses are mean squared errors of standardised targets; rates and decays are those of the
#: epoch's last step; ``steps`` counts optimiser steps, ``seconds`` time, both since the start.
COLUMNS = (
    "epoch",
    "train_loss",
    "val_loss_original",
    "val_loss_ema",
    "val_mae_original",
    "val_mae_ema",
    "val_r2_original",
    "val_r2_ema",
    "learning_rate",
    "decay",
    "steps",
    "seconds",
)

_METRICS = {"mse": "val_loss", "mae": "val_mae", "r2": "val_r2"}


def summarise(history: pd.DataFrame, epoch: int | None = None) -> pd.DataFrame:
    """The three metrics of both models after an epoch (the last by default): metric, original, ema, improvement.

    ``improvement`` is in percent of the original's value, above 0 where the averaged model is better.  An empty
    history gives an empty table.
    """
    rows = history if epoch is None else history[history["epoch"] == epoch]
    table = []
    for metric, column in _METRICS.items() if len(rows) else ():
        original, ema = (float(rows[f"{column}_{model}"].iloc[-1]) for model in ("original", "ema"))
        gain = ema - original if metric == "r2" else original - ema
        improvement = 100 * gain / abs(original) if original else float("nan")
        table.append((metric, original, ema, improvement))
    return pd.DataFrame(table, columns=["metric", "original", "ema", "improvement"])


def steadiness(history: pd.DataFrame, from_epoch: int) -> tuple[float, float]:
    """Standard deviation of the validation loss over the epochs from ``from_epoch`` on: original, EMA.

    NaN where fewer than two epochs are left.
    """
    rows = history[history["epoch"] >= from_epoch]
    return float(rows["val_loss_original"].std()), float(rows["val_loss_ema"].std())
