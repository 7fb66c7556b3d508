"""A metric over a plane of two settings, against a reference."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from emacore.charts.figure import Figure, spec_of
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL

#: The name of the selection in which a clicked cell arrives.
CELL = "cell"


def heatmap(
    table: pd.DataFrame, *, reference: float, x_title: str, y_title: str, dotted: str | None = None, height: int = 460
) -> Figure:
    """Cells of columns x, y, loss; blue where the loss is below ``reference``, orange where it is above.

    Colours are in log2 of the ratio and end at a factor of 4 both ways, which the page says in words.  The lowest cell
    is marked, and cells in which ``dotted`` (a column of booleans) is true have a dot.
    """
    shown = table.assign(
        change=np.log2(table["loss"] / reference).clip(-2, 2),
        percent=100 * (table["loss"] / reference - 1),
        dot=table[dotted] if dotted else False,
        best=table.index == table["loss"].idxmin() if table["loss"].notna().any() else False,
    )
    return Figure(shown, _spec(x_title, y_title, height))


@lru_cache(maxsize=64)
def _spec(x_title: str, y_title: str, height: int) -> dict[str, Any]:
    cell = alt.selection_point(name=CELL, fields=["code"], toggle=False)
    base = alt.Chart().encode(
        x=alt.X("x:O", title=x_title, axis=alt.Axis(format=".5~g", labelOverlap=True, labelAngle=-45)),
        y=alt.Y("y:O", title=y_title, sort="descending", axis=alt.Axis(format=".5~g", labelOverlap=True)),
    )
    cells = (
        base.mark_rect()
        .encode(
            fill=alt.Fill(
                "change:Q",
                scale=alt.Scale(domain=[-2, 0, 2], range=[AVERAGED, "#F4F4F4", ORIGINAL]),
                legend=None,
            ),
            stroke=alt.when(alt.datum.best).then(alt.value("#D6246E")).otherwise(alt.value(CLEAN)),
            strokeWidth=alt.when(alt.datum.best).then(alt.value(3)).otherwise(alt.value(0)),
            tooltip=[
                alt.Tooltip("x:O", title=x_title),
                alt.Tooltip("y:O", title=y_title),
                alt.Tooltip("loss:Q", title="loss (MSE)", format=".5~g"),
                alt.Tooltip("percent:Q", title="change against the original (%)", format="+.3~g"),
            ],
        )
        .add_params(cell)
    )
    dots = base.mark_circle(size=14, color=CLEAN, opacity=1).transform_filter(alt.datum.dot)
    return spec_of(alt.layer(cells, dots).properties(height=height))
