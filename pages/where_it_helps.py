"""Where it helps: one experiment over a grid of two settings, each cell with its own seeds."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from emacore.averaging.code import to_code
from emacore.charts.heatmap import CELL, evidence_map
from emacore.experiments.evidence import QUESTIONS
from emacore.experiments.statistics import p_values_in_words
from emacore.experiments.store import StoredRun
from emacore.experiments.studies import Study, Sweep, json_values
from emacore.experiments.sweep import before_start, cells_of, in_words, rules_of_cells, sharing, summary
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import OptimizerConfig, StoppingConfig, article_schedule
from emacore.widgets.jobs import duration, job_queue, json_button, listed, show_state, stored, workbench
from emacore.widgets.page import (
    BOUND,
    csv_button,
    escaped,
    number_text,
    presets,
    show_table,
    through_app,
    told,
)
from emacore.widgets.runs import RUN_DEFAULTS, run_controls, run_state
from emacore.widgets.verdicts import show_differences, show_verdicts

DECAYS = f"{to_code(article_schedule())}, Constant(beta=0.99), Constant(beta=0.999), Constant(beta=0.9999)"
SCHEDULES = f"{DECAYS}, PowerFunction(sigma_rel=0.1)"
#: Settings that an axis can have, and the values it starts with.
SUGGESTED = {
    "optimizer.learning_rate": "0.001, 0.003, 0.01, 0.03",
    "schedule": SCHEDULES,
    "network.dropout": "0, 0.1, 0.2, 0.4",
    "optimizer.batch_size": "8, 32, 128",
    "max_epochs": "5, 20, 60",
    "data.noise": "0.1, 10, 50",
    "data.n_samples": "500, 2000, 8000",
    "optimizer.rate_rule": "constant, cosine",
    "optimizer.name": "adam, adamw, sgd",
    "optimizer.momentum": "0, 0.9, 0.99",
    "optimizer.weight_decay": "0, 0.00001, 0.001",
    "network.activation": "relu, tanh",
    "schedule.power": "0.5, 0.6667, 0.75, 1",
    "schedule.beta": "0.9, 0.99, 0.999, 0.9999",
}
BASE = RunConfig(optimizer=OptimizerConfig(rate_rule="constant"), stopping=StoppingConfig("none"), max_epochs=60)


def at(rate: float, **optimizer: Any) -> OptimizerConfig:
    return replace(BASE.optimizer, learning_rate=rate, **optimizer)


#: What it asks, the settings it starts from, and the two axes with their values.
PRESETS: dict[str, tuple[str, RunConfig, dict[str, str]]] = {
    "Learning rate and decay": (
        "Does averaging replace lowering the learning rate? And which decay is too long for 3,000 steps?",
        BASE,
        {
            "optimizer.learning_rate": "0.001, 0.003, 0.01, 0.03",
            "schedule": f"{DECAYS}, UniformAverage(update_after_step=1500)",
        },
    ),
    "Dropout and batch size": (
        "Does it need noise in the steps? Learning rate 0.003, 30 epochs, the article's schedule.",
        replace(BASE, optimizer=at(0.003), max_epochs=30),
        {"network.dropout": "0, 0.1, 0.2, 0.4", "optimizer.batch_size": "8, 32, 128"},
    ),
    "Run length and schedule": (
        "From how many epochs on is which schedule worth it? The article's network and learning rate, never lowered.",
        BASE,
        {"max_epochs": "5, 20, 60", "schedule": SCHEDULES},
    ),
    "Dropout and learning rate": (
        "What if the network is free of noise, but the steps stay large? 60 epochs, the article's schedule.",
        BASE,
        {"network.dropout": "0, 0.2", "optimizer.learning_rate": "0.001, 0.003, 0.01"},
    ),
    "SGD": (
        "Is it Adam? SGD with momentum 0.9, 60 epochs, with and without dropout, the article's schedule.",
        replace(BASE, optimizer=at(0.02, name="sgd")),
        {"network.dropout": "0, 0.2", "optimizer.learning_rate": "0.005, 0.02, 0.05"},
    ),
    "Label noise": (
        "What if the targets themselves are noisy? Learning rate 0.01, batches of 16, 40 epochs.",
        replace(BASE, optimizer=at(0.01, batch_size=16), max_epochs=40),
        {
            "data.noise": "0.1, 10, 50",
            "schedule": f"{DECAYS}, UniformAverage(update_after_step=2000)",
        },
    ),
}


def state(config: RunConfig, axes: dict[str, str]) -> dict[str, Any]:
    """The controls' values that show a sweep."""
    x, y = axes
    values = {values_key(name): text for name, text in axes.items()}
    return {**run_state(config), "sweep_x": x, "sweep_y": y, **values}


