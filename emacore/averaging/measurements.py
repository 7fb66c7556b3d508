"""A filter's numbers read off sequences, to be put beside what the formulas predict."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are loaded where they are used
from numpy.typing import ArrayLike, NDArray

from emacore.averaging import filters
from emacore.averaging.signals import Sequence
from emacore.averaging.weights import average, start_share, vanishing, weights

Floats = NDArray[np.float64]


def variance_ratio(before: ArrayLike, after: ArrayLike, settled_from: int = 0) -> float:
    """Variance of the filtered noise over that of the noise, both from ``settled_from`` on.

    Both are taken around 0, the mean that the noise has by its making.  NaN where there is no noise to measure.
    """
    one, other = (np.asarray(part, dtype=np.float64)[settled_from:] for part in (before, after))
    power = float(np.mean(one**2)) if one.size else 0.0
    return float(np.mean(other**2)) / power if power > 0 else math.nan


def lag_of_ramp(clean: ArrayLike, filtered: ArrayLike) -> float:
    """By how many steps a rising line comes out late, at its end: vertical gap over slope."""
    x, y = np.asarray(clean, dtype=np.float64), np.asarray(filtered, dtype=np.float64)
    slope = x[-1] - x[-2]
    return float((x[-1] - y[-1]) / slope)


def lag_of_sine(clean: ArrayLike, filtered: ArrayLike, period: float, settled_from: int = 0) -> float:
    """By how many steps a sine comes out late: the phase between both at its frequency, over the settled part."""
    x, y = (np.asarray(part, dtype=np.float64)[settled_from:] for part in (clean, filtered))
    cycles = math.floor(len(x) / period)
    if cycles < 1:
        return math.nan
    steps = np.arange(round(cycles * period))
    carrier = np.exp(-2j * np.pi * steps / period)
    phase = np.angle((x[: len(steps)] @ carrier) / (y[: len(steps)] @ carrier))
    return float(phase / (2 * np.pi) * period % period)


def rise_time(filtered_step: ArrayLike, level: float = 0.5) -> float:
    """Steps until the answer to a unit step has reached ``level``, counted with its first step as 1, interpolated.

    NaN if it does not get there.
    """
    answer = np.concatenate([[0.0], np.asarray(filtered_step, dtype=np.float64)])
    above = np.flatnonzero(answer >= level)
    if not above.size:
        return math.nan
    end = int(above[0])
    if end == 0:
        return 0.0
    return end - 1 + float((level - answer[end - 1]) / (answer[end] - answer[end - 1]))


def spectra(before: ArrayLike, after: ArrayLike, segment: int = 512) -> tuple[Floats, Floats, Floats]:
    """Power spectral densities by Welch's method: frequency (cycles per step), before, after; frequency 0 left out."""
    length = min(segment, len(np.asarray(before)))
    frequency, one = scipy.signal.welch(before, nperseg=length, detrend="constant")
    _, other = scipy.signal.welch(after, nperseg=length, detrend="constant")
    return frequency[1:], one[1:], other[1:]


def cutoff(frequency: ArrayLike, before: ArrayLike, after: ArrayLike) -> float | None:
    """Where the measured power gain first falls to one half, in cycles per step; ``None`` if it does not.

    The power gain of a one-pole low-pass filter is ``1 / (1 + slope * sin(pi f)^2)``, and the cut-off lies where
    ``sin(pi f)^2 = 1 / slope``; the slope is fitted to all frequencies, since single ones of a spectrum are noisy.
    """
    f, one, other = (np.asarray(part, dtype=np.float64) for part in (frequency, before, after))
    usable = (one > 0) & (other > 1e-6 * one)
    x, g = np.sin(np.pi * f[usable]) ** 2, other[usable] / one[usable]
    if not x.size:
        return None
    # Least squares of g * (1 + slope * x) = 1, which keeps small, noisy gains from ruling the fit.
    slope = float(np.sum(g * x * (1 - g)) / np.sum((g * x) ** 2))
    if slope < 1:
        return None
    return math.asin(1 / math.sqrt(slope)) / math.pi


class Comparison(NamedTuple):
    """One quantity as a formula has it and as it was measured; NaN where it cannot be had, and the remark says why."""

    quantity: str
    predicted: float
    measured: float
    remark: str


def comparison(
    sequence: Sequence, beta: float, *, autocorrelation: float = 0.0, period: float | None = None
) -> list[Comparison]:
    """What the formulas predict of an average of decay ``beta``, beside what it does in this sequence.

    Args:
        sequence: Its noise is what its noisy part has more than the clean one.
        autocorrelation: Of that noise, from one step to the next.
        period: Of the clean part, if it is a sine; its lag is then that of the sine, else of a ramp.
    """
    steps = len(sequence.noisy)
    noise = sequence.noisy - sequence.clean
    has_noise = bool(noise.any())
    # After eight time constants a three-thousandth of the start is left.
    settled = min(round(8 * filters.time_constant(beta)), steps)
    long_enough = steps - settled >= max(50, 5 * filters.equivalent_window(beta))
    from_zero = np.full(steps, beta)
    too_short = "too few steps for it"
    rows: list[Comparison] = []

    def add(quantity: str, predicted: float | None, measured: float | None, remark: str, otherwise: str) -> None:
        known = measured is not None and math.isfinite(measured)
        values = [math.nan if value is None else value for value in (predicted, measured)]
        rows.append(Comparison(quantity, values[0], values[1], remark if known else otherwise))

    add(
        "variance of the noise, after / before",
        filters.variance_gain(beta, autocorrelation),
        variance_ratio(noise, average(noise, from_zero), settled) if long_enough else None,
        "in this noise, once settled",
        too_short if has_noise else "there is no noise",
    )
    if period is not None:
        add(
            "lag of the sine (steps)",
            float(-np.angle(filters.frequency_response(beta, 1 / period)) / (2 * np.pi) * period),
            lag_of_sine(sequence.clean, average(sequence.clean, from_zero), period, settled),
            "phase delay at its frequency",
            "too few whole cycles for it",
        )
    ramp = np.arange(steps, dtype=np.float64)
    add(
        "lag of slow changes (steps)",
        float(filters.group_delay(beta)),
        lag_of_ramp(ramp, average(ramp, from_zero)) if settled < steps else None,
        "of a ramp through this filter",
        too_short,
    )
    add(
        "half-life (steps)",
        filters.half_life(beta),
        rise_time(average(np.ones(steps), from_zero)) if beta >= 0.5 else None,
        "time to half of a jump",
        too_short if beta >= 0.5 else "shorter than one step",
    )
    add(
        "cut-off (cycles per step)",
        filters.cutoff_frequency(beta),
        cutoff(*spectra(noise, average(noise, from_zero))) if has_noise and steps >= 256 else None,
        "fitted to the spectra of this noise",
        too_short if has_noise else "there is no noise",
    )
    from_first = np.concatenate([[0.0], from_zero[1:]])
    left = vanishing(beta ** (steps - 1))
    add("share of the first value at the end", left, float(weights(from_first)[0]), "exact", "")
    add("share of a zero start at the end", vanishing(beta**steps), start_share(from_zero), "exact", "")
    return rows
