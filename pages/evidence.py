"""Evidence: many seeds of one experiment, and what they can and cannot show."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from emacore.averaging.code import from_code, to_code
from emacore.experiments.studies import Study
from emacore.tasks.regression.article import LAST_EPOCH
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import OptimizerConfig, StoppingConfig
from emacore.widgets.again import STUDY_SEEDS
from emacore.widgets.jobs import job_queue, listed, workbench
from emacore.widgets.page import BOUND, presets, through_app
from emacore.widgets.runs import RUN_DEFAULTS, run_controls, run_state
from emacore.widgets.schedules import pin_controls
from emacore.widgets.study import draw_shipped_study, draw_study
from emacore.widgets.training import start_from_run

NEVER = StoppingConfig("none")
HIGH = RunConfig(optimizer=OptimizerConfig(learning_rate=0.01, rate_rule="constant"), stopping=NEVER, max_epochs=60)
PRESETS = {
    "The article, many times": ("Its own settings: is its one run's 20 % evidence?", RunConfig()),
    "The article, at a fixed length": (
        f"No early stop: {LAST_EPOCH} epochs for every seed, as long as its one run. The learning rate still follows "
        "the average.",
        RunConfig(stopping=NEVER, max_epochs=LAST_EPOCH),
    ),
    "The article, rules on the original": (
        "Its early stop and learning rate look at the original's loss, as they would without an average.",
        RunConfig(optimizer=OptimizerConfig(plateau_curve="original"), stopping=StoppingConfig("original")),
    ),
    "A higher learning rate": (
        f"{HIGH.optimizer.learning_rate} and never lowered, {HIGH.max_epochs} epochs: the steps stay large, so there "
        "is much to average.",
        HIGH,
    ),
    "No dropout": (
        "The article's settings without the noise of dropout.",
        RunConfig(network=replace(RunConfig().network, dropout=0.0)),
    ),
    "Five epochs": (
        "Too short for the article's average to be worth it?",
        RunConfig(optimizer=OptimizerConfig(rate_rule="constant"), stopping=NEVER, max_epochs=5),
    ),
}
DEFAULTS = {**RUN_DEFAULTS, "seeds": 32, "first_seed": 0}
SECONDS_BETWEEN_LOOKS = 1.0

through_app()
st.title("Evidence")
st.markdown(
    "One run is one draw. Here the same experiment is trained with many seeds at once, and the :orange[**original**] "
    "is compared with its :blue[**average**] seed by seed: does averaging help, hurt, or can these seeds not tell?"
)
st.page_link("pages/where_it_helps.py", label="Where does it help? A map over two settings", icon=":material/grid_on:")
presets({name: (text, run_state(config)) for name, (text, config) in PRESETS.items()}, RUN_DEFAULTS)


def settings() -> Study:
    seeds = st.slider(
        "Seeds",
        *STUDY_SEEDS,
        DEFAULTS["seeds"],
        8,
        key="seeds",
        help="More seeds show a smaller difference, and take longer: four times as many make the intervals about half "
        "as wide.",
        **BOUND,
    )
    config = run_controls(job_queue().store)
    with st.expander("More", icon=":material/more_horiz:"):
        first_seed = st.number_input(
            "First seed",
            0,
            10**9,
            DEFAULTS["first_seed"],
            key="first_seed",
            help="The seeds count up from here. Beyond the last one of another study all runs are new ones: the "
            "numbers change, and what was more than chance should show again.",
            **BOUND,
        )
    further = pin_controls(to_code(config.schedule), DEFAULTS, from_code)
    return Study(
        config,
        tuple(range(first_seed, first_seed + seeds)),
        tuple(dict.fromkeys(schedule for schedule in further.values() if schedule != config.schedule)),
    )


workbench(
    "Study",
    listed("studies"),
    settings=settings,
    draw=draw_study,
    invitation="Press **Start** to run your own: 32 seeds of the article's run take less than a minute.",
    seconds=SECONDS_BETWEEN_LOOKS,
    instead=draw_shipped_study,
)
start_from_run()
