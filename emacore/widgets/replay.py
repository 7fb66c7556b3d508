"""A recorded run on a page: choose it, follow it while it trains, and replay it; what was replayed once is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from emacore.averaging.code import from_code, scheme_from_code, to_code
from emacore.averaging.solving import with_relative_width
from emacore.experiments.opened import opened as opened_names
from emacore.experiments.store import FINAL_STATES, RunStore, StoredRun
from emacore.replay import curves, frames
from emacore.replay.atlas import atlas, original, widths
from emacore.replay.measure import Metric
from emacore.replay.recording import RecordingError
from emacore.replay.relatives import relatives
from emacore.replay.trajectory import Table, Trajectory
from emacore.replay.weight_space import Space, space
from emacore.tasks import open_run
from emacore.training import history as histories
from emacore.training.config import TaskConfig
from emacore.training.history import finite_epochs, training_follows_average
from emacore.widgets.jobs import chosen_job, nothing_left_in_words, submit
from emacore.widgets.link import from_link
from emacore.widgets.opened import OPENED
from emacore.widgets.page import escaped, leave_if_run_anew, put, run_anew, stop_with, told
from emacore.widgets.schedules import schedule_defaults, state_of

if TYPE_CHECKING:
    from emacore.widgets.opened_run import OpenedRun

ORIGINAL_NAME, OWN, NOW, CELL_NAME = "original", "the run's own EMA", "now", "the cell"
#: Streamlit 1.67 folds a timer's request into one that waits, and keeps the page of the timer's: where a page computes
#: for longer than this between two calls of Streamlit, a click on another page can be lost.  Long work comes in parts.
SECONDS_BETWEEN_LOOKS = 2.0
#: The same until the first epoch is over, when a page has nothing to compute that could lose a click.
SECONDS_BETWEEN_FIRST_LOOKS = 0.5
#: So few networks that one part of the frames takes about a tenth of a second, of a long run a few of them.
_NETWORKS_AT_ONCE = 1_000
#: The session's key of the run that was begun with and what the controls were set to then; and the parameter by which
#: a link says that its settings are the article's, though none stand in it.
_BEGUN, _ARTICLE = "begun", "begin"


@dataclass(frozen=True)
class Recorded:
    """A recorded run as a page shows it.

    Attributes:
        folder: The recording's.
        epochs: How many epochs are whole in the recording and in the history; at least 1.
        history: The rows of these epochs.
        trained: How many epochs the run has trained, which may be more.
    """

    #: Whether the curves show the cell of the atlas that is pointed at.
    follows_pointer: ClassVar[bool] = True

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
        """The metric by which the best is chosen."""
        return self.metrics[0]

    @property
    def loss_title(self) -> str:
        """The title of an axis of validation losses."""
        return f"validation loss ({self.loss.name})"

    @property
    def training(self) -> bool:
        """Whether the run goes on."""
        return self.run.state not in FINAL_STATES

    def curve(self, code: str) -> Table:
        """The validation curve under a scheme: epoch, step, each metric's column."""
        return _curve(self.folder, self.epochs, code)

    def measured(self, model: str) -> Table:
        """The curve of "original" or "ema", measured as the run trained."""
        found = histories.curve(self.history, self.metrics, model)
        trajectory = self.trajectory
        return {"epoch": found["epoch"], "step": trajectory.rows.steps[trajectory.epoch_ends], **found}

    def steps_of(self, epochs: NDArray[np.integer]) -> NDArray[np.int64]:
        """The steps after which epochs, counted from 1, ended."""
        trajectory = self.trajectory
        return np.asarray(trajectory.rows.steps[np.asarray(trajectory.epoch_ends)[epochs - 1]])

    def atlas(self, epochs: int, code: str, x: str, y: str, metric: str) -> tuple[Table, float]:
        """The table of :func:`emacore.replay.atlas.atlas`, and the original's loss, final or best as there, as after so
        many epochs."""
        return atlas_of(self.folder, epochs, code, x, y, metric), original_of(self.folder, epochs, metric)

    def relatives(self, epochs: int) -> Table:
        """The table of :func:`emacore.replay.relatives.relatives`."""
        return relatives_of(self.folder, epochs)

    def widths(self, epochs: int) -> Table:
        """The table of :func:`emacore.replay.atlas.widths`."""
        return widths_of(self.folder, epochs)

    def space(self, epochs: int, code: str, kind: str, from_percent: int) -> Space:
        """What :func:`emacore.replay.weight_space.space` finds from ``from_percent`` % of the run on."""
        return space_of(self.folder, epochs, code, kind, from_percent)

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
    """The table of :func:`emacore.replay.atlas.atlas`, of which a page asks once."""
    return atlas(opened(folder, epochs), from_code(code), x, y, metric)


