"""A grid of settings, each over many seeds: on this machine, or on a Dask cluster.

The engine is joblib: its loky processes here, Dask's workers where a scheduler's address is given.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from time import monotonic
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

import emacore
from emacore.averaging.code import to_code
from emacore.experiments.evidence import QUESTIONS, comparison_of, patience_of, per_seed, rules_in_words
from emacore.experiments.statistics import (
    Corrected,
    Interval,
    PairedComparison,
    corrected,
    fewest_seeds,
    kind_of,
    seeds_in_words,
)
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study, Sweep, job_from_json
from emacore.experiments.workers import end_with
from emacore.formatting import counted, number, percent
from emacore.training.acting import acting, idle_settings
from emacore.training.config import TaskConfig, article_schedule
from emacore.training.history import MODELS, TimeLeft, time_left, training_follows_average
from emacore.training.names import setting_in_words

if TYPE_CHECKING:
    from emacore.training.replicas import ReplicaResult

Rows = list[dict[str, Any]]
#: What was found of a cell: rows, one a seed, by the code of the schedule.
Found = dict[str, Rows]

#: The environment variable that holds a scheduler's address.
SCHEDULER = "EMACORE_SCHEDULER"
#: How often a cell is tried whose worker died.
TRIES = 3
_NAMES = [f"{question}_{which}" for question in QUESTIONS for which in MODELS]
_CHOSEN = ("fixed_epoch", *(f"own_{what}_{which}" for what in ("epoch", "ended") for which in MODELS))


class SweepError(RuntimeError):
    """A sweep cannot run as asked; the message says why and what to do."""


class _CutShort(Exception):
    """A training was stopped on request."""


def sweep(
    config: TaskConfig,
    grid: Mapping[str, Sequence[Any]],
    seeds: Sequence[int],
    scheduler: str | None = None,
    on_result: Callable[[Rows], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    *,
    store: RunStore | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """Train every cell of a grid over the same seeds, as stacked replicas.

    Args:
        scheduler: Address of a Dask scheduler, such as ``tcp://127.0.0.1:8786``; by default that in
            ``EMACORE_SCHEDULER``, and if there is none, processes on this machine.
        on_result: Called with the rows of each cell as it is done.
        should_stop: Asked after each cell, and with one worker within it; the cells so far are returned.
        store: Keeps each cell as it is done.  A sweep that was killed takes from there what it had.
        workers: Processes on this machine; by default one for each core.  With 1, this process does it all.

    Returns:
        One row for each cell and seed, in the grid's order: the grid's columns, ``seed``, the losses and the epochs of
        :func:`~emacore.experiments.evidence.per_seed`, the final metrics but the loss, ``epochs``, ``stopped``,
        ``seconds`` (of the whole cell; cells that differ in their average only share one training, unless it looks at
        the average), ``elapsed`` (from the start of the sweep to the end of the cell; 0 if ``store`` had it), and
        ``error``, which is missing unless the cell could not be trained.

    Raises:
        ValueError: as :class:`~emacore.experiments.studies.Sweep`, before anything starts.
        SweepError: if the scheduler cannot be reached, or its workers have other versions; or if the task or a family
            is defined in a script, which other processes cannot import.
    """
    job = Sweep(config, grid, tuple(seeds))
    chosen, keys = job.cells(), job.cell_keys()
    columns = [*grid, *columns_of(config)]
    done: dict[int, Rows] = {}
    begin = monotonic()

    def take(index: int, rows: Rows, elapsed: float) -> bool:
        """Enter a cell's rows; true if the sweep is to stop."""
        own = chosen[index][0] | {"elapsed": elapsed}
        done[index] = [dict.fromkeys(columns) | own | row for row in rows]
        if on_result is not None:
            on_result(done[index])
        return should_stop is not None and should_stop()

    for index, key in enumerate(keys):
        if store is not None and (rows := store.cell(key)) is not None and take(index, rows, 0.0):
            return _table(done, columns)
    address = address_of(scheduler)
    groups = sharing({n: cell for n, (_, cell) in enumerate(chosen) if n not in done})
    jobs = {first: _study(group, seeds).to_json(indent=None) for first, group in groups.items()}
    stopped = False
    with _engine(address, workers, should_stop, _modules([cell for _, cell in chosen])) as run:
        for first, found in run(jobs):
            elapsed = monotonic() - begin
            for index, cell in groups[first].items():
                failed = [{"seed": seed, "error": found} for seed in job.seeds]
                rows = failed if isinstance(found, str) else found[to_code(cell.schedule)]
                if store is not None and not any(row["error"] for row in rows):
                    store.add_cell(keys[index], rows)
                stopped = take(index, rows, elapsed)
            if stopped:
                break
    return _table(done, columns)


