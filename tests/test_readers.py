"""One curve, in every layout in which it is written: the same numbers from all of them."""

import gzip
import io
import json
import struct

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emacore import limits, readers
from emacore.metric_files import read_metrics
from emacore.readers import PAIR, READERS, plain
from emacore.tables import TableError
from tests.helpers import FUZZED

STEPS, LOSSES = [0, 10, 20], [2.25, 2.5, 1.125]
RECORDS = [{"step": s, "loss": v} for s, v in zip(STEPS, LOSSES, strict=True)]
ROWS = list(zip(STEPS, LOSSES, strict=True))


def parquet(frame):
    content = io.BytesIO()
    frame.to_parquet(content)
    return content.getvalue()


def lines(form):
    return "".join(form.format(s=s, v=v, n=n) for n, (s, v) in enumerate(ROWS))


FILES = {
    "delimited text": "step,loss\n" + lines("{s},{v}\n"),
    "TensorBoard's CSV": "Wall time,Step,loss\r\n" + lines("1795614809.9{s},{s},{v}\r\n"),
    "TensorBoard's JSON": json.dumps([[1795614809.5 + s, s, v] for s, v in ROWS]),
    "W&B's panel": '"Step","run - loss","run - loss__MIN","run - loss__MAX"\n' + lines('"{s}","{v}","{v}","{v}"\n'),
    "W&B's panel with its step": '"Step","r - _step","r - _step__MIN","r - _step__MAX","r - loss"\n'
    + lines('"{s}","{s}","{s}","{s}","{v}"\n'),
    "W&B's history": ",_step,_runtime,_timestamp,loss\n" + lines("{n},{s},{n}.5,17000000{n},{v}\n"),
    "Neptune's values": ",step,value,timestamp\n" + lines("{n},{s},{v},2026-01-01 12:00:0{n}.123\n"),
    "Comet's metrics": json.dumps(
        [
            {"metricName": "loss", "metricValue": str(v), "timestamp": 1754943296210, "step": s, "epoch": None}
            for s, v in ROWS
        ]
    ),
    "Comet's curves": json.dumps([{"name": "loss", "x": STEPS, "y": LOSSES}]),
    "ClearML's scalars": json.dumps({"loss": {"train": {"name": "train", "x": STEPS, "y": LOSSES}}}),
    "Plotly's JSON": json.dumps({"data": [{"type": "scatter", "x": STEPS, "y": LOSSES, "name": "loss"}]}),
    "DVC's plots": "timestamp\tstep\tloss\n" + lines("1754943296210\t{s}\t{v}\n"),
    "DVC's JSON": json.dumps({"loss": [{"step": str(s), "loss": str(v)} for s, v in ROWS]}),
    "Lightning": "epoch,step,loss\n" + lines("0,{s},{v}\n"),
    "Keras with times": "epoch,iteration,loss,lr\n" + lines("0,{s},{v},0.1\n"),
    "batches in epochs": "batch,step,loss\n" + "".join(f"{s % 20},{s},{v}\n" for s, v in ROWS),
    "stable-baselines' progress": "time/total_timesteps,time/fps,time/time_elapsed,rollout/ep_rew_mean\n"
    + lines("{s},100,{n},{v}\n"),
    "MLflow's table": "Run,Run ID,metric,step,timestamp,value\n" + lines("a,b,loss,{s},1754943296210,{v}\n"),
    "MLflow's answer": json.dumps(
        {"metrics": [{"key": "loss", "value": v, "timestamp": 9, "step": s} for s, v in ROWS]}
    ),
    "MLflow's metric": lines("1754943296210 {v} {s}\n"),
    "JSON Lines": "".join(json.dumps(one) + "\n" for one in RECORDS),
    "JSON list": json.dumps(RECORDS, indent=1),
    "JSON of lists": json.dumps({"step": STEPS, "loss": LOSSES}),
    "trainer_state.json": json.dumps(
        {"best": None, "log_history": [*RECORDS, {"step": 20, "train_runtime": 3.5}]}, indent=1
    ),
    "monitor": '#{"t_start": 1795614809.5, "env_id": "CartPole-v1"}\nr,l,t\n2.25,0,1.5\n2.5,10,2.5\n1.125,10,3\n',
    "Markdown": "| step | loss |\n|-----:|:-----|\n" + lines("| {s} | {v} |\n"),
    "Excel's CSV": 'sep=;\n"Step";"loss"\n' + "".join(f"{s};{str(v).replace('.', ',')}\n" for s, v in ROWS),
    "savetxt": "# step loss\n" + lines("{s:.6e} {v:.6e}\n"),
    "a name with its unit": "Step (batches);loss [nats]\n" + lines("{s};{v}\n"),
    "a name in German": "Schritt;Verlust\n" + lines("{s};{v}\n"),
    "a logger started again": "step,loss\n0,2.25\n10,2.5\nstep,loss\n20,1.125\n",
    "log, colons": "Starting\n" + lines("[INFO] step {s}: loss: {v}\n"),
    "log, equals": lines("2026-01-01 12:00:00 step={s} loss={v}\n"),
    "log, a name a line": lines("step: {s}\nloss: {v}\n"),
    "log, words": lines("step {s} loss {v}\n"),
    "log, coloured": lines("\x1b[32mstep\x1b[0m: {s} \x1b[1mloss\x1b[0m: {v}\n"),
    "log, printed dicts": "".join(f"{{'loss': {v}, 'step': {s}}}\n" for s, v in ROWS),
    "log, JSON in lines": "".join(f'2026-01-01 | INFO | train | {{"step": {s}, "loss": "{v}"}}\n' for s, v in ROWS),
    "log, decimal commas": "".join(f"step {s} loss {str(v).replace('.', ',')}\n" for s, v in ROWS),
    "log, a heading above": "".join(f"Epoch {s}/99\n9/9 - lr: 0.1 - loss: {v}\n" for s, v in ROWS),
    "log, headings above several": "".join(f"epoch {s}\nlr 0.1 loss {v}\nlr 0.1 memory 9\n" for s, v in ROWS),
    "log, XGBoost's": lines("[{s}]\tloss:{v}\tlr:0.1\n"),
    "log, CatBoost's": lines("{s}:\tlearn: {v}\tfps: 3\n"),
    "log, LightGBM's": lines("[{s}]\tvalid_1's l2: {v}\n"),
    "log, brackets": lines("(step={s}, loss={v})\n"),
    "log, names of several words": lines(" [12:00] step {s}/99 | lm loss: {v} | learning rate: 1.0E-4 | \n"),
    "log, in bars": "-----\n| train/ |  |\n" + lines("|  step  | {s} |\n|  loss  | {v} |\n"),
    "log, times and lists": lines("ran 00:01:0{n} since: 2026-01-31 step {s} sizes: [3, 4] loss {v}\n"),
    "Sacred's": json.dumps({"loss": {"steps": STEPS, "timestamps": ["x", "y", "z"], "values": LOSSES}}),
    "Comet's chart": json.dumps(
        {"key": {"metrics": [{"metricName": "loss", "values": LOSSES, "steps": STEPS, "epochs": [0, 0, 0]}]}}
    ),
    "a chart some levels down": json.dumps({"a": {"b": {"c": {"d": {"loss": {"x": STEPS, "y": LOSSES}}}}}}),
    "pandas' columns": pd.DataFrame(RECORDS).to_json(),
    "pandas' index": pd.DataFrame(RECORDS).to_json(orient="index"),
    "pandas' split": pd.DataFrame(RECORDS).to_json(orient="split"),
    "pandas' split with an index": pd.DataFrame(RECORDS).set_index("step").to_json(orient="split"),
    "a title above": "Run of 2026\n\nstep;loss\n" + lines("{s};{v}\n"),
    "comments of other tongues": "% a run\nstep,loss\n" + lines("{s},{v}\n// here\n"),
    "tensors": "step,loss\n" + lines("{s},\"tensor({v}, device='cuda:0')\"\n"),
    "NumPy's numbers": "step,loss\n" + lines("np.int64({s}),[{v}]\n"),
    "lists in lines": lines("[{s}, {v}]\n"),
    "JSON by step": json.dumps({str(s): {"loss": v} for s, v in ROWS}),
    "units": "step,loss\n" + lines("{s},{v} MiB\n"),
    "psql": " step | loss\n------+------\n" + lines("   {s} |  {v}\n") + "(3 rows)\n",
    "a grid": "+------+------+\n| step | loss |\n+======+======+\n" + lines("| {s} | {v} |\n+------+------+\n"),
    "a terminal's box": "┏━━━━━━┳━━━━━━┓\n┃ step ┃ loss ┃\n┡━━━━━━╇━━━━━━┩\n" + lines("│ {s} │ {v} │\n") + "└──┴──┘\n",
    "log, loguru's": lines("2026-01-01 12:00:00.123 | INFO     | __main__:train:42 - step {s} loss={v}\n"),
    "log, absl's": lines("I0105 10:00:00.123456 140000 train.py:42] step={s}, loss={v}\n"),
    "log, of ranks": lines("[INFO] [logging.py:96:log_dist] [Rank 0] step={s}, loss={v}, lr=[0.1]\n"),
    "log, after a long start": "".join(f"loading shard {w}\n" for w in "abcdefgh" * 20) + lines("step {s} loss {v}\n"),
}
ENCODED = {
    **{name: text.encode() for name, text in FILES.items()},
    "gzip": gzip.compress(FILES["JSON Lines"].encode(), mtime=0),
    "UTF-8 with its mark": FILES["W&B's panel"].encode("utf-8-sig"),
    "UTF-16": FILES["delimited text"].encode("utf-16"),
    "Parquet": parquet(pd.DataFrame(RECORDS)),
    "Parquet in gzip": gzip.compress(parquet(pd.DataFrame(RECORDS).set_index("step")), mtime=0),
}


