import json
import math
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn

from emacore import EMA, Constant, PowerFunction, Trajectory, UniformAverage, Window, open_checkpoints
from emacore.averaging.coefficients import LastFiles
from emacore.checkpoints.merging import merge
from emacore.checkpoints.reading import LazyRows, described
from emacore.checkpoints.stored import CheckpointError
from emacore.cli.commands import cli
from tests.checkpoints.conftest import stored

STEPS = (3, 5, 10)


@pytest.fixture
def folder(tmp_path):
    return stored(tmp_path, STEPS)


def test_a_folder_is_the_rows_of_a_run(folder):
    path, states = folder
    found = open_checkpoints(path)
    assert found.steps.tolist() == list(STEPS)
    assert {one.step_from for one in found} == {"the name"}
    rows = found.rows()
    assert rows.steps.tolist() == [2, 4, 9]
    trajectory = Trajectory(rows)
    for scheme in (Constant(0.7), UniformAverage(), Window(6), PowerFunction(sigma_rel=0.1)):
        expected = {}
        for share, state in zip(trajectory.shares(scheme), states.values(), strict=True):
            for name, tensor in state.items():
                if tensor.is_floating_point():
                    expected[name] = expected.get(name, 0) + share * tensor.double()
        found_state = trajectory.state(scheme)
        for name, tensor in expected.items():
            torch.testing.assert_close(found_state[name].double(), tensor, rtol=1e-5, atol=1e-6)
        assert found_state["norm.num_batches_tracked"].item() == STEPS[-1]
    # By hand: of Constant(0.5), each file stands for the steps since the one before it.
    assert trajectory.shares(Constant(0.5)) == pytest.approx([2**-7, (1 - 2**-2) * 2**-5, 1 - 2**-5])


def test_rows_are_read_in_any_stretch():
    class Fake:
        def __init__(self, tensor):
            self.tensor = tensor
            self.shape, self.dtype = tuple(tensor.shape), tensor.dtype

        def meta(self):
            return self.tensor.to("meta")

        def read(self, start, stop):
            return self.tensor.reshape(-1)[start:stop]

    generator = torch.Generator().manual_seed(1)
    kinds = [((2, 3), torch.float32), ((2,), torch.complex64), ((3,), torch.float32)]
    stored = [[torch.randn(shape, dtype=dtype, generator=generator) for shape, dtype in kinds] for _ in range(4)]
    rows = LazyRows([[Fake(tensor) for tensor in tensors] for tensors in stored])
    whole = np.stack([torch.cat([a.reshape(-1), torch.view_as_real(b).reshape(-1), c]).numpy() for a, b, c in stored])
    assert rows.shape == whole.shape == (4, 13)
    np.testing.assert_array_equal(np.asarray(rows), whole)
    for begin in range(13):
        for end in range(begin, 14):
            np.testing.assert_array_equal(rows[1:3, begin:end], whole[1:3, begin:end])
    np.testing.assert_array_equal(rows[-1], whole[-1])
    np.testing.assert_array_equal(rows[np.array([3, 0])], whole[[3, 0]])
    np.testing.assert_array_equal(rows[[True, False, True, False], 2:], whole[[0, 2], 2:])
    np.testing.assert_array_equal(rows[1:, [0, 7]], whole[1:][:, [0, 7]])


