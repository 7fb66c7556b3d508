import hashlib
import os

import numpy as np
import pytest
import torch

from emacore.checkpoints.files import CheckpointError
from emacore.checkpoints.hashing import Hashes


def of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 1000, 3 * 2**20 + 7])
def test_hashes_are_those_of_the_whole_files_whatever_they_are_given(tmp_path, size):
    content = os.urandom(size)
    generator = np.random.default_rng(size)
    for number in range(20):
        path = tmp_path / f"{number}"
        path.write_bytes(content)
        hashes = Hashes([path])
        for begin, count in generator.integers(0, [size + 1, size // 5 + 1], (number, 2)).tolist():
            part = content[begin : begin + count]
            hashes.take(path, begin, torch.tensor(list(part[:5000]), dtype=torch.uint8))
            hashes.read(path, generator.random() / 2)
        hashes.take(tmp_path / "another", 0, torch.ones(3))
        hashes.read(path)
        assert hashes.digests == {path: of(path)}


def test_what_was_taken_is_not_read_again_in_any_dtype(tmp_path, monkeypatch):
    numbers = torch.arange(1000, dtype=torch.bfloat16)
    path = tmp_path / "file"
    path.write_bytes(b"begin" + numbers.view(torch.uint8).numpy().tobytes() + b"end")
    hashes = Hashes([path])
    read = []
    for digest in hashes._of.values():
        monkeypatch.setattr(
            digest.parts,
            "read",
            lambda at, into, real=digest.parts.read: (read.append((at, len(into))), real(at, into)),
        )
    for start in range(0, 1000, 300):
        hashes.take(path, 5 + 2 * start, numbers[start : start + 300])
    hashes.read(path)
    assert hashes.digests == {path: of(path)}
    assert read == [(0, 5), (2005, 3)]


def test_who_stops_reads_no_more_and_who_reads_a_shorter_file_is_told(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10**6)
    hashes, stopped = Hashes([path]), Hashes([path])
    stopped.stop()
    stopped.read(path)
    assert stopped.digests == {path: hashlib.sha256().hexdigest()}
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match="file has got shorter"):
        hashes.read(path)
