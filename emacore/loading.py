"""Load libraries of half a million objects without looking at all of these again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Around imports: Python's collector of cycles rests, and leaves alone for good what there is in the end.

    With torch and scikit-learn it takes a quarter of the time of the import, and then a fifth of a second, in which no
    thread goes on, whenever it looks at everything.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.freeze()
            gc.enable()
