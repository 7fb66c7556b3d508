"""The study and the sweep that ship with the package, which their pages show before anybody trained one.

Run: python -m benchmarks.shipped
"""

import datetime
import platform
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch

from emacore.experiments.shipped import COMMAND, DIGITS, STUDY, STUDY_FILE, SWEEP, SWEEP_FILE
from emacore.experiments.sweep import sweep
from emacore.training.replicas import replicate

#: What neither page draws, or what differs from one machine to the next.
LEFT_OUT = ["learning_rate", "decay", "steps", "seconds", "error"]


def write(path: Path, table: pd.DataFrame, seconds: float) -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn"))
    made = f"# {COMMAND}, {datetime.date.today()}, Python {platform.python_version()}, {versions}"
    kept = table.drop(columns=LEFT_OUT, errors="ignore").dropna(axis="columns", how="all")
    path.write_text(f"{made}\n{kept.to_csv(index=False, float_format=f'%.{DIGITS}g')}")
    print(f"{path.name}: {len(table):,} rows, {path.stat().st_size / 1000:,.0f} kB, {seconds:.0f} s")


def main() -> None:
    torch.set_num_threads(1)
    begin = perf_counter()
    write(STUDY_FILE, replicate(STUDY.config, STUDY.seeds).history, perf_counter() - begin)
    begin = perf_counter()
    write(SWEEP_FILE, sweep(SWEEP.config, SWEEP.grid, SWEEP.seeds, workers=1), perf_counter() - begin)


if __name__ == "__main__":
    main()
