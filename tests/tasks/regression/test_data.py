from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import make_regression

from emacore import tables
from emacore.tables import TableError, hash_of, kept_name
from emacore.tasks.regression.config import DataConfig
from emacore.tasks.regression.data import load


def test_the_articles_data():
    data = load(DataConfig())
    assert data.x_train.shape == (1600, 20)
    assert data.y_val.shape == (400, 1)
    assert all(part.dtype == np.float32 for part in data)
    x, _ = make_regression(n_samples=2000, n_features=20, noise=0.1, random_state=42)
    found = np.concatenate([data.x_train, data.x_val])
    np.testing.assert_allclose(np.sort(found[:, 0]), np.sort((x[:, 0] - x[:, 0].mean()) / x[:, 0].std()), atol=1e-5)
    np.testing.assert_allclose(np.concatenate([data.y_train, data.y_val]).std(), 1, rtol=1e-4)


@pytest.mark.parametrize(("kind", "rows"), [("friedman1", 300), ("diabetes", 442)])
def test_other_data_sets(kind, rows):
    config = DataConfig(kind, n_samples=300, n_features=10, test_size=0.25)
    data = load(config)
    assert len(data.x_train) == config.train_rows
    assert len(data.x_train) + len(data.x_val) == rows == config.rows
    assert data.x_train.shape[1] == 10


def test_a_csv_of_ones_own(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"a": rng.normal(size=50), "word": ["x"] * 50, "b": 1e9 + rng.normal(size=50)})
    table["y"] = 2 * table["a"] - 3
    table.to_csv(tmp_path / "own.csv", index=False)
    data = load(DataConfig("csv", path=str(tmp_path / "own.csv"), target="y", test_size=0.2))
    assert data.x_train.shape == (40, 2)
    np.testing.assert_allclose(data.x_train[:, 0], data.y_train[:, 0], atol=1e-5)
    assert data.x_train[:, 1].std() > 0.5  # the large offset did not eat the column
    with pytest.raises(TableError, match="The target 'word' is of text"):
        load(DataConfig("csv", path=str(tmp_path / "own.csv"), target="word"))
    with pytest.raises(TableError, match="cannot be read"):
        load(DataConfig("csv", path=str(tmp_path / "gone.csv"), target="y"))
    table["y"] = 1.0
    table.to_csv(tmp_path / "flat.csv", index=False)
    with pytest.raises(TableError, match="same value in every row"):
        load(DataConfig("csv", path=str(tmp_path / "flat.csv"), target="y"))


def test_a_split_without_validation_rows_is_an_error():
    with pytest.raises(ValueError, match="leaves 1 of 8 rows for validation"):
        load(DataConfig(n_samples=8, test_size=0.1))


def test_what_scales_can_be_the_training_rows_alone():
    config = DataConfig("friedman1", n_samples=300)
    every, alone = load(config), load(replace(config, scaled_on="train"))
    np.testing.assert_allclose(alone.x_train.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(alone.y_train.std(), 1, rtol=1e-5)
    assert np.abs(every.x_train.mean(axis=0)).max() > 1e-3
    np.testing.assert_allclose(np.corrcoef(every.y_val[:, 0], alone.y_val[:, 0])[0, 1], 1, rtol=1e-6)


def test_a_table_is_known_by_its_hash(tmp_path, monkeypatch):
    content = b"a,y\n" + b"".join(b"%d,%d\n" % (n, n * n) for n in range(20))
    path = tmp_path / "own.csv"
    path.write_bytes(content)
    named = DataConfig("csv", path=str(path), target="y").kept(lambda found: path if found == content else None)
    assert (named.path, named.sha256) == ("own.csv", hash_of(content))
    with pytest.raises(TableError, match=r"The file 'own.csv' cannot be read"):
        load(named)
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / kept_name(named.sha256)).write_bytes(content)
    monkeypatch.setattr(tables, "KEPT", {kept})
    assert load(named).x_train.shape == (16, 1)
    path.write_bytes(content + b"1,1\n")
    monkeypatch.setattr(tables, "KEPT", set())
    with pytest.raises(TableError, match="'own.csv' is another one than that of the settings"):
        load(replace(named, path=str(path)))
