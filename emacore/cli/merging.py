"""The commands on checkpoints: what is in a folder, and merges of it."""

from __future__ import annotations

import csv
import hashlib
import io
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from emacore.averaging.code import merge_from_code, merge_to_code
from emacore.averaging.coefficients import FITS, LastFiles, Merge
from emacore.cli.options import output
from emacore.cli.terminal import ENDING_SIGNALS, write_text
from emacore.formatting import counted, duration, in_bytes, number

# Files of weights are opened by torch, which takes seconds to come: --help goes without.
if TYPE_CHECKING:
    from emacore.checkpoints.planning import MergePlan, Options
    from emacore.checkpoints.reading import Checkpoints
    from emacore.checkpoints.soups import Evaluation, Tried


class MergeCode(click.ParamType[Merge]):
    """What to merge by, as code, such as ``Window(size=10000)``, ``Window(files=10)`` or ``RateDecay('1-sqrt')``."""

    name = "scheme"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Merge:
        try:
            return merge_from_code(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


paths = click.argument("paths", type=click.Path(exists=True), nargs=-1, required=True)


@click.command()
@paths
@output
def checkpoints(paths: tuple[str, ...], output: str | None) -> None:
    """Say what is in a folder of checkpoints: steps, sizes, dtypes, and which sections hold an average.

    safetensors, torch.save, Lightning, Transformers, timm, diffusers, ema-pytorch, EDM2, torch.distributed.checkpoint.
    Only headers are read, and nothing that a file holds is run.

    \b
    emacore checkpoints runs/mine
    emacore checkpoints runs/mine -o checkpoints.csv
    """
    from emacore.checkpoints.reading import described, told_of_gaps

    found = _opened(paths)
    steps = found.steps
    _tell(
        f"{counted(len(found), 'checkpoint')}, step {steps[0]:,}"
        + (f" to {steps[-1]:,}" if len(found) > 1 else "")
        + f", told by {' and '.join(dict.fromkeys(one.step_from for one in found))}"
    )
    if gaps := told_of_gaps(steps):
        _tell(gaps)
    for name in found.names():
        section = next(section for one in found for section in one.sections if section.name == name)
        count = sum(one.section(name) is not None for one in found)
        told = [one.section(name).about for one in found if one.section(name) is not None]  # type: ignore[union-attr]
        same = {key: value for key, value in section.about.items() if all(one.get(key) == value for one in told)}
        about = ", ".join(f"{key} {value}" for key, value in same.items())
        _tell(
            f"{name}: {_KINDS[section.kind]}{f' ({about})' if about else ''}, in {counted(count, 'checkpoint')}, "
            f"{counted(len(section.tensors), 'tensor')}, {in_bytes(section.nbytes)} each"
        )
    _tell_of(found)
    _write_csv(list(described(found)), output)


_KINDS = {"raw": "raw weights", "average": "an average", "window": "means of the steps since the file before"}


@click.command()
@paths
@click.option(
    "--scheme",
    "schemes",
    type=MergeCode(),
    multiple=True,
    help="A schedule or window to merge by, as code; may be given many times, and all are made in one pass.",
)
@click.option("--out", "-o", type=click.Path(), help="A new folder, or a new file where there is one scheme.")
@click.option("--dry-run", is_flag=True, help="Print the coefficients and certificates; read headers, write nothing.")
@click.option("--last", type=click.IntRange(1), help="Merge only this many of the last checkpoints.")
@click.option("--at", type=click.IntRange(0), help="The step after which the average is wanted; by default the last.")
@click.option("--section", help="What to merge, where the files hold several sets of weights.")
@click.option(
    "--fit",
    type=click.Choice(FITS),
    help="How coefficients are found: by default linear for raw weights, else by least squares.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16", "float64"]),
    help="What the results are written as; by default as the files are stored.",
)
@click.option("--float64", is_flag=True, help="Add up in float64, not float32, for less rounding.")
@click.option(
    "--as",
    "form",
    type=click.Choice(["safetensors", "pt"]),
    help="The format of the results; by default safetensors, or as --out ends.",
)
@click.option(
    "--sigma-rel",
    type=float,
    multiple=True,
    help="The relative widths of ema-pytorch's PostHocEMA files, which do not say them; one for each, in their order.",
)
@click.option(
    "--evaluate",
    help="module:function, from tensors by name to a number: each result is measured, and --soup greedy chooses by it.",
)
@click.option(
    "--lower-is-better/--higher-is-better",
    default=None,
    help="Which way the number of --evaluate is better; by default as the function's metrics say, else higher.",
)
@click.option(
    "--soup",
    "soups",
    type=click.Choice(["greedy", "uniform"]),
    multiple=True,
    help="uniform: the plain mean of all files; greedy: of those that do not worsen it, from the best one on (by "
    "--evaluate).",
)
@click.option(
    "--update-every",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="The steps between two updates of those PostHocEMA files, which do not say it either.",
)
def merge(
    paths: tuple[str, ...],
    schemes: tuple[Merge, ...],
    out: str | None,
    dry_run: bool,
    last: int | None,
    at: int | None,
    section: str | None,
    fit: Any,
    dtype: str | None,
    float64: bool,
    form: str | None,
    sigma_rel: tuple[float, ...],
    evaluate: str | None,
    lower_is_better: bool | None,
    soups: tuple[str, ...],
    update_every: int,
) -> None:
    """Merge checkpoints by one or more schemes in one pass, and say how far each is from the true average.

    Schedules and windows are in steps. Window(files=10) counts files; RateDecay('linear'), 'cosine' or '1-sqrt' stands
    for a decay of the learning rate (to first order: it takes the gradients to be the same); Coefficients(-0.5, 1.5)
    are those of the last files.

    \b
    emacore merge runs/mine --scheme "Window(size=10000)" --scheme "PowerFunction(sigma_rel=0.1)" -o merged
    emacore merge runs/mine --scheme "RateDecay('1-sqrt')" --last 20 --dry-run
    emacore merge runs/mine --soup greedy --soup uniform --evaluate my_eval:accuracy -o soups
    """
    import torch

    from emacore.checkpoints.distances import expected_of
    from emacore.checkpoints.merging import carry_out, check_place
    from emacore.checkpoints.planning import plan_merge
    from emacore.checkpoints.soups import evaluation, greedy_soup

    if out is None and not dry_run:
        raise click.UsageError("say where the results go by --out, or look first by --dry-run")
    if not schemes and not soups:
        raise click.UsageError("say what to merge by: --scheme, or --soup")
    if "greedy" in soups and evaluate is None:
        raise click.UsageError("a greedy soup needs --evaluate module:function")
    if lower_is_better is not None and evaluate is None:
        raise click.UsageError("which way is better is said of --evaluate, and there is none")
    form = form or ("pt" if Path(str(out)).suffix == ".pt" else "safetensors")
    named = {_file_name(merge_to_code(scheme)): scheme for scheme in schemes}
    if len(named) < len(schemes):
        raise click.UsageError("the same scheme is given twice")
    found = _opened(paths)
    _tell_of(found)
    measuring = nullcontext() if evaluate is None else evaluation(evaluate)
    with _ending_by_exceptions(), measuring as measured:
        options: Options = {
            "section": section,
            "last": last,
            "at": at,
            "fit": fit,
            "sigma_rel": sigma_rel,
            "update_every": update_every,
            "dtype": None if dtype is None else getattr(torch, dtype),
        }
        try:
            if "uniform" in soups:
                named["uniform-soup"] = LastFiles(last or len(found))
            if "greedy" in soups:
                named["greedy-soup"] = LastFiles(1)  # until it is known
            plan = plan_merge(found, named, **options)
            if not dry_run:
                check_place(plan, Path(str(out)), form)  # before anything that takes long
            if "greedy" in soups and measured is not None:
                higher = _higher_is_better(measured, lower_is_better)
                named["greedy-soup"], _ = greedy_soup(
                    found, measured, higher_is_better=higher, section=section, last=last, at=at, tell=_tell_tried
                )
                plan = plan_merge(found, named, **options)
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        if "greedy" in soups:
            words = f"the greedy soup was chosen on {evaluate}, whose number flatters it: judge it on other data"
            plan = replace(plan, remarks=(*plan.remarks, words))
        _tell_plan(plan)
        for name, words in expected_of(plan).items():
            _tell(f"{name}: {words}")
        if dry_run:
            _write_csv(_coefficients(plan), None)
            return
        with _Progress() as progress:
            accumulate = torch.float64 if float64 else torch.float32
            places = carry_out(plan, found, Path(str(out)), accumulate, form, progress.tell, say=_tell)
        for place, result in zip(places, plan.results, strict=True):
            if measured is not None:
                _tell(f"{result.name}: {evaluate} is {number(measured(place))}")
            click.echo(place)


