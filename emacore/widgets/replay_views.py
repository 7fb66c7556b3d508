"""The views of a recorded run: a map of schedules, relatives of the EMA, the space of its weights, the best width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
import streamlit as st

from emacore.averaging.code import from_code, to_code
from emacore.averaging.schedules import Schedule
from emacore.charts.heatmap import CELL, heatmap
from emacore.charts.lines import lines
from emacore.charts.plane import paths_on_landscape
from emacore.charts.ranking import ranking
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL
from emacore.formatting import counted, number
from emacore.replay import curves
from emacore.replay.atlas import BEST_OF, TITLES, axes, partners, without_axes
from emacore.replay.frames import most_epochs
from emacore.replay.recording import RecordingError
from emacore.replay.relatives import costs_in_words, with_ema
from emacore.widgets.asking import Unanswered
from emacore.widgets.page import BOUND, escaped, query_of, sentence, show_chart, show_table, stop_with, told
from emacore.widgets.replay import (
    NOW,
    ORIGINAL_NAME,
    Recorded,
    carried,
    looked_at,
)
from emacore.widgets.replay_cells import MAP, MOVED, atlas_key, cell_keys, clicks, keep_clicked
from emacore.widgets.schedules import pin, state_of

if TYPE_CHECKING:
    from emacore.widgets.opened_run import OpenedRun

PRINCIPAL, THREE_POINTS = "principal components", "three points"
#: The codes of a view's cells, ``None`` for an empty one; of a view without cells none.
Codes = tuple[str | None, ...]
#: The height of the map in pixels, beside which the curves and their handles stand.
_MAP_HEIGHT = 330


@dataclass(frozen=True)
class ViewedRun:
    """What a view shows: a run up to an epoch, the schedule of the controls, the code of the atlas' kept cell."""

    recorded: Recorded | OpenedRun
    epochs: int
    schedule: Schedule
    clicked: str | None

    @property
    def code(self) -> str:
        """The code of the schedule."""
        return to_code(self.schedule)


def show_views(recorded: Recorded | OpenedRun, schedule: Schedule, clicked: str | None) -> Codes:
    """A choice of views, and the one that is chosen; returns the codes of its cells where it has any."""
    view = st.segmented_control(
        "View",
        list(VIEWS),
        default="Atlas",
        key="view",
        required=True,
        help="Up to 400 schedules as a map; SWA, windows and ensembles beside the EMA; paths over the loss; the width "
        "that was best here, for a run of another length.",
        label_visibility="collapsed",
        **BOUND,
    )
    epochs = looked_at(recorded)
    if epochs < recorded.epochs:
        st.button(
            f"As of epoch {epochs}: bring up to date",
            on_click=lambda: st.session_state.pop("looked", None),
            icon=":material/refresh:",
            help="The run goes on, but what takes longer to compute waits for you: this computes it anew, for all "
            "epochs so far.",
        )
    with told():
        try:
            return VIEWS[view](ViewedRun(recorded, epochs, schedule, clicked)) or ()
        except Unanswered:
            return ()
        except RecordingError as error:
            stop_with(f"The recording cannot be used: {error}.")


def show_code(recorded: Recorded, code: str) -> None:
    """Show the code that loads the average of this run into a module of one's own."""
    with st.expander("Load this average into a module of your own", icon=":material/download:"):
        tensors = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in recorded.trajectory.tensors.items())
        st.code(
            "from emacore import *\n\n"
            f"trajectory = Trajectory.open({recorded.folder!r})\n"
            f"trajectory.load_into(module, {code})  # any torch module with these tensors by name\n"
            f"# {tensors}",
            language="python",
        )


def _show_family(view: ViewedRun) -> None:
    loss, *others = view.recorded.metrics
    now = view.recorded.curve(view.code)
    own = {metric.column: now[metric.column][view.epochs - 1] for metric in view.recorded.metrics}
    family = with_ema(view.recorded.relatives(view.epochs), view.schedule, own)
    table, name = pd.DataFrame(family), f"family-{view.recorded.run.id}"
    if curves.best_row(family, loss) is None:
        st.markdown(
            "No mean of this run's weights has a finite loss after the last epoch, and no ensemble of its networks."
        )
        return
    figure = ranking(
        table,
        name="scheme",
        value=loss.column,
        colours={"EMA": AVERAGED, "original": ORIGINAL},
        x_title=f"final {view.recorded.loss_title}",
        reference="original",
        height=_MAP_HEIGHT - 30,
    )
    show_chart(
        figure,
        alt_text="The final loss of the EMA, of other means of this run's weights, of an ensemble of its networks and "
        "of the original, the lowest on top",
        table=table,
        name=name,
        look_for="Look which dots lie left of the dashed line, the original's last step. The ensemble averages "
        f"*predictions* instead of weights. {costs_in_words(family)}",
    )
    with st.expander("All figures, and what each costs, as a table", icon=":material/table:"):
        show_table(
            table,
            name=f"{name}-table",
            column_config={
                loss.column: st.column_config.NumberColumn("final loss"),
                **{m.column: st.column_config.NumberColumn(m.name) for m in others},
                "copies_kept": st.column_config.NumberColumn("copies kept in training"),
                "forward_passes": st.column_config.NumberColumn("forward passes to predict"),
            },
        )


