"""Ways to average, ranked by their final losses."""

import numpy as np
import pandas as pd
import pytest

from emacore.charts.ranking import ranking
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL


def chart_of(losses):
    table = pd.DataFrame({"scheme": ["EMA", "SWA", "original"], "loss": losses, "copies": [1, 2, 0]})
    colours = {"EMA": AVERAGED, "original": ORIGINAL}
    return ranking(table, name="scheme", value="loss", colours=colours, x_title="final loss", reference="original")


def test_the_lowest_is_on_top_and_each_says_its_number():
    figure = chart_of([0.02, 0.00123456, 3.0])
    assert figure.data["scheme"].tolist() == ["SWA", "EMA", "original"]
    assert figure.data["told"].tolist() == ["0.001235", "0.02", "3"]
    rule, dots, _ = figure.spec["layer"]
    assert dots["encoding"]["y"]["sort"] == ["SWA", "EMA", "original"]
    assert dots["encoding"]["color"]["scale"]["range"] == [CLEAN, AVERAGED, ORIGINAL]
    assert rule["data"]["values"] == [{"at": 3.0}]
    assert [tip["field"] for tip in dots["encoding"]["tooltip"]] == ["scheme", "loss", "copies"]
    assert figure.left_out == ""


@pytest.mark.parametrize(("losses", "scale"), [([0.1, 1.0, 2.0], "log"), ([0.0, 1.0, 2.0], "linear")])
def test_the_axis_is_logarithmic_where_it_can_be(losses, scale):
    assert chart_of(losses).spec["layer"][1]["encoding"]["x"]["scale"]["type"] == scale


def test_what_has_no_number_is_told():
    figure = chart_of([0.1, np.nan, np.inf])
    assert figure.data["scheme"].tolist() == ["EMA"]
    assert figure.left_out == "Without such a number: SWA, original."
    assert figure.spec["layer"][0]["data"]["values"] == []
    assert chart_of([np.nan] * 3).data.empty
