"""What an array of decays means: the recursion, the weight of each step, its age, its effective number.

All functions take ``decays`` of shape (T,), float64, each in [0, 1], as a schedule yields them.
"""

from __future__ import annotations

import math

import numpy as np
import scipy  # whose parts are loaded where they are used
from numpy.typing import ArrayLike, NDArray

from emacore.checks import is_real, shown

Floats = NDArray[np.float64]

#: Up to this many steps a plain loop is faster than LAPACK, up to this many columns one over Python's own numbers.
_SHORT, _NARROW = 400, 8


def average(values: ArrayLike, decays: ArrayLike, initial: ArrayLike = 0.0) -> Floats:
    """Run ``average_t = decays[t] * average_{t-1} + (1 - decays[t]) * values[t]`` over the whole sequence.

    See :func:`recursion`.

    Args:
        values: Shape (T,) or (T, k).  A value that is not finite spreads to every later average, except where its
            call is skipped (decay 1).
        decays: Shape (T,).
        initial: The average before the first call: a number, or shape (k,).

    Returns:
        The averages, float64, in the shape of ``values``.

    Raises:
        ValueError: if the shapes do not fit or a decay is outside [0, 1].
    """
    numbers = np.asarray(values, dtype=np.float64)
    rates = checked_decays(decays)
    if numbers.ndim not in (1, 2) or len(numbers) != len(rates):
        raise ValueError(
            f"values must have shape ({len(rates)},) or ({len(rates)}, k) like decays, got {numbers.shape}"
        )
    if not len(rates):
        return numbers.copy()
    right = np.empty((len(rates), numbers[0].size), order="F")
    with np.errstate(invalid="ignore"):
        np.multiply((1 - rates)[:, np.newaxis], numbers.reshape(right.shape), out=right)
    right[rates == 1] = 0.0  # a skipped value counts for nothing, even if it is not finite
    if rates[0]:
        right[0] += rates[0] * np.asarray(initial, dtype=np.float64)
    return recursion(rates, right).reshape(numbers.shape)


def recursion(factors: ArrayLike, driven: ArrayLike) -> Floats:
    """Run ``x_t = factors[t] * x_{t-1} + driven[t]`` from ``x_{-1} = 0``.

    It is a lower bidiagonal linear system with ones on its diagonal; LAPACK's forward substitution (``dtbtrs``)
    performs the very same operations in the same order, so nothing can overflow and a product of a million factors may
    vanish without harm.  What is short is computed as it stands here, since loading LAPACK takes longer than a page.

    Args:
        factors: Shape (T,), or one for all; the first is not used.
        driven: Shape (T,) or (T, k); one of float64 in Fortran's order is overwritten.
    """
    right = np.asarray(driven, dtype=np.float64)
    count = len(right)
    if not right.size:
        return right.copy()
    if count <= _SHORT:
        return _short_recursion(np.broadcast_to(factors, count), right)
    bands = np.empty((2, count), order="F")
    bands[0] = 1.0
    bands[1, :-1] = -np.broadcast_to(np.asarray(factors, dtype=np.float64), count)[1:]
    bands[1, -1] = 0.0
    solution, info = scipy.linalg.lapack.dtbtrs(bands, right.reshape(count, -1), uplo="L", diag="U", overwrite_b=1)
    if info:
        raise RuntimeError(f"LAPACK dtbtrs failed with info = {info}")
    return np.ascontiguousarray(solution).reshape(right.shape)


def _short_recursion(factors: Floats, driven: Floats) -> Floats:
    if driven.size <= _NARROW * len(driven):  # numbers of Python's own are faster than arrays of few
        columns = np.empty_like(driven.reshape(len(driven), -1))
        shared = factors.tolist()
        for place, column in enumerate(driven.reshape(columns.shape).T.tolist()):
            value, found = 0.0, []
            for factor, one in zip(shared, column, strict=True):
                value = factor * value + one
                found.append(value)
            columns[:, place] = found
        return columns.reshape(driven.shape)
    rows, row = np.empty_like(driven, order="C"), np.zeros(driven.shape[1:])
    with np.errstate(over="ignore", invalid="ignore"):
        for step, factor in enumerate(factors):
            rows[step] = row = factor * row + driven[step]
    return rows


def weights(decays: ArrayLike, step: int = -1) -> Floats:
    """The weight that each call's value has in the average after call ``step`` (the last one by default).

    ``weights[s] = (1 - decays[s]) * decays[s+1] * ... * decays[step]``, and 0 for later calls.  Shape (T,).  Together
    with :func:`initial_share` they add to 1.
    """
    rates = checked_decays(decays)
    end = _end(rates, step)
    result = np.zeros(len(rates))
    result[:end] = (1 - rates[:end]) * _products_after(rates[:end])
    return result


def initial_share(decays: ArrayLike, step: int = -1) -> float:
    """What is left, in the average after call ``step``, of the average before the first call: the product of decays."""
    rates = checked_decays(decays)
    return vanishing(float(np.prod(rates[: _end(rates, step)])))


def start_share(decays: ArrayLike, step: int = -1, start: int | None = None) -> float:
    """The weight of where the average started: its last copy (decay 0), or the initial average if it never copied.

    Args:
        start: The call of the copy that it started with, as a schedule has it.  Where later moves copy too (a decay of
            0 all along), nothing is left of it.
    """
    rates = checked_decays(decays)
    end = _end(rates, step)
    copies = np.flatnonzero(rates[: end if start is None else min(end, start + 1)] == 0)
    first = int(copies[-1]) + 1 if copies.size else 0
    return vanishing(float(np.prod(rates[first:end])))


