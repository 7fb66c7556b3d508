"""Formats of metric files: what tells each, and how a table is made of it.

A format is one :class:`Reader`: a function that tells its bytes or its text, and one that makes a table of it.  They
are in ``READERS``; the first that knows a file reads it.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from emacore import limits
from emacore.formatting import counted
from emacore.tables import (
    COMMA_NUMBER,
    POINT_NUMBER,
    THOUSANDS,
    Table,
    TableError,
    as_numbers,
    begins_as_json,
    check_cells,
    check_columns,
    read_table,
    text_of,
    unpacked,
)

#: Columns that say which metric a row is of, where each row has one value.
METRIC_NAMES = ("metric", "key", "tag", "metricname", "metric_name", "name", "metric_key")
VALUE_NAMES = ("value", "metricvalue", "metric_value", "scalar")
_RUN_NAMES = ("run_id", "run", "run_hash", "run_uuid", "run_name", "experimentkey")
#: Columns that say on which part of the data a value was found.
_PART_NAMES = ("context_subset", "subset", "runcontext", "run_context", "context", "split", "phase", "stage", "mode")


class Reader(NamedTuple):
    """A format: whether a file's bytes, or its text, are of it, and its table."""

    name: str
    sniff: Callable[[Any], bool]
    read: Callable[[Any], Table]
    of_bytes: bool = False


def read_any(content: bytes) -> tuple[str, Table]:
    """The name of a file's format, and its table.

    Raises:
        TableError: if no reader can read it.
    """
    content = unpacked(content)
    for reader in READERS:
        if reader.of_bytes and reader.sniff(content):
            return reader.name, reader.read(content)
    text = text_of(content)
    reader = next(reader for reader in READERS if not reader.of_bytes and reader.sniff(text))
    # A log may begin with anything.
    may_be_log = reader.read is read_table and _lines_with_pairs(text) >= 3
    try:
        table = reader.read(text)
    except TableError:
        if may_be_log:
            return LOG.name, LOG.read(text)
        raise
    if may_be_log and not len(table.frame.select_dtypes("number").columns):
        return LOG.name, LOG.read(text)
    return reader.name, table


def plain(name: str) -> str:
    """The last part of a name as W&B, Lightning and others qualify it ("run - _step", "trainer/global_step"), without
    its unit in brackets."""
    if name in ("Unnamed: 0", "Unnamed: 0.1"):
        return "index"
    part = re.sub(r"[(\[][^()\[\]]{0,40}[)\]]\s*$", "", name).rsplit(" - ", 1)[-1].rsplit("/", 1)[-1]
    return re.sub(r"[\W_]+", "_", part.strip().lower()).strip("_")


def widened(table: Table, steps: tuple[str, ...], times: tuple[str, ...]) -> Table:
    """A table with a row for each value of each metric, as one with a column for each metric; others as they are.

    Args:
        steps, times: Plain names of the columns that may count, and of those that may tell a time.
    """
    frame = table.frame
    names = {plain(str(name)): name for name in reversed(frame.columns)}
    kind = next((names[word] for word in METRIC_NAMES if word in names), None)
    value = next((names[word] for word in VALUE_NAMES if word in names), None)
    if kind is None or value is None or pd.api.types.is_numeric_dtype(frame[kind]):
        return table
    labels, used = frame[kind].astype(object).fillna("(no name)").astype(str), [kind, value]
    part = next((names[word] for word in _PART_NAMES if word in names), None)
    if part is not None and (frame[part].groupby(labels).nunique() > 1).any():  # else it says what the name says
        labels = frame[part].astype(object).fillna("(no name)").astype(str) + "/" + labels
        used.append(part)
    run = next((names[word] for word in _RUN_NAMES if word in names), None)
    if run is not None and frame[run].nunique() > 1:
        label = names.get("run", names.get("run_name", run))
        label = label if frame[label].nunique() == frame[run].nunique() else run
        labels = frame[label].astype(object).fillna("(no name)").astype(str) + " - " + labels
        used.append(label)
    step = next((names[word] for word in steps if word in names and frame[names[word]].notna().any()), None)
    keys = frame[step] if step is not None else labels.groupby(labels).cumcount()
    _check_shape(keys.nunique(), labels.nunique(), len(frame))
    # What a metric has twice at a step stands in two rows.
    again = frame.groupby([labels.rename("n"), keys.rename("k")], dropna=False).cumcount()
    long = pd.DataFrame({"x": keys, "again": again, "name": labels, "value": frame[value], "line": table.lines})
    wide = long.pivot(index=["x", "again"], columns="name", values="value")
    by_row = long.groupby(["x", "again"], dropna=False)
    lines = by_row["line"].min().reindex(wide.index).to_numpy()
    time = next((names[word] for word in times if word in names and names[word] not in (step, *used)), None)
    if time is not None and time not in wide:
        clock = frame[time].groupby([keys.rename("x"), again.rename("again")], dropna=False).first()
        wide.insert(0, time, clock.reindex(wide.index))
    wide = wide.reset_index().drop(columns="again").rename(columns={"x": step if step is not None else "index"})
    wide.columns.name = None
    notes = [f"one column for each of {counted(labels.nunique(), 'metric')} of {kind}"]
    if left := [str(name) for name in frame.columns if name not in (*used, step, time)]:
        notes.append(f"left out of it: {', '.join(left[:8])}{' and more' if len(left) > 8 else ''}")
    return Table(wide, np.asarray(lines, dtype=np.int64), (*table.notes, *notes))


