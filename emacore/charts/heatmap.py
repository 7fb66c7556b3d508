"""Maps over a plane of two settings: a metric of one run against a reference, and what many seeds show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from emacore.charts.figure import Figure, spec_of, with_layer_data
from emacore.charts.style import AVERAGED, CHOSEN, CLEAN, DARK_PAGE, LIGHT_PAGE, ORIGINAL, mixed, readable
from emacore.formatting import number, signed_percent

#: The names of the selections in which a clicked cell and the one under the pointer arrive.
CELL, POINTED = "cell", "pointed"
#: Colours over log2 of the ratio to the original; they end at a factor of 4 both ways, which the legend says.  A cell
#: that is level has the page's own colour, so a map glares neither in light nor in dark.
_COLOURS = alt.Scale(domain=[-2, 0, 0, 2], range=[AVERAGED, f"{AVERAGED}00", f"{ORIGINAL}00", ORIGINAL])
_RATIOS = {-2: "a quarter", -1: "half", 0: "the original's", 1: "double", 2: "4 times"}
#: The same where losses are below 0, of which ratios say nothing: in shares of the original's size.
_SHARES = {-2: "100 % lower", -1: "50 % lower", 0: "the original's", 1: "50 % higher", 2: "100 % higher"}
#: Lines that hatch a cell, from edge to edge, in shares of its width and height.
_HATCHES = (
    *((0.0, up, 1 - up, 1.0) for up in (0.75, 0.5, 0.25, 0.0)),
    *((across, 0.0, 1.0, 1 - across) for across in (0.25, 0.5, 0.75)),
)
#: The number of the layer of these lines.
_HATCHED = 1
#: Pixels of a cell's width below which its numbers would run into those beside it, and are not drawn.
_NARROWEST = 32
#: The colours that letters on a cell can have: the one that stands out more is taken.
_LETTERS = ("#16181C", "#E6E9EF")


def heatmap(
    table: pd.DataFrame,
    *,
    reference: float,
    x_title: str,
    y_title: str,
    loss_title: str,
    dotted: str | None = None,
    chosen: str | None = None,
    clicks: int = 0,
    shared: str | None = None,
    height: int = 460,
) -> Figure:
    """A map of cells, blue where the loss is below ``reference``, orange where it is above.

    The lowest cell has a diamond, the chosen one a frame in its curve's colour, and so has the one under the pointer.

    Args:
        table: x, y, code, loss; a cell without a code or a finite loss is empty.
        dotted: A column of booleans: cells in which it is true have a dot.
        chosen: The code of the chosen cell.
        clicks: Comes back with a click; where it has changed, a click on the same cell counts as a new one.
        shared: The name of an event.  The row of the cell under the pointer is then the value of the document's body,
            and whoever changes it sends that event, so that other charts can follow it, and keys can move it.
    """
    shown = table.assign(
        cell=[str(row) for row in range(len(table))],
        change=_change(table["loss"], reference),
        gain=100 * (reference - table["loss"]) / abs(reference),
        dot=table[dotted] if dotted else False,
        best=table.index == table["loss"].idxmin() if table["loss"].notna().any() else False,
        chosen=table["code"].eq(chosen) if chosen else False,
        clicks=clicks,
    )
    return Figure(shown, _spec(x_title, y_title, loss_title, shared, height, _signed(table["loss"], reference)))


def _signed(losses: pd.Series, reference: float) -> bool:
    """Whether there are losses of which ratios say nothing."""
    return not reference > 0 or bool((losses < 0).any())


def _change(losses: pd.Series, reference: float) -> pd.Series:
    """How much lower (below 0) or higher losses are than another: in doublings, or, where losses are below 0, in halves
    of its size; at most 2."""
    if not _signed(losses, reference):
        return pd.Series(np.log2(losses / reference), index=losses.index).clip(-2, 2)
    return (2 * (losses - reference) / abs(reference)).clip(-2, 2)


@lru_cache(maxsize=64)
def _spec(x_title: str, y_title: str, loss_title: str, shared: str | None, height: int, signed: bool) -> dict[str, Any]:
    clicked = alt.selection_point(name=CELL, fields=["code", "clicks"], toggle=False, empty=False)
    pointed = alt.selection_point(
        name=POINTED,
        fields=["cell"],
        on="pointerover",
        clear="pointerout",
        empty=False,
        bind=alt.BindDirect(element="body", event=shared) if shared else alt.Undefined,
    )
    framed = pointed | alt.datum.chosen
    legend = _legend("loss beside the original's", _SHARES if signed else _RATIOS)
    base = alt.Chart().encode(
        x=alt.X("x:O", title=x_title, axis=alt.Axis(format=",.5~r", labelOverlap=True, labelAngle=0)),
        y=alt.Y("y:O", title=y_title, sort="descending", axis=alt.Axis(format=",.5~r", labelOverlap=True)),
    )
    cells = (
        base.mark_rect(stroke=CHOSEN)
        .encode(
            fill=alt.Fill("change:Q", scale=_COLOURS, legend=legend),
            strokeWidth=alt.StrokeWidthValue(
                **alt.when(alt.datum.chosen).then(alt.value(3)).when(pointed).then(alt.value(2)).otherwise(alt.value(0))
            ),
            order=alt.OrderValue(
                **alt.when(framed).then(alt.value(1)).otherwise(alt.value(0))
            ),  # frames lie above their neighbours
            tooltip=[
                alt.Tooltip("x:O", title=x_title),
                alt.Tooltip("y:O", title=y_title),
                alt.Tooltip("loss:Q", title=loss_title, format=",.5~r"),
                alt.Tooltip("gain:Q", title="gain over the original (%)", format="+,.3~r"),
            ],
        )
        .add_params(clicked, pointed)
    )
    dots = base.mark_circle(size=14, color=CLEAN, opacity=1).transform_filter(alt.datum.dot)
    lowest = base.mark_point(
        shape="diamond", size=90, filled=True, fill="white", stroke="black", strokeWidth=1.5, opacity=1
    ).transform_filter(alt.datum.best)
    # Nothing to see: a row or column in which no cell has a value keeps its place on the axes.
    places = base.mark_point(size=0, opacity=0)
    return spec_of(alt.layer(cells, dots, lowest, places).properties(height=height))


def _legend(title: str, labels: dict[int, str]) -> alt.Legend:
    names = " : ".join(f"datum.value == {value} ? {json.dumps(text)}" for value, text in labels.items())
    return alt.Legend(
        title=title,
        titleOrient="left",
        titleLimit=400,
        orient="top",
        direction="horizontal",
        values=list(labels),
        labelExpr=f"{names} : ''",
        gradientLength=alt.ExprRef("max(120, width - 180)"),
        gradientThickness=8,
    )


def evidence_map(
    table: pd.DataFrame,
    x_values: Sequence[str],
    y_values: Sequence[str],
    *,
    x_title: str,
    y_title: str,
    signed: bool = False,
    dark: bool = False,
) -> Figure:
    """What many seeds show in each cell: blue where averaging won, orange where it lost, hatched without evidence.

    Args:
        table: x and y (of ``x_values`` and ``y_values``, in which a line break may stand), code,
            median_gain_percent, wins, seeds, untrained, pairs, wilcoxon_p, p (Holm's), verdict.  Cells may be missing.
        signed: Whether there are losses below 0, of which ratios say nothing: then all is in shares of their size.
        dark: Whether the page is dark; a cell lets the more of the page through the less it shows.
    """
    with np.errstate(invalid="ignore"):
        ratio = np.maximum(1 - table["median_gain_percent"].astype(float) / 100, 2.0**-9)
    shown = table.assign(
        change=(-2 * table["median_gain_percent"].astype(float) / 100 if signed else np.log2(ratio)).clip(-2, 2),
        text=[
            "not\ntrained" if untrained == seeds else f"{_gain(gain / 100, signed)}\n{wins} of {seeds}"
            for gain, wins, seeds, untrained in zip(
                *(table[name] for name in ("median_gain_percent", "wins", "seeds", "untrained")), strict=True
            )
        ],
    )
    page = DARK_PAGE if dark else LIGHT_PAGE
    cells = [
        mixed(AVERAGED if change < 0 else ORIGINAL, page, abs(change) / 2) for change in shown["change"].fillna(0.0)
    ]
    shown["letters"] = [readable(_LETTERS, cell) for cell in cells]
    hatched = shown.loc[~shown["verdict"].isin(["helps", "hurts"]), ["x", "y", "code"]]
    lines = [
        {"x": cell.x, "y": cell.y, "code": cell.code, "line": n, "across": across, "up": up}
        for cell in hatched.itertuples()
        for n, (x, y, x2, y2) in enumerate(_HATCHES)
        for across, up in ((x, y), (x2, y2))
    ]
    spec = _evidence_map(tuple(x_values), tuple(y_values), x_title, y_title)
    return Figure(shown, with_layer_data(spec, _HATCHED, lines))


def _gain(share: float, signed: bool) -> str:
    """A gain (a share) as a cell says it: above 0 is better; of a loss that grew to more than tenfold, the multiple of
    the original's, unless there are losses below 0."""
    if not np.isfinite(share):
        return "not finite"
    if share <= -10 and not signed:
        return f"x {number(1 - share, 3)}"
    return signed_percent(share, 2 if abs(share) < 1 else 3) if share else "equal"


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
                alt.Tooltip("median_gain_percent:Q", title="median gain in the final loss (%)", format="+,.3~r"),
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
    cell = f"width / {max(1, len(x_values))}"
    numbers = base.mark_text(
        fontSize=alt.ExprRef(f"clamp({cell} / 4, 8, 12)"),
        opacity=alt.ExprRef(f"{cell} < {_NARROWEST} ? 0 : 1"),
        lineBreak="\n",
        baseline="middle",
        dy=-6,
    ).encode(text=alt.Text("text:N"), color=alt.Color("letters:N", scale=None))
    layered = alt.layer(cells, hatches, numbers).resolve_scale(xOffset="independent", yOffset="independent")
    return spec_of(layered.properties(height=90 + 62 * len(y_values)))
