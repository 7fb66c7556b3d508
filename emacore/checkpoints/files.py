"""Files that are read in parts, and may change meanwhile.

Nothing is mapped, because a mapped file that gets shorter ends the process that looks at it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

#: Files that are held open at a time, of all; others are opened again where they are read again.
_MOST_OPEN = 128


class CheckpointError(ValueError):
    """Files that cannot be read, or do not go together; the message says what is wrong with them."""


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is another by now: its size and its time."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The stamp of a file as it is now.

        Raises:
            CheckpointError: if there is none any more.
        """
        try:
            about = path.stat()
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        return cls(about.st_size, about.st_mtime_ns)


class _Open:
    """A file's number with the system; it is closed with the last who holds it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class PartsOf:
    """A file that is read in parts, by any number of threads.

    Args:
        path: As it is now: what is read later is of the file that had this size.
    """

    _recent: ClassVar[deque[weakref.ref[PartsOf]]] = deque()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.path, self._size = path, Stamp.of(path).size
        self._open: _Open | None = None

    def read(self, at: int, into: Tensor) -> None:
        """Fill a contiguous tensor with the bytes from ``at`` on.

        Raises:
            CheckpointError: if the file has got shorter since it was opened.
            OSError: if it cannot be read.
        """
        if not into.numel():
            return
        file = self._opened()
        left = memoryview(into.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        while left:
            count = os.preadv(file.number, [left], at)
            if not count:
                self._shorter()
            left, at = left[count:], at + count

    def check_length(self) -> None:
        """Look whether the file is as long as it was.

        Raises:
            CheckpointError: if it is not.
        """
        if Stamp.of(self.path).size < self._size:
            self._shorter()

    def _shorter(self) -> NoReturn:
        raise CheckpointError(f"{self.path.name} has got shorter since it was opened: it is being written anew")

    def _opened(self) -> _Open:
        if (file := self._open) is not None:
            return file
        file = _Open(self.path)
        if os.fstat(file.number).st_size < self._size:
            self._shorter()
        with self._lock:
            self._open = file
            self._recent.append(weakref.ref(self))
            while len(self._recent) > _MOST_OPEN:
                if (oldest := self._recent.popleft()()) is not None:
                    oldest._open = None
        return file
