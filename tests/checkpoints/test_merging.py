import gc
import json
import re
import shutil
import sys
import threading
from contextlib import suppress

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import merge as benchmark
from emacore import Constant, PowerFunction, UniformAverage, Window, open_checkpoints
from emacore.averaging.coefficients import Coefficients, LastFiles, RateDecay
from emacore.checkpoints import lanes
from emacore.checkpoints.merging import carry_out, merge
from emacore.checkpoints.planning import plan_merge
from emacore.checkpoints.stored import CheckpointError
from tests.forked import forking
from tests.helpers import Network, interrupted, wait_for

MERGES = {
    "constant": Constant(0.7),
    "mean": UniformAverage(),
    "window": Window(6),
    "files": LastFiles(3),
    "decay": RateDecay("1-sqrt"),
    "extrapolated": Coefficients((-0.5, 1.5)),
    "power": PowerFunction(sigma_rel=0.1),
}


def sum_in_memory(states, coefficients, dtype=torch.float32):
    """The same additions, of whole tensors."""
    result = {}
    for name, newest in states[-1].items():
        if not newest.is_floating_point():
            result[name] = newest
            continue
        total = torch.zeros(newest.shape, dtype=dtype)
        for state, factor in zip(states, coefficients.tolist(), strict=True):
            if factor:
                total.add_(state[name].to(dtype), alpha=factor)
        result[name] = total.to(newest.dtype)
    return result


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("form", ["safetensors", "pt"])
@pytest.mark.parametrize("accumulate", [torch.float32, torch.float64])
def test_all_results_are_bit_equal_to_sums_in_memory(folder, form, accumulate):
    path, states = folder
    found = open_checkpoints(path)
    places = merge(found, MERGES, path / "out", form=form, accumulate=accumulate)
    plan = plan_merge(found, MERGES)
    for place, result in zip(places, plan.results, strict=True):
        assert place == path / "out" / f"{result.name}.{form}"
        merged = load_file(place) if form == "safetensors" else torch.load(place)
        assert equal(merged, sum_in_memory(list(states.values()), result.coefficients, accumulate))
        Network().load_state_dict(merged)
        about = json.loads((path / "out" / f"{place.name}.merge.json").read_text())
        assert [one["coefficient"] for one in about["sources"]] == result.coefficients[
            result.coefficients != 0
        ].tolist()
        assert about["needs_update_bn"] == ["norm.running_mean", "norm.running_var"]
        assert all(len(one["files"][f"step_{one['step']:04d}.pt"]) == 64 for one in about["sources"])
    assert sorted(entry.name for entry in path.iterdir() if "partial" in entry.name) == []


def test_blocks_strips_and_threads_change_no_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(lanes, "_BLOCK", 192)
    generator = torch.Generator().manual_seed(1)
    states = []
    for step in range(1, 6):
        state = {name: torch.randn(shape, generator=generator).to(torch.bfloat16) for name, shape in
                 [("big", (37, 41)), ("row", (1, 1000)), ("one", ()), ("none", (0, 3))]}  # fmt: skip
        state["pair"] = torch.randn(7, dtype=torch.complex64, generator=generator)
        save_file(state, tmp_path / f"step{step}.safetensors")
        states.append(state)
    found = open_checkpoints(tmp_path)
    [place, _] = merge(found, {"a": Constant(0.6), "b": LastFiles(2)}, tmp_path / "out")
    merged = load_file(place)
    factors = plan_merge(found, {"a": Constant(0.6)}).results[0].coefficients
    expected = sum_in_memory(states, factors)
    pair = torch.zeros(7, dtype=torch.complex64)
    for state, factor in zip(states, factors.tolist(), strict=True):
        pair.add_(state["pair"], alpha=factor)
    assert equal(merged, expected | {"pair": pair})
    assert merged["big"].dtype == torch.bfloat16


def test_sharded_files_become_sharded_files_that_load_as_a_model(tmp_path):
    for step in (10, 20):
        place = tmp_path / f"checkpoint-{step}"
        place.mkdir()
        save_file({"a": torch.full((2, 2), float(step))}, place / "model-00001-of-00002.safetensors")
        save_file({"b": torch.full((3,), float(-step))}, place / "model-00002-of-00002.safetensors")
        places = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        (place / "config.json").write_text(json.dumps({"model_type": "mine"}))
    [folder] = merge(open_checkpoints(tmp_path), {"mean": LastFiles(2)}, tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "merge.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"] == places
    again = open_checkpoints(folder)
    assert (again[0].step, again[0].sections[0].kind) == (20, "average")
    assert again[0].sections[0].tensors["b"].value().tolist() == [-15.0] * 3


