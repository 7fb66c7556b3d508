"""The checkpoints of one run: files in a folder as sets of weights after steps."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from emacore.checkpoints.sections import (
    MOST_STEPS,
    NoWeightsError,
    Section,
    counter_of,
    left_beside,
    odd_step,
    sections_of,
    step_beside,
    step_of,
)
from emacore.checkpoints.stored import CheckpointError, Stamp, StoredTensor, Unit, find_units, natural, stem_of
from emacore.formatting import counted
from emacore.replay.rows import Rows
from emacore.tensors.pairing import listed, real_count, reals

_WORDS = re.compile(
    r"(?:global_?steps?|steps?|iter(?:ation)?s?|checkpoint|ckpt|updates?|batch(?:es)?|itr)[-_=. ]?"
    r"(\d+(?:e\d+)?)(?!\.?\d)",
    re.IGNORECASE,
)
_STEP_WORDS = re.compile(r"(?:steps?|iter(?:ation)?s?|updates?|itr)[-_=. ]?\d+$", re.IGNORECASE)
_EPOCH = re.compile(r"epochs?[-_=. ]?(\d+)(?!\.?\d)", re.IGNORECASE)
#: Not the digits of a fraction, such as a loss; ema-pytorch's files are called by two numbers and nothing else.
_AT_END = re.compile(r"(?:^(?:\d+\.)?|[-= ]|[^\W\d]|(?<!\d)\.)(\d+)$")
#: A step below 0 stands for none.
_NEGATIVE = re.compile(r"[_=]-\d+$")
#: A date, a time, or both: their numbers are no steps.
_DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d([-_.])(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])"
    r"(?:[-_ T.]*\d\d[-_:.h]?\d\d(?:[-_:.m]?\d\d)?)?|[0-2]\d([-_:])[0-5]\d\2[0-5]\d)(?!\d)"
)


@dataclass(frozen=True)
class Checkpoint:
    """All that was stored after one step.

    Attributes:
        step: How many optimiser steps there were before it (or epochs, where the files tell no steps).
        step_from: What said so: a key of the file, ``trainer_state.json``, the name, or the order of the names.
        sections: The sets of weights in it.
        files: The files that they lie in.
        form: Their format.
    """

    step: int
    step_from: str
    sections: tuple[Section, ...]
    files: tuple[Path, ...]
    form: str

    @property
    def nbytes(self) -> int:
        """Bytes that its files take."""
        return sum(Stamp.of(file).size for file in self.files)

    def section(self, name: str) -> Section | None:
        """The section of this name, if it has it."""
        return next((section for section in self.sections if section.name == name), None)


class Checkpoints(Sequence[Checkpoint]):
    """The checkpoints of one run, by rising steps.

    Attributes:
        path: Where they lie.
        told: Sentences on what was passed over, and on how steps were found.
        damaged: Sentences on files that cannot be read.
    """

    def __init__(
        self, path: Path, found: Sequence[Checkpoint], told: Sequence[str] = (), damaged: Sequence[str] = ()
    ) -> None:
        self.path, self.told, self.damaged = path, list(told), list(damaged)
        self._found = tuple(found)
        self._stamps = {file: Stamp.of(file) for one in found for file in one.files}

    def __len__(self) -> int:
        return len(self._found)

    @overload
    def __getitem__(self, index: int) -> Checkpoint: ...
    @overload
    def __getitem__(self, index: slice) -> Checkpoints: ...
    def __getitem__(self, index: int | slice) -> Checkpoint | Checkpoints:
        if isinstance(index, slice):
            return Checkpoints(self.path, self._found[index], self.told, self.damaged)
        return self._found[index]

    @property
    def steps(self) -> NDArray[np.int64]:
        """The step after which each checkpoint was written, shape (N,), rising."""
        return np.array([one.step for one in self._found], dtype=np.int64)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files."""
        return tuple(self._stamps)

    def check_unchanged(self) -> None:
        """Raise :class:`CheckpointError` if a file is another than it was when it was opened."""
        for file, stamp in self._stamps.items():
            if Stamp.of(file) != stamp:
                raise CheckpointError(
                    f"{file} changed since it was opened: wait until it is written, and open it again"
                )

    def names(self, kind: str | None = None) -> list[str]:
        """The names of sections, of one kind or all, in the order in which they are met."""
        sections = [section for one in self._found for section in one.sections]
        return list(dict.fromkeys(section.name for section in sections if kind in (None, section.kind)))

    def chosen(self, name: str | None = None) -> str:
        """The section of this name; by default the only one of raw weights, else of means of windows, else of averages.

        The weights that a wrapper of an average holds beside it do not count where there are others.

        Raises:
            CheckpointError: if there is none, or there are several to choose from.
        """
        names = self.names()
        if name is not None:
            if name not in names:
                raise CheckpointError(f"there is no section {name!r}; there are {listed(names)}")
            return name
        for kind in ("raw", "window", "average"):
            if found := self.names(kind):
                # A wrapper of an average stores the weights that it follows once more.
                found = [one for one in found if one.rpartition(".")[2] != "online_model"] or found
                if len(found) > 1:
                    raise CheckpointError(f"there are several sections, choose one by its name: {listed(found)}")
                return found[0]
        raise CheckpointError(f"{self.path} holds no weights")

    def series(self, name: str | None = None) -> tuple[Checkpoints, list[Section]]:
        """The checkpoints that have a section, and that section of each, all of the same tensors.

        Raises:
            CheckpointError: as :meth:`chosen`, and if two differ in names or shapes.
        """
        name = self.chosen(name)
        kept = [(one, section) for one in self._found if (section := one.section(name)) is not None]
        sections = [section for _, section in kept]
        for one, section in kept:
            check_alike(sections[0], section, f"the checkpoint of step {kept[0][0].step}", f"that of step {one.step}")
        return Checkpoints(self.path, [one for one, _ in kept], self.told, self.damaged), sections

    def rows(self, section: str | None = None) -> Rows:
        """A section of every checkpoint as the rows of a run, read when they are looked at: for ``Trajectory``.

        A row's step counts from 0, so that of the file after the first step is 0; the initial weights, after no step,
        make all of them one later.

        Args:
            section: By name; by default the only one of raw weights.

        Raises:
            CheckpointError: if there is none, or they do not go together.
        """
        return rows_of(*self.series(section))


