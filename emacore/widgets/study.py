"""A stored study on a page: what its seeds answer, their curves over epochs, and what one would write of it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from emacore.averaging.code import from_code, to_code
from emacore.charts.lines import lines
from emacore.charts.seeds import bands as draw_bands
from emacore.charts.seeds import histogram
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL
from emacore.experiments.coverage import in_words as coverage_in_words
from emacore.experiments.evidence import (
    AHEAD,
    TRAINING,
    Progress,
    answers,
    bands,
    in_markdown,
    patience_of,
    per_seed,
    progress,
    share_below,
    steadiness_ratios,
    training_in_words,
    win_curves,
    wins,
)
from emacore.experiments.statistics import BCA, CLASSICAL
from emacore.experiments.store import FINAL_STATES, StoredRun
from emacore.experiments.studies import Study
from emacore.tasks.regression.article import LAST_EPOCH, STEADINESS_RATIO
from emacore.tasks.regression.config import RunConfig
from emacore.widgets.jobs import duration, json_button, show_state, stored
from emacore.widgets.page import BOUND, csv_button, show_chart, show_table
from emacore.widgets.verdicts import show_differences, show_verdicts

OWN = "ema"
ARTICLES = "the article's run"


def draw_study(study_id: str) -> StoredRun:
    """All that there is of a study now."""
    run, history = stored(study_id)
    study = run.job
    if not isinstance(study, Study):
        st.warning("That is a single run: look at it on the Train page.", icon=":material/warning:")
        return run
    so_far = progress(history, run.config.max_epochs)
    _headline(run, study, so_far)
    if so_far.epoch:
        _evidence(run, study, history, so_far.epoch)
        json_button(study, "study")
    return run


def _headline(run: StoredRun, study: Study, so_far: Progress) -> None:
    """Progress, remaining time, and how the study ended or may end."""
    epoch, seeds = so_far.epoch, len(study.seeds)
    left = "starting"
    if epoch:
        left = f"{so_far.training} of {seeds} seeds still train, at most {so_far.seconds_left:,.0f} s left"
        if run.config.stopping.curve != "none":
            left += "; each ends sooner by its own early stop"
    why = "you stopped it" if run.stopped == "stopped" else "every seed has ended"
    show_state(
        run,
        so_far.share,
        progress=f"Epoch {epoch} of at most {run.config.max_epochs:,}: {left}.",
        so_far=f"{epoch} epochs",
        ended=f"{seeds} seeds, {epoch} epochs, {duration(run):,.1f} s: {why}.",
        what="study",
        empty=not epoch,
    )


def _evidence(run: StoredRun, study: Study, history: pd.DataFrame, epoch: int) -> None:
    """What the seeds say of one of the study's averages, which is chosen."""
    code, averaged = _average(study)
    shown = st.container()  # above the two controls, whose values it needs
    first, intervals = _controls()
    table = per_seed(history, averaged, first, patience_of(study.config))
    found = answers(table, intervals)
    st.caption(coverage_in_words(found["final"]))
    with shown:
        show_verdicts(found, table, study.config, from_code(code), complete=run.state in FINAL_STATES)
        left, right = st.columns(2, gap="medium")
        with left:
            _curves(run, history, averaged, epoch)
        with right:
            show_differences(table, found["final"], run.id)
        is_article = run.config == RunConfig(seed=run.config.seed) and averaged == OWN
        _more(history, table, averaged, run.id, is_article=is_article)
    st.subheader("Each seed")
    show_table(table, name=f"seeds-{run.id}")
    csv_button(history, f"history-{run.id}")
    with st.expander("As one would write it in a paper", icon=":material/article:"):
        st.code(in_markdown(study, found, code, table), language="markdown", wrap_lines=True)


def _average(study: Study) -> tuple[str, str]:
    """The average to look at: its code, and its name in the history's columns."""
    schedules = {to_code(study.config.schedule): OWN} | {to_code(s): to_code(s) for s in study.schedules}
    chosen = next(iter(schedules))
    if len(schedules) > 1:
        chosen = st.selectbox(
            "Average", list(schedules), key="average", help="All were kept in the same runs.", **BOUND
        )
    return chosen, schedules[chosen]


def _controls() -> tuple[int, str]:
    """The epoch from which the standard deviation is taken, and the kind of the intervals."""
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
    return first, intervals


def _curves(run: StoredRun, history: pd.DataFrame, averaged: str, epoch: int) -> None:
    scale = st.segmented_control(
        "Loss axis",
        ["log", "linear"],
        default="log",
        key="loss_axis",
        required=True,
        help="On log, equal heights are equal ratios, so the gap between two small losses at the end can be seen; on "
        "linear, the large losses of the first epochs set the scale.",
        **BOUND,
    )
    names = {"val_loss_original": "original", f"val_loss_{averaged}": "average"}
    table = bands(history, names)
    show_chart(
        draw_bands(
            table,
            {"original": ORIGINAL, "average": AVERAGED},
            y_title=f"validation loss ({run.config.metrics[0].name})",
            y_scale=scale,
        ),
        alt_text=f"Median and 5 to 95 % of the original's and the average's validation loss over {epoch} epochs",
        table=table,
        name=f"bands-{run.id}",
    )
    st.caption(
        "Line: median; band: 5 to 95 % of the seeds that train at that epoch; grey, above: how many those are. "
        f"{training_in_words(history)}"
    )


def _more(history: pd.DataFrame, table: pd.DataFrame, averaged: str, study_id: str, *, is_article: bool) -> None:
    """How many seeds are ahead, how steady the average is, and when the seeds ended."""
    left, middle, right = st.columns(3, gap="medium")
    shares = wins(history, averaged)
    with left:
        show_chart(
            lines(
                win_curves(shares, len(table)),
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
            table=shares,
            name=f"wins-{study_id}",
        )
    ratios = steadiness_ratios(table)
    with middle:
        show_chart(
            histogram(
                ratios["ratio"],
                x_title="std. of the average / of the original",
                rules={ARTICLES: STEADINESS_RATIO} if is_article else None,
                height=280,
            ),
            alt_text="How many seeds have which ratio of the two curves' standard deviations",
            table=ratios,
            name=f"steadiness-{study_id}",
        )
        if is_article:
            st.caption(
                f"The article's run has {STEADINESS_RATIO:.2f}, from an epoch it does not state: "
                f"{share_below(ratios['ratio'], STEADINESS_RATIO)} of these seeds have less."
            )
    with right:
        show_chart(
            histogram(
                table["epochs"],
                x_title="last epoch",
                rules={ARTICLES: LAST_EPOCH} if is_article else None,
                height=280,
            ),
            alt_text="How many seeds ended after which epoch",
            table=table[["seed", "epochs"]],
            name=f"epochs-{study_id}",
        )
        if is_article:
            less = share_below(table["epochs"], LAST_EPOCH)
            st.caption(f"The article's run ended at {LAST_EPOCH}: {less} ended sooner.")
