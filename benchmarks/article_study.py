"""The study that ships with the package, and answers the overview's third question: 32 seeds of two experiments.

Run: python -m benchmarks.article_study
"""

import datetime
import platform
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

import pandas as pd
import torch

from emacore import RunConfig
from emacore.experiments.evidence import SHIPPED, per_seed
from emacore.training.config import OptimizerConfig, StoppingConfig
from emacore.training.replicas import replicate

SEEDS = range(32)
EXPERIMENTS = {
    "the article's settings": RunConfig(),
    "a learning rate of 0.01, never lowered": RunConfig(
        optimizer=OptimizerConfig(learning_rate=0.01, rate_rule="constant"),
        stopping=StoppingConfig("none"),
        max_epochs=60,
    ),
}


def main() -> None:
    torch.set_num_threads(1)
    parts = []
    for name, config in EXPERIMENTS.items():
        begin = perf_counter()
        parts.append(per_seed(replicate(config, SEEDS).history).assign(experiment=name))
        print(f"{name}: {perf_counter() - begin:.1f} s")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn"))
    made = (
        f"# python -m benchmarks.article_study, {datetime.date.today()}, Python {platform.python_version()}, {versions}"
    )
    Path(SHIPPED).write_text(made + "\n" + pd.concat(parts).to_csv(index=False))


if __name__ == "__main__":
    main()
