"""The settings of a run: what all tasks share, validated, to and from JSON.  Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, get_type_hints

import numpy as np

from emacore.averaging.families import InversePower
from emacore.averaging.schedules import Schedule, schedule_from_dict
from emacore.checks import check_at_least_zero, check_choice, check_positive, check_whole, is_real
from emacore.limits import LAYERS, WIDTH, check_most
from emacore.replay.measure import Metric, check_metrics

if TYPE_CHECKING:
    from emacore.training.task import Task

#: The task of files that name none: written before there were others.
DEFAULT_TASK = "regression"
#: The largest seed; the databases of runs have no larger whole numbers.
MOST_SEED = 2**63 - 1
ACTIVATIONS = ("relu", "tanh", "gelu", "silu")
OPTIMIZERS = ("adam", "adamw", "sgd")
RATE_RULES = ("plateau", "cosine", "constant")
CURVES = ("ema", "original")


@dataclass(frozen=True)
class TaskData:
    """The data settings of a task; each task has a class of its own of this."""

    @property
    def train_rows(self) -> int | None:
        """How many rows train; ``None`` where only the data can tell."""
        return None

    def idle(self) -> dict[str, str]:
        """The settings that change nothing beside the others, with the reason."""
        return {}

    def kept(self, keep: Callable[[bytes], Path]) -> TaskData:
        """These settings once ``keep`` has taken their files; by default there are none.

        Raises:
            ValueError: if a file cannot be read.
        """
        return self

    def told(self) -> list[str]:
        """What there is to know of the data before a training, in sentences.

        Raises:
            ValueError: if they cannot be trained on.
        """
        return []

    def effective(self) -> dict[str, Any]:
        """The settings as what they come to: equal ones give the same data."""
        return asdict(self)


@dataclass(frozen=True)
class NetworkConfig:
    """A multilayer perceptron: ``widths`` of the hidden layers, each followed by ``activation`` and ``dropout``."""

    widths: tuple[int, ...] = (64, 32)
    dropout: float = 0.2
    activation: str = "relu"

    def __post_init__(self) -> None:
        if not isinstance(self.widths, (list, tuple)):
            raise ValueError(f"network.widths must be a list of layer widths, got {self.widths!r}")  # noqa: TRY004
        check_most("layer widths (network.widths)", len(self.widths), LAYERS)
        object.__setattr__(self, "widths", tuple(self.widths))
        for width in self.widths:
            check_whole("network.widths", width, 1)
            check_most("units of a layer (network.widths)", width, WIDTH)
        if not (is_real(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(f"network.dropout must be in [0, 1), got {self.dropout!r}")
        check_choice("network.activation", self.activation, ACTIVATIONS)

    def idle(self) -> dict[str, str]:
        """The settings that change nothing beside the others, with the reason."""
        return {} if self.widths else dict.fromkeys(("dropout", "activation"), "there are no hidden layers")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser, its batches, and how its learning rate changes.

    Args:
        name: "adam", "adamw" or "sgd"; ``momentum`` is of "sgd" only.
        rate_rule: "plateau" multiplies the rate by ``plateau_factor`` once the validation loss of ``plateau_curve``
            ("ema" or "original") was no better for more than ``plateau_patience`` epochs in a row: it must fall by
            0.01 % of its size; "cosine" lowers the rate to 0 over ``max_epochs``; "constant" leaves it.
    """

    name: str = "adam"
    learning_rate: float = 0.001
    weight_decay: float = 1e-5
    momentum: float = 0.9
    batch_size: int = 32
    rate_rule: str = "plateau"
    plateau_factor: float = 0.5
    plateau_patience: int = 10
    plateau_curve: str = "ema"

    def __post_init__(self) -> None:
        check_choice("optimizer.name", self.name, OPTIMIZERS)
        check_positive("optimizer.learning_rate", self.learning_rate)
        check_at_least_zero("optimizer.weight_decay", self.weight_decay)
        if not (is_real(self.momentum) and 0 <= self.momentum < 1):
            raise ValueError(f"optimizer.momentum must be in [0, 1), got {self.momentum!r}")
        check_whole("optimizer.batch_size", self.batch_size, 1)
        check_choice("optimizer.rate_rule", self.rate_rule, RATE_RULES)
        if not (is_real(self.plateau_factor) and 0 < self.plateau_factor < 1):
            raise ValueError(f"optimizer.plateau_factor must be in (0, 1), got {self.plateau_factor!r}")
        check_whole("optimizer.plateau_patience", self.plateau_patience, 0)
        check_choice("optimizer.plateau_curve", self.plateau_curve, CURVES)


@dataclass(frozen=True)
class StoppingConfig:
    """Stop after ``patience`` epochs without a new best validation loss of ``curve``: "ema", "original", or "none"."""

    curve: str = "ema"
    patience: int = 20

    def __post_init__(self) -> None:
        check_choice("stopping.curve", self.curve, (*CURVES, "none"))
        check_whole("stopping.patience", self.patience, 1)


def article_schedule() -> InversePower:
    """The schedule of the article's experiment."""
    return InversePower(beta=0.999, update_after_step=100, update_every=1)


