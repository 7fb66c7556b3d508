"""Averages away from the model: where they lie, and moves that are on their way.  No machine of ours has a GPU."""

import copy
import pickle

import pytest
import torch
from torch import nn

import emacore.plan
from emacore import EMA, Constant, InversePower
from emacore.offload import Arrivals, is_offloaded
from tests.helpers import Network, assert_same, change, tensors


class Sent(Arrivals):
    """As from an accelerator: what is sent is there only when it is waited for, and until then the room is empty."""

    def send(self, sources):
        self.late = [source.clone() for source in sources]
        for room in self._room:
            room.fill_(float("nan"))

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
    monkeypatch.setattr(emacore.plan, "Arrivals", Sent)
    monkeypatch.setattr(emacore.plan, "is_offloaded", lambda average, source: True)  # all averages are far away
    for found, wanted in zip(averages(read), expected, strict=True):
        assert_same(found, wanted)


@pytest.mark.parametrize("names", [None, ["last.weight"]])
def test_averages_are_kept_where_they_are_asked_for(names):
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_average_in_the_hosts_memory_equals_that_on_the_gpu():
    model = nn.Sequential(nn.Linear(300, 300), nn.BatchNorm1d(300)).cuda()
    near, away = EMA(model, schedule=Constant(0.9)), EMA(model, device="cpu", schedule=Constant(0.9))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(20):
        model(torch.randn(64, 300, device="cuda")).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        near.update()
        away.update()
    for name, tensor in near.ema_model.state_dict().items():
        found = away.ema_model.state_dict()[name]
        assert found.device.type == "cpu"
        torch.testing.assert_close(found, tensor.cpu(), rtol=1e-5, atol=1e-6)
