"""Low-pass filter: what an average does to a sequence, as a picture, as a spectrum, and as numbers."""

import numpy as np
import pandas as pd
import streamlit as st

from emacore import tables
from emacore.averaging import filters, measurements
from emacore.averaging.code import to_code
from emacore.averaging.families import BiasCorrected, Constant
from emacore.averaging.signals import NOISES, SIGNALS, Sequence, sequence
from emacore.averaging.weights import average, moving_average
from emacore.charts.lines import lines
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL, palette
from emacore.widgets.page import BOUND, presets, reset_button, show_chart, show_table, stop_with, through_app
from emacore.widgets.schedules import beta_slider, schedule_controls

FIRST, ZERO, CORRECTED = "EMA from the first value", "EMA from zero", "EMA, bias-corrected"
DELAY, NOISE = "moving average, equal delay", "moving average, equal noise"
SCHEDULE = "the schedule"
FILTERS = [FIRST, ZERO, CORRECTED, DELAY, NOISE, SCHEDULE]
DEFAULTS = {
    "signal": "step",
    "noise": "white",
    "level": 0.3,
    "period": 200,
    "rho": 0.9,
    "length_f": 1000,
    "seed_f": 0,
    "f_decay": 0.98,
    "filters": [FIRST],
    "source": "Synthetic",
}
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
MOST_ROWS = 100_000

through_app()
st.title("Low-pass filter")
st.markdown(
    "An exponential moving average lets slow changes of a sequence through and takes fast ones out. The larger the "
    "decay, the lower its cut-off frequency, the calmer its output, and the later it answers."
)
presets(PRESETS, DEFAULTS)
controls, charts = st.columns([1, 2.3], gap="medium")


def synthetic() -> tuple[Sequence, str]:
    signal = st.selectbox("Signal", SIGNALS, SIGNALS.index("step"), key="signal", help="The clean part.", **BOUND)
    noise = st.selectbox("Noise", NOISES, NOISES.index("white"), key="noise", help="What is added to it.", **BOUND)
    level = st.slider(
        "Noise level", 0.0, 2.0, DEFAULTS["level"], 0.05, key="level", help="Its standard deviation.", **BOUND
    )
    if noise == "AR(1)":
        st.slider(
            "Autocorrelation", -0.9, 0.99, DEFAULTS["rho"], 0.01, key="rho", help="From one step to the next.", **BOUND
        )
    if signal in ("sine", "chirp"):
        st.slider("Period (steps)", 4, 1000, DEFAULTS["period"], key="period", help="Steps per cycle.", **BOUND)
    left, right = st.columns(2)
    with left:
        length = st.number_input(
            "Length", 20, 50_000, DEFAULTS["length_f"], key="length_f", help="Steps, 20 to 50,000.", **BOUND
        )
    with right:
        seed = st.number_input("Seed", 0, 10**6, DEFAULTS["seed_f"], key="seed_f", help="Of the noise.", **BOUND)
    made = sequence(
        signal,
        noise,
        length,
        seed,
        noise_level=level,
        period=st.session_state.get("period", DEFAULTS["period"]),
        autocorrelation=st.session_state.get("rho", DEFAULTS["rho"]),
    )
    return made, signal


def own_table() -> tuple[Sequence, str]:
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
    return Sequence(clean=np.full(len(values), np.nan), noisy=values), "own"


with controls:
    source = st.segmented_control(
        "Sequence",
        ["Synthetic", "Own CSV"],
        default="Synthetic",
        key="source",
        required=True,
        help="Made here, or a column of your own table.",
        **BOUND,
    )
    (clean, noisy), signal = synthetic() if source == "Synthetic" else own_table()
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
period = st.session_state.get("period", DEFAULTS["period"])
rho = st.session_state.get("rho", 0.9) if st.session_state.get("noise") == "AR(1)" and source == "Synthetic" else 0.0
delay_window = max(1, round(filters.equivalent_window(beta)))
noise_window = filters.window_of_equal_noise(beta, rho)


def filtered(values: np.ndarray, name: str) -> np.ndarray:
    """A filter's answer to ``values``."""
    match name:
        case "EMA from the first value":
            return average(values, Constant(beta).decays(len(values)))
        case "EMA from zero":
            return average(values, np.full(len(values), beta), initial=0.0)
        case "EMA, bias-corrected":
            return average(values, BiasCorrected(beta).decays(len(values)))
        case "moving average, equal delay":
            return moving_average(values, delay_window)
        case "moving average, equal noise":
            return moving_average(values, noise_window)
        case _:
            return average(values, schedule.decays(len(values)))