@pytest.mark.parametrize("content", ENCODED.values(), ids=ENCODED)
def test_the_same_curve_from_every_writer(content):
    found = read_metrics(content)
    (name,) = set(found.metrics) - {"l"}  # the length of an episode
    where = found.values(name)
    assert (where.steps.tolist(), where.values.tolist()) == (STEPS, LOSSES)
    assert set(found.frame) == {found.step, *found.own_steps.values(), *found.metrics, *found.left_out}


def test_the_first_reader_that_knows_a_file_reads_it():
    names = {read_metrics(content).format for content in ENCODED.values()}
    assert names == {reader.name for reader in READERS} - {"TensorBoard event file"}


def test_parts_of_the_data_are_told_apart_where_a_metric_has_several():
    rows = "".join(f"a,loss,{part},{s},{v + (part == 'val')}\n" for s, v in ROWS for part in ("train", "val"))
    found = read_metrics(f"run.hash,name,context.subset,step,value\n{rows}".encode())
    assert found.metrics == ("train/loss", "val/loss")
    assert found.values("train/loss").values.tolist() == LOSSES
    assert found.values("val/loss").values.tolist() == [v + 1 for v in LOSSES]
    named = "".join(f"loss,train,{s},{v}\nval_loss,validate,{s},{v}\n" for s, v in ROWS)
    assert read_metrics(f"metricName,runContext,step,metricValue\n{named}".encode()).metrics == ("loss", "val_loss")


