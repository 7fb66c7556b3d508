"""What the public names say of a wrong argument: a sentence that names it, before anything is done."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import emacore
from emacore import (
    EMA,
    Averages,
    BiasCorrected,
    Coefficients,
    Constant,
    ExponentialRamp,
    InversePower,
    LastFiles,
    PowerFunction,
    RateDecay,
    RationalWarmup,
    Recorder,
    RunConfig,
    Snapshots,
    Trajectory,
    UniformAverage,
    Window,
    answers,
    averaging_function,
    diagnose,
    effective_count,
    mean_age,
    merge,
    open_checkpoints,
    per_seed,
    replicate,
    train,
    verdict,
    with_half_life,
    with_relative_width,
)
from emacore.averaging.code import merge_from_code, merge_to_code
from emacore.averaging.solving import at_batch_size, at_length
from emacore.replay.rows import Rows
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import NetworkConfig, OptimizerConfig, StoppingConfig

#: What is no setting of that kind, whatever its range.
WRONG = {
    "number": ["1", None, [1], np.array([1.0, 2.0]), float("nan"), 1j, torch.tensor(1.0), True],
    "whole": ["1", None, [1], np.array([1, 2]), 1.5, float("nan"), True, -1],
    "call": ["1", None, [1], 1.5, True, 1, -2],
    "module": [5, "x", None, nn.Linear, object(), [nn.Linear(1, 1)], {}, torch.zeros(1)],
    "other": [5, object(), [1], {1}],
    "schedule": [0.9, "Constant(beta=0.9)", Constant, Window(3), {}, [Constant(0.9)]],
    "named": [5, "x", [Constant(0.9)], Constant(0.9), [("a", Constant(0.9))]],
    "names": [5, "weight", [5], [None]],
    "text": [5, "x", [1]],
    "name": [5, None, "", "a/b", "..", "a\0b"],
    "seeds": [5, "12", None, [1.0], ["a"], [-1], [1, 1], [], np.array(3)],
    "word": [5, "x", None, np.array([1, 2]), ["windows"]],
    "numbers": ["ab", None, ["a"], [None], object()],
    "table": [5, None, {}, [1], pd.DataFrame({"a": [1]})],
}
#: Those that may be left out by None.
OPTIONAL = {
    "names",
    "gamma",
    "sigma_rel",
    "steps",
    "accumulator_dtype",
    "device",
    "update_model_with_ema_every",
    "bema",
    "settings",
    "measure",
    "configured",
    "last",
    "at",
}
MODEL, SCHEDULES = nn.Linear(2, 1), {"a": Constant(0.9)}
CASES = [
    (Constant, "beta", "number"),
    (InversePower, "beta", "number"),
    (InversePower, "inv_gamma", "number"),
    (InversePower, "power", "number"),
    (InversePower, "min_value", "number"),
    (BiasCorrected, "beta", "number"),
    (RationalWarmup, "beta", "number"),
    (ExponentialRamp, "tau", "number"),
    (PowerFunction, "gamma", "number"),
    (PowerFunction, "sigma_rel", "number"),
    *(
        (family, name, "whole")
        for family in (Constant, UniformAverage)
        for name in ("update_every", "update_after_step")
    ),
    (Window, "size", "whole"),
    (lambda schedule: Window(3, schedule), "schedule", "schedule"),
    (RateDecay, "steps", "whole"),
    (RateDecay, "shape", "word"),
    (LastFiles, "files", "whole"),
    (lambda schedule: LastFiles(3, schedule), "schedule", "schedule"),
    (lambda values: Coefficients(values), "values", "numbers"),
    (lambda calls: Constant().decays(calls), "num_steps", "whole"),
    (lambda calls: Constant().at(calls), "calls", "numbers"),
    (lambda schedule: with_half_life(schedule, 100, 5), "schedule", "schedule"),
    (lambda steps: with_half_life(Constant(), 100, steps), "steps", "number"),
    (lambda steps: with_half_life(Constant(), steps, 5), "num_steps", "whole"),
    (lambda schedule: with_relative_width(schedule, 100, 0.1), "schedule", "schedule"),
    (lambda width: with_relative_width(Constant(), 100, width), "width", "number"),
    *((call, "decays", "numbers") for call in (mean_age, effective_count)),
    *((lambda step, call=call: call([0.5], step), "step", "call") for call in (mean_age, effective_count)),
    (EMA, "model", "module"),
    (lambda schedule: EMA(MODEL, schedule=schedule), "schedule", "schedule"),
    (lambda names: EMA(MODEL, names=names), "names", "names"),
    (lambda names: EMA(MODEL, ignore_names=names), "ignore_names", "names"),
    (lambda names: EMA(MODEL, forward_method_names=names), "forward_method_names", "names"),
    (lambda dtype: EMA(MODEL, accumulator_dtype=dtype), "accumulator_dtype", "word"),
    (lambda device: EMA(MODEL, device=device), "device", "word"),
    (lambda every: EMA(MODEL, update_model_with_ema_every=every), "update_model_with_ema_every", "whole"),
    (lambda share: EMA(MODEL, update_model_with_ema_beta=share), "update_model_with_ema_beta", "number"),
    (lambda other: EMA(MODEL).copy_to(other), "module", "module"),
    (lambda optimizer: EMA(MODEL).attach(optimizer), "optimizer", "module"),
    (lambda module: Averages(module, SCHEDULES), "module", "module"),
    (lambda schedules: Averages(MODEL, schedules), "schedules", "named"),
    (lambda schedule: Averages(MODEL, {"a": schedule}), "schedules", "schedule"),
    (lambda names: Averages(MODEL, SCHEDULES, names=names), "names", "names"),
    (lambda other: Averages(MODEL, SCHEDULES).copy_to(other, "a"), "module", "module"),
    (lambda bema: Averages(MODEL, SCHEDULES).copy_to(MODEL, "a", bema), "bema", "number"),
    (lambda optimizer: Averages(MODEL, SCHEDULES).attach(optimizer), "optimizer", "module"),
    (lambda module: Recorder(module, "new"), "module", "module"),
    (lambda every: Recorder(MODEL, "new", every), "every", "whole"),
    (lambda names: Recorder(MODEL, "new", names=names), "names", "names"),
    (lambda most: Recorder(MODEL, "new", most_bytes=most), "most_bytes", "number"),
    (lambda settings: Recorder(MODEL, "new", settings=settings), "settings", "other"),
    (lambda module: Snapshots(module, "new", 2), "module", "module"),
    (lambda every: Snapshots(MODEL, "new", every), "every", "whole"),
    (lambda kind: Snapshots(MODEL, "new", 2, kind), "kind", "word"),
    (lambda widths: Snapshots(MODEL, "new", 2, "power", sigma_rel=widths), "sigma_rel", "numbers"),
    (lambda names: Snapshots(MODEL, "new", 2, names=names), "names", "names"),
    (lambda optimizer: Snapshots(MODEL, "other", 2).attach(optimizer), "optimizer", "module"),
    (Trajectory, "rows", "module"),
    (lambda measure: Trajectory(rows(), measure), "measure", "text"),
    (lambda schemes: Trajectory(rows(), sum).replay(schemes), "schemes", "named"),
    (lambda scheme: Trajectory(rows()).state(scheme), "scheme", "word"),
    (lambda scheme: Trajectory(rows()).decays(scheme, 1), "schedule", "schedule"),
    (lambda module: Trajectory(rows()).load_into(module, Constant()), "module", "module"),
    (lambda at: Trajectory(rows()).average([Constant()], at), "at", "numbers"),
    (averaging_function, "schedule", "schedule"),
    (lambda module: averaging_function(Constant(), module), "module", "other"),
    (open_checkpoints, "path", "other"),
    (lambda path: merge(path, SCHEDULES, "new"), "path", "other"),
    (diagnose, "path", "other"),
    (lambda configured: diagnose("stored", configured), "configured", "schedule"),
    (lambda merges: merge("stored", merges, "new"), "merges", "named"),
    (lambda scheme: merge("stored", {"a": scheme}, "new"), "scheme", "word"),
    (lambda name: merge("stored", {name: Window(2)}, "new"), "name", "name"),
    (lambda widths: merge("stored", SCHEDULES, "new", sigma_rel=widths), "sigma_rel", "numbers"),
    (lambda last: merge("stored", SCHEDULES, "new", last=last), "last", "whole"),
    (RunConfig, "seed", "whole"),
    (RunConfig, "max_epochs", "whole"),
    (RunConfig, "schedule", "schedule"),
    *((RunConfig, part, "module") for part in ("data", "network", "optimizer", "stopping")),
    *((call, "config", "module") for call in (train, lambda config: replicate(config, [1]))),
    (lambda size: train(RunConfig(max_epochs=1), record="new", record_bytes=size), "record_bytes", "number"),
    (lambda seeds: replicate(RunConfig(max_epochs=1), seeds), "seeds", "seeds"),
    (lambda further: replicate(RunConfig(max_epochs=1), [1], schedules=further), "schedules", "named"),
    (per_seed, "history", "table"),
    (answers, "table", "table"),
    (verdict, "comparison", "table"),
]


def rows():
    return Rows.of([{"weight": torch.ones(2)}, {"weight": torch.zeros(2)}])


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stored").mkdir()
    for step in (100, 200):
        torch.save({"weight": torch.full((2,), float(step))}, tmp_path / "stored" / f"step_{step}.pt")
    return tmp_path


@pytest.mark.parametrize(("call", "argument", "kind"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_a_wrong_argument_gives_a_sentence_that_names_it(elsewhere, call, argument, kind):
    for value in WRONG[kind]:
        if value is None and argument in OPTIONAL:
            continue
        with pytest.raises((TypeError, ValueError), match=argument) as told:
            call(**{argument: value}) if isinstance(call, type) else call(value)
        assert " " in str(told.value), value
        assert not {path.name for path in elsewhere.iterdir()} & {"new", "new.pt"}, value  # nothing was begun


def test_every_public_name_is_among_these():
    source = Path(__file__).read_text()
    cases = source[source.index("CASES = [") : source.index("def rows()")]
    asked = {name for name in emacore.__all__ if re.search(rf"\b{name}\b", cases)}
    assert set(emacore.__all__) - asked <= {"Schedule", "open_run"}  # a base class; a folder, as Trajectory.open's


NUMPY = [np.int8, np.int16, np.uint8, np.int64]


@pytest.mark.parametrize("kind", NUMPY)
def test_whole_numbers_of_numpy_are_taken_as_python_s_own(elsewhere, kind):
    """Narrow ones would overflow, and JSON takes none."""
    five = kind(5)
    assert merge_from_code(merge_to_code(Window(five))) == Window(5)
    for one in (Window(five), RateDecay(steps=five), LastFiles(five), Coefficients([five, 1])):
        assert repr(one) == repr(merge_from_code(merge_to_code(one)))
    config = RunConfig(
        seed=five,
        max_epochs=five,
        data=DataConfig(n_samples=kind(100), n_features=kind(12), n_informative=five, random_state=five),
        network=NetworkConfig(widths=[five, kind(100)], dropout=np.float32(0.25)),
        optimizer=OptimizerConfig(
            learning_rate=np.float32(0.5), batch_size=kind(100) // kind(2), plateau_patience=five
        ),
        stopping=StoppingConfig(patience=five),
        schedule=InversePower(update_every=kind(100)),
    )
    assert RunConfig.from_json(config.to_json()) == config
    with Recorder(MODEL, "recorded", five) as recorder:
        for _ in range(200):
            recorder.record()
    assert recorder.size(kind(100)) == 128 + 20 * 12
    assert Trajectory.open("recorded").every == 5
    snapshots = Snapshots(MODEL, "snapshots", five)
    for _ in range(10):
        snapshots.update()
    torch.save(snapshots.state_dict(), "state.pt")
    assert torch.load("state.pt", weights_only=True)["every"] == 5
    assert open_checkpoints("snapshots").steps.tolist() == [5, 10]
    ema = EMA(nn.Linear(2, 1), schedule=Constant(0.9), update_model_with_ema_every=five)
    for _ in range(300):
        ema.update()
    calls = np.array([0, 5, 100], dtype=kind)
    for schedule in (InversePower(update_every=300), Constant(update_after_step=1000), UniformAverage()):
        assert np.array_equal(schedule.at(calls), schedule.at([0, 5, 100]))
        assert with_half_life(Constant(), kind(100), five) == with_half_life(Constant(), 100, 5)
    with pytest.raises(ValueError, match="at must be rising rows"):
        Trajectory(rows()).average([Constant()], np.array([1, 0], dtype=kind))
    with pytest.raises(ValueError, match="steps must be 2 rising numbers"):
        Rows(np.ones((2, 2)), np.array([5, 3], dtype=kind), {"weight": torch.ones(2)})


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_numbers_of_numpy_are_reckoned_with_in_double_precision(kind):
    assert with_half_life(Constant(), 5000, kind(250)) == with_half_life(Constant(), 5000, 250.0)
    assert at_batch_size(Constant(0.9999), kind(8)) == at_batch_size(Constant(0.9999), 8.0)
    assert at_length(Constant(0.9999), kind(8)) == at_length(Constant(0.9999), 8.0)
    assert with_relative_width(PowerFunction(gamma=1), 5000, kind(0.125)) == with_relative_width(
        PowerFunction(gamma=1), 5000, 0.125
    )
