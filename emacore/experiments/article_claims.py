"""What the article says of its one run, asked of another run and of the 32 seeds that ship.  Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from emacore.experiments import shipped
from emacore.experiments.evidence import bands
from emacore.formatting import counted, number, percent, signed_percent
from emacore.replay.measure import LEAD, Metric
from emacore.tasks.regression.article import FINAL, LAST_EPOCH, PHASES, PROGRESS, STEADINESS_RATIO
from emacore.tasks.regression.config import RunConfig
from emacore.training.history import MODELS, steadiness

#: From this epoch on, the article says, the average is always ahead.
AHEAD_FROM = 60
#: From this epoch on the standard deviations are taken; the article does not state its own.
STEADY_FROM = 20


class Claim(NamedTuple):
    """A sentence of the article that can be asked of any run with its settings.

    Args:
        text: What it says.
        theirs: What its own run shows.
        measure: Of a run's history; NaN where the run is too short for it.
        holds: Whether a measure bears it out.
        show: A measure for people.
    """

    text: str
    theirs: str
    measure: Callable[[pd.DataFrame], float]
    holds: Callable[[float], bool]
    show: Callable[[float], str]


def share_ahead(history: pd.DataFrame, first: int, last: float = math.inf) -> float:
    """The share of the epochs from ``first`` to ``last`` at which the average's loss is below the original's; NaN where
    there are none."""
    rows = history[history["epoch"].between(first, last)]
    return float((rows["val_loss_ema"] < rows["val_loss_original"]).mean())


def _ahead(history: pd.DataFrame) -> float:
    """:func:`share_ahead` from :data:`AHEAD_FROM` on; NaN for a run with fewer epochs there than make a lead."""
    enough = (history["epoch"] >= AHEAD_FROM).sum() >= LEAD
    return share_ahead(history, AHEAD_FROM) if enough else math.nan


def _steadier(history: pd.DataFrame) -> float:
    original, ema = steadiness(history, STEADY_FROM)
    return ema / original if original else math.nan


def _last(history: pd.DataFrame) -> float:
    return float(history["epoch"].max())


def _gain(metric: Metric) -> Callable[[pd.DataFrame], float]:
    def measure(history: pd.DataFrame) -> float:
        last = history.sort_values("epoch").iloc[-1]
        original, ema = (float(last[f"val_{metric.column}_{model}"]) for model in MODELS)
        return float(metric.gain(original, ema))

    return measure


def _final(metric: Metric) -> Claim:
    improvement = float(FINAL.loc[FINAL["metric"] == metric.name.lower(), "gain_percent"].iloc[0])
    return Claim(
        f"Its {metric.name} at the end is better by {number(improvement)} %",
        f"+{number(improvement)} %",
        _gain(metric),
        lambda gain: gain >= improvement / 100,
        signed_percent,
    )


_ITS_ROWS = int((PROGRESS["epoch"] >= AHEAD_FROM).sum())
CLAIMS = (
    Claim(
        f"From epoch {AHEAD_FROM} on the average is ahead at every epoch",
        f"at all {_ITS_ROWS} such rows of its table",
        _ahead,
        lambda share: share == 1,
        lambda share: f"at {percent(share)} of these epochs",
    ),
    *(_final(metric) for metric in RunConfig.metrics),
    Claim(
        "Its curve is steadier: a smaller standard deviation",
        f"{number(STEADINESS_RATIO, 2)} of the original's",
        _steadier,
        lambda ratio: ratio < 1,
        lambda ratio: f"{number(ratio, 2)} of the original's",
    ),
    Claim(
        f"Training stops by epoch {LAST_EPOCH}",
        f"epoch {LAST_EPOCH}",
        _last,
        lambda epoch: epoch <= LAST_EPOCH,
        lambda epoch: f"epoch {number(epoch)}",
    ),
)


def beside_claims(history: pd.DataFrame) -> pd.DataFrame:
    """Each claim beside a run and beside the shipped seeds.

    Returns:
        ``claim``, ``article``, ``this run`` ("yes" or "no", with its measure, or "not reached"), ``holds in`` (of the
        seeds for which it can be asked, as "12 of 32") and ``median seed``.
    """
    rows = []
    for claim, found in zip(CLAIMS, _of_seeds(), strict=True):
        own, known = claim.measure(history), found[~np.isnan(found)]
        rows.append(
            {
                "claim": claim.text,
                "article": claim.theirs,
                "this run": "not reached" if math.isnan(own) else f"{_yes(claim.holds(own))}, {claim.show(own)}",
                "holds in": f"{sum(map(claim.holds, known.tolist()))} of {len(known)}",
                "median seed": claim.show(float(np.median(known))),
            }
        )
    return pd.DataFrame(rows)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


@cache
def _of_seeds() -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Each claim's measure of each shipped seed."""
    runs = [rows for _, rows in shipped.study()[1].groupby("seed")]
    return [np.array([claim.measure(rows) for rows in runs]) for claim in CLAIMS]


