"""Stored jobs on a page, which are runs, studies or sweeps: start, stop, choose, and how one ended."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pandas as pd
import streamlit as st

from emacore.experiments import shipped
from emacore.experiments.jobs import JobQueue
from emacore.experiments.listing import Numbers, final_numbers, listing
from emacore.experiments.names import SERVER
from emacore.experiments.store import FINAL_STATES, Damaged, RunStore, StoredRun, StoreError, default_folder
from emacore.experiments.studies import Job, shared_json
from emacore.formatting import counted
from emacore.limits import QUEUED_OF_SESSION
from emacore.widgets.link import from_link, to_link
from emacore.widgets.page import beside_controls, escaped, put, reset_button, run_anew, sentence, told


@st.cache_resource(show_spinner=False)
def job_queue() -> JobQueue:
    """The server's queue of jobs; on an empty store it trains the article's run, for people to look at.

    Raises:
        StoreError: if the run store cannot be opened.
    """
    queue = JobQueue(RunStore(default_folder()))
    queue.train_example()
    return queue


def begin_example() -> None:
    """Have the example run trained even if no page has looked at jobs yet.

    A store that cannot be opened is told by the pages that need it.
    """
    with suppress(StoreError):
        job_queue()


def stored(job_id: str) -> tuple[StoredRun, pd.DataFrame]:
    """A job and its history as the store has them now."""
    with told(but=Damaged):
        queue = job_queue()
        queue.tend()
        return queue.store.result(job_id), queue.store.history(job_id)


def listed(kind: str) -> pd.DataFrame:
    """All "runs", "studies" or "sweeps" of the store, or all "jobs"; a worker is made ready meanwhile."""
    with told():
        queue = job_queue()
        queue.tend(warm=True)
        store = queue.store
        lists = {"jobs": store.jobs, "runs": store.runs, "studies": store.studies, "sweeps": store.sweeps}
        found = lists[kind]()
        tell_of(store)
        return found


def tell_of(store: RunStore) -> None:
    """Where the store is not as one expects it: read-only, or not the one that it was."""
    if not store.can_be_written():
        st.warning(
            "The run store cannot be written: what is there is shown, but nothing new can be kept, so nothing can be "
            "trained, renamed or deleted.",
            icon=":material/lock:",
        )
    _tell_if_replaced(store)


def _tell_if_replaced(store: RunStore) -> None:
    """Tell each session, once, that the store was replaced while it was open."""
    seen = st.session_state.setdefault("replacements", store.replacements)
    if store.replacements > seen:
        put({"replacements": store.replacements})
        st.warning(
            "The run store was deleted or replaced while this server ran: what was in it is gone from here, and all "
            "goes on with what is there now.",
            icon=":material/warning:",
        )


def show_damaged() -> None:
    """Tell which jobs cannot be read, with a way to be rid of them."""
    with told():
        damaged = job_queue().store.damaged()
    if not damaged:
        return
    with st.expander(f"{counted(len(damaged), 'damaged job')}: all others work", icon=":material/heart_broken:"):
        for job_id, problem in list(damaged.items())[:_DAMAGED_MOST]:
            st.markdown(f"{escaped(job_id)}: {escaped(problem)}.")
        st.button(
            "Delete what is damaged",
            on_click=attempt,
            args=(partial(_forget, list(damaged)),),
            help="Their settings, curves and recorded weights go for good.",
        )


def _forget(job_ids: Sequence[str]) -> None:
    for job_id in job_ids:
        job_queue().store.delete(job_id)


#: At most this many damaged jobs are named.
_DAMAGED_MOST = 20


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
        label: "Run", "Study" or "Sweep"; in small letters it is the key of the choice.
        table: The stored jobs of that kind.
        settings: Draws the controls and returns the job; its ``ValueError`` is told, and nothing can be started.
        draw: Draws the job with an id as the store has it, and returns it.
        invitation: What is said while there is no such job.
        seconds: While a job goes on, it is drawn anew this often.
        reset: The controls' values that the reset button brings back; without them there is no button.
        instead: Draws, above the invitation, what there is to see while there is no such job.

    Returns:
        The id of the chosen job, and whether it is still under way.
    """
    what = label.lower()
    controls, view = beside_controls(2.8)
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
        first, second = st.container(), st.container()
    # Where there is nothing to choose yet, what there is to see comes first.
    nothing = table.empty and from_link(what) is None
    with second if nothing else first:
        chosen, active = chosen_job(label, table, what)
    with first if nothing else second:
        if chosen is None:
            instead()
            st.info(invitation, icon=":material/play_arrow:")
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
        shared_json(job),
        f"{name}.json",
        "application/json",
        icon=":material/download:",
        on_click="ignore",
        help="These settings as a file, which the package and the command line (--config) read.",
        type="tertiary",
    )


