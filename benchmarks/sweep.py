"""What a sweep costs: 128 runs, measured on this machine's cores, and from them what 10,000 would cost.

Run: python -m benchmarks.sweep
"""

from time import perf_counter

import joblib

from emacore import RunConfig
from emacore.experiments.sweep import sweep

GRID = {"schedule.power": [0.5, 0.6, 0.7, 0.8]}
SEEDS = range(32)


def main() -> None:
    sweep(RunConfig(max_epochs=1), GRID, range(2))  # the processes have started and torch is loaded
    begin = perf_counter()
    table = sweep(RunConfig(), GRID, SEEDS)
    seconds = perf_counter() - begin
    cores = joblib.cpu_count()
    each = seconds * cores / len(table)
    print(
        f"{len(table)} runs of the article's experiment on {cores} cores: {seconds:.0f} s, "
        f"{each:.2f} core seconds a run"
    )
    print(f"10,000 runs: {10_000 * each / 3600:.1f} core hours, {10_000 * each / 60 / 64:.1f} minutes on 64 cores")


if __name__ == "__main__":
    main()
