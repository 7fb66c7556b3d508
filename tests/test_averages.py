import copy
import io
import pickle

import pytest
import torch
from torch import nn

from emacore import EMA, Averages
from emacore.averaging.families import Constant, InversePower, PowerFunction, UniformAverage
from tests.helpers import Network, assert_same, change, tensors

SCHEDULES = {
    "article": InversePower(0.99, update_after_step=5, update_every=1),
    "skipping": InversePower(0.9, update_after_step=3, update_every=4),
    "frozen": Constant(1.0),
    "constant": Constant(0.7),
    "swa": UniformAverage(update_after_step=10, update_every=3),
    "edm2": PowerFunction(sigma_rel=0.2),
}
# All move at every call after the first, so that weights wait for each other.
WAITING = {"quick": Constant(0.5), "slow": Constant(0.999), "mean": UniformAverage(), "constant": Constant(0.7)}


def run(averages, first, last):
    for step in range(first, last):
        change(averages.module, step)
        averages.update()


def shadows(averages):
    found = {}
    for name in averages.schedules:
        shadow = copy.deepcopy(averages.module)
        averages.copy_to(shadow, name)
        found[name] = tensors(shadow)
    return found


def beside_the_class(model, schedules):
    """The averages of a module and an EMA for each, and a function that changes the module and updates all of them."""
    averages = Averages(model, schedules)
    emas = {name: EMA(model, schedule=schedule) for name, schedule in schedules.items()}

    def call(step):
        change(model, step)
        averages.update()
        for ema in emas.values():
            ema.update()

    return averages, emas, call


def assert_of_the_class(averages, emas):
    for name, found in shadows(averages).items():
        expected = tensors(emas[name].ema_model)
        for key, tensor in found.items():
            torch.testing.assert_close(tensor, expected[key], msg=lambda text, at=f"{name} {key}": f"{at}: {text}")


@pytest.mark.parametrize("calls", [1, 4, 30])
def test_each_average_is_that_of_the_class(calls):
    averages, emas, call = beside_the_class(Network(), SCHEDULES)
    for step in range(calls):
        call(step)
    assert_of_the_class(averages, emas)


@pytest.mark.parametrize("waiting", [True, False])
@pytest.mark.parametrize("build", [Network, lambda: Network().double()])
def test_each_is_that_of_the_class_whether_weights_wait_or_not(build, waiting, monkeypatch):
    if not waiting:
        monkeypatch.setattr("emacore.averages._WAITING_BYTES", 0)
    averages, emas, call = beside_the_class(build(), WAITING)
    for step in range(1100):  # beyond a block of decays
        call(step)
        if step in (1, 20, 31, 40):
            assert_of_the_class(averages, emas)
    assert_of_the_class(averages, emas)
    assert len(averages.state_dict()["waiting"]["calls"]) == (1100 % 32 if waiting else 0)


@pytest.mark.parametrize(
    "schedules",
    [
        {"each": Constant(0.7), "fourth": Constant(0.9, update_every=4)},
        {
            "late": InversePower(0.9, update_after_step=40, update_every=5),
            "early": InversePower(0.99, update_after_step=2, update_every=5),
        },
    ],
    ids=["some skip", "some copy, then all skip"],
)
def test_weights_wait_among_copies_and_skips(schedules):
    averages, emas, call = beside_the_class(Network(), schedules)
    for step in range(200):
        call(step)
        if step % 13 == 0:
            assert_of_the_class(averages, emas)
    assert_of_the_class(averages, emas)


def test_a_module_that_becomes_another_while_weights_wait():
    model = nn.Linear(4, 3)
    averages, emas, call = beside_the_class(model, WAITING)
    for step in range(10):
        call(step)
    model.weight = nn.Parameter(torch.full((3, 4), 7.0))
    for step in range(10, 20):
        call(step)
    assert_of_the_class(averages, emas)
    model.weight.data = torch.full((4, 3), 2.0).t()  # not as it lies in memory
    for step in range(20, 30):
        call(step)
    assert_of_the_class(averages, emas)


