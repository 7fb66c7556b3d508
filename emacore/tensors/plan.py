"""Which tensors of an average and its model go together, looked up once, and how they move."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from emacore.tensors.attributes import Follower
from emacore.tensors.buffers import follow_buffers
from emacore.tensors.moves import is_plain, move
from emacore.tensors.offload import Arrivals, is_offloaded
from emacore.tensors.pairing import accumulator_dtype, comparable, paired, ties
from emacore.tensors.rules import Rules
from emacore.tensors.shadow import set_dtype
from emacore.tensors.sharded import alike, anywhere, copy_each, is_sharded, laid_out, local
from emacore.tensors.watch import Watch


class Wide(NamedTuple):
    """A tensor that is averaged in another dtype or on another device than the model's."""

    name: str
    accumulator: Tensor
    shadow: Tensor
    source: Tensor

    def move(self, source: Tensor, decay: float) -> None:
        """Move by the values of the source, which may have come from elsewhere."""
        if self.accumulator is not self.shadow:
            follow_writes(self.accumulator, self.shadow)
        if decay:
            self.accumulator.lerp_(source.to(self.accumulator.device, self.accumulator.dtype), 1.0 - decay)
        else:  # a copy also replaces what is not finite
            self.accumulator.copy_(source)
        if self.accumulator is not self.shadow:
            self.shadow.copy_(self.accumulator)