def _check_shape(rows: int, names: int, values: int) -> None:
    """Refuse what would be far larger as a table than it is as a list of names and values."""
    check_columns(names)
    check_cells(rows, names)
    if (cells := rows * names) > limits.SPARSE_CELLS and cells > 50 * values:
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
        check_columns(about.num_columns)
        check_cells(about.num_rows, about.num_columns)
        frame = pd.read_parquet(io.BytesIO(content))
    except (ArrowException, OSError, ValueError) as error:
        if isinstance(error, TableError):
            raise
        raise TableError(f"The Parquet file is damaged: {str(error).splitlines()[0]}") from error
    if not len(frame):
        raise TableError("The Parquet file has no rows.")
    if not frame.index.equals(pd.RangeIndex(len(frame))) or frame.index.name is not None:
        frame = frame.reset_index()
    frame = frame.rename(columns=str)
    places, columns, notes = np.arange(1, len(frame) + 1), {}, []
    for name in frame.columns:
        columns[name], told = as_numbers(frame[name], places)
        notes += told
    return Table(pd.DataFrame(columns), places, tuple(notes))


def _is_events(content: bytes) -> bool:
    """A first record of TensorFlow's record format that says it is of events."""
    return b"brain.Event:" in content[12:64]


def _events(content: bytes) -> Table:
    """The scalars of TensorBoard's event files: a row for each, with its tag, step and time."""
    try:
        from google.protobuf.message import DecodeError
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError as error:
        raise TableError(
            "TensorBoard's event files need tensorboard: pip install tensorboard, or save the curve as CSV in it."
        ) from error
    rows: list[tuple[str, int, float, float]] = []
    other: dict[str, None] = {}
    cut = 0
    for place, record in enumerate(_records(content), start=1):
        if record is None:
            cut = place
            break
        try:
            event = Event.FromString(record)
        except DecodeError as error:
            raise TableError(f"Record {place} of the event file is damaged.") from error
        for value in event.summary.value:
            number = _scalar(value)
            if number is None:
                other[value.tag] = None
            else:
                rows.append((value.tag, event.step, event.wall_time, number))
    if not rows:
        raise TableError("The event file has no scalars.")
    notes = [f"record {cut}, the last, is cut off and was left out"] if cut else []
    if other:
        names = ", ".join(list(other)[:8]) + (f" and {len(other) - 8} more" if len(other) > 8 else "")
        notes.append(f"no scalars, so left out: {names}")
    frame = pd.DataFrame(rows, columns=["tag", "step", "wall_time", "value"])
    return Table(frame, np.arange(1, len(frame) + 1), tuple(notes))


