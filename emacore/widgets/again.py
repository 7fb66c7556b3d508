"""What one does next with a stored job: open its settings on the page that trains its kind, or replay its recording."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import streamlit as st

from emacore.averaging.code import to_code
from emacore.experiments.store import FINAL_STATES, RunStore, StoredRun
from emacore.experiments.studies import Job, Study, Sweep
from emacore.limits import PINS
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import TaskConfig
from emacore.training.history import finite_epochs
from emacore.training.names import setting_in_words
from emacore.widgets.jobs import job_queue, submit
from emacore.widgets.page import put, sentence, told
from emacore.widgets.runs import run_state
from emacore.widgets.schedules import state_of
from emacore.widgets.sweeps import SUGGESTED, sweep_state

#: The page of each kind of job, and the control there that chooses one.
PAGES = {
    "run": ("pages/train.py", "run"),
    "study": ("pages/evidence.py", "study"),
    "sweep": ("pages/where_it_helps.py", "sweep"),
}
#: The ends of the pages' sliders for the number of seeds, which go in steps of 8.
STUDY_SEEDS, SWEEP_SEEDS = (8, 256), (8, 128)


def job_state(job: Job) -> dict[str, Any]:
    """The controls' values that show a job's settings, by key, on the page of its kind.

    Raises:
        ValueError: if they cannot show it; the message says what they lack.
    """
    config = job if isinstance(job, TaskConfig) else job.config
    if not isinstance(config, RunConfig):
        raise ValueError(f"the pages have no controls for {config.task_name}")  # noqa: TRY004  not a wrong argument
    if isinstance(job, Study):
        _check_seeds(job.seeds, STUDY_SEEDS)
        if len(job.schedules) > PINS:
            raise ValueError(f"the page keeps {PINS} further schedules, this study has {len(job.schedules)}")
        further = [to_code(schedule) for schedule in job.schedules]
        state = {**run_state(config), "seeds": len(job.seeds), "first_seed": job.seeds[0], "pins": further}
    elif isinstance(job, Sweep):
        _check_seeds(job.seeds, SWEEP_SEEDS, first=0)
        if len(job.grid) != 2 or set(job.grid) - set(SUGGESTED):
            varied = ", ".join(map(setting_in_words, job.grid))
            raise ValueError(f"a map has two of the settings it can choose, this sweep varies {varied}")
        axes = {name: ", ".join(map(_typed, values)) for name, values in job.grid.items()}
        state = {**sweep_state(config, axes), "sweep_seeds": len(job.seeds)}
    else:
        state = run_state(config)
    return state


def start_state(config: TaskConfig) -> dict[str, Any]:
    """The controls' values that show a run's schedule, by key; empty where they cannot show it."""
    try:
        return state_of(config.schedule)
    except ValueError:
        return {}


def again_button(run: StoredRun, kind: str) -> None:
    """A button that opens the page of a job's kind with its settings; where that cannot show them, one that trains the
    same again."""
    page, key = PAGES[kind]
    try:
        state = job_state(run.job)
    except ValueError as error:
        st.button(
            "Train the same again",
            icon=":material/replay:",
            on_click=partial(submit, run.job, key),
            help=f"As it was, at once: no page can show these settings. {sentence(error)}",
        )
        return
    if st.button(
        "Train again with these",
        icon=":material/tune:",
        on_click=put,
        args=(state,),
        help="Opens the page with all controls at these settings: change what you like, and press Start there.",
    ):
        st.switch_page(page)


def replay_button(run: StoredRun) -> None:
    """A button that opens What if with this run, which has to be recorded, and with its own schedule."""
    if st.button(
        "Replay this run",
        type="primary",
        icon=":material/alt_route:",
        on_click=put,
        args=({"replayed": run.id, **start_state(run.config)},),
        help="What every other schedule would have made of the same training, exactly, without training again. It "
        "begins with this run's own schedule.",
    ):
        st.switch_page("pages/what_if.py", query_params={"replayed": run.id})


def next_steps(run_id: str) -> None:
    """A button that replays a run, if it is recorded, and a link to it on the page of all runs."""
    with told():
        store = job_queue().store
        run = store.result(run_id)
        replayed = can_be_replayed(store, run)
    with st.container(horizontal=True, vertical_alignment="center"):
        if replayed:
            replay_button(run)
        st.page_link(
            "pages/runs.py",
            label="Rename, compare or delete it",
            icon=":material/list:",
            query_params={"picked": run_id},
        )


def can_be_replayed(store: RunStore, run: StoredRun) -> bool:
    """Whether there is a recording, and, of a run that has ended, an epoch with a finite loss."""
    if not (store.recording(run.id) / "run.json").exists():
        return False
    return run.state not in FINAL_STATES or bool(len(finite_epochs(store.history(run.id))))


def _check_seeds(seeds: Sequence[int], ends: tuple[int, int], first: int | None = None) -> None:
    low, high = ends
    start = seeds[0] if first is None else first
    if list(seeds) != list(range(start, start + len(seeds))) or not low <= len(seeds) <= high or len(seeds) % 8:
        raise ValueError(
            f"the page trains {low} to {high} seeds, in steps of 8, that follow each other"
            + ("" if first is None else f" from {first}")
            + f"; these are {len(seeds)} from {seeds[0]}"
        )


def _typed(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
