"""Low-pass filter: what an average does to a sequence, as a picture, as a spectrum, and as numbers."""

import numpy as np
import pandas as pd
import streamlit as st

from emacore.averaging import filters, measurements, views
from emacore.averaging.code import to_code
from emacore.averaging.signals import Sequence
from emacore.averaging.views import CORRECTED, DELAY, FILTERS, FIRST, NOISE, SCHEDULE, ZERO
from emacore.charts.lines import lines
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL, palette
from emacore.widgets.page import BOUND, presets, reset_button, show_chart, show_table, through_app
from emacore.widgets.schedules import beta_slider, schedule_controls
from emacore.widgets.signals import SIGNAL_DEFAULTS, sequence_controls

DEFAULTS = {**SIGNAL_DEFAULTS, "f_decay": 0.98, "filters": [FIRST]}
PRESETS = {
    "Step in noise": ("A jump: how much calmer, how much later?", {}),
    "Convergence": (
        "A sequence with a limit: its average has the same limit.",
        {"signal": "converging", "level": 0.2, "filters": [FIRST, ZERO]},
    ),
    "Start and bias correction": (
        "A constant: from zero the average is too small at first; dividing by 1 - beta^t mends it.",
        {"signal": "constant", "length_f": 300, "filters": [ZERO, CORRECTED]},
    ),
    "The expansion's weights": (
        "One spike of noise after another comes out as (1 - beta) beta^age.",
        {"signal": "constant", "noise": "spikes", "length_f": 400, "f_decay": 0.95},
    ),
    "Chirp": (
        "A rising frequency: the filter lets the slow part through.",
        {"signal": "chirp", "level": 0.1, "f_decay": 0.95},
    ),
    "Against a moving average": (
        "At equal delay the moving average reacts by a line, the EMA by a curve.",
        {"filters": [FIRST, DELAY], "level": 0.2},
    ),
    "SGD-like noise": (
        "Noise that remembers, as the iterates of SGD do: an average of the same length removes less of it.",
        {"signal": "converging", "noise": "AR(1)", "rho": 0.95, "filters": [FIRST, NOISE]},
    ),
}


def long(table: views.Table, name: str, value: str) -> pd.DataFrame:
    """A line for each column but the first."""
    return pd.DataFrame(table).melt(next(iter(table)), var_name=name, value_name=value)


through_app()
st.title("Low-pass filter")
st.markdown(
    "An exponential moving average lets slow changes of a sequence through and takes fast ones out. The larger the "
    "decay, the lower its cut-off frequency, the calmer its output, and the later it answers."
)
presets(PRESETS, DEFAULTS)
controls, charts = st.columns([1, 2.3], gap="medium")


with controls:
    (clean, noisy), is_own, rho, period = sequence_controls()
    beta = beta_slider(
        "Decay (beta)", "f_decay", DEFAULTS["f_decay"], help="Of the averages; the slider is even in log(1 - beta)."
    )
    st.caption(
        f"Half-life {filters.half_life(beta):,.4g} steps; like a moving average of "
        f"{filters.equivalent_window(beta):,.4g} steps"
    )
    chosen = st.pills(
        "Filters",
        FILTERS,
        selection_mode="multi",
        default=[FIRST],
        key="filters",
        wrap=True,
        help="Which averages to draw. *The schedule* is the one of the Decay schedule page.",
        **BOUND,
    )
    schedule = None
    if SCHEDULE in chosen:
        with st.expander("The schedule", expanded=True):
            schedule = schedule_controls()
    reset_button(DEFAULTS)

steps = len(noisy)
windows = views.equal_windows(beta, rho)
shown = views.shown_windows(chosen, windows)
clean_part = {} if is_own else {"clean part": clean}

