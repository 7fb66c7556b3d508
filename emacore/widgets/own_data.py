"""A table of one's own to train on: upload, what its columns are taken as, and what becomes of blanks and words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd
import streamlit as st

from emacore import tables
from emacore.apart import call_apart
from emacore.experiments.store import RunStore
from emacore.formatting import in_bytes
from emacore.limits import TABLE_BYTES
from emacore.tables import Table, TableError, hash_of, read_file
from emacore.tasks.regression.config import BLANKS, TEXTS, DataConfig
from emacore.widgets.page import BOUND, escaped

if TYPE_CHECKING:
    from emacore.tasks.regression.columns import Described

T = TypeVar("T")

#: The session's key of the uploaded file, as its name and its hash.
OWN_TABLE = "own_table"


def own_data_state(data: DataConfig) -> dict[str, Any]:
    """The controls' values that show these settings of a table, by key; with the session's table, if they name one."""
    state: dict[str, Any] = {
        "target": data.target,
        "features": list(data.features or ()),
        "blanks": data.blanks,
        "words": data.text,
    }
    return state if data.path is None else {**state, OWN_TABLE: (data.path, data.sha256)}


def own_data_controls(store: RunStore) -> dict[str, Any]:
    """The settings of a table that is uploaded, or that the session has.

    Raises:
        ValueError: as long as there is none, or it cannot be trained on.
    """
    from emacore.tasks.regression.columns import usable_targets  # takes scikit-learn a second to load

    file = st.file_uploader(
        "CSV with a header row",
        key="own_data",
        help=f"Text in UTF-8, up to {in_bytes(TABLE_BYTES)}. It stays on the server, beside the runs; it is not part "
        "of the link, and settings that are downloaded have its name and hash only.",
        max_upload_size=TABLE_BYTES // 2**20,
    )
    if file is not None:
        content = file.getvalue()
        store.add_table(content)
        st.session_state[OWN_TABLE] = (file.name, hash_of(content))
    path, sha256 = st.session_state.get(OWN_TABLE) or (None, None)
    table = None if path is None else _table(path, sha256)
    if table is None:
        raise ValueError("Choose a CSV file first (under Data), or another data set")
    if not (targets := _once("targets", (path, sha256), lambda: usable_targets(table))):
        raise TableError(f"The table has no column of numbers; it has {', '.join(map(str, table.frame.columns))}.")
    if st.session_state.get("target") not in targets:
        st.session_state["target"] = targets[-1]
    target = st.selectbox(
        "Column to predict",
        targets,
        key="target",
        help="The target: the column of numbers that the network learns to predict. Another one is another task, with "
        "losses of its own.",
        **BOUND,
    )
    others = [str(name) for name in table.frame.columns if name != target]
    if set(st.session_state.get("features") or ()) - set(others):
        st.session_state["features"] = []
    features = st.multiselect(
        "Features",
        others,
        key="features",
        placeholder="All that can be used",
        help="The columns from which the target is predicted; with none chosen, all others of numbers and truth "
        "values. Leave out those that give the target away.",
        **BOUND,
    )
    blanks = st.segmented_control(
        "Rows with blanks",
        BLANKS,
        default="refuse",
        key="blanks",
        required=True,
        help="What becomes of rows in which the target or a feature is missing or infinite. refuse: nothing is "
        "trained, and the first is named; drop: they are left out; mean, median: features are filled in from the "
        "other rows.",
        **BOUND,
    )
    text = st.segmented_control(
        "Columns of words",
        TEXTS,
        default="leave out",
        key="words",
        required=True,
        help="leave out: columns of words are not used; one-hot: each word becomes a column, which is 1 where the word "
        "stands and 0 elsewhere, so there are more features.",
        **BOUND,
    )
    chosen: dict[str, Any] = {
        "path": path,
        "sha256": sha256,
        "target": target,
        "features": tuple(features) or None,
        "blanks": blanks,
        "text": text,
    }
    about = _described(table, DataConfig("csv", **chosen))
    rows, used = about.rows
    st.caption(
        f"{escaped(path)}: {used:,} of {rows:,} rows, {len(about.named('feature')):,} features. What each "
        "column is taken as:"
    )
    st.dataframe(pd.DataFrame(about.columns, columns=["column", "taken as", "used as", "remark"]), hide_index=True)
    if about.notes:
        more = len(about.notes) - 20
        shown = [f"- {escaped(words)}" for words in about.notes[:20]] + [f"- and {more:,} more"] * (more > 0)
        st.info("\n".join(shown), icon=":material/info:")
    return chosen


def _described(table: Table, config: DataConfig) -> Described:
    """What becomes of the table's columns; computed once for the settings that are shown."""
    from emacore.tasks.regression.columns import described

    return _once("described", config, lambda: described(table, config))


def _once(what: str, key: Any, make: Callable[[], T]) -> T:
    """What ``make`` returns, which the session keeps until ``key`` is another one."""
    known = st.session_state.get(f"own_table_{what}")
    if known is None or known[0] != key:
        known = st.session_state[f"own_table_{what}"] = (key, make())
    found: T = known[1]
    return found


def _table(path: str, sha256: str | None) -> Table | None:
    """The session's table, read once; ``None`` if its file is gone, as it is with the last run that used it."""
    if sha256 is not None and not tables.is_kept(sha256):
        return None

    def read() -> Table:
        content = read_file(path, sha256)
        return tables.table_of(content) if tables.is_light(content) else call_apart(tables.table_of, content)

    return _once("read", (path, sha256), read)
