"""Hashes of files, taken while the files are read for another reason."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path


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

        def read() -> dict[Path, str]:
            with ExitStack() as files:
                opened = [
                    (files.enter_context(path.open("rb")), path.stat().st_size, hashlib.sha256())
                    for path in self._files
                ]
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
                            count = file.readinto(memoryview(buffer)[: min(len(buffer), upto - file.tell())])
                            if not count:
                                break
                            digest.update(memoryview(buffer)[:count])
                return {path: digest.hexdigest() for path, (_, _, digest) in zip(self._files, opened, strict=True)}

        done: Future[dict[Path, str]] = Future()

        def work() -> None:
            try:
                done.set_result(read())
            except Exception as error:
                done.set_exception(error)

        try:
            # Dropped at the end of the process: it would wait for ever if an interruption came before the "try".
            threading.Thread(target=work, daemon=True).start()
            yield follow
            follow(1.0)
            self.digests = done.result()
        finally:
            with news:
                state["stop"] = True
                news.notify()
