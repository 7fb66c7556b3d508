import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from emacore import RunConfig
from emacore.averaging.families import Constant
from emacore.experiments.evidence import (
    AHEAD,
    QUESTIONS,
    TRAINING,
    answers,
    bands,
    chosen_in_words,
    gains_in_words,
    headline,
    in_markdown,
    looking_at,
    per_seed,
    progress,
    rules_in_words,
    rules_of_run_in_words,
    share_below,
    steadiness_ratios,
    training_in_words,
    win_curves,
    wins,
)
from emacore.experiments.statistics import BCA, kind_of, paired_comparison
from emacore.experiments.studies import Study
from emacore.formatting import p_value
from emacore.training.config import OptimizerConfig, StoppingConfig
from emacore.training.history import MODELS, steadiness
from emacore.training.loop import EarlyStop
from tests.experiments.conftest import drawn_pairs, no_empty_words


def history(losses):
    """Of seeds whose original and averaged losses are given, epoch by epoch."""
    rows = [
        {"seed": seed, "epoch": epoch, "val_loss_original": original, "val_loss_ema": averaged}
        for seed, curves in losses.items()
        for epoch, (original, averaged) in enumerate(zip(*curves, strict=True), 1)
    ]
    return pd.DataFrame(rows)


LOSSES = {5: ([4.0, 2.0, 6.0], [4.0, 3.0, 3.0]), 2: ([4.0, 1.0], [5.0, 2.0])}


def test_the_figures_of_each_seed():
    table = per_seed(history(LOSSES), steady_from=2).set_index("seed")
    assert table.index.tolist() == [5, 2]
    assert table.loc[5, ["epochs", "final_original", "best_original"]].tolist() == [3, 6, 2]
    assert table.loc[5, ["final_ema", "best_ema", "steadiness_ema"]].tolist() == [3, 3, 0]
    assert table.loc[5, "steadiness_original"] == pytest.approx(np.std([2, 6], ddof=1))
    assert np.isnan(table.loc[2, "steadiness_original"])


def test_the_fixed_epoch_is_the_last_that_all_reached_who_did_not_diverge():
    table = per_seed(history(LOSSES | {7: ([np.nan], [np.nan])})).set_index("seed")
    assert (table["fixed_epoch"] == 2).all()
    assert table["fixed_original"].to_list() == pytest.approx([2.0, 1.0, np.nan], nan_ok=True)
    assert table["fixed_ema"].to_list() == pytest.approx([3.0, 2.0, np.nan], nan_ok=True)
    found = answers(table.reset_index())["fixed"]
    assert (found.seeds, found.pairs, found.losses) == (3, 2, 2)
    assert "fixed" not in answers(per_seed(history({5: LOSSES[5]}))), "then it is the final loss"


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_each_curve_ends_where_the_trainings_own_rule_would_end_it(patience):
    rng = np.random.default_rng(patience)
    losses = {
        seed: rng.choice([1.0, 2.0, 3.0, 4.0, np.nan], p=[0.1, 0.3, 0.3, 0.2, 0.1], size=(2, 12)) for seed in range(9)
    }
    table = per_seed(history(losses), patience=patience).set_index("seed")
    for seed, pair in losses.items():
        for curve, values in zip(MODELS, pair, strict=True):
            rule = EarlyStop(StoppingConfig(curve, patience))
            rows = [{"epoch": n, f"val_loss_{curve}": loss} for n, loss in enumerate(values, 1)]
            over = next((row for row in rows if rule.is_over(row)), None)
            ended, last = over is not None, over or rows[-1]
            row = table.loc[seed]
            assert row[f"own_ended_{curve}"] == ended
            assert row[f"own_epoch_{curve}"] == last["epoch"]
            assert row[f"own_{curve}"] == pytest.approx(last[f"val_loss_{curve}"], nan_ok=True)


ON_ORIGINAL = RunConfig(optimizer=OptimizerConfig(plateau_curve="original"), stopping=StoppingConfig("original", 7))
FREE = RunConfig(optimizer=OptimizerConfig(rate_rule="constant"), stopping=StoppingConfig("none"))


