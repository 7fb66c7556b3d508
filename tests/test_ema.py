import copy
import inspect
import io
import pickle
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from ema_pytorch import EMA as EMAPytorch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import update_bn

import emacore
from emacore import EMA, Averages
from emacore.averaging.families import BiasCorrected, Constant, InversePower, PowerFunction, UniformAverage
from emacore.averaging.weights import average
from tests.helpers import Network, assert_same, change, tensors

FAST = {"update_after_step": 0, "update_every": 1}


def run(ema, first, last):
    for step in range(first, last):
        change(ema.model, step)
        ema.update()


def reference(model, num_steps, beta, inv_gamma, power, min_value, update_after_step, update_every):
    """The article's class, in the plainest words, in float64."""
    shadow, moved = {}, False
    for t in range(num_steps):
        change(model, t)
        now = {name: x.double() for name, x in tensors(model).items()}
        if t % update_every != 0:
            continue
        if t <= update_after_step or not moved:
            shadow, moved = now, t > update_after_step
            continue
        e = t - update_after_step
        d = min(max(1 - (1 + e / inv_gamma) ** -power, min_value), beta)
        shadow = {name: d * shadow[name] + (1 - d) * x if "num_" not in name else x for name, x in now.items()}
    return shadow


@settings(max_examples=40, deadline=None)
@given(
    beta=st.floats(0, 1),
    inv_gamma=st.floats(0.05, 50),
    power=st.floats(0.05, 3),
    min_value=st.floats(0, 1),
    update_after_step=st.integers(0, 20),
    update_every=st.integers(1, 7),
)
def test_numbers_are_those_of_the_articles_class(**arguments):
    ema = EMA(Network(), **arguments)
    run(ema, 0, 40)
    for name, expected in reference(Network(), 40, **arguments).items():
        torch.testing.assert_close(ema.ema_model.state_dict()[name].double(), expected, rtol=2e-6, atol=2e-6)


def test_moves_of_decay_one_copy_what_is_never_averaged_and_nothing_else():
    model = Network()
    ema = EMA(model, beta=1.0, min_value=1.0, param_or_buffer_names_no_ema=["last.bias"], **FAST)
    run(ema, 0, 2)
    kept = tensors(ema.ema_model)
    nn.init.constant_(model.first.weight, float("inf"))
    model.norm.num_batches_tracked.fill_(77)
    nn.init.constant_(model.last.bias, 5.0)
    ema.update()
    now = tensors(ema.ema_model)
    assert torch.equal(now["first.weight"], kept["first.weight"])
    assert int(now["norm.num_batches_tracked"]) == 77
    assert now["last.bias"].tolist() == [5.0, 5.0]


@pytest.mark.parametrize(
    "schedule",
    [Constant(0.9, update_every=2), BiasCorrected(0.8), UniformAverage(update_after_step=7), PowerFunction(gamma=3)],
    ids=repr,
)
def test_any_schedule_is_the_recursion_of_its_decays(schedule):
    model = nn.Linear(3, 1, dtype=torch.float64)
    ema, seen = EMA(model, schedule=schedule), []
    for step in range(30):
        change(model, step)
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().copy())
        ema.update()
    expected = average(seen, schedule.decays(30))[-1]
    found = torch.cat([p.flatten() for p in ema.ema_model.parameters()]).numpy()
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=1e-12, atol=1e-12)


def test_current_decay_step_and_initted_read_as_in_ema_pytorch():
    for settings_ in ({"update_after_step": 5, "update_every": 2}, {"min_value": 0.3, "beta": 0.6, **FAST}):
        ours, theirs = EMA(nn.Linear(2, 1), **settings_), EMAPytorch(nn.Linear(2, 1), **settings_)
        for _ in range(30):
            ours.update()
            theirs.update()
            assert ours.get_current_decay() == pytest.approx(theirs.get_current_decay(), abs=1e-6)
            assert int(ours.step) == int(theirs.step)
    assert bool(ours.initted)
    early = EMA(nn.Linear(2, 1))
    early.update()
    assert not bool(early.initted)


def test_setting_step_and_initted_begins_anew():
    ema = EMA(nn.Linear(2, 1), beta=0.9, power=3.0, **FAST)
    run(ema, 0, 10)
    ema.step = 3
    ema.initted = False
    ema.step += 1
    assert int(ema.step) == 4
    change(ema.model, 99)
    ema.update()
    assert_same(tensors(ema.ema_model), tensors(ema.model))


def test_calling_the_wrapper_calls_the_shadow_and_modes_stay_apart():
    model = Network()
    ema = EMA(model, **FAST)
    run(ema, 0, 5)
    x = torch.randn(6, 3)
    model.train()
    ema.eval()
    assert model.training
    ema.train()
    assert model.training
    assert not ema.ema_model.training
    model.eval()
    ema.train()
    assert not model.training
    torch.testing.assert_close(ema(x), ema.ema_model(x))
    assert not torch.allclose(ema(x), model(x))
    assert all(not p.requires_grad for p in ema.ema_model.parameters())


def test_integers_are_copied_and_names_can_be_excepted():
    model = Network()
    ema = EMA(
        model,
        beta=0.9,
        power=5.0,
        param_or_buffer_names_no_ema=["last.bias"],
        ignore_names={"first.weight"},
        ignore_startswith_names=("norm.",),
        **FAST,
    )
    run(ema, 0, 2)
    kept = tensors(ema.ema_model)
    run(ema, 2, 9)
    now, online = tensors(ema.ema_model), tensors(model)
    assert torch.equal(now["last.bias"], online["last.bias"])
    for name in ("first.weight", "norm.weight", "norm.running_mean", "norm.num_batches_tracked"):
        assert torch.equal(now[name], kept[name])
    assert not torch.equal(now["last.weight"], kept["last.weight"])
    assert not torch.equal(now["last.weight"], online["last.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_moves_at_a_decay_near_one(dtype):
    model = nn.Linear(4, 1, bias=False).to(dtype)
    nn.init.constant_(model.weight, 1.0)
    ema = EMA(model, beta=0.9999, min_value=0.9999, **FAST)
    ema.update()
    ema.update()
    nn.init.constant_(model.weight, 2.0)
    for _ in range(2000):
        ema.update()
    expected = 2 - 0.9999**2000
    assert ema.ema_model.weight.dtype == dtype
    assert ema.ema_model.weight.float().mean().item() == pytest.approx(expected, rel=5e-3)
    assert ema.state_dict()["accumulator.weight"].dtype == torch.float32
    stuck = EMA(model, beta=0.9999, min_value=0.9999, accumulator_dtype=dtype, **FAST)
    stuck.update()
    stuck.update()
    nn.init.constant_(model.weight, 3.0)
    for _ in range(500):
        stuck.update()
    assert torch.all(stuck.ema_model.weight == 2.0)


def test_float64_accumulators_close_the_gap_that_float32_leaves():
    gaps = {}
    for dtype in (torch.float32, torch.float64):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 1.99)
        ema = EMA(model, beta=0.999, min_value=0.999, accumulator_dtype=dtype, **FAST)
        ema.update()
        ema.update()
        nn.init.constant_(model.weight, 2.0)
        for _ in range(12_000):
            ema.update()
        gaps[dtype] = 2 - ema.ema_model.weight.item()
    assert gaps[torch.float32] > 2e-5
    assert gaps[torch.float64] < 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128])
def test_other_dtypes_are_averaged(dtype):
    model = nn.Module()
    model.value = nn.Parameter(torch.zeros(3, dtype=dtype))
    ema = EMA(model, beta=0.5, min_value=0.5, **FAST)
    for value in (0, 0, 1, 1j if dtype.is_complex else 2):
        nn.init.constant_(model.value, value) if not isinstance(value, complex) else model.value.data.fill_(value)
        ema.update()
    expected = 0.25 + (0.5j if dtype.is_complex else 1.0)
    torch.testing.assert_close(ema.ema_model.value.detach(), torch.full((3,), expected, dtype=dtype))


