"""The loss of a final average over its decay: what is left of the start, what the noise does, and both together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from emacore.charts.ends import NAME, free_of, name_marks, names_at_ends, room_for
from emacore.charts.figure import Figure, pixels_down, spec_of, with_layer_data
from emacore.charts.moving import Floats, Frames
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL, OTHERS

#: The lines by their names, with their colours.
CURVES = {
    "average": AVERAGED,
    "SGD's last step": ORIGINAL,
    "start left in it": OTHERS[1],
    "noise left in it": OTHERS[0],
}
#: The lowest loss that the axis shows, as a share of the greatest.
_DEEPEST = 1e-6
#: The numbers of the layers that have rows of their own.
_CHOSEN, _LABELS, _NAMES = 2, 3, 4


def tradeoff(table: pd.DataFrame, *, chosen: float, label: str, height: int = 400) -> Figure:
    """Lines of the formula, with simulated averages as dots, over the half-life.

    The axis of losses begins at a third of the lowest of averages and last step, but not below a millionth of the
    greatest; lines of lower losses leave the picture at its lower edge.

    Args:
        table: decay, half_life (steps; above 0), and losses: bias, variance, expected (their sum), simulated, last
            (of the last iterate).
        chosen: The half-life that a vertical line marks, with ``label`` beside it.
        height: In pixels.
    """
    columns = dict(zip(CURVES, ("expected", "last", "bias", "variance"), strict=True))
    keys = table[["decay", "half_life"]]
    parts = [keys.assign(curve=name, loss=table[column], part="formula") for name, column in columns.items()]
    parts.append(keys.assign(curve="average", loss=table["simulated"], part="simulated").iloc[::4])
    shown = pd.concat(parts, ignore_index=True)
    shown = shown[np.isfinite(shown["loss"]) & (shown["loss"] > 0)]
    main = shown.loc[shown["curve"].isin(list(CURVES)[:2]), "loss"]
    top = float(main.max()) if len(main) else 1.0
    bottom = max(float(main.min()) / 3, top * _DEEPEST) if len(main) else 0.1
    ends = _rounded(bottom), _rounded(1.5 * top)
    spec = _spec(*ends, height)
    formulas = shown[(shown["part"] == "formula") & shown["loss"].between(*ends)]
    names = names_at_ends(
        formulas, "half_life", "loss", "curve", height=height, x_scale="log", y_scale="log", y_domain=ends
    )
    spec = with_layer_data(spec, _NAMES, names)
    middle = float(np.sqrt(shown["half_life"].min() * shown["half_life"].max()))
    for layer in (_CHOSEN, _LABELS):
        spec = with_layer_data(
            spec, layer, [{"at": chosen, "label": label, "early": chosen < middle, "mark": "chosen"}]
        )
    return Figure(shown, spec)


def tradeoff_frames(
    by_handle: Mapping[str, Sequence[Mapping[str, Floats]]],
    key: str,
    half_lives: Sequence[float],
    labels: Sequence[str],
) -> tuple[Frames, Frames]:
    """The frames of :func:`tradeoff`: other losses, or another place of the mark of the chosen decay.

    Args:
        by_handle: By the keys of the handles that change the losses: the table's columns at each mark; all have the
            same decays.
        key: The key of the handle that moves the chosen decay.
        half_lives, labels: Where the mark then is, in steps, and what it says, at each mark of that handle.
    """
    columns = dict(zip(CURVES, ("expected", "last", "bias", "variance"), strict=True))
    first = next(iter(by_handle.values()))[0]
    keys = pd.DataFrame({name: first[name] for name in ("decay", "half_life")})
    rows = pd.concat([keys.assign(curve=name, part="formula") for name in columns], ignore_index=True)
    losses = {
        handle: {
            "loss": np.stack(
                [np.concatenate([table[column] for column in columns.values()]) for table in tables], axis=1
            )
        }
        for handle, tables in by_handle.items()
    }
    for moved in losses.values():
        moved["loss"][~(moved["loss"] > 0)] = np.nan  # a log axis cannot show it
    middle = math.sqrt(float(first["half_life"].min() * first["half_life"].max()))
    at = np.asarray(half_lives, dtype=np.float64)[np.newaxis]
    chosen = {"at": at, "label": np.asarray(labels, dtype=object)[np.newaxis], "early": at < middle}
    return (
        Frames(rows, losses, "curve", ("half_life", "loss")),
        Frames(pd.DataFrame({"mark": ["chosen"]}), {key: chosen}, "mark", layers=(_CHOSEN, _LABELS)),
    )


def _rounded(value: float) -> float:
    """A number rounded to two digits, so that few specifications are made while a slider moves."""
    return float(f"{value:.1e}") if math.isfinite(value) else value


@lru_cache(maxsize=64)
def _spec(bottom: float, top: float, height: int) -> dict[str, Any]:
    highlight = alt.selection_point(name="highlight", fields=[NAME], on="click")
    room = room_for(CURVES)
    colour = alt.Color(f"{NAME}:N", scale=alt.Scale(domain=list(CURVES), range=list(CURVES.values())), legend=None)
    base = (
        alt.Chart()
        .transform_calculate(**{NAME: "datum.curve"})
        .encode(
            x=alt.X(
                "half_life:Q",
                title="half-life of the average (steps)",
                scale=alt.Scale(type="log", nice=False, range=free_of(room)),
                axis=alt.Axis(grid=False),
            ),
            y=alt.Y(
                "loss:Q",
                title="expected loss",
                scale=alt.Scale(type="log", domain=[bottom, top], nice=False),
                axis=alt.Axis(grid=False),
            ),
            color=colour,
            tooltip=[
                alt.Tooltip("curve:N", title=" "),
                alt.Tooltip("part:N", title="by"),
                alt.Tooltip("decay:Q", format=",.7~r"),
                alt.Tooltip("half_life:Q", title="half-life (steps)", format=",.4~r"),
                alt.Tooltip("loss:Q", format=",.4~r"),
            ],
        )
    )
    lines = (
        base.transform_filter(alt.datum.part == "formula")
        .mark_line(clip=True)
        .encode(
            strokeWidth=alt.StrokeWidthValue(
                **alt.when(alt.datum.curve == "average").then(alt.value(2.6)).otherwise(alt.value(1.4))
            ),
            opacity=alt.OpacityValue(**alt.when(highlight).then(alt.value(0.95)).otherwise(alt.value(0.12))),
        )
    )
    dots = base.transform_filter(alt.datum.part == "simulated").mark_circle(clip=True, size=34, opacity=0.9)
    rule = alt.Chart().encode(x=alt.X("at:Q"))
    rules = rule.mark_rule(color=CLEAN, strokeDash=[4, 3])
    labels = rule.mark_text(
        color=CLEAN,
        align=alt.ExprRef("datum.early ? 'left' : 'right'"),
        dx=alt.ExprRef("datum.early ? 4 : -4"),
        baseline="top",
    ).encode(text=alt.Text("label:N"), y=pixels_down(4))
    names = name_marks(colour, room).add_params(highlight)
    return spec_of(alt.layer(lines, dots, rules, labels, names).properties(height=height))
