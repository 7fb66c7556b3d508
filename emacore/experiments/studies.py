"""Many runs as one job: a study over seeds, a sweep over settings; to and from JSON.  Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import MISSING, dataclass, fields
from importlib.metadata import version
from itertools import product
from pathlib import PurePath
from typing import Any

import emacore.tasks  # settings are read back by the task that they name
from emacore.averaging.code import from_code, to_code
from emacore.averaging.families import Constant
from emacore.averaging.schedules import FAMILIES, Schedule, check_schedule, schedule_from_dict
from emacore.limits import CELLS, LETTERS, SEEDS, TRAININGS, VALUES, check_most
from emacore.training.acting import acting
from emacore.training.config import TaskConfig, checked_seeds, dotted, json_object
from emacore.training.names import in_words, setting_in_words


@dataclass(frozen=True)
class Study:
    """A run over many seeds, and further averages of the same networks.

    Args:
        config: Its own seed is not used.
        seeds: Different whole numbers of at least 0.
        schedules: Each is named by its code, so they are different ones.

    Raises:
        ValueError: for no seeds, the same seed or schedule twice, or a value out of range.
        TypeError: for seeds or schedules that are no list, or a schedule that is none.
    """

    config: TaskConfig
    seeds: tuple[int, ...]
    schedules: tuple[Schedule, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", _checked_seeds(self.seeds))
        if not isinstance(self.schedules, Sequence) or isinstance(self.schedules, str):
            raise TypeError(f"schedules must be a list of schedules, got {self.schedules!r}")
        object.__setattr__(self, "schedules", tuple(self.schedules))
        for number, schedule in enumerate(self.schedules):
            check_schedule(f"schedules[{number}]", schedule)
        codes = [to_code(schedule) for schedule in self.schedules]
        twice = sorted({code for code in codes if codes.count(code) > 1})
        if twice:
            raise ValueError(f"schedules must be different ones, got {twice[0]} twice")

    def in_words(self) -> str:
        """What it trains, in a few words: the beginning of its name."""
        return f"{_seeds_in_words(self.seeds)}: {in_words(self.config, but=['seed'])}"

    def to_json(self, indent: int | None = 2) -> str:
        """The study as JSON; :func:`job_from_json` gives an equal one back."""
        settings = {
            "config": json.loads(self.config.to_json()),
            "seeds": self.seeds,
            "schedules": [schedule.to_dict() for schedule in self.schedules],
        }
        return json.dumps(settings, indent=indent)


@dataclass(frozen=True)
class Sweep:
    """A study of each cell of a grid of settings.

    Args:
        config: Has the settings that the grid leaves out; its own seed is not used.
        grid: Lists of values by dotted names, as :func:`with_settings` takes them.
        seeds: Of every cell; different whole numbers of at least 0.

    Raises:
        ValueError: for an unknown name, a name without values, the same value twice, or a value out of range.
    """

    config: TaskConfig
    grid: Mapping[str, Sequence[Any]]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", _checked_seeds(self.seeds))
        if not isinstance(self.grid, Mapping):
            raise TypeError(f"grid must be an object of lists by names, got {self.grid!r}")
        for name, values in self.grid.items():
            if name == "seed":
                raise ValueError("grid: the seeds are those of every cell; leave 'seed' out")
            if not isinstance(values, Sequence) or isinstance(values, str) or not values:
                raise ValueError(f"grid: {name!r} needs a list of at least one value, got {values!r}")
        cells = math.prod(map(len, self.grid.values()))
        check_most("cells of a grid", cells, CELLS)
        check_most("trainings of a sweep, which are its cells times its seeds,", cells * len(self.seeds), TRAININGS)
        grid = {name: [_told(name, value) for value in values] for name, values in self.grid.items()}
        object.__setattr__(self, "grid", grid)
        self.cells()
        for name, values in grid.items():
            if len({json.dumps(float(v) if type(v) is int else v) for v in values}) < len(values):  # 1 is 1.0
                raise ValueError(f"grid: {name!r} has the same value twice: {values!r}")

    def cells(self) -> list[tuple[dict[str, Any], TaskConfig]]:
        """The settings of each cell and the config they give; the last name of the grid varies fastest."""
        found: list[tuple[dict[str, Any], TaskConfig]] | None = self.__dict__.get("_cells")
        if found is None:  # they are asked for several times, and take a millisecond each
            found = [(settings, with_settings(self.config, settings)) for settings in self._chosen()]
            object.__setattr__(self, "_cells", found)
        return found

    def in_order(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Rows of a sweep's table by the order of their cells, whichever was done first."""
        place = {json.dumps(list(settings.values())): index for index, settings in enumerate(self._chosen())}
        return sorted(rows, key=lambda row: place[json.dumps([row[name] for name in self.grid])])

    def cell_keys(self) -> list[str]:
        """A key for each cell, made of all that decides its numbers; a store keeps what it found under that key."""
        made_by = f"{emacore.__version__} {version('torch')}"
        studies = (Study(cell, self.seeds).to_json(indent=None) for _, cell in self.cells())
        return [hashlib.sha256(f"{study} {made_by}".encode()).hexdigest() for study in studies]

    def alike(self) -> list[list[int]]:
        """The cells by their number, in groups that are the same experiment in effect (see :func:`acting`)."""
        groups: dict[Any, list[int]] = {}
        for index, (_, config) in enumerate(self.cells()):
            groups.setdefault(tuple(sorted(acting(config).items())), []).append(index)
        return list(groups.values())

    def _chosen(self) -> Iterator[dict[str, Any]]:
        return (dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values()))

    def in_words(self) -> str:
        """What it trains, in a few words: the beginning of its name."""
        axes = [setting_in_words(name) for name in self.grid]
        over = " and ".join(filter(None, [", ".join(axes[:-1]), *axes[-1:]])) or "no setting"
        return f"map of {over}, {_seeds_in_words(self.seeds)}: {in_words(self.config, but=['seed', *self.grid])}"

    def to_json(self, indent: int | None = 2) -> str:
        """The sweep as JSON; :func:`job_from_json` gives an equal one back."""
        settings = {"config": json.loads(self.config.to_json()), "grid": self.grid, "seeds": self.seeds}
        return json.dumps(settings, indent=indent)