def test_ties_are_written_once_or_under_all_their_names(tmp_path):
    for step in (1, 2):
        weight = torch.full((2, 2), float(step))
        torch.save({"in.weight": weight, "out.weight": weight}, tmp_path / f"step{step}.pt")
    found = open_checkpoints(tmp_path)
    [one] = merge(found, {"a": LastFiles(2)}, tmp_path / "one")
    assert load_file(one)["in.weight"].tolist() == [[1.5, 1.5]] * 2
    assert list(load_file(one)) == ["in.weight"]
    [both] = merge(found, {"a": LastFiles(2)}, tmp_path / "both", form="pt")
    state = torch.load(both)
    assert state["in.weight"].data_ptr() == state["out.weight"].data_ptr()


def test_masks_stay_and_broken_runs_are_refused(tmp_path):
    mask = torch.tensor([0.0, -torch.inf])
    for step in (1, 2, 3):
        torch.save({"w": torch.full((2,), float(step)), "mask": mask}, tmp_path / f"step{step}.pt")
    [place] = merge(open_checkpoints(tmp_path), {"a": Constant(0.5)}, tmp_path / "out")
    assert load_file(place)["mask"].tolist() == [0.0, -torch.inf]
    torch.save({"w": torch.tensor([1.0, torch.nan]), "mask": mask}, tmp_path / "step2.pt")
    with pytest.raises(CheckpointError, match="step2.pt holds numbers that are not finite"):
        merge(open_checkpoints(tmp_path), {"a": Constant(0.5)}, tmp_path / "other")
    [place] = merge(open_checkpoints(tmp_path), {"a": LastFiles(1)}, tmp_path / "other")  # step 2 takes no part
    assert load_file(place)["w"].tolist() == [3.0, 3.0]


def test_another_dtype_leaves_whole_numbers_alone(folder):
    path, _ = folder
    [place] = merge(open_checkpoints(path), {"a": LastFiles(2)}, path / "out" / "a.safetensors", dtype=torch.float16)
    assert {str(tensor.dtype) for tensor in load_file(place).values()} == {"torch.float16", "torch.int64"}


def test_nothing_is_overwritten_and_nothing_half_is_left(folder, monkeypatch):
    path, states = folder
    found = open_checkpoints(path)
    out = path / "results" / "out"
    merge(found, {"a": LastFiles(2)}, out)
    before = (out / "a.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="nothing is overwritten"):
        merge(found, {"a": LastFiles(3), "b": LastFiles(1)}, out)
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]
    assert (out / "a.safetensors").read_bytes() == before
    for error in (KeyboardInterrupt, CheckpointError):

        def interrupt(done, total, error=error):
            raise error

        with pytest.raises(error):
            merge(found, {"c": LastFiles(2)}, out, tell=interrupt)
        assert [entry.name for entry in out.parent.iterdir()] == ["out"]
        assert len(list(out.iterdir())) == 2
    torch.save({"model": states[3], "x": 1}, path / "step_0005.pt")
    with pytest.raises(CheckpointError, match="step_0005.pt changed since"):
        merge(found, {"c": LastFiles(4)}, out)
    usage = shutil.disk_usage(path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=100))
    with pytest.raises(OSError, match="the results need"):
        merge(open_checkpoints(path), {"c": LastFiles(2)}, out)
    assert len(list(out.iterdir())) == 2


def test_an_interruption_at_any_line_leaves_no_file_and_keeps_no_process_alive(folder):
    """Signals come between any two lines of the thread that merges; the process then ends when its threads do."""
    path, _ = folder
    found = open_checkpoints(path)
    plan = plan_merge(found, {"mean": LastFiles(2), "last": LastFiles(1)})

    def lines(at: int) -> int:
        modules = ("merging.py", "beside.py", "lanes.py", "hashing.py", "contextlib.py")
        return interrupted(lambda: carry_out(plan, found, path / "new" / "results" / str(at)), at, modules)

    def nothing_or_all_is_left() -> bool:
        left = {one.name for one in path.glob("new/**/*") if one.is_file() or ".partial-" in one.name}
        if (left != whole and (path / "new").exists()) or {
            one for one in threading.enumerate() if not one.daemon
        } - threads:
            gc.collect()
            return False
        return True

    threads, last = set(threading.enumerate()), lines(0)
    assert last > 80
    shutil.rmtree(path / "new")
    whole = {f"{name}.safetensors{end}" for name in ("mean", "last") for end in ("", ".merge.json")}
    made = 0
    for at in range(1, last):
        with suppress(KeyboardInterrupt):
            lines(at)
        wait_for(nothing_or_all_is_left, 5)
        made += (path / "new").exists()
        shutil.rmtree(path / "new", ignore_errors=True)
    assert made < 0.2 * last


def test_progress_ends_at_all_bytes(folder):
    path, _ = folder
    told = []
    merge(open_checkpoints(path), {"a": Constant(0.5)}, path / "out", tell=lambda *both: told.append(both))
    assert told[-1] == (4 * (42 * 4 + 8), 4 * (42 * 4 + 8))
    assert np.all(np.diff([done for done, _ in told]) >= 0)


