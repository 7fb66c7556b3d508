"""A run beside the article's: its figure and its claims, with the seeds that ship, and its tables."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from emacore.charts.article import article_panel
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL
from emacore.charts.thin import Scale
from emacore.experiments import shipped
from emacore.experiments.article_claims import beside_claims, beside_phases, panel, phases_in_words
from emacore.experiments.store import StoredRun
from emacore.replay.measure import Metric
from emacore.tasks.regression.article import LAST_EPOCH, PHASES, beside_final, beside_progress, is_article
from emacore.tasks.regression.config import RunConfig
from emacore.training.history import late_range
from emacore.widgets.page import csv_button, show_chart, show_table

COLOURS = {"train": CLEAN, "original": ORIGINAL, "EMA": AVERAGED}


def beside_the_article(run: StoredRun, history: pd.DataFrame) -> None:
    """The article's run beside one with its settings; folded, and its tables only, beside one that has others."""
    if is_article(run.config):
        st.header("Beside the article's run")
        _figure(run, history)
        _claims(run, history)
        with st.expander("The article's two tables", icon=":material/table_rows:"):
            _tables(run, history, "This run has its settings.")
    else:
        with st.expander("Beside the article's run, which has other settings", icon=":material/table_rows:"):
            _tables(run, history, "This run has other settings, so that its numbers need not be alike.")


def _figure(run: StoredRun, history: pd.DataFrame) -> None:
    """The two panels of its figure, and what they show of its three phases."""
    loss, *_, r2 = RunConfig.metrics
    left, right = st.columns(2, gap="medium")
    with left:
        _panel(
            run,
            panel(history, loss),
            loss,
            y_title=f"loss ({loss.name})",
            y_scale="log",
            look_for="Lines: this run; diamonds: the article's table; bands: 5 to 95 % of "
            f"{len(shipped.SEEDS)} shipped seeds; dashed: where its phases end. **Look for** diamonds outside of their "
            "band.",
        )
    with right:
        _panel(
            run,
            panel(history, r2),
            r2,
            y_title=f"{r2.name} (validation rows)",
            y_scale="linear",
            look_for="The R2 of the same run and seeds; the worst tenth lies at the axis' end. **Look for** where blue "
            "stays above orange.",
        )
    table = beside_phases(history)
    st.markdown(phases_in_words(table))
    csv_button(table, f"article_phases-{run.id}")


def _panel(run: StoredRun, table: pd.DataFrame, metric: Metric, *, y_title: str, y_scale: Scale, look_for: str) -> None:
    present = set(table["curve"])
    show_chart(
        article_panel(
            table,
            colours={name: colour for name, colour in COLOURS.items() if name in present},
            phases=[last for _, last, _ in PHASES],
            y_title=y_title,
            y_scale=y_scale,
            y_domain=late_range(table["value"], metric) if y_scale == "linear" else None,
        ),
        alt_text=f"{metric.name} of the original and the EMA model over epochs: this run, the article's table, and the "
        f"band of {len(shipped.SEEDS)} seeds",
        table=table,
        name=f"article_{metric.column}-{run.id}",
        look_for=look_for,
    )


def _claims(run: StoredRun, history: pd.DataFrame) -> None:
    show_table(beside_claims(history), name=f"article_claims-{run.id}", wrapped=True)
    st.caption(
        f"The article's sentences, asked of its one run, of this run, and of {len(shipped.SEEDS)} seeds of the same "
        "settings that ship with the app. **Look for** those that hold here but in few of the seeds: one run cannot "
        "show them."
    )


def _tables(run: StoredRun, history: pd.DataFrame, words: str) -> None:
    st.caption(
        f"The article's run, whose seed is not stated, stopped at epoch {LAST_EPOCH}. {words} Its final metrics are "
        f"those after epoch {history['epoch'].iloc[-1]}; the first table sets the same epochs side by side."
    )
    progress = beside_progress(history)
    if progress.empty:
        st.caption("Its first row is epoch 10.")
    else:
        show_table(progress, name=f"article_progress-{run.id}")
    show_table(beside_final(run.summary), name=f"article_final-{run.id}")
