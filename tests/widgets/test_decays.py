"""The frames of the Decay schedule page: a curve for each mark of each handle, equal to that of its value."""

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

from emacore.averaging import views
from emacore.averaging.code import from_code, scheme_from_code, scheme_to_code, to_code
from emacore.averaging.families import Constant
from emacore.averaging.schedules import FAMILIES
from emacore.averaging.weights import weights
from emacore.averaging.windows import Window, decays_at_end
from emacore.widgets import decays
from emacore.widgets.decays import NOW, QUANTITIES, at_step, decay_tables, weight_tables
from emacore.widgets.moving import MOST_BYTES, schedule_settings
from tests.helpers import FUZZED

PINS = (
    "Constant(beta=0.99)",
    "Window(size=100)",
    "InversePower(power=0.9)",
    "PowerFunction(sigma_rel=0.1)",
    "BiasCorrected(beta=0.9999)",
)


#: What a pin may be typed or linked as: a call of any name with any values, one in another, or mere letters.
ODD = "0 1 -1 2 200 0.5 .999 1e-300 1e308 1e999 -1e999 nan None True 1j '' 'x' [] {} (1,) 1_0"
VALUES = some.one_of(
    some.sampled_from(ODD.split()),
    some.sampled_from(["9" * 400, f"1{'0' * 5000}", "1 if 1 else 2", "x", "--1", "1+1", "*a", "'\\ud800'"]),
    some.integers().map(str),
    some.floats().map(str),
)
NAMES = some.sampled_from([*FAMILIES, "Window", "Coefficients", "print", "__import__"])
SETTINGS = [setting.name for family in FAMILIES.values() for setting in fields(family)]
KEYS = some.sampled_from([*SETTINGS, "size", "schedule", "files", "self"])
CALLS = some.recursive(
    VALUES,
    lambda inner: some.builds(
        lambda name, values, keys: f"{name}({', '.join([*values, *(f'{key}={one}' for key, one in keys.items())])})",
        NAMES,
        some.lists(inner, max_size=1),
        some.dictionaries(KEYS, inner, max_size=3),
    ),
    max_leaves=4,
)
TYPED = some.one_of(CALLS, CALLS, some.text(max_size=30), some.text("()[]=,.1eConstant", max_size=40))


@settings(max_examples=2 * FUZZED, deadline=None, database=None)
@given(TYPED)
@example("(" * 5000)
@example("Window(size=" * 300 + "1" + ")" * 300)
def test_pins_at_random_are_drawn_or_refused_in_a_sentence(text):
    for parse in (scheme_from_code, from_code):
        try:
            scheme = parse(text)
        except ValueError:
            continue
        assert scheme_from_code(scheme_to_code(scheme)) == scheme
        assert (weight_tables({text: scheme}, 50)["weight"] >= 0).all()
        if not isinstance(scheme, Window):
            assert decay_tables({text: scheme}, 50)["decay"].between(0, 1).all()
        assert views.figures(scheme, 50)


@some.composite
def schedules(draw):
    family = draw(some.sampled_from(list(FAMILIES.values())))
    values = {control.name: control.at(draw(some.floats(0, 1))) for control in family.controls}
    after, every = draw(some.integers(0, 300)), draw(some.integers(1, 20))
    return family(**values, update_after_step=after, update_every=every)


def missed(line, steps, truth, where, scale, ends, x_scale="linear"):
    """The most by which a drawn line misses the truth, as a share of an axis that cuts both off at its ends."""
    on_y, on_x = (np.log if kind == "log" else np.asarray for kind in (scale, x_scale))
    low, high = (float(on_y(end)) for end in ends)
    drawn = np.interp(on_x(where), on_x(steps), on_y(line))
    return np.abs(np.clip(drawn, low, high) - np.clip(on_y(truth), low, high)).max() / (high - low)


SCALES = some.sampled_from(["linear", "log"])