@pytest.mark.parametrize(
    "scale", [pytest.param("0.001", marks=pytest.mark.slow), pytest.param("0.1", marks=pytest.mark.long)]
)
def test_eight_results_of_a_model_take_little_memory(monkeypatch, capsys, scale):
    """The benchmark of a billion weights, a tenth of it, or a thousandth: no more memory for more weights."""
    forking(monkeypatch, benchmark)
    monkeypatch.setattr(sys, "argv", ["merge", "--scale", scale, "--ways", "emacore"])
    benchmark.main()
    [memory, mapped] = re.findall(r"([\d,]+) MB (?:of memory|with mapped)", capsys.readouterr().out)
    assert int(memory.replace(",", "")) < 300
    assert int(mapped.replace(",", "")) < 1000


def test_double_precision_is_not_added_up_in_less(tmp_path):
    for step in (1, 2, 3):
        wide = torch.tensor([1 + step * 1e-12], dtype=torch.float64)
        torch.save({"w": wide, "single": torch.ones(2)}, tmp_path / f"{step}.pt")
    [place] = merge(open_checkpoints(tmp_path), {"mean": LastFiles(3)}, tmp_path / "out", form="pt")
    assert abs(torch.load(place)["w"] - 1).item() == pytest.approx(2e-12, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": torch.int8}, "dtype must be one of floating-point numbers, .* got torch.int8"),
        ({"dtype": "float32"}, "dtype must be one of floating-point numbers, .* got 'float32'"),
        ({"at": 2.5}, "at must be a whole number"),
        ({"update_every": 2}, "sigma_rel tells: give both"),
        ({"merges": {"": LastFiles(1)}}, "name must be that of a file, got ''"),
        ({"merges": {"n" * 300: LastFiles(1)}}, "name must be one of at most 200 bytes"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, settings, words):
    torch.save({"w": torch.ones(2)}, tmp_path / "1.pt")
    with pytest.raises(ValueError, match=words):
        merge(tmp_path, **({"merges": {"a": LastFiles(1)}, "out": tmp_path / "out"} | settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dtype", "cure"),
    [(torch.complex128, "cast it in the files first"), (torch.float8_e8m0fnu, "write another dtype, such as float32")],
)
def test_a_dtype_that_cannot_be_written_is_a_sentence_before_anything_is_read(tmp_path, dtype, cure):
    torch.save({"w": torch.ones(2).to(dtype)}, tmp_path / "1.pt")
    with pytest.raises(CheckpointError, match=f"'w' is {str(dtype)[6:]}, which cannot be written: {cure}"):
        plan_merge(open_checkpoints(tmp_path), {"a": LastFiles(1)})
    if not dtype.is_complex:
        [place] = merge(open_checkpoints(tmp_path), {"a": LastFiles(1)}, tmp_path / "out", dtype=torch.float32)
        assert load_file(place)["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("stored", "values", "dtype"),
    [
        (torch.float16, 6e4, None),
        (torch.float32, 1e6, torch.float16),
        (torch.float8_e4m3fn, 400.0, None),
        (torch.float64, 1e39, torch.float32),
    ],
)
def test_a_result_that_does_not_fit_into_its_dtype_is_refused(tmp_path, stored, values, dtype):
    for step in (1, 2):
        save_file({"w": torch.full((9,), values, dtype=torch.float64).to(stored)}, tmp_path / f"{step}.safetensors")
    found = open_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="'w' does not fit into .*; write another dtype"):
        merge(found, {"a": Coefficients((-1.0, 2.5))}, tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()
    merge(found, {"a": Coefficients((-1.0, 2.5))}, tmp_path / "out", dtype=torch.float64)


def test_a_place_that_is_a_file_is_a_sentence(folder):
    path, _ = folder
    for out in (path / "step_0003.pt", path / "step_0003.pt" / "x"):
        with pytest.raises(OSError, match=r"step_0003\.pt"):
            merge(open_checkpoints(path), {"a": LastFiles(2)}, out)


def test_sums_beyond_their_dtype_are_a_sentence(tmp_path):
    for step in (1, 2):
        torch.save({"w": torch.full((2,), (-1.0) ** step * 3e38)}, tmp_path / f"{step}.pt")
    found = open_checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="a sum is beyond what float32 holds: accumulate in float64"):
        merge(found, {"a": Coefficients((-1.0, 1.0))}, tmp_path / "out")
    merge(found, {"a": Coefficients((-1.0, 1.0))}, tmp_path / "out", accumulate=torch.float64, dtype=torch.float64)


def test_a_merge_leaves_torch_its_threads(folder):
    path, _ = folder
    found = [torch.get_num_threads()]
    merge(open_checkpoints(path), {"a": LastFiles(2)}, path / "out")
    (other := threading.Thread(target=lambda: found.append(torch.get_num_threads()))).start()
    other.join()
    assert found == [torch.get_num_threads()] * 2
