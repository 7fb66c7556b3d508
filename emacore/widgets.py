"""Controls that several pages share; the only module of emacore that imports streamlit.

Every control is bound to the URL and outlives a page change; both come with Streamlit.  A schedule has the same keys on
every page, so what is set on one is set on all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

import numpy as np
import pandas as pd
import streamlit as st
from streamlit.runtime.pages_manager import PagesManager

from emacore.averaging import schedules
from emacore.averaging.filters import half_life
from emacore.averaging.schedules import Schedule
from emacore.charts.figure import Figure
from emacore.experiments.jobs import JobQueue
from emacore.experiments.store import RunStore, StoreError, default_folder
from emacore.tables import MAX_BYTES, finite_values, numeric_columns, read_csv
from emacore.training.config import (
    ACTIVATIONS,
    CURVES,
    DATA_KINDS,
    OPTIMIZERS,
    RATE_RULES,
    DataConfig,
    NetworkConfig,
    OptimizerConfig,
    RunConfig,
    StoppingConfig,
)

#: Arguments of every control.
BOUND: dict[str, Any] = {"bind": "query-params", "persist_state": "session"}

T = TypeVar("T")
Table = pd.DataFrame | Callable[[], pd.DataFrame]

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


def through_app() -> None:
    """First line of every page: run it through app.py if it is not.

    Until app.py has called ``st.navigation`` once, a server takes pages/ for the older kind of multipage app, so a link
    to a page that is a new server's first request would be run on its own.
    """
    if "navigated" not in st.session_state:
        PagesManager.uses_pages_directory = False  # what st.navigation does
        st.rerun()


def number_text(value: float) -> str:
    """A number as a label and as it stands in the URL: all digits that matter, none that do not."""
    return f"{value:.12g}"


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
            help="Exponent of the warm-up 1 - (1 + e / inv_gamma)^-power. 1 is the plain mean, 2/3 and 3/4 are the "
            "article's; smaller forgets faster.",
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
            help="Standard deviation of the weights in time, as a share of the run (EDM2's sigma_rel).",
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
        help="Up to five, kept in the link. Any schedule can be typed as code, with the names the sliders have.",
        **BOUND,
    )
    found = {}
    for text in chosen:
        try:
            found[text] = parse(text)
        except ValueError as error:
            st.warning(f"Left out: {error}", icon=":material/warning:")
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


def put(state: Mapping[str, Any]) -> None:
    """Set controls by key: for callbacks of buttons."""
    for key, value in state.items():
        st.session_state[key] = value


def query_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same as query parameters, for a link to another page."""

    def text(value: Any) -> Any:
        if isinstance(value, bool):
            return str(value).lower()
        return number_text(value) if isinstance(value, float) else value if isinstance(value, list) else str(value)

    return {key: text(value) for key, value in state.items()}


def show_chart(figure: Figure, *, alt_text: str, table: Table, name: str) -> None:
    """A chart, and below it its whole table (nothing thinned) as CSV."""
    st.vega_lite_chart(figure.data, figure.spec, alt=alt_text, width="stretch")
    csv_button(table, name)


def show_table(table: pd.DataFrame, *, name: str, **arguments: Any) -> None:
    """A table, and below it the same as CSV with all digits."""
    st.dataframe(table, hide_index=True, width="stretch", **arguments)
    csv_button(table, name)


def csv_button(table: Table, name: str) -> None:
    """A download of ``table`` (or of what it returns, when asked) as ``name``.csv; pandas reads it back unchanged."""

    def content() -> bytes:
        return (table if isinstance(table, pd.DataFrame) else table()).to_csv(index=False).encode()

    st.download_button(
        f"{name}.csv",
        data=content,
        file_name=f"{name}.csv",
        mime="text/csv",
        key=f"download-{name}",
        icon=":material/download:",
        type="tertiary",
        on_click="ignore",
    )


def steps_axis(num_steps: int, schedule: Schedule) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The calls of a run that are not skipped."""
    return np.arange(0, num_steps, schedule.update_every)


@st.cache_resource(show_spinner=False)
def job_queue() -> JobQueue:
    """The server's queue of runs.

    Raises:
        StoreError: if the run store cannot be opened.
    """
    return JobQueue(RunStore(default_folder()))


@contextmanager
def told() -> Iterator[None]:
    """Show what is wrong with the store in a sentence, and end the page there."""
    try:
        yield
    except StoreError as error:
        stop_with(str(error))


def sentence(error: Exception) -> str:
    """An error's message as a sentence; it keeps its small letter where it begins with the name of a setting."""
    text = str(error).rstrip(".") + "."
    return text if {".", "_"} & set(text.split()[0][:-1]) else text[0].upper() + text[1:]


def stop_with(message: str) -> NoReturn:
    """Show an error and end the page there."""
    st.error(message, icon=":material/error:")
    st.stop()


