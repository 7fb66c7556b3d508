"""A stored run on the page Train: how it is going, its curves, its figures, and the article's beside them."""

from __future__ import annotations

from functools import partial

import pandas as pd
import streamlit as st

from emacore.averaging.remarks import remarks
from emacore.charts.lines import lines
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL, OTHERS
from emacore.experiments.evidence import rules_in_words, rules_of_run_in_words
from emacore.experiments.listing import measured_alike
from emacore.experiments.store import FINAL_STATES, StoredRun
from emacore.formatting import counted, number
from emacore.formatting import duration as time_text
from emacore.replay.measure import Metric
from emacore.tasks.regression.article import STEADINESS, is_article
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import TaskConfig
from emacore.training.history import (
    LEARNING_RATE,
    ONE_MINUS_DECAY,
    epochs_without_best,
    finite_epochs,
    in_words,
    late_range,
    losses,
    overlaid,
    rates,
    remaining,
    steadiness,
    summarise,
    train_loss_in_words,
    validation,
)
from emacore.widgets.article import beside_the_article
from emacore.widgets.jobs import duration, job_choice, job_queue, show_state, shown, stored
from emacore.widgets.link import from_link, to_link
from emacore.widgets.page import BOUND, csv_button, escaped, loss_axis, put, sentence, show_chart, show_table, told
from emacore.widgets.runs import run_state

#: The colours of another run's curves that are laid over these.
OVERLAID = {"original, other run": OTHERS[4], "EMA, other run": OTHERS[3]}
COLOURS = {"train": CLEAN, "original": ORIGINAL, "EMA": AVERAGED, **OVERLAID}


def draw_run(run_id: str) -> StoredRun:
    """Draw what the store has of a run: how far it is, its curves and its figures."""
    run, history = stored(run_id)
    _headline(run, history)
    if not len(finite_epochs(history)):
        if not history.empty:
            csv_button(history, f"history-{run.id}")
    else:
        charts, words = st.columns([1.5, 1], gap="medium")
        with charts:
            _curves(run, history)
        with words:
            _figures(run, history)
        if isinstance(run.config, RunConfig):
            beside_the_article(run, history)
    return run


def start_from_run() -> None:
    """A choice among the store's runs, and a button that brings the settings of one into the controls of a run."""
    with told():
        runs = job_queue().store.runs()
    configs = dict(zip(runs["id"], map(TaskConfig.from_json, runs["config"]), strict=True))
    ours = {run_id: config for run_id, config in configs.items() if isinstance(config, RunConfig)}
    st.markdown("**Is it more than one draw?**")
    if not ours:
        st.page_link(
            "pages/train.py", label="Train a run, and ask here what many seeds say", icon=":material/model_training:"
        )
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = job_choice(
            "A run of yours",
            shown(runs[runs["id"].isin(list(ours))]),
            "start_from",
            index=0,
            help="Its settings, trained with many seeds: what one run seemed to show is then more than chance, or not.",
            width=480,
        )
        st.button(
            "Start from this run",
            icon=":material/conversion_path:",
            on_click=partial(_take_settings, ours[chosen]),
            help="Brings its settings into the controls above. Then press Start.",
        )


def _take_settings(config: RunConfig) -> None:
    """Show a run's settings in the controls: a callback."""
    try:
        state = run_state(config)
    except ValueError as error:
        st.toast(sentence(error), icon=":material/error:")
        return
    put(state)
    st.toast("The settings are those of the run now. Press **Start**.", icon=":material/conversion_path:")


def _is_over(run: StoredRun) -> bool:
    return run.state in FINAL_STATES


def _headline(run: StoredRun, history: pd.DataFrame) -> None:
    """Progress, remaining time, and how the run ended or may end."""
    most, epoch, stopping = run.config.max_epochs, len(history), run.config.stopping
    trained = counted(epoch, "epoch")
    patience = (
        f"{counted(stopping.patience, 'epoch')} without a new best validation loss of the "
        f"{'EMA' if stopping.curve == 'ema' else 'original'}"
    )
    left = "starting"
    if epoch:
        time_left, pace = remaining(history, most)
        each = time_text(pace) if pace >= 0.5 else f"{number(1000 * pace, 3)} ms"
        left = f"{time_left.in_words('at most')} ({each} an epoch)"
        if stopping.curve != "none":
            waited = epochs_without_best(history, stopping.curve)
            left += f"; ends sooner after {patience}, {waited} so far"
    why = {
        "early stop": patience,
        "max epochs": "all epochs trained",
        "stopped": "you stopped it",
        "diverged": "the loss is no longer finite; a smaller learning rate may help",
    }.get(run.stopped or "stopped", run.stopped)
    show_state(
        run,
        epoch / most,
        progress=f"Epoch {epoch} of at most {most:,}: {left}.",
        so_far=trained,
        ended=f"Ended after {trained} and {time_text(duration(run))}: {why}.",
        what="run",
        empty=not len(finite_epochs(history)),
    )
    if run.note:
        st.caption(f"Recorded weights: {escaped(run.note)}.")


