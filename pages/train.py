"""Train: the article's experiment, live, with the average beside it."""

from functools import partial

import pandas as pd
import streamlit as st

from emacore.averaging.remarks import remarks
from emacore.averaging.schedules import Constant, to_code
from emacore.charts.lines import lines
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL
from emacore.experiments.evidence import rules_in_words
from emacore.experiments.store import FINAL_STATES, StoredRun
from emacore.training.article import STEADINESS, beside_final, beside_progress
from emacore.training.config import OptimizerConfig, RunConfig, StoppingConfig
from emacore.training.history import epochs_without_best, in_words, steadiness
from emacore.widgets.jobs import attempt, duration, job_queue, json_button, listed, show_state, stored, workbench
from emacore.widgets.page import (
    BOUND,
    csv_button,
    presets,
    put,
    show_chart,
    show_table,
    through_app,
)
from emacore.widgets.runs import RUN_DEFAULTS, run_controls, run_state

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
LIST_MOST = 25
SECONDS_BETWEEN_LOOKS = 0.5
NAMES = {"train_loss": "train", "val_loss_original": "original", "val_loss_ema": "EMA"}
COLOURS = {"train": CLEAN, "original": ORIGINAL, "EMA": AVERAGED}


def is_over(run: StoredRun) -> bool:
    return run.state in FINAL_STATES


def headline(run: StoredRun, history: pd.DataFrame) -> None:
    """Progress, remaining time, and how the run ended or may end."""
    most, epoch, stopping = run.config.max_epochs, len(history), run.config.stopping
    patience = (
        f"{stopping.patience} epochs without a new best validation loss of the "
        f"{'EMA' if stopping.curve == 'ema' else 'original'}"
    )
    left = "starting"
    if epoch:
        pace = history["seconds"].iloc[-1] / epoch
        left = f"at most {pace * (most - epoch):,.0f} s left ({1000 * pace:,.3g} ms an epoch)"
        if stopping.curve != "none":
            waited = epochs_without_best(history, stopping.curve)
            left += f"; ends sooner after {patience}, {waited} so far"
    why = {
        "early stop": patience,
        "max epochs": "all epochs trained",
        "stopped": "you stopped it",
        "diverged": "the loss is no longer finite; a smaller learning rate may help",
    }[run.stopped or "stopped"]
    show_state(
        run,
        epoch / most,
        progress=f"Epoch {epoch} of at most {most:,}: {left}.",
        so_far=f"{epoch} epochs",
        ended=f"Ended after {epoch} epochs and {duration(run):,.1f} s: {why}.",
        what="run",
    )


def curves(history: pd.DataFrame, run_id: str) -> None:
    with st.container(horizontal=True):
        scale = st.segmented_control(
            "Loss axis", ["log", "linear"], default="log", key="loss_axis", required=True, help="Its scale.", **BOUND
        )
    losses = history[["epoch", *NAMES]].rename(columns=NAMES).melt("epoch", var_name="curve", value_name="loss")
    show_chart(
        lines(
            losses,
            x="epoch",
            y="loss",
            series="curve",
            colours=COLOURS,
            x_title="epoch",
            y_title="loss (MSE of standardised y)",
            y_scale=scale,
            faint=["train"],
        ),
        alt_text=f"Train, original and EMA loss over {len(history)} epochs",
        table=losses,
        name=f"losses-{run_id}",
    )
    left, right = st.columns(2, gap="medium")
    r2 = history[["epoch", "val_r2_original", "val_r2_ema"]].rename(
        columns={"val_r2_original": "original", "val_r2_ema": "EMA"}
    )
    r2 = r2.melt("epoch", var_name="curve", value_name="r2")
    floor = max(0.0, float(r2["r2"].quantile(0.1)) - 0.02) if len(r2) else 0.0
    with left:
        show_chart(
            lines(
                r2,
                x="epoch",
                y="r2",
                series="curve",
                colours=COLOURS,
                x_title="epoch",
                y_title="R2 (validation rows)",
                y_domain=(min(floor, 0.98), 1.0),
                height=300,
            ),
            alt_text="R2 of the original and the EMA model over epochs",
            table=r2,
            name=f"r2-{run_id}",
        )
    rates = history[["epoch", "learning_rate", "decay"]].assign(one_minus_decay=1 - history["decay"])
    rates = rates.rename(columns={"learning_rate": "learning rate", "one_minus_decay": "1 - decay of the EMA"})
    rates = rates.drop(columns="decay").melt("epoch", var_name="rate", value_name="value")
    with right:
        show_chart(
            lines(
                rates,
                x="epoch",
                y="value",
                series="rate",
                colours={"learning rate": ORIGINAL, "1 - decay of the EMA": AVERAGED},
                x_title="epoch",
                y_title="per step",
                y_scale="log",
                height=300,
            ),
            alt_text="Learning rate, and 1 - decay of the average, over epochs",
            table=rates,
            name=f"rates-{run_id}",
        )


