"""How a command behaves in a terminal: what it says, where it writes, how it ends, and its progress.

Messages go to standard error, tables to standard output or a file.  A pipe that is closed ends the printing only.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from emacore.formatting import duration, number

if TYPE_CHECKING:
    import pandas as pd

#: Exit codes: 0 is done, and a signal's is 128 and its number, as shells have it.
FAILED, USAGE, DIVERGED = 1, 2, 3
#: The signals that end a training; Windows lacks one.
ENDING_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def tell(text: str) -> None:
    """Say something on standard error; where nobody listens any more, nothing happens."""
    try:
        click.echo(text, err=True)
    except OSError:  # the pipe is closed, or the terminal is gone
        silence(sys.stderr)


def print_out(text: str) -> None:
    """Print on standard output, as UTF-8 whatever the locale; a closed pipe ends the printing."""
    try:
        click.echo(text, nl=False)
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        silence(sys.stdout)
        raise click.ClickException(f"standard output cannot be written: {error.strerror}") from error


def silence(stream: TextIO) -> None:
    """Let what is still written to a broken stream go nowhere: Python would complain of it as it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def write_table(table: pd.DataFrame, output: str | None) -> None:
    """Write a table as CSV to the file ``output``, or to standard output if it is ``None``."""
    write_text(table.to_csv(index=False), output)


def write_text(text: str, output: str | None) -> None:
    """Write a text to the file ``output``, or to standard output if it is ``None``."""
    if output is None:
        print_out(text)
    else:
        try:
            with Path(output).open("w", encoding="utf-8", newline="") as file:
                file.write(text)
        except OSError as error:
            raise click.ClickException(f"{output} cannot be written: {error.strerror}") from error


def checked(make: Callable[[], Any], *, failed: bool = False) -> Any:
    """What ``make`` returns; its ``ValueError`` ends the command as a wrong usage or, with ``failed``, as a failure."""
    try:
        return make()
    except ValueError as error:
        raise (click.ClickException if failed else click.UsageError)(str(error)) from error


class Interruption:
    """The signals that end a training by hand: the first asks it to stop, a second Ctrl-C ends it at once.

    What was done before is kept in both cases.  SIGHUP stays ignored where ``nohup`` had it ignored.

    Attributes:
        stop: Set once a signal came.
        at_once: Called before a second Ctrl-C ends the process.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.at_once: Callable[[], None] = lambda: None
        self._number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        # Python runs a handler between two of its own steps, which a long one of torch keeps waiting: a thread is woken
        # by each signal at once.
        if threading.current_thread() is not threading.main_thread():
            return self
        self._woken, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        for one in ENDING_SIGNALS:
            if signal.getsignal(one) is not signal.SIG_IGN:
                self._before[one] = signal.signal(one, lambda number, frame: None)
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._before:
            return
        for one, handler in self._before.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._wakes.close()

    def exit_code(self, stopped: str | None) -> int:
        """The exit code of a command whose training ended by being "stopped" or "diverged", or as it should."""
        if stopped == "stopped" and self._number:
            return 128 + self._number
        return DIVERGED if stopped == "diverged" else 0

    def _watch(self) -> None:
        with self._woken:
            while received := self._woken.recv(1):
                if received[0] not in self._before:
                    continue
                if self.stop.is_set() and received[0] == signal.SIGINT:
                    with suppress(Exception):
                        self.at_once()
                    os._exit(128 + signal.SIGINT)
                if not self.stop.is_set():
                    self._number = received[0]
                    self.stop.set()
                    tell("\nstopping: what there is will be kept; Ctrl-C once more ends at once")


class ProgressBar:
    """A bar of what is done, with pace and time left, where standard error is a terminal; nothing elsewhere.

    Args:
        what: "epoch" or "cell".
        most: How many there are at most.
        each: Print a line for each instead of the bar, wherever standard error goes.
    """

    def __init__(self, what: str, most: int, *, each: bool = False) -> None:
        self._what, self._most, self._each = what, most, each
        self._open = ExitStack()
        self._bar: Any = None

    def __enter__(self) -> Self:
        if not self._each and sys.stderr.isatty():
            self._bar = self._open.enter_context(
                click.progressbar(
                    length=self._most,
                    label=f"{self._what}s",
                    show_pos=True,
                    show_percent=False,
                    item_show_func=self._words,
                    file=sys.stderr,
                )
            )
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):
            self._open.close()

    def step(self, words: str) -> None:
        """One more is done."""
        if self._each:
            tell(words)
        elif self._bar is not None:
            try:
                self._bar.update(1, words)
            except OSError:  # the terminal is gone
                self._bar = None
                silence(sys.stderr)

    def _words(self, item: str | None) -> str | None:
        if item is None or not self._bar.pos:
            return None
        pace = self._bar.time_per_iteration
        each = duration(pace) if pace >= 1 else f"{number(1000 * pace, 3)} ms"
        return f"{each} a{'n' if self._what[0] in 'aeiou' else ''} {self._what}; {item}"


def languages() -> None:
    """Have names in any language written and read in any locale: output is UTF-8, and so are arguments that can be."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    for place, argument in enumerate(sys.argv):
        with suppress(UnicodeError):
            sys.argv[place] = os.fsencode(argument).decode("utf-8")
