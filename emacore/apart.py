"""Call a function of this package on some bytes in a process of its own, so that what is large holds nobody up.

Reading a million rows takes seconds in which Python serves no one else; and what a damaged file does to memory, it does
to that process alone.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TypeVar

from emacore import limits
from emacore.formatting import in_bytes

T = TypeVar("T")


def call_apart(function: Callable[[bytes], T], content: bytes) -> T:
    """What ``function``, which has a name at the top of its module, returns for ``content``.

    Raises:
        ValueError: of the function; or if it takes too long, or too much memory.
    """
    root = str(Path(__file__).parents[1])
    paths = filter(None, [root, os.environ.get("PYTHONPATH")])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "emacore.apart", function.__module__, function.__name__]
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, env=environment, timeout=limits.APART_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"at most {limits.APART_SECONDS} seconds to read a file are possible, it took more") from error
    if done.returncode:
        raise ValueError(f"at most {in_bytes(limits.APART_BYTES)} of memory to read a file are possible, it took more")
    kind, found = pickle.loads(done.stdout)  # of our own process
    if kind == "error":
        raise found
    result: T = found
    return result


def _answer(module: str, name: str, content: bytes) -> bytes:
    try:
        return pickle.dumps(("result", getattr(import_module(module), name)(content)), protocol=5)
    except ValueError as error:
        return pickle.dumps(("error", error))


def main() -> None:
    """Read from standard input, call, and write the answer to standard output."""
    if hasattr(os, "nice"):
        os.nice(10)  # it may take as long as it takes; others are answered meanwhile
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limits.APART_BYTES, limits.APART_BYTES))
    answer = _answer(sys.argv[1], sys.argv[2], sys.stdin.buffer.read())
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main()
