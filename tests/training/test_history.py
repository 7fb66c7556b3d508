import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from emacore.formatting import number
from emacore.replay.measure import Metric
from emacore.tasks.regression import article
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import NetworkConfig, OptimizerConfig, StoppingConfig
from emacore.training.history import (
    curve,
    epochs_without_best,
    in_words,
    late_range,
    losses,
    overlaid,
    rates,
    remaining,
    steadiness,
    summarise,
    time_left,
    train_loss_in_words,
    training_follows_average,
    validation,
)
from emacore.training.loop import EarlyStop, RateRule
from emacore.training.replicas import replicate


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
    assert words[2] == "The average is below the original at the last epoch only, too few to be called a lead."
    worse = in_words(history([0.1, 0.2], [0.2, 0.3]))
    assert "50 % higher" in worse[0]
    assert len(worse) == 2
    assert in_words(history([0.2] * 7, [0.3, 0.2] + [0.1] * 5))[2] == (
        "The average stays below the original from epoch 3 on, for 5 epochs up to the end."
    )


@pytest.mark.parametrize(
    ("original", "averaged", "words"),
    [
        (0.0619, 0.0619 * (1 + 2e-8), "equal in four digits to the original's (0.0619 against 0.0619)"),
        (0.0619, 0.0619, "equal to the original's"),
        (0.0, 0.0, "equal to the original's"),
        (0.0, 0.5, "higher than the original's (0.5 against 0)"),
        (0.5, 0.0, "100 % lower than the original's (0 against 0.5)"),
    ],
)
def test_a_difference_of_rounding_is_none_and_0_divides_nothing(original, averaged, words):
    assert words in in_words(history([original], [averaged]))[0]


def test_words_of_a_run_that_diverged_are_of_its_finite_part():
    assert "after epoch 1," in in_words(history([0.5, float("inf")], [0.4, float("nan")]))[0]
    assert in_words(history([float("nan")], [0.4])) == []
    assert in_words(history([], [])) == []


def test_words_of_losses_with_gaps_hold_for_the_whole_run():
    rng = np.random.default_rng(6)
    leads = gone = 0
    for _ in range(300):
        original = rng.random(int(rng.integers(1, 30)))
        averaged = original - rng.choice([0.2, 0.2, -0.2]) + 0.1 * rng.random(len(original))
        for values in (original, averaged):
            begin = int(rng.integers(len(values)))
            values[begin : begin + int(rng.integers(0, 8))] = rng.choice([np.nan, np.inf])
        words, both = in_words(history(original, averaged)), np.isfinite(original) & np.isfinite(averaged)
        if not both.any():
            assert words == []
            continue
        for values, name in ((original, "original"), (averaged, "average")):
            epoch = int(np.where(np.isfinite(values), values, np.inf).argmin()) + 1
            assert f"{number(values[epoch - 1])} for the {name} (epoch {epoch})" in words[1]
        end = int(np.flatnonzero(both)[-1]) + 1
        told = re.search(r"from epoch (\d+) on, for (\d+) epochs up to (the end|epoch (\d+), the last w)", words[-1])
        if told is not None:
            since, count = int(told[1]), int(told[2])
            assert since + count - 1 == end == int(told[4] or len(original))
            assert both[since - 1 : end].all(), "a lead has no gap"
            assert (averaged < original)[since - 1 : end].all()
            leads, gone = leads + 1, gone + (end < len(original))
        elif len(words) > 2:
            assert ("with finite losses" in words[2]) == (end < len(original))
    assert min(leads, gone) > 5


def test_epochs_without_best():
    table = history([0.5, 0.2, 0.4], [0.9, 0.3, 0.1])
    assert epochs_without_best(table, "original") == 1
    assert epochs_without_best(table, "ema") == 0
    for lost in (float("nan"), float("inf")):
        assert epochs_without_best(history([lost], [1.0]), "original") == 1


