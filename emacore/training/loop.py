"""One run, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from emacore.ema import EMA
from emacore.training.config import OptimizerConfig, RunConfig, StoppingConfig, check_rows
from emacore.training.data import load
from emacore.training.history import COLUMNS, summarise
from emacore.training.metrics import METRICS, metrics
from emacore.training.network import build
from emacore.training.recording import Recorder, thinning

#: Seconds between two looks at ``should_stop`` inside an epoch.
_PATIENCE = 0.2


@dataclass(frozen=True)
class RunResult:
    """What :func:`train` returns.

    Args:
        history: One row an epoch, the columns of :data:`emacore.training.history.COLUMNS`.
        summary: The final metrics: metric, original, ema, improvement (percent).
        stopped: "early stop", "max epochs", "stopped" or "diverged".
        ema: The trained model and its average.
        recording_error: Why the recording ended before the run did, if it did.
    """

    config: RunConfig
    history: pd.DataFrame
    summary: pd.DataFrame
    stopped: str
    ema: EMA
    recording_error: str | None = None


def train(
    config: RunConfig,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    record: str | Path | None = None,
    record_bytes: float = math.inf,
) -> RunResult:
    """Train the network of ``config`` and its average, and evaluate both after each epoch.

    The same config gives the same numbers, bit for bit, on the same machine with the same number of threads; the
    caller's random state is left as it was.

    Args:
        on_epoch: Called with each row of the history as soon as it is complete.
        should_stop: Asked after every epoch and a few times a second within one; an epoch that is cut short is dropped.
        record: A new folder in which to keep the weights after every step, for
            :class:`emacore.training.trajectory.Trajectory`.
        record_bytes: What that may take at most; a run that could take more keeps every k-th step only, from which
            replays are no longer exact (:class:`~emacore.training.trajectory.Trajectory` says by how much).

    Raises:
        ValueError: if the data do not fit the settings (also :class:`emacore.tables.TableError`).
    """
    data = load(config.data)
    check_rows(len(data.x_train), config.optimizer.batch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        run = _Run(config, *(torch.from_numpy(part) for part in data))
        recorder, error = None, None
        if record is not None:
            try:
                recorder = run.recorder = run.recorded(record, record_bytes)
            except FileExistsError:
                raise
            except OSError as problem:  # the run matters more than its recording
                error = f"nothing was recorded: {problem.strerror}"
        try:
            rows, stopped = _epochs(run, on_epoch, should_stop)
        finally:
            if recorder is not None:
                recorder.close()
    history = pd.DataFrame(rows, columns=list(COLUMNS))
    if recorder is not None:
        error = recorder.error
    return RunResult(config, history, summarise(history), stopped, run.ema, error)


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
    def __init__(self, config: RunConfig, x_train: Tensor, x_val: Tensor, y_train: Tensor, y_val: Tensor) -> None:
        self.config = config
        self.x_train, self.y_train, self.x_val, self.y_val = x_train, y_train, x_val, y_val
        self.model = build(x_train.shape[1], config.network)
        self.parameters = list(self.model.parameters())
        self.optimizer = make_optimizer(self.parameters, config.optimizer)
        self.rate_rule = RateRule(self.optimizer, config)
        self.ema = EMA(self.model, schedule=config.schedule)
        self.recorder: Recorder | None = None
        self.stopping = EarlyStop(config.stopping)
        self.begin = perf_counter()

    def recorded(self, folder: str | Path, most_bytes: float) -> Recorder:
        """A recorder of this run."""
        steps = math.ceil(len(self.x_train) / self.config.optimizer.batch_size)
        row_bytes = 4 * sum(parameter.numel() for parameter in self.parameters)
        every = thinning(steps, row_bytes, self.config.max_epochs, most_bytes)
        return Recorder(self.model, folder, every, config=self.config)

    def epoch(self, epoch: int, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
        """Train on every row once and evaluate; ``None`` if it was cut short."""
        train_loss = self._pass(should_stop)
        if train_loss is None:
            return None
        if self.recorder is not None:
            self.recorder.end_epoch()
        original = self._metrics(self.model)
        ema = self._metrics(self.ema)
        row = {"epoch": epoch, "train_loss": train_loss}
        for name in METRICS:
            row[f"val_{name}_original"] = original[name]
            row[f"val_{name}_ema"] = ema[name]
        row["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        row["decay"] = self.ema.get_current_decay()
        row["steps"] = int(self.ema.step)
        row["seconds"] = perf_counter() - self.begin
        self.rate_rule.adjust(row)
        return row

    def _pass(self, should_stop: Callable[[], bool]) -> float | None:
        self.model.train()
        # One permutation an epoch, applied at once: a DataLoader would collate the rows one by one.
        order = torch.randperm(len(self.x_train))
        size = self.config.optimizer.batch_size
        losses: list[Tensor] = []
        looked = perf_counter()
        for x, y in zip(torch.split(self.x_train[order], size), torch.split(self.y_train[order], size), strict=True):
            loss = mse_loss(self.model(x), y)
            for parameter in self.parameters:  # Optimizer.zero_grad() spends as long on its profiler hook as on Adam
                parameter.grad = None
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.ema.update()
            if self.recorder is not None:
                self.recorder.record()
            losses.append(loss.detach())
            if perf_counter() - looked > _PATIENCE:
                if should_stop():
                    return None
                looked = perf_counter()
        rows = torch.full((len(losses),), float(size))
        rows[-1] = len(x)
        return float(torch.stack(losses) @ rows) / len(order)

    @torch.no_grad()
    def _metrics(self, model: nn.Module) -> dict[str, float]:
        self.model.eval()
        return {name: float(value) for name, value in metrics(model(self.x_val), self.y_val).items()}


class EarlyStop:
    """The stopping rule of a run."""

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

    def __init__(self, optimizer: torch.optim.Optimizer, config: RunConfig) -> None:
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
            self.rule.step(row[f"val_loss_{self.curve}"])
        elif self.rule is not None:
            self.rule.step()


def make_optimizer(parameters: list[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser that ``config`` describes."""
    settings: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
    if config.name == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **settings)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(parameters, **settings)


def _never() -> bool:
    return False
