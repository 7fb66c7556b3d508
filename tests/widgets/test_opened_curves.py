"""Where words stand in the pictures of what was opened."""

import pytest

from emacore.widgets.opened_curves import _place_on


@pytest.mark.parametrize(("scale", "ends"), [("linear", (1.0, 101.0)), ("log", (1e-4, 1e4))])
def test_words_stand_near_the_top_of_an_axis_whatever_its_scale(scale, ends):
    place = _place_on((0.0, 50.0), ends, scale)
    assert place["x"] == pytest.approx(15)
    assert place["y"] == pytest.approx({"linear": 98.0, "log": 10 ** (-4 + 0.97 * 8)}[scale])
