"""Runs in worker processes: queued, bounded, stoppable.

The server holds one end of a pipe to each worker.  It says there whether somebody waits for an answer, who goes first.
When the server ends, in whatever way, the pipe closes, and the worker enters its run as interrupted and ends too.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import joblib
import pandas as pd

import emacore
from emacore import courtesy
from emacore.averaging.code import to_code
from emacore.experiments.measuring import question_from_json, work_on
from emacore.experiments.store import RunLost, RunStore, StoreError, StoreFull, worker_name
from emacore.experiments.studies import Job, Study, Sweep, job_from_json
from emacore.experiments.sweep import SweepError, sweep
from emacore.experiments.workers import Workers
from emacore.memory import uncollected
from emacore.tasks.regression.config import RunConfig

if TYPE_CHECKING:
    from emacore.replay.recording import Recorder

#: Seconds between a worker's looks at the store: for a new run, for a request to stop, and to show it is alive.
POLL = 0.2
#: The environment variable that says "0" where the server is to train nothing by itself.
EXAMPLE = "EMACORE_EXAMPLE"
#: Bytes that are kept of what a worker says, its last ones, and of how many workers that is kept.
LOG_BYTES = 256 * 2**10
LOGS_KEPT = 20
_READY = b"ready"
#: What a server tells its workers: somebody waits for an answer, or nobody does any more.
_SOMEBODY, _NOBODY = b"+", b"-"
#: Where a worker listens to its server: its standard input.
_SERVER = 0

Rows = list[dict[str, Any]]


class CarriedOut(NamedTuple):
    """A job that has ended: its history, or a sweep's table; how it ended, and what was not recorded of it, in words.

    ``diverged`` says whether all that it trained did.
    """

    run_id: str
    history: pd.DataFrame
    ended: str
    diverged: bool = False
    recording_error: str | None = None


def example_wanted() -> bool:
    """Whether the server may train a run that nobody asked for, so that there is one to look at."""
    return os.environ.get(EXAMPLE, "").strip() != "0"


def most_workers() -> int:
    """How many runs train at a time: one core is left for the pages."""
    return max(1, int(joblib.cpu_count()) - 1)


class JobQueue:
    """Works off the runs of ``store`` in processes of their own.  Use from several threads is safe.

    Runs that an earlier server left behind are entered as interrupted; queued ones are taken up.

    Args:
        limit: Most runs at a time over all servers that share the store; by default one for each core but one.
    """

    def __init__(self, store: RunStore, limit: int | None = None) -> None:
        self.store = store
        self.limit = limit or most_workers()
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()
        courtesy.LISTENERS.add(self._tell_workers)
        self.tend()

    def submit(self, job: Job) -> str:
        """Queue a job and return its id."""
        run_id = self.store.create(job)
        self.tend()
        return run_id

    def train_example(self) -> None:
        """Have the article's run trained, for people to look at, if the store has none and never had this one.

        It never keeps anybody waiting: see :meth:`~emacore.experiments.store.RunStore.create_once`.
        """
        wanted = example_wanted() and self.store.can_be_written()
        if wanted and self.store.create_once("example", RunConfig()) is not None:
            self.tend()

    def stop(self, run_id: str) -> None:
        """Stop a run; its epochs so far are kept.  A run that has ended stays as it is."""
        self.store.request_stop(run_id)

    def tend(self, *, warm: bool = False) -> None:
        """Look after the workers: report those that died, and start as many as there is work for.

        In a store that cannot be written there is none, and what is there can be looked at all the same.

        Args:
            warm: Have one ready even if there is no work: importing torch takes seconds.
        """
        if not self.store.can_be_written():
            return
        with self._lock:
            self._bury_dead()
            self.store.interrupt_abandoned()
            counts = self.store.counts()
            work = counts.get("queued", 0) + counts.get("running", 0)
            for _ in range(min(self.limit, max(work, int(warm))) - len(self._workers)):
                process = _start_worker(self.store.folder, self.limit)
                self._workers[worker_name(process.pid, _token(process))] = process
            for process in self._workers.values():
                _shorten(_log(self.store.folder, _token(process)))

    def close(self) -> None:
        """Let the workers go; runs under way are entered as interrupted."""
        courtesy.LISTENERS.discard(self._tell_workers)
        with self._lock:
            for process in self._workers.values():
                process.stdin.close()  # type: ignore[union-attr]
            for process in self._workers.values():
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                self._put_away(process)
                self.store.workers.forget(worker_name(process.pid, _token(process)))
            self._workers.clear()

    def _tell_workers(self, somebody: bool) -> None:
        for process in list(self._workers.values()):
            with suppress(OSError, ValueError):  # it may have ended, or not have listened for long
                os.write(process.stdin.fileno(), _SOMEBODY if somebody else _NOBODY)  # type: ignore[union-attr]

    def _bury_dead(self) -> None:
        for name, process in list(self._workers.items()):
            code = process.poll()
            if code is not None:
                how = f"signal {-code}" if code < 0 else f"exit status {code}"
                came_up = _came_up(process)
                log = self._put_away(process)
                said = "it said nothing" if log is None else f"what it said is in {log}"
                del self._workers[name]
                self.store.workers.forget(name)
                if came_up:
                    self.store.fail_run_of(name, f"The worker process ended unexpectedly ({how}); {said}.")
                elif not self._workers and not self.store.counts().get("running"):
                    # The next one would fare no better, and nobody is at work who could take the run up.
                    self.store.fail_next(f"No worker process could be started ({how}); {said}.")

    def _put_away(self, process: subprocess.Popen[bytes]) -> Path | None:
        """Close what is left of a worker that has ended, and return its log, if it said anything."""
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        log = _log(self.store.folder, _token(process))
        _shorten(log)
        return log if log.exists() and not _drop_if_empty(log) else None


def _start_worker(folder: Path, limit: int) -> subprocess.Popen[bytes]:
    package = str(Path(emacore.__file__).parents[1])
    paths = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    # Not multiprocessing: its children run the parent's main module again, which under Streamlit is the whole app.
    token = os.urandom(6).hex()
    with _log_to_write(folder, token) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "emacore.experiments.jobs", str(folder), str(limit), token],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if log is None else log,
            env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is the server's; the worker then sees the pipe close
        )
    for pipe in (process.stdin, process.stdout):
        os.set_blocking(pipe.fileno(), False)  # type: ignore[union-attr]
    return process


def _token(process: subprocess.Popen[bytes]) -> str:
    return str(process.args[-1])  # type: ignore[index]


def _came_up(process: subprocess.Popen[bytes]) -> bool:
    """Whether a worker that has ended had been ready to take runs."""
    return _READY in (process.stdout.read() or b"")  # type: ignore[union-attr]


def _say_ready() -> None:
    """Have a worker tell the server that it is ready; what it prints from now on goes to the log."""
    with suppress(OSError):  # the server may be gone, of which the other pipe tells
        os.write(1, _READY)
    os.dup2(2, 1)


def _log(folder: Path, token: str) -> Path:
    """Where a worker's output is kept: one file each, for the next one starts before anybody can read it."""
    return folder / "workers" / f"{token}.log"


