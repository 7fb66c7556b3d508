"""What a run leaves behind: one row an epoch, and the figures drawn from them.  Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from emacore.formatting import compared, duration, number, percent
from emacore.replay.measure import Metric, lead_in_words, trailing
from emacore.training.acting import idle_settings
from emacore.training.config import TaskConfig

#: What the two models that each epoch measures are called in columns and settings.
MODELS = ("original", "ema")
#: The rates of :func:`rates`.
LEARNING_RATE, ONE_MINUS_DECAY = "learning rate", "1 - decay of the EMA"


def columns(metrics: Sequence[Metric]) -> list[str]:
    """The columns of a run's history.

    ``val_<metric>_<model>`` are measured on the validation rows; ``train_loss`` is the epoch's mean.  Rates and decays
    are those of the epoch's last step; ``steps`` counts optimiser steps, ``seconds`` time, both since the start.
    """
    measured = [f"val_{metric.column}_{model}" for metric in metrics for model in MODELS]
    return ["epoch", "train_loss", *measured, "learning_rate", "decay", "steps", "seconds"]


def further_columns(metrics: Sequence[Metric], names: Iterable[str]) -> list[str]:
    """The columns of further averages of the same networks: ``val_<metric>_<name>``.

    Raises:
        ValueError: for a name that is no text, or is taken: the history has its columns already.
    """
    further: list[str] = []
    for name in names:
        own = [f"val_{metric.column}_{name}" for metric in metrics]
        taken = sorted({*columns(metrics), *further} & set(own))
        if not isinstance(name, str) or not name or taken:
            why = f"a history has the column {taken[0]} already" if taken else "it must be a text"
            raise ValueError(f"an average cannot be named {name!r}: {why}; choose another name")
        further += own
    return further


def finite_epochs(history: pd.DataFrame) -> NDArray[np.int64]:
    """The epochs after which a validation loss of either model is finite; none of a run that diverged in its first."""
    losses = history.reindex(columns=[f"val_loss_{model}" for model in MODELS]).to_numpy(dtype=np.float64)
    return history["epoch"].to_numpy()[np.isfinite(losses).any(axis=1)] if len(history) else np.empty(0, np.int64)


def summarise(history: pd.DataFrame, metrics: Sequence[Metric], epoch: int | None = None) -> pd.DataFrame:
    """The metrics of both models after an epoch (the last by default): metric, original, ema, gain_percent.

    ``gain_percent`` is in percent of the original's value, above 0 where the averaged model is better.  An empty
    history gives an empty table.
    """
    rows = history if epoch is None else history[history["epoch"] == epoch]
    table = []
    for metric in metrics if len(rows) else ():
        original, ema = (float(rows[f"val_{metric.column}_{model}"].iloc[-1]) for model in MODELS)
        table.append((metric.name.lower(), original, ema, 100 * float(metric.gain(original, ema))))
    return pd.DataFrame(table, columns=["metric", *MODELS, "gain_percent"])


def curve(history: pd.DataFrame, metrics: Sequence[Metric], model: str) -> dict[str, NDArray[Any]]:
    """The validation curve of "original" or "ema" as arrays: epoch, and each metric's column."""
    columns = {metric.column: f"val_{metric.column}_{model}" for metric in metrics}
    return {"epoch": history["epoch"].to_numpy(), **{name: history[own].to_numpy() for name, own in columns.items()}}


def losses(history: pd.DataFrame) -> pd.DataFrame:
    """All loss curves of a run as a long table: epoch, curve ("train", "original", "EMA"), loss."""
    named = {"train_loss": "train", "val_loss_original": "original", "val_loss_ema": "EMA"}
    return history[["epoch", *named]].rename(columns=named).melt("epoch", var_name="curve", value_name="loss")


def overlaid(table: pd.DataFrame, other: pd.DataFrame, name: str = "other run") -> pd.DataFrame:
    """Curves of a run and, as curves of their own, the validation curves of another one.

    Args:
        table, other: As :func:`losses` or :func:`validation` returns them.
        name: What the other run's curves are called after.
    """
    theirs = other[other["curve"] != "train"]
    return pd.concat([table, theirs.assign(curve=theirs["curve"] + f", {name}")], ignore_index=True)


def train_loss_in_words(history: pd.DataFrame, config: TaskConfig) -> str:
    """Why the train loss lies above the original's validation loss after the last epoch; empty where it does not."""
    last = history.iloc[-1]
    if not last["train_loss"] > last["val_loss_original"]:
        return ""
    if config.network.dropout and "dropout" not in config.network.idle():
        return (
            "The train loss lies above the validation losses because of dropout: in training it leaves out "
            f"{percent(config.network.dropout)} of the hidden units, in validation none."
        )
    return "The train loss lies above because it is the mean over the epoch, taken while the network still learned."


