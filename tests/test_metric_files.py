"""Which column is x, which are metrics, what is left out: told, and right for the files that trackers write."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from emacore.averaging.smoothing import Smoothing
from emacore.metric_files import as_places, read_metrics, with_smoothed
from emacore.tables import TableError

FILES = Path(__file__).parent / "data" / "metrics"
#: The curve that most of these files hold, at 40 steps.
TRUTH = np.array([float(line.split(",")[1]) for line in (FILES / "comments.csv").read_text().split("\n")[3:43]])
#: Of each file: x of each metric by its name, where it is not step.
X = {
    "keras_csvlogger.csv": "epoch",
    "mmengine_scalars.json": "iter",
    "noheader.csv": "column 1",
    "pandas_index.csv": "Unnamed: 0",
    "semicolon_decimal_comma_one.csv": None,
    "tb_real.csv": "Step",
    "trainer_log.jsonl": "current_steps",
    "ultralytics_results.csv": "epoch",
    "wandb_one.csv": "Step",
    "wandb_panel.csv": "Step",
}
#: The metric that is that curve, where it is not called loss; and how many digits the file has.
NAMES = {
    "noheader.csv": "column 2",
    "lightning_metrics.csv": "train_loss",
    "ultralytics_results.csv": "train/box_loss",
    "wandb_one.csv": "calm-river-3 - train/loss",
    "wandb_panel.csv": "calm-river-3 - train/loss",
}
#: Files with another curve: their x and their values, read off by hand.
OTHERS = {"percent.csv", "restart_dup_steps.csv", "uneven.csv", "tb_real.csv", "short_header.csv"}


@pytest.mark.parametrize("name", sorted({path.name for path in FILES.iterdir()} - OTHERS))
def test_every_file_gives_the_curve_that_was_written(name):
    found = read_metrics(FILES / name)
    metric = NAMES.get(name, "loss")
    assert found.x_of(metric) == X.get(name, "step")
    where = found.values(metric)
    factor = 1 if X.get(name, "step") in ("epoch", "Unnamed: 0", None) else 10
    first = 9 if name == "lightning_metrics.csv" else 0
    places = np.round((where.steps - first) / factor).astype(int)
    assert np.array_equal(places * factor + first, where.steps)
    finite = np.isfinite(where.values)
    digits = 1e-4 if name in ROUNDED else 1e-15
    np.testing.assert_allclose(where.values[finite], TRUTH[places[finite]], atol=digits, rtol=0)
    told = " ".join(found.told())
    missing = 40 - len(np.unique(places[finite]))
    assert missing in (0, 1, 5, 7, 8, 10)
    if missing:
        assert re.search(r"(blank or no number|infinite) in \d+ of 4\d rows, first in line \d+", told)


ROUNDED = (
    "ultralytics_results.csv",
    "trainer_state.json",
    "semicolon_decimal_comma.csv",
    "semicolon_decimal_comma_one.csv",
)


def test_the_others_give_their_own():
    acc = read_metrics(FILES / "percent.csv")
    assert acc.values("acc").values[:4].tolist() == [24.7, 30.9, 34.0, 37.4]
    assert "acc: percent signs were taken off" in acc.told()
    mixed = read_metrics(b"epoch,acc,power\n1,10%,250 W\n2,20 %,260 W\n3,0.3,255\n").told()
    assert "acc: percent signs were taken off; 1 number had none, the first '0.3' in line 4" in mixed
    assert "power: W was taken off; 1 number had none, the first '255' in line 4" in mixed
    assert read_metrics(b"epoch,acc,memory\n1,10,512 MB\n2,20,1 GB\n").left_out["memory"].startswith("no numbers")
    again = read_metrics(FILES / "restart_dup_steps.csv")
    assert len(again.values("loss").values) == 40
    last = again.values("loss", last_of_step_only=True)
    assert len(last.values) == 32
    assert last.values[last.steps == 12] == 1.2357588823428847
    assert {"loss: step goes back 1 time", "loss: 8 values where step has one already"} <= set(again.told())
    assert any("uneven, from 1 to 13" in words for words in read_metrics(FILES / "uneven.csv").told())
    board = read_metrics(FILES / "tb_real.csv")
    assert board.values("Value").steps[:3].tolist() == [0, 5, 10]
    assert board.values("Value").values[0] == 2.084442138671875
    assert any("first in line 9" in words for words in board.told())
    with pytest.raises(TableError, match="line 2 has 2 fields, the header has 1 field"):
        read_metrics(FILES / "short_header.csv")


def test_validation_at_other_steps_is_a_series_of_its_own():
    found = read_metrics(FILES / "mmengine_scalars.json")
    assert found.own_steps == {"accuracy/top1": "step"}
    assert found.values("accuracy/top1").steps.tolist() == [1, 2, 3, 4, 5]
    assert "accuracy/top1: x is step, as iter is blank there" in found.told()
    lightning = read_metrics(FILES / "lightning_metrics.csv")
    assert lightning.values("val_loss").steps.tolist() == [49, 99, 149, 199, 249, 299, 349, 399]


@pytest.mark.parametrize(
    ("texts", "places", "unit"),
    [
        (["2026-01-01 12:00:00", "2026-01-01 12:01:00.5"], [0, 60.5], "seconds since 2026-01-01 12:00:00"),
        (["2026-01-01T12:00:00Z", "2026-01-01T14:00:00+01:00"], [0, 3600], "seconds since 2026-01-01 12:00:00"),
        (["2026/01/01", "2026/01/03"], [0, 172800], "seconds since 2026-01-01 00:00:00"),
        (["0:00:05", "1 day, 0:00:01"], [5, 86401], "seconds"),
        (["2026-01-01", "soon"], [0, np.nan], "seconds since 2026-01-01 00:00:00"),
    ],
)
def test_dates_and_times_as_x(texts, places, unit):
    found, said = as_places(pd.Series(texts))
    np.testing.assert_array_equal(found, places)
    assert said == unit


def test_x_is_a_choice():
    text = "when,step,loss\n2026-01-01 00:00:00,5,1\n2026-01-01 00:01:00,7,2\n2026-01-01 00:00:30,9,3\n"
    found = read_metrics(text.encode())
    assert (found.step, found.xs) == ("step", ("step", "when"))
    assert found.left_out == {"when": "a time"}
    timed = found.with_x("when")
    assert timed.values("loss").steps.tolist() == [0, 30, 60]
    assert timed.values("loss").values.tolist() == [1, 3, 2]
    assert timed.left_out == {"step": "a counter"}
    assert "when is counted in seconds since 2026-01-01 00:00:00" in timed.told()
    assert found.with_x(None).values("loss").steps.tolist() == [0, 1, 2]
    with pytest.raises(TableError, match="'loss' cannot be x; what counts or tells a time is step, when"):
        found.with_x("loss")
    pointed = read_metrics(b"day;loss\n31.12.2025 12:00;2,5\n1.1.2026 12:00;1,5\n")
    assert pointed.values("loss").steps.tolist() == [0, 86400]
    alone = read_metrics(b"2026-01-01,2.5\n2026-01-02,1.5\n")
    assert alone.values("column 2").steps.tolist() == [0, 86400]


def test_what_is_left_out_says_why_with_row_and_value():
    text = "step,loss,cost,day,flag,word\n0,1,$12,01/02/2026,True,\n1,2,$13,02/02/2026,False,x\n"
    left = read_metrics(text.encode()).left_out
    assert left["cost"] == "no numbers: '$12' in line 2"
    assert left["word"] == "no numbers: 'x' in line 3"
    assert left["flag"] == "truth values, no numbers"
    assert read_metrics(b"step,loss,date\n0,1,01/02/2026\n").left_out["date"] == (
        "a date whose day and month may be either: '01/02/2026' in line 2; write 2026-12-31"
    )


def test_a_smoothed_column_is_that_of_its_own_values_where_they_stand():
    found = read_metrics(b"step,loss,val\n0,4,\n2,2,1\n1,8,nan\n2,0,inf\n,7,7\n")
    smooth = Smoothing("first", 0.5).smooth
    table = with_smoothed(found, ["loss", "val"], smooth)
    np.testing.assert_array_equal(table["loss_smoothed"], [4, 4, 6, 2, np.nan])
    np.testing.assert_array_equal(table["val_smoothed"], [np.nan, 1, np.nan, np.inf, np.nan])
    kept = with_smoothed(found, ["loss"], smooth, in_order_of_steps=False, last_of_step_only=True)
    np.testing.assert_array_equal(kept["loss_smoothed"], [4, np.nan, 6, 3, np.nan])
    with pytest.raises(TableError, match="a column loss_smoothed already"):
        with_smoothed(read_metrics(b"step,loss,loss_smoothed\n0,1,1\n1,2,2\n"), ["loss"], smooth)


def test_a_column_without_a_name_counts_only_where_it_does():
    assert read_metrics(b"0,2.25\n10,2.5\n").step == "column 1"
    assert read_metrics(b"2.25\n2.5\n").metrics == ("column 1",)
    assert read_metrics(b"3,2.25\n1,2.5\n").metrics == ("column 1", "column 2")


def test_of_two_counters_the_one_that_does_not_fall_is_x():
    assert read_metrics(b"epoch,batch,loss\n0,0,3\n0,1,2\n1,0,1\n").step == "epoch"


def test_blanks_and_infinities_where_names_and_steps_are_wanted():
    found = read_metrics(b"metric,step,value\nloss,0,1\n,0,2\nloss,,3\nloss,,4\n,1,5\n")
    assert sorted(found.frame["loss"].dropna()) == [1, 3, 4]
    assert found.frame["(no name)"].dropna().tolist() == [2, 5]
    assert read_metrics(b"step,loss\n0,1e999\n10,2e999\n20,1\n").metrics == ("loss",)
    assert read_metrics(b"step,loss\ninf,1\ninf,2\n20,1\n").step == "step"


def test_the_span_is_of_the_rows_that_have_a_value():
    found = read_metrics(b"step,loss,val\n0,1,\n10,2,3\n20,,4\n35,,\n")
    spans = [found.span(names) for names in ([], ["loss"], ["val"], ["loss", "val"])]
    assert spans == [0, 10, 10, 20]


def test_columns_of_a_single_value_are_left_out_unless_all_are():
    assert read_metrics(b"step,loss,final\n0,2,\n1,1,0.5\n").left_out == {"final": "a single value"}
    assert read_metrics(b"step,loss,final\n0,2,0.5\n").metrics == ("loss", "final")
