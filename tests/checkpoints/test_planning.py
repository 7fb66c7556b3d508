from inspect import signature

import ema_pytorch
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from emacore import Constant, PowerFunction, Snapshots, UniformAverage, Window, open_checkpoints
from emacore.averaging.coefficients import Coefficients, LastFiles, RateDecay, karras_decays
from emacore.averaging.weights import effective_count, weights
from emacore.checkpoints.merging import merge
from emacore.checkpoints.planning import Options, plan_merge
from emacore.checkpoints.stored import CheckpointError


def test_the_weight_of_missing_steps_goes_to_the_files_beside(folder):
    path, _ = folder
    plan = plan_merge(open_checkpoints(path), {"a": Constant(0.5), "b": Window(4), "c": LastFiles(2)})
    one, window, two = plan.results
    # Steps 3, 5, 10, 12 are calls 2, 4, 9, 11, and the last four calls are 8 to 11.
    assert window.coefficients == pytest.approx([0, 0.25 / 5, 0.25 * (4 / 5 + 1 + 1 / 2), 0.25 * (1 / 2 + 1)])
    assert two.coefficients.tolist() == [0, 0, 0.5, 0.5]
    assert one.told.wanted == pytest.approx(effective_count(Constant(0.5).decays(12)))
    assert one.told.reached == pytest.approx(1 / (one.coefficients @ one.coefficients))
    assert one.told.error >= one.nonnegative >= one.free > 0
    assert plan.read_bytes == 4 * (42 * 4 + 8)
    assert plan.write_bytes == 3 * (42 * 4 + 8)
    assert plan.needs_update_bn == ["norm.running_mean", "norm.running_var"]
    assert any("call torch.optim.swa_utils.update_bn" in words for words in plan.remarks)
    assert any("copied from step 12, not averaged: 'norm.num_batches_tracked'" in words for words in plan.remarks)


def test_schedules_begin_at_the_first_of_the_last_files(folder):
    path, _ = folder
    found = open_checkpoints(path)
    mean = plan_merge(found, {"mean": UniformAverage()}, last=3).results[0].coefficients
    # Calls 4 to 11, of which 4, 9 and 11 are stored: halves of the gaps beside each.
    assert mean == pytest.approx(np.array([1 + 4 / 5 + 3 / 5 + 2 / 5 + 1 / 5, 3 + 0.5, 1 + 0.5]) / 8)
    assert plan_merge(found, {"a": Coefficients((-1.0, 2.0))}, last=3).results[0].coefficients.tolist() == [0, -1, 2]
    for last, told in ((4, []), (5, ["there are only 4 checkpoints"])):
        remarks = plan_merge(found, {"a": LastFiles(2)}, last=last).remarks
        assert [words for words in remarks if "checkpoints" in words] == told
    decay = plan_merge(found, {"a": RateDecay("linear")}, last=3).results[0]
    assert decay.coefficients == pytest.approx([2.5 / 7, 3.5 / 7, 1 / 7])


def test_no_file_later_than_the_wanted_step_is_used(folder):
    path, _ = folder
    later = plan_merge(open_checkpoints(path), {"a": Constant(0.5)}, at=20)
    assert later.results[0].coefficients[-1] > 0.99
    assert "no file is later than step 12: it gets the weight of all steps up to 20" in later.remarks
    plan = plan_merge(open_checkpoints(path), {"a": Constant(0.5)}, at=11)
    assert [source.checkpoint.step for source in plan.sources] == [3, 5, 10]
    decays = weights(Constant(0.5).decays(11))
    assert plan.results[0].coefficients[-1] == pytest.approx(decays[9:].sum() + decays[5:9] @ [0.2, 0.4, 0.6, 0.8])
    with pytest.raises(ValueError, match="no checkpoint up to step 2; the first is of step 3"):
        plan_merge(open_checkpoints(path), {"a": Constant(0.5)}, at=2)


@pytest.mark.parametrize(
    ("files", "section", "used", "told"),
    [
        (["model"] * 3, None, ["model"], []),
        (["model", "model", "ema"], None, ["model"], ["1 of 3 checkpoints have no 'model'"]),
        (["model", "ema", "ema"], "ema", ["ema"], ["1 of 3 checkpoints have no 'ema'"]),
        (["ema swa"] * 3, "swa", ["swa"], []),
    ],
)
def test_what_a_merge_is_made_of_is_chosen_and_told(tmp_path, files, section, used, told):
    for step, names in enumerate(files, 1):
        torch.save({**{name: {"w": torch.ones(2)} for name in names.split()}, "step": step}, tmp_path / f"{step}.pt")
    plan = plan_merge(open_checkpoints(tmp_path), {"mean": LastFiles(2)}, section=section)
    assert list(dict.fromkeys(source.section.name for source in plan.sources)) == used
    assert [words for words in plan.remarks if "made of" in words or "checkpoints" in words] == told


