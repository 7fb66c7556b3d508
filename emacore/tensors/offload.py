"""Weights on their way from an accelerator to an average in the machine's own memory."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook


class Arrivals:
    """Room in the host's memory for tensors that an accelerator sends there while it computes on.

    From CUDA the room is pinned, without which no copy goes on beside the host's work; other accelerators are waited
    for.  The host does not wait for the copies until it needs the numbers.

    Where an optimiser of torch's kind makes the steps, what it trains is copied in a queue of its own, so that forward
    and backward, which only read weights, go on meanwhile: the next step of any optimiser waits for the copies.  Who
    else writes weights meanwhile is noticed by their version counters (but for writes through ``.data``); the weights
    are sent again then, and from there on all copies stand in line with the computation, as those of buffers do.
    """

    def __init__(self, sources: Sequence[Tensor]) -> None:
        self._room = [torch.empty_like(source, device="cpu", pin_memory=source.is_cuda) for source in sources]
        self._sent: Sequence[Tensor] = ()
        self._unwritten: list[tuple[Tensor, int]] = []  # what must not be written yet, with its version
        self._events: list[tuple[torch.device, torch.cuda.Event]] = []
        self._queues: dict[torch.device, torch.cuda.Stream] = {}
        self._steps_are_seen = self._was_overtaken = False
        handle = register_optimizer_step_pre_hook(_hook(weakref.ref(self)))
        weakref.finalize(self, handle.remove)

    def send(self, sources: Sequence[Tensor]) -> None:
        """Queue copies of the sources to the host's memory."""
        beside = self._steps_are_seen and not self._was_overtaken
        self._steps_are_seen = False
        self._sent = sources
        self._unwritten = [(source, source._version) for source in sources if beside and source.requires_grad]
        self._events = []
        for device in {source.device for source in sources}:
            pairs = [pair for pair in zip(self._room, sources, strict=True) if pair[1].device == device]
            self._queue(device, [pair for pair in pairs if not (beside and pair[1].requires_grad)])
            self._queue(device, [pair for pair in pairs if beside and pair[1].requires_grad], beside=True)

    def received(self) -> list[Tensor]:
        """Wait for the copies, and return them."""
        self._send_again_if_written()
        for _, event in self._events:
            event.synchronize()
        return self._room

    def before_step(self) -> None:
        """Have the step of an optimiser, which is queued next, wait for the copies."""
        self._steps_are_seen = True
        for device, event in self._events:
            torch.cuda.current_stream(device).wait_event(event)
        self._send_again_if_written()

    def _queue(self, device: torch.device, pairs: list[tuple[Tensor, Tensor]], beside: bool = False) -> None:
        if not pairs:
            return
        if device.type != "cuda":
            for room, source in pairs:
                room.copy_(source)
            return
        queue = now = torch.cuda.current_stream(device)
        if beside:
            queue = self._queues.setdefault(device, torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
            queue.wait_stream(now)
        with torch.cuda.stream(queue):
            for room, source in pairs:
                room.copy_(source, non_blocking=True)
                source.record_stream(queue)
        self._events.append((device, queue.record_event()))

    def _send_again_if_written(self) -> None:
        unwritten, self._unwritten = self._unwritten, []
        if all(source._version == version for source, version in unwritten):
            return
        self._was_overtaken = True
        warnings.warn(
            "weights were written by something other than an optimiser while they were on their way to an average in "
            "the host's memory: it takes them as they are now, and from here on the accelerator waits for its copies; "
            "to have them made beside the computation, write weights before update()",
            stacklevel=4,
        )
        self.send(self._sent)


def _hook(arrivals: weakref.ref[Arrivals]) -> Callable[..., None]:
    """A hook of all optimisers that keeps nothing alive."""

    def before_step(*_: object) -> None:
        if (found := arrivals()) is not None:
            found.before_step()

    return before_step


def is_offloaded(average: Tensor, source: Tensor) -> bool:
    """Whether an average lies in the host's memory and what it follows on an accelerator."""
    return average.device.type == "cpu" and source.device.type not in ("cpu", "meta")
