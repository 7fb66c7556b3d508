"""Averages from a few stored files: what each file weighs, and how far that is from the average over all steps.

A file holds some average of the weights after all calls, its *profile*: the weights of one call (a raw checkpoint), the
mean of a stretch of calls, or a schedule's average.  What is wanted is a profile, too, ``target`` of shape (T,): what
each of T calls weighs in it.  A merge with coefficients c has the profile ``sum_i c_i * profile_i``; how far it is from
the target in the L2 norm is what Karras et al. ("Analyzing and Improving the Training Dynamics of Diffusion Models",
2024, section 3.2 and appendix C) minimise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import scipy  # whose parts are loaded where they are used
from numpy.typing import ArrayLike, NDArray

from emacore.averaging.schedules import Schedule, check_schedule
from emacore.averaging.weights import weights
from emacore.averaging.windows import Scheme, decays_at_end
from emacore.checks import check_choice, check_whole, is_real, keep_plain, plain

Floats = NDArray[np.float64]
Fit = Literal["linear", "nonnegative", "free"]
FITS = ("linear", "nonnegative", "free")
#: An error of so little is rounding.
_EXACT = 1e-12
#: Calls whose weights are looked at together.
_STRETCH = 4096


@dataclass(frozen=True)
class Span:
    """The profile of a mean over calls ``begin`` to ``end``, both included; of raw weights the two are the same."""

    begin: int
    end: int

    def __post_init__(self) -> None:
        keep_plain(self)
        check_whole("begin", self.begin, 0)
        check_whole("end", self.end, self.begin)


@dataclass(frozen=True, eq=False)
class Averaged:
    """The profile of a schedule's average after call ``end``.

    Args:
        end: From 0 to the last of ``decays``.
        decays: Shape (T,), of the calls of the run; files of one average share them.
    """

    end: int
    decays: Floats

    def __post_init__(self) -> None:
        keep_plain(self)
        check_whole("end", self.end, 0, len(self.decays) - 1)


Profile = Span | Averaged


class Certificate(NamedTuple):
    """How a merge compares with the average over all steps.

    Attributes:
        error: The L2 norm of the difference of the two profiles, as a share of the target's.
        wanted: How many equally weighted steps average out independent noise as well as the target does.
        reached: The same of the merge.
        amplification: The sum of the absolute coefficients: by so much rounding in the files is amplified at most.
        total: The sum of the coefficients; other than 1, the merge is not on the scale of the weights.
    """

    error: float
    wanted: float
    reached: float
    amplification: float
    total: float


@dataclass(frozen=True)
class RateDecay:
    """The merge of weights trained at a constant learning rate that stands for a decay of that rate at the end.

    With the emulated rates w, as shares of the constant one, the last weights would be the first ones and the sum of
    all steps after them, each times its w; in terms of the weights themselves step t weighs ``w_t - w_(t+1)``.  That
    is first order: it takes the gradients of the real decay to be those that the constant rate met.

    Source: Tian et al., "WSM: Decay-Free Learning Rate Schedule via Checkpoint Merging for LLM Pre-training", 2025,
    whose coefficients of k + 1 files are ``1 - w_1``, ``w_j - w_(j+1)`` and ``w_k``.

    Args:
        shape: How the rate falls to zero: ``linear``, ``cosine`` or ``1-sqrt``.
        steps: Over how many of the last steps; by default over all from the first file on.

    Raises:
        ValueError: for another shape, or if ``steps`` is no whole number of at least 1.
    """

    shape: str = "linear"
    steps: int | None = None

    def __post_init__(self) -> None:
        keep_plain(self)
        check_choice("shape", self.shape, ("linear", "cosine", "1-sqrt"))
        if self.steps is not None:
            check_whole("steps", self.steps, 1)

    def rates(self, progress: ArrayLike) -> Floats:
        """The emulated rate, as a share of the constant one, where so much of the decay is over, from 0 to 1."""
        over = np.clip(np.asarray(progress, dtype=np.float64), 0, 1)
        match self.shape:
            case "linear":
                return np.asarray(1 - over)
            case "cosine":
                return np.asarray((1 + np.cos(np.pi * over)) / 2)
            case _:
                return np.asarray(1 - np.sqrt(over))

    def target(self, first: int, calls: int) -> Floats:
        """What each of ``calls`` calls weighs, where the first file is of call ``first``.

        Raises:
            ValueError: if the decay would begin before the first file.
        """
        begin = first if self.steps is None else calls - 1 - self.steps
        if begin < first:
            raise ValueError(
                f"a decay over the last {self.steps:,} steps would begin before the first file, which is "
                f"{calls - 1 - first:,} steps before the last"
            )
        if begin == calls - 1:
            raise ValueError("a decay needs at least two files")
        # The step from call t - 1 to call t has the rate at its middle.
        middles = (np.arange(begin + 1, calls) - 0.5 - begin) / (calls - 1 - begin)
        rates = np.concatenate([[1.0], self.rates(middles), [0.0]])
        result = np.zeros(calls)
        result[begin:] = rates[:-1] - rates[1:]
        return result


@dataclass(frozen=True)
class LastFiles:
    """The last ``files`` files, whatever their steps: their plain mean, or what a schedule makes of them in a row.

    Raises:
        ValueError: if ``files`` is no whole number of at least 1.
        TypeError: if ``schedule`` is none.
    """

    files: int
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        keep_plain(self)
        check_whole("files", self.files, 1)
        if self.schedule is not None:
            check_schedule("schedule", self.schedule)

    def coefficients(self, count: int) -> Floats:
        """The coefficient of each of ``count`` files, shape (count,)."""
        size = min(self.files, count)
        result = np.zeros(count)
        result[count - size :] = 1 / size if self.schedule is None else weights(self.schedule.decays(size))
        return result


@dataclass(frozen=True)
class Coefficients:
    """Coefficients of the last files, as they are; they may be negative.

    Args:
        values: One or more numbers, the last file's last: a list, a tuple or an array.

    Raises:
        ValueError: if one is no finite number that fits into float32, or all are 0.
    """

    values: Sequence[float]

    def __post_init__(self) -> None:
        values = self.values
        given = values.tolist() if isinstance(values, np.ndarray) else values
        if not isinstance(given, (list, tuple)) or not all(map(is_real, given)):
            raise ValueError(f"values must be a list of numbers, such as [-0.5, 1.5], got {values!r}")
        numbers = plain(tuple(given))
        if not any(numbers) or not all(-math.inf < one < math.inf for one in numbers):
            raise ValueError(f"coefficients must be finite numbers, at least one of them not 0, got {values!r}")
        if max(map(abs, numbers)) > float(np.finfo(np.float32).max):
            raise ValueError(f"coefficients must be numbers that fit into float32, got {values!r:.200}")
        object.__setattr__(self, "values", tuple(map(float, numbers)))

    def coefficients(self, count: int) -> Floats:
        """The coefficient of each of ``count`` files, shape (count,).

        Raises:
            ValueError: if there are more coefficients than files.
        """
        if len(self.values) > count:
            raise ValueError(f"there are {len(self.values)} coefficients for {count} files")
        return np.concatenate([np.zeros(count - len(self.values)), self.values])


#: What a merge can be asked for.
Merge = Scheme | RateDecay | LastFiles | Coefficients


def target_of(merge: Scheme | RateDecay, first: int, calls: int) -> Floats:
    """What each of ``calls`` calls weighs in the average that is asked for: shape (calls,).

    Args:
        first: The call of the first file.
    """
    if isinstance(merge, RateDecay):
        return merge.target(first, calls)
    return weights(decays_at_end(merge, calls))


def split_linearly(target: ArrayLike, calls: ArrayLike) -> Floats:
    """Coefficients of raw weights: the weight of a call that is not stored goes to its neighbours, by their distances.

    What comes before the first of ``calls`` goes to that one.

    Args:
        target: Shape (T,).
        calls: Shape (N,), rising, below T; what comes after the last of them goes to that one.

    Returns:
        Shape (N,); they add to the sum of ``target``.
    """
    wanted, stored = np.asarray(target, dtype=np.float64), np.asarray(calls, dtype=np.int64)
    if stored.ndim != 1 or not stored.size or stored[0] < 0 or (np.diff(stored) <= 0).any():
        raise ValueError(f"calls must be rising whole numbers of at least 0, got {stored}")
    if wanted.ndim != 1 or len(wanted) <= stored[-1]:
        raise ValueError(f"target must have shape (T,), with T above the last call {stored[-1]}, got {wanted.shape}")
    positions = np.interp(np.arange(len(wanted)), stored, np.arange(len(stored)))
    lower = positions.astype(np.int64)
    share = positions - lower
    result = np.bincount(lower, wanted * (1 - share), len(stored))
    result += np.bincount(np.minimum(lower + 1, len(stored) - 1), wanted * share, len(stored))
    return np.asarray(result)


def best_coefficients(target: ArrayLike, profiles: Sequence[Profile], *, nonnegative: bool = False) -> Floats:
    """The coefficients, adding to the sum of ``target``, whose profile comes nearest to it in the L2 norm.

    Args:
        target: Shape (T,), of a sum that is not 0.
        profiles: Of N files; none may end after the last call.
        nonnegative: Whether no coefficient may be below 0.

    Returns:
        Shape (N,).
    """
    wanted = np.asarray(target, dtype=np.float64)
    total = wanted.sum()
    gram = _gram(wanted / total, profiles)
    count = len(profiles)
    # With coefficients that add to 1 the error is that of the differences from the target: a matrix, no right side.
    scale = max(gram[-1, -1], np.finfo(float).tiny)
    shifted = gram[:count, :count] - gram[:count, -1:] - gram[-1:, :count] + gram[-1, -1]
    shifted /= scale
    if nonnegative:
        # Stretched, the best coefficients of any sum are those of sum 1, so that the sum may be a row of its own.
        values, vectors = np.linalg.eigh(shifted)
        roots = np.sqrt(np.maximum(values, 0))[:, np.newaxis] * vectors.T
        found, _ = scipy.optimize.nnls(
            np.vstack([roots, np.ones(count)]), np.append(np.zeros(count), 1.0), maxiter=100 * count + 100
        )
        return np.asarray(found / found.sum() * total)
    system = np.block([[shifted, np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
    solved = np.linalg.lstsq(system, np.append(np.zeros(count), 1.0), rcond=1e-14)[0][:count]
    return np.asarray(solved / solved.sum() * total)


def merged_profile(calls: int, profiles: Sequence[Profile], coefficients: ArrayLike) -> Floats:
    """What each of ``calls`` calls weighs in a merge of files with ``profiles``: shape (calls,)."""
    factors = np.asarray(coefficients, dtype=np.float64)
    result = np.zeros(calls)
    for start, stop, active, block in _blocks(calls, profiles):
        if len(active):
            result[start:stop] = factors[active] @ block
    return result


def certificate(target: ArrayLike, profiles: Sequence[Profile], coefficients: ArrayLike) -> Certificate:
    """How the merge of files with ``profiles`` compares with ``target``, of shape (T,)."""
    wanted, factors = np.asarray(target, dtype=np.float64), np.asarray(coefficients, dtype=np.float64)
    missed = kept = 0.0
    for start, stop, active, block in _blocks(len(wanted), profiles):
        merged = factors[active] @ block if len(active) else np.zeros(stop - start)
        missed += float(np.sum((merged - wanted[start:stop]) ** 2))
        kept += float(merged @ merged)
    norm = float(wanted @ wanted)
    error = float(np.sqrt(missed / norm))
    return Certificate(
        error=error if error > _EXACT else 0.0,
        wanted=float(wanted.sum() ** 2 / norm),
        reached=float(factors.sum() ** 2 / kept) if kept else 0.0,
        amplification=float(np.abs(factors).sum()),
        total=float(factors.sum()),
    )


def karras_decays(gamma: float, calls: int, update_every: int = 1) -> Floats:
    """The decays of ema-pytorch's ``KarrasEMA``, whose rule counts calls, whether or not they move it: shape (calls,).

    Only every ``update_every``-th call moves it, by the decay that EDM2 gives to a single one, so that with more than
    one call to a move its memory is longer than that of the power function of this ``gamma``.

    Source: ``KarrasEMA`` in ema-pytorch 0.8.
    """
    check_whole("update_every", update_every, 1)
    numbers = np.arange(calls)
    result = np.where(numbers % update_every == 0, (1 - 1 / (numbers + 2.0)) ** (gamma + 1), 1.0)
    result[:1] = 0
    return np.asarray(result)


def _gram(target: Floats, profiles: Sequence[Profile]) -> Floats:
    """Inner products of all profiles and, in the last row and column, the target."""
    count = len(profiles)
    result = np.zeros((count + 1, count + 1))
    for start, stop, active, block in _blocks(len(target), profiles):
        result[np.ix_(active, active)] += block @ block.T
        with_target = block @ target[start:stop]
        result[active, count] += with_target
        result[count, active] += with_target
    result[count, count] = target @ target
    return result


def _blocks(calls: int, profiles: Sequence[Profile]) -> Iterator[tuple[int, int, NDArray[np.int64], Floats]]:
    """Stretches of calls, which profiles weigh something there, and what: shape (active, stop - start)."""
    for profile in profiles:
        if profile.end >= calls:
            raise ValueError(f"a file of call {profile.end} is later than what is wanted, which ends at {calls - 1}")
    ends = np.array([profile.end for profile in profiles], dtype=np.int64)
    begins = np.array([profile.begin if isinstance(profile, Span) else 0 for profile in profiles], dtype=np.int64)
    decays = list({id(one.decays): one.decays for one in profiles if isinstance(one, Averaged)}.values())
    of_average = [
        [n for n, one in enumerate(profiles) if isinstance(one, Averaged) and one.decays is shared] for shared in decays
    ]
    # Backwards, with what is left of each average after the calls of the stretch, so that no product overflows.
    kept = np.ones(len(profiles))
    for start in range((calls - 1) // _STRETCH * _STRETCH, -1, -_STRETCH):
        stop = min(start + _STRETCH, calls)
        block = np.zeros((len(profiles), stop - start))
        for n in np.flatnonzero((begins < stop) & (ends >= start)).tolist():
            profile = profiles[n]
            if isinstance(profile, Span):
                left, right = max(profile.begin, start), min(profile.end + 1, stop)
                block[n, left - start : right - start] = 1 / (profile.end - profile.begin + 1)
        for shared, members in zip(decays, of_average, strict=True):
            if not (reaching := [n for n in members if ends[n] >= start and kept[n]]):
                continue
            rates = np.tile(shared[start:stop], (len(reaching), 1))
            later = np.arange(start, stop) > ends[reaching, np.newaxis]
            rates[later] = 1
            after = np.ones(rates.shape)
            after[:, :-1] = np.cumprod(rates[:, :0:-1], axis=1)[:, ::-1]
            block[reaching] = (1 - rates) * after * kept[reaching, np.newaxis]
            kept[reaching] *= after[:, 0] * rates[:, 0]
        active = np.flatnonzero(block.any(axis=1))
        yield start, stop, active, block[active]
