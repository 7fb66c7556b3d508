"""Tensors in files, read in parts: safetensors, torch.save, torch.distributed.checkpoint, pickled networks.

Nothing that a file names is imported or run: files of ``torch.save`` are opened by ``weights_only=True``, and what is
no tensor, number or text in them becomes a :class:`Foreign`.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emacore.checkpoints.files import CheckpointError as CheckpointError
from emacore.checkpoints.files import PartsOf
from emacore.checkpoints.files import Stamp as Stamp
from emacore.checkpoints.pickled import PickledTensor, archive_in, modules_in, read_pickle

_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})$")
#: What torch.save names its own files, the longest first.
_TORCH = (".pth.tar", ".ckpt", ".pth", ".bin", ".pt")
#: Of pickled networks, as EDM2 and its relatives write them: a name with the number of images in thousands, and with
#: the width of the average.
_PICKLE = ".pkl"
_SNAPSHOT = re.compile(r".+-(?P<kimg>\d+)-(?P<width>0\.\d+)|.*snapshot-(?P<plain>\d+)")
SUFFIXES = (".safetensors", *_TORCH, _PICKLE)


class Foreign:
    """Stands for an object of a class that is not looked up; it holds what the file says of it, and does nothing."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        """Whatever it is: that of a NumPy array, for instance, is no dictionary."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        file: Where it lies, and ``offset``, at which of its bytes, as far as that is known.
        identity: Equal for two names of one and the same memory.
        parts: Its file, where its numbers lie there one after the other, from ``offset`` on.
        read_flat: Without ``parts``, what reads numbers ``start`` to ``stop - 1`` in the order of memory.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path = field(compare=False)
    offset: int = field(default=0, compare=False)
    identity: object = field(default=None, compare=False)
    parts: PartsOf | None = field(default=None, compare=False, repr=False)
    read_flat: Callable[[int, int], Tensor] | None = field(default=None, compare=False, repr=False)

    @property
    def numel(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the tensor takes in its file."""
        return self.numel * self.dtype.itemsize

    @property
    def is_averaged(self) -> bool:
        """Whether it can be averaged: floating-point or complex."""
        return self.dtype.is_floating_point or self.dtype.is_complex

    def read(self, start: int = 0, stop: int | None = None, into: Tensor | None = None) -> Tensor:
        """Some of its numbers, in the order of memory: shape (stop - start,), in its own dtype.

        Args:
            into: Bytes that may be used for them, shape (at least as many as they take,), of uint8: the result may be a
                view of these, which saves the time that new memory takes.

        Raises:
            CheckpointError: if its file cannot be read any more.
        """
        stop = self.numel if stop is None else stop
        if not 0 <= start <= stop <= self.numel:
            raise ValueError(f"start and stop must be from 0 to {self.numel} and in order, got {start} and {stop}")
        count, size = stop - start, self.dtype.itemsize
        if not count:
            return torch.empty(0, dtype=self.dtype)
        try:
            if self.read_flat is not None:
                return self.read_flat(start, stop)
            assert self.parts is not None
            found = torch.empty(count, dtype=self.dtype) if into is None else into[: count * size].view(self.dtype)
            self.parts.read(self.offset + start * size, found)
        except CheckpointError:
            raise
        except (OSError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{self.file.name} cannot be read: {_first_line(error)}") from error
        return found

    def value(self) -> Tensor:
        """The whole tensor, in its shape."""
        return self.read().reshape(self.shape)

    def meta(self) -> Tensor:
        """A tensor without values of this shape and dtype."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


@dataclass(frozen=True)
class Unit:
    """What one file, or files that belong together, hold.

    Attributes:
        path: The file, or that which stands for all: an index, or a folder.
        files: All files.
        form: The format in words.
        content: Nested dictionaries of :class:`StoredTensor`, numbers and text.
        metadata: What a header says of the whole.
    """

    path: Path
    files: tuple[Path, ...]
    form: str
    content: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


def parts_of(shape: tuple[int, ...], start: int, stop: int) -> Iterator[tuple[slice, ...]]:
    """Boxes of a tensor that hold, one after the other, its numbers ``start`` to ``stop - 1``."""
    if not shape:
        yield ()
        return
    row = math.prod(shape[1:])
    (first, head), (last, tail) = divmod(start, row), divmod(stop, row)

    def within(index: int, start: int, stop: int) -> Iterator[tuple[slice, ...]]:
        for box in parts_of(shape[1:], start, stop):
            yield slice(index, index + 1), *box

    if first == last:
        yield from within(first, head, tail)
        return
    if head:
        yield from within(first, head, row)
        first += 1
    if first < last:
        yield slice(first, last), *(slice(0, size) for size in shape[1:])
    if tail:
        yield from within(last, 0, tail)


def suffix_of(path: Path) -> str | None:
    """Which of the known ends a file's name has."""
    return next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """A file's name without its end, and without the number of a part."""
    name = path.name.removesuffix(".index.json")
    stem = name.removesuffix(suffix_of(Path(name)) or "")
    return found["stem"] if (found := _SHARD.match(stem)) else stem


def find_units(path: Path, above: tuple[Path, ...] = ()) -> tuple[list[Callable[[], Unit]], list[str]]:
    """How to open what lies at ``path``, each file or group of files that belong together, and what was passed over.

    Args:
        above: The folders that led here, into which no link is followed back.

    Raises:
        CheckpointError: if there is nothing.
    """
    if not path.exists():
        raise CheckpointError(f"there is no file or folder {path}")
    if path.is_file():
        if path.name.endswith(".index.json"):
            return [lambda: open_index(path)], []
        return [lambda: open_file(path)], []
    if (path / ".metadata").is_file():
        return [lambda: open_distributed(path)], []
    try:
        entries = sorted(path.iterdir(), key=lambda entry: natural(entry.name))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    found: list[Callable[[], Unit]] = []
    passed: list[str] = []
    taken: set[Path] = set()
    for index in entries:
        if index.name.endswith(".index.json") and suffix_of(Path(index.name.removesuffix(".index.json"))):
            with suppress(CheckpointError):  # it is told when the index is opened
                taken.update(path / name for name in _shards(index))
            found.append(lambda index=index: open_index(index))  # type: ignore[misc]
    sets: dict[str, list[Path]] = {}
    for entry in entries:
        suffix = suffix_of(entry)
        if entry.name.startswith(".") or entry in taken:
            continue
        if entry.is_dir():
            if entry.resolve() in (real := path.resolve(), *above):
                passed.append(f"{entry.name}: a link to a folder that it is in")
                continue
            inner, more = find_units(entry, (*above, real))
            found += inner
            passed += more
        elif suffix and (part := _SHARD.match(entry.name.removesuffix(suffix))):
            sets.setdefault(f"{part['stem']}-*-of-{part['count']}{suffix}", []).append(entry)
        elif suffix == _PICKLE and not _SNAPSHOT.fullmatch(stem_of(entry)):
            passed.append(f"{entry.name}: by its name no snapshot of a network; name it itself to have it read")
        elif suffix and _is_state(stem_of(entry)):
            passed.append(f"{entry.name}: the state of an optimiser or of a program, by its name")
        elif suffix:
            found.append(lambda entry=entry: open_file(entry))  # type: ignore[misc]
    for name, files in sets.items():
        found.append(lambda name=name, files=files: _open_set(name, files))  # type: ignore[misc]
    return found, passed


def open_file(path: Path) -> Unit:
    """One file.

    Raises:
        CheckpointError: if it is none of weights, or damaged.
    """
    suffix = suffix_of(path)
    if suffix is None:
        raise CheckpointError(f"{path.name} is no file of weights by its name; known are {', '.join(SUFFIXES)}")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path.name} is no file, but a pipe, a device or a folder")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        told = path.name.encode(errors="backslashreplace").decode()
        raise CheckpointError(f"{told} or a folder above it has a name that is no UTF-8: rename it") from None
    stamp = Stamp.of(path)
    if not stamp.size:
        raise CheckpointError(f"{path.name} is empty")
    try:
        content, metadata, form = (
            _safetensors(path)
            if suffix == ".safetensors"
            else _torch_saved(path)
            if suffix != _PICKLE or _is_of_torch(path)
            else _pickled(path)
        )
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror or error}") from error
    if Stamp.of(path) != stamp:
        raise CheckpointError(f"{path.name} is being written: it changed while it was read")
    return Unit(path, (path,), form, content, metadata)


