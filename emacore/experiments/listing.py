"""Stored jobs beside each other: a list with their final numbers, their curves, and what their settings differ in.

Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emacore.averaging.code import to_code
from emacore.experiments.evidence import per_seed
from emacore.experiments.names import ago, names
from emacore.experiments.statistics import known_gains
from emacore.experiments.store import FINAL_STATES
from emacore.experiments.studies import Job, Study, Sweep
from emacore.formatting import counted, number
from emacore.training.acting import idle_settings
from emacore.training.config import TaskConfig, dotted
from emacore.training.history import MODELS

#: What is said of a setting that changes nothing beside the others.
IDLE = "(no effect)"
#: The end of a part of a name that tells when the job was entered.
_TIME = re.compile(r"\b\d\d:\d\d(:\d\d)?$")
#: The orders of a list, by what a person calls them: the column, and whether it ascends.
ORDERS = {
    "newest": ("created", False),
    "oldest": ("created", True),
    "name": ("name", True),
    "lowest loss of the EMA": ("ema", True),
    "largest gain": ("gain_percent", False),
    "longest": ("seconds", False),
}


class Numbers(NamedTuple):
    """What a job came to: the loss of both models after the last epoch, and the gain in percent of the original's,
    above 0 where the EMA is better.  Of a study, the medians over its seeds.  NaN where there is no finite one."""

    original: float = math.nan
    ema: float = math.nan
    gain_percent: float = math.nan


def final_numbers(job: Job, history: pd.DataFrame) -> Numbers:
    """What a job came to, by its history so far; a sweep has no one loss."""
    if history.empty or isinstance(job, Sweep):
        return Numbers()
    if isinstance(job, Study):
        table = per_seed(history)
        pairs = [table[f"final_{which}"].to_numpy(dtype=np.float64) for which in MODELS]
    else:
        pairs = [history[f"val_loss_{model}"].to_numpy(dtype=np.float64)[-1:] for model in MODELS]
    return Numbers(*map(_median, (*pairs, 100 * known_gains(*pairs))))


def listing(
    table: pd.DataFrame, now: datetime, zone: tzinfo | None = None, found: Mapping[str, Numbers] | None = None
) -> pd.DataFrame:
    """A store's jobs as people look for them, in the order of ``table``.

    Args:
        table: As :meth:`~emacore.experiments.store.RunStore.jobs` returns it.
        now, zone: As :func:`~emacore.experiments.names.names` takes them.
        found: What studies came to, by their ids; what runs did is in the table.

    Returns:
        id, kind, name (no two are the same), state, created (UTC), seconds, epochs, the :class:`Numbers`, asked, label
        (name, state, age and final numbers in one line) and config.  Losses of different tasks or data are not on one
        scale.
    """
    rows = list(_rows(table))
    told, states = names(table, now, zone), [state_in_words(row) for row in rows]
    numbers = [_numbers(row, found or {}) for row in rows]
    labels = [
        " · ".join(filter(None, [name, state, ago((now - row.created).total_seconds()), _in_words(row, came_to)]))
        for name, state, row, came_to in zip(told, states, rows, numbers, strict=True)
    ]
    came_to = np.array(numbers, dtype=np.float64).reshape(len(rows), len(Numbers._fields))
    # Made at once, since each further column takes pandas a millisecond; of an empty list it takes texts for numbers.
    return pd.DataFrame(
        {
            "id": table["id"],
            "kind": table["kind"].astype("str"),
            "name": pd.Series(told, table.index, dtype="str"),
            "state": pd.Series(states, table.index, dtype="str"),
            **{name: table[name] for name in ("created", "seconds", "epochs")},
            **dict(zip(Numbers._fields, came_to.T, strict=True)),
            "asked": table["asked"].astype("str"),
            "label": pd.Series(labels, table.index, dtype="str"),
            "config": table["config"],
        }
    )


def chosen(
    listed: pd.DataFrame, *, text: str = "", kinds: Collection[str] = (), states: Collection[str] = ()
) -> pd.DataFrame:
    """The rows of a list whose labels have every word of ``text``, of these kinds and states; of all where none is
    given."""
    rows = np.ones(len(listed), dtype=bool)
    for word in text.casefold().split():
        rows &= listed["label"].str.casefold().str.contains(word, regex=False).to_numpy(dtype=bool)
    if kinds:
        rows &= listed["kind"].isin(kinds).to_numpy()
    if states:
        rows &= listed["state"].str.split(" ").str[0].isin(states).to_numpy()
    return listed[rows]


def ordered(listed: pd.DataFrame, order: str) -> pd.DataFrame:
    """A list in one of :data:`ORDERS`; what has no number of that kind comes last."""
    column, ascending = ORDERS[order]
    key = (lambda values: values.str.casefold()) if column == "name" else None
    return listed.sort_values(column, ascending=ascending, na_position="last", kind="stable", key=key)


def state_in_words(row: Any) -> str:
    """How a job is going or how it ended; ``row`` has state, stopped and epochs."""
    if row.state == "done" and row.stopped == "diverged":
        return "diverged"
    if row.state in FINAL_STATES and not row.epochs:
        return f"{row.state} before the first epoch"
    return str(row.state)


def overlay(
    jobs: Mapping[str, Job], histories: Mapping[str, pd.DataFrame], models: Collection[str] = MODELS
) -> pd.DataFrame:
    """The validation losses of several jobs over epochs and steps, as one long table.

    Of a study it is the median over the finite losses of that epoch; a sweep has no curve and no rows.

    Args:
        models: "original", "ema" or both.

    Returns:
        name, model, curve (the name, with the model where there are both), epoch, steps, loss.
    """
    order = ["name", "model", "curve", "epoch", "steps", "loss"]
    parts = []
    for name, job in jobs.items():
        history = histories[name]
        if isinstance(job, Sweep) or history.empty:
            continue
        columns = {model: f"val_loss_{model}" for model in MODELS if model in models}
        if isinstance(job, Study):
            curves = history[list(columns.values())]
            history = history.assign(**curves.where(np.isfinite(curves)))
        by_epoch = history.groupby("epoch", sort=True)[["steps", *columns.values()]].median().reset_index()
        for model, column in columns.items():
            part = by_epoch[["epoch", "steps", column]].rename(columns={column: "loss"})
            part = part.assign(name=name, model=model, curve=curve_name(name, model, models))
            parts.append(part[order])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=order)


def curve_name(name: str, model: str, models: Collection[str]) -> str:
    """What a curve of :func:`overlay` is called."""
    return name if len(models) == 1 else f"{name}: {'EMA' if model == 'ema' else model}"


def measured_alike(jobs: Mapping[str, Job]) -> bool:
    """Whether the losses of these jobs are of the same task on the same rows, so that one can be set beside another."""
    configs = [config_of(job) for job in jobs.values()]
    measured = {json.dumps([config.task_name, config.data.effective()], sort_keys=True) for config in configs}
    return len(measured) <= 1


def differences(jobs: Mapping[str, Job]) -> pd.DataFrame:
    """The settings in which jobs differ, a row each: setting, and for each job, by its name, the value as text.

    A job that has no such setting has the empty text; a value that changes nothing beside the others says so.
    """
    told = {name: _told(job) for name, job in jobs.items()}
    settings = dict.fromkeys(setting for values in told.values() for setting in values)
    rows = [
        {"setting": setting, **{name: values.get(setting, "") for name, values in told.items()}}
        for setting in settings
        if len({values.get(setting, "") for values in told.values()}) > 1
    ]
    return pd.DataFrame(rows, columns=["setting", *told])


def short_names(names: Sequence[str], given: Collection[str] = ()) -> dict[str, str]:
    """For a legend: different names without the parts, between commas or colons, that all have in common, and without
    the time at their end where the others tell them apart.

    Args:
        given: Names that people gave; they stay, and do not count.
    """
    parts = {name: re.split(", |: ", name) for name in names if name not in given}
    common = set.intersection(*map(set, parts.values())) if len(parts) > 1 else set()
    short = {name: [part for part in own if part not in common] for name, own in parts.items()}
    timeless = {name: [part for part in own if not _TIME.search(part)] for name, own in short.items()}
    for left in (timeless, short) if all(timeless.values()) else (short,):
        found = {name: ", ".join(left.get(name, [])) or name for name in names}
        if len(set(found.values())) == len(found):
            return found
    return {name: name for name in names}


def config_of(job: Job) -> TaskConfig:
    """A run's settings, or those that a study or sweep starts from."""
    return job if isinstance(job, TaskConfig) else job.config


