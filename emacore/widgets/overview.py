"""The numbers of the Overview and their controls: SGD around a minimum, its average, and the loss over the decay."""

from __future__ import annotations

import streamlit as st

from emacore.averaging.schedules import BETA
from emacore.averaging.signals import sgd_on_quadratic
from emacore.averaging.views import LossByDecay, Path, averaged_path, loss_by_decay
from emacore.widgets.page import BOUND

#: The curvatures of the loss along the two weights, and where SGD starts.
CURVATURES = (1.0, 0.25)
START = (2.0, 1.6)
#: Iterates of the run, the start among them.
DRAWN = 300
#: How many runs the simulated losses are the mean of.
RUNS = 1000
#: The keys of the controls.
RATE, NOISE, DECAY = "quad_rate", "quad_noise", "quad_decay"
DEFAULTS = {RATE: 0.3, NOISE: 1.0, DECAY: 0.98}


def circling_controls() -> tuple[float, float, float]:
    """The learning rate, the gradient noise and the decay of the average, side by side."""
    one, two, three = st.columns(3)
    learning_rate = one.number_input(
        "Learning rate",
        0.01,
        1.5,
        DEFAULTS[RATE],
        0.01,
        key=RATE,
        format="%.6g",
        help="Larger steps reach the minimum sooner and circle it more widely.",
        **BOUND,
    )
    noise = two.number_input(
        "Gradient noise",
        0.0,
        3.0,
        DEFAULTS[NOISE],
        0.05,
        key=NOISE,
        format="%.6g",
        help="Standard deviation of the noise in each direction of the gradient. With more of it, as from smaller "
        "batches, SGD circles more widely, and an average has more to gain.",
        **BOUND,
    )
    beta = three.number_input(
        "Decay",
        BETA.low,
        BETA.high,
        DEFAULTS[DECAY],
        0.001,
        key=DECAY,
        format="%.7g",
        help="The share of the old average that each step keeps. Nearer to 1 the blue path is calmer, and comes in "
        "later from the start.",
        **BOUND,
    )
    return learning_rate, noise, beta


@st.cache_data(max_entries=128, show_spinner=False)
def path_of(rate: float, noise: float, beta: float) -> Path:
    """The run that is drawn, and its average."""
    return averaged_path(sgd_on_quadratic(CURVATURES, rate, noise, DRAWN, seed=1, start=START).noisy, beta)


@st.cache_data(max_entries=64, show_spinner=False)
def losses_of(rate: float, noise: float, beta: float, runs: int = RUNS) -> LossByDecay:
    """The final loss of the average over its decay, by formula and as the mean of ``runs`` simulated runs."""
    return loss_by_decay(CURVATURES, rate, noise, DRAWN, START, beta, runs=runs)


def what_a_decay_leaves(noise: float) -> str:
    """What the curve of the losses shows, as the rest of a sentence that begins with "Below:"."""
    if not noise:
        return (
            "there is no noise to average out, so an average only keeps what is left of the start; SGD's last step "
            "may lie below the picture."
        )
    return "too small a decay leaves the noise in the average, too large a one the start."
