"""What was opened on a page: choose it by its name, what is in it, merges of it, and the diagnosis."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from emacore.averaging.code import merge_from_code
from emacore.averaging.coefficients import FITS, Merge
from emacore.averaging.expected import expected_distances
from emacore.averaging.planned import PROMISE, Planned, planned, planned_in_words
from emacore.averaging.schedules import Schedule
from emacore.charts.lines import lines
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL
from emacore.experiments.measuring import MOST_APART, Question
from emacore.experiments.opened import (
    Contents,
    OpenedError,
    Series,
    by_sections,
    certificate_table,
    contents_of,
    decay_table,
    growth,
    growth_calls,
    growth_table,
    identity_of,
    merge_command,
    opened,
)
from emacore.formatting import counted, in_bytes
from emacore.widgets.asking import answer_to, version
from emacore.widgets.page import BOUND, escaped, show_chart, show_table, stop_with

NOW = "now"
#: How the name of something opened begins where a link can hold the id of a run instead.
OPENED = "opened-"
MOST_MERGES = 6
#: Distances between sets are measured without a button where no more numbers than these have to be read.
_READ_AT_ONCE = 250_000_000
#: What is offered beside the schedule of the controls; any other can be typed.
SUGGESTED = (
    "UniformAverage()",
    "PowerFunction(sigma_rel=0.1)",
    "PowerFunction(sigma_rel=0.25)",
    "Window(files=5)",
    "RateDecay(shape='linear')",
    "RateDecay(shape='cosine')",
    "RateDecay(shape='1-sqrt')",
)
FIRST = ["PowerFunction(sigma_rel=0.1)", "Window(files=5)", "RateDecay(shape='1-sqrt')"]


def chosen_opened() -> tuple[str, Contents] | None:
    """A choice among what was opened, by name, and what is in it; ``None`` if nothing was.

    What cannot be read is told, and the page ends there.
    """
    names = opened()
    if not names:
        return None
    name = st.selectbox(
        "Opened",
        list(names),
        key="opened",
        help="What the app was started with, by `emacore app --open PATH`. To look at another folder, start it with "
        "that.",
        **BOUND,
    )
    return name, contents(name)


def contents(name: str) -> Contents:
    """What is in something opened; read again when its files change.  What cannot be read ends the page."""
    path = opened()[name]
    try:
        return _contents(name, str(path), identity_of(path))
    except OpenedError as error:
        stop_with(f"{name} cannot be read: {error}.")
    except OSError as error:
        stop_with(f"{name} cannot be read: {error.strerror}.")


@st.cache_resource(max_entries=16, show_spinner="Reading what is in it, in a process of its own")
def _contents(name: str, path: str, identity: str) -> Contents:
    return contents_of(name, Path(path))


def chosen_series(found: Contents) -> Series:
    """A choice among the sets of weights, where there are several."""
    names = list(found.series)
    name = st.selectbox(
        "Weights",
        names,
        names.index(found.first),
        key="section",
        help="Which of the stored sets of weights are merged. Raw weights still have their noise; means of windows "
        "have averaged it already.",
        **BOUND,
    )
    return found.series[name]


def chosen_fit(series: Series) -> Any:
    """The choice of how coefficients are found; ``None`` leaves it to the kind of files, as ``emacore merge`` does."""
    raw = all(getattr(one, "begin", -1) == one.end for one in series.profiles)
    fits = ["default", *(fit for fit in FITS if raw or fit != "linear")]
    fit = st.segmented_control(
        "Coefficients",
        fits,
        default="default",
        key="fit",
        required=True,
        help="default: of raw files the two beside a step that is not stored share its weight (linear); means of "
        "windows, and averages, get the coefficients that come nearest to the weights wanted. nonnegative and free "
        "look for the nearest in any case; with free, some may be below 0, which amplifies rounding.",
        **BOUND,
    )
    return None if fit == "default" else fit


def chosen_merges(code: str) -> dict[str, Merge]:
    """The merges: by the schedule of the controls, under :data:`NOW`, and by what is chosen beside it, by its code."""
    texts = st.multiselect(
        "Beside it",
        SUGGESTED,
        FIRST,
        key="merges",
        accept_new_options=True,
        max_selections=MOST_MERGES,
        placeholder="Window(size=1000), Coefficients(-0.5, 1.5)",
        help="Schedules and windows count steps, Window(files=5) the last files; RateDecay stands for a decay of the "
        "learning rate (first order: it takes the gradients to be those of the constant rate). Any other can be typed.",
        **BOUND,
    )
    found: dict[str, Merge] = {NOW: merge_from_code(code)}
    for text in texts:
        try:
            found[text] = merge_from_code(text)
        except ValueError as error:
            st.warning(f"Left out: {escaped(error)}", icon=":material/warning:")
    return found


def plans_of(
    of: str, series: Series, codes: Mapping[str, str], fit: Any
) -> tuple[dict[str, Planned], dict[str, pd.DataFrame]]:
    """The plan of each merge, and of a schedule's the table of how its weights add up; merges that cannot be made are
    told.

    Args:
        of: What plans are kept by: it changes with the files.
        codes: The merges by their names.
    """
    plans, growths = {}, {}
    for name, code in codes.items():
        try:
            plans[name], growth_of = _planned(of, series.name, code, fit, series)
        except ValueError as error:
            st.warning(f"{escaped(name)}: {escaped(error)}.", icon=":material/warning:")
        else:
            if growth_of is not None:
                growths[name] = growth_of
    return plans, growths


@st.cache_data(max_entries=200, show_spinner=False)
def _planned(of: str, name: str, code: str, fit: Any, _series: Series) -> tuple[Planned, pd.DataFrame | None]:
    merge = merge_from_code(code)
    found, table = planned(merge, _series.profiles, _series.calls, fit), None
    if isinstance(merge, Schedule):
        at = growth_calls(_series, merge)
        table = pd.DataFrame(growth_table(_series, growth(_series, found), at))
    return found._replace(target=None), table  # a number a step is too much to keep


def distances_between(name: str, found: Contents, series: Series) -> NDArray[np.float64] | None:
    """The squared distances between N stored sets, shape (N, N), which a worker takes from the files; ``None`` while
    they are not known, and where there are too many sets."""
    if len(series.steps) > MOST_APART:
        count = f"{len(series.steps):,} sets"
        st.caption(f"How far {count} are from each other is not looked at; it is for up to {MOST_APART}.")
        return None
    question = Question(name, found.identity, (series.name,), "distances")
    at_once = series.weights * len(series.steps) <= _READ_AT_ONCE
    answer = answer_to(question, "Measure how far the stored are from each other", at_once=at_once)
    return None if answer is None else np.array(answer["squared"], dtype=np.float64)


@st.cache_data(max_entries=32, show_spinner=False)
def expected_of(
    of: str, name: str, codes: Sequence[str], fit: Any, _series: Series, _squared: NDArray[np.float64]
) -> list[float]:
    """The distance (L2) of each merge from the average over all steps, as it is to be expected."""
    plans = [planned(merge_from_code(code), _series.profiles, _series.calls, fit, bests=False) for code in codes]
    factors = np.stack([one.coefficients for one in plans])
    found: list[float] = expected_distances([one.target for one in plans], _series.profiles, factors, _squared).tolist()
    return found


def show_contents(name: str, found: Contents) -> None:
    """Show the table of what is stored, and what was told as it was read."""
    table = pd.DataFrame(found.rows)
    steps = sorted(set(table["step"]))
    span = f"of step {steps[0]:,}" if len(steps) == 1 else f"of steps {steps[0]:,} to {steps[-1]:,}"
    averages = sorted(set(table.loc[table["kind"] != "raw", "section"]))
    if found.form == "recording":
        sets = found.series[found.first]
        words = f"A recording of {counted(len(sets.steps), 'row')}, up to step {sets.steps[-1]:,}."
    else:
        words = f"{counted(len(steps), 'checkpoint')} {span}; {in_bytes(int(table['bytes'].sum()))}. "
        words += f"Averages are in {escaped(', '.join(averages))}." if averages else "None of it says it is an average."
    st.markdown(words)
    for sentence in found.told:
        st.caption(f":material/info: {escaped(sentence)}")
    show_table(
        table.drop(columns=["files"] if (table["files"] == 1).all() else []),
        name=f"contents-{name}",
        column_config={"step_from": "step told by", "bytes": st.column_config.NumberColumn("bytes")},
        height=min(38 + 35 * len(table), 320),
    )


def show_certificate(plan: Planned) -> None:
    """The certificate of one merge, in words."""
    st.markdown(planned_in_words(plan))


def show_certificates(
    name: str, plans: Mapping[str, Planned], codes: Mapping[str, str], expected: Sequence[float] | None = None
) -> None:
    """Show the certificates of the merges, as a table.

    Args:
        expected: The distance of each from the average over all steps, as it is to be expected.
    """
    table = pd.DataFrame(certificate_table({_named(codes).get(key, key): one for key, one in plans.items()}))
    if expected is not None:
        table.insert(5, "expected", list(expected))
    show_table(
        table,
        name=f"certificates-{name}",
        column_config={
            column: st.column_config.NumberColumn(title, width="small", help=told)
            for column, (title, told) in _CERTIFICATE.items()
        },
    )
    st.caption(PROMISE)


#: The certificates' columns: their titles, short because there are nine, and their help.
_CERTIFICATE = {
    "files": ("files", "How many of the stored files weigh something in the merge."),
    "error": (
        "error",
        "How far the weights of all steps in the merge are from those in the average: the L2 norm of the difference, "
        "as a share of the average's own. 0: it is the average.",
    ),
    "wanted": ("wanted", "The average over all steps lessens noise as a plain mean of this many steps does."),
    "reached": (
        "reached",
        "The merge lessens noise as a plain mean of this many steps does: with fewer than wanted, more noise is left.",
    ),
    "expected": (
        "distance",
        "From the average over all steps, as is to be expected by how the raw files lie to each other (L2). It holds "
        "about, and on average over runs; what a distance does to the loss only an evaluation can tell.",
    ),
    "nonnegative": ("least >= 0", "The least error that these files allow with no coefficient below 0."),
    "free": ("least", "The least error that these files allow with any coefficients."),
    "amplification": (
        "sizes",
        "The sum of the coefficients' sizes: rounding in the files is amplified by so much at most.",
    ),
    "total": ("sum", "The sum of the coefficients. Other than 1, the merge is not on the scale of the weights."),
}


def _named(codes: Mapping[str, str]) -> dict[str, str]:
    return {NOW: f"{NOW}: {codes[NOW]}"} if NOW in codes else {}


def show_command(name: str, found: Contents, series: Series, codes: Sequence[str], fit: Any) -> None:
    """Show the command that makes these merges."""
    if found.form == "recording":
        st.caption(
            "A recording is replayed, not merged: `Trajectory.open(folder).load_into(module, scheme)` puts such an "
            "average into a module."
        )
        return
    section = None if series.name == found.default else series.name
    st.code(merge_command(name, list(dict.fromkeys(codes)), section, fit), language="bash")
    st.caption(
        "Run it in the folder that holds what you opened. `--dry-run` shows files, coefficients and bytes, and writes "
        "nothing."
    )


def show_diagnosis(name: str, found: Contents, configured: str) -> None:
    """Show what an average in the files really did, in sentences and one chart.

    Args:
        configured: The code of the schedule that it can be compared with.
    """
    single = [one for one in found.series.values() if len(set(one.sections)) == 1]
    names = {kind: [one.name for one in single if one.kind == kind] for kind in ("average", "raw")}
    if found.form == "recording" or not all(names.values()):
        st.caption("A diagnosis needs files that hold raw weights and their average side by side; these do not.")
        return
    average, raw = (_chosen_of(kind, names[kind]) for kind in ("average", "raw"))
    compare = st.toggle(
        "Compare with the schedule of the controls",
        key="configured",
        help="On: it is said whether the average did what that schedule says, and what else would look the same.",
        **BOUND,
    )
    settings = {"average": average, "raw": raw} | ({"configured": configured} if compare else {})
    question = Question(name, found.identity, (raw, average), "diagnosis", settings)
    answer = answer_to(question, "Diagnose")
    if answer is None:
        return
    for sentence in answer["findings"]:
        st.warning(escaped(sentence), icon=":material/troubleshoot:")
    if not answer["findings"]:
        told = st.success if answer["well"] else st.info
        told(escaped(answer["verdict"]), icon=":material/check:" if answer["well"] else ":material/help:")
    decays = pd.DataFrame(answer["decays"])
    if len(decays):
        shown = pd.DataFrame(decay_table(answer["decays"]))
        show_chart(
            lines(
                shown,
                x="step",
                y="forgets",
                series="curve",
                colours={"found": AVERAGED, "at least": CLEAN, "at most": CLEAN, "configured": ORIGINAL},
                x_title="step of the run",
                y_title="1 - decay, a step",
                y_scale="log",
                height=220,
                faint=("at least", "at most"),
            ),
            alt_text="How much of itself the average forgot a step between the stored files, with the interval that "
            "the files allow" + (", beside the configured schedule" if compare else ""),
            table=decays,
            name=f"decays-{name}",
            look_for="Where the interval is wide, these files tell little.",
        )
    for sentence in answer["notes"]:
        st.markdown(f"- {escaped(sentence)}")
    if answer["stretches"]:
        with st.expander(f"All {counted(len(answer['stretches']), 'stretch', 'stretches')} between files in words"):
            st.markdown("\n".join(f"- {escaped(sentence)}" for sentence in answer["stretches"]))


def _chosen_of(kind: str, names: Sequence[str]) -> str:
    """The section of a kind ("average" or "raw") that is diagnosed: a choice, where there are several."""
    if len(names) == 1:
        return names[0]
    key = f"diagnosed_{kind}"
    chosen: str = st.selectbox(
        {"average": "Average", "raw": "Raw weights"}[kind],
        names,
        key=key,
        help="These files hold several. Averages of one run that differ in their settings answer differently; one that "
        "is compared with the weights of another run answers nonsense.",
        **BOUND,
    )
    return chosen


def show_measurements(name: str, found: Contents, series: Series, plans: Mapping[str, Planned]) -> None:
    """Show the metrics of merges and, beside them, of the last file, measured by a worker."""
    last = [0.0] * len(series.steps)
    last[-1] = 1.0
    named = {"the last file": last, **{key: one.coefficients.tolist() for key, one in plans.items()}}
    settings = {"coefficients": [by_sections(series, np.array(one)) for one in named.values()]}
    question = Question(name, found.identity, tuple(dict.fromkeys(series.sections)), "merges", settings, version())
    answer = answer_to(question, "Measure these merges", measured=can_measure(found))
    if answer is None:
        return
    loss = answer["metrics"][0]
    table = pd.DataFrame({"merge": list(named), **answer["found"]})
    show_table(
        table,
        name=f"measured-{name}",
        column_config={one["column"]: st.column_config.NumberColumn(one["name"]) for one in answer["metrics"]},
    )
    best = table[loss["column"]].idxmax() if loss["higher_is_better"] else table[loss["column"]].idxmin()
    st.caption(
        f"The best of these, {escaped(table['merge'][best])}, was chosen on what evaluates them, so it flatters itself."
        if len(table) > 1 and table[loss["column"]].notna().any()
        else ""
    )


def can_measure(found: Contents) -> bool:
    """Whether something says how its networks are measured."""
    return bool(os.environ.get("EMACORE_EVALUATE", "").strip()) or found.measured