def _higher_is_better(measured: Evaluation, lower_is_better: bool | None) -> bool:
    """As asked for, else as the function says by its metrics, else true, which is told."""
    if lower_is_better is not None:
        return not lower_is_better
    if measured.higher_is_better is None:
        _tell(
            f"{measured.function} does not say which is better by its metrics: higher is taken for it; of a loss give "
            "--lower-is-better"
        )
    return measured.higher_is_better is not False


def _tell_tried(tried: Tried) -> None:
    steps = ", ".join(f"{step:,}" for step in tried.steps)
    kept = "" if len(tried.steps) == 1 else ", kept" if tried.kept else ", not kept"
    _tell(f"{'step' if len(tried.steps) == 1 else 'steps'} {steps}: {number(tried.value)}{kept}")


def _opened(paths: Sequence[str]) -> Checkpoints:
    from emacore.checkpoints.reading import open_checkpoints

    try:
        return open_checkpoints(paths)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _tell(text: str) -> None:
    click.echo(text, err=True)


def _tell_of(found: Checkpoints) -> None:
    for words in found.told:
        _tell(words)
    for words in found.damaged:
        _tell(f"cannot be read: {words}")


def _tell_plan(plan: MergePlan) -> None:
    first, last = plan.sources[0].checkpoint.step, plan.sources[-1].checkpoint.step
    _tell(
        f"{counted(len(plan.used), 'file')} of {len(plan.sources)}, steps {first:,} to {last:,}: "
        f"{in_bytes(plan.read_bytes)} to read, {in_bytes(plan.write_bytes)} to write"
    )
    for result in plan.results:
        _tell(f"{result.name}: {result.in_words()}")
    for words in plan.remarks:
        _tell(words)