@dataclass(frozen=True)
class TaskConfig:
    """Everything that decides a run's numbers, whatever is trained; each task has a class of its own of this.

    A subclass names the task in ``task_name``, says what is measured in ``metrics``, gives ``data`` and ``network``
    their types and defaults, and makes the task in :meth:`task`.  Files name the task, so a subclass can be read back
    from where it was written once it is defined.

    Args:
        seed: Of the initial weights, the order of batches, and dropout.
        max_epochs: At most so many passes over the training rows.

    Raises:
        ValueError: for a value out of range; the message names the setting.
    """

    task_name: ClassVar[str]
    #: What is measured; the first is the loss, whose column is ``loss``, and of which less is better.
    metrics: ClassVar[tuple[Metric, ...]]
    #: The settings, by their dotted names, that :attr:`subject` tells of.
    told_by_subject: ClassVar[tuple[str, ...]] = ()
    _by_task: ClassVar[dict[str, type[TaskConfig]]] = {}

    data: TaskData = field(default_factory=TaskData)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: Schedule = field(default_factory=article_schedule)
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    seed: int = 42
    max_epochs: int = 500

    def __init_subclass__(cls) -> None:
        check_metrics(cls.metrics)
        if cls.metrics[0].column != "loss" or cls.metrics[0].higher_is_better:
            raise ValueError(
                f"the first metric of {cls.__name__} must be the loss: Metric('loss', ...), lower is better"
            )
        TaskConfig._by_task[cls.task_name] = cls

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0)
        if self.seed > MOST_SEED:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        check_whole("max_epochs", self.max_epochs, 1)
        rows = self.train_rows
        if rows is not None:
            check_rows(rows, self.optimizer.batch_size)

    def task(self) -> Task:
        """What is trained; imports torch."""
        raise NotImplementedError

    @property
    def subject(self) -> str:
        """What is trained on which data, in a few words: the beginning of a run's name."""
        return self.task_name

    @property
    def train_rows(self) -> int | None:
        """How many rows train; ``None`` where only the data can tell."""
        return self.data.train_rows

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimiser steps, which are calls of ``update()``, in an epoch; ``None`` where only the data can tell."""
        rows = self.train_rows
        return None if rows is None else math.ceil(rows / self.optimizer.batch_size)

    def to_json(self, indent: int | None = 2) -> str:
        """The settings as JSON; :meth:`from_json` gives an equal config back."""
        return json.dumps({"task": self.task_name, **asdict(self), "schedule": self.schedule.to_dict()}, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The config that ``text`` describes, of the task that it names; settings it leaves out have their defaults.

        Raises:
            ValueError: if it is not JSON, names a task that is not (or not of this class), or names or values are
                wrong; the message says which.
        """
        parts = json_object(text)
        name = parts.pop("task", getattr(cls, "task_name", DEFAULT_TASK))
        kind = TaskConfig._by_task.get(name) if isinstance(name, str) else None
        if kind is None or not issubclass(kind, cls):
            known = sorted(name for name, known in TaskConfig._by_task.items() if issubclass(known, cls))
            raise ValueError(f"there is no task {name!r}" + (f" here; there is {', '.join(known)}" if known else ""))
        for part, its_type in _types(kind).items():  # type: ignore[arg-type]
            if part in parts and part != "schedule" and isinstance(its_type, type) and is_dataclass(its_type):
                parts[part] = _built(its_type, parts[part], f"{part}.")
        if "schedule" in parts:
            if not isinstance(parts["schedule"], Mapping):
                raise ValueError(f"schedule must be an object, got {parts['schedule']!r}")
            try:
                parts["schedule"] = schedule_from_dict(parts["schedule"])
            except TypeError as error:
                raise ValueError(f"schedule: {error}") from error
        return _built(kind, parts, "")


T = TypeVar("T")


@lru_cache
def _types(kind: Any) -> dict[str, Any]:
    """The types of a config's parts; a grid asks for them in each cell."""
    return get_type_hints(kind)


def checked_seeds(seeds: Iterable[int]) -> tuple[int, ...]:
    """The seeds of many runs: different whole numbers from 0 on, at least one, of a list, a range or an array.

    Raises:
        ValueError: for other numbers.
        TypeError: for anything else.
    """
    if not isinstance(seeds, Sequence | np.ndarray) or isinstance(seeds, str | bytes) or not getattr(seeds, "ndim", 1):
        raise TypeError(f"seeds must be a list of whole numbers, got {seeds!r}")
    for seed in seeds:
        check_whole("seeds", seed, 0, MOST_SEED)
    found = tuple(map(int, seeds))
    if not found or len(set(found)) != len(found):
        raise ValueError(f"seeds must be different numbers, at least one; got {list(found)!r}")
    return found


def check_rows(train_rows: int, batch_size: int) -> None:
    """Raise ``ValueError`` if a batch would not fit into the training rows."""
    if train_rows < 1:
        raise ValueError("data.test_size leaves no rows for training: lower it, or use more rows")
    if batch_size > train_rows:
        raise ValueError(
            f"optimizer.batch_size = {batch_size} is larger than the {train_rows} training rows: "
            f"at most {train_rows} is possible"
        )


def dotted(settings: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """The values of nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= dotted(value, f"{start}{name}.") if isinstance(value, Mapping) else {f"{start}{name}": value}
    return found


def json_object(text: str | bytes) -> dict[str, Any]:
    """The settings in a JSON text; raises ``ValueError`` if it is not an object."""
    try:
        settings = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"a JSON object with the settings is needed, got {type(settings).__name__}")  # noqa: TRY004
    return settings


def _built(kind: type[T], settings: Any, where: str) -> T:
    if not isinstance(settings, Mapping):
        raise ValueError(f"{where.rstrip('.')} must be an object, got {settings!r}")  # noqa: TRY004
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(set(settings) - set(names))
    if unknown:
        raise ValueError(f"there is no setting {where}{unknown[0]}; there are {', '.join(names)}")
    return kind(**settings)
