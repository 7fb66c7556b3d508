"""What files say of an average: which tensors moved, which equal the raw ones, and how much was forgotten."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy  # whose parts are loaded where they are used
import torch
from numpy.typing import NDArray
from torch import Tensor

from emacore.averaging.recovery import Rate, inner_products, recovered_rate
from emacore.checkpoints.reading import Checkpoints
from emacore.checkpoints.sections import Section
from emacore.checkpoints.stored import CheckpointError, StoredTensor
from emacore.tensors.pairing import listed, reals

Floats = NDArray[np.float64]

#: Numbers in memory at a time, over all files: 64 MB in double precision, twice.
_BLOCK = 2**23
#: Groups a tensor is cut into, and the least weights of one.
_GROUPS, _LEAST = 16, 32
_STATISTICS = re.compile(r"(^|\.)(running_mean|running_var|mean_ema|var_ema)$")
_COARSE = (torch.bfloat16, torch.float16)
#: What share of its size a number must move for its average to show it, in single and in half precision.
_FAR = (3e-4, 0.06)


@dataclass(frozen=True)
class TensorFacts:
    """What the files say of one averaged tensor.

    Attributes:
        name: Of the raw one.
        dtype: Of the averaged one.
        coarse: The half precision that holds all its averaged values, whatever they are stored in.
        equal: Of each file, whether the average is the raw tensor, as far as the narrower of their dtypes tells.
        raw_moved, moved: Of each stretch between two files, whether any number changed.
        far: Whether the raw tensor moved so far between two files that an average of it must show.
        gaps: Of each stretch how far, in units of the averaged dtype's spacing, nine in ten averaged numbers were at
            most from the middle of the raw ones.
        broken_at: The first file with numbers that are not finite, if there is one.
        raw_squares, squares: Of each file the sum of the squares of the raw and of the averaged numbers.
    """

    name: str
    dtype: torch.dtype
    count: int
    coarse: torch.dtype | None
    equal: tuple[bool, ...]
    raw_moved: tuple[bool, ...]
    moved: tuple[bool, ...]
    far: bool
    gaps: tuple[float, ...]
    broken_at: int | None = None
    raw_squares: tuple[float, ...] = ()
    squares: tuple[float, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether all numbers of all files are."""
        return self.broken_at is None

    @property
    def is_statistic(self) -> bool:
        """Whether its name is that of running statistics, as BatchNorm's."""
        return self.named_as_statistic(self.name)

    @staticmethod
    def named_as_statistic(name: str) -> bool:
        """Whether a name is that of running statistics; nothing else in a file tells a buffer from a parameter."""
        return bool(_STATISTICS.search(name))

    @property
    def trains(self) -> bool:
        """Whether the raw tensor changed at all."""
        return any(self.raw_moved)

    @property
    def is_copied(self) -> bool:
        """Whether it is the raw tensor in every file, though that moved."""
        return self.far and all(self.equal)

    @property
    def is_frozen(self) -> bool:
        """Whether the average never changed, though the raw tensor moved."""
        return self.far and not any(self.moved) and not all(self.equal)


@dataclass(frozen=True)
class _Sums:
    """Sums over G groups of weights in S stretches: whole tensors are too large to be kept beside each other."""

    products: Floats  # (G, S, 4, 4)
    counts: Floats  # (G,)
    rounding: Floats  # (G, S)
    #: For small and for large averaged numbers: movement times gap, and gap squared; how many of the large are stuck,
    #: and how many there are.
    classes: Floats  # (G, S, 6)


