"""Nothing of a table vanishes without a word, and what is odd is told before a training."""

import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from emacore import limits
from emacore.tables import TableError, read_table, table_of
from emacore.tasks.regression.columns import described, matrices, scalable, usable_targets
from emacore.tasks.regression.config import BLANKS, TEXTS, DataConfig
from emacore.tasks.regression.data import load
from tests.helpers import FUZZED

RNG = np.random.default_rng(0)
BASE = pd.DataFrame(RNG.normal(size=(40, 3)), columns=["a", "b", "c"]).assign(
    y=lambda t: 2 * t["a"] - t["b"] + RNG.normal(size=40)
)


def settings(**changes):
    return DataConfig("csv", **{"path": "t.csv", "target": "y", **changes})


def read(frame):
    return read_table(frame.to_csv(index=False))


def with_value(column, row, value):
    frame = BASE.astype({column: object})
    frame.loc[row, column] = value
    return read(frame)


def told(table, **changes):
    return " | ".join(described(table, settings(**changes)).notes)


def test_the_plain_table():
    table = read(BASE)
    x, y, names = matrices(table, settings())
    np.testing.assert_array_equal(x, BASE[["a", "b", "c"]])
    np.testing.assert_array_equal(y, BASE["y"])
    assert names == ["a", "b", "c"]
    assert described(table, settings()).notes == ()


#: Tables as people bring them: a column more, the features that come of it, and what is told.
MORE = {
    "truth values": (["True", "False"] * 20, ["a", "b", "c", "more"], "more: truth values are taken as 1 and 0"),
    "thousands": ([f"{n:,}" for n in range(1000, 1040)], ["a", "b", "c", "more"], "commas are those of thousands"),
    "above 64 bit": ([2**65 + n for n in range(40)], ["a", "b", "c", "more"], "above 64 bit are rounded"),
    "dates": (pd.date_range("2026-01-01", periods=40).astype(str), ["a", "b", "c"], "more (a date such as 2026-01-01"),
    "words": (["red", "blue"] * 20, ["a", "b", "c"], "left out: more (text, 2 different: blue, red; one-hot"),
    "nothing": ([None] * 40, ["a", "b", "c"], "left out: more (blank in every row)"),
    "one number": ([7] * 40, ["a", "b", "c", "more"], "more is 7 in every row: it tells the network nothing"),
    "the number of the row": (range(40), ["a", "b", "c", "more"], "more counts the rows"),
    "the target": (BASE["y"], ["a", "b", "c", "more"], "more is the target itself"),
    "far from 0": (1e12 + BASE["c"], ["a", "b", "c", "more"], "more lies near 1e+12 and varies by"),
    "huge": (1e300 * BASE["c"], ["a", "b", "c", "more"], "it is divided before it is scaled"),
}


@pytest.mark.parametrize("kind", MORE)
def test_a_column_more_is_taken_or_told(kind):
    values, features, words = MORE[kind]
    table = read(BASE.assign(more=list(values)))
    about = described(table, settings())
    assert about.named("feature") == features
    assert {column.name for column in about.columns} == {"a", "b", "c", "y", "more"}
    assert words in " | ".join(about.notes)
    x, _, names = matrices(table, settings())
    assert names == features
    scaled = scalable(x)
    assert np.isfinite(scaled.std(axis=0)).all()


@pytest.mark.parametrize("value", ["?", "", "inf", "-"])
def test_a_blank_is_refused_dropped_or_filled_in(value):
    table = with_value("b", 5, value)
    with pytest.raises(TableError, match="Column 'b' has 1 missing or infinite values, the first in line 7") as error:
        described(table, settings())
    assert ("'?' in line 7" in str(error.value)) == (value == "?")
    x, _, _ = matrices(table, settings(blanks="drop"))
    np.testing.assert_array_equal(x, BASE.drop(index=5)[["a", "b", "c"]])
    assert "1 of 40 rows have a blank and are left out, the first in line 7" in told(table, blanks="drop")
    for how in ("mean", "median"):
        x, _, _ = matrices(table, settings(blanks=how))
        assert x[5, 1] == pytest.approx(getattr(BASE["b"].drop(index=5), how)())
        assert f"b: 1 blanks are filled with the {how}" in told(table, blanks=how)
    assert matrices(table, settings(features=("a", "c")))[0].shape == (40, 2)


def test_a_target_is_never_filled_in():
    table = with_value("y", 3, "?")
    with pytest.raises(TableError, match="Column 'y' has 1 missing"):
        described(table, settings())
    assert len(matrices(table, settings(blanks="mean"))[1]) == 39
    assert "1 of 40 rows" in told(table, blanks="mean")


def test_what_fills_and_what_words_there_are_is_of_the_rows_it_is_fitted_on():
    frame = BASE.assign(word=["new", *["old", "older"] * 19, "old"])
    frame.loc[0, "a"] = np.nan
    chosen = settings(blanks="mean", text="one-hot", features=("a", "word"))
    x, _, names = matrices(read(frame), chosen, np.arange(1, 20))
    assert x[0, 0] == pytest.approx(BASE["a"][1:20].mean())
    assert (names, x[0, 1:].tolist()) == (["a", "word_old", "word_older"], [0.0, 0.0])
    every, _, names = matrices(read(frame), chosen)
    assert names == ["a", "word_new", "word_old", "word_older"]
    assert every[0, 1:].tolist() == [1, 0, 0]
    frame.loc[1, "word"] = None
    assert "word_(blank)" in matrices(read(frame), chosen)[2]


