import signal
import subprocess
import sys

import pytest
import torch

from emacore import merge, open_checkpoints
from emacore.averaging.coefficients import LastFiles
from emacore.checkpoints import beside
from emacore.checkpoints.beside import clear_left, whole_or_nothing

HOLDS = """
import runpy, sys
from pathlib import Path
whole_or_nothing = runpy.run_path(sys.argv[2])["whole_or_nothing"]  # not the package: it loads torch
with whole_or_nothing(Path(sys.argv[1])) as (partial, moves):
    (partial / "half").write_bytes(b"x")
    print(partial.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_what_one_that_lives_writes_is_not(folder):
    path, _ = folder
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDS, path / name, beside.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("out", "another")
    ]
    try:
        killed, living = (path / one.stdout.readline().strip() for one in holders)
        (foreign := path / ".out.partial-00000000").mkdir()  # of no one who locks
        (empty := path / ".out.partial-11111111.lock").touch()  # killed before there was a folder
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait()
        assert clear_left(path) == [f"removed {killed.name}, which a merge that was killed had left half written"]
        assert not killed.exists()
        assert not empty.exists()
        with whole_or_nothing(path / "third") as (own, _):
            assert clear_left(path) == []
            assert [own.is_dir(), (living / "half").is_file(), foreign.is_dir()] == [True] * 3
    finally:
        for one in holders:
            one.kill()
            one.communicate()
    with pytest.warns(UserWarning, match=rf"removed {living.name}, which a merge that was killed"):
        merge(open_checkpoints(path), {"a": LastFiles(2)}, path / "out")
    assert [one.name for one in path.glob(".*")] == [foreign.name]


def test_a_failure_leaves_the_folders_that_there_were(tmp_path):
    (tmp_path / "there" / "out").mkdir(parents=True)
    for out in ("there/out", "there/new/out", "new/newer/out"):
        with pytest.raises(ZeroDivisionError), whole_or_nothing(tmp_path / out):
            _ = 1 / 0
    assert sorted(str(one.relative_to(tmp_path)) for one in tmp_path.rglob("*")) == ["there", "there/out"]


def test_where_there_are_no_locks_results_are_written_all_the_same(folder, monkeypatch):
    path, _ = folder

    def none(self, *arguments, **named):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", none)
    (path / ".b.partial-22222222.lock").touch()
    (kept := path / ".b.partial-22222222").mkdir()
    [place] = merge(open_checkpoints(path), {"a": LastFiles(2)}, path / "out", form="pt")
    assert torch.load(place)
    assert kept.is_dir()
    assert len(list(path.glob(".*"))) == 2
