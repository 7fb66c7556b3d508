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

from emacore.averaging.schedules import (
    BiasCorrected,
    Constant,
    ExponentialRamp,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
    from_code,
    to_code,
)
from emacore.averaging.weights import average
from emacore.snippets import snippets
from emacore.training.trajectory import scheme_from_code

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
    ExponentialRamp(0.9, 10.0),
    PowerFunction(sigma_rel=0.1),
    UniformAverage(),
    UniformAverage(update_after_step=21, update_every=5),
]
#: What each library cannot do; everything else must run.
NOT_THERE = {
    "emacore": (),
    "torch AveragedModel": (),
    "ema-pytorch": (BiasCorrected, RationalWarmup, ExponentialRamp, PowerFunction),
    "timm": (BiasCorrected, RationalWarmup, ExponentialRamp, PowerFunction),
    "diffusers": (BiasCorrected, ExponentialRamp, PowerFunction),
    "optax": (InversePower, RationalWarmup, ExponentialRamp, PowerFunction, UniformAverage),
}


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


@pytest.mark.parametrize("library", NOT_THERE)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=to_code)
def test_the_code_averages_as_the_schedule_says(schedule, library):
    snippet = next(s for s in snippets(schedule) if s.library == library)
    if isinstance(schedule, NOT_THERE[library]):
        assert snippet.code is None
        assert snippet.note.startswith("Not possible there")
        return
    values, found = run(snippet)
    decays = schedule.decays(STEPS)
    if "first move" in snippet.note.lower() and schedule.start < STEPS:
        decays[schedule.start] = schedule.rule(schedule.start)
    if "2/11" in snippet.note:
        decays[schedule.start] = 2 / 11
    expected = average(values, decays, initial=0.0)
    assert found == pytest.approx(expected[-1], rel=1e-4, abs=1e-5)


def test_settings_that_freeze_ema_pytorch_are_refused():
    for schedule in (InversePower(beta=1.0), Constant(1.0)):
        assert next(s for s in snippets(schedule) if s.library == "ema-pytorch").code is None


@pytest.mark.parametrize("schedule", SCHEDULES, ids=to_code)
def test_code_round_trip(schedule):
    assert from_code(to_code(schedule)) == schedule


def test_code_leaves_defaults_out():
    assert to_code(InversePower()) == "InversePower()"
    assert to_code(InversePower(0.99, update_every=1)) == "InversePower(beta=0.99, update_every=1)"
    assert to_code(PowerFunction(sigma_rel=0.1)) == "PowerFunction(sigma_rel=0.1)"


@pytest.mark.parametrize(
    "text",
    ["", "3", "Nope()", "Constant(0.9)", "Constant(beta=2)", "Constant(beta=open('x'))", "Constant(**{})", "(" * 999],
)
def test_other_code_is_refused(text):
    with pytest.raises(ValueError, match="not a schedule"):
        from_code(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Constant(beta=0.9, beta=0.8)", "beta is given twice"),
        ("Constant(beta=0.9, update_every=2, beta=0.9)", "beta is given twice"),
        ("Constant(0.9, beta=0.8)", "not of the form"),
        ("Constant(family='InversePower')", "no setting 'family'"),
        ("Constant(family='Constant', family='Constant')", "family is given twice"),
        ("PowerFunction(gamma=1, gamma=2)", "gamma is given twice"),
        ("Window(3, schedule=Constant(beta=0.9, beta=0.8))", "beta is given twice"),
        ("Window(size=3, size=4)", "not a schedule"),
        ("Window(3, size=4)", "not a schedule"),
        ("Window(3, Constant(beta=0.9), schedule=Constant(beta=0.8))", "not a schedule"),
    ],
)
def test_a_setting_given_twice_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        scheme_from_code(text)
