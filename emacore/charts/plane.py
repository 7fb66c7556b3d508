"""Paths in a plane of two weights, over the contours of a quadratic loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL

COLOURS = {"SGD": ORIGINAL, "average": AVERAGED}


def paths(
    original: NDArray[np.float64], averaged: NDArray[np.float64], curvatures: Sequence[float], *, height: int = 520
) -> alt.LayerChart:
    """The iterates (orange) and their average (blue), both of shape (T, 2), around the minimum at the origin."""
    # Square, wide enough for both, and steady while the path grows.
    reach = float(np.ceil(2 * np.nanmax(np.abs(np.concatenate([original, averaged])))) / 2) or 0.5
    scale = alt.Scale(domain=[-reach, reach], nice=False)
    levels = [reach * share for share in (0.25, 0.5, 0.75, 1.0)]
    angle = np.linspace(0, 2 * np.pi, 73)
    ellipses = pd.concat(
        [
            pd.DataFrame(
                {
                    "w1": size * np.cos(angle) / np.sqrt(curvatures[0] / min(curvatures)),
                    "w2": size * np.sin(angle) / np.sqrt(curvatures[1] / min(curvatures)),
                    "level": size,
                    "order": np.arange(len(angle)),
                }
            )
            for size in levels
        ]
    )
    table = pd.concat(
        [
            pd.DataFrame({"w1": path[:, 0], "w2": path[:, 1], "path": name, "step": np.arange(len(path))})
            for name, path in (("SGD", original), ("average", averaged))
        ]
    )
    highlight = alt.selection_point(fields=["path"], bind="legend")
    x = alt.X("w1:Q", title="weight 1", scale=scale)
    y = alt.Y("w2:Q", title="weight 2", scale=scale)
    colour = alt.Color(
        "path:N",
        scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())),
        legend=alt.Legend(title=None, orient="bottom", symbolStrokeWidth=3),
    )
    contours = (
        alt.Chart(ellipses)
        .mark_line(color=CLEAN, opacity=0.35, strokeWidth=1, clip=True)
        .encode(x=x, y=y, order="order:Q", detail="level:N")
    )
    lines = (
        alt.Chart(table)
        .mark_line(clip=True)
        .encode(
            x=x,
            y=y,
            order="step:Q",
            color=colour,
            opacity=alt.when(highlight).then(alt.value(0.75)).otherwise(alt.value(0.1)),
            strokeWidth=alt.when(alt.datum.path == "SGD").then(alt.value(1)).otherwise(alt.value(2.6)),
        )
        .add_params(highlight)
    )
    heads = (
        alt.Chart(table.groupby("path", sort=False).tail(1))
        .mark_circle(size=130, clip=True)
        .encode(
            x=x,
            y=y,
            color=colour,
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
    return cast(alt.LayerChart, alt.layer(contours, lines, minimum, heads).properties(height=height))
