import gzip
from contextlib import suppress

import numpy as np
import pandas as pd
import pytest

from emacore import limits, tables
from emacore.tables import TableError, numeric_columns, read_csv, read_table, text_of


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
        ("step,größe\n".encode("latin-1"), "not UTF-8 text: byte 0xf6 in line 1"),
        ("step,loss\n1,ö\n".encode("cp1252"), "byte 0xf6 in line 2"),
        (b"\n<!DOCTYPE html><table><tr><th>step</th></tr></table>", "HTML or XML"),
        (b"<?xml version='1.0'?><r step='1' loss='2.3'/>", "HTML or XML"),
        ("loss\n1,2\xe9".encode("latin-1"), "not UTF-8"),
        (b"a,b\n", "header but no rows"),
        (b"a,b\n1,2\n1,2,3\n", "line 3 has 3 fields, the header has 2 fields"),
        (b"a,b\n\n# note\n1,2,3\n1,2,3\n", "line 4 has 3 fields, the header has 2 fields"),
        (b"loss\n0,2.25\n10,2.07\n", "line 2 has 2 fields, the header has 1 field"),
        (b"loss\n0,2\n1,3\n2,1\n", "line 2 has 2 fields, the header has 1 field"),
        (b"step,loss\n0,2,25\n", "line 2 has 3 fields, the header has 2 fields"),
        (b'[{"loss": 1}]', "is JSON"),
        (b"# only\n", "comments only"),
        (b"# only", "comments only"),
        (gzip.compress(b"a,b\n1,2\n" * 99, mtime=0)[:-9], "gzip file is damaged"),
    ],
)
def test_what_is_not_a_table_is_told_in_a_sentence(content, message):
    with pytest.raises(TableError, match=message) as caught:
        read_csv(content)
    assert "\n" not in str(caught.value).strip()


def test_limits_are_stated(monkeypatch):
    monkeypatch.setattr(limits, "TABLE_BYTES", 2**20)
    with pytest.raises(TableError, match="at most 1 MB of a file are possible, got 2 MB"):
        read_csv(b"a\n" + b"1\n" * 2**20)
    monkeypatch.setattr(limits, "TABLE_CELLS", 3)
    with pytest.raises(TableError, match="at most 3 cells of a table are possible, got 4"):
        read_csv(b"a,b\n1,2\n3,4\n")


def test_columns_of_numbers():
    table = pd.DataFrame({"word": ["x", "y"], "n": [1, 2], "gap": [1.0, np.nan], "far": [np.inf, 1.0]})
    assert numeric_columns(table) == ["n", "gap", "far"]
    with pytest.raises(TableError, match="3 columns of numbers .n, gap, far.; at least 4"):
        numeric_columns(table, 4)


LOSSES = [2.25, 2.5, 1.125]


@pytest.mark.parametrize(
    "text",
    [
        "step,loss\n0,2.25\n10,2.5\n20,1.125\n",
        "  step,   loss\n   0,   2.25\n  10,  2.5\n  20, 1.125",
        "step,loss\r\n0,2.25,\r\n10,2.5,\r\n20,1.125,\r\n",
        "step,loss,\n0,2.25,\n10,2.5,\n20,1.125,\n",
        "# run 7, lr 0.1\nstep,loss\n0,2.25\n# again\n10,2.5\n20,1.125\n",
        "# step,loss\n0,2.25\n10,2.5\n20,1.125\n",
        "step,loss\n\n0,2.25\n  \n10,2.5\n,\n20,1.125\n\n",
        "step;loss\n0;2,25\n10;2,5\n20;1,125\n",
        "step\tloss\n0\t2,25\n10\t2,5\n20\t1,125\n",
        "step loss\n0 2.25\n10   2.5\n20 1.125\n",
        '"step","loss"\n"0","2.25"\n"10","2.5"\n"20","1.125"\n',
        'step,loss\n0,"2,25"\n10,"2,5"\n20,"1,125"\n',
    ],
)
def test_one_table_in_many_hands(text):
    for content in (text.encode(), text.encode("utf-16"), gzip.compress(text.encode(), mtime=0)):
        found = read_csv(content)
        assert found.columns.tolist() == ["step", "loss"]
        assert found["step"].tolist() == [0, 10, 20]
        assert found["loss"].tolist() == LOSSES


def test_one_column_keeps_its_rows_with_and_without_a_header():
    assert read_csv(b"loss\n2,25\n2,5\n1,125\n")["loss"].tolist() == LOSSES
    assert read_csv(b"2.25\n\n2.5\n1.125\n")["column 1"].tolist() == LOSSES
    two = read_table("0,2.25\n10,2.5\n20,1.125\n")
    assert two.frame.to_numpy().T.tolist() == [[0, 10, 20], LOSSES]
    assert two.notes == ("there is no header row: the columns are column 1, column 2",)
    assert read_csv(b"0,1,2\n0.5,1.5,2.5\n").columns.tolist() == ["0", "1", "2"]


