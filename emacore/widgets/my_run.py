"""What the page For my run is made of: the controls of somebody's own run, and what is advised for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pandas as pd
import streamlit as st

from emacore.averaging.advice import (
    MOST_STEPS,
    RATES,
    TRAINED,
    WISHES,
    Measured,
    Recommendation,
    Remark,
    Run,
    Source,
    half_life_in,
    reason_in,
    rescaled_settings,
    steps_of_samples,
    steps_of_tokens,
)
from emacore.experiments import article_study
from emacore.experiments.statistics import PairedComparison
from emacore.formatting import counted, number
from emacore.snippets import explicit_code, snippets
from emacore.widgets.page import BOUND, escaped, query_of, stop_with
from emacore.widgets.schedules import MOST_STEPS as MOST_SHOWN
from emacore.widgets.schedules import state_of

RUN_DEFAULTS: dict[str, Any] = {
    "trained": "diffusion",
    "rate": RATES[0],
    "wish": WISHES[1],
    "run_length": "Steps",
    "run_steps": 400_000,
    "run_samples": None,
    "run_rows": 1_281_167,
    "run_batch": 256,
    "run_epochs": 100,
    "run_tokens": 10**10,
    "run_token_batch": 500_000,
    "run_token_epochs": 1,
    "run_every": 1,
    "times_batch": "as above",
    "times_length": "as above",
}
#: How much larger or longer, by the words of the controls.
TIMES = {"÷ 8": 1 / 8, "÷ 4": 1 / 4, "÷ 2": 1 / 2, "as above": 1.0, "× 2": 2.0, "× 4": 4.0, "× 8": 8.0}
#: The shipped study's comparisons that say something of a run, by the name under which advice asks for them.
_STUDY = {
    "high rate": "high rate",
    "lowered rate": "fixed length, plateau on the original",
    "steadiness": "steadiness",
}


def run_controls() -> Run:
    """The controls of a run, in two rows; ends the page with a sentence where there is no such run."""
    what, rate, wish, way = st.columns([1, 1, 1.2, 1.1])
    with what:
        trained = _one_of(
            "What is trained", "trained", TRAINED, "Another choice brings the settings that are published for it."
        )
    with rate:
        falls = _one_of(
            "Learning rate",
            "rate",
            RATES,
            "Averaging and lowering the rate calm the same noise: at a constant rate an average gains most, at one "
            "that falls to zero little.",
        )
    with wish:
        wanted = _one_of(
            "What you want",
            "wish",
            WISHES,
            "A noisy evaluation wants a short memory, final quality a longer one; to choose later, several averages "
            "are kept with snapshots.",
        )
    with way:
        length = st.segmented_control(
            "Length as",
            ["Steps", "Samples", "Tokens"],
            default=RUN_DEFAULTS["run_length"],
            key="run_length",
            required=True,
            help="Give optimiser steps; or what you have of data, and how much of it a step takes.",
            **BOUND,
        )
    first, second, third, fourth = st.columns(4)
    with first:
        amount = _amount(str(length))
    with second:
        batch = _batch(str(length))
    with third:
        passes = _passes(str(length))
    with fourth:
        every = _number(
            "update_every",
            "run_every",
            1,
            10**6,
            "Steps from one update of the average to the next. Larger costs less, and looks at fewer snapshots.",
        )
    epochs: float | None = passes
    try:
        match length:
            case "Samples":
                steps = steps_of_samples(amount, batch, passes or 1)
            case "Tokens":
                steps = steps_of_tokens(amount, batch, passes or 1)
            case _:
                steps = amount
                epochs = None if passes is None else amount * batch / passes
        return Run(steps, every, trained, falls, wanted, None if length == "Tokens" else batch, epochs)
    except ValueError as error:
        stop_with(f"{str(error)[0].upper()}{str(error)[1:]}.")


def carried_over(run: Run, settings: list[Recommendation]) -> tuple[Run, list[Recommendation], float]:
    """Controls that carry settings over to another batch size or length.

    Returns:
        The run and the settings there, and how many times as large its batch is; all as they were, with a sentence,
        where there is no such run.
    """
    left, right = st.columns(2)
    with left:
        batch = _times(
            "The same at another batch size",
            "times_batch",
            "A larger batch goes through the samples in fewer steps: half-lives get shorter in steps, and stay the "
            "same in samples.",
        )
    with right:
        length = _times(
            "The same for another length",
            "times_length",
            "Settings made for a share of the run keep that share: in a longer run their half-lives are longer.",
        )
    if batch == length == 1:
        return run, settings, 1.0
    try:
        return run.rescaled(batch, length), rescaled_settings(settings, batch, length), batch
    except ValueError as error:
        st.warning(f"Shown as above: {escaped(error)}.", icon=":material/warning:")
        return run, settings, 1.0


def run_in_words(run: Run) -> str:
    """The length of a run, its batch and its epochs."""
    batch = "" if run.batch is None else f" at batch {number(run.batch)}"
    epochs = "" if run.epochs is None else f", {counted(run.epochs, 'epoch', digits=3)}"
    return f"{counted(run.steps, 'step')} in all{batch}{epochs}"


def show_settings(run: Run, settings: Iterable[Recommendation]) -> None:
    """Show each setting with its half-life, its code, the reason, and the source of that."""
    for setting in settings:
        with st.container(border=True, gap=None):
            st.markdown(f"**{escaped(setting.name)}** · half-life {half_life_in(run, setting.schedule)}")
            code = explicit_code(setting.schedule, timing=False)
            st.caption(f"`{code}` · {escaped(reason_in(run, setting))} ({told_source(setting.source)})")


def show_remarks(remarks: Iterable[Remark], *, warn: bool) -> None:
    """Sentences with their sources: warnings, or what to expect."""
    for remark in remarks:
        text = f"{escaped(remark.text)} ({told_source(remark.source)})"
        if warn:
            st.warning(text, icon=":material/warning:")
        else:
            st.info(text, icon=":material/info:")


def told_source(source: Source) -> str:
    """A source in Markdown: its kind, its name, and a link if it has one."""
    name = escaped(source.name)
    title = source.text.replace('"', "'")
    return f'{source.kind}: [{name}]({source.url} "{title}")' if source.url else f"{source.kind}: {name}"


def show_code(run: Run, settings: list[Recommendation], key: str = "library") -> None:
    """Code for the reader's library, of each setting."""
    found = {one.name: {snippet.library: snippet for snippet in snippets(one.schedule, run.steps)} for one in settings}
    libraries = list(dict.fromkeys(library for own in found.values() for library in own))
    library = st.selectbox(
        "Code for",
        libraries,
        libraries.index("ema-pytorch"),
        key=key,
        help="Every argument is written out, so nothing depends on a library's defaults.",
        **BOUND,
    )
    for tab, (name, own) in zip(st.tabs(list(found)), found.items(), strict=True):
        with tab:
            snippet = own.get(str(library))
            if snippet is None:
                st.caption(f"{library} makes power functions only, and {escaped(name)} is none.")
                continue
            st.code(snippet.code, language="python")
            if snippet.note:
                st.caption(escaped(snippet.note))


