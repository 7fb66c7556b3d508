"""Rows of weights at any steps: what each stands for, what is asked of them, and how often they are read."""

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from emacore.averaging.families import (
    BiasCorrected,
    Constant,
    ExponentialRamp,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
)
from emacore.averaging.windows import Window
from emacore.replay import trajectory
from emacore.replay.rows import _POPULATE_READ, Rows, read_in_turn
from emacore.replay.trajectory import Trajectory

STARTS = st.integers(0, 12)
EVERY = st.integers(1, 5)
SCHEDULES = st.one_of(
    st.builds(Constant, st.sampled_from([0.0, 0.5, 0.97]), update_after_step=STARTS, update_every=EVERY),
    st.builds(InversePower, st.sampled_from([0.8, 0.999]), update_after_step=STARTS, update_every=EVERY),
    st.builds(BiasCorrected, st.just(0.9), update_after_step=STARTS, update_every=EVERY),
    st.builds(RationalWarmup, st.just(0.99), update_after_step=STARTS, update_every=EVERY),
    st.builds(ExponentialRamp, st.just(0.99), st.just(20.0), update_after_step=STARTS, update_every=EVERY),
    st.builds(PowerFunction, sigma_rel=st.sampled_from([0.05, 0.2]), update_after_step=STARTS, update_every=EVERY),
    st.builds(UniformAverage, update_after_step=STARTS, update_every=EVERY),
)
SCHEMES = SCHEDULES | st.builds(Window, st.integers(1, 40), st.none() | SCHEDULES)
STEPS = st.lists(st.integers(1, 9), min_size=1, max_size=9).map(lambda gaps: (np.cumsum(gaps) - 1).tolist())
TENSORS = {"weight": torch.empty(2, 2, device="meta"), "bias": torch.empty(3, device="meta", dtype=torch.float64)}
COPIED = {"count": torch.empty((), dtype=torch.int64, device="meta"), "flag": torch.empty(2, dtype=torch.bool)}


def uneven(steps):
    """Rows at these steps, with what is copied: the step itself, and whether it is odd."""
    values = np.random.default_rng(len(steps)).standard_normal((len(steps), 7)).astype(np.float32)
    copied = [np.int64(step).tobytes() + bytes([step % 2, 1]) for step in steps]
    return Rows(
        values,
        np.array(steps),
        TENSORS,
        epoch_ends=range(0, len(steps), 2),
        copied=np.frombuffer(b"".join(copied), np.uint8).reshape(len(steps), 10),
        copied_tensors=COPIED,
    )


def row_of_step(steps):
    """The row that each step is taken for: the next one that there is."""
    return [next(row for row, step in enumerate(steps) if step >= moment) for moment in range(steps[-1] + 1)]


def plain_weights(scheme, steps, row):
    """What each row weighs in the average after ``row``: every step moved with the weights of the row it stands for."""
    of_step = row_of_step(steps)[: steps[row] + 1]
    if isinstance(scheme, Window):
        of_step = of_step[-scheme.size :]
        scheme = scheme.schedule or UniformAverage()
    found = np.zeros(len(steps))
    for decay, its_row in zip(scheme.decays(len(of_step)).tolist(), of_step, strict=True):
        found *= decay
        found[its_row] += 1 - decay
    return found


def plain_copy(scheme, steps, row):
    """The step whose integers an average has after ``row``: the row's that stands for the last move."""
    last = steps[row]
    if not isinstance(scheme, Window):
        last -= last % scheme.update_every
    return steps[row_of_step(steps)[last]]


