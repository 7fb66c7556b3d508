"""Lines over a common axis, with a legend that highlights and a tooltip at the nearest point."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, cast

import altair as alt
import pandas as pd

from emacore.charts.style import CLEAN, DASHES, OTHERS
from emacore.charts.thin import MAX_POINTS, thin

Scale = Literal["linear", "log"]

#: Two names of up to so many letters stand side by side on a narrow screen.
_LONG_NAME = 16


def lines(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    series: str,
    colours: Mapping[str, str],
    x_title: str,
    y_title: str,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    y_domain: tuple[float, float] | None = None,
    height: int = 360,
    max_points: int = MAX_POINTS,
    faint: Iterable[str] = (),
    x_rules: Mapping[str, float] | None = None,
) -> alt.LayerChart:
    """One line for each value of ``series`` in a long table.

    Args:
        x, y, series: Names of the columns.
        colours: The colour of each series, in the order of the legend.
        x_title, y_title: Axis titles, with their unit.
        x_scale, y_scale: On a log scale, rows that are not above 0 are left out.
        faint: Series drawn thin and half transparent, behind the others.
        x_rules: Labelled vertical lines.
    """
    shown = table
    for column, scale in ((x, x_scale), (y, y_scale)):
        if scale == "log":
            shown = shown[shown[column] > 0]
    shown = thin(shown[[x, y, series]], y, series, max_points)
    names = [name for name in colours if (shown[series] == name).any()]
    highlight = alt.selection_point(fields=[series], bind="legend")
    nearest = alt.selection_point(nearest=True, on="pointermove", empty=False, clear="pointerout")
    dashes = {colour: list(dash) for colour, dash in zip(OTHERS, DASHES, strict=True)}
    domain = alt.Undefined if y_domain is None else list(y_domain)
    legend = alt.Legend(
        title=None,
        orient="bottom",
        columns=1 if any(len(name) > _LONG_NAME for name in names) else 2,
        labelLimit=280,
        symbolStrokeWidth=2.5,
        symbolType="stroke",
    )
    base = alt.Chart(shown).encode(
        x=alt.X(f"{x}:Q", title=x_title, scale=alt.Scale(type=x_scale, nice=False)),
        y=alt.Y(f"{y}:Q", title=y_title, scale=alt.Scale(type=y_scale, zero=False, domain=domain, clamp=True)),
        color=alt.Color(
            f"{series}:N",
            scale=alt.Scale(domain=names, range=[colours[name] for name in names]),
            legend=legend,
        ),
    )
    drawn = base.mark_line(interpolate="linear", clip=True).encode(
        strokeDash=alt.StrokeDash(
            f"{series}:N",
            scale=alt.Scale(domain=names, range=[dashes.get(colours[name], [1, 0]) for name in names]),
            legend=legend,
        ),
        strokeWidth=alt.when(alt.FieldOneOfPredicate(field=series, oneOf=list(faint)))
        .then(alt.value(1))
        .otherwise(alt.value(2.2)),
        opacity=alt.when(highlight).then(alt.value(0.9)).otherwise(alt.value(0.12)),
    )
    points = (
        base.mark_circle(size=70)
        .encode(
            opacity=alt.when(nearest).then(alt.value(1)).otherwise(alt.value(0)),
            tooltip=[
                alt.Tooltip(f"{series}:N", title=" "),
                alt.Tooltip(f"{x}:Q", title=x_title, format=",.6~g"),
                alt.Tooltip(f"{y}:Q", title=y_title, format=".6~g"),
            ],
        )
        .add_params(nearest)
    )
    layers: list[alt.Chart] = [drawn.add_params(highlight), points]
    if x_rules:
        layers += _rules(x_rules)
    return cast(alt.LayerChart, alt.layer(*layers).properties(height=height))


def _rules(rules: Mapping[str, float]) -> list[alt.Chart]:
    table = pd.DataFrame(
        {
            "label": list(rules),
            "at": [float(at) for at in rules.values()],
            "height": [8 + 14 * n for n in range(len(rules))],
        }
    )
    base = alt.Chart(table).encode(x=alt.X("at:Q"))
    return [
        base.mark_rule(color=CLEAN, strokeDash=[4, 3]),
        base.mark_text(color=CLEAN, align="left", dx=4).encode(
            text="label:N", y=alt.Y("height:Q", scale=None, axis=None)
        ),
    ]
