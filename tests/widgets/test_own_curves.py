"""The handles of the smoothings of a file."""

import numpy as np
import pytest

from emacore.averaging.smoothing import Smoothing
from emacore.metric_files import Curve
from emacore.widgets.own_curves import _settings

STEPS = np.arange(3000.0)


@pytest.mark.parametrize(
    ("way", "marks", "texts"),
    [
        ("first", (0.0, 0.999667), ("0", "0.999667")),
        ("tensorboard", (0.0, 0.999), ("0", "0.999")),
        ("pandas", (1.5, 3000.0), ("1.5", "3,000")),
        ("moving-average", (1.0, 3000.0), ("1", "3,000")),
    ],
)
def test_the_ends_of_a_handle_are_what_the_curve_allows_in_the_digits_that_matter(way, marks, texts):
    curve = Curve("loss", "step", STEPS, np.ones(3000), {}, {})
    (setting,) = _settings([curve], {way: Smoothing(way, 1.0 if way == "moving-average" else 0.5)}, 3000.0)
    assert (setting.marks[0], setting.marks[-1]) == marks
    assert (setting.text(marks[0]), setting.text(marks[-1])) == texts
    assert list(setting.marks) == sorted(set(setting.marks))


def test_long_or_broken_curves_have_no_handles():
    smoothings = {"a": Smoothing("first", 0.5)}
    for steps, values in (
        (np.arange(3001.0), np.ones(3001)),
        (STEPS[::-1], np.ones(3000)),
        (STEPS, np.r_[np.nan, np.ones(2999)]),
    ):
        assert not _settings([Curve("loss", "step", steps, values, {}, {})], smoothings, 3000.0)
