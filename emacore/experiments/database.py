"""The run store's database: one SQLite file that several processes share, brought up to date where it is opened."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import platformdirs

from emacore.experiments.names import PERSON

#: Bytes that the store keeps for the histories of a full disk.
RESERVE_BYTES = 2**20
#: The format of the database, in its ``user_version``; older ones are brought up to date, newer ones left alone.
VERSION = 6

_TABLES = (
    """CREATE TABLE IF NOT EXISTS runs (
        id TEXT PRIMARY KEY, state TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL, heartbeat REAL,
        worker TEXT, stop_requested INTEGER NOT NULL DEFAULT 0, stopped TEXT, error TEXT, config TEXT NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS epochs (
        run_id TEXT NOT NULL, epoch INTEGER NOT NULL, row TEXT NOT NULL, PRIMARY KEY (run_id, epoch)
    ) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS cells (key TEXT PRIMARY KEY, rows TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS once (what TEXT PRIMARY KEY) WITHOUT ROWID",
)
#: Columns that came with later formats, by their tables, in their order.
_LATER = {
    "runs": {
        "kind": "TEXT NOT NULL DEFAULT 'run'",
        "name": "TEXT",
        "asked": f"TEXT NOT NULL DEFAULT '{PERSON}'",
        "took": "REAL",
        "note": "TEXT",
    },
    "cells": {"added": "REAL", "size": "INTEGER"},
}
#: How long a reader or writer waits for another program that writes.
BUSY_MILLISECONDS = 5000


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message is meant for the person using it."""


class StoreFull(StoreError, OSError):
    """The disk has no room for what was to be kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.ENOSPC


def default_folder() -> Path:
    """``EMACORE_HOME`` if it is set, else the platform's folder for application data."""
    return Path(os.environ.get("EMACORE_HOME") or platformdirs.user_data_dir("emacore", appauthor=False))


class Database:
    """The file in ``folder`` (by default :func:`default_folder`); made if it is not there.

    Raises:
        StoreError: if the folder cannot be written, holds something else, or a newer version of the store.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self.path = self.folder / "runs.sqlite"
        self._file: tuple[int, int] | None = None
        self._mark = (0, 0)
        #: How often it was deleted, or another one put in its place: it begins anew then, or goes on with that one.
        self.replacements = 0
        self._open()

    def _open(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"The run store's folder {self.folder} cannot be made: {error.strerror}.") from error
        with _connection(self.path, self.folder) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise StoreError(
                    f"The run store in {self.folder} was written by a newer version of this program "
                    f"(format {version}, this one knows {VERSION}): update the program or set EMACORE_HOME elsewhere."
                )
            if version < VERSION:
                with transaction(connection):  # several programs may open it at once
                    _bring_up_to_date(connection)
            self._mark = _mark(connection)
        self._file = _identity(self.path)
        self._keep_reserve()

    def can_be_written(self) -> bool:
        """Whether anything can be kept: not where the disk is mounted read-only, or the files are others'."""
        return all(os.access(path, os.W_OK) for path in (self.folder, self.path) if path.exists())

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        if self._file != _identity(self.path):  # deleted, or another one in its place
            self._open()
            self.replacements += 1
        with _connection(self.path, self.folder) as connection:
            overwritten = _mark(connection) != self._mark
            if not overwritten:
                yield connection
        if overwritten:
            self._open()
            self.replacements += 1
            with _connection(self.path, self.folder) as connection:
                yield connection

    def _row(self, connection: sqlite3.Connection, run_id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise StoreError(f"There is no run {run_id!r} in this store: it may have been deleted.")
        return row

    def _with_reserve(self, write: Callable[[], None]) -> None:
        """Write; where the disk is full, into the room that was kept for that."""
        try:
            write()
        except StoreFull:
            reserve = self.folder / "reserve"
            if not reserve.exists():
                raise
            with suppress(OSError):
                reserve.unlink()
            write()

    def _keep_reserve(self) -> None:
        reserve = self.folder / "reserve"
        with suppress(OSError):
            if not reserve.exists() and shutil.disk_usage(self.folder).free > 4 * RESERVE_BYTES:
                reserve.write_bytes(bytes(RESERVE_BYTES))


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """What is done within is done whole, or not at all; nobody else writes meanwhile."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


@contextmanager
def _connection(path: Path, folder: Path) -> Iterator[sqlite3.Connection]:
    # A connection for each operation: cheap in SQLite, and nothing to share between threads or to leave open.
    try:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.text_factory = _text
            # No write-ahead log: its index is mapped into memory, and on a full disk that ends the process (SIGBUS).
            # The journal stays where it is, so that a full disk has room for it.  A store of before is in use by
            # others as long as it cannot be turned.
            with suppress(sqlite3.OperationalError):
                connection.execute("PRAGMA journal_mode = PERSIST")
            connection.execute(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
    except sqlite3.Error as error:
        kind = StoreFull if "full" in str(error) else StoreError
        raise kind(_sentence(error, folder)) from error


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")


def _mark(connection: sqlite3.Connection) -> tuple[int, int]:
    """Which store it is, whatever file holds it: a number drawn at its beginning, and its format."""
    application: int = connection.execute("PRAGMA application_id").fetchone()[0]
    return application, connection.execute("PRAGMA user_version").fetchone()[0]


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is, if there is one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    for table in _TABLES:
        connection.execute(table)
    for table, later in _LATER.items():
        names = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
        for column, kind in later.items():
            if column not in names:
                connection.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
    connection.execute("UPDATE cells SET added = 0, size = LENGTH(rows) WHERE size IS NULL")
    # From this alone it is known what they take, and which are the oldest.
    connection.execute("CREATE INDEX IF NOT EXISTS cells_by_age ON cells (added, size)")
    if not _mark(connection)[0]:
        connection.execute(f"PRAGMA application_id = {uuid.uuid4().int % 2**31 or 1}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _sentence(error: sqlite3.Error, folder: Path) -> str:
    text = str(error)
    if "locked" in text or "busy" in text:
        return f"The run store in {folder} is locked by another program: close that program, or try again."
    if "full" in text:
        return f"The disk that holds the run store ({folder}) is full: free some space, or set EMACORE_HOME elsewhere."
    if "readonly" in text or "unable to open" in text:
        return f"The run store in {folder} cannot be written: check its permissions, or set EMACORE_HOME elsewhere."
    if "no such table" in text or "no such column" in text:
        return f"The run store in {folder} was replaced by something else: move that away to begin a new one."
    if "not a database" in text or "malformed" in text:
        return f"The file runs.sqlite in {folder} is damaged or not a run store: move it away to begin a new one."
    return f"The run store in {folder} failed: {text}."