def test_what_is_no_number_is_told_with_its_place_and_leaves_the_column_where_it_is():
    table = read_table("step,loss\n0,2.25\n\n10,diverged\n20,nan\n30,-inf\n40,\n")
    np.testing.assert_array_equal(table.frame["loss"], [2.25, np.nan, np.nan, -np.inf, np.nan])
    assert table.lines.tolist() == [2, 4, 5, 6, 7]
    assert table.notes == (
        "1 blank lines were skipped",
        "loss: not numbers, so taken as missing: 'diverged' in line 4",
    )
    assert read_csv(b"word\nx\n1\ny\n")["word"].tolist() == ["x", "1", "y"]
    assert any("row 2" in note and "fewer fields" in note for note in read_table("a,b\n1,2\n3\n").notes)


@pytest.mark.parametrize(
    ("text", "numbers", "told"),
    [
        ('a,b\n"1,234",1\n"12,345,678.5",2\n7,3\n', [1234, 12345678.5, 7], "thousands"),
        ("a;b\n1.234,5;1\n12.345.678,25;2\n7,0;3\n", [1234.5, 12345678.25, 7], "decimal signs"),
        ('a,b\n"1.234,5",1\n"12.345.678,25",2\n"7,0",3\n', [1234.5, 12345678.25, 7], "decimal signs"),
        ("a,b\n24.7%,1\n30 %,2\n", [24.7, 30], "percent"),
        ("a,b\n18446744073709551616,1\n1,2\n", [2.0**64, 1], "64 bit"),
    ],
)
def test_numbers_as_people_write_them(text, numbers, told):
    table = read_table(text)
    assert table.frame["a"].tolist() == numbers
    assert any(told in note for note in table.notes)


def test_columns_of_one_name_are_told_apart():
    assert read_csv(b"y,y,y.1,y\n1,2,3,4\n").iloc[0].tolist() == [1, 2, 3, 4]
    assert len(set(read_csv(b"y,y,y.1,y\n1,2,3,4\n").columns)) == 4


@pytest.mark.parametrize(
    "content", ['","' * 15_000, '\n"' * 32_000, "a," * 200_000 + "\n1", "x" * 200_000, "a b " * 40_000]
)
def test_a_small_file_costs_little(content, monkeypatch):
    """It is refused by its shape, or read once: the sniff sees no more than a sample."""
    seen = []
    count = tables._reader
    monkeypatch.setattr(tables, "_reader", lambda text, delimiter: seen.append(len(text)) or count(text, delimiter))
    with suppress(TableError):
        read_csv(content.encode())
    assert sum(seen) <= (len(tables.DELIMITERS) + 1) * tables.SAMPLE_CHARACTERS + 2 * len(content)


def test_sizes_are_looked_at_before_anything_is_read(tmp_path, monkeypatch):
    path = tmp_path / "large.csv"
    with path.open("wb") as file:
        file.truncate(limits.TABLE_BYTES + 1)
    monkeypatch.setattr(tables.Path, "open", None)
    with pytest.raises(TableError, match="at most 50 MB"):
        read_csv(path)
    with pytest.raises(TableError, match="at most 50 MB of a file once unpacked are possible, got more"):
        text_of(gzip.compress(bytes(limits.TABLE_BYTES + 1), mtime=0))
    monkeypatch.setattr(tables.pd, "read_csv", None)
    with pytest.raises(TableError, match="at most 2,000 columns of a table are possible, got 200,000"):
        read_csv(",".join(["1"] * 200_000).encode())


def test_a_first_name_in_brackets_is_no_json():
    for text in ("[x](y),b\n1,2\n3,4\n", "[1],b\n1,2\n3,4\n", "{a},b\n1,2\n3,4\n"):
        assert read_csv(text.encode()).shape == (2, 2)
    for text in ('{"a": 1}\n{"a": 2}\n', "[[1, 2], [3, 4]]", '[{"a": 1},', "[\n1,\n2]", '{\n  "a": [1]}', "[1, 2]"):
        with pytest.raises(TableError, match="is JSON"):
            read_csv(text.encode())


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("sep=;\na;b\n1;2\n3;4\n", {"a": [1, 3], "b": [2, 4]}),
        ('"sep=,"\na,b\n1,2\n3,4\n', {"a": [1, 3], "b": [2, 4]}),
        ("a,b\n1,2\na,b\n3,4\n", {"a": [1, 3], "b": [2, 4]}),
        ("a;b\n1 234,5;1\n12 345 678,25;2\n", {"a": [1234.5, 12345678.25], "b": [1, 2]}),
        ("a,b\n1'234.5,1\n12'345'678.25,2\n", {"a": [1234.5, 12345678.25], "b": [1, 2]}),
        ("a;b\n1\u202f234;1\n7;2\n", {"a": [1234, 7], "b": [1, 2]}),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n", {"column 1": [5.1, 4.9], "column 2": [3.5, 3.0]}),
        ("2026-01-01,0.5\n2026-01-02,1.5\n", {"column 2": [0.5, 1.5]}),
        ('"1,234",2\n"5,678",3\n', {"column 1": [1234, 5678], "column 2": [2, 3]}),
        ("step,0.1,0.01\n0,2.5,3.5\n1,1.5,2.5\n", {"step": [0, 1], "0.1": [2.5, 1.5], "0.01": [3.5, 2.5]}),
        ("a,b\n" + "9" * 400 + ",1\n1,2\n", {"a": [np.inf, 1], "b": [1, 2]}),
    ],
)
def test_headers_and_numbers_that_others_write(text, columns):
    table = read_table(text)
    assert {name: table.frame[name].tolist() for name in columns} == columns