def test_tensors_are_paired_by_name_not_by_position():
    class Swapped(nn.Module):
        def __init__(self, names):
            super().__init__()
            for name in names:
                setattr(self, name, nn.Parameter(torch.zeros(2)))

    model, shadow = Swapped("ab"), Swapped("ba")
    ema = EMA(model, shadow, **FAST)
    nn.init.constant_(model.a, 1.0)
    nn.init.constant_(model.b, 2.0)
    ema.update()
    assert shadow.a.tolist() == [1, 1]
    assert shadow.b.tolist() == [2, 2]


def test_shared_tensors_stay_shared_and_move_once():
    model = nn.ModuleDict({"one": nn.Linear(2, 2, bias=False), "two": nn.Linear(2, 2, bias=False)})
    model["two"].weight = model["one"].weight
    ema = EMA(model, beta=0.5, min_value=0.5, **FAST)
    assert ema.ema_model["one"].weight is ema.ema_model["two"].weight
    nn.init.constant_(model["one"].weight, 0.0)
    ema.update()
    ema.update()
    nn.init.constant_(model["one"].weight, 1.0)
    ema.update()
    assert ema.ema_model["two"].weight.unique().tolist() == [0.5]
    model["two"].weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(RuntimeError, match=r"two\.weight.*shares its tensor"):
        ema.update()


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "DataParallel"])
def test_wrapped_models_are_looked_into(wrap):
    plain = Network()
    ema = EMA(wrap(plain), beta=0.9, power=3.0, **FAST)
    assert isinstance(ema.ema_model, Network)
    for step in range(6):
        change(plain, step)
        ema.update()
    expected = EMA(Network(), beta=0.9, power=3.0, **FAST)
    run(expected, 0, 6)
    assert_same(tensors(ema.ema_model), tensors(expected.ema_model))
    # a checkpoint of the wrapped model loads into the plain one, and back
    fresh = EMA(Network(), beta=0.9, power=3.0, **FAST)
    fresh.load_state_dict(ema.state_dict())
    assert_same(tensors(fresh.ema_model), tensors(ema.ema_model))
    ema.load_state_dict(fresh.state_dict())


def test_a_compiled_part_pairs_through_its_prefix():
    model = Network()
    ema = EMA(model, **FAST)
    model.first = torch.compile(model.first)
    change(model, 3)
    ema.update()
    assert torch.equal(ema.ema_model.first.weight, model.first._orig_mod.weight)


def test_replaced_parameter_is_seen():
    model = nn.Linear(2, 1)
    ema = EMA(model, **FAST)
    ema.update()
    plan = ema._now.plan
    ema.update()
    assert ema._now.plan is plan  # looked up once
    model.weight = nn.Parameter(torch.full((1, 2), 7.0))
    ema.schedule = Constant(0.0)
    ema.update()
    assert ema.ema_model.weight.tolist() == [[7.0, 7.0]]
    model.weight.data = torch.full((1, 2), 8.0)
    ema.update()
    assert ema.ema_model.weight.tolist() == [[8.0, 8.0]]


def test_a_model_cast_mid_way_is_still_averaged():
    model = nn.Linear(2, 1)
    ema = EMA(model, beta=0.5, min_value=0.5, **FAST)
    nn.init.constant_(model.weight, 1.0)
    run_twice = [ema.update() for _ in range(2)]
    assert run_twice == [None, None]
    model.to(torch.float64)
    nn.init.constant_(model.weight, 2.0)
    ema.update()
    assert ema.ema_model.weight.tolist() == [[1.5, 1.5]]
    ema.ema_model.to(torch.float64)
    ema.update()
    assert ema.ema_model.weight.tolist() == [[1.75, 1.75]]


def test_gained_lost_and_reshaped_tensors_are_errors():
    def fresh():
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        return model, EMA(model, **FAST)

    model, ema = fresh()
    model[1].register_buffer("extra", torch.zeros(1))
    with pytest.raises(RuntimeError, match=r"has '1\.extra' more"):
        ema.update()
    model, ema = fresh()
    model.add_module("2", nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match=r"has '2\.bias', '2\.weight' more"):
        ema.update()
    model, ema = fresh()
    model[0].bias = None
    with pytest.raises(RuntimeError, match=r"lacks '0\.bias'"):
        ema.update()
    model, ema = fresh()
    model[0].weight = nn.Parameter(torch.zeros(3, 2))
    with pytest.raises(RuntimeError, match=r"differ in shape: \(3, 2\) and \(2, 2\)"):
        ema.update()
    assert int(ema.step) == 0


def test_models_without_values_or_copies_are_errors():
    with pytest.raises(ValueError, match="lazy.*run one batch"):
        EMA(nn.LazyLinear(3))
    with pytest.raises(ValueError, match="meta device"):
        EMA(nn.Linear(2, 2, device="meta"))

    class Uncopyable(nn.Linear):
        def __deepcopy__(self, memo):
            raise OSError("a handle is open")

    with pytest.raises(TypeError, match="Uncopyable cannot be copied .a handle is open.; .*ema_model"):
        EMA(Uncopyable(2, 2))
    assert EMA(Uncopyable(2, 2), nn.Linear(2, 2)) is not None


class Itself(nn.Linear):
    """What is frozen is sometimes copied so."""

    def __deepcopy__(self, memo):
        return self


class ItsWeight(nn.Linear):
    def __deepcopy__(self, memo):
        other = ItsWeight(2, 2)
        other.weight = self.weight
        return other


@pytest.mark.parametrize(
    ("part", "message"), [(Itself, "its module '1' is '1' of it"), (ItsWeight, "'1.weight' shares")]
)
def test_a_copy_that_shares_with_the_model_is_an_error_and_leaves_it_alone(part, message):
    model = nn.Sequential(nn.Linear(2, 2), part(2, 2))
    with pytest.raises(ValueError, match=f"the copy of Sequential, as its __deepcopy__ makes it, .*{message}"):
        EMA(model)
    assert model[1].training
    assert model[1].weight.requires_grad


def normed():
    return nn.utils.weight_norm(nn.Linear(2, 2))


def pruned():
    return prune.random_unstructured(nn.Linear(2, 2), "weight", 0.5)


def keeping_what_it_gave():
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda module, inputs, output: module.__dict__.update(given=[{"last": output}]))
    return model


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("build", [normed, pruned, keeping_what_it_gave])
def test_a_model_that_keeps_what_it_computed_is_copied_after_a_forward_pass(build):
    """Torch does not copy such tensors, which the next forward pass replaces."""
    model, x = build(), torch.randn(3, 2)
    model(x)
    ema = EMA(model, schedule=Constant(0.5))
    run(ema, 0, 3)
    with ema.average_parameters():
        expected = model(x)
    torch.testing.assert_close(ema(x), expected)


