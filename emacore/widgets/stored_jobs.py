"""What the page Runs is made of: find stored jobs, choose rows, and what can be done with those."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
import streamlit as st

from emacore.charts.lines import lines
from emacore.charts.style import AVERAGED, CHOSEN, CLEAN, OTHERS
from emacore.experiments.archive import write_archive
from emacore.experiments.listing import (
    ORDERS,
    chosen,
    curve_name,
    differences,
    measured_alike,
    ordered,
    overlay,
    short_names,
)
from emacore.experiments.names import SERVER, words_of
from emacore.experiments.store import STATES, RunStore, StoredRun, StoreError
from emacore.experiments.studies import Sweep
from emacore.formatting import counted, in_bytes
from emacore.limits import CELLS_BYTES, NAME_LETTERS, RECORDING_BYTES, RECORDINGS_BYTES, TABLES_BYTES
from emacore.widgets.again import PAGES, again_button, can_be_replayed, replay_button
from emacore.widgets.jobs import attempt, job_queue
from emacore.widgets.link import from_link, to_link
from emacore.widgets.page import BOUND, csv_button, escaped, loss_axis, put, readable, show_chart, show_table, told

#: What the page calls the kinds.
KINDS = {"Runs": "run", "Studies": "study", "Sweeps": "sweep"}
COLOURS = (AVERAGED, *OTHERS, CHOSEN, CLEAN)
MOST_CURVES = len(COLOURS)
MODELS = {"EMA": ("ema",), "original": ("original",), "both": ("original", "ema")}
#: The key of the ids, with commas between them, of the rows that are chosen.
_PICKED = "picked"
#: The session's key of the ids that are chosen in the table, and of how many tables there were.
_IN_TABLE = "picked_in_table"
#: At most this many names are listed before a deletion.
_LISTED_MOST = 10
#: Letters of a name that its column shows.  What tells runs of the same settings apart stands at the name's end, so
#: longer ones wrap, which Streamlit does in rows of more than 64 pixels.
_LETTERS_A_LINE, _WRAPPING = 64, 66
#: Settings of up to this many jobs stand beside each other in lines that wrap; those of more jobs scroll.
_BESIDE_MOST = 4


def found_jobs(jobs: pd.DataFrame) -> pd.DataFrame:
    """The controls that filter and sort, and what they leave of ``jobs``."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input(
            "Find",
            key="find_job",
            placeholder="adam 0.01",
            width=260,
            help="Words of the name, the state or the numbers, in any order. A job that has them all stays.",
            **BOUND,
        )
        kinds = st.pills(
            "Kind",
            list(KINDS),
            selection_mode="multi",
            key="kinds",
            help="One training, many seeds, or a map of two settings. None chosen shows all.",
            **BOUND,
        )
        states = st.multiselect(
            "State",
            [*STATES, "diverged"],
            key="states",
            placeholder="All",
            width=260,
            help="How they are going, or how they ended. None chosen shows all.",
            **BOUND,
        )
        order = st.selectbox(
            "Order",
            list(ORDERS),
            key="order",
            width=220,
            help="What comes first; jobs without such a number come last. Losses of other data are not on one scale.",
            **BOUND,
        )
    left = chosen(jobs, text=text or "", kinds=[KINDS[kind] for kind in kinds or ()], states=states)
    return ordered(left, order or next(iter(ORDERS)))


