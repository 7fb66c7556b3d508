"""Paths in a plane of the weights, over the lines of equal loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emacore.charts.figure import Figure, spec_of, with_layer_data
from emacore.charts.moving import Frames
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL

Floats = NDArray[np.floating[Any]]
Rows = list[dict[str, Any]]

#: The trained weights, by the names they have on two pages, and their average.
COLOURS = {"SGD": ORIGINAL, "original": ORIGINAL, "average": AVERAGED}
_CONTOURS, _PATHS, _MARKS, _HEADS, _HALOS, _NAMES = range(6)
_MOVING = (_PATHS, _HEADS, _HALOS, _NAMES)


def paths(
    original: Floats, averaged: Floats, curvatures: tuple[float, float], *, reach: float, height: int = 520
) -> Figure:
    """The iterates (orange) and their average (blue), both of shape (T, 2), around a quadratic's minimum at the origin.

    Args:
        curvatures: Those of the loss along the two weights.
        reach: Both axes go from ``-reach`` to ``reach``, rounded up to halves.
    """
    border = border_of(reach)
    spec = _spec(("SGD", "average"), ("weight 1", "weight 2"), (-border, border), (-border, border), "loss", height)
    spec = with_layer_data(spec, _CONTOURS, _ellipses(curvatures, border))
    spec = with_layer_data(spec, _MARKS, [{"u": 0.0, "v": 0.0, "mark": "minimum"}])
    return Figure(_table({"SGD": original, "average": averaged}, np.arange(len(original))), spec)


def border_of(reach: float) -> float:
    """Where the axes of :func:`paths` end."""
    return max(math.ceil(2 * reach) / 2, 0.5)


def path_frames(
    original: Mapping[str, Sequence[Floats]], averaged: Mapping[str, Sequence[Floats]]
) -> tuple[Frames, Frames]:
    """The frames of :func:`paths`.

    Args:
        original, averaged: By the keys of the handles that move a path: the path at each mark, shape (T, 2).
    """

    def frames(name: str, by_handle: Mapping[str, Sequence[Floats]]) -> Frames:
        steps = np.arange(len(next(iter(by_handle.values()))[0]))
        rows = pd.DataFrame({"path": name, "step": steps, "newest": steps == steps[-1]})
        moving = {
            key: {
                axis: np.stack([path[:, n] for path in paths], axis=1, dtype=np.float64)
                for n, axis in enumerate(("u", "v"))
            }
            for key, paths in by_handle.items()
        }
        return Frames(rows, moving, "path", layers=_MOVING)

    return frames("SGD", original), frames("average", averaged)


def playing(figure: Figure) -> Figure:
    """A figure of :func:`paths` whose paths go up to the step that the picture's signal ``shown`` holds."""
    layers = list(figure.spec["layer"])
    last = int(figure.data["step"].max())
    layers[_PATHS] = {**layers[_PATHS], "transform": [{"filter": "datum.step <= shown"}]}
    for place in (_HEADS, _HALOS, _NAMES):
        layers[place] = {**layers[place], "transform": [{"filter": f"datum.step == min(shown, {last})"}]}
    return figure._replace(spec={**figure.spec, "layer": layers})


def paths_on_landscape(
    original: Floats,
    averaged: Floats,
    steps: NDArray[np.integer[Any]],
    landscape: pd.DataFrame,
    *,
    titles: tuple[str, str],
    height: int = 520,
) -> Figure:
    """The path of a network's weights (orange) and of their average (blue) in a plane, over contours of the loss there.

    Args:
        original, averaged: Places in the plane, shape (N, 2).
        steps: The steps of the run to which they belong, shape (N,).
        landscape: A full grid of places and the measured loss there: u, v, loss.
        titles: The titles of the two axes.
    """
    grid = landscape.pivot(index="v", columns="u", values="loss")
    u, v = (tuple(float(side) for side in (axis[0], axis[-1])) for axis in (grid.columns, grid.index))
    spec = _spec(("original", "average"), titles, u, v, "validation loss", height)
    spec = with_layer_data(spec, _CONTOURS, _contours(grid))
    return Figure(_table({"original": original, "average": averaged}, steps), with_layer_data(spec, _MARKS, []))


def _table(places: dict[str, Floats], steps: NDArray[np.integer[Any]]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"u": path[:, 0], "v": path[:, 1], "path": name, "step": steps}) for name, path in places.items()
    ]
    one, other = (path[:, 1] for path in places.values())
    above = np.concatenate([one >= other, other > one])
    return pd.concat(parts, ignore_index=True).assign(newest=lambda t: t["step"] == steps[-1], above=above)


