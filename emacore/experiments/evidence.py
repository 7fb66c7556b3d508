"""What a study over seeds says: a row a seed, curves over epochs, answers.  Imports no torch."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import pandas as pd
import scipy  # whose parts are loaded where they are used
from numpy.typing import ArrayLike

from emacore.averaging.code import from_code, to_code
from emacore.averaging.schedules import Schedule
from emacore.checks import check_whole
from emacore.experiments.statistics import (
    CLASSICAL,
    PairedComparison,
    gains,
    interval_in_words,
    kind_of,
    known_gains,
    over_pairs,
    paired_comparison,
    verdict,
)
from emacore.experiments.studies import Study
from emacore.formatting import counted, number, p_value, percent, signed_percent
from emacore.tasks.regression.article import FINAL
from emacore.training.acting import idle_settings
from emacore.training.config import TaskConfig
from emacore.training.history import TimeLeft, time_left

#: The questions, and what they ask of a seed.
QUESTIONS = {
    "final": "the final loss",
    "fixed": "the loss at a fixed epoch",
    "own": "the loss where each curve's own early stop ends it",
    "best": "the lowest loss of a run",
    "steadiness": "the curve's standard deviation",
}
#: The curves of :func:`win_curves`.
AHEAD, TRAINING = "ahead", "training"


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is.

    Args:
        epoch: The last one trained; 0 before the first is over.
        share: That epoch's share of the epochs that a run can have at most.
        training: How many seeds train in that epoch.
        left: How long it has to go at most; ``None`` before the first epoch is over.
    """

    epoch: int
    share: float
    training: int
    left: TimeLeft | None


def progress(history: pd.DataFrame, max_epochs: int) -> StudyProgress:
    """How far a study is by its history, which may be empty."""
    if history.empty:
        return StudyProgress(0, 0.0, 0, None)
    taken = history.groupby("epoch")["seconds"].max()
    epoch, shares = int(taken.index[-1]), taken.index.to_numpy() / max_epochs
    return StudyProgress(epoch, epoch / max_epochs, int((history["epoch"] == epoch).sum()), time_left(taken, shares))


def per_seed(
    history: pd.DataFrame, averaged: str = "ema", steady_from: int = 20, patience: int | None = None
) -> pd.DataFrame:
    """The figures of each seed: seed, epochs, and both curves' answers to each of :data:`QUESTIONS`.

    Args:
        history: Of a study; losses are those of the columns ``val_loss_original`` and ``val_loss_<averaged>``.
        steady_from: The epoch from which the standard deviations of both losses are taken, over the epochs at which
            both are finite; NaN where fewer than two are left.
        patience: Of an early stop.  Without one there is no answer to "own".

    Returns:
        ``<question>_original`` and ``<question>_ema``.  The final loss is that of the seed's own last epoch, the
        fixed one that of ``fixed_epoch``, the last that all seeds reached which did not diverge.  The own one is that
        of ``own_epoch_<curve>``, at which an early stop that looks at this curve alone ends it, or, where the run ended
        before (``own_ended_<curve>`` is false), that of the last epoch.

    Raises:
        TypeError: if ``history`` is no table.
        ValueError: if it has no rows, or not these columns; for another ``patience``.
    """
    if not isinstance(history, pd.DataFrame):
        raise TypeError(
            f"history must be a study's table, such as replicate(config, seeds).history, got {history!r:.200}"
        )
    needed = ["seed", "epoch", "val_loss_original", f"val_loss_{averaged}"]
    if missing := [column for column in needed if column not in history]:
        raise ValueError(f"history has no column {missing[0]!r}; it has {', '.join(map(str, history.columns))}")
    if history.empty:
        raise ValueError("history has no rows: no epoch of the study is over")
    if patience is not None:
        check_whole("patience", patience, 1)
    groups = history.groupby("seed", sort=False)
    last = history.loc[groups["epoch"].idxmax().to_numpy()].set_index("seed")
    curves = {"original": "val_loss_original", "ema": f"val_loss_{averaged}"}
    finite = np.isfinite(history[list(curves.values())].to_numpy(dtype=np.float64)).all(axis=1)
    late = history[finite & (history["epoch"] >= steady_from)].groupby("seed", sort=False)
    table = groups["epoch"].max().rename("epochs").to_frame()
    sound, reached = np.isfinite(last[list(curves.values())].to_numpy()).all(axis=1), table["epochs"].to_numpy()
    fixed = int((reached[sound] if sound.any() else reached).min())
    then = history[history["epoch"] == fixed].set_index("seed")
    for name, column in curves.items():
        table[f"final_{name}"] = last[column]
        table[f"fixed_{name}"] = then[column].reindex(table.index)
        table[f"best_{name}"] = groups[column].min()
        table[f"steadiness_{name}"] = late[column].std()
    table["fixed_epoch"] = fixed
    if patience is not None:
        for name, column in curves.items():
            stops = [_own_stop(rows.sort_values("epoch"), column, patience) for _, rows in groups]
            names = [f"own_{name}", f"own_epoch_{name}", f"own_ended_{name}"]
            table[names] = pd.DataFrame(stops, columns=names, index=table.index)
    return table.reset_index()