def _coefficients(plan: MergePlan) -> list[dict[str, Any]]:
    return [
        {"step": source.checkpoint.step, "section": source.section.name}
        | {result.name: float(result.coefficients[n]) for result in plan.results}
        for n, source in enumerate(plan.sources)
    ]


def _write_csv(rows: Sequence[Mapping[str, Any]], output: str | None) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(text.getvalue(), output)


#: Letters of a result's name; file systems take 255, and something is put before and behind it.
_LONGEST = 120


def _file_name(code: str) -> str:
    """A scheme's code as the name of a file: without quotes and spaces, and not too long for one."""
    name = "".join(letter for letter in code if letter not in "'\" ")
    return (
        name if len(name) <= _LONGEST else f"{name[: _LONGEST - 12]}...-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )


class _Progress:
    """A line of bytes read, pace and time left, anew about twice a second, where standard error is a terminal."""

    def __enter__(self) -> _Progress:
        self._begin = self._told = time.monotonic()
        self._shown = sys.stderr.isatty()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._shown:
            click.echo(err=True)

    def tell(self, done: int, total: int) -> None:
        """Say that ``done`` of ``total`` bytes have been read."""
        now = time.monotonic()
        if not self._shown or (done < total and now < self._told + 0.5):
            return
        self._told = now
        pace = done / max(now - self._begin, 1e-9)
        left = duration((total - done) / pace) if pace else "an unknown time"
        click.echo(
            f"\r{in_bytes(done)} of {in_bytes(total)}, {in_bytes(int(pace))}/s, {left} left    ", nl=False, err=True
        )


@contextmanager
def _ending_by_exceptions() -> Iterator[None]:
    """Have Ctrl-C and requests to end the process raise exceptions, so that what is half written is removed."""

    def end(signum: int, frame: object) -> None:
        sys.exit(128 + signum)

    signals = [one for one in ENDING_SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    before = [signal.signal(one, end) for one in signals]
    try:
        yield
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)
