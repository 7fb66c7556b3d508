"""Hashes of files, taken while the files are read for another reason."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


class Hashes:
    """SHA-256 of files, read along with those who read them for another reason, while they are in memory."""

    def __init__(self, files: set[Path]) -> None:
        self._files = sorted(files)
        self.digests: dict[Path, str] = {}

    @contextmanager
    def followed(self) -> Iterator[Callable[[float], None]]:
        """A function to be told which share of the files has been read; the rest is hashed at the end."""
        state = {"share": 0.0, "stop": False}
        news = threading.Condition()

        def follow(share: float) -> None:
            with news:
                state["share"] = share
                news.notify()

        def work() -> None:
            opened: list[tuple[BinaryIO, int, Any]] = []
            try:
                opened = [(path.open("rb"), path.stat().st_size, hashlib.sha256()) for path in self._files]
                buffer = bytearray(2**20)
                share = 0.0
                while share < 1 and not state["stop"]:
                    wanted = min(1.0, share + 0.002)
                    with news:
                        while not state["stop"] and state["share"] < wanted:
                            news.wait()
                        share = state["share"]
                    for file, size, digest in opened:
                        upto = size if share >= 1 else int(size * share)
                        while file.tell() < upto and not state["stop"]:
                            count = file.readinto(memoryview(buffer)[: min(len(buffer), upto - file.tell())])  # type: ignore[attr-defined]
                            if not count:
                                break
                            digest.update(memoryview(buffer)[:count])
                if not state["stop"]:
                    self.digests = {
                        path: digest.hexdigest() for path, (_, _, digest) in zip(self._files, opened, strict=True)
                    }
            finally:
                for file, *_ in opened:
                    file.close()

        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(work)
            try:
                yield follow
                follow(1.0)
                future.result()
            finally:
                with news:
                    state["stop"] = True
                    news.notify()
