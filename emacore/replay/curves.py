"""What replays of one run show side by side: tables to draw, the figures of their curves, and sentences on those.

Tables are dicts of arrays.  What is measured is told by :class:`~emacore.replay.measure.Metric`: the first is the loss,
of which less is better, the others have a direction of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emacore.averaging.schedules import Schedule
from emacore.averaging.windows import Scheme
from emacore.formatting import compared, number, percent
from emacore.replay.atlas import has_beta, plateau
from emacore.replay.measure import Metric, lead_in_words, trailing
from emacore.replay.trajectory import Table, Trajectory
from emacore.replay.weight_space import Space

#: Which averages a recording of every k-th step replays less closely than the run's own.
MISS_MORE = "averages that look back few steps, or still hold much of their start, miss theirs by more"


def curve(trajectory: Trajectory, scheme: Scheme) -> Table:
    """The curve of a scheme: epoch, step (the one after which the epoch ended, from 0), and each metric's column.

    Raises:
        ValueError: if nothing says how networks are measured.
    """
    found = trajectory.replay({"": scheme})
    steps = trajectory.rows.steps[trajectory.epoch_ends]
    return {"epoch": found["epoch"], "step": steps, **{m.column: found[m.column] for m in trajectory.measured}}


def stacked(parts: Mapping[str, Table]) -> Table:
    """Tables with the same columns below each other: curve (the name of each row's table), and those columns.

    Raises:
        ValueError: if there is none, or their columns differ.
    """
    if not parts:
        raise ValueError("there must be at least one table")
    columns = list(next(iter(parts.values())))
    for name, part in parts.items():
        if set(part) != set(columns):
            raise ValueError(f"all tables must have the columns {', '.join(columns)}; {name!r} has {', '.join(part)}")
    lengths = [len(part[columns[0]]) for part in parts.values()]
    names = np.repeat(np.array(list(parts), dtype=object), lengths)
    return {"curve": names, **{column: np.concatenate([part[column] for part in parts.values()]) for column in columns}}


def weights_of_rows(trajectory: Trajectory, scheme: Scheme) -> Table:
    """What each row weighs in a scheme's last average: step, weight; rows that weigh nothing are left out."""
    shares = trajectory.shares(scheme)
    return {"step": trajectory.rows.steps[shares > 0], "weight": shares[shares > 0]}


def curve_figures(curves: Table, metrics: Sequence[Metric], original: str, from_epoch: int) -> Table:
    """Figures of several validation curves of one run, a row each, in their order.

    Args:
        curves: A long table: curve, epoch, and each metric's column.
        metrics: The loss, and what else was measured.
        original: The curve that the others are compared with.
        from_epoch: Where the standard deviation (steadiness) begins.

    Returns:
        curve, final, best, best_epoch, steadiness, ahead_since and ahead_for of the loss, then final_<column> and
        best_<column> of each other metric, each metric's best of its own epoch.  The standard deviation is over the
        epochs at which all losses are finite; NaN where those are fewer than two.  ``ahead_since`` is the epoch from
        which the loss stays better than the original's to the end, NaN if it does not, and ``ahead_for`` how many
        epochs those are.

    Raises:
        ValueError: unless all curves have the same epochs, for else their figures could not be compared.
    """
    loss, *others = metrics
    names = list(dict.fromkeys(curves["curve"].tolist()))
    rows = {name: np.flatnonzero(curves["curve"] == name) for name in names}
    rows = {name: own[np.argsort(curves["epoch"][own], kind="stable")] for name, own in rows.items()}
    _check_same_epochs({name: set(curves["epoch"][own].tolist()) for name, own in rows.items()}, original)
    epochs = curves["epoch"][rows[original]]
    losses = np.array([curves[loss.column][rows[name]] for name in names], dtype=np.float64)
    steady = losses[:, (epochs >= from_epoch) & np.isfinite(losses).all(axis=0)]
    beside = losses[names.index(original)]
    below = losses > beside if loss.higher_is_better else losses < beside
    ahead = [trailing(own) for own in below]
    best = [loss.best(values) for values in losses]
    found = {
        "curve": np.array(names, dtype=object),
        "final": losses[:, -1],
        "best": losses[np.arange(len(names)), best],
        "best_epoch": epochs[best],
        "steadiness": steady.std(axis=1, ddof=1) if steady.shape[1] > 1 else np.full(len(names), np.nan),
        "ahead_since": np.array([epochs[-n] if n else np.nan for n in ahead], dtype=np.float64),
        "ahead_for": np.array(ahead),
    }
    for metric in others:
        values = np.array([curves[metric.column][rows[name]] for name in names], dtype=np.float64)
        found[f"final_{metric.column}"] = values[:, -1]
        found[f"best_{metric.column}"] = np.array([own[metric.best(own)] for own in values])
    return found


def curve_in_words(figures: Table, original: str, averaged: str, unit: str = "epoch") -> str:
    """What averaging did in this run, from two rows of :func:`curve_figures`; its epochs may be another ``unit``."""
    places = [figures["curve"].tolist().index(name) for name in (original, averaged)]
    one, other = ({name: values[place] for name, values in figures.items()} for place in places)
    if not np.isfinite([one["best"], other["best"]]).any():
        return f"This run diverged before its first {unit} ended: no loss is finite, whatever is averaged."
    told = (
        f"In this run the average ends {_against(other['final'], one['final'])}; its lowest loss is "
        f"{_against(other['best'], one['best'])}."
    )
    if one["steadiness"] > 0:
        share = percent(other["steadiness"] / one["steadiness"], 2)
        told += f" Its curve's standard deviation is {share} of the original's."
    return f"{told} {lead_in_words(float(other['ahead_since']), int(other['ahead_for']), unit)}"


def thinning_in_words(
    epochs: ArrayLike, exact: ArrayLike, replayed: ArrayLike, every: int, from_epoch: int = 10
) -> str:
    """How far replays of a recording of every so many steps can be trusted, measured on its own run.

    Args:
        epochs: Of the run, shape (N,).
        exact: The loss of the run's own average after each, measured as it trained, with every step.
        replayed: The same, replayed from the recording.
        from_epoch: The largest miss is of the epochs from here on; of all where there are none.

    Raises:
        ValueError: if those are not as many.
    """
    _check_length("exact", exact, epochs)
    _check_length("replayed", replayed, epochs)
    known, found = np.asarray(exact, dtype=np.float64), np.asarray(replayed, dtype=np.float64)
    told = f"The recording holds one step in {every} only, to stay within its budget, so replays are close, not exact"
    usable = np.isfinite(known) & np.isfinite(found) & (known != 0)  # of a loss of 0 no miss is a share
    if not usable.any():
        return f"{told}."
    counted = np.asarray(epochs)[usable]
    missed = np.abs(found[usable] / known[usable] - 1)
    late = counted >= from_epoch
    since = from_epoch if late.any() else int(counted[0])
    largest = missed[late].max() if late.any() else missed.max()
    return (
        f"{told}: the run's own average, replayed from it, misses the loss that the training measured by "
        f"{percent(missed[-1], 2)} after epoch {counted[-1]}, and by up to {percent(largest, 2)} from epoch {since} "
        f"on. {MISS_MORE[0].upper()}{MISS_MORE[1:]}."
    )


def smaller_rate_in_words(epochs: ArrayLike, rates: ArrayLike, original: ArrayLike, averaged: ArrayLike) -> str:
    """Whether, in this run, a smaller learning rate did for the original what averaging does.

    The original's medians at a high rate (at least half of the first; the later half of those epochs, so that the
    approach is over) and at a low one (at most a quarter) are set beside the average's.

    Args:
        epochs, rates: Of the run: its epochs, and the learning rate of each; shape (N,).
        original, averaged: The validation loss of the trained weights and of their average after each.

    Raises:
        ValueError: if those are not as many, or none.
    """
    if not len(np.asarray(epochs)):
        raise ValueError("there must be at least one epoch")
    for name, values in (("rates", rates), ("original", original), ("averaged", averaged)):
        _check_length(name, values, epochs)
    counted, rate = np.asarray(epochs), np.asarray(rates, dtype=np.float64)
    trained, average = np.asarray(original, dtype=np.float64), np.asarray(averaged, dtype=np.float64)
    high, low = np.flatnonzero(rate >= rate[0] / 2), np.flatnonzero(rate <= rate[0] / 4)
    high = high[len(high) // 2 :]
    before = np.median(trained[high]), np.median(average[high])
    if not np.isfinite(before).all():
        return (
            "The losses at the high learning rate are not all finite, so this run cannot say whether a smaller one "
            "would have done the same."
        )
    told = (
        f"While the learning rate was high (epochs {counted[high[0]]} to {counted[high[-1]]}), the average's median "
        f"loss was {_against(before[1], before[0])}."
    )
    if len(low) < 3:
        return (
            f"{told} The rate never fell to a quarter of its first value for three epochs, so this run cannot say "
            "whether a smaller one would have done the same."
        )
    after = np.median(trained[low]), np.median(average[low])
    told += (
        f" At a quarter of the rate or less (from epoch {counted[low[0]]} on) it was {_against(after[1], after[0])}."
    )
    gained = before[0] - before[1]
    if not np.isfinite(after).all():
        return told
    if gained <= 0 or number(before[0]) == number(before[1]):
        return f"{told} At the high rate averaging gained nothing here that a smaller rate could replace."
    share = (before[0] - after[0]) / gained
    return (
        f"{told} By itself the smaller rate, with the epochs it trained, took the original from {number(before[0])} to "
        f"{number(after[0])}: {percent(max(0.0, share), 2)} of what averaging gained at the high rate."
    )


def beta_never_acts(cells: Table, schedule: Schedule, x: str, y: str) -> NDArray[np.bool_]:
    """In which cells of an atlas of ``schedule`` over ``x`` and ``y`` there is a beta which never acts: the run is too
    short for it."""
    never = np.isnan(cells["beta_from"].astype(np.float64))
    return never if has_beta(schedule, x, y) else np.zeros_like(never)


class Best(NamedTuple):
    """The row of a table that has the best loss, that loss, and the share of the rows within 5 % of it."""

    row: int
    loss: float
    near: float


def best_row(table: Table, loss: Metric) -> Best | None:
    """The best row by its loss; ``None`` if no row has a finite one.

    Rows without a code, where the table has that column, are no rows that could have been chosen.
    """
    losses = np.asarray(table[loss.column], dtype=np.float64)
    if not np.isfinite(losses).any():
        return None
    there = np.array([code is not None for code in table["code"]]) if "code" in table else np.ones(len(losses), bool)
    row = loss.best(losses)
    return Best(row, float(losses[row]), plateau(losses[there]))


def atlas_in_words(cells: Table, best: Best, reference: float, metric: str) -> str:
    """The lowest cell of an atlas, beside the original on the same terms, and how much the choice matters.

    Args:
        best: Of the cells.
        reference: The original's loss.
        metric: "final" or "best", as of the cells.
    """
    terms = "" if metric == "final" else "at its lowest of the same epochs "
    return (
        f"The lowest cell, `{cells['code'][best.row]}`, has {number(best.loss)}; the original {terms}"
        f"{number(reference)}. It was **chosen on these very validation rows**, so it flatters itself. "
        f"{percent(best.near, 2)} of the cells lie within 5 % of it: the wider that plateau, the less the choice "
        "matters."
    )


def no_best_in_words(cells: Table, metric: str) -> str:
    """Why an atlas has no lowest cell: none of its averages can be had, or none has a finite loss.

    Args:
        metric: "final" or "best", as of the cells.
    """
    if all(code is None for code in cells["code"]):
        return "All cells of this map are empty: no such average can be had in this run. Choose other axes or settings."
    if metric == "best":
        return "No schedule of this map has a finite loss after any of the epochs that are looked at."
    return (
        "No schedule of this map has a finite loss after the last epoch of this run. Its lowest may be finite: "
        "choose **best**."
    )


def width_curves(widths: Table, loss: Metric, reference: float) -> Table:
    """The final loss of averages over their relative width, beside the original's: curve, width (%), loss.

    Args:
        widths: What :func:`emacore.replay.atlas.widths` found.
        reference: The original's final loss.
    """
    width, losses = 100 * widths["relative_width"], widths[loss.column]
    return stacked(
        {
            "average": {"width": width, "loss": losses},
            "original": {"width": width, "loss": np.full(len(width), reference)},
        }
    )


def width_in_words(widths: Table, best: Best, reference: float) -> str:
    """What the best relative width of a run is good for."""
    return (
        f"In this run the relative width **{percent(widths['relative_width'][best.row])}** was best: "
        f"{number(best.loss)}, the original {number(reference)}; {percent(best.near, 2)} of the widths are within 5 % "
        "of it. A width is a share of the run, so it can be carried to a run of another length. It was chosen on these "
        "validation rows and this seed."
    )


def distances(space: Space, original: str, averaged: str) -> Table:
    """How far weights and average are from the last weights: curve (named so), step, distance (Euclidean)."""
    steps = space.distances["step"]
    return stacked(
        {
            original: {"step": steps, "distance": space.distances["original"]},
            averaged: {"step": steps, "distance": space.distances["ema"]},
        }
    )


def finite_range(values: ArrayLike) -> tuple[float, float]:
    """The lowest and the highest finite value; NaN where there is none."""
    numbers = np.asarray(values, dtype=np.float64)
    finite = numbers[np.isfinite(numbers)]
    return (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)


def shown_in_words(original: float, averaged: float) -> str:
    """What a plane shows of two paths: the shares of their variances, NaN of one that does not move."""
    rest = "; the rest of it is hidden above and below."
    moves, follows = not np.isnan(original), not np.isnan(averaged)
    if not moves and not follows:
        return "Neither the weights nor their average move."
    if not moves:
        told = f"{percent(averaged, 2)} of the variance of the average's path"
        return f"The plane shows {told}{rest} The weights stand still."
    told = f"The plane shows {percent(original, 2)} of the variance of the weights' path"
    if not follows:
        return f"{told}{rest} The average stands still."
    return f"{told} and {percent(averaged, 2)} of the average's{rest}"


def _check_same_epochs(epochs: Mapping[str, set[int]], original: str) -> None:
    for name, found in epochs.items():
        other = sorted(found ^ epochs[original])
        if other:
            raise ValueError(
                f"all curves must have the same epochs, but only one of {name!r} and {original!r} has epoch {other[0]}"
            )


def _check_length(name: str, values: ArrayLike, epochs: ArrayLike) -> None:
    count, found = len(np.asarray(epochs)), len(np.asarray(values))
    if found != count:
        raise ValueError(f"{name} must have the {count} epochs of the history, got {found}")


def _against(value: float, reference: float) -> str:
    if not np.isfinite(value):
        return f"not finite (the original's is {number(reference) if np.isfinite(reference) else 'not finite either'})"
    if not np.isfinite(reference):
        return f"at {number(value)}, where the original's is not finite"
    both = number(value), number(reference)
    numbers = both[0] if both[0] == both[1] else " and ".join(both)
    return f"{compared(value, reference, 'below', 'above')} the original's ({numbers})"
