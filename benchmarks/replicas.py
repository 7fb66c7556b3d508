"""An epoch of many seeds at once, per seed, against the plain loop's epoch, on one thread.

Run: python -m benchmarks.replicas
"""

import torch

from benchmarks.epoch import PlainLoop
from benchmarks.interleaved import medians, report
from emacore import RunConfig
from emacore.tasks.regression.data import load
from emacore.training.loop import _never
from emacore.training.replicas import _Stack

SEEDS = (8, 32, 64)


def main() -> None:
    torch.set_num_threads(1)
    config = RunConfig()
    data = [torch.from_numpy(part) for part in load(config.data)]
    stacks = {count: _Stack(config, range(count), {}, *data) for count in SEEDS}
    candidates = {f"{count} seeds": lambda stack=stack: stack.epoch(1, _never) for count, stack in stacks.items()}
    found = medians({**candidates, "plain loop": PlainLoop(config).epoch}, rounds=15)
    seconds = {f"a seed of {count}": found[f"{count} seeds"] / count for count in SEEDS}
    report(
        "One epoch of 50 steps, both evaluations included; x = plain loop / candidate",
        {**seconds, "plain loop": found["plain loop"]},
        "plain loop",
    )


if __name__ == "__main__":
    main()
