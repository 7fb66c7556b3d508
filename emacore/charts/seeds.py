"""Many seeds in one picture: bands over epochs, and one dot a seed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from emacore.charts.ends import NAME, WHOLE_AXIS, free_of, name_marks, names_at_ends, plot_height, room_for
from emacore.charts.figure import Figure, pixels_down, spec_of, with_layer_data
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL
from emacore.charts.thin import Scale, axis_ends, left_out, left_out_of, thin
from emacore.formatting import IN_CHARTS, number

_MOST_BINS = 24
#: Pixels of the height of the grey strip, which says how many seeds still train, where all do.
_STRIP = 34
#: The numbers of the layers of :func:`differences` that have rows of their own.
_ZERO, _INTERVAL, _RULES, _LABELS = range(4)
#: Of :func:`bands`, the number of the names' layer among those of the curves, and the height in pixels.
_NAMES, _HEIGHT = 3, 360


def bands(table: pd.DataFrame, colours: Mapping[str, str], *, y_title: str, y_scale: Scale = "log") -> Figure:
    """Median lines within their bands, over epochs, and above them, in grey, how many seeds they are of.

    Args:
        table: curve, epoch, low, median, high, seeds.
        colours: The colour of each curve.
    """
    columns = ["low", "median", "high"]
    shown = thin(table, "epoch", columns, "curve", y_scale=y_scale)
    spec = _bands(tuple(colours.items()), y_title, y_scale)
    ends = axis_ends(shown[columns], y_scale)
    names = names_at_ends(
        shown, "epoch", "median", "curve", height=plot_height(_HEIGHT), y_scale=y_scale, y_domain=ends
    )
    curves, *others = spec["layer"]
    spec = {**spec, "layer": [with_layer_data(curves, _NAMES, names), *others]}
    return Figure(shown, spec, left_out(table, dict.fromkeys(columns, y_scale), "curve"), empty=not names)


@lru_cache(maxsize=32)
def _bands(colours: tuple[tuple[str, str], ...], y_title: str, y_scale: Scale) -> dict[str, Any]:
    names, hues = [name for name, _ in colours], [hue for _, hue in colours]
    highlight = alt.selection_point(name="highlight", fields=[NAME], on="click")
    room = room_for(names)
    scale = alt.Scale(type=y_scale, zero=False) if y_scale == "linear" else alt.Scale(type=y_scale, nice=False)
    epochs = alt.X("epoch:Q", title="epoch", scale=alt.Scale(nice=False, range=free_of(room)), axis=WHOLE_AXIS)
    colour = alt.Color(f"{NAME}:N", scale=alt.Scale(domain=names, range=hues), legend=None)
    base = (
        alt.Chart()
        .transform_calculate(**{NAME: "datum.curve"})
        .encode(
            detail=alt.Detail("piece:N"),
            x=epochs,
            color=colour,
        )
    )
    area = base.mark_area().encode(
        y=alt.Y("low:Q", title=y_title, scale=scale),
        y2=alt.Y2("high:Q"),
        opacity=alt.OpacityValue(**alt.when(highlight).then(alt.value(0.22)).otherwise(alt.value(0.04))),
    )
    line = base.mark_line(strokeWidth=2.2).encode(
        y=alt.Y("median:Q", title=y_title, scale=scale),
        opacity=alt.OpacityValue(**alt.when(highlight).then(alt.value(0.95)).otherwise(alt.value(0.12))),
    )
    points = base.mark_circle(size=80).encode(
        y=alt.Y("median:Q", title=y_title, scale=scale),
        opacity=alt.OpacityValue(**alt.when(alt.datum.alone).then(alt.value(0.6)).otherwise(alt.value(0))),
        tooltip=[
            alt.Tooltip("curve:N", title=" "),
            alt.Tooltip("epoch:Q"),
            alt.Tooltip("median:Q", format=",.4~r"),
            alt.Tooltip("low:Q", title="5 %", format=",.4~r"),
            alt.Tooltip("high:Q", title="95 %", format=",.4~r"),
            alt.Tooltip("seeds:Q", title="seeds training"),
        ],
    )
    # A strip of its own height at the top, in pixels: Streamlit gives charts below each other more than their width.
    training = (
        alt.Chart()
        .transform_aggregate(seeds="min(seeds)", groupby=["epoch"])
        .transform_joinaggregate(most="max(seeds)", first="min(epoch)", last="max(epoch)")
        .transform_calculate(top=f"{_STRIP} * (1 - datum.seeds / datum.most)", base=f"{_STRIP}")
        .encode(x=epochs)
    )
    strip = training.mark_area(color=CLEAN, opacity=0.35, interpolate="step-after").encode(
        y=alt.Y("top:Q", scale=None, axis=None), y2=alt.Y2("base:Q")
    )
    label = training.encode(text=alt.Text("seeds:Q"), y=alt.Y("base:Q", scale=None, axis=None))
    first = label.transform_filter("datum.epoch == datum.first").mark_text(color=CLEAN, align="left", dx=14, dy=9)
    last = label.transform_filter("datum.epoch == datum.last").mark_text(color=CLEAN, align="right", dx=-4, dy=9)
    curves = alt.layer(area, line, points, name_marks(colour, room).add_params(highlight))
    return spec_of(alt.layer(curves, strip, first, last).resolve_scale(y="independent").properties(height=_HEIGHT))


def differences(
    table: pd.DataFrame, *, x_title: str, interval: tuple[float, float], rules: Mapping[str, float], height: int = 320
) -> Figure:
    """One dot a seed, from the smallest to the largest gain: blue where averaging won, orange where it lost.

    Args:
        table: seed, gain_percent; gains that are not finite are not drawn, which ``left_out`` tells.
        interval: The median's, which is shaded; NaN where there is none.
        rules: Labelled vertical lines, by their labels.
    """
    shown = table[np.isfinite(table["gain_percent"])].sort_values("gain_percent", ignore_index=True)
    shown = shown.assign(rank=shown.index + 1, won=shown["gain_percent"] > 0)
    spec = _differences(x_title, height)
    marks = [{"at": at, "label": label, "height": -6 - 14 * n} for n, (label, at) in enumerate(rules.items())]
    spec = with_layer_data(spec, _ZERO, [{"at": 0.0}])
    low, high = interval
    spec = with_layer_data(spec, _INTERVAL, [{"low": low, "high": high}] if np.isfinite([low, high]).all() else [])
    for layer in (_RULES, _LABELS):
        spec = with_layer_data(spec, layer, marks)
    return Figure(shown, spec, _left_out(table["gain_percent"], "the gain"), empty=shown.empty)


@lru_cache(maxsize=32)
def _differences(x_title: str, height: int) -> dict[str, Any]:
    base = alt.Chart()
    zero = base.mark_rule(color=CLEAN, strokeWidth=1.5).encode(x=alt.X("at:Q", title=x_title))
    interval = base.mark_rect(color=AVERAGED, opacity=0.15).encode(x=alt.X("low:Q", title=x_title), x2=alt.X2("high:Q"))
    rules = base.mark_rule(color=CLEAN, strokeDash=[4, 3]).encode(x=alt.X("at:Q", title=x_title))
    labels = base.mark_text(color=CLEAN, align="left", dx=4).encode(
        x=alt.X("at:Q", title=x_title), text=alt.Text("label:N"), y=alt.Y("height:Q", scale=None, axis=None)
    )
    dots = base.mark_circle(size=55, opacity=0.9).encode(
        x=alt.X("gain_percent:Q", title=x_title),
        y=alt.Y("rank:Q", title="seeds, ordered", scale=alt.Scale(nice=False, padding=10), axis=WHOLE_AXIS),
        color=alt.ColorValue(**alt.when(alt.datum.won).then(alt.value(AVERAGED)).otherwise(alt.value(ORIGINAL))),
        tooltip=[alt.Tooltip("seed:Q"), alt.Tooltip("gain_percent:Q", title=x_title, format="+,.3~r")],
    )
    layered = alt.layer(zero, interval, rules, labels, dots).resolve_scale(y="independent")
    return spec_of(layered.properties(height=height))


def histogram(
    values: pd.Series, *, x_title: str, whole: bool = False, rules: Mapping[str, float] | None = None, height: int = 220
) -> Figure:
    """How many seeds have which value, as :func:`bins` counts them.

    Args:
        whole: Whether the values are whole numbers.
        rules: Labelled vertical lines, by their labels.
    """
    table = bins(values, whole=whole)
    marks = [{"at": at, "label": label} for label, at in (rules or {}).items()]
    spec = with_layer_data(_histogram(x_title, whole, height), 1, marks)
    return Figure(table, with_layer_data(spec, 2, marks), _left_out(values, f"the {x_title}"), empty=table.empty)


def _left_out(values: ArrayLike, name: str) -> str:
    """How many seeds have no value that can be drawn, in a sentence."""
    return left_out_of({name: {"value": np.asarray(values, dtype=np.float64)}}, {"value": "linear"})


def bins(values: ArrayLike, *, whole: bool = False) -> pd.DataFrame:
    """How many values lie in each of at most 25 bins of one round width: low, high, seeds (the count), label.

    Values that are not finite, and bins without any, are left out.

    Args:
        whole: For whole numbers: a bin holds whole ones only, and its ends lie half way to the next ones.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return pd.DataFrame(columns=["low", "high", "seeds", "label"])
    width = _round_up(np.ptp(finite) / _MOST_BINS) or _round_up(abs(finite[0]) / 20) or 0.1
    if whole:
        width = max(1.0, width) if np.ptp(finite) else 1.0
    numbers, counts = np.unique(np.floor(finite / width + 1e-9), return_counts=True)
    low = numbers * width
    last = low + width - (1 if whole else 0)
    if whole and width == 1:
        labels = [number(one) for one in low]
    else:
        labels = [f"{number(one)} to {number(other)}" for one, other in zip(low, last, strict=True)]
    shift = 0.5 if whole else 0.0
    return pd.DataFrame({"low": low - shift, "high": low + width - shift, "seeds": counts, "label": labels})


