"""Every snippet is run against the library it is for, and its average compared with ours."""

import ast
import os
import re
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
from torch import nn

from emacore.averaging.code import from_code, to_code
from emacore.averaging.families import (
    BiasCorrected,
    Constant,
    ExponentialRamp,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
)
from emacore.averaging.weights import average, weights
from emacore.snippets import explicit_code, snippets

STEPS = 60
SCHEDULES = [
    InversePower(0.9, 2.0, 0.7, 0.2, update_after_step=10, update_every=1),
    InversePower(0.95, 3.0, 0.9, update_after_step=7, update_every=5),
    InversePower(),
    Constant(0.8),
    Constant(0.9, update_after_step=12, update_every=5),
    BiasCorrected(0.9),
    BiasCorrected(0.8, update_after_step=9, update_every=4),
    RationalWarmup(0.9),
    RationalWarmup(0.6, update_after_step=8, update_every=4),
    RationalWarmup(1.0),
    ExponentialRamp(0.9, 10.0),
    ExponentialRamp(0.9, 5.0, update_after_step=9, update_every=4),
    PowerFunction(sigma_rel=0.1),
    PowerFunction(gamma=1.5, update_after_step=11, update_every=5),
    BiasCorrected(1.0),
    BiasCorrected(0.999999),
    Constant(1.0, update_after_step=9),
    UniformAverage(),
    UniformAverage(update_after_step=21, update_every=5),
]
LIBRARIES = ("emacore", "ema-pytorch", "timm", "diffusers", "torch AveragedModel", "torchtitan", "optax")
#: Those with a trainer of their own, whose every run takes a while; some are run by the tests of emacore.integrations.
TRAINERS = ("Lightning", "Transformers", "accelerate", "Keras")
READ_ONLY = ("composer",)
FEW = [SCHEDULES[i] for i in (1, 3, 4)]


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    """torchtitan needs accelerators, so that its trainer has a stand-in."""
    torchtitan, trainer = types.ModuleType("torchtitan"), types.ModuleType("torchtitan.trainer")
    trainer.Trainer = StandIn
    monkeypatch.setitem(sys.modules, "torchtitan", torchtitan)
    monkeypatch.setitem(sys.modules, "torchtitan.trainer", trainer)


class StandIn:
    """What torchtitan's Trainer has that matters here: the parts of its model, and one step of training them."""

    def __init__(self, model, train_on):
        self.model_parts, self.train_on = [model], train_on

    def train_step(self, data_iterator):
        self.train_on(next(data_iterator))


