"""Train: the article's experiment, live, with the average beside it."""

from functools import partial

import streamlit as st

from emacore.averaging.families import Constant
from emacore.tables import is_kept
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import OptimizerConfig, StoppingConfig
from emacore.widgets.again import next_steps
from emacore.widgets.jobs import job_queue, json_button, listed, workbench
from emacore.widgets.page import escaped, presets, put, through_app
from emacore.widgets.runs import RUN_DEFAULTS, run_controls, run_state
from emacore.widgets.training import draw_run

STEADY = OptimizerConfig(rate_rule="constant")
NEVER = StoppingConfig("none")
PRESETS = {
    "The article": ("Adam 0.001, plateau rule, early stop on the average: about 100 epochs.", RunConfig()),
    "A higher learning rate": (
        "0.01 and never lowered, 60 epochs: the steps stay large, so there is much to average.",
        RunConfig(optimizer=OptimizerConfig(learning_rate=0.01, rate_rule="constant"), stopping=NEVER, max_epochs=60),
    ),
    "A decay too long for the run": (
        "Constant 0.9999 over 60 epochs: the average still holds its start.",
        RunConfig(optimizer=STEADY, schedule=Constant(0.9999, update_after_step=100), stopping=NEVER, max_epochs=60),
    ),
    "Five epochs": (
        "Too short for the article's average to be worth it?",
        RunConfig(optimizer=STEADY, stopping=NEVER, max_epochs=5),
    ),
}
SECONDS_BETWEEN_LOOKS = 0.5


def settings_as_json(config: RunConfig) -> None:
    with st.expander("Settings as JSON", icon=":material/data_object:"):
        json_button(config, "config")
        file = st.file_uploader(
            "Take settings from a JSON",
            "json",
            key="config_file",
            help="A file that was downloaded here: all controls take its settings.",
            max_upload_size=1,
        )
        if file is None:
            return
        try:
            state = run_state(RunConfig.from_json(file.getvalue()))
        except ValueError as error:
            st.error(f"The file cannot be used: {escaped(error)}.", icon=":material/error:")
            return
        own = state.pop("own_table", None)
        if own is not None and own[1] is not None and is_kept(own[1]):
            state["own_table"] = own
        elif state["data"] == "csv":
            st.info("It trains on a CSV, which is not part of it: upload that under Data.", icon=":material/info:")
        st.button("Use these settings", on_click=partial(put, state), icon=":material/check:")


through_app()
st.title("Train")
st.markdown(
    "The article's experiment: a small network learns a regression, and after each epoch the :orange[**original**] "
    "weights and their :blue[**average**] are measured on rows that neither was trained on."
)
presets({name: (text, run_state(config)) for name, (text, config) in PRESETS.items()}, RUN_DEFAULTS)


def settings() -> RunConfig:
    config = run_controls(job_queue().store)
    settings_as_json(config)
    return config


chosen, _ = workbench(
    "Run",
    listed("runs"),
    settings=settings,
    draw=draw_run,
    invitation="Press **Start**: the article's run takes a few seconds.",
    seconds=SECONDS_BETWEEN_LOOKS,
    reset=RUN_DEFAULTS,
)

if chosen is not None:
    next_steps(chosen)
