"""Merges that follow the handles of the schedule."""

import numpy as np
import pytest

from emacore import Constant
from emacore.averaging.planned import planned
from emacore.experiments.opened import example, growth
from emacore.widgets.opened_merges import frames_of_merges


@pytest.mark.parametrize(("steps", "files", "kind"), [(10_000, 20, "raw"), (300_000, 3, "window")])
def test_how_the_weights_add_up_is_shown_at_every_mark(steps, files, kind):
    series, betas = example(steps, files, kind), (0.5, 0.9, 0.999, 0.99999)
    code, ends = "Constant(beta=0.99, update_after_step=700)", (0.0, 1.0)
    of = f"marks-{steps}"
    _, (average, merge, _) = frames_of_merges(of, "model", code, None, (("beta", betas),), ends, ends, 2, series)
    for mark, beta in enumerate(betas):
        schedule = Constant(beta, update_after_step=700)
        found = planned(schedule, series.profiles, steps, bests=False)
        for frame, weights in zip((average, merge), growth(series, found).values(), strict=True):
            drawn = frame.moving["beta"]["weight"][:, mark]
            shown = np.interp(np.arange(steps) + series.shift, frame.rows["step"], drawn)
            np.testing.assert_allclose(shown, weights, atol=0.005)
