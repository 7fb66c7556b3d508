"""The curves of a recorded run, which follow the handles of the schedule, and what each step weighs in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from emacore.averaging.code import from_code, to_code
from emacore.averaging.families import UniformAverage
from emacore.averaging.schedules import Schedule
from emacore.charts.figure import Figure
from emacore.charts.lines import lines
from emacore.charts.moving import Frames, Handle, View, line_frames
from emacore.charts.style import CHOSEN
from emacore.charts.thin import Scale, roomy_ends
from emacore.formatting import counted
from emacore.replay.frames import most_epochs
from emacore.widgets.moving import schedule_settings, show_moving
from emacore.widgets.replay import NOW, Recorded, frames_of_codes, looked_at, opened
from emacore.widgets.replay_cells import MOVED

Ends = tuple[float, float]
#: The handles' marks: a setting's key and its values.
Marks = tuple[tuple[str, tuple[float, ...]], ...]

#: What a mark costs, as :func:`~emacore.widgets.moving.schedule_settings` counts it, in calls: a hundred marks, which
#: it then gives at most, take about a second.
_COST = 120_000
#: About how many epochs of a handle's first, middle and last mark are replayed to find the ends of the axis.
_ROUGH = 12


def show_curves(
    recorded: Recorded,
    schedule: Schedule,
    curves: pd.DataFrame,
    shares: pd.DataFrame,
    *,
    colours: Mapping[str, str],
    scale: Scale,
    alt_text: str,
) -> Callable[[Callable[[], pd.DataFrame]], None]:
    """Losses above, weights below, and a handle for each setting of ``schedule``, whose curve is :data:`NOW`.

    Args:
        curves: A long table: curve, step, and the loss' column.
        shares: A long table: curve, step, weight.

    Returns:
        To be called at the end of the page with what makes the curves of the atlas' cells, as
        :func:`emacore.widgets.replay_cells.cell_curves`: the page is seen before those and the handles' are there.
    """
    code, loss, of = to_code(schedule), recorded.loss.column, (recorded.folder, looked_at(recorded))
    settings = schedule_settings(schedule, _COST)
    most = most_epochs(sum(len(setting.marks) + 1 for setting in settings))  # a handle may start between two marks
    ends = _around(curves[loss], scale, *of, code, tuple((setting.key, setting.marks) for setting in settings))
    weight_ends = 0.0, max(float(shares["weight"].max()), 1e-12) / 0.85
    whole = {"x": (0.0, float(recorded.trajectory.steps))}
    shared: dict[str, Any] = {"x": "step", "series": "curve", "colours": colours, "beside": curves["curve"].unique()}
    above = lines(curves, y=loss, x_title="", y_title=recorded.loss_title, y_scale=scale, height=230, **shared)
    below = lines(shares, y="weight", x_title="step of the run", y_title="weight in the end", height=90, **shared)
    views = [View(_with_pointed(above, loss), ends={**whole, "y": ends}), View(below, ends={**whole, "y": weight_ends})]

    pointed = [pd.DataFrame()]  # the cells' curves, once they are there

    def frames_of(handles: Sequence[Handle]) -> list[tuple[Frames, ...]]:
        marks = tuple((handle.key, handle.values) for handle in handles)
        cells = pointed[0].filter(regex="^cell_").to_numpy(dtype=np.float64)
        room = roomy_ends(np.concatenate([ends, cells.ravel()]), scale)
        if not marks:
            return [(Frames(pd.DataFrame({"curve": []}), {}, "curve", ends={"y": room}),), ()]
        return [
            (loss_frames(*of, code, marks, loss, scale, room, most),),
            (share_frames(*of, code, marks, weight_ends),),
        ]

    finish = show_moving("replay", settings, views, frames_of, alt_text=alt_text)
    if settings and most < of[1]:
        st.caption(
            f"A curve that a handle moves is drawn at {most} of the {counted(of[1], 'epoch')}, evenly spread; its "
            "figures and the CSV are of all."
        )
    pointed_at = len(above.spec["layer"])

    def finish_with(cells: Callable[[], pd.DataFrame]) -> None:
        pointed[0] = cells()
        finish({(0, pointed_at): pointed[0]})

    return finish_with


def _with_pointed(figure: Figure, loss: str) -> Figure:
    """The figure with a line for the cell that is pointed at in the atlas, which the browser takes from rows of the
    layer's own."""
    encoding = figure.spec["layer"][0]["encoding"]
    line = {
        "name": "pointed",
        "data": {"values": []},
        "transform": [
            {"calculate": "datum['cell_' + pointed_cell]", "as": loss},
            {"filter": f"isValid(datum['{loss}'])"},
        ],
        "mark": {"type": "line", "clip": True, "color": CHOSEN, "strokeWidth": 1.6},
        "encoding": {"x": encoding["x"], "y": encoding["y"]},
    }
    pointed = {
        "name": "pointed",
        "select": {"type": "point", "fields": ["cell"], "on": "dblclick"},
        "bind": {"cell": {"element": "body", "event": MOVED}},
        "views": ["pointed"],
    }
    params = [*figure.spec.get("params", []), pointed]
    return figure._replace(spec={**figure.spec, "layer": [*figure.spec["layer"], line], "params": params})


