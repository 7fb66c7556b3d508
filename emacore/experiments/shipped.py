"""A study and a sweep that come with the package, so that their pages show some before anybody trained one.

Both were trained by ``python -m benchmarks.shipped``, as :func:`~emacore.training.replicas.replicate` and
:func:`~emacore.experiments.sweep.sweep` train those that one starts.  Imports no torch.
"""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import pandas as pd

from emacore.averaging.code import to_code
from emacore.experiments.names import PERSON
from emacore.experiments.store import StoredRun
from emacore.experiments.studies import Job, Study, Sweep
from emacore.experiments.sweep import columns_of
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import OptimizerConfig, StoppingConfig, article_schedule

#: The id of a shipped job, which no stored one has.
SHIPPED = "shipped"
COMMAND = "python -m benchmarks.shipped"

SEEDS = tuple(range(32))
#: The article's run, 32 times.
STUDY = Study(RunConfig(), SEEDS)
#: The article's network and data, at a learning rate that is never lowered, for 3,000 steps.
SWEEP = Sweep(
    RunConfig(optimizer=OptimizerConfig(rate_rule="constant"), stopping=StoppingConfig("none"), max_epochs=60),
    {
        "optimizer.learning_rate": [0.001, 0.003, 0.01, 0.03],
        "schedule": [
            to_code(article_schedule()),
            "Constant(beta=0.99)",
            "Constant(beta=0.999)",
            "Constant(beta=0.9999)",
            "UniformAverage(update_after_step=1500)",
        ],
    },
    SEEDS,
)

#: A line that says how it was made, then a row for each seed and epoch.
STUDY_FILE = Path(__file__).with_name("shipped_study.csv")
#: A line that says how it was made, then a row for each cell and seed.
SWEEP_FILE = Path(__file__).with_name("shipped_sweep.csv")
#: Digits that are kept of each number.
DIGITS = 6


def study() -> tuple[StoredRun, pd.DataFrame]:
    """The shipped study as the store would have it, and its history: seed, epoch, and each epoch's losses and metrics.

    Numbers have six digits.  Learning rates, steps and seconds are left out.
    """
    return _stored(STUDY, "all seeds ended"), _read(STUDY_FILE)[1].copy()


def sweep() -> tuple[StoredRun, pd.DataFrame]:
    """The shipped sweep as the store would have it, and its table.  Numbers have six digits."""
    table = _read(SWEEP_FILE)[1]
    return _stored(SWEEP, "all cells trained"), table.reindex(columns=[*SWEEP.grid, *columns_of(SWEEP.config)])


def made(path: Path) -> str:
    """How, when and with what a shipped file was made."""
    return _read(path)[0]


@cache
def _read(path: Path) -> tuple[str, pd.DataFrame]:
    first, _, content = path.read_text().partition("\n")
    return first.removeprefix("# "), pd.read_csv(io.StringIO(content))


def _stored(job: Job, stopped: str) -> StoredRun:
    return StoredRun(
        id=SHIPPED,
        name=None,
        asked=PERSON,
        state="done",
        job=job,
        created=0.0,
        started=None,
        finished=None,
        stopped=stopped,
        error=None,
        summary=pd.DataFrame(),
    )
