"""Recording the weights of a run, after every step or every k-th one, for :mod:`emacore.replay.trajectory`.

A recording is a folder: ``weights.npy`` of shape (rows, weights), which grows while the run trains; ``copied.npy``, the
bytes of what cannot be averaged (BatchNorm's counters), where there is any; ``run.json``, which says what they hold.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emacore.checks import check_whole, is_real, shown
from emacore.formatting import in_bytes
from emacore.limits import DESCRIPTION_BYTES, DISK_RESERVE, RECORDED_EVERY, RECORDED_STEPS, check_most
from emacore.replay.rows import Rows
from emacore.tensors.buffers import Policy, copied_buffers, marks
from emacore.tensors.chosen import chosen, tell_late
from emacore.tensors.lending import OPEN, check_not_lent
from emacore.tensors.pairing import (
    check_has_values,
    distinct,
    is_averaged,
    layout,
    name_at,
    named_parts,
    paired,
    real_count,
    reals,
    ties,
    unwrapped,
)
from emacore.tensors.sharded import anywhere, gathered, is_first, is_sharded
from emacore.tensors.watch import Watch

VERSION = 2
_HEADER_BYTES = 128
#: Bytes that are kept in memory before they are written.
_BUFFER_BYTES = 8 * 2**20


class RecordingError(ValueError):
    """A recording that cannot be read; the message says what is wrong with it."""


class Recorder:
    """Keeps the weights of ``module`` in ``folder``: a row for each ``every``-th call of :meth:`record`.

    Floating-point and complex parameters and buffers lie in a row one after the other, as float32 (float64 is rounded);
    others are kept as they are, and so are the buffers that :class:`emacore.EMA` copies.  Buffers that are not part of
    the module's state (``persistent=False``: masks, caches) are left out unless ``names`` asks for them.  Rows reach
    the disk whenever a few megabytes have come together, at each :meth:`end_epoch`, and at the end of a ``with`` block.
    Where the disk is nearly full (it leaves 64 MB to others, or half of a small disk), the recording ends and the
    training goes on.

    Of a sharded module (FSDP2, or another whose parameters are ``DTensor``), all processes make the same calls: each
    row is gathered, and the first of them writes.

    Args:
        module: The module that is trained; a compiled or DataParallel one is looked into.
        folder: A new folder, or one without a recording.
        every: Replays of every k-th step are close to the exact ones where the weights move little in between and the
            average looks back over many times k steps and holds little of its start;
            :class:`~emacore.replay.trajectory.Trajectory` says how close.
        names: Only these parameters and buffers; by default all that are part of the state.
        trainable_only: Only the parameters that require a gradient now, and the buffers of their modules.
        float16: Half the size; each weight is rounded by at most a 2048th of itself (or 3e-8, if that is more), and
            none may be above 65504; buffers that hold more at first (masks) are kept as they are.
        buffers: Which floating-point buffers are averaged by replays, and which kept as they are, as for
            :class:`emacore.EMA`.
        settings: What the recording is to say of its run, as JSON can hold it; replays only pass it on.
        most_bytes: What it may take: it ends before it would take more.

    Attributes:
        row_bytes: What a row takes on the disk, known before the first is written.
        error: Why and where the recording ended before the run did, which a warning tells; ``None`` while all is well.

    Raises:
        FileExistsError: if the folder already holds a recording.
        RuntimeError: in the other processes of a sharded module, if the one that writes cannot begin.
        ValueError: for a name that the module does not have, a module with no values or nothing to average, a tensor
            that has no place in a row, or a number out of range.
        TypeError: for a module that is none, or settings that JSON cannot hold.

    Example:
        >>> import tempfile
        >>> from emacore import UniformAverage
        >>> from emacore.replay.trajectory import Trajectory
        >>> model, folder = nn.Linear(1, 1, bias=False), tempfile.mkdtemp()
        >>> with Recorder(model, folder) as recorder:
        ...     for value in (1.0, 2.0, 6.0):
        ...         _ = nn.init.constant_(model.weight, value)
        ...         recorder.record()
        >>> Trajectory.open(folder).load_into(model, UniformAverage())
        >>> model.weight.item()
        3.0
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        module: nn.Module,
        folder: str | Path,
        every: int = 1,
        names: Collection[str] | None = None,
        *,
        float16: bool = False,
        buffers: Policy = None,
        settings: Mapping[str, Any] | None = None,
        most_bytes: float = math.inf,
        trainable_only: bool = False,
    ) -> None:
        check_whole("every", every, 1)
        every = int(every)
        if not is_real(most_bytes) or math.isnan(most_bytes):
            raise ValueError(f"most_bytes must be a number of bytes, got {most_bytes!r}")
        check_has_values("module", module)
        kept_settings = _as_json(settings)
        self.folder = Path(folder)
        self._module = unwrapped(module)
        self._every = every
        self._names = chosen(self._module, names, trainable_only)
        self._trainable_only, self._told = trainable_only, frozenset[str]()
        self._all = names is None and not trainable_only
        if names is None:
            self._names -= _passing(self._module)
        self._dtype = torch.float16 if float16 else torch.float32
        largest = {"largest": torch.finfo(self._dtype).max} if float16 else {}
        self._as_they_are = copied_buffers(self._module, buffers, **largest) | marks(self._module)
        wanted = {name: tensor for name, tensor in distinct(self._module).items() if name in self._names}
        for name, tensor in wanted.items():
            if tensor.layout != torch.strided or tensor.is_quantized:
                kind = tensor.dtype if tensor.is_quantized else f"layout {tensor.layout}"
                raise ValueError(f"{name!r} is of {kind}, which has no place in a row: see names")
        self._layout = {name: tie for name, tie in layout(self._module).items() if tie.first_name in self._names}
        averaged = {name: tensor for name, tensor in wanted.items() if self._is_averaged(name, tensor)}
        copied = {name: tensor for name, tensor in wanted.items() if not self._is_averaged(name, tensor)}
        columns = sum(real_count(tensor) for tensor in averaged.values())
        if not columns:
            raise ValueError("the module has no floating-point tensor to record")
        extra = sum(tensor.numel() * tensor.element_size() for tensor in copied.values())
        self.row_bytes = columns * self._dtype.itemsize + extra
        self._gathers = any(map(is_sharded, wanted.values()))
        self._writes = is_first(wanted.values())
        self._is_closed = False
        self._is_over = False  # known to all processes
        self._room = max(1, _BUFFER_BYTES // self.row_bytes)
        self._rows = torch.empty(self._room if self._writes else 0, columns, dtype=self._dtype)
        self._extra = torch.empty(len(self._rows), extra, dtype=torch.uint8)
        self._filled = self._written = self._calls = 0
        self.error: str | None = None
        self._most_bytes = most_bytes
        self._look_up()
        self._about: dict[str, Any] = {
            "version": VERSION,
            "dtype": "float16" if float16 else "float32",
            "tensors": _described(averaged),
            "copied": _described(copied),
            "config": kept_settings,
            "every": every,
            "epoch_ends": [],
        }
        self._files: list[RowFile] = []
        failure = self._begin(columns, extra) if self._writes else None
        if anywhere(failure is not None, wanted.values()):
            raise failure or RuntimeError(f"the process that writes cannot begin the recording in {folder}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def size(self, calls: int) -> int:
        """Bytes on the disk after so many calls of :meth:`record`."""
        check_whole("calls", calls, 0)
        return len(self._files) * _HEADER_BYTES + int(calls) // self._every * self.row_bytes

    def record(self) -> None:
        """Keep the weights as they are now, if it is this call's turn.  Call it after each optimiser step.

        Raises:
            RuntimeError: if the module gained, lost or reshaped a tensor, inside ``average_parameters()``, or after
                :meth:`close`.
        """
        if OPEN:
            why = "record() inside average_parameters() would record the average; call it outside"
            check_not_lent(self._module, why)
        if self._is_closed and self.error is None:
            raise RuntimeError("record() after close(), or after its with block: the recording has ended")
        self._calls += 1
        if self._calls % self._every or (self._is_over if self._gathers else self.error is not None):
            return
        if self._watch.is_stale():
            self._look_up()
        if self._filled == self._room:
            self._flush()
            self._tell_end()
        averaged, copied = self._averaged, self._copied
        if self._gathers:  # all processes, and also after an error of which the others do not know yet
            averaged, copied = list(map(gathered, averaged)), list(map(gathered, copied))
        if self._writes:
            self._keep(averaged, copied)
        self._filled += 1

    def _keep(self, averaged: list[Tensor], copied: list[Tensor]) -> None:
        row = self._rows[self._filled]
        if self._direct:
            torch.cat(averaged, out=row)
        elif averaged:
            row.copy_(_in_one([reals(tensor).to(self._dtype) for tensor in averaged]))
        if copied:
            self._extra[self._filled].copy_(
                _in_one([tensor.reshape(-1).contiguous().view(torch.uint8) for tensor in copied])
            )

    def _tell_late(self, left_out: Collection[str]) -> None:
        if self._trainable_only:
            self._told = tell_late(self._module, left_out, self._told, "they are not recorded")

    def end_epoch(self) -> None:
        """Mark the last row as the end of an epoch, and write all there is."""
        self._tell_late(ties(self._module).keys() - self._layout.keys())
        self._flush()
        self._tell_end()
        ends, last = self._about["epoch_ends"], self._written - 1
        if self.error is None and last > (ends[-1] if ends else -1):
            ends.append(last)
            self._write_about()

    def give_way(self, why: str) -> None:
        """Drop the recording, so that others have its room; the training goes on.

        Its files are removed, not cut short: whoever has them mapped into memory would be ended by the system.
        """
        self.error = f"nothing is left of the recording: {why}"
        for file in self._files:
            file.close()
        if self._writes:
            shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Write what is left, and close the files."""
        self._tell_late(ties(self._module).keys() - self._layout.keys())
        self._flush()
        self._is_closed = True
        for file in self._files:
            file.close()

    def _begin(self, columns: int, extra: int) -> OSError | None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descr = "<f2" if self._dtype == torch.float16 else "<f4"
            self._files = [RowFile(self.folder / "weights.npy", descr, columns)]
            if extra:
                self._files.append(RowFile(self.folder / "copied.npy", "|u1", extra))
        except FileExistsError as error:
            if self.folder.is_dir():
                return FileExistsError(f"{self.folder} holds a recording already: choose another folder")
            return FileExistsError(f"{self.folder} cannot be a folder ({error.strerror}): choose another one")
        except OSError as error:
            return error
        self._write_about()
        return None

    def _tell_end(self) -> None:
        """Have all processes know whether the one that writes has ended the recording."""
        if self._gathers and not self._is_over:
            self._is_over = anywhere(self.error is not None, [*self._averaged, *self._copied])
            if self._is_over and self.error is None:
                self.error = "the process that writes has ended the recording, and says why"

    def _look_up(self) -> None:
        found = ties(self._module)
        left_out = found.keys() - self._layout.keys()
        self._tell_late(left_out)
        if self._all:  # parameters and what is part of the state may not come unnoticed
            left_out -= self._module.state_dict().keys()
        try:
            pairs = paired(self._layout, found, "module", left_out)
        except RuntimeError as error:
            raise RuntimeError(f"{error}; or record by names= what stays as it is") from None
        sources = {name: source for name, (_, source) in pairs.items()}
        self._averaged = [tensor for name, tensor in sources.items() if self._is_averaged(name, tensor)]
        self._copied = [tensor for name, tensor in sources.items() if not self._is_averaged(name, tensor)]
        if any(map(is_sharded, sources.values())) != self._gathers:
            raise RuntimeError("the module was sharded, or gathered, after its Recorder was built: build it afterwards")
        flat = bool(self._averaged) and not self._gathers
        self._direct = flat and all(
            tensor.dtype == self._dtype and tensor.device.type == "cpu" and tensor.is_contiguous()
            for tensor in self._averaged
        )
        if self._direct:
            self._averaged = [tensor.view(-1) for tensor in self._averaged]
        self._watch = Watch(self._module)

    def _is_averaged(self, name: str, tensor: Tensor) -> bool:
        return is_averaged(tensor) and name not in self._as_they_are

    def _flush(self) -> None:
        rows, self._filled = self._filled, 0
        if self.error is not None or not (rows and self._writes):
            return
        why = None
        if self._dtype == torch.float16 and not (finite := self._rows[:rows].isfinite()).all():
            rows, column = (~finite).nonzero()[0].tolist()
            why = f"{self._name_at(column)!r} is above 65504 or not finite then, which float16 cannot hold"
        own = self._most_bytes - len(self._files) * _HEADER_BYTES - self._written * self.row_bytes
        try:
            left = _room(self.folder)
        except OSError as error:
            self._end(str(error.strerror))
            return
        whole = max(0, min(rows, int(min(own, left) // self.row_bytes)))
        self._append(whole)
        if whole < rows and self.error is None:
            budget = f"it may take {in_bytes(self._most_bytes)} at most"
            disk = "the disk is nearly full, and what is left of it is kept for histories"
            self._end(budget if own < left else disk)
        if why is not None and self.error is None:
            self._end(why)

    def _name_at(self, column: int) -> str:
        """Which tensor has a number of a row."""
        averaged = {
            name: tie.tensor
            for name, tie in self._layout.items()
            if tie.first_name == name and self._is_averaged(name, tie.tensor)
        }
        return name_at(column, averaged)

    def _append(self, rows: int) -> None:
        try:
            for file, kept in zip(self._files, (self._rows, self._extra), strict=False):
                file.append(kept[:rows].numpy())
        except OSError as error:
            self._end(str(error.strerror))
        else:
            self._written += rows

    def _end(self, why: str) -> None:
        upto = f"the recording ends after step {self._written * self._every - 1}"
        self.error = f"{upto if self._written else 'nothing was recorded'}: {why}"
        warnings.warn(self.error, stacklevel=4)

    def _write_about(self) -> None:
        partial = self.folder / "run.json.partial"
        try:
            partial.write_text(json.dumps(self._about))
            partial.replace(self.folder / "run.json")
        except OSError as error:
            self._end(str(error.strerror))


def _as_json(settings: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The settings as they are stored; raises before anything is."""
    if settings is None:
        return None
    try:
        return dict(json.loads(json.dumps(dict(settings))))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"settings must be a dictionary that JSON can hold, or None: {error}") from error


def _passing(module: nn.Module) -> set[str]:
    """Names of the buffers that are not part of a module's state."""
    return {start + name for start, part in named_parts(module).items() for name in part._non_persistent_buffers_set}


def _room(folder: Path) -> int:
    """Bytes that a recording may still take of a disk."""
    disk = shutil.disk_usage(folder)
    return disk.free - min(DISK_RESERVE, disk.total // 2)


def _in_one(parts: list[Tensor]) -> Tensor:
    """They lie on the device of all of them, from which one copy is quicker than many; or else on the CPU."""
    if len({part.device for part in parts}) > 1:
        parts = [part.cpu() for part in parts]
    return torch.cat(parts)


class RowFile:
    """An ``.npy`` file that grows by rows and can be read at any moment."""

    def __init__(self, path: Path, descr: str, columns: int) -> None:
        self._descr, self._columns, self._written = descr, columns, 0
        # Without a buffer, each write is on its way to the disk when it returns, or says that it is not.
        self._file = path.open("xb", buffering=0)
        self._file.write(self._header())

    def append(self, rows: NDArray[Any]) -> None:
        """Write rows, or raise ``OSError``."""
        # The rows come first: whoever is stopped in between leaves a header that promises less than there is.
        left = memoryview(rows.view(np.uint8).reshape(-1))  # type: ignore[arg-type]
        while left:  # an unbuffered write may take only a part
            left = left[self._file.write(left) :]
        self._written += len(rows)
        self._file.seek(0)
        self._file.write(self._header())
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close it; a full disk is told by the writes before."""
        with suppress(OSError):  # it flushes once more, which a full disk refuses again
            self._file.close()

    def _header(self) -> bytes:
        """The file's header in NumPy's format 1.0, always of the same length, so that it can be written again."""
        described = (
            f"{{'descr': '{self._descr}', 'fortran_order': False, 'shape': ({self._written}, {self._columns}), }}"
        )
        text = described.ljust(_HEADER_BYTES - 11) + "\n"
        return b"\x93NUMPY\x01\x00" + (_HEADER_BYTES - 10).to_bytes(2, "little") + text.encode("ascii")


def mapped_rows(path: Path, descr: str, columns: int) -> NDArray[Any]:
    """The whole rows that a :class:`RowFile` holds by now, mapped read-only.

    Raises:
        RecordingError: if it cannot be read, or holds something else.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
        size = path.stat().st_size
    except OSError as error:
        raise RecordingError(f"the weights {path.name} cannot be read: {error.strerror}") from error
    expected = f"'{descr}'".encode(), f", {columns})".encode()
    if len(start) < _HEADER_BYTES or not start.startswith(b"\x93NUMPY") or any(e not in start for e in expected):
        raise RecordingError(f"{path.name} does not hold rows of {columns} weights, as run.json says")
    dtype = np.dtype(descr)
    rows = (size - _HEADER_BYTES) // (dtype.itemsize * columns)
    if rows == 0:
        return np.empty((0, columns), dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=_HEADER_BYTES, shape=(rows, columns))


def read_recording(folder: str | Path, epochs: int | None = None) -> Rows:
    """What is whole of a recording, or only its first ``epochs``; the weights are memory-mapped.

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
        tensors, copied_tensors = _layout(about["tensors"]), _layout(about["copied"])
        columns = sum(real_count(tensor) for tensor in tensors.values())
        extra = sum(tensor.nbytes for tensor in copied_tensors.values())
        weights = mapped_rows(folder / "weights.npy", {"float32": "<f4", "float16": "<f2"}[about["dtype"]], columns)
        copied = mapped_rows(folder / "copied.npy", "|u1", extra) if extra else np.empty((len(weights), 0), np.uint8)
        every, settings = about["every"], about["config"]
        check_whole("every", every, 1, RECORDED_EVERY)
        whole = min(len(weights), len(copied))
        check_most("steps of a recording", whole * every, RECORDED_STEPS)
        ends = [int(end) for end in about["epoch_ends"] if end < whole]
    except RecordingError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError, MemoryError) as error:
        raise _foreign(folder, error) from error
    if epochs is not None:
        if epochs > len(ends):
            raise ValueError(f"epochs must be at most the {len(ends)} that are whole, got {shown(epochs)}")
        ends = ends[:epochs]
        whole = ends[-1] + 1
    steps = np.arange(1, whole + 1) * every - 1
    try:
        return Rows(weights[:whole], steps, tensors, ends, copied[:whole], copied_tensors, settings)
    except (ValueError, OverflowError) as error:
        raise _foreign(folder, error) from error


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        path = folder / "run.json"
        check_most("bytes of a description", path.stat().st_size, DESCRIPTION_BYTES)
        about: dict[str, Any] = json.loads(path.read_text())
        version = int(about["version"])
    except OSError as error:
        raise RecordingError(f"there is no recording in {folder}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _foreign(folder, error) from error
    if version != VERSION:
        cure = "update this program" if version > VERSION else "record the run again"
        raise RecordingError(f"the recording has format {version}, this program knows {VERSION}: {cure}")
    return about


def _foreign(folder: Path, error: Exception) -> RecordingError:
    text = repr(error)
    return RecordingError(f"run.json in {folder} does not describe a recording: {text[:300]}")


def _layout(described: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors without values, of the described shapes and dtypes."""
    layout = {}
    for name, about in described.items():
        dtype = getattr(torch, about["dtype"])
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"{about['dtype']!r} is no dtype")
        for size in about["shape"]:
            check_whole(f"the shape of {name}", size, 0)
        layout[name] = torch.empty(about["shape"], dtype=dtype, device="meta")
    return layout


def thinning(steps_per_epoch: int, row_bytes: int, max_epochs: int, most_bytes: float) -> int:
    """Which k-th steps to keep so that a whole run takes at most about ``most_bytes``.

    The least divisor of the steps of an epoch that does it, so that epochs still end on a row; all of them where even
    that is too few.
    """
    excess = row_bytes * steps_per_epoch * max_epochs / max(most_bytes, 1)
    divisors = (k for k in range(1, steps_per_epoch + 1) if steps_per_epoch % k == 0 and k >= excess)
    return next(divisors, steps_per_epoch)


def _described(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in tensors.items()
    }
