"""The run store: every run's settings, state and history, in one SQLite file that several processes share.

Imports no torch, so that pages stay light.  Workers write through :meth:`RunStore.append` and its neighbours;
everybody else reads.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import suppress

import numpy as np
import pandas as pd

from emacore.experiments.database import StoreError, StoreFull, default_folder, transaction
from emacore.experiments.names import checked_name
from emacore.experiments.queue import QUESTION, Queue, RunLost
from emacore.experiments.records import (
    FINAL_STATES,
    KINDS,
    STATES,
    Damaged,
    StoredRun,
    as_now,
    damage,
    damage_told,
    epoch_of,
    seconds_of,
)
from emacore.experiments.studies import Study, Sweep, job_from_json
from emacore.experiments.workers import worker_name
from emacore.training.config import TaskConfig
from emacore.training.history import columns, summarise

__all__ = [
    "FINAL_STATES",
    "STATES",
    "Damaged",
    "RunLost",
    "RunStore",
    "StoreError",
    "StoreFull",
    "StoredRun",
    "default_folder",
    "worker_name",
]
#: What a list has of a job.
_LISTED = (
    "SELECT id, kind, name, asked, state, created, started, finished, heartbeat, took, "
    "(SELECT COUNT(*) FROM epochs WHERE run_id = id) AS epochs, stopped, error, config, "
    "CASE kind WHEN 'run' THEN (SELECT row FROM epochs WHERE run_id = id ORDER BY epoch DESC LIMIT 1) END AS last "
    "FROM runs"
)


class RunStore(Queue):
    """The runs kept in ``folder`` (by default :func:`default_folder`); made if it is not there.

    Raises:
        StoreError: if the folder cannot be written, holds something else, or a newer version of the store.
    """

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

    def _listed(self, *kinds: str) -> pd.DataFrame:
        columns = ["id", "kind", "name", "asked", "state", "created", "seconds", "epochs", "stopped", "error"]
        columns += ["config", "last"]
        with self._connected() as connection:
            rows = connection.execute(
                f"{_LISTED} WHERE kind IN ({', '.join('?' * len(kinds))}) ORDER BY created DESC, rowid DESC", kinds
            ).fetchall()
        readable = [{**row, "seconds": seconds_of(row)} for row in map(dict, rows) if not damage(row)]
        table = pd.DataFrame(readable, columns=columns)
        table["created"] = pd.to_datetime(table["created"].astype("float64"), unit="s", utc=True)
        return table

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
        with damage_told(run_id):
            job = job_from_json(stored["config"])
            if isinstance(job, TaskConfig):
                return pd.DataFrame([epoch_of(text) for (text,) in rows], columns=columns(job.metrics))
            found = [as_now(row) for (text,) in rows for row in json.loads(text)["rows"]]
            if not found:
                return pd.DataFrame(columns=["seed", *(columns(job.config.metrics) if isinstance(job, Study) else ())])
            if isinstance(job, Sweep):
                return pd.DataFrame(job.in_order(found))
            table = pd.DataFrame(found)
            lost = table.columns[table.isna().all()]  # a column of nulls alone has no type
            return table.astype(dict.fromkeys(lost, np.float64))

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
        with damage_told(run_id):
            if problem := damage(dict(row)):
                raise ValueError(problem)
            job = job_from_json(row["config"])
            rows = [epoch_of(text) for (text,) in last] if isinstance(job, TaskConfig) else []
            metrics = job.metrics if isinstance(job, TaskConfig) else job.config.metrics
            summary = summarise(pd.DataFrame(rows, columns=columns(metrics)), metrics)
        fields = ("id", "name", "asked", "state", "created", "started", "finished", "stopped", "error", "note")
        return StoredRun(job=job, summary=summary, seconds=seconds_of(dict(row)), **{f: row[f] for f in fields})

    def damaged(self) -> dict[str, str]:
        """The jobs that cannot be read, which the lists leave out: by id, what is wrong with each."""
        with self._connected() as connection:
            jobs = f"{_LISTED} WHERE kind IS NOT ? ORDER BY created DESC, rowid DESC"
            rows = connection.execute(jobs, (QUESTION,)).fetchall()
        return {str(row["id"]): problem for row in rows if (problem := damage(dict(row)))}

    def has(self, job_id: str) -> bool:
        """Whether there is such a job, damaged or not."""
        with self._connected() as connection:
            return connection.execute("SELECT 1 FROM runs WHERE id = ?", (job_id,)).fetchone() is not None

    def rename(self, job_id: str, name: str) -> None:
        """Give a job a name; the empty one brings that of its settings back.

        Raises:
            StoreError: if there is no such job, or the name is too long.
        """
        try:
            name = checked_name(name)
        except ValueError as error:
            raise StoreError(f"{error}.") from error
        with self._connected() as connection, transaction(connection):
            self._row(connection, job_id)
            connection.execute("UPDATE runs SET name = ? WHERE id = ?", (name or None, job_id))

    def delete(self, run_id: str) -> None:
        """Forget a job and its history, with the recording, table and cells that no other job uses.

        Raises:
            StoreError: if there is no such job, or it is running.
        """
        with self._connected() as connection:
            cells = self._own_cells(connection, run_id)
            with transaction(connection):
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
