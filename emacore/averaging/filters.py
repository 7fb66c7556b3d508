"""An average seen as a filter: frequency response, cut-off, delay, variance gain, and conversions of its memory.

All formulas hold for a constant decay ``beta``: ``y_t = beta * y_{t-1} + (1 - beta) * x_t``, the one-pole low-pass
filter.  They are derived from its transfer function ``H(z) = (1 - beta) / (1 - beta / z)``.  Frequencies are in
cycles per step, from 0 to 0.5; delays, half-lives and windows are in steps.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: Below this decay the filter passes every frequency with more than half its power, so it has no -3 dB point.
SMALLEST_BETA_WITH_CUTOFF = 3 - math.sqrt(8)


def frequency_response(beta: float, frequency: ArrayLike) -> NDArray[np.complex128]:
    """``(1 - beta) / (1 - beta * exp(-2 pi i f))``: complex, in the shape of ``frequency`` (cycles per step)."""
    _check_beta(beta)
    omega = 2 * np.pi * np.asarray(frequency, dtype=np.float64)
    return np.asarray((1 - beta) / (1 - beta * np.exp(-1j * omega)))


def cutoff_frequency(beta: float) -> float | None:
    """The frequency, in cycles per step, where the power has halved (-3 dB); ``None`` where there is none.

    ``cos(2 pi f) = 1 - (1 - beta)^2 / (2 beta)``, which has a solution from beta = 3 - sqrt(8) = 0.1716 on.
    """
    _check_beta(beta)
    if beta < SMALLEST_BETA_WITH_CUTOFF:
        return None
    # 1 - cos(w) = 2 sin(w/2)^2 keeps the digits where the cut-off is low.
    return math.asin(min((1 - beta) / (2 * math.sqrt(beta)), 1.0)) / math.pi


def group_delay(beta: float, frequency: ArrayLike = 0.0) -> Floats:
    """Steps by which the envelope of a signal comes out late: ``b (cos w - b) / (1 - 2 b cos w + b^2)``.

    At frequency 0 it is ``beta / (1 - beta)``, the mean age of the weights.
    """
    _check_beta(beta)
    # 1 - cos(w) = 2 sin(w/2)^2 keeps the digits where beta is near 1.
    less = 2 * np.sin(np.pi * np.asarray(frequency, dtype=np.float64)) ** 2
    return np.asarray(beta * ((1 - beta) - less) / ((1 - beta) ** 2 + 2 * beta * less))


def impulse_response(beta: float, ages: ArrayLike) -> Floats:
    """The weights of values of these ages (steps): ``(1 - beta) * beta ** age``, in their shape."""
    _check_beta(beta)
    return np.asarray((1 - beta) * beta ** np.asarray(ages, dtype=np.float64))


def step_response(beta: float, values: ArrayLike) -> Floats:
    """The answers, from a zero start, to so many values that are 1: ``1 - beta ** values``, in their shape."""
    _check_beta(beta)
    return np.asarray(1 - beta ** np.asarray(values, dtype=np.float64))


def variance_gain(beta: float, autocorrelation: float = 0.0) -> float:
    """Variance of the average of stationary noise, divided by the variance of that noise.

    White noise: ``(1 - beta) / (1 + beta)``.  Noise whose autocorrelation at lag k is ``rho ** k`` (AR(1)): that times
    ``(1 + beta rho) / (1 - beta rho)``, from summing ``rho ** |i - j|`` over the weights of both lags.
    """
    _check_beta(beta)
    if not -1 < autocorrelation < 1:
        raise ValueError(f"autocorrelation must be in (-1, 1), got {autocorrelation!r}")
    white = (1 - beta) / (1 + beta)
    return white * (1 + beta * autocorrelation) / (1 - beta * autocorrelation)


def moving_average_variance_gain(window: int, autocorrelation: float = 0.0) -> float:
    """:func:`variance_gain` of the plain mean of ``window`` neighbours: 1 / window for white noise.

    AR(1): ``[N (1 - rho^2) - 2 rho (1 - rho^N)] / [N^2 (1 - rho)^2]``, from summing ``rho ** |i - j|`` over the window.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window!r}")
    rho = autocorrelation
    if not -1 < rho < 1:
        raise ValueError(f"autocorrelation must be in (-1, 1), got {rho!r}")
    return (window * (1 - rho**2) - 2 * rho * (1 - rho**window)) / (window**2 * (1 - rho) ** 2)