def picked_jobs(found: pd.DataFrame) -> pd.DataFrame:
    """The table of jobs, and those of its rows that are chosen in it; the link holds them, a filter drops them."""
    ids = found["id"].tolist()
    wanted = [job_id for job_id in (from_link(_PICKED) or "").split(",") if job_id in ids]
    # Rows are chosen by their number, so another list is another table; so it is where a link chose, not the table.
    # One entry of the session, since a run of the page can be cut short between two.
    chosen, tables = st.session_state.get(_IN_TABLE, (None, 0))
    if chosen != wanted:
        tables += 1
        st.session_state[_IN_TABLE] = (wanted, tables)
    key = f"jobs-{zlib.crc32(','.join(ids).encode()):x}-{tables}"
    event = st.dataframe(
        readable(_columns(found)),
        hide_index=True,
        width="stretch",
        placeholder="",
        row_height=_WRAPPING if found["name"].str.len().max() > _LETTERS_A_LINE else None,
        on_select="rerun",
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [ids.index(job_id) for job_id in wanted]}},
        key=key,
        column_config={
            "name": st.column_config.TextColumn("name", width=480),
            "created": st.column_config.DatetimeColumn("age", format="distance"),
            "original": st.column_config.Column("loss, original"),
            "ema": st.column_config.Column("loss, EMA"),
            "gain_percent": st.column_config.Column(
                "better (%)",
                help="The gain in percent of the original's loss, above 0 where the average is better; of a study, the "
                "median over the seeds with a finite one.",
            ),
            "seconds": st.column_config.Column("took (s)"),
        },
    )
    rows = [row for row in event["selection"]["rows"] if row < len(ids)]
    picked = [ids[row] for row in rows]
    put({_PICKED: ",".join(picked), _IN_TABLE: (picked, tables)})
    to_link(_PICKED)
    return found.iloc[rows]


def _columns(found: pd.DataFrame) -> pd.DataFrame:
    table = found[["name", "kind", "state", "created", "epochs", "original", "ema", "gain_percent", "seconds"]]
    return table.assign(state=table["state"].str.split(" ").str[0]).reset_index(drop=True)


def actions(found: pd.DataFrame, picked: pd.DataFrame) -> None:
    """What can be done with the rows that are chosen, and with all that are found."""
    with st.container(horizontal=True):
        some = picked if len(picked) else found
        st.download_button(
            f"{counted(len(some), 'job')} as one zip",
            data=partial(_zipped, job_queue().store, some),
            file_name="emacore-jobs.zip",
            mime="application/zip",
            icon=":material/folder_zip:",
            on_click="ignore",
            key="zip",
            help="Settings as JSON, curves and figures as CSV with every digit, and the tables they trained on. It is "
            "made when you press; recorded weights are not in it.",
        )
        if len(picked) == 1:
            _of_one(picked.iloc[0])
        if len(picked):
            _stop(picked)
            _delete(picked)
    csv_button(found.drop(columns=["label"]), "jobs")


def _of_one(row: pd.Series) -> None:
    with told():
        run = job_queue().store.result(row["id"])
        replayed = can_be_replayed(job_queue().store, run)
    page, key = PAGES[row["kind"]]
    if st.button(
        "Open",
        icon=":material/open_in_new:",
        help="Shows its curves and figures on the page that trained it.",
        on_click=put,
        args=({key: run.id},),
    ):
        st.switch_page(page, query_params={key: run.id})
    if replayed:
        replay_button(run)
    again_button(run, row["kind"])
    with st.popover("Rename", icon=":material/edit:"):
        _rename(run, row["config"])


def _rename(run: StoredRun, config: str) -> None:
    key = f"new-name-{run.id}"
    with st.form(f"rename-{run.id}", border=False):
        st.text_input(
            "Name",
            run.name or "",
            NAME_LETTERS,
            key=key,
            placeholder=words_of(config),
            help=f"Up to {NAME_LETTERS} letters; pickers on all pages show it. Empty brings the settings' own back.",
        )
        st.form_submit_button(
            "Rename",
            on_click=lambda: attempt(lambda: job_queue().store.rename(run.id, st.session_state[key])),
            type="primary",
        )


def _stop(picked: pd.DataFrame) -> None:
    ids = picked.loc[picked["state"].isin(["queued", "running"]), "id"].tolist()
    if ids:
        st.button(
            "Stop",
            icon=":material/stop:",
            on_click=_each,
            args=(ids, "stop"),
            help=f"End the {counted(len(ids), 'job')} of these still to be trained; what is there is kept.",
        )


