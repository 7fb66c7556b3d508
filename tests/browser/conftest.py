"""A real server on loopback and a real Chromium.  Where one is missing the tests skip and say so; in CI they fail."""

import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import wait_for

ROOT = Path(__file__).parents[2]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",  # /dev/shm is small in containers, and Chromium dies where it is full
]


class Server:
    """``streamlit run app.py`` with a store of its own, and further variables of the environment."""

    def __init__(self, home, **variables):
        self.home, self.variables = home, variables
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = Path(home).with_name(f"{Path(home).name}-{self.port}.log")
        self.process = None
        self.start()

    def start(self):
        command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless", "true"]
        command += [
            "--server.address",
            "127.0.0.1",
            "--server.port",
            str(self.port),
            "--server.fileWatcherType",
            "none",
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | {"EMACORE_HOME": str(self.home)} | self.variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for(self.answers)

    def said(self):
        """The end of what the server wrote: a browser is not told what failed."""
        return self.log.read_text()[-3000:]

    def answers(self):
        try:
            urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=1)
        except OSError:
            return False
        return True

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


@pytest.fixture(scope="session")
def chromium():
    """Chromium under Playwright.

    Pages of a server share a process, in which what one of them has compiled is there for the next.
    """
    path = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sync_playwright = None
    if path is None or sync_playwright is None:
        missing = "Chromium (apt-get install chromium)" if path is None else "Playwright (pip install playwright)"
        if os.environ.get("CI"):
            pytest.fail(f"browser tests need {missing}")
        pytest.skip(f"browser tests need {missing}")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS, "--process-per-site"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def context(chromium):
    """A browser that keeps the app's own files, as people's do: to load them again takes seconds.

    It asks for reduced motion: Streamlit's waiting signs take a fifth of a browser's time where no GPU draws them.
    """
    context = chromium.new_context(
        viewport={"width": 1280, "height": 900}, accept_downloads=True, reduced_motion="reduce"
    )
    context.set_default_timeout(90_000)
    return context


@pytest.fixture(scope="session")
def server(tmp_path_factory, context):
    server = Server(tmp_path_factory.mktemp("home"))
    context.new_page().goto(f"{server.url}/_stcore/health")  # keeps the pages' process while no test has one
    yield server
    server.stop()


@pytest.fixture
def page(context):
    """A new visitor with a wide screen."""
    before = context.pages
    yield context.new_page()
    for page in context.pages:
        if page not in before:
            page.close()


def visit(page, path):
    """Go to another page of the app, or to another link of it, as the browser's own buttons do.

    Nothing is loaded again, which would take six seconds of CPU; what the session holds stays.
    """
    page.evaluate(
        "url => { history.pushState({}, '', url); dispatchEvent(new PopStateEvent('popstate')); }", f"/{path}"
    )
    name = path.partition("?")[0].replace("_", " ").capitalize() or "Overview"
    page.wait_for_function("name => document.title.replaceAll('-', ' ').startsWith(`${name}  `)", arg=name)
    page.get_by_role("heading", level=1).wait_for()
    settled(page, charts=False)


def settled(page, *, charts=True):
    """Wait until the page is drawn: a title is there, no script is running, and there is a chart."""
    page.get_by_role("heading", level=1).wait_for()
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    if charts:
        page.locator("[data-testid=stVegaLiteChart] canvas, [data-testid=stVegaLiteChart] svg").first.wait_for()


def unchanged(look):
    """Wait until ``look()`` is the same twice in a row, a quarter of a second apart or more, and return it."""
    seen = []

    def twice():
        now, found = time.monotonic(), look()
        if not seen or found != seen[0][1]:
            seen[:] = [(now, found)]
        return now - seen[0][0] > 0.25

    wait_for(twice)
    return seen[0][1]


def picture_of(locator):
    """What is seen of it, as PNG; looked at again where the app draws it anew at this very moment."""
    from playwright.sync_api import Error

    def look():
        try:
            return locator.screenshot()
        except Error as error:
            if "not attached" not in str(error):
                raise
            return None

    return wait_for(look)


def place_of(locator):
    """Where it is on the page: x, y, width and height in pixels; waits while the app draws it anew."""
    return wait_for(locator.bounding_box)


def still(locator):
    """Wait until it looks the same twice in a row, and return its picture."""
    return unchanged(lambda: picture_of(locator))


def metric(page, label):
    box = page.locator("[data-testid=stMetric]").filter(has_text=label)
    return box.locator("[data-testid=stMetricValue]").last  # while a page is drawn anew, its old one may be there too


def changes_from(locator, before):
    """Wait until the text of ``locator`` is another one, and return it."""
    return wait_for(lambda: (now := locator.inner_text()) != before and now, 90)


def click_in(picture, across=0.5, down=0.25):
    """A click into a map, at these shares of its width and height."""
    still(picture)  # which brings it into view
    box = place_of(picture)
    picture.page.mouse.click(box["x"] + box["width"] * across, box["y"] + box["height"] * down)


def drawn(chart, colour):
    """How many pixels of a chart have about this colour."""
    pixels = np.asarray(Image.open(io.BytesIO(picture_of(chart))).convert("RGB"), dtype=np.int32)
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(pixels - wanted).max(axis=-1) < 60).sum())
