"""Tables that people bring as text: read, or refused in one sentence that says what to do."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emacore import limits
from emacore.formatting import counted
from emacore.limits import check_bytes, check_most

#: What the sniff looks at: so many characters and lines of a file's start.
SAMPLE_CHARACTERS = 2**16
SAMPLE_LINES = 100
DELIMITERS = (";", "\t", "|", ",", " ")
#: Stands for "no delimiter": the unit separator of ASCII, which no text has.
NO_DELIMITER = "\x1f"

COMMA_NUMBER = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+(?:[eE][+-]?\d+)?")
POINT_NUMBER = re.compile(r"[+-]?\d*\.\d+(?:[eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d*)?")
#: Groups of three digits with blanks (of any width) or apostrophes between them, as much of the world writes them.
GROUPS = re.compile(r"[+-]?\d{1,3}(?:[ '\u2019\u00a0\u2009\u202f]\d{3})+(?:[.,]\d+)?")
_BETWEEN_GROUPS = str.maketrans("", "", " '\u2019\u00a0\u2009\u202f")
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
#: A date in the order of ISO 8601, or with points, where the day comes first; with or without a time of day.
DATE = re.compile(
    r"(?:\d{4}[-/]\d{1,2}[-/]\d{1,2}|\d{1,2}\.\d{1,2}\.\d{4})(?:[T ][\d:.,]+(?: ?(?:Z|[+-]\d\d:?\d\d))?)?"
)
THOUSANDS_POINT = re.compile(r"(?<=\d)\.(?=\d{3}(?:\D|$))")
_POINT_GROUPS = re.compile(r"[+-]?\d{1,3}(?:\.\d{3})+")
#: A number as Python prints it within a tensor, an array or a list of one.
_WITHIN = re.compile(
    r"^(?:[a-z]+\.)?(?:tensor|[Aa]rray|float\d*|u?int\d*)\(\[?([^\s,()\[\]]{1,40})\]?(?:,[^()]{0,80})?\)$"
    r"|^\[([^\s,()\[\]]{1,40})\]$"
)
#: A number and its unit, as what watches a machine writes them.
_WITH_UNIT = re.compile(
    r"([+-]?[\d.,]{1,30}(?:[eE][+-]?\d{1,3})?) ?"
    r"([KMGT]i?B|kB|[kM]?W|[kMG]?Hz|[mu\u00b5n]?s|sec|min|h|\u00b0?C|dB|px|ppm)"
)
_MARKUP = re.compile(r"\s{0,99}<(?:!doctype|\?xml|html|head|body|table|svg)\b", re.IGNORECASE)
_COMMENTS = ("#", "%", "//")


class TableError(ValueError):
    """A table that cannot be used; the message is meant for the person who brought it."""


def is_light(content: bytes) -> bool:
    """Whether a file is read in a moment: it is small, not packed, and has few columns.

    For whoever serves others meanwhile; what is not light is read in a process of its own.
    """
    first = content[: limits.LIGHT_BYTES].split(b"\n", 1)[0]
    widest = max(first.count(delimiter.encode()) for delimiter in DELIMITERS)
    return len(content) <= limits.LIGHT_BYTES and widest <= 100 and not content.startswith((b"\x1f\x8b", b"PAR1"))


class Table(NamedTuple):
    """A table as it was read.

    Attributes:
        frame: The rows; a column whose values are mostly numbers is of numbers, with NaN for what was none.
        lines: The line of the file that each row began in, from 1, shape (rows,).
        notes: Sentences on what was taken otherwise than it stands there, or left out.
    """

    frame: pd.DataFrame
    lines: NDArray[np.int64]
    notes: tuple[str, ...] = ()


def read_csv(source: bytes | str | Path) -> pd.DataFrame:
    """The rows of :func:`read_table` alone."""
    return read_table(text_of(content_of(source))).frame


def table_of(content: bytes) -> Table:
    """:func:`read_table` of a file's bytes."""
    return read_table(text_of(content))


def content_of(source: bytes | str | Path) -> bytes:
    """The bytes of a file (a path, or its bytes), whose size is looked at before it is read.

    Raises:
        TableError: if it is missing or too large.
    """
    if isinstance(source, bytes):
        _check_size(len(source))
        return source
    path = Path(source)
    try:
        _check_size(path.stat().st_size)
        with path.open("rb") as file:
            content = file.read(limits.TABLE_BYTES + 1)  # a pipe has no size
    except OSError as error:
        raise TableError(f"The file {path.name!r} cannot be read: {error.strerror}.") from error
    _check_size(len(content))
    return content


