"""Averages that are written into the training model in one process only, which lets the processes train apart.

``DistributedDataParallel`` sends gradients, and buffers, but weights no more than once.  Whether the other processes
have written, too, cannot be asked by a collective: those that have not would never answer, and the run would stand
still.  So each process leaves a mark for it in the store by which the processes once met, and looks there some steps
later, when all of them must have been at the same place of the program.  Nobody waits for anybody.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

#: How many calls of ``update()`` after a write the others are asked for.  After one step of the optimiser they have
#: passed the same place, because their gradients are in it; more calls than one, for those who call between steps.
LATER = 10

# By processes that train together: how many writes there were here, and whether something was told.
_counts: dict[str, int] = {}
_told: set[str] = set()


@dataclass
class _Write:
    call: str
    ranks: list[int]
    key: str
    left: int = LATER


class Writes:
    """What one average has written into its model, until it is known that all processes have.

    Attributes:
        waiting: The writes of which it is not known yet.
    """

    def __init__(self) -> None:
        self.waiting: list[_Write] = []

    def note(self, model: nn.Module, call: str) -> None:
        """Leave a mark that this process has written an average into the model.

        Of the writes, those numbered by powers of two are looked at, so that it costs nothing to write at each step.

        Args:
            model: The model as it was given; of a ``DistributedDataParallel`` its own processes count, else all.
            call: What wrote, for the warning.
        """
        if not dist.is_available() or not dist.is_initialized():
            return
        ranks = dist.get_process_group_ranks(_group_of(model))
        if len(ranks) < 2 or dist.get_rank() not in ranks:
            return
        together = ",".join(map(str, ranks)) if len(ranks) < dist.get_world_size() else "all"
        number = _counts[together] = _counts.get(together, 0) + 1
        if number & (number - 1) or together in _told:
            return
        write = _Write(call, ranks, f"emacore/{together}/{number}")
        try:
            _store().set(f"{write.key}/{dist.get_rank()}", "written")
        except (AttributeError, RuntimeError):  # no store, or the process that has it is gone
            return
        self.waiting.append(write)

    def after_update(self, weights: Tensor) -> None:
        """Count a call of ``update()`` since, and warn if the others have not written by now.

        Args:
            weights: Some of the model's, with which this process waits for its own queue: the host may be steps ahead.
        """
        for write in self.waiting:
            write.left -= 1
        due = [write for write in self.waiting if write.left <= 0]
        self.waiting = [write for write in self.waiting if write.left > 0]
        for write in due:
            weights.reshape(-1)[:1].tolist()
            _look(write)


def _look(write: _Write) -> None:
    together = write.key.split("/")[1]
    try:
        store = _store()
        if together in _told or store.check([f"{write.key}/{rank}" for rank in write.ranks]):
            return
        missing = [rank for rank in write.ranks if not store.check([f"{write.key}/{rank}"])]
    except (AttributeError, RuntimeError):
        return
    if not missing:
        return
    _told.add(together)
    did = [rank for rank in write.ranks if rank not in missing]
    warnings.warn(
        f"{write.call} has written an average into the model in {_named(did)}, but not in {_named(missing)} of the "
        "run: every process that trains the same model has to call it, or else they go on from different weights, "
        "which nothing makes equal again",
        stacklevel=5,
    )


def _named(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"process {ranks[0]}"
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"processes {', '.join(map(str, ranks[:8]))}{more}"


def _group_of(model: nn.Module) -> Any:
    """The processes over which a model is spread by DDP, inside ``torch.compile`` or not; else ``None`` for all."""
    while not isinstance(model, DistributedDataParallel):
        inner = model._modules.get("_orig_mod")
        if inner is None:
            return None
        model = inner
    return model.process_group


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