def _round_up(width: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is no less; 0 stays."""
    if not width:
        return 0.0
    power = 10.0 ** np.floor(np.log10(width))
    return float(next(power * digit for digit in (1, 2, 5, 10) if power * digit >= width * (1 - 1e-9)))


@lru_cache(maxsize=32)
def _histogram(x_title: str, whole: bool, height: int) -> dict[str, Any]:
    axis = WHOLE_AXIS if whole else alt.Axis(format=IN_CHARTS)
    x = alt.X("low:Q", bin="binned", title=x_title, scale=alt.Scale(zero=False, nice=False, padding=24), axis=axis)
    bars = (
        alt.Chart()
        .mark_bar(color=AVERAGED, opacity=0.8, binSpacing=1)  # by Streamlit's own 4 pixels narrow bars would vanish
        .encode(
            x=x,
            x2=alt.X2("high:Q"),
            y=alt.Y("seeds:Q", title="seeds", axis=WHOLE_AXIS),
            tooltip=[alt.Tooltip("label:N", title=x_title), alt.Tooltip("seeds:Q")],
        )
    )
    rules = alt.Chart().mark_rule(color=CLEAN, strokeDash=[4, 3]).encode(x=alt.X("at:Q", title=x_title))
    labels = (
        alt.Chart()
        .mark_text(color=CLEAN, align="left", dx=4)
        .encode(x=alt.X("at:Q", title=x_title), text=alt.Text("label:N"), y=pixels_down(-8))
    )
    return spec_of(alt.layer(bars, rules, labels).properties(height=height))
