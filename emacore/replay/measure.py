"""How networks are measured: from their weights to numbers.  Imports no torch."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emacore.formatting import counted, number

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One number of a network.

    Args:
        column: Its name in tables, such as ``loss``.
        name: As people read it, such as ``MSE``.
        higher_is_better: Which way is better.
    """

    column: str
    name: str
    higher_is_better: bool = False

    def gain(self, original: Any, averaged: Any) -> Any:
        """By how much ``averaged`` is better than ``original``, relative to it: above 0 where it is better.

        Numbers or arrays; NaN where the original is 0 or not finite.
        """
        one, other = np.asarray(original, dtype=np.float64), np.asarray(averaged, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            better = other - one if self.higher_is_better else one - other
            return np.where(one == 0, np.nan, better / np.abs(one))[()]

    def best(self, values: Any) -> int:
        """The position of the best value, the first of several; NaN is never the best unless all are."""
        numbers = np.asarray(values, dtype=np.float64)
        worst = -np.inf if self.higher_is_better else np.inf
        usable = np.where(np.isnan(numbers), worst, numbers)
        return int(usable.argmax() if self.higher_is_better else usable.argmin())


#: The columns that tables of measured networks have besides those of the metrics.
_TAKEN = frozenset(
    [
        "beta_from",
        "code",
        "copies_kept",
        "curve",
        "epoch",
        "forward_passes",
        "relative_width",
        "row",
        "schedule",
        "scheme",
        "setting",
        "step",
        "width",
        "x",
        "y",
    ]
)


def check_metrics(metrics: Sequence[Metric]) -> None:
    """Raise ``ValueError`` unless each metric has a column of its own, which no table has already, and there is one."""
    columns = [metric.column for metric in metrics]
    if not columns:
        raise ValueError("there must be at least one metric: the loss")
    for n, column in enumerate(columns):
        if column in columns[:n]:
            raise ValueError(f"two metrics have the column {column!r}: give one of them another")
        if column in _TAKEN:
            raise ValueError(f"a metric cannot have the column {column!r}, which tables of networks have already")


#: Fewer epochs or files than these at the end of a run are told, but not as a lead.
LEAD = 5


def trailing(flags: NDArray[np.bool_]) -> int:
    """How many at the end are true without a break."""
    return int(np.argmin(flags[::-1])) if not flags.all() else len(flags)


def lead_in_words(
    since: float, count: int, unit: str = "epoch", *, who: str = "It", finite_to: float | None = None
) -> str:
    """Whether ``who`` stays below the original to the end of a run: since when, and for how long.

    Args:
        since: The first ``unit`` of those at the end at which it is below without a break.
        count: How many these are.
        finite_to: The last ``unit`` with finite losses, if that is not the run's last: then it is the end.
    """
    if not count:
        return f"{who} does not stay below the original."
    if count < LEAD:
        which = f"the last {unit}" if count == 1 else f"the last {counted(count, unit)}"
        finite = "" if finite_to is None else " with finite losses"
        return f"{who} is below the original at {which}{finite} only, too few to be called a lead."
    end = "the end" if finite_to is None else f"{unit} {number(finite_to)}, the last with finite losses"
    return f"{who} stays below the original from {unit} {number(since)} on, for {counted(count, unit)} up to {end}."


class Measure(ABC):
    """Measures networks, some at a time.

    Attributes:
        metrics: What it finds; the first is the loss, by which "the best" is chosen.
        at_once: How many networks it takes at a time.
    """

    metrics: Sequence[Metric]
    at_once: int = 64

    @abstractmethod
    def __call__(self, networks: dict[str, Tensor]) -> Mapping[str, Any]:
        """Each metric's column, with a number for each of N networks: shape (N,).

        Args:
            networks: Their tensors by name, each of shape (N, *its own shape*).
        """

    def ensemble(self, batches: Sequence[dict[str, Tensor]]) -> Mapping[str, float]:
        """The metrics of the one model that averages the predictions of all networks of all batches.

        Raises:
            NotImplementedError: if this knows no predictions.
        """
        raise NotImplementedError(f"{type(self).__name__} knows no predictions, so it cannot measure an ensemble")


def as_number(found: Any, name: str | None = None) -> float:
    """What a function of a network returned, as a number; of several ``name`` says which.

    Raises:
        TypeError: if it is none.
    """
    try:
        return float(found)
    except (TypeError, ValueError, RuntimeError) as error:
        what = "the function of a network's tensors" if name is None else f"{name!r} of what measures a network"
        raise TypeError(f"{what} must be a number (or several by name), got {found!r:.100}") from error


class OneByOne(Measure):
    """Measures by a function of one network.

    Args:
        function: Gets the tensors of one network by name, as ``load_state_dict(..., strict=False)`` and
            ``torch.func.functional_call`` take them; returns a number, or one for each metric by its column.
        metrics: What that is; by default one loss.
    """

    at_once = 1

    def __init__(
        self,
        function: Callable[[dict[str, Tensor]], float | Mapping[str, float]],
        metrics: Sequence[Metric] = (Metric("loss", "loss"),),
    ) -> None:
        self.function = function
        self.metrics = tuple(metrics)

    def __call__(self, networks: dict[str, Tensor]) -> Mapping[str, Floats]:
        count = len(next(iter(networks.values())))
        rows = [self._one({name: tensor[n] for name, tensor in networks.items()}) for n in range(count)]
        return {metric.column: np.array([row[metric.column] for row in rows]) for metric in self.metrics}

    def _one(self, network: dict[str, Tensor]) -> Mapping[str, float]:
        found = self.function(network)
        if not isinstance(found, Mapping):
            if len(self.metrics) != 1:
                raise ValueError(f"the measure returned {found!r}, where it is to return {self._columns()} by name")
            return {self.metrics[0].column: as_number(found)}
        missing = [metric.column for metric in self.metrics if metric.column not in found]
        if missing:
            raise ValueError(
                f"the measure returned {sorted(found)}, where it is to return {self._columns()}: say what it returns "
                "by its attribute metrics"
            )
        return {metric.column: as_number(found[metric.column], metric.column) for metric in self.metrics}

    def _columns(self) -> str:
        return ", ".join(metric.column for metric in self.metrics)


def named_measure(text: str) -> Measure:
    """What ``module:function`` names: a :class:`Measure`, or a function of one network's tensors by name that returns
    its loss, or a mapping of numbers, which its attribute ``metrics`` then describes.

    Raises:
        ValueError: if there is no such thing; the message says what is wrong.
    """
    module, colon, name = text.strip().partition(":")
    if not (module and colon and name):
        raise ValueError(f"what evaluates must be given as module:function, such as my_eval:loss; got {text!r}")
    try:
        found: Any = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"the module {module} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # a script whose lines run at its import, for instance
        raise ValueError(f"the module {module} cannot be imported: {type(error).__name__}: {error}") from error
    measure: Any = found() if isinstance(found, type) and issubclass(found, Measure) else found
    if isinstance(measure, Measure):
        return measure
    if not callable(measure):
        raise ValueError(f"{module} has no function {name!r}")  # noqa: TRY004  not of this function's argument
    return OneByOne(measure, getattr(measure, "metrics", (Metric("loss", "loss"),)))
