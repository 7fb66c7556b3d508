"""The ways to average side by side, on rows whose averages can be worked out by hand."""

import numpy as np
import pytest
import torch

from emacore.averaging.families import Constant, PowerFunction, UniformAverage
from emacore.replay.measure import Measure, Metric
from emacore.replay.relatives import costs_in_words, family, relatives, with_ema
from emacore.replay.rows import Rows
from emacore.replay.trajectory import Trajectory

VALUES = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
ENDS = [9, 19, 29, 39]


class Squares(Measure):
    """A loss that bends, so that averaging weights and averaging what they predict differ."""

    metrics = (Metric("loss", "loss"), Metric("sum", "sum", higher_is_better=True))

    def __call__(self, networks):
        flat = networks["a"].double()
        return {"loss": (flat**2).mean(dim=1).numpy(), "sum": flat.sum(dim=1).numpy()}

    def ensemble(self, batches):
        predicted = torch.cat([batch["a"].double() ** 2 for batch in batches]).mean(dim=0)
        return {"loss": float(predicted.mean()), "sum": float(predicted.sum())}


def opened(measure=None, ends=ENDS, values=VALUES, steps=None):
    tensors = {"a": torch.empty(3, device="meta")}
    rows = Rows(values, np.arange(len(values)) if steps is None else steps, tensors, epoch_ends=ends)
    return Trajectory(rows, measure or Squares())


def by_scheme(table):
    return {name: {column: table[column][n] for column in table} for n, name in enumerate(table["scheme"])}


def test_each_way_has_the_metrics_of_its_own_average():
    table = relatives(opened())
    found, values = by_scheme(table), VALUES.astype(float)
    averages = {
        "running mean": values.mean(axis=0),
        "EDM2 power function": opened().average([PowerFunction(sigma_rel=0.1)], [39])[0, 0],
        "SMA (window)": values[-4:].mean(axis=0),
        "SWA": values[[39]].mean(axis=0),
        "original": values[-1],
    }
    # Three quarters of 40 steps are over after step 29: row 29 is before, row 39 after.
    for name, average in averages.items():
        assert found[name]["loss"] == pytest.approx((average**2).mean(), rel=1e-5), name
        assert found[name]["sum"] == pytest.approx(average.sum(), rel=1e-4), name
    assert list(found) == [*list(averages)[:4], "ensemble of predictions", "original"]
    assert found["SWA"]["setting"] == "1 epoch ends, from step 39 on (every 10 steps)"
    copies = {name: (row["copies_kept"], row["forward_passes"]) for name, row in found.items()}
    assert copies["running mean"] == copies["SWA"] == copies["EDM2 power function"] == (1, 1)
    assert copies["SMA (window)"] == (4, 1)
    assert copies["original"] == (0, 1)


def test_the_ensemble_averages_what_the_networks_of_swa_predict():
    ends = list(range(3, 40, 4))  # rows 31, 35 and 39 are late ones
    late = VALUES[[31, 35, 39]].astype(float)
    found = by_scheme(relatives(opened(ends=ends)))
    assert found["SWA"]["loss"] == pytest.approx((late.mean(axis=0) ** 2).mean(), rel=1e-5)
    assert found["ensemble of predictions"]["loss"] == pytest.approx((late**2).mean(), rel=1e-5)
    assert found["ensemble of predictions"]["copies_kept"] == found["ensemble of predictions"]["forward_passes"] == 3


def test_without_predictions_there_is_no_ensemble():
    found = by_scheme(relatives(opened(lambda state: float(state["a"].sum()))))
    assert np.isnan(found["ensemble of predictions"]["loss"])
    assert np.isfinite(found["SWA"]["loss"])


def test_a_run_of_one_epoch_has_its_end_and_one_of_none_has_nothing():
    found = by_scheme(relatives(opened(ends=[4])))  # long before three quarters
    assert found["SWA"]["loss"] == pytest.approx((VALUES[4].astype(float) ** 2).mean(), rel=1e-5)
    with pytest.raises(ValueError, match="no whole epoch yet"):
        relatives(opened(ends=[]))


def test_late_is_counted_in_steps_and_not_in_rows():
    steps = np.arange(40) + np.where(np.arange(40) >= 10, 1000, 0)
    found = by_scheme(relatives(opened(steps=steps)))
    assert found["SWA"]["loss"] == pytest.approx((VALUES[[19, 29, 39]].mean(axis=0) ** 2).mean(), rel=1e-4)
    assert found["SMA (window)"]["setting"] == "the last 104 steps"


def test_the_ema_stands_on_top():
    own = Constant(0.5)
    table, others = family(opened(), own), relatives(opened())
    assert table["scheme"].tolist() == ["EMA", *others["scheme"]]
    assert table["setting"][0] == "Constant(beta=0.5)"
    assert table["loss"][0] == opened().final({"x": own})["loss"][0]
    for column in others:
        assert table[column][1:].tolist() == others[column].tolist()
    known = with_ema(others, UniformAverage(), {"loss": 7.0, "sum": 8.0})
    assert (known["loss"][0], known["sum"][0], known["copies_kept"][0]) == (7, 8, 1)


def test_what_costs_more_than_one_copy_is_said():
    said = costs_in_words(family(opened(ends=list(range(3, 40, 4))), Constant(0.5)))
    assert said == (
        "SMA (window) keeps 4 copies of the weights; ensemble of predictions keeps 3 copies of the weights and "
        "predicts 3 times; the others keep one at most."
    )
    first = {name: values[:1] for name, values in relatives(opened()).items()}
    assert costs_in_words(first) == "None keeps more than one copy of the weights."
