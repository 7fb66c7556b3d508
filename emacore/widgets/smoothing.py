"""The pictures of the Low-pass filter page: a sequence and its averages, with handles, and four small ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from emacore.averaging import filters, views
from emacore.averaging.schedules import BETA, Schedule
from emacore.charts.lines import lines
from emacore.charts.moving import Floats, Frames, Handle, View, line_frames
from emacore.charts.thin import Scale, axis_ends
from emacore.formatting import counted
from emacore.formatting import decay as decay_text
from emacore.widgets.moving import HandledSetting, show_moving
from emacore.widgets.page import leave_if_run_anew, show_chart
from emacore.widgets.signals import HANDLED_STEPS, MOVED, Chosen

#: The key of the decay's control.
DECAY = "f_decay"
#: At most this many numbers come as frames, and each handle has at least this many marks, or there is none.
_MOST_NUMBERS = 300_000
_FEWEST_MARKS = 8
#: Steps that a spectrum needs at least.
FEWEST_STEPS = 32
_SEQUENCE, _CLEAN = "sequence", "clean part"


def answers_of(
    chosen: Chosen, names: Sequence[str], beta: float, schedule: Schedule | None = None
) -> dict[str, Floats]:
    """The sequence, its clean part, and what each filter makes of it, by their names."""
    clean, noisy = chosen.sequence
    windows = views.equal_windows(beta, chosen.autocorrelation)
    return {
        _SEQUENCE: noisy,
        _CLEAN: clean,
        **{name: views.filtered(noisy, name, beta, windows, schedule) for name in names},
    }


def show_smoothing(
    chosen: Chosen,
    names: Sequence[str],
    beta: float,
    schedule: Schedule | None,
    colours: Mapping[str, str],
    *,
    alt_text: str,
) -> Callable[[], None]:
    """The picture, with handles for the decay and what the sequence was made with; to be finished as
    :func:`emacore.widgets.moving.show_moving` says."""
    shown = answers_of(chosen, names, beta, schedule)
    steps = len(chosen.sequence.noisy)
    wide = pd.DataFrame({"step": np.arange(steps), **shown})
    low, high = axis_ends(np.concatenate(list(shown.values())), "linear")
    ends = (low - 0.05 * (high - low), high + 0.05 * (high - low)) if high > low else (low - 1, low + 1)
    view = View(
        lines(
            wide.melt("step", var_name="line", value_name="value"),
            x="step",
            y="value",
            series="line",
            colours=colours,
            x_title="step",
            y_title="value",
            faint=[_SEQUENCE],
            height=300,
        ),
        ends={"y": ends},
    )

    def frames_of(handles: Sequence[Handle]) -> list[tuple[Frames, ...]]:
        marks = tuple((handle.key, handle.values) for handle in handles)
        return [smoothing_frames(chosen, tuple(names), beta, schedule, marks, ends)]

    settings = _settings(chosen, len(shown), beta)
    if not settings:
        st.caption(f"So long a sequence (above {counted(HANDLED_STEPS, 'step')}) is drawn anew once a value is typed.")
    return show_moving("smoothing", settings, [view], frames_of, alt_text=alt_text)


def _settings(chosen: Chosen, lines_drawn: int, beta: float) -> list[HandledSetting]:
    """Handles for the decay, and for as many of the sequence's own settings as the frames have room for."""
    made, steps = chosen.made or {}, len(chosen.sequence.noisy)
    moved = {"level": made.get("noise", "none") != "none", "rho": made.get("noise") == "AR(1)"}
    moved["period"] = made.get("signal") in ("sine", "chirp")
    room = _MOST_NUMBERS // (lines_drawn * steps)
    if steps > HANDLED_STEPS or room < _FEWEST_MARKS:
        return []
    keys = [key for key, moves in moved.items() if moves][: room // _FEWEST_MARKS - 1]
    most = min(room // (1 + len(keys)), 60)
    found = [HandledSetting(DECAY, "decay (beta)", BETA.marks(most), beta, decay_text)]
    for key in keys:
        title, marks = MOVED[key]
        found.append(HandledSetting(key, title, marks[:: -(-len(marks) // most)], st.session_state[key]))
    return found


@st.cache_data(max_entries=8, show_spinner=False)
def smoothing_frames(
    chosen: Chosen,
    names: Sequence[str],
    beta: float,
    schedule: Schedule | None,
    marks: Sequence[tuple[str, tuple[float, ...]]],
    ends: tuple[float, float],
) -> tuple[Frames, ...]:
    """The frames of each line, at the marks of the handles that move it; ``ends`` are those of the y axis."""
    drawn: dict[str, dict[str, list[Floats]]] = {}
    for key, values in marks:
        leave_if_run_anew()
        at = [
            answers_of(chosen, names, value, schedule)
            if key == DECAY
            else answers_of(chosen.moved(key, value), names, beta, schedule)
            for value in values
        ]
        still = {DECAY: (_SEQUENCE, _CLEAN), "level": (_CLEAN,), "rho": (_CLEAN,)}.get(key, ())
        for name in at[0]:
            if name not in still:
                drawn.setdefault(name, {})[key] = [answer[name] for answer in at]
    across = np.arange(len(chosen.sequence.noisy), dtype=np.float64)
    return tuple(
        line_frames("step", "value", "line", name, across, moving, y_ends=ends) for name, moving in drawn.items()
    )


class Small(NamedTuple):
    """One of the four small pictures: its table, a line for each column but the first, and how to draw it."""

    title: str
    name: str
    table: pd.DataFrame
    y_title: str
    x_title: str
    rules: Mapping[str, float]
    alt_text: str
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    series: str = "filter"

    def show(self, colours: Mapping[str, str], file: str) -> None:
        """Draw it under its title, with its table as a file of this name."""
        x = self.table.columns[0]
        table = self.table.melt(x, var_name=self.series, value_name=self.name).dropna(subset=self.name)
        st.header(self.title)
        show_chart(
            lines(
                table,
                x=x,
                y=self.name,
                series=self.series,
                colours=colours,
                x_title=self.x_title,
                y_title=self.y_title,
                x_scale=self.x_scale,
                y_scale=self.y_scale,
                x_rules=self.rules,
                height=260,
            ),
            alt_text=self.alt_text,
            table=table,
            name=file,
        )


def small_pictures(noisy: Floats, averaged: Floats, beta: float, windows: Mapping[str, int]) -> dict[str, Small | None]:
    """The four small pictures by their names: two over the frequency, with the cut-off marked, and two over the time,
    with half-life and mean age marked where they are; ``None`` in place of a spectrum of too few steps.

    Args:
        windows: The sizes of the moving averages that are drawn beside the EMA, by their names.
    """
    cutoff = filters.cutoff_frequency(beta)
    frequencies = {} if cutoff is None else {"cut-off, -3 dB": cutoff}
    half_life, mean_age = filters.half_life(beta), float(filters.group_delay(beta))
    return {
        "gain": Small(
            "Gain over frequency",
            "gain",
            pd.DataFrame(views.gain_table(beta, windows)),
            "gain (amplitude out / in)",
            "frequency (cycles per step)",
            frequencies,
            f"Gain of the average over frequency, cut-off at {cutoff} cycles per step",
            x_scale="log",
        ),
        "spectra": None
        if len(noisy) < FEWEST_STEPS
        else Small(
            "Spectrum before and after",
            "density",
            pd.DataFrame(views.spectrum_table(noisy, averaged)),
            "power density (value^2 x step)",
            "frequency (cycles per step)",
            frequencies,
            "Measured power spectra of the sequence (orange) and of its average (blue), by Welch's method",
            x_scale="log",
            y_scale="log",
            series="line",
        ),
        "step_response": Small(
            "Step response and lag",
            "answer",
            pd.DataFrame(views.step_table(beta, windows)),
            "answer (share of the jump)",
            "steps since the jump",
            # Its first value is step 1: a value of age a comes in at step a + 1.
            {"half-life": half_life, "mean age": mean_age + 1},
            f"Answer of the average to a jump: half of it after {counted(half_life, 'step')}",
        ),
        "expansion": Small(
            "What a value of each age weighs",
            "weight",
            pd.DataFrame(views.age_table(beta, windows)),
            "weight in the average",
            "age (steps)",
            {"half-life": half_life, "mean age": mean_age},
            "Weight of a value over its age: (1 - beta) beta^age",
        ),
    }