def _show_atlas(view: ViewedRun) -> Codes:
    run = view.recorded.run
    x, y, metric = _atlas_controls(type(view.schedule))
    cells, reference = view.recorded.atlas(view.epochs, to_code(without_axes(view.schedule, x, y)), x, y, metric)
    table = pd.DataFrame(cells).astype({"beta_from": "Int64"})
    best = curves.best_row(cells, view.recorded.loss)
    if best is None:
        st.markdown(curves.no_best_in_words(cells, metric))
        return ()
    never = curves.beta_never_acts(cells, view.schedule, x, y)
    picture = heatmap(
        table.assign(beta_never=never, loss=table[view.recorded.loss.column]),
        reference=reference,
        x_title=TITLES.get(x, x),
        y_title=TITLES.get(y, y),
        loss_title=f"loss ({view.recorded.loss.name})",
        dotted="beta_never",
        chosen=view.clicked,
        clicks=clicks(run),
        shared=MOVED,
        height=_MAP_HEIGHT,
    )
    with st.container(key=MAP):
        st.vega_lite_chart(
            picture.data,
            picture.spec,
            alt=f"The {metric} loss under {len(table)} schedules over {x} and {y}, blue where it is below the "
            "original's",
            width="stretch",
            on_select=partial(keep_clicked, run, atlas_key(run)),
            selection_mode=CELL,
            key=atlas_key(run),
        )
    codes, pointed = tuple(cells["code"].tolist()), view.recorded.follows_pointer
    cell_keys(run, codes, table["x"].nunique(), best.row)
    most = most_epochs(int(table["code"].notna().sum()))
    coarse = f" Under the pointer, a curve is drawn at {most} of the {counted(view.epochs, 'epoch')}; kept, at all."
    st.caption(
        ("Point at a cell to see its curve, click to keep it. " if pointed else "Click a cell to see its curve. ")
        + "A wide blue plateau is a safe choice; the diamond is the lowest."
        + (" Dotted cells: this run is too short for beta, which never acts." if never.any() else "")
        + (" Empty cells: no such average can be had in this run." if table["code"].isna().any() else "")
        + (coarse if pointed and most < view.epochs else "")
    )
    st.markdown(curves.atlas_in_words(cells, best, reference, metric))
    _pin_buttons(view.clicked, cells["code"][best.row])
    with st.expander(f"All {len(table)} cells as a table", icon=":material/table:"):
        show_table(table, name=f"atlas-{run.id}")
    return codes


def _atlas_controls(family: type[Schedule]) -> tuple[str, str, str]:
    left, middle, right = st.columns(3)
    across = list(axes(family))
    x = left.selectbox(
        "Across",
        across,
        0,
        key="atlas_x",
        help="The setting along the horizontal axis: the map's columns are values of it, and all others stay as they "
        "are set.",
        **BOUND,
    )
    others = partners(x, family)
    if st.session_state.get("atlas_y") not in (None, *others):
        st.session_state["atlas_y"] = others[0]
    y = middle.selectbox(
        "Up",
        others,
        others.index("beta") if "beta" in others else 0,
        key="atlas_y",
        help="The setting along the vertical axis. half_life (steps) is beta's. relative_width is that of the weights "
        "at the end, as a share of the whole run: another setting of the family is solved for it (inv_gamma beside "
        "power, power beside the others), and the exponent of EDM2's power function beside a start or a window, where "
        "the average begins. window (steps) is how far the average looks back: the rule begins anew so many steps "
        "before; beside a start it is the plain mean.",
        **BOUND,
    )
    metric = right.segmented_control(
        "Loss",
        ["final", "best"],
        default="final",
        key="atlas_metric",
        required=True,
        help=f"After the last epoch, or the lowest of {BEST_OF} epochs spread evenly up to the last: of the cells and "
        "of the original alike.",
        **BOUND,
    )
    return x, y, metric


def _pin_buttons(clicked: str | None, best: str) -> None:
    with st.container(horizontal=True):
        if clicked:
            st.button(
                f"Pin {escaped(clicked)}",
                on_click=pin,
                args=(clicked,),
                icon=":material/keep:",
                help="Keep the clicked cell's curve when another one is clicked.",
            )
        st.button(
            "Pin the lowest cell",
            on_click=pin,
            args=(best,),
            icon=":material/keep:",
            help="Draw its curve beside the others, and keep it in the link.",
        )


