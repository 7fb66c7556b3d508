"""Tables that people bring as CSV: read, or refused in one sentence that says what to do."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd

MAX_BYTES = 50 * 2**20
MAX_CELLS = 20_000_000


class TableError(ValueError):
    """A table that cannot be used; the message is meant for the person who brought it."""


def read_csv(source: bytes | str | Path) -> pd.DataFrame:
    """Read a CSV file (a path, or its bytes) with a header row; the delimiter is found out.

    Raises:
        TableError: if it is missing, empty, too large, not UTF-8 text, without data rows, or not a table.
    """
    content = source if isinstance(source, bytes) else _content(Path(source))
    if len(content) > MAX_BYTES:
        raise TableError(f"The file has {len(content) / 2**20:.0f} MB; at most {MAX_BYTES // 2**20} MB are read.")
    if not content.strip():
        raise TableError("The file is empty. A header row and rows of numbers are needed.")
    if b"\0" in content:
        raise TableError("The file is binary. Save the table as CSV text first.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TableError(f"The file is not UTF-8 text (byte {error.start}). Save it as CSV UTF-8.") from error
    try:
        table = pd.read_csv(io.StringIO(text), sep=_delimiter(text), skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, ValueError) as error:
        reason = str(error).strip().rstrip(".")
        raise TableError(f"The file is not a table: {reason}. Every row needs as many fields as the header.") from error
    if table.empty:
        raise TableError("The file has a header but no rows. Rows of numbers are needed below it.")
    if table.size > MAX_CELLS:
        raise TableError(f"The table has {table.size:,} cells; at most {MAX_CELLS:,} are read.")
    return table


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


def finite_values(
    table: pd.DataFrame, columns: list[str], minimum_rows: int = 2
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """The columns as float64, shape (rows, columns).

    Raises:
        TableError: if a value is missing or not finite, or there are fewer than ``minimum_rows`` rows.
    """
    values = table[columns].to_numpy(dtype=np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise TableError(
            f"Column {columns[column]!r} has {len(np.flatnonzero(bad[:, 1] == column))} missing or infinite values, "
            f"the first in data row {row + 1}. Fill or remove them first."
        )
    if len(values) < minimum_rows:
        raise TableError(f"The table has {len(values)} rows; at least {minimum_rows} are needed.")
    return values


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TableError(f"The file {path.name!r} cannot be read: {error.strerror}.") from error


def _delimiter(text: str) -> str:
    try:
        return csv.Sniffer().sniff(text[: 2**16], delimiters=",;\t|").delimiter
    except csv.Error:
        return ","
