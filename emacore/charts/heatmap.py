"""Maps over a plane of two settings: a metric of one run against a reference, and what many seeds show."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from emacore.charts.figure import Figure, spec_of, with_layer_data
from emacore.charts.style import AVERAGED, CHOSEN, CLEAN, ORIGINAL

#: The name of the selection in which a clicked cell arrives.
CELL = "cell"
#: Over log2 of the ratio to the original; they end at a factor of 4 both ways, which the page says in words.
_COLOURS = alt.Scale(domain=[-2, 0, 2], range=[AVERAGED, "#F4F4F4", ORIGINAL])
#: Lines that hatch a cell, from edge to edge, in shares of its width and height.
_HATCHES = (
    *((0.0, up, 1 - up, 1.0) for up in (0.75, 0.5, 0.25, 0.0)),
    *((across, 0.0, 1.0, 1 - across) for across in (0.25, 0.5, 0.75)),
)
_HATCHED = 1


def heatmap(
    table: pd.DataFrame,
    *,
    reference: float,
    x_title: str,
    y_title: str,
    loss_title: str,
    dotted: str | None = None,
    height: int = 460,
) -> Figure:
    """Cells of columns x, y, loss; blue where the loss is below ``reference``, orange where it is above.

    The lowest cell has a black frame, the clicked one a frame in its curve's colour; cells in which ``dotted`` (a
    column of booleans) is true have a dot.
    """
    shown = table.assign(
        change=np.log2(table["loss"] / reference).clip(-2, 2),
        percent=100 * (table["loss"] / reference - 1),
        dot=table[dotted] if dotted else False,
        best=table.index == table["loss"].idxmin() if table["loss"].notna().any() else False,
    )
    return Figure(shown, _spec(x_title, y_title, loss_title, height))


@lru_cache(maxsize=64)
def _spec(x_title: str, y_title: str, loss_title: str, height: int) -> dict[str, Any]:
    cell = alt.selection_point(name=CELL, fields=["code"], toggle=False, empty=False)
    framed = cell | alt.datum.best
    base = alt.Chart().encode(
        x=alt.X("x:O", title=x_title, axis=alt.Axis(format=",.5~r", labelOverlap=True, labelAngle=-45)),
        y=alt.Y("y:O", title=y_title, sort="descending", axis=alt.Axis(format=",.5~r", labelOverlap=True)),
    )
    cells = (
        base.mark_rect()
        .encode(
            fill=alt.Fill("change:Q", scale=_COLOURS, legend=None),
            stroke=alt.when(cell).then(alt.value(CHOSEN)).otherwise(alt.value("black")),
            strokeWidth=alt.when(framed).then(alt.value(3)).otherwise(alt.value(0)),
            order=alt.when(framed).then(alt.value(1)).otherwise(alt.value(0)),  # frames lie above their neighbours
            tooltip=[
                alt.Tooltip("x:O", title=x_title),
                alt.Tooltip("y:O", title=y_title),
                alt.Tooltip("loss:Q", title=loss_title, format=",.5~r"),
                alt.Tooltip("percent:Q", title="change against the original (%)", format="+,.3~r"),
            ],
        )
        .add_params(cell)
    )
    dots = base.mark_circle(size=14, color=CLEAN, opacity=1).transform_filter(alt.datum.dot)
    # Nothing to see: a row or column in which no cell has a value keeps its place on the axes.
    places = base.mark_point(size=0, opacity=0)
    return spec_of(alt.layer(cells, dots, places).properties(height=height))


def evidence_map(
    table: pd.DataFrame, x_values: Sequence[str], y_values: Sequence[str], *, x_title: str, y_title: str
) -> Figure:
    """What many seeds show in each cell: blue where averaging won, orange where it lost, hatched without evidence.

    Args:
        table: x and y (of ``x_values`` and ``y_values``, in which a line break may stand), code, median_gain (a share
            of the original), low, high, wins, seeds, pairs, wilcoxon_p, p (Holm's), verdict.  Cells may be missing.
    """
    with np.errstate(invalid="ignore"):
        ratio = np.maximum(1 - table["median_gain"].astype(float), 2.0**-9)
    shown = table.assign(
        change=np.log2(ratio).clip(-2, 2),
        percent=-100 * table["median_gain"],
        text=[
            f"{_percent(-gain)}\n{wins} of {seeds}"
            for gain, wins, seeds in zip(table["median_gain"], table["wins"], table["seeds"], strict=True)
        ],
    )
    hatched = shown.loc[~shown["verdict"].isin(["helps", "hurts"]), ["x", "y", "code"]]
    lines = [
        {"x": cell.x, "y": cell.y, "code": cell.code, "line": n, "across": across, "up": up}
        for cell in hatched.itertuples()
        for n, (x, y, x2, y2) in enumerate(_HATCHES)
        for across, up in ((x, y), (x2, y2))
    ]
    spec = _evidence_map(tuple(x_values), tuple(y_values), x_title, y_title)
    return Figure(shown, with_layer_data(spec, _HATCHED, lines))


def _percent(share: float) -> str:
    if not np.isfinite(share):
        return "not finite"
    if abs(share) >= 10:
        return f"x {1 + share:.3g}"
    if not share:
        return "equal"
    return f"{100 * share:+.0f} %" if abs(share) >= 0.0095 else f"{100 * share:+.1g} %"


@lru_cache(maxsize=32)
def _evidence_map(x_values: tuple[str, ...], y_values: tuple[str, ...], x_title: str, y_title: str) -> dict[str, Any]:
    axis: dict[str, Any] = {"labelExpr": "split(datum.label, '\\n')", "labelAngle": 0, "labelLimit": 160}
    base = alt.Chart().encode(
        x=alt.X("x:N", title=x_title, scale=alt.Scale(domain=list(x_values)), axis=alt.Axis(**axis)),
        y=alt.Y("y:N", title=y_title, scale=alt.Scale(domain=list(y_values)[::-1]), axis=alt.Axis(**axis)),
    )
    cells = (
        base.mark_rect(stroke=CLEAN, strokeWidth=0.5)
        .encode(
            fill=alt.Fill("change:Q", scale=_COLOURS, legend=None),
            tooltip=[
                alt.Tooltip("x:N", title=x_title),
                alt.Tooltip("y:N", title=y_title),
                alt.Tooltip("percent:Q", title="median change of the final loss (%)", format="+,.3~r"),
                alt.Tooltip("wins:Q", title="seeds in which averaging won"),
                alt.Tooltip("seeds:Q", title="of"),
                alt.Tooltip("pairs:Q", title="seeds with a finite gain, of which the median is"),
                alt.Tooltip("wilcoxon_p:Q", title="Wilcoxon's p, of this cell alone", format=",.2~r"),
                alt.Tooltip("p:Q", title="p after Holm's correction, which decides", format=",.2~r"),
                alt.Tooltip("verdict:N"),
            ],
        )
        .add_params(alt.selection_point(name=CELL, fields=["code"], toggle=False))
    )
    across = alt.XOffset("across:Q", scale=alt.Scale(domain=[0, 1], nice=False, zero=False))
    up = alt.YOffset("up:Q", scale=alt.Scale(domain=[0, 1], nice=False, zero=False))
    hatches = base.mark_line(color="#5A5F68", strokeWidth=1, opacity=0.45).encode(
        xOffset=across, yOffset=up, detail=["code:N", "line:N"]
    )
    numbers = base.mark_text(color="#16181C", fontSize=12, lineBreak="\n", baseline="middle", dy=-6).encode(
        text="text:N"
    )
    layered = alt.layer(cells, hatches, numbers).resolve_scale(xOffset="independent", yOffset="independent")
    return spec_of(layered.properties(height=90 + 62 * len(y_values)))
