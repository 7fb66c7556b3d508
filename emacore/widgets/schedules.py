"""The controls of a schedule and the pinned curves.

A schedule has the same keys on every page, so what is set on one is set on all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import streamlit as st

from emacore.averaging import schedules
from emacore.averaging.filters import half_life
from emacore.averaging.schedules import Schedule
from emacore.averaging.windows import Scheme
from emacore.widgets.page import BOUND, escaped, number_text, reset_button

T = TypeVar("T")


FAMILIES = {
    "Inverse power": "InversePower",
    "Constant": "Constant",
    "Bias-corrected": "BiasCorrected",
    "Rational warm-up": "RationalWarmup",
    "Exponential ramp": "ExponentialRamp",
    "Power function": "PowerFunction",
    "Running mean": "UniformAverage",
}


#: The article's settings, by the key of the control.
SCHEDULE_DEFAULTS: dict[str, Any] = {
    "family": "Inverse power",
    "power": 2 / 3,
    "inv_gamma": 1.0,
    "beta": 0.999,
    "min_value": 0.0,
    "tau": 2000.0,
    "width": 0.1,
    "update_after_step": 100,
    "update_every": 1,
}


MOST_PINS = 5


_GRID = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)


_RANGES = {"power": (0.05, 3.0), "min_value": (0.0, 0.999), "width": (0.005, 0.288)}


def log_slider(label: str, key: str, default: float, low: float, high: float, **arguments: Any) -> float:
    """A slider on a logarithmic scale from ``low`` to ``high``; a value between its marks, from a link or a solver, is
    kept exactly."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [float(f"{m:g}e{d}") for d in decades for m in _GRID]
    return _marked_slider(label, key, default, [m for m in marks if low <= m <= high], **arguments)


def beta_slider(label: str, key: str, default: float, **arguments: Any) -> float:
    """A slider for a decay near 1: its marks are even in log(1 - beta)."""
    marks = [round(1 - float(f"{m:g}e{d}"), 12) for d in range(-6, 0) for m in _GRID]
    return _marked_slider(label, key, default, [m for m in marks if m >= 0.2], **arguments)


def _marked_slider(label: str, key: str, default: float, marks: Sequence[float], **arguments: Any) -> float:
    options = sorted({*marks, default, *_asked_for(key, min(marks), max(marks))})
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


def schedule_controls() -> Schedule:
    """The controls of a schedule."""
    defaults = SCHEDULE_DEFAULTS
    label = st.selectbox(
        "Family",
        list(FAMILIES),
        key="family",
        help="The rule that yields the decay of each step. *Inverse power* is the article's; *Rational warm-up* is "
        "TensorFlow's and torch_ema's; *Exponential ramp* the YOLO models'; *Power function* EDM2's; *Running mean*, "
        "with a late start, is SWA.",
        **BOUND,
    )
    family = FAMILIES[label or defaults["family"]]
    values: dict[str, Any] = {}
    if family == "InversePower":
        values["power"] = st.slider(
            "power",
            *_RANGES["power"],
            defaults["power"],
            0.01,
            key="power",
            help="Exponent of the warm-up 1 - (1 + e / inv_gamma)^-power. Only with inv_gamma 1 and update_every 1 is "
            "1 the plain mean (of which the first step is two parts). 2/3 and 3/4 are the article's; smaller forgets "
            "faster.",
            **BOUND,
        )
        values["inv_gamma"] = log_slider(
            "inv_gamma (steps)",
            "inv_gamma",
            defaults["inv_gamma"],
            0.01,
            1e4,
            help="How many steps the warm-up takes before it bends. Larger keeps the decay low for longer.",
        )
    if family == "ExponentialRamp":
        values["tau"] = log_slider(
            "tau (moves)", "tau", defaults["tau"], 10.0, 1e6, help="Moves in which 63 % of beta are reached."
        )
    if family == "PowerFunction":
        values["sigma_rel"] = st.slider(
            "Relative width",
            *_RANGES["width"],
            defaults["width"],
            0.001,
            format="%.3f",
            key="width",
            help="Standard deviation of the weights in time, as a share of the steps since update_after_step (EDM2's "
            "sigma_rel). Smaller follows the run more closely.",
            **BOUND,
        )
    if family in ("InversePower", "Constant", "BiasCorrected", "RationalWarmup", "ExponentialRamp"):
        beta = values["beta"] = beta_slider(
            "beta", "beta", defaults["beta"], help="The largest decay. The slider is even in log(1 - beta)."
        )
        st.caption(f"1 - beta = {number_text(round(1 - beta, 12))}, half-life {half_life(beta):,.4g} moves")
    if family == "InversePower":
        values["min_value"] = st.slider(
            "min_value",
            *_RANGES["min_value"],
            defaults["min_value"],
            0.001,
            format="%.3f",
            key="min_value",
            help="The smallest decay of a move. beta wins where it is smaller.",
            **BOUND,
        )
    left, right = st.columns(2)
    with left:
        values["update_after_step"] = st.number_input(
            "update_after_step",
            0,
            10_000_000,
            defaults["update_after_step"],
            key="update_after_step",
            help="Up to this step the average is a copy of the weights.",
            **BOUND,
        )
    with right:
        values["update_every"] = st.number_input(
            "update_every",
            1,
            1_000_000,
            defaults["update_every"],
            key="update_every",
            help="Only every so many steps does the average move.",
            **BOUND,
        )
    return schedules.schedule_from_dict({"family": family, **values})


def pin(code: str) -> None:
    """Keep a curve beside the current one: for callbacks."""
    pins = st.session_state.get("pins", [])
    if code not in pins and len(pins) < MOST_PINS:
        st.session_state["pins"] = [*pins, code]


def pin_controls(code: str, defaults: Mapping[str, Any], parse: Callable[[str], T]) -> dict[str, T]:
    """Buttons to pin the curve and to reset, and the pinned curves, as ``parse`` reads them, by their code."""
    with st.container(horizontal=True):
        st.button(
            "Pin this curve",
            on_click=pin,
            args=(code,),
            icon=":material/keep:",
            disabled=len(st.session_state.get("pins", [])) >= MOST_PINS,
            help="Keep it in the charts while you change the settings.",
        )
        reset_button(defaults)
    chosen = st.multiselect(
        "Pinned curves",
        [],
        key="pins",
        accept_new_options=True,
        max_selections=MOST_PINS,
        placeholder="Pin the curve, or type one: Constant(beta=0.99)",
        help="Up to five, kept in the link. Any schedule can be typed as code, with the names the sliders have; a "
        "window, as Window(size=100), where no training is needed.",
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
    """The controls' values that show ``schedule``, by key; keys it does not use have the article's values.

    Raises:
        ValueError: if a value is outside its control's range.
    """
    label = next(label for label, name in FAMILIES.items() if name == type(schedule).__name__)
    state = {**SCHEDULE_DEFAULTS, "family": label}
    for field in fields(schedule):
        if field.name not in ("gamma", "sigma_rel"):
            state[field.name] = getattr(schedule, field.name)
    if isinstance(schedule, schedules.PowerFunction):
        state["width"] = schedule.width
    for key, (low, high) in _RANGES.items():
        if not low <= state[key] <= high:
            raise ValueError(f"{key} = {state[key]:.4g} is outside the slider's range, {low:g} to {high:g}")
    return state


def steps_axis(num_steps: int, scheme: Scheme) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The calls of a run that are not skipped; of a window all, as its start moves."""
    return np.arange(0, num_steps, scheme.update_every if isinstance(scheme, Schedule) else 1)