def address_of(scheduler: str | None = None) -> str | None:
    """The address of the scheduler that is asked for here, or in ``EMACORE_SCHEDULER``; ``None`` where there is none.

    Raises:
        ValueError: if it is none.
    """
    address = (scheduler or os.environ.get(SCHEDULER) or "").strip()
    if not address:
        return None
    found = re.fullmatch(r"(?:(?:tcp|tls|ws|wss|ucx)://)?(?:\[[0-9a-fA-F:]+\]|[\w.-]+):(\d{1,5})/?", address)
    if found is None or not 0 < int(found[1]) < 2**16:
        raise ValueError(
            f"a scheduler's address has a host and a port, such as tcp://127.0.0.1:8786; got {address[:200]!r}"
        )
    return address


def sharing(cells: Mapping[int, TaskConfig]) -> dict[int, dict[int, TaskConfig]]:
    """Cells in groups, by their first one, of which one training serves all: they are the same in effect, or differ in
    their average only, and nothing in the training looks at it."""
    groups: dict[int, dict[int, TaskConfig]] = {}
    firsts: dict[Any, int] = {}
    for index, cell in cells.items():
        acts = acting(cell)
        if not training_follows_average(cell):
            del acts["schedule"]
        first = firsts.setdefault(tuple(sorted(acts.items())), index)
        groups.setdefault(first, {})[index] = cell
    return groups


def _study(group: Mapping[int, TaskConfig], seeds: Sequence[int]) -> Study:
    first, *others = group.values()
    different = {to_code(cell.schedule): cell.schedule for cell in others}  # one can be written in two ways
    return Study(first, tuple(seeds), tuple(different.values()))


def _modules(cells: Sequence[TaskConfig]) -> tuple[str, ...]:
    """The modules outside this package that make the task of cells and the families of their schedules known."""
    kinds = {kind: None for cell in cells for kind in (type(cell), type(cell.schedule))}
    return tuple(dict.fromkeys(kind.__module__ for kind in kinds if kind.__module__.partition(".")[0] != "emacore"))


Results = Iterator[tuple[int, Found | str]]
Run = Callable[[dict[int, str]], Results]


@contextmanager
def _engine(
    address: str | None, workers: int | None, should_stop: Callable[[], bool] | None, modules: tuple[str, ...]
) -> Iterator[Run]:
    if address is None and workers == 1:
        yield lambda jobs: _here(jobs, should_stop)
        return
    if "__main__" in modules:
        raise SweepError(
            "The processes that train cannot import what is defined in a script or a notebook, as this task or family "
            "is: put it into a module of its own, or sweep with workers=1."
        )

    def persistent(jobs: dict[int, str]) -> Results:
        return _persistent(jobs, modules, should_stop)

    if address is None:
        with joblib.parallel_config(
            "loky",
            n_jobs=workers or joblib.cpu_count(),
            inner_max_num_threads=1,
            initializer=end_with,  # else they go on for whole cells where this process is killed
            initargs=(os.getpid(),),
        ):
            yield persistent
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise SweepError("A cluster needs Dask: pip install emacore[cluster].") from error
    _check_reachable(address)
    try:
        client = Client(address, timeout=10, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, TimeoutError, ValueError) as error:
        raise SweepError(
            f"The scheduler {address} cannot be reached: start it with dask scheduler, or unset {SCHEDULER}."
        ) from error
    with client:
        _check_versions(client, address)
        with joblib.parallel_config("dask", client=client, n_jobs=-1):
            yield persistent


