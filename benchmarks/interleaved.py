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
) -> dict[str, float]:
    """Median seconds per call over ``rounds`` rounds of ``calls`` calls, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, run in candidates.items():
            begin = clock()
            for _ in range(calls):
                run()
            times[name].append((clock() - begin) / calls)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def report(title: str, seconds: Mapping[str, float], reference: str) -> None:
    """Print each candidate's median and its ratio to ``reference`` (above 1: the reference takes longer)."""
    print(title)
    for name, value in seconds.items():
        print(f"  {name:<44} {value * 1e6:12.1f} us   {seconds[reference] / value:7.2f} x")