def _records(content: bytes) -> Iterator[bytes | None]:
    """The records of TensorFlow's format: length (8 bytes), its checksum (4), the record, its checksum (4).

    ``None`` for one that is cut off, with which they end.
    """
    place = 0
    while place < len(content):
        if len(content) - place < 12:
            yield None
            return
        (length,) = struct.unpack_from("<Q", content, place)
        end = place + 12 + length
        if end + 4 > len(content):
            yield None
            return
        yield content[place + 12 : end]
        place = end + 4


def _scalar(value: Any) -> float | None:
    """The number of a summary's value as either version of TensorBoard writes it."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor") or value.metadata.plugin_data.plugin_name not in ("", "scalars"):
        return None
    from tensorboard.util.tensor_util import make_ndarray

    try:
        found = make_ndarray(value.tensor)
    except (TypeError, ValueError):
        return None
    if found.size != 1 or not np.issubdtype(found.dtype, np.number) or np.iscomplexobj(found):
        return None
    return float(found.reshape(-1)[0])


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise TableError("The JSON is nested too deeply.") from error
    except ValueError as error:
        where = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise TableError(f"The file is not valid JSON{where}: {getattr(error, 'msg', error)}.") from error


def _is_json_lines(text: str) -> bool:
    """Whether the first line is a whole object, or list, and not of one that goes on."""
    first = text.lstrip().split("\n", 1)[0]
    if not first.startswith(("{", "[")):
        return False
    try:
        found = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, (dict, list)) and "\n" in text.strip()


def _json_lines(text: str) -> Table:
    records, lines, notes = [], [], []
    full = [(place, line) for place, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for place, line in full:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if place == full[-1][0]:  # never the first, by which the format was known
                notes.append(f"line {place}, the last, is half an object and was left out")
                break
            raise TableError(
                f"Line {place} is not valid JSON: {getattr(error, 'msg', 'nested too deeply')}."
            ) from error
        if isinstance(record, list) and full[0][1].lstrip().startswith("["):
            record = {f"column {number}": value for number, value in enumerate(record, start=1)}
        if not isinstance(record, dict):
            raise TableError(f"Line {place} is no JSON object: {line[:40]!r}. Each line needs to be one.")
        records.append(record)
        lines.append(place)
    return _of_records(records, lines, notes)


def _json_table(text: str) -> Table:
    found = _json(text)
    notes: list[str] = []
    if isinstance(found, dict):
        found = _of_object(found, notes)
    if not isinstance(found, list) or not found:
        raise TableError("The JSON holds no rows: a list of objects, lists by name, or log_history are read.")
    if all(_is_plain_number(one) for one in found):
        found = [{"value": one} for one in found]
    elif all(isinstance(one, list) and len(one) == len(found[0]) and one for one in found):
        # TensorBoard's own JSON has three numbers a row.
        three = len(found[0]) == 3 and _is_time(found[0][0])
        names = ("wall_time", "step", "value") if three else [f"column {n + 1}" for n in range(len(found[0]))]
        found = [dict(zip(names, one, strict=True)) for one in found]
    elif all(_curve(one) is not None for one in found):
        found = _of_curves(list(_curves({"": found})))
    for place, one in enumerate(found, start=1):
        if not isinstance(one, dict):
            raise TableError(f"Entry {place} of the JSON list is no object: {_text(one)!r}. Each needs names.")
    return _of_records(found, list(range(1, len(found) + 1)), notes)


def _of_object(found: dict[str, Any], notes: list[str]) -> list[Any]:
    """The rows in a JSON object, however it holds them."""
    if isinstance(found.get("log_history"), list):
        return list(found["log_history"])
    if (rows := _of_pandas(found)) is not None:
        return rows
    lists = {name: values for name, values in found.items() if isinstance(values, list)}
    curves = list(_curves(found))
    if curves:
        return _of_curves(curves)
    tables = {name: values for name, values in lists.items() if values and all(isinstance(v, dict) for v in values)}
    if tables:
        if left := [name for name in found if name not in tables]:
            notes.append(f"left out, as no lists of objects: {', '.join(left[:8])}")
        if len(tables) == 1:
            return next(iter(tables.values()))
        return [{f"{name}/{key}": value for key, value in row.items()} for name, rows in tables.items() for row in rows]
    if not lists:
        lists = dict(_lists_within(found))
    if not lists:
        return [found] if any(isinstance(value, (int, float, dict)) for value in found.values()) else []
    if left := [name for name in found if not any(f"{one}/".startswith(f"{name}/") for one in lists)]:
        notes.append(f"left out, as no lists: {', '.join(left[:8])}")
    if len({len(values) for values in lists.values()}) > 1:
        sizes = ", ".join(f"{name} {len(values)}" for name, values in list(lists.items())[:8])
        raise TableError(f"The JSON has lists of several lengths ({sizes}): a table needs one length.")
    check_columns(len(lists))
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _of_pandas(found: Mapping[str, Any]) -> list[Any] | None:
    """The rows of what pandas writes: lists of rows under "data" and names under "columns", rows by their numbers, or
    columns of values by these."""
    names, data = found.get("columns"), found.get("data")
    if isinstance(names, list) and isinstance(data, list) and data:
        if all(isinstance(row, list) and len(row) == len(names) for row in data):
            rows = [dict(zip(map(str, names), row, strict=True)) for row in data]
            index = found.get("index")
            named = isinstance(index, list) and len(index) == len(rows) and index != list(range(len(rows)))
            return [{"index": number, **row} for number, row in zip(index or [], rows, strict=True)] if named else rows
        return None
    inner = list(found.values())
    if not inner or not all(isinstance(value, dict) and value for value in inner):
        return None
    if all(name.isdecimal() for name in found):
        if list(found) == [str(place) for place in range(len(found))]:
            return inner
        return [{"index": int(number), **row} for number, row in found.items()]
    if all(number.isdecimal() for value in inner for number in value):
        numbers = dict.fromkeys(number for value in inner for number in value)
        _check_shape(len(numbers), len(found), sum(map(len, inner)))
        return [{name: value.get(number) for name, value in found.items()} for number in numbers]
    return None


def _lists_within(found: Mapping[str, Any], above: str = "", depth: int = 3) -> Iterator[tuple[str, list[Any]]]:
    """The lists of plain values in objects within an object, by their path, as what evaluates sets by metrics has."""
    for name, value in found.items():
        if isinstance(value, dict) and depth:
            yield from _lists_within(value, f"{above}{name}/", depth - 1)
        elif above and isinstance(value, list) and not any(isinstance(one, (list, dict)) for one in value):
            yield f"{above}{name}", value


def _curve(value: Any) -> tuple[list[Any], list[Any]] | None:
    """x and y of an object that is a curve: x and y (Plotly, ClearML) or steps and values (Comet, Sacred)."""
    if not isinstance(value, dict):
        return None
    for x, y in (("x", "y"), ("steps", "values"), ("iterations", "values")):
        if isinstance(value.get(y), list) and (isinstance(value.get(x), list) or y == "y"):
            return value.get(x) or list(range(len(value[y]))), value[y]
    return None


def _curves(found: Mapping[str, Any], above: str = "", depth: int = 4) -> Iterator[tuple[str, Any]]:
    """The objects that are curves, by their names or paths, up to four levels down."""
    for name, value in found.items():
        if _curve(value) is not None:
            yield above + name, value
        elif isinstance(value, dict) and depth:
            yield from _curves(value, f"{above}{name}/", depth - 1)
        elif isinstance(value, list) and depth and value and all(_curve(one) is not None for one in value):
            for place, one in enumerate(value, start=1):
                yield above + str(one.get("metricName") or one.get("name") or place), one


def _of_curves(curves: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name, curve in curves:
        x, y = _curve(curve) or ([], [])
        if len(x) != len(y):
            raise TableError(f"{name} has {len(x):,} numbers x and {len(y):,} numbers y: as many are needed.")
        rows += [{"metric": name, "step": a, "value": b} for a, b in zip(x, y, strict=True)]
    return rows


def _is_plain_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_time(value: Any) -> bool:
    """Whether a number is a time in seconds or milliseconds since 1970, rather than a step."""
    return _is_plain_number(value) and 1e8 < abs(value) < 1e14


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


def _flat(record: Mapping[str, Any], above: str = "", depth: int = 4) -> dict[str, Any]:
    """Objects in an object as "outer/inner"; what is a list is left as text."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict) and depth:
            found |= _flat(value, f"{above}{name}/", depth - 1)
        else:
            found[f"{above}{name}"] = _text(value) if isinstance(value, (list, dict)) else value
    return found


