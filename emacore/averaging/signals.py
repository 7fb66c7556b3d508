"""Seeded synthetic sequences: a clean part, and the noise on top of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.signal import chirp, lfilter

from emacore.averaging.filters import variance_gain
from emacore.averaging.schedules import LARGEST_DECAY, check_whole

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
            return np.asarray(chirp(t, 1 / period, max(length - 1, 1), min(10 / period, 0.5), phi=-90))
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
    return np.asarray(lfilter([1.0], [1.0, -coefficient], driven))


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
    driven = np.zeros((2, num_steps, len(curves)))
    driven[:, 0] = start
    noise = np.random.default_rng(seed).standard_normal((num_steps - 1, len(curves)))
    driven[1, 1:] = -learning_rate * gradient_noise * noise
    paths = np.stack(
        [lfilter([1.0], [1.0, learning_rate * c - 1], driven[..., i], axis=1) for i, c in enumerate(curves)], axis=-1
    )
    return Sequence(clean=paths[0], noisy=paths[1])


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
        variance = (learning_rate * gradient_noise) ** 2 / (rate * (2 - rate))
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
