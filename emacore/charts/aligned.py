"""Curves of a run, and below them, on the same step axis and with the same highlight, what each weighs its past."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd

from emacore.charts.figure import Figure, spec_of
from emacore.charts.style import DASHES
from emacore.charts.thin import MAX_POINTS, Scale, left_out, thin


def curves_and_shares(
    curves: pd.DataFrame,
    shares: pd.DataFrame,
    *,
    colours: Mapping[str, str],
    y_title: str,
    y_scale: Scale,
    steps: int,
    height: int = 380,
) -> Figure:
    """Two charts, one above the other.

    Args:
        curves: A long table: curve, epoch, step, loss.
        shares: A long table: curve, step, weight.
        colours: The colour of each curve, in the order of the legend; curves without shares are only above.
        steps: Where the common axis ends.
    """
    # Weights change smoothly: fewer points show them, and a slider's answer is drawn sooner.
    weighed = thin(shares, "step", "weight", "curve", MAX_POINTS // 2)
    losses = thin(curves, "step", "loss", "curve", y_scale=y_scale)
    columns = ["part", "curve", "piece", "step", "epoch", "loss", "weight"]
    table = pd.concat([losses.assign(part="loss"), weighed.assign(part="weight")], ignore_index=True)
    spec = _spec(tuple(colours.items()), y_title, y_scale, steps, height)
    return Figure(table.reindex(columns=columns), spec, left_out(curves, {"loss": y_scale}, "curve"))


@lru_cache(maxsize=64)
def _spec(
    colours: tuple[tuple[str, str], ...], y_title: str, y_scale: Scale, steps: int, height: int
) -> dict[str, Any]:
    names, hues = [name for name, _ in colours], [colour for _, colour in colours]
    highlight = alt.selection_point(name="highlight", fields=["curve"], bind="legend")
    legend = alt.Legend(
        title=None,
        orient="bottom",
        columns=1 if any(len(name) > 16 for name in names) else 2,
        labelLimit=280,
        symbolStrokeWidth=2.5,
        symbolType="stroke",
    )
    step_scale = alt.Scale(domain=[0, steps], nice=False)
    base = alt.Chart().encode(
        detail="piece:N",
        color=alt.Color("curve:N", scale=alt.Scale(domain=names, range=hues), legend=legend),
        strokeDash=alt.StrokeDash(
            "curve:N",
            scale=alt.Scale(domain=names, range=[DASHES.get(colour, [1, 0]) for colour in hues]),
            legend=legend,
        ),
        strokeOpacity=alt.when(highlight).then(alt.value(0.9)).otherwise(alt.value(0.12)),
        x=alt.X("step:Q", title="step of the run", scale=step_scale),
    )
    # The same room for the labels of both axes keeps the two step axes in line.
    axis = alt.Axis(minExtent=46, maxExtent=46, titlePadding=6)
    zero: Any = alt.Undefined if y_scale == "log" else False
    loss = (
        base.transform_filter(alt.datum.part == "loss")
        # Unseen points answer the pointer more readily than a thin line.
        .mark_line(clip=True, strokeWidth=2.2, point=alt.OverlayMarkDef(size=90, fillOpacity=0, strokeWidth=0))
        .encode(
            x=alt.X("step:Q", title=None, axis=alt.Axis(labels=False, ticks=False), scale=step_scale),
            y=alt.Y("loss:Q", title=y_title, axis=axis, scale=alt.Scale(type=y_scale, zero=zero)),
            tooltip=[
                alt.Tooltip("curve:N", title=" "),
                alt.Tooltip("epoch:Q"),
                alt.Tooltip("step:Q", format=","),
                alt.Tooltip("loss:Q", title=y_title, format=",.5~r"),
            ],
        )
        .add_params(highlight)
        .properties(height=height)
    )
    weight = (
        base.transform_filter(alt.datum.part == "weight")
        .mark_line(clip=True, strokeWidth=2.2)
        .encode(y=alt.Y("weight:Q", title="weight in the final average", axis=axis))
        .properties(height=round(0.55 * height))
    )
    return spec_of(alt.vconcat(loss, weight, spacing=14, bounds="flush"))