def moving_average_response(window: int, frequency: ArrayLike) -> NDArray[np.complex128]:
    """Frequency response of the plain mean of the last ``window`` values; complex, frequencies in cycles per step."""
    f = np.asarray(frequency, dtype=np.float64)
    # numpy's sinc has the pi inside; sinc(N f) / sinc(f) is the Dirichlet kernel without its 0/0 at f = 0.
    return np.asarray(np.sinc(window * f) / np.sinc(f) * np.exp(-1j * np.pi * f * (window - 1)))


def window_of_equal_noise(beta: float, autocorrelation: float = 0.0) -> int:
    """The moving-average window whose variance gain comes closest to that of the average of decay ``beta``.

    For white noise it is :func:`equivalent_window`; for AR(1) noise it is found by bisection.
    """
    target = variance_gain(beta, autocorrelation)

    def gain(window: int) -> float:
        return moving_average_variance_gain(window, autocorrelation)

    found = []
    # Of noise that changes its sign from step to step, even windows are calmer than the odd ones beside them.
    for first in (1, 2):
        low, high = 0, 1
        while gain(first + 2 * high) > target:
            low, high = high, high * 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if gain(first + 2 * middle) > target else (low, middle)
        found += [first + 2 * low, first + 2 * high]
    return min(sorted(found), key=lambda window: abs(gain(window) - target))


def half_life(beta: float) -> float:
    """Steps after which a value has half its first weight: ``log(1/2) / log(beta)``; 0 for beta 0, infinite for 1."""
    return time_constant(beta) * math.log(2)


def half_lives(decays: ArrayLike) -> Floats:
    """:func:`half_life` of each of many decays, in their shape."""
    with np.errstate(divide="ignore"):
        return np.asarray(math.log(2) / np.abs(np.log(np.asarray(decays, dtype=np.float64))))


def decay_from_half_life(steps: float) -> float:
    """The decay whose half-life is ``steps``; the inverse of :func:`half_life`."""
    return decay_from_time_constant(steps / math.log(2))


def time_constant(beta: float) -> float:
    """Steps after which a value has 1/e of its first weight: ``-1 / log(beta)``; 0 for beta 0, infinite for 1."""
    _check_beta(beta, one_allowed=True)
    if beta == 0:
        return 0.0
    return math.inf if beta == 1 else -1 / math.log(beta)


def decay_from_time_constant(steps: float) -> float:
    """The decay whose time constant is ``steps``; the inverse of :func:`time_constant`."""
    if not steps >= 0:
        raise ValueError(f"steps must be at least 0, got {steps!r}")
    return math.exp(-1 / steps) if steps > 0 else 0.0


def equivalent_window(beta: float) -> float:
    """The moving-average window of equal delay and, for white noise, equal variance: ``(1 + b) / (1 - b)``."""
    _check_beta(beta, one_allowed=True)
    return math.inf if beta == 1 else (1 + beta) / (1 - beta)


def decay_from_window(window: float) -> float:
    """The decay that matches a moving average of ``window`` steps; the inverse of :func:`equivalent_window`."""
    if not window >= 1:
        raise ValueError(f"window must be at least 1, got {window!r}")
    return 1.0 if math.isinf(window) else (window - 1) / (window + 1)


def _check_beta(beta: float, *, one_allowed: bool = False) -> None:
    if not (0 <= beta < 1 or (one_allowed and beta == 1)):
        raise ValueError(f"beta must be in [0, 1{']' if one_allowed else ')'}, got {beta!r}")
