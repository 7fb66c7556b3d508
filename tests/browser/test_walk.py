"""Somebody who knows nothing presses, drags and types at random, on all pages: no page ends in an exception."""

import random
import re
import sys

import pytest
from playwright.sync_api import Error

from tests.browser.conftest import Server, settled

if sys.platform == "win32":
    pytest.skip("needs a POSIX system", allow_module_level=True)

pytestmark = pytest.mark.browser

#: What can be acted on, by kind, and what to do with one of them.
MAIN = "[data-testid=stMain]"
KINDS = {
    "page": "[data-testid=stTopNavLink]",
    "button": f"{MAIN} [data-testid=stBaseButton-secondary]",
    "choice": f"{MAIN} [data-testid^=stBaseButton-segmented_control], {MAIN} [data-testid^=stBaseButton-pills]",
    "handle": f"{MAIN} input[type=range], {MAIN} [role=slider]",
    "number": f"{MAIN} input[type=number], {MAIN} [data-testid=stNumberInputField]",
    "list": f"{MAIN} [data-baseweb=select]",
    "fold": f"{MAIN} details > summary",
    "picture": f"{MAIN} [data-testid=stVegaLiteChart] canvas, {MAIN} [data-testid=stVegaLiteChart] svg",
    "back": MAIN,
}
#: Milliseconds in which what is there can be acted on; what lies under something else takes them all.
SOON = 700
#: How often each kind is tried.
WEIGHTS = (2, 2, 2, 3, 3, 2, 2, 1, 1)
TYPED = ("0", "1", "-1", "0.5", "7", "123456", "1e9", "0.999999")


def act(page, kind, chance):
    """One action of a kind, on one of what is there; says what it was, or nothing if there was none."""
    there = page.locator(KINDS[kind]).filter(visible=True)
    count = there.count()
    if not count:
        return None
    one = there.nth(chance.randrange(count))
    name = (one.get_attribute("aria-label") or one.inner_text() or "")[:40].replace("\n", " ")
    if kind == "back":
        if not page.evaluate("navigation.canGoBack"):  # only the blank page is before the first one
            return None
        page.go_back()
        return "back", page.url
    one.scroll_into_view_if_needed(timeout=SOON)
    if kind == "handle":
        one.focus(timeout=SOON)
        for _ in range(chance.randint(1, 4)):
            page.keyboard.press(chance.choice(["ArrowRight", "ArrowLeft", "Home", "End", "PageUp"]))
    elif kind == "number":
        one.fill(chance.choice(TYPED), timeout=SOON)
        one.press("Enter", timeout=SOON)
    elif kind == "list":
        one.click(timeout=SOON)
        options = page.locator("[role=option]")
        if options.count():
            options.nth(chance.randrange(options.count())).click(timeout=SOON)
        page.keyboard.press("Escape")
    elif kind == "picture":
        box = one.bounding_box()
        page.mouse.click(box["x"] + chance.random() * box["width"], box["y"] + chance.random() * box["height"])
    else:
        one.click(timeout=SOON)
    return kind, name


def walk(server, page, seed, actions):
    """Act at random; after each action the page is drawn, without an exception, and its script has an end."""
    chance, done, broken, failed = random.Random(seed), [], [], 0
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(server.url)
    settled(page)
    while len(done) < actions:
        kind = chance.choices(list(KINDS), WEIGHTS)[0]
        try:
            acted = act(page, kind, chance)
        except Error:  # what was chosen is gone, or under something else: as a person would, try another
            acted = None
        if acted is None:
            page.keyboard.press("Escape")
            failed += 1
            assert failed < 5 * actions, f"nothing can be acted on after {done[-6:]} at {page.url}"
            continue
        done.append(acted)
        try:
            settled(page, charts=False)
        except Error as error:
            raise AssertionError(f"never drawn after {done[-6:]} at {page.url}") from error
        shown = page.locator("[data-testid=stException]").all_inner_texts()
        assert not shown + broken, f"after {done[-6:]} at {page.url}: {server.said()}"
    pages = {re.sub(r"\?.*", "", str(name)) for kind, name in done if kind == "page"}
    return done, pages


@pytest.fixture
def served(tmp_path):
    server = Server(tmp_path)
    yield server
    server.stop()


@pytest.mark.slow
@pytest.mark.long
def test_a_walk_ends_without_an_exception(server, page):
    done, pages = walk(server, page, seed=5, actions=60)
    assert len({kind for kind, _ in done}) >= 6
    assert len(pages) >= 3


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_long_walks_end_without_an_exception(served, page, seed):
    done, pages = walk(served, page, seed, actions=400)
    assert len({kind for kind, _ in done}) >= 8
    assert len(pages) >= 6
