"""A sweep on the page Where it helps: the controls of its grid, and a stored one with its map and one cell."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import streamlit as st

from emacore.averaging.code import to_code
from emacore.charts.heatmap import CELL, evidence_map
from emacore.experiments import shipped
from emacore.experiments.statistics import p_values_in_words
from emacore.experiments.store import FINAL_STATES, StoredRun
from emacore.experiments.studies import Study, Sweep, json_values
from emacore.experiments.sweep import (
    SweepProgress,
    failures,
    for_map,
    has_losses_below_0,
    headline,
    in_words,
    number_of_tests,
    progress,
    questions_of,
    rules_of_cells,
    summary,
    value_label,
)
from emacore.formatting import counted
from emacore.formatting import duration as time_text
from emacore.limits import MAP_CELLS, check_most
from emacore.tasks.regression.article import is_article
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import article_schedule
from emacore.training.names import setting_in_words
from emacore.widgets.jobs import duration, job_queue, json_button, say_shipped, show_state, stored
from emacore.widgets.page import BOUND, csv_button, escaped, picture, show_table, told
from emacore.widgets.runs import RUN_DEFAULTS, run_state
from emacore.widgets.verdicts import show_differences, show_verdicts

DECAYS = f"{to_code(article_schedule())}, Constant(beta=0.99), Constant(beta=0.999), Constant(beta=0.9999)"
#: The settings that an axis can have, by their dotted names, and the values that each starts with.
SUGGESTED = {
    "optimizer.learning_rate": "0.001, 0.003, 0.01, 0.03",
    "schedule": f"{DECAYS}, PowerFunction(sigma_rel=0.1)",
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


def _values_key(name: str) -> str:
    return f"values_{name.replace('.', '_')}"


#: The first values of all controls of the page, by key.
SWEEP_DEFAULTS = {
    **RUN_DEFAULTS,
    **{_values_key(name): text for name, text in SUGGESTED.items()},
    "sweep_x": "optimizer.learning_rate",
    "sweep_y": "schedule",
    "sweep_seeds": 32,
}


def sweep_state(config: RunConfig, axes: dict[str, str]) -> dict[str, Any]:
    """The controls' values that show a sweep: the config it starts from, and the values of its two axes as text."""
    x, y = axes
    values = {_values_key(name): text for name, text in axes.items()}
    return {**run_state(config), "sweep_x": x, "sweep_y": y, **values}


def grid_controls() -> dict[str, list[Any]]:
    """The controls of the two settings, and their values: by dotted name, the one across the map first.

    Raises:
        ValueError: for the same setting twice, a list that cannot be read, or too many cells.
    """
    names = list(SUGGESTED)
    x = st.selectbox(
        "Across",
        names,
        names.index(SWEEP_DEFAULTS["sweep_x"]),
        key="sweep_x",
        help="What differs between the columns of the map. Another setting brings values of its own, which stand below "
        "and can be changed; all others stay as they are set further down.",
        **BOUND,
    )
    x_values = _values_of(x, "Its values")
    y = st.selectbox(
        "Up",
        names,
        names.index(SWEEP_DEFAULTS["sweep_y"]),
        key="sweep_y",
        help="What differs between the rows of the map. Each of its values adds a row of cells, and the more cells "
        "there are, the more their p-values are corrected: each then needs more seeds.",
        **BOUND,
    )
    if x == y:
        raise ValueError(f"Choose two different settings; both are the {setting_in_words(x)}")
    y_values = _values_of(y, "And its values")
    check_most("cells of a map", len(x_values) * len(y_values), MAP_CELLS)
    return {x: x_values, y: y_values}


def _values_of(name: str, label: str) -> list[Any]:
    text = st.text_area(
        label,
        SWEEP_DEFAULTS[_values_key(name)],
        height="content",
        key=_values_key(name),
        help="With commas between them; each value adds a column or row of cells. A schedule is written as code, with "
        "the names that the sliders have; a bare decay such as 0.99 is Constant(beta=0.99).",
        **BOUND,
    )
    return json_values(text or "")


def draw_sweep(sweep_id: str) -> StoredRun:
    """Draw what the store has of a sweep: how far it is, and what its cells show so far."""
    run, table = stored(sweep_id)
    sweep = run.job
    if not isinstance(sweep, Sweep):
        st.warning("That is no sweep: look at it on the Train or the Evidence page.", icon=":material/warning:")
        return run
    seconds = time.time() - (run.started or time.time())
    _headline(run, sweep, progress(table, sweep, seconds), seconds)
    if not table.empty:
        _evidence(run, sweep, table)
    return run


def draw_shipped_sweep() -> None:
    """The sweep that comes with the package, drawn as one's own."""
    run, table = shipped.sweep()
    told = partial(say_shipped, f"the first question above, over {len(shipped.SEEDS)} seeds", shipped.SWEEP_FILE)
    _evidence(run, shipped.SWEEP, table, told)


def _headline(run: StoredRun, sweep: Sweep, so_far: SweepProgress, seconds: float) -> None:
    """Progress, remaining time, and how the sweep ended."""
    cells = so_far.cells
    left = "" if so_far.left is None else f", {so_far.left.in_words()}"
    why = "you stopped it" if run.stopped == "stopped" else "every cell has ended"
    show_state(
        run,
        so_far.share,
        progress=f"{cells} of {counted(len(sweep.cells()), 'cell')}, {time_text(seconds)} so far{left}.",
        so_far=counted(cells, "cell"),
        ended=f"{counted(cells, 'cell')} of {counted(len(sweep.seeds), 'seed')}, {time_text(duration(run))}: {why}.",
        what="sweep",
        empty=not cells,
    )


