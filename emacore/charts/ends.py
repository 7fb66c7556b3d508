"""Names of curves where they end, in place of a legend; and axes with ticks at round numbers."""

from __future__ import annotations

import math
import re
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

#: The column of the names, and that of their lines where they are written.
NAME, WRITTEN = "name", "written"
#: Pixels of a picture's height that the curves do not have: the x axis with its title takes them, and above and below
#: the curves the y axis, which ends at round numbers.
_AXIS = 95
#: Between two names, in pixels: the height of a line of small text.
_GAP = 15
#: Pixels that names take at most; longer ones, such as the code of a schedule, wrap, and on a narrow screen all do.
_MOST_ROOM = 240
#: Pixels that names have at least, also in a small picture: so "original" is one line.
_LEAST_ROOM = 72
#: Pixels of a letter on average, and letters that a line has: in the most room, and is taken to have in less than a
#: picture's names want.
_LETTER, _LINE = 7, 13
_LONGEST = (_MOST_ROOM - 8) // _LETTER
#: A pattern with the most letters of a line: it ends before a space or a bracket, or within a word that is too long.
_WRAPPED = r"(.{1,%s})(\s+|(?=[(_=])|$)|(.{%s})"


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
    """Where to write the name of each series: to the right of the last of its points that the axes can show.

    Names that would lie over each other are moved apart, up or down, in the order of their curves.

    Args:
        table: A long table.
        x, y, series: Names of its columns.
        height: The plot's, in pixels.
        y_domain: The ends of the y axis; by default those of all values that it can show.

    Returns:
        A row for each series: ``name``, ``x`` and ``y``, that of its first line, in units of the axes, and ``low``,
        the same where a narrow picture has more lines of them.
    """
    across, up = (table[column].to_numpy(dtype=np.float64) for column in (x, y))
    shown = drawable(up, y_scale) & drawable(across, x_scale)
    if not shown.any():
        return []
    seen = {name: own for name, rows in rows_of_series(table, series).items() if len(own := rows[shown[rows]])}
    last = [own[across[own].argmax()] for own in seen.values()]
    names, ends = [str(name) for name in seen], y_domain or (float(up[shown].min()), float(up[shown].max()))
    places = names_apart(names, up[last], height, ends, y_scale)
    lows = names_apart(names, up[last], height, ends, y_scale, narrow=True)
    return [
        {NAME: name, "x": float(at), "y": place, "low": low}
        for name, at, place, low in zip(names, across[last], places, lows, strict=True)
    ]


def plot_height(height: int) -> int:
    """Pixels of the plot's height in a picture of ``height`` pixels: without its x axis."""
    return max(height - _AXIS, height // 2)


def names_apart(
    names: Sequence[str],
    places: ArrayLike,
    height: int,
    ends: tuple[float, float],
    scale: Scale,
    *,
    narrow: bool = False,
) -> list[float]:
    """Places on an axis of ``height`` pixels with these ends, moved apart so that names have their first lines there.

    Args:
        narrow: Whether the picture has less room for them than :func:`room_for` says.
    """
    low, high = _scaled(ends, scale)
    letters = _LINE if narrow else _LONGEST
    pattern = re.compile(_WRAPPED % (letters, letters))
    lines = [len([part for part in pattern.finditer(name) if part[0]]) for name in names]
    moved = apart(_scaled(places, scale), _GAP / height * (high - low), low, high, lines)
    return np.exp(moved).tolist() if scale == "log" else moved


def room_for(names: Iterable[str]) -> int:
    """Pixels to keep free for names to the right of the curves: in steps of 20, since each makes another chart."""
    longest = max(map(len, names), default=0)
    return min(_MOST_ROOM, 20 * math.ceil((_LETTER * longest + 12) / 20))


def free_of(room: int) -> list[Any]:
    """The range of a scale across the plot that keeps ``room`` free, but never more than a third of a plot that is not
    small."""
    return [0, alt.ExprRef(f"width - {_taken(room)}")]


def _taken(room: int) -> str:
    return f"min({room}, max({_LEAST_ROOM}, 0.34 * width))"


def apart(places: ArrayLike, gap: float, low: float, high: float, lines: Sequence[int] = ()) -> list[float]:
    """``places``, moved as little as is simple, so that each two are ``gap`` apart and none leaves [low, high].

    Where the range has no room for that, they share it evenly.

    Args:
        lines: How many lines, each a ``gap`` below the one before, hang from each place, so that their middle is
            wanted there; by default one.
    """
    around = np.clip(np.asarray(places, dtype=np.float64), low, high)
    if not len(around):
        return []
    hanging = gap * (np.asarray(lines or np.ones(len(around)), dtype=np.float64) - 1)
    wanted = np.clip(around + hanging / 2, np.minimum(low + hanging, high), high)
    order = np.argsort(around, kind="stable")
    lowest = min(low + hanging[order[0]], high)
    steps = np.concatenate([[0.0], np.cumsum(gap + hanging[order[1:]])])
    if steps[-1] > high - lowest:
        steps *= (high - lowest) / steps[-1]
    # Less the room of those below it, each place only has to be no lower than the one before it.
    moved = np.maximum.accumulate(wanted[order] - steps)
    moved = np.maximum(np.minimum(moved, high - steps[-1]), lowest) + steps
    result = np.empty(len(order))
    result[order] = moved
    return [float(place) for place in result]


def name_marks(colour: alt.Color, room: int) -> alt.Chart:
    """The layer that writes names, on the axes of the layers before it; its rows come from :func:`names_at_ends`.

    Args:
        colour: The channel of the curves' colours.
        room: Pixels that :func:`room_for` keeps free for them.
    """
    letters = f"max(4, floor(({_taken(room)} - 8) / {_LETTER}))"
    pattern = "'" + _WRAPPED.replace("\\", "\\\\").replace("%s", f"' + {letters} + '") + "'"
    text: alt.Chart = (
        alt.Chart()
        .transform_calculate(
            **{
                WRITTEN: f"split(trim(replace(datum.{NAME}, regexp({pattern}, 'g'), '$1$3\\n')), '\\n')",
                "place": f"{_taken(room)} < {room} ? datum.low : datum.y",
            }
        )
        .mark_text(
            align="left",
            dx=6,
            fontSize=12,
            fontWeight=600,
            lineHeight=_GAP,
            limit=alt.ExprRef(f"{_taken(room)} - 8"),
        )
    )
    return text.encode(
        x=alt.X("x:Q"),
        y=alt.Y("place:Q"),
        text=alt.Text(f"{WRITTEN}:N"),
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
