"""Rows of weights, whoever wrote them: a recording, a folder of checkpoints, or arrays in memory."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emacore.tensors.pairing import is_averaged, real_count, reals

#: Linux's advice to read a range of a mapped file and to map it; Python's mmap has no name for it.
_POPULATE_READ = 22


@dataclass(frozen=True)
class Rows:
    """The weights of one run after some of its optimiser steps.

    Args:
        weights: Shape (T, P), float32 or float16, or what is indexed like it (memory-mapped, say): each row has the
            real numbers of ``tensors`` one after the other.
        steps: Shape (T,), rising whole numbers, which need not be even: the step after which each row was taken,
            counted from 0.  A row stands for all steps since the row before it.
        tensors: What lies in a row: tensors without values (on the meta device), by name.
        epoch_ends: The rows at which epochs ended, rising.
        copied: Shape (T, B), bytes of what is copied and not averaged.
        copied_tensors: What lies in those, by name.
        settings: What the run says of itself, as JSON can hold it; replay only passes it on.

    Raises:
        ValueError: if these do not fit each other.
    """

    weights: NDArray[Any]
    steps: NDArray[np.int64]
    tensors: Mapping[str, Tensor]
    epoch_ends: Sequence[int] = ()
    copied: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, 0), np.uint8))
    copied_tensors: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        columns = sum(real_count(tensor) for tensor in self.tensors.values())
        if self.weights.ndim != 2 or self.weights.shape[1] != columns:
            raise ValueError(f"weights must have shape (T, {columns}), as their tensors say; got {self.weights.shape}")
        count = len(self.weights)
        steps = np.asarray(self.steps)
        if steps.dtype.kind in "ui":  # differences of unsigned ones are never below 0
            steps = steps.astype(np.int64)
            object.__setattr__(self, "steps", steps)
        if (
            steps.dtype != np.int64
            or steps.shape != (count,)
            or (count and not (steps[0] >= 0 and (np.diff(steps) > 0).all()))
        ):
            raise ValueError(f"steps must be {count} rising numbers of at least 0, one for each row; got {steps}")
        ends = np.asarray(self.epoch_ends, dtype=np.int64)
        if ends.size and not (ends[0] >= 0 and ends[-1] < count and (np.diff(ends) > 0).all()):
            raise ValueError(f"epoch_ends must be rising rows from 0 to {count - 1}; got {ends}")

    @classmethod
    def of(cls, states: Sequence[Mapping[str, Tensor]], steps: Sequence[int] | None = None) -> Rows:
        """Rows of the states of one module, held in memory.

        Args:
            states: Floating-point or complex tensors by name, the same names and shapes in each.
            steps: After which steps they were taken, counted from 0; by default after every one.

        Raises:
            ValueError: if there is none, or they differ in names or shapes.
            TypeError: if they are no such tensors by name.
        """
        if isinstance(states, Mapping) or not all(isinstance(state, Mapping) for state in states):
            raise TypeError("states must be a list of mappings, such as [model.state_dict()]")
        if not states:
            raise ValueError("there must be at least one state")
        for name, tensor in (item for state in states for item in state.items()):
            if not (isinstance(tensor, Tensor) and is_averaged(tensor)):
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(f"{name!r} must be a floating-point or complex tensor, to be averaged; it is of {kind}")
        tensors = {name: tensor.detach().to("meta") for name, tensor in states[0].items()}
        for n, state in enumerate(states):
            if {name: tensor.shape for name, tensor in state.items()} != {n: t.shape for n, t in tensors.items()}:
                raise ValueError(f"state {n} has other tensors, or tensors of other shapes, than the first")
        flat = [torch.cat([reals(state[name].detach()).float() for name in tensors]) for state in states]
        chosen = range(len(states)) if steps is None else steps
        return cls(torch.stack(flat).numpy(), np.array(chosen, dtype=np.int64), tensors)


def read_in_turn(weights: Any, rows: slice, columns: slice) -> None:
    """Have the system read a part of rows that are memory-mapped, row by row, where it can.

    A matrix product asks for a little of every row at a time, and a disk takes twice as long for that.
    """
    part = weights[rows, columns] if isinstance(weights, np.memmap) and sys.platform == "linux" else np.empty(0)
    mapping = part.base
    while isinstance(mapping, np.ndarray):
        mapping = mapping.base
    if not (part.size and isinstance(mapping, mmap.mmap)):
        return
    start = np.frombuffer(mapping, np.uint8).ctypes.data
    for row in part.reshape(1, -1) if part.flags.c_contiguous else part:  # short rows would be many calls
        first = row.ctypes.data - start
        page = first - first % mmap.PAGESIZE
        try:
            mapping.madvise(_POPULATE_READ, page, first + row.nbytes - page)
        except OSError:  # a kernel before 5.14; what is not read now will be when it is asked for
            return
