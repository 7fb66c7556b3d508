"""Somebody who knows nothing presses, drags and types at random, on all pages: no page ends in an exception."""

import random
import re
import sys

import pytest
from playwright.sync_api import Error

from emacore.experiments.store import RunStore
from tests.browser.conftest import Server, settled

if sys.platform == "win32":
    pytest.skip("needs a POSIX system", allow_module_level=True)

pytestmark = pytest.mark.browser

#: What can be acted on, by kind, and what to do with one of them.
MAIN = "[data-testid=stMain]"
KINDS = {
    "page": "[data-testid=stTopNavLink]",
    "button": f"{MAIN} [data-testid=stBaseButton-secondary]:enabled",
    "choice": f"{MAIN} [data-testid=stButtonGroup] button, {MAIN} [role=tab], {MAIN} label:has([role=switch])",
    "handle": f"{MAIN} input[type=range], {MAIN} [role=slider]",
    "number": f"{MAIN} [data-testid=stNumberInputField]",
    "list": f"{MAIN} [role=combobox]",
    "fold": f"{MAIN} details > summary",
    "picture": f"{MAIN} [data-testid=stVegaLiteChart], {MAIN} [data-testid=stDataFrame]",
    "back": MAIN,
}
#: Where nothing waits for what is trained afterwards, jobs are started, too.
STARTED = "[data-testid=stBaseButton-primary]:enabled"
#: Milliseconds in which what is there can be acted on; what lies under something else takes them all.
SOON, LONG = 700, 90_000
#: How often each kind is tried.
WEIGHTS = (2, 2, 2, 3, 3, 2, 2, 1, 1)
TYPED = ("0", "1", "-1", "0.5", "7", "123456", "1e9", "0.999999")


def act(page, kind, chance, kinds):
    """One action of a kind, on one of what is there; says what it was, or nothing if there was none."""
    if kind == "back":
        if not page.evaluate("navigation.canGoBack"):  # only the blank page is before the first one
            return None
        page.go_back()
        return "back", page.url
    there = page.locator(kinds[kind]).filter(visible=True)
    count = there.count()
    if not count:
        return None
    one = there.nth(chance.randrange(count))
    name = (one.get_attribute("aria-label") or one.text_content() or "")[:40].replace("\n", " ")
    if kind == "handle":
        one.focus()
        for _ in range(chance.randint(1, 4)):
            page.keyboard.press(chance.choice(["ArrowRight", "ArrowLeft", "Home", "End", "PageUp"]))
    elif kind == "number":
        one.fill(chance.choice(TYPED))
        one.press("Enter")
    elif kind == "list":
        one.click()
        options = page.locator("[role=option]")
        if there_are := options.count():  # once: a page that is drawn anew takes an open list away
            options.nth(chance.randrange(there_are)).click()
        page.keyboard.press("Escape")
    elif kind == "picture":
        one.scroll_into_view_if_needed()
        if (box := one.bounding_box()) is None:  # the app has taken it away
            return None
        page.mouse.click(box["x"] + chance.random() * box["width"], box["y"] + chance.random() * box["height"])
        name = "table" if "stDataFrame" in (one.get_attribute("data-testid") or "") else "picture"
    else:
        one.click()
    return kind, name


def walk(server, page, seed, actions, *, starts=False):
    """Act at random; after each action the page is drawn, without an exception, and its script has an end."""
    chance, done, broken, failed = random.Random(seed), [], [], 0
    kinds = {**KINDS, "button": f"{KINDS['button']}, {MAIN} {STARTED}"} if starts else KINDS
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(server.url)
    settled(page)
    while len(done) < actions:
        kind = chance.choices(list(kinds), WEIGHTS)[0]
        page.set_default_timeout(SOON)
        try:
            acted = act(page, kind, chance, kinds)
        except Error:  # what was chosen is gone, or under something else: as a person would, try another
            acted = None
        page.set_default_timeout(LONG)
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
def served(tmp_path, request):
    """A server with an empty store, and the variables that the test gives it."""
    server = Server(tmp_path, **getattr(request, "param", {}))
    yield server
    server.stop()
    store = RunStore(tmp_path)
    for job in store.jobs()["id"]:  # they would go on without their server
        store.request_stop(job)


@pytest.mark.slow
@pytest.mark.parametrize("served", [{"EMACORE_EXAMPLE": "0"}], indirect=True, ids=["nothing is trained"])
def test_a_walk_ends_without_an_exception(served, page):
    done, pages = walk(served, page, seed=5, actions=60)
    assert len({kind for kind, _ in done}) >= 8
    assert len(pages) >= 4


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
def test_long_walks_end_without_an_exception(served, page, seed):
    done, pages = walk(served, page, seed, actions=400, starts=True)
    assert len({kind for kind, _ in done}) >= 8
    assert len(pages) >= 6
