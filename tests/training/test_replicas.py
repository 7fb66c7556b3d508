from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from emacore import RunConfig, train
from emacore.averaging.families import Constant, InversePower, UniformAverage
from emacore.averaging.windows import Window
from emacore.experiments.studies import Study
from emacore.tasks.regression.config import DataConfig
from emacore.training import replicas
from emacore.training.config import NetworkConfig, OptimizerConfig, StoppingConfig
from emacore.training.history import columns
from emacore.training.replicas import replicate

CONFIG = RunConfig(
    data=DataConfig(n_samples=230, n_features=6, n_informative=4),
    network=NetworkConfig((10, 4)),
    optimizer=OptimizerConfig(learning_rate=0.01, rate_rule="constant"),
    schedule=InversePower(0.99, update_after_step=10, update_every=1),
    stopping=StoppingConfig("none"),
    max_epochs=8,
)
SEEDS = [3, 0, 7, 11]


def of(history, seed):
    return history[history["seed"] == seed].drop(columns=["seconds"]).reset_index(drop=True)


def test_one_row_for_each_seed_and_epoch():
    result = replicate(CONFIG, SEEDS)
    assert result.history.columns.tolist() == ["seed", *columns(RunConfig.metrics)]
    assert result.history["seed"].tolist() == np.repeat(SEEDS, 8).tolist()
    assert result.history["epoch"].tolist() == list(range(1, 9)) * 4
    assert result.stopped == dict.fromkeys(SEEDS, "max epochs")
    assert result.history.groupby("seed")["val_loss_original"].last().nunique() == 4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": OptimizerConfig("adamw", 0.02, 0.1, rate_rule="cosine")},
        {
            "optimizer": OptimizerConfig("sgd", 0.02, 1e-3, 0.8, plateau_patience=0),
            "stopping": StoppingConfig("ema", 2),
        },
        {"network": NetworkConfig((8,), 0.0, "tanh"), "data": DataConfig("friedman1", n_samples=120)},
        {"network": NetworkConfig((), 0.5, "gelu"), "data": DataConfig("diabetes")},
    ],
    ids=["adam", "adamw, cosine", "sgd, plateau, stop", "friedman, no dropout", "diabetes, linear"],
)
def test_a_seed_does_not_depend_on_its_neighbours(changes):
    config = replace(CONFIG, **changes)
    together, alone = replicate(config, SEEDS), replicate(config, [7])
    pd.testing.assert_frame_equal(of(together.history, 7), of(alone.history, 7), rtol=1e-4, atol=1e-7)
    assert together.stopped[7] == alone.stopped[7]


@pytest.mark.parametrize(
    ("optimizer", "rule"), [("adam", "plateau"), ("adamw", "cosine"), ("sgd", "plateau"), ("sgd", "constant")]
)
def test_a_step_is_that_of_train(optimizer, rule):
    """With no dropout and all rows in one batch, nothing is random but the first weights."""
    config = replace(
        CONFIG,
        network=NetworkConfig((10, 4), dropout=0.0),
        optimizer=OptimizerConfig(
            optimizer, 0.03, 0.01, batch_size=184, rate_rule=rule, plateau_patience=0, plateau_factor=0.3
        ),
        schedule=InversePower(0.9, update_after_step=2, update_every=2),
        max_epochs=100,
    )
    single = train(replace(config, seed=7)).history.drop(columns=["seconds"])
    stacked = of(replicate(config, SEEDS).history, 7).drop(columns="seed")
    pd.testing.assert_frame_equal(stacked, single, rtol=2e-3, atol=1e-5, check_dtype=False)
    assert (single["learning_rate"].nunique() > 1) == (rule != "constant")


@pytest.mark.slow
def test_in_distribution_they_are_trains_runs():
    stacked = replicate(CONFIG, range(40)).history
    single = [train(replace(CONFIG, seed=seed)).history for seed in range(40)]
    for column in ("train_loss", "val_loss_original", "val_loss_ema"):
        last = stacked[stacked["epoch"] == 8][column].to_numpy()
        assert stats.ks_2samp(last, [history[column].iloc[-1] for history in single]).pvalue > 0.01, column
        assert np.median(last) == pytest.approx(np.median([h[column].iloc[-1] for h in single]), rel=0.2)


