import numpy as np
import pandas as pd
import pytest

from emacore.tasks.regression import article
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import OptimizerConfig, StoppingConfig
from emacore.training.history import (
    curve_figures,
    curve_in_words,
    epochs_without_best,
    in_words,
    smaller_rate_in_words,
    steadiness,
    summarise,
    thinning_in_words,
    training_follows_average,
)


def history(original, ema):
    columns = {"epoch": range(1, len(original) + 1)}
    for name, values in (("original", original), ("ema", ema)):
        for metric in ("loss", "mae", "r2"):
            columns[f"val_{metric}_{name}"] = values
    return pd.DataFrame(columns | {"train_loss": original})


def test_words_are_of_this_run_and_follow_its_numbers():
    words = in_words(history([0.5, 0.2, 0.4], [0.9, 0.3, 0.3]))
    assert words[0] == (
        "In this run, after epoch 3, the averaged model's validation loss is 25 % lower than the original's "
        "(0.3 against 0.4)."
    )
    assert "0.2 for the original (epoch 2) and 0.3 for the average (epoch 2)" in words[1]
    assert words[2] == "The average has been ahead without a break since epoch 3."
    worse = in_words(history([0.1, 0.2], [0.2, 0.3]))
    assert "50 % higher" in worse[0]
    assert len(worse) == 2
    assert "since epoch 1" in in_words(history([0.2, 0.2], [0.1, 0.1]))[2]


def test_words_of_a_run_that_diverged_are_of_its_finite_part():
    assert "after epoch 1," in in_words(history([0.5, float("inf")], [0.4, float("nan")]))[0]
    assert in_words(history([float("nan")], [0.4])) == []
    assert in_words(history([], [])) == []


def test_epochs_without_best():
    table = history([0.5, 0.2, 0.4], [0.9, 0.3, 0.1])
    assert epochs_without_best(table, "original") == 1
    assert epochs_without_best(table, "ema") == 0
    assert epochs_without_best(history([float("nan")], [1.0]), "original") == 1


def test_the_articles_tables_stand_beside_the_runs():
    own = history([0.1] * 25, [0.2] * 25)
    beside = article.beside_progress(own)
    assert beside["epoch"].tolist() == [10, 20]
    assert beside.columns.tolist()[1:3] == ["train_loss", "train_loss_article"]
    final = article.beside_final(summarise(own, RunConfig.metrics)).set_index("metric")
    assert final.loc["mse", "improvement_article"] == 20.0
    assert final.loc["mse", "improvement"] == pytest.approx(-100)
    # what the article prints as improvement follows from its own final metrics
    for row in article.FINAL.itertuples():
        gain = row.ema - row.original if row.metric == "r2" else row.original - row.ema
        assert 100 * gain / row.original == pytest.approx(row.improvement, abs=0.05)


def test_figures_of_curves():
    curves = pd.DataFrame(
        {
            "curve": ["original"] * 4 + ["a"] * 4 + ["b"] * 4,
            "epoch": [1, 2, 3, 4] * 3,
            "loss": [4.0, 3.0, 1.0, 2.0, 5.0, 2.0, 0.9, 0.8, 1.0, 1.0, 1.0, 3.0],
        }
    )
    curves = curves.assign(mae=curves["loss"] / 2, r2=1 - curves["loss"] / 10)
    table = curve_figures(curves, "original", from_epoch=3).set_index("curve")
    assert table.loc["original", ["final", "best", "best_epoch"]].tolist() == [2.0, 1.0, 3]
    assert table["ahead_since"].isna().tolist() == [True, False, True]
    others = table.loc["b", ["final_mae", "best_mae", "final_r2", "best_r2"]]
    assert others.tolist() == pytest.approx([1.5, 0.5, 0.7, 0.9])
    assert table.loc["a", "ahead_since"] == 2
    assert table.loc["a", "steadiness"] == pytest.approx(np.std([0.9, 0.8], ddof=1))
    always = curve_figures(curves[curves["epoch"] > 1], "original", 1).set_index("curve")
    assert always.loc["a", "ahead_since"] == 2