def _check_reachable(address: str) -> None:
    """Whether somebody listens there; Dask itself would ask again and again for ten seconds."""
    host, _, port = address.rpartition("://")[2].rstrip("/").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, UnicodeError) as error:
        raise SweepError(
            f"The scheduler {address} cannot be reached: start it with dask scheduler, or unset {SCHEDULER}."
        ) from error


def _check_versions(client: Any, address: str) -> None:
    try:
        found = client.run(_versions)
    except Exception as error:  # whatever hinders a worker, such as a missing package, is what must be told
        raise SweepError(f"The workers of {address} cannot run emacore: {error}.") from error
    if not found:
        raise SweepError(f"The scheduler {address} has no workers: start some with dask worker {address}.")
    here = _versions()
    for worker, there in found.items():
        for name, mine in here.items():
            if there.get(name) != mine:
                raise SweepError(
                    f"The worker {worker} has {name} {there.get(name)}, here it is {mine}: install the same there."
                )


def _versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {"emacore": emacore.__version__, "python": python} | {
        name: version(name) for name in ("torch", "numpy", "scikit-learn")
    }


def _here(jobs: dict[int, str], should_stop: Callable[[], bool] | None) -> Results:
    """Run all jobs in this process, where even a job under way can be stopped; it leaves nothing."""
    for index, job in jobs.items():
        try:
            yield train_cell(index, job, should_stop)
        except _CutShort:
            return


def _persistent(
    jobs: dict[int, str], modules: tuple[str, ...], should_stop: Callable[[], bool] | None = None
) -> Results:
    """Run all jobs.  Where a worker dies, those that were not done are run again, in the end each alone.

    Ctrl-C in a terminal ends the workers too, and then nothing is run again.
    """
    left = dict(jobs)
    error = ""
    for attempt in range(TRIES):
        alone = attempt == TRIES - 1
        for batch in [{n: job} for n, job in left.items()] if alone else [left]:
            try:
                for index, found in _parallel(batch, modules):
                    del left[index]
                    yield index, found
            except Exception as problem:  # loky's and Dask's words for a dead worker have no common class
                error = f"{type(problem).__name__}: {str(problem).splitlines()[0] if str(problem) else 'a worker died'}"
        if not left or (should_stop is not None and should_stop()):
            return
    for index in left:
        yield index, f"the worker process died {TRIES} times ({error})"


def _parallel(jobs: dict[int, str], modules: tuple[str, ...]) -> Results:
    calls = (joblib.delayed(train_cell)(index, job, None, modules) for index, job in list(jobs.items()))
    # Cells take seconds: batching them would only delay their results.
    results = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")(calls)
    try:
        for result in results:  # noqa: UP028 - "yield from" would close it before the warning is silenced
            yield result
    finally:
        with warnings.catch_warnings():  # whoever stops a sweep wants to hear nothing of tasks that are cut short
            warnings.filterwarnings("ignore", ".*tasks", UserWarning)
            results.close()


def train_cell(
    index: int, job: str, should_stop: Callable[[], bool] | None = None, modules: Sequence[str] = ()
) -> tuple[int, Found | str]:
    """Train the cells that share a training, a study as JSON: the index, and by schedule a row for each seed, or why
    not.

    Runs in a worker, which imports ``modules`` first: they make its task and families known.
    """
    try:
        for module in modules:
            import_module(module)
        return index, _trained(job, should_stop)
    except _CutShort:
        raise
    except Exception as error:  # one cell's trouble must not end the others
        return index, f"{type(error).__name__}: {error}"


