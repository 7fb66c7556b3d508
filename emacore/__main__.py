"""The command line: ``python -m emacore``, or ``emacore`` once installed.

Tables go to standard output or a file as CSV, progress and messages to standard error.
"""

from __future__ import annotations

import csv
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

import emacore
from emacore.averaging.code import from_code, scheme_from_code, scheme_to_code
from emacore.averaging.schedules import Schedule
from emacore.averaging.trackers import halflife_decays, tensorboard_decays, wandb_decays
from emacore.averaging.weights import effective_count, mean_age, relative_width, start_share, weights
from emacore.averaging.windows import Scheme
from emacore.formatting import number, percent

# What the core does not need is imported where it is used: some commands run without pandas.
if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from numpy.typing import NDArray

    from emacore.experiments.studies import Job, Sweep
    from emacore.training.config import TaskConfig

LEVELS = (0.9, 0.99, 0.999, 0.9999)

Command = Callable[..., Any]


class ScheduleCode(click.ParamType[Schedule]):
    """A schedule as code, such as ``Constant(beta=0.99)``."""

    name = "schedule"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Schedule:
        try:
            return from_code(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SchemeCode(click.ParamType[Scheme]):
    """A schedule or a window as code, such as ``Window(size=100)``."""

    name = "scheme"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Scheme:
        try:
            return scheme_from_code(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Setting(click.ParamType[tuple[str, Any]]):
    """A setting by its dotted name, ``name=value``; the value is JSON, or else text."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        key, equals, text = value.partition("=")
        if not equals:
            self.fail(f"{value!r} is not of the form name=value", param, ctx)
        from emacore.experiments.studies import json_value

        return key.strip(), json_value(text)


def settings(command: Command) -> Command:
    """The options that make a config."""
    command = click.option("--config", type=click.Path(exists=True, dir_okay=False), help="JSON from the app.")(command)
    return click.option(
        "--set", "changes", type=Setting(), multiple=True, help="optimizer.learning_rate=0.01; may be given many times."
    )(command)


output = click.option("--output", "-o", type=click.Path(dir_okay=False, writable=True), help="CSV; else to the screen.")
seed_count = click.option("--seeds", type=click.IntRange(1), default=32, show_default=True, help="How many.")
first_seed = click.option(
    "--first-seed", type=click.IntRange(0), default=0, show_default=True, help="The others follow."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(emacore.__version__, prog_name="emacore")
def cli() -> None:
    """Averages of weights: schedules, training with and without them, evidence over seeds.

    \b
    emacore schedule "InversePower(beta=0.999)" --steps 5000 --output decays.csv
    emacore train --set seed=1 --set max_epochs=5 --output history.csv
    emacore replicate --seeds 8 --set max_epochs=5 --output seeds.csv
    """


@cli.command()
@settings
@output
def train(config: str | None, changes: tuple[tuple[str, Any], ...], output: str | None) -> None:
    """Train one run and print its history; it also shows up in the app.

    \b
    emacore train --set max_epochs=5
    emacore train --set optimizer.learning_rate=0.01 --set schedule="Constant(beta=0.99)" -o history.csv
    """

    def tell(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            _tell(
                f"epoch {row['epoch']}: loss {number(row['val_loss_original'])}, average {number(row['val_loss_ema'])}"
            )

    _write(_carried_out(_config(config, changes), tell), output)


@cli.command()
@settings
@seed_count
@first_seed
@click.option(
    "--schedule", "further", type=ScheduleCode(), multiple=True, help="A further average of the same networks."
)
@output
def replicate(
    config: str | None,
    changes: tuple[tuple[str, Any], ...],
    seeds: int,
    first_seed: int,
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

    study = _checked(lambda: Study(_config(config, changes), tuple(range(first_seed, first_seed + seeds)), further))
    _tell(seeds_in_words(seeds, 1))
    history = _carried_out(study, lambda rows: _tell(f"epoch {rows[0]['epoch']}: {len(rows)} of {seeds} seeds train"))
    if len(history):
        seeds_table = per_seed(history, patience=patience_of(study.config))
        found = answers(seeds_table)
        for question, one in found.items():
            _tell(verdict(one, QUESTIONS[question]))
        _tell(f"{rules_in_words(study.config)} {chosen_in_words(seeds_table, found, study.config)}".strip())
    _write(history, output)


@cli.command()
@settings
@click.option("--grid", "axes", type=Setting(), multiple=True, required=True, help="name=[values] as JSON.")
@seed_count
@first_seed
@click.option("--scheduler", help="Address of a Dask scheduler; also EMACORE_SCHEDULER.")
@output
def sweep(
    config: str | None,
    changes: tuple[tuple[str, Any], ...],
    axes: tuple[tuple[str, Any], ...],
    seeds: int,
    first_seed: int,
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
    from emacore.experiments.sweep import before_start, in_words, rules_of_cells, summary

    def read() -> Sweep:
        grid = {name: values if isinstance(values, list) else [values] for name, values in axes}
        return Sweep(_config(config, changes), grid, tuple(range(first_seed, first_seed + seeds)))

    job = _checked(read)
    for words in filter(None, before_start(job)):
        _tell(words)
    count, done = len(job.cells()), itertools.count(1)
    table = _carried_out(
        job, lambda rows: _tell(f"cell {next(done)} of {count}"), processes=joblib.cpu_count(), scheduler=scheduler
    )
    if len(table):
        found = summary(table, list(job.grid))
        _tell(f"{found.to_string(index=False)}\n{in_words(found, list(job.grid))} {rules_of_cells(job)}".rstrip())
    _write(table, output)
    if table["error"].notna().any():
        raise click.ClickException("some cells could not be trained: see the column error")


@cli.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.argument("schemes", type=SchemeCode(), nargs=-1, required=True)
@click.option("--final", is_flag=True, help="The last average only.")
@output
def replay(folder: str, schemes: tuple[Scheme, ...], final: bool, output: str | None) -> None:
    """Replay a recorded run (a folder) under other schedules, or under windows.

    \b
    emacore replay recording "Constant(beta=0.99)" "PowerFunction(sigma_rel=0.1)" --final
    emacore replay recording "Window(size=100)" "Window(size=100, schedule=Constant(beta=0.9))"
    """
    import pandas as pd

    from emacore.tasks import open_run

    named = {scheme_to_code(scheme): scheme for scheme in schemes}
    if len(named) < len(schemes):
        raise click.UsageError("the same schedule is given twice")
    trajectory = _checked(lambda: open_run(folder), failed=True)
    if trajectory.every > 1:
        _tell(
            f"One step in {trajectory.every} was recorded, so this is close, not exact: on the article's run its own "
            "schedule misses the loss by up to 0.5, 2 and 5 % with one step in 2, 5 and 10; shorter averages by more."
        )
    _write(pd.DataFrame(trajectory.final(named) if final else trajectory.replay(named)), output)


@cli.command()
@click.argument("path", type=click.Path(exists=True))
@click.option("--configured", type=ScheduleCode(), help="The schedule that the average was to have; a step is a call.")
@click.option("--average", help="The section that holds the average, where files have several.")
@click.option("--raw", help="The section that holds the raw weights, where files have several.")
@output
def diagnose(path: str, configured: Schedule | None, average: str | None, raw: str | None, output: str | None) -> None:
    """Say what an average really did, from files (a folder) that hold raw and averaged weights of two steps or more.

    The decays between the files go to the CSV file, if one is named.

    \b
    emacore diagnose checkpoints --configured "Constant(beta=0.999)"
    """
    from emacore.checkpoints import CheckpointError
    from emacore.checkpoints import diagnose as diagnosed

    try:
        found = diagnosed(path, configured, average=average, raw=raw)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    for sentence in found.sentences:
        click.echo(sentence)
    if output is not None:
        with Path(output).open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(found.table)
            rows.writerows(zip(*(values.tolist() for values in found.table.values()), strict=True))


@cli.command()
@click.argument("schedule", type=ScheduleCode())
@click.option("--steps", type=click.IntRange(2, 10_000_000), default=5000, show_default=True, help="Of the run.")
@output
def schedule(schedule: Schedule, steps: int, output: str | None) -> None:
    """Print a schedule's decays, and what each step weighs in the last average.

    \b
    emacore schedule "InversePower(beta=0.999)" --steps 5000 --output decays.csv
    """
    decays = schedule.decays(steps)
    for level in LEVELS:
        call = schedule.reaches(level)
        when = (
            "never" if call is None else f"at step {call:,}" + ("" if call < steps else ", after the end of this run")
        )
        _tell(f"reaches {level:g} {when}")
    _tell(
        f"after step {steps - 1:,}: mean age {number(mean_age(decays))} steps, counts as "
        f"{number(effective_count(decays))} "
        f"snapshots, relative width {percent(relative_width(decays))}, start still in it "
        f"{percent(start_share(decays, start=schedule.start))}"
    )
    columns = {"step": np.arange(steps), "decay": decays, "weight": weights(decays)}
    with Path(output).open("w", newline="") if output else nullcontext(sys.stdout) as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(columns)
        rows.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))


@cli.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.argument("schedule", type=ScheduleCode(), required=False)
@click.option("--like", type=click.Choice(["tensorboard", "wandb", "pandas"]), help="As this tool smooths its curves.")
@click.option("--smoothing", type=click.FloatRange(0, 1, max_open=True), help="The slider of TensorBoard or W&B.")
@click.option("--half-life", type=click.FloatRange(0, min_open=True), help="Of --like pandas, in the unit of x.")
@click.option(
    "--viewport-scale",
    type=click.FloatRange(0, min_open=True),
    default=1000,
    show_default=True,
    help="Of --like wandb, whose documentation names it without a number.",
)
@click.option("--column", "columns", multiple=True, help="By default every metric; may be given many times.")
@click.option(
    "--order",
    type=click.Choice(["step", "file"]),
    default="step",
    show_default=True,
    help="What is smoothed first: the lowest step, or the first row.",
)
@click.option(
    "--repeats",
    type=click.Choice(["all", "last"]),
    default="all",
    show_default=True,
    help="Of several values at a step, as after a restart.",
)
@click.option("--suffix", default="_smoothed", show_default=True, help="Of the new columns' names.")
@output
def smooth(
    file: str,
    schedule: Schedule | None,
    like: str | None,
    smoothing: float | None,
    half_life: float | None,
    viewport_scale: float,
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
    """
    from emacore.metric_files import read_metrics, with_smoothed
    from emacore.tables import MAX_BYTES, numeric_columns

    if (schedule is None) == (like is None):
        raise click.UsageError("give either a schedule, such as Constant(beta=0.9), or --like")
    if like is not None and (half_life if like == "pandas" else smoothing) is None:
        raise click.UsageError(f"--like {like} needs {'--half-life' if like == 'pandas' else '--smoothing'}")
    source: str | bytes = sys.stdin.buffer.read(MAX_BYTES + 1) if file == "-" else file
    found = _checked(lambda: read_metrics(source), failed=True)
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
    steps = found.steps()[found.frame[list(names)].notna().any(axis=1)]
    span = float(np.ptp(steps[np.isfinite(steps)])) if np.isfinite(steps).any() else 0.0

    def decays_of(steps: NDArray[np.float64]) -> NDArray[np.float64]:
        if schedule is not None:
            return schedule.decays(len(steps)) if len(steps) else np.zeros(0)
        if like == "pandas":
            return halflife_decays(steps, half_life or 0.0)
        if like == "wandb":
            return wandb_decays(steps, smoothing or 0.0, x_range=span or None, viewport_scale=viewport_scale)
        return tensorboard_decays(smoothing or 0.0, len(steps)) if len(steps) else np.zeros(0)

    if np.any(np.diff(steps[np.isfinite(steps)]) < 0):
        order_of = "rows; --order step sorts them" if order == "file" else f"{found.step}; --order file keeps the rows'"
        _tell(f"smoothed in the order of the {order_of}")
    if like == "wandb":
        _tell(f"the x-axis spans {span:g}, from the first to the last of these values, times {viewport_scale:g}")
    table = _checked(
        lambda: with_smoothed(
            found,
            names,
            decays_of,
            in_order_of_steps=order == "step",
            last_of_step_only=repeats == "last",
            suffix=suffix,
        ),
        failed=True,
    )
    _write(table, output)


@cli.command()
@click.argument("run_id")
@click.option(
    "--as", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True, help="History, or settings."
)
@output
def export(run_id: str, form: str, output: str | None) -> None:
    """Print the history of a stored run or study as CSV, or its settings as JSON.

    \b
    emacore export 0123456789ab --as json
    """
    from emacore.experiments.store import RunStore

    store = RunStore()
    if form == "csv":
        _write(store.history(run_id), output)
        return
    text = store.result(run_id).job.to_json()
    if output is None:
        click.echo(text)
    else:
        Path(output).write_text(text)


@cli.command()
@output
def runs(output: str | None) -> None:
    """List all runs, studies and sweeps of the store with their names and final numbers, newest first.

    \b
    emacore runs --output runs.csv
    """
    from datetime import UTC, datetime

    from emacore.experiments.listing import final_numbers, listing
    from emacore.experiments.store import FINAL_STATES, RunStore

    store = RunStore()
    table = store.jobs()
    over = table[(table["kind"] == "study") & table["state"].isin(FINAL_STATES)]
    found = {job_id: final_numbers(store.result(job_id).job, store.history(job_id)) for job_id in over["id"]}
    _write(listing(table, datetime.now(UTC), found=found).drop(columns=["label", "config"]), output)


@cli.command()
@click.argument("run_id")
@click.argument("name")
def rename(run_id: str, name: str) -> None:
    """Give a run, study or sweep a name; an empty one brings that of its settings back.

    \b
    emacore rename 0123456789ab "the one for the talk"
    """
    from emacore.experiments.store import RunStore

    store = RunStore()
    store.rename(run_id, name)
    click.echo(f"{run_id}: {store.result(run_id).name or 'named after its settings'}")


@cli.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def app(arguments: tuple[str, ...]) -> None:
    """Open the app; further arguments go to Streamlit.

    \b
    emacore app --server.port 8600
    """
    file = _app_file(Path(__file__).parents[1])
    if file is None:
        raise click.ClickException("app.py is not beside the package, nor installed with it: run this in a checkout")
    if find_spec("streamlit") is None:
        raise click.ClickException("the app needs Streamlit: pip install 'emacore[app]'")
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", str(file), *arguments])


def _app_file(checkout: Path) -> Path | None:
    """``app.py`` of a checkout, or else the one that was installed as a data file."""
    if (checkout / "app.py").exists() and (checkout / "pages").is_dir():
        return checkout / "app.py"
    with suppress(PackageNotFoundError):
        for file in files("emacore") or ():
            if file.name == "app.py" and (found := Path(str(file.locate())).resolve()).exists():
                return found
    return None


def main() -> None:
    """Run, with exit code 0, 1 (failed) or 2 (usage)."""
    try:
        cli(prog_name="emacore")
    except ModuleNotFoundError as error:
        click.echo(f"Error: this command needs {error.name}: pip install 'emacore[experiments]'", err=True)
        sys.exit(1)
    except (RuntimeError, ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _config(file: str | None, changes: tuple[tuple[str, Any], ...]) -> TaskConfig:
    from emacore.experiments.studies import job_from_json, with_settings
    from emacore.tasks.regression.config import RunConfig
    from emacore.training.config import TaskConfig

    def read() -> TaskConfig:
        job = RunConfig() if file is None else job_from_json(Path(file).read_bytes())
        return with_settings(job if isinstance(job, TaskConfig) else job.config, dict(changes))

    config: TaskConfig = _checked(read)
    return config


def _checked(make: Callable[[], Any], *, failed: bool = False) -> Any:
    """What ``make`` returns; its ``ValueError`` is a wrong usage, or else (``failed``) a failure."""
    try:
        return make()
    except ValueError as error:
        raise (click.ClickException if failed else click.UsageError)(str(error)) from error


def _carried_out(job: Job, tell: Callable[[list[dict[str, Any]]], None], **arguments: Any) -> pd.DataFrame:
    """The history of a job, trained here into the store; Ctrl-C ends it."""
    from emacore.experiments.jobs import alive, carry_out
    from emacore.experiments.store import RunStore, worker_name
    from emacore.experiments.studies import job_in_words

    store, worker = RunStore(), worker_name(os.getpid(), "terminal")
    with _interruptible() as stop:
        run_id = store.enter(job, worker)
        try:
            with alive(store, run_id, worker, stop):
                history = carry_out(store, run_id, worker, job, stop, tell, **arguments)
        except Exception as error:
            store.finish(run_id, worker, "failed", error=str(error))
            raise
    _tell(f"{run_id} ({job_in_words(job)}): {store.result(run_id).stopped}")
    return history


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets: what was done so far is kept.  A second Ctrl-C ends at once."""
    stop = threading.Event()

    def on_signal(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        stop.set()

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _write(table: pd.DataFrame, output: str | None) -> None:
    if output is None:
        click.echo(table.to_csv(index=False), nl=False)
    else:
        table.to_csv(output, index=False)


if __name__ == "__main__":
    main()
