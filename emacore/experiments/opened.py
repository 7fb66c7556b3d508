"""Checkpoints and recordings that the server's owner opened for the app: which, what is in them, and what merges of
them come to.

They are opened by the command line or the environment only.  A page knows them by their names, and never sees where
they lie.  Imports no torch: their headers are read in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import emacore
from emacore.averaging.code import from_code, to_code
from emacore.averaging.coefficients import Averaged, Profile, Span, merged_profile
from emacore.averaging.families import PowerFunction
from emacore.averaging.planned import Planned, planned
from emacore.averaging.schedules import Schedule
from emacore.averaging.views import sampled_calls

#: The environment variables that name what is opened, with os.pathsep between them, and what measures it.
OPEN, EVALUATE = "EMACORE_OPEN", "EMACORE_EVALUATE"

#: Of a longer run about this many calls are drawn, and so many before each file that is an average itself.
_POINTS, _POINTS_OF_AN_AVERAGE = 20_000, 80

Floats = NDArray[np.float64]
Table = dict[str, NDArray[Any]]


class OpenedError(RuntimeError):
    """What was opened cannot be read; the message says why, by its name and without a path."""


def opened() -> dict[str, Path]:
    """What was opened, by the names that pages show: the end of each path, as much of it as tells two apart."""
    paths = [Path(text).expanduser().absolute() for text in os.environ.get(OPEN, "").split(os.pathsep) if text.strip()]
    paths = [Path(os.path.normpath(path)) for path in dict.fromkeys(paths)]
    names: dict[str, Path] = {}
    for path in paths:
        parts = path.parts[1:] or ("root",)
        depth = 1
        while depth < len(parts) and any(
            other != path and _ending(other, depth) == _ending(path, depth) for other in paths
        ):
            depth += 1
        names[_ending(path, depth)] = path
    return names


def _ending(path: Path, depth: int) -> str:
    return "/".join((path.parts[1:] or ("root",))[-depth:])


def checked_paths(paths: Sequence[str | Path]) -> str:
    """These paths, made absolute, as the environment variable :data:`OPEN` holds them.

    Raises:
        ValueError: for a path that cannot stand in it.
    """
    found = [str(Path(path).absolute()) for path in paths]
    if wrong := [path for path in found if os.pathsep in path]:
        raise ValueError(f"{wrong[0]} cannot be opened, because it has a {os.pathsep!r} in its name: rename it")
    return os.pathsep.join(found)


def checked_evaluator(text: str) -> str:
    """``module:function``, where there is such a module here; nothing of it is imported or run.

    Raises:
        ValueError: if there is not.
    """
    module, colon, name = text.strip().partition(":")
    if not (module and colon and name.isidentifier()):
        raise ValueError(f"what evaluates must be given as module:function, such as my_eval:loss; got {text!r}")
    if evaluator_file(module) is None:
        raise ValueError(f"there is no module {module.partition('.')[0]!r} here, nor among the installed ones")
    return text.strip()


def evaluator_file(module: str) -> Path | None:
    """Where a module, or the package that it is in, lies: in the working directory, or installed."""
    spec = PathFinder.find_spec(module.partition(".")[0], [str(Path.cwd()), *sys.path])
    if spec is None or spec.origin is None:
        return None
    if "." in module:
        inner = Path(spec.origin).parent.joinpath(*module.split(".")[1:])
        return next((one for one in (inner.with_suffix(".py"), inner / "__init__.py") if one.is_file()), None)
    return Path(spec.origin)


def without_paths(text: str, path: Path, name: str) -> str:
    """A message about what was opened, in which its name stands for where it lies."""
    for place in sorted({str(path), str(path.resolve())}, key=len, reverse=True):
        text = text.replace(place, name)
    # Of what lies elsewhere (a package, a home), the last part is enough.
    return re.sub(r"(?<![\w.])(/[^\s/:'\",]+){2,}", lambda found: found[0].rpartition("/")[2], text)


@dataclass(frozen=True, eq=False)
class Series:
    """Sets of weights in several files that merges are made of.

    Attributes:
        name: Of the section, or of several that are averages of one run.
        kind: "raw", "window" (means of stretches of steps) or "average".
        steps: After how many steps each of N sets was stored, shape (N,).
        sections: In which section of its file each lies.
        profiles: What each call weighs in each.
        calls: So many are averaged, up to the last file.
        weights: Numbers in each set that are averaged.
    """

    name: str
    kind: str
    steps: tuple[int, ...]
    sections: tuple[str, ...]
    profiles: tuple[Profile, ...]
    calls: int
    weights: int

    @property
    def shift(self) -> int:
        """The steps before call 0: 1, but where the initial weights are stored 0."""
        return self.steps[-1] + 1 - self.calls


@dataclass(frozen=True)
class Contents:
    """What is in a folder of checkpoints, or in a recording.

    Attributes:
        rows: A row for each section of each file, as ``emacore checkpoints`` prints them.
        told: Sentences on what was passed over, on damaged files, and on uneven steps.
        series: The sets of weights by their names; the one that a merge takes by itself comes first.
        form: "checkpoints" or "recording".
        identity: Changes with the files.
        measured: Whether it says itself how its networks are measured.
        default: The series that a merge takes by itself; ``None`` where it asks for a choice.
    """

    rows: tuple[Mapping[str, Any], ...]
    told: tuple[str, ...]
    series: Mapping[str, Series]
    form: str
    identity: str
    measured: bool = False
    default: str | None = None

    @classmethod
    def from_json(cls, text: str) -> Contents:
        """The contents that the process which read the files printed."""
        found = json.loads(text)
        decays: dict[tuple[str, int], Floats] = {}

        def profile(one: Mapping[str, Any], calls: int) -> Profile:
            if "begin" in one:
                return Span(one["begin"], one["end"])
            key = one["schedule"], calls
            if key not in decays:
                decays[key] = from_code(one["schedule"]).decays(calls)
            return Averaged(one["end"], decays[key])

        series = {}
        for one in found["series"]:
            profiles = tuple(profile(part, one["calls"]) for part in one["profiles"])
            series[one["name"]] = Series(
                one["name"],
                one["kind"],
                tuple(one["steps"]),
                tuple(one["sections"]),
                profiles,
                one["calls"],
                one["weights"],
            )
        rest = {name: found[name] for name in ("form", "identity", "measured", "default")}
        return cls(tuple(found["rows"]), tuple(found["told"]), series, **rest)

    @property
    def first(self) -> str:
        """The series that one looks at first."""
        return next(iter(self.series))


def contents_of(name: str, path: Path) -> Contents:
    """What was opened under ``name``, read in a process of its own, which takes seconds.

    Raises:
        OpenedError: if it cannot be read.
    """
    text = asked_elsewhere("emacore.experiments.opened", path)
    answer = json.loads(text)
    if "error" in answer:
        raise OpenedError(without_paths(answer["error"], path, name))
    return Contents.from_json(without_paths_in_json(answer, path, name))


def without_paths_in_json(answer: Any, path: Path, name: str) -> str:
    """An answer as JSON, in whose texts no path is left."""

    def cleaned(value: Any) -> Any:
        if isinstance(value, str):
            return without_paths(value, path, name)
        if isinstance(value, list):
            return [cleaned(one) for one in value]
        return {key: cleaned(one) for key, one in value.items()} if isinstance(value, dict) else value

    return json.dumps(cleaned(answer))


def asked_elsewhere(module: str, *arguments: object) -> str:
    """What a module of the package prints, run in a process of its own: with torch, which pages have not.

    Raises:
        OpenedError: if that process fails.
    """
    package = str(Path(emacore.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise OpenedError(f"the process that reads it ended with {done.returncode}: {said[-1] if said else 'no word'}")
    return done.stdout.strip().splitlines()[-1]


def identity_of(path: Path) -> str:
    """A hash of the files' names, sizes and times: it changes when one is added, taken away, or written."""
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    about = [(one.relative_to(path).as_posix(), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]


def weight_table(series: Series, plans: Mapping[str, Planned]) -> Table:
    """What each file weighs in each merge, in a long table: merge, step, section, coefficient."""
    return {
        "merge": np.repeat(np.array(list(plans), dtype=object), len(series.steps)),
        "step": np.tile(np.array(series.steps, dtype=np.int64), len(plans)),
        "section": np.tile(np.array(series.sections, dtype=object), len(plans)),
        "coefficient": np.concatenate([one.coefficients for one in plans.values()]) if plans else np.zeros(0),
    }


def growth_table(series: Series, parts: Mapping[str, Floats], at: NDArray[np.int64] | None = None) -> Table:
    """How weights add up over the steps, in a long table: curve, step, weight so far.

    Args:
        parts: By the name of the curve, the sum after each call, shape (calls,).
        at: The calls to take; by default all.
    """
    calls = np.arange(series.calls) if at is None else at
    return {
        "curve": np.repeat(np.array(list(parts), dtype=object), len(calls)),
        "step": np.tile(calls + series.shift, len(parts)),
        "weight": np.concatenate([values[calls] for values in parts.values()]),
    }


def growth(series: Series, found: Planned) -> dict[str, Floats]:
    """How the weights of a merge add up: "all steps", of the average that it stands for, if there is one, and "these
    files"; each of shape (calls,)."""
    parts = {"these files": np.cumsum(merged_profile(series.calls, series.profiles, found.coefficients))}
    return parts if found.target is None else {"all steps": np.cumsum(found.target), **parts}


def growth_calls(series: Series, schedule: Schedule) -> NDArray[np.int64]:
    """The calls at which such curves of a schedule's merge are drawn: all, or of a long run those that show it whatever
    the schedule's settings are, but for its start and ``update_every``."""
    if series.calls <= _POINTS:
        return np.arange(series.calls)
    ends = np.array([one.end for one in series.profiles])
    begins = np.array([one.begin if isinstance(one, Span) else one.end for one in series.profiles])
    averaged = ends[[isinstance(one, Averaged) for one in series.profiles]]
    # A file's own average can have a memory of any length.
    ages = np.geomspace(1, series.calls, _POINTS_OF_AN_AVERAGE).astype(np.int64)
    moves = sampled_calls(series.calls, schedule, _POINTS)
    places = np.concatenate([moves, moves - 1, ends, begins, begins - 1, np.subtract.outer(averaged, ages).ravel()])
    return np.unique(places[places >= 0])


class Moved(NamedTuple):
    """Merges of one set by several schedules, as a picture shows them that follows the pointer.

    Attributes:
        coefficients: Shape (N, schedules).
        all_steps, these_files: How weights add up at some calls, shape (calls, schedules).
        error, reached: Of their certificates, shape (schedules,).
    """

    coefficients: Floats
    all_steps: Floats
    these_files: Floats
    error: Floats
    reached: Floats


def moved(series: Series, codes: Sequence[str], fit: Any, at: NDArray[np.int64]) -> Moved:
    """The merges by schedules given as code, drawn at some calls; a schedule that these files cannot give is NaN
    throughout."""
    count = len(series.profiles)
    found = Moved(*(np.full((rows, len(codes)), np.nan) for rows in (count, len(at), len(at), 1, 1)))
    for place, code in enumerate(codes):
        with suppress(ValueError):
            one = planned(from_code(code), series.profiles, series.calls, fit, bests=False)
            found.coefficients[:, place] = one.coefficients
            for name, values in growth(series, one).items():
                (found.all_steps if name == "all steps" else found.these_files)[:, place] = values[at]
            found.error[:, place], found.reached[:, place] = one.certificate.error, one.certificate.reached
    return found._replace(error=found.error[0], reached=found.reached[0])


def by_sections(series: Series, coefficients: Floats) -> list[float]:
    """Coefficients of the sets as a question has them: section by section, each by rising steps."""
    sections = list(dict.fromkeys(series.sections))
    order = sorted(range(len(series.steps)), key=lambda n: (sections.index(series.sections[n]), series.steps[n]))
    return [float(coefficients[n]) for n in order]


def merges_over_steps(series: Series, code: str) -> tuple[list[int], list[Floats]]:
    """The merge by a schedule after each step at which something is stored, of what is stored until then.

    Returns:
        The steps, and the coefficients of all N sets for each, shape (N,).
    """
    steps = sorted(set(series.steps))
    found = []
    for step in steps:
        there = sum(one <= step for one in series.steps)
        one = planned(from_code(code), series.profiles[:there], step + 1 - series.shift, bests=False)
        found.append(np.concatenate([one.coefficients, np.zeros(len(series.steps) - there)]))
    return steps, found


def certificate_table(plans: Mapping[str, Planned]) -> Table:
    """A row each merge: merge, files (that weigh something), error, wanted, reached, nonnegative, free, amplification,
    total."""
    parts = list(plans.values())
    return {
        "merge": np.array(list(plans), dtype=object),
        "files": np.array([int((one.coefficients != 0).sum()) for one in parts], dtype=np.int64),
        "error": np.array([one.certificate.error for one in parts]),
        "wanted": np.array([one.certificate.wanted for one in parts]),
        "reached": np.array([one.certificate.reached for one in parts]),
        "nonnegative": np.array([one.nonnegative for one in parts]),
        "free": np.array([one.free for one in parts]),
        "amplification": np.array([one.certificate.amplification for one in parts]),
        "total": np.array([one.certificate.total for one in parts]),
    }


def decay_table(decays: Table) -> Table:
    """What an average forgot a step between the files of a diagnosis: curve, step, forgets (1 - decay), a long table.

    The curves are "found", "at least" and "at most", what the files allow, and "configured" where something was; each
    stretch between two files has its begin and its end.

    Args:
        decays: from_step, to_step, decay, low, high, configured.
    """
    names = {"found": "decay", "at least": "high", "at most": "low", "configured": "configured"}
    steps = np.stack([decays["from_step"], decays["to_step"]], axis=1).reshape(-1)
    parts = {name: np.repeat(1 - decays[column], 2) for name, column in names.items()}
    if np.isnan(parts["configured"]).all():
        del parts["configured"]
    return {
        "curve": np.repeat(np.array(list(parts), dtype=object), len(steps)),
        "step": np.tile(steps, len(parts)),
        "forgets": np.concatenate(list(parts.values())),
    }


def merge_command(name: str, codes: Sequence[str], section: str | None = None, fit: str | None = None) -> str:
    """The command that makes these merges, to be run in the folder that holds the opened one."""
    folder = name.rpartition("/")[2]
    options = [f"--scheme {_quoted(code)}" for code in codes]
    if section is not None:
        options.append(f"--section {shlex.quote(section)}")
    if fit is not None:
        options.append(f"--fit {fit}")
    parts = [f"python -m emacore merge {shlex.quote(folder)}", *options, f"-o {shlex.quote(f'{folder}-merged')}"]
    return " \\\n    ".join(parts)


def _quoted(code: str) -> str:
    """For a shell; in double quotes where these say just that, because code may have single ones."""
    return shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'


def example(steps: int, files: int, kind: str) -> Series:
    """What snapshots of a run would be: ``files`` raw ones, or means of windows, evenly spread over ``steps``."""
    ends = np.unique(np.linspace(0, steps, files + 1).round().astype(np.int64))[1:]
    begins = np.concatenate([[0], ends[:-1]])
    profiles = [
        Span(int(end) - 1, int(end) - 1) if kind == "raw" else Span(int(begin), int(end) - 1)
        for begin, end in zip(begins, ends, strict=True)
    ]
    at = tuple(ends.tolist())
    return Series("model", kind, at, ("model",) * len(at), tuple(profiles), steps, 0)


# What follows is run in a process of its own, with torch.


def _read(path: Path) -> dict[str, Any]:
    """The contents as JSON can hold them."""
    if (path / "run.json").exists():
        return _recording(path)
    from emacore.checkpoints import Checkpoints, open_checkpoints
    from emacore.checkpoints.reading import described, told_of_gaps

    found = open_checkpoints(path)
    told = [*found.told, *found.damaged, *filter(None, [told_of_gaps(found.steps)])]
    series: list[dict[str, Any]] = []
    default = None
    whole = Checkpoints(found.path, list(found), found.told)  # what is damaged is told, and hides no other
    for section in [None, *found.names()]:
        try:
            series.append(_series(whole, section))
            default = series[0]["name"] if section is None else default
        except ValueError as error:
            told += [f"{section}: {error}"] if section else []
    series = list({one["name"]: one for one in series}.values())
    if not series:
        raise ValueError("; ".join(told) or "it holds no weights")
    rows = list(described(found))
    return {"form": "checkpoints", "rows": rows, "told": told, "series": series, "measured": False, "default": default}


def _series(checkpoints: Any, section: str | None) -> dict[str, Any]:
    """What a merge of one section is made of; without one, of those that ``emacore merge`` takes by itself."""
    from emacore.averaging.coefficients import Coefficients
    from emacore.checkpoints.planning import plan_merge

    sources = plan_merge(checkpoints, {"last": Coefficients((1.0,))}, section=section).sources
    names = [one.section.name for one in sources]
    steps = [one.checkpoint.step for one in sources]
    return {
        "name": " and ".join(dict.fromkeys(names)),
        "kind": sources[0].section.kind,
        "steps": steps,
        "sections": names,
        "profiles": [_profile(one) for one in sources],
        "calls": steps[-1] + (0 if steps[0] else 1),
        "weights": sum(one.numel for one in sources[0].section.tensors.values() if one.is_averaged),
    }


def _profile(source: Any) -> dict[str, Any]:
    if isinstance(source.profile, Span):
        return {"begin": source.profile.begin, "end": source.profile.end}
    width = float(source.section.about["sigma_rel"])
    return {"schedule": to_code(PowerFunction(sigma_rel=width)), "end": source.profile.end}


def _recording(path: Path) -> dict[str, Any]:
    from emacore.replay.recording import read_recording

    rows = read_recording(path)
    steps = [int(step) + 1 for step in rows.steps]
    if not steps:
        raise ValueError("nothing is recorded yet")
    tensors = {**rows.tensors, **rows.copied_tensors}
    about = {
        "step": steps[-1],
        "step_from": "run.json",
        "section": "model",
        "kind": "raw",
        "tensors": len(tensors),
        "weights": int(rows.weights.shape[1]),
        "dtypes": " ".join(dict.fromkeys(str(one.dtype).removeprefix("torch.") for one in tensors.values())),
        "copied": len(rows.copied_tensors),
        "tied": 0,
        "bytes": int(rows.weights.nbytes),
        "about": f"rows={len(steps)}",
        "format": "a recording of emacore",
        "files": 1,
    }
    series = {
        "name": "model",
        "kind": "raw",
        "steps": steps,
        "sections": ["model"] * len(steps),
        "profiles": [{"begin": step - 1, "end": step - 1} for step in steps],
        "calls": steps[-1],
        "weights": about["weights"],
    }
    return {
        "form": "recording",
        "rows": [about],
        "told": [],
        "series": [series],
        "measured": rows.settings is not None,
        "default": "model",
    }


def _main(path: Path) -> None:
    try:
        answer = {**_read(path), "identity": identity_of(path)}
    except (ValueError, OSError) as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
