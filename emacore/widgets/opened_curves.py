"""Schedules over what was opened, as pictures that follow the handles.

What each stored set weighs, the certificate, and how far the average is from what is stored are known at every mark.
The loss is drawn where a worker has measured it; nothing is interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from emacore.averaging.code import scheme_from_code, to_code
from emacore.averaging.coefficients import Certificate
from emacore.averaging.held import Held, held
from emacore.averaging.schedules import Schedule
from emacore.charts.figure import Figure
from emacore.charts.lines import lines
from emacore.charts.moving import Frames, Handle, View, line_frames
from emacore.charts.thin import Scale, roomy_ends
from emacore.experiments.opened import Floats, Series
from emacore.replay.trajectory import Table
from emacore.widgets.moving import schedule_settings, show_moving
from emacore.widgets.opened import NOW
from emacore.widgets.opened_merges import (
    Ends,
    Marks,
    around,
    certified,
    place_of,
    varied,
    with_words,
    words_frames,
)

#: What a mark costs, as :func:`~emacore.widgets.moving.schedule_settings` counts it, in calls: a constant, a part for
#: each call of the run, and one that grows with the cube of the number of sets.
_COST, _PER_CALL, _PER_CUBE = 60_000, 3, 0.01
#: Where the words stand that say that a mark is not measured, as shares of the picture's width and height.
_UNMEASURED_AT = (0.3, 0.97)
_UNMEASURED = "'not measured yet:|let the handle go to ask for it'"


class Losses(NamedTuple):
    """What is measured.

    Attributes:
        table: A long table: curve, step, and ``column``, the loss; the first curve is of the weights as stored.
        title: The title of its axis.
        scale: The scale of its axis.
        measured: Takes schemes by their code and returns the losses of those that are measured already.
    """

    table: pd.DataFrame
    column: str
    title: str
    scale: Scale
    measured: Callable[[Sequence[str]], Mapping[str, Floats]]


def show_opened_curves(
    of: str,
    series: Series,
    schedule: Schedule,
    codes: Mapping[str, str],
    squared: Floats | None,
    losses: Losses | None,
    colours: Mapping[str, str],
) -> Callable[[], None]:
    """Losses, distances and weights one above the other, with a handle for each setting of ``schedule``; to be finished
    as :func:`emacore.widgets.moving.show_moving` says.

    Args:
        of: What frames are kept by: it changes with the files.
        codes: The schemes' code by the names of their curves; that of ``schedule`` is :data:`NOW`.
        squared: The squared distances between the stored sets; ``None`` where they are not known.
        losses: ``None`` while nothing is measured.
    """
    count, code = len(series.steps), to_code(schedule)
    settings = schedule_settings(schedule, int(_COST + _PER_CALL * series.calls + _PER_CUBE * count**3))
    marks: Marks = tuple((setting.key, setting.marks) for setting in settings)
    rough = tuple((key, (values[0], values[len(values) // 2], values[-1])) for key, values in marks)
    steps = np.array([one.end for one in series.profiles], dtype=np.int64)
    known = {name: held(scheme_from_code(text), series.profiles, squared) for name, text in codes.items()}
    reached = _held(of, series.name, code, rough, squared is not None, series, squared)
    span = 0.0, float(steps[-1])
    named = {*known, *(() if losses is None else losses.table["curve"])}
    beside = named if len(named) > 1 else ()
    shared: dict[str, Any] = {"x": "step", "series": "curve", "colours": colours, "beside": beside}
    views: list[View] = []
    kinds: list[str] = []
    if losses is not None:
        ends = roomy_ends(losses.table[losses.column], losses.scale)
        told: dict[str, Any] = {"y": losses.column, "y_title": losses.title, "y_scale": losses.scale}
        above = lines(losses.table, x_title="", height=230, **told, **shared)
        kinds.append("loss")
        views.append(View(_told_of_loss(above, losses, span, ends), ends={"x": span, "y": ends}))
    if squared is not None:
        table = _long(known, steps, "distance")
        apart = around(table["distance"], np.stack([one.distances for one in reached]))
        middle = lines(table, y="distance", x_title="", y_title="distance (L2)", height=120, **shared)
        kinds.append("distance")
        views.append(View(middle, ends={"x": span, "y": apart}))
    table = _long(known, steps, "weight")
    shares = around(table["weight"], np.stack([one.shares for one in reached]))
    below = lines(table, y="weight", x_title="step of the run", y_title="weight in the end", height=130, **shared)
    now = known[NOW]
    whole = Certificate(now.error, np.nan, now.reached, 1.0, 1.0)
    kinds.append("weight")
    views.append(View(certified(below, whole, span, shares), ends={"x": span, "y": shares}))

    def frames_of(handles: Sequence[Handle]) -> list[tuple[Frames, ...]]:
        at: Marks = tuple((handle.key, handle.values) for handle in handles)
        if not at:
            return [() for _ in views]
        found = _held(of, series.name, code, at, squared is not None, series, squared)
        return [_frames(kind, view, code, at, steps, found, losses) for kind, view in zip(kinds, views, strict=True)]

    shown = "" if losses is None else f"{losses.title} as stored, and of {len(codes)} replayed schemes; "
    return show_moving(
        "opened",
        settings,
        views,
        frames_of,
        alt_text=f"{shown}how far the averages are from what is stored, and what each of {count} stored sets weighs "
        "in them in the end",
    )


def known_so_far(original: Table, curve: Table | None) -> Table:
    """A scheme's curve, or, while it is not measured, its first point: every average begins as what is stored."""
    return {column: values[:1] for column, values in original.items()} if curve is None else curve


