"""How long pages take for one session and for many, idle and while a run trains; memory; and the cold start.

    python -m benchmarks.load                  # 1, 4 and 16 sessions, each moving a slider every 10 s
    python -m benchmarks.load --sessions 1,2 --moves 2
    python -m benchmarks.load --sessions "" --costly    # what could hold everybody up, alone
    python -m benchmarks.load --sessions "" --chromium  # a cold start as a person sees it

A session speaks to the server as a browser's page does, over Streamlit's websocket, but draws nothing: so the server
alone is measured.  In each move it asks for the Decay schedule page with another beta in the link, and waits until that
page has run.  While one session gives something costly to read (a link, an upload), the server is asked for its health
again and again, and another session moves: their longest answers say for how long it held all others up.

At a cold start Python has its compiled files, as at every start but the first.  Over the websocket it ends when the
first page has run; with ``--chromium`` it is timed from the command to the title, and to the picture, in a browser that
is open already.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
#: What Streamlit itself takes: for nothing, and for a chart, for which it loads pandas, Arrow and Altair.
EMPTY = "empty app"
LEAST = {
    EMPTY: "st.title('Nothing')",
    "app with a chart": "st.title('A chart'); st.line_chart([1, 2])",
}
SECONDS_BETWEEN_MOVES = 10.0
#: How long others are watched while nobody gives anything costly.
SECONDS_OF_NOTHING = 3.0
#: How long Streamlit keeps a session whose page was closed, in case it comes back, and a little longer.
SECONDS_OF_SESSIONS = 125.0
#: A run so long that its decays alone take 8 MB, and how many look at such ones.
LONG, SESSIONS_OF_LONG = 1_000_000, 10


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def served(script: Path, home: str) -> Iterator[tuple[str, int, float]]:
    """A server of a script: its websocket's address, its process' number, and the seconds until it answered."""
    port, begin = free_port(), time.monotonic()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "streamlit", "run", str(script), f"--server.port={port}"),
            *("--server.headless=true", "--server.enableXsrfProtection=false"),  # else an upload needs a cookie
        ],
        cwd=ROOT,
        env=_environment(home),
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


def _environment(home: str) -> dict[str, str]:
    changed = {"EMACORE_HOME": home, "EMACORE_EXAMPLE": "0", "OMP_NUM_THREADS": "1"}
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | changed


def megabytes(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used so far, which other work on the machine does not change."""
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


async def answers(connection: object, message: object, last: str) -> list[object]:
    """Send a message, and return all answers up to the first of the type ``last``."""
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

    await connection.write_message(message.SerializeToString(), binary=True)
    found = []
    while True:
        received = await connection.read_message()
        if received is None:
            raise ConnectionError("the server closed the session")
        if isinstance(received, bytes):
            found.append(ForwardMsg.FromString(received))
            if found[-1].WhichOneof("type") == last:
                return found


async def run_of_page(connection: object, query: str, page: str) -> float:
    """Ask for a run of the page, and return the seconds until it has ended."""
    from streamlit.proto.BackMsg_pb2 import BackMsg

    message = BackMsg()
    message.rerun_script.query_string = query
    message.rerun_script.page_name = page
    begin = time.monotonic()
    await answers(connection, message, "script_finished")
    return time.monotonic() - begin


async def upload(connection: object, address: str, query: str, page: str, content: bytes) -> float:
    """Drop a file on the uploader of a page, and return the seconds until the page has run with it."""
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from tornado.httpclient import AsyncHTTPClient

    opening, asking, running = BackMsg(), BackMsg(), BackMsg()
    for message in (opening, running):
        message.rerun_script.query_string = query
        message.rerun_script.page_name = page
    drawn = await answers(connection, opening, "script_finished")
    elements = [one.delta.new_element for one in drawn if one.WhichOneof("type") == "delta"]
    (uploader,) = [one.file_uploader.id for one in elements if one.WhichOneof("type") == "file_uploader"]
    asking.file_urls_request.request_id = "1"
    asking.file_urls_request.file_names.append("costly.csv")
    (place,) = (await answers(connection, asking, "file_urls_response"))[-1].file_urls_response.file_urls
    head = '--x\r\nContent-Disposition: form-data; name="file"; filename="costly.csv"\r\n\r\n'
    begin = time.monotonic()
    await AsyncHTTPClient(max_body_size=2**30).fetch(
        address.replace("ws://", "http://").removesuffix("/_stcore/stream") + place.upload_url,
        method="PUT",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
        body=head.encode() + content + b"\r\n--x--\r\n",
        request_timeout=300,
    )
    state = running.rerun_script.widget_states.widgets.add()
    state.id = uploader
    one = state.file_uploader_state_value.uploaded_file_info.add()
    one.file_id, one.name, one.size = place.file_id, "costly.csv", len(content)
    one.file_urls.CopyFrom(place)
    await answers(connection, running, "script_finished")
    return time.monotonic() - begin


