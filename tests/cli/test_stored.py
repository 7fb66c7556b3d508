import io

import pandas as pd
import pytest
from click.testing import CliRunner

from emacore import RunConfig
from emacore import __main__ as command_line
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study
from tests.helpers import ME


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("EMACORE_HOME", str(tmp_path))
    return RunStore(tmp_path)


def emacore(*arguments, code=0, **further):
    result = CliRunner().invoke(command_line.cli, list(arguments), **further)
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_a_list_a_name_and_what_is_known_of_one(store):
    run_id, study_id = store.create(RunConfig(seed=5)), store.create(Study(RunConfig(), (1, 2)))
    for command in (("runs",), ("runs", "list")):
        listed = pd.read_csv(io.StringIO(emacore(*command).stdout))
        assert listed["id"].tolist() == [study_id, run_id]
    emacore("runs", "rename", run_id, "mine")
    shown = emacore("runs", "show", run_id).stdout.splitlines()
    assert {"name: mine", "state: queued", "seed: 5", "optimizer.learning_rate: 0.001"} <= set(shown)
    assert len(emacore("runs", "show", study_id).stdout.splitlines()) > 10


def test_deleting_asks(store):
    one, other, third = (store.create(RunConfig(seed=n)) for n in range(3))
    asked = emacore("runs", "delete", one, input="n\n", code=1)
    assert "Delete for good?" in asked.output
    assert len(store.runs()) == 3
    emacore("runs", "delete", one, input="y\n")
    emacore("runs", "delete", other, "--yes")
    assert store.runs()["id"].tolist() == [third]
    store.claim(ME, 1)
    assert "still training" in str(emacore("runs", "delete", third, "--yes", code=1).exception)
