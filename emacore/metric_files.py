"""Metric files as trackers, loggers and people write them: which column is the step, which are metrics.

The formats are in :mod:`emacore.readers`; here each column of the table that they make gets its part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emacore.averaging.smoothing import Settled, Smoothing
from emacore.formatting import counted
from emacore.readers import plain, read_any, widened
from emacore.tables import DATE, Table, TableError, content_of

#: Names of the columns that count, the best x first.
STEPS = (
    *("step", "global_step", "trainer_global_step", "current_steps", "iter", "iteration", "iterations", "it"),
    *("training_step", "train_step", "n_iter", "num_steps", "update", "updates", "num_updates", "timesteps"),
    *("total_timesteps", "env_steps", "batch", "batch_idx", "epoch", "epochs", "index"),
)
TIMES = (
    *("wall_time", "walltime", "time", "timestamp", "runtime", "relative_time", "relative_time_process"),
    *("relative_time_wall", "date", "datetime", "created_at", "elapsed", "elapsed_time", "remaining_time"),
    *("time_elapsed", "data_time", "iter_time", "step_time", "eta", "t", "seconds", "hours", "minutes"),
)
#: Times that say how long something takes or will take, and not when it was.
_DURATIONS = ("data_time", "iter_time", "step_time", "eta", "remaining_time")
SETTINGS = ("lr", "learning_rate", "memory", "max_mem", "total_steps", "max_steps", "total_flos", "percentage", "fps")
COUNTER = re.compile(
    r"(?:(?:^|_)(?:steps?|iters?|iterations?|epochs?|batch(?:es)?|updates?|timesteps?|frames?|episodes?|samples|examples"
    r"|images|tokens|rounds?|generations?|ticks?|kimg)(?:_(?:idx|num|number|count|id|seen))?"
    r"|^(?:n|i|k|x|no|nr|idx|id|num|number|count|row|line))$"
)
#: Hours, minutes and seconds; and dates that two countries read differently.
_CLOCK = re.compile(r"(?:\d+ days?,? )?\d+:\d\d:\d\d(?:\.\d+)?")
_POINTED = re.compile(r"^(\d{1,2})\.(\d{1,2})\.(\d{4})(?=\D|$)")
_AMBIGUOUS = re.compile(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}(?: .*)?")

_COUNTER, _TIME, _METRIC = "a counter", "a time", "metric"


class Values(NamedTuple):
    """A metric where x is known: the row of each value in the file's table, x, and the value, each of shape (n,)."""

    rows: NDArray[np.int64]
    steps: NDArray[np.float64]
    values: NDArray[np.float64]