@pytest.mark.filterwarnings("ignore:.*(quantized tensor|ComplexHalf|TypedStorage)")
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex32, torch.qint8])
@pytest.mark.parametrize("build", [EMA, Averages])
def test_kinds_of_numbers_that_torch_can_do_little_with(kind, build):
    def numbers(value):
        full = torch.full((4,), float(value))
        return torch.quantize_per_tensor(full, 0.5, 0, kind) if kind == torch.qint8 else full.to(kind)

    model = nn.Linear(2, 2)
    model.register_buffer("numbers", numbers(0))
    if kind != torch.qint8:
        model.weights = nn.Parameter(numbers(0), requires_grad=False)
    average = EMA(model, schedule=Constant(0.5)) if build is EMA else Averages(model, {"a": Constant(0.5)})
    for value in (0, 4, 8):
        model.numbers.copy_(numbers(value))
        if kind != torch.qint8:
            model.weights.data = numbers(value)
        average.update()
    average.load_state_dict(copy.deepcopy(average.state_dict()))
    average.on_nonfinite = "raise"
    with average.average_parameters(*([] if build is EMA else ["a"])):
        found = {name: tensor.clone() for name, tensor in tensors(model).items()}
    expected = {"numbers": 8 if kind == torch.qint8 else 5, "weights": 5}
    for name in found.keys() & expected.keys():
        values = found[name].dequantize() if found[name].is_quantized else found[name].to(torch.complex64).real
        assert values.tolist() == [expected[name]] * 4
    average.update()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"beta": 1.1}, ValueError, "beta must be in .*got 1.1"),
        ({"beta": -0.1}, ValueError, "beta"),
        ({"update_every": 0}, ValueError, "update_every must be a whole number of at least 1, got 0"),
        ({"power": 0}, ValueError, "power must be a finite number above 0, got 0"),
        ({"inv_gamma": -2.0}, ValueError, "inv_gamma.*got -2.0"),
        (
            {"ignore_names": ["nope"]},
            ValueError,
            "ignore_names: the model has no tensor 'nope'; it has 'bias', 'weight'",
        ),
        ({"param_or_buffer_names_no_ema": ["nope"]}, ValueError, "param_or_buffer_names_no_ema.*nope"),
        ({"ignore_startswith_names": ["nope"]}, ValueError, "starts with 'nope'"),
        ({"ignore_names": "bias"}, TypeError, r"write \['bias'\]"),
        ({"schedule": Constant(), "beta": 0.5}, ValueError, "not both"),
        ({"accumulator_dtype": torch.int64}, ValueError, "accumulator_dtype"),
    ],
)
def test_wrong_arguments_name_the_value_and_the_cure(arguments, error, message):
    with pytest.raises(error, match=message):
        EMA(nn.Linear(2, 2), **arguments)


def test_average_parameters_swaps_and_restores_even_after_an_exception():
    model = Network()
    ema = EMA(model, beta=0.9, power=3.0, **FAST)
    run(ema, 0, 6)
    before = tensors(model)
    with ema.average_parameters() as swapped:
        assert swapped is model
        assert_same(tensors(model), tensors(ema.ema_model))
        with pytest.raises(RuntimeError, match="average the average"):
            ema.update()
        with pytest.raises(RuntimeError, match="already open"), ema.average_parameters():
            pass
    assert_same(tensors(model), before)
    with pytest.raises(KeyError), ema.average_parameters():
        raise KeyError
    assert_same(tensors(model), before)
    ema.update()


def test_copy_to_another_module():
    ema = EMA(Network(), beta=0.9, power=3.0, **FAST)
    run(ema, 0, 5)
    other = Network()
    ema.copy_to(other)
    assert_same(tensors(other), tensors(ema.ema_model))
    with pytest.raises(RuntimeError, match="module has 'bias', 'weight' more and lacks .* and 3 others"):
        ema.copy_to(nn.Linear(2, 2))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "state_dict"])
def test_resuming_equals_not_stopping_bit_for_bit(way, half):
    def build():
        model = Network().to(torch.bfloat16) if half else Network()
        return EMA(model, beta=0.97, power=0.9, update_after_step=6, update_every=3)

    for stop in (4, 7, 9, 20):
        through, stopped = build(), build()
        run(through, 0, 40)
        run(stopped, 0, stop)
        if way == "deepcopy":
            resumed = copy.deepcopy(stopped)
        elif way == "pickle":
            resumed = pickle.loads(pickle.dumps(stopped))
        else:
            file = io.BytesIO()
            torch.save(stopped.state_dict(), file)
            file.seek(0)
            resumed = build()
            resumed.load_state_dict(torch.load(file))
        run(stopped, stop, stop + 5)  # the copy shares nothing with it
        run(resumed, stop, 40)
        assert_same(tensors(resumed), tensors(through))


@pytest.mark.parametrize("include", [True, False])
def test_checkpoints_go_both_ways_with_ema_pytorch(include):
    arguments = {"include_online_model": include, "beta": 0.9, "power": 2.0, **FAST}
    theirs, ours = EMAPytorch(Network(), **arguments), EMA(Network(), **arguments)
    run(theirs, 0, 8)
    ours.load_state_dict(theirs.state_dict())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert int(ours.step) == 8
    assert bool(ours.initted)
    run(theirs, 8, 15)
    run(ours, 8, 15)
    for name, tensor in tensors(theirs.ema_model).items():
        if "num_" not in name:  # ema-pytorch never moves integer buffers
            torch.testing.assert_close(ours.ema_model.state_dict()[name], tensor)
    back = EMAPytorch(Network(), **arguments)
    back.load_state_dict(ours.state_dict())
    assert int(back.step) == 15
    assert_same(tensors(back.ema_model), tensors(ours.ema_model))


def test_checkpoints_of_ema_pytorch_0_2_load_and_ours_fit_its_shapes():
    # 0.2 keeps both counters with one dimension, and initted as a float.
    source = EMA(nn.Linear(2, 1), **FAST)
    run(source, 0, 4)
    old = source.state_dict() | {"initted": torch.Tensor([True]), "step": torch.tensor([4])}
    fresh = EMA(nn.Linear(2, 1), **FAST)
    fresh.load_state_dict(old)
    assert int(fresh.step) == 4
    assert bool(fresh.initted)
    assert {name: tuple(source.state_dict()[name].shape) for name in ("initted", "step")} == {
        "initted": (1,),
        "step": (1,),
    }
    assert set(old) == {
        "initted",
        "step",
        "ema_model.weight",
        "ema_model.bias",
        "online_model.weight",
        "online_model.bias",
    }