def open_index(path: Path) -> Unit:
    """The files that an ``index.json`` names, as one."""
    names = _shards(path)
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise CheckpointError(f"{path.name} names {missing[0]}, which is not there ({len(missing)} of {len(names)})")
    unit = _joined(path, [open_file(path.parent / name) for name in names])
    try:
        wanted = set(json.loads(path.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path.name} is no index of files: {error!r}") from error
    if lacking := sorted(wanted - unit.content.keys()):
        raise CheckpointError(f"{path.name} names {lacking[0]!r}, which its files do not hold")
    return unit


def open_distributed(path: Path) -> Unit:
    """A folder that ``torch.distributed.checkpoint`` wrote; several processes may have."""
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    reader = _reader(path)
    try:
        metadata = reader.read_metadata()
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        places = metadata.planner_data or {}
        files = tuple(sorted({path / place.relative_path for place in metadata.storage_data.values()}))
    except (OSError, EOFError, ValueError, AttributeError, TypeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path.name}/.metadata cannot be read: {_first_line(error)}") from error
    parts = {file: PartsOf(file) for file in files}
    content: dict[str, Any] = {}
    for name, stored in metadata.state_dict_metadata.items():
        *above, last = [str(part) for part in places.get(name, (name,))]
        if len(above) > _DEEPEST:
            raise CheckpointError(f"{path.name}/.metadata nests {name[:40]!r} more than {_DEEPEST} deep")
        node = content
        for part in above:
            node = node.setdefault(part, {})
        if isinstance(stored, TensorStorageMetadata):
            node[last] = _distributed_tensor(path, reader, name, stored, parts.__getitem__)
        else:
            node[last] = Foreign()
    return Unit(path, (path / ".metadata", *files), "torch.distributed.checkpoint", content, _told_beside(path))


def _told_beside(path: Path) -> dict[str, str]:
    """What our own snapshots say of themselves, which the format has no place for."""
    try:
        return {str(key): str(one) for key, one in json.loads((path / "emacore.json").read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in names as numbers."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", name)]


def _open_set(name: str, files: list[Path]) -> Unit:
    """Files that say by their names that they are parts of one, without an index."""
    count = int(name.partition("-of-")[2][:5])
    if len(files) != count:
        raise CheckpointError(f"of the {count} files {name} only {len(files)} are there")
    return _joined(files[0].with_name(name), [open_file(file) for file in files])


def _joined(path: Path, units: list[Unit]) -> Unit:
    content: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for unit in units:
        if twice := content.keys() & unit.content.keys():
            raise CheckpointError(f"{path.name}: {sorted(twice)[0]!r} is in two of its files")
        content.update(unit.content)
        metadata.update(unit.metadata)
    files = tuple(unit.path for unit in units)
    return Unit(path, files, f"{units[0].form}, {len(units)} files", content, metadata)


def _shards(index: Path) -> list[str]:
    try:
        names = sorted({str(name) for name in json.loads(index.read_text())["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index.name} is no index of files: {_first_line(error)}") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index.name} names {outside[0]!r}, which is not beside it")
    return names


def _is_state(stem: str) -> bool:
    return bool(
        re.match(r"(optim|scheduler|rng|random_states|training_args|scaler|sampler)", stem)
        or stem.endswith("optim_states")
    )


def _safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str], str]:
    try:
        with safe_open(path, "pt"):  # looks whether the header goes with the file
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} is no whole safetensors file ({_first_line(error)}): it is truncated, still being written, "
            "or of another format"
        ) from error
    metadata = header.pop("__metadata__", None) or {}
    parts = PartsOf(path)
    content = {}
    # In the order of the file: it is the quickest to read in.
    for name, about in sorted(header.items(), key=lambda one: one[1]["data_offsets"]):
        offset = 8 + length + int(about["data_offsets"][0])
        content[name] = StoredTensor(tuple(about["shape"]), _dtype(path, about["dtype"]), path, offset, parts=parts)
    return content, metadata, "safetensors"


