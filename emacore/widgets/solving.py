"""A memory of somebody's own choice: the settings of any family that have it in a run."""

from __future__ import annotations

from functools import partial

import streamlit as st

from emacore.averaging import parts, solving
from emacore.averaging.advice import PRODUCT, Recommendation, Run, own_warnings
from emacore.averaging.code import from_code, to_code
from emacore.formatting import counted, decay, number, percent
from emacore.snippets import explicit_code
from emacore.widgets.my_run import show_code, show_remarks
from emacore.widgets.page import BOUND, escaped, put, sentence
from emacore.widgets.schedules import schedule_controls, state_of


@st.cache_data(max_entries=64, show_spinner="Solving")
def _solved(code: str, num_steps: int, way: str, wanted: float) -> str:
    solve = solving.with_half_life if way == "half-life" else solving.with_relative_width
    return to_code(solve(from_code(code), num_steps, wanted))


def own_memory(run: Run) -> None:
    """Controls of a family and of the memory that its average is to have at the end of the run, and the settings that
    give it that memory."""
    family, answer = st.columns([1, 1.6], gap="medium")
    with family:
        schedule = schedule_controls()
    with answer:
        way, wanted = _wanted(run.steps)
        try:
            found = from_code(_solved(to_code(schedule), run.steps, way, wanted))
        except ValueError as error:
            st.warning(sentence(error), icon=":material/warning:")
            return
        st.code(explicit_code(found), language="python", wrap_lines=True)
        memory = parts.memory(found, run.steps)
        beta = getattr(found, "beta", None)
        lifted = found.tuned != "beta" and beta != getattr(schedule, "beta", None)
        st.caption(
            f"At the end: half-life {counted(memory.half_life, 'step')}, relative width "
            f"{percent(memory.relative_width)}, mean age {counted(memory.mean_age, 'step')}. Solved for the family's "
            f"`{found.tuned}`; "
            + (f"`beta` was in the way, so it is {decay(beta)} now; " if lifted and beta is not None else "")
            + "the other settings are as on the left."
        )
        setting = Recommendation("your own", found, "", PRODUCT)
        show_remarks(own_warnings(run, [setting]), warn=True)
        try:
            st.button("Use these settings", on_click=partial(put, state_of(found)), icon=":material/check:")
        except ValueError as error:
            st.caption(f"They cannot be shown on the sliders: {escaped(error)}.")
        show_code(run, [setting], key="own_library")


def _wanted(num_steps: int) -> tuple[str, float]:
    """By what the memory is measured, and how much of it is wanted: steps, or a share of the run."""
    way = st.segmented_control(
        "Wanted memory",
        ["half-life", "relative width"],
        default="half-life",
        key="memory",
        required=True,
        help="half-life: of the decay that acts at the end. relative width: the standard deviation in time of all "
        "weights in the final average, which old steps with little weight widen, too.",
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
        steps = share / 100 * num_steps
        st.caption(f"{number(steps)} of {counted(num_steps, 'step')}")
        return "half-life", float(steps)
    width = st.slider(
        "Relative width (% of the run)",
        0.5,
        28.5,
        10.0,
        0.1,
        key="want_width",
        help="Wider is calmer, and later: it holds on to older weights. EDM2's authors chose 1.5 to 20 %, without and "
        "with classifier-free guidance: which width is best depends on the model, the metric and the guidance.",
        **BOUND,
    )
    return "relative width", float(width / 100)
