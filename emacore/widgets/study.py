"""A study on the page Evidence: a sentence and a picture, and folded below them all else that its seeds say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pandas as pd
import streamlit as st

from emacore.averaging.code import from_code, to_code
from emacore.charts.lines import lines
from emacore.charts.seeds import bands as draw_bands
from emacore.charts.seeds import histogram
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL
from emacore.experiments import shipped
from emacore.experiments.coverage import in_words as coverage_in_words
from emacore.experiments.evidence import (
    AHEAD,
    TRAINING,
    StudyProgress,
    answers,
    bands,
    gains_in_words,
    headline,
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
from emacore.formatting import counted, number
from emacore.formatting import duration as time_text
from emacore.tasks.regression.article import LAST_EPOCH, STEADINESS_RATIO, is_article
from emacore.widgets.jobs import duration, json_button, say_shipped, show_state, stored
from emacore.widgets.page import BOUND, csv_button, loss_axis, show_chart, show_table
from emacore.widgets.verdicts import show_differences, show_verdicts

OWN = "ema"
ARTICLES = "the article's run"


def draw_study(study_id: str) -> StoredRun:
    """Draw what the store has of a study: how far it is, and what its seeds show so far."""
    run, history = stored(study_id)
    study = run.job
    if not isinstance(study, Study):
        st.warning("That is a single run: look at it on the Train page.", icon=":material/warning:")
        return run
    so_far = progress(history, run.config.max_epochs)
    _headline(run, study, so_far)
    if so_far.epoch:
        _evidence(run, study, history)
    return run


def draw_shipped_study() -> None:
    """The study that comes with the package, drawn as one's own."""
    run, history = shipped.study()
    told = partial(say_shipped, f"{counted(len(shipped.SEEDS), 'seed')} of the article's run", shipped.STUDY_FILE)
    _evidence(run, shipped.STUDY, history, told)


def _headline(run: StoredRun, study: Study, so_far: StudyProgress) -> None:
    """Progress, remaining time, and how the study ended or may end."""
    epoch, seeds = so_far.epoch, len(study.seeds)
    left = "starting"
    if so_far.left is not None:
        left = f"{so_far.training} of {counted(seeds, 'seed')} still train, {so_far.left.in_words('at most')}"
        if run.config.stopping.curve != "none":
            left += "; each ends sooner by its own early stop"
    why = "you stopped it" if run.stopped == "stopped" else "every seed has ended"
    show_state(
        run,
        so_far.share,
        progress=f"Epoch {epoch} of at most {run.config.max_epochs:,}: {left}.",
        so_far=counted(epoch, "epoch"),
        ended=f"{counted(seeds, 'seed')}, {counted(epoch, 'epoch')}, {time_text(duration(run))}: {why}.",
        what="study",
        empty=not epoch,
    )


def _evidence(
    run: StoredRun, study: Study, history: pd.DataFrame, say_whence: Callable[[], None] = lambda: None
) -> None:
    """Draw what the seeds say of one of the study's averages, which can be chosen.

    Args:
        say_whence: Draws, below the picture, where the study is from.
    """
    code, averaged = _average(study)
    shown = st.container()  # above the settings whose values it needs
    with st.expander("More settings", icon=":material/tune:"):
        first, intervals = _controls()
        json_button(study, "study")
    table = per_seed(history, averaged, first, patience_of(study.config))
    found = answers(table, intervals)
    article = is_article(study.config) and averaged == OWN
    complete = run.state in FINAL_STATES
    with shown:
        st.markdown(f"**{headline(found, study.config, complete=complete)}**")
        show_differences(table, found["final"], run.id, is_article=article)
        say_whence()
        with st.expander("Asked in other ways: at a fixed length, by own rules, at its best", icon=":material/rule:"):
            show_verdicts(found, table, study.config, from_code(code), complete=complete)
            st.markdown(gains_in_words(table, found["final"], is_article=article))
            st.caption(coverage_in_words(found["final"]))
        with st.expander("The curves over epochs", icon=":material/show_chart:"):
            _curves(run, history, averaged)
        with st.expander("Who is ahead, how steady it is, when it ended", icon=":material/bar_chart:"):
            _more(history, table, averaged, run.id, article=article)
        with st.expander("Each seed", icon=":material/table_rows:"):
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
            "Average",
            list(schedules),
            key="average",
            help="The average that is judged. All of them were kept in the same runs, so nothing else differs between "
            "them.",
            **BOUND,
        )
    return chosen, schedules[chosen]


