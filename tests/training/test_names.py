"""What a run is called: said of its settings, whatever its task."""

import json
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore.averaging.families import Constant, InversePower, PowerFunction, UniformAverage
from emacore.tasks.regression.config import DataConfig, RunConfig
from emacore.training.config import NetworkConfig, OptimizerConfig, StoppingConfig, dotted
from emacore.training.names import cut, in_words, schedule_in_words, setting_in_words
from tests.training.test_second_task import CONFIG as DIGITS

FAST = OptimizerConfig(learning_rate=0.01, rate_rule="constant")
NEVER = StoppingConfig("none")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (RunConfig(), "regression, Adam 0.001 plateau, inverse power 0.999"),
        (RunConfig(optimizer=FAST), "regression, Adam 0.01 constant, inverse power 0.999"),
        (
            RunConfig(optimizer=FAST, stopping=NEVER, max_epochs=60, seed=7),
            "regression, Adam 0.01 constant, inverse power 0.999, 60 epochs, no early stop, seed 7",
        ),
        (RunConfig(max_epochs=1), "regression, Adam 0.001 plateau, inverse power 0.999, 1 epoch"),
        (
            RunConfig(data=DataConfig("diabetes"), network=NetworkConfig((8, 4), 0.0), schedule=Constant(0.9)),
            "diabetes, Adam 0.001 plateau, constant 0.9, widths 8-4, dropout 0, update after step 0",
        ),
        (
            RunConfig(data=DataConfig("csv", path="/a/b/t.csv", target="a very\nlong name of a column")),
            "a very long name of a c… of a CSV, Adam 0.001 plateau, inverse power 0.999",
        ),
        (
            DIGITS,
            "digits in a test, SGD 0.05 constant, inverse power 0.95, 6 epochs, no early stop, update after step 5",
        ),
    ],
)
def test_names_say_the_settings(config, words):
    assert in_words(config) == words


def test_of_many_others_some_are_said_and_the_rest_is_counted():
    config = RunConfig(data=DataConfig(noise=5.0, n_features=30), network=NetworkConfig((8,), 0.5, "tanh"), seed=1)
    assert in_words(config).endswith("inverse power 0.999, seed 1, number of features 30, noise 5, 3 more")
    assert in_words(config, most=99).endswith("noise 5, widths 8, dropout 0.5, activation tanh")


def test_what_does_not_act_is_not_said():
    for config in (
        RunConfig(optimizer=OptimizerConfig(momentum=0.5)),
        RunConfig(data=DataConfig("diabetes", n_samples=999)),
        RunConfig(optimizer=replace(FAST, plateau_factor=0.9)),
    ):
        assert in_words(config).count(",") == 2


def test_every_setting_has_words_of_its_own():
    for config in (RunConfig(), DIGITS):
        words = {name: setting_in_words(name) for name in dotted(json.loads(config.to_json()))}
        assert len(set(words.values())) == len(words), "each names one setting"
        assert not [told for told in words.values() if set(told) & set("._")]
    assert setting_in_words("optimizer.learning_rate") == "learning rate"
    assert setting_in_words("optimizer.name") == "optimiser", "a name of what?"


def test_what_a_sweep_varies_can_be_left_out():
    config = RunConfig(max_epochs=60, schedule=InversePower(0.99, power=0.75, update_after_step=100, update_every=1))
    assert in_words(config, but=["optimizer.learning_rate", "schedule"]) == "regression, Adam plateau, 60 epochs"
    assert in_words(config, but=["schedule.power"]) == "regression, Adam 0.001 plateau, inverse power 0.99, 60 epochs"
    assert "inverse power, power 0.75" in in_words(config, but=["schedule.beta", "max_epochs"])


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (Constant(0.9999995), "constant 0.9999995"),
        (InversePower(0.999, inv_gamma=2.0, power=0.75), "inverse power 0.999, inv gamma 2, power 0.75"),
        (PowerFunction(sigma_rel=0.1), "power function, sigma rel 0.1"),
        (UniformAverage(update_after_step=50), "running mean"),
    ],
)
def test_schedules_in_words(schedule, words):
    assert schedule_in_words(schedule) == words


def test_runs_that_differ_in_one_setting_have_different_names():
    one = RunConfig(optimizer=replace(FAST, name="sgd"), max_epochs=60)
    changes = [
        {},
        {"data": DataConfig("friedman1")},
        {"data": DataConfig(noise=3.0)},
        {"network": NetworkConfig(dropout=0.0)},
        {"network": NetworkConfig(())},
        {"optimizer": replace(one.optimizer, momentum=0.5)},
        {"optimizer": replace(one.optimizer, batch_size=8)},
        {"optimizer": replace(one.optimizer, rate_rule="cosine")},
        {"schedule": Constant(0.9, update_after_step=100)},
        {"schedule": InversePower(0.999, update_after_step=0, update_every=1)},
        {"schedule": InversePower(0.999, update_after_step=100, update_every=2)},
        {"schedule": InversePower(0.999, power=1.0, update_after_step=100, update_every=1)},
        {"stopping": NEVER},
        {"stopping": StoppingConfig("original")},
        {"stopping": StoppingConfig("ema", 7)},
        {"seed": 1},
        {"max_epochs": 61},
    ]
    names = [in_words(replace(one, **change)) for change in changes]
    for (change, name), (other_change, other) in combinations(zip(changes, names, strict=True), 2):
        assert name != other, (change, other_change)


@given(st.text(max_size=60), st.lists(st.integers(1, 4096), max_size=16))
def test_names_are_one_bounded_line_whatever_people_type(target, widths):
    data = DataConfig("csv", path="/x", target=target) if target else DataConfig()
    name = in_words(RunConfig(data=data, network=NetworkConfig(tuple(widths), activation="gelu")))
    assert "\n" not in name
    assert len(name) < 200


@dataclass(frozen=True)
class Spoken(RunConfig):
    task_name = "a task with words of its own"
    told_by_subject = ("data.noise",)

    @property
    def subject(self):
        return f"noise of {self.data.noise:g}"


def test_a_task_can_say_its_data_itself():
    assert in_words(Spoken(data=DataConfig(noise=2.5))).startswith("noise of 2.5, Adam 0.001 plateau, inverse power")
    assert in_words(Spoken(data=DataConfig(noise=2.5))).count("noise") == 1


def test_cutting_keeps_the_beginning():
    assert cut("abcdef", 4) == "abc…"
    assert cut("abcd", 4) == "abcd"
