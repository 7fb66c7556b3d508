import numpy as np
import pandas as pd
import pytest

from emacore import tables
from emacore.tables import TableError, finite_values, numeric_columns, read_csv


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_are_found_and_numbers_kept_exactly(delimiter):
    table = pd.DataFrame({"a": [0.1 + 0.2, 1e-300], "b": [1, 2]})
    found = read_csv(table.to_csv(index=False, sep=delimiter).encode("utf-8-sig"))
    pd.testing.assert_frame_equal(found, table, check_exact=True)


def test_one_column_and_a_path(tmp_path):
    (tmp_path / "one.csv").write_text("loss\n1\n2.5\n")
    assert read_csv(tmp_path / "one.csv")["loss"].tolist() == [1, 2.5]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"  \n \n", "empty"),
        (b"PK\x03\x04\0\0", "binary"),
        ("loss\n1,2\xe9".encode("latin-1"), "not UTF-8"),
        (b"a,b\n", "header but no rows"),
        (b"a,b\n1,2\n1,2,3\n", "not a table"),
    ],
)
def test_what_is_not_a_table_is_told_in_a_sentence(content, message):
    with pytest.raises(TableError, match=message) as caught:
        read_csv(content)
    assert "\n" not in str(caught.value).strip()


def test_limits_are_stated(monkeypatch):
    monkeypatch.setattr(tables, "MAX_BYTES", 2**20)
    with pytest.raises(TableError, match="2 MB; at most 1 MB"):
        read_csv(b"a\n" + b"1\n" * 2**20)
    monkeypatch.setattr(tables, "MAX_CELLS", 3)
    with pytest.raises(TableError, match="4 cells; at most 3"):
        read_csv(b"a,b\n1,2\n3,4\n")


def test_columns_of_numbers():
    table = pd.DataFrame({"word": ["x", "y"], "n": [1, 2], "gap": [1.0, np.nan], "far": [np.inf, 1.0]})
    assert numeric_columns(table) == ["n", "gap", "far"]
    with pytest.raises(TableError, match="3 columns of numbers .n, gap, far.; at least 4"):
        numeric_columns(table, 4)
    assert finite_values(table, ["n"]).tolist() == [[1], [2]]
    with pytest.raises(TableError, match="'gap' has 1 missing or infinite values, the first in data row 2"):
        finite_values(table, ["n", "gap"])
    with pytest.raises(TableError, match="'far' has 1"):
        finite_values(table, ["far"])
    with pytest.raises(TableError, match="1 rows; at least 2"):
        finite_values(table[:1], ["n"])