def test_incomplete_checkpoints_are_named():
    ema = EMA(nn.Linear(2, 1))
    state = ema.state_dict()
    del state["step"]
    state["stranger"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*step.*Unexpected key.*stranger|Unexpected.*Missing"):
        ema.load_state_dict(state)


def test_to_another_dtype_keeps_wide_accumulators():
    model = nn.Linear(2, 1, bias=False)
    ema = EMA(model, beta=0.999, min_value=0.999, **FAST)
    nn.init.constant_(model.weight, 1.0)
    ema.update()
    ema.update()
    ema.to(torch.bfloat16)
    nn.init.constant_(model.weight, 2.0)
    for _ in range(100):
        ema.update()
    ema.to(torch.float32)
    ema.update()
    assert ema.ema_model.weight.dtype == torch.float32
    assert ema.ema_model.weight[0, 0].item() == pytest.approx(2 - 0.999**101, abs=1e-5)
    assert not [key for key in ema.state_dict() if key.startswith("accumulator")]


def test_include_online_model_false_keeps_the_model_out():
    model = nn.Linear(2, 1)
    ema = EMA(model, include_online_model=False)
    assert ema.model is model
    assert set(ema.state_dict()) == {"initted", "step", "ema_model.weight", "ema_model.bias"}
    assert len(list(ema.parameters())) == 2


def test_gradients_and_training_are_untouched():
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    gradient = model.weight.grad.clone()
    ema = EMA(model, **FAST)
    assert ema.ema_model.weight.grad is None
    ema.update()
    assert torch.equal(model.weight.grad, gradient)
    assert model.weight.requires_grad


def test_importing_the_package_does_not_import_torch():
    code = """
import sys
sys.modules["torch"] = None  # so that importing it fails
import emacore, emacore.averaging.signals
try:
    emacore.EMA
except ImportError:
    pass
else:
    raise AssertionError("EMA came without torch")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "EMA" in dir(emacore)
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        _ = emacore.Nope


def test_default_settings_are_the_articles():
    assert (
        EMA(nn.Linear(1, 1)).schedule
        == InversePower()
        == InversePower(0.9999, 1.0, 2 / 3, 0.0, update_after_step=100, update_every=10)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beta", 0.6),
        ("update_after_step", 9),
        ("update_every", 4),
        ("inv_gamma", 3.0),
        ("power", 2.0),
        ("min_value", 0.4),
    ],
)
@pytest.mark.parametrize("at", [1, 3, 8, 15])
def test_settings_are_attributes_that_work_in_the_middle_of_a_run_as_in_the_articles_class(name, value, at):
    now = {"beta": 0.9, "inv_gamma": 1.0, "power": 0.8, "min_value": 0.0, "update_after_step": 2, "update_every": 1}
    model = nn.Linear(2, 1, dtype=torch.float64)
    ema, shadow, begun = EMA(model, **now), None, False
    for step in range(30):
        if step == at:
            setattr(ema, name, value)
            now[name] = value
        assert {key: getattr(ema, key) for key in now} == now
        change(model, step)
        ema.update()
        if step % now["update_every"] == 0:
            e = step - now["update_after_step"]
            if e <= 0 or not begun:
                shadow, begun = tensors(model), e > 0
            else:
                d = min(max(1 - (1 + e / now["inv_gamma"]) ** -now["power"], now["min_value"]), now["beta"])
                shadow = {key: d * shadow[key] + (1 - d) * x for key, x in tensors(model).items()}
        for key, tensor in tensors(ema.ema_model).items():
            torch.testing.assert_close(tensor, shadow[key], rtol=1e-9, atol=1e-9)


def test_settings_that_the_schedule_lacks_or_that_are_out_of_range_are_errors():
    ema = EMA(nn.Linear(2, 1), schedule=UniformAverage())
    assert not hasattr(ema, "power")
    with pytest.raises(AttributeError, match=r"UniformAverage.* has no setting power: replace ema.schedule"):
        _ = ema.power
    with pytest.raises(AttributeError, match="has no setting power"):
        ema.power = 2.0
    ema.update_every = 3
    assert ema.schedule == UniformAverage(update_every=3)
    with pytest.raises(ValueError, match="update_every must be a whole number"):
        ema.update_every = 0
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = ema.nope


def test_names_may_be_set_in_the_middle_of_a_run():
    model = Network()
    ema = EMA(model, beta=0.9, power=5.0, **FAST)
    run(ema, 0, 3)
    kept = tensors(ema.ema_model)
    ema.ignore_names = ["first.weight"]
    ema.ignore_startswith_names = {"norm."}
    ema.param_or_buffer_names_no_ema = ["last.bias"]
    run(ema, 3, 6)
    now = tensors(ema.ema_model)
    assert torch.equal(now["first.weight"], kept["first.weight"])
    assert torch.equal(now["norm.running_mean"], kept["norm.running_mean"])
    assert torch.equal(now["last.bias"], model.last.bias)
    assert not torch.equal(now["last.weight"], kept["last.weight"])
    with pytest.raises(ValueError, match="ignore_names: the model has no tensor 'nope'"):
        ema.ignore_names = ["nope"]
    assert ema.ignore_names == {"first.weight"}


def shares_itself(model):
    return model


def shares_a_part(model):
    return nn.Sequential(model[0], nn.Dropout(), nn.Linear(2, 2))


def shares_a_module_without_tensors(model):
    return nn.Sequential(nn.Linear(2, 2), model[1], nn.Linear(2, 2))


def shares_a_parameter(model):
    shadow = copy.deepcopy(model)
    shadow[0].weight = model[0].weight
    return shadow


def shares_memory(model):
    shadow = copy.deepcopy(model)
    shadow[2].weight.data = model[0].weight.data.t()
    return shadow


@pytest.mark.parametrize(
    "build",
    [shares_itself, shares_a_part, shares_a_module_without_tensors, shares_a_parameter, shares_memory],
)
@pytest.mark.parametrize("wrap", [lambda model: model, torch.compile], ids=["plain", "compiled"])
def test_a_shadow_that_shares_with_the_model_is_an_error_and_leaves_it_alone(build, wrap):
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="ema_model must be apart from the model"):
        EMA(wrap(model), build(model))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(part.training for part in model.modules())


def test_a_view_put_in_place_of_the_weights_is_followed_or_an_error():
    model = nn.Linear(2, 2)
    ema, many = EMA(model, beta=0.5, min_value=0.5, **FAST), Averages(model, {"a": Constant(0.5)})
    for _ in range(2):
        ema.update()
        many.update()
    model.weight.data = model.weight.data.t()
    for _ in range(40):
        ema.update()
        many.update()
    torch.testing.assert_close(ema.ema_model.weight, model.weight, rtol=1e-6, atol=1e-6, check_stride=False)
    torch.testing.assert_close(many.averages[0, :4].view(2, 2), model.weight.detach(), rtol=1e-6, atol=1e-6)
    model.weight.data, model.bias.data = model.weight.data[:1], model.bias.data[:1]
    with pytest.raises(RuntimeError, match="differ in shape"):
        ema.update()
    with pytest.raises(RuntimeError, match="differ in shape"):
        many.update()


@pytest.mark.parametrize("nested", [False, True])
def test_a_state_inside_average_parameters_is_that_of_the_training_model(nested):
    model = Network()
    ema = EMA(model, beta=0.9, power=3.0, **FAST)
    run(ema, 0, 6)
    holder = nn.ModuleDict({"ema": ema}) if nested else ema
    outside = tensors(holder)
    with ema.average_parameters():
        inside = holder.state_dict()
        assert_same(tensors(model), tensors(ema.ema_model))
    assert_same(inside, outside)
    run(ema, 6, 7)
    start = "ema.online_model." if nested else "online_model."
    for name, tensor in inside.items():
        assert torch.equal(tensor, outside[name]) or not name.startswith(start)


@pytest.mark.parametrize("build", [lambda m: EMA(m, **FAST), lambda m: Averages(m, {"a": Constant(0.5)})])
def test_loading_and_copying_inside_average_parameters_are_errors(build):
    average = build(nn.Linear(2, 1))
    average.update()
    state = average.state_dict()
    arguments = () if isinstance(average, EMA) else ("a",)
    with average.average_parameters(*arguments):
        with pytest.raises(RuntimeError, match=r"inside average_parameters"):
            average.load_state_dict(state)
        for copied in (copy.deepcopy, pickle.dumps):
            with pytest.raises(RuntimeError, match="copy it outside"):
                copied(average)
        with pytest.raises(RuntimeError, match="average the average"):
            average.to("cpu").update()
    average.load_state_dict(state)


@pytest.mark.parametrize("name", ["model", "online_model", "ema_model"])
def test_no_module_is_assigned_inside_average_parameters(name):
    ema = EMA(nn.Linear(2, 1), **FAST)
    with ema.average_parameters(), pytest.raises(RuntimeError, match=f"{name} inside average_parameters.* outside"):
        setattr(ema, name, nn.Linear(2, 1))
    setattr(ema, name, nn.Linear(2, 1))


@pytest.mark.parametrize("build", [lambda m: EMA(m, **FAST), lambda m: Averages(m, {"a": Constant(0.5)})])
def test_a_model_cast_or_swapped_inside_average_parameters_is_restored(build):
    model = nn.Linear(2, 1)
    average = build(model)
    average.update()
    nn.init.constant_(model.weight, 3.0)
    arguments = () if isinstance(average, EMA) else ("a",)
    with average.average_parameters(*arguments):
        assert model.weight[0, 0] != 3.0
        model.double()
        model.bias = nn.Parameter(torch.zeros(1))
    assert model.weight.tolist() == [[3.0, 3.0]]
    lost = pytest.raises(RuntimeError, match="'extra' were added.* change the model outside")
    with lost, average.average_parameters(*arguments):
        model.extra = nn.Parameter(torch.zeros(1))
    assert model.weight.tolist() == [[3.0, 3.0]]


def assign_a_state(shadow):
    shadow.load_state_dict(
        {name: torch.zeros_like(tensor) for name, tensor in shadow.state_dict().items()}, assign=True
    )


def replace_a_parameter(shadow):
    shadow[0].weight = nn.Parameter(torch.zeros(1, 1))


def replace_a_module(shadow):
    shadow[0] = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(shadow[0].weight)


@pytest.mark.parametrize("change_shadow", [assign_a_state, replace_a_parameter, replace_a_module])
def test_what_is_replaced_in_the_shadow_is_noticed(change_shadow):
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    ema = EMA(model, beta=0.5, min_value=0.5, **FAST)
    for _ in range(2):
        ema.update()
    change_shadow(ema.ema_model)
    nn.init.constant_(model[0].weight, 4.0)
    for _ in range(10):
        ema.update()
    assert ema.ema_model[0].weight.item() == 4 * (1 - 0.5**10)


class Masked(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("mask", torch.full((2, 2), value).triu(1), persistent=False)


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_buffers_that_are_not_finite_are_copied(value):
    model = Masked(value)
    ema, many = EMA(model, schedule=Constant(0.9)), Averages(model, {"a": Constant(0.9)})
    for step in range(5):
        nn.init.constant_(model.linear.weight, float(step))
        if step == 4:
            model.mask.fill_(7.0)  # an observer's range has seen its first values
        ema.update()
        many.update()
        shadow = copy.deepcopy(model)
        many.copy_to(shadow, "a")
        for found in (ema.ema_model, shadow):
            torch.testing.assert_close(found.mask, model.mask, equal_nan=True)
            assert found.linear.weight.isfinite().all()


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_the_singular_vectors_of_spectral_normalisation_are_copied(norm):
    torch.manual_seed(0)
    model, shadow = (nn.Sequential(norm(nn.Linear(8, 8))) for _ in range(2))
    ema, many = EMA(model, schedule=Constant(0.99)), Averages(model, {"a": Constant(0.99)})
    for _ in range(100):
        model(torch.randn(1, 8))
        weight = next(p for name, p in model.named_parameters() if "orig" in name)
        weight.data.add_(0.3 * torch.randn(8, 8))
        ema.update()
        many.update()
    many.copy_to(shadow, "a")
    vectors = dict(model.named_buffers())
    assert len(vectors) == 2
    for found in (ema.ema_model, shadow):
        for name, tensor in found.named_buffers():
            assert torch.equal(tensor, vectors[name])
    name = next(name for name, _ in model.named_parameters() if "orig" in name)
    assert not torch.equal(ema.ema_model.get_parameter(name), model.get_parameter(name))


class Cached(nn.Module):
    """Caches that grow, come into being and are shared at a forward pass, as rotary embeddings keep them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("positions", torch.arange(2))
        self.register_buffer("angles", None, persistent=False)
        self.register_buffer("grid", torch.zeros(1).expand(4))
        self.register_buffer("edges", torch.eye(2).to_sparse())

    def forward(self, x):
        if len(x) > len(self.positions):
            self.positions = torch.arange(len(x))
        if self.angles is None or len(self.angles) != len(x):
            self.angles = torch.arange(float(len(x)))
            self.register_buffer("again", self.angles, persistent=False)
        return self.linear(x) * self.angles[:, None]


def each_average(model, **arguments):
    """An EMA and an Averages of one module, and how to read each of them as a module like it."""
    ema, many = EMA(model, schedule=Constant(0.5), **arguments), Averages(model, {"a": Constant(0.5)}, **arguments)

    def shadows():
        other = copy.deepcopy(model)
        many.copy_to(other, "a")
        return ema.ema_model, other

    return ema, many, shadows


@pytest.mark.parametrize("arguments", [{}, {"buffers": "copy"}, {"buffers": lambda name, tensor: "copy"}])
def test_copied_buffers_may_come_into_being_grow_and_be_shared(arguments):
    model = Cached()
    ema, many, shadows = each_average(model, **arguments)
    for length in (1, 5, 5, 3, 8):
        model(torch.randn(length, 2))
        nn.init.constant_(model.linear.weight, float(length))
        for swapped in (ema.average_parameters(), many.average_parameters("a")):
            with swapped:
                model(torch.randn(length + 1, 2))  # a cache may grow inside, too
        assert model.linear.weight.unique().tolist() == [length]
        ema.update()
        many.update()
        for shadow in shadows():
            for name, buffer in model.named_buffers(remove_duplicate=False):
                found = shadow.get_buffer(name)
                assert torch.equal(found.to_dense(), buffer.to_dense()), name
            assert shadow(torch.randn(length, 2)).isfinite().all()
    assert "angles" not in ema.state_dict()


def test_a_copied_buffer_that_becomes_a_parameter_is_averaged():
    model = nn.Linear(1, 1)
    model.register_buffer("mask", torch.ones(1))
    ema = EMA(model, schedule=Constant(0.5))
    for _ in range(4):
        ema.update()
    del model.mask
    model.mask = nn.Parameter(torch.ones(1))
    for value in (1.0, 3.0, 4.0):
        nn.init.constant_(model.mask, value)
        ema.update()
    assert ema.ema_model.mask.item() == 3.0


@pytest.mark.parametrize("names", [{"ignore_names": ["positions"]}, {"ignore_startswith_names": ["pos"]}])
def test_ignored_names_may_grow_and_vanish(names):
    model = nn.Linear(2, 2)
    model.register_buffer("positions", torch.zeros(2))
    ema = EMA(model, schedule=Constant(0.5), **names)
    ema.update()
    model.positions = torch.zeros(5)
    ema.update()
    with ema.average_parameters():
        assert len(model.positions) == 5
    del model.positions
    ema.update()
    assert len(ema.ema_model.positions) == 2
    model.register_buffer("positions", None)
    assert EMA(model, **names) is not None  # it has a place, if no tensor


def test_an_averaged_buffer_that_grows_is_an_error_with_a_way_out():
    model = nn.Linear(2, 2)
    model.register_buffer("mean", torch.zeros(2))
    for kept in (EMA(model, **FAST), Averages(model, {"a": Constant(0.5)})):
        kept.update()
        model.mean = torch.zeros(5)
        with pytest.raises(RuntimeError, match=r"'mean'.* differ in shape: .*buffers= say \"copy\""):
            kept.update()
        model.mean = torch.zeros(2)
        kept.update()


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_update_bn_recomputes_the_shadows_statistics_and_leaves_the_model_alone(include, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).to(dtype)
    ema = EMA(model, schedule=Constant(0.9), include_online_model=include)
    batches = [torch.randn(64, 4).to(dtype) + 5 for _ in range(4)]
    for batch in batches:
        model(batch)
        nn.init.normal_(model[0].weight)
        ema.update()
    before, expected = tensors(model), copy.deepcopy(ema.ema_model)
    update_bn(batches, expected)
    update_bn(batches, ema)
    assert_same(tensors(ema.ema_model), tensors(expected))
    assert_same(tensors(model), before)
    assert model[1].momentum == ema.ema_model[1].momentum == 0.1
    assert not any(part.training for part in ema.ema_model.modules())
    statistics = tensors(ema.ema_model)["1.running_mean"].float()
    ema.update()  # half precision forgets nothing of it
    torch.testing.assert_close(
        tensors(ema.ema_model)["1.running_mean"].float(),
        0.9 * statistics + 0.1 * model[1].running_mean.float(),
        rtol=1e-2,
        atol=1e-2,
    )


def load(shadow, value):
    shadow.load_state_dict({"weight": value})


def load_by_assigning(shadow, value):
    shadow.load_state_dict({"weight": value}, assign=True)


def write_data(shadow, value):
    shadow.weight.data.copy_(value)


@pytest.mark.parametrize("write", [load, load_by_assigning, write_data])
@pytest.mark.parametrize(
    ("dtype", "wide"), [(torch.bfloat16, None), (torch.float16, None), (torch.float32, torch.float64)]
)
def test_a_write_into_the_shadow_stays_in_any_precision(dtype, wide, write):
    model = nn.Linear(1, 2, bias=False).to(dtype)
    nn.init.ones_(model.weight)
    ema = EMA(model, schedule=Constant(0.5), accumulator_dtype=wide)
    ema.update()
    ema.update()
    write(ema.ema_model, torch.full((2, 1), 100.0, dtype=dtype))
    assert ema.state_dict()["accumulator.weight"].unique().tolist() == [100.0]
    ema.update()
    assert ema.ema_model.weight.unique().tolist() == [50.5]
    write(ema.ema_model, torch.full((2, 1), 9.0, dtype=dtype))
    assert ema.double().ema_model.weight.unique().tolist() == [9.0]


def test_extra_state_and_listed_attributes_follow_and_others_are_told_once():
    class Lora(nn.Linear):
        def __init__(self):
            super().__init__(2, 2, bias=False)
            self.scaling, self.state = {"default": 0.0}, {"n": 0}

        def forward(self, x):
            return super().forward(x) * self.scaling["default"]

        def get_extra_state(self):
            return self.state

        def set_extra_state(self, state):
            self.state = state

    model = Lora()
    ema, many, _ = each_average(model)
    model.scaling["default"], model.state["n"] = 3.0, 7
    for _ in range(3):
        ema.update()
        many.update()
    other = Lora()
    many.copy_to(other, "a")
    for found in (ema.ema_model, other):
        assert (found.scaling, found.state) == ({"default": 3.0}, {"n": 7})
        assert found.state is not model.state
    assert torch.equal(ema(torch.ones(1, 2)), model(torch.ones(1, 2)))
    plain = nn.Sequential(nn.LayerNorm(2))
    ema = EMA(plain, **FAST)
    plain[0].eps = 0.5
    with pytest.warns(UserWarning, match="'0.eps' changed"):
        ema.update()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_call_with_weights_that_are_not_finite_is_taken_skipped_or_an_error(value, at, dtype):
    found = {}
    for choice in ("take", "skip", "raise"):
        model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2)).to(dtype)
        nn.init.zeros_(model[0].weight)
        ema, many, shadows = each_average(model, on_nonfinite=choice)
        for step in range(8):
            nn.init.constant_(model[0].weight, value if step == at else float(step))
            for kept in (ema, many):
                if step == at and choice == "raise":
                    with pytest.raises(RuntimeError, match=f"call {at}: .*not finite; the averages? ha.* not taken"):
                        kept.update()
                    assert int(kept.step) == at
                    kept.step += 1
                elif step == at and choice == "skip":
                    with pytest.warns(UserWarning, match=f"call {at}: .*not finite: the averages? skips? it"):
                        kept.update()
                else:
                    kept.update()
            assert ema.nonfinite_calls == many.nonfinite_calls == (choice == "skip" and step >= at)
        found[choice] = [shadow[0].weight.float().unique().tolist() for shadow in shadows()]
        if choice == "skip":
            assert pickle.loads(pickle.dumps(ema)).nonfinite_calls == 1
            again = EMA(copy.deepcopy(model), schedule=Constant(0.5), on_nonfinite="skip")
            again.load_state_dict(ema.state_dict())
            assert again.nonfinite_calls == 1
    expected = None
    for step in (step for step in range(8) if step != at):
        expected = float(step) if expected is None else (expected + step) / 2
    assert found["skip"] == [[pytest.approx(expected, rel=1e-2)]] * 2
    if at == 5:
        assert found["raise"] == found["skip"]
        assert not any(values[0] < torch.inf for values in found["take"])
    with pytest.raises(ValueError, match="on_nonfinite must be one of take, skip, raise; got 'drop'"):
        EMA(nn.Linear(1, 1), on_nonfinite="drop")


