"""From one network's tensors to its numbers."""

import numpy as np
import pytest
import torch

from emacore.replay.measure import Measure, Metric, OneByOne
from emacore.replay.rows import Rows
from emacore.replay.trajectory import Trajectory

TWO = (Metric("loss", "loss"), Metric("hits", "hits", higher_is_better=True))


def test_a_function_of_one_network_is_a_measure():
    networks = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    assert OneByOne(lambda state: state["a"].sum())(networks)["loss"].tolist() == [3.0, 7.0]
    found = OneByOne(lambda state: {"hits": float(state["a"][0]), "loss": 0.5, "more": 1.0}, TWO)(networks)
    assert {name: values.tolist() for name, values in found.items()} == {"loss": [0.5, 0.5], "hits": [1.0, 3.0]}


@pytest.mark.parametrize(
    ("returned", "metrics", "message"),
    [
        (1.0, TWO, r"returned 1.0, where it is to return loss, hits by name"),
        ({"loss": 1.0}, TWO, r"returned \['loss'\], where it is to return loss, hits"),
        ({"value": 1.0}, (Metric("loss", "loss"),), r"returned \['value'\], where it is to return loss"),
    ],
)
def test_a_measure_that_returns_something_else_is_told(returned, metrics, message):
    with pytest.raises(ValueError, match=message):
        OneByOne(lambda state: returned, metrics)({"a": torch.zeros(1, 2)})


def test_a_measure_without_predictions_has_no_ensemble():
    class Nothing(Measure):
        metrics = TWO

        def __call__(self, networks):
            return {}

    for measure, name in ((Nothing(), "Nothing"), (OneByOne(lambda state: 0.0), "OneByOne")):
        with pytest.raises(NotImplementedError, match=f"{name} knows no predictions"):
            measure.ensemble([{}])
        with pytest.raises(NotImplementedError, match="knows no predictions"):
            Trajectory(Rows.of([{"a": torch.zeros(2)}]), measure).ensemble(np.zeros((1, 2), np.float32))


def test_a_gain_is_above_0_where_the_average_is_better():
    lower, higher = TWO
    np.testing.assert_allclose(lower.gain([4.0, 4.0, -4.0], [3.0, 5.0, -5.0]), [0.25, -0.25, 0.25])
    np.testing.assert_allclose(higher.gain([4.0, 4.0, -4.0], [3.0, 5.0, -5.0]), [-0.25, 0.25, -0.25])
    assert np.isnan(lower.gain(0.0, 1.0))
    assert np.isnan(lower.gain(np.nan, 1.0))
