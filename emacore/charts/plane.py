"""Paths in a plane of two weights, over the contours of a quadratic loss."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emacore.charts.figure import Figure, spec_of
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL

COLOURS = {"SGD": ORIGINAL, "average": AVERAGED}


def paths(
    original: NDArray[np.float64],
    averaged: NDArray[np.float64],
    curvatures: tuple[float, float],
    *,
    reach: float,
    height: int = 520,
) -> Figure:
    """The iterates (orange) and their average (blue), both of shape (T, 2), around the minimum at the origin.

    Args:
        curvatures: Of the loss along the two weights.
        reach: Both axes go from ``-reach`` to ``reach``, rounded up to halves.
    """
    table = pd.concat(
        [
            pd.DataFrame(
                {
                    "w1": path[:, 0],
                    "w2": path[:, 1],
                    "path": name,
                    "step": np.arange(len(path)),
                    "newest": np.arange(len(path)) == len(path) - 1,
                }
            )
            for name, path in (("SGD", original), ("average", averaged))
        ],
        ignore_index=True,
    )
    return Figure(table, _spec(curvatures, max(math.ceil(2 * reach) / 2, 0.5), height))


@lru_cache(maxsize=64)
def _spec(curvatures: tuple[float, float], reach: float, height: int) -> dict[str, Any]:
    scale = alt.Scale(domain=[-reach, reach], nice=False)
    highlight = alt.selection_point(name="highlight", fields=["path"], bind="legend")
    x = alt.X("w1:Q", title="weight 1", scale=scale)
    y = alt.Y("w2:Q", title="weight 2", scale=scale)
    colour = alt.Color(
        "path:N",
        scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
        legend=alt.Legend(title=None, orient="bottom", symbolStrokeWidth=3),
    )
    contours = (
        alt.Chart(_ellipses(curvatures, reach))
        .mark_line(color=CLEAN, opacity=0.35, strokeWidth=1, clip=True)
        .encode(x=x, y=y, order="order:Q", detail="level:N")
    )
    drawn = alt.Chart().encode(x=x, y=y, color=colour)
    lines = (
        drawn.mark_line(clip=True)
        .encode(
            order="step:Q",
            opacity=alt.when(highlight).then(alt.value(0.75)).otherwise(alt.value(0.1)),
            strokeWidth=alt.when(alt.datum.path == "SGD").then(alt.value(1)).otherwise(alt.value(2.6)),
        )
        .add_params(highlight)
    )
    heads = (
        drawn.mark_circle(size=130, clip=True)
        .transform_filter(alt.datum.newest)
        .encode(
            tooltip=[
                alt.Tooltip("path:N", title=" "),
                alt.Tooltip("step:Q"),
                alt.Tooltip("w1:Q", title="weight 1", format=".4f"),
                alt.Tooltip("w2:Q", title="weight 2", format=".4f"),
            ],
        )
    )
    minimum = (
        alt.Chart(pd.DataFrame({"w1": [0.0], "w2": [0.0]}))
        .mark_point(shape="cross", size=90, color=CLEAN, filled=True)
        .encode(x=x, y=y)
    )
    return spec_of(alt.layer(contours, lines, minimum, heads).properties(height=height))


def _ellipses(curvatures: tuple[float, float], reach: float) -> pd.DataFrame:
    """Four lines of equal loss; the largest touches the border along the flatter weight."""
    angle = np.linspace(0, 2 * np.pi, 73)
    narrow = np.sqrt(np.array(curvatures) / min(curvatures))
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "w1": size * np.cos(angle) / narrow[0],
                    "w2": size * np.sin(angle) / narrow[1],
                    "level": size,
                    "order": np.arange(len(angle)),
                }
            )
            for size in (0.25 * reach, 0.5 * reach, 0.75 * reach, reach)
        ]
    )