class MetricFile(NamedTuple):
    """What a metric file holds, and what is taken of it.

    Attributes:
        format: Its name in ``READERS``.
        frame: Every column and row, numbers as numbers.
        lines: The line of the file that each row began in, from 1, shape (rows,).
        step: The column that is x; ``None`` where there is none, and x is the number of the row.
        own_steps: The x of metrics that stand in rows where that one is blank, and another column counts.
        metrics: The columns to smooth.
        left_out: The other columns, and why.
        notes: Sentences on what was taken otherwise than it stands there.
        xs: The columns that may be x.
    """

    format: str
    frame: pd.DataFrame
    lines: NDArray[np.int64]
    step: str | None
    own_steps: dict[str, str]
    metrics: tuple[str, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]
    xs: tuple[str, ...]

    def x_of(self, metric: str) -> str | None:
        """The column that is x of a metric; ``None`` for the number of the row."""
        return self.own_steps.get(metric, self.step)

    def with_x(self, name: str | None) -> MetricFile:
        """The file with another column of ``xs`` as its x, or with the number of the row.

        Raises:
            TableError: for a column that cannot be x.
        """
        if name is not None and name not in self.xs:
            raise TableError(f"{name!r} cannot be x; what counts or tells a time is {', '.join(self.xs) or 'nothing'}.")
        left_out = {other: why for other, why in self.left_out.items() if other != name}
        if self.step is not None and self.step != name:
            left_out[self.step] = _COUNTER if as_places(self.frame[self.step])[1] == "" else _TIME
        return self._replace(step=name, own_steps={}, left_out=left_out)

    def steps(self, metric: str | None = None) -> NDArray[np.float64]:
        """x of each row, that of a metric or the one of most; of dates, seconds since the first.  Shape (rows,)."""
        name = self.step if metric is None else self.x_of(metric)
        if name is None:
            return np.arange(len(self.frame), dtype=np.float64)
        return as_places(self.frame[name])[0]

    def unit(self, metric: str | None = None) -> str:
        """What x of a metric is counted in: "step", or "seconds since 2026-01-01 12:00:00"."""
        name = self.step if metric is None else self.x_of(metric)
        return "row" if name is None else as_places(self.frame[name])[1] or name

    def values(self, name: str, *, in_order_of_steps: bool = True, last_of_step_only: bool = False) -> Values:
        """A column where x is known, without what is blank.

        Args:
            in_order_of_steps: In the order of x, and not in that of the rows.
            last_of_step_only: Of several values at one x, as after a restart, only the last one.
        """
        steps, column = self.steps(name), self.frame[name].to_numpy(dtype=np.float64)
        rows = np.flatnonzero(np.isfinite(steps) & ~np.isnan(column))
        if last_of_step_only:
            _, later = np.unique(steps[rows][::-1], return_index=True)
            rows = np.sort(rows[len(rows) - 1 - later])
        if in_order_of_steps:
            rows = rows[np.argsort(steps[rows], kind="stable")]
        return Values(rows, steps[rows], column[rows])

    def told(self) -> list[str]:
        """What was taken, in sentences."""
        x = f"x is {self.step}" if self.step is not None else "x is the number of the row"
        lines = [f"{self.format}, {counted(len(self.frame), 'row')}; {x}; metrics: {', '.join(self.metrics) or 'none'}"]
        if self.step is not None and self.unit() != self.step:
            lines.append(f"{self.step} is counted in {self.unit()}")
        lines += [f"{metric}: x is {name}, as {self.step} is blank there" for metric, name in self.own_steps.items()]
        if self.left_out:
            lines.append("left out: " + "; ".join(f"{name} ({why})" for name, why in self.left_out.items()))
        for name in self.metrics:
            values = self.frame[name].to_numpy(dtype=np.float64)
            for kind, what in ((np.isnan(values), "blank or no number"), (np.isinf(values), "infinite")):
                if count := int(kind.sum()):
                    first = self.lines[int(np.argmax(kind))]
                    lines.append(
                        f"{name}: {what} in {count:,} of {counted(len(values), 'row')}, first in line {first}; left so"
                    )
        return [*lines, *self.notes, *self._steps_in_words()]

    def span(self, names: Iterable[str]) -> float:
        """From the least x to the largest at which one of these has a value; 0 without any."""
        found = np.concatenate([self.values(name).steps for name in names] or [np.zeros(0)])
        return float(np.ptp(found)) if len(found) else 0.0

    def unsorted(self, names: Iterable[str]) -> bool:
        """Whether x goes back from row to row, where these have values."""
        found = (self.values(name, in_order_of_steps=False).steps for name in names)
        return any(bool(np.any(np.diff(steps) < 0)) for steps in found)

    def repeated(self, names: Iterable[str]) -> bool:
        """Whether one of these has several values at an x."""
        return any(bool(np.any(np.diff(self.values(name).steps) == 0)) for name in names)

    def _steps_in_words(self) -> list[str]:
        """Steps that are unsorted, repeated, uneven or blank, as far as the metrics have them."""
        lines = []
        for name in self.metrics:
            step = self.x_of(name)
            if step is None:
                continue
            steps = self.steps(name)[self.frame[name].notna().to_numpy()]
            if blank := int((~np.isfinite(steps)).sum()):
                lines.append(f"{name}: {step} is blank at {counted(blank, 'value')}: not smoothed")
            steps = steps[np.isfinite(steps)]
            gaps, ordered = np.diff(steps), np.diff(np.sort(steps))
            if np.any(gaps < 0):
                lines.append(f"{name}: {step} goes back {counted(int((gaps < 0).sum()), 'time')}")
            if again := int((ordered == 0).sum()):
                lines.append(f"{name}: {counted(again, 'value')} where {step} has one already")
            above = ordered[ordered > 0]
            if len(above) and not np.allclose(above, above[0], rtol=1e-6):
                lines.append(f"{name}: the distances of {step} are uneven, from {above.min():g} to {above.max():g}")
        return lines


def read_metrics(source: bytes | str | Path) -> MetricFile:
    """Read a metric file, a path or its bytes.

    Raises:
        TableError: if it cannot be read, or has no column of numbers.
    """
    name, table = read_any(content_of(source))
    return _taken(name, widened(table, STEPS, TIMES))


class Curve(NamedTuple):
    """A metric and what smoothings make of it: x and values, shape (n,), each smoothing's values and figures."""

    name: str
    unit: str
    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    smoothed: dict[str, NDArray[np.float64]]
    settled: dict[str, Settled]