def reset_button(state: Mapping[str, Any], label: str = "Reset", **arguments: Any) -> None:
    """A button that brings the article's settings back."""
    st.button(
        label,
        on_click=put,
        args=(dict(state),),
        icon=":material/restart_alt:",
        help="Bring the article's settings back",
        **arguments,
    )


def presets(choices: Mapping[str, tuple[str, Mapping[str, Any]]], defaults: Mapping[str, Any]) -> None:
    """Presets in a row: by name, what each shows and the settings in which it differs from ``defaults``.

    Each sets every control, and with them the link.
    """
    with st.container(horizontal=True):
        for name, (explanation, changes) in choices.items():
            st.button(name, help=explanation, on_click=put, args=({**defaults, **changes},), key=f"preset-{name}")


def run_state(config: RunConfig) -> dict[str, Any]:
    """The controls' values that show ``config``, by key.

    Raises:
        ValueError: if a value is outside its control's range.
    """
    data, network, optimizer, stopping = config.data, config.network, config.optimizer, config.stopping
    return {
        "data": data.kind,
        "n_samples": data.n_samples,
        "n_features": data.n_features,
        "n_informative": data.n_informative,
        "noise_sd": float(data.noise),
        "data_seed": data.random_state,
        "test_size": float(data.test_size),
        "split_seed": data.split_random_state,
        "target": data.target,
        "widths": ", ".join(map(str, network.widths)),
        "dropout": float(network.dropout),
        "activation": network.activation,
        "optimizer": optimizer.name,
        "lr": float(optimizer.learning_rate),
        "weight_decay": float(optimizer.weight_decay),
        "momentum": float(optimizer.momentum),
        "batch_size": optimizer.batch_size,
        "rate_rule": optimizer.rate_rule,
        "plateau_factor": float(optimizer.plateau_factor),
        "plateau_patience": optimizer.plateau_patience,
        "plateau_curve": optimizer.plateau_curve,
        "stop_curve": stopping.curve,
        "patience": stopping.patience,
        "run_seed": config.seed,
        "max_epochs": config.max_epochs,
        **state_of(config.schedule),
    }


RUN_DEFAULTS = run_state(RunConfig())


def run_controls(store: RunStore) -> RunConfig:
    """The controls of a run, in groups.

    Raises:
        ValueError: for settings that mean nothing together; the message says which.
    """
    default = RUN_DEFAULTS
    with st.expander("Data", icon=":material/dataset:"):
        data = _data_controls(store)
    with st.expander("Network", icon=":material/hub:"):
        widths = st.text_input(
            "Hidden layers",
            default["widths"],
            key="widths",
            help="Their widths, with commas; empty for a linear model.",
            **BOUND,
        )
        dropout = st.slider(
            "Dropout",
            0.0,
            0.9,
            default["dropout"],
            0.05,
            key="dropout",
            help="Share of units switched off in training.",
            **BOUND,
        )
        activation = st.selectbox("Activation", ACTIVATIONS, key="activation", help="Of the hidden layers.", **BOUND)
    with st.expander("Optimiser", icon=":material/speed:"):
        optimizer = _optimizer_controls()
    with st.expander("Average", icon=":material/ssid_chart:"):
        schedule = schedule_controls()
    with st.expander("Stopping and seed", icon=":material/flag:"):
        left, right = st.columns(2)
        max_epochs = left.number_input(
            "Most epochs", 1, 100_000, default["max_epochs"], key="max_epochs", help="Passes over the data.", **BOUND
        )
        seed = right.number_input(
            "Seed",
            0,
            10**9,
            default["run_seed"],
            key="run_seed",
            help="Of the first weights, the batches and dropout. Another seed is another run.",
            **BOUND,
        )
        curve = st.segmented_control(
            "Early stop looks at",
            ["ema", "original", "none"],
            default=default["stop_curve"],
            key="stop_curve",
            required=True,
            help="The validation loss whose best epoch must not lie too far back.",
            **BOUND,
        )
        patience = default["patience"]
        if curve != "none":
            patience = st.number_input(
                "Patience (epochs)",
                1,
                100_000,
                default["patience"],
                key="patience",
                help="So many epochs without a new best end the run.",
                **BOUND,
            )
    return RunConfig(
        data=data,
        network=NetworkConfig(_widths(widths or ""), dropout, activation),
        optimizer=optimizer,
        schedule=schedule,
        stopping=StoppingConfig(curve, patience),
        seed=seed,
        max_epochs=max_epochs,
    )


def _widths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise ValueError(f"Hidden layers must be whole numbers such as 64, 32; got {text!r}") from error


