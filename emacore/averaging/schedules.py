"""Which decay at which call: the families of averaging schedules, and their inverses.

Number the calls of ``update()`` t = 0, 1, 2, ...  A schedule turns them into decays, and the average
follows ``average_t = decays[t] * average_{t-1} + (1 - decays[t]) * value_t``.  A decay of 0 copies the
value, a decay of 1 skips the call.

Every family shares two settings.  Calls that are not a multiple of ``update_every`` are skipped.  Calls up to
``update_after_step`` copy.  ``n`` counts the moves from 1 at the last of those copies, so ``n = 2`` is the
first real average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar

from emacore.averaging.filters import decay_from_half_life, half_life
from emacore.averaging.weights import relative_width
from emacore.checks import LARGEST, SMALLEST, check_positive, check_unit, check_whole, is_real, shown

Floats = NDArray[np.float64]

#: The largest relative width a power function can have: that of the running mean, 1 / sqrt(12).
MAX_SIGMA_REL = 1 / math.sqrt(12)
LARGEST_DECAY = 1 - 2.0**-53
#: Calls are counted in float64: so many, and sums of a few of them, exactly.
MOST_CALLS = 2**51
#: The longest run whose weights are all looked at for a relative width: 800 MB each time an array of them is made.
_MOST_WEIGHTS = 10**8


S = TypeVar("S", bound="Schedule")


@dataclass(frozen=True)
class Schedule:
    """Base of all families: which calls copy, which are skipped, and which move the average.

    Args:
        update_after_step: Calls up to and including this one copy the value (unit: calls, at least 0).
        update_every: Only every so many calls does anything happen (unit: calls, at least 1).
    """

    update_after_step: int = field(default=0, kw_only=True)
    update_every: int = field(default=1, kw_only=True)

    #: The setting that the solvers below vary.
    tuned: ClassVar[str] = "beta"

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, (np.integer, np.floating)):  # narrow ones overflow, and none can be read as code
                plain = int(value) if isinstance(value, np.integer) else float(value)
                object.__setattr__(self, setting.name, plain)
        check_whole("update_after_step", self.update_after_step, 0, MOST_CALLS)
        check_whole("update_every", self.update_every, 1, MOST_CALLS)

    @property
    def start(self) -> int:
        """The call of the last copy: the average begins there, whatever came before."""
        return self.update_after_step // self.update_every * self.update_every

    def decays(self, num_steps: int) -> Floats:
        """The decays of calls 0 to ``num_steps - 1``: float64, shape (num_steps,), each in [0, 1]."""
        check_whole("num_steps", num_steps, 0, MOST_CALLS)
        return self.at(np.arange(num_steps))

    def at(self, calls: ArrayLike) -> Floats:
        """The decays of the given call numbers: float64, in the shape of ``calls``."""
        numbers = np.asarray(calls)
        decays = np.ones(numbers.shape)
        acts = numbers % self.update_every == 0
        decays[acts & (numbers <= self.start)] = 0.0
        moves = acts & (numbers > self.start)
        decays[moves] = self._decay(numbers[moves].astype(np.float64))
        return decays

    def rule(self, call: int) -> float:
        """The rule's decay at one call, whether or not the call is skipped; 0 during the warm-up."""
        return float(self._decay(np.array([float(call)]))[0]) if call > self.update_after_step else 0.0

    def move_number(self, calls: Floats) -> Floats:
        """``n``: how many copies and moves there were by each call, counted from 1 at ``start``."""
        return np.asarray((calls - self.start) / self.update_every + 1)

    def reaches(self, decay: float) -> int | None:
        """The first call whose decay is at least ``decay``, skipped calls aside; ``None`` if none ever is.

        Raises:
            ValueError: if ``decay`` is not in (0, 1].
        """
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {decay!r}")
        first = self.start + self.update_every
        estimate = first if self._decay(np.array([float(first)]))[0] >= decay else self._call_reaching(decay)
        if not math.isfinite(estimate) or estimate > 2**53:
            return None
        # The closed form is exact only up to rounding, so its neighbours are looked at too.
        nearest = round(estimate / self.update_every) * self.update_every
        for call in range(max(nearest - self.update_every, first), nearest + 3 * self.update_every, self.update_every):
            if self._decay(np.array([float(call)]))[0] >= decay:
                return call
        return None

    def to_dict(self) -> dict[str, Any]:
        """The family's name and its settings, as plain values that JSON can hold."""
        return {"family": type(self).__name__, **asdict(self)}

    def _decay(self, calls: Floats) -> Floats:
        """The decays of calls after ``start`` that are multiples of ``update_every``."""
        raise NotImplementedError

    def _call_reaching(self, decay: float) -> float:
        """The call, as a real number, at which the decay has grown to ``decay``; infinity if it never does."""
        raise NotImplementedError

    def _call_of_move(self, move: float) -> float:
        return self.start + (move - 1) * self.update_every