def _trained(job: str, should_stop: Callable[[], bool] | None) -> Found:
    import torch

    from emacore.training.replicas import replicate

    torch.set_num_threads(1)
    study = _read(job)
    names = {"ema": study.config.schedule} | {to_code(schedule): schedule for schedule in study.schedules}
    result = replicate(study.config, study.seeds, None, should_stop, {n: s for n, s in names.items() if n != "ema"})
    if "stopped" in result.stopped.values():
        raise _CutShort
    return {to_code(schedule): _rows(result, name) for name, schedule in names.items()}


def _rows(result: ReplicaResult, name: str) -> Rows:
    """The figures of each seed of one of the averages, named as if it were the only one."""
    history = result.history
    last = history.groupby("seed", sort=False).nth(-1).set_index("seed")
    own = _finals(result.config, name)
    last = last[own].set_axis(_finals(result.config), axis=1)
    table = per_seed(history, name, patience=patience_of(result.config)).set_index("seed").join(last)
    table = table.assign(seconds=float(history["seconds"].max()), error=None, stopped=pd.Series(result.stopped))
    return [{str(key): _plain(value) for key, value in row.items()} for row in table.reset_index().to_dict("records")]


def columns_of(config: TaskConfig) -> list[str]:
    """The columns of a sweep's table after those of its grid."""
    return ["seed", *_NAMES, *_finals(config), "epochs", *_CHOSEN, "stopped", "seconds", "elapsed", "error"]


def _finals(config: TaskConfig, average: str = "ema") -> list[str]:
    """The columns of the final metrics but the loss, of the original and of one of the averages."""
    return [f"val_{metric.column}_{model}" for metric in config.metrics[1:] for model in ("original", average)]


def _read(job: str) -> Study:
    study = job_from_json(job)
    if not isinstance(study, Study):
        raise TypeError("a cell must be a study over seeds")
    return study


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, which JSON can hold."""
    return value.item() if hasattr(value, "item") else value


def _table(done: Mapping[int, Rows], columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame([row for index in sorted(done) for row in done[index]], columns=columns)


@dataclass(frozen=True)
class Cell:
    """One cell of a sweep's table, and what its seeds say of a question.

    Args:
        settings: Its values of the grid.
        rows: A row for each seed.
        test: Its number, from 1; cells with the same number have the same pairs and are one test.
        comparison: ``None`` where no seed has an answer.
        among: The comparison as one of all the sweep's tests.
    """

    settings: dict[str, Any]
    rows: pd.DataFrame
    test: int
    comparison: PairedComparison | None
    among: Corrected | None

    @property
    def untrained(self) -> int:
        """How many of its seeds could not be trained."""
        return int(self.rows["error"].notna().sum())

    @property
    def failed(self) -> bool:
        """Whether none of its seeds could be trained."""
        return self.untrained == len(self.rows)

    @property
    def verdict(self) -> str:
        """What the cell's seeds show: one of :data:`~emacore.experiments.statistics.KINDS`."""
        return "cannot tell" if self.comparison is None else kind_of(self.comparison, self.among)


def _by_cell(grids: pd.DataFrame) -> Iterator[NDArray[np.intp]]:
    """The places of the rows of each cell; values may be lists, which pandas cannot group by."""
    marks = [[json.dumps(value) for value in column.tolist()] for _, column in grids.items()]
    found: dict[tuple[str, ...], list[int]] = {}
    for place, mark in enumerate(zip(*marks, strict=True)):
        found.setdefault(mark, []).append(place)
    yield from map(np.asarray, found.values())


