"""The data sets of a run, standardised and split."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, make_friedman1, make_regression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from emacore.tables import Table, read_file, table_of
from emacore.tasks.regression.columns import Described, described, matrices, scalable
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import check_rows

Floats = NDArray[np.float32]


class Arrays(NamedTuple):
    """Features of shape (rows, features) and targets of shape (rows, 1), float32, standardised."""

    x_train: Floats
    x_val: Floats
    y_train: Floats
    y_val: Floats


def load(config: DataConfig) -> Arrays:
    """Make or read the data set that ``config`` describes.

    Raises:
        TableError: for a CSV that cannot be used.
        ValueError: if the split leaves fewer than one row to train on or two to validate on.
    """
    table = read(config) if config.kind == "csv" else None
    features, target = _rows(config) if table is None else matrices(table, config)[:2]
    train, validation = _split(len(features), config)
    fitted = np.arange(len(features)) if config.scaled_on == "all" else train
    if table is not None and config.scaled_on == "train":
        features, target, _ = matrices(table, config, fitted)
    # float32 cannot hold the offsets of some columns, so standardising comes first.
    x, y = scalable(features), scalable(target.reshape(-1, 1))
    x = StandardScaler().fit(x[fitted]).transform(x).astype(np.float32)
    y = StandardScaler().fit(y[fitted]).transform(y).astype(np.float32)
    return Arrays(x[train], x[validation], y[train], y[validation])


def read(config: DataConfig) -> Table:
    """The table of a CSV.

    Raises:
        TableError: if it cannot be read, or is another one than ``data.sha256`` says.
    """
    return table_of(read_file(config.path or "", config.sha256))


def about(config: DataConfig) -> Described:
    """What becomes of the columns and rows of a CSV.

    Raises:
        TableError: if it cannot be trained on.
    """
    return described(read(config), config)


def _split(rows: int, config: DataConfig) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows that train and those that validate."""
    validation = int(np.ceil(rows * config.test_size))
    check_rows(rows - validation, 1)
    if validation < 2:
        raise ValueError(
            f"data.test_size = {config.test_size:g} leaves {validation} of {rows} rows for validation; "
            "R2 needs at least 2: raise it, or use more rows"
        )
    parts = train_test_split(np.arange(rows), test_size=config.test_size, random_state=config.split_random_state)
    return parts[0], parts[1]


def _rows(config: DataConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    size = {"n_samples": config.n_samples, "n_features": config.n_features}
    noise = {"noise": config.noise, "random_state": config.random_state}
    if config.kind == "make_regression":
        x, y = make_regression(n_informative=config.n_informative, **size, **noise)
        return x, y
    if config.kind == "friedman1":
        x, y = make_friedman1(**size, **noise)
        return x, y
    x, y = load_diabetes(return_X_y=True)
    return x, y