@dataclass(frozen=True)
class Evidence:
    """What files with raw and averaged weights say, before anything is made of it.

    Attributes:
        steps: Of the files, rising, shape (N,).
        tensors: The facts of each tensor that both hold.
        missing: Raw floating-point tensors that the average has not.
        counters: How many updates the average counted at each file, where all tell.
        average, raw: The names of the two sections.
    """

    steps: tuple[int, ...]
    tensors: tuple[TensorFacts, ...]
    missing: tuple[str, ...]
    counters: tuple[int, ...] | None
    sums: Mapping[str, _Sums]
    average: str = "the average"
    raw: str = "the raw weights"

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """Pairs of steps of neighbouring files."""
        return list(zip(self.steps[:-1], self.steps[1:], strict=True))

    @cached_property
    def weights(self) -> list[TensorFacts]:
        """The tensors that tell the decay: that move, and are averaged, and no running statistics."""
        plain = [one for one in self.tensors if one.trains and one.finite and not (one.is_copied or one.is_frozen)]
        plain = [one for one in plain if not one.is_statistic] or plain
        # A bias before BatchNorm, for instance, has no gradient but rounding; in some runs all weights hardly move.
        return [one for one in plain if one.far] or plain

    @property
    def scales(self) -> list[float]:
        """At each file the norm of the average, in those of the raw weights."""
        raw, average = (
            np.sum([one.raw_squares for one in self.weights], axis=0),
            np.sum([one.squares for one in self.weights], axis=0),
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.sqrt(average / raw).tolist() if self.weights else []

    @cached_property
    def rates(self) -> list[Rate]:
        """How much was forgotten in each stretch."""
        found = []
        for stretch, (begin, end) in enumerate(self.stretches):
            sums = self._of_weights()
            products = np.concatenate([one.products[:, stretch] for one in sums] or [np.zeros((0, 4, 4))])
            counts = np.concatenate([one.counts for one in sums] or [np.zeros(0)])
            rounding = np.concatenate([one.rounding[:, stretch] for one in sums] or [np.zeros(0)])
            found.append(recovered_rate(products, counts, end - begin, rounding))
        return found

    def lag(self, stretch: int) -> float:
        """Distance of the average from the raw weights at the end of a stretch, as a share of how far those went."""
        total = sum((one.products[:, stretch].sum(axis=0) for one in self._of_weights()), np.zeros((4, 4)))
        signs = np.array([1.0, -1.0, 1.0, 0.0])  # e_b - w_b from e_a - w_a, w_b - w_a and e_b - e_a
        return _share(float(signs @ total @ signs), total)

    def lag_before(self, stretch: int) -> float:
        """Distance of the average from the raw weights at the begin of a stretch, as a share of how far those went."""
        total = sum((one.products[:, stretch].sum(axis=0) for one in self._of_weights()), np.zeros((4, 4)))
        return _share(float(total[0, 0]), total)

    @cached_property
    def stuck(self) -> float | None:
        """The share of large numbers that stood still, where rounding held them back; else ``None``.

        Rounding holds numbers back by their size, an average does not: what of its gap to the raw weights a small
        number closed, a large one closes as well.
        """
        coarse = [self.sums[one.name].classes for one in self.weights if one.coarse is not None]
        if not coarse:
            return None
        sums = np.concatenate(coarse).reshape(-1, 6)
        sums = sums[(sums[:, 1] > 0) & (sums[:, 3] > 0)]
        if len(sums) < 4:
            return None
        sides = sums / (sums[:, 1] + sums[:, 3])[:, None]
        closed = max(sides[:, 0].sum() / sides[:, 1].sum(), 0.0)  # of the small ones
        behind = closed / 2 * sides[:, 3] - sides[:, 2]
        spread = np.sqrt(len(sides) / (len(sides) - 1) * ((behind - behind.mean()) ** 2).sum())
        share = float(sums[:, 4].sum() / sums[:, 5].sum())
        held = behind.sum() > float(scipy.stats.t.isf(1e-4, len(sides) - 1)) * spread
        return share if held and share > 0.4 else None

    def _of_weights(self) -> list[_Sums]:
        return [self.sums[one.name] for one in self.weights]


def _share(apart: float, total: Floats) -> float:
    return float(np.sqrt(max(apart, 0.0) / total[1, 1])) if total[1, 1] > 0 else float("nan")


def evidence_in(checkpoints: Checkpoints, average: str | None = None, raw: str | None = None) -> Evidence:
    """Read the files that hold raw and averaged weights, a part of a tensor at a time.

    Args:
        checkpoints: Of one run.
        average, raw: The names of the two sections, where there are several to choose from.

    Raises:
        CheckpointError: if fewer than one file has both, or they do not go together.
    """
    names = {"average": average, "raw": raw}
    for kind, name in names.items():
        there = checkpoints.names(kind)
        if name is not None and name not in checkpoints.names():
            raise CheckpointError(f"there is no section {name!r}; there are {listed(checkpoints.names())}")
        if name is None and not there:
            what = "weights of an average" if kind == "average" else "raw weights"
            raise CheckpointError(
                f"{checkpoints.path} holds no {what}; there are the sections {listed(checkpoints.names())}"
            )
        if kind == "raw" and name is None and len(there) > 1:  # a wrapper stores the weights beside their average, too
            beside = [one for one in there if one.rpartition(".")[0] == str(names["average"]).rpartition(".")[0]]
            there = beside if len(beside) == 1 else there
        if name is None and len(there) > 1:
            raise CheckpointError(f"there are several sections of the kind {kind}, choose one of {listed(there)}")
        names[kind] = name or there[0]
    steps, raws, averages = [], [], []
    for one in checkpoints:
        pair = one.section(str(names["raw"])), one.section(str(names["average"]))
        if pair[0] is not None and pair[1] is not None:
            steps.append(one.step)
            raws.append(pair[0])
            averages.append(pair[1])
    if not steps:
        raise CheckpointError(f"no checkpoint of {checkpoints.path} holds both {names['raw']} and {names['average']}")
    checkpoints.check_unchanged()
    return replace(gathered(steps, raws, averages), average=str(names["average"]), raw=str(names["raw"]))


def gathered(steps: Sequence[int], raws: Sequence[Section], averages: Sequence[Section]) -> Evidence:
    """The evidence in sections of the same steps.

    Raises:
        CheckpointError: if names or shapes differ.
    """
    pairs = [_paired(raw, average) for raw, average in zip(raws, averages, strict=True)]
    names = list(pairs[0])
    for step, pair in zip(steps, pairs, strict=True):
        if list(pair) != names:
            raise CheckpointError(
                f"the average of step {step} does not have the tensors of step {steps[0]}: "
                f"{listed(pair.keys() ^ pairs[0].keys())}"
            )
    tensors, sums = [], {}
    for name in names:
        facts, of_name = _examined(name, [pair[name][0] for pair in pairs], [pair[name][1] for pair in pairs])
        tensors.append(facts)
        sums[name] = of_name
    held = {*names, *(tie for one in averages for tie in one.ties)}
    floats = [name for name, tensor in raws[0].tensors.items() if tensor.is_averaged]
    missing = [name for name in floats if name not in held and not held & _ties_of(raws[0], name)]
    return Evidence(tuple(steps), tuple(tensors), tuple(missing), _counters(averages), sums)


def _ties_of(section: Section, name: str) -> set[str]:
    return {other for other, owner in section.ties.items() if owner == name}


def _paired(raw: Section, average: Section) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """Raw and averaged tensors by the raw one's name; those of a list without names by their order."""
    averaged = {name: tensor for name, tensor in average.tensors.items() if tensor.is_averaged}
    if averaged and all(name.isdigit() for name in averaged):
        names = [name for name, one in raw.tensors.items() if one.is_averaged and not _STATISTICS.search(name)]
        shapes = [raw.tensors[name].shape for name in names]
        if shapes != [one.shape for one in averaged.values()]:
            raise CheckpointError(
                f"{average.name} is a list of {len(averaged)} tensors without names, which do not fit the "
                f"{len(names)} of {raw.name} one by one"
            )
        averaged = dict(zip(names, averaged.values(), strict=True))
    pairs = {}
    for name, tensor in averaged.items():
        owner = raw.ties.get(name, name)
        if owner not in raw.tensors or owner in pairs:
            continue
        if raw.tensors[owner].shape != tensor.shape:
            raise CheckpointError(
                f"{name!r} has shape {raw.tensors[owner].shape} in {raw.name} and {tensor.shape} in {average.name}"
            )
        if raw.tensors[owner].dtype.is_complex != tensor.dtype.is_complex:
            one, other = (str(part.dtype).removeprefix("torch.") for part in (raw.tensors[owner], tensor))
            raise CheckpointError(f"{name!r} is {one} in {raw.name} and {other} in {average.name}")
        pairs[owner] = raw.tensors[owner], tensor
    if not pairs:
        raise CheckpointError(
            f"{raw.name} and {average.name} have no tensor of the same name: {listed(raw.tensors)} and "
            f"{listed(average.tensors)}"
        )
    return pairs


def _counters(averages: Sequence[Section]) -> tuple[int, ...] | None:
    for key in ("updates", "step", "optimization_step"):
        values = [section.about.get(key) for section in averages]
        if all(isinstance(value, int) for value in values):
            return tuple(int(value) for value in values if value is not None)
    return None


def _examined(name: str, raws: Sequence[StoredTensor], averages: Sequence[StoredTensor]) -> tuple[TensorFacts, _Sums]:
    files = len(raws)
    equal, coarse = [True] * files, dict.fromkeys(_COARSE, True)
    raw_moved, moved, broken = [False] * (files - 1), [False] * (files - 1), files
    gaps, far, squares = np.zeros(files - 1), False, np.zeros((2, files))
    parts: list[_Sums] = []
    for start, stop in _parts(raws[0].numel, files):
        w, e = [_read(one, start, stop) for one in raws], [_read(one, start, stop) for one in averages]
        equal = [before and _same(one, other) for before, one, other in zip(equal, w, e, strict=True)]
        coarse = {dtype: fits and all(_fits(one, dtype) for one in e) for dtype, fits in coarse.items()}
        for stretch in range(files - 1):
            raw_moved[stretch] |= not torch.equal(w[stretch], w[stretch + 1])
            moved[stretch] |= not torch.equal(e[stretch], e[stretch + 1])
        raw, average = (np.stack([_numbers(one) for one in tensors]) for tensors in (w, e))
        with np.errstate(over="ignore"):
            of_part = np.array([(raw**2).sum(axis=1), (average**2).sum(axis=1)])
        squares += of_part
        whole = np.isfinite(of_part).all(axis=0)  # beyond 1e154 no square is
        if not whole.all():
            broken = min(broken, int(np.argmin(whole)))
        elif files > 1:
            spacing = _spacing(average, e[0].dtype)
            size = np.maximum(np.abs(raw[1:]), np.sqrt((raw**2).mean()))
            far = far or bool((np.abs(np.diff(raw, axis=0)) > _FAR[w[0].dtype in _COARSE] * size).any())
            parts.append(_sums(raw, average, spacing if e[0].dtype in _COARSE else 0 * spacing))
            apart = np.abs((raw[1:] + raw[:-1]) / 2 - average[:-1]) / spacing[:-1]
            gaps = np.maximum(gaps, np.quantile(apart, 0.9, axis=1))
    facts = TensorFacts(
        name,
        averages[0].dtype,
        raws[0].numel,
        next((dtype for dtype, fits in coarse.items() if fits), None),
        tuple(equal),
        tuple(raw_moved),
        tuple(moved),
        far,
        tuple(gaps.tolist()),
        broken if broken < files else None,
        tuple(squares[0].tolist()),
        tuple(squares[1].tolist()),
    )
    return facts, _joined(parts, files - 1)


def _parts(count: int, files: int) -> Iterator[tuple[int, int]]:
    groups = max(1, min(_GROUPS, count // _LEAST))
    size = max(min(-(-count // groups), _BLOCK // (2 * files)), 1)
    for start in range(0, count, size):
        yield start, min(start + size, count)


def _sums(raw: Floats, average: Floats, spacing: Floats) -> _Sums:
    files, count = raw.shape
    products, classes = np.zeros((files - 1, 4, 4)), np.zeros((files - 1, 6))
    for one in range(files - 1):
        third = raw[one + 2] if one + 2 < files else raw[one - 1] if one else None
        products[one] = inner_products(raw[one], raw[one + 1], average[one], average[one + 1], third)
        gap, move = (raw[one] + raw[one + 1]) / 2 - average[one], average[one + 1] - average[one]
        size = np.abs(average[one])
        quarter, half = np.quantile(size, [0.25, 0.5])
        small, large = size <= quarter, (size >= half) & (gap != 0)
        classes[one] = [
            move[small] @ gap[small],
            gap[small] @ gap[small],
            move[large] @ gap[large],
            gap[large] @ gap[large],
            np.count_nonzero(move[large] == 0),
            np.count_nonzero(large),
        ]
    rounding = (spacing[:-1] ** 2).sum(axis=1) / 12
    return _Sums(products[None], np.array([float(count)]), rounding[None], classes[None])


def _joined(parts: Sequence[_Sums], stretches: int) -> _Sums:
    """The parts of a tensor as its groups: neighbours are added up where there are more than that."""
    empty = _Sums(np.zeros((0, stretches, 4, 4)), np.zeros(0), np.zeros((0, stretches)), np.zeros((0, stretches, 6)))
    firsts = np.unique(np.linspace(0, len(parts), _GROUPS, endpoint=False).astype(int))

    def added(name: str) -> Floats:
        every = np.concatenate([getattr(one, name) for one in (empty, *parts)])
        return np.asarray(np.add.reduceat(every, firsts)) if len(parts) > _GROUPS else every

    return _Sums(added("products"), added("counts"), added("rounding"), added("classes"))


def _read(tensor: StoredTensor, start: int, stop: int) -> Tensor:
    found = tensor.read(start, stop)
    # Of 8 bits there are few operations; bfloat16 holds all their numbers.
    return found.to(torch.bfloat16) if found.dtype.itemsize == 1 else found


def _numbers(tensor: Tensor) -> Floats:
    return np.asarray(reals(tensor).to(torch.float64).numpy())


def _same(raw: Tensor, average: Tensor) -> bool:
    """Whether two are equal: to rounding, or as far as half precision tells."""
    narrow = min(raw.dtype, average.dtype, key=lambda dtype: dtype.itemsize)
    raw, average = raw.to(narrow), average.to(narrow)
    near = (raw == average) | ((raw != raw) & (average != average))
    if narrow not in _COARSE and not near.all():  # average - (average - raw) is the raw number but for rounding
        size = torch.maximum(raw.abs(), raw.abs().pow(2).mean().sqrt())
        near |= (raw - average).abs() <= 2 * torch.finfo(narrow).eps * size
    return bool(near.all())


def _fits(tensor: Tensor, dtype: torch.dtype) -> bool:
    return not tensor.is_complex() and bool((tensor == tensor.to(dtype).to(tensor.dtype)).all())


def _spacing(values: Floats, dtype: torch.dtype) -> Floats:
    """The distance of neighbouring numbers of a dtype at each value."""
    about = torch.finfo(dtype)
    exponent = np.frexp(np.maximum(np.abs(values), about.smallest_normal))[1] - 1
    return np.asarray(np.ldexp(about.eps, exponent))
