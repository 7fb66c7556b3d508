"""A recorded run on a page: choose it, follow it while it trains, and replay it; what was replayed once is kept."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import streamlit as st

from emacore.averaging.code import from_code, scheme_from_code, to_code
from emacore.averaging.solving import with_relative_width
from emacore.charts.heatmap import CELL
from emacore.experiments.store import FINAL_STATES, RunStore, StoredRun
from emacore.replay import curves
from emacore.replay.atlas import atlas, original, widths
from emacore.replay.measure import Metric
from emacore.replay.recording import RecordingError
from emacore.replay.relatives import relatives
from emacore.replay.trajectory import Table, Trajectory
from emacore.replay.weight_space import Space, space
from emacore.tasks import open_run
from emacore.training import history as histories
from emacore.training.config import TaskConfig
from emacore.training.history import training_follows_average
from emacore.widgets.jobs import chosen_job, nothing_left_in_words, submit
from emacore.widgets.link import from_link
from emacore.widgets.page import stop_with, told

ORIGINAL_NAME, OWN, NOW = "original", "the run's own EMA", "now"
SECONDS_BETWEEN_LOOKS = 2.0


@dataclass(frozen=True)
class Recorded:
    """A recorded run as a page shows it.

    Attributes:
        folder: Of the recording.
        epochs: So many are whole in the recording and in the history; at least 1.
        history: Of these epochs.
        trained: How many epochs the run has trained.
    """

    run: StoredRun
    folder: str
    epochs: int
    history: pd.DataFrame
    trained: int

    @property
    def trajectory(self) -> Trajectory:
        """The recording as it was after these epochs."""
        return opened(self.folder, self.epochs)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What was measured; the first is the loss."""
        return self.run.config.metrics

    @property
    def loss(self) -> Metric:
        """By which the best is chosen."""
        return self.metrics[0]

    @property
    def loss_title(self) -> str:
        """The title of its axes."""
        return f"validation loss ({self.loss.name})"

    @property
    def training(self) -> bool:
        """Whether it goes on."""
        return self.run.state not in FINAL_STATES

    def curve(self, code: str) -> Table:
        """The validation curve under a scheme: epoch, step, each metric's column."""
        return _curve(self.folder, self.epochs, code)

    def measured(self, model: str) -> Table:
        """The curve of "original" or "ema", measured as the run trained."""
        found = histories.curve(self.history, self.metrics, model)
        trajectory = self.trajectory
        return {"epoch": found["epoch"], "step": trajectory.rows.steps[trajectory.epoch_ends], **found}

    def weights(self, code: str) -> Table:
        """What each row weighs in a scheme's final average: step, weight."""
        return _weights(self.folder, self.epochs, code)


@st.cache_resource(max_entries=4, show_spinner="Opening the recording")
def opened(folder: str, epochs: int) -> Trajectory:
    """A recording as it was after so many epochs."""
    return open_run(folder, epochs)


@st.cache_data(max_entries=200, show_spinner=False)
def _curve(folder: str, epochs: int, code: str) -> Table:
    return curves.curve(opened(folder, epochs), scheme_from_code(code))


@st.cache_data(max_entries=50, show_spinner=False)
def _weights(folder: str, epochs: int, code: str) -> Table:
    return curves.weights_of_rows(opened(folder, epochs), scheme_from_code(code))


@st.cache_data(max_entries=20, show_spinner="Replaying the run once for each cell")
def atlas_of(folder: str, epochs: int, code: str, x: str, y: str, metric: str) -> Table:
    """The atlas of a schedule."""
    return atlas(opened(folder, epochs), from_code(code), x, y, metric)


@st.cache_data(max_entries=20, show_spinner=False)
def original_of(folder: str, epochs: int, metric: str) -> float:
    """The original's loss on the terms of the atlas."""
    trajectory = opened(folder, epochs)
    return original(trajectory, metric)[trajectory.measured[0].column]


@st.cache_data(max_entries=50, show_spinner=False)
def relatives_of(folder: str, epochs: int) -> Table:
    """What the EMA is set beside."""
    return relatives(opened(folder, epochs))


@st.cache_data(max_entries=4, show_spinner=False)
def widths_of(folder: str, epochs: int) -> Table:
    """Power-function averages over their width."""
    return widths(opened(folder, epochs))


@st.cache_data(max_entries=10, show_spinner="Evaluating the loss over a plane")
def space_of(folder: str, epochs: int, code: str, kind: str, from_percent: int) -> Space:
    """The weights from so many percent of the run on, seen on a plane."""
    return space(opened(folder, epochs), scheme_from_code(code), kind, from_percent / 100)


@st.cache_data(max_entries=64, show_spinner="Solving")
def carried(code: str, steps: int, width: float) -> str:
    """The schedule with this relative width in a run of so many steps."""
    return to_code(with_relative_width(from_code(code), steps, width))