def _evidence(run: StoredRun, sweep: Sweep, table: pd.DataFrame, say_whence: Callable[[], None] = lambda: None) -> None:
    """Draw what the cells of a sweep's table say: a sentence, a map, the cell that is chosen, and the rest folded.

    Args:
        say_whence: Draws, below the map, where the sweep is from.
    """
    names = list(sweep.grid)
    complete = run.state in FINAL_STATES
    found = summary(table, names)
    signed = has_losses_below_0(table)
    st.markdown(f"**{escaped(headline(found, names, complete=complete, signed=signed))}**")
    if rules := rules_of_cells(sweep):
        st.caption(f":material/rule: {escaped(rules)}")
    words = in_words(found, names, complete=complete, signed=signed)
    if len(names) == 2:
        cells = for_map(found, names)
        _show_map(cells, sweep, run.id, words, signed=signed)
        say_whence()
        _show_cell(cells["code"].tolist(), table, sweep, run.id, complete=complete)
    else:
        st.info(f"A map needs two settings; this sweep varies {len(names)}.", icon=":material/info:")
    for error, runs in failures(table).items():
        st.warning(f"{counted(runs, 'run')} could not be trained: {escaped(error)}", icon=":material/warning:")
    with st.expander("In words, and what decides a verdict", icon=":material/rule:"):
        st.markdown(escaped(words))
        st.markdown(p_values_in_words(number_of_tests(found), final=complete))
    with st.expander("Every cell", icon=":material/table_rows:", expanded=len(names) != 2):
        show_table(found, name=f"cells-{run.id}", column_config=_COLUMNS)
        csv_button(table, f"sweep-{run.id}")
        json_button(sweep, "sweep")


#: A map of more columns has cells too narrow for numbers on the screen of a phone.
_COLUMNS_MOST = 7


#: The columns of the table of all cells: their titles and what they say.
_COLUMNS = {
    name: st.column_config.Column(title, help=told)
    for name, (title, told) in {
        "untrained": ("untrained", "Seeds that could not be trained: each ended in an error."),
        "pairs": ("pairs", "Seeds with a finite gain, of which the median is."),
        "wins": ("wins", "Seeds in which the average ended with the lower loss."),
        "median_gain_percent": (
            "median gain (%)",
            "The median over the pairs, in percent of the original's final loss; above 0 the average is better.",
        ),
        "low_percent": ("from (%)", "Where the 95 % interval of the median begins."),
        "high_percent": ("to (%)", "Where the 95 % interval of the median ends."),
        "wilcoxon_p": ("Wilcoxon p", "Of this cell alone."),
        "p": ("p", "The same after Holm's correction for all tests: by it the verdict goes."),
        "test": ("test", "Cells with the same number have the same losses, and are one test."),
    }.items()
}


def _show_map(cells: pd.DataFrame, sweep: Sweep, sweep_id: str, words: str, *, signed: bool) -> None:
    x, y = sweep.grid
    across, up = setting_in_words(x), setting_in_words(y)
    drawn = evidence_map(
        cells,
        [value_label(value) for value in sweep.grid[x]],
        [value_label(value) for value in sweep.grid[y]],
        x_title=across,
        y_title=up,
        signed=signed,
        dark=st.context.theme.type == "dark",
    )
    key = f"map-{sweep_id}"
    with picture(cells, key):
        st.vega_lite_chart(
            drawn.data,
            drawn.spec,
            alt=f"The median gain of averaging in the final loss over {across} and {up}: {words}",
            width="stretch",
            on_select=partial(_take_cell, key),
            selection_mode=CELL,
            key=key,
        )
    multiples, end = (
        ("", "100 % of the original's size")
        if signed
        else (" (x 20: the loss is 20 times the original's)", "a factor of 4")
    )
    narrow = " Where cells are too narrow for numbers, it says them." if len(sweep.grid[x]) > _COLUMNS_MOST else ""
    st.caption(
        f"The median gain in the final loss{multiples}, and in how many seeds the average was better. **Look for** "
        f"where blue (it helps) turns to orange (it hurts), full from {end} on; hatched shows neither. A click "
        f"chooses a cell.{narrow}"
    )


def _take_cell(key: str) -> None:
    """Choose the cell that was clicked: a callback."""
    cells = st.session_state[key]["selection"].get(CELL, [])
    if cells and "code" in cells[0]:
        st.session_state["sweep_cell"] = cells[0]["code"]


def _show_cell(codes: list[str], table: pd.DataFrame, sweep: Sweep, sweep_id: str, *, complete: bool) -> None:
    """A choice among the cells by their codes, and the evidence of the one that is chosen."""
    if st.session_state.get("sweep_cell") not in codes:
        st.session_state["sweep_cell"] = None
    code = st.selectbox(
        "Cell",
        codes,
        index=None,
        key="sweep_cell",
        placeholder="Click a cell, or choose one here",
        help="The cell whose seeds are shown below; a click on the map chooses one, too.",
        **BOUND,
    )
    if code is None:
        return
    asked = questions_of(table, list(sweep.grid), codes.index(code), complete=complete)
    cell = asked["final"]
    if cell.failed:
        st.info("None of its seeds could be trained.", icon=":material/info:")
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
                st.session_state["study"] = _study_of(Study(config, sweep.seeds))
            st.switch_page("pages/evidence.py", query_params={"study": st.session_state["study"]})
    with dots:
        show_differences(cell.rows, compared["final"], f"{sweep_id}-cell", is_article=is_article(config))


def _study_of(study: Study) -> str:
    """The id of this study, which is queued unless the store has it."""
    queue = job_queue()
    studies = queue.store.studies()
    same = studies[(studies["config"] == study.to_json(indent=None)) & studies["state"].isin(["done", "running"])]
    return str(same["id"].iloc[0]) if len(same) else queue.submit(study)
