"""What an average really did between the files of a run, and where that is not what was configured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from emacore.averaging.code import to_code
from emacore.averaging.families import BiasCorrected, ExponentialRamp, InversePower, RationalWarmup
from emacore.averaging.recovery import MOST_RATE, Floats, Rate
from emacore.averaging.schedules import Schedule, check_schedule, last_move
from emacore.checkpoints.observed import Evidence, TensorFacts, evidence_in
from emacore.checkpoints.reading import Checkpoints, open_checkpoints
from emacore.formatting import counted, number, percent
from emacore.formatting import decay as decay_text
from emacore.tensors.pairing import listed

#: What can be wrong with an average.
Fault = Literal[
    "decay",
    "never reached",
    "reset",
    "flipped",
    "update_every",
    "buffers",
    "copied",
    "frozen",
    "dtype",
    "equal",
    "exchanged",
    "broken",
]
#: By how much a configured rate may lie outside an interval before it counts as refuted: the intervals hold on average
#: over unseen paths, and a fault is never so small.
_SLACK = 1.15
#: Numbers of steps between updates that are tried.
_EVERY = (*range(1, 65), 100, 128, 200, 256, 500, 512, 1000)


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or not as configured.

    Attributes:
        fault: The explanation that fits best.
        sentence: What was seen, and which explanations fit.
        or_else: Explanations that these files cannot tell from it.
    """

    fault: Fault
    sentence: str
    or_else: tuple[Fault, ...] = ()

    def names(self, fault: str) -> bool:
        """Whether it is one of the explanations."""
        return fault in (self.fault, *self.or_else)


@dataclass(frozen=True)
class Stretch:
    """What happened between two files.

    Attributes:
        begin, end: Steps of the files.
        rate: How much was forgotten.
        configured: How much would have been by the configured schedule, as ``-log`` of the product of its decays.
    """

    begin: int
    end: int
    rate: Rate
    configured: float | None

    @property
    def decays(self) -> tuple[float, float, float]:
        """Low, best and high decay of a step, if all of the stretch had the same."""
        return self.rate.decays(self.end - self.begin)

    @property
    def configured_decay(self) -> float | None:
        """The geometric mean of the configured decays of its steps."""
        return None if self.configured is None else math.exp(-self.configured / (self.end - self.begin))

    @property
    def sentence(self) -> str:
        """What the average did between the two files, in words."""
        low, best, high = self.decays
        about = f"From step {self.begin:,} to {self.end:,}"
        if self.rate.has_low and self.rate.has_high:
            text = f"{about} a step had decay {_decay(best, low, high)} ({_decay(low, high)} to {_decay(high, low)})"
        elif self.rate.has_low:
            text = f"{about} a step had a decay of at most {_decay(high, 0)}, and these files set no lower end"
        elif self.rate.has_high:
            text = f"{about} a step had a decay of at least {_decay(low, 1)}"
        else:
            text = f"{about} these files do not tell the decay"
        if self.configured is not None:
            text += f"; configured: {_configured(self.configured, self.end - self.begin)}"
        return f"{text}."