def curves(
    file: MetricFile,
    names: Sequence[str],
    smoothings: Mapping[str, Smoothing],
    *,
    in_order_of_steps: bool = True,
    last_of_step_only: bool = False,
) -> list[Curve]:
    """Each of some columns with each of some smoothings, by their labels; what their x-axis spans is common to all.

    Raises:
        ValueError: where x goes back and a smoothing acts on distances; the message names the column.
    """
    span, found = file.span(names), []
    for name in names:
        _, steps, values = file.values(name, in_order_of_steps=in_order_of_steps, last_of_step_only=last_of_step_only)
        try:
            lines = {label: one.smooth(values, steps, span) for label, one in smoothings.items()}
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        settled = {label: one.settled(steps, span) for label, one in smoothings.items()}
        found.append(Curve(name, file.unit(name), steps, values, lines, settled))
    return found


def figures_table(found: Iterable[Curve]) -> pd.DataFrame:
    """What each smoothing does to each curve, in the unit of its x: lag, half-life, cut-off (cycles per unit), what is
    left of the standard deviation of white noise; at the usual distance of two values."""
    rows = [
        {
            "metric": curve.name,
            "smoothing": label,
            "x": curve.unit,
            "values": int(np.isfinite(curve.values).sum()),
            "distance": one.distance,
            "lag": one.lag,
            "half_life": one.half_life,
            "cutoff": np.nan if one.cutoff is None else one.cutoff,
            "noise_left": one.noise,
        }
        for curve in found
        for label, one in curve.settled.items()
    ]
    return pd.DataFrame(rows)


def with_smoothed(
    file: MetricFile,
    names: Sequence[str],
    smooth: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
    *,
    in_order_of_steps: bool = True,
    last_of_step_only: bool = False,
    suffix: str = "_smoothed",
) -> pd.DataFrame:
    """The frame with a column more for each of these: its own values, smoothed.

    Args:
        file: As it was read.
        names: Columns of numbers.
        smooth: From values and their x, shape (n,), to as many.
        in_order_of_steps, last_of_step_only: As :meth:`MetricFile.values` has them; other rows are blank.
        suffix: Of the new columns' names.

    Raises:
        TableError: if a new column is there already.
        ValueError: of ``smooth``.
    """
    new = {}
    for name in names:
        if f"{name}{suffix}" in file.frame:
            raise TableError(f"There is a column {name}{suffix} already: rename it, or choose another suffix.")
        rows, steps, values = file.values(
            name, in_order_of_steps=in_order_of_steps, last_of_step_only=last_of_step_only
        )
        column = np.full(len(file.frame), np.nan)
        column[rows] = smooth(values, steps)
        new[f"{name}{suffix}"] = column
    return file.frame.assign(**new)


def as_places(values: Any) -> tuple[NDArray[np.float64], str]:
    """A column as x: numbers as they are, dates as seconds since the first, times of day or durations as seconds.

    Returns:
        Shape (rows,), NaN where there is none; and the unit in words, "" for numbers.
    """
    if pd.api.types.is_bool_dtype(values):
        return np.full(len(values), np.nan), ""
    if pd.api.types.is_numeric_dtype(values):
        return values.to_numpy(dtype=np.float64), ""
    if pd.api.types.is_timedelta64_dtype(values):
        return values.dt.total_seconds().to_numpy(dtype=np.float64), "seconds"
    if not pd.api.types.is_datetime64_any_dtype(values):
        texts = values.astype(object).map(lambda value: str(value).strip(), na_action="ignore")
        first = next((text for text in texts.tolist() if isinstance(text, str)), "")
        if _CLOCK.fullmatch(first):
            found = pd.to_timedelta(texts.str.replace(",", ""), errors="coerce")
            return found.dt.total_seconds().to_numpy(dtype=np.float64), "seconds"
        if not DATE.fullmatch(first):
            return np.full(len(values), np.nan), ""
        texts = texts.str.replace("/", "-").str.replace(",", ".")
        texts = texts.str.replace(_POINTED, lambda date: f"{date[3]}-{date[2]:0>2}-{date[1]:0>2}", regex=True)
        values = pd.to_datetime(texts, utc=True, errors="coerce", format="ISO8601")
    if values.notna().sum() == 0:
        return np.full(len(values), np.nan), ""
    begin = values.min()
    seconds = (values - begin).dt.total_seconds().to_numpy(dtype=np.float64)
    return seconds, f"seconds since {begin:%Y-%m-%d %H:%M:%S}"