Job = TaskConfig | Study | Sweep


def shared_json(job: Job) -> str:
    """A job's settings as JSON for others: of a table of one's own the file's name, without the folder it lies in.

    The store names a table by the hash of what is in it, so the name says which one it is.
    """
    settings = json.loads(job.to_json())
    data = settings.get("config", settings).get("data", {})
    if isinstance(data.get("path"), str):
        data["path"] = PurePath(data["path"].replace("\\", "/")).name
    return json.dumps(settings, indent=2)


def job_in_words(job: Job) -> str:
    """What a job trains, in a few words."""
    return in_words(job) if isinstance(job, TaskConfig) else job.in_words()


def with_settings(config: TaskConfig, settings: Mapping[str, Any]) -> TaskConfig:
    """``config`` with settings changed by their dotted names, such as ``optimizer.learning_rate``.

    Another ``schedule.family`` keeps those of its settings that both families have, and begins with its own defaults
    for the others.  ``schedule`` itself takes a schedule's code, such as ``Constant(beta=0.99)``, or a decay, which is
    that of a ``Constant``.

    Raises:
        ValueError: for a name that is no setting, or a value out of range.
    """
    changed = json.loads(config.to_json())
    del changed["task"]
    # A whole schedule before its family, and that before its other settings.
    for name, value in sorted(settings.items(), key=lambda item: (_FIRST.get(item[0], len(_FIRST)), item[0])):
        *parents, last = name.split(".")
        part = changed
        for parent in parents:
            part = part.get(parent) if isinstance(part, dict) else None
        if not isinstance(part, dict) or last not in part or (isinstance(part[last], dict) and name != "schedule"):
            known = ", ".join(sorted(dotted(changed)))
            raise ValueError(f"there is no setting {name!r}; there are {known}, and schedule (as code)")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"{name} must be a number below 2**63, got one of {len(str(abs(value)))} digits")
        if name == "schedule":
            part[last] = _schedule(value).to_dict()
        elif name == "schedule.family" and value != part[last]:
            family = FAMILIES.get(value) if isinstance(value, str) else None
            own = fields(family) if family is not None else ()
            first = {f.name: None if f.default is MISSING else f.default for f in own}
            changed["schedule"] = {"family": value, **first, **{key: part[key] for key in part if key in first}}
        else:
            part[last] = value
    try:
        return type(config).from_json(json.dumps(changed))
    except TypeError as error:
        raise ValueError(f"settings must be numbers, texts or lists of them: {error}") from error