def _text(value: Any) -> str:
    try:
        return str(value)[:40]
    except RecursionError:
        return "(nested too deeply)"


MLFLOW = re.compile(r"\d{10,16} \S{1,40}(?: \d{1,15})?")


def _is_mlflow(text: str) -> bool:
    first = text[: 2**12].split("\n")[:3]
    return all(MLFLOW.fullmatch(line.strip()) for line in first[:1] + [line for line in first[1:2] if line.strip()])


def _mlflow(text: str) -> Table:
    width = len(text.split("\n", 1)[0].split())
    table = read_table(f"{' '.join(('timestamp', 'value', 'step')[:width])}\n{text}")
    return table._replace(lines=table.lines - 1)


def _is_monitor(text: str) -> bool:
    first = text[:2000].split("\n", 1)[0]
    return first.startswith("#{") and '"t_start"' in first


def _monitor(text: str) -> Table:
    """The monitor of Gym environments: reward, length and time of each episode."""
    table = read_table(text)
    frame = table.frame
    if "l" in frame and pd.api.types.is_numeric_dtype(frame["l"]) and "timesteps" not in frame:
        frame = frame.assign(timesteps=frame["l"].cumsum())
        return Table(frame, table.lines, (*table.notes, "timesteps is the sum of l so far, which the file leaves out"))
    return table


