"""How often a study's 95 % intervals hold the truth: a simulation, and the result that ships.  Imports no torch."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy  # whose parts are loaded where they are used

from emacore.experiments.statistics import (
    BCA,
    CLASSICAL,
    FEWEST_SEEDS,
    LEVEL,
    Floats,
    PairedComparison,
    mean_ends,
    median_ends,
)

#: The result that ships with the package: a line that says how it was made, then one row for each case.
SHIPPED = Path(__file__).with_name("coverage.csv")
#: An interval that holds the truth less often is told as too narrow.
NARROW = 0.93
_RESAMPLES = 999


class Shape(NamedTuple):
    """How gains are spread: draws of a size, and the truth."""

    draw: Callable[[np.random.Generator, tuple[int, ...]], Floats]
    mean: float
    median: float


SHAPES = {
    "normal": Shape(lambda rng, size: rng.normal(size=size), 0.0, 0.0),
    "t with 2 degrees of freedom": Shape(lambda rng, size: rng.standard_t(2, size), 0.0, 0.0),
    "exponential": Shape(lambda rng, size: rng.exponential(size=size), 1.0, math.log(2)),
    "lognormal with sigma 0.5": Shape(lambda rng, size: rng.lognormal(0, 0.5, size), math.exp(0.125), 1.0),
    "lognormal with sigma 1": Shape(lambda rng, size: rng.lognormal(0, 1, size), math.exp(0.5), 1.0),
}


def coverage(shape: str, intervals: str, seeds: int, studies: int, rng: np.random.Generator) -> dict[str, float]:
    """The share of simulated studies whose interval holds the truth, of the "median" and of the "mean".

    Args:
        shape: Of :data:`SHAPES`.
        intervals: :data:`CLASSICAL` or :data:`BCA`, the latter from 999 resamples a study.
    """
    truth = SHAPES[shape]
    held = dict.fromkeys(("median", "mean"), 0)
    for size in _blocks(studies, max(1, 1_000_000 // seeds) if intervals == CLASSICAL else max(1, 20_000 // seeds)):
        values = truth.draw(rng, (size, seeds))
        for name, centre in (("median", truth.median), ("mean", truth.mean)):
            low, high = _ends(values, name, intervals, rng)
            held[name] += int(((low <= centre) & (centre <= high)).sum())
    return {name: count / studies for name, count in held.items()}


def _blocks(total: int, size: int) -> list[int]:
    """``total`` in parts of at most ``size``, which bounds the memory of a simulation."""
    return [min(size, total - begin) for begin in range(0, total, size)]


def _ends(values: Floats, name: str, intervals: str, rng: np.random.Generator) -> tuple[Floats, Floats]:
    if intervals == CLASSICAL:
        return median_ends(values) if name == "median" else mean_ends(values)
    found = scipy.stats.bootstrap(
        (values,),
        np.median if name == "median" else np.mean,
        axis=-1,
        confidence_level=LEVEL,
        n_resamples=_RESAMPLES,
        method="BCa",
        batch=100,
        rng=rng,
    ).confidence_interval
    return found.low, found.high


@cache
def shipped() -> pd.DataFrame:
    """The shipped result: shape, statistic, intervals, seeds, studies, held (the share of studies)."""
    return pd.read_csv(io.StringIO(SHIPPED.read_text().partition("\n")[2]))


def in_words(comparison: PairedComparison) -> str:
    """How far the intervals can be trusted with so many pairs, the median's first."""
    kind, pairs = comparison.intervals, comparison.pairs
    if pairs < FEWEST_SEEDS:
        return f"95 % intervals need {FEWEST_SEEDS} finite pairs."
    table = shipped()
    table = table[table["intervals"] == kind]
    simulated = table["seeds"].unique()
    fewer = simulated[simulated <= pairs]
    seeds = fewer.max() if len(fewer) else simulated.min()
    table = table[table["seeds"] == seeds]
    which = f"the largest number up to {pairs}" if len(fewer) else "the smallest number"
    of = f"{seeds} seeds" if seeds == pairs else f"{seeds} seeds ({which} that was simulated)"
    told = [
        f"95 % intervals by {kind}. In {table['studies'].iloc[0]:,} simulated studies of {of} for each "
        f"of {len(SHAPES)} shapes of gains ({', '.join(SHAPES)}), that of the median held the truth in "
        f"{_range(table, 'median')}; that of the mean in {_range(table, 'mean')}."
    ]
    other = BCA if kind == CLASSICAL else CLASSICAL
    least = table.groupby("statistic")["held"].min()
    if least["median"] < NARROW:
        told.append(f"With so few seeds the median's is too narrow: take {other}.")
    if least["mean"] < NARROW:
        worst = table[table["statistic"] == "mean"].set_index("shape")["held"].idxmin()
        told.append(f"The mean's is too narrow for some, most for gains that are {worst}: go by the median.")
    return " ".join(told)


def _range(table: pd.DataFrame, statistic: str) -> str:
    held = 100 * table[table["statistic"] == statistic]["held"]
    return f"{held.min():.1f} to {held.max():.1f} %"