#: As safetensors names dtypes.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _dtype(path: Path, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise CheckpointError(f"{path.name} has a tensor of the dtype {name}, which is not supported")
    return _DTYPES[name]


#: Dictionaries in dictionaries of one file.
_DEEPEST = 100
_OF_A_BAD_FILE = (RuntimeError, ValueError, EOFError, OSError, KeyError, TypeError, AttributeError, IndexError)


def _torch_saved(path: Path) -> tuple[dict[str, Any], dict[str, str], str]:
    mapped = zipfile.is_zipfile(path)
    if not mapped and (wrong := _not_of_torch(path)):
        raise CheckpointError(f"{path.name} {wrong}")
    unknown: list[str] = []
    try:
        if mapped:
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
            saved = _without_classes(path, unknown)
        else:
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except (*_OF_A_BAD_FILE, pickle.UnpicklingError) as error:
        raise CheckpointError(_refusal(path, error)) from error
    form = "torch.save" if mapped else "torch.save of before 1.6, read into memory whole"
    if isinstance(saved, Foreign):
        raise CheckpointError(
            f"{path.name} holds a whole object ({', '.join(sorted(unknown)[:3])}), not its tensors: save its state_dict"
        )
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"{path.name} holds a {type(saved).__name__}, no dictionary of tensors")
    return _stored(saved, path, _archive(path) if mapped else None, PartsOf(path)), {}, form


