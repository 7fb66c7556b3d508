"""What a run leaves behind: one row an epoch, and the figures drawn from them.  Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from emacore.replay.measure import Metric
from emacore.training.config import TaskConfig

#: Of the two models that each epoch measures, in columns and settings.
MODELS = ("original", "ema")


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


def summarise(history: pd.DataFrame, metrics: Sequence[Metric], epoch: int | None = None) -> pd.DataFrame:
    """The metrics of both models after an epoch (the last by default): metric, original, ema, improvement.

    ``improvement`` is in percent of the original's value, above 0 where the averaged model is better.  An empty
    history gives an empty table.
    """
    rows = history if epoch is None else history[history["epoch"] == epoch]
    table = []
    for metric in metrics if len(rows) else ():
        original, ema = (float(rows[f"val_{metric.column}_{model}"].iloc[-1]) for model in MODELS)
        table.append((metric.name.lower(), original, ema, 100 * float(metric.gain(original, ema))))
    return pd.DataFrame(table, columns=["metric", *MODELS, "improvement"])


def steadiness(history: pd.DataFrame, from_epoch: int) -> tuple[float, float]:
    """Standard deviation of the validation loss over the epochs from ``from_epoch`` on: original, EMA.

    Both over the epochs at which both losses are finite; NaN where fewer than two are left.
    """
    rows = history.loc[history["epoch"] >= from_epoch, ["val_loss_original", "val_loss_ema"]]
    finite = rows[np.isfinite(rows).all(axis=1)]
    return float(finite["val_loss_original"].std()), float(finite["val_loss_ema"].std())


def epochs_without_best(history: pd.DataFrame, curve: str) -> int:
    """How many epochs ago the validation loss of ``curve`` ("original" or "ema") was at its lowest."""
    losses = history[f"val_loss_{curve}"]
    return len(losses) - 1 - int(losses.argmin()) if losses.notna().any() else len(losses)


def in_words(history: pd.DataFrame) -> list[str]:
    """What the figures of this one run say, and no more than that."""
    finite = history[np.isfinite(history["val_loss_original"]) & np.isfinite(history["val_loss_ema"])]
    if finite.empty:
        return []
    epochs = finite["epoch"].to_numpy()
    original, ema = (finite[f"val_loss_{name}"].to_numpy() for name in ("original", "ema"))
    change = 100 * (original[-1] - ema[-1]) / original[-1]
    beside = f"{abs(change):.3g} % {'lower' if change > 0 else 'higher'} than" if change else "equal to"
    sentences = [
        f"In this run, after epoch {epochs[-1]}, the averaged model's validation loss is {beside} the original's "
        f"({ema[-1]:.4g} against {original[-1]:.4g}).",
        f"The lowest validation loss was {original.min():.4g} for the original (epoch {epochs[original.argmin()]}) and "
        f"{ema.min():.4g} for the average (epoch {epochs[ema.argmin()]}).",
    ]
    behind = np.flatnonzero(ema >= original)
    if not behind.size or behind[-1] + 1 < len(epochs):
        since = epochs[behind[-1] + 1] if behind.size else epochs[0]
        sentences.append(f"The average has been ahead without a break since epoch {since}.")
    return sentences


def curve_figures(curves: pd.DataFrame, original: str, from_epoch: int) -> pd.DataFrame:
    """Figures of several validation curves of one run, a row each.

    Args:
        curves: A long table: curve, epoch, loss, mae, r2.
        original: The curve that the others are compared with.
        from_epoch: Where the standard deviation (steadiness) begins.

    Returns:
        curve, final, best, best_epoch, steadiness and ahead_since of the loss, then final_mae, best_mae, final_r2 and
        best_r2, each metric's best of its own epoch.  The standard deviation is over the epochs at which all losses are
        finite.  ``ahead_since`` is the epoch from which the loss stays below the original's to the end; missing if it
        does not.

    Raises:
        ValueError: unless all curves have the same epochs, for else their figures could not be compared.
    """
    wide = curves.pivot(index="epoch", columns="curve", values="loss")
    _check_same_epochs(curves, original)
    steady = wide[(wide.index >= from_epoch) & np.isfinite(wide).all(axis=1)]
    rows = []
    for name, curve in curves.groupby("curve", sort=False):
        losses = wide[name]
        behind = np.flatnonzero(~(losses < wide[original]).to_numpy())
        first = int(behind[-1]) + 1 if behind.size else 0
        rows.append(
            {
                "curve": name,
                "final": float(losses.iloc[-1]),
                "best": float(losses.min()),
                "best_epoch": int(wide.index[int(losses.argmin())]),
                "steadiness": float(steady[name].std()),
                "ahead_since": int(wide.index[first]) if first < len(wide) else None,
                "final_mae": float(curve["mae"].iloc[-1]),
                "best_mae": float(curve["mae"].min()),
                "final_r2": float(curve["r2"].iloc[-1]),
                "best_r2": float(curve["r2"].max()),
            }
        )
    return pd.DataFrame(rows).astype({"ahead_since": "Int64"})


def _check_same_epochs(curves: pd.DataFrame, original: str) -> None:
    epochs = {name: set(curve["epoch"]) for name, curve in curves.groupby("curve")}
    for name, found in epochs.items():
        other = sorted(found ^ epochs[original])
        if other:
            raise ValueError(
                f"all curves must have the same epochs, but only one of {name!r} and {original!r} has epoch {other[0]}"
            )


def curve_in_words(figures: pd.DataFrame, original: str, averaged: str) -> str:
    """What averaging did in this run, from two rows of :func:`curve_figures`."""
    rows: dict[Any, dict[Any, Any]] = figures.set_index("curve").astype(object).to_dict("index")
    one, other = rows[original], rows[averaged]
    told = (
        f"In this run the average ends {_against(other['final'], one['final'])}; its lowest loss is "
        f"{_against(other['best'], one['best'])}."
    )
    if not pd.isna(one["steadiness"]) and one["steadiness"] > 0:
        told += f" Its curve's standard deviation is {other['steadiness'] / one['steadiness']:.0%} of the original's."
    if pd.isna(other["ahead_since"]):
        return f"{told} It does not stay below the original."
    return f"{told} It stays below from epoch {other['ahead_since']} on."


def thinning_in_words(history: pd.DataFrame, replayed: ArrayLike, every: int, from_epoch: int = 10) -> str:
    """How far replays of a recording of every so many steps can be trusted, measured on its own run.

    Args:
        history: Of the run; its average's loss was measured with every step.
        replayed: The loss of the run's own schedule after each of its epochs, replayed from the recording.
        from_epoch: The largest miss is of the epochs from here on; of all where there are none.

    Raises:
        ValueError: if those are not as many.
    """
    exact, found = history["val_loss_ema"].to_numpy(), np.asarray(replayed, dtype=np.float64)
    if len(found) != len(exact):
        raise ValueError(f"replayed must have the {len(exact)} epochs of the history, got {len(found)}")
    told = f"The recording holds one step in {every} only, to stay within its budget, so replays are close, not exact"
    usable = np.isfinite(exact) & np.isfinite(found)
    if not usable.any():
        return f"{told}."
    epochs = history["epoch"].to_numpy()[usable]
    missed = 100 * np.abs(found[usable] / exact[usable] - 1)
    late = epochs >= from_epoch
    since = from_epoch if late.any() else int(epochs[0])
    largest = missed[late].max() if late.any() else missed.max()
    return (
        f"{told}: the run's own average, replayed from it, misses the loss that the training measured by "
        f"{missed[-1]:.2g} % after epoch {epochs[-1]}, and by up to {largest:.2g} % from epoch {since} on. Averages "
        "that look back fewer steps miss theirs by more."
    )


def smaller_rate_in_words(history: pd.DataFrame, averaged: ArrayLike) -> str:
    """Whether, in this run, a smaller learning rate did for the original what averaging does.

    The original's medians at a high rate (at least half of the first; the later half of those epochs, so that the
    approach is over) and at a low one (at most a quarter) are set beside the average's.

    Args:
        history: Of the run.
        averaged: The average's validation loss after each of its epochs.

    Raises:
        ValueError: if those are not as many.
    """
    rates, epochs = history["learning_rate"].to_numpy(), history["epoch"].to_numpy()
    original, average = history["val_loss_original"].to_numpy(), np.asarray(averaged, dtype=np.float64)
    if len(average) != len(original):
        raise ValueError(f"averaged must have the {len(original)} epochs of the history, got {len(average)}")
    high, low = np.flatnonzero(rates >= rates[0] / 2), np.flatnonzero(rates <= rates[0] / 4)
    high = high[len(high) // 2 :]
    before = np.median(original[high]), np.median(average[high])
    told = (
        f"While the learning rate was high (epochs {epochs[high[0]]} to {epochs[high[-1]]}), the average's median loss "
        f"was {_against(before[1], before[0])}."
    )
    if len(low) < 3:
        return (
            f"{told} The rate never fell to a quarter of its first value for three epochs, so this run cannot say "
            "whether a smaller one would have done the same."
        )
    after = np.median(original[low]), np.median(average[low])
    told += f" At a quarter of the rate or less (from epoch {epochs[low[0]]} on) it was {_against(after[1], after[0])}."
    gained = before[0] - before[1]
    if gained <= 0:
        return f"{told} At the high rate averaging gained nothing here that a smaller rate could replace."
    share = (before[0] - after[0]) / gained
    return (
        f"{told} By itself the smaller rate, with the epochs it trained, took the original from {before[0]:.4g} to "
        f"{after[0]:.4g}: {max(0.0, share):.0%} of what averaging gained at the high rate."
    )


def _against(value: float, reference: float) -> str:
    if value == reference:
        return f"equal to the original's ({value:.4g})"
    change = 100 * (value / reference - 1)
    return f"{abs(change):.3g} % {'below' if change < 0 else 'above'} the original's ({value:.4g} and {reference:.4g})"


def training_follows_average(config: TaskConfig) -> list[str]:
    """Which rules of a run look at the average: then another average would have trained another run."""
    rules = []
    if config.optimizer.rate_rule == "plateau" and config.optimizer.plateau_curve == "ema":
        rules.append("the plateau rule of its learning rate")
    if config.stopping.curve == "ema":
        rules.append("its early stop")
    return rules