@dataclass(frozen=True)
class InversePower(Schedule):
    """The article's rule, call by call: ``min(max(1 - (1 + e / inv_gamma) ** -power, min_value), beta)``.

    ``e = t - update_after_step`` counts *raw calls*, not moves.  With ``update_every = k`` each decay therefore
    reaches k times further back than the same number would at ``update_every = 1``: the first snapshots weigh
    far more than the formula suggests.  The first call after the warm-up copies (its effective decay is 0),
    and ``beta`` wins over ``min_value``.

    Source: the EMA warm-up of K. Crowson, as in the package ema-pytorch 0.2.

    Args:
        beta: Largest decay, in [0, 1].
        inv_gamma: Number of calls in which the warm-up takes its first bend; above 0.
        power: Exponent of the warm-up; above 0.
        min_value: Smallest decay, in [0, 1].
    """

    beta: float = 0.9999
    inv_gamma: float = 1.0
    power: float = 2 / 3
    min_value: float = 0.0
    update_after_step: int = field(default=100, kw_only=True)
    update_every: int = field(default=10, kw_only=True)

    tuned: ClassVar[str] = "power"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("beta", self.beta)
        check_positive("inv_gamma", self.inv_gamma)
        check_positive("power", self.power)
        check_unit("min_value", self.min_value)

    @property
    def start(self) -> int:
        """The first call after the warm-up that is a multiple of ``update_every``; it copies."""
        return (self.update_after_step // self.update_every + 1) * self.update_every

    def _decay(self, calls: Floats) -> Floats:
        exponent = calls - self.update_after_step
        # log1p and expm1 keep the digits of decays close to 0 and to 1.
        warm = -np.expm1(-self.power * np.log1p(exponent / self.inv_gamma))
        return np.minimum(np.maximum(warm, self.min_value), self.beta)

    def _call_reaching(self, decay: float) -> float:
        if decay > self.beta or decay == 1:
            return math.inf
        try:
            return self.update_after_step + self.inv_gamma * math.expm1(-math.log1p(-decay) / self.power)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Constant(Schedule):
    """The same decay at every move: ``beta``.  The copy at the start keeps ``beta ** (n - 1)`` of the average.

    With ``update_every = k`` the decay acts once in k calls, so the memory is k times longer.
    """

    beta: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("beta", self.beta)

    def _decay(self, calls: Floats) -> Floats:
        return np.full(calls.shape, self.beta)

    def _call_reaching(self, decay: float) -> float:
        return math.inf


@dataclass(frozen=True)
class BiasCorrected(Schedule):
    """A zero start divided by ``1 - beta ** n``, written as decays: ``beta * (1 - beta ** (n-1)) / (1 - beta ** n)``.

    Equal to ``pandas.Series.ewm(alpha=1 - beta, adjust=True).mean()`` over the moves.  Source: Kingma and Ba,
    "Adam", 2015, section 3; the step-by-step form follows from dividing two neighbouring corrected averages.
    """

    beta: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("beta", self.beta)

    def _decay(self, calls: Floats) -> Floats:
        n = self.move_number(calls)
        if self.beta == 0:
            return np.zeros(calls.shape)
        if self.beta == 1:
            return np.asarray(1 - 1 / n)
        log_beta = math.log(self.beta)
        return np.asarray(self.beta * np.expm1((n - 1) * log_beta) / np.expm1(n * log_beta))

    def _call_reaching(self, decay: float) -> float:
        # decay = beta (1 - beta^(n-1)) / (1 - beta^n), solved for beta^n.
        if self.beta == 1:
            return self._call_of_move(1 / (1 - decay)) if decay < 1 else math.inf
        if decay >= self.beta:  # it tends to beta from below
            return math.inf
        return self._call_of_move(math.log((self.beta - decay) / (1 - decay)) / math.log(self.beta))


@dataclass(frozen=True)
class RationalWarmup(Schedule):
    """``min((1 + n) / (10 + n), beta)``: the warm-up of TensorFlow's ``ExponentialMovingAverage`` and of torch_ema.

    Those two start from the weights before training and average the first update with decay 2/11; here the first
    update (``n = 1``) is the copy, and from ``n = 2`` on the numbers are theirs.  ``n`` counts moves, as theirs does.
    """

    beta: float = 0.9999

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("beta", self.beta)

    def _decay(self, calls: Floats) -> Floats:
        n = self.move_number(calls)
        return np.minimum((1 + n) / (10 + n), self.beta)

    def _call_reaching(self, decay: float) -> float:
        if decay > self.beta or decay == 1:
            return math.inf
        return self._call_of_move((10 * decay - 1) / (1 - decay))


@dataclass(frozen=True)
class ExponentialRamp(Schedule):
    """``beta * (1 - exp(-n / tau))``: the rule of the YOLO family of detection models.  ``n`` counts moves.

    Args:
        beta: The decay it tends to, in [0, 1].
        tau: Number of moves in which 63 % of it are reached; above 0.
    """

    beta: float = 0.9999
    tau: float = 2000.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("beta", self.beta)
        check_positive("tau", self.tau)

    def _decay(self, calls: Floats) -> Floats:
        return np.asarray(-self.beta * np.expm1(-self.move_number(calls) / self.tau))

    def _call_reaching(self, decay: float) -> float:
        if decay >= self.beta or decay / self.beta == 1:  # it tends to beta from below
            return math.inf
        return self._call_of_move(-self.tau * math.log1p(-decay / self.beta))


@dataclass(frozen=True)
class PowerFunction(Schedule):
    """``(1 - 1/n) ** (gamma + 1)``: an average whose memory grows with the run, so it has no time scale of its own.

    Give either ``gamma`` (at least 0; 0 is the running mean) or ``sigma_rel``, the standard deviation of the weights
    in time, as a share of the steps since ``start`` (in (0, 1/sqrt(12)]): of the whole run only where it starts at 0,
    and exactly so only after many moves.  :func:`with_relative_width` solves for a share of the whole run.  ``n``
    counts moves.

    Source: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2024, section 3.1
    and appendix C.
    """

    gamma: float | None = None
    sigma_rel: float | None = None

    tuned: ClassVar[str] = "gamma"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.gamma is None) == (self.sigma_rel is None):
            raise ValueError(
                f"give exactly one of gamma and sigma_rel, got gamma={self.gamma!r}, sigma_rel={self.sigma_rel!r}"
            )
        if self.gamma is not None:
            _check_gamma(self.gamma)
        if self.sigma_rel is not None:
            _check_sigma_rel(self.sigma_rel)

    @property
    def exponent(self) -> float:
        """``gamma``, whichever of the two was given."""
        return self.gamma if self.gamma is not None else gamma_from_sigma_rel(self.sigma_rel or 0.0)

    @property
    def width(self) -> float:
        """``sigma_rel``, a share of the steps since ``start``, whichever of the two was given."""
        return self.sigma_rel if self.sigma_rel is not None else sigma_rel_from_gamma(self.gamma or 0.0)

    def _decay(self, calls: Floats) -> Floats:
        return np.exp((self.exponent + 1) * np.log1p(-1 / self.move_number(calls)))

    def _call_reaching(self, decay: float) -> float:
        if decay == 1:
            return math.inf
        return self._call_of_move(-1 / math.expm1(math.log(decay) / (self.exponent + 1)))


