"""What every chart function returns: a Vega-Lite specification made by Altair, and the table it draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import altair as alt
import pandas as pd


class Figure(NamedTuple):
    """A chart: the layers of ``spec`` that have no data of their own draw ``data``.

    Altair needs some 20 ms to build a chart, too long for a slider, but mostly the data alone change while one drags.
    So chart functions cache the specification by everything else.  They give channels in Altair's own classes: it takes
    as long again to find the class of a text or a condition.

    ``left_out`` says in a sentence which values the axes cannot show; it is empty where they show all.
    ``empty`` is whether they show none, so that there is no picture.
    """

    data: pd.DataFrame
    spec: dict[str, Any]
    left_out: str = ""
    empty: bool = False


def spec_of(chart: alt.LayerChart | alt.FacetChart | alt.VConcatChart) -> dict[str, Any]:
    """The chart as a specification whose layers, unless they have rows of their own, draw the figure's table.

    It is not checked against the schema of Vega-Lite, which takes longer than all else; the tests check every chart.
    """
    with alt.data_transformers.enable("default", consolidate_datasets=False):
        spec: dict[str, Any] = chart.to_dict(validate=False)
    _unhide_table(spec)
    return spec


def pixels_down(pixels: int) -> alt.YValue:
    """A place so many pixels below the upper border, as a channel; for ``alt.value`` Altair would first look one up."""
    return alt.YValue(pixels)  # type: ignore[no-untyped-call]


def _unhide_table(view: dict[str, Any]) -> None:
    """Take away Altair's mark for "no data", which would hide the figure's table, from a view and those within it."""
    if view.get("data") == {"values": [{}]}:
        del view["data"]
    for part in (*view.get("vconcat", ()), *view.get("layer", ())):
        _unhide_table(part)


def with_layer_data(spec: Mapping[str, Any], layer: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A copy of a cached specification in which one layer draws ``rows`` instead."""
    layers = list(spec["layer"])
    layers[layer] = {**layers[layer], "data": {"values": rows}}
    return {**spec, "layer": layers}