@pytest.mark.parametrize("waiting", [True, False])
def test_reading_changes_nothing_and_what_was_read_stays(waiting, monkeypatch):
    if not waiting:
        monkeypatch.setattr("emacore.averages._WAITING_BYTES", 0)
    whole, read = Averages(nn.Linear(3, 2), WAITING), Averages(nn.Linear(3, 2), WAITING)
    run(whole, 0, 75)
    for step in range(75):
        run(read, step, step + 1)
        before = read.averages
        kept = before.clone()
        shadows(read)
        read.state_dict()
        with read.average_parameters("mean"):
            pass
    assert torch.equal(read.averages, whole.averages)
    run(read, 75, 76)
    assert torch.equal(before, kept)
    assert not torch.equal(read.averages, kept)


def test_only_so_much_waits():
    model = nn.Linear(90, 90)  # 32 calls of its weights take a little less than 1 MiB
    assert 32 * 4 * sum(p.numel() for p in model.parameters()) == 2**20 - 256
    for inputs, count, waits in ((90, 1, True), (91, 1, False), (91, 2, True)):
        averages = Averages(nn.Linear(inputs, 90), {f"{n}": Constant(0.9) for n in range(count)})
        run(averages, 0, 4)
        assert bool(averages.state_dict()["waiting"]["calls"]) == waits


def test_a_tensor_whose_memory_holds_the_negative():
    model = nn.Linear(1, 1, bias=False)
    averages = Averages(model, {"half": Constant(0.5)})
    values = torch.tensor([[1 + 2j]])
    model.weight.data = values.conj().imag  # -2, of which the memory holds 2
    assert model.weight.is_neg()
    for _ in range(3):
        averages.update()
    assert averages.averages.tolist() == [[-2.0]]


def test_half_double_and_complex_tensors():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.low = nn.Parameter(torch.zeros(3, dtype=torch.float16))
            self.wide = nn.Parameter(torch.zeros(2, dtype=torch.float64))
            self.complex = nn.Parameter(torch.zeros(2, dtype=torch.complex64))

    model = Mixed()
    averages = Averages(model, {"mean": UniformAverage()})
    assert averages.averages.dtype == torch.float64
    for value in (1.0, 2.0, 6.0):
        with torch.no_grad():
            model.low.fill_(value)
            model.wide.fill_(value)
            model.complex.fill_(value * (1 + 2j))
        averages.update()
    other = Mixed()
    averages.copy_to(other, "mean")
    assert other.low.tolist() == [3.0] * 3
    assert other.wide.tolist() == pytest.approx([3.0] * 2, rel=1e-12)
    assert other.complex.tolist() == [3 + 6j] * 2


def test_what_is_not_finite_is_forgotten_by_a_copy_and_by_a_skip():
    model = nn.Linear(1, 1, bias=False)
    averages = Averages(model, {"copy": Constant(0.0), "skip": Constant(0.5, update_every=2), "half": Constant(0.5)})
    for value in (1.0, float("nan"), 3.0):
        nn.init.constant_(model.weight, value)
        averages.update()
    assert averages.averages[:2].flatten().tolist() == [3.0, 2.0]
    assert averages.averages[2].isnan()


def test_parameters_come_and_go_even_after_an_error():
    model = Network()
    averages = Averages(model, SCHEDULES)
    run(averages, 0, 12)
    before, expected = tensors(model), shadows(averages)["constant"]
    with averages.average_parameters("constant") as inside:
        assert inside is model
        assert_same(tensors(model), expected)
        with pytest.raises(RuntimeError, match="outside"):
            averages.update()
        with pytest.raises(RuntimeError, match="already open"), averages.average_parameters("swa"):
            pass
    assert_same(tensors(model), before)
    with pytest.raises(ZeroDivisionError), averages.average_parameters("constant"):
        raise ZeroDivisionError
    assert_same(tensors(model), before)
    averages.update()


@pytest.mark.parametrize("way", ["state_dict", "pickle", "deepcopy"])
@pytest.mark.parametrize("schedules", [SCHEDULES, WAITING])
@pytest.mark.parametrize("stop", [9, 32, 50])
def test_going_on_is_not_having_stopped(way, schedules, stop):
    whole = Averages(Network(), schedules)
    run(whole, 0, 75)
    first = Averages(Network(), schedules)
    run(first, 0, stop)
    if way == "pickle":
        second = pickle.loads(pickle.dumps(first))
    elif way == "deepcopy":
        second = copy.deepcopy(first)
    else:
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = Averages(Network(), schedules)
        run(second, 0, 3)
        second.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(second.averages, first.averages, rtol=0, atol=0)
    run(second, stop, 75)
    torch.testing.assert_close(second.averages, whole.averages, rtol=0, atol=0)
    for name, found in shadows(second).items():
        assert_same(found, shadows(whole)[name])