def attempt(action: Callable[[], Any], key: str | None = None) -> None:
    """Do something with the store, for callbacks: what goes wrong is told by :func:`show_problem`.

    Args:
        action: Its ``StoreError`` is what goes wrong.
        key: The control that is set to what ``action`` returns; by default none.
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

    def queued() -> str:
        queue, mine = job_queue(), st.session_state.setdefault("submitted", [])
        mine[:] = queue.store.waiting(mine)
        if len(mine) >= QUEUED_OF_SESSION:
            raise StoreError(
                f"{len(mine)} jobs of yours wait already: stop some of them, or wait for the first to start."
            )
        mine.append(queue.submit(job))
        return str(mine[-1])

    attempt(queued, key)


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


def chosen_job(
    label: str,
    table: pd.DataFrame,
    key: str,
    *,
    nothing: str = "press Start",
    which: str = "",
    further: Mapping[str, str] | None = None,
) -> tuple[str | None, bool]:
    """A choice among stored jobs: the chosen id, and whether that job is still under way.

    Without a choice it is the first of ``table``.  The session and the link have the chosen id under ``key``; where
    that job is not there any more, a warning says so until another one is chosen.

    Args:
        nothing: What is to be done where there is no job yet, for the placeholder.
        which: Said after "newest" of the first one, such as " that did not diverge".
        further: What can be chosen besides, after the jobs: labels by ids.
    """
    jobs = shown(table)
    if further:
        jobs = pd.concat([jobs, pd.DataFrame({"id": list(further), "label": list(further.values())})])
    ids = jobs["id"].tolist()
    what, gone = label.lower(), f"gone-{key}"
    wanted = from_link(key)
    if wanted is not None and wanted not in ids:
        st.session_state[key], st.session_state[gone] = None, wanted
    elif wanted is not None:
        st.session_state.pop(gone, None)
    job_choice(
        label,
        jobs,
        key,
        placeholder=f"The newest{which}: {jobs['label'].iloc[0]}" if ids else f"No {what} yet: {nothing}",
        help="Name, state, age, and the loss of both models after the last epoch. All are kept: close the tab, come "
        "back, or open this link elsewhere. The page Runs renames and deletes them.",
    )
    to_link(key)
    if gone in st.session_state:
        st.warning(
            f"There is no {what} {escaped(st.session_state[gone])}: it may have been deleted."
            + (f" This is the newest {what}{which}." if ids else ""),
            icon=":material/warning:",
        )
    found = st.session_state[key] or (ids[0] if ids else None)
    state = table.set_index("id")["state"].get(found) if found else None
    return found, state in ("queued", "running")


def job_choice(label: str, jobs: pd.DataFrame, key: str, *, index: int | None = None, **arguments: Any) -> Any:
    """A choice among listed jobs by their labels; the session keeps the id of the chosen one under ``key``.

    Labels change with the age, so they cannot be what a control remembers.

    Args:
        jobs: As :func:`shown` returns them.
        index: The place of the one that is chosen at first; by default none is.
        arguments: Further arguments of ``st.selectbox``.
    """
    labels = dict(zip(jobs["id"], jobs["label"], strict=True))
    state, widget = st.session_state, f"pick-{key}"
    if state.get(key) not in labels:
        state[key] = None if index is None else list(labels)[index]
    state[widget] = state[key]
    st.selectbox(
        label,
        list(labels),
        index=index,
        key=widget,
        format_func=lambda job_id: labels.get(job_id, job_id),
        on_change=lambda: put({key: state[widget]}),
        **arguments,
    )
    return state[key]


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """Jobs of the store as :func:`~emacore.experiments.listing.listing` lists them, in the visitor's time zone."""
    try:
        zone = ZoneInfo(st.context.timezone or "")
    except (ValueError, ZoneInfoNotFoundError):
        zone = None
    over = table[(table["kind"] == "study") & table["state"].isin(FINAL_STATES) & (table["epochs"] > 0)]
    folder = str(job_queue().store.folder)
    return listing(table, datetime.now(UTC), zone, {job_id: _numbers(folder, job_id) for job_id in over["id"]})


