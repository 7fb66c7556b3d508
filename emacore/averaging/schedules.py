"""What a schedule is: decays by the number of the call.  And what a family of schedules says of itself, in one class.

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
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from emacore.averaging.filters import half_life
from emacore.averaging.rounding import round_and_even, round_and_even_in_log
from emacore.checks import check_whole, is_real, keep_plain

Floats = NDArray[np.float64]

#: The largest decay below 1.
LARGEST_DECAY = 1 - 2.0**-53
#: Calls are counted in float64: so many, and sums of a few of them, exactly.
MOST_CALLS = 2**51
_LAST_CALL = 2**53

F = TypeVar("F", bound="type[Schedule]")


@dataclass(frozen=True)
class Control:
    """How people move a setting: the range, the scale and the words of its slider.

    Args:
        key: The slider's name in links and on atlas axes, and the schedule's attribute that has the value.
        low, high: Ends of the slider; whole numbers for a setting that is one.
        default: What the slider shows at first, which need not be the default of the code.
        help: What it is, and what to expect when one moves it.
        scale: What the slider is even in: the value, its logarithm, or log(1 - value), for decays near 1.  "count" is
            typed.
        step: Of a linear slider, in units of the value.
        unit: "steps", "moves", ... where it has one.
        label: What stands above the slider; the key by default.
        setting: The argument of the family that it sets, where that is not named as ``key`` is.
        axis: Ends of its axis in an atlas; without them it is none.
        rare: Whether it is folded away at first.
    """

    key: str
    low: float
    high: float
    default: float
    help: str
    scale: Literal["linear", "log", "log(1 - value)", "count"] = "linear"
    step: float = 0.01
    unit: str = ""
    label: str = ""
    setting: str = ""
    axis: tuple[float, float] | None = None
    rare: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.default <= self.high:
            raise ValueError(f"{self.key}: its default {self.default!r} must be from {self.low!r} to {self.high!r}")
        if self.scale == "log" and not self.low > 0:
            raise ValueError(f"{self.key}: a logarithmic scale must begin above 0, got {self.low!r}")
        if self.scale == "log(1 - value)" and not self.high < 1:
            raise ValueError(f"{self.key}: a scale of log(1 - value) must end below 1, got {self.high!r}")

    @property
    def name(self) -> str:
        """The argument of the family that it sets."""
        return self.setting or self.key

    @property
    def title(self) -> str:
        """What stands above the slider, with the unit."""
        return f"{self.label or self.key} ({self.unit})" if self.unit else self.label or self.key

    @property
    def whole(self) -> bool:
        """Whether it is a whole number."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def at(self, position: float) -> float:
        """The value at a position from 0 (``low``) to 1 (``high``), even in the scale."""
        match self.scale:
            case "log":
                value = self.low * float((self.high / self.low) ** position)
            case "log(1 - value)":
                value = 1 - (1 - self.low) * float(((1 - self.high) / (1 - self.low)) ** position)
            case _:
                value = self.low + (self.high - self.low) * position
        return round(value) if self.whole else min(max(value, self.low), self.high)

    def marks(self, most: int = 80) -> tuple[float, ...]:
        """Round values all over the slider, even in its scale: increasing, about ``most`` at most, both ends included.

        Fewer where ``most`` is small.
        """
        match self.scale:
            case "log":
                decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
                values = [float(f"{m:g}e{d}") for d in decades for m in _round_parts(len(decades), most)]
            case "log(1 - value)":
                decades = range(math.floor(math.log10(1 - self.high)), 1)
                values = [round(1 - float(f"{m:g}e{d}"), 12) for d in decades for m in _round_parts(len(decades), most)]
            case _:
                size = (self.high - self.low) / most
                tens = 10.0 ** math.floor(math.log10(size))
                step = max(
                    next(m * tens for m in (1, 2, 5, 10) if m * tens >= size * (1 - 1e-9)), 1 if self.whole else 0
                )
                first = math.ceil(self.low / step - 1e-9)
                values = [round(k * step, 12) for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        inside = {self.low, self.high, *(value for value in values if self.low <= value <= self.high)}
        return tuple(sorted({int(value) if self.whole else float(value) for value in inside}))

    def on_axis(self, size: int) -> Floats | NDArray[np.int64]:
        """The values of an atlas' axis: round numbers, increasing, at most ``size``."""
        if self.axis is None:
            raise ValueError(f"{self.key} is no axis")
        low, high = self.axis
        match self.scale:
            case "log":
                values = round_and_even_in_log(low, high, size)
            case "log(1 - value)":
                rest = round_and_even_in_log(round(1 - high, 12), round(1 - low, 12), size)
                values = (1 - rest[::-1]).round(12)
            case _:
                values = round_and_even(low, high, size)
        return np.unique(values.round().astype(np.int64)) if self.whole else values


#: Round numbers of a decade, from many to few.
_DECADES = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,))