def event_file(tmp_path, tags=("train/loss",), tensors=False):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(tmp_path))
    for step, value in ROWS:
        for tag in tags:
            one = Summary.Value(tag=tag)
            if tensors:
                one.tensor.CopyFrom(TensorProto(dtype=1, float_val=[value]))
                one.metadata.CopyFrom(SummaryMetadata(plugin_data={"plugin_name": "scalars"}))
            else:
                one.simple_value = value
            writer.add_event(Event(wall_time=100.0 + step, step=step, summary=Summary(value=[one])))
        image = Summary.Image(height=1, width=1, encoded_image_string=b"x")
        writer.add_event(
            Event(wall_time=100.0 + step, step=step, summary=Summary(value=[{"tag": "img", "image": image}]))
        )
    writer.close()
    return next(tmp_path.iterdir())


@pytest.mark.parametrize("tensors", [False, True])
def test_event_files_of_both_versions(tmp_path, tensors):
    path = event_file(tmp_path, ("train/loss", "val/loss"), tensors)
    found = read_metrics(path)
    assert found.format == "TensorBoard event file"
    assert found.metrics == ("train/loss", "val/loss")
    for name in found.metrics:
        assert found.values(name).steps.tolist() == STEPS
        assert found.values(name).values.tolist() == LOSSES
    assert found.with_x("wall_time").values("val/loss").steps.tolist() == [100, 110, 120]
    assert "no scalars, so left out: img" in found.told()
    content = path.read_bytes()
    cut = read_metrics(content[:-20])
    assert any("is cut off and was left out" in note for note in cut.notes)
    with pytest.raises(TableError, match="Record 2 of the event file is damaged"):
        read_metrics(
            content[: 12 + struct.unpack("<Q", content[:8])[0] + 4] + struct.pack("<Q", 3) + b"\0" * 4 + b"\xff" * 7
        )


