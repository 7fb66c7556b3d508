"""From one network's tensors to its numbers."""

import numpy as np
import pytest
import torch

from emacore.averaging.families import Constant, InversePower
from emacore.replay.atlas import atlas, widths
from emacore.replay.curves import curve
from emacore.replay.measure import Measure, Metric, OneByOne, check_metrics
from emacore.replay.relatives import relatives
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
    assert np.isnan(
        [one.gain(lost, other) for one in TWO for lost in (np.nan, np.inf) for other in (1.0, np.inf)]
    ).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((), "at least one metric"),
        (("loss", "loss"), "two metrics have the column 'loss'"),
        *(
            (("loss", name), f"a metric cannot have the column '{name}'")
            for name in ("epoch", "schedule", "scheme", "x")
        ),
    ],
)
def test_a_metric_that_would_be_written_over_another_column_is_refused(columns, message):
    rows = Rows(np.zeros((2, 1), np.float32), np.arange(2), {"a": torch.empty(1, device="meta")}, [1])
    measure = OneByOne(lambda state: 1.0, tuple(Metric(column, column) for column in columns))
    with pytest.raises(ValueError, match=message):
        Trajectory(rows, measure)


def test_no_table_has_a_column_of_its_own_that_a_metric_can_take(tmp_path):
    weights = np.random.default_rng(0).normal(size=(30, 1)).astype(np.float32)
    rows = Rows(weights, np.arange(30), {"a": torch.empty(1, device="meta")}, [9, 19, 29])
    trajectory = Trajectory(rows, OneByOne(lambda state: float(state["a"][0]), (Metric("free", "loss"),)))
    tables = [
        trajectory.replay({"a": Constant(0.5)}),
        trajectory.final({"a": Constant(0.5)}),
        trajectory.metrics({"a": Constant(0.5)}, [3]),
        atlas(trajectory, InversePower(update_every=1), "power", "beta", "best"),
        widths(trajectory),
        relatives(trajectory),
        curve(trajectory, Constant(0.5)),
    ]
    for column in {name for table in tables for name in table} - {"free"}:
        with pytest.raises(ValueError, match=f"cannot have the column '{column}'"):
            check_metrics([Metric(column, "one")])


NO_NUMBER = [None, "x", [1], 1 + 2j, torch.ones(2)]


@pytest.mark.parametrize("returned", [*NO_NUMBER, *({"loss": one} for one in NO_NUMBER)])
def test_a_function_that_returns_no_number_is_told_as_that(returned):
    rows = Rows.of([{"weight": torch.ones(2)}, {"weight": torch.zeros(2)}])
    name = "'loss'" if isinstance(returned, dict) else "the function of a network's tensors"
    for measured in (
        lambda: Trajectory(rows, lambda tensors: returned).final({"a": Constant(0.9)}),
        lambda: Trajectory(rows).evaluate({"a": Constant(0.9)}, lambda tensors: returned),
    ):
        with pytest.raises(TypeError, match=f"{name}.* must be a number .*got "):
            measured()


@pytest.mark.parametrize("number", [2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0), torch.ones(1) * 2])
def test_numbers_of_any_kind_become_a_column_of_floats(number):
    rows = Rows.of([{"weight": torch.ones(2)}])
    for returned, column in ((number, "value"), ({"a": number}, "a")):
        found = Trajectory(rows).evaluate({"a": Constant(0.9)}, lambda tensors, returned=returned: returned)
        assert (found[column].dtype, found[column].tolist()) == (np.float64, [2.0])
