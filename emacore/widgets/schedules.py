"""The controls of a schedule, of a run's length, and of the pinned curves.

Controls have the same keys on every page, so a schedule that is set on one is set on all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import streamlit as st

from emacore.averaging.filters import half_life
from emacore.averaging.schedules import BETA, FAMILIES, TIMING, Control, Schedule, schedule_from_dict
from emacore.formatting import counted, decay
from emacore.limits import PINS
from emacore.widgets.page import BOUND, escaped, number_text, reset_button, stop_with

T = TypeVar("T")


#: The key of the folded settings that are rarely used.
MORE = "more_settings"
#: The label of the family that is shown first.
FIRST = FAMILIES["InversePower"].label
#: Steps of the longest run that the Decay schedule page shows.
MOST_STEPS = 1_000_000
RUN_LENGTH_DEFAULTS: dict[str, Any] = {"length": "Steps", "steps": 5000, "rows": 1600, "batch": 32, "epochs": 100}

#: The marks of a logarithmic slider in each power of ten.
_GRID = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)


def family_names() -> dict[str, str]:
    """The name of each family in code by its label."""
    return {family.label: name for name, family in FAMILIES.items()}


def schedule_defaults() -> dict[str, Any]:
    """The first values of all controls of schedules, by their keys: the article's settings for its family."""
    first = {control.key: control.default for family in FAMILIES.values() for control in family.controls}
    return {"family": FIRST, **first, **{control.key: control.default for control in TIMING}}


def log_slider(label: str, key: str, default: float, low: float, high: float, **arguments: Any) -> float:
    """A slider on a logarithmic scale from ``low`` to ``high``; a value between its marks, from a link or a solver, is
    kept exactly."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [float(f"{m:g}e{d}") for d in decades for m in _GRID]
    return _marked_slider(label, key, default, [m for m in marks if low <= m <= high], **arguments)


def beta_slider(
    label: str, key: str, default: float, low: float = BETA.low, high: float = BETA.high, **arguments: Any
) -> float:
    """A slider for a decay near 1: its marks are even in log(1 - beta)."""
    decades = range(math.floor(math.log10(1 - high)), 1)
    marks = [round(1 - float(f"{m:g}e{d}"), 12) for d in decades for m in _GRID]
    return _marked_slider(label, key, default, [m for m in marks if low <= m <= high], **arguments)


#: How many letters a word may have in half a column of controls.
_LONGEST_WORD = 14


def _marked_slider(
    label: str, key: str, default: float, marks: Sequence[float], *, whole: bool = False, **arguments: Any
) -> float:
    asked = (value for value in _asked_for(key, min(marks), max(marks)) if not whole or value.is_integer())
    options = sorted({*marks, default, *asked})
    value = st.select_slider(label, options, default, key=key, format_func=number_text, **{**BOUND, **arguments})
    return float(value)


def _asked_for(key: str, low: float, high: float) -> Iterator[float]:
    """The values that a link or another page asks of a control, if they are within its range."""
    for value in (st.session_state.get(key), st.query_params.get(key)):
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue
        if low <= number <= high:
            yield float(number_text(number)) if isinstance(value, str) else number


def schedule_controls(*, typed: bool = False) -> Schedule:
    """The controls of a schedule: its family and what that family says can be moved.

    It ends the page where the family refuses what they say together.

    Args:
        typed: Number inputs in place of sliders, for pages on which the chart has the handles.
    """
    families = family_names()
    known = (f"*{family.label}* is {family.known_as}" for family in FAMILIES.values() if family.known_as)
    label = st.selectbox(
        "Family",
        list(families),
        key="family",
        help=f"The rule that yields the decay of each step. {'; '.join(known)}.",
        **BOUND,
    )
    name = families[label or FIRST]
    controls = FAMILIES[name].controls
    values = _in_pairs([control for control in controls if not control.rare], typed)
    values |= _in_pairs(TIMING, typed=True)
    rare = [control for control in controls if control.rare]
    if rare:
        changed = any(_asked(control) != control.default for control in rare)
        with st.expander("More settings", expanded=changed, key=MORE, on_change="rerun"):
            values |= _in_pairs(rare, typed)
    try:
        return schedule_from_dict({"family": name, **values})
    except ValueError as error:
        stop_with(f"{label} cannot have these settings together: {error}.")


def _in_pairs(controls: Sequence[Control], typed: bool) -> dict[str, float]:
    """The values of controls by the settings' names: number inputs side by side, sliders one below the other."""
    values: dict[str, float] = {}
    free: list[Any] = []
    for control in controls:
        # A long word would be broken over half a column.
        alone = not typed or max(map(len, control.title.split())) > _LONGEST_WORD
        if not alone and not free:
            free = list(st.columns(2))
        with st.container() if alone else free.pop(0):
            values[control.name] = number_box(control) if typed else _slider(control)
    if not typed or "beta" not in values:
        return values
    told = f"half-life {counted(half_life(values['beta']), 'move')}"
    st.caption(f"1 - beta = {number_text(round(1 - values['beta'], 12))}, {told}")
    return values


def _asked(control: Control) -> float:
    """The value of a control that may not be there yet."""
    return next(_asked_for(control.key, control.low, control.high), control.default)


def number_box(control: Control) -> float:
    """A number input of a setting: any value in its range can be typed, and the arrow keys go by small steps."""
    match control.scale:
        case "log":
            step = 10.0 ** (math.floor(math.log10(control.default)) - 1)
        case "log(1 - value)":
            step = 10.0 ** (math.floor(math.log10(1 - control.default) + 1e-9) - 1)
        case _:
            step = control.step
    return st.number_input(
        control.title,
        control.low,
        control.high,
        control.default,
        max(1, round(step)) if control.whole else step,
        format="%d" if control.whole else "%.7g",
        key=control.key,
        help=control.help,
        **BOUND,
    )