def _own_stop(rows: pd.DataFrame, column: str, patience: int) -> tuple[float, int, bool]:
    """Loss and epoch at which an early stop that looks at one curve ends a run, and whether it does."""
    losses, epochs = rows[column].to_numpy(), rows["epoch"].to_numpy()
    filled = np.where(np.isnan(losses), np.inf, losses)
    fresh = filled < np.concatenate([[np.inf], np.minimum.accumulate(filled)[:-1]])  # a new best
    since = epochs - np.maximum.accumulate(np.where(fresh, epochs, 0))
    over = np.flatnonzero(since >= patience)
    at = int(over[0]) if over.size else len(rows) - 1
    return float(losses[at]), int(epochs[at]), bool(over.size)


def patience_of(config: TaskConfig) -> int | None:
    """The patience of a run's early stop; ``None`` if it has none."""
    return None if config.stopping.curve == "none" else config.stopping.patience


def looking_at(config: TaskConfig) -> dict[str, list[str]]:
    """Which rules of a run look at which curve, "ema" or "original"; those that cannot act are left out."""
    idle = idle_settings(config)
    rules: dict[str, list[str]] = {"ema": [], "original": []}
    if config.stopping.curve != "none" and "stopping.curve" not in idle:
        rules[config.stopping.curve].append("the early stop")
    if "optimizer.plateau_curve" not in idle:
        rules[config.optimizer.plateau_curve].append("the plateau rule of the learning rate")
    return rules


def rules_in_words(config: TaskConfig, averaged: Schedule | None = None) -> str:
    """Which rules of the runs look at a curve, to be said beside their final numbers; empty if none does.

    Args:
        averaged: The schedule of the average that is compared; by default the runs' own.
    """
    told, rules = [], looking_at(config)
    own = averaged is None or averaged == config.schedule
    for curve, names in rules.items():
        if not names:
            continue
        if curve == "original":
            whose, past = "the original", "the original"
        elif own:
            whose, past = "this average", "the average"
        else:
            whose, past = f"another average, {to_code(config.schedule)}", "that average"
        told.append(f"Here {' and '.join(names)} look{'s' if len(names) == 1 else ''} at {whose}.")
        if "the early stop" in names:
            told.append(
                f"A run that it ends is {counted(config.stopping.patience, 'epoch')} past the lowest loss of {past}, "
                f"so the last epoch shows {past} past its best: the final loss tells of this rule as much as of "
                "averaging."
            )
        elif curve == "ema":
            told.append("So it steers the training, and the final loss tells of this rule as well.")
    return " ".join(told)


def rules_of_run_in_words(config: TaskConfig, history: pd.DataFrame, stopped: str) -> str:
    """:func:`rules_in_words` of one run that is over, whose ``history`` and end say which of its rules acted."""
    if stopped != "early stop":
        config = replace(config, stopping=replace(config.stopping, curve="none"))
    if history["learning_rate"].nunique() == 1:
        config = replace(config, optimizer=replace(config.optimizer, rate_rule="constant"))
    return rules_in_words(config)


