"""Averages that are kept while a run trains, so that any other average of it can be made afterwards."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from emacore.averaging.families import PowerFunction
from emacore.averaging.schedules import Floats, Schedule
from emacore.checks import check_choice, check_whole, numbers
from emacore.ema import EMA
from emacore.tensors.exports import check_storable
from emacore.tensors.pairing import as_names, check_module, ties, unwrapped
from emacore.tensors.sharded import is_sharded
from emacore.tensors.steps import after_each_step

_WINDOW = "mean"
_OF_STEP = re.compile(r"step_(\d+)(?:\.power-[\d.]+)?(?:\.safetensors)?$")


@dataclass(frozen=True)
class _Windows(Schedule):
    """The running mean of each ``size`` calls, begun anew after them."""

    size: int = 1

    def decays_of_moves(self, calls: Floats) -> Floats:
        before = calls % self.size
        return before / (before + 1)


class Snapshots:
    """Writes averages of a module every so many steps, from which ``merge`` makes others later.

    ``windows`` keeps one running mean and writes it whenever a window of ``every`` steps is full: with them any average
    that is longer than a window can be made, and rounding is not amplified.  ``power`` keeps EDM2's two power-function
    averages, from which also shorter ones can be made, by coefficients that amplify rounding.  A raw checkpoint would
    hold the noise of one step in each file.

    Means are kept and written in float32 where the module has less.  Where the disk is full, the snapshots end and the
    training goes on.  Of a module that FSDP2 shards, each process writes its own part, by
    ``torch.distributed.checkpoint``; all of them have to call :meth:`update`.

    Args:
        module: What trains.
        folder: A new folder, or one without snapshots.
        every: Unit: calls of :meth:`update`.
        kind: ``windows`` or ``power``.
        sigma_rel: The relative widths of the power-function averages.
        resume: Whether the folder is that of a run which goes on: then :meth:`load_state_dict` comes next, and what was
            written after that state gives way to the first file that is written now.  Without it the run begins again.
        names, trainable_only, device: As of :class:`emacore.EMA`.

    Attributes:
        step: How many calls of :meth:`update` there were.
        error: Why the snapshots ended before the run did; ``None`` while all is well.

    Raises:
        FileExistsError: if the folder holds snapshots already, unless ``resume``.
        ValueError: for a setting out of range, or a tensor that has no place in a safetensors file.
        TypeError: if ``module`` is none.

    Example:
        >>> import tempfile
        >>> from emacore import Trajectory, UniformAverage, open_checkpoints
        >>> model, folder = nn.Linear(1, 1, bias=False), tempfile.mkdtemp()
        >>> snapshots = Snapshots(model, folder, every=2)
        >>> for value in (1.0, 2.0, 6.0, 7.0):
        ...     _ = nn.init.constant_(model.weight, value)
        ...     snapshots.update()
        >>> Trajectory(open_checkpoints(folder).rows()).state(UniformAverage())["weight"].item()
        4.0
    """

    def __init__(
        self,
        module: nn.Module,
        folder: str | Path,
        every: int,
        kind: Literal["windows", "power"] = "windows",
        *,
        sigma_rel: Sequence[float] = (0.05, 0.10),
        resume: bool = False,
        names: Collection[str] | None = None,
        trainable_only: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        check_whole("every", every, 1)
        check_choice("kind", kind, ("windows", "power"))
        check_module("module", module)
        self.folder, self._every, self._kind = Path(folder), int(every), kind
        names = None if names is None else as_names("names", names)
        if not resume and any(self.folder.glob("step_*")):
            raise FileExistsError(
                f"{self.folder} holds snapshots already: choose another folder, or resume=True and load_state_dict()"
            )
        schedules: dict[str, Schedule] = {_WINDOW: _Windows(self._every)}
        if kind == "power":
            widths = sorted(numbers("sigma_rel", sigma_rel))
            schedules = {f"power-{width:.3f}": PowerFunction(sigma_rel=width) for width in widths}
            if not len(schedules) == len(widths) > 1:
                raise ValueError(
                    f"sigma_rel must be at least two different widths, to three decimals; got {sigma_rel!r}"
                )
        self._module = module
        self.averages = {
            name: EMA(
                module,
                schedule=schedule,
                include_online_model=False,
                names=names,
                trainable_only=trainable_only,
                device=device,
            )
            for name, schedule in schedules.items()
        }
        for average in self.averages.values():
            _tensors_of(average)
        self.step = 0
        self.error: str | None = None
        # The step of the last file to keep, until the next one is written; a run without a state begins again.
        self._stale_after: int | None = 0 if resume else None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(f"{self.folder} cannot be a folder ({error.strerror}): choose another one") from error

    @property
    def every(self) -> int:
        """After so many calls of :meth:`update` a file is written."""
        return self._every

    @property
    def kind(self) -> str:
        """What is stored: ``windows`` or ``power``."""
        return self._kind

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self.close()

    def update(self) -> None:
        """Take the weights as they are after an optimiser step, and write if it is this step's turn."""
        for average in self.averages.values():
            average.update()
        self.step += 1
        if self.step % self.every == 0:
            self._write(self.step - self.every + 1)

    def attach(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Call :meth:`update` after each step that the optimiser really takes; call it no more yourself.

        It goes into any loop that steps this optimiser.  The callbacks of :mod:`emacore.integrations` take snapshots by
        themselves, and keep their state in the checkpoints.
        """
        return after_each_step(optimizer, unwrapped(self._module), self.update)

    def close(self) -> None:
        """Write what was averaged since the last file: of an unfinished window, its mean so far."""
        if rest := self.step % self.every:
            self._write(self.step - rest + 1)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly."""
        return {
            "step": self.step,
            "every": self.every,
            "averages": {name: average.state_dict() for name, average in self.averages.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Files that were written later, that of an unfinished window included, stay until the next one is written, so
        that all files of the folder are of one course of the run at any time.

        Raises:
            ValueError: if it is of other snapshots, or none of :meth:`state_dict`.
        """
        if not (isinstance(state, Mapping) and {"step", "every", "averages"} <= state.keys()):
            what = list(state)[:6] if isinstance(state, Mapping) else state
            raise ValueError(f"the state is none of Snapshots.state_dict(), but {what!r:.200}")
        if not isinstance(state["averages"], Mapping):
            raise ValueError(f"the state is none of Snapshots.state_dict(), but {list(state)!r:.200}")  # noqa: TRY004
        if state["every"] != self.every or state["averages"].keys() != self.averages.keys():
            raise ValueError(
                f"the state is of snapshots every {state['every']} steps of {', '.join(state['averages'])}; these are "
                f"every {self.every} steps of {', '.join(self.averages)}"
            )
        for name, average in self.averages.items():
            average.load_state_dict(dict(state["averages"][name]))
        self.step = int(state["step"])
        self._stale_after = self.step - self.step % self.every

    def _write(self, begin: int) -> None:
        if self.error is not None:
            return
        if self._stale_after is not None and _is_first():
            _remove_after(self._stale_after, self.folder)
        self._stale_after = None
        moves: list[tuple[Path, Path]] = []
        error: str | None = None
        try:
            for name, average in self.averages.items():
                about: dict[str, Any] = {"kind": "window", "begin": begin}
                if isinstance(average.schedule, PowerFunction):
                    about = {"kind": "average", "sigma_rel": average.schedule.width}
                path = self.folder / (f"step_{self.step:09d}" + ("" if name == _WINDOW else f".{name}"))
                moves.append((path.with_name(f".{path.name}.partial"), path))
                moves[-1] = _written(average, *moves[-1], {"step": str(self.step), "emacore": json.dumps(about)})
            _move(moves)
        except (OSError, SafetensorError) as problem:  # the library tells of a full disk by its own exception
            error = f"the snapshots end before step {self.step}: {getattr(problem, 'strerror', None) or problem}"
        finally:
            if _is_first():  # what an interruption or a full disk came between
                for partial, _ in moves:
                    _remove(partial)
        if any(map(is_sharded, next(iter(self.averages.values())).weights.values())):
            error = _of_any(error)
        if error is not None:
            self.error = error
            warnings.warn(error, stacklevel=3)


def _of_any(error: str | None) -> str | None:
    """The error of this process, or of another: all wait for each other, and end together."""
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, error)
    return next((one for one in (error, *found) if one is not None), None)


def _written(average: EMA, partial: Path, path: Path, about: Mapping[str, str]) -> tuple[Path, Path]:
    """Write an average beside its place; returns both."""
    tensors, kept = _tensors_of(average), average.weights
    aliases = {
        name: tie.first_name
        for name, tie in ties(average.ema_model).items()
        if name not in kept and tie.first_name in kept
    }
    if any(map(is_sharded, tensors.values())):
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.state_dict_saver import save

        try:
            save({"model": tensors}, checkpoint_id=partial)
        except CheckpointException as error:  # of any process, and told to all
            failures = [failure[0] for failure in error.failures.values()]
            if not all(isinstance(one, (OSError, RuntimeError)) for one in failures):
                raise
            raise OSError(f"{getattr(failures[0], 'strerror', None) or failures[0]}") from error
        if _is_first():
            (partial / "emacore.json").write_text(json.dumps({**aliases, **about}))
        return partial, path
    if _is_first():
        plain = {name: _plain(tensor) for name, tensor in tensors.items()}
        save_file(plain, partial, {**aliases, "format": "pt", **about})
    return partial, path.with_name(f"{path.name}.safetensors")


def _tensors_of(average: EMA) -> dict[str, Tensor]:
    """What is written of an average: as wide as it is kept.

    Raises:
        ValueError: if a tensor has no place in a file.
    """
    state = average.state_dict()
    wide = {
        name.removeprefix("accumulator."): value for name, value in state.items() if name.startswith("accumulator.")
    }
    tensors = {name: wide.get(name, tensor).detach() for name, tensor in average.weights.items()}
    if not any(map(is_sharded, tensors.values())):
        check_storable(tensors, "leave it out by names=")
    return tensors


def _move(moves: Sequence[tuple[Path, Path]]) -> None:
    """Give all averages of a step their places, or none: without one of them the others cannot be merged."""
    if _is_first():
        done = False
        try:
            for partial, path in moves:
                if path.is_dir():
                    _remove(path)
                partial.replace(path)
            done = True
        finally:
            for partial, path in [] if done else moves:
                if not partial.exists():
                    _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        with suppress(OSError):
            path.unlink()


def _is_first() -> bool:
    """Whether this is the only process, or the first of several."""
    return not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0


def _remove_after(step: int, folder: Path) -> None:
    """Remove the snapshots of later steps, and what a process that was killed had begun to write; of one that stays,
    warn, because the other processes wait for this one."""
    for path in [*folder.glob("step_*"), *folder.glob(".step_*.partial")]:
        found = _OF_STEP.match(path.name)
        if path.suffix != ".partial" and (found is None or int(found[1]) <= step):
            continue
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            why = error.strerror or error
            warnings.warn(
                f"{path} cannot be removed ({why}), and was written by the run before, after the step from which this "
                "one goes on: remove it yourself",
                stacklevel=4,
            )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous()
