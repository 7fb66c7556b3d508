"""Weights in whose place averages stand for the time of a ``with`` block, and what must not happen to them then."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Self

from torch import Tensor, nn

from emacore.tensors.pairing import listed, ties
from emacore.tensors.sharded import local

#: The blocks that are open, the innermost last; of all averages, because one must not take another for the weights.
OPEN: list[Lending] = []


class Lending:
    """One such block: entered before the averages are put in, left when the weights are back.

    Args:
        module: Whose weights.
        left_out: Names of those that stay.
        unwatched: Names of those that may be written inside without a warning.
    """

    def __init__(self, module: nn.Module, left_out: Collection[str] = (), unwatched: Collection[str] = ()) -> None:
        found = {tie.first_name: tie.tensor for name, tie in ties(module).items() if name not in left_out}
        self._tensors = {id(tensor): tensor for tensor in found.values()}  # kept, so that no id is given away twice
        # Buffers are written by a forward in training mode, and whoever makes one expects that to be undone.
        self._weights = {
            name: tensor
            for name, tensor in found.items()
            if isinstance(tensor, nn.Parameter) and not tensor.is_inference() and name not in unwatched
        }
        self._marks: dict[str, tuple[int, int]] = {}
        self._written: set[str] = set()

    def holds(self, module: nn.Module) -> bool:
        """Whether a module has weights in whose place averages stand."""
        return any(id(tie.tensor) in self._tensors for tie in ties(module).values())

    def begin(self) -> None:
        """Take all writes from now on, until :meth:`look`, for somebody else's."""
        self._marks = {name: _mark(tensor) for name, tensor in self._weights.items()}

    def look(self) -> None:
        """Note which weights have been written since :meth:`begin`, and begin anew."""
        for name, (version, place) in self._marks.items():
            now, there = _mark(self._weights[name])
            if now != version and there == place:  # or else it was moved, or cast
                self._written.add(name)
        self.begin()

    def __enter__(self) -> Self:
        for other in OPEN:
            other.look()
            other._marks = {}  # what comes now writes this one
        OPEN.append(self)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        later = OPEN[OPEN.index(self) + 1 :]
        OPEN.remove(self)
        for other in OPEN:
            other.begin()
        if kind is not None:
            return
        if any(self._tensors.keys() & other._tensors.keys() for other in later):
            raise RuntimeError(
                "average_parameters() ends before one that was opened later on the same weights, whose end puts back "
                "what it found, this average, in place of the weights: leave the blocks in turn, the last one first"
            )
        if self._written:
            warnings.warn(
                f"{listed(self._written)} were written inside average_parameters(), as an optimiser's step does it, "
                "and are now what they were before: write weights outside",
                stacklevel=4,
            )


def _mark(tensor: Tensor) -> tuple[int, int]:
    return tensor._version, local(tensor.detach()).data_ptr()


@contextmanager
def by_ourselves() -> Iterator[None]:
    """What is written inside is put back, and not told."""
    looking = [lending for lending in OPEN if lending._marks]
    for lending in looking:
        lending.look()
    try:
        yield
    finally:
        for lending in looking:
            lending.begin()


def check_not_lent(module: nn.Module, why: str) -> None:
    """Raise ``RuntimeError`` if averages stand in the place of a module's weights, be it by another average."""
    if any(lending.holds(module) for lending in OPEN):
        raise RuntimeError(why)