class Plan:
    """What one call does, for an average and a model as they are now.

    It holds the tensors themselves, not aliases: whatever is put into them by ``.data =`` is what moves.

    Args:
        average: The shadow module.
        online: The training module.
        pairs: The shadow's and the model's tensor by name, a shared one once: what a copy takes over.
        moved: Names of those that move as they are.
        wide: Those that move in an accumulator.
        copied: Names of those that every move copies.
        linked: Names of those that the average has of the model.
    """

    def __init__(
        self,
        average: nn.Module,
        online: nn.Module,
        pairs: dict[str, tuple[Tensor, Tensor]],
        moved: Sequence[str],
        wide: list[Wide],
        copied: Sequence[str],
        linked: Collection[str] = (),
    ) -> None:
        self.pairs = pairs
        self.moved = list(moved)
        self.moved_shadow = [local(pairs[name][0]) for name in moved]
        self.moved_model = [local(pairs[name][1]) for name in moved]
        far = [not any(map(is_sharded, entry[1:])) and is_offloaded(entry.accumulator, entry.source) for entry in wide]
        self.far = [entry for entry, is_far in zip(wide, far, strict=True) if is_far]
        self.wide = [entry for entry, is_far in zip(wide, far, strict=True) if not is_far]
        self.arrivals: Arrivals | None = None  # made for the first move, for which alone there must be room
        self.on_its_way: float | None = None  # the decay of the move whose weights are sent and not yet counted
        self._copied: list[tuple[Tensor, Tensor]] = []
        self._far_copied: list[tuple[Tensor, Tensor]] = []
        for shadow, source in (pairs[name] for name in copied):
            is_far = not is_sharded(source) and source.layout == torch.strided and is_offloaded(shadow, source)
            (self._far_copied if is_far else self._copied).append((shadow, source))
        self._follower = Follower(average, online)
        tensors = [pairs[name][0] for name in moved] + [entry.shadow for entry in wide]
        #: Whether a buffer is averaged, which may come to hold what cannot be.
        self.has_buffers = not all(isinstance(tensor, nn.Parameter) for tensor in tensors)
        #: Whether a move is one call for all tensors, and nothing else.
        self.is_simple = bool(moved) and not (wide or copied or self._follower.needed)
        data: Literal["sizes", "shapes"] = "sizes" if self.is_simple else "shapes"
        self._watch = Watch(online, average, data=data, linked=linked)
        self._is_plain = self.is_simple and is_plain(self.moved_shadow, self.moved_model)
        #: Whether it is of tensors that are no more.
        self.is_stale = self._watch.is_stale

    def mover(self, shares: Iterator[float]) -> Callable[[], bool]:
        """A move by the next share at each call, while the plan is simple and not stale; it says whether it moved."""
        return self._watch.mover(self.moved_shadow, self.moved_model, shares, self._is_plain)

    @torch.no_grad()
    def copy_all(self) -> None:
        """Copy the model's tensors into the shadow."""
        self._follower.follow()
        _copy_all(list(self.pairs.values()))
        for _, accumulator, _, source in self.wide + self.far:
            accumulator.copy_(laid_out(source, accumulator))

    @torch.no_grad()
    def move(self, decay: float, done: Collection[str] = ()) -> None:
        """Move the average by one decay; ``done`` names tensors that have moved already."""
        self._follower.follow()
        _copy_all(self._copied)
        if decay != 1.0:  # or else not even a value that is not finite counts
            self._move_near(decay, done)
        if sources := [*(wide.source for wide in self.far), *(source for _, source in self._far_copied)]:
            if self.arrivals is None:
                self.arrivals = Arrivals(sources)
            self.arrivals.send(sources)
            self.on_its_way = decay

    def _move_near(self, decay: float, done: Collection[str]) -> None:
        shadow, model = self.moved_shadow, self.moved_model
        if done:
            left = [n for n, name in enumerate(self.moved) if name not in done]
            shadow, model = [shadow[n] for n in left], [model[n] for n in left]
        if shadow:
            if decay:
                move(shadow, model, 1.0 - decay)
            else:  # a copy also replaces what is not finite
                torch._foreach_copy_(shadow, model)
        for wide in self.wide:
            if wide.name not in done:
                wide.move(laid_out(wide.source, wide.accumulator), decay)

    @torch.no_grad()
    def finish(self) -> None:
        """Count the weights that have been sent."""
        decay, self.on_its_way = self.on_its_way, None
        if decay is None or self.arrivals is None:
            return
        arrived = self.arrivals.received()
        for wide, source in zip(self.far, arrived, strict=False):
            if decay != 1.0:
                wide.move(source, decay)
        for (shadow, _), source in zip(self._far_copied, arrived[len(self.far) :], strict=True):
            shadow.copy_(source)

    def followed(self) -> list[tuple[Tensor, Tensor]]:
        """The model's tensors that an average follows, each with its average."""
        return [
            *zip(self.moved_model, self.moved_shadow, strict=True),
            *((wide.source, wide.shadow) for wide in self.wide + self.far),
            *((source, shadow) for shadow, source in self._copied + self._far_copied),
        ]

    def moved_before_misfit(self) -> list[str] | None:
        """After a move that failed: which tensors had moved before the first whose dtype or place no longer fits."""
        for n, (shadow, model) in enumerate(zip(self.moved_shadow, self.moved_model, strict=True)):
            if (shadow.dtype, shadow.device, shadow.shape) != (model.dtype, model.device, model.shape):
                return self.moved[:n]
        return None

    @torch.no_grad()
    def not_finite(self) -> str | None:
        """The name of a tensor of the model that is to be averaged and is not finite, if there is one."""
        averaged = {name: self.pairs[name][1] for name in self.moved} | {
            wide.name: wide.source for wide in self.wide + self.far
        }
        parts = {name: local(tensor) for name, tensor in averaged.items() if local(tensor).numel()}
        # The least and the largest value are not finite if any is not; they take one pass and no memory.
        ends = [torch.stack(torch.aminmax(comparable(part))).isfinite().all() for part in parts.values()]
        # Looked at together, because each look waits for an accelerator.
        finite = torch.stack([end.to(ends[0].device) for end in ends]).tolist() if ends else []
        bad = next((name for name, is_finite in zip(parts, finite, strict=True) if not is_finite), None)
        if anywhere(bad is not None, averaged.values()):  # all processes have to take the same way
            return bad or "a part of a tensor on another process"
        return None


