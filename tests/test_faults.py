"""The short form of benchmarks/faults.py."""

import random

import pytest

from benchmarks import faults
from benchmarks.faults import full_disk, kills, read_only, table
from emacore.experiments import jobs
from tests.forked import forking


@pytest.fixture
def forked(monkeypatch):
    """Servers, workers and commands."""
    for module in (faults, jobs):
        forking(monkeypatch, module)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_nothing_that_was_kept_is_lost_where_server_and_worker_are_killed(tmp_path):
    for row in kills(tmp_path, 3, random.Random(1)):
        assert row["times"] == 1
        assert (row["epochs lost"], row["left behind"], row["not whole"]) == (0, 0, 0), row


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("size", ["3m"])
def test_a_run_on_a_full_disk_ends_well(tmp_path, size):
    row = full_disk(tmp_path, size)
    if not row["times"]:
        pytest.skip(row["note"])
    assert (row["epochs lost"], row["not whole"]) == (0, 0), row
    assert "the disk is nearly full" in row["note"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_store_that_is_mounted_read_only_is_shown_and_tells_that_nothing_can_be_kept(tmp_path):
    row = read_only(tmp_path / "store")
    if not row["times"]:
        pytest.skip(row["note"])
    assert row["epochs lost"] == 0, row
    assert row["note"] == "all is shown, and that nothing can be kept is told"


@pytest.mark.long
def test_the_whole_table():
    for row in table(12):
        assert not any(row.get(name) for name in ("epochs lost", "left behind", "not whole")), row
