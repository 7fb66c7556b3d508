"""Folders beside the place of results, where these are written; nothing of them stays, even of a killed process."""

from __future__ import annotations

import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

#: A lock lies beside each such folder, because its owner holds it until it ends, however it ends.
_LOCK = re.compile(r"(\..+\.partial-[0-9a-f]{8})\.lock")


@contextmanager
def whole_or_nothing(
    out: Path, say: Callable[[str], None] | None = None
) -> Iterator[tuple[Path, list[tuple[Path, Path]]]]:
    """A folder beside ``out``, and a list for the moves from there: unless all goes well, nothing stays, no moved
    result, nor a folder that was made for it.

    An interruption can come between any two steps; one that comes when all is moved leaves all of it.  What is left
    beside it of processes that were killed is removed, and ``say`` gets a sentence, by default as a warning.
    """
    for words in clear_left(out.parent):
        if say is None:
            warnings.warn(words, stacklevel=4)
        else:
            say(words)
    partial = out.parent / f".{out.name}.partial-{secrets.token_hex(4)}"  # known before it is made
    place = _lock_of(partial)
    lock = filelock.FileLock(place, timeout=0)
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    moves: list[tuple[Path, Path]] = []
    done = False

    def clear() -> None:
        for staged, target in [] if done else moves:
            if not staged.exists():
                remove(target)
        remove(partial)
        lock.release(force=True)
        with suppress(OSError):
            place.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # there is none, or it holds something
                folder.rmdir()

    try:
        try:
            try:
                out.parent.mkdir(parents=True, exist_ok=True)
                _hold(lock, place)
                partial.mkdir()
            except OSError as error:
                why = error.strerror or error
                raise OSError(f"nothing can be written into {out.parent} ({why}): choose another place") from error
            yield partial, moves
            done = True
        finally:
            clear()
    finally:
        clear()  # all of it, where an interruption ended the other


def _hold(lock: filelock.BaseFileLock, place: Path) -> None:
    try:
        lock.acquire()
    except (OSError, NotImplementedError):  # no locks there: without one it is never taken for left
        place.unlink(missing_ok=True)


def clear_left(folder: Path) -> list[str]:
    """Remove what processes left in a folder that were killed while they wrote beside a place in it.

    Those that live hold a lock, and keep theirs; no age or clock counts.

    Returns:
        A sentence for each.
    """
    told = []
    for place in sorted(folder.glob(".*.lock")) if folder.is_dir() else []:
        if (found := _LOCK.fullmatch(place.name)) is None:
            continue
        with suppress(OSError, NotImplementedError), filelock.FileLock(place, timeout=0):  # a Timeout is an OSError
            if (partial := folder / found[1]).exists():
                remove(partial)
                told.append(f"removed {partial.name}, which a merge that was killed had left half written")
            place.unlink(missing_ok=True)
    return told


def remove(place: Path) -> None:
    """Remove a file or folder, if there is one."""
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def _lock_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.lock")
