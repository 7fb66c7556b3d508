"""Questions to a worker about what was opened: measurements by the owner's own function, and the diagnosis.

The function and the paths come from the environment of the server (see :mod:`emacore.experiments.opened`), never from
a question: that says by name what is asked about, and by a hash of which files, so that an answer is kept for these.
What a network measured is kept by the hash of its weights as well, so that a question that was stopped goes on where
it was.  Imports no torch before it answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from emacore.averaging.held import squared_distances
from emacore.experiments.opened import EVALUATE, evaluator_file, identity_of, opened, without_paths_in_json
from emacore.limits import MEASURED_BYTES
from emacore.replay.measure import Measure, named_measure

if TYPE_CHECKING:
    from torch import Tensor

    from emacore.experiments.store import RunStore
    from emacore.replay.trajectory import Table, Trajectory

#: Seconds between the signs of progress that are written.
_BETWEEN = 0.3
#: Weights added up at a time.
_COLUMNS = 2**22
_UNMEASURED = ("diagnosis", "distances")
#: Between more sets than these no distances are told.
MOST_APART = 400


class Stopped(Exception):
    """Somebody asked for an answer to be stopped while it was worked out."""


@dataclass(frozen=True)
class Question:
    """Something that only a worker can say of what was opened.

    Attributes:
        of: The name under which it was opened.
        files: Its :func:`~emacore.experiments.opened.identity_of`.
        sections: The sets of weights that are asked about.
        kind: One of :data:`KINDS`, "merges", or one of those for which nothing is measured, "diagnosis" and
            "distances".
        settings: What that takes, as JSON can hold it.
        by: What measures, as :func:`evaluator` says it; empty where nothing is measured, or by the recording itself.
    """

    of: str
    files: str
    sections: tuple[str, ...]
    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    by: str = ""

    def to_json(self, indent: int | None = None) -> str:
        """The question as JSON; :func:`question_from_json` gives an equal one back."""
        return json.dumps({"question": asdict(self)}, indent=indent, sort_keys=True)

    @property
    def measures(self) -> bool:
        """Whether networks are measured for its answer."""
        return self.kind not in _UNMEASURED

    @property
    def key(self) -> str:
        """Under which its answer is kept."""
        return f"answer-{hashlib.sha256(self.to_json().encode()).hexdigest()}"


def question_from_json(text: str) -> Question | None:
    """The question that a text is; ``None`` if it is something else."""
    found = json.loads(text)
    if not isinstance(found, dict) or "question" not in found:
        return None
    parts = found["question"]
    return Question(**{**parts, "sections": tuple(parts["sections"])})


def evaluator() -> str:
    """What measures, as the server's owner named it, ``module:function``, and which version of its file it is.

    Empty where none was named.
    """
    named = os.environ.get(EVALUATE, "").strip()
    if not named:
        return ""
    file = evaluator_file(named.partition(":")[0])
    content = file.read_bytes() if file is not None and file.is_file() else b""
    return f"{named}@{hashlib.sha256(content).hexdigest()[:12]}"


def work_on(store: RunStore, run_id: str, worker: str, question: Question, stop: Callable[[], bool]) -> None:
    """Answer a question that is ``worker``'s into the store, and enter how it ended.

    Raises:
        ValueError: if it cannot be answered.
    """
    last = [0.0, 0]

    def tell(done: int, of: int) -> None:
        if stop():
            raise Stopped
        if time.monotonic() - last[0] > _BETWEEN:
            last[0], last[1] = time.monotonic(), last[1] + 1
            store.append(run_id, worker, {"epoch": int(last[1]), "done": done, "of": of})

    try:
        if store.cell(question.key) is None:
            store.add_cells(_kept_as(question, answer(question, store, tell)))
    except Stopped:
        store.finish(run_id, worker, "stopped", stopped="stopped")
    else:
        store.finish(run_id, worker, "done", stopped="answered")


def answer(question: Question, store: RunStore, tell: Callable[[int, int], None] = lambda done, of: None) -> str:
    """The answer as JSON, which :func:`read` reads.

    Raises:
        ValueError: if what it is about is not opened (any more), has changed, or cannot be measured.
    """
    path = opened().get(question.of)
    if path is None:
        raise ValueError(f"nothing is opened under the name {question.of!r}")
    if identity_of(path) != question.files:
        raise ValueError(f"{question.of} has changed since it was looked at: open the page again")
    if question.measures and question.by != evaluator():
        raise ValueError("what measures has changed since this was asked: open the page again")
    try:
        if question.kind == "diagnosis":
            found = _diagnosed(path, question.settings)
        elif question.kind == "distances":
            found = {"squared": _apart(_trajectory(path, question.sections[0]).weights, tell)}
        elif question.kind == "merges":
            trajectory = _trajectory(path, question.sections[0])
            measure = _measure(trajectory, path, question.by)
            with _kept(_Kept(measure, store, question.by, tell, question)) as kept:
                found = kept.told(_merged(path, question, _with(trajectory, kept)))
        else:
            trajectory = _trajectory(path, question.sections[0])
            _check_memory(question, *trajectory.weights.shape)
            measure = _measure(trajectory, path, question.by)
            with _kept(_Kept(measure, store, question.by, tell, question, len(trajectory.epoch_ends))) as kept:
                found = kept.told(KINDS[question.kind](_with(trajectory, kept), **question.settings))
    except (ValueError, RuntimeError, OSError) as error:
        raise ValueError(json.loads(without_paths_in_json(str(error), path, question.of))) from error
    return without_paths_in_json(_plain(found), path, question.of)


def _kept_as(question: Question, text: str) -> dict[str, list[dict[str, Any]]]:
    """An answer by the keys under which it is kept: curves also each by itself, so that none is asked for again."""
    texts = {question.key: text}
    if question.kind == "curves":
        found = json.loads(text)
        for code, one in found["found"].items():
            alone = replace(question, settings={"codes": [code]})
            texts[alone.key] = json.dumps({**found, "found": {code: one}})
    return {key: [{"answer": text}] for key, text in texts.items()}


def read(text: str) -> Any:
    """The answer in the JSON of :func:`answer`, with the arrays and the :class:`Space` that were in it."""

    def restored(value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"dtype", "values"}:
            return np.array(value["values"], dtype=value["dtype"])
        if isinstance(value, dict) and set(value) == {"space"}:
            from emacore.replay.weight_space import Space

            return Space(**restored(value["space"]))
        if isinstance(value, dict):
            return {key: restored(one) for key, one in value.items()}
        return value

    return restored(json.loads(text))


def _plain(value: Any) -> Any:
    """An answer with its arrays and dataclasses as objects of JSON, which :func:`read` makes them of again."""
    if isinstance(value, np.ndarray):
        kind = "object" if value.dtype.kind in "OUS" else value.dtype.str
        return {"dtype": kind, "values": value.tolist()}
    if is_dataclass(value) and not isinstance(value, type):
        return {"space": {one.name: _plain(getattr(value, one.name)) for one in fields(value)}}
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value


class _Kept(Measure):
    """A measure whose numbers are kept in the store by the hashes of the weights, and which tells how far it is."""

    def __init__(
        self,
        measure: Measure,
        store: RunStore,
        by: str,
        tell: Callable[[int, int], None],
        question: Question,
        ends: int = 1,
    ) -> None:
        self._measure, self._store, self._by, self._tell = measure, store, by, tell
        self._done, self._of = 0, count_of(question, ends)
        self._seconds: list[float] = []
        self._pending: dict[str, list[dict[str, Any]]] = {}
        self._written = time.monotonic()
        self.metrics, self.at_once = tuple(measure.metrics), measure.at_once

    def __call__(self, networks: dict[str, Tensor]) -> Mapping[str, Any]:
        self._tell(self._done, self._of)
        count = len(next(iter(networks.values())))
        keys = [self._key(networks, number) for number in range(count)]
        rows = [self._pending.get(key) or self._store.cell(key) for key in keys]
        if missing := [number for number, row in enumerate(rows) if row is None]:
            asked = {name: tensor[missing] for name, tensor in networks.items()}
            begun = time.monotonic()
            found = self._measured(asked)
            self._seconds.append((time.monotonic() - begun) / len(missing))
            for place, number in enumerate(missing):
                rows[number] = [{m.column: float(found[m.column][place]) for m in self.metrics}]
                self._pending[keys[number]] = rows[number] or []
            if time.monotonic() - self._written > _BETWEEN:
                self.write()
        self._done += count
        return {m.column: np.array([row[0][m.column] for row in rows if row]) for m in self.metrics}

    def _measured(self, networks: dict[str, Tensor]) -> Mapping[str, Any]:
        try:
            return self._measure(networks)
        except (Exception, SystemExit) as error:
            if not self._by:
                raise
            raise ValueError(f"{self._by.rpartition('@')[0]} failed: {type(error).__name__}: {error}") from error

    def write(self) -> None:
        """Keep what was measured; some at a time, because each time waits for the disk."""
        self._store.add_cells(self._pending)
        self._pending, self._written = {}, time.monotonic()

    def told(self, found: Any) -> dict[str, Any]:
        """An answer: what was found, what was measured, and how many seconds a network took."""
        seconds = float(np.median(self._seconds)) if self._seconds else 0.0
        return {"metrics": [asdict(metric) for metric in self.metrics], "seconds": seconds, "found": found}

    def ensemble(self, batches: Sequence[dict[str, Tensor]]) -> Mapping[str, float]:
        """The metrics of the networks' mean prediction; of an ensemble nothing is kept."""
        return self._measure.ensemble(batches)

    def _key(self, networks: dict[str, Tensor], number: int) -> str:
        import torch

        found = hashlib.sha256(json.dumps([self._by, [asdict(metric) for metric in self.metrics]]).encode())
        for name in sorted(networks):
            tensor = networks[name][number].contiguous()
            found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"measured-{found.hexdigest()}"