@given(STEPS, st.lists(SCHEMES, min_size=1, max_size=4), st.sampled_from([8 * 2**20, 64, 1]), st.integers(1, 8))
def test_a_row_stands_for_all_steps_since_the_row_before(steps, schemes, block, strip):
    rows = uneven(steps)
    kept = trajectory._BLOCK_BYTES, trajectory._STRIP_COLUMNS
    try:
        trajectory._BLOCK_BYTES, trajectory._STRIP_COLUMNS = block, strip
        opened = Trajectory(rows)
        averages = opened.average(schemes, range(len(steps)))
        named = {str(n): scheme for n, scheme in enumerate(schemes)}
        seen = opened.evaluate(
            named,
            lambda state: {
                "first": float(state["weight"][0, 0]),
                "last": float(state["bias"][-1]),
                "count": int(state["count"]),
            },
            range(len(steps)),
        )
    finally:
        trajectory._BLOCK_BYTES, trajectory._STRIP_COLUMNS = kept
    assert seen["schedule"].tolist() == [name for name in named for _ in steps]
    assert seen["row"].tolist() == list(range(len(steps))) * len(schemes)
    values = rows.weights.astype(float)
    for n, scheme in enumerate(schemes):
        expected = np.array([plain_weights(scheme, steps, row) @ values for row in range(len(steps))])
        np.testing.assert_allclose(averages[n], expected, rtol=1e-5, atol=2e-6)
        own = seen["schedule"] == str(n)
        np.testing.assert_allclose(seen["first"][own], expected[:, 0], rtol=1e-5, atol=2e-6)
        np.testing.assert_allclose(seen["last"][own], expected[:, -1], rtol=1e-5, atol=2e-6)
        assert seen["count"][own].tolist() == [plain_copy(scheme, steps, row) for row in range(len(steps))]


@given(STEPS, SCHEMES, st.data())
def test_shares_decays_and_states_of_uneven_rows(steps, scheme, data):
    opened = Trajectory(uneven(steps))
    assert opened.steps == steps[-1] + 1
    assert opened.every == max(np.diff([-1, *steps]))
    shares = opened.shares(scheme)
    np.testing.assert_allclose(shares, plain_weights(scheme, steps, -1), atol=1e-12)
    row = data.draw(st.integers(0, len(steps) - 1))
    state = opened.state(scheme, row)
    assert list(state) == ["weight", "bias", "count", "flag"]
    flat = plain_weights(scheme, steps, row) @ opened.weights.astype(float)
    torch.testing.assert_close(state["weight"], torch.tensor(flat[:4].reshape(2, 2)).float(), rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(state["bias"], torch.tensor(flat[4:]), rtol=1e-5, atol=2e-6)
    copied = plain_copy(scheme, steps, row)
    assert state["count"].dtype == torch.int64
    assert state["count"] == copied
    assert state["flag"].tolist() == [bool(copied % 2), True]
    if not isinstance(scheme, Window):
        decays = scheme.decays(steps[row] + 1)
        of_row = np.array(row_of_step(steps)[: steps[row] + 1])
        products = [np.prod(decays[of_row == n]) for n in range(row + 1)]
        np.testing.assert_allclose(opened.decays(scheme, row + 1), products, atol=1e-15)


def test_rows_of_states_hold_them_in_the_order_of_their_names():
    states = [
        {"a": torch.full((2,), float(n)), "b": torch.full((1, 2), 10.0 * n, dtype=torch.float64)} for n in range(3)
    ]
    rows = Rows.of(states)
    assert rows.weights.tolist() == [[0, 0, 0, 0], [1, 1, 10, 10], [2, 2, 20, 20]]
    assert rows.weights.dtype == np.float32
    assert rows.steps.tolist() == [0, 1, 2]
    assert all(tensor.is_meta for tensor in rows.tensors.values())
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in rows.tensors.items()} == {
        "a": ((2,), torch.float32),
        "b": ((1, 2), torch.float64),
    }
    later = Rows.of(states, [3, 4, 9])
    assert later.steps.tolist() == [3, 4, 9]
    mean = Trajectory(later).state(UniformAverage())["a"]
    assert mean.tolist() == pytest.approx([(4 * 0 + 1 * 1 + 5 * 2) / 10] * 2)
    other = [states[0], {"b": states[1]["b"], "a": states[1]["a"]}]  # another order of the same names
    assert Rows.of(other).weights.tolist() == [[0, 0, 0, 0], [1, 1, 10, 10]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.zeros((3, 5), np.float32)}, r"weights must have shape \(T, 7\), .*got \(3, 5\)"),
        ({"weights": np.zeros(7, np.float32)}, r"weights must have shape \(T, 7\), .*got \(7,\)"),
        ({"steps": np.array([0, 1])}, "steps must be 3 rising numbers of at least 0, one for each row"),
        ({"steps": np.array([0, 2, 2])}, "steps must be 3 rising"),
        ({"steps": np.array([2, 1, 3])}, "steps must be 3 rising"),
        ({"steps": np.array([-1, 1, 3])}, "steps must be 3 rising"),
        ({"steps": np.array([[0, 1, 2]])}, "steps must be 3 rising"),
        ({"epoch_ends": [3]}, r"epoch_ends must be rising rows from 0 to 2; got \[3\]"),
        ({"epoch_ends": [-1, 1]}, "epoch_ends must be rising rows"),
        ({"epoch_ends": [1, 1]}, "epoch_ends must be rising rows"),
        ({"epoch_ends": [2, 0]}, "epoch_ends must be rising rows"),
    ],
)
def test_rows_that_do_not_fit_each_other_are_told(change, message):
    fitting = {"weights": np.zeros((3, 7), np.float32), "steps": np.array([0, 4, 5]), "tensors": TENSORS}
    assert Rows(**fitting, epoch_ends=[0, 2]).epoch_ends == [0, 2]
    with pytest.raises(ValueError, match=message):
        Rows(**(fitting | change))


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([], "at least one state"),
        ([{"a": torch.zeros(2)}, {"b": torch.zeros(2)}], "state 1 has other tensors"),
        ([{"a": torch.zeros(2)}, {"a": torch.zeros(2)}, {"a": torch.zeros(3)}], "state 2 has other tensors"),
        ([{"a": torch.zeros(2)}, {"a": torch.zeros(2), "b": torch.zeros(1)}], "state 1 has other tensors"),
    ],
)
def test_states_that_are_not_of_one_module_are_told(states, message):
    with pytest.raises(ValueError, match=message):
        Rows.of(states)


