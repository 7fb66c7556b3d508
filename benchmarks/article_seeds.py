"""The article's run over 32 seeds, trained one by one: the spread of its final figures, and what they show.

The study that ships, `benchmarks.article_study`, trains all seeds in one stack, whose batches follow another generator:
its figures must spread as these do.

Run: python -m benchmarks.article_seeds
"""

import pandas as pd
import torch
from joblib import Parallel, delayed

from emacore import RunConfig, train
from emacore.experiments.evidence import (
    QUESTIONS,
    answers,
    chosen_in_words,
    patience_of,
    per_seed,
    rules_in_words,
)
from emacore.experiments.statistics import verdict


def history(seed: int) -> pd.DataFrame:
    torch.set_num_threads(1)
    return train(RunConfig(seed=seed)).history.assign(seed=seed)


if __name__ == "__main__":
    table = per_seed(
        pd.concat(Parallel(n_jobs=2)(delayed(history)(seed) for seed in range(32)), ignore_index=True),
        patience=patience_of(RunConfig()),
    )
    figures = table.drop(columns=["seed", "fixed_epoch"]).select_dtypes("number")
    print(figures.quantile([0.05, 0.5, 0.95]).T.to_string(float_format="%.4f"))
    found = answers(table)
    for question, one in found.items():
        print(verdict(one, QUESTIONS[question]))
    print(rules_in_words(RunConfig()), chosen_in_words(table, found, RunConfig()))
