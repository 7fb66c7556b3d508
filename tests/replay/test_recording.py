import json
import os
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.func import functional_call

from emacore import EMA, Recorder
from emacore.averaging.families import Constant, InversePower, UniformAverage
from emacore.averaging.windows import Window
from emacore.formatting import in_bytes
from emacore.limits import DISK_RESERVE, RECORDED_STEPS
from emacore.replay import recording
from emacore.replay.recording import RecordingError, read_recording
from emacore.replay.trajectory import Trajectory
from tests.helpers import FUZZED, Network, change, tensors

SCHEDULES = {
    "article": InversePower(0.98, update_after_step=10, update_every=1),
    "skipping": InversePower(0.9, update_after_step=10, update_every=7),
    "constant": Constant(0.9),
}


class Digits(nn.Sequential):
    """A small convolutional network with BatchNorm."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The network trained for two epochs in a loop of its own, recorded, with an EMA for each schedule beside it."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(y)
    torch.manual_seed(0)
    model = Digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    emas = {name: EMA(model, schedule=schedule) for name, schedule in SCHEDULES.items()}
    folder = tmp_path_factory.mktemp("digits")
    paths = {"float32": folder / "whole", "float16": folder / "half", "every": folder / "every"}
    recorders = [
        Recorder(model, paths["float32"]),
        Recorder(model, paths["float16"], float16=True),
        Recorder(model, paths["every"], every=5),
    ]
    told = [recorder.size(94) for recorder in recorders]
    for _ in range(2):
        for rows in torch.randperm(1500).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            for ema in emas.values():
                ema.update()
            for recorder in recorders:
                recorder.record()
        for recorder in recorders:
            recorder.end_epoch()
    for recorder in recorders:
        recorder.close()
        assert recorder.error is None
    return model, emas, paths, told, (x[1500:], y[1500:])


@torch.no_grad()
def accuracy(model, x, y):
    return float((model.eval()(x).argmax(dim=1) == y).double().mean())


def test_somebody_elses_network_is_replayed_with_its_buffers(digits):
    _, emas, paths, _, (x, y) = digits
    trajectory = Trajectory.open(paths["float32"])
    assert trajectory.settings is None
    assert trajectory.epoch_ends == [46, 93]
    for name, ema in emas.items():
        other = Digits()
        trajectory.load_into(other, SCHEDULES[name])
        for key, tensor in tensors(other).items():
            torch.testing.assert_close(tensor, tensors(ema.ema_model)[key], rtol=1e-4, atol=1e-5, msg=f"{name} {key}")
        assert accuracy(other, x, y) == accuracy(ema.ema_model, x, y) > 0.5


def test_a_function_of_ones_own_is_evaluated_under_every_schedule(digits):
    model, emas, paths, _, (x, y) = digits
    trajectory = Trajectory.open(paths["float32"])

    def measured(state):
        predicted = functional_call(model.eval(), state, (x,))
        return {"accuracy": float((predicted.argmax(dim=1) == y).double().mean())}

    table = pd.DataFrame(trajectory.evaluate({**SCHEDULES, "window": Window(20)}, measured))
    assert table.columns.tolist() == ["schedule", "row", "accuracy"]
    for name, ema in emas.items():
        assert table.set_index("schedule").loc[name, "accuracy"] == accuracy(ema.ema_model, x, y)
    for taken in ("schedule", "row"):
        with pytest.raises(ValueError, match="must not be named"):
            trajectory.evaluate(SCHEDULES, lambda state, taken=taken: {taken: 0.0})
    curve = trajectory.evaluate({"a": Constant(0.0)}, lambda state: float(state["5.bias"][0]), trajectory.epoch_ends)
    assert curve["row"].tolist() == [46, 93]
    assert curve["value"][-1] == float(model[5].bias[0].detach())


def test_half_precision_rounds_by_what_it_says(digits):
    _, _, paths, _, _ = digits
    whole, half = (
        np.asarray(Trajectory.open(paths[name]).weights, dtype=np.float64) for name in ("float32", "float16")
    )
    assert Trajectory.open(paths["float16"]).weights.dtype == np.float16
    assert (np.abs(half - whole) <= np.maximum(np.abs(whole) / 2048, 3e-8)).all()
    assert (half != whole).any()
    averages = [Trajectory.open(paths[name]).average([Constant(0.9)]) for name in ("float32", "float16")]
    np.testing.assert_allclose(averages[1], averages[0], rtol=1e-3, atol=1e-4)


def test_the_size_is_told_before(digits):
    _, _, paths, told, _ = digits
    for path, size in zip(paths.values(), told, strict=True):
        assert sum((path / name).stat().st_size for name in ("weights.npy", "copied.npy")) == size
    assert told[1] < 0.51 * told[0]


def test_every_kth_step(digits):
    _, _, paths, _, _ = digits
    thin, whole = Trajectory.open(paths["every"]), Trajectory.open(paths["float32"])
    np.testing.assert_array_equal(thin.weights, whole.weights[4::5])
    assert thin.epoch_ends == [8, 17]
    assert thin.steps == 90


def test_the_integers_are_those_of_the_last_move(tmp_path):
    model = Network()
    schedule = Constant(0.5, update_every=4)
    ema = EMA(model, schedule=schedule)
    with Recorder(model, tmp_path) as recorder:
        for step in range(11):
            change(model, step)
            ema.update()
            recorder.record()
    state = Trajectory.open(tmp_path).state(schedule)
    assert state["norm.num_batches_tracked"] == ema.ema_model.norm.num_batches_tracked == 8
    assert Trajectory.open(tmp_path).state(Window(3))["norm.num_batches_tracked"] == 10


def test_only_some_tensors(tmp_path):
    model = Network()
    with Recorder(model, tmp_path, names=["last.weight", "norm.num_batches_tracked"]) as recorder:
        for step in range(3):
            change(model, step)
            recorder.record()
    trajectory = Trajectory.open(tmp_path)
    assert trajectory.weights.shape == (3, 8)
    other = Network()
    before = tensors(other)
    trajectory.load_into(other, UniformAverage())
    changed = {name for name, tensor in tensors(other).items() if not torch.equal(tensor, before[name])}
    assert changed == {"last.weight", "norm.num_batches_tracked"}


def test_tied_half_double_and_complex_tensors(tmp_path):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.low = nn.Parameter(torch.zeros(3, 1, dtype=torch.float16))
            self.tied = self.low
            self.wide = nn.Parameter(torch.zeros(2, dtype=torch.float64))
            self.complex = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))
            self.register_buffer("flag", torch.tensor(False))

    model = Mixed()
    with Recorder(model, tmp_path) as recorder:
        for value in (1.0, 2.0, 6.0):
            with torch.no_grad():
                model.low.fill_(value)
                model.wide.fill_(value)
                model.complex.fill_(value * (1 + 2j))
                model.flag.fill_(value > 5)
            recorder.record()
    other = Mixed()
    Trajectory.open(tmp_path).load_into(other, UniformAverage())
    assert other.tied is other.low
    assert other.low.flatten().tolist() == [3.0] * 3
    assert other.wide.tolist() == [3.0] * 2
    assert other.complex.flatten().tolist() == [3 + 6j] * 4
    assert other.flag


def test_weights_that_do_not_lie_flat_and_a_replaced_tensor(tmp_path):
    model = nn.Conv2d(2, 3, 2, bias=False).to(memory_format=torch.channels_last)
    with Recorder(model, tmp_path) as recorder:
        recorder.record()
        first = model.weight.detach().clone()
        model.weight = nn.Parameter(torch.full((3, 2, 2, 2), 5.0))
        recorder.record()
    rows = Trajectory.open(tmp_path).weights
    np.testing.assert_array_equal(rows[0], first.contiguous().flatten())
    np.testing.assert_array_equal(rows[1], np.full(24, 5.0))


@pytest.mark.parametrize("value", [1e5, torch.inf, torch.nan])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_what_half_precision_cannot_hold_ends_the_recording_and_is_named(tmp_path, value, rows):
    """Up to there it is kept, though it was not written yet."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1))
    why = "'1.weight' is above 65504 or not finite then, which float16 cannot hold"
    recorder = Recorder(model, tmp_path, float16=True)
    for _ in range(rows):
        recorder.record()
    nn.init.constant_(model[1].weight, value)
    recorder.record()
    with pytest.warns(UserWarning, match=why):
        recorder.end_epoch()
    recorder.record()
    recorder.close()
    upto = f"the recording ends after step {rows - 1}" if rows else "nothing was recorded"
    assert recorder.error == f"{upto}: {why}"
    if rows:
        assert len(Trajectory.open(tmp_path).weights) == rows


