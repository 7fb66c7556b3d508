"""Files read block by block, each by one thread and in its own order, so that they can be hashed on the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from emacore.checkpoints.files import Stamp
from emacore.checkpoints.hashing import Hashes
from emacore.checkpoints.planning import MergePlan, is_copied
from emacore.checkpoints.stored import StoredTensor

#: Numbers of one tensor that are read at a time; fewer where many files would make them more than so many bytes.
_BLOCK = 2**17
_BLOCK_BYTES = 2**25
#: Fewer would take more time than they save memory.
_LEAST = 2**13
#: Share of a file from which on it is read in passing; of others much would be left to the end.
_MOST = 0.9
#: Share of the bytes after which files that are read otherwise are hashed up to there.
_STRIDE = 0.002


@dataclass(frozen=True)
class Block:
    """Numbers ``start`` to ``stop - 1`` of a tensor in all files.

    Attributes:
        nbytes: What they take in the files.
        share: Of all bytes, up to its end.
    """

    name: str
    start: int
    stop: int
    nbytes: int
    share: float


def blocks_of(plan: MergePlan) -> Iterator[Block]:
    """The blocks of a merge, in the order of the newest file."""
    used = [plan.sources[n].section.tensors for n in plan.used.tolist()]
    width = sum(max(tensor.dtype.itemsize for tensor in tensors.values()) for tensors in used)
    size = min(_BLOCK, max(_LEAST, _BLOCK_BYTES // width))
    done = 0
    for name in _names(plan):
        count, each = used[0][name].numel, sum(tensors[name].dtype.itemsize for tensors in used)
        for start in range(0, max(1, count), size):
            stop = min(start + size, count)
            done += (stop - start) * each
            yield Block(name, start, stop, (stop - start) * each, done / max(1, plan.read_bytes))


def lanes_of(plan: MergePlan, count: int, *, hashed: bool) -> list[Lane]:
    """The sources of a merge, on up to so many threads; those that lie in the same files on the same."""
    of_checkpoint: dict[int, list[int]] = {}
    for n in sorted({*plan.used.tolist(), len(plan.sources) - 1}):
        of_checkpoint.setdefault(id(plan.sources[n].checkpoint), []).append(n)
    groups = list(of_checkpoint.values())
    return [Lane(plan, [n for group in groups[at::count] for n in group], hashed) for at in range(count) if groups[at:]]


class Lane:
    """Sources that one thread reads.

    Args:
        members: Their numbers.
        hashed: Whether the files of those that take part are hashed.
    """

    def __init__(self, plan: MergePlan, members: Sequence[int], hashed: bool) -> None:
        self._tensors = {n: plan.sources[n].section.tensors for n in members}
        self._used, self._newest = set(plan.used.tolist()), len(plan.sources) - 1
        used = self._used.intersection(members) if hashed else ()
        self._files = sorted({file for n in used for file in plan.sources[n].checkpoint.files})
        order = (tensor for name in _names(plan) for _, tensor in self._of(name))
        self._followed = _not_in_order(self._files, order)
        self.hashes = Hashes(self._files)
        self._told = 0.0

    def buffers(self, block: int) -> list[Tensor]:
        """Bytes for a block of so many numbers of each source."""
        return [
            torch.empty(block * max(one.dtype.itemsize for one in tensors.values()), dtype=torch.uint8)
            for tensors in self._tensors.values()
        ]

    def read(self, block: Block, buffers: Sequence[Tensor]) -> dict[int, Tensor]:
        """The numbers of a block, by the number of the source; they may lie in the buffers.

        Of a tensor that is copied, those of the newest source are all that is needed.
        """
        found = {}
        for (n, tensor), buffer in zip(self._of(block.name), buffers, strict=False):
            found[n] = tensor.read(block.start, block.stop, buffer)
            if tensor.parts is not None and tensor.parts.path not in self._followed:
                self.hashes.take(tensor.parts.path, tensor.offset + block.start * tensor.dtype.itemsize, found[n])
        if block.share > self._told + _STRIDE:
            self._told = block.share
            for file in self._followed:
                self.hashes.read(file, block.share)
        return found

    def finish(self) -> dict[Path, str]:
        """The hashes of the files, of which the rest is read."""
        for file in self._files:
            self.hashes.read(file)
        return self.hashes.digests

    def _of(self, name: str) -> Iterator[tuple[int, StoredTensor]]:
        copied = is_copied(name, next(iter(self._tensors.values()))[name])
        for n, tensors in self._tensors.items():
            if n == self._newest if copied else n in self._used:
                yield n, tensors[name]


def _names(plan: MergePlan) -> list[str]:
    newest = plan.sources[-1].section.tensors
    return sorted(newest, key=lambda name: (str(newest[name].file), newest[name].offset))


def _not_in_order(files: Sequence[Path], tensors: Iterable[StoredTensor]) -> set[Path]:
    """Files whose tensors do not come in the order in which they lie there, or are little of it."""
    ends = dict.fromkeys(files, 0)
    sizes = dict.fromkeys(files, 0)
    wrong = set()
    for tensor in tensors:
        if tensor.parts is None or (file := tensor.parts.path) not in ends:
            continue
        if tensor.offset < ends[file]:
            wrong.add(file)
        ends[file] = tensor.offset + tensor.nbytes
        sizes[file] += tensor.nbytes
    return wrong | {file for file in files if sizes[file] < _MOST * Stamp.of(file).size}
