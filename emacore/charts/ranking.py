"""Several ways to do one thing, ranked by a number that each ends with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from emacore.charts.ends import regular_axis, tick_values
from emacore.charts.figure import Figure, spec_of, with_layer_data
from emacore.charts.style import CLEAN
from emacore.charts.thin import Scale, axis_ends, drawable
from emacore.formatting import number

_RULE = 0


def ranking(
    table: pd.DataFrame,
    *,
    name: str,
    value: str,
    colours: Mapping[str, str],
    x_title: str,
    reference: str,
    height: int = 300,
) -> Figure:
    """A dot for each row, the lowest on top, on a log axis where all values are above 0; its tooltip has the whole row.

    Rows without a finite value are not drawn, and named in ``left_out``.

    Args:
        name, value: Columns of ``table``.
        colours: The colours of some of the names; the others are grey.
        reference: The name whose value a vertical line marks.
    """
    shown = table[np.isfinite(table[value])].sort_values(value, kind="stable", ignore_index=True)
    scale: Scale = "log" if len(shown) and (shown[value] > 0).all() else "linear"
    low, high = axis_ends(shown[value], scale)
    rows = tuple(shown[name])
    shown = shown.assign(told=[number(one) for one in shown[value]])
    spec = _spec(
        tuple((column, pd.api.types.is_numeric_dtype(values)) for column, values in table.items()),
        name,
        value,
        tuple((row, colours.get(row, CLEAN)) for row in rows),
        x_title,
        scale,
        tuple(tick_values(scale, (low, high))),
        height,
    )
    marked = shown.loc[shown[name] == reference, value]
    spec = with_layer_data(spec, _RULE, [{"at": float(at)} for at in marked])
    missing = table.loc[~drawable(table[value], "linear"), name]
    told = f"Without such a number: {', '.join(missing)}." if len(missing) else ""
    return Figure(shown, spec, told, empty=shown.empty)


@lru_cache(maxsize=64)
def _spec(
    columns: tuple[tuple[str, bool], ...],
    name: str,
    value: str,
    colours: tuple[tuple[str, str], ...],
    x_title: str,
    scale: Scale,
    ticks: tuple[float, ...],
    height: int,
) -> dict[str, Any]:
    names, hues = [row for row, _ in colours], [hue for _, hue in colours]
    across = alt.Scale(type=scale, zero=False, padding=30)
    base = alt.Chart().encode(
        x=alt.X(f"{value}:Q", title=x_title, scale=across, axis=regular_axis(ticks)),
        y=alt.Y(f"{name}:N", title=None, sort=names, axis=alt.Axis(labelLimit=170, grid=True, ticks=False)),
        tooltip=[
            alt.Tooltip(f"{column}:Q", format=",.6~r") if numeric else alt.Tooltip(f"{column}:N")
            for column, numeric in columns
        ],
    )
    colour = alt.Color(f"{name}:N", scale=alt.Scale(domain=names, range=hues), legend=None)
    rule = alt.Chart().mark_rule(color=CLEAN, strokeDash=[4, 3]).encode(x=alt.X("at:Q"))
    dots = base.mark_circle(size=110, opacity=1).encode(color=colour)
    told = base.mark_text(dy=-12, fontSize=11).encode(text=alt.Text("told:N"), color=colour)
    return spec_of(alt.layer(rule, dots, told).properties(height=height))
