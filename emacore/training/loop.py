"""The training of one run, epoch by epoch, with its average, its stopping rule and its recording."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from emacore.checks import is_real
from emacore.courtesy import step_aside
from emacore.ema import EMA
from emacore.replay.recording import Recorder, thinning
from emacore.tensors.pairing import distinct
from emacore.training.config import OptimizerConfig, StoppingConfig, TaskConfig, check_config, check_rows
from emacore.training.history import MODELS, columns, summarise
from emacore.training.task import Dataset, Task

#: Seconds between two looks at ``should_stop`` inside an epoch.
SECONDS_BETWEEN_STOP_CHECKS = 0.2


@dataclass(frozen=True)
class RunResult:
    """What :func:`train` returns.

    Args:
        history: One row an epoch, the columns of :func:`emacore.training.history.columns`.
        summary: The final metrics: metric, original, ema, gain_percent (above 0 where the average is better).
        stopped: "early stop", "max epochs", "stopped" or "diverged".
        ema: The trained model and its average.
        recording_error: Why the recording ended before the run did, if it did.
    """

    config: TaskConfig
    history: pd.DataFrame
    summary: pd.DataFrame
    stopped: str
    ema: EMA
    recording_error: str | None = None


def train(
    config: TaskConfig,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    record: str | Path | None = None,
    record_bytes: float = math.inf,
    on_recorder: Callable[[Recorder], None] | None = None,
) -> RunResult:
    """Train the network of ``config`` and its average, and evaluate both after each epoch.

    The same config gives the same numbers, bit for bit, on the same machine with the same number of threads; the
    caller's random state is left as it was.

    Args:
        on_epoch: Called with each row of the history as soon as it is complete.
        should_stop: Asked after every epoch and a few times a second within one; an epoch that is cut short is dropped.
        record: A new folder in which to keep the weights after every step, for
            :class:`emacore.replay.trajectory.Trajectory`.
        record_bytes: What that may take at most; a run that could take more keeps every k-th step only, from which
            replays are no longer exact (:class:`~emacore.replay.trajectory.Trajectory` says by how much).  Where that
            is still too much, the recording ends there, and the run goes on.
        on_recorder: Called with what keeps the weights, before the first step: it can be told to give way.

    Raises:
        ValueError: if the data do not fit the settings (also :class:`emacore.tables.TableError`), or ``record_bytes``
            is no number.
        TypeError: if ``config`` is another thing.
        FileExistsError: if ``record`` holds a recording already.
    """
    check_config(config)
    if not is_real(record_bytes) or math.isnan(record_bytes):
        raise ValueError(f"record_bytes must be a number of bytes, got {record_bytes!r}")
    task = config.task()
    data = task.load(config)
    check_rows(len(data.x_train), config.optimizer.batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        run = _Run(config, task, data)
        recorder, error = None, None
        if record is not None:
            try:
                recorder = run.recorder = run.recorded(record, record_bytes)
            except FileExistsError:
                raise
            except OSError as problem:  # the run matters more than its recording
                error = f"nothing was recorded: {problem.strerror}"
            else:
                if on_recorder is not None:
                    on_recorder(recorder)
        try:
            rows, stopped = _epochs(run, on_epoch, should_stop)
        finally:
            if recorder is not None:
                recorder.close()
    history = pd.DataFrame(rows, columns=columns(config.metrics))
    if recorder is not None:
        error = recorder.error
    return RunResult(config, history, summarise(history, config.metrics), stopped, run.ema, error)


def _epochs(
    run: _Run, on_epoch: Callable[[dict[str, Any]], None] | None, should_stop: Callable[[], bool] | None
) -> tuple[list[dict[str, Any]], str]:
    """All epochs of a run: the rows of its history, and how it ended."""
    rows: list[dict[str, Any]] = []
    for epoch in range(1, run.config.max_epochs + 1):
        row = run.epoch(epoch, should_stop or _never)
        if row is None:
            return rows, "stopped"
        rows.append(row)
        if on_epoch is not None:
            on_epoch(row)
        if not all(math.isfinite(row[name]) for name in ("train_loss", "val_loss_original", "val_loss_ema")):
            return rows, "diverged"
        if run.stopping.is_over(row):
            return rows, "early stop"
        if should_stop is not None and epoch < run.config.max_epochs and should_stop():
            return rows, "stopped"
    return rows, "max epochs"


class _Run:
    def __init__(self, config: TaskConfig, task: Task, data: Dataset) -> None:
        self.config, self.task, self.data = config, task, data
        self.model = task.network(config, data).build()
        self.parameters = list(self.model.parameters())
        self.optimizer = make_optimizer(self.parameters, config.optimizer)
        self.rate_rule = RateRule(self.optimizer, config)
        self.ema = EMA(self.model, schedule=config.schedule)
        self.recorder: Recorder | None = None
        self.stopping = EarlyStop(config.stopping)
        self.begin = perf_counter()

    def recorded(self, folder: str | Path, most_bytes: float) -> Recorder:
        """A recorder of this run; where all steps would take more than ``most_bytes``, it keeps every k-th only."""
        steps = math.ceil(len(self.data.x_train) / self.config.optimizer.batch_size)
        row_bytes = sum(tensor.numel() * tensor.element_size() for tensor in distinct(self.model).values())
        every = thinning(steps, row_bytes, self.config.max_epochs, most_bytes)
        settings = json.loads(self.config.to_json())
        return Recorder(self.model, folder, every, settings=settings, most_bytes=most_bytes)

    def epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Train on every row once and evaluate; ``None`` if it was cut short."""
        train_loss = self._pass(should_stop)
        if train_loss is None:
            return None
        if self.recorder is not None:
            self.recorder.end_epoch()
        scores = [self._scores(model) for model in (self.model, self.ema)]
        row = {"epoch": epoch, "train_loss": train_loss}
        for column in (metric.column for metric in self.config.metrics):
            row |= {f"val_{column}_{name}": found[column] for name, found in zip(MODELS, scores, strict=True)}
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        row["decay"] = self.ema.get_current_decay()
        row["steps"] = int(self.ema.step)
        row["seconds"] = perf_counter() - self.begin
        self.rate_rule.adjust(row)
        return row

    def _pass(self, should_stop: Callable[[], bool]) -> float | None:
        self.model.train()
        # One permutation an epoch, applied at once: a DataLoader would collate the rows one by one.
        data = self.data
        order = torch.randperm(len(data.x_train))
        size = self.config.optimizer.batch_size
        losses: list[Tensor] = []
        looked = perf_counter()
        for x, y in zip(torch.split(data.x_train[order], size), torch.split(data.y_train[order], size), strict=True):
            step_aside()
            loss = self.task.loss(self.model(x), y)
            for parameter in self.parameters:  # Optimizer.zero_grad() spends as long on its profiler hook as on Adam
                parameter.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.ema.update()
            if self.recorder is not None:
                self.recorder.record()
            losses.append(loss.detach())
            if perf_counter() - looked > SECONDS_BETWEEN_STOP_CHECKS:
                if should_stop():
                    return None
                looked = perf_counter()
        rows = torch.full((len(losses),), float(size))
        rows[-1] = len(x)
        return float(torch.stack(losses) @ rows) / len(order)

    @torch.no_grad()
    def _scores(self, model: nn.Module) -> dict[str, float]:
        self.model.eval()
        found = self.task.score(model(self.data.x_val), self.data.y_val)
        return {name: float(value) for name, value in found.items()}


