"""Timing side by side: candidates take turns in one process, so that a change of the machine's speed hits them all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from time import perf_counter


def medians(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    calls: int = 1,
    clock: Callable[[], float] = perf_counter,
    between: Callable[[], object] | None = None,
) -> dict[str, float]:
    """Median seconds per call over ``rounds`` rounds of ``calls`` calls, after one round that is not counted.

    Each round begins with the next candidate, because what ran before one decides what it finds in the caches.

    Args:
        clock: Returns seconds; by default wall-clock time.
        between: Called before each call, and not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates.items())
    for turn in range(rounds + 1):
        first = turn % len(order)
        for name, run in order[first:] + order[:first]:
            times[name].append(_seconds(run, calls, clock) if between is None else _apart(run, calls, clock, between))
    return {name: statistics.median(values[1:]) / calls for name, values in times.items()}


def _seconds(run: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    begin = clock()
    for _ in range(calls):
        run()
    return clock() - begin


def _apart(run: Callable[[], object], calls: int, clock: Callable[[], float], between: Callable[[], object]) -> float:
    seconds = 0.0
    for _ in range(calls):
        between()
        seconds += _seconds(run, 1, clock)
    return seconds


def report(title: str, seconds: Mapping[str, float], reference: str) -> None:
    """Print each candidate's median in microseconds, and how many times as long the ``reference`` takes."""
    print(title)
    for name, value in seconds.items():
        print(f"  {name:<44} {value * 1e6:12.1f} us   {seconds[reference] / value:7.2f} x")
