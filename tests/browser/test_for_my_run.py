"""A run is filled in, and the code that comes out is pasted into a loop with ema-pytorch."""

import sys

import numpy as np
import pytest
from torch import nn

from emacore.averaging.families import PowerFunction
from emacore.averaging.weights import weights
from tests.browser.conftest import place_of, settled, visit
from tests.helpers import wait_for

if sys.platform == "win32":
    pytest.skip("needs a POSIX system", allow_module_level=True)

pytestmark = pytest.mark.browser


def test_a_run_is_filled_in_and_its_code_runs(server, page):
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(f"{server.url}/for_my_run?run_steps=5000&run_batch=32&trained=other")
    settled(page)
    for name, value in (("Steps", "400000"), ("Batch size", "256")):
        field = page.get_by_role("spinbutton", name=name, exact=True)
        field.fill(value)
        field.press("Enter")
    page.get_by_role("combobox", name="What is trained").click()
    page.get_by_role("option", name="diffusion").click()
    page.get_by_text("For a run of 400,000 steps in all at batch 256").wait_for()
    card = page.get_by_text("half-life 6,931 steps, 1.73 % of the run")
    card.wait_for()
    settled(page)
    box, picture = place_of(card), place_of(page.locator("[data-testid=stVegaLiteChart]").first)
    assert box["y"] + box["height"] < 800
    assert picture["y"] + picture["height"] < 800
    code = page.locator("[data-testid=stCode] code").first.inner_text()
    model, values = nn.Linear(1, 1, bias=False), np.linspace(0, 1, 300)
    names = {"model": model, "batches": range(300)}
    exec(code, names | {"train_on": lambda batch: nn.init.constant_(model.weight, values[batch])}, made := {})
    assert "update_every=1" in code
    expected = weights(PowerFunction(sigma_rel=0.1).decays(300)) @ values
    assert made["ema"].ema_model.weight.item() == pytest.approx(expected, abs=0.02)

    page.set_viewport_size({"width": 400, "height": 800})
    wait_for(lambda: page.evaluate("document.documentElement.scrollWidth") <= 400)
    pieces = [page.locator("[data-testid=stVegaLiteChart]"), page.get_by_text("What is trained"), card]
    pieces.append(page.get_by_text("The same at another batch size"))
    wait_for(lambda: (tops := [place_of(piece.first)["y"] for piece in pieces]) == sorted(tops))
    assert place_of(pieces[0].first)["y"] < 400, "on the first screen"
    page.set_viewport_size({"width": 360, "height": 800})
    visit(page, "decay_schedule")
    settled(page)
    links = page.locator("[data-testid=stPageLink-NavLink] :is(span, p)")
    assert links.evaluate_all("all => all.length > 0 && all.every(one => one.scrollWidth <= one.clientWidth + 1)")
    pieces = [page.locator("[data-testid=stVegaLiteChart] svg.marks"), page.locator("input[type=range]")]
    pieces.append(page.get_by_text("Show", exact=True))
    wait_for(lambda: (tops := [place_of(piece.first)["y"] for piece in pieces]) == sorted(tops))
