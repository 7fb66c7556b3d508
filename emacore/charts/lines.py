"""Lines over a common axis, with a legend that highlights and a tooltip at the nearest point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from emacore.charts.figure import Figure, spec_of, with_layer_data
from emacore.charts.style import CLEAN, DASHES
from emacore.charts.thin import MAX_POINTS, Scale, axis_ends, left_out, thin

#: Two names of up to so many letters stand side by side on a narrow screen.
_LONG_NAME = 16
#: A line's points that answer the pointer: each is a mark of its own, and drawing a thousand takes 0.2 s.
PROBES = 120
_RULES, _LABELS = 2, 3


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
) -> Figure:
    """One line for each value of ``series`` in a long table.

    Args:
        x, y, series: Names of the columns.
        colours: The colour of each series, in the order of the legend.
        x_title, y_title: Axis titles, with their unit.
        x_scale, y_scale: Rows that an axis cannot show (not finite, or not above 0 on a log scale) break the line, and
            are told in ``left_out``.
        faint: Series drawn thin, for context.
        x_rules: Labelled vertical lines.
    """
    ends = axis_ends(table[y].to_numpy(dtype=np.float64), y_scale)
    shown = thin(
        table[[x, y, series]], x, y, series, max_points, x_scale=x_scale, y_scale=y_scale, y_domain=y_domain or ends
    )
    if y_domain is None and ends != axis_ends(shown[y], y_scale):
        y_domain = ends  # one number up to rounding: the axis must not show the rounding
    rank = shown.groupby(series, sort=False).cumcount()
    shown = shown.assign(probe=rank % max(1, len(shown) // (PROBES * max(1, shown[series].nunique()))) == 0)
    present = set(shown[series].unique())
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
        height=height,
        faint=tuple(faint),
        ruled=bool(x_rules),
    )
    if x_rules:
        rules = [{"label": name, "at": at, "height": 8 + 14 * n} for n, (name, at) in enumerate(x_rules.items())]
        for layer in (_RULES, _LABELS):
            spec = with_layer_data(spec, layer, rules)
    return Figure(shown, spec, left_out(table, {x: x_scale, y: y_scale}, series))


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
    height: int,
    faint: tuple[str, ...],
    ruled: bool,
) -> dict[str, Any]:
    names, hues = [name for name, _ in colours], [colour for _, colour in colours]
    highlight = alt.selection_point(name="highlight", fields=[series], bind="legend")
    nearest = alt.selection_point(name="nearest", nearest=True, on="pointermove", empty=False, clear="pointerout")
    columns = 1 if any(len(name) > _LONG_NAME for name in names) else 2
    height += 18 * (-(-len(names) // columns) - 1)  # the legend's further rows must not be taken from the plot
    legend = alt.Legend(
        title=None,
        orient="bottom",
        columns=columns,
        labelLimit=280,
        symbolStrokeWidth=2.5,
        symbolType="stroke",
    )
    domain: Any = alt.Undefined if y_domain is None else list(y_domain)
    zero: Any = alt.Undefined if y_scale == "log" else False
    base = alt.Chart().encode(
        x=alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(type=x_scale, nice=False)),
        y=alt.Y(f"{y}:Q", title=y_title, scale=alt.Scale(type=y_scale, zero=zero, domain=domain, clamp=True)),
        color=alt.Color(f"{series}:N", scale=alt.Scale(domain=names, range=hues), legend=legend),
    )
    drawn = base.mark_line(clip=True).encode(
        detail="piece:N",
        strokeDash=alt.StrokeDash(
            f"{series}:N",
            scale=alt.Scale(domain=names, range=[DASHES.get(colour, [1, 0]) for colour in hues]),
            legend=legend,
        ),
        strokeWidth=alt.when(alt.FieldOneOfPredicate(field=series, oneOf=list(faint)))
        .then(alt.value(1))
        .otherwise(alt.value(2.2)),
        opacity=alt.when(highlight).then(alt.value(0.9)).otherwise(alt.value(0.12)),
    )
    points = (
        base.transform_filter(alt.datum.probe | alt.datum.alone)
        .mark_circle(size=70)
        .encode(
            opacity=alt.when(nearest)
            .then(alt.value(1))
            .when(alt.datum.alone)
            .then(alt.value(0.6))
            .otherwise(alt.value(0)),
            tooltip=[
                alt.Tooltip(f"{series}:N", title=" "),
                alt.Tooltip(f"{x}:Q", title=x_title, format=",.6~g"),
                alt.Tooltip(f"{y}:Q", title=y_title, format=".6~g"),
            ],
        )
    )
    layers = [drawn.add_params(highlight), points.add_params(nearest), *(_rules() if ruled else ())]
    return spec_of(alt.layer(*layers).properties(height=height))


def _rules() -> list[alt.Chart]:
    base = alt.Chart().encode(x=alt.X("at:Q"))
    return [
        base.mark_rule(color=CLEAN, strokeDash=[4, 3]),
        base.mark_text(color=CLEAN, align="left", dx=4).encode(
            text="label:N", y=alt.Y("height:Q", scale=None, axis=None)
        ),
    ]
