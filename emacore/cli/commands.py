"""The command line: ``python -m emacore``, or ``emacore`` once installed.

Tables go to standard output or a file as CSV, progress and messages to standard error.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

import emacore
from emacore.averaging.advice import MOST_STEPS
from emacore.averaging.code import scheme_to_code
from emacore.averaging.parts import memory, remaining
from emacore.averaging.schedules import Schedule
from emacore.averaging.smoothing import WAYS, Smoothing
from emacore.averaging.views import sampled_calls
from emacore.averaging.weights import effective_count, mean_age, relative_width, start_share, weights
from emacore.averaging.windows import Scheme
from emacore.cli import diagnosing, merging, stored
from emacore.cli.options import (
    Count,
    Number,
    ScheduleCode,
    SchemeCode,
    SettingType,
    WithFamilies,
    WithSettings,
    each_line,
    first_seed,
    output,
    seed_count,
    settings,
)
from emacore.cli.terminal import FAILED, Interruption, ProgressBar, languages, silence
from emacore.cli.terminal import checked as _checked
from emacore.cli.terminal import tell as _tell
from emacore.cli.terminal import write_table as _write
from emacore.cli.terminal import write_text as _write_text
from emacore.formatting import counted, number, percent
from emacore.limits import PRINTED_STEPS, TABLE_BYTES

# What the core does not need is imported where it is used: some commands run without pandas.
if TYPE_CHECKING:
    from numpy.typing import NDArray

    from emacore.experiments.jobs import CarriedOut
    from emacore.experiments.studies import Job, Sweep
    from emacore.training.config import TaskConfig

LEVELS = (0.9, 0.99, 0.999, 0.9999)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(emacore.__version__, prog_name="emacore")
def cli() -> None:
    """Averages of weights: schedules, training with and without them, evidence over seeds.

    \b
    emacore schedule "InversePower(beta=0.999)" --steps 5000 --output decays.csv
    emacore train --set seed=1 --set max_epochs=5 --output history.csv
    emacore replicate --seeds 8 --set max_epochs=5 --output seeds.csv
    """


@cli.command(cls=WithSettings)
@settings
@each_line
@output
def train(config: str | None, changes: tuple[tuple[str, Any], ...], verbose: bool, output: str | None) -> None:
    """Train one run and print its history; it also shows up in the app.

    \b
    emacore train --set max_epochs=5
    emacore train --set optimizer.learning_rate=0.01 --set schedule="Constant(beta=0.99)" -o history.csv
    """

    run = _config(config, changes)

    def words(rows: list[dict[str, Any]]) -> str:
        (row,) = rows
        losses = f"loss {number(row['val_loss_original'])}, average {number(row['val_loss_ema'])}"
        return f"epoch {row['epoch']}: {losses}" if verbose else losses

    with Interruption() as by_hand:
        with ProgressBar("epoch", run.max_epochs, each=verbose) as progress:
            done = _carried_out(run, by_hand, lambda rows: progress.step(words(rows)))
        _end(done, by_hand, output)


@cli.command(cls=WithSettings)
@settings
@seed_count
@first_seed
@each_line
@click.option(
    "--schedule",
    "further",
    type=ScheduleCode(),
    multiple=True,
    help="A further average of the same networks, kept in the history beside their own; may be given many times.",
)
@output
def replicate(
    config: str | None,
    changes: tuple[tuple[str, Any], ...],
    seeds: int,
    first_seed: int,
    verbose: bool,
    further: tuple[Schedule, ...],
    output: str | None,
) -> None:
    """Train many seeds at once and say whether averaging helped; the study also shows up in the app.

    \b
    emacore replicate --seeds 8 --set max_epochs=5
    emacore replicate --seeds 8 --set max_epochs=5 --schedule "Constant(beta=0.99)" -o history.csv
    """
    from emacore.experiments.evidence import (
        QUESTIONS,
        answers,
        chosen_in_words,
        patience_of,
        per_seed,
        rules_in_words,
    )
    from emacore.experiments.statistics import seeds_in_words, verdict
    from emacore.experiments.studies import Study

    study = _checked(
        lambda: Study(_config(config, changes, own_seed=False), tuple(range(first_seed, first_seed + seeds)), further)
    )
    _tell(seeds_in_words(seeds, 1))
    with Interruption() as by_hand:
        with ProgressBar("epoch", study.config.max_epochs, each=verbose) as progress:
            done = _carried_out(
                study,
                by_hand,
                lambda rows: progress.step(f"epoch {rows[0]['epoch']}: {len(rows)} of {counted(seeds, 'seed')} train"),
            )
        if len(done.history):
            seeds_table = per_seed(done.history, patience=patience_of(study.config))
            found = answers(seeds_table)
            for question, one in found.items():
                _tell(verdict(one, QUESTIONS[question]))
            _tell(f"{rules_in_words(study.config)} {chosen_in_words(seeds_table, found, study.config)}".strip())
        _end(done, by_hand, output)


@cli.command(cls=WithSettings)
@settings
@click.option(
    "--grid",
    "axes",
    type=SettingType(),
    multiple=True,
    required=True,
    help="A setting and its values, name=[values] as JSON; each further one multiplies the cells.",
)
@seed_count
@first_seed
@each_line
@click.option(
    "--scheduler",
    help="Address of a Dask scheduler, whose workers train; by default that in EMACORE_SCHEDULER, else this machine.",
)
@output
def sweep(
    config: str | None,
    changes: tuple[tuple[str, Any], ...],
    axes: tuple[tuple[str, Any], ...],
    seeds: int,
    first_seed: int,
    verbose: bool,
    scheduler: str | None,
    output: str | None,
) -> None:
    """Train a grid of settings over many seeds, here or on a cluster; what was done is not done again.

    \b
    emacore sweep --grid "optimizer.learning_rate=[0.001, 0.01]" --seeds 8 --set max_epochs=3
    emacore sweep --grid "schedule.power=[0.5, 0.75]" --seeds 8 --set max_epochs=3 -o sweep.csv
    """
    import joblib

    from emacore.experiments.studies import Sweep
    from emacore.experiments.sweep import (
        address_of,
        before_start,
        has_losses_below_0,
        in_words,
        rules_of_cells,
        summary,
    )

    def read() -> Sweep:
        grid = {name: values if isinstance(values, list) else [values] for name, values in axes}
        return Sweep(_config(config, changes, own_seed=False), grid, tuple(range(first_seed, first_seed + seeds)))

    job: Sweep = _checked(read)
    address = _checked(lambda: address_of(scheduler))
    for words in filter(None, before_start(job)):
        _tell(words)
    count, place = len(job.cells()), itertools.count(1)
    with Interruption() as by_hand:
        with ProgressBar("cell", count, each=verbose) as progress:
            done = _carried_out(
                job,
                by_hand,
                lambda rows: progress.step(f"cell {next(place)} of {count}"),
                processes=joblib.cpu_count(),
                scheduler=address,
            )
        if len(done.history):
            found = summary(done.history, list(job.grid))
            words = in_words(found, list(job.grid), signed=has_losses_below_0(done.history))
            _tell(f"{found.to_string(index=False)}\n{words} {rules_of_cells(job)}".rstrip())
        _end(done, by_hand, output, failed=bool(done.history["error"].notna().any()))


@cli.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.argument("schemes", type=SchemeCode(), nargs=-1, required=True)
@click.option("--final", is_flag=True, help="Measure the last average only, not that after each epoch.")
@output
def replay(folder: str, schemes: tuple[Scheme, ...], final: bool, output: str | None) -> None:
    """Replay a recorded run (a folder) under other schedules, or under windows.

    \b
    emacore replay recording "Constant(beta=0.99)" "PowerFunction(sigma_rel=0.1)" --final
    emacore replay recording "Window(size=100)" "Window(size=100, schedule=Constant(beta=0.9))"
    """
    import pandas as pd

    from emacore.replay.curves import MISS_MORE
    from emacore.tasks import open_run

    named = {scheme_to_code(scheme): scheme for scheme in schemes}
    if len(named) < len(schemes):
        raise click.UsageError("the same schedule is given twice")
    trajectory = _checked(lambda: open_run(folder), failed=True)
    if trajectory.every > 1:
        _tell(
            f"One step in {trajectory.every} was recorded, so this is close, not exact: on the article's run its own "
            f"schedule misses the loss by up to 0.5, 2 and 5 % with one step in 2, 5 and 10; {MISS_MORE}."
        )
    _write(pd.DataFrame(trajectory.final(named) if final else trajectory.replay(named)), output)


@cli.command(cls=WithFamilies)
@click.argument("schedule", type=ScheduleCode())
@click.option(
    "--steps", type=Count(2, MOST_STEPS), default=5000, show_default=True, help="The run's length, such as 1e9."
)
@output
def schedule(schedule: Schedule, steps: int, output: str | None) -> None:
    """Print a schedule's decays, and what each step weighs in the last average; of a long run, of some of its steps.

    \b
    emacore schedule "InversePower(beta=0.999)" --steps 5000 --output decays.csv
    """
    for level in LEVELS:
        call = schedule.reaches(level)
        when = (
            "never" if call is None else f"at step {call:,}" + ("" if call < steps else ", after the end of this run")
        )
        _tell(f"reaches {level:g} {when}")
    calls, decays, shares, told = _whole(schedule, steps) if steps <= PRINTED_STEPS else _sampled(schedule, steps)
    _tell(f"after step {steps - 1:,}: {told}")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("step", "decay", "weight"))
    rows.writerows(zip(calls.tolist(), decays.tolist(), shares.tolist(), strict=True))
    _write_text(text.getvalue(), output)


Columns = tuple["NDArray[np.int64]", "NDArray[np.float64]", "NDArray[np.float64]", str]


def _whole(schedule: Schedule, steps: int) -> Columns:
    """Steps, decays, weights, and figures in words, of every step of a run."""
    decays = schedule.decays(steps)
    told = (
        f"mean age {counted(mean_age(decays), 'step')}, counts as {counted(effective_count(decays), 'snapshot')}, "
        f"relative width {percent(relative_width(decays))}, start still in it "
        f"{percent(start_share(decays, start=schedule.start))}"
    )
    return np.arange(steps), decays, weights(decays), told


def _sampled(schedule: Schedule, steps: int) -> Columns:
    """Steps, decays, weights, and figures in words, of some steps of a long run, in the memory that these need."""
    calls = sampled_calls(steps, schedule, most=1600)
    decays, found = schedule.at(calls), memory(schedule, steps)
    _tell(f"{counted(len(calls), 'step')} of {steps:,} are printed: even in the steps and in their logarithms")
    told = (
        f"mean age {counted(found.mean_age, 'step')}, relative width {percent(found.relative_width)}, start still in "
        f"it {percent(found.start_share)}"
    )
    return calls, decays, (1 - decays) * remaining(schedule, steps, calls), told


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.argument("schedule", type=ScheduleCode(), required=False)
@click.option(
    "--like",
    type=click.Choice(list(WAYS), case_sensitive=False),
    help="Smooth as this tool does, or by a plain average: an EMA from the first value or from zero, a moving average.",
)
@click.option(
    "--smoothing",
    type=Number(0, 1, max_open=True),
    help="For --like tensorboard and --like wandb: their slider. Nearer to 1 is smoother, and later.",
)
@click.option(
    "--half-life",
    type=Number(0, min_open=True),
    help="For --like pandas: the distance in x over which half is forgotten. Longer is smoother, and later.",
)
@click.option(
    "--decay",
    type=Number(0, 1),
    help="For --like first and --like zero: the share kept at each value. Nearer to 1 is smoother, and later.",
)
@click.option(
    "--window",
    type=click.IntRange(1),
    help="For --like moving-average: how many values it is the mean of. More are smoother, and later.",
)
@click.option(
    "--viewport-scale",
    type=Number(0, min_open=True),
    default=1000,
    show_default=True,
    help="For --like wandb, whose documentation names it without a number. Larger is less smoothing.",
)
@click.option("--x", "x", help="The column that is x, or row; by default the step, or else a time.")
@click.option(
    "--column", "columns", multiple=True, help="A column to smooth; may be given many times. By default every metric."
)
@click.option(
    "--order",
    type=click.Choice(["step", "file"]),
    default="step",
    show_default=True,
    help="Smooth from the lowest step to the highest, or the rows as they stand in the file.",
)
@click.option(
    "--repeats",
    type=click.Choice(["all", "last"]),
    default="all",
    show_default=True,
    help="Where a step has several values, as after a restart: smooth all of them, or the last one only.",
)
@click.option("--suffix", default="_smoothed", show_default=True, help="What the new columns' names end in.")
@output
def smooth(
    file: str,
    schedule: Schedule | None,
    like: str | None,
    smoothing: float | None,
    half_life: float | None,
    decay: float | None,
    window: int | None,
    viewport_scale: float,
    x: str | None,
    columns: tuple[str, ...],
    order: str,
    repeats: str,
    suffix: str,
    output: str | None,
) -> None:
    """Smooth the metrics of a file (- is standard input); the averages are added as columns.

    A schedule's decays act from value to value, as TensorBoard's smoothing does; W&B's and pandas' on distances in x.

    \b
    emacore smooth losses.csv "BiasCorrected(beta=0.9)" --column loss
    emacore smooth losses.csv --like wandb --smoothing 0.9
    emacore smooth losses.csv --like moving-average --window 10 -o smoothed.csv
    """
    from emacore.metric_files import read_metrics, with_smoothed
    from emacore.tables import numeric_columns

    if (schedule is None) == (like is None):
        raise click.UsageError("give either a schedule, such as Constant(beta=0.9), or --like")
    given = {"smoothing": smoothing, "half-life": half_life, "decay": decay, "window": window}
    needed = "" if like is None else WAYS[like].number.lower()
    if needed and given[needed] is None:
        raise click.UsageError(f"--like {like} needs --{needed}")
    if idle := [name for name, value in given.items() if value is not None and name != needed]:
        raise click.UsageError(f"--{idle[0]} does nothing with {f'--like {like}' if like else 'a schedule'}")
    smoother = (
        Smoothing("schedule", schedule=schedule)
        if like is None
        else Smoothing(like, given[needed] or 0.0, viewport_scale=viewport_scale)
    )
    source: str | bytes = sys.stdin.buffer.read(TABLE_BYTES + 1) if file == "-" else file
    found = _checked(lambda: read_metrics(source), failed=True)
    if x is not None:
        found = _checked(lambda: found.with_x(None if x == "row" and x not in found.xs else x))
    for words in found.told():
        _tell(words)
    there = numeric_columns(found.frame)
    if missing := [name for name in columns if name not in there]:
        raise click.BadParameter(f"there is no column of numbers {missing[0]!r}; there are {', '.join(there)}")
    names = tuple(dict.fromkeys(columns)) or found.metrics
    if not names:
        raise click.ClickException(f"no column looks like a metric: choose by --column among {', '.join(there)}")
    if taken := [name for name in names if f"{name}{suffix}" in found.frame]:
        raise click.UsageError(
            f"{file} has a column {taken[0]}{suffix} already: rename it, or choose another --column or --suffix"
        )
    span = found.span(names)
    if found.unsorted(names):
        order_of = "rows; --order step sorts them" if order == "file" else f"{found.step}; --order file keeps the rows'"
        _tell(f"smoothed in the order of the {order_of}")
    if like == "wandb":
        _tell(f"the x-axis spans {span:g}, from the first to the last of these values, times {viewport_scale:g}")
    for name in names:
        settled = smoother.settled(found.values(name).steps, span)
        _tell(f"{name}: {settled.in_words(found.unit(name))}")
    table = _checked(
        lambda: with_smoothed(
            found,
            names,
            lambda values, steps: smoother.smooth(values, steps, span),
            in_order_of_steps=order == "step",
            last_of_step_only=repeats == "last",
            suffix=suffix,
        ),
        failed=True,
    )
    _write(table, output)


for command in (merging.checkpoints, merging.merge, diagnosing.diagnose, stored.export, stored.runs, stored.rename):
    cli.add_command(command)


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--open",
    "paths",
    multiple=True,
    type=click.Path(exists=True),
    help="A file or folder of checkpoints, or a recording, to look at.",
)
@click.option(
    "--evaluate",
    metavar="MODULE:FUNCTION",
    help="A function that measures their networks, from tensors by name to a loss; a recording may have its own.",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def app(paths: tuple[str, ...], evaluate: str | None, arguments: tuple[str, ...]) -> None:
    """Open the app; further arguments go to Streamlit.

    What --open names is seen by all who see the app, under the ends of its paths; it may be given many times.

    \b
    emacore app --server.port 8600
    emacore app --open snapshots --open older/run --evaluate my_eval:loss
    """
    file = _app_file(Path(__file__).parents[2])
    if file is None:
        raise click.ClickException("app.py is not beside the package, nor installed with it: run this in a checkout")
    if find_spec("streamlit") is None:
        raise click.ClickException("the app needs Streamlit: pip install 'emacore[app]'")
    from emacore.experiments.opened import EVALUATE, OPEN, checked_evaluator, checked_paths

    # The GNU C library reads this as a process starts; emacore.memory asks for it only once Python runs.
    environment = {"MALLOC_ARENA_MAX": "2", **os.environ}
    if paths:
        environment[OPEN] = _checked(lambda: checked_paths(paths))
    if evaluate is not None:
        environment[EVALUATE] = _checked(lambda: checked_evaluator(evaluate))
    # Streamlit reads the settings of the current folder; these hold in any folder, unless an argument says otherwise.
    safe = [f"--{name}={value}" for name, value in _SAFE.items() if not any(name in given for given in arguments)]
    os.execve(sys.executable, [sys.executable, "-m", "streamlit", "run", str(file), *safe, *arguments], environment)


#: Streamlit's options, unless others are given: only this machine reaches the app, and errors show no code.
_SAFE = {"server.address": "localhost", "client.showErrorDetails": "none"}


def _app_file(checkout: Path) -> Path | None:
    """``app.py`` of a checkout, or else the one that was installed as a data file."""
    if (checkout / "app.py").exists() and (checkout / "pages").is_dir():
        return checkout / "app.py"
    with suppress(PackageNotFoundError):
        for file in files("emacore") or ():
            if file.name == "app.py" and (found := Path(str(file.locate())).resolve()).exists():
                return found
    return None


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options, schedules, settings and ids with the Tab key.

    \b
    emacore completion bash
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise click.ClickException(f"there is no completion for {shell}")
    _write_text(f"{kind(cli, {}, 'emacore', '_EMACORE_COMPLETE').source()}\n", None)
    _tell(f"to have it in each new shell: emacore completion {shell} >> {_START_FILES[shell]}")


_START_FILES = {"bash": "~/.bashrc", "zsh": "~/.zshrc", "fish": "~/.config/fish/completions/emacore.fish"}


def main() -> None:
    """Run; the exit code is 0, 1 (failed), 2 (usage), 3 (diverged), or a signal's: 129, 130, 143."""
    languages()
    try:
        cli(prog_name="emacore")
    except ModuleNotFoundError as error:
        _tell(f"Error: this command needs {error.name}: pip install 'emacore[experiments]'")
        sys.exit(FAILED)
    except BrokenPipeError:
        silence(sys.stdout)
    except (RuntimeError, ValueError, OSError) as error:
        _tell(f"Error: {error}")
        sys.exit(FAILED)