def validation(history: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """The validation curves of a metric as a long table: epoch, curve ("original", "EMA"), and the metric's column."""
    named = {f"val_{metric.column}_original": "original", f"val_{metric.column}_ema": "EMA"}
    return history[["epoch", *named]].rename(columns=named).melt("epoch", var_name="curve", value_name=metric.column)


def late_range(values: ArrayLike, metric: Metric) -> tuple[float, float] | None:
    """The ends of an axis on which good values can be told apart: it leaves out the worst tenth of them.

    ``None`` where that is no range: no finite values, or all alike.
    """
    numbers = np.asarray(values, dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    if not finite.size:
        return None
    if metric.higher_is_better:
        low, high = float(np.quantile(finite, 0.1)), float(finite.max())
    else:
        low, high = float(finite.min()), float(np.quantile(finite, 0.9))
    room = 0.05 * (high - low)
    return (low - room, high + room) if low < high else None


def rates(history: pd.DataFrame) -> pd.DataFrame:
    """What moves weights and average at each epoch's last step, as a long table: epoch, rate, value.

    The rates are "learning rate" and "1 - decay of the EMA", the share that the average takes of the weights.
    """
    wide = pd.DataFrame(
        {
            "epoch": history["epoch"],
            LEARNING_RATE: history["learning_rate"],
            ONE_MINUS_DECAY: 1 - history["decay"],
        }
    )
    return wide.melt("epoch", var_name="rate", value_name="value")


class TimeLeft(NamedTuple):
    """How long something still takes.

    Args:
        seconds: The least that any look so far expected, so from look to look it never rises.
        slower: Whether by its latest pace it takes longer by a quarter or more.
    """

    seconds: float
    slower: bool

    def in_words(self, bound: str = "about") -> str:
        """The time left in words: "about 38 s left", or, where it has become slower, "more than 38 s left"."""
        return f"{'more than' if self.slower else bound} {duration(self.seconds)} left"


def time_left(seconds: ArrayLike, shares: ArrayLike, before: float = 0.0) -> TimeLeft:
    """How long something still takes, ``seconds`` after whose start ``shares`` of it were done, both of shape (looks,).

    Each look expects what is left to go on at the pace so far.

    Args:
        before: The share that was there at its start and took no time.
    """
    taken, done = np.asarray(seconds, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    expected = taken * (1 - done) / (done - before)
    least = float(expected.min())
    return TimeLeft(least, bool(expected[-1] > 1.25 * least + 1))


def remaining(history: pd.DataFrame, max_epochs: int) -> tuple[TimeLeft, float]:
    """The time that is left at most, and seconds an epoch so far; of a history of at least one epoch."""
    taken = history["seconds"].to_numpy()
    epochs = np.arange(1, len(taken) + 1)
    return time_left(taken, epochs / max_epochs), float(taken[-1]) / len(taken)


def steadiness(history: pd.DataFrame, from_epoch: int) -> tuple[float, float]:
    """Standard deviation of the validation loss over the epochs from ``from_epoch`` on: original, EMA.

    Both over the epochs at which both losses are finite; NaN where fewer than two are left.
    """
    rows = history.loc[history["epoch"] >= from_epoch, ["val_loss_original", "val_loss_ema"]]
    finite = rows[np.isfinite(rows).all(axis=1)]
    return float(finite["val_loss_original"].std()), float(finite["val_loss_ema"].std())


def epochs_without_best(history: pd.DataFrame, curve: str) -> int:
    """How many epochs ago the validation loss of ``curve`` ("original" or "ema") was at its lowest."""
    losses = history[f"val_loss_{curve}"].to_numpy(dtype=np.float64)
    finite = np.where(np.isfinite(losses), losses, np.inf)
    return len(losses) - 1 - int(finite.argmin()) if np.isfinite(finite).any() else len(losses)


def in_words(history: pd.DataFrame) -> list[str]:
    """What the figures of this one run say, and no more than that."""
    curves = history[[f"val_loss_{model}" for model in MODELS]].to_numpy(dtype=np.float64)
    epochs, finite = history["epoch"].to_numpy(), np.isfinite(curves)
    both = np.flatnonzero(finite.all(axis=1))
    if not both.size:
        return []
    end = int(both[-1])
    original, ema = curves[end].tolist()
    lowest = [int(np.where(own, curve, np.inf).argmin()) for curve, own in zip(curves.T, finite.T, strict=True)]
    least = [number(float(curve[at])) for curve, at in zip(curves.T, lowest, strict=True)]
    sentences = [
        f"In this run, after epoch {epochs[end]}, the averaged model's validation loss is "
        f"{compared(ema, original, 'lower than', 'higher than')} the original's "
        f"({number(ema)} against {number(original)}).",
        f"The lowest validation loss was {least[0]} for the original (epoch {epochs[lowest[0]]}) and "
        f"{least[1]} for the average (epoch {epochs[lowest[1]]}).",
    ]
    ahead = trailing((finite.all(axis=1) & (curves[:, 1] < curves[:, 0]))[: end + 1])
    if ahead:
        finite_to = None if end == len(history) - 1 else float(epochs[end])
        since = float(epochs[end + 1 - ahead])
        sentences.append(lead_in_words(since, ahead, who="The average", finite_to=finite_to))
    return sentences


def training_follows_average(config: TaskConfig, epochs: int | None = None) -> list[str]:
    """Which rules of a run look at the average, and can act in its ``epochs``, by default as many as it may have: then
    another average can train another run."""
    idle = idle_settings(config if epochs is None else replace(config, max_epochs=epochs))
    rules = []
    if "optimizer.plateau_curve" not in idle and config.optimizer.plateau_curve == "ema":
        rules.append("the plateau rule of its learning rate")
    if "stopping.curve" not in idle and config.stopping.curve == "ema":
        rules.append("its early stop")
    return rules