def values_key(name: str) -> str:
    return f"values_{name.replace('.', '_')}"


DEFAULTS = {
    **RUN_DEFAULTS,
    **{values_key(name): text for name, text in SUGGESTED.items()},
    "sweep_x": "optimizer.learning_rate",
    "sweep_y": "schedule",
    "sweep_seeds": 32,
}
SECONDS_BETWEEN_LOOKS = 1.0


def values_of(name: str, label: str) -> list[Any]:
    text = st.text_area(
        label,
        DEFAULTS[values_key(name)],
        height="content",
        key=values_key(name),
        help="With commas between them. A schedule is written as code, with the names the sliders have; a bare decay "
        "such as 0.99 is Constant(beta=0.99).",
        **BOUND,
    )
    return json_values(text or "")


def grid_controls() -> dict[str, list[Any]]:
    """The two settings and their values."""
    names = list(SUGGESTED)
    x = st.selectbox("Across", names, names.index(DEFAULTS["sweep_x"]), key="sweep_x", help="A setting.", **BOUND)
    x_values = values_of(x, "Its values")
    y = st.selectbox("Up", names, names.index(DEFAULTS["sweep_y"]), key="sweep_y", help="Another one.", **BOUND)
    if x == y:
        raise ValueError(f"Choose two different settings; both are {x}")
    return {x: x_values, y: values_of(y, "And its values")}


def label(value: Any) -> str:
    """A value as an axis shows it; a line break may stand in a schedule's code."""
    if value == to_code(article_schedule()):
        return "the article's"
    return number_text(value) if isinstance(value, float) else str(value).replace("(", "\n(", 1)


def labelled(found: pd.DataFrame, sweep: Sweep) -> pd.DataFrame:
    """With the columns of the chart: x, y, and code, by which a cell is chosen."""
    x, y = sweep.grid
    named = {name: found[name].map(label) for name in (x, y)}
    code = [f"{x} {one}, {y} {other}" for one, other in zip(found[x].map(plain), found[y].map(plain), strict=True)]
    return found.assign(x=named[x], y=named[y], code=code)


def plain(value: Any) -> str:
    return label(value).replace("\n", "")


def headline(run: StoredRun, sweep: Sweep, cells: int) -> None:
    total, seeds = len(sweep.cells()), len(sweep.seeds)
    passed = time.time() - (run.started or time.time())
    left = f", about {passed / cells * (total - cells):,.0f} s left" if cells else ""
    why = "you stopped it" if run.stopped == "stopped" else "every cell is trained"
    show_state(
        run,
        cells / total,
        progress=f"{cells} of {total} cells, {passed:,.0f} s so far{left}.",
        so_far=f"{cells} cells",
        ended=f"{cells} cells of {seeds} seeds, {duration(run):,.1f} s: {why}.",
        what="sweep",
    )


def draw(sweep_id: str) -> StoredRun:
    run, table = stored(sweep_id)
    sweep = run.job
    if not isinstance(sweep, Sweep):
        st.warning("That is no sweep: look at it on the Train or the Evidence page.", icon=":material/warning:")
        return run
    names = list(sweep.grid)
    headline(run, sweep, table.groupby(names, sort=False).ngroups if len(table) else 0)
    if table.empty:
        return run
    if len(names) != 2:
        st.info(f"A map needs two settings; this sweep varies {len(names)}.", icon=":material/info:")
        st.markdown(escaped(f"{in_words(found := summary(table, names), names)} {rules_of_cells(sweep)}"))
        show_table(found, name=f"cells-{sweep_id}")
        csv_button(table, f"sweep-{sweep_id}")
        return run
    found = labelled(summary(table, names), sweep)
    words = f"{in_words(found, names)} {rules_of_cells(sweep)}"
    st.markdown(escaped(words))
    show_map(found, sweep, sweep_id, words)
    show_failures(table)
    show_cell(found, table, sweep, sweep_id)
    st.subheader("Every cell")
    show_table(found.drop(columns=["x", "y", "code"]), name=f"cells-{sweep_id}")
    csv_button(table, f"sweep-{sweep_id}")
    json_button(sweep, "sweep")
    return run


