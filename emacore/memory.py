"""What a process asks of Python's collector of cycles and of the C library's allocator."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

#: The option of the GNU C library's mallopt() for the most parts of the memory, and how many are asked for.
_ARENA_MAX, _PARTS = -8, 2
#: Taken once for all.
_begun = threading.Lock()


@contextmanager
def uncollected() -> Iterator[None]:
    """Around imports: Python's collector of cycles rests, and leaves alone for good what there is in the end.

    With torch and scikit-learn it takes a quarter of the time of the import, and then a fifth of a second, in which no
    thread goes on, whenever it looks at everything.  Where nothing was left to import, nothing is left alone: it would
    stay when the pages that it is of are gone.
    """
    collecting, loaded = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            if len(sys.modules) > loaded:
                gc.freeze()
            gc.enable()


@cache
def settle() -> None:
    """Once all is loaded that stays: the collector has a last look at it, and then leaves it alone for good.

    Among the objects of a page's libraries it looks for a tenth of a second, again and again, in which nobody is
    answered.
    """
    gc.collect()
    gc.freeze()


def give_back(every: float = 60.0) -> None:
    """From now on, return memory that was used to the system, every so many seconds; only with the GNU C library.

    Each thread has a part of the memory of its own there, of which little is returned by itself, and a server of pages
    has a new thread for each answer.  Two parts do for threads of which one runs at a time; those that there are stay,
    so this comes before libraries that begin threads.
    """
    if not _begun.acquire(blocking=False):
        return
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_ARENA_MAX, _PARTS)
        trim = library.malloc_trim
    except (OSError, AttributeError, TypeError):  # another library, or another system
        return
    never = threading.Event()

    def trim_again_and_again() -> None:
        while not never.wait(every):
            trim(0)

    threading.Thread(target=trim_again_and_again, name="give back memory", daemon=True).start()
