"""Where words and lines stand in the pictures of what was opened."""

import numpy as np
import pandas as pd
import pytest

from emacore.widgets.opened_curves import Losses, _loss_frames, _place_on


@pytest.mark.parametrize(("scale", "ends"), [("linear", (1.0, 101.0)), ("log", (1e-4, 1e4))])
def test_words_stand_near_the_top_of_an_axis_whatever_its_scale(scale, ends):
    place = _place_on((0.0, 50.0), ends, scale)
    assert place["x"] == pytest.approx(15)
    assert place["y"] == pytest.approx({"linear": 98.0, "log": 10 ** (-4 + 0.97 * 8)}[scale])


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_no_measured_curve_of_a_mark_leaves_the_picture(scale):
    at = (("beta", (0.5, 0.9, 0.99)),)
    found = {"Constant(beta=0.9)": np.array([2.0, 0.01, 3.0]), "Constant(beta=0.99)": np.array([2.0, np.inf, 9.0])}
    table = pd.DataFrame({"curve": "as stored", "step": [0, 5, 9], "loss": [2.0, 1.0, 0.5]})
    losses = Losses(table, "loss", "loss", scale, lambda codes: {code: found[code] for code in codes if code in found})
    frames, _ = _loss_frames(losses, "Constant(beta=0.5)", at, 0, (0.0, 9.0), (0.5, 2.0))
    assert frames.ends == {"y": (0.01, 9.0)}
    assert np.nanmin(frames.moving["beta"]["loss"]) == 0.01
    assert np.nanmax(frames.moving["beta"]["loss"]) == 9.0