def _curves(run: StoredRun, history: pd.DataFrame) -> None:
    """The losses, the last further metric of the task, and the rates, over epochs, with those of another run."""
    loss, *others = run.config.metrics
    with st.container(horizontal=True, vertical_alignment="bottom"):
        scale = loss_axis()
        other = _other_run(run)
    table = losses(history)
    if other is not None:
        table = overlaid(table, losses(other))
    show_chart(
        lines(
            table,
            x="epoch",
            y="loss",
            series="curve",
            colours=COLOURS,
            x_title="epoch",
            y_title=f"loss ({loss.name})",
            y_scale=scale,
            faint=["train", *OVERLAID],
        ),
        alt_text=f"Train, original and EMA loss over {counted(len(history), 'epoch')}",
        table=table,
        name=f"losses-{run.id}",
        look_for=f"**Look for** where blue stays below orange, and how much less it moves. "
        f"{train_loss_in_words(history, run.config)}",
    )
    left, right = st.columns(2, gap="medium")
    if others:
        with left:
            _metric(run, history, other, others[-1])
    with right:
        _rates(run, history)


def _other_run(run: StoredRun) -> pd.DataFrame | None:
    """The history of a run that is chosen to lie over this one."""
    with told():
        runs = job_queue().store.runs()
    runs = runs[(runs["id"] != run.id) & (runs["epochs"] > 0)]
    alike = runs["config"].map(lambda text: measured_alike({"this": run.job, "that": TaskConfig.from_json(text)}))
    from_link("overlay")
    chosen = job_choice(
        "Overlay another run",
        shown(runs[alike.astype(bool)]),
        "overlay",
        placeholder="None" if alike.any() else "No other run on the same rows",
        help="Lays the validation curves of another run of the same task and data over these, as thin lines.",
    )
    to_link("overlay")
    return None if chosen is None else stored(chosen)[1]


def _rates(run: StoredRun, history: pd.DataFrame) -> None:
    """The learning rate and 1 - decay, each on an axis of its own: they differ by orders of magnitude."""
    table = rates(history)
    for name, colour, file, words in (
        (LEARNING_RATE, ORIGINAL, "learning_rate", "Lower: smaller steps, less to average."),
        (ONE_MINUS_DECAY, AVERAGED, "one_minus_decay", "Lower: the average reaches further back."),
    ):
        own = table[table["rate"] == name]
        show_chart(
            lines(
                own,
                x="epoch",
                y="value",
                series="rate",
                colours={name: colour},
                x_title="epoch",
                y_title=name,
                y_scale="log",
                height=200,
            ),
            alt_text=f"{name} over epochs",
            table=own,
            name=f"{file}-{run.id}",
            look_for=words,
        )


def _metric(run: StoredRun, history: pd.DataFrame, other: pd.DataFrame | None, metric: Metric) -> None:
    table = validation(history, metric)
    better = "higher" if metric.higher_is_better else "lower"
    ends = late_range(table[metric.column], metric)
    if other is not None:
        table = overlaid(table, validation(other, metric))
    show_chart(
        lines(
            table,
            x="epoch",
            y=metric.column,
            series="curve",
            colours=COLOURS,
            x_title="epoch",
            y_title=f"{metric.name} (validation rows)",
            y_domain=ends,
            height=400,
        ),
        alt_text=f"{metric.name} of the original and the EMA model over epochs",
        table=table,
        name=f"{metric.column}-{run.id}",
        look_for=f"{metric.name}: {better} is better." + (" The worst tenth lies at the axis' end." if ends else ""),
    )


def _figures(run: StoredRun, history: pd.DataFrame) -> None:
    last, told = int(finite_epochs(history)[-1]), in_words(history)
    if last < len(history):
        st.markdown(f"**Metrics after epoch {last}, the last with a finite loss**")
    else:
        st.markdown("**Final metrics**" if _is_over(run) else f"**Metrics after epoch {last}**")
    show_table(
        summarise(history, run.config.metrics, last),
        name=f"metrics-{run.id}",
        column_config={
            "ema": st.column_config.NumberColumn("EMA"),
            "gain_percent": st.column_config.NumberColumn(
                "better (%)", help="The gain in percent of the original's value, above 0 where the average is better."
            ),
        },
    )
    csv_button(history, f"history-{run.id}")
    for words in told:
        st.markdown(words)
    over = _is_over(run)
    if rules := rules_of_run_in_words(run.config, history, run.stopped or "") if over else rules_in_words(run.config):
        st.markdown(rules)
    if _is_over(run) and told:
        st.markdown("One run is one draw: another seed can turn the sign of the difference.")
    for remark in remarks(run.config.schedule, max(2, int(history["steps"].iloc[-1]))):
        st.info(remark, icon=":material/info:")
    _steadiness(history, STEADINESS if is_article(run.config) else None)


def _steadiness(history: pd.DataFrame, article: dict[str, float] | None) -> None:
    first = st.number_input(
        "Steadiness from epoch",
        1,
        100_000,
        20,
        key="steady_from",
        help="The standard deviation of the validation loss from this epoch on: begin where the curves have come "
        "down. The article does not state its own.",
        **BOUND,
    )
    original, ema = steadiness(history, first)
    if pd.isna(original):
        st.caption(f"From epoch {first} on there are fewer than two epochs at which both losses are finite.")
        return
    one, two = st.columns(2)
    for place, model, name, value in ((one, "original", "original", original), (two, "ema", "EMA", ema)):
        told = None if article is None else f"The article: {article[model]}, from an epoch not stated."
        place.metric(f"Std. {name}", number(value, 2), help=told)
