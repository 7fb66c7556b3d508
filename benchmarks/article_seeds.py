"""The article's run over 32 seeds: where the medians and the spread of its figures lie.

Run: python -m benchmarks.article_seeds
"""

import pandas as pd
import torch
from joblib import Parallel, delayed

from emacore import RunConfig, train
from emacore.training.history import steadiness


def figures(seed: int) -> dict[str, float]:
    torch.set_num_threads(1)
    result = train(RunConfig(seed=seed))
    table = result.summary.set_index("metric")
    original, ema = steadiness(result.history, 20)
    return {
        "epochs": len(result.history),
        "MSE original": table.loc["mse", "original"],
        "MSE EMA": table.loc["mse", "ema"],
        "R2 original": table.loc["r2", "original"],
        "R2 EMA": table.loc["r2", "ema"],
        "MSE improvement %": table.loc["mse", "improvement"],
        "std from epoch 20, original": original,
        "std from epoch 20, EMA": ema,
        "best MSE original": result.history["val_loss_original"].min(),
        "best MSE EMA": result.history["val_loss_ema"].min(),
    }


if __name__ == "__main__":
    table = pd.DataFrame(Parallel(n_jobs=2)(delayed(figures)(seed) for seed in range(32)))
    print(table.quantile([0.05, 0.5, 0.95]).T.to_string(float_format="%.4f"))
    better = (table["MSE EMA"] < table["MSE original"]).sum()
    steadier = (table["std from epoch 20, EMA"] < table["std from epoch 20, original"]).sum()
    print(f"EMA better at the last epoch in {better} of {len(table)} seeds; steadier in {steadier}")
