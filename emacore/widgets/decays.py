"""The two pictures of the Decay schedule page, decays over the steps and what each step weighs, with their controls."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from emacore.averaging import views
from emacore.averaging.code import from_code, scheme_from_code, scheme_to_code, to_code
from emacore.averaging.schedules import Schedule
from emacore.averaging.weights import weights
from emacore.averaging.windows import Scheme
from emacore.charts.figure import Figure
from emacore.charts.lines import lines
from emacore.charts.moving import MOST_HELD, Frames, Handle, View, line_frames
from emacore.charts.thin import Floats, Scale, axis_ends, roomy_ends
from emacore.formatting import number, plain
from emacore.widgets.moving import HandledSetting, marks_for, schedule_settings, show_moving
from emacore.widgets.page import BOUND, leave_if_run_anew

#: The current curve, beside those that are pinned.
NOW = "now"
#: What each choice shows: column, title, scale.
QUANTITIES: dict[str, tuple[str, str, Scale]] = {
    "1 - decay": ("one_minus_decay", "1 - decay (share taken in per move)", "log"),
    "memory": ("half_life_steps", "memory (half-life, steps)", "log"),
    "decay": ("decay", "decay (share kept per move)", "linear"),
}
#: How much of the height of a linear axis of weights the highest drawn curve takes, as a share.
_FILLED = 0.85


#: At most this many calls of a run are drawn, and kept: on an axis of a thousand pixels more of them look the same.
#: All of a million steps would take 30 MB a curve, and many times that while they are put together.
DRAWN_CALLS = 20_000
#: In frames of the averages after many steps, at least this many for each of those.
_FEWEST_CALLS = 2_000


@st.cache_data(show_spinner=False)
def _drawn_decays(code: str, num_steps: int) -> pd.DataFrame:
    schedule = from_code(code)
    calls = views.sampled_calls(num_steps, schedule, DRAWN_CALLS)
    columns = {column: views.decays_at(schedule, calls, column) for column, _, _ in QUANTITIES.values()}
    return pd.DataFrame({"step": calls, **columns})


@st.cache_data(show_spinner=False)
def _drawn_weights(code: str, step: int) -> pd.DataFrame:
    scheme = scheme_from_code(code)
    table, calls = views.weight_table(scheme, step), views.sampled_calls(step + 1, scheme, DRAWN_CALLS)
    return pd.DataFrame({"step": calls, "weight": table["weight"][np.searchsorted(table["step"], calls)]})


def decay_tables(curves: Mapping[str, Scheme], num_steps: int) -> pd.DataFrame:
    """The decays of all curves but windows, which have none, one table below the other; ``curve`` has the name."""
    schedules = {name: curve for name, curve in curves.items() if isinstance(curve, Schedule)}
    return _joined({name: pd.DataFrame(views.decay_table(curve, num_steps)) for name, curve in schedules.items()})


def weight_tables(curves: Mapping[str, Scheme], step: int) -> pd.DataFrame:
    """What each step weighs in the average after ``step``, of all curves, one table below the other."""
    return _joined({name: pd.DataFrame(views.weight_table(curve, step)) for name, curve in curves.items()})


def _joined(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, names=["curve", None]).reset_index("curve").reset_index(drop=True)


def at_step(num_steps: int, percent: float) -> int:
    """The step at ``percent`` of a run, from 1 to the last."""
    return max(1, round((num_steps - 1) * percent / 100))


class Look(NamedTuple):
    """How both pictures are drawn: what of the decays, on which scales, and the weights after which step.

    ``percent`` is that step as a share of the run, ``None`` where the run is too short for a choice.
    """

    quantity: str
    x_scale: Scale
    weight_scale: Scale
    percent: float | None
    step: int


def look_controls(num_steps: int) -> Look:
    """The controls of both pictures, in a row."""
    with st.container(horizontal=True):
        quantity = st.segmented_control(
            "Show",
            list(QUANTITIES),
            default=next(iter(QUANTITIES)),
            key="quantity",
            required=True,
            help="What each move takes in, how long it is remembered (the half-life that the decay of a step has), or "
            "the decay itself, which looks like 1 where it matters.",
            **BOUND,
        )
        x_scale: Scale = st.segmented_control(
            "Steps",
            ["log", "linear"],
            default="log",
            key="x",
            required=True,
            help="log gives the first steps, in which a warm-up bends, as much room as all later ones; linear shows "
            "how long each part of the run really is.",
            **BOUND,
        )
        weight_scale: Scale = st.segmented_control(
            "Weights",
            ["linear", "log"],
            default="linear",
            key="w",
            required=True,
            help="linear shows where the weight lies; on log what fades at a constant rate is a straight line, and the "
            "last trace of old steps is seen.",
            **BOUND,
        )
        if num_steps <= 2:
            return Look(quantity, x_scale, weight_scale, None, num_steps - 1)
        percent = st.number_input(
            "After step (% of the run)",
            1,
            100,
            100,
            key="at",
            width=190,
            help="The lower picture and the figures are of the average after this step. Earlier in the run it has "
            "fewer steps, and more of the start. A handle below the pictures moves it, too.",
            **BOUND,
        )
    return Look(quantity, x_scale, weight_scale, percent, at_step(num_steps, percent))


def show_figures(own: views.Figures, *, at_end: bool) -> None:
    """The figures of the current average, side by side."""
    first, second, third, fourth = st.columns(4)
    first.metric("Mean age (steps)", plain(own.mean_age), help="How many steps old the weights in it are on average.")
    second.metric(
        "Counts as (snapshots)",
        number(own.effective_count),
        help="A plain mean of this many snapshots averages independent noise as well: 1 / sum of squared weights.",
    )
    third.metric(
        "Width (% of the run)" if at_end else "Width (% of the steps so far)",
        number(100 * own.relative_width, 3),
        help="Standard deviation of its weights in time: EDM2's relative width.",
    )
    fourth.metric(
        "Start still in it (%)",
        plain(100 * own.start_share, 2),
        help="The weight of the copy that it began with. Much of it means a memory too long for the run.",
    )


def show_decays(
    curves: Mapping[str, Scheme], colours: Mapping[str, str], num_steps: int, look: Look, *, alt_text: str
) -> Callable[[], None]:
    """Both pictures with a handle for each setting of the current schedule, and one for the step; to be finished as
    :func:`emacore.widgets.moving.show_moving` says."""
    quantity, x_scale, weight_scale, percent, step = look
    schedule = curves[NOW]
    assert isinstance(schedule, Schedule)
    code = to_code(schedule)
    settings = schedule_settings(schedule, len(views.acting_calls(num_steps, schedule)))
    marks = tuple((setting.key, setting.marks) for setting in settings)
    ends = decay_ends(code, num_steps, quantity, marks)
    schedules = {name: curve for name, curve in curves.items() if isinstance(curve, Schedule)}
    decays = _joined({name: _drawn_decays(to_code(curve), num_steps) for name, curve in schedules.items()})
    weighed = _joined({name: _drawn_weights(scheme_to_code(curve), step) for name, curve in curves.items()})
    column, title, scale = QUANTITIES[quantity]
    one = 1 if x_scale == "log" else 0
    beside = curves if len(curves) > 1 else ()  # a window weighs, but has no decays
    decay_view = View(
        lines(
            decays.assign(step=decays["step"] + one),
            x="step",
            y=column,
            series="curve",
            colours=colours,
            x_title="step (counted from 1)" if one else "step",
            y_title=title,
            x_scale=x_scale,
            y_scale=scale,
            height=200,
            beside=beside,
        ),
        ends={"y": _around(decays[column], scale, ends)},
    )
    weight_ends = _weight_ends(weighed["weight"], weight_scale, num_steps)
    weight_view = View(
        lines(
            weighed,
            x="step",
            y="weight",
            series="curve",
            colours=colours,
            x_title="step whose weights are averaged",
            y_title="weight in the average",
            y_scale=weight_scale,
            height=150,
            beside=beside,
        ),
        ends={"x": (0.0, float(num_steps - 1)), "y": weight_ends},
    )
    if percent is not None:
        most = marks_for(sum(len(views.acting_calls(num_steps, curve)) for curve in curves.values()), 2)
        percents = tuple(range(2, 101, 2 if most > 50 else 10))
        settings.append(
            HandledSetting("at", "after step (% of the run)", (1, *percents), percent, lambda p: f"{p:g} %")
        )

    def frames_of(handles: Sequence[Handle]) -> list[tuple[Frames, ...]]:
        values = {handle.key: handle.values for handle in handles}
        at = values.pop("at", ())
        own = tuple(values.items())
        pins = tuple((name, scheme_to_code(curve)) for name, curve in curves.items() if name != NOW)
        calls = views.acting_calls(num_steps, schedule)
        # Of a long run the upper picture needs few of them, and the lower one can keep none.
        moved = decays_of_marks(schedule, calls) if len(calls) <= DRAWN_CALLS else None
        return [
            (decay_frames(code, num_steps, quantity, x_scale, own, decay_view.ends["y"], moved),) if own else (),
            weight_frames(code, num_steps, step, weight_scale, own, at, pins, weight_ends, moved),
        ]

    shown = [decay_view, weight_view]
    if num_steps > DRAWN_CALLS:
        shown = [view._replace(figure=_of_drawn(view.figure)) for view in shown]
    return show_moving("decays", settings, shown, frames_of, alt_text=alt_text)


def _of_drawn(figure: Figure) -> Figure:
    """Of a long run the sentence on what is left out counts only the values that are drawn: say so."""
    return figure._replace(left_out=figure.left_out.replace(" values of ", " drawn values of "))


Marks = tuple[tuple[str, tuple[float, ...]], ...]
Ends = tuple[float, float]
#: Decays by a handle's key and the value of its mark.
Moved = Callable[[str, float], Floats]


def decays_of_marks(schedule: Schedule, calls: NDArray[np.int64]) -> Moved:
    """What gives the decays of a schedule with one setting moved, at some calls that are not skipped.

    It keeps them, as far as they fit into memory, for both pictures are made of them.
    """

    @lru_cache(maxsize=max(1, MOST_HELD // calls.nbytes))
    def moved(key: str, value: float) -> Floats:
        leave_if_run_anew()
        return schedule.varied(**{key: value}).at(calls)

    return moved


@st.cache_data(max_entries=64, show_spinner=False)
def decay_ends(code: str, num_steps: int, quantity: str, marks: Marks) -> Ends:
    """The powers of ten between which the current curve is on a log axis while a handle moves."""
    schedule, (column, _, scale) = from_code(code), QUANTITIES[quantity]
    if scale == "linear":
        return 0.0, 1.0
    calls = views.sampled_calls(num_steps, schedule, 40)
    moved = [schedule.varied(**{key: value}) for key, values in marks for value in values]
    curves = [views.decays_at(one, calls, column) for one in moved]
    low, high = axis_ends(np.concatenate(curves), scale) if curves else (0.0, 0.0)
    return (10.0 ** math.floor(math.log10(low)), 10.0 ** math.ceil(math.log10(high))) if low > 0 else (0.0, 0.0)


def _around(values: pd.Series, scale: Scale, ends: Ends) -> Ends:
    """The ends of an axis for these values and what lies between ``ends``."""
    return roomy_ends([*axis_ends(values.to_numpy(), scale), *ends], scale)


def _weight_ends(weights: pd.Series, scale: Scale, num_steps: int) -> Ends:
    """The ends of the axis of weights: 0 and more than the highest; on a log axis a millionth of an even share, 1."""
    if scale == "log":
        return 1e-6 / num_steps, 1.0
    return 0.0, float(weights.max()) / _FILLED


@st.cache_data(show_spinner=False)
def decay_frames(
    code: str, num_steps: int, quantity: str, x_scale: Scale, marks: Marks, ends: Ends, _moved: Moved | None = None
) -> Frames:
    """The frames of the current curve's decays at the marks of each setting.

    Args:
        ends: The ends of the y axis.
        _moved: What :func:`decays_of_marks` returns of all calls, where they are few and it is there already.
    """
    schedule, (column, _, scale) = from_code(code), QUANTITIES[quantity]
    calls = views.sampled_calls(num_steps, schedule, DRAWN_CALLS)
    moved = _moved or decays_of_marks(schedule, calls)
    across = calls.astype(np.float64) + (1 if x_scale == "log" else 0)

    def line(key: str, value: float) -> Floats:
        return views.column_of(schedule, moved(key, value), column)

    moving = {key: [partial(line, key, value) for value in values] for key, values in marks}
    return line_frames("step", column, "curve", NOW, across, moving, x_scale=x_scale, y_scale=scale, y_ends=ends)


@st.cache_data(show_spinner=False)
def weight_frames(
    code: str,
    num_steps: int,
    step: int,
    scale: Scale,
    marks: Marks,
    percents: Sequence[float],
    pins: Sequence[tuple[str, str]],
    ends: Ends,
    _moved: Moved | None = None,
) -> tuple[Frames, ...]:
    """The frames of what each step weighs: of the current curve at the marks of each setting, and of all curves after
    each of the steps at ``percents`` of the run.

    Args:
        pins: The pinned curves: name and code.
        ends: The ends of the y axis.
        _moved: What :func:`decays_of_marks` returns of all calls, where it is there already.
    """
    schedule = from_code(code)
    found = []

    def add(
        name: str, scheme: Scheme, steps: Sequence[int], moving: Mapping[str, Sequence[Callable[[], Floats]]]
    ) -> None:
        calls = drawn = views.acting_calls(max(steps) + 1, scheme)
        if len(calls) > DRAWN_CALLS:
            most = max(DRAWN_CALLS // len(steps), _FEWEST_CALLS)
            drawn = np.unique(np.concatenate([views.sampled_calls(one + 1, scheme, most) for one in steps]))
        rows = np.searchsorted(calls, drawn)
        shown = {key: [partial(_at_rows, line, rows) for line in own] for key, own in moving.items()}
        across = drawn.astype(np.float64)
        found.append(line_frames("step", "weight", "curve", name, across, shown, y_scale=scale, y_ends=ends))

    if marks:
        calls = views.acting_calls(step + 1, schedule)
        moved = _moved or decays_of_marks(schedule, calls)

        def line(key: str, value: float) -> Floats:
            return weights(moved(key, value)[: len(calls)])

        add(NOW, schedule, [step], {key: [partial(line, key, value) for value in values] for key, values in marks})
    if percents:
        steps = [at_step(num_steps, percent) for percent in percents]
        for name, scheme in ((NOW, schedule), *((name, scheme_from_code(text)) for name, text in pins)):
            leave_if_run_anew()
            calls = views.acting_calls(max(steps) + 1, scheme)
            add(name, scheme, steps, {"at": views.weight_lines(scheme, steps, calls)})
    return tuple(found)


def _at_rows(line: Callable[[], Floats], rows: NDArray[np.intp]) -> Floats:
    return line()[rows]