def test_the_articles_tables_stand_beside_the_runs():
    own = history([0.1] * 25, [0.2] * 25)
    beside = article.beside_progress(own)
    assert beside["epoch"].tolist() == [10, 20]
    assert beside.columns.tolist()[1:3] == ["train_loss", "train_loss_article"]
    final = article.beside_final(summarise(own, RunConfig.metrics)).set_index("metric")
    assert final.loc["mse", "gain_percent_article"] == 20.0
    assert final.loc["mse", "gain_percent"] == pytest.approx(-100)
    # what the article prints as improvement follows from its own final metrics
    for row in article.FINAL.itertuples():
        gain = row.ema - row.original if row.metric == "r2" else row.original - row.ema
        assert 100 * gain / row.original == pytest.approx(row.gain_percent, abs=0.05)


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_standard_deviations_are_over_epochs_that_are_finite_in_both(lost, which):
    losses = [[4.0, 3.0, 1.0, 2.0, 7.0], [5.0, 2.0, 0.9, 0.8, 0.1]]
    losses[which][4] = lost
    expected = [np.std(values[1:4], ddof=1) for values in losses]
    assert steadiness(history(*losses), 2) == pytest.approx(expected)


def test_which_rules_look_at_the_average():
    assert len(training_follows_average(RunConfig())) == 2
    steady = OptimizerConfig(rate_rule="constant")
    assert training_follows_average(RunConfig(optimizer=steady)) == ["its early stop"]
    assert not training_follows_average(RunConfig(optimizer=steady, stopping=StoppingConfig("original")))
    on_original = OptimizerConfig(plateau_curve="original")
    assert not training_follows_average(RunConfig(optimizer=on_original, stopping=StoppingConfig("none")))


@pytest.mark.parametrize("curve", ["ema", "original"])
@pytest.mark.parametrize("patience", [1, 3])
@pytest.mark.parametrize("epochs", range(1, 7))
def test_rules_look_at_the_average_where_one_that_never_improves_trains_another_run(curve, patience, epochs):
    def trained(epochs_without_a_best):
        """The rates of the epochs that are trained, where the average never improves or always does."""
        rates, parameter = [], torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        rate, stop = RateRule(optimizer, config), EarlyStop(config.stopping)
        for epoch in range(1, config.max_epochs + 1):
            rates.append(optimizer.param_groups[0]["lr"])
            row = {"epoch": epoch, "val_loss_original": 1.0 / epoch}
            row["val_loss_ema"] = 1.0 if epochs_without_a_best else 1.0 / epoch
            rate.adjust(row)
            if stop.is_over(row):
                break
        return rates

    for rule in ("plateau", "constant"):
        for stopping in (curve, "none"):
            config = RunConfig(
                optimizer=OptimizerConfig(rate_rule=rule, plateau_curve=curve, plateau_patience=patience),
                stopping=StoppingConfig(stopping, patience),
                max_epochs=epochs,
            )
            if trained(True) != trained(False):
                assert training_follows_average(config)
                assert training_follows_average(replace(config, max_epochs=500), epochs)
            elif rule == "plateau" and stopping == "none":
                assert not training_follows_average(config)
            if curve == "original" or epochs <= patience:
                assert not training_follows_average(config)
                assert not training_follows_average(replace(config, max_epochs=500), epochs)


def test_equal_losses_are_told_as_equal():
    rows = pd.DataFrame({"epoch": [1, 2], "val_loss_original": [2.0, 1.0], "val_loss_ema": [3.0, 1.0]})
    assert (
        "after epoch 2, the averaged model's validation loss is equal to the original's (1 against 1)"
        in in_words(rows)[0]
    )


def run_of_three():
    table = history([4.0, 2.0, 1.0], [5.0, 1.5, 0.5])
    return table.assign(
        val_r2_ema=[0.1, 0.2, 0.3],
        train_loss=[9.0, 8.0, 7.0],
        learning_rate=[0.1, 0.1, 0.01],
        decay=[0.0, 0.9, 0.99],
        seconds=[1.0, 2.0, 6.0],
    )