def _costly() -> dict[str, tuple[str, str, bytes | None]]:
    """Inputs that are costly to read, by what they are: the page, its link, and a file to upload there, if any."""
    grid = "&".join(
        f"values_{name}={','.join(str(value) for value in range(1, 401))}"
        for name in ("optimizer_learning_rate", "optimizer_batch_size")
    )
    axes = "sweep_x=optimizer.learning_rate&sweep_y=optimizer.batch_size"
    files = {
        "45 kB of quotes": b'","' * 15_000,
        "32,000 lines of a quote": b'\n"' * 32_000,
        "200,000 columns": b",".join([b"1"] * 200_000) + b"\n1",
        "2,000 columns of words": b"\n".join(b",".join(b"w%d" % (c % 7 + r) for c in range(2000)) for r in range(20)),
        "1,000,000 rows": b"step,loss\n" + b"".join(b"%d,0.%d\n" % (row, row) for row in range(1_000_000)),
    }
    links = {
        "15,000 commas in a link": ("where_it_helps", f"{axes}&values_optimizer_learning_rate={',' * 15_000}", None),
        "400 x 400 cells": ("where_it_helps", f"{axes}&{grid}", None),
        "1,000,000 steps": ("decay_schedule", f"steps={LONG}", None),
    }
    return {
        **links,
        **{f"smooth {what}": ("low_pass_filter", "source=Own+file", content) for what, content in files.items()},
        **{f"train on {what}": ("train", "data=csv", content) for what, content in files.items()},
    }


def held_up(address: str, pid: int, what: tuple[str, str, bytes | None] | None) -> dict[str, float]:
    """What others notice while a session gives something costly (``None``: nothing), and how long that takes.

    It is the longest time of a health request and of another session's move, and the most CPU time of the server during
    one of them, which other work on the machine does not change.
    """
    from tornado.websocket import websocket_connect

    health, waits, over = address.replace("ws://", "http://").replace("stream", "health"), [], threading.Event()
    computed: list[float] = []
    moves: list[float] = []
    computed_in_moves: list[float] = []

    def ask() -> None:
        while not over.is_set():
            begin, before = time.monotonic(), cpu_seconds(pid)
            urllib.request.urlopen(health, timeout=300).close()
            waits.append(time.monotonic() - begin)
            computed.append(cpu_seconds(pid) - before)
            over.wait(0.02)

    async def move() -> None:
        connection = await websocket_connect(address, subprotocols=["streamlit"], max_message_size=2**28)
        try:
            while not over.is_set():
                beta, before = 0.9 + 0.0001 * (len(moves) + 1), cpu_seconds(pid)
                moves.append(await run_of_page(connection, f"beta={beta:.4f}", "decay_schedule"))
                computed_in_moves.append(cpu_seconds(pid) - before)
        finally:
            connection.close()

    async def give() -> float:
        if what is None:
            await asyncio.sleep(SECONDS_OF_NOTHING)
            return SECONDS_OF_NOTHING
        page, query, content = what
        connection = await websocket_connect(address, subprotocols=["streamlit"], max_message_size=2**28)
        try:
            if content is None:
                return await run_of_page(connection, query, page)
            return await upload(connection, address, query, page, content)
        finally:
            connection.close()

    others = [threading.Thread(target=ask), threading.Thread(target=lambda: asyncio.run(move()))]
    for other in others:
        other.start()
    try:
        while len(moves) < 2 and others[1].is_alive():  # the first one opens the page
            time.sleep(0.01)
        for found in (moves, waits, computed, computed_in_moves):
            found.clear()
        seconds = asyncio.run(give())
    finally:
        over.set()
        for other in others:
            other.join()
    return {
        "median (s)": seconds,
        "others waited (s)": max(waits),
        "of this CPU (s)": max(computed),
        "another's move (s)": max(moves),
        "CPU in a move (s)": max(computed_in_moves),
    }


async def session(address: str, number: int, moves: int, pause: float, further: str = "") -> list[float]:
    """A visitor: opens the page, then moves every so often; the seconds that each move took."""
    from tornado.websocket import websocket_connect

    connection = await websocket_connect(address, subprotocols=["streamlit"], max_message_size=2**28)
    try:
        await run_of_page(connection, further, "decay_schedule")
        await asyncio.sleep(pause * number / 16)
        found = []
        for move in range(moves):
            beta = 0.9 + 0.0999 * ((number * moves + move + 1) / (17.0 * moves))
            found.append(await run_of_page(connection, f"beta={beta:.6f}{further}", "decay_schedule"))
            await asyncio.sleep(max(0.0, pause - found[-1]))
        return found
    finally:
        connection.close()


def measured(address: str, pid: int, count: int, moves: int, pause: float, further: str = "") -> dict[str, float]:
    """A row of ``count`` sessions at once: the seconds of their moves, and what each takes of the server's memory."""

    async def all_sessions() -> list[list[float]]:
        return await asyncio.gather(*(session(address, number, moves, pause, further) for number in range(count)))

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


