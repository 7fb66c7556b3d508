"""Merges that are chosen by an evaluation: greedy soups."""

from __future__ import annotations

import math
import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from emacore.averaging.coefficients import Coefficients
from emacore.checkpoints.merging import carry_out
from emacore.checkpoints.planning import plan_merge
from emacore.checkpoints.reading import Checkpoints, open_checkpoints
from emacore.replay.measure import OneByOne, named_measure

#: Seconds that the process which evaluates has to end by itself.
_ENDS_WITHIN = 5.0


class EvaluationError(RuntimeError):
    """A function that could not evaluate; the message says why."""


@dataclass(frozen=True)
class Tried:
    """One candidate of a greedy soup.

    Attributes:
        steps: Of the files in it, each with the same weight.
        value: What the evaluation gave.
        kept: Whether the soup went on from it.
    """

    steps: tuple[int, ...]
    value: float
    kept: bool


class Evaluation:
    """A function from a merged file or folder to a number, which another process works out.

    Attributes:
        function: As it was named, ``module:function``.
        higher_is_better: Whether more of it is better; ``None`` where it does not say so by its ``metrics``.
    """

    def __init__(self, function: str, pipe: Connection) -> None:
        self.function, self._pipe = function, pipe
        self.higher_is_better: bool | None = self._asked(None)

    def __call__(self, path: Path) -> float:
        return float(self._asked(path))

    def _asked(self, path: Path | None) -> Any:
        try:
            self._pipe.send(path)
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise EvaluationError(f"the process that evaluates {self.function} died") from error
        if isinstance(answer, str):
            raise EvaluationError(answer)
        return answer


@contextmanager
def evaluation(function: str) -> Iterator[Evaluation]:
    """What measures merged weights, in a process of its own.

    Args:
        function: ``module:function``, looked up from the current folder, too: whatever
            :func:`~emacore.replay.measure.named_measure` takes.  Of several numbers the first counts.

    Raises:
        EvaluationError: if it cannot be found, raises, or returns no number.
    """
    # A new process, not a copy of this one: what the function does to torch, to a GPU or to memory stays its own.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, function, str(Path.cwd())))

    process.start()
    try:
        there.close()
        yield Evaluation(function, here)
    except BaseException:
        process.terminate()  # an interruption may reach this process alone, and the function go on for hours
        raise
    finally:
        here.close()
        process.join(_ENDS_WITHIN)
        process.kill()


def _serve(pipe: Connection, function: str, folder: str) -> None:
    """Evaluate what comes through a pipe until its other end is closed: a number, or in words why there is none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process has it, too, and ends this one
    sys.stdout = sys.stderr  # where the other one prints its results, nothing else may stand
    with suppress(EOFError, OSError):
        while True:
            path = pipe.recv()
            try:
                pipe.send(evaluated(function, path, folder))
            except EvaluationError as error:
                pipe.send(str(error))


def greedy_soup(
    checkpoints: Checkpoints,
    evaluate: Callable[[Path], float],
    *,
    higher_is_better: bool = True,
    section: str | None = None,
    last: int | None = None,
    at: int | None = None,
    tell: Callable[[Tried], None] | None = None,
) -> tuple[Coefficients, list[Tried]]:
    """The greedy soup: from the best file on, each further one is kept if with it the plain mean is no worse.

    The number of the result was chosen on what ``evaluate`` looks at, and flatters it there: judge it on other data.

    Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time", 2022, recipe 1.

    Args:
        evaluate: From a file or folder of weights to a number, as of :func:`evaluation`.
        section, last, at: As of :func:`~emacore.checkpoints.merging.merge`.
        tell: Called with each candidate.

    Returns:
        The coefficients of the files, and all candidates in their order: each file alone first.

    Raises:
        EvaluationError: if no file has a number.
    """
    plain = plan_merge(checkpoints, {"all": Coefficients((1.0,))}, section=section, last=last, at=at)
    steps, count = [source.checkpoint.step for source in plain.sources], len(plain.sources)
    tried: list[Tried] = []

    def value_of(members: list[int]) -> float:
        factors = np.zeros(count)
        factors[members] = 1 / len(members)
        candidate = {"candidate": Coefficients(tuple(factors.tolist()))}
        plan = plan_merge(checkpoints, candidate, section=section, last=last, at=at)
        with tempfile.TemporaryDirectory() as folder:
            [path] = carry_out(plan, checkpoints, Path(folder) / "soup", hashed=False)
            return evaluate(path)

    def note(members: list[int], value: float, kept: bool) -> None:
        tried.append(Tried(tuple(steps[n] for n in sorted(members)), value, kept))
        if tell is not None:
            tell(tried[-1])

    sign = 1.0 if higher_is_better else -1.0
    alone = []
    for n in range(count):
        alone.append(value_of([n]))
        note([n], alone[n], kept=False)
    order = sorted((n for n in range(count) if not math.isnan(alone[n])), key=lambda n: -sign * alone[n])
    if not order:
        raise EvaluationError("the evaluation gives no number for any of the files")
    members, best = order[:1], alone[order[0]]
    for n in order[1:]:
        value = value_of([*members, n])
        kept = sign * value >= sign * best
        note([*members, n], value, kept)
        if kept:
            members, best = [*members, n], value
    factors = np.zeros(count)
    factors[members] = 1 / len(members)
    return Coefficients(tuple(factors.tolist())), tried


def evaluated(function: str, path: Path | None, folder: str) -> float | bool | None:
    """What ``module:function`` makes of the weights at ``path``; ``folder`` is looked into, too.

    Without a path: whether more of it is better, as far as it says that by its ``metrics``.
    """
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        measure = named_measure(function)
    except ValueError as error:
        raise EvaluationError(str(error)) from None
    if path is None:
        told = not isinstance(measure, OneByOne) or hasattr(measure.function, "metrics")
        return measure.metrics[0].higher_is_better if told else None
    section = open_checkpoints(path)[0].sections[0]
    tensors = {key: tensor.value().unsqueeze(0) for key, tensor in section.tensors.items()}
    try:
        return float(measure(tensors)[measure.metrics[0].column][0])
    except (Exception, SystemExit) as error:
        raise EvaluationError(f"{function} failed: {type(error).__name__}: {error}") from None
