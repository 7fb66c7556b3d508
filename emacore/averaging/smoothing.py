"""The ways in which people smooth a curve of metrics, by name: trackers' own, pandas', and the plain averages.

A :class:`Smoothing` smooths values at places (steps, or seconds), and says what it does to slow and fast changes, in
the unit of the places.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy  # whose parts are loaded where they are used
from numpy.typing import ArrayLike, NDArray

from emacore.averaging import filters
from emacore.averaging.families import Constant
from emacore.averaging.schedules import Schedule
from emacore.averaging.trackers import (
    LARGEST_WANDB_WEIGHT,
    VIEWPORT_SCALE,
    halflife_decays,
    smoothed,
    tensorboard_decays,
    wandb_decays,
)
from emacore.averaging.weights import average, moving_average
from emacore.checks import check_unit, check_whole
from emacore.formatting import number, percent, plain

Floats = NDArray[np.float64]


class Way(NamedTuple):
    """A way to smooth: its name for people, what its number is called and may be, and what it acts on."""

    label: str
    number: str
    low: float
    high: float
    default: float
    by_distance: bool
    about: str


#: By the names that the command line has for them.
WAYS = {
    "tensorboard": Way(
        "TensorBoard",
        "Smoothing",
        0.0,
        0.999,
        0.6,
        False,
        "A debiased EMA from value to value: BiasCorrected(beta=smoothing).",
    ),
    "wandb": Way(
        "Weights & Biases",
        "Smoothing",
        0.0,
        0.999,
        0.6,
        True,
        "Its time-weighted EMA: a value keeps min(sqrt(smoothing), 0.999) to the power of the viewport scale times the "
        "share of the x-axis that was passed; debiased.",
    ),
    "pandas": Way(
        "pandas ewm, half-life",
        "Half-life",
        1e-9,
        1e15,
        100.0,
        True,
        "ewm(halflife=, times=): what is left of a value halves with each half-life of distance in x.",
    ),
    "first": Way(
        "EMA from the first value",
        "Decay",
        0.0,
        0.9999999,
        0.9,
        False,
        "It begins as a copy of the first value, and goes on from value to value.",
    ),
    "zero": Way(
        "EMA from zero", "Decay", 0.0, 0.9999999, 0.9, False, "It begins at 0, so its first values are too small."
    ),
    "moving-average": Way(
        "Moving average",
        "Window",
        1.0,
        1e7,
        10.0,
        False,
        "The mean of the last so many values; of all so far, while there are fewer.",
    ),
}


class Settled(NamedTuple):
    """What a smoothing does once it has settled, where values stand ``distance`` apart; in the unit of x.

    Attributes:
        distance: The usual distance of two values: the median.
        decay: From one value to the next over that distance; NaN of a moving average.
        half_life: After which a value has half of its weight; NaN of a moving average.
        lag: By which slow changes come out late.
        cutoff: The frequency, in cycles per unit of x, from which on less than half of the power is left; ``None``
            where more is left of all.
        noise: What is left of the standard deviation of white noise: a share.
    """

    distance: float
    decay: float
    half_life: float
    lag: float
    cutoff: float | None
    noise: float

    @property
    def times(self) -> dict[str, float]:
        """What a picture over the age of values marks: the lag, and the half-life where there is one."""
        return {"lag": self.lag} | ({} if math.isnan(self.half_life) else {"half-life": self.half_life})

    @property
    def answer_times(self) -> dict[str, float]:
        """What a picture of the answer to a jump marks, over the time since its first value, which answers at once: the
        lag, and where half of it has come, unless the first value brings more."""
        half = self.half_life - self.distance
        return {"lag": self.lag} | ({"half of the jump": half} if half >= 0 else {})

    @property
    def frequencies(self) -> dict[str, float]:
        """What a picture over frequency marks: the cut-off, where there is one."""
        return {} if self.cutoff is None else {"cut-off, -3 dB": self.cutoff}

    def in_words(self, unit: str) -> str:
        """Lag, half-life and cut-off in a sentence, counted in this unit."""
        parts = [f"slow changes come out {plain(self.lag)} late (in {unit})"]
        if not math.isnan(self.half_life):
            parts.append(f"half-life {plain(self.half_life)}")
        cutoff = "no cut-off" if self.cutoff is None else f"cut-off at one cycle in {number(_turned(self.cutoff))}"
        return f"{', '.join([*parts, cutoff])}, {percent(self.noise)} of white noise left"


def _turned(value: float) -> float:
    return 1 / value if value else math.inf


@dataclass(frozen=True)
class Smoothing:
    """One of :data:`WAYS` with its number, or a schedule whose decays act from value to value.

    Args:
        way: Its name in ``WAYS``, or "schedule".
        amount: Its number; a window is a whole one.
        viewport_scale: Of "wandb": by how much the share of the x-axis is multiplied.
        schedule: Of "schedule".

    Raises:
        ValueError: for another name, or a number out of range.
    """

    way: str
    amount: float = 0.0
    viewport_scale: float = VIEWPORT_SCALE
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        match self.way:
            case "schedule":
                if self.schedule is None:
                    raise ValueError("the way 'schedule' needs a schedule")
            case "tensorboard":
                tensorboard_decays(self.amount, 1)
            case "wandb":
                wandb_decays([0.0], self.amount, viewport_scale=self.viewport_scale)
            case "pandas":
                halflife_decays([0.0], self.amount)
            case "first" | "zero":
                check_unit("decay", self.amount)
            case "moving-average":
                if self.amount != round(self.amount):
                    raise ValueError(f"window must be a whole number of at least 1, got {self.amount!r}")
                check_whole("window", int(self.amount), 1)
            case _:
                raise ValueError(f"way must be one of {', '.join(WAYS)}, schedule; got {self.way!r}")

    @property
    def by_distance(self) -> bool:
        """Whether it acts on distances in x, which must not decrease then, or from value to value."""
        return self.way in WAYS and WAYS[self.way].by_distance

    def smooth(self, values: ArrayLike, places: ArrayLike, x_range: float | None = None) -> Floats:
        """Smooth values, shape (T,), at places, shape (T,); what is not finite stays as it is and counts for nothing.

        Args:
            x_range: What the x-axis spans, for "wandb"; by default these places.

        Raises:
            ValueError: if the places of finite values decrease or are not finite, where they act.
        """
        numbers, where = np.asarray(values, dtype=np.float64), np.asarray(places, dtype=np.float64)
        finite = np.isfinite(numbers)
        own, out = numbers[finite], numbers.copy()
        if not len(own):
            return out
        if self.way == "moving-average":
            out[finite] = moving_average(own, int(self.amount))
        elif self.way == "zero":
            out[finite] = average(own, np.full(len(own), self.amount), initial=0.0)
        else:
            return smoothed(numbers, self._decays(where[finite], x_range))
        return out

    def _decays(self, places: Floats, x_range: float | None) -> Floats:
        match self.way:
            case "tensorboard":
                return tensorboard_decays(self.amount, len(places))
            case "wandb":
                return wandb_decays(places, self.amount, x_range=x_range or None, viewport_scale=self.viewport_scale)
            case "pandas":
                return halflife_decays(places, self.amount)
        schedule = self.schedule if self.schedule is not None else Constant(self.amount)
        return schedule.decays(len(places))

    def settled(self, places: ArrayLike, x_range: float | None = None) -> Settled:
        """What it does at the usual distance of some places, shape (T,); a schedule with its last decay."""
        where = np.sort(np.asarray(places, dtype=np.float64))
        where = where[np.isfinite(where)]
        gaps = np.diff(where)
        distance = float(np.median(gaps[gaps > 0])) if np.any(gaps > 0) else 1.0
        if self.way == "moving-average":
            window = int(self.amount)
            return Settled(
                distance,
                math.nan,
                math.nan,
                (window - 1) / 2 * distance,
                _per(moving_average_cutoff(window), distance),
                math.sqrt(filters.moving_average_variance_gain(window)),
            )
        beta = self._decay(distance, x_range or float(np.ptp(where)) if len(where) > 1 else 1.0, len(where))
        if not beta < 1:
            return Settled(distance, beta, math.inf, math.inf, 0.0, 0.0)
        return Settled(
            distance,
            beta,
            filters.half_life(beta) * distance,
            float(filters.group_delay(beta)) * distance,
            _per(filters.cutoff_frequency(beta), distance),
            math.sqrt(filters.variance_gain(beta)),
        )

    def _decay(self, distance: float, span: float, count: int) -> float:
        """What a settled average keeps from one value to the next."""
        match self.way:
            case "wandb":
                kept = min(math.sqrt(self.amount), LARGEST_WANDB_WEIGHT)
                return float(kept ** (distance / (span or 1.0) * self.viewport_scale))
            case "pandas":
                return float(0.5 ** (distance / self.amount))
            case "schedule":
                assert self.schedule is not None
                every = self.schedule.update_every
                last = np.array([max(count - 1, 0) // every * every])
                return float(float(self.schedule.at(last)[0]) ** (1 / every))
        return self.amount

    def gain_table(self, settled: Settled) -> dict[str, Floats]:
        """Amplitude out by amplitude in, over the frequency in cycles per unit of x: frequency, gain."""
        low = 1e-4 if settled.cutoff is None else min(1e-4, settled.cutoff * settled.distance / 20)
        frequency = np.geomspace(max(low, 1e-9), 0.5, 2000)
        if self.way == "moving-average":
            gain = np.abs(filters.moving_average_response(int(self.amount), frequency))
        else:
            gain = np.abs(filters.frequency_response(min(settled.decay, 1 - 1e-12), frequency))
        return {"frequency": frequency / settled.distance, "gain": gain}

    def weight_table(self, settled: Settled, most: int = 2000) -> dict[str, Floats]:
        """What a value of each age weighs, once settled, and the answer to a jump: age (in the unit of x), weight,
        answer."""
        if self.way == "moving-average":
            window = int(self.amount)
            count = window + max(window // 5, 2)
        else:
            beta = min(settled.decay, 1 - 1e-15)
            count = int(max(20, 3 * filters.equivalent_window(beta)))
        shown = np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
        if self.way == "moving-average":
            shown = np.union1d(shown, [window - 1, window])
            weight, answer = np.where(shown < window, 1 / window, 0.0), np.minimum((shown + 1) / window, 1.0)
        else:
            weight, answer = filters.impulse_response(beta, shown), filters.step_response(beta, shown + 1)
        return {"age": shown * settled.distance, "weight": weight, "answer": answer}


def moving_average_cutoff(window: int) -> float | None:
    """The frequency, in cycles per value, where a plain mean of ``window`` values has half of the power (-3 dB);
    ``None`` of one value.

    The first root of ``|sin(pi N f) / (N sin(pi f))| = 1 / sqrt(2)``, which lies below ``1 / N``.
    """
    if window < 2:
        return None

    def above(frequency: float) -> float:
        return float(np.abs(filters.moving_average_response(window, frequency))) - math.sqrt(0.5)

    return float(scipy.optimize.brentq(above, 1e-12 / window, 1 / window, xtol=1e-16, rtol=1e-12))


def _per(frequency: float | None, distance: float) -> float | None:
    return None if frequency is None else frequency / distance