@st.cache_data(max_entries=2000, show_spinner=False)
def _numbers(folder: str, job_id: str) -> Numbers:
    """The final numbers of a study that has ended; they are kept, because its whole history is read for them."""
    store = RunStore(folder)
    return final_numbers(store.result(job_id).job, store.history(job_id))


def _watched(draw: Callable[[str], StoredRun], chosen: str, *, active: bool, seconds: float) -> None:
    """Draw a job, and anew every so many seconds while it is under way; when it has ended, run the whole page once."""

    def look() -> None:
        try:
            run = draw(chosen)
        except Damaged as problem:
            st.error(escaped(problem), icon=":material/heart_broken:")
            return
        if active and run.state in FINAL_STATES:
            run_anew()

    st.fragment(look, run_every=seconds if active else None)()


def follow_states(table: pd.DataFrame, seconds: float) -> None:
    """While jobs are under way, look every ``seconds``, and run the page again once a state or an epoch is another."""
    if table["state"].isin(["queued", "running"]).any():
        seen = table[["id", "state", "epochs"]]

        def look() -> None:
            with told():
                job_queue().tend()
                now = job_queue().store.jobs()
            if not now[["id", "state", "epochs"]].equals(seen):
                run_anew()

        st.fragment(look, run_every=seconds)()


def show_state(
    run: StoredRun, share: float, *, progress: str, so_far: str, ended: str, what: str, empty: bool = False
) -> None:
    """How a job is going, or how it ended.

    Args:
        share: How much of the most that it can train is done, from 0 to 1.
        progress: The sentence for a job that trains.
        so_far: What a job has that ended early, such as "5 epochs".
        ended: The sentence for a job that ended as it should.
        what: "run", "study" or "sweep".
        empty: Whether the job has nothing to show yet.
    """
    whose = "The article's run, trained for you: " if run.asked == SERVER else ""
    match run.state:
        case "queued" if whose:
            st.progress(0.0, f"{whose}it starts once a worker process is up, in a few seconds; your own jobs go first.")
        case "queued":
            st.progress(0.0, "Waiting for a free worker process; the first one needs a few seconds to start.")
        case "running":
            st.progress(share, f"{whose}{progress[0].lower()}{progress[1:]}" if whose else progress)
        case "done" if run.stopped == "diverged" and not empty:
            st.warning(ended, icon=":material/warning:")
        case "failed" if not empty:
            st.error(f"The {what} failed after {so_far}: {escaped(run.error)}", icon=":material/error:")
        case _ if empty:
            st.warning(nothing_left_in_words(run, what), icon=":material/warning:")
        case "interrupted":
            st.warning(
                f"The {what} was interrupted after {so_far}, because the program that trained it ended. What it had "
                "is below.",
                icon=":material/warning:",
            )
        case _:
            st.caption(f":material/flag: {whose}{ended[0].lower()}{ended[1:]}" if whose else f":material/flag: {ended}")


def say_shipped(what: str, file: Path) -> None:
    """Say that what is shown came with the package: what it is, and which command made its file when."""
    made = shipped.made(file).partition(", ")[2]
    st.caption(
        f":material/inventory_2: **Shipped with the app**, not trained here: {what}, by `{shipped.COMMAND}` ({made})."
    )


def nothing_left_in_words(run: StoredRun, what: str = "run") -> str:
    """Why a job that has ended has nothing to show, and what to do, as Markdown."""
    if run.stopped == "diverged":
        return (
            f"The {what} diverged in its first epoch: no loss is finite, whatever is averaged, so there is nothing to "
            "show of it. A smaller learning rate may help; the page Runs deletes it."
        )
    first = "cell" if what == "sweep" else "epoch"
    why = {
        "failed": f"failed before its first {first} was over: {escaped(run.error).rstrip('.')}",
        "interrupted": f"was interrupted before its first {first} was over, because the program that trained it ended",
        "stopped": f"is over: you stopped it before its first {first} was",
    }.get(run.state, f"ended before its first {first} was over")
    return f"The {what} {why}. There is nothing to show of it; start it again, or delete it on the page Runs."


def duration(run: StoredRun) -> float:
    """Seconds that a job has trained; 0 if that is not known."""
    return run.seconds if math.isfinite(run.seconds) else 0.0