def stretch_weights(decays: Floats) -> tuple[Floats, Floats]:
    """What a stretch of n calls does to an average, for many schedules or stretches at once.

    Args:
        decays: Shape (..., n), of the calls of the stretch; not checked.

    Returns:
        Shape (..., n), the weights of the stretch's values in the average after it, and shape (...), that of the
        average before it.
    """
    after = _products_after(decays)
    return (1 - decays) * after, decays[..., 0] * after[..., 0]


def mean_age(decays: ArrayLike, step: int = -1) -> float:
    """The mean age, in steps, of what the average after call ``step`` holds.

    The value of call ``step`` has age 0, and the initial average has the age of a call before the first.

    Raises:
        ValueError: if ``decays`` are not numbers in [0, 1], or there is no such call.
    """
    ages, shares = _ages(decays, step)
    return float(ages @ shares)


def effective_count(decays: ArrayLike, step: int = -1) -> float:
    """How many equally weighted snapshots average out independent noise as well: 1 / sum of squared weights (Kish).

    It takes and raises what :func:`mean_age` does.
    """
    _, shares = _ages(decays, step)
    return float(1 / (shares @ shares))


def relative_width(decays: ArrayLike, step: int = -1) -> float:
    """Standard deviation in time of the weights, as a share of all steps so far (EDM2's sigma_rel).

    Steps before the start of an average count too: it is a share of the run, whenever the average began.
    """
    ages, shares = _ages(decays, step)
    variance = shares @ (ages - ages @ shares) ** 2
    return math.sqrt(float(variance)) / (len(ages) - 1)


def moving_average(values: ArrayLike, window: int) -> Floats:
    """The mean of the last ``window`` values (of all so far, while there are fewer): the sliding family.

    ``values`` has shape (T,) or (T, k); so has the result.  A value that is not finite, or huge, reaches no further
    than the windows that hold it.

    Raises:
        ValueError: if ``window`` is below 1, or for values of another shape.
    """
    if not is_real(window) or not 1 <= window < math.inf or int(window) != window:
        raise ValueError(f"window must be a whole number of at least 1, got {shown(window)}")
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim not in (1, 2):
        raise ValueError(f"values must have shape (T,) or (T, k), got {numbers.shape}")
    if not len(numbers):
        return numbers.copy()
    # Cut into blocks of a window's length, a window is the end of one block and the beginning of the next: sums alone,
    # since in a difference of running sums every value stays for good.
    length = min(int(window), len(numbers))
    blocks = -(-len(numbers) // length)
    shape = (blocks, length, *numbers.shape[1:])
    padded = np.zeros((blocks * length, *numbers.shape[1:]))
    padded[: len(numbers)] = numbers
    with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
        beginnings = np.cumsum(padded.reshape(shape), axis=1).reshape(padded.shape)[: len(numbers)]
        ends = np.cumsum(padded.reshape(shape)[:, ::-1], axis=1)[:, ::-1].reshape(padded.shape)
        sums = beginnings.copy()
        last = np.arange(length, len(numbers))
        last = last[(last + 1) % length != 0]  # those that end with a block are a whole one
        sums[last] += ends[last - length + 1]
    counts = np.minimum(np.arange(1, len(numbers) + 1), length).reshape(-1, *[1] * (numbers.ndim - 1))
    return np.asarray(sums / counts)


def vanishing(product: float) -> float:
    """A product of many decays; 0 where a float has fewer digits for it, and rounding stops its fall: 0.9 times 5e-324
    is 5e-324."""
    return product if product >= np.finfo(np.float64).tiny else 0.0


def checked_decays(decays: ArrayLike) -> Floats:
    """``decays`` as float64 of shape (T,).

    Raises:
        ValueError: if it has another shape or holds a number outside [0, 1].
        TypeError: if it holds what is no number.
    """
    try:
        rates = np.asarray(decays, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"decays must be numbers, shape (T,), such as Constant(beta=0.99).decays(1000), got {decays!r:.200}"
        ) from error
    if rates.ndim != 1:
        raise ValueError(f"decays must have shape (T,), got {rates.shape}")
    if rates.size and not (rates.min() >= 0 and rates.max() <= 1):  # so written, a NaN fails too
        bad = np.flatnonzero(~((rates >= 0) & (rates <= 1)))[0]
        raise ValueError(f"decays must be in [0, 1], but decays[{bad}] is {float(rates[bad])!r}")
    return rates


def _products_after(rates: Floats) -> Floats:
    """``result[..., s]``: the product of all rates after s.  Built from the end, so it only ever shrinks towards 0."""
    result = np.ones(rates.shape)
    result[..., :-1] = np.cumprod(rates[..., :0:-1], axis=-1)[..., ::-1]
    result[result < np.finfo(np.float64).tiny] = 0.0  # as vanishing
    return result


def _end(rates: Floats, step: int) -> int:
    if not len(rates):
        raise ValueError("decays must be those of at least one call, got none")
    if isinstance(step, bool) or not isinstance(step, (int, np.integer)):
        raise TypeError(f"step must be a whole number, got {step!r}")
    if not -len(rates) <= step < len(rates):
        raise ValueError(f"step must be one of the {len(rates)} calls (or negative, from the end), got {shown(step)}")
    return int(step) % len(rates) + 1


def _ages(decays: ArrayLike, step: int) -> tuple[Floats, Floats]:
    """Ages, in steps, and weights of the initial average and of each call up to ``step``."""
    rates = checked_decays(decays)
    end = _end(rates, step)
    shares = np.concatenate([[initial_share(rates, end - 1)], weights(rates[:end])])
    return np.arange(end, -1, -1, dtype=np.float64), shares