@pytest.mark.parametrize(
    ("frame", "changes", "message"),
    [
        (BASE, {"target": "z"}, "no column 'z'; it has a, b, c, y"),
        (BASE.assign(y=1.5), {}, "'y' has the same value in every row, 1.5: there is nothing to learn"),
        (BASE.assign(w="x"), {"target": "w"}, "The target 'w' is of text"),
        (BASE, {"features": ("a", "d")}, "no column 'd'"),
        (BASE, {"features": ("a", "y")}, "'y' is the target, so it cannot be a feature too"),
        (BASE.assign(w=["x", "y"] * 20), {"features": ("w",)}, "'w' is of text, which no network takes: data.text=one"),
        (
            BASE.assign(w=[f"w{n}" for n in range(40)]),
            {"text": "one-hot"},
            "at most 20 words of the feature 'w' as columns are possible, got 40",
        ),
        (BASE[["y"]], {}, "no feature beside the target 'y'"),
        (BASE[:3], {}, "3 rows, of which 3 can be used; at least 4"),
    ],
)
def test_what_cannot_be_trained_on_is_named(frame, changes, message, monkeypatch):
    monkeypatch.setattr(limits, "WORDS", 20)
    with pytest.raises(TableError, match=message):
        described(read(frame), settings(**changes))


def test_targets_of_truth_values_and_columns_called_3():
    frame = BASE.assign(y=BASE["y"] > 0).rename(columns={"c": "3"})
    assert usable_targets(read(frame)) == ["a", "b", "3", "y"]
    assert matrices(read(frame), settings())[1].tolist() == frame["y"].astype(float).tolist()
    assert matrices(read(frame), settings(target="3"))[2] == ["a", "b", "y"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_table_of_very_many_columns_costs_little_for_each(text):
    """While it is described, nobody else is served."""
    names = [f"w{place}" for place in range(400)]
    frame = pd.DataFrame({name: ["x", "y", "z", "x", ""] for name in names}).assign(a=range(5), y=[2, 1, 5, 4, 3])
    table, calls = read(frame), []
    sys.setprofile(lambda frame, event, arg: calls.append(event) if "call" in event else None)
    try:
        about = described(table, settings(text=text, blanks="mean"))
    finally:
        sys.setprofile(None)
    assert len(about.columns) == 402
    assert len(calls) < 550 * 400
    told = [note for note in about.notes if note.startswith("left out")]
    assert [("and 360 more" in note, len(note) < 6000) for note in told] == [(True, True)] * (text != "one-hot")


@pytest.mark.parametrize(
    "target", [1e12 + 1e-4 * np.arange(40), 1e300 * BASE["y"], 1e-300 * BASE["y"], 3 + 1e-9 * BASE["y"]]
)
def test_any_target_is_scaled(tmp_path, target):
    frame = BASE.assign(y=target)
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = load(settings(path=str(tmp_path / "t.csv")))
    found = np.concatenate([data.y_train, data.y_val])[:, 0].astype(float)
    assert found.std() == pytest.approx(1, rel=1e-4)
    exact = np.asarray(target - np.asarray(target)[0], dtype=np.longdouble)
    expected = (exact - exact.mean()) / np.abs(exact - exact.mean()).max()
    np.testing.assert_allclose(np.sort(found / np.abs(found).max()), np.sort(expected).astype(float), atol=1e-5)


def test_columns_that_need_no_help_are_left_bit_for_bit():
    values = RNG.normal(size=(50, 4)) * [1, 1e5, 1e-5, 1] + [0, 1e5, 0, 100]
    np.testing.assert_array_equal(scalable(values), values)


CELLS = '1 2.5 -3e300 1e12 inf nan ? x y True 0 1,234 "1,234" 7% 2026-01-31'
ROWS = st.lists(
    st.lists(st.sampled_from([*CELLS.split(), "", "9" * 30, '"', " ", "\u00e9"]), min_size=3, max_size=4), max_size=9
)


@bounds(max_examples=FUZZED, deadline=None, database=None)
@given(ROWS, st.sampled_from(",;\t"), st.sampled_from(BLANKS), st.sampled_from(TEXTS), st.sampled_from(["a", "b", "3"]))
def test_tables_at_random_are_numbers_or_a_sentence(rows, between, blanks, text, target):
    content = "\n".join(between.join(row) for row in [["a", "b", "3"], *rows, *rows]).encode()
    try:
        table = table_of(content)
        config = settings(target=target, blanks=blanks, text=text)
        about = described(table, config)
        x, y, names = matrices(table, config)
    except TableError:
        return
    assert [column.name for column in about.columns] == list(table.frame.columns)
    assert x.shape == (len(y), len(names)) == (about.rows[1], len(names))
    assert np.isfinite(x).all()
    assert np.isfinite(y).all()
