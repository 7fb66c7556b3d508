import copy

import pytest

from emacore.averaging.families import Constant
from emacore.tensors.calls import LOOK, Calls


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


@pytest.mark.parametrize("step", [1, 5, 1000, 3000])
def test_shares_end_at_the_next_look_or_with_the_block(step):
    calls, ends = Calls(step), []
    while calls.step < step + 9 * LOOK:
        if not calls.step < calls.block_start + len(calls.block):
            calls.look_ahead(Constant(0.75))
        offset = calls.step - calls.block_start
        calls.after(offset, simple=True)
        assert offset >= len(calls.shares) or calls.shares[offset:] == [0.25] * (len(calls.shares) - offset)
        calls.step = max(calls.step + 1, calls.block_start + len(calls.shares))
        ends.append(calls.step)
    looks = range(step // LOOK * LOOK + LOOK, ends[-1], LOOK)
    assert set(looks) <= set(ends), "each is the number of a call that is not one of many"
    assert len(ends) < 40
    assert len(calls.block) > LOOK
    calls.forget_decays()
    calls.look_ahead(Constant(0.5))
    assert len(calls.block) == 64, "who sets a decay at each call pays for few"


def test_a_copy_knows_the_count_alone():
    calls = Calls(5, True, 2)
    calls.look_ahead(Constant(0.75))
    other = copy.deepcopy(calls)
    assert (other.step, other.initted, other.nonfinite_calls, other.block) == (5, True, 2, [])
    calls.lent = object()
    with pytest.raises(RuntimeError, match=r"inside average_parameters\(\) would train from the average"):
        copy.deepcopy(calls)