def _archive(path: Path) -> Any:
    """Where in the file each tensor lies, as :func:`~emacore.checkpoints.pickled.archive_in` finds it; ``None`` if it
    cannot."""
    try:
        return archive_in(path, 0, path.stat().st_size)
    except (*_OF_A_BAD_FILE, pickle.UnpicklingError, zipfile.BadZipFile):
        return None  # compressed, in another order of bytes, or of a kind that only torch knows


class _Dict:
    """Stands for a class that is filled like a dictionary: makes plain ones, which alone may be filled."""

    def __new__(cls, *arguments: Any) -> dict[Any, Any]:  # type: ignore[misc]
        return {}


class _List:
    """Stands for a class that is filled like a list."""

    def __new__(cls, *arguments: Any) -> list[Any]:  # type: ignore[misc]
        return []


def _without_classes(path: Path, unknown: Sequence[str]) -> Any:
    """What a file holds, where stand-ins take the place of classes that are not looked up."""
    stand_ins: dict[str, type] = {name: type(f"Foreign{n}", (Foreign,), {}) for n, name in enumerate(unknown)}
    while True:
        try:
            with torch.serialization.safe_globals([(one, name) for name, one in stand_ins.items()]):
                return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"Can only (SETITEM|append|extend).* but got <class '[\w.]*\bForeign(\d+)'>", str(error))
            if found is None:
                raise
            stand_ins[unknown[int(found[2])]] = _Dict if found[1] == "SETITEM" else _List


def _is_of_torch(path: Path) -> bool:
    """Whether torch.save wrote it: as a zip archive, or with the number that it began its files with before."""
    with path.open("rb") as file:
        begin = file.read(16)
    return begin.startswith(b"PK\x03\x04") or b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in begin