def frames_of_codes(
    folder: str, epochs: int, codes: Sequence[str], most: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which epochs are shown, about ``most`` of them, and the loss of each scheme after these: (epochs, schemes).

    It is replayed in parts, each of which is kept, and between which a page that is to be run anew leaves here.
    """
    shown, parts = frames.shown_epochs(epochs, most), []
    at_once = max(1, _NETWORKS_AT_ONCE // max(len(shown), 1))
    for first in range(0, len(codes), at_once):
        parts.append(_frames(folder, epochs, tuple(codes[first : first + at_once]), most))
        leave_if_run_anew()
    return shown, np.concatenate(parts, axis=1) if parts else np.empty((len(shown), 0), dtype=np.float32)


@st.cache_data(max_entries=400, show_spinner=False)
def _frames(folder: str, epochs: int, codes: tuple[str, ...], most: int) -> NDArray[np.float32]:
    schemes = [scheme_from_code(code) for code in codes]
    return frames.loss_frames(opened(folder, epochs), schemes, frames.shown_epochs(epochs, most))


@st.cache_data(max_entries=20, show_spinner=False)
def original_of(folder: str, epochs: int, metric: str) -> float:
    """The original's loss, final or best of the same epochs as the atlas' cells."""
    trajectory = opened(folder, epochs)
    return original(trajectory, metric)[trajectory.measured[0].column]


@st.cache_data(max_entries=50, show_spinner=False)
def relatives_of(folder: str, epochs: int) -> Table:
    """The table of :func:`emacore.replay.relatives.relatives`."""
    return relatives(opened(folder, epochs))


@st.cache_data(max_entries=4, show_spinner=False)
def widths_of(folder: str, epochs: int) -> Table:
    """The table of :func:`emacore.replay.atlas.widths`."""
    return widths(opened(folder, epochs))


@st.cache_data(max_entries=10, show_spinner="Evaluating the loss over a plane")
def space_of(folder: str, epochs: int, code: str, kind: str, from_percent: int) -> Space:
    """What :func:`emacore.replay.weight_space.space` finds from ``from_percent`` % of the run on."""
    return space(opened(folder, epochs), scheme_from_code(code), kind, from_percent / 100)


@st.cache_data(max_entries=64, show_spinner="Solving")
def carried(code: str, steps: int, width: float) -> str:
    """The code of a schedule like that of ``code``, with this relative width (a share) in a run of so many steps.

    Raises:
        ValueError: if there is none.
    """
    return to_code(with_relative_width(from_code(code), steps, width))


def chosen_run(store: RunStore) -> StoredRun | str | None:
    """A choice among the runs that are recorded, or may be yet, and what was opened.

    A run that the link asks for is among them even if it ended before there was anything to replay.

    Returns:
        The run; the name of what was opened; or ``None`` where there is nothing to choose.
    """
    runs = store.runs()
    recorded = runs["id"].map(lambda run: _is_recorded(store, run)).astype(bool)
    to_come = ~runs["state"].isin(FINAL_STATES)
    # Without a choice it is the newest that can be replayed: what diverged, and what ended before its first epoch,
    # come last.
    lost = ~to_come & (runs["epochs"] < 1)
    diverged = runs["stopped"] == "diverged"
    asked_for = runs["id"] == from_link("replayed")
    there = recorded & ~lost | to_come
    choice = pd.concat([runs[there & ~diverged], runs[there & diverged], runs[(recorded | asked_for) & lost]])
    newest = runs.loc[there, "id"].head(1).tolist() == choice["id"].head(1).tolist()
    further = {f"{OPENED}{name}": f"Your checkpoints: {name}" for name in opened_names()}
    chosen, _ = chosen_job(
        "Recorded run",
        choice,
        "replayed",
        nothing="train one",
        which="" if newest else " that did not diverge",
        further=further,
    )
    if chosen is None:
        return None
    return chosen.removeprefix(OPENED) if chosen in further else store.result(chosen)


def begin_with(run: StoredRun) -> None:
    """On the first visit of a run, let the controls show the schedule that it was trained with.

    Controls that the link or the person has set stay as they are.  To be called before the controls are drawn;
    :func:`say_in_link` says what the link needs for it.
    """
    seen, shown = st.session_state.get(_BEGUN, (None, schedule_defaults()))
    if seen == run.id:
        return
    own = _controls_of(run)
    linked = seen is None and (_ARTICLE in st.query_params or any(key in st.query_params for key in shown))
    if not linked and own != shown and _are_shown(shown):
        put(own)
        shown = own
    st.session_state[_BEGUN] = (run.id, shown)


def say_in_link(run: StoredRun) -> None:
    """Say in the link that the controls show the article's settings, where the run's own are others.

    Such settings do not stand in a link, and one without settings begins with the run's own.
    """
    if _are_shown(schedule_defaults()) and _controls_of(run) != schedule_defaults():
        st.query_params[_ARTICLE] = "article"
    else:
        st.query_params.pop(_ARTICLE, None)


def _controls_of(run: StoredRun) -> dict[str, Any]:
    """The controls' values that show a run's own schedule; their first values where they cannot show it."""
    with suppress(ValueError):
        return state_of(run.config.schedule)
    return schedule_defaults()


def _are_shown(state: Mapping[str, Any]) -> bool:
    """Whether the controls have these values; those that were never drawn have their first ones."""
    first = schedule_defaults()
    return all(st.session_state.get(key, first[key]) == value for key, value in state.items())


def followed(store: RunStore, run: StoredRun) -> Recorded | None:
    """The run with its whole epochs, ``None`` before there is one.  While it trains, the page follows it.

    The page of a run that ended before its first epoch was over, or without a finite loss, ends here, and says so.
    """
    folder = str(store.recording(run.id))
    with told():
        history = store.history(run.id)
    if run.state in FINAL_STATES and not len(finite_epochs(history)):
        st.warning(nothing_left_in_words(run), icon=":material/warning:")
        st.stop()
    try:
        epochs = _whole_epochs(store, run, history)
        if epochs:
            opened(folder, epochs)
    except RecordingError as error:
        stop_with(f"The recording cannot be used: {error}.")
    if run.state not in FINAL_STATES:
        every = SECONDS_BETWEEN_LOOKS if epochs else SECONDS_BETWEEN_FIRST_LOOKS
        st.fragment(_watch, run_every=every)(store, run, epochs)
    return Recorded(run, folder, epochs, history.head(epochs), len(history)) if epochs else None


def looked_at(recorded: Recorded | OpenedRun) -> int:
    """Up to which epoch what takes long is computed: of a run that still trains it stays the same until one asks."""
    run, epochs = recorded.run, recorded.epochs
    seen = st.session_state.get("looked")
    if not recorded.training or seen is None or seen[0] != run.id or not 0 < seen[1] <= epochs:
        seen = st.session_state["looked"] = (run.id, epochs)
    return int(seen[1])


def _is_recorded(store: RunStore, run: str) -> bool:
    return (store.recording(run) / "run.json").exists()


def _whole_epochs(store: RunStore, run: StoredRun, history: pd.DataFrame) -> int:
    """How many whole epochs are in the history and in the recording, which may not have begun."""
    if run.state not in FINAL_STATES and not _is_recorded(store, run.id):
        return 0
    return min(len(Trajectory.open(store.recording(run.id)).epoch_ends), len(history))


def _watch(store: RunStore, run: StoredRun, seen: int) -> None:
    """Run the page again once there are more epochs than ``seen``, or the run has ended."""
    with told(), suppress(RecordingError):
        grown = _whole_epochs(store, run, store.history(run.id)) != seen
        if grown or store.result(run.id).state != run.state:
            run_anew()


def say_what_is_exact(recorded: Recorded) -> None:
    """Tell where the replay of this run is not exact, or not whole."""
    rules = training_follows_average(recorded.run.config, recorded.trained)
    if rules:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(
                f":material/info: This training looked at its own average ({' and '.join(rules)}): with another one, "
                "other weights could have been trained."
            )
            st.button(
                "Train it again without",
                on_click=_start_on_original,
                args=(recorded.run.config,),
                icon=":material/play_arrow:",
                type="tertiary",
                help="The same run, whose rules look at the original curve. Then no average touches the training, and "
                "replays are exact in both senses: for the weights that were trained, and for those that would have "
                "been.",
            )
    every = recorded.trajectory.every
    if every > 1:
        loss = recorded.loss.column
        exact, own = recorded.measured("ema"), recorded.curve(to_code(recorded.run.config.schedule))
        st.info(curves.thinning_in_words(exact["epoch"], exact[loss], own[loss], every), icon=":material/info:")
    if recorded.epochs < recorded.trained and not recorded.training:
        st.warning(
            f"The recording ends after epoch {recorded.epochs} of {recorded.trained}: "
            f"{escaped(recorded.run.note or 'the disk may have been full')}.",
            icon=":material/warning:",
        )
    if recorded.run.stopped == "diverged":
        st.warning(
            f"This run diverged in epoch {recorded.trained}: from there on, no average has a finite loss either.",
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


def metric_columns(recorded: Recorded | OpenedRun, unit: str = "epoch") -> dict[str, Any]:
    """The titles of the columns of :func:`emacore.replay.curves.curve_figures`, of epochs or another unit."""
    number = st.column_config.NumberColumn
    titles: dict[str, Any] = {
        "final": number("final loss"),
        "best": number("best loss"),
        "best_epoch": f"at {unit}",
        "steadiness": number("std. dev."),
        "ahead_since": number(f"below the original since {unit}"),
        "ahead_for": number(f"{unit}s below at the end"),
    }
    for metric in recorded.metrics[1:]:
        for which in ("final", "best"):
            titles[f"{which}_{metric.column}"] = number(f"{which} {metric.name}")
    return titles