def _is_markdown(text: str) -> bool:
    lines = text[: 2**12].split("\n")[:2]
    return len(lines) == 2 and lines[0].count("|") > 1 and bool(re.fullmatch(r"[|:\- ]*-[|:\- ]*\|[|:\- ]*", lines[1]))


def _markdown(text: str) -> Table:
    lines = text.split("\n")
    lines[1] = ""
    table = read_table("\n".join(line.strip().removeprefix("|").removesuffix("|") for line in lines))
    return table._replace(notes=tuple(note for note in table.notes if "blank lines" not in note))


#: What a line is of that only draws, and what such a line has where columns meet; and what stands between columns.
_DRAWN = re.compile(r"[\s|+=\-:\u2500-\u257f]*")
_CROSSING = re.compile(r"[-=]\+[-=]|\+[-=]+\+|[\u250c-\u254b\u2552-\u256c]")
_BAR = re.compile(r"[\u2502\u2503\u2551]")
_COUNTED_ROWS = re.compile(r"\(\d+ rows?\)|\d+ rows? in set.*")


def _is_drawn(text: str) -> bool:
    """A table as databases and terminals draw it: lines that only draw, which cross, among rows with bars."""
    lines = [line for line in text[: 2**14].split("\n") if line.strip()][:4]
    only = [_DRAWN.fullmatch(line) is not None for line in lines]
    crossing = any(_CROSSING.search(line) for line, drawn in zip(lines, only, strict=True) if drawn)
    return crossing and any("|" in _BAR.sub("|", line) for line, drawn in zip(lines, only, strict=True) if not drawn)


def _drawn(text: str) -> Table:
    rows = []
    for line in text.split("\n"):
        bare = _BAR.sub("|", line).strip()
        left_out = _DRAWN.fullmatch(line) is not None or _COUNTED_ROWS.fullmatch(bare) is not None
        rows.append("" if left_out else bare.removeprefix("|").removesuffix("|"))
    table = read_table("\n".join(rows))
    return table._replace(notes=tuple(note for note in table.notes if "blank lines" not in note))