@settings(max_examples=25)
@given(schedules(), some.integers(3, 3000), some.sampled_from(list(QUANTITIES)), SCALES, some.data())
def test_a_frame_of_decays_is_the_schedule_of_its_mark(schedule, num_steps, quantity, x_scale, data):
    marks = tuple((s.key, s.marks) for s in schedule_settings(schedule, num_steps))
    code, (column, _, scale) = to_code(schedule), QUANTITIES[quantity]
    if not marks:
        return
    ends = decays.decay_ends(code, num_steps, quantity, marks)
    ends = ends if ends[0] < ends[1] else (0.1, 1.0)
    frames = decays.decay_frames(code, num_steps, quantity, x_scale, marks, ends)
    assert frames.size < MOST_BYTES / 2
    key, values = data.draw(some.sampled_from(marks))
    mark = data.draw(some.integers(0, len(values) - 1))
    whole = views.decay_table(schedule.varied(**{key: values[mark]}), num_steps)
    first = 1 if x_scale == "log" else 0
    where, truth = whole["step"] + first, whole[column]
    line, steps = frames.moving[key][column][:, mark], frames.rows["step"].to_numpy()
    shown = np.isfinite(line)
    own = dict(zip(where, truth, strict=True))
    assert [own[step] for step in steps[shown]] == line[shown].tolist()
    seen = np.isfinite(truth) & ((truth > 0) | (scale == "linear"))
    assert seen.any() == shown.any()
    if seen.any():
        assert missed(line[shown], steps[shown], truth[seen], where[seen], scale, ends, x_scale) <= 0.005


def test_the_decays_of_each_mark_are_computed_once_for_both_pictures_and_can_be_left_before_each(monkeypatch):
    left = []
    monkeypatch.setattr(decays, "leave_if_run_anew", lambda: left.append(1))
    schedule, num_steps = Constant(beta=0.98, update_every=3), 1237
    code, marks = to_code(schedule), (("beta", (0.9, 0.98, 0.999)),)
    moved = decays.decays_of_marks(schedule, views.acting_calls(num_steps, schedule))
    decays.decay_frames(code, num_steps, "1 - decay", "log", marks, (1e-4, 1.0), moved)
    decays.weight_frames(code, num_steps, num_steps - 1, "linear", marks, (), (), (0.0, 0.1), moved)
    assert len(left) == 3


#: The shortest average, averages that begin late or move seldom, and a cap that acts from some call on.
LONG = (
    "Constant(beta=0.9)",
    "Constant(beta=0.9999, update_after_step=1000)",
    "Constant(beta=0.99, update_every=3)",
    "InversePower(beta=0.999)",
    "PowerFunction(sigma_rel=0.1)",
    "UniformAverage(update_after_step=270000)",
    "Window(size=70)",
    "Window(size=20000, schedule=Constant(beta=0.999))",
)


@pytest.mark.parametrize("code", LONG)
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_frames_of_a_long_run_show_every_call(code, scale):
    steps, percents, scheme = 300_000, (1, 2, 10, 50, 92, 100), scheme_from_code(code)
    windowed = isinstance(scheme, Window)
    settings = [] if windowed else schedule_settings(scheme, 4_000_000)
    marks = tuple((one.key, one.marks) for one in settings)
    now, pins = ("Constant()", ((code, code),)) if windowed else (code, ())
    weighed = decays._drawn_weights(code, steps - 1)["weight"]
    ends = decays._weight_ends(weighed, scale, steps)
    found = decays.weight_frames(now, steps, steps - 1, scale, marks, percents, pins, ends)
    shown = [one for one in found if windowed <= (one.rows["curve"].iloc[0] == code)]
    assert {key for one in shown for key in one.moving} == {"at", *dict(marks)}
    for frames in shown:
        for key, values in [*marks, ("at", percents)]:
            for mark, value in enumerate(values if key in frames.moving else ()):
                other = scheme if key == "at" else scheme.varied(**{key: value})
                after = at_step(steps, value) if key == "at" else steps - 1
                calls = views.acting_calls(after + 1, other)
                truth = views.weights_at(other, after, calls)
                seen = truth > 0 if scale == "log" else np.isfinite(truth)
                line = frames.moving[key]["weight"][:, mark]
                there = np.isfinite(line)
                across = frames.rows["step"].to_numpy()[there]
                assert missed(line[there], across, truth[seen], calls[seen], scale, ends) <= 0.005
    if not windowed and marks:
        calls = views.acting_calls(steps, scheme)
        for quantity, (column, _, y_scale) in QUANTITIES.items():
            ends = decays.decay_ends(code, steps, quantity, marks)
            frames = decays.decay_frames(code, steps, quantity, scale, marks, ends)
            first = 1 if scale == "log" else 0
            for key, values in marks:
                for mark, value in enumerate(values):
                    truth = views.decays_at(scheme.varied(**{key: value}), calls, column)
                    line = frames.moving[key][column][:, mark]
                    there, seen = np.isfinite(line), np.isfinite(truth) & ((truth > 0) | (y_scale == "linear"))
                    across = frames.rows["step"].to_numpy()[there]
                    assert missed(line[there], across, truth[seen], calls[seen] + first, y_scale, ends, scale) <= 0.005