def _pickled(path: Path) -> tuple[dict[str, Any], dict[str, str], str]:
    try:
        saved = read_pickle(path)
        if not isinstance(saved, Mapping):
            saved = {"model": saved}
        modules = modules_in(saved)
    except (*_OF_A_BAD_FILE, pickle.UnpicklingError, MemoryError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is no whole pickle of a network: {_first_line(error)}") from error
    content: dict[str, Any] = {
        name: {key: _in_pickle(tensor, path) for key, tensor in tensors.items()}
        for name, tensors in modules.items()
        if not re.search("encoder|loss|augment", name)
    }
    told = _SNAPSHOT.fullmatch(stem_of(path))
    kimg, width = (None, None) if told is None else (told["kimg"] or told["plain"], told["width"])
    metadata = {name: value for name, value in {"kimg": kimg, "sigma_rel": width}.items() if value is not None}
    return content, metadata, "pickled network"


def _in_pickle(tensor: PickledTensor, path: Path) -> StoredTensor:
    identity = (str(path), tensor.identity) if 0 not in tensor.shape else None
    at = max(tensor.piece.at, 0)
    return StoredTensor(tensor.shape, tensor.dtype, path, at, identity, read_flat=tensor.read)


def _not_of_torch(path: Path) -> str:
    """What is wrong with a file that is no zip archive by how it begins; empty where it may be of torch.save before."""
    with path.open("rb") as file:
        begin = file.read(4)
    if begin == b"PK\x03\x04":
        return "is truncated, or still being written: its end is missing"
    if kind := {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\x28\xb5": "zstd", b"\xfd7": "xz"}.get(begin[:2]):
        return f"is compressed by {kind}: unpack it first"
    if begin[:1] != b"\x80" and not tarfile.is_tarfile(path):
        return "is of another format than its name says, or damaged"
    return ""


def _refusal(path: Path, error: Exception) -> str:
    why = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line), None)
    if why:
        return (
            f"{path.name} holds more than tensors, numbers and text, and reading that could run what it holds "
            f"({why.partition(' was not')[0]}): save its state_dict again by itself"
        )
    if (at := str(error).find("WeightsUnpickler error:")) >= 0:
        why = _first_line(str(error)[at:].partition(":")[2])
        return f"{path.name} holds more than tensors, numbers and text, which is not read ({why}): save its state_dict"
    return f"{path.name} is no whole file of torch.save: {_first_line(error).partition(' In PyTorch')[0]}"


def _stored(value: Any, path: Path, place: Any, parts: PartsOf, depth: int = 0) -> Any:
    """A loaded value with its tensors as :class:`StoredTensor`; lists become dictionaries by number.

    Args:
        place: What :func:`_archive` has in the place of this value.
    """
    if depth > _DEEPEST:
        raise CheckpointError(f"{path.name} is nested more than {_DEEPEST} deep: save the state_dict by itself")
    if isinstance(value, Tensor):
        return _of_archive(value, path, place, parts)
    if isinstance(value, Mapping):
        inner = place if isinstance(place, Mapping) else {}
        return {str(key): _stored(one, path, inner.get(key), parts, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(one, (Tensor, Mapping)) for one in value):
        places = place if isinstance(place, (list, tuple)) and len(place) == len(value) else [None] * len(value)
        return {
            str(n): _stored(one, path, inner, parts, depth + 1)
            for n, (one, inner) in enumerate(zip(value, places, strict=True))
        }
    return value


def _of_archive(tensor: Tensor, path: Path, place: Any, parts: PartsOf) -> Any:
    tensor = tensor.detach()
    if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        return Foreign()
    begin = tensor.untyped_storage().data_ptr()
    view = tensor.dtype, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride())
    about = view[2], tensor.dtype, path, begin + view[1] * tensor.element_size()
    identity = (str(path), begin, *view) if tensor.numel() else None
    if isinstance(place, PickledTensor) and place[1:] == view and not (tensor.is_conj() or tensor.is_neg()):
        if not tensor.is_contiguous():
            return StoredTensor(*about, identity, read_flat=place.read)
        offset = place.piece.at + place.offset * tensor.element_size()
        return StoredTensor(*about[:3], offset, identity, parts)
    flat = tensor.view(-1) if tensor.is_contiguous() else None

    def read(start: int, stop: int) -> Tensor:
        parts.check_length()  # it may be mapped
        numbers = tensor.reshape(-1) if flat is None else flat
        return numbers[start:stop].resolve_conj().resolve_neg()

    return StoredTensor(*about, identity, read_flat=read)


#: What a ``.metadata`` of ``torch.distributed.checkpoint`` is made of.
_OF_METADATA = re.compile(
    r"torch\.distributed\.checkpoint\.(metadata|filesystem|hf_storage|planner)\.\w+"
    r"|torch\.(Size|device|float\w*|bfloat16|u?int\d+|complex\d+|bool|strided|preserve_format|contiguous_format)"
    r"|torch\.serialization\._get_layout|torch\._C\._distributed_c10d\.\w*|torch\.memory_format"
    r"|torch\._utils\.\w*memory_format\w*|collections\.OrderedDict|builtins\.(set|frozenset|slice|complex|bytearray)"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path|_codecs\.encode"
)


