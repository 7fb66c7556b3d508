"""How often ``emacore diagnose`` finds faults that were planted, and how often it raises an alarm on a healthy run.

Small networks are trained with an average of each of five libraries beside them; what is saved is what the library's
users save.  Files are 50 to 200 steps apart; where a fault is planted, at most 0.6 memories of the configured decay.

Run: python -m benchmarks.diagnosis
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from emacore.averaging.families import (
    BiasCorrected,
    Constant,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
)
from emacore.averaging.schedules import Schedule
from emacore.avg_fn import averaging_function
from emacore.checkpoints import open_checkpoints
from emacore.checkpoints.diagnosis import diagnose
from emacore.ema import EMA

LIBRARIES = ("emacore", "ema-pytorch", "timm", "diffusers", "torch")
FAULTS = ("decay", "never reached", "reset", "flipped", "update_every", "buffers", "frozen", "dtype", "equal")
#: The decays of averages with planted faults: files may be 0.6 of their memories apart.
DECAYS = (0.99, 0.995, 0.998, 0.999)


@dataclass
class Kept:
    """An average beside a run: how it moves, what is saved of it, and what it was to be.

    Attributes:
        library: One of :data:`LIBRARIES`.
        fault: One of :data:`FAULTS`, or ``None``.
        configured: The schedule that its user believes in.
        make: Begins the library's average of a model.
        every: Steps from one update to the next.
        calls: How often it is updated then.
        resets: Steps before which it begins anew.
        stale: Whether it looks at a copy of the model that is never trained.
        average, called, watched: The library's average, its updates so far, and the model it looks at.
    """

    library: str
    fault: str | None
    configured: Schedule
    make: Callable[[nn.Module], Any]
    every: int = 1
    calls: int = 1
    resets: tuple[int, ...] = ()
    stale: bool = False
    average: Any = None
    called: int = 0
    watched: Any = None

    def start(self, model: nn.Module) -> None:
        self.watched = copy.deepcopy(model) if self.stale else model
        self.average = self.make(self.watched)

    def update(self, step: int) -> None:
        """Move it after optimiser step number ``step``, counted from 1."""
        if step in self.resets:
            self.start(self.watched)
            self.called = 0
        if (step - 1) % self.every:
            return
        for _ in range(self.calls):
            self.called += 1
            match self.library:
                case "emacore" | "ema-pytorch":
                    self.average.update()
                case "timm":
                    self.average.update(self.watched, step=self.called if self.average.use_warmup else None)
                case "diffusers":
                    self.average.step(self.watched.parameters())
                case _:
                    self.average.update_parameters(self.watched)

    def contents(self, model: nn.Module) -> dict[str, Any]:
        if self.library == "timm":
            return {"state_dict": model.state_dict(), "state_dict_ema": self.average.module.state_dict()}
        return {"model": model.state_dict(), "ema": self.average.state_dict()}


def declare_torchvisions_operators() -> None:
    """Some libraries bring torchvision, whose operators do not load beside a CPU build of torch; none is called."""
    for operator in ("nms", "qnms"):
        with suppress(RuntimeError):  # they are there
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )


def maker(library: str, schedule: Schedule, **settings: Any) -> Callable[[nn.Module], Any]:
    """What begins a library's average under this schedule; ``settings`` are further arguments of the library."""
    beta = float(getattr(schedule, "beta", 0.0))
    warm = isinstance(schedule, InversePower)
    power = {"power": schedule.power, "inv_gamma": schedule.inv_gamma} if isinstance(schedule, InversePower) else {}
    start, every = schedule.update_after_step, schedule.update_every
    match library:
        case "emacore":
            return lambda model: EMA(model, schedule=schedule, include_online_model=False, **settings)
        case "ema-pytorch":
            from ema_pytorch import EMA as EmaPytorch

            timing = {"update_after_step": start, "update_every": every, "include_online_model": False}
            # With min_value = beta its warm-up rule is a constant decay.
            rule = power if warm else {"min_value": beta}
            return lambda model: EmaPytorch(model, beta=beta, **timing, **rule, **settings)
        case "timm":
            declare_torchvisions_operators()
            from timm.utils import ModelEmaV3

            named = {f"warmup_{name.removeprefix('inv_')}": value for name, value in power.items()}
            return lambda model: ModelEmaV3(model, decay=beta, use_warmup=warm, **named, **settings)
        case "diffusers":
            declare_torchvisions_operators()
            from diffusers.training_utils import EMAModel

            constant = {"min_decay": beta} if isinstance(schedule, Constant) else {}
            return lambda model: EMAModel(
                model.parameters(), decay=beta, use_ema_warmup=warm, **power, **constant, **settings
            )
        case _:
            rule = (
                {"multi_avg_fn": get_ema_multi_avg_fn(beta)}
                if isinstance(schedule, Constant)
                else {"avg_fn": averaging_function(schedule)}
            )
            return lambda model: AveragedModel(model, **{"use_buffers": True, **rule, **settings})