def test_a_state_with_waiting_weights_goes_on_where_none_wait(monkeypatch):
    whole = Averages(nn.Linear(3, 2), WAITING)
    run(whole, 0, 1100)
    state = whole.state_dict()
    assert state["waiting"]["calls"] == list(range(1088, 1100))
    monkeypatch.setattr("emacore.averages._WAITING_BYTES", 0)
    other = Averages(nn.Linear(3, 2), WAITING)
    other.load_state_dict(state)
    run(other, 1100, 1120)
    run(whole, 1100, 1120)
    torch.testing.assert_close(other.averages, whole.averages)


def test_a_state_from_before_weights_waited_goes_on():
    whole, read = Averages(nn.Linear(3, 2), WAITING), Averages(nn.Linear(3, 2), WAITING)
    run(whole, 0, 40)
    state = whole.state_dict()
    del state["waiting"]
    state["averages"] = whole.averages
    run(read, 0, 7)
    read.load_state_dict(state)
    assert torch.equal(read.averages, whole.averages)
    run(read, 40, 60)
    run(whole, 40, 60)
    torch.testing.assert_close(read.averages, whole.averages)


def test_a_state_of_something_else_is_refused():
    averages = Averages(nn.Linear(2, 2), {"a": Constant(0.5)})
    with pytest.raises(ValueError, match="of the schedules"):
        averages.load_state_dict(Averages(nn.Linear(2, 2), {"a": Constant(0.6)}).state_dict())
    with pytest.raises(ValueError, match="averages of 12 weights, this module has 6"):
        averages.load_state_dict(Averages(nn.Linear(3, 3), {"a": Constant(0.5)}).state_dict())
    for state in (None, 5, {}, {"a": 1}, EMA(nn.Linear(2, 2)).state_dict()):
        with pytest.raises(ValueError, match=r"the state is none of Averages\.state_dict\(\)"):
            averages.load_state_dict(state)


def test_a_replaced_tensor_is_followed_and_a_changed_module_told():
    model = nn.Linear(2, 1)
    averages = Averages(model, {"copy": Constant(0.0), "half": Constant(0.5)})
    averages.update()
    model.weight = nn.Parameter(torch.full((1, 2), 7.0))
    averages.update()
    assert averages.averages[0, :2].tolist() == [7.0, 7.0]
    model.extra = nn.Parameter(torch.zeros(1))
    with pytest.raises(RuntimeError, match="has 'extra' more"):
        averages.update()


def test_tied_weights_are_averaged_once_and_wrappers_looked_through():
    model = Network()
    model.again = model.first
    averages = Averages(torch.nn.DataParallel(model), {"a": Constant(0.5)})
    assert averages.averages.shape == (1, sum(p.numel() for p in model.parameters()) + 8)
    averages.update()
    target = copy.deepcopy(model)
    averages.copy_to(target, "a")
    assert target.again.weight is target.first.weight


def test_wrong_arguments_are_named():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="at least one schedule"):
        Averages(model, {})
    with pytest.raises(TypeError, match="'a' must be a schedule"):
        Averages(model, {"a": 0.9})
    for unnamed in (Constant(0.9), [Constant(0.9)], None):
        with pytest.raises(TypeError, match="schedules must be given by name, such as"):
            Averages(model, unnamed)
    with pytest.raises(ValueError, match="no floating-point tensor"):
        Averages(nn.ReLU(), {"a": Constant(0.9)})
    with pytest.raises(ValueError, match="meta device"):
        Averages(nn.Linear(2, 1, device="meta"), {"a": Constant(0.9)})
    with pytest.raises(KeyError, match="no average 'b'; there are 'a'"):
        Averages(model, {"a": Constant(0.9)}).copy_to(model, "b")
    with pytest.raises(RuntimeError, match="differ in shape"):
        Averages(model, {"a": Constant(0.9)}).copy_to(nn.Linear(3, 1), "a")