def _delete(picked: pd.DataFrame) -> None:
    """Delete jobs after two questions: a box to tick below the list of what goes, and then the button."""
    going = picked["state"] == "running"
    ids, names = picked.loc[~going, "id"].tolist(), picked.loc[~going, "name"].tolist()
    with st.popover("Delete", icon=":material/delete:"):
        if going.any():
            still = "trains: stop it" if going.sum() == 1 else "train: stop them"
            st.warning(f"{going.sum()} of these still {still} first.", icon=":material/warning:")
        if not ids:
            return
        st.markdown("\n".join(f"- {escaped(name)}" for name in names[:_LISTED_MOST]))
        if len(names) > _LISTED_MOST:
            st.markdown(f"and {len(names) - _LISTED_MOST} more")
        st.markdown("Settings, curves and recorded weights go, and the tables and cells that no other job uses.")
        which = zlib.crc32(",".join(ids).encode())
        sure = st.checkbox(f"Yes, {'this one' if len(ids) == 1 else f'these {len(ids)}'}", key=f"sure-{which:x}")
        st.button(
            "Delete for good",
            disabled=not sure,
            on_click=_each,
            args=(ids, "delete"),
            type="primary",
            key="delete",
        )


def budgets(listed: pd.DataFrame) -> None:
    """What the store takes on the disk and what it may take, and buttons that free recorded weights (those of deleted
    jobs, too), tables that no job uses, and cells of sweeps."""
    store = job_queue().store
    with told():
        taken, recorded, unused = store.taken(), store.recorded_bytes(), store.unused_tables()
    with st.expander(f"Disk: {in_bytes(sum(taken.values()))}", icon=":material/hard_drive:"):
        st.markdown(
            f"Recorded weights {in_bytes(taken['recordings'])} of at most {in_bytes(RECORDINGS_BYTES)}, of which one "
            f"run takes {in_bytes(RECORDING_BYTES)} at most; tables {in_bytes(taken['tables'])} of "
            f"{in_bytes(TABLES_BYTES)}; cells of sweeps {in_bytes(taken['cells'])} of {in_bytes(CELLS_BYTES)}; "
            f"histories {in_bytes(taken['histories'])}. Beyond that the oldest recordings, cells and tables that no "
            "job trains on go, never a history."
        )
        states = dict(zip(listed["id"], listed["state"], strict=True))
        created = dict(zip(listed["id"], listed["created"], strict=True))
        over = {job_id: size for job_id, size in recorded.items() if states.get(job_id) not in ("queued", "running")}
        days = st.number_input(
            "Recorded weights of jobs older than (days)",
            0,
            10_000,
            30,
            key="free_days",
            help="Fewer days free more. Settings, curves and figures stay; only What if needs the weights.",
            **BOUND,
        )
        limit = pd.Timestamp.now(tz="UTC") - pd.Timedelta(days=days)
        old = [job_id for job_id in over if job_id not in created or created[job_id] <= limit]
        freed = sum(over[job_id] for job_id in old)
        with st.container(horizontal=True):
            _free_button(
                "free",
                freed,
                counted(len(old), "recording"),
                lambda: _each(old, "free"),
                "At once and for good; on the command line: emacore runs --prune.",
            )
            _free_button(
                "free_tables",
                sum(unused.values()),
                counted(len(unused), "table"),
                lambda: attempt(store.drop_tables),
                "Uploaded files that no job trains on. Whoever has one open has to upload it again.",
            )
            _free_button(
                "free_cells",
                taken["cells"],
                "cells",
                lambda: attempt(store.drop_cells),
                "Results that are kept so that sweeps, and questions about checkpoints, need not compute them again. "
                "The tables of sweeps stay.",
            )


