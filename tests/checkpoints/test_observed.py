import pytest
import torch

from emacore.checkpoints import observed
from emacore.checkpoints.observed import evidence_in, gathered
from emacore.checkpoints.reading import open_checkpoints
from emacore.checkpoints.stored import CheckpointError
from tests.helpers import section_of

STEPS = (100, 120, 140)


def run(dtype=torch.float32, decay=0.95, seed=0, scale=0.03):
    """Random walks by steps of about this size, and their averages after some steps; one tensor hardly moves, and
    running statistics are averaged with another decay."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (20, 30), "a.bias": (20,), "b.weight": (1000,), "norm.running_mean": (2000,), "dead": (4,)}
    raw = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    average = {name: one.clone() for name, one in raw.items()}
    found = []
    for step in range(1, STEPS[-1] + 1):
        for name, one in raw.items():
            by = 1e-7 if name == "dead" else scale
            raw[name] = one + by * torch.randn(one.shape, generator=generator)
            average[name] = torch.lerp(average[name], raw[name], 0.3 if "running" in name else 1 - decay)
        if step in STEPS:
            found.append(({n: t.to(dtype) for n, t in raw.items()}, {n: t.to(dtype) for n, t in average.items()}))
    return [raw for raw, _ in found], [average for _, average in found]


def read(raws, averages, **about):
    return gathered(STEPS, [section_of(one) for one in raws], [section_of(one, "average", **about) for one in averages])


def facts(found):
    return {one.name: one for one in found.tensors}


def test_what_is_told_of_each_tensor():
    raws, averages = run()
    for raw, average in zip(raws, averages, strict=True):
        average["a.bias"] = raw["a.bias"].clone()
        average["b.weight"] = averages[0]["b.weight"].clone()
        average["norm.running_mean"][0] = float("nan")
    found = facts(read(raws, averages))
    assert found["a.weight"].trains
    assert not (found["a.weight"].is_copied)
    assert not (found["a.weight"].is_frozen)
    assert found["a.bias"].is_copied
    assert found["b.weight"].is_frozen
    assert min(found["b.weight"].gaps) > 1e4  # spacings of single precision
    assert found["norm.running_mean"].is_statistic
    assert not found["norm.running_mean"].finite
    # What moves by rounding alone tells nothing.
    assert not found["dead"].far
    assert not (found["dead"].is_copied)
    assert not (found["dead"].is_frozen)
    assert [one.name for one in read(raws, averages).weights] == ["a.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_decay_is_recovered_whatever_it_is_stored_in(dtype):
    found = read(*run(dtype))
    assert [one.name for one in found.weights] == ["a.weight", "a.bias", "b.weight"]
    assert [one.allows(20 * 0.0512933, 1.05) for one in found.rates] == [True, True]
    assert all(rate.has_low for rate in found.rates)
    assert found.stuck is None


def test_where_all_weights_hardly_move_or_there_are_none_the_decay_is_recovered_of_what_there_is():
    found = read(*run(scale=1e-5))
    assert not any(one.far for one in found.tensors)
    assert all(rate.has_low and rate.has_high for rate in found.rates)
    assert [one.allows(20 * 0.0512933, 1.05) for one in found.rates] == [True, True]
    statistics = [[{"norm.running_mean": one["norm.running_mean"]} for one in states] for states in run()]
    assert [one.has_low and one.allows(20 * 1.20397, 1.05) for one in read(*statistics).rates] == [True, True]


def test_an_average_that_is_the_raw_weights_but_for_rounding_is_equal():
    raws, _ = run()
    averages = [{name: 0.3 - (0.3 - one) for name, one in raw.items()} for raw in raws]
    assert any(not torch.equal(averages[0][name], raws[0][name]) for name in raws[0])
    assert all(all(one.equal) for one in read(raws, averages).tensors if one.name != "dead")
    # Decay and 1 - decay exchanged is more than rounding.
    exchanged = run(decay=0.001)
    assert not any(any(one.equal) for one in read(*exchanged).tensors if one.far)


def test_parts_of_tensors_say_what_whole_ones_say(monkeypatch):
    raws, averages = run()
    whole = read(raws, averages)
    monkeypatch.setattr(observed, "_BLOCK", 6 * 20)
    parts = read(raws, averages)
    for name, sums in whole.sums.items():
        assert len(parts.sums[name].counts) <= 16
        assert parts.sums[name].counts.sum() == sums.counts.sum()
        torch.testing.assert_close(
            torch.tensor(sums.products.sum(axis=0)), torch.tensor(parts.sums[name].products.sum(axis=0))
        )
    assert parts.tensors == whole.tensors or [one.name for one in parts.tensors] == [one.name for one in whole.tensors]


def test_rounding_that_holds_numbers_back_is_noticed():
    generator = torch.Generator().manual_seed(1)
    raw = 0.1 * torch.randn(3000, generator=generator)
    coarse, wide, states = raw.bfloat16(), raw.clone(), []
    for step in range(1, 141):
        raw = raw + 0.003 * torch.randn(3000, generator=generator)
        coarse = torch.lerp(coarse, raw.bfloat16(), 0.002)
        wide = torch.lerp(wide, raw, 0.002)
        if step in STEPS:
            states.append((raw.bfloat16(), coarse.clone(), wide.bfloat16()))
    raws = [{"w": state[0]} for state in states]
    assert read(raws, [{"w": state[2]} for state in states]).stuck is None
    assert read(raws, [{"w": state[1]} for state in states]).stuck > 0.4
    # It does not matter what it is stored in afterwards.
    assert read(raws, [{"w": state[1].float()} for state in states]).stuck > 0.4


def test_a_list_without_names_goes_by_the_order_of_the_parameters():
    raws, averages = run()
    plain = [
        {str(n): one for n, one in enumerate(t for k, t in average.items() if k != "norm.running_mean")}
        for average in averages
    ]
    found = read(raws, plain)
    assert [one.name for one in found.tensors] == ["a.weight", "a.bias", "b.weight", "dead"]
    assert found.missing == ("norm.running_mean",)
    assert found.rates[0].allows(20 * 0.0512933, 1.05)
    with pytest.raises(CheckpointError, match="a list of 3 tensors without names, which do not fit the 4 of raw"):
        read(raws, [{name: one for name, one in average.items() if name != "3"} for average in plain])


def test_tied_tensors_count_once_and_are_not_missing():
    raws, averages = run()
    tied = [section_of(raw, ties={"head": "b.weight"}) for raw in raws]
    for average in averages:
        average["head"] = average.pop("b.weight")
    found = gathered(STEPS, tied, [section_of(one, "average") for one in averages])
    assert {one.name for one in found.tensors} == set(raws[0])
    assert found.missing == ()


def test_counters_are_taken_where_all_files_tell_them():
    raws, averages = run()
    sections = [section_of(one) for one in raws]
    counted = [section_of(one, "average", updates=10 * n) for n, one in enumerate(averages)]
    assert gathered(STEPS, sections, counted).counters == (0, 10, 20)
    assert gathered(STEPS, sections, [*counted[:2], section_of(averages[2], "average")]).counters is None


def test_of_two_copies_of_the_raw_weights_those_beside_the_average_are_taken(tmp_path):
    # Those of a Sequential begin with a number.
    states = {f"{part}.{name}": torch.rand(40) for part in ("online_model", "ema_model") for name in ("0.w", "2.w")}
    model = {name: states[f"online_model.{name}"] for name in ("0.w", "2.w")}
    torch.save({"model": model, "ema": states}, tmp_path / "step_10.pt")
    opened = open_checkpoints(tmp_path)
    assert opened.names("raw") == ["model", "ema.online_model"]
    assert [one.name for one in evidence_in(opened).tensors] == ["0.w", "2.w"]
    assert evidence_in(opened, raw="model").tensors == evidence_in(opened).tensors


@pytest.mark.parametrize(
    ("contents", "arguments", "message"),
    [
        ({"model": {"w": torch.ones(2)}}, {}, "holds no weights of an average; there are the sections 'model'"),
        ({"model_ema": {"w": torch.ones(2)}}, {}, "holds no raw weights"),
        ({"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(3)}}, {}, "'w' has shape"),
        (
            {"model": {"w": torch.ones(2, dtype=torch.complex64)}, "ema": {"w": torch.ones(2)}},
            {},
            "'w' is complex64 in model and float32 in ema",
        ),
        ({"model": {"w": torch.ones(2)}, "ema": {"v": torch.ones(2)}}, {}, "have no tensor of the same name"),
        (
            {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}, "ema2": {"w": torch.ones(2)}},
            {"average": "nope"},
            "there is no section 'nope'",
        ),
        (
            {"model": {"w": torch.ones(2)}, "model_ema": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}},
            {},
            "several sections of the kind average, choose one of",
        ),
    ],
)
def test_files_that_do_not_go_together_are_a_sentence(tmp_path, contents, arguments, message):
    torch.save(contents, tmp_path / "step_10.pt")
    with pytest.raises(CheckpointError, match=message):
        evidence_in(open_checkpoints(tmp_path), **arguments)