@contextmanager
def _kept(measure: _Kept) -> Iterator[_Kept]:
    """What was measured is kept however the block ends."""
    try:
        yield measure
    finally:
        measure.write()


def _check_memory(question: Question, rows: int, columns: int) -> None:
    """Raise ``ValueError`` where an answer needs too many networks of so many ``columns`` in memory."""
    at_once = {
        "curves": len(question.settings.get("codes", ())),
        "atlas": 400,
        "family": 5 + rows // 4,
        "widths": 40,
        "space": 4 * min(rows, 400),
    }
    needed = 4 * columns * at_once[question.kind]
    if needed > MEASURED_BYTES:
        raise ValueError(
            f"this holds {at_once[question.kind]:,} networks of {columns:,} weights in memory, {needed / 2**30:,.0f} "
            f"GiB, where {MEASURED_BYTES / 2**30:,.0f} are allowed: measure merges one by one on Your checkpoints"
        )


def count_of(question: Question, ends: int) -> int:
    """How many networks an answer measures, at most, where so many stored ones are looked at."""
    match question.kind:
        case "merges":
            return len(question.settings["coefficients"])
        case "atlas":
            return 401 if question.settings["metric"] == "final" else 401 * min(12, ends)
        case "curves":
            return len(question.settings["codes"]) * ends
        case "family":
            return 5
        case "widths":
            return 40
        case "space":
            return 28 * 28 + 61
        case _:
            return ends


