"""The commands on stored jobs: list, show, name, export, delete."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from emacore.cli.options import JobId, output
from emacore.cli.terminal import print_out, tell, write_table, write_text

if TYPE_CHECKING:
    import pandas as pd


@click.command()
@click.argument("run_id", type=JobId())
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
        write_table(store.history(run_id), output)
    else:
        write_text(store.result(run_id).job.to_json() + ("" if output else "\n"), output)


@click.group(invoke_without_command=True)
@output
@click.pass_context
def runs(ctx: click.Context, output: str | None) -> None:
    """The runs, studies and sweeps of the store: without a command, a list of them.

    \b
    emacore runs --output runs.csv
    """
    if ctx.invoked_subcommand is None:
        _list(output)


@runs.command("list")
@output
def list_jobs(output: str | None) -> None:
    """List all with their names and final numbers, newest first.

    \b
    emacore runs list -o runs.csv
    """
    _list(output)


@runs.command()
@click.argument("run_id", type=JobId())
@output
def show(run_id: str, output: str | None) -> None:
    """Print what is known of one job, a line each: state, times, settings, final numbers.

    \b
    emacore runs show 0123456789ab
    """
    import json

    from emacore.experiments.store import RunStore
    from emacore.training.config import dotted

    row = _listed(RunStore(), only=run_id).iloc[0]
    known = {str(name): value for name, value in row.items() if name not in ("label", "config")}
    known |= dotted(json.loads(row["config"]))
    write_text("".join(f"{name}: {value}\n" for name, value in known.items() if not _is_missing(value)), output)


@runs.command("rename")
@click.argument("run_id", type=JobId())
@click.argument("name")
def rename_job(run_id: str, name: str) -> None:
    """Give a job a name; an empty one brings that of its settings back.

    \b
    emacore runs rename 0123456789ab "the one for the talk"
    """
    _rename(run_id, name)


@runs.command()
@click.argument("run_ids", type=JobId(), nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(run_ids: tuple[str, ...], yes: bool) -> None:
    """Forget jobs: settings, history and recorded weights, and what no other job uses.

    \b
    emacore runs delete 0123456789ab --yes
    """
    from emacore.experiments.store import RunStore
    from emacore.experiments.studies import job_in_words

    store = RunStore()
    for run_id in run_ids:
        stored = store.result(run_id)
        tell(f"{run_id}: {stored.name or job_in_words(stored.job)} ({stored.state})")
    if not yes:
        click.confirm("Delete for good?", abort=True, err=True)
    for run_id in run_ids:
        store.delete(run_id)


@click.command()
@click.argument("run_id", type=JobId())
@click.argument("name")
def rename(run_id: str, name: str) -> None:
    """Give a run, study or sweep a name; an empty one brings that of its settings back.

    \b
    emacore rename 0123456789ab "the one for the talk"
    """
    _rename(run_id, name)


def _rename(run_id: str, name: str) -> None:
    from emacore.experiments.store import RunStore

    store = RunStore()
    store.rename(run_id, name)
    print_out(f"{run_id}: {store.result(run_id).name or 'named after its settings'}\n")


def _list(output: str | None) -> None:
    from emacore.experiments.store import RunStore

    write_table(_listed(RunStore()).drop(columns=["label", "config"]), output)


def _listed(store: Any, only: str | None = None) -> pd.DataFrame:
    from emacore.experiments.listing import final_numbers, listing
    from emacore.experiments.store import FINAL_STATES

    table = store.jobs()
    if only is not None:
        store.result(only)  # or else it says that there is none
        table = table[table["id"] == only]
    over = table[(table["kind"] == "study") & table["state"].isin(FINAL_STATES)]
    found = {job_id: final_numbers(store.result(job_id).job, store.history(job_id)) for job_id in over["id"]}
    return listing(table, datetime.now(UTC), found=found)


def _is_missing(value: object) -> bool:
    return value is None or value != value  # as NaN and NaT are not