def _free_button(key: str, size: int, what: str, free: Callable[[], None], help: str) -> None:
    st.button(f"Free {in_bytes(size)} of {what}", on_click=free, disabled=not size, key=key, help=help)


def _each(ids: Sequence[str], what: str) -> None:
    """Stop, delete or free these jobs, by ``what``: a callback.  A job for which it fails does not keep the others."""
    queue, problems = job_queue(), []
    for job_id in ids:
        try:
            {"stop": queue.stop, "delete": queue.store.delete, "free": queue.store.drop_recording}[what](job_id)
        except StoreError as error:
            problems.append(str(error))
    if problems:
        put({"problem": " ".join(dict.fromkeys(problems))})


def _zipped(store: RunStore, jobs: pd.DataFrame) -> bytes:
    with tempfile.TemporaryFile() as file:
        write_archive(file, store, jobs)
        file.seek(0)
        return file.read()


def compare(picked: pd.DataFrame) -> None:
    """The curves of several jobs on one axis, and the settings in which they differ."""
    store = job_queue().store
    with told():
        ids = dict(zip(picked["name"], picked["id"], strict=True))
        runs = {name: store.result(job_id) for name, job_id in ids.items()}
    short = short_names(list(runs), [name for name, run in runs.items() if run.name or run.asked == SERVER])
    _curves(ids, runs, short)
    if len(runs) < 2:
        return
    st.header("What their settings differ in")
    table = differences({short[name]: run.job for name, run in runs.items()})
    if table.empty:
        st.markdown("In nothing: they are the same experiment with the same seed.")
    else:
        show_table(table, name="differences", wrapped=len(runs) <= _BESIDE_MOST)


def _curves(ids: dict[str, str], runs: dict[str, StoredRun], short: dict[str, str]) -> None:
    store = job_queue().store
    drawn = {name: run for name, run in runs.items() if not isinstance(run.job, Sweep)}
    first = dict(list(drawn.items())[:MOST_CURVES])
    with st.container(horizontal=True):
        which = st.segmented_control(
            "Curves of",
            list(MODELS),
            default="EMA",
            key="overlaid",
            required=True,
            help="The averaged model, the trained one, or both: then the trained one is the thin line.",
            **BOUND,
        )
        across = st.segmented_control(
            "Across",
            ["epoch", "steps"],
            default="epoch",
            key="overlay_x",
            required=True,
            help="Runs with different batch sizes or rows take different numbers of steps in an epoch.",
            **BOUND,
        )
        scale = loss_axis()
    models = MODELS[which]
    with told():
        histories = {short[name]: store.history(ids[name]) for name in first}
    table = overlay({short[name]: run.job for name, run in first.items()}, histories, models)
    if table.empty:
        st.info(
            "None of these has a curve: a sweep has figures only, and others have no epoch yet.", icon=":material/info:"
        )
        return
    colours = {
        curve_name(short[name], model, models): colour
        for name, colour in zip(first, COLOURS, strict=False)
        for model in models
    }
    show_chart(
        lines(
            table,
            x=across,
            y="loss",
            series="curve",
            colours=colours,
            x_title="optimiser steps" if across == "steps" else "epoch",
            y_title="validation loss",
            y_scale=scale,
            faint=[curve_name(name, "original", models) for name in short.values()] if len(models) > 1 else (),
        ),
        alt_text=f"Validation losses of {counted(len(first), 'job')}: {', '.join(first)}",
        table=table,
        name="overlay",
    )
    notes = []
    if not measured_alike({name: run.job for name, run in first.items()}):
        notes.append("These are of different data or tasks: the heights of their losses cannot be compared.")
    if any(run.job is not run.config for run in first.values()):
        notes.append("Of a study, the line is the median over the seeds that still train.")
    if len(drawn) > len(first):
        notes.append(f"The first {len(first)} of {len(drawn)} are drawn: more colours could not be told apart.")
    if notes:
        st.caption(" ".join(notes))
