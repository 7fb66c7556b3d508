"""Many seeds of one config at once, as stacked tensors: a seed costs a fraction of a run of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from emacore.averaging.schedules import Schedule, check_schedule
from emacore.checks import check_named
from emacore.courtesy import step_aside
from emacore.tensors.pairing import distinct, from_reals, reals
from emacore.training.config import OptimizerConfig, TaskConfig, check_config, check_rows, checked_seeds
from emacore.training.history import columns, further_columns
from emacore.training.loop import SECONDS_BETWEEN_STOP_CHECKS, EarlyStop, RateRule, make_optimizer, uncompiled
from emacore.training.network import Perceptron
from emacore.training.task import Dataset, Task

#: Steps for which dropout masks are drawn at a time, which bounds their memory.
_STEPS_AHEAD = 10

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class ReplicaResult:
    """What :func:`replicate` returns.

    Args:
        history: One row for each seed and epoch, ordered by seed: ``seed``, the columns of
            :func:`emacore.training.history.columns`, and ``val_<metric>_<name>`` of each further schedule.
        stopped: How each seed ended: "early stop", "max epochs", "stopped" or "diverged".
    """

    config: TaskConfig
    history: pd.DataFrame
    stopped: dict[int, str]


def replicate(
    config: TaskConfig,
    seeds: Sequence[int],
    on_epoch: Callable[[Rows], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    schedules: Mapping[str, Schedule] | None = None,
) -> ReplicaResult:
    """Train ``config`` once for each of ``seeds``, all at once, and evaluate every network and its averages.

    Each seed has its own initial weights (those of :func:`emacore.train` with that seed), order of batches, dropout,
    learning rate and stopping; those that end leave the stack.  A seed's numbers do not depend on its neighbours but
    for rounding.  They are not those of :func:`emacore.train`, whose batches and dropout follow another generator, but
    have the same distribution.

    Args:
        config: Its own seed is not used.
        on_epoch: Called after each epoch with the rows of the seeds that are still training.
        should_stop: Asked after every epoch and a few times a second within one; an epoch cut short is dropped.
        schedules: Further averages of the same networks, by any names but "original" and "ema".  Stopping and
            learning rate follow ``config.schedule``.

    Raises:
        ValueError: for no seeds, the same one twice, one that is no whole number from 0 on, a schedule's name that the
            history needs itself, data that do not fit the settings, or a network with buffers or frozen parameters.
        TypeError: for settings or a schedule that are none, schedules without names, or seeds that are no list.
    """
    check_config(config)
    seeds = checked_seeds(seeds)
    if schedules is not None:
        check_named("schedules", schedules)
    further = further_columns(config.metrics, schedules or {})
    for name, schedule in (schedules or {}).items():
        check_schedule(f"schedules[{name!r}]", schedule)
    task = config.task()
    data = task.load(config)
    check_rows(len(data.x_train), config.optimizer.batch_size)
    stack = _Stack(config, seeds, schedules or {}, task, data)
    rows: Rows = []
    stop = should_stop or (lambda: False)
    for epoch in range(1, config.max_epochs + 1):
        found = stack.epoch(epoch, stop)
        if found is None:
            break
        rows += found
        if on_epoch is not None:
            on_epoch(found)
        if not stack.replicas or (epoch < config.max_epochs and stop()):
            break
    stopped = stack.ended | dict.fromkeys(
        (replica.seed for replica in stack.replicas),
        "max epochs" if epoch == config.max_epochs and found else "stopped",
    )
    history = pd.DataFrame(rows, columns=["seed", *columns(config.metrics), *further])
    history["order"] = history["seed"].map({seed: n for n, seed in enumerate(seeds)})
    history = history.sort_values(["order", "epoch"], ignore_index=True).drop(columns="order")
    return ReplicaResult(config, history, {seed: stopped[seed] for seed in seeds})


class _Replica:
    """What each seed has of its own besides its weights."""

    def __init__(self, config: TaskConfig, seed: int) -> None:
        self.seed = seed
        self.generator = np.random.default_rng([seed, 1])
        # An optimiser of nothing holds the rate that the rule changes.
        self.rate_holder = uncompiled(torch.optim.SGD)(
            [nn.Parameter(torch.zeros(()))], lr=config.optimizer.learning_rate
        )
        self.rate_rule = RateRule(self.rate_holder, config)
        self.stopping = EarlyStop(config.stopping)

    @property
    def rate(self) -> float:
        return float(self.rate_holder.param_groups[0]["lr"])

    def adjust_rate(self, row: dict[str, Any]) -> None:
        self.rate_holder.step()  # changes nothing; the rule warns if its optimiser has never stepped
        self.rate_rule.adjust(row)


class _Stack:
    """S networks as one tensor (S, P), their gradients as another, and their averages as a third, (K, S, P)."""

    def __init__(
        self,
        config: TaskConfig,
        seeds: Sequence[int],
        schedules: Mapping[str, Schedule],
        task: Task,
        data: Dataset,
    ) -> None:
        self.config, self.task, self.data = config, task, data
        self.network = task.network(config, data)
        self.replicas = [_Replica(config, seed) for seed in seeds]
        self.ended: dict[int, str] = {}
        networks = [_initial(self.network, seed) for seed in seeds]
        self.layout = distinct(networks[0])
        trained = {name for name, parameter in networks[0].named_parameters() if parameter.requires_grad}
        if others := [name for name in self.layout if name not in trained]:
            named = ", ".join(others[:3] + ["..."] * (len(others) > 3))
            raise ValueError(
                "many seeds at once need a network of parameters that are all trained, but this one has "
                f"{named}, which {'is' if len(others) == 1 else 'are'} not: train its seeds one by one, by train()"
            )
        flat = torch.stack([torch.cat([reals(tensor) for tensor in distinct(net).values()]) for net in networks])
        self.schedules = {"ema": config.schedule, **schedules}
        self.steps = 0
        self.begin = perf_counter()
        self.averages = flat.repeat(len(self.schedules), 1, 1)
        # With a rate of 1 the optimiser's change is what each replica scales by its own rate.
        self.proposed = nn.Parameter(flat.clone())
        self.optimizer = make_optimizer([self.proposed], _at_rate_one(config.optimizer))
        self._place(flat)

    def epoch(self, epoch: int, should_stop: Callable[[], bool]) -> Rows | None:
        """Train all on every row once and evaluate; ``None`` if it was cut short."""
        train_loss = self._pass(should_stop)
        if train_loss is None:
            return None
        evaluated = {"original": self._evaluate(self.weights)}
        for name, average in zip(self.schedules, self.averages, strict=True):
            evaluated[name] = self._evaluate(average)
        decay = self.config.schedule.rule(self.steps - 1)
        rows: Rows = []
        for n, replica in enumerate(self.replicas):
            row: dict[str, Any] = {"seed": replica.seed, "epoch": epoch, "train_loss": train_loss[n]}
            for name, found in evaluated.items():
                row |= {f"val_{metric}_{name}": values[n] for metric, values in found.items()}
            row |= {"learning_rate": replica.rate, "decay": decay, "steps": self.steps}
            rows.append(row | {"seconds": perf_counter() - self.begin})
            replica.adjust_rate(row)
            if not all(math.isfinite(row[key]) for key in ("train_loss", "val_loss_original", "val_loss_ema")):
                self.ended[replica.seed] = "diverged"
            elif replica.stopping.is_over(row):
                self.ended[replica.seed] = "early stop"
        self._let_go()
        return rows

    def _pass(self, should_stop: Callable[[], bool]) -> list[float] | None:
        size, rows = self.config.optimizer.batch_size, len(self.data.x_train)
        orders = np.stack([replica.generator.permutation(rows) for replica in self.replicas])
        starts = range(0, rows, size)
        weighings = self._weighings(len(starts))
        rates = torch.tensor([[replica.rate] for replica in self.replicas])
        losses = torch.zeros(len(self.replicas))
        looked = perf_counter()
        masks: list[list[Tensor]] = []
        for n, start in enumerate(starts):
            step_aside()
            if n % _STEPS_AHEAD == 0:
                masks = self._masks([min(size, rows - s) for s in starts[n : n + _STEPS_AHEAD]])
            chosen = torch.from_numpy(orders[:, start : start + size])
            losses += self._step(chosen, masks[n % _STEPS_AHEAD], rates, weighings[n]) * chosen.shape[1]
            if perf_counter() - looked > SECONDS_BETWEEN_STOP_CHECKS:
                if should_stop():
                    return None
                looked = perf_counter()
        return [float(loss) for loss in losses / rows]

    def _step(self, chosen: Tensor, masks: list[Tensor], rates: Tensor, weighing: Tensor) -> Tensor:
        """One optimiser step of every replica on its own rows: the losses before it, shape (S,)."""
        predicted = self.network.forward(self.parameters, self.data.x_train[chosen], masks or None)
        losses = self.task.loss(predicted, self.data.y_train[chosen])
        gradients = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        with torch.no_grad():
            torch.cat([gradient.flatten(1) for gradient in gradients], dim=1, out=self.gradients)
            self.proposed.copy_(self.weights)
            self.optimizer.step()
            self.weights.addcmul_(self.proposed - self.weights, rates)
            self.averages.lerp_(self.weights, weighing)
        self.steps += 1
        return losses.detach()

    def _weighings(self, steps: int) -> Tensor:
        """What the next steps' weights count in each average: 1 minus the decays, shape (steps, K, 1, 1)."""
        calls = np.arange(self.steps, self.steps + steps)
        rests = np.stack([1 - schedule.at(calls) for schedule in self.schedules.values()], axis=1)
        return torch.from_numpy(rests).float()[:, :, None, None]

    def _masks(self, sizes: list[int]) -> list[list[Tensor]]:
        """For each of the next steps, a dropout mask for each hidden layer: shape (S, rows, width)."""
        dropout, widths = self.network.dropout, self.network.mask_widths
        if not widths:
            return [[] for _ in sizes]
        # 16 random bits decide: the share dropped is right to 1 in 131,072.
        shape, threshold = (sum(sizes), sum(widths)), round(dropout * 2**16)
        drawn = np.stack([r.generator.integers(0, 2**16, shape, dtype=np.uint16) for r in self.replicas])
        kept = torch.from_numpy(drawn >= threshold).float().mul_(1 / (1 - dropout))
        return [list(torch.split(step, list(widths), dim=2)) for step in torch.split(kept, sizes, dim=1)]

    @torch.no_grad()
    def _evaluate(self, flat: Tensor) -> dict[str, list[float]]:
        predicted = self.network.forward(from_reals(flat, self.layout), self.data.x_val)
        return {name: values.tolist() for name, values in self.task.score(predicted, self.data.y_val).items()}

    def _let_go(self) -> None:
        """Those that have ended leave the stack."""
        going_on = [n for n, replica in enumerate(self.replicas) if replica.seed not in self.ended]
        if len(going_on) == len(self.replicas):
            return
        self.replicas = [self.replicas[n] for n in going_on]
        self.averages = self.averages[:, going_on]
        flat = self.weights[going_on]
        state = {
            name: value[going_on] if value.ndim == 2 else value
            for name, value in self.optimizer.state[self.proposed].items()
        }
        self.proposed = nn.Parameter(flat.clone())
        self.optimizer = make_optimizer([self.proposed], _at_rate_one(self.config.optimizer))
        self.optimizer.state[self.proposed] = state
        self._place(flat)

    def _place(self, flat: Tensor) -> None:
        """Use ``flat`` as the weights."""
        self.weights = flat
        self.gradients = torch.zeros_like(flat)
        self.proposed.grad = self.gradients
        # Views, so that what the optimiser changes is what the networks use.
        self.parameters = {
            name: tensor.requires_grad_() for name, tensor in from_reals(self.weights, self.layout).items()
        }


def _initial(network: Perceptron, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network.build()


def _at_rate_one(config: OptimizerConfig) -> OptimizerConfig:
    return replace(config, learning_rate=1.0)
