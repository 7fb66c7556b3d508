"""What acts in a run over seeds: said before it is trained, and held against training."""

import json
from dataclasses import replace

import numpy as np
import pytest

from emacore import RunConfig
from emacore.averaging.families import Constant, InversePower
from emacore.experiments.studies import Sweep, with_settings
from emacore.tasks.regression.config import DataConfig
from emacore.training.acting import acting, idle_settings
from emacore.training.config import NetworkConfig, OptimizerConfig, StoppingConfig, dotted
from emacore.training.replicas import replicate

BASE = RunConfig(
    data=DataConfig(n_samples=60, n_features=6, n_informative=3, noise=1.0),
    network=NetworkConfig((8,), 0.2),
    optimizer=OptimizerConfig(learning_rate=0.05, batch_size=16, rate_rule="plateau", plateau_patience=0),
    schedule=InversePower(0.9, update_after_step=2, update_every=1),
    stopping=StoppingConfig("ema", 2),
    max_epochs=7,
)
#: Configs whose settings act in different ways, by what is different.
BASES = {
    "as above": BASE,
    "cosine": replace(BASE, optimizer=replace(BASE.optimizer, rate_rule="cosine"), stopping=StoppingConfig("none")),
    "constant": replace(BASE, optimizer=replace(BASE.optimizer, rate_rule="constant", name="adamw")),
    "one epoch": replace(BASE, max_epochs=1),
    "patient": replace(
        BASE, optimizer=replace(BASE.optimizer, plateau_patience=5), stopping=StoppingConfig("original", 7)
    ),
    "sgd": replace(BASE, optimizer=replace(BASE.optimizer, name="sgd", weight_decay=0.0)),
    "no decay of weights": replace(BASE, optimizer=replace(BASE.optimizer, weight_decay=0.0)),
    "linear": replace(BASE, network=NetworkConfig(())),
    "friedman1": replace(BASE, data=replace(BASE.data, kind="friedman1")),
    # It has more rows, and so larger batches.
    "diabetes": replace(
        BASE,
        data=replace(BASE.data, kind="diabetes"),
        optimizer=replace(BASE.optimizer, batch_size=128),
        max_epochs=3,
    ),
}
#: Two other values of each setting.
OTHERS = {
    "data.kind": ["friedman1", "diabetes"],
    "data.n_samples": [61, 80],
    "data.n_features": [7, 9],
    "data.n_informative": [6, 60],
    "data.noise": [0.0, 30.0],
    "data.random_state": [1, 2],
    "data.test_size": [0.199, 0.3],
    "data.split_random_state": [1, 2],
    "data.scaled_on": ["train", "all"],
    "data.path": ["a.csv", "b.csv"],
    "data.target": ["y", "z"],
    "data.sha256": ["0" * 64, "1" * 64],
    "data.features": [["a"], ["b"]],
    "data.blanks": ["drop", "mean"],
    "data.text": ["one-hot", "leave out"],
    "network.widths": [[], [4, 4]],
    "network.dropout": [0.0, 0.5],
    "network.activation": ["tanh", "gelu"],
    "optimizer.name": ["adam", "adamw"],
    "optimizer.learning_rate": [0.01, 0.1],
    "optimizer.weight_decay": [0.0, 0.1],
    "optimizer.momentum": [0.0, 0.5],
    "optimizer.batch_size": [8, 15],
    "optimizer.rate_rule": ["constant", "cosine"],
    "optimizer.plateau_factor": [0.1, 0.9],
    "optimizer.plateau_patience": [1, 6],
    "optimizer.plateau_curve": ["original", "ema"],
    "stopping.curve": ["original", "none"],
    "stopping.patience": [1, 9],
    "seed": [1, 2],
    "max_epochs": [2, 5],
    "schedule.beta": [0.95, 0.5],
    "schedule.power": [0.1, 1.0],
    "schedule.inv_gamma": [0.1, 1e6],
    "schedule.min_value": [0.0, 0.1],
    "schedule.update_after_step": [0, 10_000],
    "schedule.update_every": [2, 3],
}
#: Rules that look at a curve act or not as the curve turns out; without that, what acts changes the numbers.
DEPENDS = ("plateau", "stopping", "max_epochs", "rate_rule")


def numbers(config):
    """All that a run over seeds finds, but the time it took and what it set."""
    result = replicate(config, [3, 4, 5])
    left = result.history.drop(columns=["seconds", "decay", "learning_rate"])
    return left.to_numpy(), list(result.stopped.values())


def same(one, other):
    return one[0].shape == other[0].shape and np.array_equal(one[0], other[0], equal_nan=True) and one[1] == other[1]


def test_every_setting_is_tried():
    assert set(OTHERS) == set(dotted(json.loads(BASE.to_json()))) - {"schedule.family", "task"}


@pytest.mark.parametrize("tried", ["one of both", pytest.param("both", marks=[pytest.mark.slow, pytest.mark.long])])
@pytest.mark.parametrize("base", BASES)
def test_what_is_said_to_act_on_nothing_changes_no_number_and_all_else_does(base, tried):
    config, counted = BASES[base], 0
    trained = numbers(config)
    place = list(BASES).index(base) % 2  # each value is tried with half of the configs
    for name, values in OTHERS.items():
        for value in values if tried == "both" else values[place : place + 1]:
            try:
                other = with_settings(config, {name: value})
            except ValueError:
                continue  # a data set that cannot have it
            if other == config:
                continue
            equal = same(trained, numbers(other))
            counted += equal
            if name in idle_settings(config) and name in idle_settings(other):
                assert acting(other) == acting(config), (name, value)
            if acting(other) == acting(config):
                assert equal, (name, value)
            elif not any(part in name for part in DEPENDS):
                assert not equal, (name, value)
    assert counted > 3


def test_cells_that_are_the_same_experiment_are_found_before_they_are_trained():
    def alike(grid, config=BASE):
        return Sweep(config, grid, (0, 1)).alike()

    momentum = {"optimizer.name": ["adam", "sgd"], "optimizer.momentum": [0, 0.9, 0.99]}
    assert alike(momentum) == [[0, 1, 2], [3], [4], [5]]
    caps = {"schedule.beta": [0.9, 0.99, 0.999], "max_epochs": [1, 2]}  # InversePower reaches 0.9 within 35 steps
    assert alike(caps) == [[0, 2, 4], [1, 3, 5]]
    assert alike({"schedule": [0.9, "Constant(beta=0.9, update_after_step=0)", "Constant(beta=0.8)"]}) == [[0, 1], [2]]
    assert alike({"network.dropout": [0.1, 0.2]}) == [[0], [1]]
    long = replace(BASE, max_epochs=10**9, schedule=Constant(0.9))
    assert alike({"schedule.beta": [0.9, 0.99]}, long) == [[0], [1]]


@pytest.mark.parametrize("patience", range(8))
def test_a_rate_is_lowered_after_more_epochs_than_its_patience_and_before_the_last(patience):
    config = replace(BASE, optimizer=replace(BASE.optimizer, plateau_patience=patience))
    # At the earliest the first epoch is the best, the next ones are worse, and one more trains at the lower rate.
    acts = 1 + (patience + 1) + 1 <= config.max_epochs
    assert ("optimizer.plateau_factor" not in idle_settings(config)) == acts
