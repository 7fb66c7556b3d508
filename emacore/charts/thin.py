"""Fewer points for the eye: what a line of a few hundred pixels can show, in the scale in which it is drawn."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Positions = NDArray[np.intp]
Scale = Literal["linear", "log"]

#: Points that a line gets at most: two for each pixel column of a narrow chart, and some for its corners.
MAX_POINTS = 800
#: How far a smooth line may be off, as a share of the axis; half a pixel of a chart of usual height.
TOLERANCE = 0.0015
#: How far a frame may be off, as a share of the axis: more, because a reader sees one at a time, while it moves.
TOLERANCE_OF_FRAMES = 0.005
#: The share of a line's points that is kept free for corners.
_CORNERS = 1 / 8


def kept_rows(
    x: ArrayLike,
    y: ArrayLike,
    max_points: int = MAX_POINTS,
    *,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    y_range: tuple[float, float] | None = None,
) -> Positions:
    """Positions of the rows to draw of a line from point to point, in the order of ``x``.

    They hold the first and the last row and the lowest and the highest of each pixel column of the axis that is drawn.
    Where the straight lines between those miss a row by more than ``TOLERANCE`` of the axis, rows are added, the worst
    first, until none is missed: so a curve keeps its bends, its plateaus and its cliffs.  A line with too many such
    places for that is noise, which its extremes show.

    Args:
        x: Shape (rows,).
        y: Shape (rows,), or (rows, lines) for lines that share their rows: each keeps its own extremes and corners.
        max_points: As many rows are kept at most, but never fewer than the ends and one column's extremes.
        x_scale, y_scale: The scales of the axes.  Rows that :func:`drawable` excludes are never kept; where there are
            few gaps, the rows at their borders are.
        y_range: The ends of the y axis, in units of ``y``; those of this line by default.

    Returns:
        Shape (kept,), without repeats.
    """
    across = np.asarray(x, dtype=np.float64)
    up = np.asarray(y, dtype=np.float64).reshape(len(across), -1)
    shown = drawable(across, x_scale) & drawable(up, y_scale).all(axis=1)
    rows = np.arange(len(across))
    if not shown.all():
        rows, across, up = rows[shown], across[shown], up[shown]
    if np.any(across[1:] < across[:-1]):
        order = np.argsort(across, kind="stable")  # as Vega-Lite draws it
        rows, across, up = rows[order], across[order], up[order]
    if len(rows) <= max_points:
        return rows
    u = _on_axis(across, x_scale, (float(across[0]), float(across[-1])))
    ends = y_range or axis_ends(up, y_scale)
    lines = [_on_axis(line, y_scale, ends) for line in up.T]
    borders = np.flatnonzero(np.diff(rows) > 1) if not shown.all() else np.empty(0, dtype=np.intp)
    corners = int(max_points * _CORNERS)
    columns = max(1, (max_points - corners - 2) // (2 * len(lines)))
    kept = _extremes(u, lines, columns)
    if len(kept) + 2 * len(borders) <= max_points:
        kept = np.union1d(kept, [borders, borders + 1])
    return rows[_with_corners(u, lines, kept, max_points)]


def rows_with_gaps(x: ArrayLike, y: ArrayLike, *, y_scale: Scale, y_range: tuple[float, float]) -> Positions:
    """What :func:`kept_rows` keeps of a long line before it becomes a table, and of each gap between those one row.

    So :func:`thin` draws of these rows what it draws of all: a gap stays one, and nothing is thinned twice, which would
    lose extremes of the pixel columns.  Arguments as there, but for the scale of x, which is linear.
    """
    missing = np.flatnonzero(~(drawable(x, "linear") & drawable(y, y_scale)))
    kept = kept_rows(x, y, y_scale=y_scale, y_range=y_range)
    if not len(missing):
        return kept
    _, first = np.unique(np.searchsorted(np.sort(kept), missing), return_index=True)
    return np.union1d(kept, missing[first])


def common_rows(
    x: ArrayLike,
    lines: Iterable[ArrayLike],
    *,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    y_range: tuple[float, float],
) -> Positions:
    """Positions of rows that show each of many smooth lines: none is missed by ``TOLERANCE_OF_FRAMES`` of the axis.

    Each line is looked at whole, one after the other, and gets rows where those before it do not show it within half
    of that.  Rows that later lines add bend its drawn line by no more than the other half: it was off by half at most
    where they are, and straight between them.

    Args:
        x: Shape (rows,), increasing, on the axis.
        lines: Each of shape (rows,).  The last row before a line leaves what the axis can show and the first after it
            are kept; so are those on both sides of an end of the axis, beyond which a line needs no rows.
        y_range: The ends of the y axis.

    Returns:
        Shape (kept,), the first and the last row among them.
    """
    across = np.asarray(x, dtype=np.float64)
    u = _on_axis(across, x_scale, (float(across[0]), float(across[-1])))
    kept = np.unique([0, len(across) - 1])
    for line in lines:
        values = np.asarray(line, dtype=np.float64)
        shown = drawable(values, y_scale)
        side = np.where(shown, (values > y_range[1]).astype(np.int8) - (values < y_range[0]), -2)
        v = _on_axis(values if shown.all() else np.where(shown, values, y_range[0]), y_scale, y_range)
        borders = np.flatnonzero(side[1:] != side[:-1])
        kept = _with_misses(u, v, np.union1d(kept, [borders, borders + 1]) if len(borders) else kept)
    return kept


def _with_misses(u: Floats, v: Floats, kept: Positions) -> Positions:
    """``kept`` with the rows that straight lines between kept ones miss most, until none is missed by half of
    ``TOLERANCE_OF_FRAMES``."""
    most = TOLERANCE_OF_FRAMES / 2
    worst = np.maximum.reduceat(np.abs(v - np.interp(u, u[kept], v[kept])), kept)
    gaps = [(int(kept[gap]), int(kept[gap + 1])) for gap in np.flatnonzero(worst > most)]
    added = []
    while gaps:
        start, stop = gaps.pop()
        share = (u[start : stop + 1] - u[start]) / (u[stop] - u[start])
        off = np.abs(v[start : stop + 1] - (v[start] + share * (v[stop] - v[start])))
        place = int(off.argmax())
        if off[place] > most:
            added.append(start + place)
            gaps += [(start, start + place), (start + place, stop)]
    return np.union1d(kept, added) if added else kept


def thin(
    table: pd.DataFrame,
    x: str,
    y: str | Sequence[str],
    series: str,
    max_points: int = MAX_POINTS,
    *,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    y_domain: tuple[float, float] | None = None,
) -> pd.DataFrame:
    """The rows of ``table`` to draw as one line for each value of ``series``; see :func:`kept_rows`.

    Args:
        x, y, series: Names of columns; several ``y`` share their rows.
        y_domain: The ends of the y axis; by default those of all values that it can show.

    Returns:
        Rows of ``table`` with two further columns.  ``piece``: rows between which the axes cannot show one have
        different numbers there, and no line must lead from the one to the other.  ``alone``: whether a row is all of
        its piece, so that there is no line to see.
    """
    columns = [y] if isinstance(y, str) else list(y)
    values = np.column_stack([table[column].to_numpy(dtype=np.float64) for column in columns])
    visible = drawable(values, y_scale).all(axis=1) & drawable(table[x], x_scale)
    ends = y_domain or axis_ends(values, y_scale)
    places, pieces, alone = [], [], []
    for own in rows_of_series(table, series).values():
        across, up = table[x].to_numpy(dtype=np.float64)[own], values[own]
        kept = kept_rows(across, up, max_points, x_scale=x_scale, y_scale=y_scale, y_range=ends)
        places.append(own[kept])
        pieces.append(np.cumsum(~visible[own])[kept])
        _, of_piece, sizes = np.unique(pieces[-1], return_inverse=True, return_counts=True)
        alone.append(sizes[of_piece] == 1)
    if not places:
        return table.iloc[:0].assign(piece=0, alone=False)
    return table.iloc[np.concatenate(places)].assign(piece=np.concatenate(pieces), alone=np.concatenate(alone))


def rows_of_series(table: pd.DataFrame, series: str) -> dict[Any, Positions]:
    """The positions of the rows of each series, in the order in which they come."""
    codes, names = pd.factorize(table[series])
    return {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}


def drawable(values: ArrayLike, scale: Scale) -> NDArray[np.bool_]:
    """Which values an axis can show: finite ones, and on a log axis those above 0."""
    numbers = np.asarray(values, dtype=np.float64)
    return np.isfinite(numbers) & (numbers > 0) if scale == "log" else np.isfinite(numbers)


def axis_ends(values: ArrayLike, scale: Scale) -> tuple[float, float]:
    """The lowest and the highest of the values that an axis can show, or (0, 0) if it can show none.

    Values that are one number up to rounding, such as the weights of a plain mean, get an axis that is wider than they
    are: 10 % to both sides.
    """
    numbers = np.asarray(values, dtype=np.float64)
    shown = drawable(numbers, scale)
    if not shown.any():
        return 0.0, 0.0
    low = float(np.min(numbers, where=shown, initial=np.inf))
    high = float(np.max(numbers, where=shown, initial=-np.inf))
    size = max(abs(low), abs(high))
    if 0 < high - low <= 4 * np.finfo(np.float64).eps * numbers.size * size:
        return low - size / 10, high + size / 10
    return low, high


def roomy_ends(values: ArrayLike, scale: Scale) -> tuple[float, float]:
    """:func:`axis_ends` of an axis that has a length also where all values are one number, or none can be shown."""
    low, high = axis_ends(values, scale)
    if low < high:
        return low, high
    if not low:
        return (0.1, 1.0) if scale == "log" else (-1.0, 1.0)
    return low - abs(low) / 10, low + abs(low) / 10


def left_out(table: pd.DataFrame, scales: Mapping[str, Scale], series: str) -> str:
    """A sentence that says how many rows of which series the axes cannot show, and why; empty where they show all.

    Args:
        scales: The scale of each column that is drawn.
    """
    values = {column: table[column].to_numpy(dtype=np.float64) for column in scales}
    rows_of = rows_of_series(table, series)
    return left_out_of({name: {key: of[rows] for key, of in values.items()} for name, rows in rows_of.items()}, scales)


def left_out_of(lines: Mapping[str, Mapping[str, Floats]], scales: Mapping[str, Scale]) -> str:
    """The same of lines that are not in a table: by name, the values of each column that is drawn, of equal length."""
    told = []
    for name, values in lines.items():
        missing = ~np.logical_and.reduce([drawable(values[column], scale) for column, scale in scales.items()])
        if missing.any():
            kinds = _kinds([(values[column][missing], scale) for column, scale in scales.items()])
            told.append(f"{missing.sum():,} of {len(missing):,} values of {name} ({kinds})")
    return f"Not drawn, because the axis cannot show them: {'; '.join(told)}." if told else ""


def _kinds(columns: Sequence[tuple[Floats, Scale]]) -> str:
    """Which kinds of values the axes cannot show are in these rows: "missing, infinite, 0, below 0"."""
    kinds = {
        "missing": any(np.isnan(some).any() for some, _ in columns),
        "infinite": any(np.isinf(some).any() for some, _ in columns),
        "0": any((some == 0).any() for some, scale in columns if scale == "log"),
        "below 0": any(((some < 0) & np.isfinite(some)).any() for some, scale in columns if scale == "log"),
    }
    return ", ".join(kind for kind, present in kinds.items() if present)


def _on_axis(values: Floats, scale: Scale, ends: tuple[float, float]) -> Floats:
    """Where on an axis from 0 to 1 values are drawn: beyond an end at that end, and all at 0 if both ends are one."""
    low, high = ends
    if scale == "log":
        values, low, high = np.log(values), math.log(low), math.log(high)
    length = high / 2 - low / 2  # halved, so that no length is too large for a float
    if not length > 0:
        return np.zeros(len(values))
    return np.clip((values / 2 - low / 2) / length, 0.0, 1.0)


def _extremes(u: Floats, lines: Sequence[Floats], columns: int) -> Positions:
    """The first row, the last, and the lowest and the highest of each line in each of so many columns of the axis."""
    edges = np.searchsorted(u, np.arange(1, columns) / columns)
    stretches = [(start, stop) for start, stop in zip([0, *edges], [*edges, len(u)], strict=True) if stop > start]
    found = [0, len(u) - 1]
    for line in lines:
        for start, stop in stretches:
            part = line[start:stop]
            found += [start + int(part.argmin()), start + int(part.argmax())]
    return np.unique(np.asarray(found, dtype=np.intp))


def _with_corners(u: Floats, lines: Sequence[Floats], kept: Positions, max_points: int) -> Positions:
    """``kept`` with the rows that straight lines between kept ones miss most, until they miss none or it is full."""
    missed = np.zeros(len(u))
    for line in lines:
        np.maximum(missed, np.abs(line - np.interp(u, u[kept], line[kept])), out=missed)
    worst = np.maximum.reduceat(missed, kept[:-1])
    gaps = np.flatnonzero(worst > TOLERANCE)
    if len(gaps) > max_points - len(kept):
        return kept

    def split(start: int, stop: int) -> tuple[float, int, int, int]:
        """The gap between two kept rows: minus the largest miss in it, where that is, and its ends."""
        inside = slice(start, stop + 1)
        off = np.zeros(stop + 1 - start)
        for line in lines:
            ends = line[[start, stop]]
            straight = (
                np.interp(u[inside], u[[start, stop]], ends) if u[stop] > u[start] else np.full(len(off), ends[0])
            )
            np.maximum(off, np.abs(line[inside] - straight), out=off)
        off[[0, -1]] = 0.0
        place = int(off.argmax())
        return -float(off[place]), start + place, start, stop

    queue = [split(int(kept[gap]), int(kept[gap + 1])) for gap in gaps]
    heapq.heapify(queue)
    added: list[int] = []
    while queue and -queue[0][0] > TOLERANCE and len(kept) + len(added) < max_points:
        _, place, start, stop = heapq.heappop(queue)
        added.append(place)
        heapq.heappush(queue, split(start, place))
        heapq.heappush(queue, split(place, stop))
    return np.union1d(kept, np.asarray(added, dtype=np.intp))
