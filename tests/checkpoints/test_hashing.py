import hashlib
import os

import pytest

from emacore.checkpoints.hashing import Hashes


def test_hashes_are_those_of_the_whole_files_whatever_was_told(tmp_path):
    files = {tmp_path / f"{size}": os.urandom(size) for size in (0, 1, 1000, 3 * 2**20 + 7)}
    for path, content in files.items():
        path.write_bytes(content)
    for shares in ([], [0.3, 0.300001, 0.9], [1.0]):
        hashes = Hashes(set(files))
        with hashes.followed() as follow:
            for share in shares:
                follow(share)
        assert hashes.digests == {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}


def test_whoever_gives_up_does_not_wait_for_the_rest(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 10**6)
    hashes = Hashes({tmp_path / "a"})
    with pytest.raises(KeyboardInterrupt), hashes.followed():
        raise KeyboardInterrupt
    assert not hashes.digests
