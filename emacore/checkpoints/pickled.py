"""Pickled networks, as EDM2 and its relatives write their snapshots: their tensors, without running what they hold.

Such a file is a pickle of a dictionary whose ``ema`` is a module, and the pickle brings the source code of its class
along.  Here every class and function that it names becomes an :class:`Inert`, which holds what the pickle says of it;
a module is then known by its ``_parameters``, ``_buffers`` and ``_modules``.  Numbers stay in the file until they are
read.

Source: the modules ``torch_utils/persistence.py`` and ``training/training_loop.py`` of https://github.com/NVlabs/edm2;
what a tensor's pickle holds is in ``torch._utils`` and ``torch.storage``.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

#: Bytes of a piece from which on it is left in the file.
_LARGE = 4096
#: What a storage's own header takes at most.
_HEADER = 4096
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
#: Those that a tensor may tell by their names.
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (*_STORAGES.values(), *FLOAT8)}


class Inert(dict[Any, Any]):
    """Stands for an object, class or function that is not looked up; it keeps what it is given, and does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state[0] if isinstance(state, tuple) and state else state

    def __call__(self, *arguments: Any, **named: Any) -> Inert:
        return Inert(*arguments, **named)

    def __hash__(self) -> int:  # type: ignore[override]
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def append(self, item: Any) -> None:
        """As a list would."""

    def extend(self, items: Any) -> None:
        """As a list would."""

    def add(self, item: Any) -> None:
        """As a set would."""


class Piece(NamedTuple):
    """Numbers in a file.

    Attributes:
        read: Reads them from one byte up to another.
        at: The first one's place in the file; -1 where they are in memory.
    """

    read: Callable[[int, int], bytes]
    at: int
    dtype: torch.dtype
    nbytes: int


class PickledTensor(NamedTuple):
    """A tensor of a pickle: a view of a :class:`Piece`."""

    piece: Piece
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def identity(self) -> object:
        """Equal for two names of one and the same numbers."""
        return id(self.piece), *self[1:]

    def read(self, start: int, stop: int) -> Tensor:
        """Some of its numbers, in the order of a contiguous one."""
        size = self.dtype.itemsize
        if torch.empty(self.shape, device="meta").stride() == self.stride:
            data = self.piece.read((self.offset + start) * size, (self.offset + stop) * size)
            return torch.frombuffer(bytearray(data), dtype=self.dtype)
        every = self.piece.read(0, self.piece.nbytes)
        whole = torch.frombuffer(bytearray(every), dtype=self.dtype)
        return whole.as_strided(self.shape, self.stride, self.offset).reshape(-1)[start:stop]


def read_pickle(path: Path) -> Any:
    """What a pickle holds: plain values, :class:`PickledTensor` and :class:`Inert`.

    Raises:
        pickle.UnpicklingError: if it is damaged, or holds what is not known here; or ``EOFError``, ``ValueError`` and
            others, because a pickle may be wrong in many ways.
    """
    with path.open("rb") as file:
        return _Unpickler(_Skipping(file, path)).load()


def archive_in(path: Path, begin: int, length: int) -> Any:
    """What torch.save wrote as an archive into a stretch of a file, as :func:`read_pickle` has it.

    Raises:
        pickle.UnpicklingError: if it is compressed; or ``zipfile.BadZipFile``, ``KeyError`` and others.
    """
    with path.open("rb") as file:
        archive = zipfile.ZipFile(_Stretch(file, begin, length))
        [name] = [one for one in archive.namelist() if one.endswith("/data.pkl")]
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("its numbers are in another order of bytes")

        def piece(told: Any) -> Piece:
            dtype, key = _STORAGES[told[1]], str(told[2])
            about = archive.getinfo(f"{folder}data/{key}")
            if about.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError("its numbers are compressed")
            file.seek(begin + about.header_offset + 26)  # where the lengths of the name and of what follows it stand
            header = 30 + sum(struct.unpack("<HH", file.read(4)))
            at = begin + about.header_offset + header
            return Piece(_reader(path, at), at, dtype, about.file_size)

        return _OfArchive(io.BytesIO(archive.read(name)), cache(piece)).load()


def modules_in(content: Mapping[Any, Any]) -> dict[str, dict[str, PickledTensor]]:
    """The modules that a dictionary holds, as ``state_dict()`` would say them."""
    found = {}
    for name, value in content.items():
        if isinstance(value, Inert) and (tensors := dict(_tensors_of(value, ""))):
            found[str(name)] = tensors
    return found


def _tensors_of(module: Inert, prefix: str) -> Iterator[tuple[str, PickledTensor]]:
    state = module.state if isinstance(module.state, Mapping) else {}
    passing = state.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        own = state.get(kind)
        for name, value in own.items() if isinstance(own, Mapping) else ():
            if isinstance(value, PickledTensor) and not (kind == "_buffers" and name in passing):
                yield f"{prefix}{name}", value
    inner = state.get("_modules")
    for name, value in inner.items() if isinstance(inner, Mapping) else ():
        if isinstance(value, Inert):
            yield from _tensors_of(value, f"{prefix}{name}.")


