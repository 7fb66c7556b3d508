from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emacore import RunConfig, train
from emacore.averaging.families import Constant
from emacore.averaging.windows import Window
from emacore.replay.weight_space import (
    SIDE,
    along_line,
    landscape,
    path_rows,
    principal,
    space,
    through_points,
)
from emacore.tasks import open_run
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import OptimizerConfig, StoppingConfig

CONFIG = RunConfig(data=DataConfig(n_samples=200), stopping=StoppingConfig("none"), max_epochs=6)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space") / "run"
    train(CONFIG, record=folder)
    return open_run(folder)


@pytest.mark.parametrize("kind", ["principal components", "three points"])
def test_of_a_run_that_diverged_there_is_no_plane_and_it_says_since_when(tmp_path, kind):
    lost = replace(CONFIG, optimizer=OptimizerConfig("sgd", 10.0, momentum=0.99, rate_rule="constant"))
    train(lost, record=tmp_path / "run")
    trajectory = open_run(tmp_path / "run")
    first = np.flatnonzero(~np.isfinite(trajectory.weights).all(axis=1))[0]
    with pytest.raises(ValueError, match=f"run that diverged: its weights are not finite at step {first}$"):
        space(trajectory, Constant(0.5), kind)


def test_a_plane_through_points_holds_them():
    points = np.random.default_rng(0).normal(size=(3, 50))
    plane = through_points(points)
    np.testing.assert_allclose(plane.axes @ plane.axes.T, np.eye(2), atol=1e-12)
    places = plane.coordinates(points)
    np.testing.assert_allclose(plane.origin + places @ plane.axes, points, atol=1e-12)
    assert places[1] == pytest.approx([np.linalg.norm(points[1] - points[0]), 0])
    assert plane.share(points) == pytest.approx(1)
    for line in (np.zeros((3, 5)), np.outer([0, 1, 3], np.ones(5))):
        with pytest.raises(ValueError, match="on a line"):
            through_points(line)


def test_principal_components_show_most_of_a_path_that_lies_nearly_in_a_plane():
    rng = np.random.default_rng(1)
    path = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 40)) + 0.1 * rng.normal(size=(200, 40))
    plane = principal(path)
    largest = np.linalg.svd(path - path.mean(axis=0), compute_uv=False) ** 2
    assert plane.share(path) == pytest.approx(largest[:2].sum() / largest.sum(), rel=1e-6)
    assert np.isnan(plane.share(np.ones((4, 40))))


def test_the_loss_on_plane_and_line_is_that_of_the_networks_there(trajectory):
    ends = np.asarray(trajectory.weights[[0, -1]], dtype=np.float64)
    line = pd.DataFrame(along_line(trajectory, *ends))
    assert line["position"].iloc[[0, -1]].tolist() == [-0.5, 1.5]
    known = trajectory.measure(np.asarray(trajectory.weights[[0, -1]]))["loss"]
    for position, loss in zip((0, 1), known, strict=True):
        assert line.loc[line["position"].sub(position).abs().idxmin(), "loss"] == pytest.approx(loss, rel=1e-4)
    plane = through_points(np.asarray(trajectory.weights[[0, 12, -1]]))
    places = plane.coordinates(np.asarray(trajectory.weights[[0, 12, -1]]))
    grid = pd.DataFrame(landscape(trajectory, plane, places))
    assert len(grid) == SIDE**2
    assert (grid[["u", "v"]].min() < places.min(axis=0)).all()
    assert (grid[["u", "v"]].max() > places.max(axis=0)).all()
    cell = grid.iloc[300]
    network = plane.origin + np.array([cell["u"], cell["v"]]) @ plane.axes
    assert cell["loss"] == pytest.approx(
        trajectory.measure(network[np.newaxis].astype(np.float32))["loss"][0], rel=1e-5
    )


@pytest.mark.parametrize("kind", ["principal components", "three points"])
@pytest.mark.parametrize("scheme", [Constant(0.9), Window(7)])
def test_space_of_a_run(trajectory, kind, scheme):
    found = space(trajectory, scheme, kind, 0.4)
    assert found.steps[0] == 12
    assert found.steps[-1] == 29
    assert found.original.shape == found.averaged.shape == (18, 2)
    assert 0 < found.original_share <= 1
    assert found.distances["original"][-1] == 0
    end = np.asarray(trajectory.weights[-1], dtype=np.float64)
    average = trajectory.average([scheme], [29])[0, 0]
    assert found.distances["ema"][-1] == pytest.approx(np.linalg.norm(average - end))
    final = trajectory.final({"a": scheme})["loss"][0]
    line = pd.DataFrame(found.line)
    assert line.loc[line["position"].sub(1).abs().idxmin(), "loss"] == pytest.approx(final, rel=1e-4)


def test_what_has_no_plane_is_told(trajectory):
    with pytest.raises(ValueError, match="kind must be"):
        space(trajectory, Constant(0.9), "sphere")
    with pytest.raises(ValueError, match="on a line"):
        space(trajectory, Constant(0.0), "three points")
    assert path_rows(trajectory, 0.99) == [27, 28, 29]


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(trajectory, share):
    with pytest.raises(ValueError, match=r"from_share must be in \[0, 1\], got"):
        space(trajectory, Constant(0.5), "three points", share)
