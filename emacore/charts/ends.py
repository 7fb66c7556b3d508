"""Names of curves where they end, in place of a legend; and ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from emacore.charts.thin import Floats, Scale, drawable
from emacore.formatting import IN_CHARTS

#: Between two names, in pixels: the height of a line of small text.
_GAP = 15


def names_at_ends(
    table: pd.DataFrame,
    x: str,
    y: str,
    series: str,
    *,
    height: int,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    y_domain: tuple[float, float] | None = None,
) -> list[dict[str, Any]]:
    """Where to write the name of each series: at the last of its points that the axes can show.

    Names that would lie over each other are moved apart, up or down, in the order of their curves.

    Args:
        table: A long table.
        x, y, series: Names of its columns.
        height: Of the plot, in pixels.
        y_domain: The ends of the y axis; by default those of all values that it can show.

    Returns:
        A row for each series: ``name``, ``x``, ``y`` in units of the axes, and ``early``, whether the curve ends in the
        left half, so that its name has to be written to the right of its end.
    """
    shown = table[drawable(table[y], y_scale) & drawable(table[x], x_scale)].reset_index(drop=True)
    if shown.empty:
        return []
    last = shown.loc[shown.groupby(series, sort=False)[x].idxmax().to_numpy()]
    across, up = _scaled(shown[x], x_scale), _scaled(shown[y], y_scale)
    low, high = _scaled(y_domain, y_scale) if y_domain else (up.min(), up.max())
    middle = (across.min() + across.max()) / 2
    places = apart(_scaled(last[y], y_scale), _GAP / height * (high - low), low, high)
    return [
        {"name": str(name), "x": float(at), "y": float(np.exp(place) if y_scale == "log" else place), "early": early}
        for name, at, place, early in zip(
            last[series], last[x], places, (_scaled(last[x], x_scale) < middle).tolist(), strict=True
        )
    ]


def apart(places: ArrayLike, gap: float, low: float, high: float) -> list[float]:
    """``places``, moved as little as is simple, so that each two are ``gap`` apart and none leaves [low, high].

    Where the range has no room for that, they share it evenly.
    """
    wanted = np.clip(np.asarray(places, dtype=np.float64), low, high)
    order = np.argsort(wanted, kind="stable")
    gap = min(gap, (high - low) / max(1, len(order) - 1))
    steps = gap * np.arange(len(order))
    # Less its rank in gaps, each place only has to be no lower than the one before it.
    moved = np.maximum.accumulate(wanted[order] - steps)
    moved = np.minimum(moved, high - steps[-1] if len(order) else high) + steps
    result = np.empty(len(order))
    result[order] = moved
    return [float(place) for place in result]


def name_marks(colour: alt.Color) -> alt.Chart:
    """The layer that writes them, over the axes of the layers before it; its rows are :func:`names_at_ends`."""
    text: alt.Chart = alt.Chart().mark_text(
        align=alt.ExprRef("datum.early ? 'left' : 'right'"),
        dx=alt.ExprRef("datum.early ? 6 : -2"),
        dy=-8,
        fontSize=12,
        fontWeight=600,
        limit=alt.ExprRef("0.62 * width"),
    )
    return text.encode(x="x:Q", y="y:Q", text="name:N", color=colour, tooltip=alt.Tooltip("name:N", title=" "))


def round_ticks(low: float, high: float, at_most: int = 8) -> list[float]:
    """Regular ticks of a log axis from ``low`` to ``high``: every power of ten, or every second and so on, if they are
    many; 1, 2 and 5 of each, or every digit, if they are few."""
    if not 0 < low < high < math.inf:
        return []
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1,), (1, 2, 5), range(1, 10)):
        ticks = [float(f"{digit}e{power}") for power in range(first, last + 1) for digit in digits]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            break
    return inside[:: -(-len(inside) // at_most)] if len(digits) == 1 else inside


def tick_values(scale: Scale, ends: tuple[float, float]) -> list[float]:
    """:func:`round_ticks` of a log axis; of a linear one none, since Vega-Lite's own are regular."""
    return round_ticks(*ends) if scale == "log" else []


def regular_axis(ticks: Sequence[float]) -> alt.Axis:
    """An axis with these ticks; without any, with Vega-Lite's own, which has the digits that tell them apart."""
    return alt.Axis(values=list(ticks), format=IN_CHARTS) if ticks else alt.Axis()


def _scaled(values: ArrayLike, scale: Scale) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    return np.log(numbers) if scale == "log" else numbers
