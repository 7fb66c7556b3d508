"""Writes of one process alone, in a run of which the other processes are played by this one, one after the other."""

import copy
import warnings

import pytest
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed import fake_pg  # noqa: F401  (registers the backend "fake")

from emacore import EMA, Averages, Constant
from emacore.tensors.processes import LATER, Writes


@pytest.fixture
def as_process(monkeypatch):
    """Makes this process another one of three."""
    dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=3)
    monkeypatch.setattr("emacore.tensors.processes._told", set())

    def become(rank):
        monkeypatch.setattr(dist, "get_rank", lambda group=None: rank)
        monkeypatch.setattr("emacore.tensors.processes._counts", {})

    become(0)
    yield become
    dist.destroy_process_group()


def told(average, calls=LATER):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(calls):
            average.update()
    return [str(one.message) for one in found]


def averaged(wrap, kind):
    model = wrap(nn.Linear(2, 1))
    average = EMA(model, schedule=Constant(0.5)) if kind is EMA else Averages(model, {"a": Constant(0.5)})
    average.update()
    return model, average


def loaded(model, ema):
    """The state of the run some steps later."""
    state = copy.deepcopy(ema.state_dict())
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.add_(1)
    ema.load_state_dict(state)


WRITES = {
    "update_model_with_ema": (EMA, lambda model, ema: ema.update_model_with_ema()),
    "copied": (EMA, lambda model, ema: ema.copy_params_from_ema_to_model()),
    "copy_to": (EMA, lambda model, ema: ema.copy_to(model)),
    "loaded": (EMA, loaded),
    "Averages": (Averages, lambda model, averages: averages.copy_to(model, "a")),
}


@pytest.mark.parametrize(
    ("write", "wrap"),
    [(write, DistributedDataParallel) for write in WRITES]
    # Around what is loaded DDP may be wrapped yet, which makes weights equal.
    + [(write, lambda model: model) for write in WRITES if write != "loaded"],
)
def test_a_write_is_told_where_others_have_not_made_it(write, wrap, as_process):
    kind, make = WRITES[write]
    make(*averaged(wrap, kind))
    as_process(2)
    model, average = averaged(wrap, kind)
    make(model, average)
    (said,) = told(average)
    assert "into the model in processes 0, 2, but not in process 1 of the run: every process" in said
    make(model, average)  # the second
    assert told(average) == []


def test_nothing_is_told_of_what_all_do_or_leaves_the_model_as_it_is(as_process):
    for rank in (0, 1, 2):
        as_process(rank)
        _, ema = averaged(DistributedDataParallel, EMA)
        ema.update_model_with_ema()
    assert told(ema) == []
    with ema.average_parameters():
        pass
    ema.copy_to(nn.Linear(2, 1))
    ema.load_state_dict(ema.state_dict())
    assert told(ema) == []
    assert ema._now.move  # calls are as quick as before


def test_writes_are_looked_at_by_powers_of_two(as_process):
    writes = Writes()
    for _ in range(9):
        writes.note(nn.Linear(2, 1), "copy_to()")
    assert [int(one.key.rpartition("/")[2]) for one in writes.waiting] == [1, 2, 4, 8]


def test_one_process_is_left_alone(recwarn):
    _, ema = averaged(lambda model: model, EMA)
    ema.update_model_with_ema()
    assert told(ema) == []
