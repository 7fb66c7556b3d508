"""Seeded synthetic sequences: a clean part, and the noise on top of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are loaded where they are used
from numpy.typing import ArrayLike, NDArray

from emacore.averaging.families import Constant
from emacore.averaging.filters import variance_gain
from emacore.averaging.schedules import LARGEST_DECAY
from emacore.averaging.weights import recursion, weights
from emacore.checks import check_whole

Floats = NDArray[np.float64]

SIGNALS = ("constant", "step", "ramp", "sine", "chirp", "random walk", "converging")
NOISES = ("none", "white", "AR(1)", "heavy-tailed", "spikes")


class Sequence(NamedTuple):
    """``clean`` and ``noisy``, each float64, shape (T,) or (T, k)."""

    clean: Floats
    noisy: Floats


def sequence(
    signal: str = "step",
    noise: str = "white",
    length: int = 1000,
    seed: int = 0,
    *,
    noise_level: float = 0.3,
    period: float = 200.0,
    autocorrelation: float = 0.9,
) -> Sequence:
    """One synthetic sequence, of about unit size.

    Args:
        signal: One of ``SIGNALS``.  "step" rises from 0 to 1 at a quarter of the length, "ramp" rises from 0 to 1 over
            it, "chirp" sweeps from ``period`` down to a tenth of it, "converging" approaches 1 as 1 - exp(-8 t / T).
        noise: One of ``NOISES``; all but "none" have standard deviation ``noise_level``.
        length: Number of steps T, at least 1.
        seed: The same seed gives the same sequence.
        noise_level: Standard deviation of the noise.
        period: Steps per cycle of "sine", and of the start of "chirp"; at least 2.
        autocorrelation: Of "AR(1)" noise at lag 1, in (-1, 1).

    Raises:
        ValueError: if an argument is outside what is said above.
    """
    check_whole("length", length, 1)
    if not period >= 2:
        raise ValueError(f"period must be at least 2 steps, got {period!r}")
    if not noise_level >= 0:
        raise ValueError(f"noise_level must be at least 0, got {noise_level!r}")
    # Two streams, so that changing the noise leaves a random signal as it is.
    of_signal, of_noise = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    clean = _clean(signal, length, period, of_signal)
    return Sequence(clean, clean + noise_level * unit_noise(noise, length, of_noise, autocorrelation))


def _clean(signal: str, length: int, period: float, rng: np.random.Generator) -> Floats:
    t = np.arange(length, dtype=np.float64)
    match signal:
        case "constant":
            return np.ones(length)
        case "step":
            return (t >= length // 4).astype(np.float64)
        case "ramp":
            return t / max(length - 1, 1)
        case "sine":
            return np.sin(2 * np.pi * t / period)
        case "chirp":
            return np.asarray(scipy.signal.chirp(t, 1 / period, max(length - 1, 1), min(10 / period, 0.5), phi=-90))
        case "random walk":
            return np.cumsum(rng.standard_normal(length)) / math.sqrt(length)
        case "converging":
            return -np.expm1(-8 * t / length)
        case _:
            raise ValueError(f"signal must be one of {', '.join(SIGNALS)}; got {signal!r}")


def unit_noise(noise: str, length: int, rng: np.random.Generator, autocorrelation: float = 0.9) -> Floats:
    """Stationary noise of mean 0 and standard deviation 1 (0 for "none"), shape (length,).

    "heavy-tailed" is Student's t with 3 degrees of freedom; "spikes" are jumps of random sign at 2 % of the steps.
    """
    match noise:
        case "none":
            return np.zeros(length)
        case "white":
            return rng.standard_normal(length)
        case "AR(1)":
            return _autoregressive(rng.standard_normal(length), autocorrelation)
        case "heavy-tailed":
            return rng.standard_t(3, length) / math.sqrt(3)
        case "spikes":
            rate = 0.02
            return rng.choice([-1.0, 0.0, 1.0], length, p=[rate / 2, 1 - rate, rate / 2]) / math.sqrt(rate)
        case _:
            raise ValueError(f"noise must be one of {', '.join(NOISES)}; got {noise!r}")


def _autoregressive(white: Floats, coefficient: float) -> Floats:
    """AR(1) of unit variance, in its stationary state from the first step on."""
    if not -1 < coefficient < 1:
        raise ValueError(f"autocorrelation must be in (-1, 1), got {coefficient!r}")
    driven = math.sqrt(1 - coefficient**2) * white
    driven[0] = white[0]
    return recursion(coefficient, driven)


def sgd_on_quadratic(
    curvatures: ArrayLike = (1.0, 0.1),
    learning_rate: float = 0.1,
    gradient_noise: float = 1.0,
    num_steps: int = 1000,
    seed: int = 0,
    start: ArrayLike = 1.0,
) -> Sequence:
    """SGD on ``loss(w) = sum(curvatures * w**2) / 2`` whose gradients carry white noise.

    ``w_{t+1} = (1 - learning_rate * curvature) w_t - learning_rate * noise``: each direction is AR(1) with coefficient
    ``1 - learning_rate * curvature``.  ``clean`` is the path without noise.

    Args:
        curvatures: Shape (k,), each above 0.
        learning_rate: Above 0.  From ``2 / max(curvatures)`` on the iterates diverge.
        gradient_noise: Standard deviation of the noise in each direction of the gradient.
        num_steps: Number of iterates T, the start included.
        start: The first iterate: a number, or shape (k,).

    Returns:
        The iterates: ``clean`` and ``noisy``, shape (T, k).
    """
    check_whole("num_steps", num_steps, 1)
    curves = _checked_curvatures(curvatures, learning_rate)
    driven = np.zeros((num_steps, 2, len(curves)))
    driven[0] = start
    noise = np.random.default_rng(seed).standard_normal((num_steps - 1, len(curves)))
    driven[1:, 1] = -learning_rate * gradient_noise * noise
    paths = np.stack([recursion(1 - learning_rate * c, driven[..., i]) for i, c in enumerate(curves)], axis=-1)
    return Sequence(clean=paths[:, 0], noisy=paths[:, 1])


def quadratic_loss(curvatures: ArrayLike, places: ArrayLike) -> float:
    """``sum(curvatures * w**2) / 2`` at one place ``w``, shape (k,)."""
    return float(np.asarray(places, dtype=np.float64) ** 2 @ np.atleast_1d(curvatures) / 2)


class FinalLoss(NamedTuple):
    """Expected loss of a final average in two parts, which add: what is left of the start, and what the noise does."""

    bias: Floats
    variance: Floats

    @property
    def total(self) -> Floats:
        return self.bias + self.variance


def final_moments(
    curvatures: ArrayLike,
    learning_rate: float,
    gradient_noise: float,
    num_steps: int,
    decays: ArrayLike,
    start: ArrayLike = 1.0,
) -> tuple[Floats, Floats]:
    """Mean and variance, in each direction, of the average of the ``num_steps`` iterates of :func:`sgd_on_quadratic`.

    The average begins as a copy of the first iterate and keeps a constant decay b from there on, as
    ``Constant(b).decays(num_steps)`` says.  With ``a = 1 - learning_rate * curvature``, ``n = num_steps - 1`` and
    ``D_m = (b^m - a^m) / (b - a)``, the sum of ``b^(m-1-k) a^k`` over k < m:

        mean = start * (b^n + (1 - b) a D_n)
        variance = (learning_rate * gradient_noise * (1 - b))^2 * (D_1^2 + ... + D_n^2)

    The first is the average of the path without noise.  The second follows because the noise of step j reaches the
    average with the factor ``learning_rate * (1 - b) * D_(n-j)``.  It holds for every rate, diverging ones included.

    Args:
        curvatures, learning_rate, gradient_noise, num_steps, start: As there.
        decays: Numbers in [0, 1], of any shape (d...).  0 is the last iterate itself.

    Returns:
        Two arrays of shape (d..., k), infinite where they are too large for a float.

    Raises:
        ValueError: if a decay is outside [0, 1], or ``sgd_on_quadratic`` would raise.
    """
    check_whole("num_steps", num_steps, 1)
    curves = _checked_curvatures(curvatures, learning_rate)
    b = np.asarray(decays, dtype=np.float64)[..., np.newaxis]
    if not np.all((b >= 0) & (b <= 1)):
        raise ValueError(f"decays must be in [0, 1], got {np.asarray(decays).tolist()}")
    a, b = np.broadcast_arrays(1 - learning_rate * curves, b)
    first = np.broadcast_to(np.asarray(start, dtype=np.float64), curves.shape)
    with np.errstate(over="ignore", invalid="ignore"):
        power, last, squares = _geometric_sums(a, b, num_steps - 1)
        share = np.where(b == 1, 1.0, power + (1 - b) * a * last)
        # What is no number here came of two that are too large, which only diverging rates have.
        mean = np.where(first == 0, 0.0, first * np.where(np.isfinite(share), share, np.inf))
        variance = (learning_rate * gradient_noise * (1 - b)) ** 2 * np.where(np.isfinite(squares), squares, np.inf)
    return mean, np.where((b == 1) | (gradient_noise == 0), 0.0, variance)


def _geometric_sums(a: Floats, b: Floats, count: int) -> tuple[Floats, Floats, Floats]:
    """``b^n``, ``D_n`` and ``D_1^2 + ... + D_n^2`` for n = ``count``, with D as in :func:`final_moments`.

    Built by doubling, from ``D_(m+l) = b^l D_m + a^m D_l``: about log2(n) rounds, none of which divides by b - a, so
    nothing cancels where the two are close.
    """
    one, zero = np.ones(a.shape), np.zeros(a.shape)
    # Of m terms: a^m, b^m, D_m, and the sums over i <= m of b^(2i), of b^i D_i and of D_i^2.
    total: tuple[Floats, ...] = (one, one, zero, zero, zero, zero)
    block: tuple[Floats, ...] = (a, b, one, b**2, b, one)
    while count:
        if count % 2:
            total = _joined(total, block)
        count //= 2
        block = _joined(block, block)
    return total[1], total[2], total[5]


def _joined(first: tuple[Floats, ...], then: tuple[Floats, ...]) -> tuple[Floats, ...]:
    """The sums over m + l terms, from those over the first m and over l."""
    a_m, b_m, d_m, bb_m, bd_m, dd_m = first
    a_l, b_l, d_l, bb_l, bd_l, dd_l = then
    return (
        a_m * a_l,
        b_m * b_l,
        b_l * d_m + a_m * d_l,
        bb_m + b_m**2 * bb_l,
        bd_m + b_m * (d_m * bb_l + a_m * bd_l),
        dd_m + d_m**2 * bb_l + 2 * d_m * a_m * bd_l + a_m**2 * dd_l,
    )


def final_loss(
    curvatures: ArrayLike,
    learning_rate: float,
    gradient_noise: float,
    num_steps: int,
    decays: ArrayLike,
    start: ArrayLike = 1.0,
) -> FinalLoss:
    """Expected loss of that average: ``sum(curvature * mean**2) / 2`` and the same of the variance.

    Arguments and errors are those of :func:`final_moments`; both parts have the shape of ``decays``.
    """
    curves = np.atleast_1d(np.asarray(curvatures, dtype=np.float64))
    mean, variance = final_moments(curves, learning_rate, gradient_noise, num_steps, decays, start)
    with np.errstate(over="ignore"):
        return FinalLoss(bias=mean**2 @ curves / 2, variance=variance @ curves / 2)


def simulated_final_losses(
    curvatures: ArrayLike,
    learning_rate: float,
    gradient_noise: float,
    num_steps: int,
    decays: ArrayLike,
    start: ArrayLike = 1.0,
    *,
    runs: int = 1000,
    seed: int = 0,
) -> Floats:
    """The loss of that average in so many simulated runs, which differ in their noise: shape (runs, d...).

    The same noise for every decay, so that decays can be compared run by run.
    """
    check_whole("num_steps", num_steps, 1)
    curves = _checked_curvatures(curvatures, learning_rate)
    wanted = np.asarray(decays, dtype=np.float64)
    first = np.broadcast_to(np.asarray(start, dtype=np.float64), curves.shape)
    shares = np.array([weights(Constant(float(decay)).decays(num_steps)) for decay in wanted.ravel()])
    rng = np.random.default_rng(seed)
    losses = np.zeros((wanted.size, runs))
    with np.errstate(over="ignore", invalid="ignore"):
        for curve, begin in zip(curves, first, strict=True):
            driven = np.full((num_steps, runs), begin)
            driven[1:] = -learning_rate * gradient_noise * rng.standard_normal((num_steps - 1, runs))
            path = recursion(1 - learning_rate * curve, driven)
            losses += curve * (shares @ path) ** 2 / 2
    return np.where(np.isnan(losses), np.inf, losses).T.reshape(runs, *wanted.shape)


def stationary_variance(curvatures: ArrayLike, learning_rate: float, gradient_noise: float) -> Floats:
    """Variance of SGD's iterates around the minimum in each direction: ``lr^2 s^2 / (1 - (1 - lr c)^2)``; infinite
    where ``learning_rate * curvature`` is 2 or more, since SGD does not come to rest there.

    Raises:
        ValueError: if a curvature or the learning rate is not above 0, or the noise is below 0.
    """
    curves = _checked_curvatures(curvatures, learning_rate)
    if not gradient_noise >= 0:
        raise ValueError(f"gradient_noise must be at least 0, got {gradient_noise!r}")
    rate = learning_rate * curves
    with np.errstate(divide="ignore", invalid="ignore"):
        # lr^2 / (lr c) as lr / c, which is a number where lr c is none.
        variance = learning_rate / curves * gradient_noise**2 / (2 - rate)
    return np.where(rate < 2, variance, np.inf)


def stationary_loss(
    curvatures: ArrayLike, learning_rate: float, gradient_noise: float, beta: float | None = None
) -> float:
    """Expected loss of SGD's iterates around the minimum, or, given ``beta``, of their average of that decay.

    ``sum(curvature * variance) / 2``; averaging multiplies each direction's variance by the gain of the filter for
    AR(1) noise of coefficient ``1 - learning_rate * curvature``.  Infinite, averaged or not, where that variance is.

    Raises:
        ValueError: as :func:`stationary_variance`, or if ``beta`` is outside [0, 1).
    """
    curves = np.atleast_1d(np.asarray(curvatures, dtype=np.float64))
    variances = stationary_variance(curves, learning_rate, gradient_noise)
    if beta is not None:
        variance_gain(beta)  # a beta out of range is refused whatever the variances
        settled = np.flatnonzero(np.isfinite(variances))
        gains = [variance_gain(beta, _coefficient(learning_rate * float(curves[n]))) for n in settled]
        variances[settled] *= gains
    return float(curves @ variances / 2)


def _coefficient(rate: float) -> float:
    """``1 - rate`` of AR(1), kept below 1 where the rate is lost beside it."""
    return min(1 - rate, LARGEST_DECAY)


def _checked_curvatures(curvatures: ArrayLike, learning_rate: float) -> Floats:
    curves = np.atleast_1d(np.asarray(curvatures, dtype=np.float64))
    if not np.all(curves > 0):
        raise ValueError(f"curvatures must be above 0, got {curves.tolist()}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be above 0, got {learning_rate!r}")
    return curves
