"""Which tensors of a model an average follows, and how: averaged, copied, ignored, or left to the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from emacore.tensors.buffers import Policy, copied_buffers
from emacore.tensors.pairing import is_averaged, ties


@dataclass
class Rules:
    """What is asked of each name.

    Attributes:
        policy: Which floating-point buffers are averaged.
        left_out: Names of which no average is kept; the shadow's are the model's own.
        copied: Names of the buffers, and of the parameters like them, that every move copies.
        no_ema: Other names that every move copies.
        ignored, ignored_starts: Names, and beginnings of names, that stay as the warm-up left them.
    """

    policy: Policy
    left_out: frozenset[str]
    copied: frozenset[str]
    no_ema: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    ignored_starts: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self._marks = self.copied

    def is_copied(self, name: str, tensor: Tensor) -> bool:
        """Whether a move copies this tensor of the shadow."""
        return name in self.no_ema or name in self.copied or not is_averaged(tensor)

    def is_ignored(self, name: str) -> bool:
        """Whether no move touches the tensor with this name."""
        return name in self.ignored or name.startswith(tuple(self.ignored_starts))

    def free(self, *modules: nn.Module) -> set[str]:
        """What may differ between these modules: copied buffers, and what is ignored or left out."""
        names = {*self.copied, *(name for module in modules for name in ties(module))}
        return {name for name in names if name in self.copied or self.is_ignored(name)} | self.left_out

    def look_again(self, model: nn.Module) -> frozenset[str]:
        """Note the buffers that are to be copied by now; return those that were averaged before.

        One that has become a parameter is averaged as such.
        """
        parameters = {name for name, tie in ties(model).items() if isinstance(tie.tensor, nn.Parameter)}
        self.copied -= parameters - self._marks
        new = copied_buffers(model, self.policy) - self.copied
        self.copied |= new
        return new

    def kept(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Those of which an average is kept."""
        return {name: tensor for name, tensor in tensors.items() if name not in self.left_out}