class EarlyStop:
    """The rule that ends a run once its best epoch lies ``patience`` epochs back."""

    def __init__(self, config: StoppingConfig) -> None:
        self.config = config
        self.best = math.inf
        self.best_epoch = 0

    def is_over(self, row: dict[str, Any]) -> bool:
        """Whether it ends the run after this row of its history."""
        if self.config.curve == "none":
            return False
        loss = row[f"val_loss_{self.config.curve}"]
        if loss < self.best:
            self.best, self.best_epoch = loss, row["epoch"]
        return bool(row["epoch"] - self.best_epoch >= self.config.patience)


class RateRule:
    """How the learning rate of an optimiser changes after each epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: TaskConfig) -> None:
        settings = config.optimizer
        self.curve = settings.plateau_curve
        self.rule: ReduceLROnPlateau | CosineAnnealingLR | None = None
        if settings.rate_rule == "plateau":
            self.rule = ReduceLROnPlateau(optimizer, factor=settings.plateau_factor, patience=settings.plateau_patience)
        elif settings.rate_rule == "cosine":
            self.rule = CosineAnnealingLR(optimizer, T_max=config.max_epochs)

    def adjust(self, row: dict[str, Any]) -> None:
        """Take an epoch's row of the history into account."""
        if isinstance(self.rule, ReduceLROnPlateau):
            # A share of the best loss: where that is below 0 it must be taken off on the other side.
            self.rule.threshold = math.copysign(self.rule.threshold, self.rule.best)
            self.rule.step(row[f"val_loss_{self.curve}"])
        elif self.rule is not None:
            self.rule.step()


def make_optimizer(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser that ``config`` describes."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
    if config.name == "sgd":
        return uncompiled(torch.optim.SGD)(parameters, momentum=config.momentum, **settings)
    return uncompiled(torch.optim.Adam if config.name == "adam" else torch.optim.AdamW)(parameters, **settings)


@cache
def uncompiled(kind: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """A kind of optimiser whose steps do not ask whether they are compiled: to load the compiler for that takes longer
    than many a training."""
    own = {
        "add_param_group": inspect.unwrap(kind.add_param_group),
        "step": torch.no_grad()(inspect.unwrap(kind.step)),
    }
    return type(kind.__name__, (kind,), own)


def _never() -> bool:
    return False
