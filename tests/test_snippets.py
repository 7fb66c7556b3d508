"""Every snippet is run against the library it is for, and its average compared with ours."""

import ast
import contextlib
import copy
import importlib.util
import sys
import types
from importlib.metadata import distribution

import numpy as np
import pytest
import torch
from torch import nn

from emacore.averaging.code import to_code
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
from emacore.snippets import snippets

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
    Constant(1.0, update_after_step=9),
    UniformAverage(),
    UniformAverage(update_after_step=21, update_every=5),
]
LIBRARIES = ("emacore", "ema-pytorch", "timm", "diffusers", "torch AveragedModel", "optax")


def load_file(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def libraries(monkeypatch):
    """timm and diffusers without what they need for images and downloads: the very files of their averages."""
    timm = types.ModuleType("timm")
    timm.utils = load_file("timm_model_ema", distribution("timm").locate_file("timm/utils/model_ema.py"))
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.utils", timm.utils)
    source = distribution("diffusers").locate_file("diffusers/training_utils.py").read_text()
    found = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == "EMAModel")
    diffusers, training = types.ModuleType("diffusers"), types.ModuleType("diffusers.training_utils")
    vars(training).update(torch=torch, copy=copy, contextlib=contextlib, is_transformers_available=lambda: False)
    exec("from __future__ import annotations\n" + ast.get_source_segment(source, found), vars(training))
    diffusers.training_utils = training
    monkeypatch.setitem(sys.modules, "diffusers", diffusers)
    monkeypatch.setitem(sys.modules, "diffusers.training_utils", training)


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


@pytest.mark.parametrize("schedule", SCHEDULES, ids=to_code)
def test_no_library_is_said_to_be_unable(schedule):
    assert [snippet.library for snippet in snippets(schedule)] == list(LIBRARIES)
    assert not any("not possible" in snippet.note.lower() for snippet in snippets(schedule))


@pytest.mark.parametrize("every", [1, 5, 20])
@pytest.mark.parametrize("start", [0, 400])
def test_karras_ema_comes_to_agree_with_the_power_function(every, start):
    schedule = PowerFunction(sigma_rel=0.1, update_after_step=start, update_every=every)
    own, theirs = (weights(decays) for decays in (schedule.decays(4000), karras_decays(schedule, 4000)))
    assert np.abs(own - theirs).sum() < 0.005 * every
    snippet = in_library("ema-pytorch", schedule)
    assert f"gamma={every * (schedule.exponent + 1) - 1!r}, update_every={every}" in snippet.code
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
