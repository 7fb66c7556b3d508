"""Averages in the place of a model's weights for a while, and the weights back again, exactly."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from emacore.tensors.lending import by_ourselves
from emacore.tensors.pairing import restore, writable
from emacore.tensors.sharded import copy_each


class Loan(NamedTuple):
    """A parameter of the model and the one of the shadow, which exchange their memory for a while."""

    parameter: nn.Parameter
    shadow: nn.Parameter
    own: Tensor
    average: Tensor
    version: int

    def lend(self) -> None:
        self.parameter.data, self.shadow.data = self.average, self.own

    def is_written(self) -> bool:
        return self.parameter._version != self.version

    def give_back(self) -> bool:
        """Whether the parameter had the memory still, and not another one that it was given meanwhile."""
        self.shadow.data = self.average
        if self.parameter.data_ptr() != self.average.data_ptr():
            return False
        self.parameter.data = self.own
        return True

    def as_it_is(self) -> Loan:
        return self._replace(version=self.parameter._version)


def loans_of(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Loan]:
    """The parameters that have memory of their own, alike in model and shadow."""
    return {
        name: Loan(source, shadow, source.data, shadow.data, source._version)
        for name, (shadow, source) in pairs.items()
        if type(source) is type(shadow) is nn.Parameter
        and source.numel()
        and (source.dtype, source.device, source.stride()) == (shadow.dtype, shadow.device, shadow.stride())
        and not (source.is_inference() or shadow.is_inference())
        and all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in (source, shadow))
    }


class Exchange:
    """The weights of a model while averages stand in their place.

    Args:
        model: The training module.
        pairs: The shadow's and the model's tensor by name, a shared one once.
        left_out: Names of tensors that stay.
        swap: Whether parameters exchange their memory with the shadow's where both are alike.

    Attributes:
        loans: Those that do, by name.

    Raises:
        RuntimeError: for weights that cannot be written.
    """

    def __init__(
        self, model: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]], left_out: Collection[str], swap: bool
    ) -> None:
        self._model = model
        self.loans = loans_of(pairs) if swap else {}
        found = {name: tensor for name, tensor in writable(model).items() if name not in left_out}
        for name in pairs:
            if name in found and found[name].is_inference() and not torch.is_inference_mode_enabled():
                raise RuntimeError(f"the model's {name!r} was made inside torch.inference_mode() and cannot be written")
        self._written = [pair for name, pair in pairs.items() if name in found and name not in self.loans]
        with torch.inference_mode(False):
            self._own = {
                name: self.loans[name].own if name in self.loans else tensor.clone() for name, tensor in found.items()
            }

    def put_in(self) -> None:
        """Put the averages in the place of the model's weights."""
        with torch.no_grad():
            copy_each([source for _, source in self._written], [shadow for shadow, _ in self._written])
        for loan in self.loans.values():
            loan.lend()

    def take_out(self, free: Collection[str]) -> list[str]:
        """Put the weights back; return the names of those whose averages were written meanwhile, in lent memory.

        Args:
            free: Names that may have come, gone or grown meanwhile.

        Raises:
            RuntimeError: if others have; what still fits is back then.
        """
        changed = [name for name, loan in self.loans.items() if loan.is_written()]
        back = {name for name, loan in self.loans.items() if loan.give_back()}
        own = {name: tensor for name, tensor in self._own.items() if name not in back}
        restore(self._model, own, {*free, *self.loans})
        return changed

    @contextmanager
    def undone(self, free: Collection[str]) -> Iterator[None]:
        """Have the model hold its own weights inside, as copies, and the averages again afterwards."""
        averages = {name: tensor.clone() for name, tensor in writable(self._model).items()}
        with by_ourselves():
            restore(self._model, self._own, free)
            try:
                yield
            finally:
                restore(self._model, averages, free)
                self.loans = {name: loan.as_it_is() for name, loan in self.loans.items()}