@pytest.mark.parametrize(
    ("names", "steps", "source"),
    [
        (["a-step_10.pt", "a-step_9.pt"], [9, 10], "the name"),
        (["iter_0000020/w.pt", "iter_0000005/w.pt"], [5, 20], "the name"),
        (["model000300.pt", "model000200.pt"], [200, 300], "the name"),
        (["checkpoint-7/model.bin", "checkpoint-12/model.bin"], [7, 12], "the name"),
        (["epoch=1-step=30.ckpt", "epoch=2-step=45.ckpt"], [30, 45], "the name"),
        (["net_epoch_2.pth", "net_epoch_10.pth"], [2, 10], "the epoch in the name"),
        (["b.pt", "a.pt"], [1, 2], "the order of the names"),
        (["run-2026-12-01.pt", "run-2026-11-30.pt"], [1, 2], "the order of the names"),
        (["2026-11-30/12-30-05/m.pt", "2026-11-30/13-00-01/m.pt"], [1, 2], "the order of the names"),
        (["m_2026-11-30T12:30:05.pt", "m_2026-11-30T13:00:01.pt"], [1, 2], "the order of the names"),
        (["2026-11-30_m-200.pt", "2026-12-01_m-300.pt"], [200, 300], "the name"),
        (["v1.5/x-20.pt", "v1.5/x-30.pt"], [20, 30], "the name"),
    ],
)
def test_steps_in_names(tmp_path, names, steps, source):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"w": torch.ones(2)}, tmp_path / name)
    found = open_checkpoints(tmp_path)
    assert (found.steps.tolist(), found[0].step_from) == (steps, source)
    assert found.names() == ["model"]


@pytest.mark.parametrize(
    ("files", "steps", "believed"),
    [
        ({"ema_100.pt": 100, "ema_200.pt": 200}, [100, 200], None),
        ({"ema.pt": 70}, [70], None),
        ({"ema_1.pt": 1000, "ema_2.pt": 2000}, [1000, 2000], "counters"),
        ({"seed_12345.pt": 50}, [50], "counters"),
        ({"a/seed_7.pt": 50, "b/seed_7.pt": 60}, [50, 60], "counters"),
        # Begun anew after the second file, or at the first step but one, or moved at every tenth step.
        ({"ema_100.pt": 100, "ema_200.pt": 200, "ema_300.pt": 50, "ema_400.pt": 150}, [100, 200, 300, 400], "names"),
        ({"ema_100.pt": 99, "ema_200.pt": 199}, [100, 200], "names"),
        ({"step_100.pt": 10, "step_200.pt": 20}, [100, 200], "names"),
        ({"step_100.pt": 200, "step_200.pt": 400}, [100, 200], "names"),
        ({"step_100.pt": 10}, [100], "names"),
        ({"checkpoint-5/a.pt": 5, "checkpoint-6/a.pt": 1}, [5, 6], "names"),
        ({"epoch_1.pt": 40, "epoch_2.pt": 80}, [40, 80], None),
        ({"epoch_1.pt": 40, "epoch_2.pt": 80, "epoch_3.pt": 40}, [1, 2, 3], "names"),
    ],
)
@pytest.mark.parametrize("form", ["state", "beside the weights", "safetensors"])
def test_the_counter_of_an_average_is_a_step_only_where_it_goes_with_the_names(tmp_path, files, steps, believed, form):
    model = nn.Linear(2, 1)
    ema = EMA(model, include_online_model=False)
    for name, count in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        ema.step = count
        if form == "safetensors":
            ema.save(path.with_suffix(".safetensors"))
        else:
            state = ema.state_dict()
            torch.save(state if form == "state" else {"model": model.state_dict(), "ema": state}, path)
    found = open_checkpoints(tmp_path)
    assert found.steps.tolist() == steps
    remarks = [one for one in found.told if "the average's own counter" in one]
    assert [f"the {believed} are believed" in one for one in remarks] == [True] * (believed is not None)
    said = CliRunner().invoke(cli, ["checkpoints", str(tmp_path)]).stderr
    assert all(one in said for one in remarks)


def test_a_step_of_the_run_goes_before_the_counter_of_its_average(tmp_path):
    model = nn.Linear(2, 1)
    for count, step in ((7, 20), (3, 30)):
        ema = EMA(model, include_online_model=False)
        ema.step = count
        torch.save({"ema": ema.state_dict(), "train_state": {"step": step}}, tmp_path / f"ckpt_{step // 10}.pt")
    found = open_checkpoints(tmp_path)
    assert (found.steps.tolist(), found[0].step_from, found.told) == ([20, 30], "train_state.step", [])