def test_of_a_long_run_each_mark_is_computed_once(monkeypatch):
    left = []
    monkeypatch.setattr(decays, "leave_if_run_anew", lambda: left.append(1))
    marks = (("beta", (0.9, 0.98, 0.999)),)
    decays.weight_frames("Constant(beta=0.98)", 5_000_000, 4_999_999, "linear", marks, (), (), (0.0, 0.1))
    assert len(left) == 3


@settings(max_examples=25)
@given(schedules(), some.integers(3, 3000), some.integers(1, 100), SCALES, some.data())
@example(Constant(beta=0.9, update_every=7), 1697, 100, "linear", None)
@example(Constant(beta=0.9, update_after_step=30), 2153, 1, "linear", None)
def test_a_frame_of_weights_is_the_average_of_its_mark(schedule, num_steps, percent, scale, data):
    marks = tuple((s.key, s.marks) for s in schedule_settings(schedule, num_steps))
    step, percents = at_step(num_steps, percent), (1, 20, 40, 60, 80, 100)
    ends = (1e-6 / num_steps, 1.0) if scale == "log" else (0.0, 3 / num_steps)
    pins = tuple((text, text) for text in PINS)
    code = to_code(schedule)
    found = decays.weight_frames(code, num_steps, step, scale, marks, percents, pins, ends)
    assert sum(frames.size for frames in found) < MOST_BYTES / 2
    drawn = [
        (frames, key, mark)
        for frames in found
        for key, columns in frames.moving.items()
        for mark in range(columns["weight"].shape[1])
    ]
    for frames, key, mark in drawn if data is None else data.draw(some.lists(some.sampled_from(drawn), max_size=9)):
        name = frames.rows["curve"].iloc[0]
        if key == "at":
            scheme = schedule if name == NOW else scheme_from_code(name)
            after = at_step(num_steps, percents[mark])
        else:
            scheme, after = schedule.varied(**{key: dict(marks)[key][mark]}), step
        truth = weights(decays_at_end(scheme, after + 1))
        line = frames.moving[key]["weight"][:, mark]
        steps = frames.rows["step"].to_numpy().astype(int)
        shown = np.isfinite(line)
        np.testing.assert_array_equal(line[shown], truth[steps[shown]])
        calls = views.acting_calls(after + 1, scheme)
        seen = calls[truth[calls] > 0] if scale == "log" else calls
        if len(seen):
            assert missed(line[shown], steps[shown], truth[seen], seen, scale, ends) <= 0.005


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("num_steps", [5_000, 50_000])
def test_all_frames_of_a_page_are_small(name, num_steps):
    schedule = FAMILIES[name](sigma_rel=0.1) if name == "PowerFunction" else FAMILIES[name]()
    code = to_code(schedule)
    marks = tuple((s.key, s.marks) for s in schedule_settings(schedule, num_steps))
    pins = tuple((text, text) for text in PINS)
    found = decays.weight_frames(
        code, num_steps, num_steps - 1, "log", marks, tuple(range(2, 101, 2)), pins, (1e-6 / num_steps, 1.0)
    )
    size = sum(frames.size for frames in found)
    if marks:
        size += decays.decay_frames(code, num_steps, "memory", "log", marks, (0.1, 1e6)).size
    assert 0 < size < 0.9 * MOST_BYTES  # the tables that stand still are on top


@pytest.mark.parametrize("code", [*PINS, "InversePower(beta=0.999, update_every=7)", "UniformAverage()"])
def test_of_a_long_run_few_calls_are_kept_and_they_are_the_runs_own(code):
    steps, scheme = 1_000_000, scheme_from_code(code)
    kept = decays._drawn_weights(code, steps - 1)
    whole = weight_tables({"one": scheme}, steps - 1).set_index("step")["weight"]
    assert len(kept) <= decays.DRAWN_CALLS
    assert kept["weight"].tolist() == whole[kept["step"]].tolist()
    assert kept["weight"].max() == whole.max()
    assert kept.memory_usage().sum() < 2**20
    if not isinstance(scheme, Window):
        kept = decays._drawn_decays(code, steps)
        truth = decay_tables({"one": scheme}, steps).set_index("step")
        assert len(kept) <= decays.DRAWN_CALLS
        for column in truth.columns.drop("curve"):
            np.testing.assert_array_equal(kept[column], truth[column][kept["step"]])
        assert {kept["step"].iloc[0], kept["step"].iloc[-1]} == {truth.index[0], truth.index[-1]}