def _trajectory(path: Path, section: str) -> Trajectory:
    """What was opened as rows of one section; every stored file ends an "epoch", where nothing says else."""
    from emacore.replay.recording import read_recording
    from emacore.replay.trajectory import Trajectory

    if (path / "run.json").exists():
        rows = read_recording(path)
    else:
        from emacore.checkpoints import open_checkpoints

        rows = open_checkpoints(path).rows(section)
    if not len(rows.epoch_ends):
        rows = replace(rows, epoch_ends=tuple(range(len(rows.weights))))
    return Trajectory(rows)


def _with(trajectory: Trajectory, measure: Measure) -> Trajectory:
    from emacore.replay.trajectory import Trajectory

    return Trajectory(trajectory.rows, measure)


def _measure(trajectory: Trajectory, path: Path, by: str) -> Measure:
    """What the owner named, else what the recording says itself."""
    if by:
        return named_measure(os.environ[EVALUATE])
    if trajectory.settings is None:
        raise ValueError("nothing says how these networks are measured: start the app with --evaluate module:function")
    from emacore.tasks import open_run

    measure = open_run(path)._measure
    assert measure is not None
    return measure


def _merged(path: Path, question: Question, measured: Trajectory) -> Table:
    """The metrics of sums of what is stored, each file's set times its coefficient."""
    weights = list(_sets(path, measured, question.sections))
    columns = measured.weights.shape[1]
    found: list[Table] = []
    for coefficients in question.settings["coefficients"]:
        if len(coefficients) != sum(len(one) for one in weights):
            raise ValueError(f"there are {len(coefficients)} coefficients for {sum(map(len, weights))} stored sets")
        network = np.zeros(columns, dtype=np.float32)
        for first in range(0, columns, _COLUMNS):
            block = slice(first, min(first + _COLUMNS, columns))
            place = 0
            for rows in weights:
                for row in range(len(rows)):
                    if factor := coefficients[place]:
                        network[block] += np.float32(factor) * np.asarray(rows[row, block], dtype=np.float32)
                    place += 1
        found.append(measured.measure(network[np.newaxis]))
    names = [metric.column for metric in measured.measured]
    return {name: np.concatenate([one[name] for one in found]) if found else np.zeros(0) for name in names}