def chosen_in_words(table: pd.DataFrame, found: Mapping[str, PairedComparison], config: TaskConfig) -> str:
    """At which epoch each answer is taken, and on what that was chosen.

    Args:
        table: :func:`per_seed`'s.
        found: The answers.
    """
    told = ["Final: each run's last epoch."]
    if "fixed" in found:
        told.append(_fixed_in_words(table))
    if "own" in found:
        ended = {"the original": table["own_ended_original"], "the average": table["own_ended_ema"]}
        short = {name: int((~flags.astype(bool)).sum()) for name, flags in ended.items()}
        early = [
            f"{n} of {counted(len(table), 'run')} {'was' if n == 1 else 'were'} over before {name}'s could act"
            for name, n in short.items()
            if n
        ]
        last = f"; {' and '.join(early)}, and there the last epoch is taken" if early else ""
        told.append(
            f"Own: each curve at the end of an early stop ({counted(config.stopping.patience, 'epoch')} without a new "
            f"best) that looks at itself, on the validation rows it is judged by{last}."
        )
    if "best" in found:
        told.append(
            "Best: picked from all epochs on the validation rows it is judged by, which favours the less steady curve."
        )
    return " ".join(told)


def _fixed_in_words(table: pd.DataFrame) -> str:
    """Which epoch the fixed one is, and how many runs are without it."""
    fixed = int(table["fixed_epoch"].dropna().iloc[0])
    without = int((table["epochs"] < fixed).sum())
    if not without:
        return f"Fixed: epoch {fixed} of every run, the last that all reached."
    return (
        f"Fixed: epoch {fixed}, the last that all reached which did not diverge; {without} of "
        f"{counted(len(table), 'run')} diverged before it and {'has' if without == 1 else 'have'} no loss there."
    )


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


def win_curves(shares: pd.DataFrame, seeds: int) -> pd.DataFrame:
    """:func:`wins` as two curves in percent, a long table: epoch, curve, share.

    :data:`AHEAD` is the share of the seeds counted at that epoch whose average has the lower loss, :data:`TRAINING` the
    share of all ``seeds`` that is counted there.
    """
    curves = {AHEAD: 100 * shares["share"], TRAINING: 100 * shares["seeds"] / seeds}
    return pd.concat(
        [pd.DataFrame({"epoch": shares["epoch"], "curve": name, "share": share}) for name, share in curves.items()],
        ignore_index=True,
    )


def steadiness_ratios(table: pd.DataFrame) -> pd.DataFrame:
    """The standard deviation of each seed's averaged curve by that of its original one: seed, ratio.

    Args:
        table: :func:`per_seed`'s.  NaN where a run is too short for it.
    """
    return pd.DataFrame({"seed": table["seed"], "ratio": table["steadiness_ema"] / table["steadiness_original"]})


def share_below(values: ArrayLike, value: float) -> str:
    """The share of the values below one in words, ties counted half; NaN is left out."""
    share = scipy.stats.percentileofscore(values, value, kind="mean", nan_policy="omit")
    return "none" if np.isnan(share) else f"{share:.0f} %"


def training_in_words(history: pd.DataFrame, averaged: str = "ema") -> str:
    """How many seeds still train at which epoch, and how many of them have losses that no band can be of."""
    return " ".join(filter(None, [_ends_in_words(history), _lost_in_words(history, averaged)]))


def _lost_in_words(history: pd.DataFrame, averaged: str) -> str:
    curves = history[["val_loss_original", f"val_loss_{averaged}"]].to_numpy(dtype=np.float64)
    lost, seeds = history["seed"][~np.isfinite(curves).all(axis=1)].nunique(), history["seed"].nunique()
    if not lost:
        return ""
    have, are = ("has", "is") if lost == 1 else ("have", "are")
    return f"{lost} of {counted(seeds, 'seed')} {have} losses that are not finite, and {are} not counted there."