def test_the_other_methods_do_what_they_do_in_ema_pytorch():
    arguments = {"beta": 0.9, "power": 2.0, **FAST}
    model = Network()
    ours = EMA(model, lambda: Network(), forward_method_names=("extra_repr", "get_parameter"), **arguments)
    theirs = EMAPytorch(copy.deepcopy(model), Network, **arguments)

    def same():
        for one, other in ((ours.ema_model, theirs.ema_model), (ours.model, theirs.model)):
            for name, tensor in tensors(one).items():
                if "num_" not in name:
                    torch.testing.assert_close(tensor, other.state_dict()[name])

    run(theirs, 0, 4)  # which begins one call earlier than the article's version
    ours.load_state_dict(theirs.state_dict())
    for method, argument in (
        ("update_model_with_ema", [0.3]),
        ("update_model_with_ema", []),
        ("copy_params_from_ema_to_model", []),
    ):
        for ema in (ours, theirs):
            change(ema.model, 9)
            getattr(ema, method)(*argument)
        same()
    for ema in (ours, theirs):
        change(ema.model, 11)
        ema.update_moving_average(ema.ema_model, ema.model)
    same()
    pair = [Network() for _ in range(4)]
    for seed, module in enumerate(pair):
        change(module, seed // 2)
    ours.update_moving_average(pair[0], pair[2], 0.25)
    theirs.update_moving_average(pair[1], pair[3], 0.25)
    assert torch.allclose(pair[0].first.weight, pair[1].first.weight)
    for ema in (ours, theirs):
        change(ema.model, 12)
        ema.copy_params_from_model_to_ema()
        ema.restore_ema_model_device()
    same()
    assert int(ours.step) == 4
    for iterate in ("get_params_iter", "get_buffers_iter"):
        expected = [name for name, _ in getattr(theirs, iterate)(theirs.model)]
        assert [name for name, _ in getattr(ours, iterate)(model)] == expected
    x = torch.randn(5, 3)
    theirs.ema_model.eval()  # which it leaves to others
    given = [ema.forward_eval(x) for ema in (ours, theirs)]
    torch.testing.assert_close(*given)
    assert not given[0].requires_grad
    for ema in (ours, theirs):
        optimizer = torch.optim.SGD(ema.model.parameters(), lr=0.1)
        ema.add_to_optimizer_post_step_hook(optimizer)
        optimizer.step()
        assert int(ema.step) == 5
    assert ours.get_parameter is not None
    assert ours.extra_repr() == ours.ema_model.extra_repr()
    with pytest.raises(ValueError, match="Network has no method 'generate'"):
        EMA(model, forward_method_names=["generate"])


def test_a_schedule_that_changed_between_two_runs_is_told():
    ema = EMA(nn.Linear(2, 1), schedule=Constant(0.9))
    run(ema, 0, 3)
    file = io.BytesIO()
    torch.save({"ema": ema.state_dict()}, file)
    file.seek(0)
    state = torch.load(file)["ema"]
    for arguments in ({}, {"strict_schedule": False}):
        other = EMA(nn.Linear(2, 1), schedule=Constant(0.8), **arguments)
        before = tensors(other.ema_model)
        if not arguments:
            with pytest.raises(ValueError, match=r"saved under .*0\.9.* has .*0\.8.*strict_schedule=False"):
                nn.ModuleDict({"ema": other}).load_state_dict(nn.ModuleDict({"ema": ema}).state_dict())
            with pytest.raises(ValueError, match="saved under"):
                other.load_state_dict(state)
            assert_same(tensors(other.ema_model), before)
            other.load_state_dict(state, strict_schedule=False)
        else:
            other.load_state_dict(state)
        assert int(other.step) == 3
        assert_same(tensors(other.ema_model), tensors(ema.ema_model))
    many = Averages(nn.Linear(2, 1), {"a": Constant(0.9)})
    other = Averages(many.module, {"a": Constant(0.5)})
    for step in range(40):
        change(many.module, step)
        many.update()
    with pytest.raises(ValueError, match="of the schedules.*strict_schedule=False"):
        other.load_state_dict(many.state_dict())
    other.load_state_dict(many.state_dict(), strict_schedule=False)
    torch.testing.assert_close(other.averages, many.averages)


def scripted():
    return torch.jit.script(nn.Linear(2, 2))


def of_a_scripted_part():
    return nn.Sequential(nn.ReLU(), torch.jit.script(nn.Linear(2, 2)))


def of_a_sparse_parameter():
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.eye(2).to_sparse())
    return model


