"""Where it helps: one experiment over a grid of two settings, each cell with its own seeds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from emacore.experiments.studies import Sweep
from emacore.experiments.sweep import before_start, trainings_in_words
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import OptimizerConfig, StoppingConfig
from emacore.widgets.again import SWEEP_SEEDS
from emacore.widgets.jobs import job_queue, listed, workbench
from emacore.widgets.page import BOUND, presets, through_app
from emacore.widgets.runs import run_controls
from emacore.widgets.sweeps import (
    DECAYS,
    SUGGESTED,
    SWEEP_DEFAULTS,
    draw_shipped_sweep,
    draw_sweep,
    grid_controls,
    sweep_state,
)

BASE = RunConfig(optimizer=OptimizerConfig(rate_rule="constant"), stopping=StoppingConfig("none"), max_epochs=60)


def at(rate: float, **optimizer: Any) -> OptimizerConfig:
    return replace(BASE.optimizer, learning_rate=rate, **optimizer)


#: What it asks, the settings it starts from, and the two axes with their values.
PRESETS: dict[str, tuple[str, RunConfig, dict[str, str]]] = {
    "Learning rate and decay": (
        "Does averaging replace lowering the learning rate? And which decay is too long for 3,000 steps?",
        BASE,
        {
            "optimizer.learning_rate": "0.001, 0.003, 0.01, 0.03",
            "schedule": f"{DECAYS}, UniformAverage(update_after_step=1500)",
        },
    ),
    "Dropout and batch size": (
        "Does it need noise in the steps? Learning rate 0.003, 30 epochs, the article's schedule.",
        replace(BASE, optimizer=at(0.003), max_epochs=30),
        {"network.dropout": "0, 0.1, 0.2, 0.4", "optimizer.batch_size": "8, 32, 128"},
    ),
    "Run length and schedule": (
        "From how many epochs on is which schedule worth it? The article's network and learning rate, never lowered.",
        BASE,
        {"max_epochs": "5, 20, 60", "schedule": SUGGESTED["schedule"]},
    ),
    "Dropout and learning rate": (
        "What if the network is free of noise, but the steps stay large? 60 epochs, the article's schedule.",
        BASE,
        {"network.dropout": "0, 0.2", "optimizer.learning_rate": "0.001, 0.003, 0.01"},
    ),
    "SGD": (
        "Is it Adam? SGD with momentum 0.9, 60 epochs, with and without dropout, the article's schedule.",
        replace(BASE, optimizer=at(0.02, name="sgd")),
        {"network.dropout": "0, 0.2", "optimizer.learning_rate": "0.005, 0.02, 0.05"},
    ),
    "Label noise": (
        "What if the targets themselves are noisy? Learning rate 0.01, batches of 16, 40 epochs.",
        replace(BASE, optimizer=at(0.01, batch_size=16), max_epochs=40),
        {
            "data.noise": "0.1, 10, 50",
            "schedule": f"{DECAYS}, UniformAverage(update_after_step=2000)",
        },
    ),
}
SECONDS_BETWEEN_LOOKS = 1.0


through_app()
st.title("Where it helps")
st.markdown(
    "The same comparison, :orange[**original**] against :blue[**average**] over many seeds, in every cell of a grid of "
    "two settings. One experiment says whether averaging helped *there*; a map says what that depends on."
)
presets({name: (text, sweep_state(config, axes)) for name, (text, config, axes) in PRESETS.items()}, SWEEP_DEFAULTS)


def settings() -> Sweep:
    seeds = st.slider(
        "Seeds",
        *SWEEP_SEEDS,
        SWEEP_DEFAULTS["sweep_seeds"],
        8,
        key="sweep_seeds",
        help="How many seeds each cell is trained with. More of them show a smaller difference, so that fewer cells "
        "stay hatched, and the sweep takes longer.",
        **BOUND,
    )
    grid = grid_controls()
    sweep = Sweep(run_controls(job_queue().store), grid, tuple(range(seeds)))
    warning, needs = before_start(sweep)
    if warning:
        st.warning(warning, icon=":material/warning:")
    st.caption(f"{trainings_in_words(sweep)} {needs}")
    return sweep


workbench(
    "Sweep",
    listed("sweeps"),
    settings=settings,
    draw=draw_sweep,
    invitation="To run your own, choose a question above, which sets the controls, and press **Start**: the first "
    "takes about a minute.",
    seconds=SECONDS_BETWEEN_LOOKS,
    reset=SWEEP_DEFAULTS,
    instead=draw_shipped_sweep,
)