#: Words that stand before a metric's name in a log and belong to it.
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval", "evaluation", "dev"}
# The bounds keep a search linear, whatever the text.
PAIR = re.compile(
    r"(?<![\w/.)@-])([A-Za-z_][\w/.()@-]{0,200}?)[\"']?[ \t]{0,3}(?:[:=][ \t]{0,20}|[ \t]{1,20})[\"'\[]?[ \t]{0,5}"
    r"([+-]?(?:\d{1,3}(?:,\d{3}){1,5}(?:\.\d+)?|\d+,\d+|\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?"
    # No date, and no time of day.
    r"|nan|inf(?:inity)?))(?![\w.]|[:-]\d)",
    re.IGNORECASE,
)
_WORD_BEFORE = re.compile(r"(?<!\w)([A-Za-z_]\w{0,40})('s)?[ \t]{1,3}$")
#: The words of a name of several, since the bar before it; the word before a bracket in which a name ends.
_WORDS_OF_CELL = re.compile(r"\|[ \t]{0,9}((?:[A-Za-z_][\w()/-]{0,40}[ \t]{1,3}){1,5}\(?)$")
_WORD_OF_BRACKET = re.compile(r"(?<!\w)([A-Za-z_][\w/.-]{0,40} ?\()$")
#: A line of a printed table of names and values; the number of a line's iteration before its pairs; a list.
_IN_BARS = re.compile(r"[ \t]*\|[ \t]*([^|\n]{1,60}?)[ \t]*\|[ \t]*([^|\s]{1,30})[ \t]*\|[ \t]*")
_NUMBERED = re.compile(r"[ \t]{0,9}(?:\[(\d{1,15})\]|(\d{1,15}):)[ \t]")
_LIST_GOES_ON = re.compile(r"[\"']?[ \t]{0,5},")
ITERATION = "iteration"
#: Counters that may stand alone above what they count.
_HEADINGS = ("epoch", "step", "global_step", "iter", "iteration", "round")


#: Where in a program a line was written, and by which process, as loggers put it before what was said.
_SOURCE = re.compile(
    r"[\w/.<>-]{1,80}\.py:\d{1,7}(?::[\w<>]{1,60})?|(?<![\w.])[\w.]{1,80}:[\w<>]{1,60}:\d{1,7}(?= - )"
    r"|\[rank ?\d{1,6}\]",
    re.IGNORECASE,
)


def _out_of_bars(line: str) -> str:
    found = _IN_BARS.fullmatch(line) if line.lstrip()[:1] == "|" else None
    return line if found is None else f"{found[1]}: {found[2]}"


def _lines_with_pairs(text: str) -> int:
    return sum(PAIR.search(line[:2000]) is not None for line in text[: 2**18].split("\n"))


def _is_log(text: str) -> bool:
    lines = [line[:2000] for line in text[: 2**16].split("\n") if line.strip() and not line.startswith("#")][:100]
    pairs = [PAIR.search(_out_of_bars(line)) is not None for line in lines]
    if not lines or 2 * sum(pairs) < len(pairs):
        return False
    # A header without a number over rows with as many fields is a table, whose words happen to end in numbers.
    return pairs[0] or not any(_are_fields(lines, delimiter) for delimiter in ",;|\t")


def _are_fields(lines: list[str], delimiter: str) -> bool:
    """Whether lines have as many fields each, and more than one."""
    try:
        counts = {len(row) for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True)}
    except csv.Error:
        return False
    return len(counts) == 1 and counts != {1}