def beside_phases(history: pd.DataFrame) -> pd.DataFrame:
    """In each of the article's three phases, at which share of the epochs the average is ahead.

    Returns:
        ``phase``, ``article`` (what its table shows), and the shares ``article_ahead`` (of the rows of its table),
        ``run_ahead`` (NaN before the phase), of its ``run_epochs``, and ``seeds_ahead`` (the median of the shipped
        seeds).
    """
    rows = []
    for (first, last, words), of_seeds in zip(PHASES, _phases_of_seeds(), strict=True):
        rows.append(
            {
                "phase": f"{first} to {last}",
                "article": words,
                "article_ahead": share_ahead(PROGRESS, first, last),
                "run_ahead": share_ahead(history, first, last),
                "run_epochs": int(history["epoch"].between(first, last).sum()),
                "seeds_ahead": of_seeds,
            }
        )
    return pd.DataFrame(rows)


@cache
def _phases_of_seeds() -> list[float]:
    runs = [rows for _, rows in shipped.study()[1].groupby("seed")]
    return [float(np.nanmedian([share_ahead(rows, first, last) for rows in runs])) for first, last, _ in PHASES]


def phases_in_words(table: pd.DataFrame) -> str:
    """:func:`beside_phases` as a list in Markdown."""
    told = []
    for row in table.to_dict("records"):
        own = "this run has not reached it"
        if not math.isnan(row["run_ahead"]):
            epochs = row["run_epochs"]
            own = f"at {round(epochs * row['run_ahead'])} of this run's {counted(epochs, 'epoch')} there"
        told.append(
            f"- **Epochs {row['phase']}**: the average is {row['article']} in the article, ahead at "
            f"{percent(row['article_ahead'])} of its table's rows; {own}; at {percent(row['seeds_ahead'])} in the "
            "median seed."
        )
    return "\n".join(told)


def panel(history: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """One panel of the article's figure, of its loss or of its R2: this run, its table, and the shipped seeds.

    Returns:
        A long table: ``part`` ("run", "article" or "seeds"), ``curve``, ``epoch``, ``value`` (of the seeds, their
        median), ``low`` and ``high`` (of the seeds only: 5 to 95 % of those that still train).
    """
    named = {f"val_{metric.column}_original": "original", f"val_{metric.column}_ema": "EMA"}
    with_train = {"train_loss": "train", **named} if metric.column == "loss" else named
    parts = [
        rows[["epoch", *with_train]]
        .rename(columns=with_train)
        .melt("epoch", var_name="curve", value_name="value")
        .assign(part=part)
        for part, rows in (("run", history), ("article", PROGRESS))
    ]
    return pd.concat([*parts, _seeds(metric.column)], ignore_index=True)[
        ["part", "curve", "epoch", "value", "low", "high"]
    ]


@cache
def _seeds(column: str) -> pd.DataFrame:
    history = shipped.study()[1]
    names = {f"val_{column}_original": "original", f"val_{column}_ema": "EMA"}
    return bands(history, names).rename(columns={"median": "value"}).assign(part="seeds")