def _ends_in_words(history: pd.DataFrame) -> str:
    training = history.groupby("epoch").size()
    seeds, last = int(training.max()), int(training.index[-1])
    if training.iloc[-1] == seeds:
        return (
            f"All {seeds} seeds train up to epoch {last}." if seeds > 1 else f"The one seed trains up to epoch {last}."
        )
    all_of_them, half = (int(training.index[training >= least][-1]) for least in (seeds, seeds / 2))
    return (
        f"All {seeds} seeds train up to epoch {all_of_them}, {int(training[half])} up to epoch {half}, and "
        f"{int(training.iloc[-1])} up to the last, {last}: bands and shares are of the seeds that still train."
    )


def headline(found: Mapping[str, PairedComparison], config: TaskConfig, *, complete: bool = True) -> str:
    """What the answers say together, in one sentence; one that a rule on a curve decides says so.

    Args:
        found: :func:`answers`'s.
        complete: Whether all seeds have ended.
    """
    final = found["final"]
    size = percent(abs(final.median.estimate))
    over = f" over {over_pairs(final)}" if final.infinite else ""
    told = {
        "helps": f"averaging lowers the final loss by {size} in the median{over}",
        "hurts": f"averaging raises the final loss by {size} in the median{over}",
        "no difference shown": "no difference in the final loss is shown",
        "unclear": "whether averaging changes the final loss is unclear",
        "cannot tell": "nothing can be told of the final loss",
    }[kind_of(final)]
    rule = ""
    for curve, rules in looking_at(config).items():
        whose = "average" if curve == "ema" else "original"
        if "the early stop" in rules:
            rule = f", while an early stop looked at the {whose}'s loss"
        elif rules and not rule:
            rule = f", while the learning rate followed the {whose}'s loss"
    steady = ""
    if one := found.get("steadiness"):
        steady = {
            "helps": f"; its curve is steadier in {one.wins} of {one.seeds}",
            "hurts": f"; its curve is less steady in {one.losses} of {one.seeds}",
        }.get(kind_of(one), "")
    has_median = final.pairs and " in the median" not in told
    median = f"median gain {signed_percent(final.median.estimate)}{over}; " if has_median else ""
    return (
        f"{'Over' if complete else 'So far, over'} {counted(final.seeds, 'seed')}, {told} ({median}the average was "
        f"better in {final.wins}{rule}){steady}."
    )


