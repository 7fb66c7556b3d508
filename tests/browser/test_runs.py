"""A first visit on an empty store, and the page of all runs, in a real browser."""

import re
import sys

import pytest

from emacore.charts.style import AVERAGED
from emacore.experiments.store import RunStore
from tests.browser.conftest import Server, drawn, settled, still, visit
from tests.helpers import wait_for

if sys.platform == "win32":
    pytest.skip("needs a POSIX system", allow_module_level=True)

pytestmark = pytest.mark.browser


def test_an_empty_store_shows_the_articles_run_without_a_click_and_it_can_be_ticked(tmp_path, page):
    server = Server(tmp_path, EMACORE_EXAMPLE="1")
    try:
        page.goto(f"{server.url}/what_if")
        settled(page)  # a chart is there
        store = RunStore(tmp_path)
        (example,) = store.runs()["id"]
        store.request_stop(example)
        wait_for(lambda: store.result(example).state in ("stopped", "done"))  # it may have ended by itself
        visit(page, "runs")
        table = page.locator("[data-testid=stDataFrame] canvas").first
        table.wait_for()
        still(table)
        table.click(position={"x": 17, "y": 52}, force=True)  # the box before the first row
        chart = page.locator("[data-testid=stVegaLiteChart]").first
        page.wait_for_url(re.compile(f"picked={example}"))
        wait_for(lambda: drawn(chart, AVERAGED) > 50)
        page.get_by_role("button", name="Rename").click()
        page.get_by_role("textbox", name="Name").fill("for the talk")
        page.get_by_role("textbox", name="Name").press("Enter")
        wait_for(lambda: store.result(example).name == "for the talk")
        page.go_back()  # to the link without it
        page.locator("[data-testid=stVegaLiteChart]").first.wait_for(state="detached")
    finally:
        server.stop()