def test_a_module_that_does_not_fit_is_told(tmp_path):
    model = nn.Linear(2, 1)
    with Recorder(model, tmp_path) as recorder:
        recorder.record()
        model.extra = nn.Parameter(torch.zeros(1))
        with pytest.raises(RuntimeError, match="has 'extra' more"):
            recorder.record()
    trajectory = Trajectory.open(tmp_path)
    with pytest.raises(RuntimeError, match=r"'weight' with shape \(1, 2\), the module has it with shape \(1, 3\)"):
        trajectory.load_into(nn.Linear(3, 1), Constant(0.5))
    with pytest.raises(RuntimeError, match="under no such name"):
        trajectory.load_into(nn.ReLU(), Constant(0.5))
    with pytest.raises(ValueError, match="one of the 1 recorded rows, got 1"):
        trajectory.load_into(model, Constant(0.5), at=1)
    with pytest.raises(ValueError, match=r"use evaluate\(\)"):
        trajectory.final({"a": Constant(0.5)})


def test_wrong_arguments_are_named(tmp_path):
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="every"):
        Recorder(model, tmp_path, every=0)
    with pytest.raises(ValueError, match="no tensor 'wieght'; it has 'bias', 'weight'"):
        Recorder(model, tmp_path, names=["wieght"])
    with pytest.raises(TypeError, match="collection of names"):
        Recorder(model, tmp_path, names="weight")
    with pytest.raises(ValueError, match="no floating-point tensor"):
        Recorder(nn.ReLU(), tmp_path)
    Recorder(model, tmp_path).close()
    with pytest.raises(FileExistsError, match="holds a recording already: choose another folder"):
        Recorder(model, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match=r"file cannot be a folder \(File exists\): choose another one"):
        Recorder(model, tmp_path / "file")