def cells_of(table: pd.DataFrame, grid: Sequence[str], question: str = "final", *, complete: bool = True) -> list[Cell]:
    """The cells of a sweep's table, each with its one verdict on a question.

    Cells whose pairs are all the same, because what they differ in acts on nothing, are one test.

    Args:
        complete: Whether the table has all cells that there will be.
    """
    parts: list[tuple[dict[str, Any], pd.DataFrame, PairedComparison | None]] = []
    numbers: list[int] = []
    tests: dict[Any, int] = {}
    grids = table[list(grid)]
    pairs = np.column_stack(
        [table[name].to_numpy(dtype=np.float64) for name in ("seed", f"{question}_original", f"{question}_ema")]
    )
    for places in _by_cell(grids):
        settings = {str(name): value for name, value in grids.iloc[places[0]].items()}
        rows, own = table.iloc[places], pairs[places]
        # A cell that could not be trained has no pairs, and is like no other.
        mark: Any = len(parts) if np.isnan(own[:, 1:]).all() else own[own[:, 0].argsort(kind="stable")].tobytes()
        numbers.append(tests.setdefault(mark, len(tests)))
        parts.append((settings, rows, comparison_of(rows, question)))
    firsts = {number: comparison for number, (_, _, comparison) in reversed(list(zip(numbers, parts, strict=True)))}
    tested = {number: one for number, one in firsts.items() if one is not None}
    among = dict(zip(tested, corrected(list(tested.values()), final=complete), strict=True))
    return [
        Cell(settings, rows, number + 1, comparison, among.get(number))
        for number, (settings, rows, comparison) in zip(numbers, parts, strict=True)
    ]


def questions_of(table: pd.DataFrame, grid: Sequence[str], number: int, *, complete: bool = True) -> dict[str, Cell]:
    """One cell of a sweep's table, by its number from 0, under each of the questions that the table answers.

    Args:
        complete: As :func:`cells_of` takes it.
    """
    asked = [question for question in QUESTIONS if f"{question}_original" in table]
    return {question: cells_of(table, grid, question, complete=complete)[number] for question in asked}


@dataclass(frozen=True)
class SweepProgress:
    """How far a sweep is.

    Args:
        cells: How many are done.
        share: The share of its cells that are done.
        left: About how long it has to go, by the steps of its cells; ``None`` before the first cell is trained.
    """

    cells: int
    share: float
    left: TimeLeft | None


def progress(table: pd.DataFrame, sweep: Sweep, seconds: float) -> SweepProgress:
    """How far a sweep is by its table, which may be empty, ``seconds`` after its start.

    What is left is expected of each cell as it ends, so it stays the same until the next one does, and by its steps, so
    a cell that trains longer counts for more.
    """
    if table.empty:
        return SweepProgress(0, 0.0, None)
    work = _work(sweep)
    grid = list(sweep.grid)
    cells = table.iloc[[places[0] for places in _by_cell(table[grid])]]
    steps_of = [work[_key_of(cell)] for cell in zip(*(cells[name] for name in grid), strict=True)]
    share = len(cells) / len(work)
    ends = sorted(zip(map(float, cells["elapsed"]), steps_of, strict=True)) if "elapsed" in cells else []
    if not ends or any(math.isnan(end) for end, _ in ends):  # a table of before
        ends = [(seconds, sum(steps_of))]
    kept = sum(steps for end, steps in ends if not end)
    trained = [(end, steps) for end, steps in ends if end]
    if not trained:
        return SweepProgress(len(cells), share, None)
    taken, steps = zip(*trained, strict=True)
    return SweepProgress(len(cells), share, time_left(taken, kept + np.cumsum(steps), kept))


def _work(sweep: Sweep) -> dict[str, float]:
    """The share of all steps that each cell takes, by its settings; of a training that several share, its part."""
    cells = sweep.cells()
    steps: dict[int, float] = {}
    for group in sharing({n: config for n, (_, config) in enumerate(cells)}).values():
        config = next(iter(group.values()))
        steps |= dict.fromkeys(group, config.max_epochs * (config.steps_per_epoch or 1) / len(group))
    total = sum(steps.values())
    return {_key_of(settings.values()): steps[n] / total for n, (settings, _) in enumerate(cells)}


def _key_of(values: Iterable[Any]) -> str:
    """A cell's values as text; a table may hold whole numbers as floats."""
    plain = map(_plain, values)
    return json.dumps([float(value) if type(value) is int else value for value in plain])