def test_steps_of_states_must_be_one_for_each():
    with pytest.raises(ValueError, match="steps must be 2 rising"):
        Rows.of([{"a": torch.zeros(1)}] * 2, [0, 1, 2])


class Counted:
    """Weights that count how often each of their numbers is read, and how many bytes at most at once."""

    def __init__(self, values):
        self.values, self.reads, self.most = values, np.zeros(values.shape, dtype=int), 0
        self.ndim, self.shape, self.dtype = values.ndim, values.shape, values.dtype

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        self.reads[key] += 1
        self.most = max(self.most, self.values[key].nbytes)
        return self.values[key]


@pytest.mark.parametrize("columns", [40, 20_000])
@pytest.mark.parametrize("at", [None, [4, 17, 29]])
def test_however_many_schemes_each_weight_is_read_once_and_few_at_a_time(columns, at, monkeypatch):
    monkeypatch.setattr(trajectory, "_BLOCK_BYTES", 2**16)
    weights = Counted(np.random.default_rng(0).standard_normal((30, columns)).astype(np.float32))
    opened = Trajectory(Rows(weights, np.arange(30), {"a": torch.empty(columns, device="meta")}))
    schemes = {f"{n}": Constant(1 - 0.5**n) for n in range(1, 18)} | {f"w{n}": Window(n) for n in (1, 9, 40)}
    found = opened.evaluate(schemes, lambda state: float(state["a"][-1]), at)
    assert len(found["value"]) == 20 * len(at or [29])
    assert (weights.reads == 1).all()
    assert weights.most <= 2**16
    by_hand = weights.values[21:, -1].mean()
    assert found["value"][-1 - len(at or [29])] == pytest.approx(by_hand, rel=1e-4)  # Window(9)


