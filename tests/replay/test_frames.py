from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore import RunConfig, train
from emacore.averaging.families import Constant, InversePower, PowerFunction
from emacore.averaging.windows import Window
from emacore.replay.frames import MOST_NETWORKS, loss_frames, most_epochs, shown_epochs
from emacore.tasks import open_run
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import OptimizerConfig, StoppingConfig

CONFIG = RunConfig(data=DataConfig(n_samples=200), stopping=StoppingConfig("none"), max_epochs=9)
SCHEMES = [
    *(InversePower(0.99, power=power, update_after_step=3, update_every=1) for power in (0.1, 0.7, 2.0)),
    Constant(0.9),
    PowerFunction(sigma_rel=0.1),
    Window(7, Constant(0.5)),
    Window(4),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames") / "run"
    train(CONFIG, record=folder)
    return folder


@given(st.integers(0, 5000), st.integers(2, 100))
def test_the_epochs_that_are_shown_are_even_and_hold_both_ends(count, most):
    shown = shown_epochs(count, most)
    assert len(shown) == min(count, most)
    if count:
        assert (shown[0], shown[-1]) == (1, count)
        assert np.ptp(np.diff(shown)) <= 1 if count > 1 else len(shown) == 1


@given(st.integers(0, 5000), st.integers(1, 400))
def test_curves_have_all_epochs_unless_that_is_too_much_work(count, schemes):
    shown = shown_epochs(count, most_epochs(schemes))
    assert len(shown) == count or schemes * len(shown) <= MOST_NETWORKS < schemes * (len(shown) + 1)


def test_all_that_handles_can_show_has_every_epoch_of_the_articles_run():
    assert len(shown_epochs(130, most_epochs(100))) == 130


@pytest.mark.parametrize("most", [3, 60])
def test_a_frames_curve_is_the_replay_of_that_very_scheme(folder, most):
    trajectory = open_run(folder)
    epochs = shown_epochs(9, most)
    frames = loss_frames(trajectory, SCHEMES, epochs)
    assert frames.shape == (len(epochs), len(SCHEMES))
    assert frames.dtype == np.float32
    for number, scheme in enumerate(SCHEMES):
        alone = trajectory.replay({"": scheme})["loss"]
        np.testing.assert_allclose(frames[:, number], alone[epochs - 1], rtol=1e-5)
    assert len(np.unique(frames[-1])) == len(SCHEMES), "else this shows nothing"


def test_a_run_that_diverged_has_frames_without_losses(tmp_path):
    train(replace(CONFIG, optimizer=OptimizerConfig("sgd", 10.0, momentum=0.99)), record=tmp_path / "run")
    lost = open_run(tmp_path / "run")
    epochs = shown_epochs(len(lost.epoch_ends), 60)
    assert not np.isfinite(loss_frames(lost, SCHEMES[:2], epochs)).any()


def test_an_epoch_that_is_not_there_is_told(folder):
    for epochs in ([0, 3], [3, 10]):
        with pytest.raises(ValueError, match="epochs must be from 1 to 9, got"):
            loss_frames(open_run(folder), SCHEMES, np.array(epochs))
    assert loss_frames(open_run(folder), SCHEMES, shown_epochs(0, 60)).shape == (0, len(SCHEMES))