def costly() -> list[dict[str, object]]:
    """A row for each costly input, and for none: how long it holds others up."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as home, served(ROOT / "app.py", home) as (address, pid, _):
        for page in ("where_it_helps", "low_pass_filter", "train"):  # what is imported once
            asyncio.run(first_page(address, page))
        for name, what in {"nothing": None, **_costly()}.items():
            rows.append({"what": name, **held_up(address, pid, what)})
    return rows


def long_runs(moves: int, pause: float, wait: float) -> list[dict[str, object]]:
    """What the server holds while many look at long runs, and after their sessions have ended."""
    with tempfile.TemporaryDirectory() as home, served(ROOT / "app.py", home) as (address, pid, _):
        found = measured(address, pid, SESSIONS_OF_LONG, moves, pause, f"&steps={LONG}")
        time.sleep(wait)
        asyncio.run(first_page(address))
        return [
            {"what": f"{LONG:,} steps", **found},
            {"what": "once these sessions have ended", "server (MB)": megabytes(pid)},
        ]


def table(sessions: list[int], moves: int, pause: float) -> list[dict[str, object]]:
    """The rows of cold starts, beside an empty app, and of 1 to many sessions, idle and while a run trains."""
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as home:
        for name, script in {**_least(home), "this app": ROOT / "app.py"}.items():
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


def seen(times: int) -> list[dict[str, object]]:
    """Seconds from the command to a page's title and to its picture in Chromium, and the server's CPU time by then.

    They are medians of ``times`` starts, of two empty apps and of this one by turns.  "beside an empty app" is the
    median ratio to the title of the empty app's start just before.
    """
    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import FLAGS

    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        for _ in range(times):
            for name, script in {**_least(home), "this app": ROOT / "app.py"}.items():
                starts = found.setdefault(name, [])
                starts.append(_seen_once(browser, script, home, picture=name != EMPTY))
        browser.close()
    rows: list[dict[str, object]] = []
    for name, starts in found.items():
        title, drawn, computed = np.median(starts, axis=0).tolist()
        ratios = np.median(np.array(starts)[:, :2] / np.array(found[EMPTY])[:, :1], axis=0)
        rows.append({"what": f"title in Chromium, {name}", "median (s)": title, "beside an empty app": ratios[0]})
        if name != EMPTY:
            rows.append({"what": f"picture in Chromium, {name}", "median (s)": drawn, "beside an empty app": ratios[1]})
        rows[-1]["CPU a move (s)"] = computed
    return rows


def _seen_once(browser: Browser, script: Path, home: str, *, picture: bool) -> list[float]:
    context, begin = browser.new_context(), time.monotonic()
    try:
        with served(script, home) as (address, pid, _):
            page = context.new_page()
            page.goto(address.replace("ws://", "http://").removesuffix("/_stcore/stream"))
            page.locator("h1").first.wait_for(timeout=60_000)
            title = time.monotonic() - begin
            if picture:
                page.locator(".stVegaLiteChart :is(canvas, svg.marks)").first.wait_for(timeout=60_000)
            return [title, time.monotonic() - begin, cpu_seconds(pid)]
    finally:
        context.close()


def _least(folder: str) -> dict[str, Path]:
    scripts = {name: Path(folder) / f"{name}.py" for name in LEAST}
    for name, script in scripts.items():
        script.write_text(f"import streamlit as st\n{LEAST[name]}\n")
    return scripts


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
@click.option("--moves", default=6, show_default=True, help="How many moves each session makes.")
@click.option("--pause", default=SECONDS_BETWEEN_MOVES, show_default=True, help="Seconds from one move to the next.")
@click.option("--costly", "alone", is_flag=True, help="Measure what could hold everybody up.")
@click.option("--chromium", is_flag=True, help="Measure a cold start as a person sees it.")
@click.option("--starts", default=5, show_default=True, help="How often each app is started with --chromium.")
@click.option("--long", "of_long", is_flag=True, help="Measure ten sessions that look at runs of a million steps.")
def main(sessions: str, moves: int, pause: float, alone: bool, chromium: bool, starts: int, of_long: bool) -> None:
    """Print how long pages take, what the server computes and what it holds, a row for each case."""
    import pandas as pd

    if not (sessions or alone or chromium or of_long):
        raise click.UsageError("nothing is left to measure: name some --sessions, or --costly, --chromium, --long")
    rows = table([int(count) for count in sessions.split(",")], moves, pause) if sessions else []
    rows += seen(starts) if chromium else []
    rows += long_runs(moves, pause, SECONDS_OF_SESSIONS) if of_long else []
    found = pd.DataFrame(rows + (costly() if alone else []))
    click.echo(found.to_string(index=False, na_rep="", float_format=lambda number: f"{number:.3g}"))


if __name__ == "__main__":
    main()