def test_dropout_drops_its_share_and_keeps_the_mean():
    config = replace(CONFIG, network=NetworkConfig((64, 32), dropout=0.3))
    stack = replicas._Stack(config, SEEDS, {}, config.task(), config.task().load(config))
    masks = stack._masks([100, 50])
    assert [mask.shape for mask in masks[1]] == [(4, 50, 64), (4, 50, 32)]
    whole = replicas.torch.cat([mask.flatten() for step in masks for mask in step])
    assert float((whole == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(whole.mean()) == pytest.approx(1, abs=0.02)
    assert not replicas.torch.equal(masks[0][0][0], masks[0][0][1])


def test_further_schedules_average_the_same_networks():
    result = replicate(
        CONFIG, SEEDS, schedules={"same": CONFIG.schedule, "copy": Constant(0.0), "mean": UniformAverage()}
    )
    history = result.history
    for metric in ("loss", "mae", "r2"):
        np.testing.assert_array_equal(history[f"val_{metric}_same"], history[f"val_{metric}_ema"])
        np.testing.assert_array_equal(history[f"val_{metric}_copy"], history[f"val_{metric}_original"])
    assert (history["val_loss_mean"] != history["val_loss_ema"]).any()


def test_those_that_stop_leave_and_the_others_go_on():
    config = replace(CONFIG, stopping=StoppingConfig("original", 2), max_epochs=60)
    seen = []
    result = replicate(config, SEEDS, lambda rows: seen.append([row["seed"] for row in rows]))
    lengths = result.history.groupby("seed")["epoch"].max()
    assert lengths.nunique() > 1
    assert [len(seeds) for seeds in seen] == [(lengths >= epoch).sum() for epoch in range(1, lengths.max() + 1)]
    for seed in SEEDS:
        losses = of(result.history, seed)["val_loss_original"]
        if result.stopped[seed] == "early stop":
            assert losses.idxmin() == len(losses) - 3


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerConfig("adam", 0.02, rate_rule="constant"),
        OptimizerConfig("adamw", 0.02, 0.1, rate_rule="cosine"),
        OptimizerConfig("sgd", 0.02, 1e-3, 0.9, rate_rule="plateau", plateau_patience=0),
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_those_that_stay_go_on_as_if_nobody_had_left(optimizer):
    config = replace(CONFIG, optimizer=optimizer, stopping=StoppingConfig("original", 1), max_epochs=25)
    schedules = {"mean": UniformAverage()}
    alone = {seed: replicate(config, [seed], schedules=schedules).history for seed in (7, 3, 0, 11, 5)}
    seeds = sorted(alone, key=lambda seed: len(alone[seed]))  # so those that stay move up in the stack
    lengths = [len(alone[seed]) for seed in seeds]
    assert len(set(lengths)) >= 3, "seeds leave at different times"
    assert lengths[-1] >= lengths[1] + 2, "and there is time to see what that did to the others"
    together = replicate(config, seeds, schedules=schedules).history
    for seed in seeds:
        pd.testing.assert_frame_equal(of(together, seed), of(alone[seed], seed), rtol=1e-3, atol=1e-6)


def test_a_diverged_seed_leaves_and_harms_no_other():
    config = replace(CONFIG, optimizer=OptimizerConfig("sgd", 1e12, rate_rule="constant"))
    result = replicate(config, SEEDS)
    assert result.stopped == dict.fromkeys(SEEDS, "diverged")
    assert not np.isfinite(result.history.groupby("seed")["train_loss"].last()).any()


def test_those_that_do_not_diverge_go_on_as_if_nobody_had():
    config = replace(CONFIG, optimizer=OptimizerConfig("sgd", 2.0, rate_rule="constant"))
    result = replicate(config, [5, 3, 0, 7])
    assert result.stopped == {5: "diverged", 3: "max epochs", 0: "diverged", 7: "max epochs"}
    for seed in (3, 7):
        alone = replicate(config, [seed]).history
        pd.testing.assert_frame_equal(of(result.history, seed), of(alone, seed), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("spoilt", ["train_loss", "val_loss_original", "val_loss_ema"])
def test_one_loss_that_is_not_finite_is_a_divergence(monkeypatch, spoilt, value):
    config, task = replace(CONFIG, max_epochs=4), type(CONFIG.task())
    unspoilt = replicate(config, SEEDS).history
    loss, score, calls = task.loss, task.score, Counter()

    def spoil(name, values):
        """Once in the second epoch, of the last seed, and not its gradients."""
        calls[name] += 1
        first = CONFIG.steps_per_epoch + 1 if name == "train_loss" else 3
        at = first + (spoilt == "val_loss_ema")
        wrong = torch.zeros_like(values)
        wrong[(-1,) * values.ndim] = value
        return values + wrong if spoilt.startswith(name) and calls[name] == at else values

    def spoilt_score(self, *given):
        found = score(self, *given)
        return found | {"loss": spoil("val_loss", torch.as_tensor(found["loss"]))}

    monkeypatch.setattr(task, "loss", lambda self, *given: spoil("train_loss", loss(self, *given)))
    monkeypatch.setattr(task, "score", spoilt_score)
    result = replicate(config, SEEDS)
    assert result.stopped == dict.fromkeys(SEEDS[:-1], "max epochs") | {SEEDS[-1]: "diverged"}
    assert result.history.groupby("seed")["epoch"].max().to_dict() == dict.fromkeys(SEEDS[:-1], 4) | {SEEDS[-1]: 2}
    for seed in SEEDS[:-1]:
        pd.testing.assert_frame_equal(of(result.history, seed), of(unspoilt, seed), rtol=1e-4, atol=1e-7)
    calls.clear()
    alone = train(config)
    assert (alone.stopped, len(alone.history)) == ("diverged", 2)
    assert np.flatnonzero(~np.isfinite(alone.history[spoilt])).tolist() == [1]


def test_stopped_between_and_within_epochs():
    stops = iter([False, False, True])
    result = replicate(CONFIG, SEEDS, should_stop=lambda: next(stops))
    assert result.history["epoch"].max() == 3
    assert set(result.stopped.values()) == {"stopped"}
    looked = iter([False] + [True] * 99)
    seconds, replicas.SECONDS_BETWEEN_STOP_CHECKS = replicas.SECONDS_BETWEEN_STOP_CHECKS, -1
    try:
        cut = replicate(CONFIG, SEEDS, should_stop=lambda: next(looked))
    finally:
        replicas.SECONDS_BETWEEN_STOP_CHECKS = seconds
    assert cut.history.empty
    assert set(cut.stopped.values()) == {"stopped"}


@pytest.mark.parametrize("name", ["original", "ema", "", 1, None])
def test_a_further_average_does_not_take_the_runs_own_columns(name):
    with pytest.raises(ValueError, match="an average cannot be named .*: .*; choose another name") as told:
        replicate(CONFIG, SEEDS, schedules={"mean": UniformAverage(), name: Constant(0.0)})
    assert repr(name) in str(told.value)


@pytest.mark.parametrize("name", ["mean", "epoch", "seed", "val_loss_ema", "EMA", "ema "])
def test_all_columns_of_a_history_are_different_ones(name):
    config = replace(CONFIG, max_epochs=1)
    history = replicate(config, SEEDS, schedules={name: Constant(0.0)}).history
    assert history.columns.is_unique
    assert len(history.columns) == 1 + len(columns(RunConfig.metrics)) + 3
    own = replicate(config, SEEDS).history.drop(columns="seconds")
    pd.testing.assert_frame_equal(history[own.columns], own)
    np.testing.assert_array_equal(history[f"val_loss_{name}"], history["val_loss_original"])


@pytest.mark.parametrize("schedule", [Window(3), 0.9, "Constant()", None])
def test_what_is_no_schedule_is_told(schedule):
    with pytest.raises(TypeError, match=r"schedules\['a'\] must be a schedule, such as .*, got"):
        replicate(CONFIG, SEEDS, schedules={"a": schedule})
    with pytest.raises(TypeError, match=r"schedules\[1\] must be a schedule, such as .*, got"):
        Study(CONFIG, SEEDS, [Constant(), schedule])


@pytest.mark.parametrize("schedules", [Constant(), "Constant()", np.array(3)])
def test_what_is_no_list_of_schedules_is_told(schedules):
    with pytest.raises(TypeError, match="schedules must be given by name, such as .*, got"):
        replicate(CONFIG, SEEDS, schedules=schedules)
    with pytest.raises(TypeError, match="schedules must be a list of schedules, got"):
        Study(CONFIG, SEEDS, schedules)


def test_seeds_must_be_different():
    for seeds in ([], [1, 1]):
        with pytest.raises(ValueError, match="seeds must be different"):
            replicate(CONFIG, seeds)
    for seeds, message in (([-1], "got -1"), ([2**63], "got 9,223"), ([1.0], "got 1.0"), ([True], "got True")):
        with pytest.raises(ValueError, match=f"seeds must be a whole number .*{message}"):
            replicate(CONFIG, seeds)
    for one in (3, np.array(3)):
        for ask in (replicate, Study):
            with pytest.raises(TypeError, match=r"seeds must be a list of whole numbers, got (3|array\(3\))"):
                ask(CONFIG, one)


def test_seeds_may_be_a_range_or_an_array():
    config = replace(CONFIG, max_epochs=1)
    of_list, *others = (replicate(config, seeds).history for seeds in ([0, 1], range(2), np.arange(2)))
    for history in others:
        pd.testing.assert_frame_equal(history.drop(columns="seconds"), of_list.drop(columns="seconds"))
    assert Study(config, np.arange(2)).to_json() == Study(config, (0, 1)).to_json()


def test_each_step_of_a_stack_lets_those_go_first_who_wait_for_an_answer(monkeypatch):
    asked = []
    monkeypatch.setattr(replicas, "step_aside", lambda: asked.append(1))
    replicate(replace(CONFIG, max_epochs=1), [0, 1])
    rows = 8 * CONFIG.data.n_samples // 10  # the others are for validation
    assert len(asked) == -(-rows // CONFIG.optimizer.batch_size)
