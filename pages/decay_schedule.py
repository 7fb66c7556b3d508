"""Decay schedule: what a schedule's decays are, what they weigh, and how to set them for a run."""

from functools import partial

import pandas as pd
import streamlit as st

from emacore.averaging import solving, views
from emacore.averaging.code import from_code, scheme_from_code, scheme_to_code, to_code
from emacore.averaging.remarks import remarks
from emacore.averaging.schedules import last_move
from emacore.averaging.windows import Window
from emacore.charts.style import AVERAGED, palette
from emacore.snippets import snippets
from emacore.widgets.decays import NOW, QUANTITIES, at_step, decay_tables, show_decays, weight_tables
from emacore.widgets.page import BOUND, csv_button, escaped, put, sentence, show_table, through_app
from emacore.widgets.schedules import (
    RUN_LENGTH_DEFAULTS,
    pin_controls,
    run_length_controls,
    schedule_controls,
    schedule_defaults,
    state_of,
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


@st.cache_data(max_entries=64, show_spinner="Solving")
def solved(code: str, num_steps: int, way: str, wanted: float) -> str:
    solve = solving.with_half_life if way == "half-life" else solving.with_relative_width
    return to_code(solve(from_code(code), num_steps, wanted))


def named(table: pd.DataFrame) -> pd.DataFrame:
    """For the CSV: the schedule's own code in place of "now"."""
    return table.assign(curve=table["curve"].replace(NOW, f"{NOW}: {code}"))


through_app()
st.title("Decay schedule")
st.markdown(
    "How much of the old average does each step keep? Small decays forget fast, decays near 1 remember long; a warm-up "
    "moves from the one to the other."
)
controls, charts = st.columns([1, 2.3], gap="medium")

with controls:
    num_steps = run_length_controls()
    schedule = schedule_controls(typed=True)
    code = to_code(schedule)
    pins = pin_controls(code, {**schedule_defaults(), **RUN_LENGTH_DEFAULTS}, scheme_from_code)
    curves = {NOW: schedule, **pins}

colours = palette(curves, {NOW: AVERAGED})
last = last_move(schedule, num_steps)

step = num_steps - 1
with charts:
    with st.container(horizontal=True):
        quantity = st.segmented_control(
            "Show",
            list(QUANTITIES),
            default=next(iter(QUANTITIES)),
            key="quantity",
            required=True,
            help="What each move takes in, how long it is remembered (the half-life that the decay of a step has), or "
            "the decay itself, which looks like 1 where it matters.",
            **BOUND,
        )
        x_scale = st.segmented_control(
            "Steps", ["log", "linear"], default="log", key="x", required=True, help="Scale of the steps.", **BOUND
        )
        weight_scale = st.segmented_control(
            "Weights",
            ["linear", "log"],
            default="linear",
            key="w",
            required=True,
            help="Scale of the weights.",
            **BOUND,
        )
        percent = None
        if num_steps > 2:
            percent = st.number_input(
                "After step (% of the run)",
                1,
                100,
                100,
                key="at",
                width=190,
                help="The average after this step: how much of each earlier step is in it? Its handle is below.",
                **BOUND,
            )
            step = at_step(num_steps, percent)
    finish = show_decays(
        curves,
        colours,
        num_steps,
        quantity=quantity,
        x_scale=x_scale,
        weight_scale=weight_scale,
        percent=percent,
        alt_text=f"{quantity} over the steps of the run; the decay of {code} ends at {schedule.at([last])[0]:.6g}. "
        f"Below it, the weight of each past step in the average after step {step:,}, for {len(curves)} averages",
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

st.subheader("What each past step weighs in the average")
right = st.container()
with right:
    figures = {name: figures_of(scheme_to_code(curve), step) for name, curve in curves.items()}
    own = figures[NOW]
    st.markdown(f"The average after step **{step:,}**, now:")
    first, second = st.columns(2)
    first.metric("Mean age (steps)", f"{own.mean_age:,.4g}", help="How old what it holds is, on average.")
    second.metric(
        "Counts as (snapshots)",
        f"{own.effective_count:,.4g}",
        help="So many equally weighted ones would average independent noise as well: 1 / sum of squared weights.",
    )
    first.metric(
        "Width (% of the run)" if step == num_steps - 1 else "Width (% of the steps so far)",
        f"{100 * own.relative_width:.3g}",
        help="Standard deviation of its weights in time: EDM2's relative width.",
    )
    second.metric(
        "Start still in it (%)",
        f"{100 * own.start_share:.2g}",
        help="The weight of the copy that it began with. Much of it means a memory too long for the run.",
    )
    show_table(pd.DataFrame(figures, index=FIGURES).T.reset_index(names="curve"), name="figures")

st.subheader("When does it reach a decay?")
if getattr(schedule, "beta", 0.0) == 0:
    st.caption("This family has no beta.")
show_table(pd.DataFrame(views.reached_table(schedule, num_steps)).astype({"first step": "Int64"}), name="reached")

st.subheader("For my run: memory in, settings out")
left, right = st.columns([1, 1.6], gap="medium")
with left:
    way = st.segmented_control(
        "Wanted memory",
        ["half-life", "relative width"],
        default="half-life",
        key="memory",
        required=True,
        help="The half-life of the decay that acts at the end, or the spread of the final average over the run.",
        **BOUND,
    )
    if way == "half-life":
        share = st.slider(
            "Half-life at the end (% of the run)",
            0.1,
            50.0,
            5.0,
            0.1,
            key="want_half_life",
            help="How far back the average looks once the run is over. Longer is calmer, and later: it holds on to "
            "older weights.",
            **BOUND,
        )
        wanted = share / 100 * num_steps
        st.caption(f"{wanted:,.4g} of {num_steps:,} steps")
    else:
        wanted = (
            st.slider(
                "Relative width (% of the run)",
                0.5,
                28.5,
                10.0,
                0.1,
                key="want_width",
                help="The published models of EDM2 have 1.5 to 20 %: which width is best depends on the model, the "
                "metric and the guidance.",
                **BOUND,
            )
            / 100
        )
    st.page_link(
        "pages/what_if.py",
        label="Which width was best in a run of mine?",
        icon=":material/model_training:",
        query_params={"view": "For my run"},
    )
with right:
    try:
        answer = from_code(solved(code, num_steps, way, float(wanted)))
        st.code(to_code(answer), language="python")
        memory = views.memory_at_end(answer, num_steps)
        lifted = answer.tuned != "beta" and getattr(answer, "beta", None) != getattr(schedule, "beta", None)
        st.caption(
            f"At the end: half-life {memory.half_life:,.4g} steps, relative width {memory.relative_width:.2%}, "
            f"mean age {memory.mean_age:,.4g} steps. Solved for the family's `{answer.tuned}`; "
            + (f"`beta` was in the way, so it is {answer.beta:.6g} now; " if lifted else "")
            + "the other settings are as above."
        )
        try:
            st.button("Use these settings", on_click=partial(put, state_of(answer)), icon=":material/check:")
        except ValueError as error:
            st.caption(f"They cannot be shown on the sliders: {escaped(error)}.")
    except ValueError as error:
        st.warning(sentence(error), icon=":material/warning:")

st.subheader("The same as code")
tabs = st.tabs([snippet.library for snippet in snippets(schedule)])
for tab, snippet in zip(tabs, snippets(schedule), strict=True):
    with tab:
        st.code(snippet.code, language="python")
        if snippet.note:
            st.caption(snippet.note)
finish()
