import numpy as np
import pandas as pd
import pytest

from emacore.experiments import shipped
from emacore.experiments.article_claims import (
    CLAIMS,
    beside_claims,
    beside_phases,
    panel,
    phases_in_words,
    share_ahead,
)
from emacore.tasks.regression.article import PHASES, PROGRESS
from emacore.tasks.regression.config import RunConfig


def seeds():
    return dict(iter(shipped.study()[1].groupby("seed")))


def test_each_claim_is_counted_over_the_shipped_seeds():
    """Once more, from the rows, as a reader would."""
    runs = seeds().values()
    table = beside_claims(next(iter(runs))).set_index("claim")
    last = pd.DataFrame([rows.iloc[-1] for rows in runs])
    long = [rows[rows["epoch"] >= 60] for rows in runs if (rows["epoch"] >= 60).sum() >= 5]
    late = [rows[rows["epoch"] >= 20] for rows in runs]
    expected = [
        f"{sum((rows['val_loss_ema'] < rows['val_loss_original']).all() for rows in long)} of {len(long)}",
        f"{(1 - last['val_loss_ema'] / last['val_loss_original'] >= 0.2).sum()} of 32",
        f"{(1 - last['val_mae_ema'] / last['val_mae_original'] >= 0.095).sum()} of 32",
        f"{(last['val_r2_ema'] / last['val_r2_original'] - 1 >= 0.0011).sum()} of 32",
        f"{sum(rows['val_loss_ema'].std() < rows['val_loss_original'].std() for rows in late)} of 32",
        f"{(last['epoch'] <= 97).sum()} of 32",
    ]
    assert table["holds in"].tolist() == expected
    assert table["article"].tolist()[1:4] == ["+20 %", "+9.5 %", "+0.11 %"]
    assert table["median seed"].iloc[-1] == f"epoch {last['epoch'].median():g}"


@pytest.mark.parametrize("seed", [0, 3, 17])
def test_a_run_is_asked_what_the_seeds_are_asked(seed):
    rows = seeds()[seed]
    table = beside_claims(rows)
    for claim, row in zip(CLAIMS, table.to_dict("records"), strict=True):
        value = claim.measure(rows)
        assert row["this run"] == f"{'yes' if claim.holds(value) else 'no'}, {claim.show(value)}"
    short = beside_claims(rows[rows["epoch"] < 20])["this run"].tolist()
    assert short[0] == short[4] == "not reached"
    assert short[5] == "yes, epoch 19"


def test_the_articles_own_table_bears_its_phases_out():
    phases = beside_phases(PROGRESS)
    assert phases["article_ahead"].tolist() == phases["run_ahead"].tolist() == pytest.approx([0, 1 / 3, 1])
    assert [(first, last) for first, last, _ in PHASES] == [(1, 30), (31, 60), (61, 97)]


def test_the_share_ahead_is_of_the_epochs_of_a_phase():
    history = pd.DataFrame(
        {"epoch": range(1, 41), "val_loss_original": 1.0, "val_loss_ema": np.where(np.arange(1, 41) % 3, 0.5, 1.0)}
    )
    phases = beside_phases(history)
    assert phases["run_ahead"].tolist() == pytest.approx([20 / 30, 7 / 10, np.nan], nan_ok=True)
    medians = [np.nanmedian([share_ahead(rows, *phase[:2]) for rows in seeds().values()]) for phase in PHASES]
    assert phases["seeds_ahead"].tolist() == pytest.approx(medians)
    said = phases_in_words(phases).split("\n")
    assert "ahead at 33.3 % of its table's rows; at 7 of this run's 10 epochs there; at" in said[1]
    assert "this run has not reached it" in said[2]


@pytest.mark.parametrize("metric", [RunConfig.metrics[0], RunConfig.metrics[-1]], ids=lambda metric: metric.column)
def test_a_panel_has_the_run_the_articles_table_and_the_seeds(metric):
    rows = seeds()[5]
    table = panel(rows, metric).set_index(["part", "curve", "epoch"])["value"].sort_index()
    for name, model in (("original", "original"), ("EMA", "ema")):
        column = f"val_{metric.column}_{model}"
        assert table["run", name].tolist() == rows[column].tolist()
        assert table["article", name].to_dict() == PROGRESS.set_index("epoch")[column].to_dict()
        at = [run[column].iloc[9] for run in seeds().values()]
        assert table["seeds", name, 10] == pytest.approx(np.median(at))
        ends = panel(rows, metric).query("part == 'seeds' and epoch == 10 and curve == @name")[["low", "high"]]
        assert ends.to_numpy()[0].tolist() == pytest.approx(np.percentile(at, [5, 95]))
    assert ("train" in table["article"].index.get_level_values(0)) == (metric.column == "loss")


def test_a_curve_that_is_as_steady_is_not_steadier():
    history = pd.DataFrame(
        {"epoch": range(20, 24), "val_loss_original": [1.0, 2, 1, 2], "val_loss_ema": [3.0, 4, 3, 4]}
    )
    steadier = next(claim for claim in CLAIMS if "steadier" in claim.text)
    assert steadier.measure(history) == 1
    assert not steadier.holds(1.0)