def failures(table: pd.DataFrame) -> dict[str, int]:
    """How many runs of a sweep's table could not be trained, by their error, in the order of the table."""
    return {str(error): int(runs) for error, runs in table["error"].value_counts(sort=False).items()}


def summary(table: pd.DataFrame, grid: Sequence[str]) -> pd.DataFrame:
    """A row for each cell: what its seeds say of the final loss.

    Returns:
        The grid's columns (lists as text), ``seeds``, ``untrained`` (those that could not be trained), ``pairs`` (those
        with a finite gain), ``wins``,
        ``median_gain_percent`` (of the pairs, in percent of the original's loss) with its 95 % interval ``low_percent``
        to ``high_percent``, ``wilcoxon_p`` (of the cell alone), ``p``
        (the same after Holm's correction for all tests, by which the verdict goes), ``test`` (cells with the same
        number have the same pairs and are one test) and ``verdict``.  Cells that could not be trained cannot tell.
    """
    rows = []
    for cell in cells_of(table, grid):
        one, among = cell.comparison, cell.among
        median = Interval(math.nan, math.nan, math.nan) if one is None else one.median
        rows.append(
            {
                **{name: str(value) if isinstance(value, list) else value for name, value in cell.settings.items()},
                "seeds": len(cell.rows),
                "untrained": cell.untrained,
                "pairs": 0 if one is None else one.pairs,
                "wins": 0 if one is None else one.wins,
                "median_gain_percent": 100 * median.estimate,
                "low_percent": 100 * median.low,
                "high_percent": 100 * median.high,
                "wilcoxon_p": math.nan if one is None else one.wilcoxon_p,
                "p": math.nan if among is None else among.p,
                "test": cell.test,
                "verdict": cell.verdict,
            }
        )
    return pd.DataFrame(rows)


def value_label(value: Any) -> str:
    """A value of a grid as an axis of a map shows it; a line break may stand in a schedule's code.

    Numbers are told apart by all digits but those of rounding, whether a table holds them whole or as floats.
    """
    if value == to_code(article_schedule()):
        return "the article's"
    return f"{value:.15g}" if isinstance(value, float) else str(value).replace("(", "\n(", 1)


def for_map(found: pd.DataFrame, grid: Sequence[str]) -> pd.DataFrame:
    """:func:`summary`'s table of a grid of two settings, with the columns of its map.

    These are ``x`` and ``y``, the cells' values of the first and the second setting as :func:`value_label` has them,
    and ``code``, both in one line, by which a cell is chosen.
    """
    across, up = grid
    x, y = found[across].map(value_label), found[up].map(value_label)
    pairs = zip(x.str.replace("\n", ""), y.str.replace("\n", ""), strict=True)
    return found.assign(x=x, y=y, code=[f"{across} {one}, {up} {other}" for one, other in pairs])


def number_of_tests(found: pd.DataFrame) -> int:
    """How many tests :func:`summary`'s table holds: cells with the same pairs are one, some have nothing to test."""
    return int(found.drop_duplicates("test")["wilcoxon_p"].notna().sum())


def headline(found: pd.DataFrame, grid: Sequence[str], *, complete: bool = True, signed: bool = False) -> str:
    """What :func:`summary` says of the cells together, in one sentence: where averaging helps and hurts, and most.

    Args:
        complete: Whether these are all cells that there will be.
        signed: Whether :func:`has_losses_below_0` of them.
    """
    different = found.drop_duplicates("test")
    seeds = _seeds(found)
    cells = f"{counted(len(different), 'cell' if len(different) == len(found) else 'different cell')}"
    begin = f"Of {cells if complete else f'the {cells} so far'}, {seeds} each,"
    parts = []
    for kind in ("helps", "hurts"):
        if count := int((different["verdict"] == kind).sum()):
            most = _most(different, kind)
            place = _place(found[found["test"] == most["test"]], found, grid)
            gain = _beside(most["median_gain_percent"] / 100, signed)
            parts.append(f"{kind} in {count}, most at {place} (median final loss {gain}{_over_pairs(most)})")
    if not parts:
        return f"{begin} none shows whether averaging helps or hurts."
    rest = int((~different["verdict"].isin(["helps", "hurts"])).sum())
    nothing = f"; {rest} {'shows' if rest == 1 else 'show'} neither" if rest else ""
    return f"{begin} averaging {' and '.join(parts)}{nothing}."


