"""What if: one recorded run, replayed exactly under every schedule."""

import pandas as pd
import streamlit as st

from emacore.averaging.code import scheme_from_code, scheme_to_code, to_code
from emacore.averaging.remarks import remarks
from emacore.charts.style import AVERAGED, CHOSEN, CLEAN, ORIGINAL, palette
from emacore.formatting import counted
from emacore.memory import uncollected
from emacore.widgets.jobs import begin_example, job_queue, show_problem, tell_of
from emacore.widgets.page import BOUND, beside_controls, csv_button, loss_axis, show_table, through_app, told
from emacore.widgets.schedules import pin_controls, schedule_controls, schedule_defaults

through_app()
title, picker = st.columns([1, 2.2], vertical_alignment="bottom", gap="medium")
title.title("What if?")
begin_example()  # its worker loads torch meanwhile, too
with st.spinner("Loading torch, once for each start of the server"), uncollected():  # the title is seen meanwhile
    import torch

    from emacore.replay.curves import curve_figures, curve_in_words, smaller_rate_in_words, stacked
    from emacore.widgets.opened_run import show_opened_run
    from emacore.widgets.replay import (
        CELL_NAME,
        NOW,
        ORIGINAL_NAME,
        OWN,
        begin_with,
        chosen_run,
        followed,
        metric_columns,
        say_in_link,
        say_what_is_exact,
    )
    from emacore.widgets.replay_cells import cell_curves, kept_cell
    from emacore.widgets.replay_curves import show_curves
    from emacore.widgets.replay_views import show_code, show_views

# A replay is too short to be shared out: its threads would wait for each other while a run trains on the same cores.
torch.set_num_threads(1)

with told():
    store = job_queue().store
    job_queue().tend()
    tell_of(store)
    show_problem()
    with picker:
        run = chosen_run(store)
    if run is None:
        st.info("Train a run first: it is recorded as it trains.", icon=":material/model_training:")
        st.page_link("pages/train.py", label="Train the article's run")
        st.stop()
if isinstance(run, str):
    show_opened_run(run)
    st.stop()
recorded = followed(store, run)
if recorded is None:
    st.info("The first epoch is not over yet.", icon=":material/hourglass_top:")
    with uncollected():
        run.config.task()  # loads what measures it, too, meanwhile
    st.stop()

verdict, notes, screen, below = (st.container() for _ in range(4))
with notes:
    say_what_is_exact(recorded)
with screen:
    controls, charts, views = beside_controls(1.8, 1.7)
with controls:
    begin_with(run)
    schedule = schedule_controls(typed=True)
    code = to_code(schedule)
    pinned = pin_controls(code, schedule_defaults(), scheme_from_code)
    say_in_link(run)
kept = kept_cell(run)
codes = {NOW: code, **({CELL_NAME: kept} if kept else {})}
codes |= {name: scheme_to_code(scheme) for name, scheme in pinned.items()}
original, own = recorded.measured("original"), recorded.measured("ema")
curves = stacked({ORIGINAL_NAME: original, OWN: own, **{name: recorded.curve(text) for name, text in codes.items()}})
shares = stacked({name: recorded.weights(text) for name, text in codes.items()})


def named(table: dict) -> pd.DataFrame:
    """For the CSV: the schedules' own code in place of "now" and "the cell"."""
    names = {name: f"{name}: {codes[name]}" for name in (NOW, CELL_NAME) if name in codes}
    return pd.DataFrame(table).replace({"curve": names})


with charts:
    scale = loss_axis(label_visibility="collapsed")
    finish = show_curves(
        recorded,
        schedule,
        pd.DataFrame(curves),
        pd.DataFrame(shares),
        colours={
            ORIGINAL_NAME: ORIGINAL,
            OWN: CLEAN,
            **palette(codes, {NOW: AVERAGED, CELL_NAME: CHOSEN}),
        },
        scale=scale,
        alt_text=f"Validation loss over {counted(recorded.epochs, 'epoch')}: the original, the run's own EMA, and "
        f"{counted(len(codes), 'replayed schedule')}, now {code}; below, the weight of each step of the run in each "
        "final average",
    )
    st.caption("Drag a handle: where the blue line lies below the orange one, averaging helps, at no cost to training.")
    for remark in remarks(schedule, max(2, recorded.trajectory.steps)):
        st.caption(remark)
    with st.container(horizontal=True):
        csv_button(lambda: named(curves), f"replayed-{run.id}")
        csv_button(lambda: named(shares), f"weights-{run.id}")
with below:
    st.header("Figures of these curves")
    first = st.number_input(
        "Steadiness from epoch",
        1,
        100_000,
        20,
        key="steady_from",
        help="The standard deviation of the loss from this epoch on. Begin where the curves have come down: before, it "
        "measures their way down.",
        width=220,
        **BOUND,
    )
    figures = curve_figures(curves, recorded.metrics, ORIGINAL_NAME, first)
    show_table(
        pd.DataFrame(figures).astype({"ahead_since": "Int64"}),
        name=f"figures-{run.id}",
        column_config=metric_columns(recorded),
    )
    rates, loss = recorded.history["learning_rate"], recorded.loss.column
    st.markdown(
        f"{smaller_rate_in_words(original['epoch'], rates, original[loss], recorded.curve(code)[loss])} "
        "All of it is of this run and its validation rows; another seed is another run."
    )
    show_code(recorded, code)
verdict.markdown(curve_in_words(figures, ORIGINAL_NAME, NOW))
with views:
    cells = show_views(recorded, schedule, kept)
finish(lambda: cell_curves(recorded, cells))
