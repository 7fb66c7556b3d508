"""What a run is made of: ``RunConfig`` and its parts, validated, to and from JSON.  Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from emacore.averaging.schedules import (
    InversePower,
    Schedule,
    check_positive,
    check_whole,
    schedule_from_dict,
)
from emacore.tables import MAX_CELLS

DATA_KINDS = ("make_regression", "friedman1", "diabetes", "csv")
ACTIVATIONS = ("relu", "tanh", "gelu", "silu")
OPTIMIZERS = ("adam", "adamw", "sgd")
RATE_RULES = ("plateau", "cosine", "constant")
CURVES = ("ema", "original")


@dataclass(frozen=True)
class DataConfig:
    """The data set, and how it is split.  X and y are standardised over all rows, as the article does.

    Args:
        kind: "make_regression" (linear) and "friedman1" (not) are made by scikit-learn, "diabetes" ships inside it
            (442 rows, 10 features), "csv" is a file of one's own.
        n_samples, n_features, n_informative, noise, random_state: Of the made data sets; ``n_informative`` of
            make_regression only.  ``noise`` is the standard deviation added to y before it is standardised.
        test_size: Share of the rows used for validation, in (0, 1).
        split_random_state: Seed of the split.
        path, target: Of "csv": the file, and the column to predict; the other columns of numbers predict it.
    """

    kind: str = "make_regression"
    n_samples: int = 2000
    n_features: int = 20
    n_informative: int = 10
    noise: float = 0.1
    random_state: int = 42
    test_size: float = 0.2
    split_random_state: int = 42
    path: str | None = None
    target: str | None = None

    def __post_init__(self) -> None:
        _check_choice("data.kind", self.kind, DATA_KINDS)
        check_whole("data.n_samples", self.n_samples, 4)
        check_whole("data.n_features", self.n_features, 5 if self.kind == "friedman1" else 1)
        check_whole("data.n_informative", self.n_informative, 1)
        check_whole("data.random_state", self.random_state, 0)
        check_whole("data.split_random_state", self.split_random_state, 0)
        _check_at_least_zero("data.noise", self.noise)
        if not (_is_number(self.test_size) and 0 < self.test_size < 1):
            raise ValueError(f"data.test_size must be in (0, 1), got {self.test_size!r}")
        if self.n_samples * self.n_features > MAX_CELLS:
            raise ValueError(
                f"data: {self.n_samples:,} samples of {self.n_features:,} features are "
                f"{self.n_samples * self.n_features:,} numbers; at most {MAX_CELLS:,} are allowed"
            )
        for name in ("path", "target"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"data.{name} must be text, got {getattr(self, name)!r}")  # noqa: TRY004
        if self.kind == "csv" and not (self.path and self.target):
            raise ValueError("data: kind 'csv' needs a path and the name of its target column")

    @property
    def rows(self) -> int | None:
        """How many rows the data set has; ``None`` for a CSV, which is not opened here."""
        return {"csv": None, "diabetes": 442}.get(self.kind, self.n_samples)

    @property
    def train_rows(self) -> int | None:
        """How many of them train, by scikit-learn's rule for a split; ``None`` for a CSV."""
        return None if self.rows is None else self.rows - math.ceil(self.rows * self.test_size)


