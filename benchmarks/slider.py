"""How long after a key press on a handle the changed figure is on the page, in a real browser.

Measured idle and while a run trains, in turns; then the server's memory before and after ten replays of the article's
run.  Needs Chromium and Playwright.

Run: python -m benchmarks.slider
"""

import statistics
import tempfile
from pathlib import Path

from playwright.sync_api import Locator, Page, sync_playwright

from emacore import RunConfig
from emacore.experiments.store import RunStore
from tests.browser.conftest import FLAGS, Server
from tests.browser.test_app import ENDLESS, metric, settled

#: Page, the handle on it, and the element whose text answers it.
SLIDERS = {
    "?play=false": ("learning rate", lambda page: metric(page, "Its average")),
    "decay_schedule": ("power", lambda page: metric(page, "Mean age")),
    "what_if?replayed={run}": ("power", lambda page: page.get_by_text("In this run the average ends")),
}
PRESSES = 15


#: Resolves with the milliseconds from the next key press to the first frame drawn after the element's text changed.
#: Measured inside the page: polling from outside would take a core from what is measured.
ANSWERED = """element => new Promise(resolve => {
    const before = element.textContent;
    let pressed = null;
    addEventListener("keydown", event => { pressed = event.timeStamp; }, {capture: true, once: true});
    const observer = new MutationObserver(() => {
        if (pressed === null || (element.isConnected && element.textContent === before)) return;
        observer.disconnect();
        requestAnimationFrame(() => requestAnimationFrame(now => resolve(now - pressed)));
    });
    setTimeout(() => { observer.disconnect(); resolve(-1); }, 30_000);  // nothing changed: answers() says so
    observer.observe(document.body, {subtree: true, childList: true, characterData: true});
})"""


def answers(page: Page, slider: str, value: Locator) -> list[float]:
    """Milliseconds until the value has changed, for each press of an arrow key."""
    times = []
    handle = page.get_by_role("slider", name=slider)
    for press in range(PRESSES):
        handle.focus()
        page.wait_for_timeout(700)
        before = value.inner_text()
        element = value.element_handle()
        assert element is not None
        element.evaluate(f"element => {{ window.answered = ({ANSWERED})(element); }}")
        page.keyboard.press("ArrowRight" if press < 10 else "ArrowLeft")
        times.append(float(page.evaluate("window.answered")))
        assert value.inner_text() != before, f"{slider}: the figure is still what it was"
    return times


def resident(pid: int) -> dict[str, float]:
    """Megabytes of a process in memory: its own, and those of mapped files, which other processes may share."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
    return {name: int(sizes[key]) / 1024 for name, key in (("own", "RssAnon"), ("mapped", "RssFile"))}


def train_article(page: Page, server: Server) -> str:
    """Train the article's run from its page, and return its id."""
    page.goto(f"{server.url}/train")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("Ended after").wait_for(timeout=180_000)
    return str(RunStore(server.home).runs()["id"][0])


def main() -> None:
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        server = Server(Path(home))
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            trainer = browser.new_page()
            run = train_article(trainer, server)
            assert RunStore(home).result(run).config == RunConfig()
            medians: dict[tuple[str, bool], list[float]] = {}
            for _ in range(2):
                for training in (False, True):
                    if training:
                        trainer.goto(f"{server.url}/train{ENDLESS}")
                        trainer.get_by_role("button", name="Start", exact=True).click()
                        trainer.get_by_text("Epoch 1").first.wait_for(timeout=60_000)
                        trainer.goto("about:blank")
                    for path, (slider, figure) in SLIDERS.items():
                        page.goto(f"{server.url}/{path.format(run=run)}")
                        settled(page)
                        medians.setdefault((path, training), []).extend(answers(page, slider, figure(page)))
                    if training:
                        store = RunStore(home)
                        for stored in store.runs()["id"]:
                            store.request_stop(stored)
            for path, (slider, _) in SLIDERS.items():
                idle, busy = (statistics.median(medians[path, training]) for training in (False, True))
                print(
                    f"{path.partition('?')[0] or 'overview':<16} {slider:<14} "
                    f"idle {idle:5.0f} ms, while a run trains {busy:5.0f} ms, ratio {busy / idle:.2f}"
                )
            before = resident(server.process.pid)
            for n in range(10):
                page.goto(f"{server.url}/what_if?replayed={run}&power={0.3 + n / 10:.1f}")
                page.get_by_text("In this run the average ends").wait_for()
            after = resident(server.process.pid)
            print(
                f"server memory after ten replays: own {after['own'] - before['own']:+.0f} MB "
                f"(from {before['own']:.0f}), mapped files {after['mapped'] - before['mapped']:+.0f} MB"
            )
        finally:
            server.stop()
            browser.close()


if __name__ == "__main__":
    main()