def answers(table: pd.DataFrame, intervals: str = CLASSICAL) -> dict[str, PairedComparison]:
    """A comparison for each of :data:`QUESTIONS`, from :func:`per_seed`'s table.

    Args:
        intervals: As :func:`~emacore.experiments.statistics.paired_comparison` takes them.

    Returns:
        By question; one to which no seed has an answer, or none of its own, is left out.

    Raises:
        TypeError: if ``table`` is none.
        ValueError: if it is another one, or there are no such intervals.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be that of per_seed(history), got {table!r:.200}")
    if not {"final_original", "final_ema"} <= set(table):
        raise ValueError(f"table must be that of per_seed(history), got one of {', '.join(map(str, table.columns))}")
    found = {question: comparison_of(table, question, intervals) for question in QUESTIONS}
    return {question: one for question, one in found.items() if one is not None}


def comparison_of(table: pd.DataFrame, question: str, intervals: str = CLASSICAL) -> PairedComparison | None:
    """The comparison for one of :data:`QUESTIONS`; ``None`` where no seed has an answer that differs in kind.

    Where all runs end at the same epoch, the fixed one is the final one; so is the own one where no early stop acts.
    """
    if f"{question}_original" not in table:
        return None
    names = (f"{question}_original", f"{question}_ema")
    pairs = np.column_stack([table[name].to_numpy(dtype=np.float64) for name in names])
    if question == "steadiness":  # a run too short for it is no loss of either
        pairs = pairs[~np.isnan(pairs).any(axis=1)]
    if question == "own" and not table[["own_ended_original", "own_ended_ema"]].eq(True).any(axis=None):
        return None
    if question == "fixed" and ((table["fixed_epoch"] == table["epochs"]) | np.isnan(pairs).any(axis=1)).all():
        return None
    if not len(pairs):
        return None
    return paired_comparison(*pairs.T, intervals=intervals)


def gains_in_words(table: pd.DataFrame, comparison: PairedComparison, *, is_article: bool = False) -> str:
    """What the gains in the final loss show beside their median: mean, and single seeds.

    Args:
        table: :func:`per_seed`'s, of which ``comparison`` is the final loss's.
        is_article: Whether the settings are the article's, so that its one run is one more draw.
    """
    found = known_gains(table["final_original"], table["final_ema"])
    found = found[~np.isnan(found)]
    if not len(found):
        return "No seed has a finite loss, of the original or of the average, so there is no gain to tell of."
    told = []
    if comparison.infinite:
        told.append(f"Drawn are {over_pairs(comparison)}; the others have no finite gain.")
    if comparison.pairs:
        mean = comparison.mean
        told.append(
            f"The mean gain is {signed_percent(mean.estimate)} ({interval_in_words(mean)}), over "
            f"{over_pairs(comparison)}."
        )
    if is_article:
        theirs = float(FINAL["gain_percent"][0])
        less = scipy.stats.percentileofscore(100 * found, theirs, kind="mean")
        told.append(
            f"The article's one run gained {theirs:g} %: {number(less, 3)} % of the {counted(len(found), 'seed')} "
            "gained less."
        )
    chance, wanted = comparison.chance, percent(comparison.wanted_gain)
    told.append(
        f"A single seed shows a gain of at least {wanted} with a chance of {percent(chance.estimate, 2)} (95 % "
        "interval "
        f"{percent(chance.low, 2)} to {percent(chance.high, 2)}, from {counted(comparison.seeds, 'seed')})."
    )
    if comparison.seeds_needed is not None:
        needed = "a million seeds or more" if comparison.seeds_needed >= 10**6 else f"{comparison.seeds_needed:,} seeds"
        told.append(
            f"With {needed} a t-test finds a mean gain as large as this one in four studies of five, if gains are "
            "spread normally."
        )
    return " ".join(told)


def in_markdown(study: Study, found: Mapping[str, PairedComparison], schedule: str, table: pd.DataFrame) -> str:
    """What one would write in a paper: numbers, seeds, tests, what each was chosen on, and versions.

    Args:
        found: The answers from ``table``, which is :func:`per_seed`'s.
        schedule: Of the average, as code.
    """
    first_to_last = " to ".join(map(str, sorted({min(study.seeds), max(study.seeds)})))
    intervals = " and ".join(dict.fromkeys(one.intervals for one in found.values()))
    lines = [
        f"We compared the trained weights with their average, `{schedule}`, over {counted(len(study.seeds), 'seed')} "
        f"({first_to_last}) of the same experiment. Gains are relative to the original; "
        f"medians, means and their 95 % intervals ({intervals}) are of the seeds with a finite gain, wins and p-values "
        "(two-sided, Wilcoxon's signed ranks) of all.",
        *filter(None, [rules_in_words(study.config, from_code(schedule))]),
        chosen_in_words(table, found, study.config),
        "",
        "| question | seeds | wins | finite gains | median | 95 % interval | mean | 95 % interval | p | verdict |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for question, one in found.items():
        gain = " | ".join(f"{_or_none(i.estimate)} | {_or_none(i.low, i.high)}" for i in (one.median, one.mean))
        p = "none" if np.isnan(one.wilcoxon_p) else p_value(one.wilcoxon_p).removeprefix("= ")
        lines.append(
            f"| {QUESTIONS[question]} | {one.seeds} | {one.wins} | {one.pairs} | {gain} | {p} | {kind_of(one)} |"
        )
    lines += ["", *(verdict(one, QUESTIONS[question]) for question, one in found.items()), ""]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy", "scikit-learn"))
    lines.append(f"Python {platform.python_version()}, {versions}.")
    return "\n".join(lines)


def _or_none(*shares: float) -> str:
    return "none" if np.isnan(shares).any() else " to ".join(map(signed_percent, shares))
