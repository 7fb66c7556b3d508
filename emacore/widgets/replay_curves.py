"""The curves of a recorded run under a schedule, and what each step weighs in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import streamlit as st

from emacore.charts.figure import Figure
from emacore.charts.lines import lines
from emacore.charts.style import CHOSEN
from emacore.charts.thin import Scale
from emacore.widgets.page import escaped
from emacore.widgets.replay import Recorded
from emacore.widgets.replay_cells import MOVED

#: The tables of the curves, and of those of an atlas' cells.
_CURVES, _CELLS = "still0", "cells"


def show_curves(
    recorded: Recorded,
    curves: pd.DataFrame,
    shares: pd.DataFrame,
    *,
    colours: Mapping[str, str],
    scale: Scale,
    alt_text: str,
) -> Callable[[Callable[[], pd.DataFrame]], None]:
    """Losses above, weights below.

    Args:
        curves: A long table: curve, step, and the loss' column.
        shares: A long table: curve, step, weight.

    Returns:
        To be called at the end of the page with what makes the curves of the atlas' cells, as
        :func:`emacore.widgets.replay_cells.cell_curves`: the page is seen before they are there.
    """
    shared: dict[str, Any] = {"x": "step", "series": "curve", "colours": colours}
    loss = recorded.loss.column
    above = lines(
        curves, y=loss, x_title="step of the run", y_title=recorded.loss_title, y_scale=scale, height=290, **shared
    )
    slot = st.empty()

    def draw(cells: pd.DataFrame | None) -> None:
        tables = {_CURVES: above.data} | ({} if cells is None else {_CELLS: cells})
        spec = {**_with_cells(above, loss), "datasets": tables}
        slot.vega_lite_chart(None, spec, alt=alt_text, width="stretch")

    draw(None)
    if above.left_out:
        st.caption(escaped(above.left_out))
    below = lines(shares, y="weight", x_title="step of the run", y_title="weight in the end", height=170, **shared)
    st.vega_lite_chart(
        below.data, below.spec, alt="What each step of the run weighs in each final average", width="stretch"
    )
    return lambda make: draw(make())


def _with_cells(figure: Figure, loss: str) -> dict[str, Any]:
    """The specification with a line for the cell that is pointed at in the atlas, which the browser picks."""
    own = [layer if "data" in layer else {**layer, "data": {"name": _CURVES}} for layer in figure.spec["layer"]]
    encoding = figure.spec["layer"][0]["encoding"]
    shared = {"element": "body", "event": MOVED}
    line = {
        "name": "pointed_cell_line",
        "data": {"name": _CELLS},
        "transform": [
            {"calculate": "datum['cell_' + pointed_cell]", "as": loss},
            {"filter": f"isValid(datum[{loss!r}])"},
        ],
        "mark": {"type": "line", "clip": True, "color": CHOSEN, "strokeWidth": 1.6},
        "encoding": {"x": encoding["x"], "y": encoding["y"]},
    }
    pointed = {
        "name": "pointed",
        "select": {"type": "point", "fields": ["cell"], "on": "dblclick"},
        "bind": {"cell": shared},
        "views": [line["name"]],
    }
    return {**figure.spec, "layer": [*own, line], "params": [*figure.spec.get("params", []), pointed]}
