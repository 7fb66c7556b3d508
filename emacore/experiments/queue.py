"""Who works on what: jobs wait, workers claim them and write their rows, and what was left behind is found."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emacore.experiments.budgets import Budgeted
from emacore.experiments.database import StoreError, transaction
from emacore.experiments.names import PERSON, SERVER
from emacore.experiments.records import kind_of
from emacore.experiments.studies import Job
from emacore.experiments.workers import Workers
from emacore.limits import QUEUED
from emacore.training.config import TaskConfig

#: The kind of what is no job but a question about files, which no list of jobs has.
QUESTION = "question"
#: Seconds between the signs of life that a worker writes while it has nothing else to write.
BEAT = 2.0
#: Whose turn it is: the oldest of those that people asked for, and what the server asked for when there is none.
_NEXT = f"WHERE state = 'queued' ORDER BY asked = '{SERVER}', created, rowid LIMIT 1"


class RunLost(StoreError):
    """A worker tried to write a run that is not (any longer) its own."""


@dataclass(frozen=True)
class Asked:
    """A question to a worker: its state, when it was taken up (s since 1970), and how much of how much is done."""

    id: str
    state: str
    started: float | None
    error: str | None
    done: int
    of: int


class Queue(Budgeted):
    """The jobs of a store, from the time that they are asked for to the time that they end."""

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(folder)
        self.workers = Workers(self.folder / "workers")
        self._began: dict[str, float] = {}
        self._beaten: dict[str, float] = {}

    def create(self, job: Job) -> str:
        """Enter a job as queued and return its id; a table that it trains on is kept beside it.

        Raises:
            StoreError: if too many wait already.
        """
        job = self._with_tables_kept(job)
        with self._connected() as connection, transaction(connection):
            _check_queue(connection)
            return _enter(connection, job)

    def enter(self, job: Job, worker: str) -> str:
        """Enter a job that ``worker`` is carrying out already, and return its id; its table is kept beside it."""
        job = self._with_tables_kept(job)
        with self._connected() as connection:
            run_id = _enter(connection, job, worker=worker)
        self._began[run_id] = time.monotonic()
        return run_id

    def create_once(self, what: str, job: TaskConfig) -> str | None:
        """Enter a run as queued that nobody asked for, once for each store, unless it has a run to look at.

        It waits for all that people asked for, and gives way where one of these waits while it trains.

        Args:
            what: Which one it is; it is not entered again, not after it was deleted either.

        Returns:
            Its id; ``None`` where nothing was entered.
        """
        with self._connected() as connection, transaction(connection):
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

    def ask(self, question: str) -> str:
        """Queue a question to a worker, which is JSON, and return its id; one that waits or is looked into is not asked
        twice.

        Raises:
            StoreError: if too many jobs wait already.
        """
        with self._connected() as connection, transaction(connection):
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

    def waiting(self, job_ids: Iterable[str]) -> list[str]:
        """Those of some jobs that wait for a worker."""
        with self._connected() as connection:
            queued = {row["id"] for row in connection.execute("SELECT id FROM runs WHERE state = 'queued'")}
        return [job_id for job_id in job_ids if job_id in queued]

    def counts(self) -> dict[str, int]:
        """How many runs there are in each state that has any."""
        with self._connected() as connection:
            return dict(connection.execute("SELECT state, COUNT(*) FROM runs GROUP BY state").fetchall())

    def claim(self, worker: str, limit: int) -> tuple[str, str] | None:
        """Take the run whose turn it is (id, config as JSON) for ``worker``, unless ``limit`` runs are under way.

        The oldest that a person asked for comes first.
        """
        with self._connected() as connection, transaction(connection):
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

    def append(self, run_id: str, worker: str, row: dict[str, Any]) -> None:
        """Write one epoch; it is on disk when this returns.

        Raises:
            RunLost: if the run is not running as this worker's (it was deleted, or counted as interrupted).
        """

        def write() -> None:
            with self._connected() as connection, transaction(connection):
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
                with transaction(connection):
                    self._touch(connection, run_id, worker)
            row = connection.execute(
                "SELECT * FROM runs WHERE id = ? AND worker = ? AND state = 'running'", (run_id, worker)
            ).fetchone()
            if row is None:
                raise RunLost(f"Run {run_id} is no longer this worker's.")
            waits = "SELECT 1 FROM runs WHERE state = 'queued' LIMIT 1"
            gives_way = row["asked"] == SERVER and connection.execute(waits).fetchone() is not None
            return bool(row["stop_requested"]) or gives_way

    def _touch(self, connection: sqlite3.Connection, run_id: str, worker: str) -> None:
        touched = connection.execute(
            "UPDATE runs SET heartbeat = ?, took = COALESCE(?, took) WHERE id = ? AND worker = ? AND state = 'running'",
            (time.time(), self._took(run_id), run_id, worker),
        )
        if not touched.rowcount:
            raise RunLost(f"Run {run_id} is no longer this worker's.")
        self._beaten[run_id] = time.monotonic()

    def _took(self, run_id: str) -> float | None:
        began = self._began.get(run_id)
        return None if began is None else time.monotonic() - began

    def request_stop(self, run_id: str) -> None:
        """Ask a run to stop: at once if it is queued, after its current step if it runs; else nothing happens."""
        with self._connected() as connection, transaction(connection):
            self._row(connection, run_id)
            connection.execute(
                "UPDATE runs SET state = 'stopped', stopped = 'stopped', finished = ? "
                "WHERE id = ? AND state = 'queued'",
                (time.time(), run_id),
            )
            connection.execute("UPDATE runs SET stop_requested = 1 WHERE id = ? AND state = 'running'", (run_id,))

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
            with self._connected() as connection, transaction(connection):
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
            if self.workers.lives(*row):
                continue
            with self._connected() as connection, transaction(connection):
                ended = connection.execute(
                    "UPDATE runs SET state = 'interrupted', finished = heartbeat "
                    "WHERE id = ? AND worker IS ? AND heartbeat IS ? AND state = 'running'",
                    tuple(row),
                )
                if ended.rowcount:
                    self._queue_again(connection, row["id"])

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


def _check_queue(connection: sqlite3.Connection) -> None:
    waiting = connection.execute("SELECT COUNT(*) FROM runs WHERE state = 'queued'").fetchone()[0]
    if waiting >= QUEUED:
        raise StoreError(f"{waiting:,} jobs wait already, and at most {QUEUED:,} may: stop some of them first.")


def _enter(connection: sqlite3.Connection, job: Job, *, worker: str | None = None, asked: str = PERSON) -> str:
    run_id, now = uuid.uuid4().hex[:12], time.time()
    state, started = ("queued", None) if worker is None else ("running", now)
    kind = kind_of(job)
    connection.execute(
        "INSERT INTO runs (id, state, created, started, heartbeat, worker, config, kind, asked) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (run_id, state, now, started, started, worker, job.to_json(indent=None), kind, asked),
    )
    return run_id