def show_decays(run: Run, settings: Iterable[Recommendation]) -> None:
    """Links to the decays of each setting, on the page that draws them, where its sliders can show them."""
    if run.steps > MOST_SHOWN:
        return
    with st.container(horizontal=True):
        for name, schedule, *_ in settings:
            try:
                state = {**state_of(schedule), "length": "Steps", "steps": run.steps}
            except ValueError:
                continue
            st.page_link(
                "pages/decay_schedule.py",
                label=f"Decays of {escaped(name)}",
                icon=":material/show_chart:",
                query_params=query_of(state),
            )


@st.cache_data(show_spinner=False)
def measured() -> dict[str, Measured]:
    """What the shipped study found, as advice takes it."""
    table, _ = article_study.shipped()
    found = article_study.comparisons(table)
    return {name: _measured(found[key]) for name, key in _STUDY.items() if key in found}


def _measured(one: PairedComparison) -> Measured:
    median = one.median
    task = "the article's regression (1,600 rows, a small network, Adam)"
    return Measured(task, one.seeds, one.wins, median.estimate, median.low, median.high)


def published_table(rows: Iterable[tuple[Any, ...]]) -> pd.DataFrame:
    """EDM2's chosen widths as a table, the widths in percent."""
    table = pd.DataFrame(rows)
    table["width_percent"] = 100 * table.pop("width")
    table["guidance"] = table["guidance"].map({True: "with", False: "without"})
    return table


def _one_of(label: str, key: str, options: tuple[Any, ...], explained: str) -> Any:
    default = options.index(RUN_DEFAULTS[key])
    return st.selectbox(label, options, default, key=key, help=explained, **BOUND) or options[default]


def _number(label: str, key: str, low: int, high: int, explained: str) -> int:
    return cast(int, st.number_input(label, low, high, RUN_DEFAULTS[key], key=key, help=explained, **BOUND))


def _amount(length: str) -> int:
    match length:
        case "Samples":
            return _number("Samples in the data", "run_rows", 1, 10**13, "Samples of one pass: more make a longer run.")
        case "Tokens":
            return _number(
                "Tokens in the data", "run_tokens", 1, 2**53 - 1, "Tokens of one pass: more make a longer run."
            )
    return _number(
        "Steps",
        "run_steps",
        2,
        MOST_STEPS,
        f"Optimiser steps of the run, up to {number(MOST_STEPS)}. A longer run has room for a longer memory.",
    )


def _batch(length: str) -> int:
    if length == "Tokens":
        return _number(
            "Tokens a step",
            "run_token_batch",
            1,
            10**12,
            "Batch size times sequence length, of all devices together. Twice as many are half the steps.",
        )
    return _number(
        "Batch size",
        "run_batch",
        1,
        10**9,
        "Samples a step, of all devices together. Decays published for another batch size are carried over: at a "
        "larger one half-lives are shorter in steps.",
    )


def _passes(length: str) -> int | None:
    if length == "Steps":
        samples: int | None = st.number_input(
            "Samples in the data",
            1,
            10**13,
            RUN_DEFAULTS["run_samples"],
            key="run_samples",
            placeholder="for epochs",
            help="How many there are in one pass. If given, half-lives are told in epochs as well.",
            **BOUND,
        )
        return samples
    key = "run_token_epochs" if length == "Tokens" else "run_epochs"
    return _number("Epochs", key, 1, 10**9, "Passes over the data: twice as many are twice the steps.")


def _times(label: str, key: str, explained: str) -> float:
    chosen = st.segmented_control(
        label, list(TIMES), default=RUN_DEFAULTS[key], key=key, required=True, help=explained, wrap=True, **BOUND
    )
    return TIMES[str(chosen)]