def test_the_tables_that_are_drawn_of_a_run():
    table = run_of_three()
    drawn = losses(table).pivot(index="epoch", columns="curve", values="loss")
    assert drawn["train"].tolist() == [9.0, 8.0, 7.0]
    assert drawn["original"].tolist() == [4.0, 2.0, 1.0]
    assert drawn["EMA"].tolist() == [5.0, 1.5, 0.5]
    r2 = validation(table, RunConfig.metrics[-1]).pivot(index="epoch", columns="curve", values="r2")
    assert r2["EMA"].tolist() == [0.1, 0.2, 0.3]
    assert r2["original"].tolist() == [4.0, 2.0, 1.0]
    moved = rates(table).pivot(index="epoch", columns="rate", values="value")
    assert moved["learning rate"].tolist() == [0.1, 0.1, 0.01]
    assert moved["1 - decay of the EMA"].tolist() == pytest.approx([1.0, 0.1, 0.01])
    assert remaining(table, 10) == ((9.0 - 1.0, True), 2.0), "the second look's; the third epoch took longer"
    assert remaining(table[:2], 10) == ((8.0, False), 1.0)


def test_another_runs_curves_are_named_after_it_and_its_train_loss_is_left_out():
    table = losses(run_of_three())
    both = overlaid(table, losses(run_of_three().assign(val_loss_ema=[1.0, 2.0, 3.0])))
    assert both["curve"].unique().tolist() == ["train", "original", "EMA", "original, other run", "EMA, other run"]
    assert both[both["curve"] == "EMA, other run"]["loss"].tolist() == [1.0, 2.0, 3.0]
    pd.testing.assert_frame_equal(both[: len(table)], table)


def test_the_train_loss_lies_above_because_of_dropout_where_there_is_some():
    table = run_of_three()
    assert "leaves out 20 % of the hidden units" in train_loss_in_words(table, RunConfig())
    for network in (NetworkConfig(dropout=0.0), NetworkConfig(())):
        assert "dropout" not in train_loss_in_words(table, RunConfig(network=network)), "it does not act"
        assert "the mean over the epoch" in train_loss_in_words(table, RunConfig(network=network))
    assert train_loss_in_words(table.assign(train_loss=0.1), RunConfig()) == ""


def test_it_is_dropout_that_lifts_the_train_loss():
    def gap(dropout):
        config = RunConfig(network=NetworkConfig(dropout=dropout), stopping=StoppingConfig("none"), max_epochs=12)
        last = replicate(config, range(4)).history.query("epoch == 12")
        return (last["train_loss"] / last["val_loss_original"]).median()

    assert gap(0.2) > 2
    assert gap(0.0) < 1.2


@pytest.mark.parametrize("seed", range(5))
def test_the_time_left_never_counts_up_and_is_that_of_an_even_pace(seed):
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.lognormal(sigma=1.0, size=40))
    shares = np.linspace(1 / 40, 1, 40)
    left = [time_left(ends[:n], shares[:n]).seconds for n in range(1, 41)]
    assert (np.diff(left) <= 0).all()
    assert left[-1] == 0
    even = [time_left(3.0 * np.arange(1, n + 1), shares[:n]) for n in range(1, 41)]
    assert even == [(pytest.approx(3.0 * (40 - n)), False) for n in range(1, 41)]


def test_a_job_that_slows_down_is_told_to_take_more():
    assert time_left([10.0], [0.25]).in_words() == "about 30 s left"
    assert time_left([10.0], [0.25]).in_words("at most") == "at most 30 s left"
    assert time_left([10.0, 100.0], [0.25, 0.5]).in_words("at most") == "more than 30 s left"


def test_a_runs_curves_as_arrays():
    found = curve(run_of_three(), RunConfig.metrics, "ema")
    assert list(found) == ["epoch", "loss", "mae", "r2"]
    assert {name: values.tolist() for name, values in found.items()} == {
        "epoch": [1, 2, 3],
        "loss": [5.0, 1.5, 0.5],
        "mae": [5.0, 1.5, 0.5],
        "r2": [0.1, 0.2, 0.3],
    }


def test_an_axis_leaves_out_the_worst_tenth_on_the_side_where_it_is_worse():
    loss, accuracy = Metric("loss", "loss"), Metric("accuracy", "accuracy", higher_is_better=True)
    values = np.linspace(0, 1, 101)
    assert late_range(values, loss) == pytest.approx((-0.045, 0.945))
    assert late_range(values, accuracy) == pytest.approx((0.055, 1.045))
    assert late_range([*values, np.nan, np.inf, -np.inf], accuracy) == pytest.approx((0.055, 1.045))
    for nothing in ([], [np.nan], [0.5, 0.5]):
        assert late_range(nothing, loss) is None
