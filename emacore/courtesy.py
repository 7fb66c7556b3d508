"""Who trains in the background lets those go first who wait for an answer: on one machine they share its cores.

The server says so to its workers (:func:`answering`, :data:`LISTENERS`); a worker takes note of it
(:func:`let_others_first`), and its training asks before each step (:func:`step_aside`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Seconds for which a step waits at most, so that a training goes on, slowly, where there is always somebody.
PATIENCE = 0.005
#: Called, of a server, with whether anybody waits for an answer, whenever that changes.
LISTENERS: set[Callable[[bool], None]] = set()

_nobody_waits = threading.Event()
_nobody_waits.set()
_answers = 0
_lock = threading.Lock()


@contextmanager
def answering() -> Iterator[None]:
    """Around what somebody waits for."""
    _count(1)
    try:
        yield
    finally:
        _count(-1)


def _count(more: int) -> None:
    global _answers
    with _lock:
        before, _answers = _answers, _answers + more
        if bool(before) != bool(_answers):
            for listener in list(LISTENERS):
                listener(bool(_answers))


def let_others_first(others: bool) -> None:
    """From now on, until it is told again: whether anybody waits for an answer."""
    if others:
        _nobody_waits.clear()
    else:
        _nobody_waits.set()


def step_aside() -> None:
    """Before a step: wait while others do, for :data:`PATIENCE` at most."""
    _nobody_waits.wait(PATIENCE)
