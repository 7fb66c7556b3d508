"""Averages away from the model: where they lie, and moves that are on their way.  On a GPU: tests/test_gpu.py."""

import copy
import pickle

import pytest
import torch
import torch.optim.optimizer as optimizers
from torch import nn

import emacore.tensors.plan
from emacore import EMA, Constant, InversePower
from emacore.tensors.offload import Arrivals, is_offloaded
from tests.helpers import Network, assert_same, change, tensors


class Sent(Arrivals):
    """As from an accelerator: what is sent is there only when it is waited for, and until then the room is empty."""

    def send(self, sources):
        self.late = [source.clone() for source in sources]
        for room in self._room:
            room.fill_(float("nan") if room.is_floating_point() else -1)

    def received(self):
        super().send(self.late)
        return super().received()


def test_what_lies_on_an_accelerator_is_offloaded():
    cpu, meta = torch.zeros(1), torch.zeros(1, device="meta")
    assert not is_offloaded(cpu, cpu)
    assert not is_offloaded(meta, cpu)


def test_arrivals_hold_what_was_sent():
    sources = [torch.randn(3, dtype=torch.bfloat16), torch.randn(2, 2)]
    arrivals = Arrivals(sources)
    for _ in range(2):
        arrivals.send(sources)
        for source in sources:
            sent = source.clone()
            source.zero_()
            source.add_(sent)
        for found, source in zip(arrivals.received(), sources, strict=True):
            assert found is not source
            assert torch.equal(found, source)


def averages(read):
    """What each way of reading sees after each call."""
    model = Network()
    made = {"schedule": InversePower(0.9, update_after_step=3, update_every=2), "accumulator_dtype": torch.float64}
    ema, seen = EMA(model, **made), []
    for step in range(9):
        change(ema.model, step)
        ema.update()
        if read == "pickle" and step == 6:  # a move; after a copy or a skip nothing is on its way
            ema = pickle.loads(pickle.dumps(ema))
        elif read == "state" and step == 6:
            fresh = EMA(copy.deepcopy(ema.model), **made)
            fresh.load_state_dict(ema.state_dict())
            ema = fresh
        elif read == "copy":
            other = Network()
            ema.copy_to(other)
            seen.append(tensors(other))
        if read == "each call" or (read != "copy" and step == 8):
            seen.append(tensors(ema.ema_model))
    return seen


@pytest.mark.parametrize("read", ["at the end", "each call", "state", "pickle", "copy"])
def test_moves_on_their_way_are_counted_before_anybody_looks(read, monkeypatch):
    expected = averages(read)
    monkeypatch.setattr(emacore.tensors.plan, "Arrivals", Sent)
    monkeypatch.setattr(emacore.tensors.plan, "is_offloaded", lambda average, source: True)  # all averages are far away
    for found, wanted in zip(averages(read), expected, strict=True):
        assert_same(found, wanted)


@pytest.mark.parametrize("names", [None, ["last.weight"]])
def test_averages_are_kept_where_they_are_asked_for(names, monkeypatch):
    # The meta device, which is refused, for it is the one further device that every machine has.
    monkeypatch.setattr("emacore.tensors.shadowed._check_device", lambda device: None)
    model = Network()
    ema = EMA(model, device="meta", names=names, schedule=Constant(0.9))
    kept = {"last.weight"} if names else set(tensors(model))
    for name, tensor in ema.ema_model.state_dict().items():
        assert (tensor.device.type == "meta") == (name in kept), name
    assert all(p.device.type == "cpu" and p.requires_grad for p in model.parameters())
    change(model, 1)
    ema.update()
    ema.update()
    assert ema.step.item() == 2
    given = EMA(model, ema_model=Network(), device="meta")
    assert next(given.ema_model.parameters()).is_meta


def arrivals_after_a_step():
    weight, buffer = nn.Parameter(torch.ones(3)), torch.ones(2)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    arrivals = Arrivals([weight, buffer])
    weight.grad = torch.full((3,), 0.25)
    optimizer.step()
    with torch.no_grad():
        arrivals.send([weight, buffer])
    return weight, buffer, optimizer, arrivals


