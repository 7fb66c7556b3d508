"""What if: one recorded run, replayed exactly under every schedule."""

import pandas as pd
import streamlit as st

from emacore.averaging.code import scheme_from_code, scheme_to_code, to_code
from emacore.averaging.remarks import remarks
from emacore.charts.aligned import curves_and_shares
from emacore.charts.style import AVERAGED, CHOSEN, CLEAN, ORIGINAL, palette
from emacore.widgets.jobs import begin_example, job_queue, show_problem
from emacore.widgets.page import BOUND, csv_button, show_chart, show_table, through_app, told
from emacore.widgets.schedules import pin_controls, schedule_controls, schedule_defaults

through_app()
st.title("What if?")
st.markdown(
    "The average never touches the weights that are trained. So the recorded weights of *one* run answer, exactly, "
    "what every other schedule would have given: move a slider, and the averaged network's whole curve moves, without "
    "training."
)
begin_example()  # its worker loads torch meanwhile, too
with st.spinner("Loading torch, once for each start of the server"):  # the title is to be seen meanwhile
    import torch

    from emacore.replay.curves import curve_figures, curve_in_words, smaller_rate_in_words, stacked
    from emacore.widgets.replay import (
        NOW,
        ORIGINAL_NAME,
        OWN,
        chosen_run,
        clicked_cell,
        followed,
        metric_columns,
        say_what_is_exact,
    )
    from emacore.widgets.replay_views import show_views

# A replay is too short to be shared out: its threads would wait for each other while a run trains on the same cores.
torch.set_num_threads(1)

with told():
    store = job_queue().store
    job_queue().tend()
    show_problem()
    run = chosen_run(store)
    if run is None:
        st.info("Train a run first: it is recorded as it trains.", icon=":material/model_training:")
        st.page_link("pages/train.py", label="Train the article's run")
        st.stop()
recorded = followed(store, run)
if recorded is None:
    st.info("The first epoch is not over yet.", icon=":material/hourglass_top:")
    st.stop()

controls, charts = st.columns([1, 2.3], gap="medium")
with controls:
    schedule = schedule_controls()
    code = to_code(schedule)
    pinned = pin_controls(code, schedule_defaults(), scheme_from_code)
clicked = clicked_cell(run)
codes = {NOW: code, **({clicked: clicked} if clicked else {})}
codes |= {name: scheme_to_code(scheme) for name, scheme in pinned.items()}
original, own = recorded.measured("original"), recorded.measured("ema")
curves = stacked({ORIGINAL_NAME: original, OWN: own, **{name: recorded.curve(text) for name, text in codes.items()}})
shares = stacked({name: recorded.weights(text) for name, text in codes.items()})
fixed = {NOW: AVERAGED} if clicked in pinned else {NOW: AVERAGED, clicked: CHOSEN}


def named(table: dict) -> pd.DataFrame:
    """For the CSV: the schedule's own code in place of "now"."""
    return pd.DataFrame(table).replace({"curve": {NOW: f"{NOW}: {code}"}})


with charts:
    say_what_is_exact(recorded)
    scale = st.segmented_control(
        "Loss axis",
        ["log", "linear"],
        default="log",
        key="loss_axis",
        required=True,
        help="log shows what happens at small losses; linear shows how large the differences are.",
        **BOUND,
    )
    show_chart(
        curves_and_shares(
            pd.DataFrame(curves),
            pd.DataFrame(shares),
            colours={ORIGINAL_NAME: ORIGINAL, OWN: CLEAN, **palette(codes, fixed)},
            y_title=recorded.loss_title,
            y_scale=scale,
            steps=recorded.trajectory.steps,
        ),
        alt_text=f"Validation loss over {recorded.epochs} epochs: the original, the run's own EMA, and {len(codes)} "
        f"replayed schedules, now {code}; below, the weight of each step of the run in each final average",
        table=named(curves),
        name=f"replayed-{run.id}",
    )
    csv_button(named(shares), f"weights-{run.id}")
    for remark in remarks(schedule, max(2, recorded.trajectory.steps)):
        st.caption(remark)

st.subheader("Figures of these curves")
first = st.number_input(
    "Steadiness from epoch", 1, 100_000, 20, key="steady_from", help="Standard deviation from this epoch on.", **BOUND
)
figures = curve_figures(curves, recorded.metrics, ORIGINAL_NAME, first)
show_table(
    pd.DataFrame(figures).astype({"ahead_since": "Int64"}),
    name=f"figures-{run.id}",
    column_config=metric_columns(recorded),
)
rates, loss = recorded.history["learning_rate"], recorded.loss.column
st.markdown(
    f"{curve_in_words(figures, ORIGINAL_NAME, NOW)} "
    f"{smaller_rate_in_words(original['epoch'], rates, original[loss], recorded.curve(code)[loss])} "
    "All of it is of this run and its validation rows; another seed is another run."
)
with st.expander("Load this average into a module of your own", icon=":material/download:"):
    tensors = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in recorded.trajectory.tensors.items())
    st.code(
        "from emacore import *\n\n"
        f"trajectory = Trajectory.open({recorded.folder!r})\n"
        f"trajectory.load_into(module, {code})  # any torch module with these tensors by name\n"
        f"# {tensors}",
        language="python",
    )

st.subheader("More of this run")
show_views(recorded, schedule, clicked)