def _round_parts(decades: int, most: int) -> tuple[float, ...]:
    return next((parts for parts in _DECADES if len(parts) * decades <= max(most, decades)), (1,))


#: The settings that all families have.
TIMING = (
    Control(
        "update_after_step",
        0,
        10_000_000,
        100,
        "Up to this step the average is a copy of the weights. Later forgets more of the start, and leaves fewer steps "
        "to average.",
        scale="count",
    ),
    Control(
        "update_every",
        1,
        1_000_000,
        1,
        "Steps from one move of the average to the next. Larger looks at fewer snapshots; where the rule counts moves, "
        "the memory grows with it.",
        scale="count",
    ),
)
#: The setting of families with a largest decay.
BETA = Control(
    "beta",
    0.2,
    0.999999,
    0.999,
    "The decay that the schedule comes to, if the run is long enough. Nearer to 1 is calmer, and later; marks are even "
    "in log(1 - beta).",
    scale="log(1 - value)",
    axis=(0.7, 0.99999),
)


class Search(NamedTuple):
    """Where a setting is looked for: ``value(position)`` at increasing positions, and between them.

    They go from averages that follow the run to ones that keep its start.
    """

    value: Callable[[float], float]
    positions: Floats


@dataclass(frozen=True)
class Schedule:
    """Base of all families: which calls copy, which are skipped, and which move the average.

    A family is one subclass, a frozen dataclass whose fields are its settings, made known by :func:`register`.  It
    says its rule (:meth:`decays_of_moves`); the rest has an answer here that a family can better.  A setting named
    ``beta`` is its largest decay.

    Args:
        update_after_step: Calls up to and including this one copy the value (unit: calls, at least 0).
        update_every: Only every so many calls does anything happen (unit: calls, at least 1).
    """

    update_after_step: int = field(default=0, kw_only=True)
    update_every: int = field(default=1, kw_only=True)

    #: The family's name for people, and who knows it, as in "*Constant* is the textbooks'".
    label: ClassVar[str] = ""
    known_as: ClassVar[str] = ""
    #: How its decays go, as what follows its name in a sentence, with the keys of its sliders in backticks.
    course: ClassVar[str] = ""
    #: Its own settings, in the order of their sliders.
    controls: ClassVar[tuple[Control, ...]] = ()
    #: The setting that the solvers vary.
    tuned: ClassVar[str] = "beta"
    #: Whether ``beta`` is a decay that the rule comes to have, a cap; else it tends to it.
    attains_beta: ClassVar[bool] = True
    #: The settings that a relative width can be solved for, the preferred one first; ``tuned`` by default.
    spreading: ClassVar[tuple[str, ...]] = ()
    #: In which respect :meth:`rescaled` is not the exact product of decays; empty where it is.
    rescaling: ClassVar[str] = ""

    def __post_init__(self) -> None:
        keep_plain(self)
        check_whole("update_after_step", self.update_after_step, 0, MOST_CALLS)
        check_whole("update_every", self.update_every, 1, MOST_CALLS)

    @property
    def start(self) -> int:
        """The call of the last copy: the average begins there, whatever came before."""
        return self.update_after_step // self.update_every * self.update_every

    def decays(self, num_steps: int) -> Floats:
        """The decays of calls 0 to ``num_steps - 1``: float64, shape (num_steps,), each in [0, 1]."""
        check_whole("num_steps", num_steps, 0, MOST_CALLS)
        return self.at(np.arange(int(num_steps)))

    def at(self, calls: ArrayLike) -> Floats:
        """The decays of the given call numbers: float64, in the shape of ``calls``.

        Raises:
            ValueError: where the family's rule gives what is no decay.
            TypeError: if ``calls`` are no numbers.
        """
        numbers = np.asarray(calls)
        if numbers.dtype.kind not in "biuf":
            raise TypeError(f"calls must be numbers of calls, such as 5 or [0, 1, 2], got {calls!r}")
        if numbers.dtype.kind != "f":  # narrow ones overflow
            numbers = numbers.astype(np.int64, copy=False)
        decays = np.ones(numbers.shape)
        acts = numbers % self.update_every == 0
        decays[acts & (numbers <= self.start)] = 0.0
        moves = acts & (numbers > self.start)
        own = self.decays_of_moves(numbers[moves].astype(np.float64))
        if own.size and not (own.min() >= 0 and own.max() <= 1):
            wrong = np.flatnonzero(~((own >= 0) & (own <= 1)))[0]
            raise ValueError(
                f"the rule of {type(self).__name__} must give decays in [0, 1], but call {numbers[moves][wrong]} has "
                f"{float(own[wrong])!r}"
            )
        decays[moves] = own
        return decays

    def rule(self, call: int) -> float:
        """The rule's decay at one call, whether or not the call is skipped; 0 during the warm-up."""
        return self._of_move(call) if call > self.update_after_step else 0.0

    def move_number(self, calls: Floats) -> Floats:
        """``n``: how many copies and moves there were by each call, counted from 1 at ``start``."""
        return np.asarray((calls - self.start) / self.update_every + 1)

    def call_of_move(self, move: float) -> float:
        """The call of move ``n``, the inverse of :meth:`move_number`."""
        return self.start + (move - 1) * self.update_every

    def reaches(self, decay: float) -> int | None:
        """The first call whose decay is at least ``decay``, skipped calls aside; ``None`` if none ever is.

        It is so of the decays as they are, in double precision, for a rule whose decays never fall.

        Raises:
            ValueError: if ``decay`` is not in (0, 1].
        """
        if not (is_real(decay) and 0 < decay <= 1):
            raise ValueError(f"decay must be in (0, 1], got {decay!r}")
        every = self.update_every
        below, reached = self.start + every, max(_LAST_CALL // every * every, self.start + every)
        if self._of_move(below) >= decay:
            return below
        if self._of_move(reached) < decay:
            return None
        # A closed form is exact only up to rounding: it says where to look.
        estimate = self.call_reaching(decay)
        if estimate is not None and below < estimate < reached:
            nearest = round(estimate / every) * every
            low, high = max(nearest - 2 * every, below), min(nearest + 2 * every, reached)
            below, reached = (low, reached) if self._of_move(low) < decay else (below, low)
            if below < high < reached:
                below, reached = (below, high) if self._of_move(high) >= decay else (high, reached)
        while reached - below > every:
            middle = below + (reached - below) // every // 2 * every
            below, reached = (below, middle) if self._of_move(middle) >= decay else (middle, reached)
        return reached

    def to_dict(self) -> dict[str, Any]:
        """The family's name and its settings, as plain values that JSON can hold."""
        return {"family": type(self).__name__, **asdict(self)}

    def varied(self, **settings: Any) -> Self:
        """A copy with other settings, each by its own name or by the key of its control."""
        names = {control.key: control.name for control in self.controls}
        return replace(self, **{names.get(key, key): value for key, value in settings.items()})

    # What a family says.

    def decays_of_moves(self, calls: Floats) -> Floats:
        """The rule: the decays of calls after ``start`` that are multiples of ``update_every``, in their shape.

        Each in [0, 1], and 1 only where it is 1 without rounding: such a call is skipped.
        """
        raise NotImplementedError

    def call_reaching(self, decay: float) -> float | None:
        """Its inverse: about the call at which the decay has grown to ``decay``, in (0, 1]; ``None`` if not known."""
        return None

    def with_decay(self, call: int, decay: float) -> Self | None:
        """The schedule, with the tuned setting changed, whose move at ``call`` has ``decay``, or the nearest there is.

        ``None`` where there is no formula for it: then it is searched for.
        """
        return None

    def rescaled(self, factor: float) -> Self | None:
        """The rule whose every move does what ``factor`` moves of this one do: its decay is the product of theirs.

        A move spans the same number of calls as before, of which each now stands for ``factor``; the timing is the
        caller's to scale.  ``None`` where no settings do it.
        """
        return None

    def search(self, setting: str, num_steps: int) -> Search:
        """Where the solvers look for a setting in a run of so many steps: by default all over its slider.

        ``beta`` is looked for from 0 to the largest decay there is, the start in the whole run.
        """
        positions = np.linspace(0, 1, 65)
        if setting == "beta":
            return Search(lambda position: -math.expm1(position * math.log1p(-LARGEST_DECAY)), positions)
        if setting == "update_after_step":
            return Search(lambda position: round(position * (num_steps - 1)), positions)
        control = next(control for control in self.controls if setting in (control.name, control.key))
        return Search(control.at, positions)

    def cure(self, decay: float, usual: str) -> str:
        """What would help where no tuned setting gives ``decay`` at the end of a run; ``usual`` helps any family."""
        return usual

    def remarks(self, decays: Floats) -> list[str]:
        """Sentences on settings that do nothing, or another thing than they seem to, in a run of these decays."""
        return []

    def _of_move(self, call: int) -> float:
        return float(self.decays_of_moves(np.array([float(call)]))[0])


#: The families by their names, in the order in which people are shown them.
FAMILIES: dict[str, type[Schedule]] = {}


def register(family: F) -> F:
    """Make a family known by its name: to code, JSON, controls, solvers and atlases.  A decorator.

    Raises:
        TypeError: if it is no frozen dataclass that derives from :class:`Schedule`.
        ValueError: if its name or label is another family's, if a control is of no setting of it, or if another family
            has a control of the same key with other properties: controls are shared by their keys.
    """
    name = family.__name__
    if not (issubclass(family, Schedule) and "__dataclass_params__" in vars(family)):
        raise TypeError(f"{name} must be a frozen dataclass that derives from Schedule")
    known = FAMILIES.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (family.__module__, family.__qualname__):
        raise ValueError(f"there is a family named {name} already, in {known.__module__}")
    family.label = family.label or name
    others = [other for other in FAMILIES.values() if other is not known]
    if any(other.label == family.label for other in others):
        raise ValueError(f"{name}: there is a family labelled {family.label!r} already")
    settings = {f.name for f in fields(family)}
    shared = {
        control.key: control for controls in (TIMING, *(other.controls for other in others)) for control in controls
    }
    for control in family.controls:
        if control.name not in settings:
            raise ValueError(f"{name} has no setting {control.name!r}, of which it has a control")
        if not hasattr(family, control.key) and control.key not in settings:
            raise ValueError(f"{name} has no attribute {control.key!r}, the key of a control of it")
        if shared.get(control.key, control) != control:
            raise ValueError(
                f"{name}: another family has a control {control.key!r} with other properties; use that one, as "
                "emacore.averaging.schedules.BETA, or give the control another key"
            )
    if family.tuned not in settings:
        raise ValueError(f"{name} has no setting {family.tuned!r}, which its solvers would vary: set tuned")
    FAMILIES[name] = family
    return family


def check_schedule(name: str, schedule: object) -> None:
    """Raise ``TypeError`` unless ``schedule`` is one; a window has no decays."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"{name} must be a schedule, such as Constant(beta=0.999), got {schedule!r}")


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


def changed_settings(schedule: Schedule) -> dict[str, Any]:
    """The settings that are not the family's defaults, its own first and those of all families last."""
    ordered = sorted(fields(schedule), key=lambda f: bool(f.kw_only))
    return {f.name: getattr(schedule, f.name) for f in ordered if getattr(schedule, f.name) != f.default}


def last_move(schedule: Schedule, num_steps: int) -> int:
    """The last call of a run of ``num_steps`` calls that is not skipped."""
    check_whole("num_steps", num_steps, 1, MOST_CALLS)
    return (int(num_steps) - 1) // schedule.update_every * schedule.update_every


def final_half_life(schedule: Schedule, num_steps: int) -> float:
    """Half-life, in steps, of the decay that acts at the end of a run of ``num_steps`` calls.

    Zero where the run ends on a copy, infinite where nothing new is taken in any more.
    """
    decay = float(schedule.at([last_move(schedule, num_steps)])[0])
    return half_life(decay) * schedule.update_every


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The families and solvers, which were here before they had modules of their own: code of then still runs."""
        for home in () if name.startswith("_") else ("families", "solving"):
            module = import_module(f"emacore.averaging.{home}")
            if getattr(vars(module).get(name), "__module__", None) == module.__name__:
                return vars(module)[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