def test_two_averages_of_one_step_have_names_of_their_own(tmp_path):
    for step in (100, 200):
        for name in ("model", "ema_0.99", "ema_0.999"):
            torch.save({"w": torch.full((2,), float(step))}, tmp_path / f"{name}_{step:06d}.pt")
    found = open_checkpoints(tmp_path)
    assert found.steps.tolist() == [100, 200]
    assert found.names("raw") == ["model_*"]
    assert found.names("average") == ["ema_0.99_*", "ema_0.999_*"]
    assert Trajectory(found.rows("ema_0.99_*")).shares(UniformAverage()) == pytest.approx([0.5, 0.5], abs=0.01)
    with pytest.raises(CheckpointError, match="no section 'ema'; there are"):
        found.rows("ema")


def test_what_is_left_out_is_told(folder):
    path, states = folder
    torch.save({"model": states[10]}, path / "final.pt")
    torch.save({"state": {}}, path / "optimizer.pt")
    (path / "step_0020.pt").write_bytes((path / "step_0010.pt").read_bytes()[:500])
    found = open_checkpoints(path)
    assert found.steps.tolist() == list(STEPS)
    assert found.told == [
        "optimizer.pt: the state of an optimiser or of a program, by its name",
        "final.pt: left out, because it does not tell its step, nor does its name",
    ]
    assert found.damaged == ["step_0020.pt is truncated, or still being written: its end is missing"]


def test_a_file_that_changes_is_told(folder):
    path, states = folder
    found = open_checkpoints(path)
    found.check_unchanged()
    torch.save({"model": states[3], "more": 1}, path / "step_0005.pt")
    with pytest.raises(CheckpointError, match=r"step_0005.pt changed since it was opened"):
        found.check_unchanged()


def test_files_of_another_model_are_told(folder):
    path, _ = folder
    torch.save({"model": {"first.weight": torch.ones(4, 3)}}, path / "step_0011.pt")
    with pytest.raises(
        CheckpointError, match="step 3 and that of step 11 do not have the same tensors: .*lacks 'first.b"
    ):
        open_checkpoints(path).rows()


def test_tensors_beside_the_sets_of_weights_are_told(tmp_path):
    for step in (1, 2):
        state = {"w": torch.ones(2)}
        torch.save({"model": state, "loss": torch.tensor(0.5), "class_weights": torch.ones(3)}, tmp_path / f"{step}.pt")
    [told] = open_checkpoints(tmp_path).told
    assert told.startswith("1.pt: left out, because they stand beside the sets of weights, in none of them: 'class_w")
    assert told.endswith("(so it is in 2 of 2 files)")


