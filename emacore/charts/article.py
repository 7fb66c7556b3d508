"""The article's figure: a run's curves over epochs, in its three phases, among many seeds and beside its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import altair as alt
import pandas as pd

from emacore.charts.ends import WHOLE_AXIS
from emacore.charts.figure import Figure, pixels_down, spec_of
from emacore.charts.style import CLEAN
from emacore.charts.thin import Scale, left_out
from emacore.formatting import IN_CHARTS


def article_panel(
    table: pd.DataFrame,
    *,
    colours: Mapping[str, str],
    phases: Sequence[int],
    y_title: str,
    y_scale: Scale = "linear",
    y_domain: tuple[float, float] | None = None,
    height: int = 360,
) -> Figure:
    """Lines of a run, diamonds where the article's table has a row, and behind them the band of the seeds.

    Args:
        table: part ("run", "article" or "seeds"), curve, epoch, value, low, high.
        colours: The colour of each curve.
        phases: The epochs at which a phase ends.
        y_domain: The ends of the y axis; what lies beyond is drawn at them.
        height: In pixels.
    """
    told = left_out(table[table["part"] == "run"], {"value": y_scale}, "curve")
    return Figure(table, _panel(tuple(colours.items()), tuple(phases), y_title, y_scale, y_domain, height), told)


@lru_cache(maxsize=32)
def _panel(
    colours: tuple[tuple[str, str], ...],
    phases: tuple[int, ...],
    y_title: str,
    y_scale: Scale,
    y_domain: tuple[float, float] | None,
    height: int,
) -> dict[str, Any]:
    domain: Any = alt.Undefined if y_domain is None else list(y_domain)
    zero: Any = alt.Undefined if y_scale == "log" else False
    scale = alt.Scale(type=y_scale, zero=zero, domain=domain, clamp=True)
    x = alt.X("epoch:Q", title="epoch", scale=alt.Scale(nice=False), axis=WHOLE_AXIS)
    y = alt.Y("value:Q", title=y_title, scale=scale)
    colour = alt.Color(
        "curve:N",
        scale=alt.Scale(domain=[name for name, _ in colours], range=[hue for _, hue in colours]),
        legend=alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=2.5),
    )
    tooltip = [
        alt.Tooltip("part:N", title=" "),
        alt.Tooltip("curve:N", title=" "),
        alt.Tooltip("epoch:Q"),
        alt.Tooltip("value:Q", title=y_title, format=IN_CHARTS),
    ]
    base = alt.Chart().encode(x=x, color=colour)
    band = (
        base.transform_filter(alt.datum.part == "seeds")
        .mark_area(clip=True, opacity=0.16)
        .encode(y=alt.Y("low:Q", title=y_title, scale=scale), y2=alt.Y2("high:Q"))
    )
    run = base.transform_filter(alt.datum.part == "run").mark_line(clip=True, strokeWidth=2).encode(y=y)
    probes = (
        base.transform_filter(alt.datum.part == "run")
        .mark_circle(clip=True, size=60, opacity=0)
        .encode(y=y, tooltip=tooltip)
    )
    article = (
        base.transform_filter(alt.datum.part == "article")
        .mark_point(clip=True, shape="diamond", size=70, filled=True, opacity=1, stroke="black", strokeWidth=0.5)
        .encode(y=y, tooltip=tooltip)
    )
    ends = alt.Chart(pd.DataFrame({"at": phases})).encode(x=alt.X("at:Q", title="epoch"))
    rules = ends.mark_rule(color=CLEAN, strokeDash=[4, 3])
    labels = ends.mark_text(color=CLEAN, align="right", dx=-3, dy=6, baseline="top").encode(
        text=alt.Text("at:Q"), y=pixels_down(0)
    )
    return spec_of(alt.layer(band, run, probes, article, rules, labels).properties(height=height))