@contextmanager
def _log_to_write(folder: Path, token: str) -> Iterator[BinaryIO | None]:
    """It, opened to be appended to, so that it can be shortened meanwhile; a worker does without on a full disk."""
    path = _log(folder, token)
    with ExitStack() as opened:
        log = None
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            _drop_oldest(Workers(path.parent))
            log = opened.enter_context(path.open("ab"))
        yield log


def _shorten(log: Path) -> None:
    """Keep the end of a log that has grown too long."""
    with suppress(OSError), log.open("r+b") as file:
        if file.seek(0, os.SEEK_END) > LOG_BYTES:
            file.seek(-LOG_BYTES, os.SEEK_END)
            end = file.read(LOG_BYTES)
            file.seek(0)
            file.write(end)
            file.truncate()


def _drop_if_empty(log: Path) -> bool:
    """Remove a log in which nothing was said."""
    with suppress(OSError):
        if not log.stat().st_size:
            log.unlink()
            return True
    return False


def _drop_oldest(workers: Workers) -> None:
    """Keep the newest logs in which something was said, and all of workers that live."""
    found = []
    for log in workers.folder.glob("*.log"):
        with suppress(OSError):  # another server may be dropping it too
            about = log.stat()
            if about.st_size and not workers.is_held(log.stem):
                found.append((about.st_mtime, log))
    for _, log in sorted(found)[: -LOGS_KEPT + 1]:
        with suppress(OSError):
            log.unlink()


def work(folder: str, limit: int, token: str) -> None:
    """A worker's life: take runs from the store, one after the other, until the server's end of the pipe closes."""
    store = RunStore(folder)
    with store.workers.working(token) as name:
        _work(store, name, limit, token)


def _work(store: RunStore, name: str, limit: int, token: str) -> None:
    current: list[str] = []
    log = _log(store.folder, token)
    threading.Thread(target=_end_with_server, args=(store, name, current, log), daemon=True).start()
    with uncollected():  # it takes seconds, so not after a run has been claimed
        import torch

        from emacore.training import loop, replicas  # noqa: F401

        RunConfig().task()

    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(10)  # a slider comes before an epoch, but somebody may wait for the first run to begin
    _say_ready()
    while True:
        try:
            claimed = store.claim(name, limit)
        except StoreError:
            claimed = None  # locked or full for the moment; the pages tell it, the next look may find it well
        if claimed is None:
            time.sleep(POLL)
            continue
        current[:] = [claimed[0]]
        work_off(store, name, *claimed, limit)
        current.clear()


