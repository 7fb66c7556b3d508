"""Processes of Python that are forked from the test's own, because importing torch takes longer than what they do.

What such a process imports is there already, so what is asked of a start itself needs a fresh interpreter.
"""

import inspect
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import traceback
from contextlib import suppress
from types import SimpleNamespace

import torch
import torch._dynamo

# Here once, in place of in each of them.
import emacore.cli.commands
import emacore.experiments.evidence
import emacore.experiments.jobs
import emacore.tasks.regression.task
import emacore.training.replicas  # noqa: F401


class Forked(subprocess.Popen):
    """``python -m module ...`` or ``python -c code ...``, with all that can be asked of a started process."""

    def _execute_child(self, *given):
        call = inspect.signature(subprocess.Popen._execute_child).bind(self, *given).arguments
        if call["args"][0] != sys.executable:
            super()._execute_child(*given)
            return
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                _begin(call)
                code = _ran(*map(os.fspath, call["args"][1:]))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        self._child_created = True
        self._close_pipe_fds(
            *(call[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite"))
        )


def run(command, *, input=None, capture_output=False, check=False, timeout=None, **options):
    """As :func:`subprocess.run`."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with Forked(command, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def forking(monkeypatch, module):
    """Have a module that starts Python by ``subprocess`` fork it."""
    monkeypatch.setattr(module, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": Forked, "run": run}))


def forking_spawned(monkeypatch):
    """The same where multiprocessing would spawn it."""
    contexts = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: contexts("fork"))


def _begin(call):
    """Leave the test behind: its files, its streams, its place and its environment."""
    for number, name in enumerate(("p2cread", "c2pwrite", "errwrite")):
        if call[name] not in (-1, number):
            os.dup2(call[name], number)
    # Objects of the test own the others, and may still write to them or close them, so their numbers stay taken.
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/dev/fd")):  # noqa: PTH208
        with suppress(OSError):  # that of the listing is gone
            if number > 2 and number != nowhere:
                os.dup2(nowhere, number, inheritable=False)
    # They leave their descriptors open, which are those of the next ones where such a process forks another.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)  # those of the test have stayed there
    if call["start_new_session"]:
        os.setsid()
    if call["cwd"] is not None:
        os.chdir(call["cwd"])
    if call["env"] is not None:
        os.environ.clear()
        os.environ.update({name: os.fspath(value) for name, value in call["env"].items()})
    sys.path[:0] = filter(None, [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])  # noqa: PTH109


def _ran(kind, what, *arguments):
    """Run a module or code as Python would; the exit code."""
    sys.argv = [what if kind == "-m" else kind, *arguments]
    try:
        if kind == "-m":
            sys.modules.pop(what, None)
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(what, {"__name__": "__main__"})
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    else:
        return 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