def open_checkpoints(path: str | Path | Sequence[str | Path]) -> Checkpoints:
    """What is in a file, a folder with all folders in it, or several of these.

    Only headers are read.  Files of one step make one checkpoint.  A file without a step, where others have one, is
    passed over and told; where none has, the order of the names stands for it.  So are results of merges that lie among
    what they were made of, and files without weights.

    Raises:
        CheckpointError: if there is nothing that can be read.

    Example:
        >>> import tempfile
        >>> from emacore import Trajectory, UniformAverage
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (100, 200, 300):
        ...     torch.save({"weight": torch.full((2,), float(step))}, folder / f"step_{step}.pt")
        >>> open_checkpoints(folder).steps.tolist()
        [100, 200, 300]
        >>> Trajectory(open_checkpoints(folder).rows()).state(UniformAverage())["weight"].tolist()
        [200.0, 200.0]
    """
    several = [path] if isinstance(path, (str, Path)) else list(path) if isinstance(path, Iterable) else [path]
    if not all(isinstance(one, (str, os.PathLike)) for one in several):
        raise TypeError(f"path must be a file, a folder, or a list of them, got {path!r}")
    roots = list(map(Path, several))
    if not roots:
        raise CheckpointError("give at least one file or folder")
    found: list[tuple[Unit, Path, list[Section]]] = []
    told: list[str] = []
    damaged: list[str] = []
    for root in roots:
        openers, passed = find_units(root)
        told += passed
        of_root: list[tuple[Unit, Path, list[Section]]] = []
        for opener in openers:
            try:
                unit = opener()
                of_root.append((unit, root, sections_of(unit)))
            except NoWeightsError as error:
                told.append(str(error))
            except CheckpointError as error:
                damaged.append(str(error))
        stored = [one for one in of_root if not _is_merged(one[0])]
        if stored and len(stored) < len(of_root):
            names = listed([one[0].path.name for one in of_root if _is_merged(one[0])])
            told.append(f"left out, because merges of such files made them: {names}")
        found += stored or of_root
    place = roots[0] if len(roots) == 1 else Path(roots[0]).parent
    if not found:
        why = "; ".join([*damaged, *told]) or "there is no file of weights in it"
        raise CheckpointError(f"{place} has no checkpoint that can be read: {why}")
    if apart := [(unit.path.name, more) for unit, *_ in found if (more := left_beside(unit))]:
        name, tensors = apart[0]
        told.append(
            f"{name}: left out, because they stand beside the sets of weights, in none of them: {listed(tensors)} (so "
            f"it is in {len(apart)} of {counted(len(found), 'file')})"
        )
    checkpoints, more = _by_step(found)
    return Checkpoints(place, checkpoints, told + more, damaged)


