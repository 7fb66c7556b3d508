"""Overview: SGD circling a minimum, its average, and what the formulas say of both."""

import numpy as np
import pandas as pd
import streamlit as st

from emacore.averaging.filters import half_life
from emacore.averaging.schedules import Constant
from emacore.averaging.signals import sgd_on_quadratic, stationary_loss
from emacore.averaging.weights import average
from emacore.charts.plane import paths
from emacore.experiments.article import in_words as article_in_words
from emacore.experiments.article import shipped
from emacore.widgets.page import BOUND, query_of, reset_button, show_chart, show_table, through_app
from emacore.widgets.schedules import SCHEDULE_DEFAULTS, beta_slider

CURVATURES = (1.0, 0.25)
START = (2.0, 1.6)
DRAWN = 300
MEASURED = 50_000
SECONDS_PER_FRAME = 0.4
DEFAULTS = {"quad_rate": 0.3, "quad_noise": 1.0, "quad_decay": 0.98}

through_app()
st.title("What does averaging do to your weights?")
st.markdown(
    "Near a minimum, SGD does not settle: the noise of its batches keeps it :orange[**circling**]. An "
    ":blue[**exponential moving average**] of its weights lies much closer to the minimum. Move the sliders."
)
controls = st.columns(3)
with controls[0]:
    learning_rate = st.slider(
        "Learning rate",
        0.01,
        1.5,
        DEFAULTS["quad_rate"],
        0.01,
        key="quad_rate",
        help="Larger steps reach the minimum sooner and circle it more widely.",
        **BOUND,
    )
with controls[1]:
    noise = st.slider(
        "Gradient noise",
        0.0,
        3.0,
        DEFAULTS["quad_noise"],
        0.05,
        key="quad_noise",
        help="Standard deviation of the noise in each direction of the gradient: smaller batches have more.",
        **BOUND,
    )
with controls[2]:
    beta = beta_slider(
        "Decay of the average",
        "quad_decay",
        DEFAULTS["quad_decay"],
        help="The share of the old average that each step keeps.",
    )
    st.caption(f"It forgets half in {half_life(beta):,.3g} steps.")


@st.cache_data(max_entries=64, show_spinner=False)
def simulate(rate: float, noise: float, steps: int, start: float | tuple[float, float]) -> np.ndarray:
    return sgd_on_quadratic(CURVATURES, rate, noise, steps, seed=1, start=start).noisy


def advance() -> int:
    """How many steps the picture shows: more with each frame while it plays."""
    if not st.session_state.get("play", True):
        return DRAWN
    shown = min(st.session_state.get("frame", 20) + 8, DRAWN)
    st.session_state["frame"] = shown
    return shown


def replay() -> None:
    st.session_state["frame"] = 20


playing = st.session_state.get("play", True) and st.session_state.get("frame", 20) < DRAWN
picture, numbers = st.columns([3, 2])


@st.fragment(run_every=SECONDS_PER_FRAME if playing else None)
def draw() -> None:
    shown = advance()
    path = simulate(learning_rate, noise, DRAWN, START)
    averaged = average(path, Constant(beta).decays(DRAWN))
    table = pd.DataFrame(
        np.column_stack([np.arange(DRAWN), path, averaged]),
        columns=["step", "sgd_w1", "sgd_w2", "average_w1", "average_w2"],
    ).astype({"step": "int64"})
    show_chart(
        paths(path[:shown], averaged[:shown], CURVATURES, reach=np.abs(path).max()),
        alt_text="The path of SGD (orange) and of its average (blue) in a plane of two weights, "
        f"steps 0 to {shown - 1}, around the minimum in the middle",
        table=table,
        name="paths",
    )
    st.caption(f"Step {shown - 1} of {DRAWN - 1}; grey: lines of equal loss, their centre is the minimum.")
    if playing and shown >= DRAWN:
        st.rerun()


with picture:
    draw()
    with st.container(horizontal=True):
        st.button("Play again", on_click=replay, icon=":material/replay:")
        reset_button(DEFAULTS)
        st.toggle("Play", True, key="play", help="Off: show the whole path at once.", **BOUND)

with numbers:
    st.subheader("Formula and simulation agree")
    long = simulate(learning_rate, noise, MEASURED, 0.0)
    settled = slice(MEASURED // 10, None)
    averages = average(long, np.full(MEASURED, beta), initial=0.0)
    measured = [float(np.mean((part[settled] ** 2) @ CURVATURES) / 2) for part in (long, averages)]
    predicted = [stationary_loss(CURVATURES, learning_rate, noise, b) for b in (None, beta)]

    def ratio(pair: list[float]) -> float:
        return pair[1] / pair[0] if pair[0] else float("nan")

    st.metric(
        "Loss of the average, as a share of SGD's own",
        "no noise, no difference" if noise == 0 else f"{ratio(measured):.1%}",
        help="Both around the minimum, once the start is forgotten.",
    )
    show_table(
        pd.DataFrame(
            {
                "mean loss around the minimum": ["SGD", "average", "average / SGD"],
                "formula": [*predicted, ratio(predicted)],
                "simulated": [*measured, ratio(measured)],
            }
        ),
        name="loss",
    )
    st.caption(
        "Formula: each direction of SGD is AR(1) noise with coefficient 1 - learning rate x curvature, and the "
        f"average is a one-pole filter. Simulated: {MEASURED:,} steps from the minimum, seed 1, curvatures "
        f"{CURVATURES[0]:g} and {CURVATURES[1]:g}."
    )
    st.markdown(
        "**Look for:** a larger decay makes the blue path calmer *and later*: it needs longer to come in from the "
        "start. A small learning rate does the same to the orange path itself."
    )


@st.cache_data(max_entries=1)
def evidence() -> str:
    """What the shipped study says."""
    table, made = shipped()
    told = "\n".join(f"- {sentence}" for sentence in article_in_words(table))
    return f"{told}\n\nMade by `{made.partition(',')[0]}`,{made.partition(',')[2]}."


st.divider()
st.subheader("Three questions")
for column, (question, text, page, label, changes) in zip(
    st.columns(3),
    [
        (
            "What is it?",
            "A low-pass filter: noise goes, slow changes stay, and everything comes a little later. Its cut-off "
            "frequency, delay and noise reduction are formulas.",
            "pages/low_pass_filter.py",
            "See the filter at work",
            {"signal": "step", "noise": "white", "f_decay": 0.98},
        ),
        (
            "What do I set?",
            "A decay that fits the length of your run, and a warm-up. See what each past step weighs, and which "
            "settings never act.",
            "pages/decay_schedule.py",
            "Bend a schedule",
            SCHEDULE_DEFAULTS,
        ),
        (
            "Does it help me?",
            "One run is one draw, and it depends on how one asks: at the end of a run whose stop looks at the average, "
            "at a fixed length, or each curve by its own rule. Below, the article's experiment is asked in these ways.",
            "pages/evidence.py",
            "Ask your own seeds",
            {},
        ),
    ],
    strict=True,
):
    with column, st.container(border=True):
        st.markdown(f"**{question}** {text}")
        st.page_link(page, label=label, query_params=query_of(changes))

st.subheader("The article's experiment, over 32 seeds")
st.markdown(evidence())