@torch.inference_mode(False)
@torch.no_grad()
def planned(
    average: nn.Module,
    model: nn.Module,
    rules: Rules,
    accumulators: Mapping[str, Tensor],
    wanted: torch.dtype | None = None,
    keep_half: bool = True,
) -> tuple[Plan, dict[str, Tensor]]:
    """Look up what goes together, and give the average the buffers that the model has now.

    Args:
        rules: What is averaged; buffers that are to be copied by now are noted there.
        accumulators: Those that there are by now, by name.
        wanted: The real dtype in which averages are kept, where it is not each tensor's own.
        keep_half: Whether a shadow of another dtype than its accumulator stays beside it.

    Returns:
        The plan, and the accumulators beside the shadow that it moves.

    Raises:
        RuntimeError: if names, shapes or ties differ, or for an average that cannot be written.
        ValueError: for ``keep_half=False`` with a sharded average in half precision.
    """
    new = rules.look_again(model)
    kept_apart = {name for name in rules.copied if rules.is_ignored(name)} | rules.left_out
    follow_buffers(average, model, rules.copied - kept_apart)
    kept, found = ties(average), ties(model)
    pairs = {
        name: (kept[name].tensor, found[name].tensor)
        for name in paired(kept, found, "model", rules.free(average, model))
        if name not in rules.left_out
    }
    moved: list[str] = []
    wide: list[Wide] = []
    copied: list[str] = []
    used: dict[str, Tensor] = {}
    for name, (shadow, source) in pairs.items():
        if shadow.is_inference():
            raise RuntimeError(
                f"the average's {name!r} was made inside torch.inference_mode(), and cannot be written outside; "
                "build, load or cast the average outside of it (torch.no_grad() does for that)"
            )
        if rules.is_ignored(name):
            continue
        if rules.is_copied(name, shadow):
            if name in new:  # a mark of what is not finite may have come into it since it was averaged
                shadow.copy_(laid_out(source, shadow))
            copied.append(name)
            continue
        dtype = accumulator_dtype(shadow.dtype, wanted)
        accumulator = accumulators.get(name)
        if dtype != shadow.dtype and not keep_half:
            if is_sharded(shadow):
                raise ValueError(
                    f"keep_half=False is for models that are not sharded, and {name!r} is, in {shadow.dtype}; keep the "
                    "weights in float32 and have fully_shard compute in half precision (MixedPrecisionPolicy), whose "
                    "average is in float32 alone"
                )
            shadow = set_dtype(average, kept, name, dtype)
            pairs[name] = shadow, source
        if dtype != shadow.dtype:
            if accumulator is not None and accumulator.dtype == dtype:
                used[name] = laid_out(accumulator.to(shadow.device), shadow)
            else:
                used[name] = shadow.detach().to(dtype)
            wide.append(Wide(name, used[name], shadow, source))
            continue
        if accumulator is not None:  # the shadow has been cast to the accumulator's dtype
            shadow.copy_(laid_out(accumulator, shadow))
        if source.dtype == dtype and source.device == shadow.device and alike(shadow, source):
            moved.append(name)
        else:
            wide.append(Wide(name, shadow, shadow, source))
    linked = rules.left_out & kept.keys() & found.keys()
    return Plan(average, model, pairs, moved, wide, copied, linked), used


@torch.no_grad()
def follow_writes(accumulator: Tensor, shadow: Tensor) -> None:
    """Take over into an accumulator what has been written into its shadow, which it would undo otherwise."""
    accumulator, shadow = local(accumulator), local(shadow)
    rounded = accumulator.to(shadow.device, shadow.dtype)
    if shadow.dtype.itemsize == 1 or shadow.dtype == torch.complex32:  # torch does not compare these
        rounded, shadow = rounded.to(accumulator.dtype), shadow.to(accumulator.dtype)
    # To look first spares a pass on the CPU, and would wait for an accelerator.
    if not shadow.is_cpu or not torch.equal(rounded, shadow):
        accumulator.copy_(torch.where(rounded == shadow, accumulator.to(shadow.device), shadow.to(accumulator.dtype)))


def _copy_all(pairs: list[tuple[Tensor, Tensor]]) -> None:
    strided = [pair for pair in pairs if pair[0].layout == torch.strided]
    copy_each([shadow for shadow, _ in strided], [source for _, source in strided])
    for shadow, source in pairs:
        if shadow.layout != torch.strided:
            shadow.copy_(source)