def show_map(found: pd.DataFrame, sweep: Sweep, sweep_id: str, words: str) -> None:
    x, y = sweep.grid
    picture = evidence_map(
        found,
        [label(value) for value in sweep.grid[x]],
        [label(value) for value in sweep.grid[y]],
        x_title=x,
        y_title=y,
    )
    key = f"map-{sweep_id}"
    st.vega_lite_chart(
        picture.data,
        picture.spec,
        alt=f"The median change of the final loss by averaging over {x} and {y}: {words}",
        width="stretch",
        on_select=partial(take_cell, key),
        selection_mode=CELL,
        key=key,
    )
    st.caption(
        "Each cell: the median change of the final loss by averaging, and in how many seeds the average was better. "
        "Blue: it helps; orange: it hurts; full colour from a factor of 4 on. Hatched: no evidence of either. A click "
        f"chooses a cell. {p_values_in_words(found.drop_duplicates('test')['wilcoxon_p'].notna().sum())}"
    )


def take_cell(key: str) -> None:
    """Choose the cell that was clicked: a callback."""
    cells = st.session_state[key]["selection"].get(CELL, [])
    if cells and "code" in cells[0]:
        st.session_state["sweep_cell"] = cells[0]["code"]


def show_failures(table: pd.DataFrame) -> None:
    failed = table[table["error"].notna()]
    for error, rows in failed.groupby("error", sort=False):
        st.warning(f"{len(rows)} runs could not be trained: {escaped(error)}", icon=":material/warning:")


def show_cell(found: pd.DataFrame, table: pd.DataFrame, sweep: Sweep, sweep_id: str) -> None:
    """The Evidence of the cell that was chosen."""
    codes = found["code"].tolist()
    if st.session_state.get("sweep_cell") not in codes:
        st.session_state["sweep_cell"] = None
    code = st.selectbox(
        "Cell",
        codes,
        index=None,
        key="sweep_cell",
        placeholder="Click a cell, or choose one here",
        help="Its evidence is shown below.",
        **BOUND,
    )
    if code is None:
        return
    number = codes.index(code)
    asked = {name: cells_of(table, list(sweep.grid), name)[number] for name in QUESTIONS if f"{name}_original" in table}
    cell = asked["final"]
    if cell.rows["error"].notna().all():
        return
    compared = {question: one.comparison for question, one in asked.items() if one.comparison is not None}
    words, dots = st.columns(2, gap="medium")
    with words:
        config = next(config for chosen, config in sweep.cells() if chosen == cell.settings)
        among = {question: one.among for question, one in asked.items()}
        show_verdicts(compared, cell.rows, config, among=among)
        if st.button(
            "Its curves, on the Evidence page",
            icon=":material/query_stats:",
            help="The map keeps figures only: the cell is trained again, with the same seeds, and kept as a study. "
            "There it stands alone, and its p-values are corrected for no other cells.",
        ):
            with told():
                st.session_state["study"] = study_of(Study(config, sweep.seeds))
            st.switch_page("pages/evidence.py", query_params={"study": st.session_state["study"]})
    with dots:
        show_differences(cell.rows, compared["final"], f"{sweep_id}-cell")


def study_of(study: Study) -> str:
    """The id of this study, which is queued unless the store has it."""
    queue = job_queue()
    studies = queue.store.studies()
    same = studies[(studies["config"] == study.to_json(indent=None)) & studies["state"].isin(["done", "running"])]
    return str(same["id"].iloc[0]) if len(same) else queue.submit(study)


through_app()
st.title("Where it helps")
st.markdown(
    "The same comparison, :orange[**original**] against :blue[**average**] over many seeds, in every cell of a grid of "
    "two settings. One experiment says whether averaging helped *there*; a map says what that depends on."
)
presets({name: (text, state(config, axes)) for name, (text, config, axes) in PRESETS.items()}, DEFAULTS)


def settings() -> Sweep:
    seeds = st.slider("Seeds", 8, 128, DEFAULTS["sweep_seeds"], 8, key="sweep_seeds", help="Of each cell.", **BOUND)
    grid = grid_controls()
    sweep = Sweep(run_controls(job_queue().store), grid, tuple(range(seeds)))
    cells = [config for _, config in sweep.cells()]
    warning, needs = before_start(sweep)
    if warning:
        st.warning(warning, icon=":material/warning:")
    st.caption(
        f"{len(cells)} cells in {len(sharing(dict(enumerate(cells))))} trainings of {seeds} seeds. Cells that differ "
        "in their average only share a training, unless its early stop or learning rate looks at the average, as the "
        f"article's do. {needs}"
    )
    return sweep


workbench(
    "Sweep",
    listed("sweeps"),
    settings=settings,
    draw=draw,
    invitation="Choose a question above, which sets the controls, and press **Start**: the first takes about a minute.",
    seconds=SECONDS_BETWEEN_LOOKS,
    reset=DEFAULTS,
)