def test_rules_that_look_at_a_curve_are_told_with_whose_it_is():
    assert looking_at(RunConfig()) == {
        "ema": ["the early stop", "the plateau rule of the learning rate"],
        "original": [],
    }
    assert looking_at(FREE) == {"ema": [], "original": []}
    assert rules_in_words(FREE) == ""
    assert rules_in_words(RunConfig(max_epochs=3)) == "", "they cannot act in three epochs"
    own = rules_in_words(RunConfig())
    assert own.startswith("Here the early stop and the plateau rule of the learning rate look at this average.")
    assert "20 epochs past the lowest loss of the average, so the last epoch shows the average past its best" in own
    other = rules_in_words(RunConfig(), Constant(0.5))
    assert "look at another average, InversePower(beta=0.999, update_every=1)" in other
    assert "shows that average past its best" in other
    assert "7 epochs past the lowest loss of the original" in rules_in_words(ON_ORIGINAL, Constant(0.5))
    plateau = rules_in_words(RunConfig(stopping=StoppingConfig("none")))
    assert "the plateau rule of the learning rate looks at this average. So it steers the training" in plateau


def test_of_one_run_that_is_over_only_the_rules_are_told_that_acted_in_it():
    lowered = pd.DataFrame({"learning_rate": [0.1, 0.05]})
    steady = pd.DataFrame({"learning_rate": [0.1, 0.1]})
    assert rules_of_run_in_words(RunConfig(), lowered, "early stop") == rules_in_words(RunConfig())
    assert rules_of_run_in_words(RunConfig(), steady, "max epochs") == ""
    by_stop = rules_of_run_in_words(RunConfig(), steady, "early stop")
    assert by_stop.startswith("Here the early stop looks at this average. A run that it ends is 20 epochs past")
    by_rate = rules_of_run_in_words(RunConfig(), lowered, "stopped")
    assert by_rate.startswith("Here the plateau rule of the learning rate looks at this average. So it steers")
    assert "past its best" not in by_rate


def test_what_each_answer_was_chosen_on_is_told():
    table = per_seed(history(LOSSES), steady_from=2, patience=1)
    said = chosen_in_words(table, answers(table), RunConfig(stopping=StoppingConfig("ema", 1)))
    assert "Fixed: epoch 2 of every run" in said
    assert "an early stop (1 epoch without a new best) that looks at itself" in said
    assert "0 of 2" not in said
    longer = history(LOSSES | {3: ([4.0, 5.0, 6.0], [4.0, 3.0, 2.0])})
    patient = per_seed(longer, patience=2)
    said = chosen_in_words(patient, answers(patient), RunConfig(stopping=StoppingConfig("ema", 2)))
    assert "2 of 3 runs were over before the original's could act and 3 of 3 runs were over before the av" in said
    assert "own" not in answers(per_seed(longer, patience=3)), "where none acts, it is the final loss"
    assert "Own" not in chosen_in_words(per_seed(history(LOSSES)), answers(per_seed(history(LOSSES))), FREE)
    text = in_markdown(Study(RunConfig(), (2, 5)), answers(table), "Constant(beta=0.5)", table)
    assert rules_in_words(RunConfig(), Constant(0.5)) in text
    assert chosen_in_words(table, answers(table), RunConfig()) in text


def test_the_fixed_epoch_is_said_to_be_reached_by_those_who_reached_it_only():
    diverged = {seed: ([np.nan], [np.inf]) for seed in (7, 8)}
    for lost, said in (
        ({}, "Fixed: epoch 2 of every run, the last that all reached."),
        ({7: diverged[7]}, "Fixed: epoch 2, the last that all reached which did not diverge; 1 of 3 runs diverged"),
        (diverged, "2 of 4 runs diverged before it and have no loss there."),
    ):
        table = per_seed(history(LOSSES | lost))
        assert said in chosen_in_words(table, answers(table), FREE)
    assert "all" not in QUESTIONS["fixed"]


@pytest.mark.parametrize("lost", [np.nan, np.inf])
def test_a_seed_is_as_steady_here_as_it_is_as_a_run_of_its_own(lost):
    rng = np.random.default_rng(5)
    rows = history({seed: rng.lognormal(size=(2, 9)) for seed in range(20)})
    for curve in MODELS:
        rows.loc[rng.random(len(rows)) < 0.2, f"val_loss_{curve}"] = lost
    for first in (1, 3, 8):
        table = per_seed(rows, steady_from=first).set_index("seed")[["steadiness_original", "steadiness_ema"]]
        for seed, own in rows.groupby("seed"):
            assert table.loc[seed].tolist() == pytest.approx(steadiness(own, first), nan_ok=True)


