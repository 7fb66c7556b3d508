import gzip
import io
import json

import numpy as np
import pandas as pd
import pytest

from emacore import metric_files
from emacore.metric_files import PAIR, READERS, read_metrics
from emacore.tables import TableError

STEPS, LOSSES = [0, 10, 20], [2.25, 2.5, 1.125]
RECORDS = [{"step": s, "loss": v} for s, v in zip(STEPS, LOSSES, strict=True)]
ROWS = list(zip(STEPS, LOSSES, strict=True))


def parquet(frame):
    content = io.BytesIO()
    frame.to_parquet(content)
    return content.getvalue()


FILES = {
    "delimited text": "step,loss\n" + "".join(f"{s},{v}\n" for s, v in ROWS),
    "TensorBoard's CSV": "Wall time,Step,loss\r\n" + "".join(f"1795614809.9{s},{s},{v}\r\n" for s, v in ROWS),
    "W&B's panel": '"Step","run - loss","run - loss__MIN","run - loss__MAX"\n'
    + "".join(f'"{s}","{v}","{v}","{v}"\n' for s, v in ROWS),
    "W&B's history": ",_step,_runtime,_timestamp,loss\n"
    + "".join(f"{n},{s},{n}.5,17000000{n},{v}\n" for n, (s, v) in enumerate(ROWS)),
    "Lightning": "epoch,step,loss\n" + "".join(f"0,{s},{v}\n" for s, v in ROWS),
    "Keras with times": "epoch,iteration,loss,lr\n" + "".join(f"0,{s},{v},0.1\n" for s, v in ROWS),
    "batches in epochs": "batch,step,loss\n" + "".join(f"{s % 20},{s},{v}\n" for s, v in ROWS),
    "MLflow's table": "Run,Run ID,metric,step,timestamp,value\n"
    + "".join(f"a,b,loss,{s},1754943296210,{v}\n" for s, v in ROWS),
    "MLflow's metric": "".join(f"1754943296210 {v} {s}\n" for s, v in ROWS),
    "JSON Lines": "".join(json.dumps(one) + "\n" for one in RECORDS),
    "JSON list": json.dumps(RECORDS, indent=1),
    "JSON of lists": json.dumps({"step": STEPS, "loss": LOSSES}),
    "trainer_state.json": json.dumps(
        {"best": None, "log_history": [*RECORDS, {"step": 20, "train_runtime": 3.5}]}, indent=1
    ),
    "log, colons": "Starting\n" + "".join(f"[INFO] step {s}: loss: {v}\n" for s, v in ROWS),
    "log, equals": "".join(f"2026-01-01 12:00:00 step={s} loss={v}\n" for s, v in ROWS),
    "log, a name a line": "".join(f"step: {s}\nloss: {v}\n" for s, v in ROWS),
    "log, words": "".join(f"step {s} loss {v}\n" for s, v in ROWS),
}
ENCODED = {
    **{name: text.encode() for name, text in FILES.items()},
    "gzip": gzip.compress(FILES["JSON Lines"].encode(), mtime=0),
    "UTF-16": FILES["delimited text"].encode("utf-16"),
    "Parquet": parquet(pd.DataFrame(RECORDS)),
}


@pytest.mark.parametrize("content", ENCODED.values(), ids=ENCODED)
def test_the_same_curve_from_every_writer(content):
    found = read_metrics(content)
    (name,) = found.metrics
    values = found.frame[name].to_numpy(dtype=float)
    rows = ~np.isnan(values)
    assert (found.steps()[rows].tolist(), values[rows].tolist()) == (STEPS, LOSSES)
    assert set(found.frame) == {found.step, *found.metrics, *found.left_out}


def test_the_first_reader_that_knows_a_text_reads_it():
    names = {read_metrics(content).format for content in ENCODED.values()}
    assert names == {"Parquet", *(reader.name for reader in READERS)}


def test_runs_of_a_table_stand_beside_each_other():
    text = "Run,metric,step,value\na,loss,0,1\nb,loss,0,2\na,loss,5,3\na,acc,5,0.5\na,loss,5,4\n"
    found = read_metrics(text.encode())
    assert found.metrics == ("a - loss",)
    assert found.frame["a - loss"].dropna().tolist() == [1, 3, 4]
    assert found.frame["b - loss"].dropna().tolist() == [2]
    assert found.frame["step"].tolist() == [0, 5, 5]


def test_a_column_without_a_name_counts_only_where_it_does():
    assert read_metrics(b"0,2.25\n10,2.5\n").step == "column 1"
    assert read_metrics(b"2.25\n2.5\n").metrics == ("column 1",)
    assert read_metrics(b"3,2.25\n1,2.5\n").metrics == ("column 1", "column 2")


