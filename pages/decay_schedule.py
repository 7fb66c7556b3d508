"""Decay schedule: what a schedule's decays are, what they weigh, and how to set them for a run."""

from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from emacore.averaging import schedules, solving
from emacore.averaging.code import from_code, scheme_from_code, scheme_to_code, to_code
from emacore.averaging.families import InversePower
from emacore.averaging.filters import half_life, half_lives
from emacore.averaging.remarks import remarks
from emacore.averaging.schedules import Schedule
from emacore.averaging.weights import effective_count, mean_age, relative_width, start_share, weights
from emacore.averaging.windows import Window, decays_at_end
from emacore.charts.lines import lines
from emacore.charts.style import AVERAGED, palette
from emacore.snippets import snippets
from emacore.widgets.page import BOUND, escaped, put, sentence, show_chart, show_table, stop_with, through_app
from emacore.widgets.schedules import pin_controls, schedule_controls, schedule_defaults, state_of, steps_axis

LEVELS = (0.9, 0.99, 0.999, 0.9999)
MOST_STEPS = 1_000_000
RUN_DEFAULTS = {"length": "Steps", "steps": 5000, "rows": 1600, "batch": 32, "epochs": 100}
NOW = "now"
WIDTH = "relative width (share of the steps so far)"


@st.cache_data(max_entries=32, show_spinner=False)
def decays_of(code: str, num_steps: int) -> np.ndarray:
    return decays_at_end(scheme_from_code(code), num_steps)


@st.cache_data(max_entries=64, show_spinner=False)
def weights_of(code: str, step: int) -> pd.DataFrame:
    calls = steps_axis(step + 1, scheme_from_code(code))
    return pd.DataFrame({"step": calls, "weight": weights(decays_of(code, step + 1))[calls]})


@st.cache_data(max_entries=64, show_spinner=False)
def figures_of(code: str, step: int) -> dict[str, float]:
    decays, scheme = decays_of(code, step + 1), scheme_from_code(code)
    start = scheme.start if isinstance(scheme, Schedule) else None
    return {
        "mean age (steps)": mean_age(decays),
        "effective count (snapshots)": effective_count(decays),
        WIDTH: relative_width(decays),
        "share of the start": start_share(decays, start=start),
    }


