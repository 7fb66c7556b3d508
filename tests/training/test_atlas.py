import numpy as np
import pandas as pd
import pytest

from emacore import RunConfig, train
from emacore.averaging.schedules import InversePower, from_code
from emacore.training import atlas as atlas_module
from emacore.training.atlas import AXES, atlas, plateau
from emacore.training.config import DataConfig, StoppingConfig
from emacore.training.trajectory import Trajectory

CONFIG = RunConfig(data=DataConfig(n_samples=200), stopping=StoppingConfig("none"), max_epochs=6)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas") / "run"
    train(CONFIG, record=folder)
    return Trajectory.open(folder)


@pytest.mark.parametrize(("x", "y"), [("power", "beta"), ("inv_gamma", "power"), ("beta", "update_after_step")])
def test_a_cell_is_the_final_of_its_schedule(trajectory, x, y):
    schedule = InversePower(0.9, update_after_step=3, update_every=1)
    cells = atlas(trajectory, schedule, x, y)
    assert len(cells) == len(AXES[x](30)) * len(AXES[y](30))
    assert cells["loss"].notna().all()
    for row in cells.iloc[[0, 57, -1]].itertuples():
        named = from_code(row.code)
        assert getattr(named, x) == row.x
        assert getattr(named, y) == row.y
        assert named.update_every == 1
        alone = trajectory.final({"a": named})
        assert alone["loss"][0] == pytest.approx(row.loss, rel=1e-4)
    assert cells["loss"].nunique() > 20


def test_axes_must_be_two(trajectory):
    for x, y in (("power", "power"), ("power", "nope")):
        with pytest.raises(ValueError, match="two different ones of power"):
            atlas(trajectory, InversePower(), x, y)


def test_values_are_short_and_within_range():
    assert atlas_module._short(0.99923451234) == 0.9992345
    assert atlas_module._short(0.1234567) == 0.1235
    assert atlas_module._short(7) == 7
    assert all(0 <= beta < 1 for beta in AXES["beta"](100))


def test_plateau_counts_the_cells_near_the_lowest():
    table = pd.DataFrame({"loss": [1.0, 1.04, 1.06, np.nan]})
    assert plateau(table) == 0.5