def test_a_tie_that_is_in_some_files_only_is_told(tmp_path):
    weight = torch.ones(2)
    torch.save({"a": weight, "b": weight}, tmp_path / "step_1.pt")
    torch.save({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "step_2.pt")
    with pytest.raises(CheckpointError, match="has 'b' more .'b' is another name of 'a' in one of the two"):
        open_checkpoints(tmp_path).rows()


def test_initial_weights_make_all_rows_one_later(tmp_path):
    for step in (0, 10):
        save_file({"w": torch.full((2,), float(step))}, tmp_path / f"step_{step}.safetensors")
    assert open_checkpoints(tmp_path).rows().steps.tolist() == [0, 10]


def test_what_is_there_as_a_table(folder):
    path, _ = folder
    table = list(described(open_checkpoints(path)))
    assert [row["step"] for row in table] == list(STEPS)
    assert table[0] | {"bytes": None} == {
        "step": 3, "step_from": "the name", "section": "model", "kind": "raw", "tensors": 9, "weights": 42,
        "dtypes": "float32 int64", "copied": 1, "tied": 0, "bytes": None, "about": "", "format": "torch.save",
        "files": 1,
    }  # fmt: skip
    assert table[0]["bytes"] == 42 * 4 + 8


@pytest.mark.parametrize("path", ["nothing", "empty"])
def test_a_place_without_checkpoints_is_told(tmp_path, path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="there is no file"):
        open_checkpoints(tmp_path / path)


def test_what_a_merge_wrote_is_not_taken_for_a_checkpoint_of_the_run(tmp_path):
    for step in (10, 20):
        torch.save({"w": torch.full((2,), float(step))}, tmp_path / f"step_{step}.pt")
    merges = {"a": LastFiles(2), "b": LastFiles(1)}
    merge(open_checkpoints(tmp_path), merges, tmp_path / "out")
    merge(open_checkpoints(tmp_path), merges, tmp_path, form="pt")
    found = open_checkpoints(tmp_path)
    assert found.names() == ["model"]
    assert any("merges of such files made them: 'a.pt', 'a.safetensors', 'b.pt'" in words for words in found.told)
    assert {section.kind for section in open_checkpoints(tmp_path / "out")[0].sections} == {"average"}


def test_files_of_something_else_are_told_and_do_not_hinder_a_merge(tmp_path):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    for step in (1, 2):
        torch.save({"w": torch.full((2,), float(step))}, tmp_path / f"step_{step}.pt")
        torch.save(optimizer.state_dict(), tmp_path / f"step_{step}_opt.pt")
        torch.save({"rng": torch.get_rng_state(), "name": "x"}, tmp_path / f"step_{step}_random.pt")
    found = open_checkpoints(tmp_path)
    assert found.names() == ["model"]
    assert found.damaged == []
    assert sum("holds no weights of a model" in words for words in found.told) == 4


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["best_0.87", "best_0.91"], [1, 2]),
        (["model_1.5", "model_2.5", "model_3"], [3]),
        (["0.100", "0.200"], [100, 200]),
        (["gewicht\u00fc7", "gewicht\u00fc8"], [7, 8]),
    ],
)
def test_the_digits_of_a_fraction_are_no_step(tmp_path, names, steps):
    for name in names:
        torch.save({"w": torch.ones(2)}, tmp_path / f"{name}.pt")
    assert open_checkpoints(tmp_path).steps.tolist() == steps


@pytest.mark.parametrize("others", [torch.tensor([1, 2]), torch.tensor([1j, 2j])])
def test_numbers_of_different_kinds_are_not_one_tensor(tmp_path, others):
    torch.save({"w": torch.ones(2), "b": torch.ones(1)}, tmp_path / "step_1.pt")
    torch.save({"w": others, "b": torch.ones(1)}, tmp_path / "step_2.pt")
    with pytest.raises(CheckpointError, match="'w' is float32 in .* of step 1 and (int64|complex64) in that of step 2"):
        open_checkpoints(tmp_path).rows()


@pytest.mark.parametrize("where", ["content", "metadata", "trainer_state.json"])
@pytest.mark.parametrize(
    "step", [-1, math.nan, math.inf, 1.5, 1e30, 2**70, "1e5", " 7 ", "²", "-3", "9" * 5000, torch.tensor(-2)]
)
def test_what_stands_in_a_steps_place_and_is_none_is_told_and_the_name_counts(tmp_path, step, where):
    if where != "content" and isinstance(step, torch.Tensor):
        step = int(step)
    for number in (100, 200):
        (place := tmp_path / f"checkpoint-{number}").mkdir()
        state = {"w": torch.full((3,), float(number))}
        if where == "content":
            torch.save({"model": state, "step": step}, place / "model.pt")
        else:
            about = {"step": str(step)} if where == "metadata" else None
            save_file(state, place / "model.safetensors", metadata=about)
        if where == "trainer_state.json":
            step = step if isinstance(step, (int, float)) else str(step)
            (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    found = open_checkpoints(tmp_path)
    assert found.steps.tolist() == [100, 200]
    [told] = found.told
    assert re.search(r"step.* is .*, which is no count of steps \(in 2 of 2 files\); so the name tells it: 100$", told)


def test_numbers_in_names_that_are_no_steps_are_left_out_and_powers_of_ten_are_read(tmp_path):
    for name in ("step_1e5", "step_7", "step_-5", f"step_{'9' * 20}"):
        save_file({"w": torch.ones(3)}, tmp_path / f"{name}.safetensors")
    found = open_checkpoints(tmp_path)
    assert found.steps.tolist() == [7, 100_000]
    assert len([words for words in found.told if "left out, because it does not tell its step" in words]) == 2
