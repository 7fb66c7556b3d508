"""Settings, rows of a store and texts of links at random: each is taken, or refused in a sentence."""

import json
import sqlite3
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emacore import RunConfig
from emacore.experiments.store import Damaged, RunStore
from emacore.experiments.studies import Sweep, job_from_json, json_values
from tests.helpers import FUZZED

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
BOUNDED = settings(max_examples=FUZZED, deadline=None, database=None)


def places(value, path=()):
    """The paths to all values within settings."""
    yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from places(inner, (*path, name))


def changed(value, path, new):
    """The same with another value at one place."""
    if not path:
        return new
    return {**value, path[0]: changed(value[path[0]], path[1:], new)}


JOBS = [
    json.loads(RunConfig().to_json()),
    {"config": json.loads(RunConfig().to_json()), "seeds": [1, 2], "schedules": []},
    json.loads(Sweep(RunConfig(), {"max_epochs": [1, 2]}, (0,)).to_json()),
]


@BOUNDED
@given(st.data())
def test_settings_at_random(data):
    job = data.draw(st.sampled_from(JOBS))
    path = data.draw(st.sampled_from(list(places(job))))
    text = json.dumps(changed(job, path, data.draw(JSON)))
    with suppress(ValueError):
        job_from_json(text)


@BOUNDED
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_bytes_at_random_are_no_settings(content):
    with suppress(ValueError):
        job_from_json(content)


@BOUNDED
@given(st.text(alphabet="1,;()[]{}\"'.eE+- aC=", max_size=80))
def test_values_of_a_link_at_random(text):
    assert isinstance(json_values(text), list)


@pytest.fixture(scope="module")
def damaged_store(tmp_path_factory):
    store = RunStore(tmp_path_factory.mktemp("hostile"))
    return store, store.create(RunConfig()), store.create(RunConfig(seed=7))


COLUMNS = (
    "state",
    "created",
    "started",
    "finished",
    "heartbeat",
    "worker",
    "stopped",
    "error",
    "config",
    "kind",
    "name",
)
CELLS = (
    st.none()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)


@BOUNDED
@given(column=st.sampled_from((*COLUMNS, "took", "note", "asked", "stop_requested")), value=CELLS, epoch=CELLS)
def test_rows_of_a_store_at_random(damaged_store, column, value, epoch):
    store, hostile, whole = damaged_store
    with sqlite3.connect(store.path, isolation_level=None) as connection:
        before = connection.execute(f"SELECT {column} FROM runs WHERE id = ?", (hostile,)).fetchone()[0]
        try:
            connection.execute(f"UPDATE runs SET {column} = ? WHERE id = ?", (value, hostile))
            connection.execute("INSERT OR REPLACE INTO epochs VALUES (?, 1, ?)", (hostile, epoch))
        except sqlite3.IntegrityError:
            return
        store.interrupt_abandoned()
        assert whole in set(store.jobs()["id"])
        store.counts(), store.make_room(hostile), store.tables_of([hostile])
        for read in (store.result, store.history):
            with suppress(Damaged):
                read(hostile)
        connection.execute(f"UPDATE runs SET {column} = ?, state = 'queued' WHERE id = ?", (before, hostile))
        connection.execute("DELETE FROM epochs")
