import json
import os
import re
import threading
from dataclasses import replace

import pytest

from emacore import RunConfig, limits
from emacore.experiments.jobs import carry_out
from emacore.experiments.store import StoreError
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import NetworkConfig, OptimizerConfig, StoppingConfig
from tests.experiments.conftest import CONFIG, claimed, row
from tests.helpers import ME


def test_tables_are_kept_once(store):
    one, two = store.add_table(b"a,b\n1,2\n"), store.add_table(b"a,b\n1,2\n")
    assert one == two
    assert one.read_bytes() == b"a,b\n1,2\n"
    assert len(list(one.parent.iterdir())) == 1


def test_the_oldest_recordings_go_first_and_their_histories_never(store, monkeypatch):
    monkeypatch.setattr(limits, "RECORDING_BYTES", 100)
    monkeypatch.setattr(limits, "RECORDINGS_BYTES", 350)
    runs = []
    for age in range(4):
        run_id = claimed(store)
        store.append(run_id, ME, row(1))
        store.finish(run_id, ME, "done")
        store.recording(run_id).mkdir(parents=True)
        (store.recording(run_id) / "weights.npy").write_bytes(b"x" * 100)
        os.utime(store.recording(run_id), (1e9 + age, 1e9 + age))
        runs.append(run_id)
    assert store.make_room("new") == 100
    assert [store.recording(run_id).exists() for run_id in runs] == [False, False, True, True]
    for _ in range(3):  # which train, and may take all but 50
        claimed(store)
    assert store.make_room(runs[0]) == 50
    assert not any(store.recording(run_id).exists() for run_id in runs)
    claimed(store)
    assert store.make_room(runs[0]) == 0
    assert all(len(store.history(run_id)) == 1 for run_id in runs)
    store.recording(runs[3]).mkdir()
    store.delete(runs[3])
    assert not store.recording(runs[3]).exists()


def test_the_budget_of_all_recordings_holds_while_runs_go_on(store, monkeypatch):
    monkeypatch.setattr(limits, "RECORDING_BYTES", 20_000)
    monkeypatch.setattr(limits, "RECORDINGS_BYTES", 40_000)
    config = RunConfig(
        data=DataConfig(n_samples=40),
        network=NetworkConfig((4,)),
        max_epochs=20,
        optimizer=OptimizerConfig(batch_size=2),
    )
    config = replace(config, stopping=StoppingConfig("none"))
    most, runs = [], []

    def look(rows):
        most.append(store.taken()["recordings"])

    def train(further):
        """A run; in its first epoch another one begins, and trains to its end, and so on."""
        run_id = claimed(store, config)
        runs.append(run_id)

        def tell(rows):
            look(rows)
            if rows[0]["epoch"] == 1 and further:
                train(further - 1)

        ended = carry_out(store, run_id, ME, config, threading.Event(), tell)
        assert len(ended.history) == 20

    train(2)  # three train at a time: two may take all, so the third records nothing
    train(0)
    descriptions = 4 * 2_000
    assert 27_000 < max(most) <= 40_000 + descriptions
    assert [len(store.history(run_id)) for run_id in runs] == [20] * 4
    assert re.search(r"may take [\d.,]+ (bytes|kB) at most", store.result(runs[2]).note)


def test_tables_have_a_budget_in_which_those_of_jobs_are_safe(store, monkeypatch):
    monkeypatch.setattr(limits, "TABLES_BYTES", 30)
    used, old, new = (store.add_table(content) for content in (b"a,b\n1,2\n", b"a,b\n1,3\n", b"a,b\n1,4\n"))
    for age, table in enumerate((used, old, new)):
        os.utime(table, (1e9 + age, 1e9 + age))
    run_id = store.create(replace(CONFIG, data=DataConfig("csv", path=str(used), target="b")))
    store.add_table(b"a,b\n1,5\n")
    assert (used.exists(), old.exists(), new.exists()) == (True, False, True)
    with pytest.raises(StoreError, match="of tables that jobs train on are possible.*delete jobs that train on others"):
        store.add_table(b"a,b\n1,6\n" * 3)
    assert list(store.unused_tables()) == []
    assert used.exists()
    store.add_table(b"a,b\n1,7\n")
    store.drop_tables()
    assert [path.name for path in used.parent.iterdir()] == [used.name]
    with monkeypatch.context() as patch:  # another program may have been quicker
        patch.setattr(store, "unused_tables", lambda: {old: 8})
        store.drop_tables()
    store.delete(run_id)
    assert not used.exists()


def test_cells_have_a_budget_and_the_oldest_go_first(store, monkeypatch):
    rows = [{"seed": 0, "loss": "x" * 100}]
    size = len(json.dumps(rows))
    monkeypatch.setattr(limits, "CELLS_BYTES", 3 * size)
    for place in range(5):
        store.add_cell(f"key{place}", rows)
    assert [store.cell(f"key{place}") is None for place in range(5)] == [True, True, False, False, False]
    assert store.taken()["cells"] == 3 * size
    store.add_cell("large", rows * 9)  # whoever asked for it gets it
    assert store.cell("large") == rows * 9
    assert store.cell("key4") is None
    store.drop_cells()
    assert (store.taken()["cells"], store.cell("large")) == (0, None)
