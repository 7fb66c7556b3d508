"""Whether the tensors of modules are still those that were looked up: a look of as few steps as there can be."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import chain
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from emacore.tensors.lending import OPEN
from emacore.tensors.moves import HALF, move, step
from emacore.tensors.pairing import ties
from emacore.tensors.sharded import is_sharded, local, reshard

_is_grad_enabled, _foreach_lerp_ = torch.is_grad_enabled, torch._foreach_lerp_
# As torch.no_grad() does it, which costs as much as averaging a small tensor.
_set_grad_enabled: Callable[[bool], None] = torch._C._set_grad_enabled

_shape = attrgetter("shape")
_count, _dimensions, _stride, _place = Tensor.numel, Tensor.dim, Tensor.stride, Tensor.data_ptr


class Watch:
    """Notices when tensors of modules were replaced, added or removed since they were looked up.

    Args:
        modules: Whose tensors.
        data: What to look at of each tensor's data, which may be swapped in it, as ``module.half()`` does.

            - ``"places"``: where it lies, be it another view of the same memory.  Aliases of the looked-up tensors must
              be kept alive meanwhile, so that no address is given away twice.
            - ``"shapes"`` does for whoever reads the tensors themselves and no aliases, in half the time.
            - ``"sizes"``: as much of the shapes as torch would not refuse by itself where the tensors of the second
              module are written in place by those of the first.
        linked: Names of tensors that the second module has of the first: only whether they still lie in one place.
    """

    def __init__(
        self,
        *modules: nn.Module,
        data: Literal["places", "shapes", "sizes"] = "places",
        linked: Collection[str] = (),
    ) -> None:
        for module in modules:
            reshard(module)
        parts = [part for module in modules for part in module.modules()]
        tables: list[dict[str, Any]] = [
            table for part in parts for table in (part._parameters, part._buffers, part._modules)
        ]
        found = [[tie.tensor for tie in ties(module).values()] for module in modules]
        whole = list(chain.from_iterable(found))
        tensors = list(map(local, whole))
        self._alive = whole, tensors
        # Of those that are one object in both, nothing can differ; the others are aliases.
        pairs = [[local(ties(module)[name].tensor) for module in modules] for name in linked]
        aliases = [tensor for pair in pairs if pair[0] is not pair[-1] for tensor in pair]
        left = set(map(id, chain.from_iterable(pairs)))
        own = [tensor for tensor in tensors if id(tensor) not in left]
        # What lies in no one place (sparse tensors) is told by identity alone.
        self._placed = [tensor for tensor in own if tensor.layout == torch.strided and data == "places"] + aliases
        placed = set(map(id, self._placed))
        self._shaped = [tensor for tensor in own if data == "shapes" or (data == "places" and id(tensor) not in placed)]
        sources, targets = ([t for t in map(local, some) if id(t) not in left] for some in (found[0], found[-1]))
        self._counted, self._numbered = _sizes(sources, targets) if data == "sizes" else ([], [])
        self._compiled = _compiled(own + aliases)
        self._forms = self._forms_now()
        # Dictionaries compare values by identity first, which is the fastest look at many.  Where one was replaced,
        # torch compares numbers, and refuses to say yes or no of many; so those of one number are compared by identity.
        self._empty = [table for table in tables if not table]
        self._filled = [table for table in tables if table]
        self._copies = [dict(table) for table in self._filled]
        self._single = [
            (table, name, tensor)
            for table in self._filled
            for name, tensor in table.items()
            if isinstance(tensor, Tensor) and tensor.numel() == 1
        ]
        self._shards = [(tensor, local(tensor)) for tensor in whole if is_sharded(tensor)]
        #: Whether anything has changed.
        self.is_stale = self._look()

    def _look(self) -> Callable[[], bool]:
        """A look at what may have changed, as one function of as few steps as there can be: it runs at each call."""
        empty, filled, copies, single, shards = self._empty, self._filled, self._copies, self._single, self._shards
        placed, places = self._placed, [*map(_place, self._placed)]
        forms, forms_now, (is_alike, compared) = self._forms, self._forms_now, self._compiled

        def is_stale() -> bool:
            try:
                if any(empty) or filled != copies or not (is_alike(*compared) or forms_now() == forms):
                    return True
            except (RuntimeError, TypeError):  # another tensor, of many numbers
                return True
            for table, name, tensor in single:
                if table[name] is not tensor:
                    return True
            if placed and [*map(_place, placed)] != places:
                return True
            return bool(shards) and any(local(tensor) is not part for tensor, part in shards)

        return is_stale

    def _forms_now(self) -> list[Any]:
        # With the strides, the count tells the shape, and costs less.
        return [
            *map(_count, self._counted),
            *map(_dimensions, self._numbered),
            *map(_shape, self._shaped),
            *map(_stride, self._placed),
            *map(_count, self._placed),
        ]

    def mover(
        self, targets: list[Tensor], sources: list[Tensor], shares: Iterator[float], plain: bool
    ) -> Callable[[], bool]:
        """A call that moves tensors towards others by the next share, and says whether it has.

        It has not if anything has changed, if there are averages in the place of weights, or if no share is left.  It
        is all that a call of an average costs most times, and so one function without a step that could be spared, for
        a watch of sizes.

        Args:
            targets: What moves.
            sources: Where to.
            shares: How far, between 0 and 1, at one call after the other.
            plain: Whether the tensors were plain when the watch began: see :mod:`emacore.tensors.moves`.
        """
        empty, filled, copies, single, shards = self._empty, self._filled, self._copies, self._single, self._shards
        placed, is_stale = self._placed, self.is_stale
        forms, forms_now, (is_alike, compared) = self._forms, self._forms_now, self._compiled

        def moved() -> bool:
            try:
                if OPEN or any(empty) or filled != copies:
                    return False
            except (RuntimeError, TypeError):  # another tensor, of many numbers
                return False
            for table, name, tensor in single:
                if table[name] is not tensor:
                    return False
            alike = is_alike(*compared)
            # It is false inside inference mode, too, and of what was frozen or cast.
            if not alike and forms_now() != forms:
                return False
            if (placed or shards) and is_stale():
                return False
            for share in shares:
                if not alike:
                    move(targets, sources, share)
                elif not _is_grad_enabled():
                    (step if plain and share < HALF else _foreach_lerp_)(targets, sources, share)
                else:
                    _set_grad_enabled(False)
                    try:
                        (step if plain and share < HALF else _foreach_lerp_)(targets, sources, share)
                    finally:
                        _set_grad_enabled(True)
                return True
            return False

        return moved


def _compiled(tensors: list[Tensor]) -> tuple[Callable[..., bool], list[Tensor]]:
    """The look of torch's compiler at tensors: true if kind, dtype, device, shape and strides are as they were.

    It takes less time for all of that than the sizes alone take one by one.  It may be false for other reasons, too,
    and always is where this torch does not have it.

    Returns:
        The look, and the tensors that it has to be given.
    """
    distinct = list({id(tensor): tensor for tensor in tensors}.values())
    sizes: list[Any] = [list(tensor.shape) for tensor in distinct]
    try:
        from torch._C._dynamo.guards import TensorGuards

        strides: list[Any] = [list(tensor.stride()) for tensor in distinct]
        look = TensorGuards(*distinct, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides).check
        return (look, distinct) if look(*distinct) else (_no, [])
    except (ImportError, AttributeError, TypeError, RuntimeError):
        return _no, []


def _no(*_: object) -> bool:
    return False


def _sizes(sources: list[Tensor], targets: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors whose count of numbers has to be watched, and those whose count of dimensions."""
    # Torch spreads a source over a target that has more numbers or dimensions, and refuses all else that differs.  A
    # target grows where it had a 1; a source of as many numbers can only have lost dimensions of 1 at its beginning.
    counted = sources + [tensor for tensor in targets if 1 in tensor.shape]
    numbered = targets + [tensor for tensor in sources if tensor.shape[:1] == (1,)]
    return counted, numbered
