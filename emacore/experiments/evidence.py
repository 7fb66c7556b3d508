"""What a study over seeds says: a row a seed, curves over epochs, three answers.  Imports no torch."""

from __future__ import annotations

import io
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from emacore.experiments.statistics import (
    CLASSICAL,
    Comparison,
    gains,
    interval_in_words,
    kind_of,
    over_pairs,
    paired_comparison,
    percent,
    verdict,
)
from emacore.experiments.studies import Study
from emacore.tasks.regression.article import FINAL

#: The three questions, and what they ask of a seed.
QUESTIONS = {
    "final": "the final loss",
    "best": "the lowest loss of a run",
    "steadiness": "the curve's standard deviation",
}


#: The study that ships with the package: a line that says how it was made, then one row a seed.
SHIPPED = Path(__file__).with_name("article_study.csv")


def shipped() -> tuple[pd.DataFrame, str]:
    """The shipped study, :func:`per_seed`'s columns and ``experiment``, and how, when and with what it was made."""
    made, _, content = SHIPPED.read_text().partition("\n")
    return pd.read_csv(io.StringIO(content)), made.removeprefix("# ")


def per_seed(history: pd.DataFrame, averaged: str = "ema", steady_from: int = 20) -> pd.DataFrame:
    """The figures of each seed: seed, epochs, and final, best and steadiness of both curves.

    Args:
        history: Of a study; losses are those of the columns ``val_loss_original`` and ``val_loss_<averaged>``.
        steady_from: The epoch from which the standard deviation of the loss is taken; NaN for shorter runs.

    Returns:
        ``<question>_original`` and ``<question>_averaged`` for each of :data:`QUESTIONS`.  The final loss is that of
        the seed's own last epoch.
    """
    groups = history.groupby("seed", sort=False)
    late = history[history["epoch"] >= steady_from].groupby("seed", sort=False)
    last = history.loc[groups["epoch"].idxmax().to_numpy()].set_index("seed")
    table = groups["epoch"].max().rename("epochs").to_frame()
    for name, column in (("original", "val_loss_original"), ("averaged", f"val_loss_{averaged}")):
        table[f"final_{name}"] = last[column]
        table[f"best_{name}"] = groups[column].min()
        table[f"steadiness_{name}"] = late[column].std()
    return table.reset_index()