def _long(known: Mapping[str, Held], steps: Any, column: str) -> pd.DataFrame:
    values = [one.distances if column == "distance" else one.shares for one in known.values()]
    names = np.repeat(np.array(list(known), dtype=object), len(steps))
    return pd.DataFrame({"curve": names, "step": np.tile(steps, len(known)), column: np.concatenate(values)})


def _told_of_loss(figure: Figure, losses: Losses, x_ends: Ends, y_ends: Ends) -> Figure:
    """The figure with words where the curve of the controls is not measured."""
    measured = 1.0 if (losses.table["curve"] == NOW).sum() > 1 else None
    row = {"measured": measured, **_place_on(x_ends, y_ends, losses.scale)}
    return with_words(figure, "unmeasured", row, _UNMEASURED, "!isValid(datum.measured)")


def _place_on(x_ends: Ends, y_ends: Ends, scale: Scale) -> dict[str, float]:
    if scale == "linear":
        return place_of(x_ends, y_ends, _UNMEASURED_AT)
    low, high = np.log(y_ends).tolist()
    found = place_of(x_ends, (low, high), _UNMEASURED_AT)
    return {**found, "y": float(np.exp(found["y"]))}


def _frames(
    kind: str, view: View, code: str, at: Marks, steps: Any, found: Sequence[Held], losses: Losses | None
) -> tuple[Frames, ...]:
    """The frames of one of the pictures at all marks."""
    x_ends, y_ends = view.ends["x"], view.ends["y"]
    layer = len(view.figure.spec["layer"]) - 1
    across = steps.astype(np.float64)
    if kind == "loss" and losses is not None:
        return _loss_frames(losses, code, at, layer, x_ends, y_ends)
    if kind == "distance":
        moving = _by_key(at, [one.distances for one in found])
        return (line_frames("step", kind, "curve", NOW, across, moving, y_ends=y_ends),)
    moving = _by_key(at, [one.shares for one in found])
    told = {
        key: {"error": np.array([one.error for one in own]), "reached": np.array([one.reached for one in own])}
        for key, own in _by_key(at, found).items()
    }
    weights = line_frames("step", kind, "curve", NOW, across, moving, y_ends=y_ends)
    return weights, words_frames(layer, place_of(x_ends, y_ends), told)


def _loss_frames(losses: Losses, code: str, at: Marks, layer: int, x_ends: Ends, y_ends: Ends) -> tuple[Frames, ...]:
    """The loss at the marks that are measured; of the others the first point, which all have in common.

    The axis goes as far as they do, and to ``y_ends`` at least.
    """
    table, loss, scale = losses.table, losses.column, losses.scale
    original = table[table["curve"] == table["curve"].iloc[0]]
    first = np.full(len(original), np.nan)
    first[0] = original[loss].iloc[0]
    codes = varied(code, at)
    kept = losses.measured(codes)
    y_ends = roomy_ends(np.concatenate([y_ends, *kept.values()]), scale)
    curves = _by_key(at, [kept.get(text, first) for text in codes])
    there = _by_key(at, [1.0 if text in kept else np.nan for text in codes])
    told = {key: {"measured": np.array(values)} for key, values in there.items()}
    steps = original["step"].to_numpy(dtype=np.float64)
    moving = line_frames("step", loss, "curve", NOW, steps, curves, y_scale=scale, y_ends=y_ends)
    moving = moving._replace(ends={"y": y_ends})
    return moving, words_frames(layer, _place_on(x_ends, y_ends, scale), told)


def _by_key(marks: Marks, values: Sequence[Any]) -> dict[str, list[Any]]:
    """What belongs to each mark, by the setting's key."""
    rest = iter(values)
    return {key: [next(rest) for _ in own] for key, own in marks}


@st.cache_data(max_entries=32, show_spinner=False)
def _held(
    of: str, name: str, code: str, marks: Marks, apart: bool, _series: Series, _squared: Floats | None
) -> list[Held]:
    return [held(scheme_from_code(text), _series.profiles, _squared) for text in varied(code, marks)]
