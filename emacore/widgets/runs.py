"""The controls of a run: data, network, optimiser, average, stopping."""

from __future__ import annotations

from typing import Any

import streamlit as st

from emacore.experiments.store import RunStore
from emacore.formatting import decay
from emacore.limits import EPOCHS, ROWS
from emacore.tasks.regression.config import DATA_KINDS, SCALED_ON, DataConfig, RunConfig
from emacore.training.config import (
    ACTIVATIONS,
    CURVES,
    OPTIMIZERS,
    RATE_RULES,
    NetworkConfig,
    OptimizerConfig,
    StoppingConfig,
)
from emacore.widgets.own_data import own_data_controls, own_data_state
from emacore.widgets.page import BOUND
from emacore.widgets.schedules import log_slider, schedule_controls, state_of

#: The least and the greatest value of each control of a number, by its key.
ENDS: dict[str, tuple[float, float]] = {
    "n_samples": (20, ROWS),
    "n_features": (1, 1000),
    "n_informative": (1, 1000),
    "noise_sd": (0.0, 1000.0),
    "data_seed": (0, 10**6),
    "test_size": (0.05, 0.9),
    "split_seed": (0, 10**6),
    "dropout": (0.0, 0.9),
    "lr": (1e-5, 10.0),
    "weight_decay": (0.0, 10.0),
    "momentum": (0.0, 0.99),
    "batch_size": (1, 100_000),
    "plateau_factor": (0.01, 0.99),
    "plateau_patience": (0, 10_000),
    "patience": (1, 100_000),
    "run_seed": (0, 10**9),
    "max_epochs": (1, EPOCHS),
}
#: What sentences call those controls whose keys are not their names.
_NAMES = {
    "n_samples": "rows",
    "n_features": "features",
    "n_informative": "informative features",
    "noise_sd": "noise in y",
    "test_size": "validation share",
    "lr": "learning rate",
    "run_seed": "seed",
    "max_epochs": "most epochs",
}


def run_state(config: RunConfig) -> dict[str, Any]:
    """The controls' values that show ``config``, by key.

    Raises:
        ValueError: if a value is outside its control's range.
    """
    data, network, optimizer, stopping = config.data, config.network, config.optimizer, config.stopping
    state = {
        "data": data.kind,
        "n_samples": data.n_samples,
        "n_features": data.n_features,
        "n_informative": data.n_informative,
        "noise_sd": float(data.noise),
        "data_seed": data.random_state,
        "test_size": float(data.test_size),
        "split_seed": data.split_random_state,
        "scaled_on": data.scaled_on,
        **own_data_state(data),
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
    }
    for key, (low, high) in ENDS.items():
        if not low <= state[key] <= high:
            name = _NAMES.get(key, key.replace("_", " "))
            raise ValueError(f"{name} = {decay(state[key])} is outside its control's range, {low:g} to {high:g}")
    return {**state, **state_of(config.schedule)}


RUN_DEFAULTS = run_state(RunConfig())


def run_controls(store: RunStore) -> RunConfig:
    """The controls of a run, in groups.

    Raises:
        ValueError: for settings that mean nothing together; the message says which.
    """
    default = RUN_DEFAULTS
    with st.expander("Data", icon=":material/dataset:", expanded=st.session_state.get("data") == "csv"):
        data = _data_controls(store)
    with st.expander("Network", icon=":material/hub:"):
        widths = st.text_input(
            "Hidden layers",
            default["widths"],
            key="widths",
            help="Units of each hidden layer, with commas. More of them fit more, and take longer; none at all is a "
            "linear model.",
            **BOUND,
        )
        dropout = st.slider(
            "Dropout",
            *ENDS["dropout"],
            default["dropout"],
            0.05,
            key="dropout",
            help="The share of hidden units that each training step leaves out. More of it makes the steps noisier, so "
            "there is more to average, and lifts the train loss above the validation loss.",
            **BOUND,
        )
        activation = st.selectbox(
            "Activation",
            ACTIVATIONS,
            key="activation",
            help="What each hidden unit makes of its weighted sum: relu cuts it off below 0, the others bend smoothly.",
            **BOUND,
        )
    with st.expander("Optimiser", icon=":material/speed:"):
        optimizer = _optimizer_controls()
    with st.expander("Average", icon=":material/ssid_chart:"):
        schedule = schedule_controls()
    with st.expander("Stopping and seed", icon=":material/flag:"):
        left, right = st.columns(2)
        max_epochs = left.number_input(
            "Most epochs",
            *ENDS["max_epochs"],
            default["max_epochs"],
            key="max_epochs",
            help="The run ends after this many passes over the training rows, if the early stop does not end it "
            "sooner. More take longer, and leave less of the start in the average.",
            **BOUND,
        )
        seed = right.number_input(
            "Seed",
            *ENDS["run_seed"],
            default["run_seed"],
            key="run_seed",
            help="Decides the first weights, the order of the batches and what dropout leaves out. Another seed is "
            "another run of the same experiment.",
            **BOUND,
        )
        curve = st.segmented_control(
            "Early stop looks at",
            ["ema", "original", "none"],
            default=default["stop_curve"],
            key="stop_curve",
            required=True,
            help="The run ends when the best epoch of this validation loss lies too far back. With ema, the average "
            "decides when the training that it is compared on ends.",
            **BOUND,
        )
        patience = default["patience"]
        if curve != "none":
            patience = st.number_input(
                "Patience (epochs)",
                *ENDS["patience"],
                default["patience"],
                key="patience",
                help="How many epochs without a new best end the run. Fewer stop it while the loss still falls slowly.",
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
        "csv is a table of your own. Features and target are standardised.",
        **BOUND,
    )
    values: dict[str, Any] = {}
    if kind in ("make_regression", "friedman1"):
        left, right = st.columns(2)
        values["n_samples"] = left.number_input(
            "Rows",
            *ENDS["n_samples"],
            default["n_samples"],
            key="n_samples",
            help="Rows in all, for training and validation. More of them make an epoch longer.",
            **BOUND,
        )
        values["n_features"] = right.number_input(
            "Features",
            5 if kind == "friedman1" else 1,
            ENDS["n_features"][1],
            default["n_features"],
            key="n_features",
            help="Columns to predict from. More of them, with as many rows, are harder to learn.",
            **BOUND,
        )
        if kind == "make_regression":
            values["n_informative"] = left.number_input(
                "Informative",
                *ENDS["n_informative"],
                default["n_informative"],
                key="n_informative",
                help="How many of the features y depends on; the others are noise to the network.",
                **BOUND,
            )
        values["random_state"] = right.number_input(
            "Data seed",
            *ENDS["data_seed"],
            default["data_seed"],
            key="data_seed",
            help="Another one makes other data by the same rule, with other losses.",
            **BOUND,
        )
        values["noise"] = st.number_input(
            "Noise in y",
            *ENDS["noise_sd"],
            default["noise_sd"],
            key="noise_sd",
            help="Standard deviation of what is added to y before it is standardised. No network gets below it, and "
            "the steps stay noisy.",
            **BOUND,
        )
    if kind == "csv":
        values |= own_data_controls(store)
    values["test_size"] = st.slider(
        "Validation share",
        *ENDS["test_size"],
        default["test_size"],
        0.05,
        key="test_size",
        help="The share of the rows on which both models are measured and which neither is trained on. A small one "
        "makes the curves uncertain.",
        **BOUND,
    )
    values["split_random_state"] = st.number_input(
        "Split seed",
        *ENDS["split_seed"],
        default["split_seed"],
        key="split_seed",
        help="Decides which rows are for validation. Another one moves all losses a little.",
        **BOUND,
    )
    values["scaled_on"] = st.segmented_control(
        "Standardised over",
        SCALED_ON,
        default=default["scaled_on"],
        key="scaled_on",
        required=True,
        help="Rows whose means and standard deviations scale features and target. With all, as the article does, the "
        "validation rows have a say in what is trained on, which flatters both models a little; train leaves them out.",
        **BOUND,
    )
    return DataConfig(kind=kind, **values)