def _seeds(found: pd.DataFrame) -> str:
    """How many seeds each cell has: "32 seeds", "8 or 32 seeds"."""
    *others, most = sorted(set(found["seeds"]))
    return " or ".join([*map(str, others), counted(most, "seed")])


def has_losses_below_0(table: pd.DataFrame) -> bool:
    """Whether a final loss of :func:`sweep`'s table is below 0: then a ratio of two says nothing."""
    return bool((table[["final_original", "final_ema"]].astype(np.float64) < 0).any(axis=None))


def in_words(found: pd.DataFrame, grid: Sequence[str], *, complete: bool = True, signed: bool = False) -> str:
    """What :func:`summary` says of the cells together, in sentences that the numbers bear out.

    Args:
        complete: Whether these are all cells that there will be.
        signed: Whether :func:`has_losses_below_0` of them.
    """
    different = found.drop_duplicates("test")
    counts = different["verdict"].value_counts()
    seeds = _seeds(found)
    begin = f"Of {counted(len(found), 'cell')} of {seeds}"
    if len(different) == 1 < len(found):
        begin = f"All {len(found)} cells of {seeds} show exactly the same. Of this one"
    elif len(different) < len(found):
        begin = (
            f"{len(found)} cells of {seeds} are {counted(len(different), 'different one')}, for some show exactly the "
            f"same as others. Of the {len(different)}"
        )
    told = [f"{begin}, averaging helps in {counts.get('helps', 0)} and hurts in {counts.get('hurts', 0)}"]
    for kind, words in (
        ("no difference shown", "no difference is shown in"),
        ("unclear", "interval and test disagree in"),
        ("cannot tell", f"{seeds} cannot tell in"),
    ):
        if kind in counts:
            told.append(f"{words} {counts[kind]}")
    tests = number_of_tests(found)
    corrections = f" (p-values corrected for {tests} tests after Holm)" if tests > 1 else ""
    if not complete:
        corrections = f" (p-values corrected after Holm for the {counted(tests, 'test')} so far, with more to come)"
    sentences = [f"{'; '.join(told)}{corrections}."]
    for verdict in ("helps", "hurts"):
        if verdict in counts:
            cell = _most(different, verdict)
            same = found[found["test"] == cell["test"]]
            gain = _beside(cell["median_gain_percent"] / 100, signed)
            sentences.append(
                f"It {verdict} most at {_place(same, found, grid)}: in the median{_over_pairs(cell)} the final loss is "
                f"{gain}, and averaging won in {cell['wins']} of {counted(cell['seeds'], 'seed')}."
            )
    return " ".join(sentences)


def _over_pairs(cell: Mapping[str, Any]) -> str:
    """The pairs that a cell's median is of, where they are not all its seeds."""
    return f" over {cell['pairs']} of {counted(cell['seeds'], 'seed')}" if cell["pairs"] < cell["seeds"] else ""


def _most(found: pd.DataFrame, verdict: str) -> dict[str, Any]:
    """The cell with a verdict of "helps" or "hurts" that does it most."""
    cells = found[found["verdict"] == verdict].sort_values(
        "median_gain_percent", ascending=verdict == "hurts", kind="stable"
    )
    return {str(name): value for name, value in cells.iloc[0].items()}