def test_moving_to_a_device_forgets_no_average():
    averages = Averages(Network(), {"a": Constant(0.5)})
    run(averages, 0, 3)
    before = averages.averages
    assert averages.to("cpu") is averages
    assert torch.equal(averages.averages, before)
    run(averages, 3, 4)
    assert not torch.equal(averages.averages, before)


def test_some_of_an_averages_lag_is_taken_out():
    """BEMA, from its formula: alpha (theta_t - theta_0) + EMA_t."""
    model, other = Network(), Network()
    averages = Averages(model, {"ema": InversePower(0.9, update_every=1, update_after_step=0), "first": Constant(1.0)})
    ema = EMA(model, schedule=averages.schedules["ema"])
    change(model, 0)
    first = tensors(model)
    for step in range(40):  # more than wait side by side
        change(model, step)
        averages.update()
        ema.update()
    online, alpha = tensors(model), (10 + 40) ** -0.2
    expected = {
        name: average + alpha * (online[name] - first[name]) if average.is_floating_point() else average
        for name, average in tensors(ema.ema_model).items()
    }
    averages.copy_to(other, "ema", bema=(alpha, "first"))
    with averages.average_parameters("ema", bema=(alpha, "first")):
        for name, tensor in expected.items():
            torch.testing.assert_close(tensors(model)[name], tensor, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(tensors(other)[name], tensor, rtol=1e-5, atol=1e-5)
    assert_same(tensors(model), online)
    with averages.average_parameters("first"):
        assert_same(
            {n: p.detach() for n, p in model.named_parameters()}, {n: first[n] for n, _ in model.named_parameters()}
        )
    with pytest.raises(KeyError, match="no average 'start'; there are 'ema', 'first'"):
        averages.copy_to(other, "ema", bema=(alpha, "start"))


@pytest.mark.parametrize("waiting", [True, False])
def test_what_is_assigned_in_the_middle_acts_from_the_next_call_on(waiting, monkeypatch):
    if not waiting:
        monkeypatch.setattr("emacore.averages._WAITING_BYTES", 0)
    averages, emas, call = beside_the_class(Network(), {"a": Constant(0.9), "b": InversePower(0.99, update_every=2)})
    for step in range(60):
        if step == 21:
            averages.schedules = {"a": Constant(0.5), "b": UniformAverage()}
            emas["a"].schedule, emas["b"].schedule = Constant(0.5), UniformAverage()
        if step == 45:
            averages.step = 3000
            for ema in emas.values():
                ema.step = 3000
        call(step)
    assert averages.step == 3015
    assert_of_the_class(averages, emas)


def test_what_would_have_no_effect_cannot_be_assigned():
    averages = Averages(Network(), {"a": Constant(0.9)})
    with pytest.raises(TypeError):
        averages.schedules["a"] = Constant(0.5)
    with pytest.raises(ValueError, match="keep their names"):
        averages.schedules = {"b": Constant(0.5)}
    with pytest.raises(ValueError, match="on_nonfinite must be one of"):
        averages.on_nonfinite = "ignore"
    with pytest.raises(AttributeError):
        averages.module = Network()
    with pytest.raises(ValueError, match="step"):
        averages.step = -1


def test_an_average_that_has_not_begun_begins_with_a_copy_under_another_schedule():
    model = Network()
    first = Averages(model, {"a": Constant(0.9, update_after_step=50)})
    run(first, 0, 5)
    second = Averages(model, {"a": Constant(0.5)})
    second.load_state_dict(first.state_dict(), strict_schedule=False)
    run(second, 5, 6)
    assert_same(shadows(second)["a"], tensors(model))


@pytest.mark.parametrize("build", [Network, lambda: Network().double(), lambda: Network().bfloat16()])
def test_the_tensor_that_is_not_finite_is_named(build):
    model = build()
    averages = Averages(model, {"a": Constant(0.5)}, on_nonfinite="raise")
    averages.update()
    before = averages.averages
    for name, parameter in model.named_parameters():
        for place in (0, -1):
            kept = parameter.detach().clone()
            parameter.detach().view(-1)[place] = torch.nan
            with pytest.raises(RuntimeError, match=f"call 1: the module's '{name}' holds values that are not finite"):
                averages.update()
            parameter.detach().copy_(kept)
    assert torch.equal(averages.averages, before)