def _optimizer_controls() -> OptimizerConfig:
    default = RUN_DEFAULTS
    values: dict[str, Any] = {}
    name = st.segmented_control(
        "Optimiser",
        OPTIMIZERS,
        default=default["optimizer"],
        key="optimizer",
        required=True,
        help="Adam scales each weight's step by its past gradients, adamw keeps weight decay out of that; sgd steps "
        "along the gradient, with momentum, and wants a larger learning rate.",
        **BOUND,
    )
    values["learning_rate"] = log_slider(
        "Learning rate",
        "lr",
        default["lr"],
        *ENDS["lr"],
        help="The length of a step. The higher it stays, the more the weights move about, and averaging gains.",
    )
    if name == "sgd":
        values["momentum"] = st.slider(
            "Momentum",
            *ENDS["momentum"],
            default["momentum"],
            0.01,
            key="momentum",
            help="The share of each step that the next one repeats. Nearer to 1 the steps are longer and smoother.",
            **BOUND,
        )
    left, right = st.columns(2)
    values["batch_size"] = left.number_input(
        "Batch size",
        *ENDS["batch_size"],
        default["batch_size"],
        key="batch_size",
        help="Rows from which each step's gradient is taken. Fewer make more steps an epoch, and noisier ones.",
        **BOUND,
    )
    values["weight_decay"] = right.number_input(
        "Weight decay",
        *ENDS["weight_decay"],
        default["weight_decay"],
        1e-5,
        "%.7f",
        key="weight_decay",
        help="Pulls all weights towards 0, the more the larger it is.",
        **BOUND,
    )
    values["rate_rule"] = st.segmented_control(
        "Learning rate over time",
        RATE_RULES,
        default=default["rate_rule"],
        key="rate_rule",
        required=True,
        help="plateau: lowered where a validation loss no longer falls; cosine: to 0 over the most epochs; constant: "
        "as it is. Averaging and lowering the rate do much the same, so averaging gains most at a constant one.",
        **BOUND,
    )
    if values["rate_rule"] == "plateau":
        left, right = st.columns(2)
        values["plateau_factor"] = left.number_input(
            "Factor",
            *ENDS["plateau_factor"],
            default["plateau_factor"],
            key="plateau_factor",
            help="What a plateau multiplies the learning rate with. Smaller lowers it faster, and leaves the average "
            "less to do.",
            **BOUND,
        )
        values["plateau_patience"] = right.number_input(
            "Patience",
            *ENDS["plateau_patience"],
            default["plateau_patience"],
            key="plateau_patience",
            help="So many epochs in a row may bring no improvement of 0.01 %; one more, and the rate is lowered. Fewer "
            "lower it sooner, and more often by chance.",
            **BOUND,
        )
        values["plateau_curve"] = st.segmented_control(
            "Plateau of",
            CURVES,
            default=default["plateau_curve"],
            key="plateau_curve",
            required=True,
            help="The validation loss whose plateaus lower the rate. With ema, the average steers the training.",
            **BOUND,
        )
    return OptimizerConfig(name=name, **values)