def healthy(library: str, rng: np.random.Generator) -> Kept:
    """An average as it should be, under a schedule that the library has."""
    decays = (0.9, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999)
    constant = Constant(float(rng.choice(decays)))
    capped = float(rng.choice((0.9, 0.95, 0.98)))  # which the warm-ups reach before the first file
    schedules: dict[str, list[Schedule]] = {
        "emacore": [
            constant,
            replace(constant, update_every=int(rng.integers(2, 11))),
            InversePower(beta=capped, power=1.0, update_after_step=0, update_every=1),
            RationalWarmup(beta=capped),
            BiasCorrected(beta=0.99),
            PowerFunction(sigma_rel=float(rng.uniform(0.05, 0.25))),
            UniformAverage(update_after_step=int(rng.integers(50))),
        ],
        "ema-pytorch": [
            constant,
            replace(constant, update_every=int(rng.integers(2, 11))),
            InversePower(beta=capped, power=1.0, update_after_step=10, update_every=1),
        ],
        "timm": [constant, InversePower(beta=capped, power=1.0, update_after_step=0, update_every=1)],
        "diffusers": [
            constant,
            RationalWarmup(beta=capped),
            InversePower(beta=capped, power=1.0, update_after_step=0, update_every=1),
        ],
        "torch": [constant, RationalWarmup(beta=capped), PowerFunction(sigma_rel=float(rng.uniform(0.05, 0.25)))],
    }
    schedule = schedules[library][int(rng.integers(len(schedules[library])))]
    return Kept(library, None, schedule, maker(library, schedule))


def planted(library: str, fault: str, variant: int, middle: int) -> Kept:
    """An average with a fault; ``middle`` is a step between the last two files."""
    decay = DECAYS[variant % len(DECAYS)]
    configured: Schedule = Constant(decay)
    kept = Kept(library, fault, configured, maker(library, configured))
    match fault:
        case "decay":
            ran = 1 - (1 - decay) * (0.1 if variant % 2 else 5)
            return replace(kept, make=maker(library, Constant(ran)))
        case "never reached":
            warm = InversePower(beta=0.9999, power=2 / 3, update_after_step=0, update_every=1)
            ran_by = RationalWarmup(beta=0.9999) if library in ("diffusers", "torch") else warm
            # Configured without the warm-up, as by somebody who reads only the decay, or with it.
            return replace(kept, configured=ran_by if variant % 2 else Constant(0.9999), make=maker(library, ran_by))
        case "reset":
            return replace(kept, resets=(middle,))
        case "flipped":
            return replace(kept, make=maker(library, Constant(1 - decay)))
        case "update_every":
            every, calls = ((1, 1), (8, 1), (1, 4), (10, 1))[variant % 4]
            believed = replace(configured, update_every=10 if variant % 4 == 0 else 1)
            return replace(kept, configured=believed, every=every, calls=calls)
        case "buffers":
            names = {"norm.running_mean", "norm.running_var"}
            ignored = "ignore_names" if variant % 2 else "param_or_buffer_names_no_ema"
            settings: dict[str, dict[str, Any]] = {
                "emacore": {ignored: names},
                "ema-pytorch": {ignored: names},
                "timm": {"exclude_buffers": True},
                "diffusers": {},
                "torch": {"use_buffers": False},
            }
            return replace(kept, make=maker(library, configured, **settings[library]))
        case "frozen":
            if variant % 2 and library in ("emacore", "ema-pytorch"):
                return replace(kept, make=maker(library, configured, ignore_startswith_names={"inner"}))
            return replace(kept, stale=True)
        case "dtype":
            narrow = {"emacore": {"accumulator_dtype": torch.bfloat16}, "timm": {"stochastic_rounding": False}}
            return replace(kept, make=maker(library, configured, **narrow.get(library, {})))
        case _:
            return replace(kept, make=maker(library, Constant(0.0)))