def _is_merged(unit: Unit) -> bool:
    """Whether a merge of ours wrote this file."""
    return "emacore_merge" in unit.metadata or unit.path.with_name(f"{unit.path.name}.merge.json").is_file()


def check_alike(one: Section, other: Section, first: str, second: str) -> None:
    """Raise :class:`CheckpointError` unless two sections have tensors of the same names and shapes, and of the same
    kind: whole, real or complex numbers."""
    if one.tensors.keys() != other.tensors.keys():
        gained = sorted(other.tensors.keys() - one.tensors.keys())
        lost = sorted(one.tensors.keys() - other.tensors.keys())
        changes = [f"has {listed(gained)} more"] * bool(gained) + [f"lacks {listed(lost)}"] * bool(lost)
        ties = {**{name: one.ties.get(name) for name in gained}, **{name: other.ties.get(name) for name in lost}}
        if tied := [f"{name!r} is another name of {owner!r}" for name, owner in ties.items() if owner]:
            changes[-1] += f" ({tied[0]} in one of the two: untie it there)"
        raise CheckpointError(f"{first} and {second} do not have the same tensors: the second {' and '.join(changes)}")
    for name, tensor in one.tensors.items():
        if other.tensors[name].shape != tensor.shape:
            raise CheckpointError(
                f"{name!r} has shape {tensor.shape} in {first} and {other.tensors[name].shape} in {second}"
            )
        kinds = [(part.is_averaged, part.dtype.is_complex) for part in (tensor, other.tensors[name])]
        if kinds[0] != kinds[1]:
            dtypes = [str(part.dtype).removeprefix("torch.") for part in (tensor, other.tensors[name])]
            raise CheckpointError(f"{name!r} is {dtypes[0]} in {first} and {dtypes[1]} in {second}")


def rows_of(checkpoints: Checkpoints, sections: Sequence[Section]) -> Rows:
    """Sections of the same tensors as rows."""
    averaged = {name: one.meta() for name, one in sections[0].tensors.items() if one.is_averaged}
    copied = {name: one.meta() for name, one in sections[0].tensors.items() if not one.is_averaged}
    if not averaged:
        raise CheckpointError("there is no floating-point tensor to average")
    steps = checkpoints.steps
    extra = np.zeros((len(sections), sum(tensor.nbytes for tensor in copied.values())), dtype=np.uint8)
    for row, section in zip(extra, sections, strict=True):
        parts = [section.tensors[name].read().contiguous().view(torch.uint8).numpy() for name in copied]
        row[:] = np.concatenate(parts) if parts else row
    lazy: Any = LazyRows([[section.tensors[name] for name in averaged] for section in sections])
    return Rows(lazy, steps - 1 if steps[0] else steps, averaged, (), extra, copied)


