import math

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from emacore import RunConfig
from emacore.limits import TABLE_CELLS
from emacore.tasks.regression.config import DataConfig

LEAST = {"n_samples": 4, "n_features": 1, "n_informative": 1, "random_state": 0, "split_random_state": 0}


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_each_number_has_a_least_value(name, least):
    assert getattr(DataConfig(**{name: least}), name) == least
    for bad in (least - 1, least + 0.5, True, None):
        with pytest.raises(ValueError, match=rf"data\.{name} must be a whole number of at least {least}, got {bad}"):
            DataConfig(**{name: bad})


def test_friedmans_data_need_five_features():
    assert DataConfig("friedman1", n_features=5).n_features == 5
    with pytest.raises(ValueError, match=r"data\.n_features must be a whole number of at least 5, got 4"):
        DataConfig("friedman1", n_features=4)


@pytest.mark.parametrize("noise", [-1e-9, math.inf, math.nan, "0.1"])
def test_noise_is_at_least_zero(noise):
    assert DataConfig(noise=0).noise == 0
    with pytest.raises(ValueError, match=r"data\.noise must be a finite number of at least 0"):
        DataConfig(noise=noise)


@pytest.mark.parametrize("size", [0, 1, -0.1, 1.5, math.nan, "half", True])
def test_the_share_that_validates_lies_between_nothing_and_all(size):
    assert DataConfig(test_size=1e-9).test_size == 1e-9
    with pytest.raises(ValueError, match=r"data\.test_size must be in \(0, 1\), got "):
        DataConfig(test_size=size)


def test_so_many_numbers_are_allowed_and_no_more():
    assert DataConfig(n_samples=TABLE_CELLS // 10, n_features=10).rows == TABLE_CELLS // 10
    with pytest.raises(
        ValueError,
        match=r"at most 20,000,000 numbers of data \(2,000,001 samples of 10 features\) are possible, got 20,000,010",
    ):
        DataConfig(n_samples=TABLE_CELLS // 10 + 1, n_features=10)


@pytest.mark.parametrize("missing", [{"path": "a.csv"}, {"target": "y"}, {}, {"path": "", "target": "y"}])
def test_a_file_needs_its_place_and_its_target(missing):
    assert DataConfig("csv", path="a.csv", target="y").rows is None
    with pytest.raises(ValueError, match="'csv' needs a path and the name of its target column"):
        DataConfig("csv", **missing)
    with pytest.raises(ValueError, match=r"data\.path must be text, got 3"):
        DataConfig("csv", path=3, target="y")


@pytest.mark.parametrize("rows", [4, 5, 7, 200, 2000])
@pytest.mark.parametrize("size", [0.01, 0.2, 0.25, 0.5, 0.7])
def test_the_rows_that_train_are_those_of_scikit_learns_split(rows, size):
    config = DataConfig(n_samples=rows, test_size=size)
    assert config.rows == rows
    assert config.train_rows == len(train_test_split(np.arange(rows), test_size=size)[0])
    assert DataConfig("diabetes", n_samples=rows).rows == 442
    assert DataConfig("csv", path="a", target="b").train_rows is None


def test_what_is_measured_and_which_way_is_better():
    found = [(metric.column, metric.name, metric.higher_is_better) for metric in RunConfig.metrics]
    assert found == [("loss", "MSE", False), ("mae", "MAE", False), ("r2", "R2", True)]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"path": 3}, "data.path must be text, got 3"),
        ({"sha256": "abc"}, "data.sha256 must be 64 hexadecimal digits, got 'abc'"),
        ({"features": "a"}, "data.features must be a list of names of columns, got 'a'"),
        ({"features": ["a", 1]}, r"data.features must be a list of names of columns, got \['a', 1\]"),
        ({"features": ["a", "c", "a"]}, "data.features has a name twice: a, c, a"),
        ({"blanks": "x"}, "data.blanks must be one of"),
        ({"text": "x"}, "data.text must be one of"),
        ({"scaled_on": "x"}, "data.scaled_on must be one of"),
    ],
)
def test_settings_of_an_own_table_are_checked(setting, words):
    with pytest.raises(ValueError, match=words):
        DataConfig("csv", **({"path": "a.csv", "target": "b"} | setting))