def _show_space(view: ViewedRun) -> None:
    left, right = st.columns(2)
    kind = left.segmented_control(
        "Plane",
        [PRINCIPAL, THREE_POINTS],
        default=PRINCIPAL,
        key="plane",
        required=True,
        help="principal components: the two directions in which the weights vary most, so that most of their path is "
        "seen. three points: the plane that holds the first weights of the path, the last, and the final average, so "
        "that these three lie where they are drawn.",
        **BOUND,
    )
    since = right.slider(
        "From (% of the run)",
        0,
        95,
        50,
        5,
        key="path_from",
        help="Where the paths begin. The way from the first weights is so long that little else is seen beside it; "
        "later beginnings show how the weights circle at the end.",
        **BOUND,
    )
    try:
        found = view.recorded.space(view.epochs, view.code, kind, since)
    except ValueError as error:
        st.warning(sentence(error), icon=":material/warning:")
        return
    run = view.recorded.run
    landscape = pd.DataFrame(found.landscape)
    titles = ("first component", "second component") if kind == PRINCIPAL else ("along the path", "towards the average")
    show_chart(
        paths_on_landscape(found.original, found.averaged, found.steps, landscape, titles=titles, height=_MAP_HEIGHT),
        alt_text="A plane through the weights of this run: lines of equal validation loss, the path of the weights "
        "in orange and of their average in blue",
        table=landscape,
        name=f"landscape-{run.id}",
    )
    low, high = curves.finite_range(found.landscape["loss"])
    st.caption(
        "Look whether the blue path cuts the corners of the orange one, and lies lower. "
        f"{curves.shown_in_words(found.original_share, found.averaged_share)} "
        f"Grey: lines of equal validation loss *in the plane*, from {number(low)} to {number(high)}."
    )
    show_chart(
        lines(
            pd.DataFrame(found.line).assign(curve="loss"),
            x="position",
            y="loss",
            series="curve",
            colours={"loss": CLEAN},
            x_title="0: the last weights, 1: their average",
            y_title=view.recorded.loss_title,
            x_rules={"original": 0.0, "average": 1.0},
            height=200,
        ),
        alt_text="Validation loss along the straight line from the last weights to their average and beyond",
        table=pd.DataFrame(found.line),
        name=f"line-{run.id}",
    )
    st.caption("Where the loss at 1 lies below that at 0, averaging helped at the end of this run.")
    show_chart(
        lines(
            pd.DataFrame(curves.distances(found, ORIGINAL_NAME, NOW)),
            x="step",
            y="distance",
            series="curve",
            colours={ORIGINAL_NAME: ORIGINAL, NOW: AVERAGED},
            x_title="step of the run",
            y_title="distance to the end",
            height=200,
        ),
        alt_text="Euclidean distance of the weights and of their average from the last weights, over the steps",
        table=pd.DataFrame(found.distances).rename(columns={"averaged": "ema"}),
        name=f"distances-{run.id}",
    )
    st.caption("The average lags where its line lies above the original's, and is calmer where it has fewer teeth.")


def _show_widths(view: ViewedRun) -> None:
    loss, table = view.recorded.loss, view.recorded.widths(view.epochs)
    reference = float(view.recorded.measured("original")[loss.column][view.epochs - 1])
    best = curves.best_row(table, loss)
    if best is None:
        st.markdown("No average of this run has a finite loss, so no width is best.")
        return
    show_chart(
        lines(
            pd.DataFrame(curves.width_curves(table, loss, reference)),
            x="width",
            y="loss",
            series="curve",
            colours={"average": AVERAGED, "original": ORIGINAL},
            x_title="relative width (% of the run)",
            y_title=f"final {view.recorded.loss_title}",
            x_scale="log",
            height=_MAP_HEIGHT - 60,
        ),
        alt_text="Final loss of power-function averages of this run over their relative width, beside the original's",
        table=pd.DataFrame(table),
        name=f"widths-{view.recorded.run.id}",
    )
    st.caption("Look for the lowest stretch of the blue line: a wide one forgives a poor choice.")
    st.markdown(curves.width_in_words(table, best, reference))
    _carry(view, float(table["relative_width"][best.row]))


def _carry(view: ViewedRun, width: float) -> None:
    """Show the schedule that has this relative width in a run of another length."""
    length = st.number_input(
        "Steps of the other run",
        100,
        1_000_000,
        50_000,
        key="other_steps",
        help="The length of that run in optimiser steps. The settings below give its average a memory of the same "
        "share of the run: in a longer one it reaches back further.",
        **BOUND,
    )
    try:
        answer = from_code(carried(view.code, length, width))
        state = state_of(answer)
    except ValueError as error:
        st.warning(sentence(error), icon=":material/warning:")
        return
    st.code(to_code(answer), language="python")
    st.page_link(
        "pages/decay_schedule.py",
        label="Look at it on the schedule page",
        icon=":material/arrow_forward:",
        query_params=query_of({**state, "steps": length}),
    )


VIEWS: dict[str, Callable[[ViewedRun], Codes | None]] = {
    "Atlas": _show_atlas,
    "Family": _show_family,
    "Weight space": _show_space,
    "Best width": _show_widths,
}
