"""A person's own family, in one file: the example of docs/contributing.md, in all that takes families."""

import importlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from torch import nn, ones

from emacore import EMA
from emacore.averaging import schedules
from emacore.averaging.code import from_code, scheme_from_code, to_code
from emacore.averaging.families import Constant
from emacore.averaging.remarks import remarks
from emacore.averaging.schedules import BETA, FAMILIES, Control, Schedule, register, schedule_from_dict
from emacore.averaging.solving import final_width, with_half_life, with_relative_width
from emacore.averaging.weights import average
from emacore.cli.commands import cli
from emacore.replay.atlas import atlas, axes, partners
from emacore.replay.measure import OneByOne
from emacore.replay.recording import Recorder, read_recording
from emacore.replay.trajectory import Trajectory
from emacore.snippets import snippets
from emacore.widgets.schedules import state_of
from tests.averaging.conftest import SOLVABLE
from tests.pages import conftest as pages
from tests.pages.conftest import drawn, home, open_page, texts  # noqa: F401  fixtures of pages

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """The folder of the file in the documentation."""
    section = (ROOT / "docs" / "contributing.md").read_text().split("## Add a family")[1].split("\n## ")[0]
    (tmp_path / "cosine_ramp.py").write_text(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1])
    return tmp_path


@pytest.fixture
def family(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(schedules, "FAMILIES", FAMILIES)
    known = dict(FAMILIES)
    yield importlib.import_module("cosine_ramp").CosineRamp
    FAMILIES.clear()
    FAMILIES.update(known)
    sys.modules.pop("cosine_ramp")


def by_hand(num_steps, beta, ramp, start=0, every=1):
    decays = np.ones(num_steps)
    for call in range(0, num_steps, every):
        n = (call - start) // every + 1
        decays[call] = 0 if call <= start else min((1 - np.cos(np.pi * min(n / ramp, 1))) / 2, beta)
    return decays


def test_its_decays_and_when_it_reaches_one(family):
    schedule = family(0.9, ramp=50, update_after_step=6, update_every=3)
    np.testing.assert_allclose(schedule.decays(300), by_hand(300, 0.9, 50, 6, 3), atol=1e-15)
    rule = np.where(np.arange(300) % 3 == 0, schedule.decays(300), 0)
    for level in (1e-3, 0.3, 0.6, 0.899, 0.9):
        assert schedule.reaches(level) == np.flatnonzero(rule >= level)[0]
    assert schedule.reaches(0.91) is None


def test_code_and_json_both_ways(family):
    schedule = family(beta=0.99, ramp=200.0, update_every=2)
    assert to_code(schedule) == "CosineRamp(beta=0.99, ramp=200.0, update_every=2)"
    assert from_code(to_code(schedule)) == schedule == schedule_from_dict(json.loads(json.dumps(schedule.to_dict())))
    assert scheme_from_code("Window(size=9, schedule=CosineRamp(ramp=5.0))").schedule == family(ramp=5.0)
    with pytest.raises(ValueError, match="CosineRamp has no setting 'power'; it has .*ramp"):
        from_code("CosineRamp(power=1)")


@pytest.mark.parametrize("tuned", ["beta", "ramp"])
@pytest.mark.parametrize("every", [1, 5])
def test_the_solvers_find_what_they_are_asked(family, monkeypatch, tuned, every):
    monkeypatch.setattr(family, "tuned", tuned)
    schedule = family(0.97, ramp=1500.0 / every, update_after_step=20, update_every=every)
    solved = with_half_life(schedule, 2000, 60)
    assert schedules.final_half_life(solved, 2000) == pytest.approx(60, rel=1e-5)
    assert solved.varied(ramp=schedule.ramp, beta=0.97) == schedule
    assert (solved.ramp == schedule.ramp) == (tuned == "beta")
    if tuned == "ramp":  # the cap was in the way
        assert solved.beta == pytest.approx(max(0.97, 0.5 ** (every / 60)), rel=1e-9)
    solved = with_relative_width(schedule, 2000, 0.02)
    assert final_width(solved, 2000) == pytest.approx(0.02, rel=1e-5)
    with pytest.raises(ValueError, match=f"no {tuned} of CosineRamp gives a relative width of 0.4 .* within reach"):
        with_relative_width(schedule, 2000, 0.4)
    if tuned == "beta":
        with pytest.raises(ValueError, match="a half-life of 100 steps .*; half-lives up to .* are within reach"):
            with_half_life(family(0.97, ramp=1e5, update_every=every), 2000, 100)


@pytest.mark.parametrize("schedule", SOLVABLE, ids=repr)
def test_where_there_is_no_formula_the_search_finds_what_it_says(schedule, monkeypatch):
    by_formula = with_half_life(schedule, 5000, 60)
    monkeypatch.setattr(type(schedule), "with_decay", Schedule.with_decay)
    searched = with_half_life(schedule, 5000, 60)
    assert getattr(searched, schedule.tuned) == pytest.approx(getattr(by_formula, schedule.tuned), rel=1e-4)
    assert getattr(searched, "beta", 0) == pytest.approx(getattr(by_formula, "beta", 0), rel=1e-9)


def test_remarks_are_its_own_and_those_of_all(family):
    told = remarks(family(0.99, ramp=9000.0), 5000)
    assert "beta = 0.99 is never reached in this run" in told[0]
    assert "it would be from step" in told[0]
    assert told[1] == "The ramp has 9000 moves, this run 5,000."
    assert remarks(family(0.9, ramp=100.0), 5000) == []


def test_the_axes_of_an_atlas(family, tmp_path):
    module = nn.Linear(1, 1, bias=False)
    values = np.random.default_rng(0).normal(size=40)
    with Recorder(module, tmp_path / "run") as recorder:
        for value in values:
            module.weight.data.fill_(value)
            recorder.record()
    measure = OneByOne(lambda state: float(state["weight"].item() ** 2))
    trajectory = Trajectory(read_recording(tmp_path / "run"), measure)
    assert list(axes(family)) == ["ramp", "beta", "half_life", "update_after_step", "relative_width", "window"]
    assert partners("relative_width", family) == ["ramp", "update_after_step", "window"]
    schedule = family(0.9, ramp=10.0)
    for x, y in combinations(axes(family), 2):
        if y not in partners(x, family):
            continue
        cells = atlas(trajectory, schedule, x, y)
        for k in (0, len(cells["x"]) // 3, len(cells["x"]) - 1):
            if cells["code"][k] is None:
                continue
            scheme = scheme_from_code(cells["code"][k])
            assert trajectory.final({"a": scheme})["loss"][0] == pytest.approx(cells["loss"][k], rel=1e-4)
            if not isinstance(scheme, family):
                continue
            for axis, setting in ((x, cells["x"][k]), (y, cells["y"][k])):
                if axis == "half_life":
                    assert scheme.beta == pytest.approx(0.5 ** (1 / setting), rel=2e-3)
                else:
                    shown = final_width(scheme, 40) if axis == "relative_width" else getattr(scheme, axis)
                    assert shown == pytest.approx(setting, rel=2e-3)


@pytest.mark.parametrize("library", ["emacore", "torch AveragedModel"])
def test_snippets(family, library):
    schedule = family(0.9, ramp=12.0, update_after_step=3)
    snippet = next(snippet for snippet in snippets(schedule) if snippet.library == library)
    model, values = nn.Linear(1, 1, bias=False), np.random.default_rng(1).normal(size=50)
    names = {
        "model": model,
        "batches": range(50),
        "train_on": lambda step: model.weight.data.copy_(ones(1) * values[step]),
    }
    exec(snippet.code, names)
    module = names["ema"].ema_model if library == "emacore" else names["averaged"].module
    assert "from cosine_ramp import CosineRamp" in snippet.code
    assert module.weight.item() == pytest.approx(average(values, by_hand(50, 0.9, 12, 3))[-1], rel=1e-5)


def test_no_library_lacks_it(family):
    assert all("CosineRamp" in snippet.code for snippet in snippets(family()))


def test_its_controls_on_the_page(family, open_page):  # noqa: F811
    settings = {"family": "Cosine ramp", "ramp": "200", "beta": "0.99", "update_after_step": "0"}
    app = open_page("decay_schedule", quantity="decay", x="linear", **settings)
    assert app.get_by_key("ramp").label == "ramp (moves)"
    assert "*Cosine ramp* is near BYOL's" in app.get_by_key("family").help
    line = drawn(app)[0].set_index("step")["decay"]
    np.testing.assert_allclose(line, by_hand(5000, 0.99, 200)[line.index], atol=1e-12)
    mine = open_page("for_my_run", own="true", run_steps="5000", want_half_life="5.0", **settings)
    solved = next(from_code(code.value) for code in mine.code if code.value.startswith("CosineRamp("))
    assert schedules.final_half_life(solved, 5000) == pytest.approx(250, rel=1e-5)
    next(button for button in mine.button if button.label == "Use these settings").click()
    pages.run(mine)
    assert mine.get_by_key("beta").value == pytest.approx(solved.beta)
    app.get_by_key("ramp").set_value(8000.0)
    assert "The ramp has 8000 moves, this run 5,000." in texts(pages.run(app))
    next(button for button in app.button if button.label == "Reset").click()
    assert pages.run(app).get_by_key("family").value == "Inverse power"
    assert state_of(family(ramp=70.0))["ramp"] == 70
    with pytest.raises(ValueError, match="ramp = 0.5 is outside the slider's range"):
        state_of(family(ramp=0.5))


def test_the_command_line_has_it_by_the_variable(family, folder, tmp_path):
    arguments = ["schedule", "CosineRamp(beta=0.9, ramp=20)", "--steps", "60"]
    environment = {
        **os.environ,
        "EMACORE_FAMILIES": "cosine_ramp",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
    }
    command = [sys.executable, "-m", "emacore", *arguments]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    table = np.genfromtxt(found.stdout.splitlines(), delimiter=",", names=True)
    np.testing.assert_allclose(table["decay"], by_hand(60, 0.9, 20), atol=1e-15)
    assert CliRunner().invoke(cli, arguments).stdout == found.stdout


def test_a_variable_that_names_no_module_is_told_as_that(tmp_path):
    environment = {**os.environ, "EMACORE_FAMILIES": " nowhere", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "emacore", "schedule", "Constant(beta=0.9)"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert found.stderr.startswith(
        "Error: EMACORE_FAMILIES names the module 'nowhere', which is not on the Python path"
    )
    assert found.stderr.count("\n") == 1
    (tmp_path / "mine.py").write_text("import nowhere")
    environment |= {"EMACORE_FAMILIES": "mine", "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "No module named 'nowhere'" in found.stderr
    assert "EMACORE_FAMILIES" not in found.stderr.splitlines()[-1]  # it is the module's own


OTHERS = """
from dataclasses import dataclass

import numpy as np

from emacore.averaging.schedules import Control, Schedule, register
from emacore.checks import check_unit, check_whole


@register
@dataclass(frozen=True)
class Between(Schedule):
    low: float = 0.5
    high: float = 0.99
    span: int = 1000

    tuned = "high"
    controls = (
        Control("low", 0.0, 0.999, 0.5, "Where it begins.", axis=(0.0, 0.95)),
        Control("high", 0.001, 0.99999, 0.99, "Where it ends.", scale="log(1 - value)", axis=(0.5, 0.9999)),
        Control("span", 1, 1_000_000, 1000, "Moves between.", scale="log", axis=(10, 10_000)),
    )

    def __post_init__(self):
        super().__post_init__()
        check_unit("low", self.low)
        check_unit("high", self.high)
        check_whole("span", self.span, 1)
        if not self.low < self.high:
            raise ValueError(f"high must be above low = {self.low!r}, got {self.high!r}")

    def decays_of_moves(self, calls):
        return self.low + (self.high - self.low) * np.minimum(self.move_number(calls) / self.span, 1)


@register
@dataclass(frozen=True)
class Tail(Schedule):
    count: int = 50

    tuned = "count"
    controls = (Control("count", 1, 1_000_000, 50, "Moves that count.", scale="log", axis=(2, 2000)),)

    def __post_init__(self):
        super().__post_init__()
        check_whole("count", self.count, 1)

    def decays_of_moves(self, calls):
        return 1 - 1 / np.minimum(self.move_number(calls), self.count)
"""


@pytest.fixture
def others(tmp_path, monkeypatch):
    """Families with a setting that bounds another one, and with whole numbers."""
    (tmp_path / "other_families.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path)
    known = dict(FAMILIES)
    yield importlib.import_module("other_families")
    FAMILIES.clear()
    FAMILIES.update(known)
    sys.modules.pop("other_families")


@pytest.mark.parametrize(("low", "every"), [(0.5, 1), (0.9, 2), (0.97, 1)])
def test_the_solvers_look_where_the_family_can_be(others, low, every):
    schedule = others.Between(low=low, span=50, update_every=every)
    solved = with_half_life(schedule, 5000, 60)
    assert solved == replace(schedule, high=solved.high)
    assert solved.high == pytest.approx(0.5 ** (every / 60), rel=1e-6)
    assert final_width(with_relative_width(schedule, 5000, 0.02), 5000) == pytest.approx(0.02, rel=1e-5)
    least = -every / np.log2(low)  # the half-life of what it begins with
    assert with_half_life(schedule, 5000, 1.02 * least).high == pytest.approx(low ** (1 / 1.02), rel=1e-6)
    with pytest.raises(ValueError, match=f"no high of Between gives .* half-lives from {least:.3g} to"):
        with_half_life(schedule, 5000, 0.9 * least)


@pytest.mark.parametrize("steps", [30, 60, 333])
def test_a_whole_number_is_solved_for_as_nearly_as_it_can_be(others, steps):
    solved = with_half_life(others.Tail(update_after_step=11), 5000, steps)
    assert isinstance(solved.count, int)
    near = [abs(schedules.final_half_life(others.Tail(solved.count + k), 5000) - steps) for k in (-1, 0, 1)]
    assert min(near) == near[1] < 0.02 * steps
    assert final_width(with_relative_width(others.Tail(), 5000, 0.05), 5000) == pytest.approx(0.05, rel=0.02)


def test_cells_that_the_family_refuses_are_empty(others, tmp_path):
    module = nn.Linear(1, 1, bias=False)
    with Recorder(module, tmp_path / "run") as recorder:
        for value in np.random.default_rng(0).normal(size=30):
            module.weight.data.fill_(value)
            recorder.record()
    trajectory = Trajectory(
        read_recording(tmp_path / "run"), OneByOne(lambda state: float(state["weight"].item() ** 2))
    )
    schedule = others.Between(low=0.3, high=0.4, span=20)
    for x, y in combinations(axes(others.Between), 2):
        if y not in partners(x, others.Between):
            continue
        cells = atlas(trajectory, schedule, x, y)
        assert any(cells["code"]), (x, y)
        assert np.array_equal(cells["code"] != None, np.isfinite(cells["loss"]))  # noqa: E711
        if {x, y} == {"low", "high"}:
            assert np.array_equal(cells["code"] != None, cells["x"] < cells["y"])  # noqa: E711


@pytest.mark.parametrize("page", ["decay_schedule", "for_my_run", "low_pass_filter", "train", "evidence"])
def test_controls_of_whole_numbers_and_of_settings_that_bound_each_other(others, page, open_page):  # noqa: F811
    further = {"own": "true", "run_steps": "5000"} if page == "for_my_run" else {}
    for settings in ({"family": "Tail", "count": "7"}, {"family": "Between", "low": "0.9", "span": "50"}):
        assert not open_page(page, **settings, **further).error
    if page == "train":
        app = open_page(page, family="Tail", count="2.5")
        assert any("2.5" in one.value for one in app.warning)
        assert app.select_slider(key="count").value == 50
    if page in ("decay_schedule", "train"):
        app = open_page(page, family="Between", low="0.9", high="0.5")
        assert app.error[0].value == (
            "Between cannot have these settings together: high must be above low = 0.9, got 0.5."
        )


@dataclass(frozen=True)
class Half(Schedule):
    share: float = 0.5

    tuned = "share"

    def decays_of_moves(self, calls):
        return np.full(calls.shape, self.share)


def variant(**changes):
    return dataclass(frozen=True)(type("Half", (Half,), {"__annotations__": {}, "__module__": "elsewhere", **changes}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"label": "Constant"}, "a family labelled 'Constant' already"),
        ({"controls": (Control("speed", 0.0, 1.0, 0.5, ""),)}, "has no setting 'speed'"),
        ({"controls": (Control("other", 0.0, 1.0, 0.5, "", setting="share"),)}, "no attribute 'other'"),
        ({"tuned": "beta"}, "no setting 'beta', which its solvers would vary"),
        ({"__qualname__": "Constant", "__name__": "x"}, None),
    ],
)
def test_what_contradicts_itself_is_not_registered(changes, named):
    known = dict(FAMILIES)
    try:
        if named is None:
            other = type("Constant", (Half,), {"__annotations__": {}, "__module__": "elsewhere"})
            with pytest.raises(ValueError, match="a family named Constant already, in emacore.averaging.families"):
                register(dataclass(frozen=True)(other))
        else:
            with pytest.raises(ValueError, match=named):
                register(variant(**changes))
        assert known == FAMILIES
    finally:
        FAMILIES.clear()
        FAMILIES.update(known)


def test_a_shared_control_is_the_same_one():
    other = Control("beta", 0.0, 0.9, 0.5, "")
    clashing = type("Half", (Constant,), {"__annotations__": {}, "controls": (other,), "label": "Half"})
    with pytest.raises(ValueError, match="another family has a control 'beta' with other properties"):
        register(dataclass(frozen=True)(clashing))
    with pytest.raises(TypeError, match="must be a frozen dataclass that derives from Schedule"):
        register(type("Plain", (Half,), {}))
    assert BETA in FAMILIES["Constant"].controls


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Control("a", 1.0, 2.0, 3.0, ""), "a: its default 3.0 must be from 1.0 to 2.0"),
        (lambda: Control("a", 0.0, 2.0, 1.0, "", scale="log"), "a: a logarithmic scale must begin above 0"),
        (lambda: Control("a", 0.0, 1.0, 1.0, "", scale="log(1 - value)"), "must end below 1"),
        (lambda: Control("a", 0.0, 1.0, 1.0, "").on_axis(9), "a is no axis"),
    ],
)
def test_a_control_that_cannot_be_drawn_is_refused(build, named):
    with pytest.raises(ValueError, match=named):
        build()


@pytest.mark.parametrize("wrong", [1.5, -0.1, float("nan")])
def test_a_rule_that_gives_no_decay_is_told_before_anything_is_averaged(wrong):
    class Wrong(Constant):
        def decays_of_moves(self, calls):
            return np.where(calls > 2, wrong, 0.5)

    with pytest.raises(ValueError, match=rf"the rule of Wrong must give decays in \[0, 1\], but call 3 has {wrong}"):
        Wrong().decays(5)
    ema = EMA(nn.Linear(1, 1), schedule=Wrong())
    with pytest.raises(ValueError, match="the rule of Wrong must give decays"):
        ema.update()  # decays are asked for ahead