@pytest.mark.filterwarnings("error")
def test_a_step_and_a_forward_leave_alone_what_is_on_its_way():
    weight, buffer, optimizer, arrivals = arrivals_after_a_step()
    buffer.add_(1)  # as BatchNorm's statistics in the next forward
    optimizer.step()
    assert weight.tolist() == [0.5] * 3
    assert [room.tolist() for room in arrivals.received()] == [[0.75] * 3, [1.0] * 2]


@pytest.mark.parametrize("seen_by", ["step", "reading"])
def test_what_else_is_written_meanwhile_is_taken_anew_and_told_once(seen_by, recwarn):
    weight, buffer, optimizer, arrivals = arrivals_after_a_step()
    found = []
    for value in (8.0, 4.0):
        with torch.no_grad():
            weight.fill_(value)
        if seen_by == "step":
            optimizer.step()
        found.append(arrivals.received()[0][0].item())
        with torch.no_grad():
            weight.fill_(2.0)
            arrivals.send([weight, buffer])
    assert found == [8.0, 2.0]  # the second stood in line before what was written
    assert ["written by something other than an optimiser" in str(w.message) for w in recwarn] == [True]


@pytest.mark.filterwarnings("error")
def test_without_an_optimiser_nothing_is_said_of_writes():
    weight = nn.Parameter(torch.ones(3))
    arrivals = Arrivals([weight])
    for value in (2.0, 3.0):
        with torch.no_grad():
            arrivals.send([weight])
            weight.fill_(value)
        arrivals.received()


def test_no_hook_outlives_what_it_serves():
    hooks = optimizers._global_optimizer_pre_hooks
    before = len(hooks)
    arrivals = Arrivals([torch.ones(1)])
    assert len(hooks) == before + 1
    del arrivals
    assert len(hooks) == before


WAYS = {
    "feeding back": lambda ema: ema.update_model_with_ema(0.25),
    "copying the model": lambda ema: ema.copy_params_from_model_to_ema(),
    "copying back": lambda ema: ema.copy_params_from_ema_to_model(),
    "moving by hand": lambda ema: ema.update_moving_average(ema.ema_model, ema.model, 0.75),
    "moving by hand before a look": lambda ema: ema.update_moving_average(ema._modules["ema_model"], ema.model, 0.75),
    "another schedule": lambda ema: setattr(ema, "schedule", Constant(0.5)),
    "beginning anew": lambda ema: setattr(ema, "initted", False),
    "leaving a name out": lambda ema: setattr(ema, "ignore_names", ["last.weight"]),
    "another tensor": lambda ema: setattr(ema.model.last, "bias", nn.Parameter(torch.ones(2))),
    "another dtype": lambda ema: ema.double(),
    "lending": lambda ema: lent(ema),
    "lending memory": lambda ema: lent(ema, swap=True),
    "calling": lambda ema: ema(torch.ones(4, 3)),
    "infinity": lambda ema: ema.model.last.bias.data.fill_(float("inf")),
}


def lent(ema, **options):
    with ema.average_parameters(**options) as model:
        return tensors(model)


@pytest.mark.parametrize("way", WAYS)
def test_whatever_comes_next_finds_the_move_counted(way, monkeypatch):
    def run():
        torch.manual_seed(0)
        model, then = Network(), {}
        ema = EMA(model, schedule=Constant(0.9), accumulator_dtype=torch.float64, update_model_with_ema_every=4)
        for step in range(7):
            change(model, step)
            ema.update()
            if step == 5:
                change(model, 100)
                WAYS[way](ema)
                then = {name: tensor.clone() for name, tensor in tensors(model).items()}
        return then, tensors(ema.ema_model), tensors(model)

    wanted = run()
    monkeypatch.setattr(emacore.tensors.plan, "Arrivals", Sent)
    monkeypatch.setattr(emacore.tensors.plan, "is_offloaded", lambda average, source: True)
    found = run()
    for mine, theirs in zip(found, wanted, strict=True):
        for name, tensor in theirs.items():
            torch.testing.assert_close(mine[name], tensor, rtol=0, atol=0, equal_nan=True)
