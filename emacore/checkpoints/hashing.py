"""Hashes of files, taken of what is read of them for another reason."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from emacore.checkpoints.files import PartsOf, Stamp

#: Bytes that are read at a time of what nobody else reads.
_AT_A_TIME = 2**20


class Hashes:
    """SHA-256 of files, each of them by one thread.

    It takes bytes in their order only, and reads itself what others pass over or read in another order: the hashes are
    those of the whole files whatever it is given.
    """

    def __init__(self, files: Collection[Path]) -> None:
        self._of = {path: _Digest(path) for path in files}
        self._stopped = False

    def take(self, file: Path, at: int, numbers: Tensor) -> None:
        """What was read of a file, from this byte on; nothing where the file is none of those."""
        if (digest := self._of.get(file)) is not None and numbers.numel():
            self._read(digest, at)
            digest.take(at, numbers.view(torch.uint8))

    def read(self, file: Path, share: float = 1.0) -> None:
        """Read the file as far as to this share of it."""
        self._read(self._of[file], int(share * self._of[file].size) if share < 1 else self._of[file].size)

    def stop(self) -> None:
        """Read no more: a thread that does ends soon."""
        self._stopped = True

    @property
    def digests(self) -> dict[Path, str]:
        """By file, the SHA-256 of what was read of it, in hexadecimal digits."""
        return {path: digest.sha.hexdigest() for path, digest in self._of.items()}

    def _read(self, digest: _Digest, upto: int) -> None:
        while digest.at < upto and not self._stopped:
            some = torch.empty(min(_AT_A_TIME, upto - digest.at), dtype=torch.uint8)
            digest.parts.read(digest.at, some)
            digest.take(digest.at, some)


class _Digest:
    """SHA-256 of the first ``at`` bytes of a file."""

    def __init__(self, path: Path) -> None:
        self.parts, self.size = PartsOf(path), Stamp.of(path).size
        self.at, self.sha = 0, hashlib.sha256()

    def take(self, at: int, some: Tensor) -> None:
        """Bytes of the file: those that were taken before do not count again, nor those after a gap."""
        if at <= self.at < at + len(some):
            self.sha.update(memoryview(some[self.at - at :].numpy()))  # type: ignore[arg-type]
            self.at = at + len(some)
