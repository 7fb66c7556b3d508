"""Files that are read in parts while others write them."""

import threading
from pathlib import Path

import pytest
import torch

from emacore.checkpoints import files
from emacore.checkpoints.files import CheckpointError, PartsOf, Stamp

FDS = Path("/proc/self/fd")


@pytest.fixture
def several(tmp_path):
    """Some files whose bytes tell which they are."""
    paths = [tmp_path / str(number) for number in range(6)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 1000)
    return [PartsOf(path) for path in paths]


def held():
    return len(list(FDS.iterdir()))


@pytest.mark.skipif(not FDS.is_dir(), reason="needs /proc")
def test_few_files_are_held_open_however_many_threads_read_how_many(several, monkeypatch):
    monkeypatch.setattr(files, "_MOST_OPEN", 2)
    PartsOf._recent.clear()
    before, wrong = held(), []

    def read(begin):
        buffer = torch.empty(10, dtype=torch.uint8)
        for turn in range(300):
            number = (begin + turn) % len(several)
            several[number].read(turn, buffer)
            wrong.extend(buffer[buffer != number].tolist())

    threads = [threading.Thread(target=read, args=(begin,)) for begin in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert held() <= before + 2
    several.clear()
    assert held() <= before


def test_what_has_got_shorter_or_is_gone_is_a_sentence(several, tmp_path):
    buffer = torch.empty(10, dtype=torch.uint8)
    for number, other in ((0, b"short"), (1, b"")):
        (tmp_path / str(number)).write_bytes(other)
        for look in (several[number].check_length, lambda number=number: several[number].read(3, buffer)):
            with pytest.raises(CheckpointError, match=f"^{number} has got shorter since it was opened"):
                look()
    (tmp_path / "2").unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        Stamp.of(tmp_path / "2")
    several[3].read(999, torch.empty(1, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="3 has got shorter"):
        several[3].read(999, buffer)
