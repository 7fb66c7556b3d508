import numpy as np
import pytest

from emacore.widgets.smoothing import small_pictures


@pytest.mark.parametrize("beta", [0.5, 0.6, 0.9, 0.98])
def test_half_life_and_mean_age_are_marked_where_they_are(beta):
    pictures = small_pictures(np.zeros(100), np.zeros(100), beta, {})
    ages, steps = pictures["expansion"], pictures["step_response"]
    age, weight = ages.table["age"].to_numpy(), ages.table["EMA"].to_numpy()
    half = np.exp(np.interp(ages.rules["half-life"], age, np.log(weight)))
    assert half == pytest.approx(weight[0] / 2, rel=1e-6)
    assert ages.rules["mean age"] == pytest.approx(age @ weight / weight.sum(), rel=0.03)
    step, answer = steps.table["steps"].to_numpy(), steps.table["EMA"].to_numpy()
    assert 1 - np.exp(np.interp(steps.rules["half-life"], step, np.log(1 - answer))) == pytest.approx(0.5, rel=1e-6)
    gained = np.diff(answer, prepend=0.0)
    assert steps.rules["mean age"] == pytest.approx(step @ gained / gained.sum(), rel=0.03)