def of_an_expanded_parameter():
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.zeros(1).expand(2, 2))
    return model


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (nn.ReLU, ValueError, "ReLU has no parameters and no buffers.*build its layers first"),
        (scripted, TypeError, "it is a ScriptModule .*average the module from which it was made"),
        (of_a_scripted_part, TypeError, "its part '1' is a ScriptModule"),
        (of_a_sparse_parameter, ValueError, "parameter 'weight' is of layout torch.sparse_coo.*make it dense"),
        (of_an_expanded_parameter, ValueError, "parameter 'weight' is expanded.*clone"),
    ],
)
def test_what_cannot_be_averaged_is_named_with_the_cure(build, error, message):
    with pytest.raises(error, match=message):
        EMA(build())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_built_cast_moved_and_read_inside_inference_mode_goes_on_outside(dtype):
    model = Network().to(dtype)
    with torch.inference_mode():
        ema, many, shadows = each_average(model)
        ema.to(torch.float64).to(dtype)
        ema.update()
        many.update()
    for _ in range(40):  # more than wait
        change(model, 3)
        ema.update()
        many.update()
        with torch.inference_mode(), ema.average_parameters():
            pass
        with torch.inference_mode(), many.average_parameters("a"):
            pass
    for name, tensor in tensors(shadows()[1]).items():
        torch.testing.assert_close(tensor, tensors(ema.ema_model)[name])
    with torch.inference_mode():
        ema.ema_model.to(torch.float64)
    with pytest.raises(RuntimeError, match=r"the average's '.*' was made inside torch.inference_mode\(\)"):
        ema.update()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_go_through_torchs_distributed_checkpoints(dtype):
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    ema = EMA(Network().to(dtype), schedule=Constant(0.9))
    run(ema, 0, 4)
    other = EMA(Network().to(dtype), schedule=Constant(0.9))
    set_model_state_dict(other, get_model_state_dict(ema))
    assert_same(tensors(other), tensors(ema))
    set_model_state_dict(other.ema_model, get_model_state_dict(ema.ema_model))