def _slider(control: Control) -> float:
    """The value of a slider on the control's scale; a count is a number input."""
    ends = control.low, control.high
    match control.scale:
        case "count":
            return number_box(control)
        case "log":
            if control.whole:
                marks, told = control.marks(), control.help
                return int(_marked_slider(control.title, control.key, control.default, marks, whole=True, help=told))
            return log_slider(control.title, control.key, control.default, *ends, help=control.help)
        case "log(1 - value)":
            value = beta_slider(control.title, control.key, control.default, *ends, help=control.help)
            if control == BETA:
                st.caption(
                    f"1 - beta = {number_text(round(1 - value, 12))}, half-life {counted(half_life(value), 'move')}"
                )
            return value
    digits = 0 if control.whole else max(0, -math.floor(math.log10(control.step)))
    return st.slider(  # type: ignore[no-any-return]
        control.title,
        *ends,
        control.default,
        max(1, round(control.step)) if control.whole else control.step,
        format="%d" if control.whole else f"%.{digits}f",
        key=control.key,
        help=control.help,
        **BOUND,
    )


def pin(code: str) -> None:
    """Keep a curve beside the current one: for callbacks."""
    pins = st.session_state.get("pins", [])
    if code not in pins and len(pins) < PINS:
        st.session_state["pins"] = [*pins, code]


def pin_controls(code: str, defaults: Mapping[str, Any], parse: Callable[[str], T]) -> dict[str, T]:
    """Buttons to pin the curve and to reset, and the choice of pinned curves.

    Args:
        code: What the first button pins.
        defaults: What the second one sets, by key.
        parse: Reads the code of a pinned curve; its ``ValueError`` is told, and that curve left out.

    Returns:
        What ``parse`` returns, by the code.
    """
    with st.container(horizontal=True):
        st.button(
            "Pin this curve",
            on_click=pin,
            args=(code,),
            icon=":material/keep:",
            disabled=len(st.session_state.get("pins", [])) >= PINS,
            help="Keep it in the charts while you change the settings.",
        )
        reset_button(defaults)
    chosen = st.multiselect(
        "Pinned curves",
        [],
        key="pins",
        accept_new_options=True,
        max_selections=PINS,
        placeholder="Pin the curve, or type one: Constant(beta=0.99)",
        help=f"Up to {PINS} curves, which stay beside the current one and in the link. Any schedule can be typed as "
        "code, with the names that the controls have; where nothing is trained a window, too: Window(size=100).",
        **BOUND,
    )
    found = {}
    for text in chosen:
        try:
            found[text] = parse(text)
        except ValueError as error:
            st.warning(f"Left out: {escaped(error)}", icon=":material/warning:")
    return found


def state_of(schedule: Schedule) -> dict[str, Any]:
    """The controls' values that show ``schedule``, by key; keys it does not use have their first values.

    Raises:
        ValueError: if a value is outside its control's range.
    """
    state = {**schedule_defaults(), "family": schedule.label}
    for control in (*schedule.controls, *TIMING):
        value = state[control.key] = getattr(schedule, control.key)
        if not control.low <= value <= control.high:
            raise ValueError(
                f"{control.key} = {decay(value)} is outside the slider's range, {control.low:g} to {control.high:g}"
            )
    return state


def run_length_controls() -> int:
    """The controls of a run's length; returns its steps, and ends the page where they are too many."""
    way = st.segmented_control(
        "Run length",
        ["Steps", "Epochs"],
        default=RUN_LENGTH_DEFAULTS["length"],
        key="length",
        required=True,
        help="Give the optimiser steps of your run, or rows, batch size and epochs, of which they follow.",
        **BOUND,
    )
    if way == "Steps":
        typed: int = st.number_input(
            "Steps",
            2,
            MOST_STEPS,
            RUN_LENGTH_DEFAULTS["steps"],
            key="steps",
            help=f"Optimiser steps, at most {MOST_STEPS:,}. The longer the run, the smaller the share of it that the "
            "same warm-up takes.",
            **BOUND,
        )
        return typed
    left, middle, right = st.columns(3)
    with left:
        rows = st.number_input(
            "Rows",
            1,
            10**9,
            RUN_LENGTH_DEFAULTS["rows"],
            key="rows",
            help="Rows that an epoch goes through: twice as many are twice the steps.",
            **BOUND,
        )
    with middle:
        batch = st.number_input(
            "Batch",
            1,
            10**7,
            RUN_LENGTH_DEFAULTS["batch"],
            key="batch",
            help="Rows that a step takes: a batch of twice as many has half the steps.",
            **BOUND,
        )
    with right:
        epochs = st.number_input(
            "Epochs",
            1,
            10**6,
            RUN_LENGTH_DEFAULTS["epochs"],
            key="epochs",
            help="Passes over the rows: twice as many are twice the steps.",
            **BOUND,
        )
    if batch > rows:
        stop_with(f"A batch of {batch:,} is larger than the {counted(rows, 'row')}: at most {rows:,} is possible.")
    steps: int = -(-rows // batch) * epochs
    st.caption(f"{counted(-(-rows // batch), 'step')} an epoch, {steps:,} in all")
    if not 2 <= steps <= MOST_STEPS:
        stop_with(f"That is a run of {counted(steps, 'step')}; this page shows 2 to {MOST_STEPS:,}. Change the epochs.")
    return steps
