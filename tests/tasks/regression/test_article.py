import pandas as pd
import pytest

from emacore.tasks.regression.article import FINAL, PROGRESS, STEADINESS_RATIO, beside_final, beside_progress


def test_the_printed_tables_agree_with_themselves():
    # R2 is 1 - MSE / variance, and the variance of the validation rows is one number: up to the rounding of the print.
    for curve in ("original", "ema"):
        found = 1 - PROGRESS[f"val_loss_{curve}"] * 0.975
        assert found.sub(PROGRESS[f"val_r2_{curve}"]).abs().max() <= 1.05e-4
    mse, mae, r2 = FINAL.to_dict("records")
    for row in (mse, mae):
        assert 100 * (1 - row["ema"] / row["original"]) == pytest.approx(row["gain_percent"], abs=0.5)
    assert 100 * (r2["ema"] / r2["original"] - 1) == pytest.approx(r2["gain_percent"], abs=0.01)
    assert pytest.approx(15 / 23) == STEADINESS_RATIO
    # Nothing printed depends on the train losses, but these are their sum and their lowest.
    assert PROGRESS["train_loss"].sum() == pytest.approx(0.3606)
    assert PROGRESS.set_index("epoch")["train_loss"].idxmin() == 80


def test_the_runs_own_figures_stand_beside_those_of_the_same_epochs():
    columns = list(PROGRESS.columns[1:])
    history = pd.DataFrame({"epoch": range(1, 36), **{name: [n / 100 for n in range(35)] for name in columns}})
    table = beside_progress(history.assign(seconds=1.0))
    assert table.columns.tolist() == ["epoch", *(f"{name}{end}" for name in columns for end in ("", "_article"))]
    assert table["epoch"].tolist() == [10, 20, 30]
    assert table["val_loss_ema"].tolist() == [0.09, 0.19, 0.29]
    assert table["val_loss_ema_article"].tolist() == [0.0233, 0.0110, 0.0075]


def test_the_runs_final_metrics_stand_beside_the_printed_ones():
    own = pd.DataFrame({"metric": ["mse", "r2"], "original": [1.0, 2.0], "ema": [3.0, 4.0], "gain_percent": [5.0, 6.0]})
    table = beside_final(own)
    assert table["metric"].tolist() == ["mse", "r2"]
    assert table[["original", "ema", "gain_percent"]].to_numpy().tolist() == [[1, 3, 5], [2, 4, 6]]
    assert table[["original_article", "ema_article"]].to_numpy().tolist() == [[0.0055, 0.0044], [0.9946, 0.9957]]