class Network(nn.Module):
    """A small network, with running statistics (``norm``) or without."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.first = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width) if norm else nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.last = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner(self.norm(self.first(x)).relu()).relu())


@dataclass(frozen=True)
class Run:
    """How a network is trained, and after which steps it is saved."""

    seed: int
    optimizer: str
    cosine: bool
    norm: bool
    half: bool
    files: tuple[int, ...]

    @classmethod
    def drawn(
        cls,
        seed: int,
        *,
        norm: bool | None = None,
        half: bool | None = None,
        files: int | None = None,
        most: int = 200,
        steps: int = 600,
    ) -> Run:
        rng = np.random.default_rng([19, seed])
        count = files or int(rng.integers(2, 5))
        gaps = [min(int(rng.choice((50, 100, 200))), most)] * (count - 1)
        if rng.random() < 0.3 and files is None:
            gaps = [int(rng.integers(20, 201)) for _ in gaps]
        return cls(
            seed,
            str(rng.choice(("sgd", "momentum", "adam", "adamw"))),
            bool(rng.random() < 0.5),
            bool(rng.random() < 0.4) if norm is None else norm,
            bool(rng.random() < 0.2) if half is None else half,
            tuple(int(step) for step in steps - np.cumsum([0, *gaps])[::-1]),
        )

    def train(self, averages: Sequence[Kept], folder: Path) -> list[Path]:
        """Train and save each average's files; returns a folder for each."""
        torch.manual_seed(self.seed)
        model = Network(32, self.norm)
        shown = copy.deepcopy(model).bfloat16() if self.half else model  # of float32 weights, as in mixed precision
        optimizer = {
            "sgd": lambda: torch.optim.SGD(model.parameters(), 0.05),
            "momentum": lambda: torch.optim.SGD(model.parameters(), 0.01, momentum=0.9),
            "adam": lambda: torch.optim.Adam(model.parameters(), 3e-3),
            "adamw": lambda: torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05),
        }[self.optimizer]()
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.files[-1]) if self.cosine else None
        x = torch.randn(512, 8)
        y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.3 * torch.randn(512, 1)
        folders = [folder / f"{number:03d}" for number in range(len(averages))]
        for one, path in zip(averages, folders, strict=True):
            path.mkdir()
            one.start(shown)
        for step in range(1, self.files[-1] + 1):
            rows = torch.randint(512, (32,))
            optimizer.zero_grad()
            ((model(x[rows]) - y[rows]) ** 2).mean().backward()
            optimizer.step()
            if rate is not None:
                rate.step()
            if self.half:
                with torch.no_grad():
                    for to, source in zip(shown.state_dict().values(), model.state_dict().values(), strict=True):
                        to.copy_(source)
            for one, path in zip(averages, folders, strict=True):
                one.update(step)
                if step in self.files:
                    torch.save({"global_step": step, **one.contents(shown)}, path / f"step_{step:05d}.pt")
        return folders


@dataclass(frozen=True)
class Row:
    """What the diagnosis of one average found.

    Attributes:
        planted: The fault that it has, or ``None``.
        with_configuration: Whether the diagnosis was told the schedule.
        alarms: The faults that it named.
        named: Whether the planted one is among them, or among their alternatives.
        alone: Whether it is named without an alternative.
    """

    library: str
    planted: str | None
    with_configuration: bool
    alarms: tuple[str, ...]
    named: bool
    alone: bool
    sentences: tuple[str, ...]
    about: str


def looked_at(one: Kept, path: Path, run: Run) -> Iterator[Row]:
    """The diagnosis with what was configured, and without."""
    opened = open_checkpoints(path)
    for configured in (one.configured, None):
        found = diagnose(opened, configured)
        alarms = tuple(finding.fault for finding in found.findings)
        named = one.fault is not None and found.names(one.fault)
        alone = named and any(f.fault == one.fault and not f.or_else for f in found.findings)
        about = f"{run} {one.configured}"
        yield Row(one.library, one.fault, configured is not None, alarms, named, alone, tuple(found.sentences), about)


