"""The controls of a synthetic sequence, which the Low-pass filter page smooths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import streamlit as st

from emacore.averaging.signals import NOISES, SIGNALS, Sequence, sequence
from emacore.widgets.page import BOUND

#: A longer sequence has no handles: it is drawn anew once a value is typed.
HANDLED_STEPS = 3000
SIGNAL_DEFAULTS: dict[str, Any] = {
    "signal": "step",
    "noise": "white",
    "level": 0.3,
    "period": 200,
    "rho": 0.9,
    "length_f": 1000,
    "seed_f": 0,
}


class Chosen(NamedTuple):
    """A sequence, and what is known of it.

    Attributes:
        autocorrelation: That of its noise from one step to the next.
        period: Steps per cycle of a sine; ``None`` for other signals.
        made: The arguments of :func:`emacore.averaging.signals.sequence` that made it.
    """

    sequence: Sequence
    autocorrelation: float
    period: int | None
    made: Mapping[str, Any]

    def moved(self, key: str, value: float) -> Chosen:
        """The sequence with another value of the control with this key."""
        arguments = {**self.made, _ARGUMENTS[key]: value}
        rho = value if key == "rho" else self.autocorrelation
        return self._replace(sequence=sequence(**arguments), autocorrelation=rho, made=arguments)


#: The arguments of a sequence that handles move, by the keys of their controls.
_ARGUMENTS = {"level": "noise_level", "rho": "autocorrelation", "period": "period"}
#: Their names, and their handles' marks.
MOVED: dict[str, tuple[str, tuple[float, ...]]] = {
    "level": ("noise level", tuple(round(0.05 * k, 2) for k in range(41))),
    "rho": ("autocorrelation", tuple(round(0.05 * k, 2) for k in range(-18, 20))),
    "period": ("period (steps)", (4, 5, 7, 10, 14, 20, 30, 40, 50, 70, 100, 140, 200, 300, 400, 500, 700, 1000)),
}


def synthetic_controls() -> Chosen:
    """The controls of the signal, the noise and the length, and the sequence they make."""
    signal = st.selectbox(
        "Signal",
        SIGNALS,
        SIGNALS.index("step"),
        key="signal",
        help="The part without noise. A step or a ramp shows how late an average comes, a sine how much smaller.",
        **BOUND,
    )
    noise = st.selectbox(
        "Noise",
        NOISES,
        NOISES.index("white"),
        key="noise",
        help="What hides it. White noise is new at each step; AR(1) lasts, and an average removes less of it; spikes "
        "are rare and large.",
        **BOUND,
    )
    left, right = st.columns(2)
    with left:
        level = st.number_input(
            "Noise level",
            0.0,
            2.0,
            SIGNAL_DEFAULTS["level"],
            0.05,
            key="level",
            format="%.6g",
            help="Standard deviation of the noise: larger hides the clean part.",
            **BOUND,
        )
    with right:
        if noise == "AR(1)":
            st.number_input(
                "Autocorrelation",
                -0.9,
                0.99,
                SIGNAL_DEFAULTS["rho"],
                0.01,
                key="rho",
                format="%.6g",
                help="How much of the noise lasts from one step to the next: the nearer to 1, the less an average "
                "removes.",
                **BOUND,
            )
    with left:
        if signal in ("sine", "chirp"):
            st.number_input(
                "Period (steps)",
                4,
                1000,
                SIGNAL_DEFAULTS["period"],
                key="period",
                help="Steps per cycle (of a chirp, at its start): shorter cycles come out smaller.",
                **BOUND,
            )
        length = st.number_input(
            "Length",
            20,
            50_000,
            SIGNAL_DEFAULTS["length_f"],
            key="length_f",
            help=f"Steps, 20 to 50,000. A longer sequence shows longer memories; beyond {HANDLED_STEPS:,} there are no "
            "handles, and it is drawn anew when a value is typed.",
            **BOUND,
        )
    with right:
        seed = st.number_input(
            "Seed",
            0,
            10**6,
            SIGNAL_DEFAULTS["seed_f"],
            key="seed_f",
            help="Draws other noise of the same kind: what stays is the filter's doing.",
            **BOUND,
        )
    arguments = {
        "signal": signal,
        "noise": noise,
        "length": length,
        "seed": seed,
        "noise_level": level,
        "period": st.session_state.get("period", SIGNAL_DEFAULTS["period"]),
        "autocorrelation": st.session_state.get("rho", SIGNAL_DEFAULTS["rho"]),
    }
    return Chosen(
        sequence(**arguments),
        arguments["autocorrelation"] if noise == "AR(1)" else 0.0,
        arguments["period"] if signal == "sine" else None,
        arguments,
    )