@dataclass(frozen=True)
class NetworkConfig:
    """A multilayer perceptron: ``widths`` of the hidden layers, each followed by ``activation`` and ``dropout``."""

    widths: tuple[int, ...] = (64, 32)
    dropout: float = 0.2
    activation: str = "relu"

    def __post_init__(self) -> None:
        if not isinstance(self.widths, (list, tuple)) or len(self.widths) > 16:
            raise ValueError(f"network.widths must be a list of at most 16 layer widths, got {self.widths!r}")
        object.__setattr__(self, "widths", tuple(self.widths))
        for width in self.widths:
            check_whole("network.widths", width, 1)
            if width > 4096:
                raise ValueError(f"network.widths must be at most 4096, got {width!r}")
        if not (_is_number(self.dropout) and 0 <= self.dropout < 1):
            raise ValueError(f"network.dropout must be in [0, 1), got {self.dropout!r}")
        _check_choice("network.activation", self.activation, ACTIVATIONS)


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser, its batches, and how its learning rate changes.

    Args:
        name: "adam", "adamw" or "sgd"; ``momentum`` is of "sgd" only.
        rate_rule: "plateau" multiplies the rate by ``plateau_factor`` after ``plateau_patience`` epochs in which the
            validation loss of ``plateau_curve`` ("ema" or "original") did not improve; "cosine" lowers it to 0 over
            ``max_epochs``; "constant" leaves it.
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
        _check_choice("optimizer.name", self.name, OPTIMIZERS)
        check_positive("optimizer.learning_rate", self.learning_rate)
        _check_at_least_zero("optimizer.weight_decay", self.weight_decay)
        if not (_is_number(self.momentum) and 0 <= self.momentum < 1):
            raise ValueError(f"optimizer.momentum must be in [0, 1), got {self.momentum!r}")
        check_whole("optimizer.batch_size", self.batch_size, 1)
        _check_choice("optimizer.rate_rule", self.rate_rule, RATE_RULES)
        if not (_is_number(self.plateau_factor) and 0 < self.plateau_factor < 1):
            raise ValueError(f"optimizer.plateau_factor must be in (0, 1), got {self.plateau_factor!r}")
        check_whole("optimizer.plateau_patience", self.plateau_patience, 0)
        _check_choice("optimizer.plateau_curve", self.plateau_curve, CURVES)


@dataclass(frozen=True)
class StoppingConfig:
    """Stop after ``patience`` epochs without a new best validation loss of ``curve``: "ema", "original", or "none"."""

    curve: str = "ema"
    patience: int = 20

    def __post_init__(self) -> None:
        _check_choice("stopping.curve", self.curve, (*CURVES, "none"))
        check_whole("stopping.patience", self.patience, 1)


def article_schedule() -> InversePower:
    """The schedule of the article's experiment."""
    return InversePower(beta=0.999, update_after_step=100, update_every=1)


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers.  ``RunConfig()`` is the article's experiment.

    Args:
        seed: Of the initial weights, the order of batches, and dropout.
        max_epochs: At most so many passes over the training rows.

    Raises:
        ValueError: for a value out of range; the message names the setting.
    """

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: Schedule = field(default_factory=article_schedule)
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    seed: int = 42
    max_epochs: int = 500

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0)
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        check_whole("max_epochs", self.max_epochs, 1)
        rows = self.data.train_rows
        if rows is not None:
            check_rows(rows, self.optimizer.batch_size)

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimiser steps, which are calls of ``update()``, in an epoch; ``None`` for a CSV."""
        rows = self.data.train_rows
        return None if rows is None else math.ceil(rows / self.optimizer.batch_size)

    def to_json(self, indent: int | None = 2) -> str:
        """The settings as JSON; :meth:`from_json` gives an equal config back."""
        return json.dumps({**asdict(self), "schedule": self.schedule.to_dict()}, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> RunConfig:
        """The config that ``text`` describes; settings it leaves out have the article's values.

        Raises:
            ValueError: if it is not JSON, or names or values are wrong; the message says which.
        """
        parts = json_object(text)
        for name, part in _PARTS.items():
            if name in parts:
                parts[name] = _built(part, parts[name], f"{name}.")
        if "schedule" in parts:
            if not isinstance(parts["schedule"], Mapping):
                raise ValueError(f"schedule must be an object, got {parts['schedule']!r}")
            try:
                parts["schedule"] = schedule_from_dict(parts["schedule"])
            except TypeError as error:
                raise ValueError(f"schedule: {error}") from error
        return _built(cls, parts, "")


_PARTS: dict[str, type[Any]] = {
    "data": DataConfig,
    "network": NetworkConfig,
    "optimizer": OptimizerConfig,
    "stopping": StoppingConfig,
}
T = TypeVar("T")


def check_rows(train_rows: int, batch_size: int) -> None:
    """Raise ``ValueError`` if a batch would not fit into the training rows."""
    if train_rows < 1:
        raise ValueError("data.test_size leaves no rows for training: lower it, or use more rows")
    if batch_size > train_rows:
        raise ValueError(
            f"optimizer.batch_size = {batch_size} is larger than the {train_rows} training rows: "
            f"at most {train_rows} is possible"
        )


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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def _check_at_least_zero(name: str, value: float) -> None:
    if not (_is_number(value) and 0 <= value < math.inf):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")
