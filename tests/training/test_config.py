import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore.averaging.families import InversePower, PowerFunction
from emacore.tasks.regression.config import DataConfig, RunConfig
from emacore.training.config import NetworkConfig, OptimizerConfig, StoppingConfig


def test_the_default_is_the_articles_experiment():
    config = RunConfig()
    assert config.data == DataConfig("make_regression", 2000, 20, 10, 0.1, 42, 0.2, 42)
    assert config.network == NetworkConfig((64, 32), 0.2, "relu")
    assert (config.optimizer.name, config.optimizer.learning_rate, config.optimizer.weight_decay) == (
        "adam",
        1e-3,
        1e-5,
    )
    assert config.optimizer.batch_size == 32
    assert (config.optimizer.rate_rule, config.optimizer.plateau_factor, config.optimizer.plateau_patience) == (
        "plateau",
        0.5,
        10,
    )
    assert config.optimizer.plateau_curve == "ema"
    assert config.schedule == InversePower(0.999, 1.0, 2 / 3, 0.0, update_after_step=100, update_every=1)
    assert config.stopping == StoppingConfig("ema", 20)
    assert config.max_epochs == 500
    assert config.data.train_rows == 1600
    assert config.steps_per_epoch == 50


@given(
    st.builds(
        RunConfig,
        network=st.builds(NetworkConfig, st.lists(st.integers(1, 100), max_size=3), st.floats(0, 0.99)),
        optimizer=st.builds(OptimizerConfig, st.sampled_from(["adam", "sgd"]), st.floats(1e-6, 10)),
        schedule=st.one_of(st.builds(PowerFunction, sigma_rel=st.floats(0.01, 0.28)), st.builds(InversePower)),
        seed=st.integers(0, 2**40),
    )
)
def test_json_round_trip(config):
    assert RunConfig.from_json(config.to_json()) == config
    assert hash(config) == hash(RunConfig.from_json(config.to_json()))


def test_what_json_leaves_out_is_the_articles():
    assert RunConfig.from_json("{}") == RunConfig()
    changed = RunConfig.from_json('{"optimizer": {"learning_rate": 0.01}}')
    assert changed == replace(RunConfig(), optimizer=OptimizerConfig(learning_rate=0.01))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ("[1]", "a JSON object"),
        ('{"optimiser": {}}', "no setting optimiser; there are data, network, optimizer"),
        ('{"optimizer": {"lr": 1}}', "no setting optimizer.lr"),
        ('{"optimizer": 3}', "optimizer must be an object, got 3"),
        ('{"optimizer": {"learning_rate": -1}}', "optimizer.learning_rate must be .* above 0, got -1"),
        ('{"optimizer": {"learning_rate": "big"}}', "learning_rate"),
        ('{"optimizer": {"name": "lion"}}', "optimizer.name must be one of adam, adamw, sgd; got 'lion'"),
        ('{"optimizer": {"batch_size": 5000}}', "batch_size = 5000 is larger than the 1600 training rows"),
        ('{"network": {"dropout": 1}}', "network.dropout"),
        ('{"network": {"widths": [0]}}', "network.widths"),
        ('{"network": {"widths": "64"}}', "network.widths"),
        ('{"data": {"kind": "csv"}}', "needs a path"),
        ('{"data": {"kind": "friedman1", "n_features": 4}}', "at least 5"),
        ('{"data": {"n_samples": 100000000}}', "at most 20,000,000"),
        ('{"data": {"test_size": 1.0}}', "test_size"),
        ('{"schedule": {"family": "Magic"}}', "schedule family must be one of"),
        ('{"schedule": 5}', "schedule must be an object"),
        ('{"stopping": {"curve": "train"}}', "stopping.curve"),
        ('{"seed": 1.5}', "seed must be a whole number"),
        ('{"seed": true}', "seed"),
        ('{"max_epochs": 0}', "max_epochs"),
    ],
)
def test_wrong_json_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.from_json(text)


def test_json_is_for_people_too():
    assert json.loads(RunConfig().to_json())["schedule"]["family"] == "InversePower"


def test_config_and_history_import_no_torch():
    code = "import sys, emacore.experiments.studies, emacore.training.history; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["name", "rate_rule", "plateau_curve"])
def test_a_choice_that_the_optimizer_does_not_have_is_refused(name):
    with pytest.raises(ValueError, match=rf"optimizer\.{name} must be one of .*; got 'magic'"):
        OptimizerConfig(**{name: "magic"})
