"""What stored jobs are called, and how one says that they are long ago.  Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo
from functools import lru_cache

import pandas as pd

from emacore.experiments.studies import job_from_json, job_in_words
from emacore.limits import NAME_LETTERS, check_most

#: Who asked for a job.  What the server trains by itself makes way for what people ask for.
PERSON, SERVER = "person", "server"
#: What the run is called that the server trains by itself.
EXAMPLE = "the article's run, trained for you"


def checked_name(text: str) -> str:
    """A name that people give, in one line; the empty one takes it away again.

    Raises:
        ValueError: for one that is too long.
    """
    name = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    check_most("letters of a name", len(name), NAME_LETTERS)
    return name


def names(table: pd.DataFrame, now: datetime, zone: tzinfo | None = None) -> list[str]:
    """What each job of a store's list is called; no two are called the same.

    A job whose name nobody gave is called after its settings and the time at which it was entered.

    Args:
        table: As :meth:`~emacore.experiments.store.RunStore.jobs` returns it.
        now: With its time zone; times of the same day need no date.
        zone: In which times are told; by default the machine's.
    """
    times = [time.floor("s").to_pydatetime().astimezone(zone) for time in table["created"]]
    today = now.astimezone(zone)
    own = {PERSON: None, SERVER: EXAMPLE}
    given = [own[asked] if pd.isna(name) else name for name, asked in zip(table["name"], table["asked"], strict=True)]
    spoken = [words_of(text) for text in table["config"]]
    named = [name or f"{words}, {_at(time, today)}" for name, words, time in zip(given, spoken, times, strict=True)]
    same = _twice(named)
    named = [
        f"{words}, {_at(time, today, seconds=True)}" if n in same and not name else n
        for n, name, words, time in zip(named, given, spoken, times, strict=True)
    ]
    same = _twice(named)
    return [f"{name} ({job_id})" if name in same else name for name, job_id in zip(named, table["id"], strict=True)]


@lru_cache(maxsize=4096)
def words_of(config: str) -> str:
    """The settings of a job, given as JSON, in a few words."""
    try:
        return job_in_words(job_from_json(config))
    except ValueError:  # of a family or task that is not known here, or no longer
        return "settings that this program cannot read"


def ago(seconds: float) -> str:
    """How long ago something was: "just now", "5 min ago", "3 h ago", "2 days ago"."""
    if seconds < 60:
        return "just now"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min ago"
    if seconds < 48 * 3600:
        return f"{seconds // 3600:.0f} h ago"
    return f"{seconds // 86400:,.0f} days ago"


def _at(time: datetime, today: datetime, *, seconds: bool = False) -> str:
    clock = time.strftime("%H:%M:%S" if seconds else "%H:%M")
    if time.date() == today.date():
        return clock
    day = f"{time.day} {time:%b}" if time.year == today.year else f"{time.day} {time:%b %Y}"
    return f"{day} {clock}"


def _twice(found: Sequence[str]) -> set[str]:
    seen = pd.Series(found, dtype=object)
    return set(seen[seen.duplicated()])
