"""Overview: SGD circling a minimum, its average, and what the formulas say of both."""

import numpy as np
import pandas as pd
import streamlit as st

from emacore.averaging.filters import half_life
from emacore.averaging.signals import sgd_on_quadratic
from emacore.averaging.views import LossByDecay, averaged_path, change_in_words, loss_by_decay
from emacore.charts.plane import paths
from emacore.charts.tradeoff import tradeoff
from emacore.experiments.article_study import in_words as article_in_words
from emacore.experiments.article_study import shipped
from emacore.widgets.page import BOUND, number_text, query_of, reset_button, show_chart, show_table, through_app
from emacore.widgets.schedules import beta_slider, schedule_defaults

CURVATURES = (1.0, 0.25)
START = (2.0, 1.6)
DRAWN = 300
RUNS = 1000
SECONDS_PER_FRAME = 0.4
DEFAULTS = {"quad_rate": 0.3, "quad_noise": 1.0, "quad_decay": 0.98}

through_app()
st.title("What does averaging do to your weights?")
st.markdown(
    "Near a minimum, SGD does not settle: the noise of its batches keeps it :orange[**circling**]. An "
    ":blue[**exponential moving average**] of its weights is calmer, and later: closer to the minimum if its decay "
    "fits the length of the run, still on its way if it is too large. Move the sliders."
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
    st.caption(f"It forgets half in {half_life(beta):,.1f} steps.")


@st.cache_data(max_entries=64, show_spinner=False)
def simulate(rate: float, noise: float) -> np.ndarray:
    return sgd_on_quadratic(CURVATURES, rate, noise, DRAWN, seed=1, start=START).noisy


@st.cache_data(max_entries=64, show_spinner=False)
def losses(rate: float, noise: float, beta: float) -> LossByDecay:
    return loss_by_decay(CURVATURES, rate, noise, DRAWN, START, beta, runs=RUNS)


def advance() -> int:
    """How many steps the picture shows: more with each frame while it plays."""
    if not st.session_state["play"]:
        return DRAWN
    shown = min(st.session_state.get("frame", 20) + 8, DRAWN)
    st.session_state["frame"] = shown
    return shown


def replay() -> None:
    st.session_state["frame"] = 20


picture, numbers = st.columns([3, 2])
with picture:
    moving = st.container()  # above the toggle, whose value it needs
    with st.container(horizontal=True):
        st.button("Play again", on_click=replay, icon=":material/replay:")
        reset_button(DEFAULTS)
        st.toggle("Play", True, key="play", help="Off: show the whole path at once.", **BOUND)
playing = st.session_state["play"] and st.session_state.get("frame", 20) < DRAWN


@st.fragment(run_every=SECONDS_PER_FRAME if playing else None)
def draw() -> None:
    shown = advance()
    show_chart(
        paths(path.iterates[:shown], path.averaged[:shown], CURVATURES, reach=path.reach),
        alt_text="The path of SGD (orange) and of its average (blue) in a plane of two weights, "
        f"steps 0 to {shown - 1}, around the minimum in the middle",
        table=pd.DataFrame(path.table()),
        name="paths",
    )
    st.caption(f"Step {shown - 1} of {DRAWN - 1}; grey: lines of equal loss, their centre is the minimum.")
    if playing and shown >= DRAWN:
        st.rerun()


path = averaged_path(simulate(learning_rate, noise), beta)
with moving:
    draw()
found = losses(learning_rate, noise, beta)
last, now, best = found.at(0.0), found.at(beta), found.lowest
expected = found.expected.total
with numbers:
    st.subheader(change_in_words(expected[last], expected[now]))
    one, two = st.columns(2)
    one.metric("SGD's last step", f"{expected[last]:.3g}", help="Its expected loss: the mean over all noise.")
    two.metric(
        "Its average",
        f"{expected[now]:.3g}",
        help=f"The same of the average of this path, with decay {number_text(beta)}, after the same {DRAWN - 1} steps.",
    )
    curve = pd.DataFrame(found.table())
    show_chart(
        tradeoff(curve[curve["decay"] > 0], chosen=half_life(beta), label=f"decay {number_text(beta)}"),
        alt_text=f"Expected loss of the average after {DRAWN - 1} steps over its decay, lowest at "
        f"{found.decays[best]:.6g}; the chosen decay {number_text(beta)} is marked",
        table=curve,
        name="loss_by_decay",
    )
    st.caption(
        f"Lowest of these: {expected[best]:.3g}, at decay {found.decays[best]:.6g}. Too small a decay leaves the noise "
        "in the average, too large a one the start. Dots are simulated."
    )

places = [last, now]
agrees = all(found.agrees(decay) for decay in (0.0, beta))
st.subheader("Formula and simulation agree" if agrees else "Formula and simulation do not agree")
compared = pd.DataFrame(
    {
        f"loss after step {DRAWN - 1}": ["SGD's last step", f"average, decay {number_text(beta)}"],
        "left of the start": found.expected.bias[places],
        "from the noise": found.expected.variance[places],
        "expected: both": expected[places],
        "simulated": found.simulated[places],
        "standard error": found.error[places],
        "the path drawn": path.final_losses(CURVATURES),
    }
)
show_table(
    compared,
    name="loss",
    column_config={column: st.column_config.NumberColumn(format="%.3g") for column in compared.columns[1:]},
)
st.caption(
    f"Expected: exact for these {DRAWN - 1} steps from this start. Each direction of SGD is AR(1) noise with "
    "coefficient 1 - learning rate x curvature, added to the path that it would take without noise; the average "
    "weighs both. "
    f"Simulated: the mean of {RUNS:,} runs of the same steps from the same start, curvatures {CURVATURES[0]:g} and "
    f"{CURVATURES[1]:g}. The path drawn is one such run, and can have more loss or less."
)
st.markdown(
    "**Look for:** a larger decay makes the blue path calmer *and later*: it needs longer to come in from the start. A "
    "small learning rate does the same to the orange path itself."
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
            schedule_defaults(),
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