@dataclass(frozen=True)
class Diagnosis:
    """What the files say of an average.

    Attributes:
        stretches: Between each two neighbouring files.
        findings: What is wrong, the gravest first; empty where all is as it should be, as far as the files tell.
        notes: What they cannot tell, and what else there is to know.
        of_another_size: Whether the average is so much larger or smaller than the raw weights that its decays may mean
            nothing.
    """

    stretches: tuple[Stretch, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    of_another_size: bool = False

    def names(self, fault: str) -> bool:
        """Whether a fault is one of the explanations of what was found."""
        return any(finding.names(fault) for finding in self.findings)

    @property
    def table(self) -> dict[str, Floats]:
        """A row a stretch: the steps of its files, a step's decay with its interval, and the configured one, if any."""
        decays = np.array([one.decays for one in self.stretches]).reshape(-1, 3)
        configured = [one.configured_decay for one in self.stretches]
        return {
            "from_step": np.array([one.begin for one in self.stretches], dtype=np.float64),
            "to_step": np.array([one.end for one in self.stretches], dtype=np.float64),
            "decay": decays[:, 1],
            "low": decays[:, 0],
            "high": decays[:, 2],
            "configured": np.array([math.nan if one is None else one for one in configured]),
        }

    @property
    def tells(self) -> bool:
        """Whether the files tell anything of the decay, so that no finding means that all is well."""
        return not self.of_another_size and any(one.rate.has_low or one.rate.has_high for one in self.stretches)

    @property
    def verdict(self) -> str:
        """What it means that nothing was found."""
        return "Nothing wrong was found." if self.tells else "These files do not tell whether something is wrong."

    @property
    def sentences(self) -> list[str]:
        """The findings, or that there are none, then each stretch and the notes, in words."""
        found = [finding.sentence for finding in self.findings] or [self.verdict]
        return [*found, *(stretch.sentence for stretch in self.stretches), *self.notes]


def diagnose(
    checkpoints: Checkpoints | str | Path,
    configured: Schedule | None = None,
    *,
    average: str | None = None,
    raw: str | None = None,
) -> Diagnosis:
    """Find out what an average really did, from files that hold raw and averaged weights.

    The decay between two files is recovered as :mod:`emacore.averaging.recovery` says.  Two files are the least; a
    third tells a reset from a short memory.

    Args:
        checkpoints: What :func:`~emacore.checkpoints.open_checkpoints` returned, or what it takes.
        configured: The schedule that the average was to have; each step is one of its calls.
        average, raw: The sections to compare, where the files have several.

    Raises:
        CheckpointError: if no file holds both, or they do not go together.
        TypeError: if ``configured`` is no schedule: a window has no decays.
    """
    if configured is not None:
        check_schedule("configured", configured)
    opened = checkpoints if isinstance(checkpoints, Checkpoints) else open_checkpoints(checkpoints)
    evidence = evidence_in(opened, average, raw)
    notes = []
    if any("epoch" in one.step_from or "order" in one.step_from for one in opened):
        if evidence.counters is not None and all(np.diff(evidence.counters) > 0):
            evidence = replace(evidence, steps=evidence.counters, counters=None)
            notes.append("The files do not tell steps: the average's own counter stands for them.")
        elif configured is not None:
            configured = None
            notes.append("The files do not tell steps, so nothing can be compared with what was configured.")
    found = diagnosed(evidence, configured)
    if not found.findings and found.stretches and not any(one.rate.has_high for one in found.stretches):
        turned = diagnosed(evidence_in(opened, evidence.raw, evidence.average))
        if not found.of_another_size and all(one.rate.has_low and one.rate.has_high for one in turned.stretches):
            alone = len(found.stretches) == 1
            sentence = (
                f"The two seem to be exchanged: {evidence.raw} moves as an average of {evidence.average} would, and "
                "not the other way round: then name them by --average and --raw. Or the average "
                f"{'was begun anew between the files, or ' if alone else ''}has a memory so short that nothing of it "
                "is left from file to file: files nearer together would tell."
            )
            others: tuple[Fault, ...] = ("reset", "decay") if alone else ("decay",)
            found = replace(found, findings=(Finding("exchanged", sentence, others),))
    return replace(found, notes=(*notes, *found.notes))


def diagnosed(evidence: Evidence, configured: Schedule | None = None) -> Diagnosis:
    """The diagnosis that :func:`diagnose` makes, from evidence that was read already."""
    case = _Case(evidence, configured)
    if len(evidence.steps) < 2:
        note = "One file tells only whether the average equals the raw weights: give two or more of one run."
        return Diagnosis((), tuple(_of_tensors(case)), (note,))
    of_tensors = list(_of_tensors(case))
    faults = {finding.fault for finding in of_tensors}
    stretches: tuple[Stretch, ...] = ()
    of_decay: list[Finding] = []
    notes: list[str] = []
    of_another_size = False
    if case.moving and not case.at_copies and not any(one.fault in ("equal", "dtype") for one in of_tensors):
        rates, expected = evidence.rates, case.expected
        stretches = tuple(
            Stretch(begin, end, rate, None if expected is None else expected[number])
            for number, ((begin, end), rate) in enumerate(zip(evidence.stretches, rates, strict=True))
        )
        of_decay = list(_of_decay(case, stretches))
        words = _told_of_scale(evidence, sought=bool(of_decay))
        of_another_size = words is not None
        notes += [*([words] if words else []), *_notes(case, stretches, of_decay)]
        if case.expected is None and (still := _still_stretches(case, [1.0] * len(stretches))):
            notes.append(
                f"{counted(len(still), 'stretch', 'stretches')} of {len(stretches)} left the average as it was: its "
                "update was not called there, or is called more rarely than files are stored."
            )
    elif "dtype" in faults:
        notes = [
            "What the decay was, and whether it was begun anew, cannot be told from weights that rounding held back."
        ]
    if masks := [one.name for one in evidence.tensors if not one.finite and one not in _broken(case)]:
        notes.append(f"Left out, because they are not finite: {listed(masks)}.")
    if lacking := [name for name in evidence.missing if not TensorFacts.named_as_statistic(name)]:
        notes.append(f"Not in the average, and so not looked at: {listed(lacking)}.")
    return Diagnosis(stretches, (*of_tensors, *of_decay), tuple(notes), of_another_size)


class _Case:
    """The evidence beside what was configured."""

    def __init__(self, evidence: Evidence, configured: Schedule | None) -> None:
        self.evidence, self.configured = evidence, configured
        trained = [one for one in evidence.tensors if one.trains or len(evidence.steps) < 2]
        self.weights = [one for one in trained if not one.is_statistic] or trained
        self.statistics = [one for one in trained if one.is_statistic]
        self.moving = bool(evidence.weights) and any(any(one.moved) for one in evidence.weights)
        self.equal = [
            any(one.far or len(evidence.steps) < 2 for one in self.weights)
            and all(one.equal[file] for one in self.weights)
            for file in range(len(evidence.steps))
        ]
        self.at_copies = all(self.equal)

    @property
    def expected(self) -> list[float] | None:
        """How much the configured schedule would have forgotten in each stretch."""
        return None if self.configured is None else self.forgotten(self.configured)

    def forgotten(self, schedule: Schedule, change: Callable[[float], float] | None = None) -> list[float]:
        """How much a schedule, its decays changed or not, forgets in each stretch."""
        found = []
        for begin, end in self.evidence.stretches:
            decays = schedule.at(np.arange(begin, end))
            if change is not None:
                acts = (decays > 0) & (decays < 1)
                decays[acts] = [change(decay) for decay in decays[acts]]
            with np.errstate(divide="ignore"):
                found.append(min(float(-np.log(decays).sum()), 10 * MOST_RATE))
        return found

    def last_decay(self) -> float:
        """The configured schedule's decay at the last file."""
        assert self.configured is not None
        return float(self.configured.at([last_move(self.configured, self.evidence.steps[-1])])[0])


def _of_tensors(case: _Case) -> Iterator[Finding]:
    """The findings that single tensors give, such as that one is not finite or never moves."""
    steps = case.evidence.steps
    if broken := _broken(case):
        first = min(one.broken_at for one in broken if one.broken_at is not None)
        yield Finding(
            "broken",
            f"At step {steps[first]:,} there are numbers that are not finite, in "
            f"{listed([one.name for one in broken])}: the run broke down, or its average did; they are left out.",
        )
    if case.at_copies:
        yield _equal(case)
    elif later := [file for file in range(1, len(steps)) if case.equal[file] and not all(case.equal[:file])]:
        yield Finding(
            "reset",
            f"The average was begun anew: at step {steps[later[0]]:,} it equals the raw weights, as it did not before.",
        )
    yield from _of_buffers(case)
    if not case.at_copies:
        if copied := [one.name for one in case.weights if one.is_copied]:
            yield Finding("copied", f"Not averaged, but copied from the raw weights: {listed(copied)}.")
        yield from _of_frozen(case)
        if case.expected is not None and (still := _still_stretches(case, case.expected)):
            said = ", ".join(f"from step {begin:,} to {end:,}" for begin, end in still)
            yield Finding(
                "frozen",
                f"The average stood still {said}, though the raw weights moved: its update was not called there, or is "
                "called more rarely than files are stored.",
                ("update_every",),
            )


def _still_stretches(case: _Case, expected: Sequence[float]) -> list[tuple[int, int]]:
    """Where no number of an average that moves elsewhere moved, though the configured one would have, and visibly."""
    whole = [one for one in case.weights if one.finite and any(one.moved) and one.coarse is None]
    found = []
    for place, stretch in enumerate(case.evidence.stretches):
        moves = 1 - math.exp(-expected[place])
        seen = [one for one in whole if one.raw_moved[place] and one.gaps[place] * moves >= 16]
        if seen and not any(one.moved[place] for one in whole):
            found.append(stretch)
    return found


def _broken(case: _Case) -> list[TensorFacts]:
    """The tensors with numbers that are not finite, but for those that never change: masks."""
    return [one for one in case.evidence.tensors if not one.finite and (any(one.raw_moved) or any(one.moved))]


def _equal(case: _Case) -> Finding:
    steps, configured = case.evidence.steps, case.configured
    if configured is not None and configured.start >= steps[-1] - configured.update_every:
        return Finding(
            "never reached",
            f"The average still equals the raw weights, because its warm-up lasts until step {configured.start:,}, and "
            f"the last file is of step {steps[-1]:,}.",
        )
    files = "every file" if len(steps) > 1 else "this file"
    text = f"In {files} the average equals the raw weights: no average was kept, or the raw weights were stored twice"
    narrow = {str(one.dtype).removeprefix("torch.") for one in case.weights if one.dtype.itemsize < 4}
    if narrow:
        text += f"; or it trails them by less than {listed(narrow)} tells, as with decay and 1 - decay exchanged"
        return Finding("equal", f"{text}.", ("flipped",))
    return Finding("equal", f"{text}.")


def _of_buffers(case: _Case) -> Iterator[Finding]:
    copied = [one.name for one in case.statistics if one.is_copied and not case.at_copies]
    frozen = [one.name for one in case.statistics if one.is_frozen]
    missing = [name for name in case.evidence.missing if TensorFacts.named_as_statistic(name)]
    if copied:
        yield Finding(
            "buffers",
            f"Running statistics are copied, not averaged ({listed(copied)}): they are those of the raw weights; pass "
            "data through the averaged model (torch.optim.swa_utils.update_bn), or average them too.",
        )
    if frozen:
        yield Finding(
            "buffers",
            f"Running statistics of the average stand still ({listed(frozen)}): they are those of an older model; pass "
            "data through the averaged model (torch.optim.swa_utils.update_bn), or average them too.",
        )
    if missing:
        yield Finding(
            "buffers",
            f"The average has no running statistics ({listed(missing)} are of the raw weights only): a model that "
            "loads it keeps others than its own; pass data through it (torch.optim.swa_utils.update_bn).",
        )


def _of_frozen(case: _Case) -> Iterator[Finding]:
    stuck = case.evidence.stuck
    if stuck is not None:
        dtypes = listed({str(one.coarse).removeprefix("torch.") for one in case.weights if one.coarse is not None})
        yield Finding(
            "dtype",
            f"{dtypes} is too coarse for this average: {percent(stuck, 2)} of its larger numbers stood still between "
            "the files, while small ones moved. Keep the average in float32.",
        )
    frozen = [one for one in case.weights if one.is_frozen and _would_have_moved(case, one)]
    if stuck is not None:
        frozen = [one for one in frozen if one.coarse is None]
    if not frozen or (case.expected is not None and max(case.expected) == 0):
        return
    coarse = all(one.coarse is not None for one in frozen)
    if len(frozen) == sum(one.finite for one in case.weights):
        text = "The average never moved, though the raw weights did: its update is not called, or changes another copy"
    else:
        text = (
            f"Some tensors of the average never moved, though the raw ones did: {listed([one.name for one in frozen])}"
        )
    if coarse:
        dtypes = listed({str(one.coarse).removeprefix("torch.") for one in frozen})
        yield Finding("frozen", f"{text}; or each step was rounded away in {dtypes}.", ("dtype",))
    else:
        yield Finding("frozen", f"{text}.")


def _would_have_moved(case: _Case, tensor: TensorFacts) -> bool:
    """Whether the average of a tensor was far enough from the raw one to move visibly, at the others' decay."""
    if not case.moving:
        return max(tensor.gaps) >= 4
    kept = [math.exp(-rate.best) for rate in case.evidence.rates]
    return any(gap * (1 - share) >= 16 for gap, share in zip(tensor.gaps, kept, strict=True))


def _of_decay(case: _Case, stretches: Sequence[Stretch]) -> Iterator[Finding]:
    counters = case.evidence.counters
    if counters is not None and (falls := [n for n in range(1, len(counters)) if counters[n] < counters[n - 1]]):
        file = falls[0]
        yield Finding(
            "reset",
            f"The average was begun anew between step {case.evidence.steps[file - 1]:,} and "
            f"{case.evidence.steps[file]:,}: its counter fell from {counters[file - 1]:,} to {counters[file]:,}.",
        )
        return
    if case.configured is None:
        yield from _without_configuration(case, stretches)
    else:
        yield from _beside_configuration(case, case.configured, stretches)


def _without_configuration(case: _Case, stretches: Sequence[Stretch]) -> Iterator[Finding]:
    if (trails := _most_trailing(case, stretches)) < 0.05:
        first = stretches[0]
        trailed = case.evidence.lag_before(0) * (first.end - first.begin)
        if trailed > 3 * 0.05:  # a step may be some times as long as those after it, as under a cosine
            yield Finding(
                "reset",
                f"The average was begun anew between step {first.begin:,} and {first.end:,}, or has a smaller decay "
                f"since: it trails the raw weights by {number(trailed, 2)} of a step before, and by "
                f"{number(trails, 2)} after. These files cannot tell the two apart: a later one would.",
                ("decay", "flipped"),
            )
            return
        yield Finding(
            "flipped",
            f"The average trails the raw weights by only {number(trails, 2)} of a step, as at a decay of about "
            f"{number(trails / (1 + trails), 2)}: as if decay and 1 - decay were exchanged.",
            ("decay",),
        )
        return
    for number_of, stretch in enumerate(stretches[1:], 1):
        before = [one.rate.high / (one.end - one.begin) for one in stretches[:number_of]]
        if not stretch.rate.has_high and stretch.rate.low / (stretch.end - stretch.begin) > _SLACK * max(before):
            words = "it was begun anew there, or has a smaller decay since; a later file would tell"
            yield Finding("reset", f"{_forgot(stretch)}, more than before: {words}.", ("decay",))
            return


def _beside_configuration(case: _Case, configured: Schedule, stretches: Sequence[Stretch]) -> Iterator[Finding]:
    expected = case.forgotten(configured)
    fits = [one.rate.allows(rate, _SLACK) for one, rate in zip(stretches, expected, strict=True)]
    if (words := _flipped(case, configured, stretches)) is not None:
        if case.equal[0] and len(stretches) == 1:
            about = f"or it was begun anew shortly before step {stretches[0].end:,}: a third file would tell"
            yield Finding("flipped", f"Not as configured: it is as if {words}; {about}.", ("reset",))
        else:
            yield Finding("flipped", f"Not as configured: it is as if {words}.")
        return
    if all(fits):
        beta, last = getattr(configured, "beta", None), case.last_decay()
        if beta is not None and last > 0 and 1 - last > 1.5 * (1 - beta):
            yield Finding(
                "never reached",
                f"The decay is as configured, but has not reached beta = {decay_text(beta)}: at step "
                f"{case.evidence.steps[-1]:,} it is {decay_text(last)}.",
            )
        return
    explanations = dict(_explanations(case, configured, stretches, expected, fits))
    wrong = stretches[fits.index(False)]
    if not explanations:
        explanations = {"decay": "the decay changed between the files, in a way that none of the usual faults does"}
    first, *others = explanations
    text = f"Not as configured: {_forgot(wrong)}, where {to_code(configured)} keeps {_share(wrong.configured)}. "
    text += f"It is as if {explanations[first]}"
    if others:
        text += f"; these files cannot tell that from this: {'; or '.join(explanations[one] for one in others)}"
    yield Finding(first, f"{text}.", tuple(others))


def _explanations(
    case: _Case, configured: Schedule, stretches: Sequence[Stretch], expected: Sequence[float], fits: Sequence[bool]
) -> Iterator[tuple[Fault, str]]:
    """Which faults would have done this, the likeliest first, and how each would read after "it is as if"."""
    rates = [one.rate for one in stretches]
    faster = [not fit and one.rate.low > rate for one, rate, fit in zip(stretches, expected, fits, strict=True)]
    some_fit = any(fit and one.rate.has_high for one, fit in zip(stretches, fits, strict=True))
    forgets = [
        n for n, rate in enumerate(rates) if faster[n] and (not rate.has_high or rate.high > max(3.0, 2 * expected[n]))
    ]
    if some_fit and forgets:
        yield "reset", f"it was begun anew {_between(stretches[forgets[0]])}, as at a resume"
        if forgets[0] == 0 and (rules := _warm_ups(case, configured, rates)):
            yield "never reached", _growing(rules)
        if all(faster[forgets[0] :]) and (words := _other_decay(stretches[forgets[0] :])) is not None:
            yield "decay", f"{words} from step {stretches[forgets[0]].begin:,} on, which a later file would tell"
        return
    if (words := _counted_otherwise(case, configured, rates, expected)) is not None:
        yield "update_every", words
    if all(faster[n] or fits[n] for n in range(len(rates))):
        each = [(one.rate.low / (one.end - one.begin), one.rate.high / (one.end - one.begin)) for one in stretches]
        grows = any(after[1] < before[0] for before, after in pairwise(each))
        if rules := _warm_ups(case, configured, rates):
            yield "never reached", _growing(rules)
        elif grows and all(after[0] <= before[1] for before, after in pairwise(each)):
            yield "never reached", "a warm-up were not over: the decay grows from file to file"
    if (words := _other_decay(stretches)) is not None:
        yield "decay", words
    if forgets:
        yield "reset", f"it was begun anew {_between(stretches[forgets[0]])}, as at a resume"
    if not any(faster) and any(one.coarse is not None for one in case.weights):
        yield "dtype", "its steps were rounded away"


def _flipped(case: _Case, configured: Schedule, stretches: Sequence[Stretch]) -> str | None:
    exchanged = case.forgotten(configured, lambda decay: 1 - decay)
    if not all(one.rate.allows(rate, _SLACK) for one, rate in zip(stretches, exchanged, strict=True)):
        return None
    last = case.last_decay()
    if last > 0.5:
        # Hardly anything of the average before is left then.  It must also keep closer to the raw weights than the
        # configured one could, even if those slowed down towards the file as a cosine schedule lets them.
        for number_of, (begin, end) in enumerate(case.evidence.stretches):
            ages = np.arange(end - begin)
            nearest = float((1 - last) * last**ages @ (ages / len(ages)) ** 3)
            most = min(3 * (1 - last), nearest / 3)
            if not case.evidence.lag(number_of) <= most or (not number_of and case.evidence.lag_before(0) > most):
                return None  # where only the first file trails them, it was begun anew since
    elif not all(one.rate.has_high for one in stretches) or all(
        one.rate.allows(rate, _SLACK) for one, rate in zip(stretches, case.forgotten(configured), strict=True)
    ):
        return None
    return f"decay and 1 - decay were exchanged, which gives {decay_text(1 - last)}"


def _counted_otherwise(
    case: _Case, configured: Schedule, rates: Sequence[Rate], expected: Sequence[float]
) -> str | None:
    """Other numbers of steps between updates, or of updates a step, that would have done this."""
    if not all(rate.has_low or rate.has_high for rate in rates):
        return None
    counters = case.evidence.counters
    if counters is not None and (calls := counters[-1] - counters[0]) > 0:
        steps = case.evidence.steps[-1] - case.evidence.steps[0]
        if not 0.98 < calls / steps < 1.02:
            return f"update() were called {counted(calls, 'time')} in {counted(steps, 'step')}, as its counter says"
    every = [
        k
        for k in _EVERY
        if k != configured.update_every
        and all(
            rate.allows(one, 1.02)
            for rate, one in zip(rates, case.forgotten(replace(configured, update_every=k)), strict=True)
        )
    ]
    if every:
        said = f"{every[0]}" if len(every) == 1 else f"about {every[0]} to {every[-1]}"
        return f"update_every were {said}, not {configured.update_every}"
    times = [
        k for k in range(2, 65) if all(rate.allows(k * one, 1.02) for rate, one in zip(rates, expected, strict=True))
    ]
    if times:
        said = f"about {times[0]} to {times[-1]}" if times[-1] < 64 else f"at least {times[0]}"
        said = f"{times[0]}" if len(times) == 1 else said
        return f"update() were called {said} times a step, once a micro-batch, for instance"
    return None


def _warm_ups(case: _Case, configured: Schedule, rates: Sequence[Rate]) -> list[str]:
    """Usual rules of warm-ups that fit all stretches and are still below the configured decay at the last file."""
    beta = float(getattr(configured, "beta", case.last_decay()))
    rules: dict[str, Schedule] = {
        "min(beta, (1 + n) / (10 + n))": RationalWarmup(beta),
        **{
            f"1 - (1 + n) ** -{name}": InversePower(beta, power=power, update_after_step=0, update_every=1)
            for name, power in (("2/3", 2 / 3), ("3/4", 0.75), ("1", 1.0))
        },
        "beta * (1 - exp(-n / 2000))": ExponentialRamp(beta),
        "a bias correction": BiasCorrected(beta),
    }
    last = case.evidence.steps[-1]
    return [
        name
        for name, rule in rules.items()
        if 1 - rule.rule(last - 1) > 1.2 * (1 - beta)
        and all(rate.allows(one, _SLACK) for rate, one in zip(rates, case.forgotten(rule), strict=True))
    ]


def _growing(rules: Sequence[str]) -> str:
    return f"a warm-up were not over ({' or '.join(rules)} would have these decays)"


def _other_decay(stretches: Sequence[Stretch]) -> str | None:
    """One decay that fits all stretches, with its interval."""
    low = max(one.rate.low / (one.end - one.begin) for one in stretches)
    high = min(one.rate.high / (one.end - one.begin) if one.rate.has_high else math.inf for one in stretches)
    if low > high:
        return None
    largest, smallest = math.exp(-low), 0.0 if math.isinf(high) else math.exp(-high)
    if smallest == 0:
        return f"each step had a decay of at most {decay_text(largest)}"
    return f"each step had a decay from {_decay(smallest, largest)} to {_decay(largest, smallest)}"


def _told_of_scale(evidence: Evidence, *, sought: bool) -> str | None:
    """A sentence where the average is of another size than the raw weights in the last file.

    Args:
        sought: Whether its decays need an explanation, so that a small difference counts.
    """
    scales = evidence.scales
    low, high = (0.9, 1.1) if sought else (0.5, 2.0)
    if not scales or not np.isfinite(scales).all() or low <= scales[-1] <= high:
        return None
    return (
        f"The average is {number(min(scales), 3)} to {number(max(scales), 3)} times as large as the raw weights in "
        "these files: as if the weights of its steps did not add to 1 (d * ema + c * weights, where c is not 1 - d), "
        "which looks like another decay, update_every or a reset here, and then the decays above mean nothing; or it "
        "remembers weights of another size, such as the initial ones. These files cannot tell the two apart: one from "
        "where the average began, and is the weights, would."
    )


def _most_trailing(case: _Case, stretches: Sequence[Stretch]) -> float:
    """By how many steps the average trails the raw weights, at most, if those moved evenly between the files."""
    trails = [case.evidence.lag(n) * (one.end - one.begin) for n, one in enumerate(stretches)]
    known = [trail for trail in trails if math.isfinite(trail)]
    return max(known, default=math.inf)


def _notes(case: _Case, stretches: Sequence[Stretch], found: Sequence[Finding]) -> Iterator[str]:
    if case.configured is None:
        each = [(one.rate.low / (one.end - one.begin), one.rate.high / (one.end - one.begin)) for one in stretches]
        if not found and any(after[1] < before[0] for before, after in pairwise(each)):
            yield "The decay grew from file to file, as in a warm-up or with a power function."
        if not found and (words := _other_decay(stretches)) is not None:
            yield (
                f"All files together: {words}; one call every k steps whose decay is the k-th power of that does the "
                "same, and the files cannot tell them apart."
            )
        yield "Without the configured schedule nothing says what the decay was to be."
    elif not found:
        every = case.configured.update_every
        yield (
            f"The same is done by a decay of {decay_text(case.last_decay() ** (1 / every))} at every step: these files "
            "cannot tell update_every from it."
            if every > 1
            else "A larger decay at fewer updates, in proportion, would look the same."
        )
    if any(not one.rate.has_high for one in stretches):
        yield (
            "Where nothing is left of the average before, a reset and a short memory look alike: files at most half a "
            f"memory of the average apart{_half_memory(case)} would tell."
        )
    narrow = {
        str(one.coarse if one.coarse is None or one.dtype.itemsize > 1 else one.dtype).removeprefix("torch.")
        for one in case.evidence.weights
    }
    if "None" not in narrow and not any(one.names("dtype") for one in found):
        yield (
            f"All numbers of the average are {listed(narrow)}: if it is kept in that, and not only stored, steps of "
            "less than half their spacing are lost, which these files neither show nor exclude."
        )
    if len(stretches) == 1:
        yield "Two files are one stretch: a third would tell a lasting fault from a single event."


def _half_memory(case: _Case) -> str:
    """Half a memory of the configured average, as words in a sentence; empty where that has none."""
    if case.configured is None or not 0 < (decay := case.last_decay()) < 1:
        return ""
    steps = max(round(case.configured.update_every / (1 - decay) / 2), 1)
    return f" ({counted(steps, 'step')}, as configured)"


def _forgot(stretch: Stretch) -> str:
    rate = stretch.rate
    between = f"from step {stretch.begin:,} to {stretch.end:,} the average kept"
    if not rate.has_high:
        return f"{between} at most {_share(rate.low)} of what it was"
    return f"{between} {_share(rate.high)} to {_share(rate.low)} of what it was"


def _between(stretch: Stretch) -> str:
    return f"between step {stretch.begin:,} and {stretch.end:,}"


def _share(rate: float | None) -> str:
    return "" if rate is None else percent(math.exp(-rate) if rate < 100 else 0.0)


def _configured(rate: float, calls: int) -> str:
    return "a copy" if rate > 5 * MOST_RATE else decay_text(math.exp(-rate / calls))


def _decay(value: float, *others: float) -> str:
    """A decay with the digits by which it differs from 1 and from the ends of its interval."""
    if value in (0.0, 1.0):
        return number(value)
    places = [2 - math.floor(math.log10(abs(value - other))) for other in (1.0, *others) if value != other]
    return f"{value:.{min(max(places), 12)}f}".rstrip("0")