def healthy_rows(runs: int, first: int = 0) -> list[Row]:
    """Diagnoses of at least ``runs`` healthy averages, up to five in a training, one for each library."""
    rows: list[Row] = []
    seed = first
    while len(rows) < 2 * runs:
        run, rng = Run.drawn(seed), np.random.default_rng([20, seed])
        averages = [healthy(library, rng) for library in LIBRARIES]
        if run.norm:  # a list of parameters has no place for running statistics: that is a fault of its own
            averages = [one for one in averages if one.library != "diffusers"]
        if run.half:  # in which an average cannot be kept: only those that keep it wider, or round at random
            averages = [one for one in averages if one.library in ("emacore", "timm")]
        rows += _rows(run, averages)
        seed += 1
    return rows


def faulty_rows(variants: int, first: int = 0, steps: int = 600) -> list[Row]:
    """Diagnoses of averages with planted faults: ``variants`` of each fault and library, in runs of ``steps`` steps."""
    rows: list[Row] = []
    for variant in range(first, first + variants):
        for kinds, norm, half in (
            ([fault for fault in FAULTS if fault not in ("buffers", "dtype")], False, False),
            (["buffers"], True, False),
            (["dtype"], False, True),
        ):
            run = Run.drawn(
                1000 + variant,
                norm=norm,
                half=half,
                files=2 + variant // 2 % 2,
                most=round(0.6 / (1 - DECAYS[variant % len(DECAYS)])),
                steps=steps,
            )
            middle = (run.files[-2] + run.files[-1]) // 2
            rows += _rows(run, [planted(lib, fault, variant, middle) for fault in kinds for lib in LIBRARIES])
    return rows


def _rows(run: Run, averages: Sequence[Kept]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        paths = run.train(averages, Path(folder))
        return [row for one, path in zip(averages, paths, strict=True) for row in looked_at(one, path, run)]


def table(rows: Sequence[Row], healthy: Sequence[Row]) -> str:
    """The Markdown table of faulty and healthy averages that the documentation shows."""
    lines = ["| planted | runs | " + " | ".join(LIBRARIES) + " | named alone | without --configured |"]
    lines.append("|---" * (len(LIBRARIES) + 4) + "|")
    for fault in FAULTS:
        of_fault = [row for row in rows if row.planted == fault]
        given = [row for row in of_fault if row.with_configuration]
        cells = [_share([row.named for row in given if row.library == library]) for library in LIBRARIES]
        without = _share([row.named for row in of_fault if not row.with_configuration])
        alone = _share([row.alone for row in given])
        lines.append(f"| {fault} | {len(given)} | {' | '.join(cells)} | {alone} | {without} |")
    for given_ in (True, False):
        of_kind = [row for row in healthy if row.with_configuration == given_]
        cells = [str(sum(bool(row.alarms) for row in of_kind if row.library == library)) for library in LIBRARIES]
        name = "nothing: false alarms" + ("" if given_ else ", without --configured")
        lines.append(f"| {name} | {len(of_kind)} | {' | '.join(cells)} | | |")
    return "\n".join(lines)


def _share(found: Sequence[bool]) -> str:
    return f"{sum(found)} of {len(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--healthy", type=int, default=200, help="Averages without a fault, at least.")
    parser.add_argument("--variants", type=int, default=4, help="Averages with each fault, for each library.")
    parser.add_argument("--verbose", action="store_true", help="Print what was not found, and false alarms.")
    options = parser.parse_args()
    begin = time.perf_counter()
    torch.set_num_threads(1)
    sound, faulty = healthy_rows(options.healthy), faulty_rows(options.variants)
    if options.verbose:
        for row in [row for row in sound if row.alarms] + [row for row in faulty if not row.named]:
            print(
                row.library, row.planted, row.with_configuration, row.alarms, row.about, *row.sentences, "", sep="\n  "
            )
    print(table(faulty, sound))
    print(f"\n{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