def test_names_that_come_twice_in_a_line_of_a_log():
    found = read_metrics(b"step 0: train loss 4.25, val loss 4.5\nstep 10: train loss 3.5, val loss 4\n")
    assert found.metrics == ("train loss", "val loss")
    assert found.frame["val loss"].tolist() == [4.5, 4]
    found = read_metrics(b"step 0 box loss 1 cls loss 2 loss 3\nstep 9 box loss 4 cls loss 5 loss 6\n")
    assert found.frame[["loss", "cls loss"]].to_numpy().tolist() == [[1, 2], [4, 5]]
    assert any("left out: 2 numbers" in note for note in found.notes)
    assert read_metrics(b"step 1,000 loss 2.5\nstep 12,000 loss 1.5\n").steps().tolist() == [1000, 12000]


def test_runs_of_a_table_stand_beside_each_other():
    text = "Run,metric,step,time,value\na,loss,0,7,1\nb,loss,0,8,2\na,loss,5,9,3\na,acc,5,9,0.5\na,loss,5,10,4\n"
    found = read_metrics(text.encode())
    assert found.metrics == ("a - loss",)
    assert found.frame["a - loss"].dropna().tolist() == [1, 3, 4]
    assert found.frame["b - loss"].dropna().tolist() == [2]
    assert found.frame["step"].tolist() == [0, 5, 5]
    assert found.frame["time"].tolist() == [7, 9, 10]
    assert found.lines.tolist() == [2, 4, 6]


def test_several_lists_of_a_json_have_their_own_steps():
    text = json.dumps({"train": RECORDS, "val": [{"step": 5, "loss": 3}, {"step": 15, "loss": 2}], "seed": 1})
    found = read_metrics(text.encode())
    assert found.values("train/loss").steps.tolist() == STEPS
    assert found.values("val/loss").steps.tolist() == [5, 15]
    assert "left out, as no lists of objects: seed" in found.told()


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
        (b'{"data": [{"name": "a", "x": [1], "y": [1, 2]}]}', "a has 1 numbers x and 2 numbers y"),
        (b'{"name":\n "x"}', "holds no rows"),
        (b"[" * 100_000, "nested too deeply"),
        (b"PAR1 and no more", "Parquet file is damaged"),
        (parquet(pd.DataFrame({"a": []})), "has no rows"),
        (bytes(8) + bytes(4) + b"\tx\x1a\rbrain.Event:2" + bytes(40), "event file"),
        (b"PK\x03\x04" + bytes(40), "a zip archive or a workbook"),
    ],
)
def test_what_cannot_be_read_is_named(content, message):
    with pytest.raises(TableError, match=message):
        read_metrics(content)