colours = {
    "sequence": ORIGINAL,
    **({"clean part": CLEAN} if source == "Synthetic" else {}),
    **palette(chosen, {chosen[0]: AVERAGED} if chosen else {}),
}
answers = {name: filtered(noisy, name) for name in chosen}
with charts:
    wide = pd.DataFrame(
        {
            "step": np.arange(steps),
            "sequence": noisy,
            **({"clean part": clean} if source == "Synthetic" else {}),
            **answers,
        }
    )
    show_chart(
        lines(
            wide.melt("step", var_name="line", value_name="value"),
            x="step",
            y="value",
            series="line",
            colours=colours,
            x_title="step",
            y_title="value (its own unit)" if source == "Own CSV" else "value",
            faint=["sequence"],
            height=420,
        ),
        alt_text=f"A noisy sequence of {steps:,} steps (orange) and its averages: {', '.join(chosen) or 'none chosen'}",
        table=wide,
        name="smoothed",
    )
    windows = {DELAY: delay_window, NOISE: noise_window}
    for name in (DELAY, NOISE):
        if name in chosen:
            same = rho == 0 and DELAY in chosen and NOISE in chosen and name == NOISE
            st.caption(
                f"{name[0].upper()}{name[1:]}: a window of {windows[name]:,} steps"
                + ("; for white noise the two are one and the same." if same else ".")
            )
    if schedule is not None:
        st.caption(f"The schedule: `{to_code(schedule)}`, in the orange sequence's steps.")

cutoff = filters.cutoff_frequency(beta)
left, right = st.columns(2, gap="medium")
with left:
    st.subheader("Gain over frequency")
    frequency = np.geomspace(min(1e-4, (cutoff or 0.01) / 20), 0.5, 400)
    curves = {"EMA": np.abs(filters.frequency_response(beta, frequency))}
    if DELAY in chosen:
        curves[DELAY] = np.abs(filters.moving_average_response(delay_window, frequency))
    if NOISE in chosen and (noise_window != delay_window or DELAY not in chosen):
        curves[NOISE] = np.abs(filters.moving_average_response(noise_window, frequency))
    gains = pd.DataFrame({"frequency": frequency, **curves}).melt("frequency", var_name="filter", value_name="gain")
    show_chart(
        lines(
            gains,
            x="frequency",
            y="gain",
            series="filter",
            colours={name: colours.get(name, AVERAGED) for name in curves},
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
    shown = answers.get(FIRST, next(iter(answers.values()), filtered(noisy, FIRST)))
    if steps < 32:
        st.info("A spectrum needs at least 32 steps.", icon=":material/info:")
    else:
        f, before, after = measurements.spectra(noisy, shown)
        spectrum = pd.DataFrame({"frequency": f, "sequence": before, "average": after}).melt(
            "frequency", var_name="line", value_name="density"
        )
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
ages = int(min(max(20, 6 * filters.equivalent_window(beta) / 2), 20_000))
with left:
    st.subheader("Step response and lag")
    response = {"EMA": filters.step_response(beta, ages)}
    for name in (DELAY, NOISE):
        if name in chosen:
            response[name] = moving_average(np.r_[np.zeros(windows[name]), np.ones(ages)], windows[name])[
                windows[name] :
            ]
    answer = pd.DataFrame({"steps": np.arange(1, ages + 1), **response}).melt(
        "steps", var_name="filter", value_name="answer"
    )
    show_chart(
        lines(
            answer,
            x="steps",
            y="answer",
            series="filter",
            colours={name: colours.get(name, AVERAGED) for name in response},
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
    kernel = {"EMA": filters.impulse_response(beta, ages)}
    for name in (DELAY, NOISE):
        if name in chosen:
            kernel[name] = np.where(np.arange(ages) < windows[name], 1 / windows[name], 0.0)
    weight = pd.DataFrame({"age": np.arange(ages), **kernel}).melt("age", var_name="filter", value_name="weight")
    show_chart(
        lines(
            weight,
            x="age",
            y="weight",
            series="filter",
            colours={name: colours.get(name, AVERAGED) for name in kernel},
            x_title="age (steps)",
            y_title="weight in the average",
        ),
        alt_text="Weight of a value over its age: (1 - beta) beta^age",
        table=weight,
        name="expansion",
    )

if source == "Synthetic":
    st.subheader("Predicted and measured")
    comparison = pd.DataFrame(
        measurements.comparison(
            Sequence(clean, noisy), beta, autocorrelation=rho, period=period if signal == "sine" else None
        )
    )
    show_table(
        comparison,
        name="predicted_and_measured",
        column_config={
            "predicted": st.column_config.NumberColumn(format="%.6g"),
            "measured": st.column_config.NumberColumn(format="%.6g"),
        },
    )
    st.caption("Measured in this sequence: one seed. Predicted by the formulas of a one-pole filter.")
