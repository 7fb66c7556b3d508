"""Merges of what was opened, as pictures that follow the handles of the schedule.

Each mark shows the merge by the schedule of that mark, with its certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

from emacore.averaging.code import from_code, to_code
from emacore.averaging.coefficients import Certificate
from emacore.averaging.planned import Planned, planned
from emacore.averaging.schedules import Schedule
from emacore.charts.figure import Figure
from emacore.charts.lines import lines
from emacore.charts.moving import Frames, Handle, View, line_frames
from emacore.charts.style import AVERAGED, CLEAN, palette
from emacore.charts.thin import axis_ends
from emacore.experiments.opened import Floats, Moved, Series, growth, growth_calls, growth_table, moved, weight_table
from emacore.widgets.moving import schedule_settings, show_moving
from emacore.widgets.opened import NOW
from emacore.widgets.page import picture

Ends = tuple[float, float]
#: The handles' marks: a setting's key and its values.
Marks = tuple[tuple[str, tuple[float, ...]], ...]
#: What a mark costs, as :func:`~emacore.widgets.moving.schedule_settings` counts it, in calls: a constant, and a share
#: more for each file, for their least squares.
_COST, _PER_FILE = 60_000, 0.2
#: Where the certificate stands in the lower picture, as shares of its width and height.
_AT = (0.02, 0.97)


def show_merges_moving(
    of: str,
    name: str,
    series: Series,
    schedule: Schedule,
    plans: Mapping[str, Planned],
    growths: Mapping[str, pd.DataFrame],
    fit: Any,
) -> Callable[[], None]:
    """What each file weighs in the merges, and how the weights of the schedule's add up over the steps, with a handle
    for each of its settings; to be finished as :func:`emacore.widgets.moving.show_moving` says.

    Args:
        of: What frames are kept by: it changes with the files.
        plans, growths: Of the merges by their names, the latter of schedules only; the one that moves is :data:`NOW`.
    """
    code = to_code(schedule)
    calls = int((_COST + series.calls) * (1 + _PER_FILE * len(series.profiles)))
    settings = schedule_settings(schedule, calls)
    marks: Marks = tuple((setting.key, setting.marks) for setting in settings)
    table = pd.DataFrame(weight_table(series, plans))
    table["line"] = table["merge"] + (", " + table["section"] if len(set(series.sections)) > 1 else "")
    hues = palette(plans, {NOW: AVERAGED})
    own = dict(zip(table["line"], table["merge"], strict=True))
    span = (float(series.shift), float(series.steps[-1]))
    grown = growths[NOW]
    rough = tuple((key, (values[0], values[len(values) // 2], values[-1])) for key, values in marks)
    reached = _moved(of, series.name, code, fit, rough, series)
    coefficient_ends = around(table["coefficient"], reached.coefficients)
    growth_ends = around(grown["weight"], reached.these_files)
    ways = {"all steps": CLEAN, "these files": AVERAGED}
    beside = [*ways, *(own if len(own) > 1 else ())]
    above = lines(
        table,
        x="step",
        y="coefficient",
        series="line",
        colours={line: hues[merge] for line, merge in own.items()},
        x_title="step of the stored file",
        y_title="coefficient of the file",
        height=230,
        beside=beside,
    )
    below = lines(
        grown,
        x="step",
        y="weight",
        series="curve",
        colours=ways,
        x_title="step of the run",
        y_title="weight so far",
        height=170,
        beside=beside,
    )
    views = [
        View(above, ends={"x": span, "y": coefficient_ends}),
        View(certified(below, plans[NOW].certificate, span, growth_ends), ends={"x": span, "y": growth_ends}),
    ]

    def frames_of(handles: Sequence[Handle]) -> list[tuple[Frames, ...]]:
        at = tuple((handle.key, handle.values) for handle in handles)
        if not at:
            return [(), ()]
        layer = len(below.spec["layer"])
        return frames_of_merges(of, series.name, code, fit, at, coefficient_ends, growth_ends, layer, series)

    def whole() -> pd.DataFrame:
        found = planned(schedule, series.profiles, series.calls, fit, bests=False)
        return pd.DataFrame(growth_table(series, growth(series, found)))

    with picture(lambda: table.drop(columns="line"), f"coefficients-{name}"), picture(whole, f"growth-{name}"):
        finish = show_moving(
            "merges",
            settings,
            views,
            frames_of,
            alt_text=f"What each of {len(set(series.steps))} stored files weighs in {len(plans)} merges; below, how "
            "the weights of one of them add up over the steps of the run, beside those of the average over all steps",
        )
    st.caption(
        "Above, which files a merge takes, and whether some coefficients are below 0: those amplify rounding. Below, "
        "the gap between the two lines is what these files cannot give: with raw ones the weights add up in large "
        "steps, with means of windows they follow the average."
    )
    return finish


def certified(figure: Figure, found: Certificate, x_ends: Ends, y_ends: Ends) -> Figure:
    """The figure with a text that says the certificate, and follows the handles."""
    error = None if np.isnan(found.error) else found.error
    said = (
        "(isValid(datum.error) ? 'profile error ' + format(datum.error, ',.3~g') + '|' : '') + "
        "'averages noise as ' + format(datum.reached, ',.3~r') + "
        "(format(datum.reached, ',.3~r') == '1' ? ' step does' : ' steps do')"
    )
    row = {"error": error, "reached": found.reached, **place_of(x_ends, y_ends)}
    return with_words(figure, "certificate", row, said, "isValid(datum.reached)")


def with_words(figure: Figure, name: str, row: Mapping[str, Any], said: str, shown: str) -> Figure:
    """The figure with a text that follows the handles.

    Args:
        name: The name of its layer.
        row: The numbers it is made of, and x and y in units of the axes, from :func:`place_of`.
        said: The text, as a Vega expression of those numbers; ``|`` breaks a line.
        shown: A Vega expression that says whether it is shown.
    """
    encoding = figure.spec["layer"][0]["encoding"]
    text = {
        "name": name,
        "data": {"values": [{"curve": NOW, **row}]},
        "transform": [{"filter": shown}, {"calculate": said, "as": "said"}],
        "mark": {
            "type": "text",
            "align": "left",
            "baseline": "top",
            "lineBreak": "|",
            "fontSize": 13,
            "color": AVERAGED,
        },
        "encoding": {
            "x": {**encoding["x"], "field": "x"},
            "y": {**encoding["y"], "field": "y"},
            "text": {"field": "said", "type": "nominal"},
        },
    }
    return figure._replace(spec={**figure.spec, "layer": [*figure.spec["layer"], text]})


def words_frames(layer: int, place: Mapping[str, float], moving: Mapping[str, Mapping[str, Floats]]) -> Frames:
    """The frames of a text of :func:`with_words`.

    Args:
        layer: The number of its layer.
        place: Its x and y in units of the axes.
        moving: By the handle's key and the name of a number: that number at each mark, shape (marks,).
    """
    told = {key: {name: values.reshape(1, -1) for name, values in own.items()} for key, own in moving.items()}
    return Frames(pd.DataFrame([{"curve": NOW, **place}]), told, "curve", layers=(layer,))


def place_of(x_ends: Ends, y_ends: Ends, at: tuple[float, float] = _AT) -> dict[str, float]:
    """Where a text stands in units of the axes, ``at`` being shares of their lengths; both are linear."""
    return {
        channel: low + share * (high - low)
        for channel, share, (low, high) in zip("xy", at, (x_ends, y_ends), strict=True)
    }


def varied(code: str, marks: Marks) -> list[str]:
    """The code of a schedule at each mark of each setting."""
    schedule = from_code(code)
    return [to_code(schedule.varied(**{key: value})) for key, values in marks for value in values]


@st.cache_data(max_entries=32, show_spinner=False)
def _moved(of: str, name: str, code: str, fit: Any, marks: Marks, _series: Series) -> Moved:
    return moved(_series, varied(code, marks), fit, growth_calls(_series, from_code(code)))


def around(values: pd.Series, reached: Floats) -> Ends:
    """The ends of a linear axis for ``values``, which are drawn, and those that marks of a handle reached."""
    low, high = axis_ends(np.concatenate([[0.0], values.to_numpy(dtype=np.float64), reached.ravel()]), "linear")
    room = 0.05 * (high - low) or 0.1
    return low - (room if low < 0 else 0), high + room


@st.cache_data(show_spinner=False)
def frames_of_merges(
    of: str,
    name: str,
    code: str,
    fit: Any,
    marks: Marks,
    coefficient_ends: Ends,
    growth_ends: Ends,
    layer: int,
    _series: Series,
) -> list[tuple[Frames, ...]]:
    """The frames of both pictures at the marks of each setting; ``layer`` is that of the certificate."""
    found = _moved(of, name, code, fit, marks, _series)
    cuts = np.cumsum([len(values) for _, values in marks])[:-1]

    def by_key(values: Floats) -> dict[str, list[Floats]]:
        return {key: list(part.T) for (key, _), part in zip(marks, np.split(values, cuts, axis=-1), strict=True)}

    above = []
    sections = np.array(_series.sections, dtype=object)
    for section in dict.fromkeys(_series.sections):
        rows = np.flatnonzero(sections == section)
        line = NOW if len(set(_series.sections)) == 1 else f"{NOW}, {section}"
        across = np.array(_series.steps, dtype=np.float64)[rows]
        moving = by_key(found.coefficients[rows])
        above.append(line_frames("step", "coefficient", "line", line, across, moving, y_ends=coefficient_ends))
    across = (growth_calls(_series, from_code(code)) + _series.shift).astype(np.float64)
    below = [
        line_frames("step", "weight", "curve", curve, across, by_key(values), y_ends=growth_ends)
        for curve, values in (("all steps", found.all_steps), ("these files", found.these_files))
    ]
    errors, reached = by_key(found.error), by_key(found.reached)
    told = {key: {"error": np.array(errors[key]), "reached": np.array(reached[key])} for key in errors}
    text = words_frames(layer, place_of((float(_series.shift), float(_series.steps[-1])), growth_ends), told)
    return [tuple(above), (*below, text)]
