"""The study that ships with the package: 32 seeds of the article's settings under four rules, and of one other setting.

The words about the article's experiment, on the overview page and in the README, are made from it.

Run: python -m benchmarks.article_study
"""

import datetime
import platform
from importlib.metadata import version
from time import perf_counter

import pandas as pd
import torch

from emacore.experiments.article_study import EXPERIMENTS, SHIPPED, WORDS, in_words, shipped
from emacore.experiments.evidence import patience_of, per_seed
from emacore.training.replicas import replicate

SEEDS = range(32)


def main() -> None:
    torch.set_num_threads(1)
    parts = []
    for name, config in EXPERIMENTS.items():
        begin = perf_counter()
        history = replicate(config, SEEDS).history
        parts.append(per_seed(history, patience=patience_of(config)).assign(experiment=name))
        print(f"{name}: {perf_counter() - begin:.1f} s")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scikit-learn"))
    made = (
        f"# python -m benchmarks.article_study, {datetime.date.today()}, Python {platform.python_version()}, {versions}"
    )
    SHIPPED.write_text(made + "\n" + pd.concat(parts).to_csv(index=False))
    WORDS.write_text("".join(f"{sentence}\n" for sentence in in_words(shipped()[0])))
    print(WORDS.read_text())


if __name__ == "__main__":
    main()