def test_what_was_guessed_about_a_header_is_told():
    assert (
        "the header stands in line 3 again, 1 times in all: left out there" in read_table("a,b\n1,2\na,b\n3,4\n").notes
    )
    assert any("0.1 in it could be numbers" in note for note in read_table("step,0.1\n0,2.5\n1,1.5\n").notes)
    with pytest.raises(TableError, match="header but no rows"):
        read_table("a,b\na,b\na,b\n")
    with pytest.raises(TableError, match="a zip archive or a workbook"):
        text_of(b"PK\x03\x04 and so on")


def test_what_is_light_is_told_by_size_packing_and_columns():
    assert tables.is_light(b"a,b\n1,2\n")
    assert not tables.is_light(b"a\n" * limits.LIGHT_BYTES)
    assert not tables.is_light(b"a;" * 101 + b"\n1")
    assert not tables.is_light(gzip.compress(b"a\n1\n", mtime=0))


def test_a_file_of_a_hash_is_that_file(tmp_path, monkeypatch):
    content, other = b"a\n1\n", b"a\n2\n"
    sha256 = tables.hash_of(content)
    monkeypatch.setattr(tables, "KEPT", {tmp_path})
    assert not tables.is_kept(sha256)
    (tmp_path / "mine.csv").write_bytes(other)
    assert tables.read_file(str(tmp_path / "mine.csv")) == other
    with pytest.raises(TableError, match=r"'mine.csv' is another one than that of the settings"):
        tables.read_file(str(tmp_path / "mine.csv"), sha256)
    (tmp_path / tables.kept_name(sha256)).write_bytes(content)
    assert tables.read_file("anywhere/mine.csv", sha256) == content
    assert tables.is_kept(sha256)


@pytest.mark.parametrize("above", ["", "a title\n\n", "# a comment\n", '\n\n"a longer\ntitle"\n'])
@pytest.mark.parametrize("name", ["a", '"a\nlong\nname"'])
@pytest.mark.parametrize("cell", ["x", '"x\n\ny"'])
@pytest.mark.parametrize("between", ["", "\n", "# here\n", "\n\n"])
def test_lines_within_quotes_are_one_row(above, name, cell, between):
    table = read_table(f"{above}{name},b,note\n1,2,{cell}\n{between}3,4,{cell}\n\n5,6,z\n")
    assert table.frame["b"].tolist() == [2, 4, 6]
    assert table.frame.iloc[:, 0].tolist() == [1, 3, 5]
    before = above.count("\n") + name.count("\n") + 2
    assert table.lines.tolist()[:2] == [before, before + cell.count("\n") + 1 + between.count("\n")]


def test_numbers_as_other_countries_and_python_print_them():
    table = read_table(
        "n;x;y;z\n1.000;1.234,5;−2,5;tensor(0.5)\n2.000;2.234,5;1,5;[1.5]\n12.000;0,5;−1;np.float64(2)\n"
    )
    assert table.frame["n"].tolist() == [1000, 2000, 12000]
    assert table.frame["x"].tolist() == [1234.5, 2234.5, 0.5]
    assert table.frame["y"].tolist() == [-2.5, 1.5, -1]
    # Python prints points, which are groups of three digits at most here.
    points = read_table("z\ntensor(0.5)\n[1.5]\nnp.float64(2)\n")
    assert points.frame["z"].tolist() == [0.5, 1.5, 2]
    with pytest.raises(TableError, match="binary: Parquet"):
        text_of(b"PAR1abc")


def test_each_column_of_one_name_gets_a_name_of_its_own():
    table = read_csv(b"a,a,,a.1,,a\n1,2,3,4,5,6\n2,3,4,5,6,7\n")
    assert table.columns.tolist() == ["a", "a.2", "Unnamed: 2", "a.1", "Unnamed: 4", "a.3"]
    assert table.iloc[0].tolist() == [1, 2, 3, 4, 5, 6]