@lru_cache(maxsize=64)
def _spec(
    names: tuple[str, str],
    titles: tuple[str, str],
    u: tuple[float, float],
    v: tuple[float, float],
    level: str,
    height: int,
) -> dict[str, Any]:
    highlight = alt.selection_point(name="highlight", fields=["path"], on="click")
    # A label that goes beyond the picture's border would be cut off there.
    inside = alt.Axis(labelBound=True)
    x = alt.X("u:Q", title=titles[0], scale=alt.Scale(domain=list(u), nice=False), axis=inside)
    y = alt.Y("v:Q", title=titles[1], scale=alt.Scale(domain=list(v), nice=False))
    colour = alt.Color(
        "path:N",
        scale=alt.Scale(domain=list(names), range=[COLOURS[name] for name in names]),
        legend=None,
    )
    contours = (
        alt.Chart()
        .mark_line(color=CLEAN, opacity=0.45, strokeWidth=1, clip=True)
        .encode(
            x=x,
            y=y,
            order=alt.Order("order:Q"),
            detail=alt.Detail("piece:N"),
            tooltip=alt.Tooltip("level:Q", title=level, format=",.4~r"),
        )
    )
    drawn = alt.Chart().encode(x=x, y=y, color=colour)
    lines = drawn.mark_line(clip=True).encode(
        order=alt.Order("step:Q"),
        opacity=alt.OpacityValue(**alt.when(highlight).then(alt.value(0.9)).otherwise(alt.value(0.1))),
        strokeWidth=alt.StrokeWidthValue(
            **alt.when(alt.datum.path == names[0]).then(alt.value(1)).otherwise(alt.value(2.6))
        ),
    )
    heads = (
        drawn.mark_circle(size=130, clip=True, opacity=1)
        .transform_filter(alt.datum.newest)
        .encode(
            tooltip=[
                alt.Tooltip("path:N", title=" "),
                alt.Tooltip("step:Q", format=","),
                alt.Tooltip("u:Q", title=titles[0], format=".4f"),
                alt.Tooltip("v:Q", title=titles[1], format=".4f"),
            ],
        )
    )
    # Towards the middle of the plot, and apart: the upper path's name above, where it is known which that is.
    right = f"datum.u > {(u[0] + u[1]) / 2!r}"
    text: dict[str, Any] = {
        "clip": True,
        "fontSize": 12,
        "fontWeight": 700,
        "align": alt.ExprRef(f"{right} ? 'right' : 'left'"),
        "dx": alt.ExprRef(f"{right} ? -10 : 10"),
        "dy": alt.ExprRef(f"(isValid(datum.above) ? datum.above : datum.path == '{names[0]}') ? -10 : 12"),
    }
    told = alt.Chart().transform_filter(alt.datum.newest).encode(x=x, y=y, text=alt.Text("path:N"))
    behind = told.mark_text(**text, stroke=alt.ExprRef("background"), strokeWidth=4, strokeJoin="round", opacity=0.85)
    before = told.mark_text(**text).encode(color=colour).add_params(highlight)
    marks = alt.Chart().mark_point(shape="cross", size=90, color=CLEAN, filled=True).encode(x=x, y=y)
    return spec_of(alt.layer(contours, lines, marks, heads, behind, before).properties(height=height))


@lru_cache(maxsize=64)
def _ellipses(curvatures: tuple[float, float], reach: float) -> Rows:
    """Four lines of equal loss; the largest touches the border along the flatter weight."""
    angle = np.linspace(0, 2 * np.pi, 73)
    narrow = np.sqrt(np.array(curvatures) / min(curvatures))
    return [
        {
            "u": size * math.cos(a) / narrow[0],
            "v": size * math.sin(a) / narrow[1],
            "level": size**2 * min(curvatures) / 2,
            "piece": n,
            "order": k,
        }
        for n, size in enumerate((0.25 * reach, 0.5 * reach, 0.75 * reach, reach))
        for k, a in enumerate(angle.tolist())
    ]


def _contours(grid: pd.DataFrame, levels: int = 10) -> Rows:
    """Lines of equal loss over a grid with rows v and columns u; levels are even in the loss' logarithm."""
    loss = grid.to_numpy()
    finite = loss[np.isfinite(loss) & (loss > 0)]
    if not finite.size or finite.min() == finite.max():
        return []
    import contourpy  # which the first page does without

    found = contourpy.contour_generator(grid.columns.to_numpy(), grid.index.to_numpy(), np.ma.masked_invalid(loss))
    rows: Rows = []
    piece = 0
    for level in np.geomspace(finite.min(), finite.max(), levels + 2)[1:-1].tolist():
        for line in found.lines(level):
            points = np.asarray(line)
            rows += [
                {"u": u, "v": v, "level": level, "piece": piece, "order": k} for k, (u, v) in enumerate(points.tolist())
            ]
            piece += 1
    return rows
