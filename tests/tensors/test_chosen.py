"""Averages of a part of a model: what they cost, what they leave alone, and what they still hold."""

import copy
import pickle
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from emacore import EMA, Averages, Constant, Recorder, Trajectory, UniformAverage
from emacore.tensors import watch
from emacore.tensors.chosen import chosen, trainable
from tests.helpers import Network, assert_same, change, tensors

HEAD = ["last.weight", "last.bias"]


class Adapted(nn.Module):
    """A large frozen layer, with a small one beside it that trains."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(256, 512)
        self.down, self.up = nn.Linear(256, 2, bias=False), nn.Linear(2, 512, bias=False)
        self.base.requires_grad_(False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def own_bytes(module, other):
    """What a module takes beside another."""
    theirs = {tensor.untyped_storage().data_ptr() for tensor in [*other.parameters(), *other.buffers()]}
    found = {t.untyped_storage().data_ptr(): t for t in [*module.parameters(), *module.buffers()]}
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in theirs)


def move(model, *averages, steps=range(4)):
    for step in steps:
        change(model, step)
        for one in averages:
            one.update() if hasattr(one, "update") else one.record()


def test_names_and_what_trains():
    model = Network()
    everything = set(model.state_dict())
    assert chosen(model, None, False) == everything
    assert chosen(model, HEAD, False) == set(HEAD)
    model.first.requires_grad_(False)
    assert chosen(model, None, True) == everything - {"first.weight", "first.bias"}
    model.norm.requires_grad_(False)
    assert trainable(model) == set(HEAD)
    model.last.weight = model.first.weight
    assert chosen(model, ["last.weight"], False) == {"first.weight"}


def test_a_wrong_choice_is_told(tmp_path):
    frozen = nn.Linear(2, 2).requires_grad_(False)
    for build in (
        EMA,
        lambda m, **k: Averages(m, {"a": Constant(0.9)}, **k),
        lambda m, **k: Recorder(m, tmp_path, **k),
    ):
        with pytest.raises(ValueError, match="no tensor 'wieght'; it has 'bias', 'weight'"):
            build(frozen, names=["wieght"])
        with pytest.raises(TypeError, match=r"write \['weight'\]"):
            build(frozen, names="weight")
        with pytest.raises(ValueError, match="no parameter of the module requires a gradient"):
            build(frozen, trainable_only=True)
        with pytest.raises(ValueError, match="names is empty"):
            build(frozen, names=[])
        with pytest.raises(ValueError, match="either names or trainable_only"):
            build(frozen, names=["weight"], trainable_only=True)


def test_what_trains_is_what_it_costs(tmp_path):
    model = Adapted()
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    ema = EMA(model, trainable_only=True)
    assert own_bytes(ema.ema_model, model) == 4 * weights
    assert Averages(model, {"a": Constant(0.9)}, trainable_only=True).averages.shape == (1, weights)
    with Recorder(model, tmp_path, trainable_only=True) as recorder:
        assert recorder.row_bytes == 4 * weights
    assert sum(t.numel() for name, t in ema.state_dict().items() if name.startswith("ema_model")) == weights
    hidden = EMA(model, trainable_only=True, include_online_model=False)
    assert set(hidden.state_dict()) == {"step", "initted", "ema_model.down.weight", "ema_model.up.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_part_is_averaged_as_in_the_whole(dtype):
    model = Network().to(dtype)
    part, full = EMA(model, names=HEAD, schedule=Constant(0.8)), EMA(model, schedule=Constant(0.8))
    several = Averages(model, {"a": Constant(0.8)}, names=HEAD)
    move(model, part, full, several)
    online = tensors(model)
    expected = online | {name: full.ema_model.state_dict()[name] for name in HEAD}
    assert_same(tensors(part.ema_model), expected)
    x = torch.randn(5, 3, dtype=dtype)
    with part.average_parameters() as swapped:
        assert_same(tensors(swapped), expected)
        swapped.eval()
        assert torch.equal(part(x), swapped(x))
        swapped.train()
    assert_same(tensors(model), online)
    with several.average_parameters("a"):
        torch.testing.assert_close(model.last.weight, expected["last.weight"])
        assert_same(
            {name: t for name, t in tensors(model).items() if name not in HEAD},
            {name: t for name, t in online.items() if name not in HEAD},
        )
    assert_same(tensors(model), online)
    one, other = Network().to(dtype), Network().to(dtype)
    part.copy_to(one)
    several.copy_to(other, "a")
    assert_same(tensors(one), expected)
    for name, tensor in tensors(other).items():
        torch.testing.assert_close(tensor, expected[name])


def test_training_goes_on_as_without(tmp_path):
    """The shadow freezes none of the weights that it shares with the model, and they get their gradients."""
    model = Network()
    ema = EMA(model, names=HEAD)
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in ema.ema_model.parameters())
    model(torch.randn(5, 3)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    frozen = Adapted()
    ema = EMA(frozen, trainable_only=True)
    assert ema.ema_model.base.weight is frozen.base.weight


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(
    "changed",
    [
        lambda model: model.double(),
        lambda model: setattr(model.first, "weight", nn.Parameter(torch.ones(4, 3))),
        lambda model: setattr(model.norm, "running_mean", torch.ones(4)),
        lambda model: model.first.bias.data.zero_(),
        lambda model: setattr(model.first.weight, "data", torch.ones(4, 3)),
        lambda model: setattr(model.first.weight, "data", model.first.weight.data.flip(0)),
        lambda model: model.first.bfloat16(),
    ],
    ids=["double", "a new parameter", "a new buffer", "in place", "new data", "flipped", "a part cast"],
)
def test_what_is_left_out_follows_the_model(changed, include):
    model = Network()
    ema = EMA(model, names=HEAD, schedule=Constant(0.5), include_online_model=include)
    move(model, ema)
    changed(model)
    ema.update()
    assert_same(
        {name: t for name, t in tensors(ema.ema_model).items() if name not in HEAD},
        {name: t for name, t in tensors(model).items() if name not in HEAD},
    )


def test_casting_the_wrapper_leaves_the_model_alone():
    model = Network()
    ema = EMA(model, names=HEAD, include_online_model=False).double()
    assert ema.ema_model.last.weight.dtype == torch.float64
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert ema.ema_model.first.weight.data_ptr() == model.first.weight.data_ptr()
    move(model, ema)


def test_what_is_frozen_costs_nothing(monkeypatch):
    """However much there is of it: no memory, no move, and no look at its shape."""
    looked, sizes, compiled = [], watch._sizes, watch._compiled
    monkeypatch.setattr(watch, "_sizes", lambda *some: looked.append(sum(map(len, some))) or sizes(*some))
    monkeypatch.setattr(watch, "_compiled", lambda some: looked.append(len(some)) or compiled(some))
    for count in (0, 9):
        model = nn.Sequential(Adapted(), *(nn.Linear(512, 512).requires_grad_(False) for _ in range(count)))
        ema = EMA(model, trainable_only=True, schedule=Constant(0.5))
        move(model, ema)
        assert own_bytes(ema.ema_model, model) == 4 * 2 * (256 + 512)
        assert ema._now.plan.moved == ["0.down.weight", "0.up.weight"]
        assert set(looked) == {2 * 2}


@pytest.mark.parametrize("include", [True, False])
def test_a_part_is_saved_and_goes_on(include):
    model, options = Network(), {"names": HEAD, "schedule": Constant(0.7), "include_online_model": include}
    ema = EMA(model, **options)
    move(model, ema)
    other = Network()
    resumed = EMA(other, **options)
    resumed.load_state_dict(copy.deepcopy(ema.state_dict()))
    if not include:
        other.load_state_dict(model.state_dict())
    assert_same(tensors(other), tensors(model))
    for one, average in ((model, ema), (other, resumed), (None, pickle.loads(pickle.dumps(ema)))):
        move(one or average.model, average, steps=range(4, 8))
    assert_same(tensors(resumed.ema_model), tensors(ema.ema_model))
    with pytest.raises(RuntimeError, match="last"):
        EMA(Network(), **options).load_state_dict({k: v for k, v in ema.state_dict().items() if "last" not in k})


def of_an_ema(model, folder):
    ema = EMA(model, trainable_only=True)
    return ema.update, ema.average_parameters


def of_averages(model, folder):
    averages = Averages(model, {"a": Constant(0.5)}, trainable_only=True)
    return averages.update, lambda: averages.average_parameters("a")


def of_a_recording(model, folder):
    recorder = Recorder(model, folder, trainable_only=True)
    return recorder.record, lambda: nullcontext(recorder.end_epoch())


@pytest.mark.parametrize("build", [of_an_ema, of_averages, of_a_recording])
def test_what_is_unfrozen_later_is_told_once(build, tmp_path):
    model = Adapted()
    update, read = build(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update()
    model.base.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"'base\.bias', 'base\.weight' train by now"), read():
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update()
        with read():
            pass


def test_a_recorded_part_is_replayed(tmp_path):
    model = Network()
    model.first.requires_grad_(False)
    with Recorder(model, tmp_path, trainable_only=True) as recorder:
        ema = EMA(model, trainable_only=True, schedule=UniformAverage())
        move(model, ema, recorder)
    other = copy.deepcopy(model)
    Trajectory.open(tmp_path).load_into(other, UniformAverage())
    for name, tensor in tensors(ema.ema_model).items():
        torch.testing.assert_close(tensors(other)[name], tensor, rtol=1e-5, atol=1e-6)