def _place(same: pd.DataFrame, found: pd.DataFrame, grid: Sequence[str]) -> str:
    """Where in the grid cells lie that are the same."""
    if len(same) < math.prod(same[name].nunique(dropna=False) for name in grid):
        return " or at ".join(
            ", ".join(f"{setting_in_words(name)} {row[name]}" for name in grid) for row in same.to_dict("records")
        )
    parts = []
    for name in grid:
        values, words = same[name].unique(), setting_in_words(name)
        everywhere = len(values) > 1 and len(values) == found[name].nunique(dropna=False)
        parts.append(f"any {words}" if everywhere else f"{words} {' or '.join(map(str, values))}")
    return ", ".join(parts)


def rules_of_cells(sweep: Sweep) -> str:
    """Which rules of the cells' runs look at a curve, to be said beside their final numbers; empty if none does."""
    told: dict[str, int] = {}
    for _, config in sweep.cells():
        if words := rules_in_words(config):
            told[words] = told.get(words, 0) + 1
    cells = len(sweep.cells())
    return " ".join(words if n == cells else f"{n} of the {cells} cells: {words}" for words, n in told.items())


def trainings_in_words(sweep: Sweep) -> str:
    """How many trainings a sweep takes, and why they may be fewer than its cells."""
    cells = [config for _, config in sweep.cells()]
    return (
        f"{counted(len(cells), 'cell')} in {counted(len(sharing(dict(enumerate(cells)))), 'training')} of "
        f"{counted(len(sweep.seeds), 'seed')}. Cells "
        "that differ in their average only share a training, unless its early stop or learning rate looks at the "
        "average, as the article's do."
    )


def before_start(sweep: Sweep) -> tuple[str, str]:
    """What is to be said of a sweep before it is started: what cannot be shown or acts on nothing, and what it needs.

    Returns:
        Warnings, and what is merely to be known; either may be empty.
    """
    groups, seeds = sweep.alike(), len(sweep.seeds)
    enough, needs = seeds >= fewest_seeds(len(groups)), seeds_in_words(seeds, len(groups))
    warnings = [] if enough else [needs]
    cells = len(sweep.cells())
    if len(groups) < cells:
        different = f"{len(groups)} different experiments" if len(groups) > 1 else "one and the same experiment"
        warnings.append(
            f"{cells} cells are {different}: {_why_alike(sweep, groups)}. Cells that are "
            "the same are trained once and are one test."
        )
    return " ".join(warnings), needs if enough else ""


def _why_alike(sweep: Sweep, groups: Sequence[Sequence[int]]) -> str:
    """Which of a grid's settings act on nothing, and why, or which of their values do the same."""
    cells, told = sweep.cells(), []
    explained = set()
    for name in sweep.grid:
        reasons = [idle_settings(config).get(name) for _, config in cells]
        if len(sweep.grid[name]) > 1 and any(reasons):
            idle = sum(reason is not None for reason in reasons)
            where = "" if idle == len(cells) else f" in {idle} of the cells"
            why = ", ".join(dict.fromkeys(filter(None, reasons)))
            told.append(f"{setting_in_words(name)} acts on nothing{where} ({why})")
            explained.add(name)
    alike: dict[tuple[str, ...], None] = {}
    for group in groups:
        chosen = [cells[n][0] for n in group]
        differing = [name for name in sweep.grid if len({json.dumps(one[name]) for one in chosen}) > 1]
        if differing and not explained & set(differing):
            values = ("/".join(dict.fromkeys(str(one[name]) for one in chosen)) for name in differing)
            words = map(setting_in_words, differing)
            alike[tuple(f"{name} {value}" for name, value in zip(words, values, strict=True))] = None
    told += [f"{' with '.join(values)} do the same in these runs" for values in alike]
    return "; ".join(told)


def _beside(gain: float, signed: bool) -> str:
    """The averaged network's loss beside the original's."""
    if gain < -9 and not signed:
        return f"{number(1 - gain, 3)} times the original's"
    if not gain:
        return "the same as the original's"
    return f"{percent(abs(gain))} {'lower' if gain > 0 else 'higher'}"
