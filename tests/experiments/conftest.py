"""Pairs of losses of every kind, and what no sentence about them may say; a run without end."""

import re

from emacore import RunConfig
from emacore.training.config import StoppingConfig

ENDLESS = RunConfig(max_epochs=100_000, stopping=StoppingConfig("none"))
NAN, INF = float("nan"), float("inf")


def drawn_pairs(rng):
    """Losses of the original and the average, as good and as bad as they come."""
    n = int(rng.choice([*range(1, 7), *range(14, 40)]))  # between them SciPy goes through all signs of tied ranks
    shape = rng.choice(["normal", "skewed", "heavy", "few values"])
    draws = {
        "normal": rng.normal(size=n),
        "skewed": rng.exponential(size=n) - rng.choice([0.0, 1.0]),
        "heavy": rng.standard_t(1, size=n),
        "few values": rng.integers(-1, 2, n).astype(float),
    }
    original = rng.lognormal(0, 2, n) * 10.0 ** rng.integers(-12, 6)
    averaged = original * (1 - 10.0 ** rng.integers(-6, 3) * (draws[shape] + rng.normal()))
    for values in (original, averaged):
        for odd in (NAN, INF, -INF, 0.0):
            if rng.random() < 0.15:
                values[rng.random(n) < rng.random()] = odd
    tied = rng.random(n) < (rng.random() if rng.random() < 0.3 else 0)
    averaged[tied] = original[tied]
    return original, averaged


def no_empty_words(words):
    assert not re.search(r"\b(nan|inf)\b|[+-]0 %|(by|than) 0 %|\b0 % (higher|lower|better|worse)", words), words