def test_of_two_counters_the_one_that_does_not_fall_is_x():
    assert read_metrics(b"epoch,batch,loss\n0,0,3\n0,1,2\n1,0,1\n").step == "epoch"


def test_a_value_in_each_row_is_kept_where_a_line_breaks_off():
    found = read_metrics(b'{"loss": 1}\n\n{"loss": "NaN"}\n{"loss": "diverged"}\n{"loss": 2}\n{"lo')
    np.testing.assert_array_equal(found.frame["loss"], [1, np.nan, np.nan, 2])
    assert any("'diverged' in line 4" in note for note in found.told())
    assert any("line 6, the last, is half an object" in note for note in found.told())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"loss": 1}\n{"loss"\n{"loss": 2}\n', "Line 2 is not valid JSON"),
        (b'{"loss": 1}\n[2]\n', "Line 2 is no JSON object"),
        (b'[{"loss": 1}, 2]', "Entry 2 of the JSON list"),
        (b'[{"loss": 1},\n{"loss" 2}]', "not valid JSON at line 2"),
        (b'{"loss": [1, 2], "step": [1]}', "loss 2, step 1"),
        (b'{"name":\n "x"}', "holds no rows"),
        (b"[" * 100_000, "nested too deeply"),
        (b"PAR1 and no more", "Parquet file is damaged"),
        (bytes(8) + bytes(4) + b"\tx\x1a\rbrain.Event:2" + bytes(40), "TensorBoard's events"),
        (b"name,word\na,b\nc,d\n", "no column of numbers; it has name, word"),
    ],
)
def test_what_cannot_be_read_is_named(content, message):
    with pytest.raises(TableError, match=message):
        read_metrics(content)


def test_a_file_of_too_many_cells_is_refused_by_its_shape(monkeypatch):
    monkeypatch.setattr(metric_files, "MAX_CELLS", 10)
    monkeypatch.setattr(metric_files.pd, "read_parquet", None)
    with pytest.raises(TableError, match="at most 2,000 columns and 10 cells"):
        read_metrics(parquet(pd.DataFrame({"a": range(6), "b": range(6)})))
    with pytest.raises(TableError, match="12 rows of 12 names"):
        read_metrics("".join(json.dumps({f"n{n}": n}) + "\n" for n in range(12)).encode())


def test_blanks_and_infinities_where_names_and_steps_are_wanted():
    found = read_metrics(b"metric,step,value\nloss,0,1\n,0,2\nloss,,3\nloss,,4\n,1,5\n")
    assert sorted(found.frame["loss"].dropna()) == [1, 3, 4]
    assert found.frame["(no name)"].dropna().tolist() == [2, 5]
    assert read_metrics(b"step,loss\n0,1e999\n10,2e999\n20,1\n").metrics == ("loss",)
    assert read_metrics(b"step,loss\ninf,1\ninf,2\n20,1\n").step == "step"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_words_that_end_in_numbers_make_no_log(delimiter):
    found = read_metrics(f"run{delimiter}loss\nrun 1{delimiter}2.25\nrun 2{delimiter}2.5\n".encode())
    assert (found.format, found.metrics, list(found.left_out)) == ("delimited text", ("loss",), ["run"])


def test_a_small_file_makes_no_large_table():
    lines = [json.dumps({f"n{n % 1900}": n}) for n in range(5000)]
    with pytest.raises(TableError, match="5,000 values for 5,000 rows of 1,900 names"):
        read_metrics("\n".join(lines).encode())
    rows = "".join(f"m{n % 1900},{n},1\n" for n in range(5000))
    with pytest.raises(TableError, match="5,000 values for 5,000 rows of 1,900 names"):
        read_metrics(f"metric,step,value\n{rows}".encode())


@pytest.mark.parametrize(
    "text", ["a" * 20_000, "a " * 10_000, "a" + " " * 20_000, "a:" * 10_000, "a[" * 10_000, "1" * 20_000]
)
def test_a_log_is_searched_in_linear_time(text):
    """Twice the text costs about twice the work: counted by what the pattern may look at from one place."""
    assert PAIR.findall(text) == []
    assert metric_files._is_log(text) is False


def test_columns_of_a_single_value_are_left_out_unless_all_are():
    assert read_metrics(b"step,loss,final\n0,2,\n1,1,0.5\n").left_out == {"final": "a single value"}
    assert read_metrics(b"step,loss,final\n0,2,0.5\n").metrics == ("loss", "final")