def run_length() -> int:
    way = st.segmented_control(
        "Run length",
        ["Steps", "Epochs"],
        default=RUN_DEFAULTS["length"],
        key="length",
        required=True,
        help="Give the optimiser steps of your run, or rows, batch size and epochs.",
        **BOUND,
    )
    if way == "Steps":
        return st.number_input(
            "Steps", 2, MOST_STEPS, RUN_DEFAULTS["steps"], key="steps", help=f"At most {MOST_STEPS:,}.", **BOUND
        )
    left, middle, right = st.columns(3)
    with left:
        rows = st.number_input("Rows", 1, 10**9, RUN_DEFAULTS["rows"], key="rows", help="Training rows.", **BOUND)
    with middle:
        batch = st.number_input("Batch", 1, 10**7, RUN_DEFAULTS["batch"], key="batch", help="Rows a step.", **BOUND)
    with right:
        epochs = st.number_input("Epochs", 1, 10**6, RUN_DEFAULTS["epochs"], key="epochs", help="Passes.", **BOUND)
    if batch > rows:
        stop_with(f"A batch of {batch:,} is larger than the {rows:,} rows: at most {rows:,} is possible.")
    steps = -(-rows // batch) * epochs
    st.caption(f"{-(-rows // batch):,} steps an epoch, {steps:,} in all")
    if not 2 <= steps <= MOST_STEPS:
        stop_with(f"That is a run of {steps:,} steps; this page shows runs of 2 to {MOST_STEPS:,}. Change the epochs.")
    return steps


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
    num_steps = run_length()
    schedule = schedule_controls()
    code = to_code(schedule)
    pins = pin_controls(code, {**schedule_defaults(), **RUN_DEFAULTS}, scheme_from_code)
    curves = {NOW: schedule, **pins}

colours = palette(curves, {NOW: AVERAGED})
last = schedules.last_move(schedule, num_steps)

with charts:
    for remark in remarks(schedule, num_steps):
        st.info(remark, icon=":material/info:")
    with st.container(horizontal=True):
        quantity = st.segmented_control(
            "Show",
            ["decay", "1 - decay", "memory"],
            default="decay",
            key="quantity",
            required=True,
            help="Memory is the half-life, in steps, that the decay of a step has.",
            **BOUND,
        )
        x_scale = st.segmented_control(
            "Steps", ["linear", "log"], default="linear", key="x", required=True, help="Scale of the steps.", **BOUND
        )
    parts = []
    with_decays = {name: curve for name, curve in curves.items() if isinstance(curve, Schedule)}
    for name, curve in with_decays.items():
        calls = steps_axis(num_steps, curve)
        rates = decays_of(to_code(curve), num_steps)[calls]
        memory = half_lives(rates) * curve.update_every
        parts.append(
            pd.DataFrame(
                {"curve": name, "step": calls, "decay": rates, "one_minus_decay": 1 - rates, "half_life_steps": memory}
            )
        )
    table = pd.concat(parts, ignore_index=True)
    column, title, scale = {
        "decay": ("decay", "decay (share kept per move)", "linear"),
        "1 - decay": ("one_minus_decay", "1 - decay (share taken in per move)", "log"),
        "memory": ("half_life_steps", "memory (half-life, steps)", "log"),
    }[quantity]
    show_chart(
        lines(
            table.assign(step=table["step"] + 1) if x_scale == "log" else table,
            x="step",
            y=column,
            series="curve",
            colours=colours,
            x_title="step (counted from 1)" if x_scale == "log" else "step",
            y_title=title,
            x_scale=x_scale,
            y_scale=scale,
        ),
        alt_text=f"{quantity} over the steps of the run, for {len(with_decays)} schedules; the decay of {code} ends at "
        f"{schedule.at([last])[0]:.6g}",
        table=partial(named, table),
        name="decays",
    )
    for window in (curve for curve in curves.values() if isinstance(curve, Window)):
        st.caption(
            f"`{scheme_to_code(window)}` has no decay: at each step the oldest value leaves it whole. Its weights are "
            "below."
        )

st.subheader("What each past step weighs in the average")
step = num_steps - 1
if num_steps > 2:
    percent = st.slider(
        "After step (% of the run)",
        1,
        100,
        100,
        key="at",
        format="%d %%",
        help="The average after this step: how much of each earlier step is in it?",
        **BOUND,
    )
    step = max(1, round((num_steps - 1) * percent / 100))
table = pd.concat(
    [weights_of(scheme_to_code(curve), step).assign(curve=name) for name, curve in curves.items()],
    ignore_index=True,
)[["curve", "step", "weight"]]
left, right = st.columns([2.3, 1.4], gap="medium")
with left:
    weight_scale = st.segmented_control(
        "Weights", ["linear", "log"], default="linear", key="w", required=True, help="Scale of the weights.", **BOUND
    )
    show_chart(
        lines(
            table,
            x="step",
            y="weight",
            series="curve",
            colours=colours,
            x_title="step whose weights are averaged",
            y_title="weight in the average",
            y_scale=weight_scale,
        ),
        alt_text=f"Weight of each past step in the average after step {step:,}, for {len(curves)} averages",
        table=partial(named, table),
        name="weights",
    )
with right:
    figures = pd.DataFrame(
        {name: figures_of(scheme_to_code(curve), step) for name, curve in curves.items()}
    ).T.reset_index(names="curve")
    st.markdown(f"The average after step **{step:,}**, now:")
    own = figures.iloc[0]
    first, second = st.columns(2)
    first.metric("Mean age (steps)", f"{own['mean age (steps)']:,.4g}", help="How old what it holds is, on average.")
    second.metric(
        "Counts as (snapshots)",
        f"{own['effective count (snapshots)']:,.4g}",
        help="So many equally weighted ones would average independent noise as well: 1 / sum of squared weights.",
    )
    first.metric(
        "Width (% of the run)" if step == num_steps - 1 else "Width (% of the steps so far)",
        f"{100 * own[WIDTH]:.3g}",
        help="Standard deviation of its weights in time: EDM2's relative width.",
    )
    second.metric(
        "Start still in it (%)",
        f"{100 * own['share of the start']:.2g}",
        help="The weight of the copy that it began with. Much of it means a memory too long for the run.",
    )
    show_table(figures, name="figures")

st.subheader("When does it reach a decay?")
levels = {f"{level:g}": level for level in LEVELS}
if getattr(schedule, "beta", None) in (None, 0.0):
    st.caption("This family has no beta.")
else:
    levels["beta"] = schedule.beta
rows = []
for name, level in levels.items():
    call = schedule.reaches(level) if level > 0 else None
    rows.append(
        {
            "decay": f"{name} = {level:g}" if name == "beta" else name,
            "half-life there (moves)": half_life(level),
            "first step": call,
            "in this run": "never, by this rule" if call is None else "yes" if call < num_steps else "no, too short",
        }
    )
show_table(pd.DataFrame(rows).astype({"first step": "Int64"}), name="reached")

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


@st.cache_data(max_entries=64, show_spinner="Solving")
def solved(code: str, num_steps: int, way: str, wanted: float) -> str:
    solve = solving.with_half_life if way == "half-life" else solving.with_relative_width
    return to_code(solve(from_code(code), num_steps, wanted))


with right:
    try:
        answer = from_code(solved(code, num_steps, way, float(wanted)))
        st.code(to_code(answer), language="python")
        decays = decays_of(to_code(answer), num_steps)
        st.caption(
            f"At the end: half-life {schedules.final_half_life(answer, num_steps):,.4g} steps, relative width "
            f"{relative_width(decays):.2%}, mean age {mean_age(decays):,.4g} steps. Solved for the family's "
            f"`{answer.tuned}`; "
            + (
                f"`beta` was in the way, so it is {answer.beta:.6g} now; the other settings are as above."
                if isinstance(answer, InversePower) and answer.beta != schedule.beta
                else "the other settings are as above."
            )
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
