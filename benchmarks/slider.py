"""From a key press on a slider to the changed figure on the page, in a real browser: idle, and while a run trains.

Both are measured in turns in one run.  Needs Chromium and Playwright.

Run: python benchmarks/slider.py
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from playwright.sync_api import Page, sync_playwright

from emacore.experiments.store import RunStore
from tests.browser.conftest import FLAGS, Server
from tests.browser.test_app import ENDLESS, metric, settled

#: Page, its slider, and the figure that answers it.
SLIDERS = {
    "?play=false": ("Learning rate", "Loss of the average"),
    "decay_schedule": ("power", "Mean age"),
}
PRESSES = 15


def answers(page: Page, slider: str, figure: str) -> list[float]:
    """Milliseconds until the figure has changed, for each press of an arrow key."""
    times = []
    handle = page.get_by_role("slider", name=slider)
    value = metric(page, figure)
    for press in range(PRESSES):
        handle.focus()
        page.wait_for_timeout(700)
        before = value.inner_text()
        begin = time.perf_counter()
        page.keyboard.press("ArrowRight" if press < 10 else "ArrowLeft")
        while value.inner_text() == before and time.perf_counter() - begin < 5:
            page.wait_for_timeout(5)
        times.append(1000 * (time.perf_counter() - begin))
    return times


def main() -> None:
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        server = Server(Path(home))
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            trainer = browser.new_page()
            medians: dict[tuple[str, bool], list[float]] = {}
            for _ in range(2):
                for training in (False, True):
                    if training:
                        trainer.goto(f"{server.url}/train{ENDLESS}")
                        trainer.get_by_role("button", name="Start").click()
                        trainer.get_by_text("Epoch 1").first.wait_for(timeout=60_000)
                        trainer.goto("about:blank")
                    for path, (slider, figure) in SLIDERS.items():
                        page.goto(f"{server.url}/{path}")
                        settled(page)
                        medians.setdefault((path, training), []).extend(answers(page, slider, figure))
                    if training:
                        store = RunStore(home)
                        for run in store.runs()["id"]:
                            store.request_stop(run)
            for path, (slider, _) in SLIDERS.items():
                idle, busy = (statistics.median(medians[path, training]) for training in (False, True))
                print(
                    f"{path or 'overview':<16} {slider:<14} idle {idle:5.0f} ms, while a run trains {busy:5.0f} ms, "
                    f"ratio {busy / idle:.2f}"
                )
        finally:
            server.stop()
            browser.close()


if __name__ == "__main__":
    main()