def _schedule(value: Any) -> Schedule:
    """A schedule by its code; a bare decay is a constant one."""
    if isinstance(value, str):
        value = json_value(value)
    if isinstance(value, str):
        return from_code(value)
    if not isinstance(value, bool) and isinstance(value, (int, float)):
        return Constant(value)
    raise ValueError(f"schedule must be code such as Constant(beta=0.99), or a decay such as 0.99; got {value!r}")


def _told(name: str, value: Any) -> Any:
    """A grid's value as its tables have it: a bare decay as the schedule it means."""
    return to_code(_schedule(value)) if name == "schedule" and isinstance(value, (int, float)) else value


def job_from_json(text: str | bytes) -> Job:
    """The run, study or sweep that ``text`` describes.

    Raises:
        ValueError: if it is none of them; the message says what is wrong.
    """
    settings = json_object(text)
    if "seeds" not in settings:
        return TaskConfig.from_json(text)
    kind, names = ("sweep", ("config", "grid", "seeds")) if "grid" in settings else ("study", _STUDY)
    unknown = sorted(set(settings) - set(names))
    if unknown:
        raise ValueError(f"there is no setting {unknown[0]} of a {kind}; there are {', '.join(names)}")
    try:
        config = TaskConfig.from_json(json.dumps(settings.get("config", {})))
        if kind == "sweep":
            return Sweep(config, settings["grid"], settings["seeds"])
        schedules = (schedule_from_dict(schedule) for schedule in settings.get("schedules", ()))
        # Once a study could name one twice; its history holds it once.
        return Study(config, settings["seeds"], tuple({to_code(schedule): schedule for schedule in schedules}.values()))
    except TypeError as error:
        raise ValueError(f"not a {kind}: {error}") from error


def json_value(text: str) -> Any:
    """What ``text`` means as JSON or as a number such as ``.9``, or else itself: how people write a setting's value."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # also numbers of too many digits, and brackets that nest too deeply
        return float(text) if re.fullmatch(r"[+-]?(\d*\.\d+|\d+\.)([eE][+-]?\d+)?", text) else text


def setting_value(name: str, text: str) -> Any:
    """What ``text`` means as the value of a setting: where that is a text, "3" is the text 3; a list of texts may have
    commas without brackets."""
    value = json_value(text)
    if name in _TEXTS:
        return value if isinstance(value, str) or value is None else text
    if name in _LISTS:
        return [str(one) for one in value] if isinstance(value, list) else [one.strip() for one in text.split(",")]
    return value


def json_values(text: str) -> list[Any]:
    """Several values in one text, with commas or semicolons between them; those within brackets do not count.

    Raises:
        ValueError: if the text is too long, or there are too many.
    """
    check_most("letters of values", len(text), LETTERS)
    parts, depth, first = [], 0, 0
    for place, letter in enumerate(text):
        if letter in "([":
            depth += 1
        elif letter in ")]":
            depth = max(0, depth - 1)
        elif letter in ",;" and not depth:
            parts.append(text[first:place])
            first = place + 1
    parts.append(text[first:])
    values = [part.strip() for part in parts if part.strip()]
    check_most("values", len(values), VALUES)
    return [json_value(value) for value in values]


#: Settings that are changed before others, which are parts of them.
_FIRST = {"schedule": 0, "schedule.family": 1}
#: Settings that are texts, whatever the text looks like, and those that are lists of them.
_TEXTS, _LISTS = ("data.path", "data.target", "data.sha256"), ("data.features",)
_STUDY = ("config", "seeds", "schedules")


def _seeds_in_words(seeds: Sequence[int]) -> str:
    """How many seeds, and the first one where that is not 0."""
    count = f"{len(seeds):,} seed{'s' if len(seeds) != 1 else ''}"
    return count if min(seeds) == 0 else f"{count} from {min(seeds)}"


def _checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    if isinstance(seeds, Sized) and getattr(seeds, "ndim", True):  # before they are looked at one by one
        check_most("seeds", len(seeds), SEEDS)
    return checked_seeds(seeds)