def _controls() -> tuple[int, str]:
    """The epoch from which the standard deviation is taken, and the kind of the intervals."""
    left, right = st.columns(2, gap="medium")
    first = left.number_input(
        "Steadiness from epoch",
        1,
        100_000,
        20,
        key="steady_from",
        help="The standard deviation of each seed's loss from this epoch on: begin where the curves have come down.",
        **BOUND,
    )
    intervals = right.segmented_control(
        "Intervals",
        [CLASSICAL, BCA],
        default=CLASSICAL,
        key="intervals",
        required=True,
        help="How the 95 % intervals are found: that of the median between order statistics and that of the mean from "
        "Student's t, or both by SciPy's bias-corrected and accelerated bootstrap. They differ most where seeds are "
        "few or their gains skewed.",
        **BOUND,
    )
    return first, intervals


def _curves(run: StoredRun, history: pd.DataFrame, averaged: str) -> None:
    scale = loss_axis()
    names = {"val_loss_original": "original", f"val_loss_{averaged}": "average"}
    table = bands(history, names)
    show_chart(
        draw_bands(
            table,
            {"original": ORIGINAL, "average": AVERAGED},
            y_title=f"validation loss ({run.config.metrics[0].name})",
            y_scale=scale,
        ),
        alt_text="Median and 5 to 95 % of the original's and the average's validation loss over "
        f"{counted(history['epoch'].max(), 'epoch')}",
        table=table,
        name=f"bands-{run.id}",
        look_for="**Look for** where the blue line crosses the orange one, and which band is narrower. Line: median; "
        f"band: 5 to 95 % of the seeds still training; grey: how many those are. "
        f"{training_in_words(history, averaged)}",
    )


def _more(history: pd.DataFrame, table: pd.DataFrame, averaged: str, study_id: str, *, article: bool) -> None:
    """How many seeds are ahead, how steady the average is, and when the seeds ended."""
    left, middle, right = st.columns([1.3, 1, 1], gap="medium")
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
            look_for="Blue: of the seeds still training, those whose average has the lower loss; grey: of all, "
            "those still training. **Look for** where blue is above 50 %.",
        )
    ratios = steadiness_ratios(table)
    with middle:
        show_chart(
            histogram(
                ratios["ratio"],
                x_title="std. ratio, average / original",
                rules={ARTICLES: STEADINESS_RATIO} if article else None,
                height=280,
            ),
            alt_text="How many seeds have which ratio of the two curves' standard deviations",
            table=ratios,
            name=f"steadiness-{study_id}",
            look_for="**Look for** bars to the left of 1: there the average's curve is the steadier one."
            + (
                f" The article's run has {number(STEADINESS_RATIO, 2)}, from an epoch it does not state: "
                f"{share_below(ratios['ratio'], STEADINESS_RATIO)} of these seeds have less."
                if article
                else ""
            ),
        )
    with right:
        show_chart(
            histogram(
                table["epochs"],
                x_title="last epoch",
                whole=True,
                rules={ARTICLES: LAST_EPOCH} if article else None,
                height=280,
            ),
            alt_text="How many seeds ended after which epoch",
            table=table[["seed", "epochs"]],
            name=f"epochs-{study_id}",
            look_for=(
                "**Look for** how far they lie apart: the final losses are of different lengths."
                if table["epochs"].nunique() > 1
                else f"All ended at epoch {table['epochs'].iloc[0]:,}, so all are compared at the same length."
            )
            + (
                f" The article's run ended at {LAST_EPOCH}: {share_below(table['epochs'], LAST_EPOCH)} ended sooner."
                if article
                else ""
            ),
        )
