"""The run store: every run's settings, state and history, in one SQLite file that several processes share.

Imports no torch, so that pages stay light.  Workers write through :meth:`RunStore.append` and its neighbours;
everybody else reads.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
import platformdirs

from emacore import limits
from emacore.checks import is_real
from emacore.experiments.names import PERSON, SERVER, checked_name
from emacore.experiments.studies import Job, Study, Sweep, job_from_json
from emacore.formatting import megabytes
from emacore.limits import QUEUED
from emacore.tables import KEPT, hash_of, kept_name
from emacore.training.config import TaskConfig
from emacore.training.history import columns, summarise

#: States a run can be in.  "interrupted" means that its worker went away; what it had written is kept.
STATES = ("queued", "running", "done", "stopped", "failed", "interrupted")
FINAL_STATES = STATES[2:]
KINDS: dict[type, str] = {TaskConfig: "run", Study: "study", Sweep: "sweep"}
#: The kind of what is no job but a question about files, which no list of jobs has.
QUESTION = "question"
#: Seconds without a sign of life, while one looks on, after which the worker of another machine counts as gone.
STALE_AFTER = 15.0
#: Seconds between the signs of life that a worker writes while it has nothing else to write.
BEAT = 2.0
#: Bytes that the store keeps for the histories of a full disk.
RESERVE_BYTES = 2**20
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
#: Whose turn it is: the oldest of those that people asked for, and what the server asked for when there is none.
_NEXT = f"WHERE state = 'queued' ORDER BY asked = '{SERVER}', created, rowid LIMIT 1"
#: What a list has of a job.
_LISTED = (
    "SELECT id, kind, name, asked, state, created, started, finished, heartbeat, took, "
    "(SELECT COUNT(*) FROM epochs WHERE run_id = id) AS epochs, stopped, error, config, "
    "CASE kind WHEN 'run' THEN (SELECT row FROM epochs WHERE run_id = id ORDER BY epoch DESC LIMIT 1) END AS last "
    "FROM runs"
)
#: How long one waits for another program that writes.
BUSY_MILLISECONDS = 5000


class StoreError(RuntimeError):
    """The store cannot do what was asked; the message is meant for the person using it."""


class StoreFull(StoreError, OSError):
    """The disk has no room for what was to be kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.ENOSPC


class Damaged(StoreError):
    """What the store has of a job cannot be read; other jobs can."""


class RunLost(StoreError):
    """A worker tried to write a run that is not (any longer) its own."""


@dataclass(frozen=True)
class StoredRun:
    """One job, which is a run, a study or a sweep, as the store knows it.

    Times are seconds since 1970; ``seconds`` is how long it trained, by a clock that nobody sets.  ``summary`` is that
    of a run's last epoch so far; it is empty for the others.  ``note`` says what was not kept of it, if anything.
    ``name`` is the one that a person gave it, and ``asked`` says who asked for it: ``names.PERSON`` or ``SERVER``.
    """

    id: str
    name: str | None
    asked: str
    state: str
    job: Job
    created: float
    started: float | None
    finished: float | None
    stopped: str | None
    error: str | None
    summary: pd.DataFrame
    seconds: float = 0.0
    note: str | None = None

    @property
    def config(self) -> TaskConfig:
        """The run's settings, or those that a study or sweep starts from."""
        return self.job if isinstance(self.job, TaskConfig) else self.job.config


@dataclass(frozen=True)
class Asked:
    """A question to a worker: its state, when it was taken up, and how much of how much is done."""

    id: str
    state: str
    started: float | None
    error: str | None
    done: int
    of: int


def default_folder() -> Path:
    """``EMACORE_HOME`` if it is set, else the platform's folder for application data."""
    return Path(os.environ.get("EMACORE_HOME") or platformdirs.user_data_dir("emacore", appauthor=False))


