"""How experiment trackers smooth the curves that they draw, as decays like those of every other average.

Each is a weighted mean in which older values fade: with ``a_t`` what a value of before keeps from one value to the
next, ``D_t = a_t D_{t-1} + 1`` is the sum of the weights, and ``1 - 1 / D_t`` the decay.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emacore.averaging.families import BiasCorrected
from emacore.averaging.weights import average, recursion

Floats = NDArray[np.float64]

#: What W&B's documentation calls VIEWPORT_SCALE without a number: 1,000 is taken for it.
VIEWPORT_SCALE = 1000.0
#: W&B takes the square root of its slider, and no more than this.
LARGEST_WANDB_WEIGHT = 0.999


def tensorboard_decays(smoothing: float, num_values: int) -> Floats:
    """Decays of TensorBoard's slider, shape (num_values,): a debiased average, ``BiasCorrected(beta=smoothing)``.

    Source: ``resmoothDataset`` in TensorBoard's ``line-chart.ts``.

    Raises:
        ValueError: if ``smoothing`` is outside [0, 1).
    """
    _check_smoothing(smoothing)
    return BiasCorrected(beta=smoothing).decays(num_values) if smoothing else np.zeros(num_values)


def wandb_decays(
    steps: ArrayLike, smoothing: float, *, x_range: float | None = None, viewport_scale: float = VIEWPORT_SCALE
) -> Floats:
    """Decays of Weights & Biases' time-weighted EMA, in the shape (T,) of ``steps``.

    A value keeps ``min(sqrt(smoothing), 0.999) ** (distance / x_range * viewport_scale)`` over a distance in x.
    Source: docs.wandb.ai, "Smooth line plots"; ``viewport_scale`` is named there and has no number.

    Args:
        steps: x of each value, not decreasing.
        smoothing: The slider, in [0, 1).
        x_range: What the chart's x-axis spans; by default from the first step to the last.
        viewport_scale: By how much the share of the x-axis is multiplied.

    Raises:
        ValueError: if the steps decrease or are not finite, or a number is out of range.
    """
    _check_smoothing(smoothing)
    distances = _distances(steps)
    span = float(distances.sum()) if x_range is None else x_range
    if not (span > 0 or x_range is None) or not viewport_scale > 0:
        raise ValueError(f"x_range and viewport_scale must be above 0, got {x_range!r} and {viewport_scale!r}")
    shares = distances / span if span else distances
    return _faded(min(np.sqrt(smoothing), LARGEST_WANDB_WEIGHT) ** (shares * viewport_scale))


def halflife_decays(steps: ArrayLike, halflife: float) -> Floats:
    """Decays of pandas' ``ewm(halflife=, times=)``, in the shape (T,) of ``steps``: what is left halves with each
    ``halflife`` of distance, in the unit of the steps.

    Raises:
        ValueError: if the steps decrease or are not finite, or ``halflife`` is not above 0.
    """
    if not halflife > 0:
        raise ValueError(f"halflife must be above 0, got {halflife!r}")
    return _faded(0.5 ** (_distances(steps) / halflife))


def smoothed(values: ArrayLike, decays: ArrayLike) -> Floats:
    """The average of the values that are finite, shape (T,); the others stand where they are and count for nothing.

    Args:
        values: Shape (T,).
        decays: Of the finite values alone, whose first is copied: shape (number of finite values,).
    """
    out = np.array(values, dtype=np.float64)
    finite = np.isfinite(out)
    if finite.any():
        out[finite] = average(out[finite], decays, out[finite][0])
    return out


def _faded(kept: Floats) -> Floats:
    if not len(kept):
        return kept
    return np.asarray(1 - 1 / recursion(kept, np.ones(len(kept))))


def _distances(steps: ArrayLike) -> Floats:
    """From each step's predecessor, 0 for the first."""
    places = np.asarray(steps, dtype=np.float64)
    if places.ndim != 1 or not np.all(np.isfinite(places)):
        raise ValueError("steps must be finite numbers of shape (T,)")
    distances = np.diff(places, prepend=places[:1])
    if np.any(distances < 0):
        place = int(np.argmax(distances < 0))
        raise ValueError(
            f"steps must not decrease, got {places[place - 1]:g} before {places[place]:g}: sort them first"
        )
    return distances


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be in [0, 1), got {smoothing!r}")