@dataclass(frozen=True)
class UniformAverage(Schedule):
    """``1 - 1/n``: the plain mean of all snapshots since the start, the last copy included.

    With ``update_after_step`` at a late step and ``update_every`` one cycle it is SWA (Izmailov et al., 2018).
    """

    tuned: ClassVar[str] = "update_after_step"

    def _decay(self, calls: Floats) -> Floats:
        return np.asarray(1 - 1 / self.move_number(calls))

    def _call_reaching(self, decay: float) -> float:
        return self._call_of_move(1 / (1 - decay)) if decay < 1 else math.inf


FAMILIES: dict[str, type[Schedule]] = {
    family.__name__: family
    for family in (
        InversePower,
        Constant,
        BiasCorrected,
        RationalWarmup,
        ExponentialRamp,
        PowerFunction,
        UniformAverage,
    )
}


def schedule_from_dict(settings: Mapping[str, Any]) -> Schedule:
    """The schedule that ``Schedule.to_dict`` described.

    Raises:
        ValueError: for an unknown family or setting, or a value that the family does not take.
    """
    rest = dict(settings)
    return built_schedule(rest.pop("family", None), rest)


def built_schedule(name: object, settings: Mapping[str, Any]) -> Schedule:
    """The schedule of the family ``name`` with these settings; raises as :func:`schedule_from_dict`."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"schedule family must be one of {', '.join(FAMILIES)}; got {name!r}")
    family = FAMILIES[name]
    unknown = sorted(set(settings) - {f.name for f in fields(family)}, key=str)
    if unknown:
        raise ValueError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(f.name for f in fields(family))}")
    return family(**settings)


def sigma_rel_from_gamma(gamma: float) -> float:
    """Relative width of the power function of exponent ``gamma``: sqrt(g+1) / ((g+2) sqrt(g+3)); EDM2, equation 123."""
    _check_gamma(gamma)
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_from_sigma_rel(sigma_rel: float) -> float:
    """Exponent of the power function of relative width ``sigma_rel``, in (0, 1/sqrt(12)].

    The largest real root of ``(g+2)^2 (g+3) = (g+1) / sigma_rel^2``, the inverse of :func:`sigma_rel_from_gamma`;
    EDM2, equation 126.
    """
    _check_sigma_rel(sigma_rel)
    # With y = (g + 2) sigma_rel the cubic is y^3 + sigma_rel y^2 - y + sigma_rel = 0, whose numbers are all near 1.
    roots = np.roots([1.0, sigma_rel, -1.0, sigma_rel])
    return max(float(roots.real.max()) / sigma_rel - 2, 0.0)


def power_reaching(decay: float, step: float, *, inv_gamma: float = 1.0, update_after_step: int = 0) -> float:
    """The ``power`` with which :class:`InversePower` has grown to ``decay`` at call ``step``.

    ``-log(1 - decay) / log(1 + e / inv_gamma)`` with ``e = step - update_after_step``.
    """
    _check_target(decay, step, update_after_step)
    check_positive("inv_gamma", inv_gamma)
    power = -math.log1p(-decay) / math.log1p((step - update_after_step) / inv_gamma)
    return _reached("power", power, decay, step)


def inv_gamma_reaching(decay: float, step: float, *, power: float = 2 / 3, update_after_step: int = 0) -> float:
    """The ``inv_gamma`` with which :class:`InversePower` has grown to ``decay`` at call ``step``.

    ``e / ((1 - decay) ** (-1 / power) - 1)`` with ``e = step - update_after_step``.
    """
    _check_target(decay, step, update_after_step)
    check_positive("power", power)
    try:
        inv_gamma = (step - update_after_step) / math.expm1(-math.log1p(-decay) / power)
    except OverflowError:
        inv_gamma = 0.0
    except ZeroDivisionError:
        inv_gamma = math.inf
    return _reached("inv_gamma", inv_gamma, decay, step)


def last_move(schedule: Schedule, num_steps: int) -> int:
    """The last call of a run of ``num_steps`` calls that is not skipped."""
    check_whole("num_steps", num_steps, 1, MOST_CALLS)
    return (num_steps - 1) // schedule.update_every * schedule.update_every


def final_half_life(schedule: Schedule, num_steps: int) -> float:
    """Half-life, in steps, of the decay that acts at the end of a run of ``num_steps`` calls.

    Zero where the run ends on a copy, infinite where nothing new is taken in any more.
    """
    decay = float(schedule.at([last_move(schedule, num_steps)])[0])
    return half_life(decay) * schedule.update_every


def with_half_life(schedule: S, num_steps: int, steps: float) -> S:
    """``schedule`` with its tuned setting changed so that the decay at the end of the run halves in ``steps`` steps.

    Closed form for most families.  The tuned setting is the family's: ``power``, ``beta``, ``gamma``, or, for the
    running mean, its start, which is a whole number of moves and so may miss the half-life by up to 2 %.  A cap of
    :class:`InversePower` that is in the way is raised.

    Raises:
        ValueError: where no value of the setting does it; the message says what would.
    """
    check_positive("steps", steps)
    _check_moves(schedule, num_steps)
    every = schedule.update_every
    decay = decay_from_half_life(steps / every)
    if not 0 < decay < 1:
        raise ValueError(
            f"no decay in double precision has a half-life of {steps:g} steps at update_every = {every}: "
            f"ask for one from {half_life(5e-324) * every:.2g} to {half_life(LARGEST_DECAY) * every:.2g} steps"
        )
    found = replace(schedule, **_settings_of_decay(schedule, num_steps, decay))
    nearest = final_half_life(found, num_steps)
    if math.isclose(nearest, steps, rel_tol=_tolerance(schedule)):
        return found
    cure = "ask for that" if nearest > steps else "ask for that, or make the run longer"
    if isinstance(schedule, InversePower) and schedule.min_value > decay:
        cure = f"ask for that, or lower min_value = {schedule.min_value:g}"
    if isinstance(schedule, BiasCorrected):
        cure = f"it is at most the plain mean of its moves: {cure}"
    raise ValueError(
        f"no {schedule.tuned} of {type(schedule).__name__} gives a half-life of {steps:g} steps at the end of "
        f"{num_steps} steps; the nearest is {nearest:.4g}: {cure}"
    )


def _settings_of_decay(schedule: Schedule, num_steps: int, decay: float) -> dict[str, Any]:
    """The settings with which the last move has ``decay``, or, where there are none, as near as the family comes."""
    call = last_move(schedule, num_steps)
    move = float(schedule.move_number(np.array([float(call)]))[0])
    match schedule:
        case InversePower():
            power = power_reaching(
                decay, call, inv_gamma=schedule.inv_gamma, update_after_step=schedule.update_after_step
            )
            return {"power": power, "beta": max(schedule.beta, decay)}
        case BiasCorrected():
            return {"beta": _bias_corrected_beta(decay, move)}
        case ExponentialRamp():
            return {"beta": min(-decay / math.expm1(-move / schedule.tau), 1.0)}
        case PowerFunction():
            return {"gamma": max(math.log(decay) / math.log1p(-1 / move) - 1, 0.0), "sigma_rel": None}
        case UniformAverage():
            every = schedule.update_every
            most = call // every + 1
            near = round(1 / (1 - decay))
            moves = min(
                (min(max(n, 2), most) for n in (near - 1, near, near + 1)),
                key=lambda n: abs(half_life(1 - 1 / n) - half_life(decay)),
            )
            return {"update_after_step": call - (moves - 1) * every}
        case _:
            return {"beta": decay}


def with_relative_width(schedule: S, num_steps: int, width: float) -> S:
    """``schedule`` with its tuned setting changed so that the final average has a relative width of ``width``.

    The relative width is the standard deviation in time of the weights, divided by the length of the whole run,
    whenever the average starts.  Found by bisection on the exact weights of the run, so skipped calls and the copy at
    the start count.  The start of the running mean is a whole number of moves, so it may miss the width by up to 2 %.

    Args:
        num_steps: At most 100 million, because the weight of every step is looked at.

    Raises:
        ValueError: where no value of the setting does it; the message gives the widths within reach.
    """
    check_positive("width", width)
    check_whole("num_steps", num_steps, 1, _MOST_WEIGHTS)
    _check_moves(schedule, num_steps)
    # A cap of InversePower is out of the way at first; the user's stays where the answer does not need more.
    changes: list[dict[str, Any]] = [{}]
    if isinstance(schedule, InversePower):
        changes = [{"beta": LARGEST_DECAY}, {}]
    if isinstance(schedule, PowerFunction):
        changes = [{"gamma": 0.0, "sigma_rel": None}]
    narrowest, widest = math.inf, 0.0
    for change in changes:
        found, low, high = _tuned_to_width(replace(schedule, **change), num_steps, width)
        if isinstance(found, InversePower) and isinstance(schedule, InversePower):
            largest = float(found.at([last_move(found, num_steps)])[0])
            found = replace(found, beta=max(schedule.beta, largest))
        if found is not None and _has_width(found, num_steps, width):
            return found
        narrowest, widest = min(narrowest, low), max(widest, high)
    raise ValueError(
        f"no {schedule.tuned} of {type(schedule).__name__} gives a relative width of {width:g} over {num_steps} "
        f"steps; widths from {narrowest:.3g} to {widest:.3g} are within reach"
        + (", but not each of them" if narrowest < width < widest else "")
    )


def _has_width(schedule: Schedule, num_steps: int, width: float) -> bool:
    return math.isclose(relative_width(schedule.decays(num_steps)), width, rel_tol=_tolerance(schedule))


def _tuned_to_width(schedule: S, num_steps: int, width: float) -> tuple[S | None, float, float]:
    """``schedule`` with its tuned setting where the width is first crossed, if it is, and the range of widths seen.

    An average that barely moves is narrow again, around its start; the first crossing follows the run instead.
    """

    def candidate(position: float) -> S:
        setting: dict[str, Any] = {schedule.tuned: _tuned_value(schedule, num_steps, position)}
        return replace(schedule, **setting)

    def error(position: float) -> float:
        return relative_width(candidate(position).decays(num_steps)) - width

    bracket, low, high = _first_crossing(error)
    if bracket is None:
        return None, low + width, high + width
    found = candidate(float(brentq(error, *bracket, xtol=1e-12)))
    if isinstance(found, UniformAverage):  # of whole numbers none may be exact
        near = (found.start + k * found.update_every for k in (-1, 0, 1))
        near_ones = [replace(found, update_after_step=start) for start in near if 0 <= start < num_steps]
        found = min(near_ones, key=lambda one: abs(relative_width(one.decays(num_steps)) - width))
    return found, low + width, high + width


def _first_crossing(error: Callable[[float], float]) -> tuple[tuple[float, float] | None, float, float]:
    """Between which positions in [0, 1] ``error`` first changes its sign, if it does, and its least and greatest."""
    positions = np.linspace(0, 1, 65).tolist()
    errors = [error(0.0)]
    for previous, position in pairwise(positions):
        errors.append(error(position))
        if np.sign(errors[-2]) * np.sign(errors[-1]) <= 0:
            return (previous, position), min(errors), max(errors)
    top = int(np.argmax(errors))
    bounds = positions[max(top - 1, 0)], positions[min(top + 1, 64)]
    # The widest may lie between two of the positions.
    peak = minimize_scalar(lambda position: -error(position), bounds=bounds, options={"xatol": 1e-9})
    widest = max(errors[top], -float(peak.fun))
    return (bounds[0], float(peak.x)) if errors[top] < 0 <= widest else None, min(errors), widest


def _tuned_value(schedule: Schedule, num_steps: int, position: float) -> float:
    """The tuned setting at ``position`` in [0, 1] of its range, spaced as its effect is."""
    match schedule:
        case InversePower():
            # What matters is power * log(1 + e / inv_gamma) at the end.
            passed = last_move(schedule, num_steps) - schedule.update_after_step
            scale = math.log1p(passed) / math.log1p(passed / schedule.inv_gamma)
            return min(float(1e-3 * 5e4**position * scale), LARGEST)
        case PowerFunction():
            return math.expm1(position * math.log1p(1e17))
        case UniformAverage():
            return round(position * (num_steps - 1))
        case _:
            return -math.expm1(position * math.log1p(-LARGEST_DECAY))


def _check_moves(schedule: Schedule, num_steps: int) -> None:
    """Raise ``ValueError`` if a run is over before the average moves, whatever the tuned setting."""
    last = last_move(schedule, num_steps)
    if isinstance(schedule, UniformAverage) and last > 0:  # its start is what is tuned
        return
    if last <= schedule.start:
        raise ValueError(
            f"the average starts at step {schedule.start}, but the run ends at step {num_steps - 1}: "
            "make the run longer or update_after_step and update_every smaller"
        )


def _tolerance(schedule: Schedule) -> float:
    return 0.02 if isinstance(schedule, UniformAverage) else 1e-5


def _check_gamma(gamma: float) -> None:
    if not is_real(gamma) or not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite and at least 0, got {shown(gamma)}")
    if gamma > LARGEST:
        raise ValueError(f"gamma must be from 0 to {LARGEST:g}, got {shown(gamma)}")


def _check_sigma_rel(sigma_rel: float) -> None:
    if not is_real(sigma_rel) or not 0 < sigma_rel <= MAX_SIGMA_REL + 1e-12:
        raise ValueError(f"sigma_rel must be in (0, 1/sqrt(12) = {MAX_SIGMA_REL:.4f}], got {shown(sigma_rel)}")
    if sigma_rel < SMALLEST:
        raise ValueError(f"sigma_rel must be from {SMALLEST:g} to {MAX_SIGMA_REL:.4f}, got {shown(sigma_rel)}")


def _check_target(decay: float, step: float, update_after_step: int) -> None:
    if not 0 < decay < 1:
        raise ValueError(f"decay must be in (0, 1), got {decay!r}")
    if not update_after_step < step <= MOST_CALLS:
        raise ValueError(
            f"step must be above update_after_step = {update_after_step} and at most {MOST_CALLS:,}, got {shown(step)}"
        )


def _reached(name: str, value: float, decay: float, step: float) -> float:
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(f"no {name} from {SMALLEST:g} to {LARGEST:g} reaches a decay of {decay!r} at step {step:g}")
    return value


def _bias_corrected_beta(decay: float, move: float) -> float:
    """The beta whose corrected decay at move ``move`` is ``decay``; 1, the plain mean, where that is still less."""

    def error(log_rest: float) -> float:
        return float(BiasCorrected(-math.expm1(log_rest))._decay(np.array([move - 1]))[0]) - decay

    low, high = math.log(2.0**-53), math.log1p(-decay)
    if decay >= 1 - 1 / move or error(low) <= 0:
        return 1.0
    if error(high) >= 0:  # the correction is over
        return decay
    return -math.expm1(float(brentq(error, low, high, xtol=1e-14)))


def changed_settings(schedule: Schedule) -> dict[str, Any]:
    """The settings that are not the family's defaults, its own first and those of all families last."""
    ordered = sorted(fields(schedule), key=lambda f: bool(f.kw_only))
    return {f.name: getattr(schedule, f.name) for f in ordered if getattr(schedule, f.name) != f.default}
