"""How long after a pointer event on a handle the changed curve is on the screen, in a real browser.

Measured idle, while a run trains, and with the server stopped in mid-drag, since nothing is asked of it.  Needs
Chromium and Playwright.

Run: python -m benchmarks.drag
"""

import os
import signal
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from emacore.experiments.store import RunStore
from tests.browser.conftest import FLAGS, Server, settled, still
from tests.browser.test_app import ENDLESS

#: Page, and its handles by the names that stand beside them.
HANDLES = {
    "?play=false": ("learning rate", "gradient noise", "decay of the average"),
    "decay_schedule": ("power", "beta", "after step (% of the run)"),
    "low_pass_filter": ("decay (beta)",),
    "what_if": ("power", "inv_gamma (steps)"),
}
MOVES = 40

#: After each pointer event on a handle, the milliseconds until a frame was painted in which a curve has other points.
WATCH = """() => {
    if (window.dragged) { window.dragged = []; return; }
    const look = () => [...document.querySelectorAll("[class*=st-key-moving-] svg .mark-line path")]
        .map(path => path.getAttribute("d")).join(";");
    const done = new MessageChannel();
    window.dragged = [];
    let before = look(), pointed = null;
    addEventListener("pointermove", event => { pointed = event.timeStamp; }, {capture: true});
    addEventListener("input", () => {
        const since = pointed ?? performance.now();
        const frame = () => {
            const now = look();
            if (now === before) {
                if (performance.now() - since < 2000) requestAnimationFrame(frame);
                return;
            }
            before = now;
            done.port1.onmessage = () => window.dragged.push(performance.now() - since);
            done.port2.postMessage(null);  // answered when this frame is painted
        };
        requestAnimationFrame(frame);
    }, {capture: true});
}"""


def drag(page: Page, name: str, stopped: Server | None = None) -> list[float]:
    """Milliseconds from each move of a handle to its curve; ``stopped``, if given, stands still while it is moved."""
    handle = page.get_by_role("slider", name=name)
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    assert box is not None
    y, left, length = box["y"] + box["height"] / 2, box["x"] + 0.1 * box["width"], 0.8 * box["width"]
    page.mouse.move(left, y)
    page.mouse.down()
    page.wait_for_timeout(600)
    page.evaluate(WATCH)
    with frozen(stopped):
        for move in range(MOVES):
            page.mouse.move(left + length * (move + 1) / MOVES, y)
            page.wait_for_timeout(60)
        page.wait_for_timeout(500)
        times = [float(time) for time in page.evaluate("window.dragged")]
    page.mouse.up()
    page.wait_for_timeout(1000)
    return times


@contextmanager
def frozen(server: Server | None) -> Iterator[None]:
    """Stop a server's process for the block; after it the server goes on where it was."""
    if server is None:
        yield
        return
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


def main() -> None:
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        server = Server(Path(home))
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.set_default_timeout(90_000)  # the first What if waits for the run that the server trains
            for state in ("idle", "server stopped", "a run trains"):
                if state == "a run trains":
                    trainer = browser.new_page()
                    trainer.goto(f"{server.url}/train{ENDLESS}")
                    trainer.get_by_role("button", name="Start", exact=True).click()
                    trainer.get_by_text("Epoch 1").first.wait_for(timeout=60_000)
                    trainer.goto("about:blank")
                for path, name in [(path, name) for path, handles in HANDLES.items() for name in handles]:
                    # The page is opened anew for each handle: after another one was let go, it may act on nothing.
                    page.goto(f"{server.url}/{path}")
                    settled(page)
                    page.locator(".vega-bind").first.wait_for()
                    settled(page)
                    still(page.locator("[class*=st-key-moving-]").first)
                    times = sorted(drag(page, name, server if state == "server stopped" else None))
                    assert len(times) > MOVES / 4, f"{name} changed the picture {len(times)} times"
                    print(
                        f"{path.partition('?')[0] or 'overview':<16} {name:<26} {state:<15} "
                        f"median {statistics.median(times):4.0f} ms, 95th percentile "
                        f"{times[int(0.95 * (len(times) - 1))]:4.0f} ms, {len(times)} changes",
                        flush=True,
                    )
            for stored in RunStore(home).runs()["id"]:
                RunStore(home).request_stop(stored)
        finally:
            server.stop()
            browser.close()


if __name__ == "__main__":
    main()