def _taken(form: str, table: Table) -> MetricFile:
    frame, names = table.frame, [str(name) for name in table.frame.columns]
    if not any(_is_number(frame[name]) for name in names):
        raise TableError(f"The file has no column of numbers; it has {_some(names)}.")
    nameless = any(note.startswith("there is no header row") for note in table.notes)
    counts = dict(zip(names, frame.count().tolist(), strict=True))
    roles = {name: _role(name, table, counts[name], nameless) for name in names}
    metrics = [name for name, role in roles.items() if role == _METRIC]
    # A value that stands there once is a summary, unless all are.
    if any(counts[name] > 1 for name in metrics):
        roles |= {name: "a single value" for name in metrics if counts[name] < 2}
        metrics = [name for name in metrics if counts[name] > 1]
    notes = list(table.notes)
    if _COUNTER not in roles.values() and len(metrics) > 1 and names[0] == metrics[0] and _rises(frame[names[0]]):
        roles[names[0]] = _COUNTER
        metrics.remove(names[0])
        notes.append(f"{names[0]} is taken as x, since it comes first and is of whole numbers that rise")
    counters = [name for name, role in roles.items() if role == _COUNTER]
    step = min(counters, key=lambda name: (_goes_back(frame[name]), _preference(name, STEPS)), default=None)
    own_steps = _own_steps(frame, metrics, step, counters)
    times = [name for name, role in roles.items() if role == _TIME and plain(name) not in _DURATIONS]
    times = [name for name in times if np.isfinite(as_places(frame[name])[0]).sum() > 1]
    if step is None:
        step = min(times, key=lambda name: (_goes_back(frame[name]), _preference(name, TIMES)), default=None)
    taken = {step, *own_steps.values()}
    left_out = {name: role for name, role in roles.items() if role != _METRIC and name not in taken}
    return MetricFile(
        form, frame, table.lines, step, own_steps, tuple(metrics), left_out, tuple(notes), (*counters, *times)
    )


def _role(name: str, table: Table, count: int, nameless: bool) -> str:
    """ "metric", "a counter", or why it is neither."""
    frame, values = table.frame, table.frame[name]
    word = plain(name)
    if not count:
        return "blank in every row"
    if not _is_number(values):
        return _no_numbers(values, word, table.lines)
    for end, kind in (("__MIN", "smallest"), ("__MAX", "largest")):
        if name.endswith(end) and name.removesuffix(end) in frame:
            return f"the {kind} where W&B has several values at a step"
    numbers = values.to_numpy(dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if word in STEPS:
        return _COUNTER
    if word in TIMES:
        return _TIME
    if word in SETTINGS or re.match(r"lr($|[-_/])|.*_(?:runtime|per_second)$", word) or "lr/" in name:
        return "a setting or a cost, no metric"
    for end in ("_smoothed", "_ema"):
        if name.endswith(end) and name.removesuffix(end) in frame:
            return "smoothed already"
    ordered = bool(np.all(np.diff(numbers) >= 0)) and bool(np.all(numbers == np.round(numbers)))
    counted = len(numbers) > 1 and ordered and numbers[-1] > numbers[0]
    first = name == frame.columns[0] and (nameless or name.startswith("Unnamed: "))
    if counted and (first or COUNTER.search(word)):
        return _COUNTER
    return _METRIC


def _no_numbers(values: Any, word: str, lines: NDArray[np.int64]) -> str:
    """What a column is that is not of numbers: a time, or its first value with its place."""
    if pd.api.types.is_bool_dtype(values):
        return "truth values, no numbers"
    place = int(np.argmax(values.notna().to_numpy()))
    first = str(values.iloc[place]).strip()
    if word in TIMES or _CLOCK.fullmatch(first) or DATE.fullmatch(first):
        if np.isfinite(as_places(values)[0]).any():
            return _TIME
        if _AMBIGUOUS.fullmatch(first):
            return f"a date whose day and month may be either: {first!r} in line {lines[place]}; write 2026-12-31"
    return f"no numbers: {first[:40]!r} in line {lines[place]}"


def _is_number(values: Any) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _own_steps(frame: pd.DataFrame, metrics: list[str], step: str | None, counters: list[str]) -> dict[str, str]:
    """The x of metrics that have values where the others' x is blank, and a better covering counter."""
    if step is None or len(counters) < 2 or not frame[step].isna().any():
        return {}
    known, found = {name: frame[name].notna().to_numpy() for name in counters}, {}
    for metric in metrics:
        mine = frame[metric].notna().to_numpy()
        best = max(counters, key=lambda name: (int((known[name] & mine).sum()), -_preference(name, STEPS)))
        if (known[best] & mine).sum() > (known[step] & mine).sum():
            found[metric] = best
    return found


def _rises(values: Any) -> bool:
    """Whether all are whole numbers, each above the one before."""
    numbers = values.to_numpy(dtype=np.float64)
    return len(numbers) > 1 and bool(np.all(np.diff(numbers) > 0)) and bool(np.all(numbers == np.round(numbers)))


def _goes_back(values: Any) -> bool:
    """Whether a counter falls, as the batch of an epoch does: then another one may do better as x."""
    numbers = as_places(values)[0]
    return bool(np.any(np.diff(numbers[np.isfinite(numbers)]) < 0))


def _preference(name: str, among: tuple[str, ...]) -> int:
    word = plain(name)
    return among.index(word) if word in among else len(among)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
