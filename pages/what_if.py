"""What if: one recorded run, replayed exactly under every schedule."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import numpy as np
import pandas as pd
import streamlit as st

from emacore.averaging.code import from_code, scheme_from_code, scheme_to_code, to_code
from emacore.averaging.remarks import remarks
from emacore.averaging.solving import with_relative_width
from emacore.charts.aligned import curves_and_shares
from emacore.charts.heatmap import CELL, heatmap
from emacore.charts.lines import lines
from emacore.charts.plane import paths_on_landscape
from emacore.charts.style import AVERAGED, CHOSEN, CLEAN, ORIGINAL, palette
from emacore.experiments.store import FINAL_STATES, RunStore, StoredRun
from emacore.tasks.regression.config import RunConfig
from emacore.training.history import (
    curve_figures,
    curve_in_words,
    smaller_rate_in_words,
    thinning_in_words,
    training_follows_average,
)
from emacore.widgets.jobs import chosen_job, job_queue, show_problem, submit
from emacore.widgets.page import (
    BOUND,
    csv_button,
    escaped,
    query_of,
    sentence,
    show_chart,
    show_table,
    stop_with,
    through_app,
    told,
)
from emacore.widgets.schedules import pin, pin_controls, schedule_controls, schedule_defaults, state_of

through_app()
st.title("What if?")
st.markdown(
    "The average never touches the weights that are trained. So the recorded weights of *one* run answer, exactly, "
    "what every other schedule would have given: move a slider, and the averaged network's whole curve moves, without "
    "training."
)
with st.spinner("Loading torch, once for each start of the server"):  # the title is to be seen meanwhile
    import torch

    from emacore.replay.atlas import BEST_OF, TITLES, atlas, axes, has_beta, original, partners, plateau, widths
    from emacore.replay.recording import RecordingError
    from emacore.replay.relatives import relatives, with_ema
    from emacore.replay.trajectory import Trajectory
    from emacore.replay.weight_space import Space, space
    from emacore.tasks import open_run

# A replay is too short to be shared out: its threads would wait for each other while a run trains on the same cores.
torch.set_num_threads(1)

ORIGINAL_NAME, OWN, NOW = "original", "the run's own EMA", "now"
PRINCIPAL, THREE_POINTS = "principal components", "three points"
SECONDS_BETWEEN_LOOKS = 2.0


@st.cache_resource(max_entries=4, show_spinner="Opening the recording")
def opened(folder: str, epochs: int) -> Trajectory:
    """A recording as it was after so many epochs."""
    return open_run(folder, epochs)


@st.cache_data(max_entries=200, show_spinner=False)
def replayed(folder: str, epochs: int, code: str) -> pd.DataFrame:
    trajectory = opened(folder, epochs)
    table = pd.DataFrame(trajectory.replay({code: scheme_from_code(code)}))
    return table.assign(step=trajectory.rows.steps[trajectory.epoch_ends])


@st.cache_data(max_entries=50, show_spinner=False)
def shares_of(folder: str, epochs: int, code: str) -> pd.DataFrame:
    trajectory = opened(folder, epochs)
    weight = trajectory.shares(scheme_from_code(code))
    table = pd.DataFrame({"step": trajectory.rows.steps, "weight": weight})
    return table[table["weight"] > 0]


@st.cache_data(max_entries=20, show_spinner="Replaying the run once for each cell")
def atlas_of(folder: str, epochs: int, code: str, x: str, y: str, metric: str) -> pd.DataFrame:
    return pd.DataFrame(atlas(opened(folder, epochs), from_code(code), x, y, metric)).astype({"beta_from": "Int64"})


@st.cache_data(max_entries=20, show_spinner=False)
def original_of(folder: str, epochs: int, metric: str) -> float:
    return original(opened(folder, epochs), metric)["loss"]


@st.cache_data(max_entries=50, show_spinner=False)
def relatives_of(folder: str, epochs: int) -> dict[str, np.ndarray]:
    return relatives(opened(folder, epochs))


@st.cache_data(max_entries=4, show_spinner=False)
def widths_of(folder: str, epochs: int) -> pd.DataFrame:
    return pd.DataFrame(widths(opened(folder, epochs)))


@st.cache_data(max_entries=10, show_spinner="Evaluating the loss over a plane")
def space_of(folder: str, epochs: int, code: str, kind: str, from_share: float) -> Space:
    return space(opened(folder, epochs), scheme_from_code(code), kind, from_share)


def start_on_original(config: RunConfig) -> None:
    """Train the run again with its rules looking at the original curve only."""
    submit(
        replace(
            config,
            optimizer=replace(config.optimizer, plateau_curve="original"),
            stopping=replace(config.stopping, curve="original" if config.stopping.curve == "ema" else "none"),
        ),
        "replayed",
    )


def atlas_key(run: StoredRun) -> str:
    """The atlas' chart, by its axes: another map begins with no cell clicked."""
    return "-".join(["atlas", run.id, *(str(st.session_state.get(f"atlas_{name}")) for name in ("x", "y", "metric"))])


