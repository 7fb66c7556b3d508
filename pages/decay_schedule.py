"""Decay schedule: what a schedule's decays are, what they weigh, and how to set them for a run."""

import pandas as pd
import streamlit as st

from emacore.averaging import views
from emacore.averaging.code import scheme_from_code, scheme_to_code, to_code
from emacore.averaging.remarks import remarks
from emacore.averaging.schedules import last_move
from emacore.averaging.windows import Window
from emacore.charts.style import AVERAGED, palette
from emacore.formatting import counted, decay
from emacore.snippets import snippets
from emacore.widgets.decays import NOW, decay_tables, look_controls, show_decays, show_figures, weight_tables
from emacore.widgets.page import beside_controls, csv_button, show_table, through_app
from emacore.widgets.schedules import (
    RUN_LENGTH_DEFAULTS,
    pin_controls,
    run_length_controls,
    schedule_controls,
    schedule_defaults,
)

OPENING = (
    "How much of the old average does each step keep? Small decays forget fast, decays near 1 remember long; a warm-up "
    "moves from the one to the other."
)
FIGURES = [
    "mean age (steps)",
    "effective count (snapshots)",
    "relative width (share of the steps so far)",
    "share of the start",
]


@st.cache_data(max_entries=64, show_spinner=False)
def figures_of(code: str, step: int) -> views.Figures:
    return views.figures(scheme_from_code(code), step)


def named(table: pd.DataFrame) -> pd.DataFrame:
    """For the CSV: the schedule's own code in place of "now"."""
    return table.assign(curve=table["curve"].replace(NOW, f"{NOW}: {code}"))


through_app()
st.title("Decay schedule")
opening = st.empty()
opening.markdown(OPENING)
st.page_link(
    "pages/for_my_run.py",
    label="**Which settings fit my run?** Say how long it is: For my run",
    icon=":material/directions_run:",
)
controls, charts = beside_controls(2.3)

with controls:
    num_steps = run_length_controls()
    schedule = schedule_controls(typed=True)
    code = to_code(schedule)
    pins = pin_controls(code, {**schedule_defaults(), **RUN_LENGTH_DEFAULTS}, scheme_from_code)
    curves = {NOW: schedule, **pins}

if schedule.course:
    opening.markdown(f"{OPENING} *{schedule.label}* {schedule.course}")
colours = palette(curves, {NOW: AVERAGED})
last = last_move(schedule, num_steps)

with charts:
    look = look_controls(num_steps)
    step = look.step
    finish = show_decays(
        curves,
        colours,
        num_steps,
        look,
        alt_text=f"{look.quantity} over the steps of the run; the decay of {code} ends at "
        f"{decay(schedule.at([last])[0])}. Below it, the weight of each past step in the average after step {step:,}, "
        f"for {counted(len(curves), 'average')}",
    )
    for remark in remarks(schedule, num_steps):
        st.info(remark, icon=":material/info:")
    with st.container(horizontal=True):
        csv_button(lambda: named(decay_tables(curves, num_steps)), "decays")
        csv_button(lambda: named(weight_tables(curves, step)), "weights")
    for window in (curve for curve in curves.values() if isinstance(curve, Window)):
        st.caption(
            f"`{scheme_to_code(window)}` has no decay: at each step the oldest value leaves it whole. Its weights are "
            "in the lower picture."
        )

with charts:
    figures = {name: figures_of(scheme_to_code(curve), step) for name, curve in curves.items()}
    st.markdown(f"The average after step **{step:,}**, now:")
    show_figures(figures[NOW], at_end=step == num_steps - 1)
    show_table(pd.DataFrame(figures, index=FIGURES).T.reset_index(names="curve"), name="figures")

st.header("When does it reach a decay?")
if getattr(schedule, "beta", 0.0) == 0:
    st.caption("This family has no beta.")
show_table(pd.DataFrame(views.reached_table(schedule, num_steps)).astype({"first step": "Int64"}), name="reached")

st.header("The same as code")
tabs = st.tabs([snippet.library for snippet in snippets(schedule)])
for tab, snippet in zip(tabs, snippets(schedule), strict=True):
    with tab:
        st.code(snippet.code, language="python")
        if snippet.note:
            st.caption(snippet.note)
finish()