@given(STEPS, st.lists(SCHEMES, min_size=1, max_size=4), st.sampled_from([8 * 2**20, 64, 1]), st.data())
def test_what_is_not_finite_spoils_what_it_weighs_in_and_nothing_else(steps, schemes, block, data):
    rows = uneven(steps)
    for value in (np.nan, np.inf, -np.inf):
        row, column = data.draw(st.integers(0, len(steps) - 1)), data.draw(st.integers(0, 6))
        rows.weights[row, column] = value
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trajectory, "_BLOCK_BYTES", block)
        averages = Trajectory(rows).average(schemes, range(len(steps)))
    for n, scheme in enumerate(schemes):
        for row in range(len(steps)):
            shares = plain_weights(scheme, steps, row)
            with np.errstate(invalid="ignore"):
                expected = shares[shares != 0] @ rows.weights[shares != 0].astype(float)
            np.testing.assert_allclose(averages[n, row], expected, rtol=1e-5, atol=2e-6)


def test_what_nobody_weighs_is_not_read():
    values = Counted(np.ones((100, 3), np.float32))
    opened = Trajectory(Rows(values, np.arange(100), {"a": torch.empty(3, device="meta")}))
    late = [Constant(0.9, update_after_step=60), Window(30), Constant(0.5, update_after_step=80)]
    np.testing.assert_allclose(opened.average(late, [99]), 1, rtol=1e-6)
    assert (values.reads[:60] == 0).all()
    assert (values.reads[60:] == 1).all()


def _mapped_bytes(path):
    """How much of a mapped file lies in this process's memory."""
    mappings = Path("/proc/self/smaps").read_text().split(str(path))[1:]
    return sum(1024 * int(mapping.split("Rss:")[1].split()[0]) for mapping in mappings)


def _linux_can_populate():
    try:
        mmap.mmap(-1, mmap.PAGESIZE).madvise(_POPULATE_READ)
    except (OSError, AttributeError):
        return False
    return True


@pytest.mark.skipif(not _linux_can_populate(), reason="Linux can from 5.14 on")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_part_of_a_mapped_file_that_was_read_in_turn_is_in_memory(dtype, tmp_path):
    np.save(tmp_path / "rows.npy", np.ones((64, 50_000), dtype=dtype))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")[:60]  # as a recording that still grows is cut
    assert _mapped_bytes(tmp_path) == 0
    read_in_turn(mapped, slice(8, 60), slice(11_111, 44_444))
    assert _mapped_bytes(tmp_path) >= mapped[8:60, 11_111:44_444].nbytes


@pytest.mark.parametrize("weights", [np.ones((5, 7), "float32"), np.ones((0, 7), "float32"), [[1.0, 2.0]]])
def test_rows_that_are_not_mapped_are_left_alone(weights):
    read_in_turn(weights, slice(0, 1), slice(0, 1))


@pytest.mark.parametrize("columns", [1, 40, 64, 200])
def test_for_many_schemes_mapped_rows_are_read_in_turn_once_and_few_columns_at_a_time(columns, tmp_path, monkeypatch):
    values = np.random.default_rng(0).standard_normal((30, columns), dtype=np.float32)
    np.save(tmp_path / "rows.npy", values)
    tensors = {"w": torch.empty(columns, device="meta")}
    in_memory, mapped = (
        Trajectory(Rows(weights, np.arange(30), tensors))
        for weights in (values, np.load(tmp_path / "rows.npy", mmap_mode="r"))
    )
    monkeypatch.setattr(trajectory, "_BLOCK_BYTES", 4 * 16 * 7)
    monkeypatch.setattr(trajectory, "_STRIP_COLUMNS", 16)
    monkeypatch.setattr(trajectory, "_BLOCK_COLUMNS", 64)
    asked, most = np.zeros(values.shape), []

    def read(weights, *part):
        asked[part] += 1
        most.append(values[part].shape[1])
        read_in_turn(weights, *part)

    monkeypatch.setattr(trajectory, "read_in_turn", read)
    mapped.average([Constant(0.9)])
    assert not most  # the product of a single scheme asks for row by row anyway
    schemes = [Constant(0.9), Constant(0.99)]
    found = mapped.average(schemes, [29])
    np.testing.assert_allclose(mapped.average(schemes, [7, 29])[:, 1], found[:, 0], atol=1e-6)  # not read in turn again
    assert (asked == 1).all()
    assert max(most) <= 64
    assert np.array_equal(found, in_memory.average(schemes, [29]))