#: Folders in which stores keep tables, each under the first letters of its hash.
KEPT: set[Path] = set()
LETTERS_OF_HASH = 16


def hash_of(content: bytes) -> str:
    """The hash by which a file is known: SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def kept_name(sha256: str) -> str:
    """Under which name a store keeps the file of this hash."""
    return f"{sha256[:LETTERS_OF_HASH]}.csv"


def is_kept(sha256: str) -> bool:
    """Whether a store keeps the file of this hash."""
    return any((folder / kept_name(sha256)).exists() for folder in KEPT)


def read_file(path: str, sha256: str | None = None) -> bytes:
    """The bytes of a table: of the one of this hash where a store keeps it, or of the file in this place.

    Raises:
        TableError: if it is missing, too large, or another one than the hash says.
    """
    if sha256 is not None:
        for folder in sorted(KEPT):
            if (kept := folder / kept_name(sha256)).exists():
                content = content_of(kept)
                if hash_of(content) == sha256:
                    return content
    content = content_of(path)
    if sha256 is not None and hash_of(content) != sha256:
        raise TableError(
            f"The file {Path(path).name!r} is another one than that of the settings: its hash begins with "
            f"{hash_of(content)[:8]}, theirs with {sha256[:8]}. Bring that file, or leave data.sha256 out."
        )
    return content


def text_of(content: bytes) -> str:
    """The text of a file in UTF-8 or, with its mark, UTF-16; gzip is unpacked.  Lines end in "\\n"; what colours a
    terminal is taken out.

    Raises:
        TableError: if it is empty, too large once unpacked, or not text.
    """
    content = unpacked(content)
    if not content.strip():
        raise TableError("The file is empty. A header row and rows of numbers are needed.")
    if content.startswith(b"PK\x03\x04"):
        raise TableError("The file is binary: a zip archive or a workbook. Save the table in it as CSV text first.")
    if content.startswith(b"PAR1"):
        raise TableError("The file is binary: Parquet. Save the table in it as CSV text first.")
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    if encoding != "utf-16" and b"\0" in content:
        raise TableError("The file is binary. Save the table as CSV text first.")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-16" if encoding == "utf-16" else "UTF-8"
        line = content.count(b"\n", 0, error.start) + 1
        where = f"byte 0x{content[error.start]:02x} in line {line:,}"
        raise TableError(f"The file is not {name} text: {where}. Save it as CSV UTF-8.") from error
    if not text.strip() or "\0" in text:
        raise TableError("The file is empty or binary. A header row and rows of numbers are needed.")
    if _MARKUP.match(text):
        raise TableError("The file is HTML or XML, perhaps a page instead of what it leads to. Save the table as CSV.")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _COLOURS.sub("", text) if "\x1b" in text else text


def begins_as_json(text: str) -> bool:
    """Whether a text is an object or a list of JSON, whole or not, and no table whose first name has a bracket."""
    text = text.lstrip()
    if text[:1] not in ("{", "["):
        return False
    line = text[1:].lstrip()
    if line[:1] in ('"', "{", "[", "}", ""):
        return True
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return text[end : end + 1] in ("", "\n")


def read_table(text: str) -> Table:
    """Read delimited text: delimiter, header, comments, and what its numbers look like are found out.

    Delimiters are commas, semicolons, tabs, bars or spaces.  Without a header row (the first row is of numbers) the
    columns are "column 1" and so on.  Lines that begin with "#" are comments; the last one above the rows is the header
    where it has as many fields.  Blank lines are skipped.  Decimal commas, thousands, percent signs are understood.

    Raises:
        TableError: without rows, with more fields in a row than in the header, with too many cells, or if it is JSON.
    """
    if begins_as_json(text):
        raise TableError("The file is JSON, not a table of rows. Save the table as CSV text first.")
    text, comments = _without_comments(text)
    text, said = _said_delimiter(text)
    delimiter, decimal = _delimiter(text, said)
    lengths, blank, ends = _shape(text, delimiter)
    used = np.flatnonzero(~blank)
    if not len(used):
        raise TableError("The file has comments only. A header row and rows of numbers are needed.")
    check_columns(int(lengths.max()))
    notes = [f"{len(comments)} comment lines"] if comments else []
    titles, used = _titles(text, delimiter, lengths, used)
    if titles:
        first = text.split("\n", int(ends[used[0]]))[int(ends[titles[0]]) - 1].strip()
        notes.append(f"above the header {len(titles)} lines were left out, the first is {first[:60]!r}")
    names, top, told = _header(text, delimiter, comments, int(used[0]), int(ends[used[0]]), lengths[used])
    notes += told
    rows = used[used >= top]
    if not len(rows):
        raise TableError("The file has a header but no rows. Rows of numbers are needed below it.")
    check_cells(len(rows), int(lengths[rows].max()))
    notes += _checked_lengths(text, delimiter, lengths, rows, len(names))
    skipped = int(blank[rows[0] : rows[-1]].sum()) - sum(rows[0] < place < rows[-1] for place in comments)
    if skipped:
        notes.append(f"{skipped} blank lines were skipped")
    if decimal == ",":
        notes.append("commas are decimal signs")
    starts = np.concatenate([[1], ends[:-1] + 1])[rows]
    # pandas counts rows, too, where quotes hold lines together.
    begin, empty = int(rows[0]), np.flatnonzero(blank)
    skip = [*range(begin), *empty[empty >= begin].tolist()] if (empty >= begin).any() else begin
    frame = _parsed(text, delimiter, decimal, names, int(lengths.max()), skip, len(rows))
    again = _headers_again(frame)
    if again.any():
        notes.append(
            f"the header stands in line {starts[again][0]} again, {again.sum():,} times in all: left out there"
        )
        frame, starts = frame[~again].reset_index(drop=True), starts[~again]
        if not len(frame):
            raise TableError("The file has a header but no rows. Rows of numbers are needed below it.")
        frame = frame.infer_objects()
    columns = {}
    for name in names:
        columns[name], told = as_numbers(frame[name], starts, decimal)
        notes += told
    return Table(pd.DataFrame(columns), starts, tuple(notes))


def numeric_columns(table: pd.DataFrame, minimum: int = 1) -> list[str]:
    """Names of the columns of numbers.

    Raises:
        TableError: if there are fewer than ``minimum``.
    """
    columns = [str(name) for name in table.select_dtypes("number").columns]
    if len(columns) < minimum:
        raise TableError(
            f"The table has {len(columns)} columns of numbers ({', '.join(columns) or 'none'}); "
            f"at least {minimum} are needed. Does it have a header row, and points as decimal signs?"
        )
    return columns


def _as_float(value: int) -> float:
    """A whole number of any size; infinite where it is beyond all floats."""
    try:
        return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf


def is_missing(value: object) -> bool:
    """Whether a value is none: blank, or not a number."""
    return value is None or value is pd.NA or value != value  # the last is NaN


def _check_size(count: int) -> None:
    check_bytes("of a file", count, limits.TABLE_BYTES, TableError)


def check_columns(count: int) -> None:
    """Refuse a table that is too wide."""
    check_most("columns of a table", count, limits.TABLE_COLUMNS, TableError)


def check_cells(rows: int, columns: int) -> None:
    """Refuse a table that is too large."""
    check_most("cells of a table", rows * columns, limits.TABLE_CELLS, TableError)


def unpacked(content: bytes) -> bytes:
    """What a gzip file holds; anything else as it is.

    Raises:
        TableError: if it is damaged, or too large once unpacked.
    """
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(limits.TABLE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise TableError(f"The gzip file is damaged: {str(error).rstrip('.')}.") from error
    check_bytes("of a file once unpacked", len(unpacked), limits.TABLE_BYTES, TableError)
    return unpacked


def _without_comments(text: str) -> tuple[str, dict[int, str]]:
    """The text with its comment lines blank, so that lines keep their numbers, and those by place from 0."""
    if not text.startswith(_COMMENTS) and not any(f"\n{sign}" in text for sign in _COMMENTS):
        return text, {}
    lines = text.split("\n")
    comments = {place: line for place, line in enumerate(lines) if line.startswith(_COMMENTS)}
    return "\n".join("" if line.startswith(_COMMENTS) else line for line in lines), comments


def _reader(text: str, delimiter: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)


def _said_delimiter(text: str) -> tuple[str, str | None]:
    """The text without the line in which Excel names a delimiter ("sep=;"), which stays blank, and that delimiter."""
    found = re.match(r"\n*\"?sep=(\\t|.)\"?[ \t]*(?=\n)", text)
    if found is None:
        return text, None
    said = "\t" if found[1] == "\\t" else found[1]
    return text[: found.start(1) - 4].rstrip('"') + text[found.end() :], said if said in DELIMITERS else None


def _delimiter(text: str, said: str | None = None) -> tuple[str, str]:
    """Delimiter (the one that was said) and decimal sign.  Looks at a bounded start of the text, once for each."""
    text = text.lstrip("\n")
    lines = [line for line in text[:SAMPLE_CHARACTERS].split("\n") if line.strip()]
    # The last line of a cut sample may be half a line.
    lines = (lines[:-1] if len(text) > SAMPLE_CHARACTERS and len(lines) > 1 else lines)[:SAMPLE_LINES]
    if not lines:
        return ",", "."
    sample = "\n".join(lines)
    best, found = (0.0, 0.0), ","
    for delimiter in DELIMITERS:
        try:
            counts = [len(_full(row)) for row in _reader(sample, delimiter)]
        except csv.Error:
            continue
        first, below = counts[0], counts[1:] or counts
        # Above the header there may be a title.
        usual = first if first > 1 else Counter(below).most_common(1)[0][0]
        agreed = sum(count == usual for count in below) / len(below)
        if max(below) < 2 or (delimiter == " " and (agreed < 1 or not _of_numbers(lines[1:]))):
            continue
        # A delimiter that the header has, too, is better than one that only the rows have.
        if (score := (float(first > 1), agreed)) > best:
            best, found = score, delimiter
    if said is not None:
        found = said
    elif found == "," and best[0] == 0 and _decimal_commas(lines[1:]):
        return NO_DELIMITER, ","
    if found == ",":
        return found, "."
    fields = [field.strip() for row in _reader(sample, found) for field in row]
    commas = any(COMMA_NUMBER.fullmatch(field) for field in fields)
    points = any(POINT_NUMBER.fullmatch(field) and not _POINT_GROUPS.fullmatch(field) for field in fields)
    return found, "," if commas and not points else "."


def _full(row: list[str]) -> list[str]:
    """A row without the blank field that a delimiter at its end makes."""
    return row[:-1] if len(row) > 1 and not row[-1].strip() else row


def _of_numbers(lines: list[str]) -> bool:
    return bool(lines) and all(_is_number(field) for line in lines for field in line.split())


def _decimal_commas(lines: list[str]) -> bool:
    """Whether lines under a header of one field are numbers with decimal commas, and not a step and a value."""
    if not lines or not all(COMMA_NUMBER.fullmatch(line.strip()) for line in lines):
        return False
    parts = [line.strip().split(",") for line in lines]
    whole = [int(first) for first, _ in parts]
    return len(parts) < 2 or not all(b > a for a, b in itertools.pairwise(whole))


def _is_number(field: str) -> bool:
    text = field.strip().rstrip("%").rstrip()
    if GROUPS.fullmatch(text) or THOUSANDS.fullmatch(text):
        return True
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return "_" not in text


def _shape(text: str, delimiter: str) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """How many fields each row has, whether all of them are blank, and the line in which it ends."""
    rows = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        found = np.array([(len(row), not any(row), rows.line_num) for row in rows], dtype=np.int64).reshape(-1, 3)
    except csv.Error as error:
        raise TableError(f"The file is not a table: line {rows.line_num}: {error}.") from error
    return found[:, 0], found[:, 1].astype(bool), found[:, 2]


def _titles(
    text: str, delimiter: str, lengths: NDArray[np.int64], used: NDArray[np.intp]
) -> tuple[list[int], NDArray[np.intp]]:
    """The rows of one field above a first one of several, all of words, where most have as many; and the rows below."""
    several = lengths[used] > 1
    if several[0] or not several.any():
        return [], used
    begin = int(np.argmax(several))
    if np.count_nonzero(lengths[used[begin:]] == lengths[used[begin]]) < max(2, 0.9 * len(used[begin:])):
        return [], used
    header = next(itertools.islice(_reader(text, delimiter), int(used[begin]), None))
    return ([], used) if any(map(_is_number, header)) else (used[:begin].tolist(), used[begin:])


def _header(
    text: str, delimiter: str, comments: dict[int, str], first: int, end: int, lengths: NDArray[np.int64]
) -> tuple[list[str], int, list[str]]:
    """Names of the columns, the row that the data begin with, and notes."""
    rows = _reader(text, delimiter)
    for _ in range(first):
        next(rows)
    fields = [field.strip() for field in _full(next(rows))]
    notes = []
    top = first + 1
    if _is_data(fields) or _is_like(fields, next(rows, [])):
        top = first
        above = [line.lstrip("#%/ ") for place, line in comments.items() if place < end]
        named = [field.strip() for field in next(_reader(above[-1], delimiter), [])] if above else []
        if len(named) == len(fields) and not _is_data(named):
            fields = named
            notes.append("the last comment above the rows is the header")
        else:
            fields = [f"column {place + 1}" for place in range(int(np.bincount(lengths).argmax()))]
            notes.append(f"there is no header row: the columns are {', '.join(fields[:4])}")
    elif numbers := [field for field in fields if field and _is_number(field)]:
        notes.append(f"the first row is the header, though {', '.join(numbers[:4])} in it could be numbers")
    names, copies, taken = [], Counter[str](), set(fields)
    for place, field in enumerate(fields):
        name = base = field or f"Unnamed: {place}"
        while copies[base] and (name in copies or name in taken):
            name = f"{base}.{copies[base]}"
            copies[base] += 1
        copies[name] += 1
        names.append(name)
    if twice := [name for name, field in zip(names, fields, strict=True) if field and name != field]:
        notes.append(f"columns of a name that is there already are called {', '.join(twice)}")
    return names, top, notes


def _is_data(fields: list[str]) -> bool:
    """Whether a first row is data: numbers and dates, and not 0, 1, 2, ... as pandas numbers columns without names."""
    full = [field for field in fields if field]
    if not all(_is_number(field) or DATE.fullmatch(field) for field in full) or not any(map(_is_number, full)):
        return False
    counted = full == [str(place) for place in range(len(full))]
    return not (counted and (not fields[0] or len(full) >= 3))


def _is_like(fields: list[str], below: list[str]) -> bool:
    """Whether a first row is data with words in it: a number with a point stands in it, and what stands below is of
    the same kind everywhere."""
    pairs = [(field, under.strip()) for field, under in zip(fields, below, strict=False) if field and under.strip()]
    return any(POINT_NUMBER.fullmatch(field) for field in fields) and all(
        _is_number(field) == _is_number(under) for field, under in pairs
    )


def _checked_lengths(
    text: str, delimiter: str, lengths: NDArray[np.int64], rows: NDArray[np.int64], width: int
) -> list[str]:
    notes = []
    longer = rows[lengths[rows] > width]
    if len(longer):
        wanted = set(longer.tolist())
        reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        before = 0
        for place, row in enumerate(reader):
            if place in wanted and any(field.strip() for field in row[width:]):
                fields = "1 field" if width == 1 else f"{width:,} fields"
                raise TableError(
                    f"The file is not a table: line {before + 1} has {len(row):,} fields, the header has {fields}. "
                    "Every row needs as many fields as the header; a decimal comma needs semicolons between fields."
                )
            before = reader.line_num
        rows_of_it = counted(len(longer), "row")
        notes.append(f"{rows_of_it} with a delimiter at the end: the blank fields after the last column are left out")
    shorter = rows[lengths[rows] < width]
    if len(shorter):
        notes.append(
            f"{counted(len(shorter), 'row')} with fewer fields than the header (row {_place(rows, shorter[0])} first): "
            "what is missing is blank"
        )
    return notes


def _headers_again(frame: pd.DataFrame) -> NDArray[np.bool_]:
    """Which rows are the header once more, as a logger that was started again writes it."""
    found = np.ones(len(frame), dtype=np.bool_)
    for name in frame.columns:
        if pd.api.types.is_numeric_dtype(frame[name]) or pd.api.types.is_bool_dtype(frame[name]):
            return np.zeros(len(frame), dtype=np.bool_)
        found &= (frame[name] == name).to_numpy(dtype=np.bool_, na_value=False)
        if not found.any():
            break
    return found


def _place(rows: NDArray[np.int64], row: np.int64) -> int:
    return int(np.searchsorted(rows, row)) + 1


def _parsed(
    text: str, delimiter: str, decimal: str, names: list[str], width: int, skipped: int | list[int], count: int
) -> pd.DataFrame:
    """The rows under these names; what is more than they is left out."""
    more = [f"{NO_DELIMITER}{place}" for place in range(len(names), width)]
    try:
        table = pd.read_csv(
            io.StringIO(text),
            sep=delimiter,
            decimal=decimal,
            names=[*names, *more],
            header=None,
            index_col=False,
            skiprows=skipped,
            skipinitialspace=True,
            skip_blank_lines=False,
            low_memory=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        reason = str(error).strip().rstrip(".")
        raise TableError(f"The file is not a table: {reason}. Every row needs as many fields as the header.") from error
    if len(table) != count:
        raise TableError("The file is not a table: its quotation marks do not match.")
    return table[names]


def _but(signed: Collection[int], full: dict[int, str], lines: NDArray[np.int64]) -> str:
    """Which numbers of a column had no sign or unit where others had."""
    bare = [row for row, text in full.items() if row not in signed and _is_number(text)]
    if not bare:
        return ""
    return f"; {counted(len(bare), 'number')} had none, the first {full[bare[0]]!r} in line {lines[bare[0]]}"


def as_numbers(column: pd.Series, lines: NDArray[np.int64], decimal: str = ".") -> tuple[pd.Series, list[str]]:
    """A column of text as numbers where most of it is numbers, with NaN for what is none; and notes on it.

    Percent signs and units are taken off.  A comma is the sign of ``decimal``, or else one of thousands.
    """
    if pd.api.types.infer_dtype(column, skipna=True) == "integer" and not pd.api.types.is_numeric_dtype(column):
        numbers = np.array([np.nan if is_missing(value) else _as_float(value) for value in column.tolist()])
        told = [f"{column.name}: whole numbers above 64 bit are rounded to 16 digits"]
        return pd.Series(numbers, column.index, name=column.name), told
    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column) or column.isna().all():
        return column, []
    # Plain Python: pandas' string methods take a millisecond a column, however short it is.
    full = {row: str(value).strip() for row, value in enumerate(column.tolist()) if not is_missing(value)}
    full = {row: text for row, text in full.items() if text}
    bare, told = {row: text.replace("\N{MINUS SIGN}", "-") for row, text in full.items()}, []
    if any(_WITHIN.fullmatch(text) for text in bare.values()):
        bare = {row: _WITHIN.sub(r"\1\2", text) for row, text in bare.items()}
        told.append(f"{column.name}: numbers were taken out of what Python prints around them")
    if signs := [row for row, text in bare.items() if text.endswith("%")]:
        told.append(f"{column.name}: percent signs were taken off{_but(signs, full, lines)}")
        bare = {row: text.removesuffix("%").strip() for row, text in bare.items()}
    units = {row: found[2] for row, text in bare.items() if (found := _WITH_UNIT.fullmatch(text))}
    if len(set(units.values())) == 1:
        told.append(f"{column.name}: {next(iter(units.values()))} was taken off{_but(units, full, lines)}")
        bare = {row: _WITH_UNIT.sub(r"\1", text) for row, text in bare.items()}
    if any(GROUPS.fullmatch(text) for text in bare.values()):
        bare = {row: text.translate(_BETWEEN_GROUPS) if GROUPS.fullmatch(text) else text for row, text in bare.items()}
        told.append(f"{column.name}: blanks or apostrophes between groups of three digits were taken out")
    commas = [text for text in bare.values() if "," in text]
    if decimal == ",":
        bare = {row: THOUSANDS_POINT.sub("", text).replace(",", ".") for row, text in bare.items()}
    elif commas and all(THOUSANDS.fullmatch(text) for text in commas):
        bare = {row: text.replace(",", "") for row, text in bare.items()}
        told.append(f"{column.name}: commas are those of thousands")
    elif any(COMMA_NUMBER.fullmatch(text) for text in commas):
        points = {row: THOUSANDS_POINT.sub("", text) if "," in text else text for row, text in bare.items()}
        bare = {row: text.replace(",", ".") for row, text in points.items()}
        told.append(f"{column.name}: commas are decimal signs")
    numbers = np.full(len(column), np.nan)
    none = []
    for row, text in bare.items():
        try:
            numbers[row] = float(text.replace("_", "x"))
        except ValueError:
            none.append(row)
    if 2 * len(none) >= max(len(full), 1):
        return column, []
    if none:
        shown = [f"{full[row]!r} in line {lines[row]}" for row in none[:3]]
        rest = f" and {len(none) - 3:,} more" if len(none) > 3 else ""
        told.append(f"{column.name}: not numbers, so taken as missing: {', '.join(shown)}{rest}")
    return pd.Series(numbers, column.index, name=column.name), told
