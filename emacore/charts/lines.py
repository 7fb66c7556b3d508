"""Lines over a common axis, each named at its end, with a tooltip at the nearest point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from emacore.charts.ends import (
    WHOLE_AXIS,
    free_of,
    name_marks,
    names_at_ends,
    plot_height,
    regular_axis,
    room_for,
    tick_values,
)
from emacore.charts.figure import Figure, spec_of, with_layer_data
from emacore.charts.style import CLEAN, DASHES
from emacore.charts.thin import MAX_POINTS, Scale, axis_ends, left_out, roomy_ends, rows_of_series, thin

#: A line's points that answer the pointer: each is a mark of its own, and drawing a thousand takes 0.2 s.
PROBES = 120
#: The numbers of the layers that have rows of their own.
_NAMES, _RULES, _LABELS = 2, 3, 4


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    series: str,
    colours: Mapping[str, str],
    x_title: str,
    y_title: str,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    y_domain: tuple[float, float] | None = None,
    height: int = 360,
    max_points: int = MAX_POINTS,
    faint: Iterable[str] = (),
    x_rules: Mapping[str, float] | None = None,
    beside: Iterable[str] = (),
) -> Figure:
    """One line for each value of ``series`` in a long table; a click on a name dims the others.

    Args:
        x, y, series: Names of the columns.
        colours: The colour of each series.
        x_title, y_title: Axis titles, with their unit.
        x_scale, y_scale: Rows that an axis cannot show (not finite, or not above 0 on a log scale) break the line, and
            are told in ``left_out``.
        y_domain: The ends of the y axis; by default those of all values that it can show.
        height: In pixels.
        max_points: Points that a line is thinned to, see :func:`emacore.charts.thin.kept_rows`.
        faint: Series drawn thin, for context.
        x_rules: Labelled vertical lines, by their labels.
        beside: Names at the curves of pictures above or below this one: it keeps as much room free as those, so that
            what stands below each other is of the same x.
    """
    ends = axis_ends(table[y].to_numpy(dtype=np.float64), y_scale)
    shown = thin(
        table[[x, y, series]], x, y, series, max_points, x_scale=x_scale, y_scale=y_scale, y_domain=y_domain or ends
    )
    if y_domain is None and ends != axis_ends(shown[y], y_scale):
        y_domain = ends  # one number up to rounding: the axis must not show the rounding
    parts = rows_of_series(shown, series)
    every = max(1, len(shown) // (PROBES * max(1, len(parts))))
    rank = np.concatenate([np.arange(len(rows)) for rows in parts.values()]) if parts else np.empty(0)
    shown = shown.assign(probe=rank % every == 0)
    present, across = set(parts), shown[x].to_numpy()
    told = left_out(table, {x: x_scale, y: y_scale}, series)
    several = len(parts) > 1 or bool(told and table[series].nunique() > 1)  # one that is alone needs no name
    if several and y_domain is None and ends[0] == ends[1]:
        y_domain = roomy_ends(table[y], y_scale)  # else the names would lie over each other
    named = {*map(str, beside), *(map(str, present) if several else ())}
    visible = (0.0, 0.0)
    if len(across) and (low := across.min()) < (high := across.max()):
        visible = float(low), float(high)
    spec = _spec(
        x=x,
        y=y,
        series=series,
        colours=tuple((name, colour) for name, colour in colours.items() if name in present),
        x_title=x_title,
        y_title=y_title,
        x_scale=x_scale,
        y_scale=y_scale,
        y_domain=y_domain,
        ticks=(tuple(tick_values(x_scale, visible)), tuple(tick_values(y_scale, y_domain or ends))),
        height=height,
        faint=tuple(faint),
        ruled=bool(x_rules),
        whole=x_scale == "linear" and _is_whole(table[x]),
        room=room_for(named) if named else 0,
    )
    plot = plot_height(height)
    names = names_at_ends(shown, x, y, series, height=plot, x_scale=x_scale, y_scale=y_scale, y_domain=y_domain or ends)
    spec = with_layer_data(spec, _NAMES, names if several else [])
    if x_rules:
        rules = [{"label": name, "at": at, "height": -6 - 14 * n} for n, (name, at) in enumerate(x_rules.items())]
        for layer in (_RULES, _LABELS):
            spec = with_layer_data(spec, layer, rules)
    return Figure(shown, spec, told, empty=not names)


def _is_whole(values: pd.Series) -> bool:
    """Whether these are whole numbers, such as steps or epochs, also where a file or a gap made them floats."""
    if pd.api.types.is_integer_dtype(values):
        return True
    finite = values[np.isfinite(values)]
    return len(finite) > 0 and bool((finite == np.floor(finite)).all())


@lru_cache(maxsize=256)
def _spec(
    *,
    x: str,
    y: str,
    series: str,
    colours: tuple[tuple[str, str], ...],
    x_title: str,
    y_title: str,
    x_scale: Scale,
    y_scale: Scale,
    y_domain: tuple[float, float] | None,
    ticks: tuple[tuple[float, ...], tuple[float, ...]],
    height: int,
    faint: tuple[str, ...],
    ruled: bool,
    whole: bool,
    room: int,
) -> dict[str, Any]:
    names, hues = [name for name, _ in colours], [colour for _, colour in colours]
    highlight = alt.selection_point(name="highlight", fields=["name"], on="click")
    nearest = alt.selection_point(name="nearest", nearest=True, on="pointermove", empty=False, clear="pointerout")
    domain: Any = alt.Undefined if y_domain is None else list(y_domain)
    zero: Any = alt.Undefined if y_scale == "log" else False
    across, up = (regular_axis(some) for some in ticks)
    if whole:
        across = WHOLE_AXIS
    x_axis = alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(type=x_scale, nice=False, range=free_of(room)), axis=across)
    # A log axis that ended at powers of ten could be half empty, and crowd the names.
    nice: Any = False if y_scale == "log" else alt.Undefined
    up_to = alt.Scale(type=y_scale, zero=zero, domain=domain, clamp=True, nice=nice)
    y_axis = alt.Y(f"{y}:Q", title=y_title, scale=up_to, axis=up)
    colour = alt.Color("name:N", scale=alt.Scale(domain=names, range=hues), legend=None)
    base = alt.Chart().transform_calculate(name=f"datum[{series!r}]").encode(x=x_axis, y=y_axis, color=colour)
    drawn = base.mark_line(clip=True).encode(
        detail=alt.Detail("piece:N"),
        strokeDash=alt.StrokeDash(
            "name:N",
            scale=alt.Scale(domain=names, range=[DASHES.get(hue, [1, 0]) for hue in hues]),
            legend=None,
        ),
        strokeWidth=alt.StrokeWidthValue(
            **alt.when(alt.FieldOneOfPredicate(field="name", oneOf=list(faint)))
            .then(alt.value(1))
            .otherwise(alt.value(2.2))
        ),
        opacity=alt.OpacityValue(**alt.when(highlight).then(alt.value(0.9)).otherwise(alt.value(0.12))),
    )
    points = (
        base.transform_filter(alt.datum.probe | alt.datum.alone)
        .mark_circle(size=70)
        .encode(
            opacity=alt.OpacityValue(
                **alt.when(nearest)
                .then(alt.value(1))
                .when(alt.datum.alone)
                .then(alt.value(0.6))
                .otherwise(alt.value(0))
            ),
            tooltip=[
                alt.Tooltip("name:N", title=" "),
                alt.Tooltip(f"{x}:Q", title=x_title, format=",.7~r"),
                alt.Tooltip(f"{y}:Q", title=y_title, format=",.6~r"),
            ],
        )
    )
    ends = name_marks(colour, room)
    layers = [drawn, points.add_params(nearest), ends.add_params(highlight), *(_rules() if ruled else ())]
    return spec_of(alt.layer(*layers).properties(height=height))


def _rules() -> list[alt.Chart]:
    base = alt.Chart().encode(x=alt.X("at:Q"))
    return [
        base.mark_rule(color=CLEAN, strokeDash=[4, 3]),
        base.mark_text(color=CLEAN, align="left", dx=4).encode(
            text=alt.Text("label:N"), y=alt.Y("height:Q", scale=None, axis=None)
        ),
    ]
