"""The commands on stored jobs: list, show, name, export, delete."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import click

from emacore.cli.options import JobId, Number, output
from emacore.cli.terminal import print_out, tell, write_table, write_text
from emacore.formatting import counted, in_bytes
from emacore.limits import CELLS_BYTES, RECORDINGS_BYTES, TABLES_BYTES

if TYPE_CHECKING:
    import pandas as pd

#: Days that may be asked for: a century.
_LONGEST = 36_525


@click.command()
@click.argument("run_id", type=JobId())
@click.option(
    "--as",
    "form",
    type=click.Choice(["csv", "json"]),
    default="csv",
    show_default=True,
    help="csv: the history; json: the settings, which --config of other commands takes.",
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


class _Runs(click.Group):
    """The commands under ``emacore runs``; ``--prune`` there is taken for the command ``prune``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["prune" if arg == "--prune" else arg for arg in args])


@click.group(cls=_Runs, invoke_without_command=True)
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
@click.option("--yes", is_flag=True, help="Delete without asking.")
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


@runs.command()
@click.option(
    "--older-than",
    type=Number(0, _LONGEST),
    default=0,
    help="Only of jobs that were made this many days ago or earlier.",
)
@click.option("--larger-than", type=Number(0), default=0, help="Only recorded weights of at least this many MB.")
@click.option(
    "--state",
    "states",
    multiple=True,
    help="Only of jobs that ended so: done, stopped, failed, interrupted; may be given many times.",
)
@click.option("--whole", is_flag=True, help="Forget the jobs as well: settings, histories, tables and cells.")
@click.option("--cells", is_flag=True, help="Forget the cells of all sweeps, too, so that they are trained anew.")
@click.option("--yes", is_flag=True, help="Free without asking.")
def prune(older_than: float, larger_than: float, states: tuple[str, ...], whole: bool, cells: bool, yes: bool) -> None:
    """Free the recorded weights of jobs that have ended, and tables that no job trains on; histories stay.
    Also: emacore runs --prune.

    \b
    emacore runs prune --older-than 30 --state failed --yes
    """
    from emacore.experiments.store import FINAL_STATES, RunStore

    if wrong := sorted(set(states) - set(FINAL_STATES)):
        raise click.BadParameter(f"a state that has ended is one of {', '.join(FINAL_STATES)}; got {wrong[0]!r}")
    store = RunStore()
    taken = store.taken()
    tell(
        f"the store takes {in_bytes(sum(taken.values()))}: recorded weights {in_bytes(taken['recordings'])} of at "
        f"most {in_bytes(RECORDINGS_BYTES)}, tables {in_bytes(taken['tables'])} of {in_bytes(TABLES_BYTES)}, cells "
        f"of sweeps {in_bytes(taken['cells'])} of {in_bytes(CELLS_BYTES)}, histories {in_bytes(taken['histories'])}"
    )
    sizes, table = store.recorded_bytes(), store.jobs().set_index("id")
    made = datetime.now(UTC) - timedelta(days=older_than)
    chosen = table[table["state"].isin(states or FINAL_STATES) & (table["created"] <= made)]
    gone = [] if states else [job_id for job_id in sizes if not store.has(job_id)]
    ids = [job_id for job_id in chosen.index if whole or job_id in sizes]
    ids = [job_id for job_id in [*ids, *gone] if sizes.get(job_id, 0) >= larger_than * 2**20]
    for job_id in ids:
        state = table["state"].get(job_id, "its job is gone")
        tell(f"{job_id}: {in_bytes(sizes.get(job_id, 0))}, {state}")
    unused = store.unused_tables()
    if unused:
        tell(f"{counted(len(unused), 'table')} that no job trains on: {in_bytes(sum(unused.values()))}")
    if cells:
        tell(f"cells of sweeps: {in_bytes(taken['cells'])}")
    freed = sum(sizes.get(job_id, 0) for job_id in ids) + sum(unused.values()) + cells * taken["cells"]
    tell(f"{counted(len(ids), 'job')}, {in_bytes(freed)} to free")
    if not ids and not unused and not cells:
        return
    if not yes:
        click.confirm("Delete whole jobs for good?" if whole and ids else "Free these?", abort=True, err=True)
    store.drop_tables()
    if cells:
        store.drop_cells()
    for job_id in ids:
        if whole and job_id in table.index:
            store.delete(job_id)
        else:
            store.drop_recording(job_id)


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

    store = RunStore()
    for job_id, problem in store.damaged().items():
        tell(f"{job_id} is damaged and left out: {problem}")
    write_table(_listed(store).drop(columns=["label", "config"]), output)


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