def _config(file: str | None, changes: tuple[tuple[str, Any], ...], *, own_seed: bool = True) -> TaskConfig:
    """The settings of a file, or the default ones, with changes; those that change nothing are told.

    Args:
        own_seed: Whether the seed among them is that of what is trained: of a run, not of a study or sweep.
    """
    from emacore.experiments.studies import Study, Sweep, job_from_json, with_settings
    from emacore.limits import SETTINGS_BYTES, check_most
    from emacore.tasks.regression.config import RunConfig
    from emacore.training.acting import idle_settings

    def read() -> TaskConfig:
        if file is None:
            return with_settings(RunConfig(), dict(changes))
        check_most(f"bytes of settings in {file}", Path(file).stat().st_size, SETTINGS_BYTES)
        job = job_from_json(Path(file).read_bytes())
        if isinstance(job, Study | Sweep):
            kind = "a sweep, whose grid and seeds are" if isinstance(job, Sweep) else "a study, whose seeds are"
            _tell(f"{file} describes {kind} not taken from it: only the settings that all its runs have")
            return with_settings(job.config, dict(changes))
        return with_settings(job, dict(changes))

    config: TaskConfig = _checked(read)
    idle = idle_settings(config)
    if "data.path" in idle and any(name == "data.path" for name, _ in changes):
        raise click.UsageError(f"data.path needs data.kind=csv and data.target=COLUMN beside it: {idle['data.path']}")
    for name, _ in changes:
        if name in idle and not (name == "seed" and own_seed):
            instead = "; --seeds and --first-seed say which" if name == "seed" else ""
            _tell(f"{name} changes nothing here: {idle[name]}{instead}")
    return config


