"""The families of averaging schedules: each says its rule, its inverse, its controls and what a solver may vary."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import scipy  # whose parts are loaded where they are used

from emacore.averaging.filters import half_life
from emacore.averaging.schedules import (
    BETA,
    LARGEST_DECAY,
    Control,
    Floats,
    Schedule,
    Search,
    last_move,
    register,
)
from emacore.averaging.weights import relative_width, weights
from emacore.checks import LARGEST, SMALLEST, check_positive, check_unit, is_real, shown
from emacore.formatting import decay as decay_text
from emacore.formatting import number, percent

#: The largest relative width a power function can have: that of the running mean, 1 / sqrt(12).
MAX_SIGMA_REL = 1 / math.sqrt(12)


@register
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

    label: ClassVar[str] = "Inverse power"
    known_as: ClassVar[str] = "the article's"
    course: ClassVar[str] = (
        "copies first, then bends: `inv_gamma` says where, and `power` how steeply, until `beta` caps it."
    )
    controls: ClassVar[tuple[Control, ...]] = (
        Control(
            "power",
            0.05,
            3.0,
            2 / 3,
            "Exponent of the warm-up 1 - (1 + e / inv_gamma)^-power, e steps after its begin. Smaller forgets faster, "
            "larger remembers more; 2/3 and 3/4 are the article's. With inv_gamma 1 and update_every 1, power 1 is the "
            "plain mean of all steps, the first counted twice.",
            axis=(0.1, 2.0),
        ),
        Control(
            "inv_gamma",
            0.01,
            1e4,
            1.0,
            "How many steps after its begin the warm-up bends. Larger keeps the decay low for longer.",
            scale="log",
            unit="steps",
            axis=(0.1, 1000.0),
        ),
        BETA,
        Control(
            "min_value",
            0.0,
            0.999,
            0.0,
            "The smallest decay of a move: larger makes the first averages calmer. beta wins where it is smaller.",
            step=0.001,
            rare=True,
        ),
    )
    tuned: ClassVar[str] = "power"
    spreading: ClassVar[tuple[str, ...]] = ("power", "inv_gamma")
    rescaling: ClassVar[str] = (
        "The inverse power follows the exact product of decays closely, not exactly: at power 2/3 and a factor of 8, "
        "1 - decay is within 2.5 % of it after the first six moves, and within 2 % after the first 101."
    )

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

    def decays_of_moves(self, calls: Floats) -> Floats:
        exponent = calls - self.update_after_step
        # log1p and expm1 keep the digits of decays close to 0 and to 1.
        warm = np.minimum(-np.expm1(-self.power * np.log1p(exponent / self.inv_gamma)), LARGEST_DECAY)
        return np.minimum(np.maximum(warm, self.min_value), self.beta)

    def call_reaching(self, decay: float) -> float:
        if decay > self.beta or decay == 1:
            return math.inf
        try:
            return self.update_after_step + self.inv_gamma * math.expm1(-math.log1p(-decay) / self.power)
        except OverflowError:
            return math.inf

    def with_decay(self, call: int, decay: float) -> Self:
        # 1 - decay is (1 + e / inv_gamma)^-power, and what is beyond a power's range the nearest that it can be.
        power = -math.log1p(-decay) / math.log1p((call - self.update_after_step) / self.inv_gamma)
        return replace(self, power=min(max(power, SMALLEST), LARGEST), beta=max(self.beta, decay))

    def rescaled(self, factor: float) -> Self:
        # k moves around call k e take in k (k e / inv_gamma)^-power.
        try:
            inv_gamma = self.inv_gamma * factor ** ((1 - self.power) / self.power)
        except OverflowError:
            inv_gamma = math.inf
        return replace(self, beta=self.beta**factor, inv_gamma=inv_gamma, min_value=self.min_value**factor)

    def search(self, setting: str, num_steps: int) -> Search:
        if setting == "inv_gamma":
            return Search(lambda position: math.exp(-position), -np.log(np.geomspace(1e8, 1e-3, 45)))
        if setting != "power":
            return super().search(setting, num_steps)
        # What matters is power * log(1 + e / inv_gamma) at the end.
        passed = max(last_move(self, num_steps) - self.update_after_step, 1)
        scale = math.log1p(passed) / math.log1p(passed / self.inv_gamma)
        powers = np.unique([*np.geomspace(1e-12, 1e-3, 10), *np.geomspace(1e-3, 50.0, 65)])
        return Search(lambda log: min(math.exp(log) * scale, LARGEST), np.log(powers))

    def cure(self, decay: float, usual: str) -> str:
        if self.min_value <= decay:
            return usual
        lower = f"lower min_value = {decay_text(self.min_value)}"
        return lower if self.min_value == self.beta == 1 else f"ask for that, or {lower}"

    def remarks(self, decays: Floats) -> list[str]:
        return [*self._floor(), *self._counting(decays)]

    def _floor(self) -> list[str]:
        if self.min_value == 0:
            return []
        if self.min_value >= self.beta:
            return [
                f"min_value = {decay_text(self.min_value)} is not below beta = {decay_text(self.beta)}: beta wins, "
                "and every move has that decay."
            ]
        first = self.start + self.update_every
        warm = 1 - (1 + (first - self.update_after_step) / self.inv_gamma) ** -self.power
        if warm >= self.min_value:
            return [
                f"min_value = {decay_text(self.min_value)} has no effect: the first move already has decay "
                f"{decay_text(warm)}."
            ]
        return []

    def _counting(self, decays: Floats) -> list[str]:
        if self.update_every == 1:
            return []
        shares = weights(decays)[self.start :: self.update_every]
        factor = float(shares[0] * len(shares))
        counting = replace(self, inv_gamma=min(self.inv_gamma * self.update_every, LARGEST))
        if factor < 2 or weights(counting.decays(len(decays)))[self.start] > shares[0] / 2:
            return []  # or what makes it heavy is another setting: beta, min_value or the power
        return [
            f"The rule counts steps, not moves: with update_every = {self.update_every} the first of the "
            f"{len(shares):,} snapshots weighs {number(factor, 3)} times an equal share. inv_gamma = "
            f"{number(self.inv_gamma * self.update_every)} counts moves instead."
        ]


@register
@dataclass(frozen=True)
class Constant(Schedule):
    """The same decay at every move: ``beta``.  The copy at the start keeps ``beta ** (n - 1)`` of the average.

    With ``update_every = k`` the decay acts once in k calls, so the memory is k times longer.
    """

    beta: float = 0.999

    label: ClassVar[str] = "Constant"
    course: ClassVar[str] = "copies first, then has the one decay `beta` at every move."
    controls: ClassVar[tuple[Control, ...]] = (BETA,)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("beta", self.beta)

    def decays_of_moves(self, calls: Floats) -> Floats:
        return np.full(calls.shape, self.beta)

    def with_decay(self, call: int, decay: float) -> Self:
        return replace(self, beta=decay)

    def rescaled(self, factor: float) -> Self:
        return replace(self, beta=self.beta**factor)


@register
@dataclass(frozen=True)
class BiasCorrected(Schedule):
    """A zero start divided by ``1 - beta ** n``, written as decays: ``beta * (1 - beta ** (n-1)) / (1 - beta ** n)``.

    Equal to ``pandas.Series.ewm(alpha=1 - beta, adjust=True).mean()`` over the moves.  Source: Kingma and Ba,
    "Adam", 2015, section 3; the step-by-step form follows from dividing two neighbouring corrected averages.
    """

    beta: float = 0.999

    label: ClassVar[str] = "Bias-corrected"
    course: ClassVar[str] = "begins as the plain mean of its moves, and tends to `beta`."
    controls: ClassVar[tuple[Control, ...]] = (BETA,)
    attains_beta: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("beta", self.beta)

    def decays_of_moves(self, calls: Floats) -> Floats:
        n = self.move_number(calls)
        if self.beta == 0:
            return np.zeros(calls.shape)
        if self.beta == 1:
            return np.asarray(1 - 1 / n)
        log_beta = math.log(self.beta)
        if self.beta < 0.5:
            corrected = self.beta * np.expm1((n - 1) * log_beta) / np.expm1(n * log_beta)
        else:  # the same, so that decays near 1 never fall by rounding
            corrected = 1 + (1 - self.beta) / np.expm1(n * log_beta)
        return np.minimum(corrected, math.nextafter(self.beta, 0))

    def call_reaching(self, decay: float) -> float:
        # decay = beta (1 - beta^(n-1)) / (1 - beta^n), solved for beta^n.
        if self.beta == 1:
            return self.call_of_move(1 / (1 - decay)) if decay < 1 else math.inf
        if decay >= self.beta:  # it tends to beta from below
            return math.inf
        return self.call_of_move(math.log((self.beta - decay) / (1 - decay)) / math.log(self.beta))

    def with_decay(self, call: int, decay: float) -> Self:
        return replace(self, beta=_bias_corrected_beta(decay, _move(self, call)))

    def rescaled(self, factor: float) -> Self:
        return replace(self, beta=self.beta**factor)  # the product telescopes

    def cure(self, decay: float, usual: str) -> str:
        return f"it is at most the plain mean of its moves: {usual}"


@register
@dataclass(frozen=True)
class RationalWarmup(Schedule):
    """``min((1 + n) / (10 + n), beta)``: the warm-up of TensorFlow's ``ExponentialMovingAverage`` and of torch_ema.

    Those two start from the weights before training and average the first update with decay 2/11; here the first
    update (``n = 1``) is the copy, and from ``n = 2`` on the numbers are theirs.  ``n`` counts moves, as theirs does.
    """

    beta: float = 0.9999

    label: ClassVar[str] = "Rational warm-up"
    known_as: ClassVar[str] = "TensorFlow's and torch_ema's"
    course: ClassVar[str] = "has decay (1 + n) / (10 + n) at move n, whatever is set, until `beta` caps it."
    controls: ClassVar[tuple[Control, ...]] = (BETA,)
    rescaling: ClassVar[str] = (
        "Of the rational warm-up only beta can scale: its warm-up counts moves and has no setting. At a factor of 8 "
        "its 1 - decay is within 5.5 % of the exact product after the first 100 moves."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("beta", self.beta)

    def decays_of_moves(self, calls: Floats) -> Floats:
        n = self.move_number(calls)
        return np.minimum((1 + n) / (10 + n), self.beta)

    def call_reaching(self, decay: float) -> float:
        if decay > self.beta or decay == 1:
            return math.inf
        return self.call_of_move((10 * decay - 1) / (1 - decay))

    def with_decay(self, call: int, decay: float) -> Self:
        return replace(self, beta=decay)

    def rescaled(self, factor: float) -> Self:
        return replace(self, beta=self.beta**factor)


@register
@dataclass(frozen=True)
class ExponentialRamp(Schedule):
    """``beta * (1 - exp(-n / tau))``: the rule of the YOLO family of detection models.  ``n`` counts moves.

    Args:
        beta: The decay it tends to, in [0, 1].
        tau: Number of moves in which 63 % of it are reached; above 0.
    """

    beta: float = 0.9999
    tau: float = 2000.0

    label: ClassVar[str] = "Exponential ramp"
    known_as: ClassVar[str] = "the YOLO models'"
    course: ClassVar[str] = "climbs towards `beta`, of which it has 63 % after `tau` moves."
    controls: ClassVar[tuple[Control, ...]] = (
        Control(
            "tau",
            10.0,
            1e6,
            2000.0,
            "Moves in which 63 % of beta are reached. Larger forgets the start for longer.",
            scale="log",
            unit="moves",
            axis=(10.0, 1e5),
        ),
        BETA,
    )
    attains_beta: ClassVar[bool] = False
    rescaling: ClassVar[str] = (
        "Of the exponential ramp its length and the decay it tends to are kept, not its shape: at a larger batch it is "
        "ahead of the exact product until it is over."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_unit("beta", self.beta)
        check_positive("tau", self.tau)

    def decays_of_moves(self, calls: Floats) -> Floats:
        ramp = -self.beta * np.expm1(-self.move_number(calls) / self.tau)
        return np.minimum(ramp, math.nextafter(self.beta, 0))

    def call_reaching(self, decay: float) -> float:
        if decay >= self.beta or decay / self.beta == 1:  # it tends to beta from below
            return math.inf
        return self.call_of_move(-self.tau * math.log1p(-decay / self.beta))

    def with_decay(self, call: int, decay: float) -> Self:
        beta = -decay / math.expm1(-_move(self, call) / self.tau)
        return replace(self, beta=min(max(beta, math.nextafter(decay, 1)), 1.0))

    def rescaled(self, factor: float) -> Self:
        return replace(self, beta=self.beta**factor, tau=self.tau / factor)


@register
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

    label: ClassVar[str] = "Power function"
    known_as: ClassVar[str] = "EDM2's"
    course: ClassVar[str] = "climbs for as long as the run goes on, so that its relative width stays about the same."
    controls: ClassVar[tuple[Control, ...]] = (
        Control(
            "width",
            0.005,
            0.288,
            0.1,
            "Standard deviation of the weights in time, as a share of the steps since update_after_step (EDM2's "
            "sigma_rel). Smaller follows the run more closely.",
            step=0.001,
            label="Relative width",
            setting="sigma_rel",
            axis=(0.01, 0.28),
        ),
    )
    tuned: ClassVar[str] = "gamma"
    spreading: ClassVar[tuple[str, ...]] = ("sigma_rel",)

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

    def decays_of_moves(self, calls: Floats) -> Floats:
        return np.minimum(np.exp((self.exponent + 1) * np.log1p(-1 / self.move_number(calls))), LARGEST_DECAY)

    def call_reaching(self, decay: float) -> float:
        if decay == 1:
            return math.inf
        return self.call_of_move(-1 / math.expm1(math.log(decay) / (self.exponent + 1)))

    def varied(self, **settings: Any) -> Self:
        one = settings.keys() & {"gamma", "sigma_rel", "width"}  # it takes the place of the other
        return super().varied(**({"gamma": None, "sigma_rel": None} | settings if one else settings))

    def with_decay(self, call: int, decay: float) -> Self:
        return self.varied(gamma=max(math.log(decay) / math.log1p(-1 / _move(self, call)) - 1, 0.0))

    def rescaled(self, factor: float) -> Self:
        return self  # (1 - 1/n) over the moves of a stretch is one minus its share of all moves so far

    def search(self, setting: str, num_steps: int) -> Search:
        if setting != "gamma":
            return super().search(setting, num_steps)
        return Search(lambda position: math.expm1(position * math.log1p(1e17)), np.linspace(0, 1, 65))

    def remarks(self, decays: Floats) -> list[str]:
        width = relative_width(decays)
        if math.isclose(width, self.width, rel_tol=0.05):
            return []
        moves = int(np.count_nonzero(decays[self.start :] < 1))
        reason = (
            f"its own width is a share of the {len(decays) - self.start:,} steps since step {self.start:,}"
            if self.start
            else f"its {moves:,} moves are too few for it"
        )
        return [f"The weights are {percent(width)} of this run wide, not {percent(self.width)}: {reason}."]


@register
@dataclass(frozen=True)
class UniformAverage(Schedule):
    """``1 - 1/n``: the plain mean of all snapshots since the start, the last copy included.

    With ``update_after_step`` at a late step and ``update_every`` one cycle it is SWA (Izmailov et al., 2018).
    """

    label: ClassVar[str] = "Running mean"
    known_as: ClassVar[str] = "SWA, where it starts late"
    course: ClassVar[str] = (
        "is the plain mean of all moves since its start: its decay, 1 - 1/n at move n, always climbs."
    )
    tuned: ClassVar[str] = "update_after_step"

    def decays_of_moves(self, calls: Floats) -> Floats:
        return np.asarray(1 - 1 / self.move_number(calls))

    def call_reaching(self, decay: float) -> float:
        return self.call_of_move(1 / (1 - decay)) if decay < 1 else math.inf

    def with_decay(self, call: int, decay: float) -> Self:
        most = call // self.update_every + 1
        near = round(1 / (1 - decay))
        moves = min(
            (min(max(n, 2), most) for n in (near - 1, near, near + 1)),
            key=lambda n: abs(half_life(1 - 1 / n) - half_life(decay)),
        )
        return replace(self, update_after_step=call - (moves - 1) * self.update_every)

    def rescaled(self, factor: float) -> Self:
        return self


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


def _check_gamma(gamma: float) -> None:
    if not is_real(gamma) or not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be finite and at least 0, got {shown(gamma)}")
    if gamma > LARGEST:
        raise ValueError(f"gamma must be from 0 to {LARGEST:g}, got {shown(gamma)}")


def _check_sigma_rel(sigma_rel: float) -> None:
    largest = f"{MAX_SIGMA_REL:.6f}"  # which is less, so that it can be given
    if not is_real(sigma_rel) or not 0 < sigma_rel <= MAX_SIGMA_REL + 1e-12:
        raise ValueError(f"sigma_rel must be in (0, 1/sqrt(12) = {largest}], got {shown(sigma_rel)}")
    if sigma_rel < SMALLEST:
        raise ValueError(f"sigma_rel must be from {SMALLEST:g} to {largest}, got {shown(sigma_rel)}")


def _move(schedule: Schedule, call: int) -> float:
    return float(schedule.move_number(np.asarray(float(call))))


def _bias_corrected_beta(decay: float, move: float) -> float:
    """The beta whose corrected decay at move ``move`` is ``decay``; 1, the plain mean, where that is still less."""

    def error(log_rest: float) -> float:
        return float(BiasCorrected(-math.expm1(log_rest)).decays_of_moves(np.array([move - 1]))[0]) - decay

    low, high = math.log(2.0**-53), math.log1p(-decay)
    if decay >= 1 - 1 / move or error(low) <= 0:
        return 1.0
    if error(high) >= 0:  # the correction is over
        return math.nextafter(decay, 1)
    return -math.expm1(float(scipy.optimize.brentq(error, low, high, xtol=1e-14)))