class Kept(nn.Module):
    """A mask in the state and one that is not, a statistic, and a cache that comes into being."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.register_buffer("least", torch.tensor([torch.finfo(torch.float32).min, 0.0]))
        self.register_buffer("passing", torch.full((4,), torch.nan), persistent=False)
        self.register_buffer("cache", None, persistent=False)


@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_buffers_that_are_no_statistics_are_kept_as_they_are(tmp_path, norm, float16):
    torch.manual_seed(0)

    def build():
        return nn.Sequential(norm(nn.Linear(2, 2)), Kept())

    model, schedule = build(), Constant(0.5)
    ema = EMA(model, schedule=schedule)
    with Recorder(model, tmp_path / "run", float16=float16) as recorder:
        for step in range(6):
            model[1].norm(model[0](torch.randn(4, 2)))
            model[1].cache = torch.zeros(step)
            model[1].passing = torch.zeros(step + 5)
            for parameter in model.parameters():
                parameter.data.normal_()
            recorder.record()
            ema.update()
    assert recorder.error is None
    other = build()
    Trajectory.open(tmp_path / "run").load_into(other, schedule)
    for name, tensor in ema.ema_model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=2e-3, atol=2e-3)
        if name.endswith(("_u", "_v", "mask", "least")):
            assert torch.equal(other.state_dict()[name], model.state_dict()[name])


def test_a_policy_says_which_buffers_are_kept_as_they_are_and_which_are_taken_so(tmp_path):
    model = nn.BatchNorm1d(1)
    recorders = [
        Recorder(model, tmp_path / str(n), buffers=policy)
        for n, policy in enumerate((None, "copy", lambda name, tensor: "copy"))
    ]
    for value in (1.0, 2.0, 6.0):
        model.running_mean.fill_(value)
        for recorder in recorders:
            recorder.record()
    for recorder in recorders:
        recorder.close()
    found = []
    for n in range(3):
        for policy in (None, "copy"):
            other = nn.BatchNorm1d(1)
            Trajectory.open(tmp_path / str(n)).load_into(other, Constant(0.5), buffers=policy)
            found.append(other.running_mean.item())
    assert found == [3.75, 6.0, 6.0, 6.0, 6.0, 6.0]


@pytest.mark.filterwarnings("ignore:.*quantized tensor")
def test_what_has_no_place_in_a_row_is_told_with_the_way_out(tmp_path):
    model = nn.Linear(1, 1)
    model.register_buffer("edges", torch.eye(2).to_sparse())
    with pytest.raises(ValueError, match="'edges' is of layout torch.sparse_coo, which has no place in a row"):
        Recorder(model, tmp_path / "all")
    quantised = nn.Linear(1, 1)
    quantised.register_buffer("codes", torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.qint8))
    with pytest.raises(ValueError, match="'codes' is of torch.qint8, which has no place in a row"):
        Recorder(quantised, tmp_path / "all")
    spread = nn.Linear(1, 1)
    spread.register_buffer("offset", torch.tensor([3.0]).expand(2))  # has one, though its numbers share theirs
    with Recorder(spread, tmp_path / "spread") as recorder:
        recorder.record()
    with Recorder(model, tmp_path / "some", names=["weight"]) as recorder:
        model.edges = torch.eye(3).to_sparse()
        recorder.record()
    model = nn.Linear(1, 1)
    model.register_buffer("positions", torch.zeros(2))
    with Recorder(model, tmp_path / "grows") as recorder:
        model.positions = torch.zeros(3)
        with pytest.raises(RuntimeError, match="'positions'.* differ in shape.*names= what stays as it is"):
            recorder.record()


@pytest.mark.parametrize("most", [0, 127, 128, 1000, 12_345])
def test_a_budget_is_kept_while_the_run_goes_on(tmp_path, most):
    model = nn.Linear(9, 1)
    with Recorder(model, tmp_path / "run", most_bytes=most) as recorder:
        for step in range(1000):
            recorder.record()
            if step % 50 == 49:
                recorder.end_epoch()
    size = (tmp_path / "run" / "weights.npy").stat().st_size
    rows = max(0, (most - 128) // recorder.row_bytes)
    assert size == 128 + rows * recorder.row_bytes
    began = f"the recording ends after step {rows - 1}" if rows else "nothing was recorded"
    assert f"{began}: it may take {in_bytes(most)} at most" == recorder.error
    assert len(read_recording(tmp_path / "run").weights) == rows


def test_of_rows_too_large_to_be_gathered_one_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "_BUFFER_BYTES", 1)
    model, file = nn.Linear(10, 10), tmp_path / "weights.npy"
    recorder = Recorder(model, tmp_path)
    written = []
    for step in range(4):
        change(model, step)
        recorder.record()
        written.append(file.stat().st_size)
    recorder.close()
    assert np.diff([*written, file.stat().st_size]).tolist() == [recorder.row_bytes] * 4
    assert len(np.load(file)) == 4


def test_a_disk_is_left_to_histories_before_it_is_full(tmp_path, monkeypatch):
    disk = SimpleNamespace(total=2**40, free=DISK_RESERVE + 1000)
    monkeypatch.setattr(recording.shutil, "disk_usage", lambda folder: disk)
    model = nn.Linear(9, 1)
    with Recorder(model, tmp_path / "run") as recorder:
        for _ in range(10):
            recorder.record()
        recorder.end_epoch()
        disk.free = DISK_RESERVE + 399
        for _ in range(10):
            recorder.record()
    assert recorder.error.startswith("the recording ends after step 18: the disk is nearly full")
    assert len(read_recording(tmp_path / "run").weights) == 19


def test_a_recording_whose_files_cannot_be_removed_gives_way_too(tmp_path, monkeypatch):
    model = nn.Linear(9, 1)
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.record()

        def stuck(*arguments, **options):
            raise PermissionError("not yours")

        monkeypatch.setattr(os, "unlink", stuck)
        recorder.give_way("the disk is full")
        recorder.record()
    assert recorder.error == "nothing is left of the recording: the disk is full"


def test_a_recording_gives_way_and_the_training_goes_on(tmp_path):
    model = nn.Linear(9, 1)
    with Recorder(model, tmp_path / "run") as recorder:
        for _ in range(5):
            recorder.record()
        recorder.end_epoch()
        rows = read_recording(tmp_path / "run").weights
        recorder.give_way("the disk is full")
        assert not (tmp_path / "run").exists()
        recorder.record()
        recorder.end_epoch()
    assert recorder.error == "nothing is left of the recording: the disk is full"
    assert np.isfinite(rows).all()  # whoever had it mapped can still read it


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
HOSTILE = {
    "every": st.one_of(st.sampled_from([0, -1, 2**31, 2**70, 1.5, "2", None, True]), JSON),
    "tensors": st.one_of(
        st.sampled_from(
            [
                {"w": {"shape": shape, "dtype": "float32"}}
                for shape in ([-1], [2**62, 2**62], [0], [1e3], ["a"], 5, None, [[1]], [2**31])
            ]
            + [{"w": {"shape": [9], "dtype": dtype}} for dtype in ("load", "nope", "int64", "complex64", "__class__")]
        ),
        JSON,
    ),
    "copied": JSON,
    "dtype": st.one_of(st.sampled_from(["float64", "int8"]), JSON),
    "epoch_ends": st.one_of(st.sampled_from([[-5], [-(2**63) - 1], [3, 1], ["x"], [10**30], [1.5], 7]), JSON),
    "version": JSON,
    "config": JSON,
}


@pytest.fixture(scope="module")
def recorded_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile") / "run"
    model = nn.Linear(9, 1)
    with Recorder(model, folder) as recorder:
        for _ in range(6):
            recorder.record()
        recorder.end_epoch()
    return folder, json.loads((folder / "run.json").read_text())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_description_is_a_recording_error_or_harmless(recorded_folder, name):
    folder, about = recorded_folder

    @settings(max_examples=FUZZED, deadline=None, database=None)
    @given(HOSTILE[name])
    def read(value):
        (folder / "run.json").write_text(json.dumps({**about, name: value}))
        try:
            rows = read_recording(folder)
        except RecordingError:
            return
        assert len(rows.steps) <= 6
        assert all(0 <= end < len(rows.steps) for end in rows.epoch_ends)
        assert rows.steps.max(initial=0) < RECORDED_STEPS

    read()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "[" * 100_000, '{"a":' * 50_000, "\ud800", '{"version": 1e999}', '{"version": []}']
)
def test_what_is_no_description_is_a_recording_error(recorded_folder, text):
    folder, _ = recorded_folder
    (folder / "run.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(RecordingError):
        read_recording(folder)


def test_a_frozen_mask_is_recorded_as_it_is(tmp_path):
    model = nn.Linear(2, 2)
    model.mask = nn.Parameter(torch.tensor([0.0, -float("inf")]), requires_grad=False)
    with Recorder(model, tmp_path / "run", float16=True) as recorder:
        for _ in range(3):
            recorder.record()
    nn.init.zeros_(model.mask)
    Trajectory.open(tmp_path / "run").load_into(model, Constant(0.5))
    assert model.mask.tolist() == [0.0, -float("inf")]


def test_what_is_recorded_after_the_end_is_not_lost_in_silence(tmp_path):
    model = nn.Linear(2, 1)
    with Recorder(model, tmp_path / "run") as recorder:
        recorder.record()
    with pytest.raises(RuntimeError, match="after close"):
        recorder.record()
    recorder.close()
    assert len(Trajectory.open(tmp_path / "run").weights) == 1


@pytest.mark.parametrize("given", [5, {"a": object()}, {"a": np.float32(1)}, {"a": {1, 2}}, "text"])
def test_settings_that_cannot_be_stored_are_told_before_anything_is(tmp_path, given):
    with pytest.raises(TypeError, match="settings must be a dictionary that JSON can hold"):
        Recorder(nn.Linear(2, 1), tmp_path / "run", settings=given)
    assert not (tmp_path / "run").exists()
    with Recorder(nn.Linear(2, 1), tmp_path / "run", settings={"a": (1, 2)}) as recorder:
        recorder.record()
    assert Trajectory.open(tmp_path / "run").settings == {"a": [1, 2]}