def _carried_out(
    job: Job, by_hand: Interruption, step: Callable[[list[dict[str, Any]]], None], **arguments: Any
) -> CarriedOut:
    """A job, trained here into the store until it ends or is ended by hand; its history is in memory whatever the store
    does."""
    from emacore.experiments.jobs import alive, carry_out
    from emacore.experiments.store import RunStore, StoreError
    from emacore.experiments.studies import job_in_words
    from emacore.training.config import TaskConfig

    store = RunStore()
    for words in _checked((job if isinstance(job, TaskConfig) else job.config).data.told, failed=True):
        _tell(words)
    problems: list[str] = []

    def trouble(error: Exception) -> None:
        if not problems:
            _tell(f"\nnot all of it can be kept in the store: {error}")
        problems.append(str(error))

    with store.workers.working("terminal") as worker:
        run_id = store.enter(job, worker)
        job = store.result(run_id).job  # whose table the store keeps
        _tell(f"{run_id}: {job_in_words(job)}")
        by_hand.at_once = lambda: store.finish(run_id, worker, "stopped", stopped="stopped")
        try:
            with alive(store, run_id, worker, by_hand.stop):
                done = carry_out(store, run_id, worker, job, by_hand.stop, step, trouble=trouble, **arguments)
        except Exception as error:
            with suppress(StoreError):
                store.finish(run_id, worker, "failed", error=str(error))
            raise
    _tell(f"{run_id} ({job_in_words(job)}): {done.ended}")
    return done


def _end(done: CarriedOut, by_hand: Interruption, output: str | None, *, failed: bool = False) -> None:
    """Write a job's history, and leave with the exit code of how it ended."""
    if done.recording_error is not None:
        _tell(f"weights: {done.recording_error}")
    try:
        _write(done.history, output)
    except click.ClickException as error:
        kept = f"what the store has of it: emacore export {done.run_id}"
        raise click.ClickException(f"{error.message}; {kept}") from error
    if failed:
        raise click.ClickException("some cells could not be trained: see the column error")
    sys.exit(by_hand.exit_code("diverged" if done.diverged else done.ended))
