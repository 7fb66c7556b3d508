"""Recorded weights of a run, and their exact replay under any schedules.

The average never touches the training, so the weights after every optimiser step answer what any other schedule would
have given.  A recording is a folder with ``weights.npy``, float32 of shape (steps, weights), which grows while the run
trains, and ``run.json``, which says what it holds.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap

from emacore.averaging.schedules import Schedule, check_whole
from emacore.averaging.weights import initial_share, weights
from emacore.training.config import RunConfig
from emacore.training.data import load
from emacore.training.network import build

Floats = NDArray[np.float64]

_HEADER_BYTES = 128
#: Bytes of weights read, and averaged networks evaluated, at a time: what bounds the memory.
_BLOCK_BYTES = 8 * 2**20
_NETWORKS_AT_ONCE = 128
VERSION = 1


class RecordingError(ValueError):
    """A recording that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True)
class Window:
    """The plain mean of the last ``size`` recorded rows (of all so far, while there are fewer): LAWA, or SMA."""

    size: int

    def __post_init__(self) -> None:
        check_whole("size", self.size, 1)


Scheme = Schedule | Window


class Recording:
    """Writes the weights of ``module`` into ``folder``: a row for each :meth:`step`, or for each ``every``-th one.

    Rows reach the disk at each :meth:`end_epoch` and whenever a few megabytes have come together.

    Args:
        most_bytes: So much may the whole run take.  A run that could take more (with all its epochs) is thinned: only
            every k-th step is kept, where k divides the steps of an epoch, so that epochs still end on a row.

    Attributes:
        error: Why and where the recording ended before the run did; ``None`` while all is well.

    Raises:
        FileExistsError: if the folder already holds a recording.
    """

    def __init__(
        self,
        module: nn.Module,
        config: RunConfig,
        folder: str | Path,
        *,
        steps_per_epoch: int = 1,
        most_bytes: float = math.inf,
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        named = list(module.named_parameters())
        # Optimisers change parameters in place, so one look-up is enough.
        self._views = [parameter.detach().view(-1) for _, parameter in named]
        count = sum(view.numel() for view in self._views)
        self._rows = torch.empty(max(1, _BLOCK_BYTES // (4 * count)), count)
        self._filled = 0
        self._written = 0
        self._steps = 0
        self._every = _thinning(steps_per_epoch, 4 * count * steps_per_epoch * config.max_epochs / most_bytes)
        self._about: dict[str, Any] = {
            "version": VERSION,
            "tensors": {name: list(parameter.shape) for name, parameter in named},
            "config": json.loads(config.to_json()),
            "every": self._every,
            "epoch_ends": [],
        }
        self.error: str | None = None
        # Without a buffer, each write is on its way to the disk when it returns, or says that it is not.
        self._file = (self.folder / "weights.npy").open("xb", buffering=0)
        self._file.write(_header(0, count))
        self._write_about()

    def step(self) -> None:
        """Keep the weights as they are now, if it is this step's turn."""
        self._steps += 1
        if self._steps % self._every:
            return
        if self._filled == len(self._rows):
            self._flush()
        torch.cat(self._views, out=self._rows[self._filled])
        self._filled += 1

    def end_epoch(self) -> None:
        """Mark the last step as the end of an epoch, and write all there is."""
        self._flush()
        if self.error is None:
            self._about["epoch_ends"].append(self._written - 1)
            self._write_about()

    def close(self) -> None:
        """Write what is left, and close the file."""
        if not self._file.closed:
            self._flush()
            with suppress(OSError):  # it flushes once more, which a full disk refuses again
                self._file.close()

    def _flush(self) -> None:
        """Write the rows so far.  Where the disk is full, the recording ends there and the training goes on."""
        rows, self._filled = self._filled, 0
        if self.error is not None or not rows:
            return
        try:
            # The rows come first: whoever is stopped in between leaves a header that promises less than there is.
            left = memoryview(self._rows[:rows].numpy().view(np.uint8).reshape(-1))  # type: ignore[arg-type]
            while left:  # an unbuffered write may take only a part
                left = left[self._file.write(left) :]
            self._file.seek(0)
            self._file.write(_header(self._written + rows, self._rows.shape[1]))
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            self.error = f"the recording ends after step {self._written * self._every - 1}: {error.strerror}"
        else:
            self._written += rows

    def _write_about(self) -> None:
        partial = self.folder / "run.json.partial"
        try:
            partial.write_text(json.dumps(self._about))
            partial.replace(self.folder / "run.json")
        except OSError as error:
            self.error = f"the recording ends after step {self._written * self._every - 1}: {error.strerror}"


class Trajectory:
    """A recording, opened to be replayed; the file stays on disk and is mapped, and may still be growing.

    Attributes:
        weights: Shape (T, P), float32, memory-mapped: the flat weights after each recorded step.
        every: Each row stands for so many steps, of which it is the last.  With more than one, replays are those of a
            run that moved only then: close to the exact ones where the weights moved little in between.
        epoch_ends: The rows at which epochs ended.
        config: Of the run.
        shapes: Names and shapes of the tensors, in the order in which they lie in a row.
    """

    def __init__(
        self, rows: NDArray[np.float32], every: int, epoch_ends: list[int], config: RunConfig, shapes: dict[str, Any]
    ) -> None:
        self.weights = rows
        self.every = every
        self.epoch_ends = epoch_ends
        self.config = config
        self.shapes = shapes
        self._data: tuple[Tensor, Tensor] | None = None

    @classmethod
    def open(cls, folder: str | Path) -> Trajectory:
        """Open what is whole of a recording.

        Raises:
            RecordingError: if there is none, or it is damaged, foreign, or of a newer version.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "run.json").read_text())
            version, tensors, ends, every = (about[name] for name in ("version", "tensors", "epoch_ends", "every"))
            if version > VERSION:
                raise RecordingError(f"the recording has format {version}, this program knows {VERSION}: update it")
            config = RunConfig.from_json(json.dumps(about["config"]))
            count = sum(math.prod(shape) for shape in tensors.values())
        except OSError as error:
            raise RecordingError(f"there is no recording in {folder}: {error.strerror}") from error
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise RecordingError(f"run.json in {folder} does not describe a recording: {error!r}") from error
        rows = _mapped(folder / "weights.npy", count)
        return cls(rows, every, [end for end in ends if end < len(rows)], config, tensors)

    def average(self, schemes: Sequence[Scheme], at: Sequence[int] | None = None) -> NDArray[np.float32]:
        """The averaged weights of each scheme after the rows ``at`` (by default the ends of epochs).

        One pass over the file: stretch by stretch, a matrix product weighs its rows for all schemes at once.  What is
        carried from one stretch to the next is float64.

        Returns:
            Shape (schemes, steps, P).

        Raises:
            ValueError: if ``at`` is not rising or names a row that was not recorded.
        """
        steps = list(self.epoch_ends if at is None else at)
        if any(b <= a for a, b in pairwise(steps)) or (steps and not (steps[0] >= 0 and steps[-1] < len(self.weights))):
            raise ValueError(f"at must be rising steps from 0 to {len(self.weights) - 1}, got {steps}")
        count = self.weights.shape[1]
        result = np.zeros((len(schemes), len(steps), count), dtype=np.float32)
        recursive = [k for k, scheme in enumerate(schemes) if isinstance(scheme, Schedule)]
        windows = [(k, scheme.size) for k, scheme in enumerate(schemes) if isinstance(scheme, Window)]
        length = steps[-1] + 1 if steps else 0
        decays = [self.decays(scheme, length) for scheme in schemes if isinstance(scheme, Schedule)]
        carried = np.zeros((len(recursive), count))
        for first, stop in _stretches(steps, max(1, _BLOCK_BYTES // (4 * count))):
            sliding = [
                (k, j, size, step)
                for k, size in windows
                for j, step in enumerate(steps)
                if step >= first and step - size + 1 < stop
            ]
            shares = [weights(rates[first:stop]) for rates in decays]
            shares += [_window_share(size, step, first, stop) for _, _, size, step in sliding]
            products = np.asarray(shares, dtype=np.float32) @ self.weights[first:stop]
            kept = np.array([initial_share(rates[first:stop]) for rates in decays])
            carried = kept[:, np.newaxis] * carried + products[: len(recursive)]
            if stop - 1 in steps:
                result[recursive, steps.index(stop - 1)] = carried
            for (k, j, *_), product in zip(sliding, products[len(recursive) :], strict=True):
                result[k, j] += product
        return result

    def decays(self, schedule: Schedule, rows: int) -> Floats:
        """The schedule's decays over the first ``rows`` rows: of each, the product over the steps it stands for."""
        return np.asarray(schedule.decays(rows * self.every).reshape(rows, self.every).prod(axis=1))

    def replay(self, schemes: Mapping[str, Scheme]) -> pd.DataFrame:
        """The validation curve of each scheme: schedule, epoch, loss, mae, r2."""
        return self._table(schemes, list(range(1, len(self.epoch_ends) + 1)), self.epoch_ends)

    def final(self, schemes: Mapping[str, Scheme]) -> pd.DataFrame:
        """The metrics of each scheme's last average: schedule, loss, mae, r2."""
        if not len(self.weights):
            return pd.DataFrame(columns=["schedule", "loss", "mae", "r2"])
        return self._table(schemes, [0], [len(self.weights) - 1]).drop(columns="epoch")

    def evaluate(self, networks: NDArray[np.float32]) -> pd.DataFrame:
        """Loss (MSE), MAE and R2 on the run's validation rows of flat weights of shape (N, P): a row each."""
        tables = [self._metrics(predicted) for predicted in self._predictions(networks)]
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["loss", "mae", "r2"])

    def ensemble(self, networks: NDArray[np.float32]) -> pd.DataFrame:
        """The same of the one model that averages the predictions of ``networks``: one row."""
        total = sum(predicted.double().sum(dim=0, keepdim=True) for predicted in self._predictions(networks))
        return self._metrics(torch.as_tensor(total) / len(networks))

    def _predictions(self, networks: NDArray[np.float32]) -> Iterator[Tensor]:
        """Predictions for the validation rows, some networks at a time: shape (networks, rows, 1)."""
        x, _ = self._validation()
        model = build(x.shape[1], self.config.network).eval()
        for start in range(0, len(networks), _NETWORKS_AT_ONCE):
            stacked = self._tensors(torch.tensor(networks[start : start + _NETWORKS_AT_ONCE]))
            with torch.no_grad():
                yield vmap(lambda tensors: functional_call(model, tensors, (x,)))(stacked)

    def _metrics(self, predicted: Tensor) -> pd.DataFrame:
        target = self._validation()[1].double()
        error = predicted.double() - target
        loss = error.square().mean(dim=(1, 2)).numpy()
        mae = error.abs().mean(dim=(1, 2)).numpy()
        spread = float((target - target.mean()).square().mean())
        r2 = 1 - loss / spread if spread else np.where(loss == 0, 1.0, 0.0)
        return pd.DataFrame({"loss": loss, "mae": mae, "r2": r2})

    def _table(self, schemes: Mapping[str, Scheme], epochs: list[int], steps: Sequence[int]) -> pd.DataFrame:
        averages = self.average(list(schemes.values()), steps)
        metrics = self.evaluate(averages.reshape(-1, averages.shape[-1]))
        names = [name for name in schemes for _ in epochs]
        return pd.concat([pd.DataFrame({"schedule": names, "epoch": epochs * len(schemes)}), metrics], axis=1)

    def _tensors(self, flat: Tensor) -> dict[str, Tensor]:
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = torch.split(flat, sizes, dim=1)
        return {name: part.reshape(-1, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def _validation(self) -> tuple[Tensor, Tensor]:
        if self._data is None:
            data = load(self.config.data)
            self._data = torch.from_numpy(data.x_val), torch.from_numpy(data.y_val)
        return self._data


def _stretches(steps: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Stretches of at most ``most`` rows, from the first row on; each of ``steps`` is the last row of one."""
    first = 0
    for step in steps:
        while first <= step:
            stop = min(first + most, step + 1)
            yield first, stop
            first = stop


def _thinning(steps_per_epoch: int, excess: float) -> int:
    """The least divisor of ``steps_per_epoch`` that is at least ``excess``; all of them where even that is too few."""
    divisors = (k for k in range(1, steps_per_epoch + 1) if steps_per_epoch % k == 0 and k >= excess)
    return next(divisors, steps_per_epoch)


def _window_share(size: int, step: int, first: int, stop: int) -> Floats:
    """The weights of rows ``first`` to ``stop - 1`` in the mean of the ``size`` rows up to ``step``."""
    rows = np.arange(first, stop)
    return np.where((rows <= step) & (rows > step - size), 1 / min(size, step + 1), 0.0)


def _header(rows: int, columns: int) -> bytes:
    """The header of an ``.npy`` file of version 1.0, always of the same length so that it can be written again."""
    described = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}"
    text = described.ljust(_HEADER_BYTES - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little") + text.encode("ascii")


def _mapped(path: Path, columns: int) -> NDArray[np.float32]:
    """The whole rows of a recording, as many as its file holds, mapped read-only."""
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise RecordingError(f"the weights {path.name} cannot be read: {error.strerror}") from error
    if len(start) < _HEADER_BYTES or not start.startswith(b"\x93NUMPY") or f", {columns})".encode() not in start:
        raise RecordingError(f"{path.name} does not hold rows of {columns} weights, as run.json says")
    rows = (size - _HEADER_BYTES) // (4 * columns)
    if rows == 0:
        return np.empty((0, columns), dtype=np.float32)
    return np.memmap(path, dtype="<f4", mode="r", offset=_HEADER_BYTES, shape=(rows, columns))
