"""The pictures of the README, and its short animation, taken from the running app in a real browser.

Needs Chromium and Playwright.  The runs are the app's own example, and the study and the sweep that ship.

Run: python -m benchmarks.pictures [folder]
"""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.browser.conftest import FLAGS, Server, settled, still

SIZE = {"width": 1280, "height": 800}
#: File, page, and a text that is there once the picture is whole.
PICTURES = {
    "overview": ("?play=false", "Three questions"),
    "for_my_run": ("for_my_run", "The same at another batch size"),
    "what_if": ("what_if", "In this run the average ends"),
    "where_it_helps": ("where_it_helps", "Shipped with the app"),
}
#: The animation: frames, pixels across, and milliseconds a frame.
FRAMES, ACROSS, DURATION = 36, 760, 90


def whole(page: Page, server: Server, path: str, text: str) -> None:
    page.goto(f"{server.url}/{path}")
    page.get_by_text(text).first.wait_for(state="attached")
    settled(page)
    still(page.locator("[data-testid=stVegaLiteChart]").first)
    page.locator("[data-testid=stMain]").evaluate("main => main.scrollTo(0, 0)")  # it was brought into view


def dragged(page: Page, server: Server) -> list[Image.Image]:
    """The decay schedule while its first handle goes to and fro under the pointer."""
    whole(page, server, "decay_schedule", "The same as code")
    handle = page.locator("input[type=range]").first
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    assert box is not None
    height = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.3 * box["width"], height)
    page.mouse.down()
    frames = []
    for frame in range(FRAMES):
        share = abs(2 * frame / FRAMES - 1)
        page.mouse.move(box["x"] + (0.1 + 0.8 * share) * box["width"], height)
        page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # it is drawn
        picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        small = picture.resize((ACROSS, round(ACROSS * picture.height / picture.width)))
        frames.append(small.quantize(64))
    page.mouse.up()
    return frames


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    with tempfile.TemporaryDirectory() as home, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        server = Server(Path(home), EMACORE_EXAMPLE="1")
        try:
            page = browser.new_page(viewport=SIZE)
            page.set_default_timeout(120_000)
            page.goto(f"{server.url}/train")
            page.get_by_text("Ended after").first.wait_for()  # the example run
            for name, (path, text) in PICTURES.items():
                whole(page, server, path, text)
                page.screenshot(path=folder / f"{name}.png")
            first, *others = dragged(page, server)
            first.save(folder / "drag.gif", save_all=True, append_images=others, duration=DURATION, loop=0)
        finally:
            server.stop()
            browser.close()


if __name__ == "__main__":
    main()
