"""The settings of a regression.  Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emacore.checks import check_at_least_zero, check_choice, check_whole, is_real, keep_plain
from emacore.limits import TABLE_CELLS, check_most
from emacore.replay.measure import Metric
from emacore.tables import hash_of, read_file
from emacore.training.config import NetworkConfig, TaskConfig, TaskData
from emacore.training.names import cut

if TYPE_CHECKING:
    from emacore.tasks.regression.task import Regression

DATA_KINDS = ("make_regression", "friedman1", "diabetes", "csv")
BLANKS = ("refuse", "drop", "mean", "median")
TEXTS = ("leave out", "one-hot")
SCALED_ON = ("all", "train")


@dataclass(frozen=True)
class DataConfig(TaskData):
    """The data set, and how it is split and standardised.

    Args:
        kind: "make_regression" (linear) and "friedman1" (not) are made by scikit-learn, "diabetes" ships inside it
            (442 rows, 10 features), "csv" is a file of one's own.
        n_samples, n_features, n_informative, noise, random_state: Of the made data sets; ``n_informative`` of
            make_regression only.  ``noise`` is the standard deviation added to y before it is standardised.
        test_size: Share of the rows used for validation, in (0, 1).
        split_random_state: Seed of the split.
        scaled_on: Over which rows means and standard deviations of X and y are taken: "all", as the article does, so
            that the validation rows have a say, or "train".
        path, target: Of "csv": the file, and the column to predict.
        sha256: Of "csv": the hash of the file's bytes.  With it the file is found among those that a store keeps, and
            another one of its name is refused.
        features: Of "csv": the columns that predict it; by default all others of numbers and truth values.
        blanks: Of "csv": what becomes of rows in which one of these is missing: "refuse" (an error names the first),
            "drop", or filled in by the column's "mean" or "median"; rows without a target are never filled in.
        text: Of "csv": "leave out" columns of words, or make a column of each word ("one-hot").
    """

    kind: str = "make_regression"
    n_samples: int = 2000
    n_features: int = 20
    n_informative: int = 10
    noise: float = 0.1
    random_state: int = 42
    test_size: float = 0.2
    split_random_state: int = 42
    scaled_on: str = "all"
    path: str | None = None
    target: str | None = None
    sha256: str | None = None
    features: tuple[str, ...] | None = None
    blanks: str = "refuse"
    text: str = "leave out"

    def __post_init__(self) -> None:
        keep_plain(self)
        check_choice("data.kind", self.kind, DATA_KINDS)
        check_whole("data.n_samples", self.n_samples, 4)
        check_whole("data.n_features", self.n_features, 5 if self.kind == "friedman1" else 1)
        check_whole("data.n_informative", self.n_informative, 1)
        check_whole("data.random_state", self.random_state, 0)
        check_whole("data.split_random_state", self.split_random_state, 0)
        check_at_least_zero("data.noise", self.noise)
        if not (is_real(self.test_size) and 0 < self.test_size < 1):
            raise ValueError(f"data.test_size must be in (0, 1), got {self.test_size!r}")
        what = f"numbers of data ({self.n_samples:,} samples of {self.n_features:,} features)"
        check_most(what, self.n_samples * self.n_features, TABLE_CELLS)
        for name in ("path", "target", "sha256"):
            if not isinstance(getattr(self, name), str | None):
                raise ValueError(f"data.{name} must be text, got {getattr(self, name)!r}")  # noqa: TRY004
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"data.sha256 must be 64 hexadecimal digits, got {self.sha256[:80]!r}")
        if self.features is not None:
            if not isinstance(self.features, (list, tuple)) or not all(isinstance(one, str) for one in self.features):
                raise ValueError(f"data.features must be a list of names of columns, got {self.features!r}")
            if len(set(self.features)) < len(self.features):
                raise ValueError(f"data.features has a name twice: {', '.join(self.features)}")
            object.__setattr__(self, "features", tuple(self.features) or None)
        check_choice("data.blanks", self.blanks, BLANKS)
        check_choice("data.text", self.text, TEXTS)
        check_choice("data.scaled_on", self.scaled_on, SCALED_ON)
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

    def idle(self) -> dict[str, str]:
        """The settings that change nothing beside the others, with the reason."""
        idle: dict[str, str] = {}
        if self.kind in ("diabetes", "csv"):
            made = ("n_samples", "n_features", "n_informative", "noise", "random_state")
            idle |= dict.fromkeys(made, f"the rows of {self.kind} are given")
        if self.kind == "friedman1":
            idle["n_informative"] = "friedman1 has 5 informative features"
        if self.kind != "csv":
            idle |= dict.fromkeys(("path", "target", "sha256", "features", "blanks", "text"), f"{self.kind} is no file")
        return idle

    def kept(self, keep: Callable[[bytes], Path]) -> DataConfig:
        """These settings once ``keep`` has taken the file: they have its name and its hash, and not its folder."""
        if self.kind != "csv" or self.path is None:
            return self
        content = read_file(self.path, self.sha256)
        keep(content)
        return replace(self, path=Path(self.path).name, sha256=hash_of(content))

    def told(self) -> list[str]:
        if self.kind != "csv":
            return []
        from emacore.tasks.regression.data import about  # needs scikit-learn

        return list(about(self).notes)

    def effective(self) -> dict[str, Any]:
        """The settings as what they come to: the size of the validation set in rows, no more informative features than
        there are."""
        found = asdict(self)
        if self.rows is not None and self.train_rows is not None:
            found["test_size"] = self.rows - self.train_rows
        found["n_informative"] = min(self.n_informative, self.n_features)
        return found


@dataclass(frozen=True)
class RunConfig(TaskConfig):
    """The settings of a regression.  ``RunConfig()`` is the article's experiment."""

    task_name = "regression"
    metrics = (Metric("loss", "MSE"), Metric("mae", "MAE"), Metric("r2", "R2", higher_is_better=True))
    told_by_subject = ("data.kind", "data.path", "data.target", "data.sha256")

    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)

    @property
    def subject(self) -> str:
        """The article's data are "regression"; others go by their name, a file by its target."""
        match self.data.kind:
            case "make_regression":
                return self.task_name
            case "csv":
                return f"{cut(' '.join((self.data.target or '').split()))} of a CSV"
            case kind:
                return kind

    def task(self) -> Regression:
        """The regression; imports torch."""
        from emacore.tasks.regression.task import Regression

        return Regression()
