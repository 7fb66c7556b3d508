"""Real steps of optimisers: accumulation, AMP's skipped ones, wrappers, and what cannot be attached to."""

import pytest
import schedulefree
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from emacore import EMA, Averages, Constant
from emacore.tensors.steps import averages_by_itself, stepping


def loss(model, value=1.0):
    return model(torch.full((2, 3), value)).square().sum()


@pytest.mark.parametrize(
    "kind",
    [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=True)],
    ids=["SGD", "AdamW", "RMSprop", "fused AdamW"],
)
def test_real_steps_are_counted(kind):
    """Two batches a step, and a scaler that skips the steps whose gradients overflow."""
    model = nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=1000)
    ema, averages = EMA(model, schedule=Constant(0.5)), Averages(model, {"a": Constant(0.5)})
    handle = ema.attach(optimizer)
    averages.attach(optimizer)
    kept, taken = None, 0
    for batch in range(12):
        scaler.scale(loss(model, float("inf") if batch in (4, 9) else 1.0)).backward()
        if batch % 2:
            before = model.weight.detach().clone()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if batch not in (5, 9):  # in which a gradient was infinite
                assert not torch.equal(model.weight, before)
                taken += 1
                kept = model.weight.detach().clone() if kept is None else kept.lerp(model.weight.detach(), 0.5)
    assert taken == 4
    assert ema.step.item() == averages.step == taken
    torch.testing.assert_close(ema.ema_model.weight, kept)
    handle.remove()
    optimizer.step()
    assert ema.step.item() == taken
    assert averages.step == taken + 1


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_loading_an_optimisers_state_is_no_step_and_one_of_a_warm_up_is(kind):
    model = nn.Linear(3, 2)
    first, second = (kind(model.parameters(), lr=0.01) for _ in range(2))
    loss(model).backward()
    first.step()
    kept = get_optimizer_state_dict(model, first)
    first.zero_grad()
    ema = EMA(model)
    ema.attach(second)
    set_optimizer_state_dict(model, second, kept)
    assert ema.step.item() == 0
    for group in second.param_groups:
        group["lr"] = 0.0
    loss(model).backward()
    second.step()
    assert ema.step.item() == 1


def test_what_cannot_be_attached_to_is_told():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    ema = EMA(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema.attach(optimizer)
    with pytest.raises(ValueError, match="attached to this optimizer already"):
        ema.attach(optimizer)
    EMA(model).attach(optimizer)  # another average of the same model
    with pytest.raises(ValueError, match="trains none of the model's weights"):
        ema.attach(torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, got 3"):
        ema.attach(3)


def test_two_optimisers_are_not_counted_both():
    model = nn.Linear(3, 2)
    first, second = torch.optim.SGD([model.weight], lr=0.1), torch.optim.SGD([model.bias], lr=0.1)
    ema = EMA(model)
    handle = ema.attach(first)
    with pytest.raises(
        ValueError, match=r"attached to another optimizer already, .* attach it to the one .* remove\(\)"
    ):
        ema.attach(second)
    handle.remove()
    ema.attach(second)
    for optimizer in (first, second):
        optimizer.step()
    assert ema.step.item() == 1
    second.itself = second
    del second, optimizer
    ema.attach(first)  # the other one is gone


def schedule_free():
    def model():
        return nn.Linear(3, 2).parameters()

    yield schedulefree.AdamWScheduleFree(model())
    yield schedulefree.SGDScheduleFree(model(), lr=0.1)
    yield schedulefree.RAdamScheduleFree(model())
    yield schedulefree.AdamWScheduleFreeClosure(model())
    yield schedulefree.ScheduleFreeWrapper(torch.optim.SGD(model(), lr=0.1))


def test_schedule_free_optimisers_are_told_apart():
    for optimizer in schedule_free():
        assert averages_by_itself(optimizer)
        with pytest.raises(ValueError, match=rf"{type(optimizer).__name__} is schedule-free: .*optimizer\.eval\(\)"):
            EMA(nn.Linear(3, 2)).attach(optimizer)
    plain = torch.optim.SGD(nn.Linear(3, 2).parameters(), lr=0.1)
    assert stepping(plain) is plain
    assert not averages_by_itself(plain)


@pytest.mark.parametrize("other", [None, 5, "x", torch.optim.SGD, [1]])
def test_what_is_no_optimizer_is_told(other):
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer, got"):
        stepping(other)


def test_an_optimizer_that_says_it_wraps_itself_is_the_one_that_steps():
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)])
    optimizer.optimizer = optimizer
    assert stepping(optimizer) is optimizer
