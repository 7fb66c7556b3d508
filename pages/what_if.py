"""What if: one recorded run, replayed exactly under every schedule."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import streamlit as st

from emacore.averaging.remarks import remarks
from emacore.averaging.schedules import InversePower, from_code, to_code
from emacore.averaging.weights import weights
from emacore.charts.heatmap import CELL, heatmap
from emacore.charts.lines import lines
from emacore.charts.style import AVERAGED, ORIGINAL, palette
from emacore.experiments.store import FINAL_STATES, RunStore, StoredRun, StoreError
from emacore.training.config import RunConfig
from emacore.training.history import curve_figures, training_follows_average
from emacore.widgets import (
    BOUND,
    SCHEDULE_DEFAULTS,
    job_queue,
    pin,
    pin_controls,
    schedule_controls,
    show_chart,
    show_table,
    stop_with,
    through_app,
    told,
)

through_app()
st.title("What if?")
st.markdown(
    "The average never touches the weights that are trained. So the recorded weights of *one* run answer, exactly, "
    "what "
    "every other schedule would have given: move a slider, and the averaged network's whole curve moves, without "
    "training."
)
with st.spinner("Loading torch, once for each start of the server"):  # the title is to be seen meanwhile
    from emacore.training.atlas import AXES, atlas, plateau
    from emacore.training.family import family
    from emacore.training.trajectory import RecordingError, Trajectory

ORIGINAL_NAME, OWN, NOW = "original", "the run's own EMA", "now"
SECONDS_BETWEEN_LOOKS = 2.0


@st.cache_resource(max_entries=4, show_spinner="Opening the recording")
def opened(folder: str, epochs: int) -> Trajectory:
    """A recording as it is after so many epochs."""
    return Trajectory.open(folder)


@st.cache_data(max_entries=200, show_spinner=False)
def replayed(folder: str, epochs: int, code: str) -> pd.DataFrame:
    return opened(folder, epochs).replay({code: from_code(code)})


@st.cache_data(max_entries=20, show_spinner="Replaying the run 400 times")
def atlas_of(folder: str, epochs: int, code: str, x: str, y: str) -> pd.DataFrame:
    schedule = from_code(code)
    if not isinstance(schedule, InversePower):
        raise TypeError(f"the atlas varies InversePower, got {code}")
    return atlas(opened(folder, epochs), schedule, x, y)


@st.cache_data(max_entries=50, show_spinner=False)
def family_of(folder: str, epochs: int, code: str) -> pd.DataFrame:
    return family(opened(folder, epochs), from_code(code))


def start_on_original(config: RunConfig) -> None:
    """Train the run again with its rules looking at the original curve only."""
    try:
        st.session_state["replayed"] = job_queue().submit(
            replace(
                config,
                optimizer=replace(config.optimizer, plateau_curve="original"),
                stopping=replace(config.stopping, curve="original" if config.stopping.curve == "ema" else "none"),
            )
        )
    except StoreError as error:
        st.session_state["problem"] = str(error)


def chosen_run(store: RunStore) -> StoredRun | None:
    ids = [run for run in store.runs()["id"] if (store.recording(run) / "run.json").exists()]
    if st.session_state.get("replayed") not in ids:
        st.session_state["replayed"] = None
    run = st.selectbox(
        "Recorded run",
        ids,
        index=None,
        key="replayed",
        placeholder="The newest recorded run" if ids else "No recorded run yet",
        help="Runs of the Train page are recorded while they train, within a budget; the oldest recordings go first.",
        **BOUND,
    )
    return store.result(run or ids[0]) if ids else None


def honest_words(run: StoredRun, trajectory: Trajectory, trained: int) -> None:
    """In which sense this replay is exact; ``trained`` counts the epochs of the run."""
    rules = training_follows_average(run.config)
    if rules:
        st.info(
            f"This training looked at its own average: {' and '.join(rules)}. A replay is exact for the weights that "
            "were "
            "trained; with another average, other weights would have been trained from there on.",
            icon=":material/info:",
        )
        st.button(
            "Train it again with these rules on the original curve",
            on_click=start_on_original,
            args=(run.config,),
            icon=":material/play_arrow:",
            help="Then no average touches the training, and every replay is exact in both senses.",
        )
    if trajectory.every > 1:
        st.info(
            f"The recording holds every {trajectory.every}th step only, to stay within its budget: replays are of "
            "those.",
            icon=":material/info:",
        )
    if len(trajectory.epoch_ends) < trained and run.state in FINAL_STATES:
        st.warning(
            f"The recording ends after epoch {len(trajectory.epoch_ends)} of {trained}: the disk may have been full.",
            icon=":material/warning:",
        )


with told():
    store = job_queue().store
    job_queue().tend()
    if "problem" in st.session_state:
        st.error(st.session_state.pop("problem"), icon=":material/error:")
    run = chosen_run(store)
    if run is None:
        st.info("Train a run first: it is recorded as it trains.", icon=":material/model_training:")
        st.page_link("pages/train.py", label="Train the article's run")
        st.stop()
    history = store.history(run.id)
folder = str(store.recording(run.id))
try:
    epochs = len(Trajectory.open(folder).epoch_ends)
    trajectory = opened(folder, epochs)
except RecordingError as error:
    stop_with(f"The recording cannot be used: {error}.")
if not epochs or history.empty:
    st.info("The first epoch is not over yet.", icon=":material/hourglass_top:")
    if run.state not in FINAL_STATES:
        st.fragment(lambda: None, run_every=SECONDS_BETWEEN_LOOKS)()
    st.button("Look again", icon=":material/refresh:")
    st.stop()
trained, history = len(history), history.head(epochs)

controls, charts = st.columns([1, 2.3], gap="medium")
with controls:
    schedule = schedule_controls()
    code = to_code(schedule)
    curves = {NOW: schedule, **pin_controls(code, SCHEDULE_DEFAULTS)}

parts = [
    pd.DataFrame({"curve": name, "epoch": history["epoch"], "loss": history[f"val_loss_{column}"]})
    for name, column in ((ORIGINAL_NAME, "original"), (OWN, "ema"))
]
for name, curve in curves.items():
    parts.append(replayed(folder, epochs, to_code(curve))[["epoch", "loss"]].assign(curve=name))
table = pd.concat(parts, ignore_index=True)[["curve", "epoch", "loss"]]
colours = {ORIGINAL_NAME: ORIGINAL, NOW: AVERAGED, **palette([OWN, *list(curves)[1:]])}
steps = len(trajectory.weights) * trajectory.every

with charts:
    honest_words(run, trajectory, trained)
    scale = st.segmented_control(
        "Loss axis", ["log", "linear"], default="log", key="loss_axis", required=True, help="Its scale.", **BOUND
    )
    show_chart(
        lines(
            table,
            x="epoch",
            y="loss",
            series="curve",
            colours=colours,
            x_title="epoch",
            y_title="validation loss (MSE)",
            y_scale=scale,
            height=420,
        ),
        alt_text=f"Validation loss over {epochs} epochs: the original, the run's own EMA, and {len(curves)} replayed "
        f"schedules; now is {code}",
        table=table.assign(curve=table["curve"].replace(NOW, f"{NOW}: {code}")),
        name=f"replayed-{run.id}",
    )
    for remark in remarks(schedule, max(2, steps)):
        st.caption(remark)

st.subheader("Figures of these curves")
first = st.number_input(
    "Steadiness from epoch", 1, 100_000, 20, key="steady_from", help="Standard deviation from this epoch on.", **BOUND
)
figures = curve_figures(table, ORIGINAL_NAME, first)
show_table(
    figures,
    name=f"figures-{run.id}",
    column_config={
        "final": st.column_config.NumberColumn("final loss", format="%.6f"),
        "best": st.column_config.NumberColumn("best loss", format="%.6f"),
        "best_epoch": "at epoch",
        "steadiness": st.column_config.NumberColumn("std. dev.", format="%.6f"),
        "ahead_since": st.column_config.NumberColumn("below the original since epoch"),
    },
)
st.caption("In this run, on its validation rows. Another seed is another run.")

st.subheader("What each schedule gives to the past of this run")
parts = []
for name, curve in curves.items():
    rates = trajectory.decays(curve, len(trajectory.weights))
    shares = pd.DataFrame({"curve": name, "step": range(0, steps, trajectory.every), "weight": weights(rates)})
    parts.append(shares[rates < 1])
shares = pd.concat(parts, ignore_index=True)
show_chart(
    lines(
        shares,
        x="step",
        y="weight",
        series="curve",
        colours={name: colour for name, colour in colours.items() if name in curves},
        x_title="step of the run",
        y_title="weight in the final average",
        height=300,
    ),
    alt_text=f"The weight of each step of the run in the final average, for {len(curves)} schedules",
    table=shares,
    name=f"shares-{run.id}",
)

st.subheader("The family")
st.markdown(
    "Means of all steps, of late snapshots, of a window; and the ensemble, which averages *predictions* instead of "
    "weights and so needs every one of its networks at prediction time."
)
show_table(
    family_of(folder, epochs, code),
    name=f"family-{run.id}",
    column_config={
        "loss": st.column_config.NumberColumn("final loss", format="%.6f"),
        "mae": st.column_config.NumberColumn("MAE", format="%.5f"),
        "r2": st.column_config.NumberColumn("R2", format="%.5f"),
        "copies_kept": st.column_config.NumberColumn("copies kept in training"),
        "forward_passes": st.column_config.NumberColumn("forward passes to predict"),
    },
)

st.subheader("Atlas: 400 schedules, one run")
if not isinstance(schedule, InversePower):
    st.caption("The atlas varies the settings of the inverse-power family: choose it above.")
    st.stop()
left, right = st.columns(2)
x = left.selectbox("Across", list(AXES), 0, key="atlas_x", help="The setting along the horizontal axis.", **BOUND)
others = [name for name in AXES if name != x]
if st.session_state.get("atlas_y") not in (None, *others):
    st.session_state["atlas_y"] = others[0]
y = right.selectbox(
    "Up",
    others,
    others.index("beta") if "beta" in others else 0,
    key="atlas_y",
    help="The setting along the vertical axis.",
    **BOUND,
)
cells = atlas_of(folder, epochs, code, x, y)
reference = float(history["val_loss_original"].iloc[-1])
picture = heatmap(cells, reference=reference, x_title=x, y_title=y)
event = st.vega_lite_chart(
    picture.data,
    picture.spec,
    alt=f"The final loss under {len(cells)} schedules over {x} and {y}, blue where it is below the original's",
    width="stretch",
    on_select="rerun",
    selection_mode=CELL,
    key=f"atlas-{run.id}-{x}-{y}",
)
st.caption(
    "Blue: the average ends below the original; orange: above it; white: level. Full colour from a factor of 4 on. "
    "Pointing "
    "shows numbers, a click chooses a cell; the framed one is the lowest."
)
clicked = [cell["code"] for cell in event["selection"].get(CELL, []) if "code" in cell]
best = cells.loc[cells["loss"].idxmin()]
st.markdown(
    f"The lowest cell, `{best['code']}`, ends at {best['loss']:.4g}; the original at {reference:.4g}. It was "
    "**chosen on "
    f"these very validation rows**, so it flatters itself. {plateau(cells):.0%} of the cells lie within 5 % of it: "
    "the wider "
    "that plateau, the less the choice matters."
)
with st.container(horizontal=True):
    if clicked:
        st.button(
            f"Pin {clicked[0]}", on_click=pin, args=(clicked[0],), icon=":material/keep:", help="The clicked cell."
        )
    st.button("Pin the lowest cell", on_click=pin, args=(best["code"],), icon=":material/keep:", help="As a curve.")
show_table(cells, name=f"atlas-{run.id}")
