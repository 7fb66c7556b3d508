"""What seeds show: the answers in words, and one dot a seed."""

from __future__ import annotations

import pandas as pd
import streamlit as st
from scipy import stats

from emacore.charts.evidence import differences
from emacore.experiments.evidence import QUESTIONS
from emacore.experiments.statistics import Comparison, gains, kind_of, verdict
from emacore.tasks.regression.article import FINAL
from emacore.widgets.page import show_chart

ICONS = {
    "helps": ":material/trending_up:",
    "hurts": ":material/trending_down:",
    "no difference shown": ":material/drag_handle:",
    "too few seeds": ":material/help:",
}


def show_verdicts(found: dict[str, Comparison], complete: bool) -> None:
    if not complete:
        st.caption("So far; the seeds still train, so the final loss is that of their latest epoch.")
    for question, comparison in found.items():
        kind = kind_of(comparison)
        st.markdown(f"{ICONS[kind]} **{question.capitalize()}.** {verdict(comparison, QUESTIONS[question])}")
    st.caption(
        "Three questions, three answers. The lowest loss is picked from many epochs on the validation rows themselves, "
        "which favours the less steady curve."
    )


def show_differences(table: pd.DataFrame, comparison: Comparison, name: str) -> None:
    gain = 100 * gains(table["final_original"], table["final_averaged"])
    shown = pd.DataFrame({"seed": table["seed"], "gain": gain})
    theirs = float(FINAL["improvement"][0])
    median, mean = comparison.median, comparison.mean
    show_chart(
        differences(
            shown,
            x_title="gain in the final loss (%)",
            interval=(100 * median.low, 100 * median.high),
            rules={"the article's run": theirs, "median": 100 * median.estimate},
        ),
        alt_text=f"The gain in the final loss of each of {len(shown)} seeds, in order; {comparison.wins} above zero",
        table=shown,
        name=f"differences-{name}",
    )
    percentile = stats.percentileofscore(gain, theirs, kind="mean")
    needed = (
        ""
        if comparison.seeds_needed is None
        else f" With {comparison.seeds_needed:,} seeds a t-test finds a mean gain as large as this one in four "
        "studies of five."
    )
    chance, wanted = comparison.chance, comparison.wanted_gain
    st.caption(
        f"Shaded: the 95 % interval of the median. The mean gain is {100 * mean.estimate:+.3g} % (95 % interval "
        f"{100 * mean.low:+.3g} to {100 * mean.high:+.3g} %). The article's one run gained {theirs:g} %: "
        f"{percentile:.0f} % of these seeds gained less. A single seed shows a gain of at least {wanted:.0%} with a "
        f"chance of {chance.estimate:.0%} (95 % interval {chance.low:.0%} to {chance.high:.0%}).{needed}"
    )