colours = {
    "sequence": ORIGINAL,
    **dict.fromkeys(clean_part, CLEAN),
    **palette(chosen, {chosen[0]: AVERAGED} if chosen else {}),
}
answers = {name: views.filtered(noisy, name, beta, windows, schedule) for name in chosen}
with charts:
    wide = pd.DataFrame({"step": np.arange(steps), "sequence": noisy, **clean_part, **answers})
    show_chart(
        lines(
            wide.melt("step", var_name="line", value_name="value"),
            x="step",
            y="value",
            series="line",
            colours=colours,
            x_title="step",
            y_title="value (its own unit)" if is_own else "value",
            faint=["sequence"],
            height=420,
        ),
        alt_text=f"A noisy sequence of {steps:,} steps (orange) and its averages: {', '.join(chosen) or 'none chosen'}",
        table=wide,
        name="smoothed",
    )
    for name, size in shown.items():
        same = rho == 0 and len(shown) == 2 and name == NOISE
        st.caption(
            f"{name[0].upper()}{name[1:]}: a window of {size:,} steps"
            + ("; for white noise the two are one and the same." if same else ".")
        )
    if schedule is not None:
        st.caption(f"The schedule: `{to_code(schedule)}`, in the orange sequence's steps.")

cutoff = filters.cutoff_frequency(beta)
left, right = st.columns(2, gap="medium")
with left:
    st.subheader("Gain over frequency")
    gains = long(views.gain_table(beta, shown), "filter", "gain")
    show_chart(
        lines(
            gains,
            x="frequency",
            y="gain",
            series="filter",
            colours={name: colours.get(name, AVERAGED) for name in ("EMA", *shown)},
            x_title="frequency (cycles per step)",
            y_title="gain (amplitude out / in)",
            x_scale="log",
            x_rules={} if cutoff is None else {"cut-off, -3 dB": cutoff},
        ),
        alt_text=f"Gain of the average over frequency, cut-off at {cutoff} cycles per step",
        table=gains,
        name="gain",
    )
    if cutoff is None:
        st.caption("No cut-off: below beta = 0.1716 every frequency keeps more than half its power.")
with right:
    st.subheader("Spectrum before and after")
    averaged = next((answers[name] for name in (FIRST, *answers) if name in answers), None)
    if averaged is None:
        averaged = views.filtered(noisy, FIRST, beta, windows)
    if steps < 32:
        st.info("A spectrum needs at least 32 steps.", icon=":material/info:")
    else:
        spectrum = long(views.spectrum_table(noisy, averaged), "line", "density")
        show_chart(
            lines(
                spectrum,
                x="frequency",
                y="density",
                series="line",
                colours={"sequence": ORIGINAL, "average": AVERAGED},
                x_title="frequency (cycles per step)",
                y_title="power density (value^2 per cycle/step)",
                x_scale="log",
                y_scale="log",
                x_rules={} if cutoff is None else {"cut-off": cutoff},
            ),
            alt_text="Measured power spectra of the sequence (orange) and of its average (blue), by Welch's method",
            table=spectrum,
            name="spectra",
        )

left, right = st.columns(2, gap="medium")
with left:
    st.subheader("Step response and lag")
    answer = long(views.step_table(beta, shown), "filter", "answer")
    show_chart(
        lines(
            answer,
            x="steps",
            y="answer",
            series="filter",
            colours={name: colours.get(name, AVERAGED) for name in ("EMA", *shown)},
            x_title="steps since the jump",
            y_title="answer (share of the jump)",
            x_rules={"half-life": filters.half_life(beta), "mean age": float(filters.group_delay(beta)) + 1},
        ),
        alt_text=f"Answer of the average to a jump: half of it after {filters.half_life(beta):.4g} steps",
        table=answer,
        name="step_response",
    )
with right:
    st.subheader("What a value of each age weighs")
    weight = long(views.age_table(beta, shown), "filter", "weight")
    show_chart(
        lines(
            weight,
            x="age",
            y="weight",
            series="filter",
            colours={name: colours.get(name, AVERAGED) for name in ("EMA", *shown)},
            x_title="age (steps)",
            y_title="weight in the average",
        ),
        alt_text="Weight of a value over its age: (1 - beta) beta^age",
        table=weight,
        name="expansion",
    )

if not is_own:
    st.subheader("Predicted and measured")
    comparison = pd.DataFrame(measurements.comparison(Sequence(clean, noisy), beta, autocorrelation=rho, period=period))
    show_table(
        comparison,
        name="predicted_and_measured",
        column_config={
            "predicted": st.column_config.NumberColumn(format="%.6g"),
            "measured": st.column_config.NumberColumn(format="%.6g"),
        },
    )
    st.caption("Measured in this sequence: one seed. Predicted by the formulas of a one-pole filter.")