class LazyRows:
    """Shape (T, P), float32: the flat weights of files, read when they are asked for, and no more than that."""

    ndim = 2
    dtype = np.dtype(np.float32)

    def __init__(self, rows: Sequence[Sequence[StoredTensor]]) -> None:
        self._rows = rows
        self._ends = np.cumsum([real_count(tensor.meta()) for tensor in rows[0]]) if rows else np.zeros(0, np.int64)
        self.shape = (len(rows), int(self._ends[-1]) if len(self._ends) else 0)

    def __len__(self) -> int:
        return len(self._rows)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        at, columns = index if isinstance(index, tuple) else (index, slice(None))
        if not isinstance(columns, slice) or columns.step not in (None, 1):
            return np.asarray(self[at, :][..., columns])
        begin, end, _ = columns.indices(self.shape[1])
        end = max(begin, end)
        rows = np.arange(len(self._rows))[at]
        result = np.empty((rows.size, end - begin), dtype=np.float32)
        for into, row in zip(result, rows.reshape(-1).tolist(), strict=True):
            self._read(row, begin, end, into)
        return result.reshape(*rows.shape, end - begin)

    def _read(self, row: int, begin: int, end: int, into: NDArray[np.float32]) -> None:
        number = int(np.searchsorted(self._ends, begin, side="right"))
        at = begin
        while at < end:
            tensor = self._rows[row][number]
            start, stop = int(self._ends[number]) - real_count(tensor.meta()), int(self._ends[number])
            upto = min(stop, end)
            into[at - begin : upto - begin] = _reals_of(tensor, at - start, upto - start)
            at, number = upto, number + 1


