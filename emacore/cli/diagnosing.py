"""The command that finds out what an average really did."""

from __future__ import annotations

import csv
import io

import click

from emacore.averaging.schedules import Schedule
from emacore.cli.options import ScheduleCode, output
from emacore.cli.terminal import write_text


@click.command()
@click.argument("paths", type=click.Path(exists=True), nargs=-1, required=True)
@click.option(
    "--configured",
    type=ScheduleCode(),
    help="The schedule that the average should have had, in optimiser steps: then it is said whether it did.",
)
@click.option("--average", help="The section that holds the average, where the files have several.")
@click.option("--raw", help="The section that holds the raw weights, where the files have several.")
@output
def diagnose(
    paths: tuple[str, ...], configured: Schedule | None, average: str | None, raw: str | None, output: str | None
) -> None:
    """Say what an average really did, from files that hold raw and averaged weights: the decay, and what is wrong.

    It takes at least two files of one run, best half a memory of the average apart. --output names a file for the
    decays between the files.

    \b
    emacore diagnose runs/mine --configured "Constant(beta=0.999)"
    emacore diagnose step_1000.pt step_1100.pt step_1200.pt -o decays.csv
    """
    from emacore.checkpoints import CheckpointError, open_checkpoints
    from emacore.checkpoints import diagnose as diagnosed

    try:
        opened = open_checkpoints(paths)
        found = diagnosed(opened, configured, average=average, raw=raw)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    for sentence in (*opened.damaged, *opened.told):
        click.echo(sentence, err=True)
    for sentence in found.sentences:
        click.echo(sentence)
    if output is not None:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(found.table)
        rows.writerows(zip(*(values.tolist() for values in found.table.values()), strict=True))
        write_text(text.getvalue(), output)
