import copy

import pytest

from emacore.averaging.families import Constant
from emacore.tensors.calls import Calls


def test_shares_are_known_while_calls_are_moves_and_nothing_else():
    calls = Calls(step=5)
    calls.look_ahead(Constant(0.75, update_after_step=6))
    assert calls.block[:3] == [0.0, 0.0, 0.75]  # calls 5, 6 and 7
    calls.after(0, simple=True)
    assert calls.shares == []
    calls.after(1, simple=False)
    assert calls.shares == []
    calls.after(1, simple=True)
    assert calls.shares[2] == 0.25
    calls.forget_plan()
    assert calls.shares == []


def test_a_copy_knows_the_count_alone():
    calls = Calls(5, True, 2)
    calls.look_ahead(Constant(0.75))
    other = copy.deepcopy(calls)
    assert (other.step, other.initted, other.nonfinite_calls, other.block) == (5, True, 2, [])
    calls.lent = object()
    with pytest.raises(RuntimeError, match=r"inside average_parameters\(\) would train from the average"):
        copy.deepcopy(calls)