def test_what_does_not_fit_is_told(folder):
    path, _ = folder
    found = open_checkpoints(path)
    for arguments, words in [
        ({"fit": "best"}, "fit must be one of linear, nonnegative, free"),
        ({"last": 0}, "last must be a whole number of at least 1"),
        ({"section": "ema"}, "no section 'ema'; there are 'model'"),
        ({"sigma_rel": (0.1,)}, "sigma_rel is told of stored averages, and 'model' holds none"),
        ({"at": 10**9}, "at most 100,000,000 steps of a merge are possible"),
    ]:
        with pytest.raises(ValueError, match=words):
            plan_merge(found, {"a": Constant(0.5)}, **arguments)
    (path / "step_0011.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="a merge without it would be another: step_0011.pt is empty"):
        plan_merge(open_checkpoints(path), {"a": Constant(0.5)})


def test_a_merge_hands_on_all_that_a_plan_can_be_told(folder):
    told = [one for one in signature(plan_merge).parameters.values() if one.kind is one.KEYWORD_ONLY]
    assert {one.name for one in told} == Options.__annotations__.keys()
    path, _ = folder
    with pytest.raises(TypeError, match="unexpected keyword argument 'lst'"):
        merge(open_checkpoints(path), {"a": Constant(0.5)}, path / "out", lst=3)


def test_stored_averages_whose_memory_nobody_told_are_said_to_be_so(tmp_path):
    for step in (1, 2, 3):
        torch.save({"model_ema": {"w": torch.full((2,), float(step))}, "step": step}, tmp_path / f"{step}.pt")
    plan = plan_merge(open_checkpoints(tmp_path), {"mean": LastFiles(3)})
    assert any("whose memory is not known" in words for words in plan.remarks)


@pytest.mark.parametrize("update_every", [1, 10])
def test_ema_pytorchs_post_hoc_files_become_the_averages_that_were_not_kept(tmp_path, update_every):
    """Of any width, at a step in the middle, too, as far as they can."""
    model, last, at = nn.Linear(4, 3), 400, 300
    wanted = ema_pytorch.post_hoc_ema.KarrasEMA(model, sigma_rel=0.15, update_every=update_every)
    post_hoc = ema_pytorch.PostHocEMA(
        model, sigma_rels=(0.05, 0.28), update_every=update_every, checkpoint_every_num_steps=20,
        checkpoint_folder=tmp_path / "files", checkpoint_dtype=torch.float32,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    path = []
    for step in range(1, last + 1):
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
        path.append(model.weight.detach().clone())
        wanted.update()
        post_hoc.update()
        if step == at:
            library = wanted.ema_model.weight.detach().clone()
    found = open_checkpoints(tmp_path / "files")
    # What is taken for the profile of a file is what the library did.
    for section, width in zip(found[-1].sections, (0.05, 0.28), strict=True):
        decays = karras_decays(PowerFunction(sigma_rel=width).exponent, last, update_every)
        stored = sum(w * value for w, value in zip(weights(decays), path, strict=True))
        torch.testing.assert_close(section.tensors["weight"].value(), stored, rtol=1e-4, atol=1e-4)
    asked = {"power": PowerFunction(sigma_rel=0.15)}
    arguments = {"at": at, "sigma_rel": (0.05, 0.28), "update_every": update_every}
    told = plan_merge(found, asked, **arguments).results[0].told
    [place] = merge(found, asked, tmp_path / "merged.pt", form="pt", **arguments)
    exact = sum(w * value for w, value in zip(weights(PowerFunction(sigma_rel=0.15).decays(at)), path, strict=False))
    missed = (torch.load(place)["weight"] - exact).norm() / (path[at - 1] - exact).norm()
    if update_every == 1:
        assert told.error < 0.02
        assert missed < 0.02
        assert (library - exact).norm() < 0.02 * (path[at - 1] - exact).norm()
    else:  # their memories are ten times as long as their names say, and the certificate says what that costs
        assert told.error > 0.5
        assert missed > 0.1


def test_means_of_windows_make_any_average_that_is_longer_than_they_are(tmp_path):
    generator = torch.Generator().manual_seed(2)
    path = torch.cumsum(torch.randn(100, 3, generator=generator), dim=0)
    for end in range(10, 101, 10):
        told = f'{{"kind": "window", "begin": {end - 9}}}'
        save_file(
            {"w": path[end - 10 : end].mean(0)}, tmp_path / f"{end}.safetensors", {"step": f"{end}", "emacore": told}
        )
    plan = plan_merge(open_checkpoints(tmp_path), {"mean": UniformAverage(), "last": Window(30), "old": Window(25)})
    assert plan.results[0].coefficients == pytest.approx([0.1] * 10)
    assert plan.results[1].coefficients == pytest.approx([0] * 7 + [1 / 3] * 3, abs=1e-9)
    assert plan.results[2].coefficients == pytest.approx([0] * 7 + [0.2, 0.4, 0.4], abs=1e-9)
    assert [result.told.error for result in plan.results[:2]] == pytest.approx([0, 0], abs=1e-6)
    late = plan_merge(open_checkpoints(tmp_path), {"ema": Constant(0.97)}, last=3)  # it begins with the first of them
    assert late.results[0].coefficients == pytest.approx(weights(Constant(0.97).decays(30)).reshape(3, 10).sum(axis=1))


def test_files_that_only_rounding_gives_weight_are_not_read(tmp_path):
    model = nn.Linear(3, 2)
    snapshots = Snapshots(model, tmp_path, every=50)
    for _ in range(500):
        snapshots.update()
    found = open_checkpoints(tmp_path)
    for fit in (None, "free", "nonnegative"):
        plan = plan_merge(found, {"window": Window(200)}, fit=fit)
        assert plan.used.tolist() == [6, 7, 8, 9]
        assert plan.results[0].coefficients[-4:] == pytest.approx([0.25] * 4)
    explicit = plan_merge(found, {"as it is": Coefficients((1e-30, 1.0))})
    assert explicit.used.tolist() == [8, 9]