def work_off(store: RunStore, name: str, run_id: str, text: str, limit: int = 1) -> None:
    """Carry out a claimed job (``text`` is its JSON); its reader learns of whatever goes wrong."""
    stop = threading.Event()
    with alive(store, run_id, name, stop):
        try:
            if (question := question_from_json(text)) is not None:
                work_on(store, run_id, name, question, stop.is_set)
            else:
                carry_out(store, run_id, name, job_from_json(text), stop, processes=limit)
        except RunLost:
            return
        except (StoreError, SweepError, ValueError) as problem:  # these are written for people
            error = str(problem)
        except Exception as problem:
            traceback.print_exc()
            error = f"{type(problem).__name__}: {problem}"
        else:
            return
        _insist(lambda: store.finish(run_id, name, "failed", error=error))


@contextmanager
def alive(store: RunStore, run_id: str, worker: str, stop: threading.Event) -> Iterator[None]:
    """Give signs of life for a run until the block ends; ``stop`` is set once it is asked to stop, or lost."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(POLL):
            try:
                if store.beat(run_id, worker):
                    stop.set()
            except RunLost:
                stop.set()
            except StoreError:
                continue

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def carry_out(
    store: RunStore,
    run_id: str,
    worker: str,
    job: Job,
    stop: threading.Event,
    tell: Callable[[Rows], None] = lambda rows: None,
    *,
    processes: int = 1,
    scheduler: str | None = None,
    trouble: Callable[[StoreError], None] | None = None,
) -> CarriedOut:
    """Train a job that is ``worker``'s, until ``stop`` is set, into the store, and enter how it ended.

    Args:
        tell: Called with the rows of each epoch, or of each cell of a sweep, once they are stored.
        processes, scheduler: Of a sweep, as :func:`~emacore.experiments.sweep.sweep` takes them.
        trouble: Called with what keeps rows from the store, in place of ending there: what is trained is returned
            whatever the store does.

    Raises:
        StoreError: if the store cannot keep it.
        RunLost: if it is no longer this worker's.
        ValueError: if its data do not fit its settings.
        SweepError: if a sweep's scheduler cannot be used.
    """
    count = itertools.count(1)
    recorders: list[Recorder] = []

    def keep(row: dict[str, Any], rows: Rows) -> None:
        try:
            try:
                store.append(run_id, worker, row)
            except StoreFull:
                for recorder in recorders:
                    recorder.give_way("the disk is full, and histories need the room")
                store.append(run_id, worker, row)
        except StoreError as error:
            if trouble is None:
                raise
            trouble(error)
        tell(rows)

    def on_rows(rows: Rows) -> None:
        keep({"epoch": next(count), "rows": rows}, rows)

    error = None
    if isinstance(job, Sweep):
        history = sweep(
            job.config, job.grid, job.seeds, scheduler, on_rows, stop.is_set, store=store, workers=processes
        )
        complete = len(history) == len(job.cells()) * len(job.seeds)
        stopped = "all cells trained" if complete else "stopped"
        diverged = complete and bool((history["stopped"] == "diverged").all())
    elif isinstance(job, Study):
        from emacore.training.replicas import replicate

        schedules = {to_code(schedule): schedule for schedule in job.schedules}
        replicas = replicate(job.config, job.seeds, on_rows, stop.is_set, schedules)
        history = replicas.history
        stopped = "stopped" if "stopped" in replicas.stopped.values() else "all seeds ended"
        diverged = set(replicas.stopped.values()) == {"diverged"}
    else:
        from emacore.training.loop import train

        most = store.make_room(run_id)
        result = train(
            job,
            lambda row: keep(row, [row]),
            stop.is_set,
            record=store.recording(run_id),
            record_bytes=most,
            on_recorder=recorders.append,
        )
        history, stopped, error = result.history, result.stopped, result.recording_error
        diverged = stopped == "diverged"
    state = "stopped" if stopped == "stopped" else "done"
    _insist(lambda: store.finish(run_id, worker, state, stopped=stopped, note=error))
    return CarriedOut(run_id, history, stopped, diverged, error)


def _insist(write: Callable[[], None]) -> None:
    """Try a few times.  If the store stays closed to us, the run lacks signs of life and counts as interrupted."""
    for _ in range(3):
        try:
            write()
        except StoreError:
            time.sleep(1)
        else:
            return


def _end_with_server(store: RunStore, name: str, current: list[str], log: Path) -> None:
    while told := os.read(_SERVER, 4096):
        courtesy.let_others_first(told.endswith(_SOMEBODY))
    for run_id in current:
        with suppress(StoreError):
            store.finish(run_id, name, "interrupted")
    _drop_if_empty(log)
    store.workers.forget(name)  # nothing after it is run that would
    os._exit(0)


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), sys.argv[3])
