"""How long pages take for one session and for many, idle and while a run trains; memory; and the cold start.

    python -m benchmarks.load                  # 1, 4 and 16 sessions, each moving a slider every 10 s
    python -m benchmarks.load --sessions 1,2 --moves 2

A session is a browser's page over Streamlit's own websocket, without the browser: what is measured is the server.  Each
moves the decay's handle page by its link and waits until the run of the page has ended.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np

ROOT = Path(__file__).parents[1]
EMPTY = "import streamlit as st\nst.title('Nothing')\n"
SECONDS_BETWEEN_MOVES = 10.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def served(script: Path, home: str) -> Iterator[tuple[str, int, float]]:
    """A server of a script: its address, its process, and the seconds until it answered."""
    port, begin = free_port(), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(script), f"--server.port={port}", "--server.headless=true"],
        cwd=ROOT,
        env=os.environ | {"EMACORE_HOME": home, "EMACORE_EXAMPLE": "0", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while time.monotonic() < begin + 120:
            try:
                urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)
        yield f"ws://localhost:{port}/_stcore/stream", process.pid, time.monotonic() - begin
    finally:
        process.terminate()
        process.wait(20)


def megabytes(pid: int) -> float:
    """What a process holds in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    """What a process has computed so far, which other work on the machine does not change."""
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


async def run_of_page(connection: object, query: str, page: str) -> float:
    """Ask for a run of the page, and return the seconds until it has ended."""
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

    message = BackMsg()
    message.rerun_script.query_string = query
    message.rerun_script.page_name = page
    begin = time.monotonic()
    await connection.write_message(message.SerializeToString(), binary=True)
    while True:
        received = await connection.read_message()
        if received is None:
            raise ConnectionError("the server closed the session")
        if isinstance(received, bytes):
            answer = ForwardMsg.FromString(received)
            if answer.WhichOneof("type") == "script_finished":
                return time.monotonic() - begin


async def session(address: str, number: int, moves: int, pause: float) -> list[float]:
    """A visitor: opens the page, then moves every so often; the seconds that each move took."""
    from tornado.websocket import websocket_connect

    connection = await websocket_connect(address, subprotocols=["streamlit"], max_message_size=2**28)
    try:
        await run_of_page(connection, "", "decay_schedule")
        await asyncio.sleep(pause * number / 16)
        found = []
        for move in range(moves):
            beta = 0.9 + 0.0999 * ((number * moves + move + 1) / (17.0 * moves))
            found.append(await run_of_page(connection, f"beta={beta:.6f}", "decay_schedule"))
            await asyncio.sleep(max(0.0, pause - found[-1]))
        return found
    finally:
        connection.close()


def measured(address: str, pid: int, count: int, moves: int, pause: float) -> dict[str, float]:
    """So many sessions at once: seconds of their moves, and what each takes of the server's memory."""

    async def all_sessions() -> list[list[float]]:
        return await asyncio.gather(*(session(address, number, moves, pause) for number in range(count)))

    before, computed = megabytes(pid), cpu_seconds(pid)
    seconds = np.concatenate(asyncio.run(all_sessions()))
    return {
        "sessions": count,
        "median (s)": float(np.median(seconds)),
        "95 % (s)": float(np.quantile(seconds, 0.95)),
        "CPU a move (s)": (cpu_seconds(pid) - computed) / len(seconds),
        "MB a session": (megabytes(pid) - before) / count,
        "server (MB)": megabytes(pid),
    }


def begin_run(home: str) -> str:
    """Have the server train a run without end."""
    from emacore import RunConfig
    from emacore.experiments.store import RunStore
    from emacore.training.config import StoppingConfig

    return RunStore(home).create(RunConfig(max_epochs=100_000, stopping=StoppingConfig("none")))


def table(sessions: list[int], moves: int, pause: float) -> list[dict[str, object]]:
    """All rows: idle and training, and the cold starts beside an empty app."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as home:
        empty = Path(home) / "empty.py"
        empty.write_text(EMPTY)
        for name, script in (("empty app", empty), ("this app", ROOT / "app.py")):
            with served(script, home) as (address, pid, seconds):
                first = asyncio.run(first_page(address))
                row = {"what": f"cold start, {name}", "median (s)": seconds + first, "CPU a move (s)": cpu_seconds(pid)}
                rows.append(row | {"server (MB)": megabytes(pid)})
        with served(ROOT / "app.py", home) as (address, pid, _):
            measured(address, pid, 1, 1, 0.0)  # what is imported once
            for training in (False, True):
                if training:
                    begin_run(home)
                    asyncio.run(first_page(address, "train"))
                for count in sessions:
                    what = "while a run trains" if training else "idle"
                    rows.append({"what": what, **measured(address, pid, count, moves, pause)})
    return rows


async def first_page(address: str, page: str = "") -> float:
    """Seconds of the first run of a page in a new session."""
    from tornado.websocket import websocket_connect

    connection = await websocket_connect(address, subprotocols=["streamlit"], max_message_size=2**28)
    try:
        return await run_of_page(connection, "", page)
    finally:
        connection.close()


@click.command()
@click.option("--sessions", default="1,4,16", show_default=True, help="How many at once, with commas.")
@click.option("--moves", default=6, show_default=True, help="Of each session.")
@click.option("--pause", default=SECONDS_BETWEEN_MOVES, show_default=True, help="Seconds from one move to the next.")
def main(sessions: str, moves: int, pause: float) -> None:
    """Print the table."""
    import pandas as pd

    found = pd.DataFrame(table([int(count) for count in sessions.split(",")], moves, pause))
    click.echo(found.to_string(index=False, na_rep="", float_format=lambda number: f"{number:.3g}"))


if __name__ == "__main__":
    main()