def _log(text: str) -> Table:
    """Names and numbers of a log: a row for each line of several, or for each time that a name comes again."""
    records: list[dict[str, str]] = []
    lines: list[int] = []
    # A line "Epoch 3" alone counts for the lines below it that have several.
    above: dict[str, str] = {}
    lists: dict[str, None] = {}
    whole, without, again = True, 0, 0
    for place, line in enumerate(text.split("\n"), start=1):
        found, twice = _pairs(_out_of_bars(line), lists)
        again += twice
        without += not found and bool(line.strip())
        if not found:
            continue
        several = len(found) > 1
        if several and above and not whole and records[-1] == above and not found.keys() & above.keys():
            pass
        elif whole or several or any(name in records[-1] for name in found):
            records.append({})
            lines.append(place)
            if not several:
                above = found if plain(next(iter(found))) in _HEADINGS else {}
        records[-1] = {**(above if several else records[-1]), **found}
        whole = several
    if not records:
        raise TableError("The log has no line with a name and a number.")
    notes = [f"skipped: {counted(without, 'line')} without a name and a number"] if without else []
    if again:
        notes.append(f"left out: {counted(again, 'number')} whose line has their name already")
    if lists:
        notes.append(f"lists of numbers were left out: {', '.join(list(lists)[:8])}")
    numbered = [int(record[ITERATION]) for record in records if ITERATION in record]
    if numbered and not all(a < b for a, b in itertools.pairwise(numbered)):
        records = [{name: text for name, text in record.items() if name != ITERATION} for record in records]
        notes.append("numbers before the lines, which do not rise, were left out")
    return _of_records(_as_floats(records, notes), lines, notes)


def _pairs(line: str, lists: dict[str, None]) -> tuple[dict[str, str], int]:
    """The numbers of a line by their names, and how many have a name that is there already; ``lists`` takes the names
    of those that a list begins with."""
    found: dict[str, str] = {}
    line, end, twice = _SOURCE.sub(" ", line), 0, 0
    for match in PAIR.finditer(line):
        before = line[max(end, match.start() - 100) : match.start()]
        name, end = _whole_name(match[1], before, found), match.end()
        if "[" in line[match.end(1) : match.start(2)] and _LIST_GOES_ON.match(line, end):
            lists[name] = None
            continue
        twice += name in found
        found.setdefault(name, match[2])
    if found and ITERATION not in found and (number := _NUMBERED.match(line)):
        found = {ITERATION: number[1] or number[2], **found}
    return found, twice


def _whole_name(name: str, before: str, found: Mapping[str, str]) -> str:
    """A name with the words before it that belong to it."""
    if cell := _WORDS_OF_CELL.search(before):
        return f"{cell[1]}{name}"
    if name.endswith(")") and "(" not in name:
        bracket = _WORD_OF_BRACKET.search(before)
        return f"{bracket[1]}{name}" if bracket else name[:-1]
    word = _WORD_BEFORE.search(before)
    if word and (word[2] or word[1].lower() in _PARTS or name in found):
        return f"{word[1]} {name}"
    return name


def _as_floats(records: list[dict[str, str]], notes: list[str]) -> list[dict[str, Any]]:
    """The numbers of a log, whose commas are decimal signs where no number has a point and one is not of thousands."""
    texts = [text for record in records for text in record.values()]
    commas = [text for text in texts if "," in text]
    decimal = bool(commas) and not any(POINT_NUMBER.fullmatch(text) for text in texts)
    decimal = decimal and any(COMMA_NUMBER.fullmatch(text) and not THOUSANDS.fullmatch(text) for text in commas)
    if decimal:
        notes.append("commas are decimal signs")
    elif any(THOUSANDS.fullmatch(text) for text in commas):
        notes.append("commas are those of thousands")

    def number(text: str) -> float:
        if decimal:
            return float(text.replace(",", "."))
        # "1,2" among numbers with points is two numbers.
        return float(text.replace(",", "") if THOUSANDS.fullmatch(text) else text.split(",")[0])

    return [{name: number(text) for name, text in record.items()} for record in records]


LOG = Reader("log of names and numbers", _is_log, _log)
READERS = (
    Reader("Parquet", lambda content: content.startswith(b"PAR1"), _parquet, of_bytes=True),
    Reader("TensorBoard event file", _is_events, _events, of_bytes=True),
    Reader("JSON Lines", _is_json_lines, _json_lines),
    Reader("trainer_state.json", lambda text: text.lstrip()[:1] == "{" and '"log_history"' in text, _json_table),
    Reader("JSON", begins_as_json, _json_table),
    Reader("monitor of episodes", _is_monitor, _monitor),
    Reader("MLflow metric file", _is_mlflow, _mlflow),
    Reader("Markdown table", _is_markdown, _markdown),
    Reader("drawn table", _is_drawn, _drawn),
    LOG,
    Reader("delimited text", lambda text: True, read_table),
)