def chosen_run(store: RunStore) -> StoredRun | None:
    """A choice among the runs that are recorded, or may be yet; one that is asked for is among them if it was never
    to be, because it ended too soon."""
    runs = store.runs()
    recorded = runs["id"].map(lambda run: _is_recorded(store, run)).astype(bool)
    to_come = ~runs["state"].isin(FINAL_STATES)
    asked_for = (runs["id"] == from_link("replayed")) & (runs["epochs"] == 0)
    chosen, _ = chosen_job("Recorded run", runs[recorded | to_come | asked_for], "replayed", nothing="train one")
    return None if chosen is None else store.result(chosen)


def followed(store: RunStore, run: StoredRun) -> Recorded | None:
    """The run as far as it is whole; ``None`` before its first epoch is.  While it trains, the page follows it.

    A page of a run that ended before that ends here, and says so.
    """
    folder = str(store.recording(run.id))
    with told():
        history = store.history(run.id)
    if run.state in FINAL_STATES and history.empty:
        st.warning(nothing_left_in_words(run), icon=":material/warning:")
        st.stop()
    try:
        epochs = _whole_epochs(store, run, history)
        if epochs:
            opened(folder, epochs)
    except RecordingError as error:
        stop_with(f"The recording cannot be used: {error}.")
    if run.state not in FINAL_STATES:
        _watch(store, run, epochs)
    return Recorded(run, folder, epochs, history.head(epochs), len(history)) if epochs else None


def _is_recorded(store: RunStore, run: str) -> bool:
    return (store.recording(run) / "run.json").exists()


def _whole_epochs(store: RunStore, run: StoredRun, history: pd.DataFrame) -> int:
    """How many whole epochs are in the history and in the recording, which may not have begun."""
    if run.state not in FINAL_STATES and not _is_recorded(store, run.id):
        return 0
    return min(len(Trajectory.open(store.recording(run.id)).epoch_ends), len(history))


@st.fragment(run_every=SECONDS_BETWEEN_LOOKS)
def _watch(store: RunStore, run: StoredRun, seen: int) -> None:
    """Run the page again once there are more epochs than ``seen``, or the run has ended."""
    with told(), suppress(RecordingError):
        grown = _whole_epochs(store, run, store.history(run.id)) != seen
        if grown or store.result(run.id).state != run.state:
            st.rerun()


def say_what_is_exact(recorded: Recorded) -> None:
    """In which sense the replay of this run is exact."""
    rules = training_follows_average(recorded.run.config)
    if rules:
        st.info(
            f"This training looked at its own average: {' and '.join(rules)}. A replay is exact for the weights that "
            "were trained; with another average, other weights would have been trained from there on.",
            icon=":material/info:",
        )
        st.button(
            "Train it again with these rules on the original curve",
            on_click=_start_on_original,
            args=(recorded.run.config,),
            icon=":material/play_arrow:",
            help="Then no average touches the training, and every replay is exact in both senses.",
        )
    every = recorded.trajectory.every
    if every > 1:
        loss = recorded.loss.column
        exact, own = recorded.measured("ema"), recorded.curve(to_code(recorded.run.config.schedule))
        st.info(curves.thinning_in_words(exact["epoch"], exact[loss], own[loss], every), icon=":material/info:")
    if recorded.epochs < recorded.trained and not recorded.training:
        st.warning(
            f"The recording ends after epoch {recorded.epochs} of {recorded.trained}: the disk may have been full.",
            icon=":material/warning:",
        )


def _start_on_original(config: TaskConfig) -> None:
    """Train the run again with its rules looking at the original curve only."""
    again: TaskConfig = replace(
        config,
        optimizer=replace(config.optimizer, plateau_curve="original"),
        stopping=replace(config.stopping, curve="original" if config.stopping.curve == "ema" else "none"),
    )
    submit(again, "replayed")


def atlas_key(run: StoredRun) -> str:
    """The atlas' chart, by its axes: another map begins with no cell clicked."""
    return "-".join(["atlas", run.id, *(str(st.session_state.get(f"atlas_{name}")) for name in ("x", "y", "metric"))])


def clicked_cell(run: StoredRun) -> str | None:
    """The code of the cell that is clicked in the atlas, while that is the view."""
    if st.session_state.get("view") != "Atlas" or atlas_key(run) not in st.session_state:
        return None
    cells: list[dict[str, Any]] = st.session_state[atlas_key(run)]["selection"].get(CELL, [])
    return next((cell["code"] for cell in cells if cell.get("code")), None)


def metric_columns(recorded: Recorded) -> dict[str, Any]:
    """The titles of the columns of :func:`emacore.replay.curves.curve_figures`."""
    number = st.column_config.NumberColumn
    titles: dict[str, Any] = {
        "final": number("final loss", format="%.6f"),
        "best": number("best loss", format="%.6f"),
        "best_epoch": "at epoch",
        "steadiness": number("std. dev.", format="%.6f"),
        "ahead_since": number("below the original since epoch"),
    }
    for metric in recorded.metrics[1:]:
        for which in ("final", "best"):
            titles[f"{which}_{metric.column}"] = number(f"{which} {metric.name}", format="%.5f")
    return titles