def run(snippet):
    """Run the code over made-up steps; return what it averaged and the average."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)  # the weights before training
    values = np.random.default_rng(0).normal(size=STEPS)

    def train_on(batch):
        nn.init.constant_(model.weight, values[batch])
        if snippet.library == "optax":
            import jax.numpy

            return jax.numpy.float32(values[batch])
        return None

    names = {"model": model, "batches": range(STEPS), "train_on": train_on}
    exec(snippet.code, names)
    match snippet.library:
        case "emacore" | "ema-pytorch":
            result = names["ema"].ema_model.weight
        case "timm":
            result = names["ema"].module.weight
        case "diffusers":
            names["ema"].copy_to(model.parameters())
            result = model.weight
        case "torch AveragedModel":
            result = names["averaged"].module.weight
        case "optax":
            result = names["average"]
        case "torchtitan":
            trainer, data = names["AveragingTrainer"](model, train_on), iter(range(STEPS))
            for _ in range(STEPS):
                trainer.train_step(data)
            (result,) = trainer.average
    return values, result.item()


def in_library(library, schedule):
    return next(snippet for snippet in snippets(schedule) if snippet.library == library)


def karras_decays(schedule, steps):
    """Written from the source of KarrasEMA: its call c copies at first, and has (1 - 1 / (c + 2)) ** (gamma + 1)."""
    decays = np.ones(steps)
    decays[: schedule.start + 1 : schedule.update_every] = 0
    for call in range(schedule.update_every, steps - schedule.start, schedule.update_every):
        exponent = schedule.update_every * (schedule.exponent + 1)
        decays[schedule.start + call] = (1 - 1 / (call + 2)) ** exponent
    return decays


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=to_code)
def test_the_code_averages_as_the_schedule_says(schedule, library):
    snippet = in_library(library, schedule)
    values, found = run(snippet)
    decays = schedule.decays(STEPS)
    if "first move" in snippet.note.lower() and isinstance(schedule, InversePower) and schedule.start < STEPS:
        decays[schedule.start] = schedule.rule(schedule.start)
    if "2/11" in snippet.note:
        decays[schedule.start] = 2 / 11
    if "KarrasEMA" in snippet.code:
        decays = karras_decays(schedule, STEPS)
    expected = average(values, decays, initial=0.0)
    assert found == pytest.approx(expected[-1], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("library", [library for library in LIBRARIES if library != "optax"])
@pytest.mark.parametrize(
    "family",
    [InversePower, Constant, BiasCorrected, RationalWarmup, UniformAverage],
    ids=lambda family: family.__name__,
)
def test_before_the_start_it_is_a_copy_or_the_note_says_what_it_is(family, library):
    snippet = in_library(library, family(update_after_step=STEPS + 10, update_every=1))
    values, found = run(snippet)
    waits = "weights of before the training, not a copy" in snippet.note
    assert found == pytest.approx(0.0 if waits else values[-1], rel=1e-5)


@pytest.mark.parametrize("schedule", [Constant(0.9), BiasCorrected(0.9)], ids=to_code)
def test_in_optax_there_is_no_average_before_the_start(schedule):
    names = {"batches": range(5), "train_on": lambda batch: 0.5}
    exec(in_library("optax", replace(schedule, update_after_step=9)).code, names)
    assert names["average"] is None


@pytest.mark.parametrize(
    ("steps", "often"), [(100, "every update."), (600, "every 6 updates."), (10**6, "every 10,000 u")]
)
def test_how_often_snapshots_are_kept_is_told(steps, often):
    notes = [one.note for one in snippets(PowerFunction(sigma_rel=0.1), steps) if "PostHocEMA" in one.library]
    assert often in notes[0]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=to_code)
def test_no_library_is_said_to_be_unable(schedule):
    found = [snippet.library for snippet in snippets(schedule)]
    post_hoc = {"ema-pytorch PostHocEMA"} if isinstance(schedule, PowerFunction) else set()
    assert set(found) == {*LIBRARIES, *TRAINERS, *READ_ONLY, *post_hoc}
    assert len(found) == len(set(found))
    assert not any("not possible" in snippet.note.lower() for snippet in snippets(schedule))
    for snippet in snippets(schedule):
        ast.parse(snippet.code)
        assert ("not run" in snippet.note) == (snippet.library in READ_ONLY)
        for who, how in re.findall(r"([\w-]+) has no such rule of its own; (?:this )?(\w+) takes", snippet.note):
            assert who == snippet.library
            assert how in snippet.code.lower()


#: Arguments by which the memory would change without a word, of each class that a snippet makes.
EXPLICIT = {
    "EMA(": {"update_every", "update_after_step", "beta", "power", "inv_gamma", "min_value"},
    "KarrasEMA(": {"update_every"},
    "PostHocEMA(": {"update_every", "checkpoint_every_num_steps", "sigma_rels", "checkpoint_dtype"},
    "ModelEmaV3(": {"decay", "min_decay", "use_warmup", "update_after_step"},
    "EMAModel(": {"decay", "min_decay", "use_ema_warmup", "update_after_step"},
    "EMAWeightAveraging(": {"decay", "update_every_n_steps", "update_starting_at_step", "use_buffers"},
    "AdamW(": {"use_ema", "ema_momentum", "ema_overwrite_frequency"},
}


@pytest.mark.parametrize("schedule", SCHEDULES, ids=to_code)
def test_every_argument_that_matters_is_written_out(schedule):
    for snippet in snippets(schedule):
        for node in ast.walk(ast.parse(snippet.code)):
            if not isinstance(node, ast.Call):
                continue
            name, given = ast.unparse(node.func).rpartition(".")[2] + "(", {keyword.arg for keyword in node.keywords}
            if name[:-1] == type(schedule).__name__:
                assert {"update_after_step", "update_every"} <= given, snippet
            if name not in EXPLICIT or not given or "schedule" in given:
                continue
            wanted = EXPLICIT[name]
            if snippet.library == "composer":
                wanted = {"half_life", "smoothing", "ema_start", "update_interval"}
            assert wanted <= given, snippet


def test_a_loop_asks_for_the_step_only_where_not_each_one_counts():
    for schedule, asked in ((Constant(), []), (Constant(update_every=10), ["% 10 == 0"])):
        codes = [snippet.code for snippet in snippets(schedule)]
        found = {re.search(r"% \d+ == 0", code)[0] for code in codes if "% " in code}
        assert sorted(found) == asked


def test_a_schedule_is_written_with_its_defaults():
    assert explicit_code(Constant()) == "Constant(beta=0.999, update_after_step=0, update_every=1)"
    assert explicit_code(Constant(), timing=False) == "Constant(beta=0.999)"
    assert explicit_code(Constant(update_every=10), timing=False) == "Constant(beta=0.999, update_every=10)"
    of_width = "PowerFunction(sigma_rel=0.1, update_after_step=0, update_every=1)"
    assert explicit_code(PowerFunction(sigma_rel=0.1)) == of_width
    for schedule in SCHEDULES:
        found, given = from_code(explicit_code(schedule)).to_dict(), schedule.to_dict()
        assert found.pop("family") == given.pop("family")
        assert found.keys() == given.keys()
        assert [v for v in found.values() if v is not None] == pytest.approx(
            [v for v in given.values() if v is not None], rel=1e-5
        )


def test_numbers_have_the_digits_that_matter():
    for schedule in (
        Constant(0.99979999999999991),
        InversePower(0.9999, 1 / 3, 2 / 3),
        PowerFunction(sigma_rel=0.1),
        BiasCorrected(1 - 1.23456789e-7),
    ):
        for snippet in snippets(schedule):
            for node in ast.walk(ast.parse(snippet.code)):
                if isinstance(node, ast.Constant) and isinstance(node.value, float) and node.value != 0.9999999999:
                    rest = min(abs(node.value), abs(1 - node.value)) or node.value
                    assert len(f"{rest:.9g}".split("e")[0].replace(".", "").strip("0")) <= 6, (snippet, node.value)
    assert "decay=0.9998," in in_library("timm", Constant(0.99979999999999991)).code
    assert "step_size=0.0001)" in in_library("optax", Constant(0.9999)).code


@pytest.mark.parametrize("schedule", FEW, ids=to_code)
def test_keras_averages_as_the_schedule_says(schedule, monkeypatch):
    monkeypatch.setitem(os.environ, "KERAS_BACKEND", "jax")
    import keras

    data = np.random.default_rng(0).normal(size=(STEPS, 2, 4, 1)).astype(np.float32)

    def made():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
        model.compile(optimizer=keras.optimizers.AdamW(learning_rate=0.0001), loss="mse")
        return model

    reference, values = made(), []
    for x, y in data:
        reference.train_on_batch(x, y)
        values.append(reference.get_weights()[0].item())
    model = made()
    snippet = in_library("Keras", schedule)
    exec(snippet.code, {"model": model, "batches": ((x, y) for x, y in data)})
    expected = average(values, schedule.decays(STEPS))[-1]
    assert ("ema_momentum" in snippet.code) == (schedule == Constant(0.8))
    assert abs(expected - values[-1]) > 1e-5
    assert model.get_weights()[0].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "width"),
    [(PowerFunction(sigma_rel=0.07), 0.07), (PowerFunction(gamma=5.0, update_after_step=40, update_every=4), None)],
    ids=str,
)
def test_an_average_is_made_afterwards_of_snapshots(schedule, width, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    steps = 2000
    snippet = next(one for one in snippets(schedule, steps) if one.library == "ema-pytorch PostHocEMA")
    model = nn.Linear(1, 1, bias=False)
    values = 1 + np.cumsum(np.random.default_rng(0).normal(size=steps)) / 10

    def train_on(batch):
        nn.init.constant_(model.weight, values[batch])

    names = {"model": model, "batches": range(steps), "train_on": train_on}
    exec(snippet.code, names)
    kept = {int(path.stem.split(".")[1]) for path in (tmp_path / "post-hoc-ema-checkpoints").glob("*.pt")}
    assert 60 <= len(kept) <= 130
    expected = average(values, schedule.decays(steps))[-1]
    other = average(values, PowerFunction(sigma_rel=0.1).decays(steps))[-1]
    found = names["averaged"].ema_model.weight.item()
    assert abs(found - expected) < 0.05 * abs(other - expected) + 0.01 * np.std(values)
    assert width is None or f"sigma_rel={width}" in snippet.code


@pytest.mark.parametrize("every", [1, 5, 20])
@pytest.mark.parametrize("start", [0, 400])
def test_karras_ema_comes_to_agree_with_the_power_function(every, start):
    schedule = PowerFunction(sigma_rel=0.1, update_after_step=start, update_every=every)
    own, theirs = (weights(decays) for decays in (schedule.decays(4000), karras_decays(schedule, 4000)))
    assert np.abs(own - theirs).sum() < 0.005 * every
    snippet = in_library("ema-pytorch", schedule)
    gamma = float(snippet.code.split("gamma=")[1].split(",")[0])
    assert gamma == pytest.approx(every * (schedule.exponent + 1) - 1, rel=1e-5)
    assert f"update_every={every})" in snippet.code
    assert "Its n is one more" in snippet.note
    assert ("raw calls" in snippet.note) == (every > 1)


def test_settings_of_1_are_possible_in_ema_pytorch():
    frozen = in_library("ema-pytorch", Constant(1.0, update_after_step=20))
    values, found = run(frozen)
    assert found == pytest.approx(values[20])
    schedule = InversePower(beta=1.0, update_every=1, update_after_step=0)
    snippet = in_library("ema-pytorch", schedule)
    decays = schedule.decays(STEPS)
    decays[schedule.start] = schedule.rule(schedule.start)
    values, found = run(snippet)
    assert found == pytest.approx(average(values, decays)[-1], rel=1e-4, abs=1e-5)
    assert "beta = 1 would freeze" in snippet.note