def test_schemes_are_weighed_once_where_they_are_the_same(monkeypatch):
    weighed, plain = [], trajectory._weighed
    monkeypatch.setattr(trajectory, "_weighed", lambda shares, rows: weighed.append(len(shares)) or plain(shares, rows))
    values = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    opened = Trajectory(Rows(values, np.arange(60), {"a": torch.empty(3, device="meta")}))
    caps = [InversePower(cap, update_after_step=0, update_every=1) for cap in (0.999, 0.9, 0.99, 0.9)]
    sums = [cap.decays(60).sum() for cap in caps]
    assert sums[0] == sums[2] > sums[1] == sums[3]  # over 60 steps 0.9 is reached, 0.99 and 0.999 are not
    together = opened.average(caps, [9, 59])
    assert weighed == [1, 2]
    for n, cap in enumerate(caps):
        np.testing.assert_allclose(together[n], opened.average([cap], [9, 59])[0], rtol=1e-5, atol=2e-6)


def test_equal_sums_of_decays_are_not_taken_for_equal_decays():
    decays = np.array([[0.5, 0.25], [0.25, 0.5], [0.5, 0.25], [0.75, 0.0], [0.25, 0.5]])
    kinds, kind_of = trajectory._kinds(decays)
    np.testing.assert_array_equal(decays[kinds][kind_of], decays)


PEAK = """
import sys, threading
import numpy as np, torch
from emacore.averaging.families import Constant
from emacore.replay.trajectory import Trajectory

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def sample():
    global most
    while not done.wait(0.002):
        most = max(most, anonymous())

small, *large = map(Trajectory.open, sys.argv[1:])
small.load_into(torch.nn.Linear(8, 8, bias=False), Constant(0.5))  # what is loaded but once
for opened in large:
    before, most, done = anonymous(), 0, threading.Event()
    module = torch.nn.Linear(4000, 4000, bias=False)
    thread = threading.Thread(target=sample)
    thread.start()
    opened.load_into(module, Constant(0.9))
    done.set()
    thread.join()
    print(most - before, 4 * module.weight.numel() / 1024)
    del module
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_loading_a_module_takes_as_much_memory_again_as_it_has(tmp_path):
    """At its peak there are the module (of 16 million weights), what is loaded into it, and one block of that."""
    from emacore.replay.recording import Recorder

    recordings = [("small", 8, False), ("float32", 4000, False), ("float16", 4000, True)]
    for name, width, float16 in recordings:
        module = nn.Linear(width, width, bias=False)
        with Recorder(module, tmp_path / name, float16=float16) as recorder:
            for _ in range(2):
                recorder.record()
    command = [sys.executable, "-c", PEAK, *(tmp_path / name for name, _, _ in recordings)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(found) == 2
    for line in found:
        most, size = map(float, line.split())
        assert 1.9 * size < most < 2.1 * size, (most, size)


def test_complex_states_are_averaged_and_what_cannot_be_is_named():
    states = [{"wave": torch.tensor([1 + 2j, 3.0])}, {"wave": torch.tensor([3.0, 1 + 2j])}]
    found = Trajectory(Rows.of(states)).state(UniformAverage())["wave"]
    torch.testing.assert_close(found, torch.tensor([2 + 1j, 2 + 1j]))
    for other in ([{"count": torch.tensor(3)}], [{"count": 3}]):
        with pytest.raises(TypeError, match="'count' must be a floating-point or complex tensor"):
            Rows.of(other)
    for other in (states[0], [5], [[torch.ones(1)]]):
        with pytest.raises(TypeError, match="states must be a list of mappings"):
            Rows.of(other)