def _data_controls(store: RunStore) -> DataConfig:
    default = RUN_DEFAULTS
    kind = st.selectbox(
        "Data set",
        DATA_KINDS,
        key="data",
        help="make_regression is the article's (linear), friedman1 is not linear, diabetes is real (442 patients), "
        "csv is a table of your own.",
        **BOUND,
    )
    values: dict[str, Any] = {}
    if kind in ("make_regression", "friedman1"):
        left, right = st.columns(2)
        values["n_samples"] = left.number_input(
            "Rows", 20, 200_000, default["n_samples"], key="n_samples", help="Training and validation.", **BOUND
        )
        values["n_features"] = right.number_input(
            "Features",
            5 if kind == "friedman1" else 1,
            1000,
            default["n_features"],
            key="n_features",
            help="Columns to predict from.",
            **BOUND,
        )
        if kind == "make_regression":
            values["n_informative"] = left.number_input(
                "Informative",
                1,
                1000,
                default["n_informative"],
                key="n_informative",
                help="Features that matter.",
                **BOUND,
            )
        values["random_state"] = right.number_input(
            "Data seed", 0, 10**6, default["data_seed"], key="data_seed", help="Of the made data.", **BOUND
        )
        values["noise"] = st.number_input(
            "Noise in y",
            0.0,
            1000.0,
            default["noise_sd"],
            key="noise_sd",
            help="Standard deviation, before y is standardised.",
            **BOUND,
        )
    if kind == "csv":
        values |= _own_data(store)
    values["test_size"] = st.slider(
        "Validation share",
        0.05,
        0.9,
        default["test_size"],
        0.05,
        key="test_size",
        help="Share of the rows that are not trained on.",
        **BOUND,
    )
    values["split_random_state"] = st.number_input(
        "Split seed", 0, 10**6, default["split_seed"], key="split_seed", help="Which rows those are.", **BOUND
    )
    return DataConfig(kind=kind, **values)


def _own_data(store: RunStore) -> dict[str, Any]:
    file = st.file_uploader(
        "CSV with a header row",
        "csv",
        key="own_data",
        help=f"UTF-8, up to {MAX_BYTES // 2**20} MB, numbers in every column used. It stays on the server, beside the "
        "runs; it is not part of the link.",
        max_upload_size=MAX_BYTES // 2**20,
    )
    if file is not None:
        content = file.getvalue()
        finite_values(table := read_csv(content), numeric_columns(table, minimum=2), minimum_rows=4)
        st.session_state["own_data_path"] = str(store.add_table(content))
    path = st.session_state.get("own_data_path")
    if path is None:
        raise ValueError("Choose a CSV file first (under Data), or another data set")
    columns = numeric_columns(read_csv(path), minimum=2)
    if st.session_state.get("target") not in columns:
        st.session_state["target"] = columns[-1]
    target = st.selectbox(
        "Column to predict", columns, key="target", help="All other columns of numbers predict it.", **BOUND
    )
    return {"path": path, "target": target}


def _optimizer_controls() -> OptimizerConfig:
    default = RUN_DEFAULTS
    values: dict[str, Any] = {}
    name = st.segmented_control(
        "Optimiser",
        OPTIMIZERS,
        default=default["optimizer"],
        key="optimizer",
        required=True,
        help="SGD with momentum.",
        **BOUND,
    )
    values["learning_rate"] = log_slider(
        "Learning rate", "lr", default["lr"], 1e-5, 10.0, help="Averaging matters most where it stays high."
    )
    if name == "sgd":
        values["momentum"] = st.slider(
            "Momentum", 0.0, 0.99, default["momentum"], 0.01, key="momentum", help="Of SGD.", **BOUND
        )
    left, right = st.columns(2)
    values["batch_size"] = left.number_input(
        "Batch size", 1, 100_000, default["batch_size"], key="batch_size", help="Rows a step.", **BOUND
    )
    values["weight_decay"] = right.number_input(
        "Weight decay",
        0.0,
        10.0,
        default["weight_decay"],
        1e-5,
        "%.2e",
        key="weight_decay",
        help="Of the optimiser.",
        **BOUND,
    )
    values["rate_rule"] = st.segmented_control(
        "Learning rate over time",
        RATE_RULES,
        default=default["rate_rule"],
        key="rate_rule",
        required=True,
        help="plateau: lowered where a validation loss no longer falls; cosine: to 0 over the most epochs.",
        **BOUND,
    )
    if values["rate_rule"] == "plateau":
        left, right = st.columns(2)
        values["plateau_factor"] = left.number_input(
            "Factor", 0.01, 0.99, default["plateau_factor"], key="plateau_factor", help="It is multiplied by.", **BOUND
        )
        values["plateau_patience"] = right.number_input(
            "Patience",
            0,
            10_000,
            default["plateau_patience"],
            key="plateau_patience",
            help="Epochs without improvement before that.",
            **BOUND,
        )
        values["plateau_curve"] = st.segmented_control(
            "Plateau of",
            CURVES,
            default=default["plateau_curve"],
            key="plateau_curve",
            required=True,
            help="Which validation loss it looks at. With the average's, the average steers the training.",
            **BOUND,
        )
    return OptimizerConfig(name=name, **values)