def cast_a_part(model):
    model[1].double()


def cast_to_the_same_size(model):
    model[1].to(torch.float16)


def move_a_bias(model):
    model[1].bias.data = model[1].bias.data.to(torch.float64)


@pytest.mark.parametrize("in_average", [False, True])
@pytest.mark.parametrize("cast", [cast_a_part, cast_to_the_same_size, move_a_bias])
def test_a_part_that_is_cast_mid_way_is_averaged_on_and_nothing_moves_twice(cast, in_average):
    dtype = torch.bfloat16 if cast is cast_to_the_same_size else torch.float32
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).to(dtype)
    ema = EMA(model, schedule=Constant(0.5), accumulator_dtype=dtype)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    for _ in range(3):
        ema.update()
    cast(ema.ema_model if in_average else model)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 8.0)
    for _ in range(2):
        ema.update()
    assert [parameter.item() for parameter in ema.ema_model.parameters()] == [6.0] * 4


def test_half_precision_alone_takes_twice_the_models_size_and_gives_the_same():
    def size(module):
        return sum(tensor.nbytes for tensor in module.state_dict().values())

    model = Network().bfloat16()
    model.again = model.first
    both, alone = EMA(model, schedule=Constant(0.9)), EMA(model, schedule=Constant(0.9), keep_half=False)
    for step in range(5):
        change(model, step)
        both.update()
        alone.update()
    assert alone.ema_model.first.weight.dtype == torch.float32
    assert alone.ema_model.again is alone.ema_model.first
    assert not alone._accumulators
    assert size(alone.ema_model) <= 2 * size(model)
    x = torch.randn(6, 3).bfloat16()
    assert torch.equal(alone(x), both(x))
    outside = tensors(model)
    with both.average_parameters():
        expected = tensors(model)
    with alone.average_parameters():
        assert_same(tensors(model), expected)
    assert_same(tensors(model), outside)
    # states go both ways, with nothing lost
    both.load_state_dict(alone.state_dict())
    alone.load_state_dict(both.state_dict())
    for step in range(5, 7):
        change(model, step)
        both.update()
        alone.update()
    assert torch.equal(alone.ema_model.last.weight, both.state_dict()["accumulator.last.weight"])


def test_memory_is_swapped_where_it_can_be_and_a_write_into_it_is_told():
    model = Network()
    ema = EMA(model, beta=0.9, power=3.0, **FAST)
    run(ema, 0, 6)
    before, averages = tensors(model), tensors(ema.ema_model)
    places = [p.data_ptr() for p in (*model.parameters(), *ema.ema_model.parameters())]
    count = len(list(model.parameters()))
    with ema.average_parameters(swap=True):
        assert [p.data_ptr() for p in model.parameters()] == places[count:]
        assert_same(tensors(model), averages)
        state = ema.state_dict()
        assert torch.equal(state["online_model.last.weight"], before["last.weight"])
        model(torch.randn(4, 3))  # which writes statistics
    assert [p.data_ptr() for p in (*model.parameters(), *ema.ema_model.parameters())] == places
    assert_same(tensors(model), before)
    assert_same(tensors(ema.ema_model), averages)
    with ema.average_parameters(swap=True):
        model.double()  # other memory: nothing to tell
    assert_same({name: t.to(before[name].dtype) for name, t in tensors(model).items()}, before)
    model.float()
    with pytest.raises(ZeroDivisionError), ema.average_parameters(swap=True):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match=r"'last\.bias' were written inside"), ema.average_parameters(swap=True):
        nn.init.zeros_(model.last.bias)
    assert_same(tensors(model), before)
    run(ema, 6, 8)