class RunStore:
    """The runs kept in ``folder`` (by default :func:`default_folder`); made if it is not there.

    Raises:
        StoreError: if the folder cannot be written, holds something else, or a newer version of the store.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self.path = self.folder / "runs.sqlite"
        KEPT.add(self.folder.resolve() / "tables")
        self._began: dict[str, float] = {}
        self._beaten: dict[str, float] = {}
        self._silent: dict[str, tuple[Any, float]] = {}
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
                with _transaction(connection):  # several programs may open it at once
                    _bring_up_to_date(connection)
            self._mark = _mark(connection)
        self._file = _identity(self.path)
        self._keep_reserve()

    def jobs(self) -> pd.DataFrame:
        """All runs, studies and sweeps, newest first.

        Columns: id, kind ("run", "study", "sweep"), name (that a person gave; else missing), asked (who asked for it:
        ``names.PERSON`` or ``SERVER``), state, created (UTC), seconds, epochs (of a sweep, the cells that are done),
        stopped, error, config (JSON), and last: of a run, the row of its last epoch as JSON.
        """
        return self._listed(*KINDS.values())

    def runs(self) -> pd.DataFrame:
        """All runs, newest first, with the same columns."""
        return self._listed("run")

    def studies(self) -> pd.DataFrame:
        """All studies over seeds, with the same columns; ``epochs`` is that of the seed that trained longest."""
        return self._listed("study")

    def sweeps(self) -> pd.DataFrame:
        """All sweeps, with the same columns; ``epochs`` counts the cells that are done."""
        return self._listed("sweep")

    def history(self, run_id: str) -> pd.DataFrame:
        """What was written so far: a row each epoch of a run, each seed and epoch of a study, each seed of a cell.

        A sweep's cells come in the grid's order, whichever was done first.  The columns are those of the histories of
        :func:`emacore.training.loop.train` and :func:`emacore.training.replicas.replicate`, and of the table of
        :func:`emacore.experiments.sweep.sweep`.

        Raises:
            StoreError: if there is no such run.
            Damaged: if it cannot be read.
        """
        with self._connected() as connection:
            stored = self._row(connection, run_id)
            rows = connection.execute("SELECT row FROM epochs WHERE run_id = ? ORDER BY epoch", (run_id,)).fetchall()
        with _damage_told(run_id):
            job = job_from_json(stored["config"])
            if isinstance(job, TaskConfig):
                return pd.DataFrame([_epoch(text) for (text,) in rows], columns=columns(job.metrics))
            found = [_as_now(row) for (text,) in rows for row in json.loads(text)["rows"]]
            if not found:
                return pd.DataFrame(columns=["seed", *(columns(job.config.metrics) if isinstance(job, Study) else ())])
            return pd.DataFrame(job.in_order(found) if isinstance(job, Sweep) else found)

    def result(self, run_id: str) -> StoredRun:
        """A job's state and settings, and a run's final (or latest) metrics.

        Raises:
            StoreError: if there is no such run.
        """
        with self._connected() as connection:
            row = self._row(connection, run_id)
            last = connection.execute(
                "SELECT row FROM epochs WHERE run_id = ? ORDER BY epoch DESC LIMIT 1", (run_id,)
            ).fetchall()
        with _damage_told(run_id):
            if problem := _damage(dict(row)):
                raise ValueError(problem)
            job = job_from_json(row["config"])
            rows = [_epoch(text) for (text,) in last] if isinstance(job, TaskConfig) else []
            metrics = job.metrics if isinstance(job, TaskConfig) else job.config.metrics
            summary = summarise(pd.DataFrame(rows, columns=columns(metrics)), metrics)
        fields = ("id", "name", "asked", "state", "created", "started", "finished", "stopped", "error", "note")
        return StoredRun(job=job, summary=summary, seconds=_seconds(dict(row)), **{f: row[f] for f in fields})

    def damaged(self) -> dict[str, str]:
        """The jobs that cannot be read, which the lists leave out: by id, what is wrong with each."""
        with self._connected() as connection:
            jobs = f"{_LISTED} WHERE kind IS NOT ? ORDER BY created DESC, rowid DESC"
            rows = connection.execute(jobs, (QUESTION,)).fetchall()
        return {str(row["id"]): problem for row in rows if (problem := _damage(dict(row)))}

    def create(self, job: Job) -> str:
        """Enter a job as queued and return its id; a table that it trains on is kept beside it.

        Raises:
            StoreError: if too many wait already.
        """
        job = self._with_tables_kept(job)
        with self._connected() as connection, _transaction(connection):
            _check_queue(connection)
            return _enter(connection, job)

    def enter(self, job: Job, worker: str) -> str:
        """Enter a job that ``worker`` is carrying out already, and return its id; its table is kept beside it."""
        job = self._with_tables_kept(job)
        with self._connected() as connection:
            run_id = _enter(connection, job, worker=worker)
        self._began[run_id] = time.monotonic()
        return run_id

    def ask(self, question: str) -> str:
        """Queue a question to a worker, which is JSON, and return its id; one that waits or is looked into is not asked
        twice.

        Raises:
            StoreError: if too many jobs wait already.
        """
        with self._connected() as connection, _transaction(connection):
            same = "SELECT id FROM runs WHERE kind = ? AND config = ? AND state IN ('queued', 'running')"
            if (row := connection.execute(same, (QUESTION, question)).fetchone()) is not None:
                return str(row["id"])
            _check_queue(connection)
            before = "SELECT id FROM runs WHERE kind = ? AND config = ?"
            connection.execute(f"DELETE FROM epochs WHERE run_id IN ({before})", (QUESTION, question))
            connection.execute("DELETE FROM runs WHERE kind = ? AND config = ?", (QUESTION, question))
            asked = uuid.uuid4().hex[:12]
            connection.execute(
                "INSERT INTO runs (id, state, created, config, kind) VALUES (?, 'queued', ?, ?, ?)",
                (asked, time.time(), question, QUESTION),
            )
            return asked

    def asked(self, question: str) -> Asked | None:
        """How a question is going, or how it ended; ``None`` if it was not asked."""
        with self._connected() as connection:
            row = connection.execute(
                "SELECT id, state, started, error FROM runs WHERE kind = ? AND config = ?", (QUESTION, question)
            ).fetchone()
            if row is None:
                return None
            last = connection.execute(
                "SELECT row FROM epochs WHERE run_id = ? ORDER BY epoch DESC LIMIT 1", (row["id"],)
            ).fetchone()
        done = json.loads(last["row"]) if last is not None else {"done": 0, "of": 0}
        return Asked(row["id"], row["state"], row["started"], row["error"], done["done"], done["of"])

    def create_once(self, what: str, job: TaskConfig) -> str | None:
        """Enter a run as queued that nobody asked for, once for each store, unless it has a run to look at.

        It waits for all that people asked for, and gives way where one of these waits while it trains.

        Args:
            what: Which one it is; it is not entered again, not after it was deleted either.

        Returns:
            Its id; ``None`` where nothing was entered.
        """
        with self._connected() as connection, _transaction(connection):
            others = "SELECT 1 FROM runs WHERE kind = 'run' AND state IN ('queued', 'running', 'done') LIMIT 1"
            if connection.execute(others).fetchone() is not None:
                return None
            if not connection.execute("INSERT OR IGNORE INTO once VALUES (?)", (what,)).rowcount:
                return None
            return _enter(connection, job, asked=SERVER)

    def _with_tables_kept(self, job: Job) -> Job:
        """The job whose table lies in the store, so that it is found again from any folder, and no path is told."""
        config = job if isinstance(job, TaskConfig) else job.config
        with suppress(ValueError):  # a file that cannot be read is told by whoever trains on it
            data = config.data.kept(self.add_table)
            if data != config.data:
                config = replace(config, data=data)
                return config if isinstance(job, TaskConfig) else replace(job, config=config)
        return job

    def rename(self, job_id: str, name: str) -> None:
        """Give a job a name; the empty one brings that of its settings back.

        Raises:
            StoreError: if there is no such job, or the name is too long.
        """
        try:
            name = checked_name(name)
        except ValueError as error:
            raise StoreError(f"{error}.") from error
        with self._connected() as connection, _transaction(connection):
            self._row(connection, job_id)
            connection.execute("UPDATE runs SET name = ? WHERE id = ?", (name or None, job_id))

    def delete(self, run_id: str) -> None:
        """Forget a job and its history, with the recording, table and cells that no other job uses.

        Raises:
            StoreError: if there is no such job, or it is running.
        """
        with self._connected() as connection:
            cells = self._own_cells(connection, run_id)
            with _transaction(connection):
                row = self._row(connection, run_id)
                if row["state"] == "running":
                    raise StoreError("The run is still training: stop it before deleting it.")
                connection.execute("DELETE FROM epochs WHERE run_id = ?", (run_id,))
                connection.execute("DELETE FROM runs WHERE id = ?", (run_id,))
                connection.executemany("DELETE FROM cells WHERE key = ?", [(key,) for key in cells])
                used = "SELECT 1 FROM runs WHERE instr(config, ?) LIMIT 1"
                tables = [
                    table
                    for table in self._tables_of(row["config"])
                    if connection.execute(used, (table.stem,)).fetchone() is None
                ]
        for table in tables:
            table.unlink(missing_ok=True)
        shutil.rmtree(self.recording(run_id), ignore_errors=True)

    def _tables_of(self, config: str) -> list[Path]:
        """The tables of the store that the settings of a job name; their names are hashes."""
        return [table for table in (self.folder / "tables").glob("*.csv") if table.stem in config]

    def _own_cells(self, connection: sqlite3.Connection, run_id: str) -> set[str]:
        """The keys of a sweep's cells that no other sweep has."""
        own: set[str] = set()
        others: set[str] = set()
        if self._row(connection, run_id)["kind"] == "sweep":
            for row in connection.execute("SELECT id, config FROM runs WHERE kind = 'sweep'"):
                with suppress(ValueError, TypeError):  # settings that this program cannot read
                    job = job_from_json(row["config"])
                    keys = job.cell_keys() if isinstance(job, Sweep) else []
                    (own if row["id"] == run_id else others).update(keys)
        return own - others

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

    def taken(self) -> dict[str, int]:
        """Bytes that the store takes: "recordings", "tables", "cells" of sweeps, and "histories", the rest of its
        database."""
        with self._connected() as connection:
            cells = _bytes_of_cells(connection)
        folders = {name: _bytes_in(self.folder / name) for name in ("recordings", "tables")}
        database = sum(file.stat().st_size for file in self.folder.glob("runs.sqlite*"))
        return folders | {"cells": cells, "histories": max(0, database - cells)}

    def recorded_bytes(self) -> dict[str, int]:
        """Bytes of each recording, by the id of its run; also of runs that are not there any more."""
        return {folder.name: _bytes_in(folder) for folder in (self.folder / "recordings").glob("*")}

    def has(self, job_id: str) -> bool:
        """Whether there is such a job, damaged or not."""
        with self._connected() as connection:
            return connection.execute("SELECT 1 FROM runs WHERE id = ?", (job_id,)).fetchone() is not None

    def drop_recording(self, run_id: str) -> None:
        """Forget the recorded weights of a run, and keep the rest.

        Raises:
            StoreError: if it is running.
        """
        with self._connected() as connection:
            row = connection.execute("SELECT state FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is not None and row["state"] == "running":
            raise StoreError("The run is still training: stop it before dropping its recording.")
        shutil.rmtree(self.recording(run_id), ignore_errors=True)

    def request_stop(self, run_id: str) -> None:
        """Ask a run to stop: at once if it is queued, after its current step if it runs; else nothing happens."""
        with self._connected() as connection, _transaction(connection):
            self._row(connection, run_id)
            connection.execute(
                "UPDATE runs SET state = 'stopped', stopped = 'stopped', finished = ? "
                "WHERE id = ? AND state = 'queued'",
                (time.time(), run_id),
            )
            connection.execute("UPDATE runs SET stop_requested = 1 WHERE id = ? AND state = 'running'", (run_id,))

    def tables_of(self, job_ids: Iterable[str]) -> list[Path]:
        """The kept tables that these jobs train on, each once."""
        with self._connected() as connection:
            rows = (connection.execute("SELECT config FROM runs WHERE id = ?", (one,)).fetchone() for one in job_ids)
            return sorted({table for row in rows if row is not None for table in self._tables_of(row["config"])})

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
        """Forget the kept tables that no job trains on."""
        for table in self.unused_tables():
            table.unlink(missing_ok=True)

    def drop_cells(self) -> None:
        """Forget what is kept of sweeps' cells: their tables stay, but who asks for a cell again has it trained again.

        The file shrinks where nothing trains meanwhile; else there is room in it.
        """
        with self._connected() as connection:
            connection.execute("DELETE FROM cells")
            if connection.execute("SELECT 1 FROM runs WHERE state = 'running' LIMIT 1").fetchone() is None:
                with suppress(sqlite3.OperationalError):  # it needs as much room again, or is in use
                    connection.execute("VACUUM")

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
                f"at most {megabytes(limits.TABLES_BYTES)} of tables that jobs train on are possible, and this one has "
                f"{megabytes(size)}: delete jobs that train on others first."
            )

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

    def cell(self, key: str) -> list[dict[str, Any]] | None:
        """What a sweep has found for a cell, if it has."""
        with self._connected() as connection:
            row = connection.execute("SELECT rows FROM cells WHERE key = ?", (key,)).fetchone()
        with suppress(ValueError, TypeError, AttributeError):  # a damaged one is found again
            return None if row is None else [_as_now(cell) for cell in json.loads(row["rows"])]
        return None

    def add_cell(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Keep what a sweep found for a cell; it is on disk when this returns."""
        self.add_cells({key: rows})

    def add_cells(self, cells: Mapping[str, list[dict[str, Any]]]) -> None:
        """Keep several, by their keys, at once; the oldest ones beyond the budget are forgotten."""
        if cells:
            now, texts = time.time(), {key: json.dumps(found) for key, found in cells.items()}
            with self._connected() as connection, _transaction(connection):
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

    def counts(self) -> dict[str, int]:
        """How many runs there are in each state that has any."""
        with self._connected() as connection:
            return dict(connection.execute("SELECT state, COUNT(*) FROM runs GROUP BY state").fetchall())

    def claim(self, worker: str, limit: int) -> tuple[str, str] | None:
        """Take the run whose turn it is (id, config as JSON) for ``worker``, unless ``limit`` runs are under way.

        The oldest that a person asked for comes first.
        """
        with self._connected() as connection, _transaction(connection):
            running = connection.execute("SELECT COUNT(*) FROM runs WHERE state = 'running'").fetchone()[0]
            row = connection.execute(f"SELECT id, config FROM runs {_NEXT}").fetchone()
            if row is None or running >= limit:
                return None
            now = time.time()
            connection.execute(
                "UPDATE runs SET state = 'running', worker = ?, started = ?, heartbeat = ? WHERE id = ?",
                (worker, now, now, row["id"]),
            )
        self._began[row["id"]] = time.monotonic()
        return row["id"], row["config"]

    def waiting(self, job_ids: Iterable[str]) -> list[str]:
        """Those of some jobs that wait for a worker."""
        with self._connected() as connection:
            queued = {row["id"] for row in connection.execute("SELECT id FROM runs WHERE state = 'queued'")}
        return [job_id for job_id in job_ids if job_id in queued]

    def append(self, run_id: str, worker: str, row: dict[str, Any]) -> None:
        """Write one epoch; it is on disk when this returns.

        Raises:
            RunLost: if the run is not running as this worker's (it was deleted, or counted as interrupted).
        """

        def write() -> None:
            with self._connected() as connection, _transaction(connection):
                self._touch(connection, run_id, worker)
                connection.execute("INSERT INTO epochs VALUES (?, ?, ?)", (run_id, row["epoch"], json.dumps(row)))

        self._with_reserve(write)

    def beat(self, run_id: str, worker: str) -> bool:
        """Give a sign of life; true if the run has been asked to stop, or is to give way.

        Raises:
            RunLost: as :meth:`append`.
        """
        with self._connected() as connection:
            if time.monotonic() - self._beaten.get(run_id, -math.inf) > BEAT:
                with _transaction(connection):
                    self._touch(connection, run_id, worker)
            row = connection.execute(
                "SELECT * FROM runs WHERE id = ? AND worker = ? AND state = 'running'", (run_id, worker)
            ).fetchone()
            if row is None:
                raise RunLost(f"Run {run_id} is no longer this worker's.")
            waits = "SELECT 1 FROM runs WHERE state = 'queued' LIMIT 1"
            gives_way = row["asked"] == SERVER and connection.execute(waits).fetchone() is not None
            return bool(row["stop_requested"]) or gives_way

    def finish(
        self,
        run_id: str,
        worker: str,
        state: str,
        *,
        stopped: str | None = None,
        error: str | None = None,
        note: str | None = None,
    ) -> None:
        """Enter the end of a run that is running as this worker's; else nothing happens.

        What nobody asked for and nobody stopped is queued again where it gave way or was interrupted.

        Args:
            note: What was not kept of it.
        """

        def write() -> None:
            with self._connected() as connection, _transaction(connection):
                ended = connection.execute(
                    "UPDATE runs SET state = ?, stopped = ?, error = ?, note = ?, finished = ?, "
                    "took = COALESCE(?, took) WHERE id = ? AND worker = ? AND state = 'running'",
                    (state, stopped, error, note, time.time(), self._took(run_id), run_id, worker),
                )
                if ended.rowcount and state in ("stopped", "interrupted"):
                    self._queue_again(connection, run_id)

        self._with_reserve(write)

    def fail_run_of(self, worker: str, error: str) -> None:
        """Enter the run that a worker had claimed when it died as failed; if it had none, nothing happens."""
        with self._connected() as connection:
            connection.execute(
                "UPDATE runs SET state = 'failed', error = ?, finished = ? WHERE worker = ? AND state = 'running'",
                (error, time.time(), worker),
            )

    def fail_next(self, error: str) -> None:
        """Enter the run whose turn it is as failed, if there is one: where no worker can be started to take it."""
        with self._connected() as connection:
            connection.execute(
                f"UPDATE runs SET state = 'failed', error = ?, finished = ? WHERE id = (SELECT id FROM runs {_NEXT})",
                (error, time.time()),
            )

    def interrupt_abandoned(self) -> None:
        """Enter running runs as interrupted whose worker is gone.

        A worker holds a lock as long as it lives, also while it is stopped, or its machine asleep, and whatever its
        clock says.  Where there is no such lock, its process is asked for; of another machine's, one looks whether it
        gives signs of life.
        """
        with self._connected() as connection:
            rows = connection.execute("SELECT id, worker, heartbeat FROM runs WHERE state = 'running'").fetchall()
        for row in rows:
            if self._lives(*row):
                continue
            with self._connected() as connection, _transaction(connection):
                ended = connection.execute(
                    "UPDATE runs SET state = 'interrupted', finished = heartbeat "
                    "WHERE id = ? AND worker IS ? AND heartbeat IS ? AND state = 'running'",
                    tuple(row),
                )
                if ended.rowcount:
                    self._queue_again(connection, row["id"])

    @contextmanager
    def working(self, token: str) -> Iterator[str]:
        """Be a worker: the name to enter runs under, which lives as long as the block, and the process, does."""
        name = worker_name(os.getpid(), token)
        lock = filelock.FileLock(self._lock_of(name))
        held = False
        with suppress(OSError, NotImplementedError, filelock.Timeout):  # where it cannot be, its process is asked for
            Path(lock.lock_file).parent.mkdir(exist_ok=True)
            lock.acquire(timeout=0)
            held = True
        try:
            yield name
        finally:
            if held:
                lock.release()
                Path(lock.lock_file).unlink(missing_ok=True)

    def forget_worker(self, worker: str) -> None:
        """Remove the lock of a worker that has ended."""
        with suppress(OSError):
            self._lock_of(worker).unlink()

    def _lock_of(self, worker: str) -> Path:
        token = worker.rpartition("@")[0].partition(":")[2]
        return self.folder / "workers" / f"{hashlib.sha256(token.encode()).hexdigest()[:24]}.lock"

    def _lives(self, run_id: str, worker: object, heartbeat: object) -> bool:
        if not isinstance(worker, str):
            return False
        name, _, node = worker.rpartition("@")
        if node != platform.node():
            seen, since = self._silent.get(run_id, (None, 0.0))
            if (seen, since) == (None, 0.0) or seen != heartbeat:
                since = time.monotonic()
            self._silent[run_id] = heartbeat, since
            return time.monotonic() - since <= STALE_AFTER
        path = self._lock_of(worker)
        if not path.exists():
            return _process_lives(name.partition(":")[0])
        try:
            with filelock.FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
        except filelock.Timeout:
            return True
        except (OSError, NotImplementedError):
            return _process_lives(name.partition(":")[0])
        return False

    def _took(self, run_id: str) -> float | None:
        began = self._began.get(run_id)
        return None if began is None else time.monotonic() - began

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

    def _queue_again(self, connection: sqlite3.Connection, run_id: str) -> None:
        """Queue a run that ended, without what it had, if nobody asked for it and nobody stopped it."""
        again = connection.execute(
            "UPDATE runs SET state = 'queued', started = NULL, finished = NULL, heartbeat = NULL, worker = NULL, "
            "stopped = NULL WHERE id = ? AND asked = ? AND stop_requested = 0",
            (run_id, SERVER),
        )
        if again.rowcount:
            connection.execute("DELETE FROM epochs WHERE run_id = ?", (run_id,))
            shutil.rmtree(self.recording(run_id), ignore_errors=True)

    def _listed(self, *kinds: str) -> pd.DataFrame:
        columns = ["id", "kind", "name", "asked", "state", "created", "seconds", "epochs", "stopped", "error"]
        columns += ["config", "last"]
        with self._connected() as connection:
            rows = connection.execute(
                f"{_LISTED} WHERE kind IN ({', '.join('?' * len(kinds))}) ORDER BY created DESC, rowid DESC", kinds
            ).fetchall()
        readable = [{**row, "seconds": _seconds(row)} for row in map(dict, rows) if not _damage(row)]
        table = pd.DataFrame(readable, columns=columns)
        table["created"] = pd.to_datetime(table["created"].astype("float64"), unit="s", utc=True)
        return table

    def _touch(self, connection: sqlite3.Connection, run_id: str, worker: str) -> None:
        touched = connection.execute(
            "UPDATE runs SET heartbeat = ?, took = COALESCE(?, took) WHERE id = ? AND worker = ? AND state = 'running'",
            (time.time(), self._took(run_id), run_id, worker),
        )
        if not touched.rowcount:
            raise RunLost(f"Run {run_id} is no longer this worker's.")
        self._beaten[run_id] = time.monotonic()

    def _row(self, connection: sqlite3.Connection, run_id: str) -> sqlite3.Row:
        row: sqlite3.Row | None = connection.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
        if row is None:
            raise StoreError(f"There is no run {run_id!r} in this store: it may have been deleted.")
        return row

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


def _bytes_in(folder: Path) -> int:
    """Bytes of the files of a folder, without those that go meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


@contextmanager
def _damage_told(run_id: str) -> Iterator[None]:
    """Around the reading of what a store has of a job: a store may be edited, copied in part, or bad on the disk."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise Damaged(f"The job {run_id} is damaged: {_short(error)}. Delete it, or restore a copy of it.") from error


def _short(error: object) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 200 else f"{text[:200]} ..."


def _epoch(text: str) -> dict[str, Any]:
    """A row of a run's history."""
    row = json.loads(text)
    if not isinstance(row, dict) or not all(value is None or is_real(value) for value in row.values()):
        raise ValueError(f"an epoch must be an object of numbers, got {text[:80]!r}")
    return row


def _damage(row: Mapping[str, Any]) -> str | None:
    """What is wrong with the row of a job, if anything; the settings are looked at once."""
    if not isinstance(row["id"], str):
        return "its id is no text"
    if row["state"] not in STATES:
        return f"its state is {_short(repr(row['state']))}"
    for name in ("created", "started", "finished", "heartbeat"):
        if row[name] is None and name != "created":
            continue
        if not (is_real(row[name]) and math.isfinite(row[name])):
            return f"the time {name} is {_short(repr(row[name]))}"
    for name in ("name", "stopped", "error"):
        if not isinstance(row[name], str | None):
            return f"its {name} is no text"
    if not isinstance(row["config"], str):
        return "its settings are no text"
    kind, problem = _read_settings(row["config"])
    if problem or kind != row["kind"]:
        return f"its settings cannot be read: {problem}" if problem else f"it is no {row['kind']}, but a {kind}"
    if row.get("last") is not None:
        try:
            _epoch(row["last"])
        except (ValueError, TypeError, RecursionError) as error:
            return f"its last epoch cannot be read: {_short(error)}"
    return None


@lru_cache(maxsize=4096)
def _read_settings(text: str) -> tuple[str | None, str | None]:
    """The kind of job that settings describe, and what is wrong with them."""
    try:
        job = job_from_json(text)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        return None, _short(error)
    return next(kind for its_class, kind in KINDS.items() if isinstance(job, its_class)), None


def _seconds(row: Mapping[str, Any]) -> float:
    """How long a job trained: by its worker's own clock, or else by the times that it entered."""
    took, started = row["took"], row["started"]
    if is_real(took):
        return max(0.0, float(took))
    ended = row["finished"] if row["finished"] is not None else row["heartbeat"]
    return max(0.0, ended - started) if started is not None and ended is not None else math.nan


def worker_name(pid: int, token: str) -> str:
    """A worker's name, from which another process on the same machine can tell whether it still lives."""
    return f"{pid}:{token}@{platform.node()}"


def _bytes_of_cells(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT COALESCE(SUM(size), 0) FROM cells").fetchone()[0])


def _check_queue(connection: sqlite3.Connection) -> None:
    waiting = connection.execute("SELECT COUNT(*) FROM runs WHERE state = 'queued'").fetchone()[0]
    if waiting >= QUEUED:
        raise StoreError(f"{waiting:,} jobs wait already, and at most {QUEUED:,} may: stop some of them first.")


def _enter(connection: sqlite3.Connection, job: Job, *, worker: str | None = None, asked: str = PERSON) -> str:
    run_id, now = uuid.uuid4().hex[:12], time.time()
    state, started = ("queued", None) if worker is None else ("running", now)
    kind = next(kind for its_class, kind in KINDS.items() if isinstance(job, its_class))
    connection.execute(
        "INSERT INTO runs (id, state, created, started, heartbeat, worker, config, kind, asked) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (run_id, state, now, started, started, worker, job.to_json(indent=None), kind, asked),
    )
    return run_id


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


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.rollback()
        raise
    connection.commit()


def _process_lives(number: str) -> bool:
    if os.name != "posix" or not number.isdecimal():
        return os.name != "posix"
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


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


def _as_now(row: dict[str, Any]) -> dict[str, Any]:
    """A seed's row of a cell by the names that its columns have now: those of the EMA once ended in "_averaged"."""
    return {f"{name.removesuffix('_averaged')}_ema" if name.endswith("_averaged") else name: row[name] for name in row}