class _OnlyMetadata(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if not _OF_METADATA.fullmatch(f"{module}.{name}"):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no metadata of a checkpoint needs")
        return super().find_class(module, name)


def _reader(path: Path) -> Any:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    class Reader(FileSystemReader):
        """torch's own, but for its metadata, which torch unpickles whatever it may run."""

        def read_metadata(self, *arguments: Any, **named: Any) -> Any:
            return _OnlyMetadata(io.BytesIO((path / ".metadata").read_bytes())).load()

    return Reader(path)


def _distributed_tensor(
    path: Path, reader: Any, name: str, stored: Any, files: Callable[[Path], PartsOf]
) -> StoredTensor:
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
    from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
    from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

    shape, dtype = tuple(stored.size), stored.properties.dtype
    chunk_at = _chunks(path, reader, files)

    class Into(LoadPlanner):
        """Reads one part of one tensor."""

        def __init__(self, target: Tensor, offsets: tuple[int, ...]) -> None:
            self.target = target
            chunk = ChunkStorageMetadata(torch.Size(offsets), target.shape)
            self.plan = LoadPlan(create_read_items_for_chunk_list(name, stored, [chunk]))

        def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None: ...

        def create_local_plan(self) -> Any:
            return self.plan

        def create_global_plan(self, global_plan: Any) -> Any:
            return global_plan

        def finish_plan(self, central_plan: Any) -> Any:
            return central_plan

        def load_bytes(self, read_item: Any, value: Any) -> None:
            raise CheckpointError(f"{name} is no tensor")

        def resolve_tensor(self, read_item: Any) -> Tensor:
            part = self.target
            for dim, (offset, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
                part = part.narrow(dim, offset, length)
            return part

        def commit_tensor(self, read_item: Any, tensor: Tensor) -> None: ...

    def read(start: int, stop: int) -> Tensor:
        parts = []
        for box in parts_of(shape, start, stop):
            target = torch.empty([one.stop - one.start for one in box], dtype=dtype)
            into = Into(target, tuple(one.start for one in box))
            chunks = [chunk_at(item.storage_index) for item in into.plan.items]
            if None in chunks:
                for item in into.plan.items:
                    files(path / reader.storage_data[item.storage_index].relative_path).check_length()
                reader.read_data(into.plan, into).wait()
            else:
                for item, (file, chunk) in zip(into.plan.items, chunks, strict=True):
                    part = _box_of(file, chunk, item.storage_offsets, item.lengths)
                    into.resolve_tensor(item).copy_(part)
            parts.append(target.reshape(-1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return StoredTensor(shape, dtype, path, read_flat=read)


def _box_of(parts: PartsOf, chunk: PickledTensor, offsets: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """A box of a chunk: the stretch of its file from the box's first number to its last is read, and no more."""
    if 0 in lengths:
        return torch.empty(tuple(lengths), dtype=chunk.dtype)
    first = chunk.offset + sum(at * step for at, step in zip(offsets, chunk.stride, strict=True))
    count = 1 + sum((length - 1) * step for length, step in zip(lengths, chunk.stride, strict=True))
    stretch = torch.empty(count, dtype=chunk.dtype)
    parts.read(chunk.piece.at + first * chunk.dtype.itemsize, stretch)
    return stretch.as_strided(tuple(lengths), chunk.stride)


def _chunks(path: Path, reader: Any, files: Callable[[Path], PartsOf]) -> Any:
    """The chunks of a distributed checkpoint and their files, by their indices in its storage; ``None`` for one that
    can only be had whole, such as a compressed one: torch's own reader reads all of a chunk for each part of it."""

    @cache
    def chunk_at(index: Any) -> tuple[PartsOf, PickledTensor] | None:
        place = reader.storage_data[index]
        if getattr(place, "transform_descriptors", None):
            return None
        file = path / place.relative_path
        try:
            found = archive_in(file, place.offset, place.length)
        except (*_OF_A_BAD_FILE, pickle.UnpicklingError, zipfile.BadZipFile):
            return None  # that reader says what is wrong with it
        return (files(file), found) if isinstance(found, PickledTensor) else None

    return chunk_at


def _first_line(error: BaseException | str) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