def _told(job: Job) -> dict[str, str]:
    """All settings of a job by dotted names, as text."""
    config = config_of(job)
    found = {name: _text(value) for name, value in dotted(json.loads(config.to_json())).items()}
    for name in idle_settings(config):
        if name in found and name != "seed":
            found[name] = f"{found[name]} {IDLE}"
    if isinstance(job, TaskConfig):
        return {"kind": "run", **found}
    del found["seed"]
    found["seeds"] = _text(list(job.seeds)) if len(job.seeds) < 2 else f"{len(job.seeds)}, {_range(job.seeds)}"
    if isinstance(job, Study):
        return {"kind": "study", **found, "further schedules": "; ".join(map(to_code, job.schedules))}
    return {"kind": "sweep", **found, **{f"grid of {name}": _text(list(values)) for name, values in job.grid.items()}}


def _range(seeds: tuple[int, ...]) -> str:
    whole = tuple(seeds) == tuple(range(seeds[0], seeds[0] + len(seeds)))
    return f"{seeds[0]} to {seeds[-1]}" if whole else ", ".join(map(str, seeds))


def _rows(table: pd.DataFrame) -> Iterator[Any]:
    """Rows with the columns as attributes."""
    return iter(table.itertuples(index=False, name="Row"))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _numbers(row: Any, found: Mapping[str, Numbers]) -> Numbers:
    if row.kind != "run":
        return found.get(row.id, Numbers())
    if not isinstance(row.last, str):
        return Numbers()
    last = json.loads(row.last)
    pair = [np.array([last[f"val_loss_{model}"]], dtype=np.float64) for model in MODELS]
    return Numbers(*map(_median, (*pair, 100 * known_gains(*pair))))


def _median(values: NDArray[np.float64]) -> float:
    """The median of the finite values; NaN where none is."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else math.nan


def _in_words(row: Any, came_to: Numbers) -> str:
    """What a row of the list came to."""
    if row.kind == "sweep":
        return counted(row.epochs, "cell")
    if math.isnan(came_to.original) or math.isnan(came_to.ema):
        return ""
    return f"loss {number(came_to.original)}, EMA {number(came_to.ema)}"
