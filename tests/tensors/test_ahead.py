import numpy as np
import torch

from emacore.averaging.families import Constant, UniformAverage
from emacore.tensors.ahead import BLOCK, STRETCH, Ahead, shares_and_rest


def test_a_stretch_of_calls_moves_averages_as_its_calls_do_one_by_one():
    schedules = [Constant(0.9), UniformAverage()]
    ahead = Ahead(schedules, BLOCK, torch.zeros(2, 3, dtype=torch.float64))
    rows = np.random.default_rng(0).normal(size=(STRETCH, 3))
    for count in (STRETCH, 5):
        offsets = list(range(STRETCH, STRETCH + count))
        means, rest = ahead.mean_and_rest(offsets, rows[:count])
        for n, schedule in enumerate(schedules):
            average = np.ones(3)
            for offset, row in zip(offsets, rows, strict=False):
                decay = schedule.at(BLOCK + offset)
                average = decay * average + (1 - decay) * row
            moved = torch.ones(3, dtype=torch.float64).lerp(means[n], rest[n])
            torch.testing.assert_close(moved, torch.tensor(average), rtol=1e-12, atol=1e-12)


def test_calls_are_plain_where_all_averages_move():
    ahead = Ahead([Constant(0.9), Constant(0.5, update_after_step=2, update_every=2)], 0, torch.zeros(2, 1))
    assert ahead.plain[:8] == [False, False, False, False, True, False, True, False]
    assert ahead.moves[1, :8].tolist() == [True, False, True, False, True, False, True, False]
    assert ahead.rests[4].flatten().tolist() == torch.tensor([0.1, 0.5]).tolist()


def test_equal_values_keep_their_mean():
    shares, rest = shares_and_rest(np.array([[0.3, 0.0, 0.5]]))
    assert shares.sum() == 1
    assert rest.tolist() == [[1.0]]
