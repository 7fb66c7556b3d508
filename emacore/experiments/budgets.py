"""What is kept beside histories, within budgets: recorded weights, tables that jobs train on, and cells of sweeps."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from emacore import limits
from emacore.experiments.database import Database, StoreError, transaction
from emacore.experiments.records import as_now
from emacore.formatting import in_bytes
from emacore.tables import KEPT, hash_of, kept_name


class Budgeted(Database):
    """The database, and beside it a folder of recordings and one of tables."""

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(folder)
        KEPT.add(self.folder.resolve() / "tables")

    def recording(self, run_id: str) -> Path:
        """The folder of a run's recorded weights; there may be none."""
        return self.folder / "recordings" / run_id

    def make_room(self, run_id: str) -> int:
        """Drop the oldest recordings, never their histories, until that of a run fits into the budget of all.

        Those of other runs that train count as what they may come to, begun or not, and are left alone.

        Returns:
            The bytes that this one may take, fewer than usual where too many train at a time.
        """
        with self._connected() as connection:
            running = "SELECT id FROM runs WHERE state = 'running' AND kind = 'run' AND id != ?"
            growing = {row["id"] for row in connection.execute(running, (run_id,))}
        room = limits.RECORDINGS_BYTES - len(growing) * limits.RECORDING_BYTES
        mine = max(0, min(room, limits.RECORDING_BYTES))
        found, excess = [], mine - room
        for folder in (self.folder / "recordings").glob("*"):
            with suppress(OSError):  # another worker may be dropping it too
                if folder.name not in growing:
                    size = _bytes_in(folder)
                    excess += size
                    found.append((folder.stat().st_mtime, folder, size))
        for _, folder, size in sorted(found):
            if excess <= 0:
                break
            shutil.rmtree(folder, ignore_errors=True)
            excess -= size
        return mine

    def recorded_bytes(self) -> dict[str, int]:
        """Bytes of each recording, by the id of its run; also of runs that are not there any more."""
        return {folder.name: _bytes_in(folder) for folder in (self.folder / "recordings").glob("*")}

    def drop_recording(self, run_id: str) -> None:
        """Forget the recorded weights of a run, and keep the rest.

        Raises:
            StoreError: if it is running, or they cannot be deleted.
        """
        with self._connected() as connection:
            row = connection.execute("SELECT state FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is not None and row["state"] == "running":
            raise StoreError("The run is still training: stop it before dropping its recording.")
        folder = self.recording(run_id)
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise StoreError(f"The recorded weights in {folder} cannot be deleted: check their permissions.")

    def add_table(self, content: bytes) -> Path:
        """Keep the bytes of a CSV beside the runs that train on it; the same bytes are kept once.

        Raises:
            StoreError: if it cannot be kept.
        """
        path = self.folder / "tables" / kept_name(hash_of(content))
        try:
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                self._make_room_for_table(len(content))
                partial = path.with_suffix(f".{uuid.uuid4().hex}")
                try:
                    partial.write_bytes(content)
                    partial.replace(path)
                finally:
                    partial.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"The table cannot be kept in {path.parent}: {error.strerror}.") from error
        return path

    def _make_room_for_table(self, size: int) -> None:
        """Drop the oldest tables that no job trains on until one more fits into the budget.

        Raises:
            StoreError: if those of jobs leave no room.
        """
        excess = _bytes_in(self.folder / "tables") + size - limits.TABLES_BYTES
        for table, bytes_of_it in self.unused_tables().items() if excess > 0 else ():
            if excess <= 0:
                break
            table.unlink(missing_ok=True)
            excess -= bytes_of_it
        if excess > 0:
            raise StoreError(
                f"at most {in_bytes(limits.TABLES_BYTES)} of tables that jobs train on are possible, and this one has "
                f"{in_bytes(size)}: delete jobs that train on others first."
            )

    def tables_of(self, job_ids: Iterable[str]) -> list[Path]:
        """The kept tables that these jobs train on, each once."""
        with self._connected() as connection:
            rows = (connection.execute("SELECT config FROM runs WHERE id = ?", (one,)).fetchone() for one in job_ids)
            return sorted({table for row in rows if row is not None for table in self._tables_of(row["config"])})

    def _tables_of(self, config: str) -> list[Path]:
        """The tables of the store that the settings of a job name; their names are hashes."""
        return [table for table in (self.folder / "tables").glob("*.csv") if table.stem in config]

    def unused_tables(self) -> dict[Path, int]:
        """The kept tables that no job trains on, the oldest first, with their bytes."""
        found = []
        with self._connected() as connection:
            for table in (self.folder / "tables").glob("*.csv"):
                used = connection.execute("SELECT 1 FROM runs WHERE instr(config, ?) LIMIT 1", (table.stem,))
                with suppress(OSError):  # another program may be dropping it too
                    if used.fetchone() is None:
                        about = table.stat()
                        found.append((about.st_mtime, table, about.st_size))
        return {table: size for _, table, size in sorted(found)}

    def drop_tables(self) -> None:
        """Forget the kept tables that no job trains on.

        Raises:
            StoreError: if one cannot be deleted.
        """
        for table in self.unused_tables():
            try:
                table.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"The table {table} cannot be deleted: {error.strerror}.") from error

    def cell(self, key: str) -> list[dict[str, Any]] | None:
        """What a sweep has found for a cell, if it has."""
        with self._connected() as connection:
            row = connection.execute("SELECT rows FROM cells WHERE key = ?", (key,)).fetchone()
        with suppress(ValueError, TypeError, AttributeError):  # a damaged one is found again
            return None if row is None else [as_now(cell) for cell in json.loads(row["rows"])]
        return None

    def add_cell(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Keep what a sweep found for a cell; it is on disk when this returns."""
        self.add_cells({key: rows})

    def add_cells(self, cells: Mapping[str, list[dict[str, Any]]]) -> None:
        """Keep several, by their keys, at once; the oldest ones beyond the budget are forgotten."""
        if cells:
            now, texts = time.time(), {key: json.dumps(found) for key, found in cells.items()}
            with self._connected() as connection, transaction(connection):
                connection.executemany(
                    "INSERT OR REPLACE INTO cells (key, rows, added, size) VALUES (?, ?, ?, ?)",
                    [(key, text, now, len(text)) for key, text in texts.items()],
                )
                excess = _bytes_of_cells(connection) - limits.CELLS_BYTES
                oldest = connection.execute("SELECT key, size FROM cells ORDER BY added") if excess > 0 else ()
                for key, size in list(oldest):
                    if excess > 0 and key not in texts:
                        connection.execute("DELETE FROM cells WHERE key = ?", (key,))
                        excess -= size

    def drop_cells(self) -> None:
        """Forget what is kept of sweeps' cells: their tables stay, but who asks for a cell again has it trained again.

        The file shrinks where nothing trains meanwhile; else there is room in it.
        """
        with self._connected() as connection:
            connection.execute("DELETE FROM cells")
            if connection.execute("SELECT 1 FROM runs WHERE state = 'running' LIMIT 1").fetchone() is None:
                with suppress(sqlite3.OperationalError):  # it needs as much room again, or is in use
                    connection.execute("VACUUM")

    def taken(self) -> dict[str, int]:
        """Bytes that the store takes: "recordings", "tables", "cells" of sweeps, and "histories", the rest of its
        database."""
        with self._connected() as connection:
            cells = _bytes_of_cells(connection)
        folders = {name: _bytes_in(self.folder / name) for name in ("recordings", "tables")}
        database = sum(file.stat().st_size for file in self.folder.glob("runs.sqlite*"))
        return folders | {"cells": cells, "histories": max(0, database - cells)}


def _bytes_in(folder: Path) -> int:
    """Bytes of the files of a folder, without those that go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _bytes_of_cells(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT COALESCE(SUM(size), 0) FROM cells").fetchone()[0])
