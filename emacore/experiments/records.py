"""What the store says of a job, and what is wrong with that where the file was edited, copied in part, or went bad."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from emacore.checks import is_real
from emacore.experiments.database import StoreError
from emacore.experiments.studies import Job, Study, Sweep, job_from_json
from emacore.training.config import TaskConfig

#: States a run can be in.  "interrupted" means that its worker went away; what it had written is kept.
STATES = ("queued", "running", "done", "stopped", "failed", "interrupted")
FINAL_STATES = STATES[2:]
#: What the store calls the kinds of jobs, by their classes.
KINDS: dict[type, str] = {TaskConfig: "run", Study: "study", Sweep: "sweep"}


class Damaged(StoreError):
    """What the store has of a job cannot be read; other jobs can."""


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


@contextmanager
def damage_told(run_id: str) -> Iterator[None]:
    """Around the reading of what a store has of a job: a store may be edited, copied in part, or bad on the disk."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise Damaged(f"The job {run_id} is damaged: {_short(error)}. Delete it, or restore a copy of it.") from error


def damage(row: Mapping[str, Any]) -> str | None:
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
            epoch_of(row["last"])
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
    return kind_of(job), None


def kind_of(job: Job) -> str:
    """The kind of a job: "run", "study" or "sweep"."""
    return next(kind for its_class, kind in KINDS.items() if isinstance(job, its_class))


def epoch_of(text: str) -> dict[str, Any]:
    """A row of a run's history, from its JSON.

    Raises:
        ValueError: if it is no object of numbers.
    """
    row = json.loads(text)
    if not isinstance(row, dict) or not all(value is None or is_real(value) for value in row.values()):
        raise ValueError(f"an epoch must be an object of numbers, got {text[:80]!r}")
    return row


def as_now(row: dict[str, Any]) -> dict[str, Any]:
    """A seed's row of a cell by the names that its columns have now: those of the EMA once ended in "_averaged"."""
    return {f"{name.removesuffix('_averaged')}_ema" if name.endswith("_averaged") else name: row[name] for name in row}


def seconds_of(row: Mapping[str, Any]) -> float:
    """How long a job trained: by its worker's own clock, or else by the times that it entered."""
    took, started = row["took"], row["started"]
    if is_real(took):
        return max(0.0, float(took))
    ended = row["finished"] if row["finished"] is not None else row["heartbeat"]
    return max(0.0, ended - started) if started is not None and ended is not None else math.nan


def _short(error: object) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 200 else f"{text[:200]} ..."
