"""Weights on their way from an accelerator to an average in the machine's own memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Arrivals:
    """Room in the host's memory for tensors that an accelerator sends there while it computes on.

    The copies stand in the accelerator's own queue, so that nothing that is queued after them can change what they
    read; the host does not wait for them until it needs the numbers.  From CUDA the room is pinned, without which no
    copy goes on beside the host's work; other accelerators are waited for.
    """

    def __init__(self, sources: Sequence[Tensor]) -> None:
        self._room = [torch.empty_like(source, device="cpu", pin_memory=source.is_cuda) for source in sources]
        self._events: list[torch.Event] = []

    def send(self, sources: Sequence[Tensor]) -> None:
        """Queue the copies."""
        for room, source in zip(self._room, sources, strict=True):
            room.copy_(source, non_blocking=source.is_cuda)
        self._events = [
            torch.accelerator.current_stream(device).record_event()
            for device in {source.device for source in sources if source.is_cuda}
        ]

    def received(self) -> list[Tensor]:
        """Wait for the copies, and return them."""
        for event in self._events:
            event.synchronize()
        return self._room


def is_offloaded(average: Tensor, source: Tensor) -> bool:
    """Whether an average lies in the host's memory and what it follows on an accelerator."""
    return average.device.type == "cpu" and source.device.type not in ("cpu", "meta")
