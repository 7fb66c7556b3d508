"""Everything that a store knows of some jobs, in one zip.  Imports no torch."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

import pandas as pd

from emacore.experiments.evidence import per_seed
from emacore.experiments.store import RunStore, StoredRun, StoreError
from emacore.experiments.studies import Study, Sweep, shared_json
from emacore.experiments.sweep import summary

#: A folder's name in the zip has at most so many letters before the job's id.
_LETTERS = 60


def write_archive(file: BinaryIO, store: RunStore, listed: pd.DataFrame) -> None:
    """Write jobs into a zip, one after the other, so that no more than one is in memory.

    ``jobs.csv`` is the list; each job has a folder with ``settings.json`` (which the package, the app and the command
    line take), ``history.csv`` with every digit, and what follows from it: of a run its final ``metrics.csv``, of a
    study a row a seed in ``seeds.csv``, of a sweep a row a cell in ``cells.csv``.  The table that a job trained on lies
    in ``tables``.  Recorded weights are left out: they take up to 400 MB a run.

    Args:
        listed: The jobs, as :func:`~emacore.experiments.listing.listing` returns them.  Those that are deleted
            meanwhile are left out.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        kept: dict[str, str] = {}
        for job_id, name in zip(listed["id"], listed["name"], strict=True):
            try:
                run, history = store.result(job_id), store.history(job_id)
            except StoreError:
                continue
            folder = f"{slug(name)}-{job_id}"
            kept[job_id] = folder
            archive.writestr(f"{folder}/settings.json", shared_json(run.job))
            for title, table in _tables(run, history):
                _write_csv(archive, f"{folder}/{title}.csv", table)
        for path in store.tables_of(kept):
            archive.write(path, f"tables/{path.name}")
        jobs = listed[listed["id"].isin(kept)].drop(columns=["label", "config"])
        _write_csv(archive, "jobs.csv", jobs.assign(folder=[kept[job_id] for job_id in jobs["id"]]))


def slug(name: str) -> str:
    """A name as a folder can have it everywhere: small letters, digits and hyphens."""
    plain = re.sub(r"[^a-z0-9.]+", "-", name.casefold()).strip("-.")
    return plain[:_LETTERS].strip("-.") or "job"


def _tables(run: StoredRun, history: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield "history", history
    if history.empty:
        return
    if isinstance(run.job, Study):
        yield "seeds", per_seed(history)
    elif isinstance(run.job, Sweep):
        yield "cells", summary(history, list(run.job.grid))
    else:
        yield "metrics", run.summary


def _write_csv(archive: zipfile.ZipFile, name: str, table: pd.DataFrame) -> None:
    with archive.open(name, "w", force_zip64=True) as file:
        table.to_csv(file, index=False)
