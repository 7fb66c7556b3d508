import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from ema_pytorch import EMA as EMAPytorch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

import emacore
from emacore import EMA, Averages, averaging_function
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
        nn.init.constant_(model.weight, 1.0)
        ema = EMA(model, beta=0.9999, min_value=0.9999, accumulator_dtype=dtype, **FAST)
        ema.update()
        ema.update()
        nn.init.constant_(model.weight, 2.0)
        for _ in range(150_000):
            ema.update()
        gaps[dtype] = 2 - ema.ema_model.weight.item()
    assert gaps[torch.float32] > 1e-4
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
    fresh = EMA(Network(), **FAST)
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


@pytest.mark.parametrize(
    "schedule", [UniformAverage(update_every=2), BiasCorrected(0.8, update_after_step=3)], ids=repr
)
def test_averaging_function_in_torchs_averaged_model(schedule):
    model = Network()
    theirs = AveragedModel(model, avg_fn=averaging_function(schedule), use_buffers=True)
    ours = EMA(model, schedule=schedule)
    for step in range(15):
        change(model, step)
        theirs.update_parameters(model)
        ours.update()
    for name, tensor in tensors(theirs.module).items():
        torch.testing.assert_close(tensor, ours.ema_model.state_dict()[name])


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
import sys, emacore, emacore.averaging.signals
assert "torch" not in sys.modules
emacore.EMA
assert "torch" in sys.modules
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_averaging_function_refuses_an_average_that_would_not_move(dtype):
    model = nn.Linear(1, 1).to(dtype)
    theirs = AveragedModel(model, avg_fn=averaging_function(Constant(0.9999)))
    theirs.update_parameters(model)  # a copy
    with pytest.raises(TypeError, match=f"kept in {dtype} .*use emacore.EMA"):
        theirs.update_parameters(model)
    wide = AveragedModel(copy.deepcopy(model).float(), avg_fn=averaging_function(Constant(0.5)))
    nn.init.constant_(model.weight, 1.0)
    wide.update_parameters(model)
    nn.init.constant_(model.weight, 2.0)
    wide.update_parameters(model)
    assert wide.module.weight.item() == 1.5


def test_what_a_quantisation_observer_keeps_is_copied():
    model = nn.Sequential(nn.Linear(2, 2), torch.ao.quantization.FakeQuantize())
    model(torch.ones(1, 2))  # its range is finite by now
    ema = EMA(model, schedule=Constant(0.9))
    for step in range(3):
        model[1].scale.fill_(step + 1.0)
        model(torch.full((1, 2), float(step)))
        ema.update()
    for name, tensor in ema.ema_model[1].named_buffers():
        assert torch.equal(tensor, model[1].get_buffer(name)), name


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
    with ema.average_parameters(), pytest.raises(RuntimeError, match="would be undone"):
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
