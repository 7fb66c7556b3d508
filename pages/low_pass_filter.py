"""Low-pass filter: what an average does to a sequence, as a picture, as a spectrum, and as numbers."""

import pandas as pd
import streamlit as st

from emacore.averaging import filters, measurements, views
from emacore.averaging.code import to_code
from emacore.averaging.schedules import BETA
from emacore.averaging.views import CORRECTED, DELAY, FILTERS, FIRST, NOISE, SCHEDULE, ZERO
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL, palette
from emacore.formatting import counted
from emacore.widgets.own_curves import OWN_DEFAULTS, SYNTHETIC, show_own, source_controls
from emacore.widgets.page import BOUND, beside_controls, csv_button, presets, reset_button, show_table, through_app
from emacore.widgets.schedules import schedule_controls
from emacore.widgets.signals import SIGNAL_DEFAULTS, synthetic_controls
from emacore.widgets.smoothing import answers_of, show_smoothing, small_pictures

DEFAULTS = {**SIGNAL_DEFAULTS, "source": SYNTHETIC, "f_decay": 0.98, "filters": [FIRST]}
#: By name: what it shows and what to look at, and the settings that differ from the defaults.
PRESETS = {
    "Step in noise": ("A jump: look at how much calmer the blue line is, and how many steps later it arrives.", {}),
    "Convergence": (
        "A sequence with a limit: look at the right end, where average and sequence have the same one, and at the "
        "average from zero, which starts too low.",
        {"signal": "converging", "level": 0.2, "filters": [FIRST, ZERO]},
    ),
    "Start and bias correction": (
        "A constant: look at the first steps. From zero the average is too small; dividing by 1 - beta^t mends it.",
        {"signal": "constant", "length_f": 300, "filters": [ZERO, CORRECTED]},
    ),
    "The expansion's weights": (
        "One spike of noise after another: look at how each comes out as (1 - beta) beta^age, the last small picture.",
        {"signal": "constant", "noise": "spikes", "length_f": 400, "f_decay": 0.95},
    ),
    "Chirp": (
        "A rising frequency: look at where the blue line dies away, which is where the gain falls, below.",
        {"signal": "chirp", "level": 0.1, "f_decay": 0.95},
    ),
    "Against a moving average": (
        "At equal delay: look at the jump, which the moving average climbs on a line, the EMA on a curve.",
        {"filters": [FIRST, DELAY], "level": 0.2},
    ),
    "SGD-like noise": (
        "Noise that remembers, as the iterates of SGD do: look at how much of it an average of the same length leaves.",
        {"signal": "converging", "noise": "AR(1)", "rho": 0.95, "filters": [FIRST, NOISE]},
    ),
}


through_app()
st.title("Low-pass filter")
st.markdown(
    "An exponential moving average lets slow changes of a sequence through and takes fast ones out. The larger the "
    "decay, the lower its cut-off frequency, the calmer its output, and the later it answers."
)
presets(PRESETS, DEFAULTS)
controls, charts = beside_controls(2.3)

with controls:
    file = source_controls()
if file is not None:
    finish = show_own(file, controls, charts)
    with controls:
        reset_button(OWN_DEFAULTS)
    finish()
    st.stop()

with controls:
    sequence = synthetic_controls()
    beta = st.number_input(
        "Decay (beta)",
        BETA.low,
        BETA.high,
        DEFAULTS["f_decay"],
        0.001,
        key="f_decay",
        format="%.7g",
        help="The share of the old average that each step keeps, in all filters but the schedule. Nearer to 1 their "
        "lines are calmer, and later.",
        **BOUND,
    )
    st.caption(
        f"Half-life {counted(filters.half_life(beta), 'step')}; like a moving average of "
        f"{counted(filters.equivalent_window(beta), 'step')}"
    )
    chosen = st.pills(
        "Filters",
        FILTERS,
        selection_mode="multi",
        default=[FIRST],
        key="filters",
        wrap=True,
        help="Each adds a line: the EMA from three kinds of start, moving averages that match it, or *the schedule*, "
        "which is the one of the Decay schedule page.",
        **BOUND,
    )
    schedule = None
    if SCHEDULE in chosen:
        with st.expander("The schedule", expanded=True):
            schedule = schedule_controls(typed=True)
    reset_button(DEFAULTS)

noisy = sequence.sequence.noisy
windows = views.equal_windows(beta, sequence.autocorrelation)
shown = views.shown_windows(chosen, windows)
first = next((name for name in chosen if name not in windows), "")  # the small pictures show an EMA beside windows
colours = {"sequence": ORIGINAL, "clean part": CLEAN, **palette(chosen, {first: AVERAGED})}
answers = answers_of(sequence, chosen, beta, schedule)
with charts:
    finish = show_smoothing(
        sequence,
        chosen,
        beta,
        schedule,
        colours,
        alt_text=f"A noisy sequence of {counted(len(noisy), 'step')} (orange) and its averages: "
        f"{', '.join(chosen) or 'none chosen'}",
    )
    csv_button(pd.DataFrame({"step": range(len(noisy)), **answers}), "smoothed")
    for explanation, changes in PRESETS.values():
        wanted = {**DEFAULTS, **changes}
        if all(st.session_state.get(key, value) == value for key, value in wanted.items()):
            st.markdown(f"**Look for:** {explanation}")
    for name, size in shown.items():
        same = sequence.autocorrelation == 0 and len(shown) == 2 and name == NOISE
        st.caption(
            f"{name[0].upper()}{name[1:]}: a window of {counted(size, 'step')}"
            + ("; for white noise the two are one and the same." if same else ".")
        )
    if schedule is not None:
        st.caption(f"The schedule: `{to_code(schedule)}`, in the orange sequence's steps.")

averaged = next((answers[name] for name in (FIRST, *chosen) if name in answers), None)
if averaged is None:
    averaged = views.filtered(noisy, FIRST, beta, windows)
own = {"sequence": ORIGINAL, **{name: colours.get(name, AVERAGED) for name in ("EMA", *shown)}}
pictures = small_pictures(noisy, averaged, beta, shown)
for row in (("gain", "spectra"), ("step_response", "expansion")):
    for column, name in zip(st.columns(2, gap="medium"), row, strict=True):
        with column:
            if picture := pictures[name]:
                picture.show(own, name)
            else:
                st.info("A spectrum needs at least 32 steps.", icon=":material/info:")
if filters.cutoff_frequency(beta) is None:
    st.caption("No cut-off: below beta = 0.1716 every frequency keeps more than half its power.")

st.header("Predicted and measured")
comparison = pd.DataFrame(
    measurements.comparison(sequence.sequence, beta, autocorrelation=sequence.autocorrelation, period=sequence.period)
)
show_table(comparison, name="predicted_and_measured")
st.caption("Measured in this sequence: one seed. Predicted by the formulas of a one-pole filter.")
finish()
