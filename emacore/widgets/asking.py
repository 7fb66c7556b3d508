"""Questions to a worker on a page: a button that asks, how far the answer is, Stop; and the answer once it is there."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

import streamlit as st

from emacore.experiments.measuring import Question, count_of, evaluator, read
from emacore.experiments.opened import EVALUATE
from emacore.formatting import counted, duration
from emacore.widgets.jobs import attempt, job_queue
from emacore.widgets.page import escaped, run_anew, told

SECONDS_BETWEEN_LOOKS = 0.5


class Unanswered(Exception):
    """There is no answer yet; the page says how to get it."""


def answer_to(
    question: Question, what: str, *, files: int = 1, measured: bool = True, at_once: bool = False
) -> Any | None:
    """The answer, if the store has it; else the button that asks, or how far it is, are drawn.

    Args:
        what: What the button says, such as "Measure these merges".
        files: How many stored files are looked at.
        measured: Whether there is a function that measures these networks; if not, the page says how to name one.
        at_once: Ask without a button, where the answer is known to take a moment only.
    """
    if (found := known(question)) is not None:
        return found
    with told():
        store = job_queue().store
        asked = store.asked(question.to_json())
    if not measured and question.measures:
        say_how_to_measure()
        return None
    if asked is None and at_once:
        _ask(question)
        with told():
            asked = store.asked(question.to_json())
    if asked is not None and asked.state in ("queued", "running"):
        _follow(question, asked.id)
        return None
    if asked is not None and asked.state != "done":
        why = {"failed": escaped(asked.error or ""), "stopped": "you stopped it; what was measured is kept"}
        st.warning(
            f"There is no answer: {why.get(asked.state, 'the program that looked into it ended')}.",
            icon=":material/warning:",
        )
    count = count_of(question, files) if question.measures else 0
    st.button(
        what,
        on_click=_ask,
        args=(question,),
        icon=":material/play_arrow:",
        key=f"ask-{question.key}",
        help="A worker process reads all weights of these files."
        if not count
        else f"A worker process evaluates {counted(count, 'network')} by `{evaluated_by()}`; what was "
        "measured once is kept, and is not measured again.",
    )
    return None


def known(question: Question) -> Any | None:
    """The answer, if the store has it; nothing is drawn."""
    with told():
        found = job_queue().store.cell(question.key)
    return None if found is None else _read(found[0]["answer"])


def evaluated_by() -> str:
    """The function that measures, as a page names it."""
    return os.environ.get(EVALUATE, "").strip().replace("`", "") or "the recording's own measure"


def say_how_to_measure() -> None:
    """Tell that no function measures these networks, and how to name one."""
    st.info(
        "Nothing says how these networks are measured. Start the app with a function of one network's tensors by name "
        "that returns its loss: `emacore app --open FOLDER --evaluate my_eval:loss`.",
        icon=":material/speed:",
    )


def version() -> str:
    """Which version of which function measures: a part of each question, so that another one gets another answer."""
    return evaluator()


@st.cache_data(max_entries=100, show_spinner=False)
def _read(text: str) -> Any:
    return read(text)


def _ask(question: Question) -> None:
    def ask() -> None:
        queue = job_queue()
        queue.store.ask(question.to_json())
        queue.tend()

    attempt(ask)


def _follow(question: Question, asked_id: str) -> None:
    """Show how far an answer is, every half second, with Stop; the page is drawn once more when it has ended."""

    def look() -> None:
        with told():
            queue = job_queue()
            queue.tend()
            asked = queue.store.asked(question.to_json())
        if asked is None or asked.state not in ("queued", "running"):
            run_anew()
            return
        if asked.state == "queued" or not asked.of:
            st.progress(0.0, "Waiting for a free worker process; the first one needs a few seconds to start.")
        else:
            share = min(1.0, asked.done / asked.of)
            left = (time.time() - (asked.started or time.time())) * (1 - share) / share if share else None
            words = f"{asked.done:,} of {counted(asked.of, 'network')}"
            st.progress(share, f"{words}, {duration(left)} left" if left is not None else words)
        st.button(
            "Stop",
            key=f"stop-{question.key}",
            icon=":material/stop:",
            on_click=partial(attempt, lambda: job_queue().stop(asked_id)),
            help="End it here. What was measured so far is kept, and is not measured again.",
        )

    st.fragment(look, run_every=SECONDS_BETWEEN_LOOKS)()
