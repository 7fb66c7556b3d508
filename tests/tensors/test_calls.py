import copy

import pytest

from emacore.averaging.families import Constant
from emacore.tensors.calls import LOOK, Calls


class Plan:
    """Tells what is left of the shares that it is given."""

    def mover(self, shares):
        self.shares = shares
        return lambda: next(shares, None)


def test_calls_go_on_while_they_are_moves_and_nothing_else():
    calls, plan = Calls(step=5), Plan()
    calls.look_ahead(Constant(0.75, update_after_step=6))
    assert calls.block[:3] == [0.0, 0.0, 0.75]  # calls 5, 6 and 7
    for call in (5, 6):
        calls.step = call
        calls.go_on(plan)
        assert calls.move is None
    calls.step = 7
    calls.go_on(plan)
    assert calls.move() == 0.25
    assert calls.step == 8, "who takes a share counts a call"
    calls.forget_plan()
    assert calls.move is None
    assert calls.step == 8


@pytest.mark.parametrize("step", [1, 5, 1000, 1024, 3000])
def test_shares_end_at_the_next_look_or_with_the_block(step):
    calls, plan, ends = Calls(step), Plan(), []
    while calls.step < step + 9 * LOOK:
        if not calls.step < calls.block_start + len(calls.block):
            calls.look_ahead(Constant(0.75))
        calls.step += 1
        calls.go_on(plan)
        if calls.move is not None:
            assert set(plan.shares) == {0.25}
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