class _Skipping:
    """A file whose large pieces are passed over: what is handed out for them says only where they lie."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._size = os.fstat(file.fileno()).st_size
        self.read, self.readline = file.read, file.readline
        self._mark = os.urandom(16)  # which no file can know

    def readinto(self, buffer: Any) -> int:
        count, at = len(buffer), self._file.tell()
        if count < _LARGE or at + count > self._size:
            return self._file.readinto(buffer)  # type: ignore[attr-defined, no-any-return]
        told = self._mark + at.to_bytes(8, "little")
        buffer[: len(told)] = told
        self._file.seek(count, io.SEEK_CUR)
        return count

    def piece(self, data: bytes) -> tuple[Callable[[int, int], bytes], int]:
        """What reads the bytes that ``data`` stands for, and where they lie, -1 if nowhere."""
        mark = len(self._mark)
        if data[:mark] != self._mark:
            return lambda start, stop: data[start:stop], -1
        begin = int.from_bytes(data[mark : mark + 8], "little")
        return _reader(self._path, begin), begin


class _Stretch(io.RawIOBase):
    """A stretch of a file as a file."""

    def __init__(self, file: BinaryIO, begin: int, length: int) -> None:
        self._file, self._begin, self._length, self._at = file, begin, length, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._begin + self._at)
        found = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(found)
        return found


def _reader(path: Path, begin: int) -> Callable[[int, int], bytes]:
    """What reads bytes of a file, counted from ``begin``."""

    def read(start: int, stop: int) -> bytes:
        with path.open("rb") as file:
            file.seek(begin + start)
            found = file.read(stop - start)
        if len(found) < stop - start:
            raise EOFError("its end is missing")
        return found

    return read


class _Plain(pickle.Unpickler):
    """Knows what tensors are made of, and imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the file; nothing is imported."""
        if name == "_reconstruct_persistent_obj":
            return _persistent
        if name == "EasyDict":
            return dict
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return _KNOWN.get(f"{module}.{name}", Inert)


class _OfArchive(_Plain):
    def __init__(self, file: BinaryIO, piece: Callable[[Any], Piece]) -> None:
        super().__init__(file)
        self._piece = piece

    def find_class(self, module: str, name: str) -> Any:
        return name if name in _STORAGES else super().find_class(module, name)

    def persistent_load(self, told: Any) -> Piece:
        return self._piece(told)


class _Unpickler(_Plain):
    def __init__(self, file: _Skipping) -> None:
        super().__init__(file)
        self._from = file

    def find_class(self, module: str, name: str) -> Any:
        return self._storage if name == "_load_from_bytes" else super().find_class(module, name)

    def _storage(self, data: bytes) -> Piece:
        """A storage that was pickled as the bytes that ``torch.save`` made of it."""
        read, at = self._from.piece(data)
        header = io.BytesIO(read(0, min(len(data), _HEADER)))
        # A number by which such files are known, a version, the machine, the storage, and the keys of storages.
        storage = [_OfStorage(header).load() for _ in range(5)][3]
        dtype, count = storage
        size = count * dtype.itemsize
        begin = len(data) - size
        if begin < 8 or int.from_bytes(read(begin - 8, begin), "little") != count:
            raise pickle.UnpicklingError(f"a storage of {count} numbers is not where it should be")
        return Piece(lambda start, stop: read(begin + start, begin + stop), -1 if at < 0 else at + begin, dtype, size)


class _OfStorage(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return name

    def persistent_load(self, told: Any) -> tuple[torch.dtype, int]:
        kind, name, _, _, count, *view = told
        if kind != "storage" or name not in _STORAGES or any(view):
            raise pickle.UnpicklingError(f"a storage of the kind {name} is not known")
        return _STORAGES[name], int(count)


def _persistent(meta: Mapping[str, Any]) -> Inert:
    """An object of a class whose source code is in the pickle."""
    found = Inert()
    found.state = meta["state"]
    return found


def _tensor(piece: Piece, offset: int, shape: Any, stride: Any, *rest: Any) -> PickledTensor:
    """A view; its dtype is the storage's, or where that has none, told after the gradient and the hooks."""
    dtype = rest[2] if len(rest) > 2 and isinstance(rest[2], torch.dtype) else piece.dtype
    sizes, steps = tuple(map(int, shape)), tuple(map(int, stride))
    last = offset + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    count = piece.nbytes // dtype.itemsize
    if min((offset, *sizes, *steps)) < 0 or (0 not in sizes and last >= count):
        raise pickle.UnpicklingError(f"a tensor of shape {sizes} is not within its {count} numbers")
    return PickledTensor(piece, dtype, offset, sizes, steps)


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,  # as protocols before 3 have it
    "builtins.frozenset": frozenset,
    "_codecs.encode": lambda text, encoding="latin1": text.encode("latin1"),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, arguments, state: function(*arguments),
}