def test_curves_of_different_length_are_not_compared():
    def curve(name, epochs):
        return pd.DataFrame({"curve": name, "epoch": epochs, "loss": 1.0, "mae": 1.0, "r2": 0.5})

    for epochs, missing in (([1, 2], 3), ([1, 2, 3, 4], 4), ([1, 3], 2)):
        curves = pd.concat([curve("original", [1, 2, 3]), curve("a", [1, 2, 3]), curve("now", epochs)])
        with pytest.raises(ValueError, match=f"only one of 'now' and 'original' has epoch {missing}"):
            curve_figures(curves, "original", 1)
    for length in (1, 3):
        with pytest.raises(ValueError, match=f"must have the 2 epochs of the history, got {length}"):
            smaller_rate_in_words(rates([4.0, 4.0], []), [2.0] * length)


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_standard_deviations_are_over_epochs_that_are_finite_in_both(lost, which):
    losses = [[4.0, 3.0, 1.0, 2.0, 7.0], [5.0, 2.0, 0.9, 0.8, 0.1]]
    losses[which][4] = lost
    expected = [np.std(values[1:4], ddof=1) for values in losses]
    assert steadiness(history(*losses), 2) == pytest.approx(expected)
    curves = pd.concat(
        [
            pd.DataFrame({"curve": name, "epoch": range(1, 6), "loss": values, "mae": 1.0, "r2": 0.5})
            for name, values in zip(("original", "now"), losses, strict=True)
        ]
    )
    assert curve_figures(curves, "original", 2)["steadiness"].tolist() == pytest.approx(expected)


def test_which_rules_look_at_the_average():
    assert len(training_follows_average(RunConfig())) == 2
    steady = OptimizerConfig(rate_rule="constant")
    assert training_follows_average(RunConfig(optimizer=steady)) == ["its early stop"]
    assert not training_follows_average(RunConfig(optimizer=steady, stopping=StoppingConfig("original")))
    on_original = OptimizerConfig(plateau_curve="original")
    assert not training_follows_average(RunConfig(optimizer=on_original, stopping=StoppingConfig("none")))


def rates(high, low):
    """A history of a run whose rate falls to a tenth after ``len(high)`` epochs."""
    losses = [*high, *low]
    rate = [0.01] * len(high) + [0.001] * len(low)
    return pd.DataFrame({"epoch": range(1, len(losses) + 1), "learning_rate": rate, "val_loss_original": losses})


def test_whether_a_smaller_rate_did_the_same():
    history = rates([9.0, 9.0, 4.0, 4.0], [3.0, 2.5, 2.0])
    told = smaller_rate_in_words(history, [9.0, 9.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    assert "epochs 3 to 4), the average's median loss was 50 % below the original's (2 and 4)" in told
    assert "from epoch 5 on) it was 20 % below the original's (2 and 2.5)" in told
    assert "from 4 to 2.5: 75% of what averaging gained" in told
    assert "gained nothing" in smaller_rate_in_words(history, [9.0, 9.0, 5.0, 5.0, 2.0, 2.0, 2.0])
    assert "cannot say" in smaller_rate_in_words(rates([4.0, 4.0], []), [2.0, 2.0])


def test_how_far_a_thinned_recording_misses_is_measured_on_its_own_run():
    own = history([1.0] * 12, [0.5] * 9 + [0.2, 0.4, 0.8])
    replayed = [5.0] * 9 + [0.21, 0.36, 0.792]
    told = thinning_in_words(own, replayed, 5)
    assert "one step in 5 only" in told
    assert "by 1 % after epoch 12, and by up to 10 % from epoch 10 on" in told
    assert "up to 8e+02 % from epoch 9 on" not in told
    assert "by up to 25 % from epoch 1 on" in thinning_in_words(own.head(3), [0.5, 0.4, 0.625], 2)
    lost = thinning_in_words(history([1.0] * 2, [0.5, float("nan")]), [0.55, float("nan")], 3)
    assert "by 10 % after epoch 1" in lost
    assert thinning_in_words(history([1.0], [float("inf")]), [1.0], 3).endswith("so replays are close, not exact.")
    with pytest.raises(ValueError, match="replayed must have the 3 epochs of the history, got 2"):
        thinning_in_words(own.head(3), [1.0, 1.0], 2)


def test_a_curve_in_words():
    curves = pd.DataFrame(
        {
            "curve": ["original"] * 3 + ["now"] * 3,
            "epoch": [1, 2, 3] * 2,
            "loss": [4.0, 2.0, 4.0, 5.0, 1.0, 3.0],
            "mae": 1.0,
            "r2": 0.5,
        }
    )
    told = curve_in_words(curve_figures(curves, "original", 2), "original", "now")
    assert "ends 25 % below the original's (3 and 4); its lowest loss is 50 % below" in told
    assert "standard deviation is 100% of" in told
    assert "stays below from epoch 2 on" in told
    assert "does not stay below" in curve_in_words(curve_figures(curves, "now", 2), "now", "original")


def test_equal_losses_are_told_as_equal():
    rows = pd.DataFrame({"epoch": [1, 2], "val_loss_original": [2.0, 1.0], "val_loss_ema": [3.0, 1.0]})
    assert (
        "after epoch 2, the averaged model's validation loss is equal to the original's (1 against 1)"
        in in_words(rows)[0]
    )
    figures = pd.DataFrame(
        {"curve": ["original", "ema"], "final": 1.0, "best": 1.0, "steadiness": 0.0, "ahead_since": None}
    )
    assert "ends equal to the original's (1)" in curve_in_words(figures, "original", "ema")