def test_a_file_of_too_many_cells_is_refused_by_its_shape(monkeypatch):
    monkeypatch.setattr(limits, "TABLE_CELLS", 10)
    monkeypatch.setattr(readers.pd, "read_parquet", None)
    with pytest.raises(TableError, match="at most 10 cells of a table are possible, got 12"):
        read_metrics(parquet(pd.DataFrame({"a": range(6), "b": range(6)})))
    with pytest.raises(TableError, match="at most 10 cells of a table are possible, got 144"):
        read_metrics("".join(json.dumps({f"n{n}": n}) + "\n" for n in range(12)).encode())


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_words_that_end_in_numbers_make_no_log(delimiter):
    found = read_metrics(f"run{delimiter}loss\nrun 1{delimiter}2.25\nrun 2{delimiter}2.5\n".encode())
    assert (found.format, found.metrics, list(found.left_out)) == ("delimited text", ("loss",), ["run"])


def test_a_small_file_makes_no_large_table():
    records = [json.dumps({f"n{n % 1900}": n}) for n in range(5000)]
    with pytest.raises(TableError, match="5,000 values for 5,000 rows of 1,900 names"):
        read_metrics("\n".join(records).encode())
    rows = "".join(f"m{n % 1900},{n},1\n" for n in range(5000))
    with pytest.raises(TableError, match="5,000 values for 5,000 rows of 1,900 names"):
        read_metrics(f"metric,step,value\n{rows}".encode())


@pytest.mark.parametrize(
    "text",
    ["a" * 20_000, "a " * 10_000, "a" + " " * 20_000, "a:" * 10_000, "a[" * 10_000, "1" * 20_000, "1,111" * 4000],
)
def test_a_log_is_searched_in_linear_time(text):
    """Twice the text costs about twice the work: counted by what the pattern may look at from one place."""
    assert PAIR.findall(text) == []
    assert readers._is_log(text) is False


def test_names_without_what_qualifies_them():
    assert [plain(name) for name in ("trainer/global_step", "run - _step", "Time [s]", "Unnamed: 0", "mAP50(B)")] == [
        *("global_step", "step", "time", "index", "map50"),
    ]


#: What files are made of: pieces of formats, so that random ones come far into a reader.
WORDS = (
    "step loss value metric time nan inf -1.5e3 1,5 1.234,5 7 True null 01/02/2026 0:00:05 0x1 , ; | ' # { } [ ] : ="
)
PHRASES = [
    "\t",
    " ",
    "\n",
    "\r\n",
    '"',
    "\0",
    "\x1b[1m",
    "\ufeff",
    "epoch 1",
    "12 345",
    "9" * 400,
    "2026-01-01 12:00:00",
]
BEGINNINGS = [
    "sep=;\n",
    "|--|--|\n",
    '{"step": 1, "loss": ',
    '"log_history": [',
    "1754943296210 2.5 3\n",
    '#{"t_start": 1}\n',
]
PIECES = st.sampled_from([*WORDS.split(), *PHRASES, *BEGINNINGS, "step,loss\n1,2\n"])
STARTS = [b"", b"PAR1", bytes(8), *(content[: len(content) // 2] for content in ENCODED.values())]
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.lists(PIECES, max_size=40).map("".join).map(str.encode),
    st.builds(lambda start, end: start + end, st.sampled_from(STARTS), st.binary(max_size=60)),
    st.builds(
        lambda content, place, end: content[: place % (len(content) + 1)] + end + content[place % (len(content) + 1) :],
        st.sampled_from(list(ENCODED.values())),
        st.integers(0, 10_000),
        st.binary(min_size=1, max_size=4),
    ),
)


def check_reading(content):
    """Numbers, or a sentence and no other error: whatever the bytes."""
    try:
        found = read_metrics(content)
    except TableError:
        return
    assert len(found.lines) == len(found.frame)
    assert set(found.frame) == {*found.metrics, *found.left_out, *found.own_steps.values()} | {found.step} - {None}
    assert all(found.told())
    for name in found.metrics:
        where = found.values(name, last_of_step_only=True)
        assert np.all(np.diff(where.steps) > 0)


@settings(max_examples=max(150, FUZZED), deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(CONTENT)
def test_bytes_at_random_are_numbers_or_a_sentence(content):
    check_reading(content)
