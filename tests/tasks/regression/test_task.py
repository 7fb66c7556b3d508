"""The loss and the metrics of the regression are scikit-learn's, for any number of networks at once."""

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from emacore.tasks.regression.task import Regression


@pytest.mark.parametrize("stacked", [(), (3,), (2, 3)])
def test_metrics_are_scikit_learns(stacked):
    draw = np.random.default_rng(0)
    predicted, target = draw.normal(size=(*stacked, 20, 1)), draw.normal(size=(20, 1))
    given = torch.tensor(predicted, dtype=torch.float32), torch.tensor(target, dtype=torch.float32)
    found = Regression().score(*given)
    loss = Regression().loss(*given)
    for index in np.ndindex(*stacked):
        one = target, predicted[index]
        assert float(found["loss"][index]) == pytest.approx(mean_squared_error(*one), rel=1e-5)
        assert float(found["mae"][index]) == pytest.approx(mean_absolute_error(*one), rel=1e-5)
        assert float(found["r2"][index]) == pytest.approx(r2_score(*one), rel=1e-4, abs=1e-5)
        assert float(loss[index]) == pytest.approx(mean_squared_error(*one), rel=1e-5)
    assert {column: values.dtype for column, values in found.items()} == dict.fromkeys(found, torch.float64)
    assert loss.shape == stacked


@pytest.mark.parametrize("off", [0.0, 0.5])
def test_targets_that_are_all_alike_have_scikit_learns_r2(off):
    target = torch.full((4, 1), 2.0)
    found = Regression().score(target + off, target)
    assert float(found["r2"]) == r2_score(target, target + off) == (off == 0)
