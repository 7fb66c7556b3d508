"""The options that several commands share, with what a shell completes, and what --help says of all settings."""

from __future__ import annotations

import math
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from emacore.averaging.code import from_code, scheme_from_code
from emacore.averaging.schedules import FAMILIES, TIMING, Schedule
from emacore.averaging.windows import Scheme
from emacore.checks import shown
from emacore.limits import SEEDS

Command = Callable[..., Any]


class ScheduleCode(click.ParamType[Schedule]):
    """A schedule as code, such as ``Constant(beta=0.99)``."""

    name = "schedule"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Schedule:
        try:
            return from_code(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _completed((f"{name}(" for name in FAMILIES), incomplete)


class SchemeCode(click.ParamType[Scheme]):
    """A schedule or a window as code, such as ``Window(size=100)``."""

    name = "scheme"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Scheme:
        try:
            return scheme_from_code(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _completed(["Window(", *(f"{name}(" for name in FAMILIES)], incomplete)


class SettingType(click.ParamType[tuple[str, Any]]):
    """A setting by its dotted name, ``name=value``; the value is JSON, or else text."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        key, equals, text = value.partition("=")
        if not equals or not key.strip():
            self.fail(f"{value!r} is not of the form name=value", param, ctx)
        from emacore.experiments.studies import setting_value

        return key.strip(), setting_value(key.strip(), text)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return _completed((f"{name}=" for name, _ in _settings_of_a_run()), incomplete)


class JobId(click.ParamType[str]):
    """The id of a stored job."""

    name = "run_id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        with suppress(Exception):  # whatever is wrong with the store, the shell's line is no place to tell it
            from emacore.experiments.store import RunStore

            jobs = RunStore().jobs()
            return [
                CompletionItem(job_id, help=state)
                for job_id, state in zip(jobs["id"], jobs["state"], strict=True)
                if job_id.startswith(incomplete)
            ]
        return []


class Number(click.FloatRange):
    """A finite number within bounds."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"must be a finite number, got {value}", param, ctx)
        return number


class Count(click.ParamType[int]):
    """A whole number within bounds; 1e6 and 1_000_000 are one too."""

    name = "integer"

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            count = int(value)
        except ValueError:
            try:
                number = float(value)
            except ValueError:
                self.fail(f"{value!r} is not a whole number", param, ctx)
            if not number.is_integer():
                self.fail(f"{value!r} is not a whole number", param, ctx)
            count = int(number)
        if not self.least <= count <= self.most:
            self.fail(f"must be from {self.least:,} to {self.most:,}, got {shown(count)}", param, ctx)
        return count

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "INTEGER"


def settings(command: Command) -> Command:
    """The options of which a run's settings are made: a file, and changes by dotted names."""
    command = click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False),
        help="A file of settings, JSON from the app or emacore export; by default the article's settings.",
    )(command)
    return click.option(
        "--set",
        "changes",
        type=SettingType(),
        multiple=True,
        help="Change one of them, as in optimizer.learning_rate=0.01; may be given many times.",
    )(command)


def tried(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The path of an output, which can be written: better told now than after hours of training.  "-" is the screen."""
    if value is None or value == "-":
        return None
    path = Path(value)
    try:
        there = path.exists()
        if not (there and stat.S_ISFIFO(path.stat().st_mode)):  # it would wait for its reader
            path.open("ab").close()
        if not there:
            path.unlink()
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{value} cannot be written: {getattr(error, 'strerror', error)}") from error
    return value


output = click.option(
    "--output", "-o", type=click.Path(dir_okay=False), callback=tried, help="A file to write to; else the screen."
)
seed_count = click.option(
    "--seeds",
    type=Count(1, SEEDS),
    default=32,
    show_default=True,
    help="How many seeds to train. More of them show a smaller difference, and take longer.",
)
first_seed = click.option(
    "--first-seed",
    type=Count(0, 2**62),
    default=0,
    show_default=True,
    help="The seeds count up from here: beyond those of another study all runs are new.",
)
each_line = click.option(
    "--verbose", "-v", is_flag=True, help="Print a line for each epoch or cell that is done, in place of the bar."
)


class WithFamilies(click.Command):
    """A command that takes a schedule: its help has every family that is registered, with all settings."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Schedules"):
            formatter.write_dl(list(_families()))


class WithSettings(WithFamilies):
    """A command that trains: its help has every setting of a run, with what it is by default."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with suppress(ModuleNotFoundError):  # the core alone trains nothing
            rows = list(_settings_of_a_run())
            with formatter.section("Settings, with their defaults"):
                formatter.write_dl(rows)
        super().format_epilog(ctx, formatter)


def _families() -> Iterator[tuple[str, str]]:
    timing = {one.name: one.default for one in fields(Schedule)}
    for name, family in FAMILIES.items():
        about = {control.name: control for control in family.controls}
        parts = [
            f"{one.name} = {'?' if one.default is MISSING else one.default}"
            + (f" ({about[one.name].low:g} to {about[one.name].high:g} in the app)" if one.name in about else "")
            for one in sorted(fields(family), key=lambda one: one.name in timing)
            if one.name not in timing or one.default != timing[one.name]
        ]
        yield name, f"{family.label}. {'; '.join(parts) or 'It has no setting of its own'}."
    told = [f"{one.name} = {timing[one.name]} ({one.help.partition('. ')[0]})" for one in TIMING]
    yield "all of them", f"{'; '.join(told)}; where not told otherwise."


def _settings_of_a_run() -> Iterator[tuple[str, str]]:
    import json

    from emacore.tasks.regression.config import RunConfig
    from emacore.training.config import dotted

    for name, value in dotted(json.loads(RunConfig().to_json())).items():
        if name != "task":
            yield name, json.dumps(value)
    yield "schedule", "a whole one, as code: Constant(beta=0.99)"


def _completed(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]