def test_the_order_of_the_rows_does_not_matter():
    rows = history(LOSSES)
    by_epoch = rows.sort_values(["epoch", "seed"], ascending=[True, False], ignore_index=True)
    pd.testing.assert_frame_equal(per_seed(by_epoch), per_seed(rows))


def test_each_question_has_an_answer():
    found = answers(per_seed(history(LOSSES), steady_from=2, patience=1))
    assert list(found) == list(QUESTIONS)
    assert [(c.seeds, c.wins) for c in found.values()] == [(2, 1), (2, 0), (2, 1), (2, 0), (1, 1)]
    assert "steadiness" not in answers(per_seed(history(LOSSES), steady_from=9))


def test_the_intervals_are_of_the_kind_asked_for():
    table = per_seed(history({seed: ([1.0, 2.0], [1.0, 1.0 + seed / 20]) for seed in range(12)}))
    classical, bootstrap = answers(table), answers(table, BCA)
    assert classical["final"].median.low != bootstrap["final"].median.low
    text = in_markdown(Study(RunConfig(), tuple(range(12))), bootstrap, "Constant(beta=0.9)", table)
    assert "95 % intervals (BCa bootstrap)" in text
    (row,) = (line for line in text.splitlines() if line.startswith("| the final loss |"))
    assert row.split(" | ")[-2] == p_value(bootstrap["final"].wilcoxon_p).removeprefix("= ")


def test_bands_and_wins_are_of_the_seeds_still_training():
    table = bands(history(LOSSES), {"val_loss_original": "original", "val_loss_ema": "average"})
    second = table[(table["epoch"] == 2) & (table["curve"] == "original")].iloc[0]
    assert second[["low", "median", "high", "seeds"]].tolist() == pytest.approx([1.05, 1.5, 1.95, 2])
    assert table.groupby("curve", sort=False)["seeds"].apply(list).tolist() == [[2, 2, 1]] * 2
    assert wins(history(LOSSES))[["epoch", "share", "seeds"]].to_numpy().tolist() == [[1, 0, 2], [2, 0, 2], [3, 1, 1]]


def test_how_many_seeds_bands_and_wins_are_of_is_told_at_each_epoch():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ends = rng.integers(1, 12, size=rng.integers(2, 20))
        rows = history({seed: rng.lognormal(size=(2, end)) for seed, end in enumerate(ends)})
        lost = rng.random(len(rows)) < 0.1
        rows.loc[lost, "val_loss_original"] = rng.choice([np.nan, np.inf], lost.sum())
        rows.loc[lost & (rng.random(len(rows)) < 0.5), "val_loss_ema"] = np.nan
        table = bands(rows, {"val_loss_original": "original", "val_loss_ema": "average"}).set_index(["curve", "epoch"])
        share = wins(rows).set_index("epoch")
        for epoch, there in rows.groupby("epoch"):
            for curve, column in (("original", "val_loss_original"), ("average", "val_loss_ema")):
                values = there[column][np.isfinite(there[column])]
                row = table.loc[(curve, epoch)]
                assert row["seeds"] == len(values)
                assert not len(values) or row["median"] == pytest.approx(values.median())
            known = there[np.isfinite(there[["val_loss_original", "val_loss_ema"]]).any(axis=1)]
            if len(known):
                won = known["val_loss_ema"].fillna(np.inf) < known["val_loss_original"].fillna(np.inf)
                assert share.loc[epoch].tolist() == pytest.approx([won.mean(), len(known)])
        said = training_in_words(rows)
        losing = rows[~np.isfinite(rows[["val_loss_original", "val_loss_ema"]]).all(axis=1)]["seed"].nunique()
        told = f"{losing} of {len(ends)} seeds ha"
        assert (told in said) == ("not finite" in said) == bool(losing)
        whose = f"All {len(ends)} seeds train" if len(ends) > 1 else "The one seed trains"
        assert said.startswith(f"{whose} up to epoch {ends.min()}")
        if ends.min() < ends.max():
            assert f"{(ends == ends.max()).sum()} up to the last, {ends.max()}" in said
            half = sorted(ends)[len(ends) // 2]
            assert f", {(ends >= half).sum()} up to epoch {half}," in said


def test_ahead_and_still_training_are_shares_of_different_seeds():
    # Of three seeds one ends after epoch 1; in epoch 2 a loss is lost on both curves, so one seed is counted there.
    rows = history({0: ([4.0, 4.0], [3.0, 5.0]), 1: ([4.0, np.nan], [3.0, np.nan]), 2: ([4.0], [5.0])})
    curves = win_curves(wins(rows), 3)
    assert curves["curve"].tolist() == [AHEAD, AHEAD, TRAINING, TRAINING]
    assert curves["epoch"].tolist() == [1, 2, 1, 2]
    assert curves["share"].tolist() == pytest.approx([200 / 3, 0, 100, 100 / 3])


def test_the_ratio_of_a_seed_is_its_averages_deviation_by_its_originals():
    rows = history({3: ([9.0, 1.0, 3.0], [9.0, 2.0, 2.5]), 1: ([9.0, 1.0], [9.0, 2.0])})
    found = steadiness_ratios(per_seed(rows, steady_from=2))
    assert found["seed"].tolist() == [3, 1]
    assert found["ratio"].tolist() == pytest.approx([0.25, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, 2, 3, 4], "50 %"),
        ([2.5, 1, 9, 9], "38 %"),
        ([np.nan, 1, 1, 9], "67 %"),
        ([np.inf, 9], "0 %"),
        ([np.nan], "none"),
    ],
)
def test_the_share_below_a_value_counts_ties_half_and_leaves_nan_out(values, said):
    assert share_below(pd.Series(values, dtype=float), 2.5) == said


