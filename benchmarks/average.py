"""The average of a million values under varying decays against a plain Python loop, on one thread.

Run: python -m benchmarks.average
"""

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.interleaved import medians, report
from emacore.averaging.weights import average

rng = np.random.default_rng(0)
DECAYS, VALUES = rng.random(1_000_000), rng.normal(size=1_000_000)


def loop() -> list[float]:
    result, current = [], 0.0
    for value, decay in zip(VALUES.tolist(), DECAYS.tolist(), strict=True):
        current = decay * current + (1 - decay) * value
        result.append(current)
    return result


if __name__ == "__main__":
    with threadpool_limits(1):
        seconds = medians({"emacore average": lambda: average(VALUES, DECAYS), "plain loop": loop}, rounds=9)
        report("1,000,000 varying decays; x = plain loop / candidate", seconds, "plain loop")
        print(f"  largest difference: {np.abs(average(VALUES, DECAYS) - loop()).max():.1e}")