def bands(history: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Median and 5 to 95 % of curves over the seeds still training: curve, epoch, low, median, high, seeds.

    ``seeds`` counts those whose loss is finite at that epoch, of which the other three are.

    Args:
        columns: Names of the curves by their columns.
    """
    parts = []
    finite = history[list(columns)].where(np.isfinite(history[list(columns)]))
    for column, name in columns.items():
        groups = finite[column].groupby(history["epoch"])
        found = groups.quantile(np.array([0.05, 0.5, 0.95])).unstack().set_axis(["low", "median", "high"], axis=1)
        parts.append(found.assign(curve=name, seeds=groups.count()).reset_index())
    return pd.concat(parts, ignore_index=True)[["curve", "epoch", "low", "median", "high", "seeds"]]


def wins(history: pd.DataFrame, averaged: str = "ema") -> pd.DataFrame:
    """The share of the seeds still training whose average has the lower loss: epoch, share, seeds.

    ``seeds`` counts those whose losses are not both lost at that epoch, of which the share is.
    """
    original, average = history["val_loss_original"], history[f"val_loss_{averaged}"]
    won = (gains(original, average) > 0)[known := np.isfinite(original) | np.isfinite(average)]
    groups = pd.Series(won).groupby(history["epoch"][known].to_numpy())
    return pd.DataFrame({"share": groups.mean(), "seeds": groups.size()}).rename_axis("epoch").reset_index()


def training_in_words(history: pd.DataFrame) -> str:
    """How many seeds still train at which epoch."""
    training = history.groupby("epoch").size()
    seeds, last = int(training.max()), int(training.index[-1])
    if training.iloc[-1] == seeds:
        return f"All {seeds} seeds train up to epoch {last}."
    all_of_them, half = (int(training.index[training >= least][-1]) for least in (seeds, seeds / 2))
    return (
        f"All {seeds} seeds train up to epoch {all_of_them}, {int(training[half])} up to epoch {half}, and "
        f"{int(training.iloc[-1])} up to the last, {last}: bands and shares are of the seeds that still train."
    )


def answers(table: pd.DataFrame, intervals: str = CLASSICAL) -> dict[str, Comparison]:
    """A comparison for each of :data:`QUESTIONS`, from :func:`per_seed`'s table.

    Args:
        intervals: As :func:`~emacore.experiments.statistics.paired_comparison` takes them.
    """
    found = {question: comparison_of(table, question, intervals) for question in QUESTIONS}
    return {question: one for question, one in found.items() if one is not None}


def comparison_of(table: pd.DataFrame, question: str, intervals: str = CLASSICAL) -> Comparison | None:
    """The comparison for one of :data:`QUESTIONS`; ``None`` where no seed has an answer."""
    pairs = table[[f"{question}_original", f"{question}_averaged"]].astype(float)
    if question == "steadiness":  # a run too short for it is no loss of either
        pairs = pairs.dropna()
    if pairs.empty:
        return None
    return paired_comparison(pairs.iloc[:, 0], pairs.iloc[:, 1], intervals=intervals)


def gains_in_words(table: pd.DataFrame, comparison: Comparison) -> str:
    """What the gains in the final loss show beside their median: mean, single seeds, and the article's one run.

    Args:
        table: :func:`per_seed`'s, of which ``comparison`` is the final loss's.
    """
    found = gains(table["final_original"], table["final_averaged"])
    told = []
    if comparison.infinite:
        told.append(f"Drawn are {over_pairs(comparison)}; the others have no finite gain.")
    if comparison.pairs:
        mean = comparison.mean
        told.append(
            f"The mean gain is {percent(mean.estimate)} ({interval_in_words(mean)}), over {over_pairs(comparison)}."
        )
    theirs = float(FINAL["improvement"][0])
    less = stats.percentileofscore(100 * found, theirs, kind="mean")
    told.append(f"The article's one run gained {theirs:g} %: {less:.0f} % of these {len(found)} seeds gained less.")
    chance, wanted = comparison.chance, percent(comparison.wanted_gain, sign=False)
    told.append(
        f"A single seed shows a gain of at least {wanted} with a chance of {chance.estimate:.0%} (95 % interval "
        f"{chance.low:.0%} to {chance.high:.0%}, from {comparison.seeds} seeds)."
    )
    if comparison.seeds_needed is not None:
        needed = "a million seeds or more" if comparison.seeds_needed >= 10**6 else f"{comparison.seeds_needed:,} seeds"
        told.append(f"With {needed} a t-test finds a mean gain as large as this one in four studies of five.")
    return " ".join(told)


def in_markdown(study: Study, found: Mapping[str, Comparison], schedule: str) -> str:
    """What one would write in a paper: numbers, seeds, tests and versions."""
    intervals = " and ".join(dict.fromkeys(one.intervals for one in found.values()))
    lines = [
        f"We compared the trained weights with their average, `{schedule}`, over {len(study.seeds)} seeds "
        f"({min(study.seeds)} to {max(study.seeds)}) of the same experiment. Gains are relative to the original; "
        f"medians, means and their 95 % intervals ({intervals}) are of the seeds with a finite gain, wins and p-values "
        "(two-sided, Wilcoxon's signed ranks) of all.",
        "",
        "| question | seeds | wins | finite gains | median | 95 % interval | mean | 95 % interval | p | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for question, one in found.items():
        gain = " | ".join(f"{_or_none(i.estimate)} | {_or_none(i.low, i.high)}" for i in (one.median, one.mean))
        p = "none" if np.isnan(one.wilcoxon_p) else f"{one.wilcoxon_p:.2g}"
        lines.append(
            f"| {QUESTIONS[question]} | {one.seeds} | {one.wins} | {one.pairs} | {gain} | {p} | {kind_of(one)} |"
        )
    lines += ["", *(verdict(one, QUESTIONS[question]) for question, one in found.items()), ""]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy", "scikit-learn"))
    lines.append(f"Python {platform.python_version()}, {versions}.")
    return "\n".join(lines)


def _or_none(*shares: float) -> str:
    return "none" if np.isnan(shares).any() else " to ".join(map(percent, shares))