def test_how_far_a_study_is():
    rows = history(LOSSES).assign(seconds=[2.0, 4.0, 6.0, 2.0, 4.0])
    found = progress(rows, 12)
    assert (found.epoch, found.share, found.training, found.left.seconds) == (3, 0.25, 1, 18.0)
    early = progress(rows[rows["epoch"] < 3], 2)
    assert (early.epoch, early.share, early.training, early.left.seconds) == (2, 1.0, 2, 0.0)
    nothing = progress(rows.iloc[:0], 12)
    assert (nothing.epoch, nothing.share, nothing.training) == (0, 0.0, 0)
    assert nothing.left is None


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (0.8, "averaging lowers the final loss by 20 % in the median (the average was better in 12)"),
        (1.2, "averaging raises the final loss by 20 % in the median (the average was better in 0)"),
        (1.0, "no difference in the final loss is shown (median gain 0 %; the average was better in 0)"),
    ],
)
def test_the_answers_in_one_sentence(factor, said):
    table = pd.DataFrame({"final_original": np.arange(1.0, 13)}).assign(
        final_ema=lambda t: factor * t["final_original"],
        steadiness_original=1.0,
        steadiness_ema=np.linspace(0.5, 0.6, 12),
    )
    found = answers(table)
    sentence = headline(found, FREE)
    assert sentence == f"Over 12 seeds, {said}; its curve is steadier in 12 of 12."
    assert headline(found, FREE, complete=False).startswith("So far, over 12 seeds, ")
    by_stop = headline(found, RunConfig())
    assert "while an early stop looked at the average's loss)" in by_stop
    assert "while an early stop looked at the original's loss)" in headline(found, ON_ORIGINAL)
    few = headline(answers(table[:3].drop(columns=["steadiness_original", "steadiness_ema"])), FREE)
    assert few.startswith("Over 3 seeds, nothing can be told of the final loss (")
    plateau = RunConfig(stopping=StoppingConfig("none"))
    assert "while the learning rate followed the average's loss)" in headline(found, plateau)


def test_the_one_sentence_follows_the_numbers():
    rng = np.random.default_rng(3)
    for _ in range(100):
        original, averaged = drawn_pairs(rng)
        one = paired_comparison(original, averaged)
        sentence = headline({"final": one}, FREE)
        no_empty_words(sentence)
        kind = kind_of(one)
        assert ("lowers the final loss" in sentence) == (kind == "helps")
        assert ("raises the final loss" in sentence) == (kind == "hurts")
        assert f"better in {one.wins})" in sentence
        assert ("in the median" in sentence or "median gain" in sentence) == (one.pairs > 0)
        of_some = 0 < one.pairs < one.seeds
        assert (f"over {one.pairs} of {one.seeds} seed" in sentence) == of_some, "the median's own pairs"


