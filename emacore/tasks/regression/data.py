"""The data sets of a run, standardised and split."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes, make_friedman1, make_regression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from emacore.tables import TableError, finite_values, numeric_columns, read_csv
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import check_rows

Floats = NDArray[np.float32]


class Arrays(NamedTuple):
    """Features of shape (rows, features) and targets of shape (rows, 1), float32, standardised over all rows."""

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
    features, target = _rows(config)
    validation = int(np.ceil(len(features) * config.test_size))
    check_rows(len(features) - validation, 1)
    if validation < 2:
        raise ValueError(
            f"data.test_size = {config.test_size:g} leaves {validation} of {len(features)} rows for validation; "
            "R2 needs at least 2: raise it, or use more rows"
        )
    # float32 cannot hold the offsets of some columns, so standardising comes first.
    x = StandardScaler().fit_transform(features.astype(np.float64)).astype(np.float32)
    y = StandardScaler().fit_transform(target.astype(np.float64).reshape(-1, 1)).astype(np.float32)
    return Arrays(*train_test_split(x, y, test_size=config.test_size, random_state=config.split_random_state))


def _rows(config: DataConfig) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    size = {"n_samples": config.n_samples, "n_features": config.n_features}
    noise = {"noise": config.noise, "random_state": config.random_state}
    if config.kind == "make_regression":
        x, y = make_regression(n_informative=config.n_informative, **size, **noise)
        return x, y
    if config.kind == "friedman1":
        x, y = make_friedman1(**size, **noise)
        return x, y
    if config.kind == "diabetes":
        x, y = load_diabetes(return_X_y=True)
        return x, y
    return _own_table(config.path or "", config.target or "")


def _own_table(path: str, target: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    table = read_csv(path)
    table.columns = table.columns.map(str)
    columns = numeric_columns(table, minimum=2)
    if target not in columns:
        raise TableError(f"The table has no column of numbers named {target!r}; it has {', '.join(columns)}.")
    features = [name for name in columns if name != target]
    values = finite_values(table, [*features, target], minimum_rows=4)
    if np.ptp(values[:, -1]) == 0:
        raise TableError(f"The target column {target!r} has the same value in every row: there is nothing to learn.")
    return values[:, :-1], values[:, -1]
