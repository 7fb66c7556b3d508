"""Evidence: many seeds of one experiment, and what they can and cannot show."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st
from scipy import stats

from emacore.averaging.code import from_code, to_code
from emacore.charts.lines import lines
from emacore.charts.seeds import bands as draw_bands
from emacore.charts.seeds import histogram
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL
from emacore.experiments.coverage import in_words as coverage_in_words
from emacore.experiments.evidence import answers, bands, in_markdown, patience_of, per_seed, training_in_words, wins
from emacore.experiments.statistics import BCA, CLASSICAL
from emacore.experiments.store import FINAL_STATES, StoredRun
from emacore.experiments.studies import Study
from emacore.tasks.regression.article import LAST_EPOCH, STEADINESS
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import OptimizerConfig, StoppingConfig
from emacore.widgets.jobs import duration, job_queue, json_button, listed, show_state, stored, workbench
from emacore.widgets.page import BOUND, csv_button, presets, show_chart, show_table, through_app
from emacore.widgets.runs import RUN_DEFAULTS, run_controls, run_state
from emacore.widgets.schedules import pin_controls
from emacore.widgets.verdicts import show_differences, show_verdicts

CONSTANT = OptimizerConfig(learning_rate=0.01, rate_rule="constant")
NEVER = StoppingConfig("none")
PRESETS = {
    "The article, many times": ("Its own settings: is its one run's 20 % evidence?", RunConfig()),
    "The article, at a fixed length": (
        "No early stop: 97 epochs for every seed, as long as its one run. The learning rate still follows the average.",
        RunConfig(stopping=NEVER, max_epochs=LAST_EPOCH),
    ),
    "The article, rules on the original": (
        "Its early stop and learning rate look at the original's loss, as they would without an average.",
        RunConfig(optimizer=OptimizerConfig(plateau_curve="original"), stopping=StoppingConfig("original")),
    ),
    "A higher learning rate": (
        "0.01 and never lowered, 60 epochs: the steps stay large, so there is much to average.",
        RunConfig(optimizer=CONSTANT, stopping=NEVER, max_epochs=60),
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
OWN = "ema"
AHEAD, TRAINING = "average ahead, of those", "still training, of all"


def headline(run: StoredRun, study: Study, history: pd.DataFrame) -> None:
    """Progress, remaining time, and how the study ended or may end."""
    epoch = int(history["epoch"].max()) if len(history) else 0
    most, seeds = run.config.max_epochs, len(study.seeds)
    left = "starting"
    if epoch:
        training = int((history["epoch"] == epoch).sum())
        pace = history["seconds"].max() / epoch
        left = f"{training} of {seeds} seeds still train, at most {pace * (most - epoch):,.0f} s left"
        if run.config.stopping.curve != "none":
            left += "; each ends sooner by its own early stop"
    why = "you stopped it" if run.stopped == "stopped" else "every seed has ended"
    show_state(
        run,
        epoch / most,
        progress=f"Epoch {epoch} of at most {most:,}: {left}.",
        so_far=f"{epoch} epochs",
        ended=f"{seeds} seeds, {epoch} epochs, {duration(run):,.1f} s: {why}.",
        what="study",
    )


def show_curves(history: pd.DataFrame, averaged: str, study_id: str) -> None:
    scale = st.segmented_control(
        "Loss axis", ["log", "linear"], default="log", key="loss_axis", required=True, help="Its scale.", **BOUND
    )
    names = {"val_loss_original": "original", f"val_loss_{averaged}": "average"}
    table = bands(history, names)
    show_chart(
        draw_bands(
            table,
            {"original": ORIGINAL, "average": AVERAGED},
            y_title="validation loss (MSE)",
            y_scale=scale,
        ),
        alt_text=f"Median and 5 to 95 % of the original's and the average's validation loss over "
        f"{history['epoch'].max()} epochs",
        table=table,
        name=f"bands-{study_id}",
    )
    st.caption(
        "Line: median; band: 5 to 95 % of the seeds that train at that epoch; grey, above: how many those are. "
        f"{training_in_words(history)}"
    )


def show_more(history: pd.DataFrame, table: pd.DataFrame, averaged: str, study_id: str, *, is_article: bool) -> None:
    left, middle, right = st.columns(3, gap="medium")
    share = wins(history, averaged)
    with left:
        show_chart(
            lines(
                pd.concat(
                    [
                        share.assign(curve=AHEAD, share=100 * share["share"]),
                        share.assign(curve=TRAINING, share=100 * share["seeds"] / history["seed"].nunique()),
                    ]
                ),
                x="epoch",
                y="share",
                series="curve",
                colours={AHEAD: AVERAGED, TRAINING: CLEAN},
                x_title="epoch",
                y_title="seeds (%)",
                y_domain=(0, 100),
                height=280,
            ),
            alt_text="The share of the seeds still training whose average has the lower loss, and how many those are, "
            "over epochs",
            table=share,
            name=f"wins-{study_id}",
        )
    ratio = table["steadiness_averaged"] / table["steadiness_original"]
    theirs = STEADINESS["ema"] / STEADINESS["original"]
    with middle:
        show_chart(
            histogram(
                ratio,
                x_title="std. of the average / of the original",
                rules={"the article's run": theirs} if is_article else None,
                height=280,
            ),
            alt_text="How many seeds have which ratio of the two curves' standard deviations",
            table=pd.DataFrame({"seed": table["seed"], "ratio": ratio}),
            name=f"steadiness-{study_id}",
        )
        if is_article:
            st.caption(
                f"The article's run has {theirs:.2f}, from an epoch it does not state: {below(ratio, theirs)} of these "
                "seeds have less."
            )
    with right:
        show_chart(
            histogram(
                table["epochs"],
                x_title="last epoch",
                rules={"the article's run": LAST_EPOCH} if is_article else None,
                height=280,
            ),
            alt_text="How many seeds ended after which epoch",
            table=table[["seed", "epochs"]],
            name=f"epochs-{study_id}",
        )
        if is_article:
            st.caption(f"The article's run ended at {LAST_EPOCH}: {below(table['epochs'], LAST_EPOCH)} ended sooner.")


def below(values: pd.Series, value: float) -> str:
    """The share of the finite values below one, ties counted half."""
    share = stats.percentileofscore(values, value, kind="mean", nan_policy="omit")
    return "none" if pd.isna(share) else f"{share:.0f} %"


def draw(study_id: str) -> StoredRun:
    run, history = stored(study_id)
    study = run.job
    if not isinstance(study, Study):
        st.warning("That is a single run: look at it on the Train page.", icon=":material/warning:")
        return run
    headline(run, study, history)
    if len(history):
        schedules = {to_code(study.config.schedule): OWN} | {to_code(s): to_code(s) for s in study.schedules}
        chosen = next(iter(schedules))
        if len(schedules) > 1:
            chosen = st.selectbox(
                "Average", list(schedules), key="average", help="All were kept in the same runs.", **BOUND
            )
        averaged = schedules[chosen]
        shown = st.container()  # above the two controls, whose values it needs
        left, right = st.columns(2, gap="medium")
        first = left.number_input(
            "Steadiness from epoch", 1, 100_000, 20, key="steady_from", help="Standard deviation from here on.", **BOUND
        )
        intervals = right.segmented_control(
            "Intervals",
            [CLASSICAL, BCA],
            default=CLASSICAL,
            key="intervals",
            required=True,
            help="Of the median and of the mean: the median's between order statistics with the mean's from Student's "
            "t, or both by SciPy's bias-corrected and accelerated bootstrap.",
            **BOUND,
        )
        table = per_seed(history, averaged, first, patience_of(study.config))
        found = answers(table, intervals)
        st.caption(coverage_in_words(found["final"]))
        with shown:
            show_verdicts(found, table, study.config, from_code(chosen), complete=run.state in FINAL_STATES)
            left, right = st.columns(2, gap="medium")
            with left:
                show_curves(history, averaged, study_id)
            with right:
                show_differences(table, found["final"], study_id)
            is_article = run.config == RunConfig(seed=run.config.seed) and averaged == OWN
            show_more(history, table, averaged, study_id, is_article=is_article)
        st.subheader("Each seed")
        show_table(table, name=f"seeds-{study_id}")
        csv_button(history, f"history-{study_id}")
        with st.expander("As one would write it in a paper", icon=":material/article:"):
            st.code(in_markdown(study, found, chosen, table), language="markdown", wrap_lines=True)
        json_button(study, "study")
    return run


through_app()
st.title("Evidence")
st.markdown(
    "One run is one draw. Here the same experiment is trained with many seeds at once, and the :orange[**original**] "
    "is compared with its :blue[**average**] seed by seed: does averaging help, hurt, or can these seeds not tell?"
)
st.page_link("pages/where_it_helps.py", label="Where does it help? A map over two settings", icon=":material/grid_on:")
presets({name: (text, run_state(config)) for name, (text, config) in PRESETS.items()}, RUN_DEFAULTS)


def settings() -> Study:
    seeds = st.slider("Seeds", 8, 256, DEFAULTS["seeds"], 8, key="seeds", help="So many runs at once.", **BOUND)
    first_seed = st.number_input(
        "First seed", 0, 10**9, DEFAULTS["first_seed"], key="first_seed", help="The others follow it.", **BOUND
    )
    config = run_controls(job_queue().store)
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
    draw=draw,
    invitation="Press **Start**: 32 seeds of the article's run take less than a minute.",
    seconds=SECONDS_BETWEEN_LOOKS,
)
