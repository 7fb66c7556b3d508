"""The controls of a sequence to smooth: made here, or a column of a table."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import streamlit as st

from emacore import tables
from emacore.averaging.signals import NOISES, SIGNALS, Sequence, sequence
from emacore.widgets.page import BOUND, stop_with

SIGNAL_DEFAULTS: dict[str, Any] = {
    "signal": "step",
    "noise": "white",
    "level": 0.3,
    "period": 200,
    "rho": 0.9,
    "length_f": 1000,
    "seed_f": 0,
    "source": "Synthetic",
}
MOST_ROWS = 100_000


class Chosen(NamedTuple):
    """A sequence, and what is known of it.

    ``autocorrelation`` is that of its noise from one step to the next, ``period`` (steps) that of a sine.
    """

    sequence: Sequence
    is_own: bool
    autocorrelation: float = 0.0
    period: int | None = None


def sequence_controls() -> Chosen:
    """The controls of a sequence; the page ends where there is none yet."""
    source = st.segmented_control(
        "Sequence",
        ["Synthetic", "Own CSV"],
        default="Synthetic",
        key="source",
        required=True,
        help="Made here, or a column of your own table.",
        **BOUND,
    )
    return _synthetic() if source == "Synthetic" else _own_table()


def _synthetic() -> Chosen:
    signal = st.selectbox("Signal", SIGNALS, SIGNALS.index("step"), key="signal", help="The clean part.", **BOUND)
    noise = st.selectbox("Noise", NOISES, NOISES.index("white"), key="noise", help="What is added to it.", **BOUND)
    level = st.slider(
        "Noise level", 0.0, 2.0, SIGNAL_DEFAULTS["level"], 0.05, key="level", help="Its standard deviation.", **BOUND
    )
    if noise == "AR(1)":
        st.slider(
            "Autocorrelation",
            -0.9,
            0.99,
            SIGNAL_DEFAULTS["rho"],
            0.01,
            key="rho",
            help="From one step to the next.",
            **BOUND,
        )
    if signal in ("sine", "chirp"):
        st.slider("Period (steps)", 4, 1000, SIGNAL_DEFAULTS["period"], key="period", help="Steps per cycle.", **BOUND)
    left, right = st.columns(2)
    with left:
        length = st.number_input(
            "Length", 20, 50_000, SIGNAL_DEFAULTS["length_f"], key="length_f", help="Steps, 20 to 50,000.", **BOUND
        )
    with right:
        seed = st.number_input("Seed", 0, 10**6, SIGNAL_DEFAULTS["seed_f"], key="seed_f", help="Of the noise.", **BOUND)
    made = sequence(
        signal,
        noise,
        length,
        seed,
        noise_level=level,
        period=st.session_state.get("period", SIGNAL_DEFAULTS["period"]),
        autocorrelation=st.session_state.get("rho", SIGNAL_DEFAULTS["rho"]),
    )
    return Chosen(
        made,
        False,
        st.session_state.get("rho", SIGNAL_DEFAULTS["rho"]) if noise == "AR(1)" else 0.0,
        st.session_state.get("period", SIGNAL_DEFAULTS["period"]) if signal == "sine" else None,
    )


def _own_table() -> Chosen:
    file = st.file_uploader(
        "CSV with a header row",
        "csv",
        key="own",
        help=f"UTF-8, up to {tables.MAX_BYTES // 2**20} MB. A file is not part of the link.",
        max_upload_size=tables.MAX_BYTES // 2**20,
    )
    if file is None:
        st.info("Choose a file, such as a training log: one of its columns is smoothed.", icon=":material/upload:")
        st.stop()
    try:
        table = tables.read_csv(file.getvalue())
        column = st.selectbox(
            "Column", tables.numeric_columns(table), key="column", help="The sequence to smooth.", **BOUND
        )
        values = tables.finite_values(table, [column])[:, 0]
    except tables.TableError as error:
        stop_with(str(error))
    if len(values) > MOST_ROWS:
        stop_with(f"The column has {len(values):,} rows; this page smooths at most {MOST_ROWS:,}. Shorten the file.")
    return Chosen(Sequence(clean=np.full(len(values), np.nan), noisy=values), True)
