"""Files of averages: what a plain model loads of them, and what the wrapper takes back."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from emacore import EMA, BiasCorrected, InversePower, Snapshots
from tests.helpers import Network, assert_same, change, tensors


class Tied(Network):
    """A tie, and a buffer that is in no state."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(3, 4, bias=False)
        self.out.weight = self.first.weight
        self.register_buffer("cache", torch.zeros(2), persistent=False)


class Told(Network):
    def get_extra_state(self):
        return {"scale": 2}

    def set_extra_state(self, state):
        pass


def trained(model, steps=6, **options):
    ema = EMA(model, **{"schedule": BiasCorrected(0.8), **options})
    for step in range(steps):
        change(model, step)
        ema.update()
    return ema


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_plain_model_loads_what_was_saved(dtype, tmp_path):
    model = Tied() if dtype.is_floating_point else nn.Linear(3, 2)
    ema = trained(model.to(dtype))
    ema.save(tmp_path / "model.safetensors")
    other = type(model)(*((3, 2) if type(model) is nn.Linear else ())).to(dtype)
    load_model(other, tmp_path / "model.safetensors")  # safetensors' own, which is strict
    assert_same(tensors(other), tensors(ema.ema_model))
    if isinstance(model, Tied):
        assert other.out.weight is other.first.weight
        assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict()) - {"out.weight"}
        save_model(other, tmp_path / "theirs.safetensors")
        ours, theirs = (safe_open(tmp_path / f"{one}.safetensors", "pt").metadata() for one in ("model", "theirs"))
        assert theirs == {"out.weight": "first.weight"}
        assert ours.items() >= {**theirs, "format": "pt"}.items()


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compiled", "DataParallel"])
def test_the_names_are_those_of_the_plain_model(wrap, tmp_path):
    model = wrap(Network())
    EMA(model).save(tmp_path / "model.safetensors")
    Network().load_state_dict(load_file(tmp_path / "model.safetensors"))


def test_the_wrapper_takes_back_what_it_saved(tmp_path):
    model = Tied().bfloat16()
    ema = trained(model)
    ema.save(tmp_path / "model.safetensors")
    fresh = EMA(model, schedule=BiasCorrected(0.8))
    fresh.load(tmp_path / "model.safetensors")
    assert (fresh.step.item(), bool(fresh.initted)) == (6, True)
    assert_same(tensors(fresh.ema_model), tensors(ema.ema_model))
    for one in (ema, fresh):
        change(model, 9)
        one.update()
    for name, tensor in tensors(fresh.ema_model).items():  # the file holds the shadow's precision
        torch.testing.assert_close(tensor, tensors(ema.ema_model)[name], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("untied", [False, True])
def test_a_plain_models_file_is_loaded(untied, tmp_path):
    source = Tied()
    change(source, 3)
    if untied:  # as a file that holds the tied tensor under both names
        save_file(
            {name: tensor.clone() for name, tensor in source.state_dict().items()}, tmp_path / "plain.safetensors"
        )
    else:
        save_model(source, tmp_path / "plain.safetensors")
    model = Tied()
    ema = EMA(model, schedule=InversePower(0.9))
    ema.load(tmp_path / "plain.safetensors")
    assert_same(tensors(ema.ema_model), tensors(source))
    assert ema.step.item() == 0
    assert not ema.initted


def test_only_what_is_averaged_is_saved(tmp_path):
    model = Network()
    ema = trained(model, names=["last.weight", "last.bias"])
    ema.save(tmp_path / "head.safetensors")
    assert set(load_file(tmp_path / "head.safetensors")) == {"last.weight", "last.bias"}
    other = EMA(model, names=["last.weight", "last.bias"])
    other.load(tmp_path / "head.safetensors")
    assert torch.equal(other.ema_model.last.weight, ema.ema_model.last.weight)


def test_another_models_file_is_told_and_changes_nothing(tmp_path):
    ema = EMA(Network())
    before = tensors(ema.ema_model)
    state = {name: tensor + 1 for name, tensor in Network().state_dict().items()}
    for wrong, message in (
        ({**state, "more": torch.zeros(1)}, "has 'more' more"),
        ({name: t for name, t in state.items() if name != "last.bias"}, "lacks 'last.bias'"),
        ({**state, "last.weight": torch.zeros(4, 2)}, r"'last.weight' has shape \(4, 2\), in the model \(2, 4\)"),
    ):
        save_file(wrong, tmp_path / "other.safetensors")
        with pytest.raises(RuntimeError, match=message):
            ema.load(tmp_path / "other.safetensors")
    assert_same(tensors(ema.ema_model), before)
    save_file(state, tmp_path / "other.safetensors")
    with ema.average_parameters(), pytest.raises(RuntimeError, match="inside average_parameters"):
        ema.load(tmp_path / "other.safetensors")


def test_a_state_that_is_no_tensor_is_told(tmp_path):
    with pytest.warns(UserWarning, match="'_extra_state' are no tensors"):
        EMA(Told()).save(tmp_path / "model.safetensors")


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    ema = EMA(nn.Linear(2, 2))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no header" * 9)
    with pytest.raises(ValueError, match=r"damaged\.safetensors is no whole safetensors file"):
        ema.load(damaged)
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        ema.load(tmp_path / "missing.safetensors")
    with pytest.raises(OSError, match=r"averages\.safetensors cannot be written"):
        ema.save(tmp_path / "no folder" / "averages.safetensors")


@pytest.mark.parametrize("kind", ["complex128", "sparse"])
def test_what_a_safetensors_file_cannot_hold_is_named(tmp_path, kind):
    model = nn.Linear(2, 1)
    model.register_buffer(
        "odd", torch.eye(2).to_sparse() if kind == "sparse" else torch.ones(2, dtype=torch.complex128)
    )
    with pytest.raises(ValueError, match=r"'odd' is of .* safetensors files cannot hold: keep state_dict\(\)"):
        EMA(model).save(tmp_path / "average.safetensors")
    with pytest.raises(ValueError, match=r"'odd' is of .* safetensors files cannot hold: leave it out by names="):
        Snapshots(model, tmp_path / "kept", 2)
    assert not list(tmp_path.iterdir())
    snapshots = Snapshots(model, tmp_path / "kept", 2, names=["weight", "bias"])
    for _ in range(2):
        snapshots.update()
    assert len(list((tmp_path / "kept").iterdir())) == 1
