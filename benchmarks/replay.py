"""What recording the article's run costs, and how long replays of it take, on one thread.

Run: python -m benchmarks.replay
"""

import os
import tempfile
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.interleaved import medians, report
from emacore import RunConfig
from emacore.averaging.families import Constant, InversePower, PowerFunction
from emacore.replay.atlas import _reach, atlas, axes, partners
from emacore.replay.recording import Recorder
from emacore.replay.rows import Rows
from emacore.replay.trajectory import Table, Trajectory
from emacore.tasks import open_run
from emacore.training.config import StoppingConfig
from emacore.training.loop import _never, _Run, train


def anew(*arguments: Any) -> Table:
    """An atlas whose reachable widths are not cached from an earlier one."""
    _reach.cache_clear()
    return atlas(*arguments)


def _first(tensors: dict[str, torch.Tensor]) -> float:
    return float(tensors["0.bias"][0])


def _read_anew(path: Path) -> Trajectory:
    """Rows of 100,000 weights that the system has to read from the disk."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    rows = np.load(path, mmap_mode="r")
    return Trajectory(Rows(rows, np.arange(len(rows)), {"0.bias": torch.empty(rows.shape[1], device="meta")}))


def _seconds_per_operation() -> float:
    """Seconds of a multiplication or addition in a large float32 matrix product, where nothing waits for memory."""
    square = np.ones((2000, 2000), dtype=np.float32)
    seconds = medians({"product": lambda: square @ square}, rounds=3, clock=process_time)["product"]
    return seconds / (2 * 2000**3)


def main() -> None:
    torch.set_num_threads(1)
    config = RunConfig()
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(1):
        task = config.task()
        data = task.load(config)
        plain, recorded = _Run(config, task, data), _Run(config, task, data)
        recorded.recorder = Recorder(recorded.model, Path(folder) / "epochs")
        seconds = medians(
            {"an epoch, recorded": lambda: recorded.epoch(1, _never), "an epoch": lambda: plain.epoch(1, _never)},
            rounds=60,
        )
        report("One epoch of 50 steps; x = plain / candidate", seconds, "an epoch")
        print(f"  recording adds {100 * (seconds['an epoch, recorded'] / seconds['an epoch'] - 1):.1f} %")
        recorded.recorder.close()

        train(config, record=Path(folder) / "run")
        trajectory = open_run(Path(folder) / "run")
        rows = np.array(trajectory.weights)
        grid = {
            f"{power:.3f} {beta}": InversePower(beta, power=power, update_after_step=100, update_every=1)
            for power in np.linspace(0.3, 1.5, 20)
            for beta in 1 - np.geomspace(1e-1, 1e-5, 20)
        }
        one, many = list(grid.values())[:1], list(grid.values())[:64]
        seconds = medians(
            {
                "one sum over the file in memory": lambda: rows.sum(),
                "1 schedule, last step": lambda: trajectory.average(one, [len(rows) - 1]),
                "1 schedule, all epochs": lambda: trajectory.average(one),
                "64 schedules, all epochs": lambda: trajectory.average(many),
                "400 final settings, evaluated": lambda: trajectory.final(grid),
            },
            rounds=7,
        )
        memories = np.geomspace(3, 1000, 10)
        different = {f"constant {memory}": Constant(1 - 1 / memory) for memory in memories}
        different |= {f"power {width}": PowerFunction(sigma_rel=width) for width in np.geomspace(0.01, 0.25, 10)}
        caps = {f"cap {1 - left}": InversePower(1 - left, update_every=1) for left in np.geomspace(1e-1, 1e-5, 20)}
        drawn = np.random.default_rng(0).standard_normal((1000, 100_000), dtype=np.float32)
        larger = Trajectory(Rows(drawn, np.arange(1000), {"0.bias": torch.empty(100_000, device="meta")}))
        first = dict(list(different.items())[:1])
        for what, run in (("the article's run", trajectory), ("100,000 weights, 1,000 rows", larger)):
            cheap = medians(
                {
                    "evaluate 1 scheme": lambda run=run, one=first: run.evaluate(one, _first),
                    "20 different schemes": lambda run=run: run.evaluate(different, _first),
                    "20 warmups with different caps": lambda run=run: run.evaluate(caps, _first),
                },
                rounds=7,
                clock=process_time,
            )
            one, *twenty = cheap.values()
            report(f"evaluate() of what costs nothing, {what}; x = 1 scheme / candidate", cheap, "evaluate 1 scheme")
            print(f"  20 schemes cost {twenty[0] / one:.1f} and {twenty[1] / one:.1f} times one")
            bound = 2 * 20 * run.weights.size * _seconds_per_operation() / one
            print(f"  their multiplications and additions alone, at this core's best: {bound:.1f} times one")
        np.save(Path(folder) / "large.npy", drawn)
        os.sync()  # what is not on the disk yet stays in memory
        read = medians(
            {
                "evaluate 1 scheme": lambda: _read_anew(Path(folder) / "large.npy").evaluate(first, _first),
                "20 different schemes": lambda: _read_anew(Path(folder) / "large.npy").evaluate(different, _first),
            },
            rounds=7,
        )
        report("The same, read from the disk; x = 1 scheme / candidate", read, "evaluate 1 scheme")
        print(f"  20 schemes cost {read['20 different schemes'] / read['evaluate 1 scheme']:.1f} times one")
        size = rows.nbytes / 2**20
        report(f"A recording of {size:.0f} MB; x = one sum / candidate", seconds, "one sum over the file in memory")

        atlases = {
            f"{x}, {y}, {metric}": lambda x=x, y=y, metric=metric: anew(trajectory, config.schedule, x, y, metric)
            for x, y in combinations(axes(InversePower), 2)
            if y in partners(x)
            for metric in ("final", "best")
        }
        slowest = Counter(medians(atlases, rounds=3)).most_common(3)
        print(f"\nThe slowest of the {len(atlases)} atlases:")
        for name, took in slowest:
            print(f"  {name:<42} {took:6.2f} s")

        short = replace(config, max_epochs=8, stopping=StoppingConfig("none"))
        train(short, record=Path(folder) / "short")
        trajectory = open_run(Path(folder) / "short")
        cpu = medians(
            {
                "400 final settings of a record of 8 epochs": lambda: trajectory.final(grid),
                "training those 8 epochs, 25 times": lambda: [train(short) for _ in range(25)],
            },
            rounds=3,
            clock=process_time,
        )
        report("CPU time; x = training / candidate", cpu, "training those 8 epochs, 25 times")


if __name__ == "__main__":
    main()