def figures(run: StoredRun, history: pd.DataFrame) -> None:
    st.markdown("**Final metrics**" if is_over(run) else f"**Metrics after epoch {len(history)}**")
    show_table(
        run.summary,
        name=f"metrics-{run.id}",
        column_config={
            "original": st.column_config.NumberColumn(format="%.6f"),
            "ema": st.column_config.NumberColumn("EMA", format="%.6f"),
            "improvement": st.column_config.NumberColumn("better (%)", format="%.2f"),
        },
    )
    csv_button(history, f"history-{run.id}")
    for words in in_words(history):
        st.markdown(words)
    if rules := rules_in_words(run.config):
        st.markdown(rules)
    if is_over(run):
        st.markdown("One run is one draw: another seed can turn the sign of the difference.")
    for remark in remarks(run.config.schedule, max(2, int(history["steps"].iloc[-1]))):
        st.info(remark, icon=":material/info:")
    first = st.number_input(
        "Steadiness from epoch",
        1,
        100_000,
        20,
        key="steady_from",
        help="Standard deviation of the validation loss from this epoch on; the article does not state its own.",
        **BOUND,
    )
    original, ema = steadiness(history, first)
    if pd.isna(original):
        st.caption(f"From epoch {first} on there are fewer than two epochs.")
    else:
        one, two = st.columns(2)
        one.metric(
            "Std. original", f"{original:.2g}", help=f"The article: {STEADINESS['original']}, from an epoch not stated."
        )
        two.metric("Std. EMA", f"{ema:.2g}", help=f"The article: {STEADINESS['ema']}, from an epoch not stated.")


def beside_the_article(run: StoredRun, history: pd.DataFrame) -> None:
    st.subheader("Beside the article's tables")
    same = run.config == RunConfig(seed=run.config.seed)
    st.caption(
        "The article's run, whose seed is not stated, stopped at epoch 97. "
        + ("This run has its settings." if same else "This run has other settings.")
    )
    progress = beside_progress(history)
    if progress.empty:
        st.caption("Its first row is epoch 10.")
    else:
        show_table(progress, name=f"article_progress-{run.id}")
    show_table(beside_final(run.summary), name=f"article_final-{run.id}")


def draw(run_id: str) -> StoredRun:
    run, history = stored(run_id)
    headline(run, history)
    if not history.empty:
        charts, words = st.columns([1.7, 1], gap="medium")
        with charts:
            curves(history, run_id)
        with words:
            figures(run, history)
        beside_the_article(run, history)
    return run


def settings_as_json(config: RunConfig) -> None:
    with st.expander("Settings as JSON", icon=":material/data_object:"):
        json_button(config, "config")
        file = st.file_uploader(
            "Take settings from a JSON", "json", key="config_file", help="As downloaded above.", max_upload_size=1
        )
        if file is None:
            return
        try:
            state = run_state(RunConfig.from_json(file.getvalue()))
        except ValueError as error:
            st.error(f"The file cannot be used: {error}.", icon=":material/error:")
            return
        if state["data"] == "csv":
            st.info("It trains on a CSV, which is not part of it: upload that under Data.", icon=":material/info:")
        st.button("Use these settings", on_click=partial(put, state), icon=":material/check:")


def recent_runs(table: pd.DataFrame) -> None:
    st.subheader("Recent runs")
    shown = table.head(LIST_MOST)
    configs = [RunConfig.from_json(text) for text in shown["config"]]
    listed = shown[["id", "state", "created", "epochs", "seconds", "stopped"]].assign(
        data=[c.data.kind for c in configs],
        optimizer=[f"{c.optimizer.name} {c.optimizer.learning_rate:g}, {c.optimizer.rate_rule}" for c in configs],
        average=[to_code(c.schedule) for c in configs],
        seed=[c.seed for c in configs],
    )
    show_table(listed, name="runs", column_config={"created": st.column_config.DatetimeColumn(format="distance")})
    if len(table) > LIST_MOST:
        st.caption(f"The newest {LIST_MOST} of {len(table)} runs; the others can be chosen above.")


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


runs = listed("runs")
chosen, active = workbench(
    "Run",
    runs,
    settings=settings,
    draw=draw,
    invitation="Press **Start**: the article's run takes a few seconds.",
    seconds=SECONDS_BETWEEN_LOOKS,
    reset=RUN_DEFAULTS,
)

if chosen is not None:
    recent_runs(runs)
    if not active:
        with st.popover("Delete the run that is shown", icon=":material/delete:"):
            st.write("Its history goes for good.")
            st.button(
                "Delete it",
                on_click=lambda: attempt(lambda: job_queue().store.delete(chosen)),
                type="primary",
                key="delete",
            )
