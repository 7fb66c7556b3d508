"""Names of curves where they end, in place of a legend; and ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from emacore.charts.thin import Floats, Scale, drawable, rows_of_series
from emacore.formatting import IN_CHARTS, WHOLE_IN_CHARTS

#: An axis of whole numbers, which has no ticks between them.
WHOLE_AXIS = alt.Axis(format=WHOLE_IN_CHARTS, tickMinStep=1)

#: The column of the names.
NAME = "name"
#: Pixels of a picture's height that the axis below it takes, where that stands alone.
_AXIS = 60
#: Between two names, in pixels: the height of a line of small text.
_GAP = 15
#: In pixels; the code of a schedule is longer, and its tooltip has all of it.
_MOST_ROOM = 240


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

    They are written to the right of it.  Names that would lie over each other are moved apart, up or down, in the order
    of their curves.

    Args:
        table: A long table.
        x, y, series: Names of its columns.
        height: Of the plot, in pixels.
        y_domain: The ends of the y axis; by default those of all values that it can show.

    Returns:
        A row for each series: ``name``, ``x`` and ``y`` in units of the axes.
    """
    across, up = (table[column].to_numpy(dtype=np.float64) for column in (x, y))
    shown = drawable(up, y_scale) & drawable(across, x_scale)
    if not shown.any():
        return []
    seen = {name: own for name, rows in rows_of_series(table, series).items() if len(own := rows[shown[rows]])}
    last = [own[across[own].argmax()] for own in seen.values()]
    places = names_apart(up[last], height, y_domain or (up[shown].min(), up[shown].max()), y_scale)
    return [
        {NAME: str(name), "x": float(at), "y": place}
        for name, at, place in zip(seen, across[last], places, strict=True)
    ]


def plot_height(height: int) -> int:
    """Of a picture of so many pixels, without its axis."""
    return max(height - _AXIS, height // 2)


def names_apart(places: ArrayLike, height: int, ends: tuple[float, float], scale: Scale) -> list[float]:
    """Places on an axis of ``height`` pixels with these ends, moved apart so that names can stand there."""
    low, high = _scaled(ends, scale)
    moved = apart(_scaled(places, scale), _GAP / height * (high - low), low, high)
    return np.exp(moved).tolist() if scale == "log" else moved


def room_for(names: Iterable[str]) -> int:
    """Pixels to keep free for such names to the right of the curves, in steps of 20, since each makes another chart."""
    longest = max(map(len, names), default=0)
    return min(_MOST_ROOM, 20 * math.ceil((7 * longest + 12) / 20))


def free_of(room: int) -> list[Any]:
    """The range of a scale across the plot that keeps ``room`` free, but never more than a third of the plot."""
    return [0, alt.ExprRef(f"width - {_taken(room)}")]


def _taken(room: int) -> str:
    return f"min({room}, 0.34 * width)"


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


def name_marks(colour: alt.Color, room: int) -> alt.Chart:
    """The layer that writes them, over the axes of the layers before it; its rows are :func:`names_at_ends`."""
    text: alt.Chart = alt.Chart().mark_text(
        align="left", dx=6, fontSize=12, fontWeight=600, limit=alt.ExprRef(f"{_taken(room)} - 8")
    )
    return text.encode(
        x=alt.X("x:Q"),
        y=alt.Y("y:Q"),
        text=alt.Text(f"{NAME}:N"),
        color=colour,
        tooltip=alt.Tooltip(f"{NAME}:N", title=" "),
    )


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
