"""What the integrations share, without any of their libraries."""

import pytest
import torch

from emacore import Constant
from emacore.integrations.several import Several, check_settings, named
from tests.helpers import Network, assert_same, change, tensors


def moved(feed_back=None):
    model = Network()
    several = Several(model, {"a": Constant(0.5), "b": Constant(0.9)}, feed_back, {})
    for step in range(3):
        change(model, step)
        several.update()
    return model, several


def test_an_average_is_in_the_model_inside_the_block_alone():
    model, several = moved()
    online = tensors(model)
    for name in (None, "b"):
        with several.swapped(name):
            expected = tensors(several.emas[name or "a"].ema_model)
            assert_same(tensors(model), expected)
            with several.swapped("a"):  # what is there stays
                assert_same(tensors(model), expected)
        assert_same(tensors(model), online)
    with pytest.raises(ZeroDivisionError), several.swapped():
        raise ZeroDivisionError
    assert_same(tensors(model), online)


def test_training_goes_on_after_a_swap_in_inference_mode():
    model, several = moved()
    with torch.inference_mode(), several.swapped():
        pass
    model(torch.randn(5, 3)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    several.update()


def test_the_first_average_alone_is_fed_back_and_the_others_see_the_weights_before():
    model, several = moved(feed_back=1)
    assert_same(tensors(model), tensors(several.emas["a"].ema_model))
    _, expected = moved()
    assert expected.emas["b"].step.item() == several.emas["b"].step.item() == 3
    torch.testing.assert_close(several.emas["b"].weights, expected.emas["b"].weights)


class Counts:
    """A tracker of somebody else."""

    def __init__(self, module, resume):
        self.began, self.count, self.closed = resume, 0, False

    def update(self):
        self.count += 1

    def close(self):
        self.closed = True

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_averages_go_on_where_they_were_saved():
    _, several = moved()
    model = Network()
    again = Several(model, {"a": Constant(0.5), "b": Constant(0.9)}, None, {})
    again.load_state_dict(several.state_dict())
    for one in (several, again):
        change(one._module, 7)
        one.update()
    for name, ema in several.emas.items():
        assert_same(tensors(again.emas[name].ema_model), tensors(ema.ema_model))
        assert again.emas[name].step == ema.step == 4


def test_a_tracker_is_moved_saved_and_goes_on():
    _, plain = moved()
    model, averages = Network(), {"a": Constant(0.5), "b": Constant(0.9)}
    several = Several(model, averages, None, {}, Counts)
    several.update()
    assert (several.snapshots.began, several.snapshots.count) == (False, 1)
    again = Several(model, averages, None, {}, Counts)
    again.load_state_dict(several.state_dict())
    again.update()
    again.close()
    assert vars(again.snapshots) == {"began": True, "count": 2, "closed": True}
    with pytest.warns(UserWarning, match="saved with snapshots, and goes on without"):
        plain.load_state_dict(several.state_dict())
    new = Several(model, averages, None, {}, Counts)
    with pytest.warns(UserWarning, match="saved without snapshots: they begin now"):
        new.load_state_dict(plain.state_dict())
    assert vars(new.snapshots) == {"began": False, "count": 0, "closed": False}
    with pytest.raises(ValueError, match="cannot be called 'snapshots'"):
        Several(model, {"snapshots": Constant(0.5)}, None, {}, Counts)


def test_settings_are_checked():
    assert named(Constant(0.9)) == {"average": Constant(0.9)}
    with pytest.raises(ValueError, match="at_end must be"):
        check_settings("both", "best", None, {})
    with pytest.raises(ValueError, match="feed_back must be"):
        check_settings("both", "average", "step", {})