def test_settings_that_change_the_way_of_a_call_act_at_the_next_one():
    model = nn.Linear(1, 1, bias=False)
    ema = EMA(model, schedule=Constant(0.5))
    for _ in range(4):
        ema.update()
    assert ema._now.move, "calls are moves and nothing else"
    nn.init.constant_(model.weight, 4.0)
    ema.ema_model.weight.data.zero_()
    ema.schedule = Constant(0.25)
    ema.update()
    assert ema.ema_model.weight.item() == 3.0
    ema.update()
    model.weight.data.fill_(torch.nan)
    ema.on_nonfinite = "raise"
    with pytest.raises(RuntimeError, match="not finite"):
        ema.update()
    model.weight.data.fill_(4.0)
    ema.ignore_names = ["weight"]
    kept = ema.ema_model.weight.item()
    ema.update()
    assert ema.ema_model.weight.item() == kept
    ema.ignore_names, ema.on_nonfinite = [], "take"
    for _ in range(3):
        ema.update()
    ema.step = 0
    nn.init.constant_(model.weight, 5.0)
    ema.initted = False
    ema.update()
    assert ema.ema_model.weight.item() == 5.0
    with torch.no_grad():
        ema.update()
        assert not torch.is_grad_enabled()
    ema.update()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("share", [0.0, 0.25])
@pytest.mark.parametrize("every", [1, 3])
def test_the_average_is_fed_back_into_the_model(every, share):
    """Against a plain loop: train, average, and at every k-th call the model becomes its average in part."""
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    schedule = InversePower(0.9, update_after_step=2, update_every=2)
    ema = EMA(model, schedule=schedule, update_model_with_ema_every=every, update_model_with_ema_beta=share)
    weight, average = model.weight.detach().clone(), None
    for call, decay in enumerate(schedule.decays(12)):
        step = torch.randn(2, 2)
        with torch.no_grad():
            model.weight += step
        weight += step
        ema.update()
        average = weight.clone() if average is None or decay == 0 else average.lerp(weight, 1 - decay)
        if call > schedule.start and call % every == 0:
            weight = average.lerp(weight, share)
        torch.testing.assert_close(model.weight.detach(), weight)
        torch.testing.assert_close(ema.ema_model.weight, average)
    ema.update_model_with_ema(decay=0)
    torch.testing.assert_close(model.weight.detach(), average)
    with ema.average_parameters(), pytest.raises(RuntimeError, match="would average the average, or be undone"):
        ema.update_model_with_ema()


def test_feeding_back_takes_counters_and_leaves_what_the_average_ignores():
    model = Network().bfloat16()
    ema = EMA(model, schedule=Constant(0.5), ignore_names=["last.weight"])
    for step in range(3):
        change(model, step)
        ema.update()
    online = tensors(model)
    ema.update_model_with_ema()
    assert_same(tensors(model), tensors(ema.ema_model) | {"last.weight": online["last.weight"]})


def test_a_teacher_takes_the_averages_in_the_models_own_mode():
    model = Network()
    ema = EMA(model, schedule=Constant(0.5))
    for step in range(3):
        change(model, step)
        ema.update()
    x = torch.randn(5, 3)
    model.eval()
    assert torch.equal(torch.func.functional_call(model, ema.weights, (x,)), ema(x))
    model.train()
    statistics = {name: tensor.clone() for name, tensor in ema.weights.items()}
    taught = torch.func.functional_call(model, statistics, (x,))
    assert not torch.equal(taught, ema(x))
    assert not any(tensor.requires_grad for tensor in ema.weights.values())
    assert set(EMA(model, names=["last.weight"]).weights) == {"last.weight"}


@pytest.mark.parametrize("include", [True, False])
def test_another_shadow_or_model_takes_the_place_of_the_first(include):
    model, other, shadow = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for module, value in ((model, 1.0), (other, 3.0), (shadow, 7.0)):
        nn.init.constant_(module.weight, value)
    ema = EMA(model, schedule=Constant(0.5), include_online_model=include)
    for _ in range(3):
        ema.update()
    ema.model = other
    ema.update()
    assert ema.model is other
    assert ema.ema_model.weight.item() == 2.0
    ema.ema_model = shadow
    ema.update()
    assert (shadow.weight.item(), shadow.weight.requires_grad, shadow.training) == (5.0, False, False)
    with pytest.raises(ValueError, match="ema_model"):
        ema.ema_model = other
    with pytest.raises(TypeError, match="must be a module"):
        ema.model = None


def test_a_schedule_is_a_schedule_when_it_is_given_and_when_it_is_assigned():
    with pytest.raises(TypeError, match=r"must be a schedule, such as Constant\(beta=0\.999\), got 0\.99"):
        EMA(nn.Linear(1, 1), schedule=0.99)
    ema = EMA(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="must be a schedule"):
        ema.schedule = "Constant(0.9)"


def test_weights_that_are_gone_meanwhile_are_named():
    model = nn.Linear(1, 1)
    ema = EMA(model)
    model.to("meta")
    with pytest.raises(ValueError, match="'weight' is on the meta device"):
        ema.update()


@pytest.mark.parametrize("calls", [1, 20, 1500])
def test_feeding_back_that_is_asked_for_in_the_middle_of_a_run_begins_at_the_next_call(calls):
    model = nn.Linear(2, 1)
    ema = EMA(model, schedule=Constant(0.5))
    for _ in range(calls):
        ema.update()
    ema.update_model_with_ema_every, ema.update_model_with_ema_beta = 1, 0.25
    before = tensors(model)
    change(model, 1)
    now, average = model.weight.detach().clone(), before["weight"].lerp(model.weight.detach(), 0.5)
    ema.update()
    torch.testing.assert_close(model.weight.detach(), average.lerp(now, 0.25))
    ema.update_model_with_ema_every = None
    change(model, 2)
    now = model.weight.detach().clone()
    ema.update()
    assert torch.equal(model.weight, now)
    for name, value in {
        "update_model_with_ema_every": 0,
        "update_model_with_ema_beta": 2,
        "forward_method_names": ["nope"],
        "step": -1,
    }.items():
        with pytest.raises(ValueError, match=name):
            setattr(ema, name, value)


def test_what_would_have_no_effect_cannot_be_assigned():
    ema = EMA(nn.Linear(2, 1).half(), schedule=Constant(0.9))
    ema.update()
    settings = inspect.signature(EMA).parameters.keys() - {"model", "ema_model", "schedule"}
    followed = {name for name in settings if hasattr(EMA, name) and name != "buffers"} | {"strict_schedule"}
    for name in settings - followed - {f.name for f in fields(InversePower)}:
        with pytest.raises(AttributeError, match=f"{name} is chosen when the average is built"):
            setattr(ema, name, None)
    ema.update()
    again = copy.deepcopy(ema)
    again.update()
    assert again.step == 3


@pytest.mark.parametrize("device", ["meta", "nowhere", "cuda:99", 5])
def test_a_device_that_keeps_nothing_is_told_as_that(device):
    with pytest.raises(ValueError, match="device"):
        EMA(nn.Linear(2, 1), device=device)


def test_a_module_without_values_takes_no_averages():
    ema = EMA(nn.Linear(2, 1))
    for module, why in ((nn.LazyLinear(1), "is lazy"), (nn.Linear(2, 1, device="meta"), "is on the meta device")):
        with pytest.raises(ValueError, match=f"module: 'weight' {why}"):
            ema.copy_to(module)
        with pytest.raises(ValueError, match=f"module: 'weight' {why}"):
            Averages(nn.Linear(2, 1), {"a": Constant(0.9)}).copy_to(module, "a")


def test_what_another_writes_into_a_safetensors_file_is_no_step(tmp_path):
    model = nn.Linear(2, 1)
    ema = EMA(model, schedule=Constant(0.9))
    for about in (
        {"step": "last", "initted": "1"},
        {"step": "-4", "initted": "1"},
        {"step": "4", "initted": "yes"},
        {},
    ):
        save_file(model.state_dict(), tmp_path / "model.safetensors", about)
        ema.load(tmp_path / "model.safetensors")
        assert ema.step == 0
    save_file(model.state_dict(), tmp_path / "model.safetensors", {"step": "4", "initted": "1"})
    ema.load(tmp_path / "model.safetensors")
    assert ema.step == 4