def _sets(path: Path, trajectory: Trajectory, sections: Sequence[str]) -> Iterator[NDArray[Any]]:
    """The rows of each section, one after the other."""
    yield trajectory.weights
    for section in sections[1:]:
        yield _trajectory(path, section).weights


def _curves(trajectory: Trajectory, codes: Sequence[str]) -> dict[str, Table]:
    """The curve of each scheme over the stored files, by its code."""
    from emacore.averaging.code import scheme_from_code
    from emacore.replay.curves import curve

    return {code: curve(trajectory, scheme_from_code(code)) for code in codes}


def _atlas(trajectory: Trajectory, code: str, x: str, y: str, metric: str) -> dict[str, Any]:
    from emacore.averaging.code import from_code
    from emacore.replay.atlas import atlas, original

    reference = original(trajectory, metric)[trajectory.measured[0].column]
    return {"cells": atlas(trajectory, from_code(code), x, y, metric), "original": reference}


def _family(trajectory: Trajectory) -> Table:
    from emacore.replay.relatives import relatives

    return relatives(trajectory)


def _space(trajectory: Trajectory, code: str, plane: str, since: int) -> Any:
    from emacore.averaging.code import scheme_from_code
    from emacore.replay.weight_space import space

    return space(trajectory, scheme_from_code(code), plane, since / 100)


def _widths(trajectory: Trajectory) -> Table:
    from emacore.replay.atlas import widths

    return widths(trajectory)


#: What can be asked of a trajectory, by name.
KINDS: dict[str, Callable[..., Any]] = {
    "curves": _curves,
    "atlas": _atlas,
    "family": _family,
    "space": _space,
    "widths": _widths,
}


def _apart(weights: NDArray[Any], tell: Callable[[int, int], None]) -> list[list[float]] | None:
    """The squared distances between sets of weights, shape (N, N); ``None`` where there are too many of them."""
    if len(weights) > MOST_APART:
        return None
    count = len(weights)
    apart = squared_distances(weights, max(1, _COLUMNS // count), lambda share: tell(int(share * count), count))
    found: list[list[float]] = apart.tolist()
    return found


def _diagnosed(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Findings, stretches and notes in sentences, and the table of the diagnosis."""
    from emacore.averaging.code import from_code
    from emacore.checkpoints.diagnosis import diagnose

    configured = settings.get("configured")
    sections = {kind: settings.get(kind) for kind in ("average", "raw")}
    found = diagnose(path, from_code(configured) if configured else None, **sections)
    return {
        "findings": [one.sentence for one in found.findings],
        "verdict": found.verdict,
        "well": found.tells,
        "stretches": [one.sentence for one in found.stretches],
        "notes": list(found.notes),
        "decays": found.table,
    }
