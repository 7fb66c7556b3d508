"""What seeds show, of a study or of one cell of a sweep: the answers in words, and one dot a seed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import streamlit as st

from emacore.averaging.schedules import Schedule
from emacore.charts.seeds import differences
from emacore.experiments.evidence import QUESTIONS, chosen_in_words, rules_in_words
from emacore.experiments.statistics import Corrected, PairedComparison, kind_of, known_gains, verdict
from emacore.formatting import counted
from emacore.tasks.regression.article import FINAL
from emacore.training.config import TaskConfig
from emacore.widgets.page import show_chart

ICONS = {
    "helps": ":material/trending_up:",
    "hurts": ":material/trending_down:",
    "no difference shown": ":material/drag_handle:",
    "unclear": ":material/question_mark:",
    "cannot tell": ":material/help:",
}


def show_verdicts(
    found: Mapping[str, PairedComparison],
    table: pd.DataFrame,
    config: TaskConfig,
    averaged: Schedule | None = None,
    *,
    complete: bool = True,
    among: Mapping[str, Corrected | None] | None = None,
) -> None:
    """Show the answers in words, with what each was chosen on.

    Args:
        found: The answers from ``table``, by their question.
        table: A row a seed, as :func:`emacore.experiments.evidence.per_seed` returns it.
        config: The runs' settings.
        averaged: The schedule of the average that is compared; by default the runs' own.
        complete: Whether all seeds have ended.
        among: By question, the comparison as one of several tests, whose p-value is corrected for them.
    """
    if not complete:
        st.caption("So far; the seeds still train, so the final loss is that of their latest epoch.")
    for question, comparison in found.items():
        one_of = (among or {}).get(question)
        kind, words = kind_of(comparison, one_of), verdict(comparison, QUESTIONS[question], one_of)
        st.markdown(f"{ICONS[kind]} **{question.capitalize()}.** {words}")
        if question == "final" and (rules := rules_in_words(config, averaged)):
            st.markdown(f":material/rule: {rules}")
    st.caption(chosen_in_words(table, found, config))


def show_differences(table: pd.DataFrame, comparison: PairedComparison, name: str, *, is_article: bool = False) -> None:
    """Show the gain of each seed as a dot, with the median and its interval.

    Args:
        name: The end of the name of its CSV.
        is_article: Whether the settings are the article's, so that its one run belongs among them.
    """
    gain = 100 * known_gains(table["final_original"], table["final_ema"])
    shown = pd.DataFrame({"seed": table["seed"], "gain_percent": gain})
    median = comparison.median
    rules = {"the article's run": float(FINAL["gain_percent"][0])} if is_article else {}
    if comparison.pairs:
        rules["median"] = 100 * median.estimate
    shaded = "" if np.isnan(median.low) else ", and whether the shaded 95 % interval of the median holds it"
    show_chart(
        differences(
            shown,
            x_title="gain in the final loss (%)",
            interval=(100 * median.low, 100 * median.high),
            rules=rules,
        ),
        alt_text=f"The gain in the final loss of each of {counted(len(shown), 'seed')}, in order; {comparison.wins} "
        "above zero",
        table=shown,
        name=f"differences-{name}",
        look_for=f"Each dot is a seed. **Look for** how many lie to the right of 0 (blue: its average ended "
        f"better){shaded}.",
    )
