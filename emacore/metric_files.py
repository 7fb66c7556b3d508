"""Metric files as trackers, loggers and people write them: which column is the step, which are metrics.

A format is one reader: a function that tells its text, and one that makes a table of it (``READERS``).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emacore.averaging.trackers import smoothed
from emacore.tables import (
    MAX_CELLS,
    MAX_COLUMNS,
    Table,
    TableError,
    as_numbers,
    begins_as_json,
    content_of,
    read_table,
    text_of,
)

#: Names of the columns that count, the best x first.
STEPS = (
    *("step", "global_step", "trainer_global_step", "current_steps", "iter", "iteration", "iterations", "it"),
    *("n_iter", "num_steps", "update", "updates", "num_updates", "timesteps", "total_timesteps", "batch", "batch_idx"),
    *("epoch", "epochs", "index"),
)
TIMES = (
    *("wall_time", "walltime", "time", "timestamp", "runtime", "relative_time", "relative_time_process", "date"),
    *("datetime", "created_at", "elapsed", "elapsed_time", "remaining_time", "time_elapsed", "data_time", "eta", "t"),
)
SETTINGS = ("lr", "learning_rate", "memory", "total_steps", "max_steps", "total_flos", "percentage", "fps")
COUNTER = re.compile(
    r"(?:^|_)(?:steps?|iters?|iterations?|epochs?|batch(?:es)?|updates?|timesteps?|frames|episodes?|samples|tokens)(?:_(?:idx|num|number|count|id|seen))?$"
)
#: Columns that say which metric a row is of, where each row has one value.
METRIC_NAMES = ("metric", "key", "tag", "name", "metric_key")


#: A table of more cells than this needs values in one of fifty.
MOST_SPARSE_CELLS = 500_000


class MetricFile(NamedTuple):
    """What a metric file holds, and what is taken of it.

    Attributes:
        format: Its name in ``READERS``.
        frame: Every column and row, numbers as numbers.
        step: The column that is x; ``None`` where there is none, and x is the number of the row.
        metrics: The columns to smooth.
        left_out: The other columns, and why.
        notes: Sentences on what was taken otherwise than it stands there.
    """

    format: str
    frame: pd.DataFrame
    step: str | None
    metrics: tuple[str, ...]
    left_out: dict[str, str]
    notes: tuple[str, ...]

    def steps(self) -> NDArray[np.float64]:
        """x of each row, shape (rows,)."""
        if self.step is None:
            return np.arange(len(self.frame), dtype=np.float64)
        return self.frame[self.step].to_numpy(dtype=np.float64)

    def told(self) -> list[str]:
        """What was taken, in sentences."""
        x = f"x is {self.step}" if self.step is not None else "x is the number of the row"
        lines = [f"{self.format}, {len(self.frame):,} rows; {x}; metrics: {', '.join(self.metrics) or 'none'}"]
        if self.left_out:
            lines.append("left out: " + "; ".join(f"{name} ({why})" for name, why in self.left_out.items()))
        values = self.frame[list(self.metrics)].to_numpy(dtype=np.float64)
        blank, endless = np.isnan(values).sum(axis=0).tolist(), np.isinf(values).sum(axis=0).tolist()
        for place, name in enumerate(self.metrics):
            if blank[place]:
                lines.append(f"{name}: {blank[place]:,} of {len(values):,} rows are blank or no number; they stay so")
            if endless[place]:
                lines.append(f"{name}: {endless[place]:,} rows are infinite; they stay so")
        return [*lines, *self.notes, *_steps_in_words(self)]


class Reader(NamedTuple):
    """A format: whether a text is of it, and its table."""

    name: str
    sniff: Callable[[str], bool]
    read: Callable[[str], Table]


def read_metrics(source: bytes | str | Path) -> MetricFile:
    """Read a metric file, a path or its bytes.

    Raises:
        TableError: if it cannot be read, or has no column of numbers.
    """
    content = content_of(source)
    if content.startswith(b"PAR1"):
        name, table = "Parquet", _parquet(content)
    elif b"brain.Event:" in content[:64]:
        raise TableError("The file is of TensorBoard's events: save the curve as CSV in TensorBoard, and bring that.")
    else:
        text = text_of(content)
        reader = next(reader for reader in READERS if reader.sniff(text))
        name, table = reader.name, reader.read(text)
    table, told = _widened(table)
    return _taken(name, table, told)


def with_smoothed(
    file: MetricFile,
    names: Sequence[str],
    decays_of: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    *,
    in_order_of_steps: bool = True,
    last_of_step_only: bool = False,
    suffix: str = "_smoothed",
) -> pd.DataFrame:
    """The frame with a column more for each of these: the average of its own finite values.

    Args:
        file: As it was read.
        names: Columns of numbers.
        decays_of: From x of those values, shape (n,), the decays of their average, shape (n,); the first is copied.
        in_order_of_steps: Smooth in the order of x, and not in that of the rows.
        last_of_step_only: Of several values at one x, as after a restart, only the last one is smoothed; the others
            are blank.
        suffix: Of the new columns' names.

    Raises:
        TableError: if a new column is there already.
        ValueError: of ``decays_of``.
    """
    steps, new = file.steps(), {}
    for name in names:
        if f"{name}{suffix}" in file.frame:
            raise TableError(f"There is a column {name}{suffix} already: rename it, or choose another suffix.")
        rows = np.flatnonzero(np.isfinite(steps))
        if in_order_of_steps:
            rows = rows[np.argsort(steps[rows], kind="stable")]
        values = file.frame[name].to_numpy(dtype=np.float64)[rows]
        if last_of_step_only:
            full = np.flatnonzero(~np.isnan(values))
            _, later = np.unique(steps[rows][full][::-1], return_index=True)
            kept = np.sort(full[len(full) - 1 - later])
            rows, values = rows[kept], values[kept]
        column = np.full(len(file.frame), np.nan)
        column[rows] = smoothed(values, decays_of(steps[rows][np.isfinite(values)]))
        new[f"{name}{suffix}"] = column
    return file.frame.assign(**new)


def _taken(form: str, table: Table, told: list[str]) -> MetricFile:
    frame, names = table.frame, [str(name) for name in table.frame.columns]
    nameless = any(note.startswith("there is no header row") for note in table.notes)
    counts = dict(zip(names, frame.count().tolist(), strict=True))
    roles = {name: _role(name, frame, counts[name], nameless) for name in names}
    metrics = [name for name, role in roles.items() if role == "metric"]
    # A value that stands there once is a summary, unless all are.
    if any(counts[name] > 1 for name in metrics):
        roles |= {name: "a single value" for name in metrics if counts[name] < 2}
        metrics = [name for name in metrics if counts[name] > 1]
    counters = [name for name, role in roles.items() if role == "a counter"]
    step = min(counters, key=lambda name: (_goes_back(frame[name]), _preference(name)), default=None)
    left_out = {name: role for name, role in roles.items() if role != "metric" and name != step}
    if not any(pd.api.types.is_numeric_dtype(frame[name]) for name in names):
        raise TableError(f"The file has no column of numbers; it has {_some(names)}.")
    return MetricFile(form, frame, step, tuple(metrics), left_out, (*table.notes, *told))


def _role(name: str, frame: pd.DataFrame, count: int, nameless: bool) -> str:
    """ "metric", "a counter", or why it is neither."""
    values = frame[name]
    if not count:
        return "blank in every row"
    if pd.api.types.is_bool_dtype(values) or not pd.api.types.is_numeric_dtype(values):
        return "a time" if _plain(name) in TIMES else "no numbers"
    for end, word in (("__MIN", "smallest"), ("__MAX", "largest")):
        if name.endswith(end) and name.removesuffix(end) in frame:
            return f"the {word} where W&B has several values at a step"
    plain = _plain(name)
    numbers = values.to_numpy(dtype=np.float64)
    numbers = numbers[np.isfinite(numbers)]
    ordered = bool(np.all(np.diff(numbers) >= 0)) and bool(np.all(numbers == np.round(numbers)))
    if plain in STEPS:
        return "a counter"
    if plain in TIMES:
        return "a time"
    if plain in SETTINGS or re.match(r"lr($|[-_/])|.*_(?:runtime|per_second)$", plain) or "lr/" in name:
        return "a setting or a cost, no metric"
    for end in ("_smoothed", "_ema"):
        if name.endswith(end) and name.removesuffix(end) in frame:
            return "smoothed already"
    counted = len(numbers) > 1 and ordered and numbers[-1] > numbers[0]
    first = name == frame.columns[0] and (nameless or name.startswith("Unnamed: "))
    if counted and (first or COUNTER.search(plain)):
        return "a counter"
    return "metric"


def _plain(name: str) -> str:
    """The last part of a name as W&B, Lightning and others qualify it: "run - _step", "trainer/global_step"."""
    if name in ("Unnamed: 0", "Unnamed: 0.1"):
        return "index"
    part = name.rsplit(" - ", 1)[-1].rsplit("/", 1)[-1]
    return re.sub(r"[\W_]+", "_", part.strip().lower()).strip("_")


def _goes_back(values: Any) -> bool:
    """Whether a counter falls, as the batch of an epoch does: then another one may do better as x."""
    numbers = values.to_numpy(dtype=np.float64)
    return bool(np.any(np.diff(numbers[np.isfinite(numbers)]) < 0))


def _preference(name: str) -> int:
    plain = _plain(name)
    return STEPS.index(plain) if plain in STEPS else len(STEPS)


def _steps_in_words(file: MetricFile) -> list[str]:
    """Steps that are unsorted, repeated, uneven or blank, as far as the metrics have them."""
    if file.step is None or not file.metrics:
        return []
    rows = ~np.isnan(file.frame[list(file.metrics)].to_numpy(dtype=np.float64))
    steps, lines = file.steps(), []
    if blank := int(np.isnan(steps[rows.any(axis=1)]).sum()):
        lines.append(f"{file.step} is blank in {blank:,} rows that have values: these are not smoothed")
    for place, name in enumerate(file.metrics):
        mine = steps[rows[:, place]]
        gaps = np.diff(mine[np.isfinite(mine)])
        ordered = np.diff(np.sort(mine[np.isfinite(mine)]))
        if np.any(gaps < 0):
            lines.append(f"{name}: {file.step} goes back {int((gaps < 0).sum()):,} times")
        if np.any(ordered == 0):
            lines.append(f"{name}: {int((ordered == 0).sum()):,} values stand at a {file.step} that has one already")
        above = ordered[ordered > 0]
        if len(above) and not np.allclose(above, above[0], rtol=1e-6):
            lines.append(f"{name}: the distances of {file.step} are uneven, from {above.min():g} to {above.max():g}")
    return lines


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _widened(table: Table) -> tuple[Table, list[str]]:
    """A table with a row for each value of each metric, as one with a column for each metric."""
    frame = table.frame
    plain = {_plain(str(name)): name for name in reversed(frame.columns)}
    kind = next((plain[word] for word in METRIC_NAMES if word in plain), None)
    value = plain.get("value")
    if kind is None or value is None or pd.api.types.is_numeric_dtype(frame[kind]):
        return table, []
    run = next((plain[word] for word in ("run_id", "run", "run_uuid", "run_name") if word in plain), None)
    names = frame[kind].astype(object).fillna("(no name)").astype(str)
    if run is not None and frame[run].nunique() > 1:
        label = plain.get("run", run)
        label = label if frame[label].nunique() == frame[run].nunique() else run
        names = frame[label].astype(object).fillna("(no name)").astype(str) + " - " + names
    step = next((plain[word] for word in STEPS if word in plain), None)
    keys = frame[step] if step is not None else names.groupby(names).cumcount()
    _check_shape(keys.nunique(), names.nunique(), len(frame))
    # What a metric has twice at a step stands in two rows.
    again = frame.groupby([names.rename("n"), keys.rename("k")], dropna=False).cumcount()
    long = pd.DataFrame({"x": keys, "again": again, "name": names, "value": frame[value]})
    wide = long.pivot(index=["x", "again"], columns="name", values="value").reset_index()
    wide = wide.drop(columns="again").rename(columns={"x": step if step is not None else "index"})
    wide.columns.name = None
    return Table(wide, np.arange(len(wide)), table.notes), [
        f"one column for each of {names.nunique()} metrics of {kind}"
    ]


def _check_shape(rows: int, names: int, values: int) -> None:
    """Refuse what would be far larger as a table than it is as a list of names and values."""
    cells = rows * names
    if names > MAX_COLUMNS or cells > MAX_CELLS:
        raise TableError(
            f"The file has {rows:,} rows of {names:,} names; at most {MAX_COLUMNS:,} names and "
            f"{MAX_CELLS:,} cells are read."
        )
    if cells > MOST_SPARSE_CELLS and cells > 50 * values:
        raise TableError(
            f"The file has {values:,} values for {rows:,} rows of {names:,} names: a table of them would be all but "
            "blank. Split it by metric."
        )


def _parquet(content: bytes) -> Table:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise TableError("Parquet files need pyarrow: pip install pyarrow, or save the table as CSV.") from error
    try:
        about = ParquetFile(io.BytesIO(content)).metadata
        if about.num_columns > MAX_COLUMNS or about.num_rows * about.num_columns > MAX_CELLS:
            raise TableError(
                f"The table has {about.num_rows:,} rows of {about.num_columns:,} columns; at most {MAX_COLUMNS:,} "
                f"columns and {MAX_CELLS:,} cells are read."
            )
        frame = pd.read_parquet(io.BytesIO(content))
    except (ArrowException, OSError, ValueError) as error:
        if isinstance(error, TableError):
            raise
        raise TableError(f"The Parquet file is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    return Table(frame.rename(columns=str), np.arange(1, len(frame) + 1))


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise TableError("The JSON is nested too deeply.") from error
    except ValueError as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise TableError(f"The file is not valid JSON{where}: {getattr(error, 'msg', error)}.") from error


def _is_json_lines(text: str) -> bool:
    """Whether the first line is a whole object, and not of one that goes on."""
    first = text.lstrip().split("\n", 1)[0]
    if not first.startswith("{"):
        return False
    try:
        return isinstance(json.loads(first), dict) and (
            "\n" in text.strip() or not any(isinstance(v, list) for v in json.loads(first).values())
        )
    except (ValueError, RecursionError):
        return False


def _json_lines(text: str) -> Table:
    records, lines, notes = [], [], []
    full = [(place, line) for place, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for place, line in full:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if place == full[-1][0] and len(full) > 1:
                notes.append(f"line {place}, the last, is half an object and was left out")
                break
            raise TableError(
                f"Line {place} is not valid JSON: {getattr(error, 'msg', 'nested too deeply')}."
            ) from error
        if not isinstance(record, dict):
            raise TableError(f"Line {place} is no JSON object: {line[:40]!r}. Each line needs to be one.")
        records.append(record)
        lines.append(place)
    return _of_records(records, lines, notes)


def _json_list(text: str) -> Table:
    found = _json(text)
    if isinstance(found, dict) and isinstance(found.get("log_history"), list):
        found = found["log_history"]
    if isinstance(found, dict):
        lists = {name: values for name, values in found.items() if isinstance(values, list)}
        if len({len(values) for values in lists.values()}) > 1:
            sizes = ", ".join(f"{name} {len(values)}" for name, values in list(lists.items())[:8])
            raise TableError(f"The JSON has lists of several lengths ({sizes}): a table needs one length.")
        if len(lists) > MAX_COLUMNS:
            raise TableError(f"The JSON has {len(lists):,} columns; at most {MAX_COLUMNS:,} are read.")
        found = [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    if not isinstance(found, list) or not found:
        raise TableError("The JSON holds no rows: a list of objects, lists by name, or log_history are read.")
    if all(isinstance(one, (int, float)) for one in found):
        found = [{"value": one} for one in found]
    for place, one in enumerate(found, start=1):
        if not isinstance(one, dict):
            raise TableError(f"Entry {place} of the JSON list is no object: {str(one)[:40]!r}. Each needs names.")
    return _of_records(found, list(range(1, len(found) + 1)), [])


def _of_records(records: list[dict[str, Any]], lines: list[int], notes: list[str]) -> Table:
    flat = [_flat(record) for record in records]
    names = list(dict.fromkeys(name for record in flat for name in record))
    _check_shape(len(flat), len(names), sum(map(len, flat)))
    if not names:
        raise TableError("The file's objects are empty: names and numbers are needed.")
    places, columns = np.array(lines), {}
    for name in names:
        column = pd.Series([record.get(name) for record in flat], name=name)
        columns[name], told = as_numbers(column, places)
        notes += told
    return Table(pd.DataFrame(columns), places, tuple(notes))


def _flat(record: dict[str, Any]) -> dict[str, Any]:
    """Objects in an object as "outer/inner"; what is a list is left as text."""
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{inner}": str(v) if isinstance(v, (dict, list)) else v for inner, v in value.items()}
        else:
            flat[name] = str(value) if isinstance(value, list) else value
    return flat


MLFLOW = re.compile(r"\d{10,16} \S{1,40}(?: \d{1,15})?")
# The bounds keep a search linear, whatever the text.
PAIR = re.compile(
    r"(?<![\w/.()@-])([A-Za-z_][\w/.()@-]{0,200}?)[ \t]{0,3}(?:[:=][ \t]{0,20}|[ \t]{1,20})\[?[ \t]{0,5}"
    r"([+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+|nan|inf(?:inity)?))(?![\w.])",
    re.IGNORECASE,
)


def _is_mlflow(text: str) -> bool:
    first = text[: 2**12].split("\n")[:3]
    return all(MLFLOW.fullmatch(line.strip()) for line in first[:1] + [line for line in first[1:2] if line.strip()])


def _mlflow(text: str) -> Table:
    width = len(text.split("\n", 1)[0].split())
    table = read_table(f"{' '.join(('timestamp', 'value', 'step')[:width])}\n{text}")
    return table._replace(lines=table.lines - 1)


def _is_log(text: str) -> bool:
    lines = [line[:2000] for line in text[: 2**16].split("\n") if line.strip() and not line.startswith("#")][:100]
    pairs = [len(PAIR.findall(line)) > 0 for line in lines]
    if not lines or 2 * sum(pairs) < len(pairs):
        return False
    # A header without a number over rows with as many delimiters is a table, whose words happen to end in numbers.
    return pairs[0] or not any(
        {line.count(delimiter) for line in lines} == {lines[0].count(delimiter)} != {0} for delimiter in ",;|\t"
    )


def _log(text: str) -> Table:
    """Names and numbers of a log: a row for each line of several, or for each time that a name comes again."""
    records: list[dict[str, Any]] = []
    lines: list[int] = []
    whole = True
    without = 0
    for place, line in enumerate(text.split("\n"), start=1):
        found: dict[str, float] = {}
        for name, number in PAIR.findall(line):
            found.setdefault(name, float(number))
        without += not found and bool(line.strip())
        if not found:
            continue
        if whole or len(found) > 1 or any(name in records[-1] for name in found):
            records.append({})
            lines.append(place)
        records[-1].update(found)
        whole = len(found) > 1
    return _of_records(
        records, lines, [f"{without:,} lines without a name and a number were skipped"] if without else []
    )


READERS = (
    Reader("JSON Lines", _is_json_lines, _json_lines),
    Reader("trainer_state.json", lambda text: text.lstrip()[:1] == "{" and '"log_history"' in text, _json_list),
    Reader("JSON", begins_as_json, _json_list),
    Reader("MLflow metric file", _is_mlflow, _mlflow),
    Reader("log of names and numbers", _is_log, _log),
    Reader("delimited text", lambda text: True, read_table),
)