def _varied(code: str, marks: Marks) -> list[str]:
    schedule = from_code(code)
    return [to_code(schedule.varied(**{key: value})) for key, values in marks for value in values]


def _around(losses: pd.Series, scale: Scale, folder: str, epochs: int, code: str, marks: Marks) -> Ends:
    """The ends of an axis for these losses and those of a few marks of each handle."""
    extremes = tuple((key, (values[0], values[len(values) // 2], values[-1])) for key, values in marks)
    _, reached = frames_of_codes(folder, epochs, _varied(code, extremes), _ROUGH)
    return roomy_ends(np.concatenate([losses.to_numpy(dtype=np.float64), reached.ravel()]), scale)


def loss_frames(
    folder: str, epochs: int, code: str, marks: Marks, loss: str, scale: Scale, ends: Ends, most: int
) -> Frames:
    """The frames of the loss of the schedule's average at the marks of each setting, at ``most`` epochs at most; the
    axis goes as far as they do, and to ``ends`` at least."""
    shown, losses = frames_of_codes(folder, epochs, _varied(code, marks), most)
    ends = roomy_ends(np.concatenate([ends, losses.ravel()]), scale)
    trajectory = opened(folder, epochs)
    steps = trajectory.rows.steps[np.asarray(trajectory.epoch_ends)[shown - 1]].astype(np.float64)
    found = line_frames("step", loss, "curve", NOW, steps, _by_key(losses, marks), y_scale=scale, y_ends=ends)
    return found._replace(ends={"y": ends})


@st.cache_data(max_entries=32, show_spinner=False)
def share_frames(folder: str, epochs: int, code: str, marks: Marks, ends: Ends) -> Frames:
    """The frames of what each step weighs in the schedule's last average, at the marks of each setting; those that it
    skips are left out."""
    trajectory, schedule = opened(folder, epochs), from_code(code)
    alike = UniformAverage(update_after_step=schedule.update_after_step, update_every=schedule.update_every)
    rows = np.flatnonzero(trajectory.shares(alike))

    def line(text: str) -> NDArray[np.float64]:
        return trajectory.shares(from_code(text))[rows]

    moving = {key: [partial(line, text) for text in _varied(code, ((key, values),))] for key, values in marks}
    steps = trajectory.rows.steps[rows].astype(np.float64)
    return line_frames("step", "weight", "curve", NOW, steps, moving, y_ends=ends)


def _by_key(values: NDArray[np.float32], marks: Marks) -> dict[str, list[NDArray[np.float64]]]:
    lines = iter(values.T.astype(np.float64))
    return {key: [next(lines) for _ in own] for key, own in marks}