def test_the_articles_one_run_stands_beside_its_own_settings_only():
    table = pd.DataFrame({"seed": range(4), "final_original": 1.0, "final_ema": [0.7, 0.9, 0.9, 1.0]})
    one = answers(table)["final"]
    assert "article" not in gains_in_words(table, one)
    assert "one run gained 20 %: 75 % of the 4 seeds gained less" in gains_in_words(table, one, is_article=True)


def test_the_seeds_that_a_t_test_needs_are_those_of_normal_gains():
    rng = np.random.default_rng(4)
    gained = stats.zscore(rng.normal(size=16), ddof=1) + 0.5
    table = pd.DataFrame({"seed": range(16), "final_original": 1.0, "final_ema": 1 - gained})
    one = answers(table)["final"]
    assert one.seeds_needed == 34
    told = "With 34 seeds a t-test finds a mean gain as large as this one in four studies of five, if gains are spread"
    assert f"{told} normally." in gains_in_words(table, one)
    found = {
        name: (stats.ttest_1samp(0.5 + studies, 0, axis=1).pvalue < 0.05).mean()
        for name, studies in {
            "normal": rng.normal(size=(4000, 34)),
            "skewed": rng.exponential(size=(4000, 34)) - 1,
        }.items()
    }
    assert found["normal"] == pytest.approx(0.8, abs=0.03)
    assert found["skewed"] > 0.88


def test_seeds_that_diverged_on_both_sides_are_no_gains_of_nothing():
    table = pd.DataFrame(
        {"seed": range(3), "final_original": [np.nan, 1.0, np.inf], "final_ema": [np.inf, 0.7, np.nan]}
    )
    assert "0 % of the 1 seed gained less" in gains_in_words(table, answers(table)["final"], is_article=True)
    lost = table[table["seed"] != 1]
    assert gains_in_words(lost, answers(lost)["final"], is_article=True).startswith("No seed has a finite loss")


def test_what_one_would_write():
    study = Study(RunConfig(), (2, 5))
    table = per_seed(history(LOSSES), steady_from=2)
    text = in_markdown(study, answers(table), "Constant(beta=0.9)", table)
    assert "`Constant(beta=0.9)`, over 2 seeds (2 to 5)" in text
    assert "| the final loss | 2 | 1 | 2 | -25 % | none | -25 % | none |" in text
    assert "cannot tell" in text
    assert "torch 2" in text


def test_one_seed_is_told_in_the_singular():
    rows = history({3: ([4.0, 2.0], [4.0, 3.0])})
    table = per_seed(rows, patience=1)
    found = answers(table)
    words = [
        in_markdown(Study(RunConfig(), (3,)), found, "Constant(beta=0.9)", table),
        headline(found, RunConfig()),
        gains_in_words(table, found["final"]),
        training_in_words(rows),
    ]
    assert "over 1 seed (3) of the same" in words[0]
    assert not re.search(r"\b1 (seeds|runs|epochs|cells)", " ".join(words))


def test_what_is_written_of_any_seeds_names_its_pairs_and_has_no_empty_numbers():
    rng = np.random.default_rng(1)
    for _ in range(100):
        original, averaged = drawn_pairs(rng)
        seeds = range(len(original))
        table = pd.DataFrame({"seed": seeds, "final_original": original, "final_ema": averaged})
        found = {"final": paired_comparison(original, averaged)}
        paper = in_markdown(Study(RunConfig(), seeds), found, "Constant()", table)
        for words in (gains_in_words(table, found["final"]), paper):
            no_empty_words(words)
            pairs = found["final"].pairs
            assert pairs == len(seeds) or f"{pairs} of {len(seeds)}" in words or f"| {pairs} |" in words


def test_a_study_without_what_is_asked_for_is_told():
    whole = history({1: ([1.0, 2.0], [1.0, 1.5])})
    for table, why in (
        (whole.iloc[:0], "no epoch of the study is over"),
        (whole.drop(columns="seed"), "history has no column 'seed'; it has"),
        (whole.drop(columns="val_loss_ema"), "history has no column 'val_loss_ema'"),
    ):
        with pytest.raises(ValueError, match=why):
            per_seed(table)
    with pytest.raises(ValueError, match="history has no column 'val_loss_other'"):
        per_seed(whole, "other")
    for patience in (0, -1, 2.5, "a"):
        with pytest.raises(ValueError, match="patience must be a whole number of at least 1"):
            per_seed(whole, patience=patience)
