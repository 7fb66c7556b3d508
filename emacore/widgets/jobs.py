"""Stored jobs on a page, which are runs, studies or sweeps: start, stop, choose, and how one ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from emacore.experiments.jobs import JobQueue
from emacore.experiments.store import FINAL_STATES, RunStore, StoredRun, StoreError, default_folder
from emacore.experiments.studies import Job
from emacore.widgets.page import BOUND, escaped, reset_button, sentence, told


@st.cache_resource(show_spinner=False)
def job_queue() -> JobQueue:
    """The server's queue of jobs.

    Raises:
        StoreError: if the run store cannot be opened.
    """
    return JobQueue(RunStore(default_folder()))


def stored(job_id: str) -> tuple[StoredRun, pd.DataFrame]:
    """A job and its history as the store has them now."""
    with told():
        queue = job_queue()
        queue.tend()
        return queue.store.result(job_id), queue.store.history(job_id)


def listed(kind: str) -> pd.DataFrame:
    """All "runs", "studies" or "sweeps" of the store; a worker is made ready meanwhile."""
    with told():
        queue = job_queue()
        queue.tend(warm=True)
        return {"runs": queue.store.runs, "studies": queue.store.studies, "sweeps": queue.store.sweeps}[kind]()


def workbench(
    label: str,
    table: pd.DataFrame,
    *,
    settings: Callable[[], Job],
    draw: Callable[[str], StoredRun],
    invitation: str,
    seconds: float,
    reset: Mapping[str, Any] | None = None,
    instead: Callable[[], None] = lambda: None,
) -> tuple[str | None, bool]:
    """On the left the settings of a job and its buttons, on the right the stored job that is chosen.

    Args:
        label: "Run", "Study" or "Sweep"; the small word is the key of the choice.
        table: The stored jobs of that kind.
        settings: Draws the controls and returns the job; its ``ValueError`` is told, and nothing can be started.
        draw: Draws the job of this id as the store has it, and returns it: every so many ``seconds`` while it goes on.
        invitation: What is said while there is none.
        reset: What the reset button brings back; without it there is none.
        instead: Draws below the invitation what there is to see meanwhile.

    Returns:
        The id of the chosen job, and whether it is still under way.
    """
    what = label.lower()
    controls, view = st.columns([1, 2.8], gap="medium")
    with controls:
        actions = st.container(horizontal=True)
        told_here = st.container()
        job = None
        with told():
            try:
                job = settings()
            except ValueError as error:
                told_here.error(sentence(error), icon=":material/error:")
        with told_here:
            show_problem()
    with view:
        chosen, active = chosen_job(label, table, what)
        if chosen is None:
            st.info(invitation, icon=":material/play_arrow:")
            instead()
        else:
            _watched(draw, chosen, active=active, seconds=seconds)
    with actions:
        _start_and_stop(job, chosen, active=active, what=what)
        if reset is not None:
            reset_button(reset)
    return chosen, active


def json_button(job: Job, name: str) -> None:
    """A download of a job's settings as ``name``.json, which the package and the command line take."""
    st.download_button(
        f"{name}.json",
        job.to_json(),
        f"{name}.json",
        "application/json",
        icon=":material/download:",
        on_click="ignore",
        help="These settings, for the package or for later.",
        type="tertiary",
    )


def attempt(action: Callable[[], Any], key: str | None = None) -> None:
    """Do something with the store, for callbacks: what goes wrong is told by :func:`show_problem`.

    Args:
        key: The control that shows what ``action`` returns.
    """
    try:
        found = action()
    except StoreError as error:
        st.session_state["problem"] = str(error)
    else:
        if key is not None:
            st.session_state[key] = found


def submit(job: Job, key: str) -> None:
    """Queue a job and choose it in the control ``key``: for callbacks."""
    attempt(lambda: job_queue().submit(job), key)


def show_problem() -> None:
    """Tell, once, what a callback could not do."""
    if "problem" in st.session_state:
        st.error(escaped(st.session_state.pop("problem")), icon=":material/error:")


def _start_and_stop(job: Job | None, chosen: str | None, *, active: bool, what: str) -> None:
    """The buttons that start ``job`` (``None``: it cannot be) and stop the chosen one."""
    st.button(
        "Start",
        type="primary",
        icon=":material/play_arrow:",
        on_click=None if job is None else partial(submit, job, what),
        disabled=job is None,
        help=f"Queue this {what}. It goes on if you leave.",
    )
    st.button(
        "Stop",
        icon=":material/stop:",
        on_click=lambda: attempt(lambda: job_queue().stop(chosen or "")),
        disabled=not active,
        help=f"End the {what} that is shown; what it has is kept.",
    )


def chosen_job(label: str, table: pd.DataFrame, key: str, *, nothing: str = "press Start") -> tuple[str | None, bool]:
    """A choice among stored jobs, the newest unless one says otherwise: its id, and whether it is still under way.

    One that was chosen, or is named by the link, and is not there is told until another one is chosen.
    """
    ids = table["id"].tolist()
    what, gone = label.lower(), f"gone-{key}"
    wanted = st.session_state.get(key) or st.query_params.get(key)
    if wanted not in ids:
        st.session_state[key] = None
        if wanted:
            st.session_state[gone] = wanted
    chosen = st.selectbox(
        label,
        ids,
        index=None,
        key=key,
        placeholder=f"The newest {what}" if ids else f"No {what} yet: {nothing}",
        help="All are kept: close the tab, come back, or open this link elsewhere.",
        **BOUND,
    )
    if chosen:
        st.session_state.pop(gone, None)
    elif gone in st.session_state:
        st.warning(
            f"There is no {what} {escaped(st.session_state[gone])}: it may have been deleted."
            + (f" This is the newest {what}." if ids else ""),
            icon=":material/warning:",
        )
    chosen = chosen or (ids[0] if ids else None)
    state = table.set_index("id")["state"].get(chosen) if chosen else None
    return chosen, state in ("queued", "running")


def _watched(draw: Callable[[str], StoredRun], chosen: str, *, active: bool, seconds: float) -> None:
    """Draw a job, while it is under way again and again; the whole page once more when it has ended."""

    def look() -> None:
        run = draw(chosen)
        if active and run.state in FINAL_STATES:
            st.rerun()

    st.fragment(look, run_every=seconds if active else None)()


def show_state(run: StoredRun, share: float, *, progress: str, so_far: str, ended: str, what: str) -> None:
    """How a job is going, or how it ended.

    Args:
        share: What is done of what there is to do at most.
        progress: What is said of a job that trains.
        so_far: What it has, such as "5 epochs".
        ended: What is said of one that has ended as it should.
        what: "run", "study" or "sweep".
    """
    match run.state:
        case "queued":
            st.progress(0.0, "Waiting for a free worker process; the first one needs a few seconds to start.")
        case "running":
            st.progress(share, progress)
        case "failed":
            st.error(f"The {what} failed after {so_far}: {escaped(run.error)}", icon=":material/error:")
        case "interrupted":
            st.warning(
                f"The {what} was interrupted after {so_far}, because the program that trained it ended. What it had "
                "is below.",
                icon=":material/warning:",
            )
        case _:
            st.success(ended, icon=":material/flag:")


def duration(run: StoredRun) -> float:
    """Seconds from its start to its end."""
    return (run.finished or 0) - (run.started or run.finished or 0)
