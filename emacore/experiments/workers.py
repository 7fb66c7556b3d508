"""Whether a worker lives: asked of a lock that it holds, not of clocks; and what ends with it."""

from __future__ import annotations

import hashlib
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

#: Seconds between the looks of a process that another one started whether that one is still there.
LOOK = 1.0
#: Seconds without a sign of life, while one looks on, after which the worker of another machine counts as gone.
STALE_AFTER = 15.0


def worker_name(pid: int, token: str) -> str:
    """A worker's name, from which another process on the same machine can tell whether it still lives."""
    return f"{pid}:{token}@{platform.node()}"


def end_with(parent: int) -> None:
    """Have this process end once ``parent``, the number of the one that started it, is gone, in whatever way.

    On Windows, where a process is never told another parent, nothing happens.
    """

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


class Workers:
    """The workers of a store: each that lives holds a lock in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._silent: dict[str, tuple[Any, float]] = {}

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

    def is_held(self, token: str) -> bool:
        """Whether the lock of the worker of this token is there, and not seen to be free; a free one is removed."""
        path = self._lock(token)
        return path.exists() and _is_locked(path) is not False

    def forget(self, worker: str) -> None:
        """Remove the lock of a worker that has ended."""
        with suppress(OSError):
            self._lock_of(worker).unlink()

    def lives(self, run_id: str, worker: object, heartbeat: object) -> bool:
        """Whether the worker that a run was entered under still lives.

        Where there is no lock of it, its process is asked for; of another machine's, it is looked whether its last sign
        of life is another one than at the look before, or not yet older than :data:`STALE_AFTER`.
        """
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
        held = _is_locked(path) if path.exists() else None
        return _process_lives(name.partition(":")[0]) if held is None else held

    def _lock_of(self, worker: str) -> Path:
        return self._lock(worker.rpartition("@")[0].partition(":")[2])

    def _lock(self, token: str) -> Path:
        return self.folder / f"{hashlib.sha256(token.encode()).hexdigest()[:24]}.lock"


def _is_locked(path: Path) -> bool | None:
    """Whether somebody holds a lock, which is removed if nobody does; ``None`` where none can be taken."""
    try:
        with filelock.FileLock(path, timeout=0):
            path.unlink(missing_ok=True)
    except filelock.Timeout:
        return True
    except (OSError, NotImplementedError):
        return None
    return False


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