def clicked_cell(run: StoredRun) -> str | None:
    """The code of the cell that is clicked in the atlas, while that is the view."""
    if st.session_state.get("view") != "Atlas" or atlas_key(run) not in st.session_state:
        return None
    cells = st.session_state[atlas_key(run)]["selection"].get(CELL, [])
    return next((cell["code"] for cell in cells if cell.get("code")), None)


def is_recorded(store: RunStore, run: str) -> bool:
    return (store.recording(run) / "run.json").exists()


def chosen_run(store: RunStore) -> StoredRun | None:
    runs = store.runs()
    recorded = runs["id"].map(lambda run: is_recorded(store, run)).astype(bool)
    to_come = ~runs["state"].isin(FINAL_STATES)
    chosen, _ = chosen_job("Recorded run", runs[recorded | to_come], "replayed", nothing="train one")
    return None if chosen is None else store.result(chosen)


def honest_words(run: StoredRun, trajectory: Trajectory, trained: int) -> None:
    """In which sense this replay is exact; ``trained`` counts the epochs of the run."""
    rules = training_follows_average(run.config)
    if rules:
        st.info(
            f"This training looked at its own average: {' and '.join(rules)}. A replay is exact for the weights that "
            "were trained; with another average, other weights would have been trained from there on.",
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
        own = replayed(folder, epochs, to_code(run.config.schedule))
        st.info(thinning_in_words(history, own["loss"], trajectory.every), icon=":material/info:")
    if len(trajectory.epoch_ends) < trained and run.state in FINAL_STATES:
        st.warning(
            f"The recording ends after epoch {len(trajectory.epoch_ends)} of {trained}: the disk may have been full.",
            icon=":material/warning:",
        )


with told():
    store = job_queue().store
    job_queue().tend()
    show_problem()
    run = chosen_run(store)
    if run is None:
        st.info("Train a run first: it is recorded as it trains.", icon=":material/model_training:")
        st.page_link("pages/train.py", label="Train the article's run")
        st.stop()
    history = store.history(run.id)
training = run.state not in FINAL_STATES
folder = str(store.recording(run.id))


def epochs_in(history: pd.DataFrame) -> int:
    """How many whole epochs there are of the run, in this history and in its recording, which may not have begun."""
    if training and not is_recorded(store, run.id):
        return 0
    return min(len(Trajectory.open(folder).epoch_ends), len(history))


@st.fragment(run_every=SECONDS_BETWEEN_LOOKS)
def watch(seen: int) -> None:
    """Run the page again once there are more epochs than ``seen``, or the run has ended."""
    with told(), suppress(RecordingError):
        if epochs_in(store.history(run.id)) != seen or store.result(run.id).state != run.state:
            st.rerun()


try:
    epochs = epochs_in(history)
    trajectory = opened(folder, epochs) if epochs else None
except RecordingError as error:
    stop_with(f"The recording cannot be used: {error}.")
if training:
    watch(epochs)
if not epochs:
    st.info("The first epoch is not over yet.", icon=":material/hourglass_top:")
    st.stop()
trained, history = len(history), history.head(epochs)

controls, charts = st.columns([1, 2.3], gap="medium")
with controls:
    schedule = schedule_controls()
    code = to_code(schedule)
    pinned = pin_controls(code, schedule_defaults(), scheme_from_code)
clicked = clicked_cell(run)
schemes = {NOW: schedule, **({clicked: scheme_from_code(clicked)} if clicked else {}), **pinned}

steps = trajectory.steps
now = replayed(folder, epochs, code)
columns = [metric.column for metric in trajectory.measured]
parts = {
    name: history[["epoch"]].assign(step=now["step"], **{m: history[f"val_{m}_{column}"] for m in columns})
    for name, column in ((ORIGINAL_NAME, "original"), (OWN, "ema"))
}
parts |= {name: replayed(folder, epochs, scheme_to_code(scheme)) for name, scheme in schemes.items()}
curves = pd.concat([part.assign(curve=name) for name, part in parts.items()], ignore_index=True)
curves = curves[["curve", "epoch", "step", *columns]]
shares = pd.concat(
    [shares_of(folder, epochs, scheme_to_code(scheme)).assign(curve=name) for name, scheme in schemes.items()],
    ignore_index=True,
)
fixed = {NOW: AVERAGED} if clicked in pinned else {NOW: AVERAGED, clicked: CHOSEN}
colours = {ORIGINAL_NAME: ORIGINAL, OWN: CLEAN, **palette(schemes, fixed)}


def named(table: pd.DataFrame) -> pd.DataFrame:
    """For the CSV: the schedule's own code in place of "now"."""
    return table.assign(curve=table["curve"].replace(NOW, f"{NOW}: {code}"))


with charts:
    honest_words(run, trajectory, trained)
    scale = st.segmented_control(
        "Loss axis", ["log", "linear"], default="log", key="loss_axis", required=True, help="Its scale.", **BOUND
    )
    show_chart(
        curves_and_shares(curves, shares, colours=colours, y_title="validation loss (MSE)", y_scale=scale, steps=steps),
        alt_text=f"Validation loss over {epochs} epochs: the original, the run's own EMA, and {len(schemes)} replayed "
        f"schedules, now {code}; below, the weight of each step of the run in each final average",
        table=named(curves),
        name=f"replayed-{run.id}",
    )
    csv_button(named(shares), f"weights-{run.id}")
    for remark in remarks(schedule, max(2, steps)):
        st.caption(remark)

st.subheader("Figures of these curves")
first = st.number_input(
    "Steadiness from epoch", 1, 100_000, 20, key="steady_from", help="Standard deviation from this epoch on.", **BOUND
)
figures = curve_figures(curves, ORIGINAL_NAME, first)
show_table(
    figures,
    name=f"figures-{run.id}",
    column_config={
        "final": st.column_config.NumberColumn("final loss", format="%.6f"),
        "best": st.column_config.NumberColumn("best loss", format="%.6f"),
        "best_epoch": "at epoch",
        "steadiness": st.column_config.NumberColumn("std. dev.", format="%.6f"),
        "ahead_since": st.column_config.NumberColumn("below the original since epoch"),
        "final_mae": st.column_config.NumberColumn("final MAE", format="%.5f"),
        "best_mae": st.column_config.NumberColumn("best MAE", format="%.5f"),
        "final_r2": st.column_config.NumberColumn("final R2", format="%.5f"),
        "best_r2": st.column_config.NumberColumn("best R2", format="%.5f"),
    },
)
st.markdown(
    f"{curve_in_words(figures, ORIGINAL_NAME, NOW)} {smaller_rate_in_words(history, now['loss'])} "
    "All of it is of this run and its validation rows; another seed is another run."
)
with st.expander("Load this average into a module of your own", icon=":material/download:"):
    st.code(
        "from emacore.averaging.families import *\n"
        "from emacore.replay.trajectory import Trajectory\n\n"
        f"trajectory = Trajectory.open({folder!r})\n"
        f"trajectory.load_into(module, {code})  # any torch module with these tensors by name\n"
        f"# {', '.join(f'{name} {tuple(tensor.shape)}' for name, tensor in trajectory.tensors.items())}",
        language="python",
    )


def show_family(epochs: int) -> None:
    st.markdown(
        "Means of all steps, of late snapshots, of a window; and the ensemble, which averages *predictions* instead of "
        "weights and so needs every one of its networks at prediction time."
    )
    show_table(
        pd.DataFrame(
            with_ema(relatives_of(folder, epochs), schedule, replayed(folder, epochs, code)[columns].iloc[-1].to_dict())
        ),
        name=f"family-{run.id}",
        column_config={
            "loss": st.column_config.NumberColumn("final loss", format="%.6f"),
            "mae": st.column_config.NumberColumn("MAE", format="%.5f"),
            "r2": st.column_config.NumberColumn("R2", format="%.5f"),
            "copies_kept": st.column_config.NumberColumn("copies kept in training"),
            "forward_passes": st.column_config.NumberColumn("forward passes to predict"),
        },
    )


def show_atlas(epochs: int) -> None:
    family = type(schedule)
    left, middle, right = st.columns(3)
    if st.session_state.get("atlas_x") not in (None, *axes(family)):
        st.session_state["atlas_x"] = next(iter(axes(family)))
    x = left.selectbox(
        "Across", list(axes(family)), 0, key="atlas_x", help="The setting along the horizontal axis.", **BOUND
    )
    others = partners(x, family)
    if st.session_state.get("atlas_y") not in (None, *others):
        st.session_state["atlas_y"] = others[0]
    y = middle.selectbox(
        "Up",
        others,
        others.index("beta") if "beta" in others else 0,
        key="atlas_y",
        help="The setting along the vertical axis. half_life (steps) is beta's. relative_width is that of the weights "
        "at the end, as a share of the whole run: another setting of the family is solved for it (inv_gamma beside "
        "power, power beside the others), and the exponent of EDM2's power function beside a start or a window, where "
        "the average begins. window (steps) is how far the average looks back: the rule begins anew so many "
        "steps before; beside a start it is "
        "the plain mean.",
        **BOUND,
    )
    metric = right.segmented_control(
        "Loss",
        ["final", "best"],
        default="final",
        key="atlas_metric",
        required=True,
        help=f"After the last epoch, or the lowest of {BEST_OF} epochs spread evenly up to the last: of the cells and "
        "of the original alike.",
        **BOUND,
    )
    cells = atlas_of(folder, epochs, code, x, y, metric)
    reference = original_of(folder, epochs, metric)
    capped = has_beta(schedule, x, y)
    cells["beta_never"] = cells["beta_from"].isna() & capped
    picture = heatmap(
        cells, reference=reference, x_title=TITLES.get(x, x), y_title=TITLES.get(y, y), dotted="beta_never"
    )
    st.vega_lite_chart(
        picture.data,
        picture.spec,
        alt=f"The {metric} loss under {len(cells)} schedules over {x} and {y}, blue where it is below the original's",
        width="stretch",
        on_select="rerun",
        selection_mode=CELL,
        key=atlas_key(run),
    )
    st.caption(
        "Blue: the average is below the original; orange: above it; white: level. Full colour from a factor of 4 on. "
        "Framed in black: the lowest cell. Pointing shows numbers; a click makes a cell a curve above, in crimson."
        + (" Dotted cells: this run is too short for beta, which never acts." if capped else "")
        + (" Empty cells: no such average has that width in this run." if cells["code"].isna().any() else "")
    )
    if cells["loss"].notna().any():
        best = cells.loc[cells["loss"].idxmin()]
        near = plateau(cells.dropna(subset="code")["loss"])
        st.markdown(
            f"The lowest cell, `{best['code']}`, has {best['loss']:.4g}; the original "
            + ("" if metric == "final" else "at its lowest of the same epochs ")
            + f"{reference:.4g}. It was **chosen "
            f"on these very validation rows**, so it flatters itself. {near:.0%} of "
            "the cells lie within 5 % of it: the wider that plateau, the less the choice matters."
        )
        with st.container(horizontal=True):
            if clicked:
                st.button(
                    f"Pin {escaped(clicked)}",
                    on_click=pin,
                    args=(clicked,),
                    icon=":material/keep:",
                    help="Keep the clicked cell's curve when another one is clicked.",
                )
            st.button(
                "Pin the lowest cell", on_click=pin, args=(best["code"],), icon=":material/keep:", help="As a curve."
            )
    show_table(cells.drop(columns="beta_never"), name=f"atlas-{run.id}")


def show_space(epochs: int) -> None:
    left, right = st.columns(2)
    kind = left.segmented_control(
        "Plane",
        [PRINCIPAL, THREE_POINTS],
        default=PRINCIPAL,
        key="plane",
        required=True,
        help="The two directions in which the weights vary most, or the plane that holds the first weights of the "
        "path, the last, and the final average.",
        **BOUND,
    )
    percent = right.slider(
        "From (% of the run)",
        0,
        95,
        50,
        5,
        key="path_from",
        help="The way from the first weights is so long that little else is seen beside it.",
        **BOUND,
    )
    try:
        found = space_of(folder, epochs, code, kind, percent / 100)
    except ValueError as error:
        st.warning(sentence(error), icon=":material/warning:")
        return
    landscape, distances = pd.DataFrame(found.landscape), pd.DataFrame(found.distances)
    titles = ("first component", "second component") if kind == PRINCIPAL else ("along the path", "towards the average")
    left, right = st.columns([1.5, 1], gap="medium")
    with left:
        show_chart(
            paths_on_landscape(found.original, found.averaged, found.steps, landscape, titles=titles),
            alt_text="A plane through the weights of this run: lines of equal validation loss, the path of the weights "
            "in orange and of their average in blue",
            table=landscape,
            name=f"landscape-{run.id}",
        )
        st.caption(
            f"The plane shows {found.original_share:.0%} of the variance of the weights' path and "
            f"{found.averaged_share:.0%} of the average's; the rest of it is hidden above and below. "
            "Grey: lines of equal validation loss *in the plane*, from "
            f"{landscape['loss'].min():.4g} to {landscape['loss'].max():.4g}."
        )
    with right:
        show_chart(
            lines(
                pd.DataFrame(found.line).assign(curve="loss"),
                x="position",
                y="loss",
                series="curve",
                colours={"loss": CLEAN},
                x_title="0: the last weights, 1: their average",
                y_title="validation loss (MSE)",
                x_rules={"original": 0.0, "average": 1.0},
                height=280,
            ),
            alt_text="Validation loss along the straight line from the last weights to their average and beyond",
            table=pd.DataFrame(found.line),
            name=f"line-{run.id}",
        )
        show_chart(
            lines(
                distances.rename(columns={"averaged": NOW}).melt("step", var_name="curve", value_name="distance"),
                x="step",
                y="distance",
                series="curve",
                colours={ORIGINAL_NAME: ORIGINAL, NOW: AVERAGED},
                x_title="step of the run",
                y_title="distance to the end",
                height=280,
            ),
            alt_text="Euclidean distance of the weights and of their average from the last weights, over the steps",
            table=distances,
            name=f"distances-{run.id}",
        )


def show_advice(epochs: int) -> None:
    table = widths_of(folder, epochs)
    reference = float(history["val_loss_original"].iloc[epochs - 1])
    best, near = table.loc[table["loss"].idxmin()], plateau(table["loss"])
    width = float(best["relative_width"])
    left, right = st.columns([1.5, 1], gap="medium")
    drawn = [("average", table["loss"]), (ORIGINAL_NAME, reference)]
    with left:
        show_chart(
            lines(
                pd.concat(
                    [
                        pd.DataFrame({"curve": name, "width": 100 * table["relative_width"], "loss": loss})
                        for name, loss in drawn
                    ]
                ),
                x="width",
                y="loss",
                series="curve",
                colours={"average": AVERAGED, ORIGINAL_NAME: ORIGINAL},
                x_title="relative width (% of the run)",
                y_title="final validation loss (MSE)",
                x_scale="log",
                height=300,
            ),
            alt_text="Final loss of power-function averages of this run over their relative width, beside the "
            "original's",
            table=table,
            name=f"widths-{run.id}",
        )
    with right:
        st.markdown(
            f"In this run the relative width **{width:.1%}** was best: {best['loss']:.4g}, the original "
            f"{reference:.4g}; {near:.0%} of the widths are within 5 % of it. A width is a share of the "
            "run, so it can be carried to a run of another length. It was chosen on these validation rows and this "
            "seed."
        )
        length = st.number_input(
            "Steps of the other run", 100, 1_000_000, 50_000, key="other_steps", help="Optimiser steps.", **BOUND
        )
        try:
            answer = from_code(carried(code, length, width))
            state = state_of(answer)
        except ValueError as error:
            st.warning(sentence(error), icon=":material/warning:")
            return
        st.code(to_code(answer), language="python")
        st.page_link(
            "pages/decay_schedule.py",
            label="Look at it on the schedule page",
            icon=":material/arrow_forward:",
            query_params=query_of(
                {**state, "steps": length, "memory": "relative width", "want_width": round(100 * width, 1)}
            ),
        )


@st.cache_data(max_entries=64, show_spinner="Solving")
def carried(code: str, steps: int, width: float) -> str:
    return to_code(with_relative_width(from_code(code), steps, width))


def looked_at() -> int:
    """Up to which epoch the view is: that of a run still training stays as it is until one asks for more."""
    seen = st.session_state.get("looked")
    if not training or seen is None or seen[0] != run.id or not 0 < seen[1] <= epochs:
        seen = st.session_state["looked"] = (run.id, epochs)
    if seen[1] < epochs:
        st.button(
            f"As of epoch {seen[1]}: bring up to date",
            on_click=lambda: st.session_state.pop("looked", None),
            icon=":material/refresh:",
            help="The run goes on; what takes longer to compute is not done again by itself.",
        )
    return int(seen[1])


VIEWS = {"Family": show_family, "Atlas": show_atlas, "Weight space": show_space, "For my run": show_advice}
st.subheader("More of this run")
view = st.segmented_control(
    "View",
    list(VIEWS),
    default="Family",
    key="view",
    required=True,
    help="SWA, windows and ensembles beside the EMA; up to 400 schedules as a map; paths over the loss; settings for "
    "a run of another length.",
    **BOUND,
)
with told():
    try:
        VIEWS[view](looked_at())
    except RecordingError as error:
        stop_with(f"The recording cannot be used: {error}.")
