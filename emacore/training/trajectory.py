"""The recorded weights of a run, and their exact replay under any schedules.

The average never touches the training, so the weights after every optimiser step answer what any other schedule would
have given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emacore.averaging.schedules import Schedule, check_whole, last_move
from emacore.averaging.weights import stretch_weights, weights
from emacore.averaging.windows import Scheme, Window, check_scheme, decays_at_end
from emacore.tensors import from_reals, real_count, ties, unwrapped
from emacore.training.config import RunConfig
from emacore.training.data import load
from emacore.training.metrics import METRICS, metrics
from emacore.training.network import forward
from emacore.training.recording import VERSION, RecordingError, mapped_rows

Floats = NDArray[np.float64]

#: Bytes of weights read, and averaged networks evaluated, at a time: what bounds the memory.
_BLOCK_BYTES = 8 * 2**20
_NETWORKS_AT_ONCE = 64


class Trajectory:
    """A recording, opened to be replayed; the files stay on disk and are mapped, and may still be growing.

    Attributes:
        weights: Shape (T, P), float32 or float16, memory-mapped: the flat weights after each recorded step.
        every: Each row stands for so many steps, of which it is the last.  With more than one, replays are those of a
            run that moved only then: close to the exact ones where the weights moved little in between, and the average
            looks back over many rows.  On the article's run, from epoch 10 on, those of every 2nd, 5th and 10th step
            miss the loss of its own schedule by up to 0.5, 2 and 5 %, with ``update_every=10`` by up to 1, 4 and 9 %,
            and that of ``Constant(0.9)``, which looks back ten steps, by up to 8, 27 and 61 % (the largest of 8 seeds,
            ``benchmarks/thinning.py``).
        epoch_ends: The rows at which epochs ended.
        config: Of a run of :func:`emacore.train`; ``None`` for one of another loop.
        tensors: Names, shapes and dtypes of what lies in a row, as tensors without values.
    """

    def __init__(self, rows: NDArray[Any], copied: NDArray[np.uint8], about: Mapping[str, Any]) -> None:
        self.weights = rows
        self.every: int = about["every"]
        self.epoch_ends: list[int] = [end for end in about["epoch_ends"] if end < len(rows)]
        config = about["config"]
        self.config = None if config is None else RunConfig.from_json(json.dumps(config))
        self.tensors = _layout(about["tensors"])
        self._copied_rows = copied
        self._copied = _layout(about["copied"])
        self._data: tuple[Tensor, Tensor] | None = None

    @classmethod
    def open(cls, folder: str | Path, epochs: int | None = None) -> Trajectory:
        """Open what is whole of a recording, or only its first ``epochs``.

        Args:
            epochs: At least 1, and at most as many as are whole.

        Raises:
            RecordingError: if there is none, or it is damaged, foreign, or of another version.
            ValueError: for another number of epochs.
        """
        if epochs is not None:
            check_whole("epochs", epochs, 1)
        folder = Path(folder)
        about = _read_about(folder)
        try:
            columns = sum(real_count(tensor) for tensor in _layout(about["tensors"]).values())
            extra = sum(tensor.nbytes for tensor in _layout(about["copied"]).values())
            rows = mapped_rows(folder / "weights.npy", {"float32": "<f4", "float16": "<f2"}[about["dtype"]], columns)
            copied = mapped_rows(folder / "copied.npy", "|u1", extra) if extra else np.empty((len(rows), 0), np.uint8)
            whole = min(len(rows), len(copied))
            found = cls(rows[:whole], copied[:whole], about)
        except RecordingError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise _foreign(folder, error) from error
        if epochs is None:
            return found
        if epochs > len(found.epoch_ends):
            raise ValueError(f"epochs must be at most the {len(found.epoch_ends)} that are whole, got {epochs}")
        whole = found.epoch_ends[epochs - 1] + 1
        return cls(rows[:whole], copied[:whole], about)

    @property
    def steps(self) -> int:
        """How many steps of the run the rows stand for."""
        return len(self.weights) * self.every

    def decays(self, schedule: Schedule, rows: int) -> Floats:
        """The schedule's decays over the first ``rows`` rows: of each, the product over the steps it stands for."""
        return np.asarray(schedule.decays(rows * self.every).reshape(rows, self.every).prod(axis=1))

    def shares(self, scheme: Scheme) -> Floats:
        """What each row weighs in the last average of a scheme: shape (T,)."""
        return weights(decays_at_end(self._in_rows(scheme), len(self.weights), self.decays))

    def average(self, schemes: Sequence[Scheme], at: Sequence[int] | None = None) -> NDArray[np.float32]:
        """The averaged weights of each scheme after the rows ``at`` (by default the ends of epochs).

        Returns:
            Shape (schemes, steps, P).

        Raises:
            ValueError: if ``at`` is not rising or names a row that was not recorded.
            TypeError: if a scheme is none.
        """
        steps = self._checked(at)
        result = np.empty((len(schemes), len(steps), self.weights.shape[1]), dtype=np.float32)
        for n, averages in enumerate(self._averages(schemes, steps)):
            result[:, n] = averages
        return result

    def replay(self, schemes: Mapping[str, Scheme]) -> pd.DataFrame:
        """The validation curve of each scheme: schedule, epoch, loss, mae, r2.

        Raises:
            ValueError: if the run was not one of :func:`emacore.train` (also the methods below that measure).
        """
        return self.metrics(schemes, self.epoch_ends).assign(
            epoch=list(range(1, len(self.epoch_ends) + 1)) * len(schemes)
        )[["schedule", "epoch", *METRICS]]

    def final(self, schemes: Mapping[str, Scheme]) -> pd.DataFrame:
        """The metrics of each scheme's last average: schedule, loss, mae, r2."""
        rows = [len(self.weights) - 1] if len(self.weights) else []
        return self.metrics(schemes, rows)[["schedule", *METRICS]]

    def metrics(self, schemes: Mapping[str, Scheme], at: Sequence[int]) -> pd.DataFrame:
        """The metrics of each scheme's average after the rows ``at``: schedule, row, loss, mae, r2.

        One pass over the file; only some averages are in memory at a time.
        """
        steps = self._checked(at)
        networks = (network for averages in self._averages(list(schemes.values()), steps) for network in averages)
        table = self.measure(networks)
        order = np.arange(len(table)).reshape(len(steps), len(schemes)).T.reshape(-1)
        named = {"schedule": [name for name in schemes for _ in steps], "row": steps * len(schemes)}
        return pd.concat([pd.DataFrame(named), table.iloc[order].reset_index(drop=True)], axis=1)

    def measure(self, networks: NDArray[Any] | Iterator[NDArray[Any]]) -> pd.DataFrame:
        """Loss (MSE), MAE and R2 on the run's validation rows of flat weights of shape (N, P): a row each."""
        target = self._validation()[1]
        tables = [metrics(predicted, target) for predicted in self._predictions(networks)]
        return pd.DataFrame(
            {name: np.concatenate([table[name].numpy() for table in tables]) if tables else [] for name in METRICS}
        )

    def ensemble(self, networks: NDArray[Any]) -> pd.DataFrame:
        """The same of the one model that averages the predictions of ``networks``: one row."""
        total = sum(predicted.double().sum(dim=0) for predicted in self._predictions(networks))
        found = metrics(torch.as_tensor(total) / len(networks), self._validation()[1])
        return pd.DataFrame({name: [float(value)] for name, value in found.items()})

    def state(self, scheme: Scheme, at: int = -1) -> dict[str, Tensor]:
        """The averaged tensors after row ``at`` by name, in their own dtypes; those that were copied, as EMA does.

        Integers and booleans are those of the last move of a schedule; a shared tensor is there once.

        Raises:
            ValueError: if the recording has no such row.
        """
        row = self._row(at)
        moved = row
        if isinstance(scheme, Schedule):
            # Thinned rows are the last of the steps they stand for.
            moved = max(0, last_move(scheme, (row + 1) * self.every) // self.every)
        averaged = from_reals(torch.from_numpy(self.average([scheme], [row])[0]), self.tensors)
        state = {name: tensor[0].to(self.tensors[name].dtype) for name, tensor in averaged.items()}
        content = torch.from_numpy(np.array(self._copied_rows[moved]))
        pieces = torch.split(content, [tensor.nbytes for tensor in self._copied.values()])
        for (name, tensor), piece in zip(self._copied.items(), pieces, strict=True):
            state[name] = piece.clone().view(tensor.dtype).reshape(tensor.shape)
        return state

    @torch.no_grad()
    def load_into(self, module: nn.Module, scheme: Scheme, at: int = -1) -> None:
        """Put the averages after row ``at`` into a module that has the recorded tensors by name.

        Tensors that were not recorded stay as they are.

        Raises:
            RuntimeError: if the module lacks a recorded tensor, or has it in another shape.
            ValueError: if the recording has no such row.
        """
        found = ties(unwrapped(module))
        state = self.state(scheme, at)
        for name, tensor in state.items():
            if name not in found or found[name].tensor.shape != tensor.shape:
                have = f"with shape {tuple(found[name].tensor.shape)}" if name in found else "under no such name"
                raise RuntimeError(
                    f"the recording holds {name!r} with shape {tuple(tensor.shape)}, the module has it {have}"
                )
        for name, tensor in state.items():
            found[name].tensor.copy_(tensor)

    def evaluate(
        self,
        schemes: Mapping[str, Scheme],
        function: Callable[[dict[str, Tensor]], float | Mapping[str, float]],
        at: Sequence[int] | None = None,
    ) -> pd.DataFrame:
        """What ``function`` makes of each scheme's averages: schedule, row, and its results.

        Args:
            function: Gets the averaged tensors by name, as ``load_state_dict(..., strict=False)`` and
                ``torch.func.functional_call`` take them; returns a number (column ``value``) or several by name.
            at: After which rows; by default the last.

        Raises:
            ValueError: if ``at`` is not rising or names a row that was not recorded, or a result has a column's name.
        """
        rows = [self._row(-1)] if at is None else self._checked(at)
        table = []
        for name, scheme in schemes.items():
            for row in rows:
                result = function(self.state(scheme, row))
                values = result if isinstance(result, Mapping) else {"value": float(result)}
                if "schedule" in values or "row" in values:
                    raise ValueError('the results of function must not be named "schedule" or "row": those are columns')
                table.append({"schedule": name, "row": row, **values})
        return pd.DataFrame(table)

    def _averages(self, schemes: Sequence[Scheme], steps: list[int]) -> Iterator[NDArray[np.float32]]:
        """The averages after each of ``steps``, shape (schemes, P), one after the other.

        One pass over the file: stretch by stretch, a matrix product weighs its rows for all schemes at once.  What is
        carried from one stretch to the next is float64.
        """
        for scheme in schemes:
            check_scheme(scheme)
        columns = self.weights.shape[1]
        length = steps[-1] + 1 if steps else 0
        recursive = [k for k, scheme in enumerate(schemes) if isinstance(scheme, Schedule)]
        windows = [(k, scheme) for k, scheme in enumerate(map(self._in_rows, schemes)) if isinstance(scheme, Window)]
        recent = cache(self._recent)
        decays = np.empty((len(recursive), length))
        for n, scheme in enumerate(scheme for scheme in schemes if isinstance(scheme, Schedule)):
            decays[n] = self.decays(scheme, length)
        carried = np.zeros((len(recursive), columns))
        sliding = {step: np.zeros((len(windows), columns)) for step in steps} if windows else {}
        for first, stop in _stretches(steps, max(1, _BLOCK_BYTES // (4 * columns))):
            open_windows = [
                (n, step, _stretch_of(recent(window, min(window.size, step + 1)), step, first, stop))
                for n, (_, window) in enumerate(windows)
                for step in sliding
                if step >= first and step - window.size + 1 < stop
            ]
            shares, kept = stretch_weights(decays[:, first:stop])
            weighing = np.concatenate([shares, *(share[np.newaxis] for *_, share in open_windows)])
            products = weighing.astype(np.float32) @ self.weights[first:stop].astype(np.float32, copy=False)
            carried *= kept[:, np.newaxis]
            carried += products[: len(recursive)]
            for (n, step, _), product in zip(open_windows, products[len(recursive) :], strict=True):
                sliding[step][n] += product
            if stop - 1 in steps:
                result = np.empty((len(schemes), columns), dtype=np.float32)
                result[recursive] = carried
                if windows:
                    result[[k for k, _ in windows]] = sliding.pop(stop - 1)
                yield result

    def _in_rows(self, scheme: Scheme) -> Scheme:
        """The scheme with a window's size in rows: those that were recorded among its last steps."""
        return replace(scheme, size=-(-scheme.size // self.every)) if isinstance(scheme, Window) else scheme

    def _recent(self, window: Window, rows: int) -> Floats:
        """What each of the last ``rows`` rows weighs in a window that holds just these."""
        return weights(self.decays(window.rule, rows))

    def _predictions(self, networks: NDArray[Any] | Iterator[NDArray[Any]]) -> Iterator[Tensor]:
        """Predictions for the validation rows, some networks at a time: shape (networks, rows, 1)."""
        x, _ = self._validation()
        for some in _batches(networks, _NETWORKS_AT_ONCE):
            with torch.no_grad():
                yield forward(from_reals(torch.from_numpy(some), self.tensors), x, self._own_config().network)

    def _validation(self) -> tuple[Tensor, Tensor]:
        if self._data is None:
            data = load(self._own_config().data)
            self._data = torch.from_numpy(data.x_val), torch.from_numpy(data.y_val)
        return self._data

    def _own_config(self) -> RunConfig:
        if self.config is None:
            raise ValueError("only runs of emacore.train say how they are measured; use evaluate() for others")
        return self.config

    def _checked(self, at: Sequence[int] | None) -> list[int]:
        rows = np.asarray(self.epoch_ends if at is None else at)
        if not rows.size and rows.ndim == 1:
            return []
        whole = rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer)
        if not whole or (np.diff(rows) <= 0).any() or rows[0] < 0 or rows[-1] >= len(self.weights):
            raise ValueError(f"at must be rising rows from 0 to {len(self.weights) - 1}, such as [0], got {at!r}")
        return [int(row) for row in rows]

    def _row(self, at: int) -> int:
        if not isinstance(at, (int, np.integer)) or not -len(self.weights) <= at < len(self.weights):
            raise ValueError(f"at must be one of the {len(self.weights)} recorded rows, got {at!r}")
        return int(at) % len(self.weights)


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / "run.json").read_text())
        version = int(about["version"])
    except OSError as error:
        raise RecordingError(f"there is no recording in {folder}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise _foreign(folder, error) from error
    if version != VERSION:
        cure = "update this program" if version > VERSION else "record the run again"
        raise RecordingError(f"the recording has format {version}, this program knows {VERSION}: {cure}")
    return about


def _foreign(folder: Path, error: Exception) -> RecordingError:
    return RecordingError(f"run.json in {folder} does not describe a recording: {error!r}")


def _batches(networks: NDArray[Any] | Iterator[NDArray[Any]], size: int) -> Iterator[NDArray[np.float32]]:
    """Flat weights, (N, P) or one after the other, as arrays of at most ``size`` rows."""
    if isinstance(networks, np.ndarray):
        for start in range(0, len(networks), size):
            yield np.array(networks[start : start + size], dtype=np.float32)
        return
    kept: list[NDArray[Any]] = []
    for network in networks:
        kept.append(network)
        if len(kept) == size:
            yield np.stack(kept)
            kept.clear()
    if kept:
        yield np.stack(kept)


def _stretches(steps: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Stretches of at most ``most`` rows, from the first row on; each of ``steps`` is the last row of one."""
    first = 0
    for step in steps:
        while first <= step:
            stop = min(first + most, step + 1)
            yield first, stop
            first = stop


def _stretch_of(recent: Floats, step: int, first: int, stop: int) -> Floats:
    """The weights of rows ``first`` to ``stop - 1``, where ``recent`` are those of the last rows up to ``step``."""
    begin = step + 1 - len(recent)
    overlap = slice(max(first, begin), min(stop, step + 1))
    result = np.zeros(stop - first)
    result[overlap.start - first : overlap.stop - first] = recent[overlap.start - begin : overlap.stop - begin]
    return result


def _layout(described: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors without values, of the described shapes and dtypes."""
    layout = {}
    for name, about in described.items():
        layout[name] = torch.empty(about["shape"], dtype=getattr(torch, about["dtype"]), device="meta")
    return layout