def _reals_of(tensor: StoredTensor, start: int, stop: int) -> NDArray[np.float32]:
    if not tensor.dtype.is_complex:
        return tensor.read(start, stop).to(torch.float32).numpy()
    first = start // 2
    pairs = reals(tensor.read(first, -(-stop // 2)).to(torch.complex64))
    return pairs[start - 2 * first : stop - 2 * first].numpy()


def _by_step(found: list[tuple[Unit, Path, list[Section]]]) -> tuple[list[Checkpoint], list[str]]:
    """Sections of files, gathered by steps; and sentences on what was left out."""
    told: list[str] = []
    inside = [step_of(unit) for unit, *_ in found]
    steps, disagreement = _with_counters([(unit, root) for unit, root, _ in found], inside)
    if disagreement:
        told.append(disagreement)
    if all(step is None for step in steps):
        if len(found) > 1:
            told.append(
                "no file tells its step, nor its name: they are taken in the order of their names, one step each"
            )
        order = sorted(range(len(found)), key=lambda n: natural(found[n][0].path.as_posix()))
        steps = [(order.index(n) + 1, "the order of the names", None) for n in range(len(found))]
    told += _odd_steps([unit for unit, *_ in found], steps, inside)
    of_epochs = [step is not None and "epoch" in step[1] for step in steps]
    if all(only or step is None for only, step in zip(of_epochs, steps, strict=True)):
        told.append("no file tells its step: epochs stand for steps, and settings in steps count epochs")
    else:
        steps = [None if only else step for only, step in zip(of_epochs, steps, strict=True)]
    groups: dict[int, list[tuple[Unit, str, str, bool, list[Section]]]] = {}
    for (unit, root, sections), step in zip(found, steps, strict=True):
        if step is None:
            told.append(f"{unit.path.name}: left out, because it does not tell its step, nor does its name")
            continue
        label, numbered = _label(unit.path, root, step)
        groups.setdefault(step[0], []).append((unit, step[1], label, numbered, sections))
    for number, group in groups.items():
        if len(group) > 1 and any(numbered for *_, numbered, _ in group):
            same = [(unit, sections) for unit, _, _, numbered, sections in group if numbered]
            aliases = [one for one in group if not one[3] and any(_alike(one[4], sections) for _, sections in same)]
            told += [
                f"{one[0].path.name}: left out, because {same[0][0].path.name} is of step {number}, too"
                for one in aliases
            ]
            groups[number] = [one for one in group if one not in aliases]
    several = any(len(group) > 1 for group in groups.values())
    checkpoints = []
    for number in sorted(groups):
        group = groups[number]
        sections = [
            replace(section, name=_section_name(section.name, label, several))
            for _, _, label, _, found_sections in group
            for section in found_sections
        ]
        names = [section.name for section in sections]
        if twice := [name for name in names if names.count(name) > 1]:
            paths = ", ".join(unit.path.name for unit, *_ in group)
            raise CheckpointError(f"{paths} all hold {twice[0]!r} of step {number}: open some of them only")
        checkpoints.append(
            Checkpoint(
                number,
                " and ".join(dict.fromkeys(source for _, source, *_ in group)),
                tuple(sections),
                tuple(dict.fromkeys(file for unit, *_ in group for file in unit.files)),
                " and ".join(dict.fromkeys(unit.form for unit, *_ in group)),
            )
        )
    return checkpoints, told


def _section_name(name: str, label: str, several: bool) -> str:
    if several:
        return f"{label}:{name}" if name else label
    return name or "model"


def _alike(some: Sequence[Section], others: Sequence[Section]) -> bool:
    def described(sections: Sequence[Section]) -> list[Any]:
        return [(one.name, one.kind, {key: tensor.shape for key, tensor in one.tensors.items()}) for one in sections]

    return described(some) == described(others)


#: A step, and what in a file told it.
_Inside = tuple[int, str]
#: A step, what told it, and where in a name, if it was that.
_Told = tuple[int, str, re.Match[str] | None]


def _with_counters(
    found: Sequence[tuple[Unit, Path]], inside: Sequence[_Inside | None]
) -> tuple[list[_Told | None], str | None]:
    """The steps of files; and a sentence where an average's own count of its calls and the names disagree.

    After an average was begun anew, or where it does not move at each step, its counter is no step.  Names that rise
    from file to file are believed then: those that say "step", and others if they can be steps, which are never fewer
    than the calls, or if the counters do not rise along them.
    """
    steps = [_step(unit.path, root, told, len(found) == 1) for (unit, root), told in zip(found, inside, strict=True)]
    counters: list[_Told | None] = [
        None if count is None or (step is not None and step[2] is None and "epoch" not in step[1]) else (*count, None)
        for step, count in zip(steps, (counter_of(unit) for unit, _ in found), strict=True)
    ]
    both = [
        (unit.path.name, _label(unit.path, root, step)[0], step, count)
        for (unit, root), step, count in zip(found, steps, counters, strict=True)
        if step is not None and count is not None
    ]
    by_name = sorted(both, key=lambda one: (one[1], one[2][0]))
    of_one = [(before, after) for before, after in pairwise(by_name) if before[1] == after[1]]
    names_rise = all(before[2][0] < after[2][0] for before, after in of_one)
    counters_rise = all(before[3][0] < after[3][0] for before, after in of_one)
    apart = [one for one in by_name if one[2][0] != one[3][0]]
    of_epochs = any("epoch" in one[2][1] for one in both)
    if not apart or (of_epochs and counters_rise):
        return [step if count is None else count for step, count in zip(steps, counters, strict=True)], None
    say_step = all(step[2] is not None and _STEP_WORDS.search(step[2][0]) for _, _, step, _ in both)
    fit = not counters_rise or (not of_epochs and all(step[0] >= count[0] for _, _, step, count in both))
    believed = names_rise and (say_step or (bool(of_one) and fit))
    name, _, step, count = apart[0]
    why = (
        "the names are believed, because an average that was begun anew, or moves less often, counts other steps"
        if believed
        else "the counters are believed, because the names do not look like steps"
    )
    sentence = (
        f"{name}: {step[1]} tells {step[0]:,}, but the average's own counter ({count[1]}) {count[0]:,}, and so it is "
        f"in {len(apart)} of {counted(len(both), 'file')}: {why}"
    )
    if believed:
        return steps, sentence
    return [step if count is None else count for step, count in zip(steps, counters, strict=True)], sentence


def _step(path: Path, root: Path, inside: _Inside | None, alone: bool) -> _Told | None:
    """The step of a file, but for what an average counts."""
    if inside is not None and "epoch" not in inside[1]:
        return *inside, None
    if (beside := step_beside(path, root)) is not None:
        return *beside, None
    names = _names(path, root)
    for name in [*names, path.parent.name] if alone else names:
        if (found := _WORDS.search(name)) and (count := _count(found[1])) is not None:
            if inside is not None and count == inside[0] - 1:
                break  # timm's checkpoint-3 is of epoch 3
            return count, "the name", found
    if inside is not None:
        return *inside, None
    for name in names:
        if (found := _EPOCH.search(name)) and (count := _count(found[1])) is not None:
            return count, "the epoch in the name", found
    for name in names:
        found = None if _NEGATIVE.search(name) else _AT_END.search(_DATE.sub("", name))
        if found and (count := _count(found[1])) is not None:
            return count, "the name", found
    return None


def _count(digits: str) -> int | None:
    """A number in a name, such as 100 or 1e5; ``None`` for one that no run reaches."""
    count = float(digits) if len(digits) < 100 else float("inf")
    return None if count > MOST_STEPS else int(count)


def _odd_steps(units: Sequence[Unit], steps: Sequence[_Told | None], inside: Sequence[_Inside | None]) -> Iterator[str]:
    """A sentence where files have something else in the place of a step."""
    odd = [
        (unit, words, step)
        for unit, step, told in zip(units, steps, inside, strict=True)
        if (told is None or step is None or step[:2] != told) and (words := odd_step(unit)) is not None
    ]
    if odd:
        unit, words, step = odd[0]
        instead = "and nothing else tells its step" if step is None else f"so {step[1]} tells it: {step[0]:,}"
        yield f"{unit.path.name}: {words}, which is no count of steps (in {len(odd)} of {len(units)} files); {instead}"


def _names(path: Path, root: Path) -> list[str]:
    """A file's name without its end, and those of its folders below the one that was opened."""
    inner = path.relative_to(root).parts[:-1] if path != root else ()
    stem = path.name if path.is_dir() else stem_of(path)
    return [stem, *reversed(inner)]


def _label(path: Path, root: Path, step: _Told) -> tuple[str, bool]:
    """A file's name without what tells its step and its metrics, and whether it told a step."""
    base = root if root.is_dir() and path != root else path.parent
    parts = list(path.relative_to(base).parts)
    if not path.is_dir():
        parts[-1] = stem_of(path)
    text = "/".join(parts)
    text = re.sub(r"(\w+)=-?[\d.]+", r"\1=*", text)
    if found := step[2]:
        starred = text.replace(found[0], found[0].removesuffix(found[1]) + "*")
    else:  # not the digits of a fraction: those tell averages apart
        number = step[0] - ("counted from 0" in step[1])
        starred = re.sub(rf"(?<![\d.])0*{number}(?!\.?\d)", "*", text)
    return starred, "*" in starred


def described(checkpoints: Checkpoints) -> Iterator[dict[str, Any]]:
    """A row a section: its step and what told it, kind, tensors, dtypes, bytes, ties, and what it says of itself."""
    for one in checkpoints:
        for section in one.sections:
            floats = [tensor for tensor in section.tensors.values() if tensor.is_averaged]
            yield {
                "step": one.step,
                "step_from": one.step_from,
                "section": section.name,
                "kind": section.kind,
                "tensors": len(section.tensors),
                "weights": sum(tensor.numel for tensor in floats),
                "dtypes": _dtypes(section.tensors),
                "copied": len(section.tensors) - len(floats),
                "tied": len(section.ties),
                "bytes": section.nbytes,
                "about": ", ".join(f"{key}={value}" for key, value in section.about.items()),
                "format": one.form,
                "files": len(one.files),
            }


def _dtypes(tensors: Mapping[str, StoredTensor]) -> str:
    return " ".join(dict.fromkeys(str(one.dtype).removeprefix("torch.") for one in tensors.values()))


def told_of_gaps(steps: NDArray[np.int64]) -> str | None:
    """A sentence on uneven steps, or ``None``."""
    gaps = [after - before for before, after in pairwise(steps.tolist())]
    if len(set(gaps)) < 2:
        return None
    return f"the steps are uneven: from {min(gaps):,} to {max(gaps):,} apart"
