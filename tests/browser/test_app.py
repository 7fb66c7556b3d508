"""What a person does: look, drag, train, leave, come back, take the numbers home."""

import json
import os
import re
import signal
import sys
from urllib.parse import quote

import pandas as pd
import pytest
import torch
from torch import nn

from emacore.averaging.code import from_code
from emacore.charts.style import AVERAGED, CHOSEN, ORIGINAL, OTHERS
from emacore.experiments.store import RunStore
from emacore.tasks import open_run
from emacore.tasks.regression.config import RunConfig
from emacore.tasks.regression.data import load
from tests.browser.conftest import (
    Server,
    changes_from,
    click_in,
    drawn,
    metric,
    picture_of,
    place_of,
    settled,
    still,
    unchanged,
    visit,
)
from tests.helpers import wait_for

if sys.platform == "win32":
    pytest.skip("needs a POSIX system", allow_module_level=True)

pytestmark = pytest.mark.browser

PAGES = ("", "decay_schedule", "low_pass_filter", "train", "what_if", "evidence", "where_it_helps", "runs")
ENDLESS = "?max_epochs=100000&stop_curve=none"


def test_a_link_works_as_the_first_request_of_a_new_server_and_its_settings_outlive_a_page_change(server, page):
    page.goto(f"{server.url}/decay_schedule?power=1.25")
    settled(page)
    assert page.get_by_role("spinbutton", name="power").input_value() == "1.25"
    page.get_by_role("link", name="Low-pass filter").click()
    page.get_by_role("heading", name="Low-pass filter", level=1).wait_for()
    page.get_by_role("link", name="Decay schedule").click()
    page.get_by_role("heading", name="Decay schedule", level=1).wait_for()
    settled(page)
    assert page.get_by_role("spinbutton", name="power").input_value() == "1.25"
    page.get_by_role("link", name="Low-pass filter").click()
    page.get_by_role("heading", name="Low-pass filter", level=1).wait_for()
    assert "?" not in page.url
    page.go_back()
    page.get_by_role("heading", name="Decay schedule", level=1).wait_for()
    settled(page)
    assert page.get_by_role("spinbutton", name="power").input_value() == "1.25"
    assert page.url.endswith("decay_schedule?power=1.25")


def curves(page):
    """What the lines of the chart with handles look like."""
    return page.locator("[class*=st-key-moving-] svg .mark-line path").evaluate_all(
        "paths => paths.map(path => path.getAttribute('d')).join()"
    )


def test_a_dragged_handle_bends_the_curve_without_the_server_and_on_release_all_follows(server, page):
    asked = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: asked.append(frame)))
    page.goto(f"{server.url}/decay_schedule")
    settled(page)
    handle = page.get_by_role("slider", name="power")
    handle.wait_for()
    settled(page)
    age, box, seen = metric(page, "Mean age").inner_text(), place_of(handle), [curves(page)]
    title = page.locator("[class*=st-key-moving-] .role-title-text").first
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 0.3 * box["width"], y)
    page.mouse.down()
    asked.clear()
    server.process.send_signal(signal.SIGSTOP)
    try:
        for share in (0.35, 0.45, 0.55):
            page.mouse.move(box["x"] + share * box["width"], y)
            wait_for(lambda: curves(page) not in seen)
            seen.append(curves(page))
        said = title.text_content()
        assert f"power: {handle.get_attribute('aria-valuetext')} " in f"{said} "  # for those who hear it
        assert metric(page, "Mean age").inner_text() == age
        assert "power=" not in page.url
    finally:
        server.process.send_signal(signal.SIGCONT)
    page.mouse.up()
    assert float(changes_from(metric(page, "Mean age"), age).replace(",", "")) != float(age.replace(",", ""))
    settled(page)
    assert len(asked) == 1, "the server is asked once, when the handle is let go"
    value = page.get_by_role("spinbutton", name="power").input_value()
    assert float(value) > 1
    assert said.startswith(f"power: {value} ")
    assert f"power={value}" in page.url
    assert curves(page) != seen[0]
    link, age = page.url, metric(page, "Mean age").inner_text()
    # Reset moves the handle, too.
    page.get_by_role("button", name="Reset").click()
    changes_from(metric(page, "Mean age"), age)
    wait_for(lambda: title.text_content().startswith("power: 0.6667 "))
    assert curves(page) != seen[-1]
    # And the keyboard moves it.
    handle.focus()
    page.keyboard.press("ArrowRight")
    wait_for(lambda: page.get_by_role("spinbutton", name="power").input_value() == "0.7")
    other = page.context.new_page()
    other.goto(link)
    settled(other)
    assert metric(other, "Mean age").inner_text() == age


def test_overview_plays_by_itself_in_the_browser_and_leads_to_evidence(server, page):
    page.goto(server.url)
    settled(page)
    page.get_by_role("slider", name="learning rate").wait_for()
    settled(page)  # no script runs while it plays
    page.get_by_role("button", name="Play again").click()
    seen = {curves(page)}
    with page.expect_download() as download:
        page.get_by_role("button", name="paths.csv").click()
    wait_for(lambda: seen.add(curves(page)) or len(seen) > 8)
    assert len(pd.read_csv(download.value.path())) == 300
    page.get_by_role("link", name="Ask your own seeds").click()
    page.get_by_role("heading", name="Evidence", level=1).wait_for()
    page.get_by_role("button", name="Start", exact=True).wait_for()


def test_start_watch_refresh_second_tab_and_stop(server, page):
    page.goto(f"{server.url}/train{ENDLESS}")
    page.get_by_role("button", name="Start", exact=True).click()
    progress = page.get_by_text(re.compile(r"^Epoch \d+ of at most 100,000"))
    progress.wait_for(timeout=120_000)
    changes_from(progress, progress.inner_text())
    run_id = re.search("run=([0-9a-f]+)", page.url)[1]
    page.reload()
    progress.wait_for()
    changes_from(progress, progress.inner_text())
    tab = page.context.new_page()
    tab.goto(f"{server.url}/train?run={run_id}")
    tab.get_by_text(re.compile(r"^Epoch \d+ of at most 100,000")).wait_for()
    page.get_by_role("link", name="Overview").click()
    page.get_by_role("heading", level=1).wait_for()
    page.get_by_role("link", name="Train").first.click()
    progress.wait_for()
    tab.close()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("you stopped it").wait_for()
    store = RunStore(server.home)
    assert store.result(run_id).state == "stopped"
    assert len(store.history(run_id)) > 0


@pytest.mark.long
def test_the_articles_run_trains_and_goes_home_as_csv(server, page):
    page.goto(f"{server.url}/train")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("20 epochs without a new best validation loss").last.wait_for(timeout=120_000)
    page.get_by_text("Ended after").wait_for(timeout=150_000)
    settled(page)  # until then the buttons below are those of an epoch before
    run_id = re.search("run=([0-9a-f]+)", page.url)[1]
    store = RunStore(server.home)
    for name, expected in (
        (f"history-{run_id}", store.history(run_id)),
        (f"metrics-{run_id}", store.result(run_id).summary),
    ):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"{name}.csv").click()
        pd.testing.assert_frame_equal(pd.read_csv(download.value.path()), expected, check_exact=True)
    assert page.get_by_role("heading", name="Beside the article's run").is_visible()


#: The width of what scrolls, and of each chart its left edge and its width; in pixels.
GEOMETRY = """() => [document.querySelector("[data-testid=stMain]").scrollWidth,
    [...document.querySelectorAll("[data-testid=stVegaLiteChart]")].map(chart => chart.getBoundingClientRect())
        .map(box => [box.x, box.width])]"""


def test_narrow_screens_need_no_sideways_scrolling(server, page):
    page.set_viewport_size({"width": 400, "height": 800})
    background = "getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor"
    page.goto(f"{server.url}/?play=false")
    settled(page)
    for name in PAGES:
        page.emulate_media(color_scheme="light")
        visit(page, name or "?play=false")
        settled(page, charts=name in PAGES[:3])
        light = page.evaluate(background)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            wait_for(lambda dark=scheme == "dark", light=light: (page.evaluate(background) != light) == dark)
            width, charts = unchanged(lambda: page.evaluate(GEOMETRY))
            assert width <= 400, (name, scheme)
            for left, wide in charts:
                assert left + wide <= 400, (name, scheme)
                assert wide > 250, (name, scheme)


def test_what_if_follows_a_handle_and_a_cell_and_a_click_or_a_key_keeps_it(server, page, tmp_path):
    page.goto(f"{server.url}/train?max_epochs=20&stop_curve=none&rate_rule=constant")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text("Ended after 20 epochs").wait_for(timeout=150_000)
    visit(page, "what_if")
    handle = page.get_by_role("slider", name="power")
    handle.wait_for()
    settled(page)
    chart = page.locator(".st-key-moving-replay [data-testid=stVegaLiteChart]")
    before = still(chart)
    box = place_of(handle)
    page.mouse.move(box["x"] + box["width"] * 0.23, box["y"] + box["height"] / 2)
    os.kill(server.process.pid, signal.SIGSTOP)  # the picture needs no answer
    try:
        page.mouse.down()
        page.mouse.move(box["x"] + 3, box["y"] + box["height"] / 2, steps=3)
        wait_for(lambda: picture_of(chart) != before)
    finally:
        os.kill(server.process.pid, signal.SIGCONT)
    page.mouse.up()
    page.wait_for_url(re.compile("power=0.0"))
    picture = page.locator(".st-key-atlas-map [data-testid=stVegaLiteChart]")
    page.get_by_text("Dotted cells: this run is too short for beta, which never acts.").wait_for()
    settled(page)
    # A cell that is pointed at is a curve, and no more one when the pointer leaves.
    still(picture)
    assert drawn(chart, CHOSEN) == 0
    place = place_of(picture)
    page.mouse.move(place["x"] + place["width"] * 0.5, place["y"] + place["height"] * 0.6)
    wait_for(lambda: drawn(chart, CHOSEN) > 20)
    page.mouse.move(5, 5)
    wait_for(lambda: drawn(chart, CHOSEN) == 0)
    click_in(picture, 0.5, 0.6)
    keep = page.get_by_role("button", name=re.compile("^Pin InversePower"))
    keep.wait_for()
    settled(page)
    page.mouse.move(5, 5)
    wait_for(lambda: drawn(chart, CHOSEN) > 20)  # the clicked cell is a curve
    wait_for(lambda: drawn(picture, CHOSEN) > 20)  # and framed in its colour
    table = page.locator("[data-testid=stDataFrame]").last.locator("tbody tr")
    wait_for(lambda: table.count() == 4)
    # The click took the keys to the map, and they move the cell.
    clicked = from_code(keep.inner_text().partition("Pin ")[2])
    page.keyboard.press("ArrowRight")
    changes_from(keep, keep.inner_text())
    moved = from_code(keep.inner_text().partition("Pin ")[2])
    assert (moved.power, moved.beta) == (pytest.approx(clicked.power + 0.1), clicked.beta)
    # Another map, and another view, have no kept cell; back in the first one a click is a curve again.
    page.get_by_role("radio", name="best", exact=True).click()
    keep.wait_for(state="detached")
    settled(page)  # a run that is cut short forgets no click
    page.get_by_role("radio", name="final").click()
    page.get_by_text(re.compile("^The lowest cell")).wait_for()
    settled(page)
    wait_for(lambda: table.count() == 3)
    wait_for(lambda: drawn(chart, CHOSEN) == 0)
    assert drawn(chart, AVERAGED) > 20
    click_in(picture, 0.5, 0.6)
    keep.click()
    page.locator("[data-testid=stMultiSelect]").get_by_text(re.compile("InversePower")).first.wait_for()
    assert "pins=InversePower" in page.url
    page.get_by_role("radio", name="Weight space").click()
    page.get_by_text(re.compile(r"The plane shows \d+ %")).wait_for()
    settled(page)
    plane = page.locator("[data-testid=stVegaLiteChart]").nth(1)
    for colour in (ORIGINAL, AVERAGED):
        wait_for(lambda colour=colour: drawn(plane, colour) > 100)
    page.get_by_role("radio", name="Family").click()
    page.get_by_text("All figures, and what each costs, as a table").click()
    for scheme in ("SWA", "ensemble of predictions"):
        page.locator("[data-testid=stDataFrame] td").get_by_text(scheme, exact=True).wait_for(state="attached")
    page.get_by_role("radio", name="Atlas").click()
    page.get_by_text(re.compile("^The lowest cell")).wait_for()
    # And the lowest cell goes into a module of one's own.
    best = page.locator("[data-testid=stMarkdownContainer] code", has_text="InversePower(").first.inner_text()
    told = page.get_by_text("The lowest cell,").inner_text()
    run_id = RunStore(server.home).runs()["id"][0]
    trajectory = open_run(RunStore(server.home).recording(run_id))
    module = nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 1)
    )
    trajectory.load_into(module, from_code(best))
    data = load(RunConfig.from_json(json.dumps(trajectory.settings)).data)
    with torch.no_grad():
        loss = float((module.eval()(torch.from_numpy(data.x_val)) - torch.from_numpy(data.y_val)).square().mean())
    assert f"has {loss:.3g}"[:-1] in told


@pytest.mark.long
def test_the_curves_of_a_run_that_trains_grow_by_themselves(server, page):
    page.goto(f"{server.url}/train{ENDLESS}")
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text(re.compile(r"^Epoch [1-9]\d* of at most 100,000")).wait_for(timeout=150_000)
    page.get_by_role("link", name="What if").click()
    page.get_by_role("button", name=re.compile("^As of epoch .* bring up to date")).wait_for(timeout=150_000)
    chart = page.locator("[data-testid=stVegaLiteChart]").first
    before = picture_of(chart)
    wait_for(lambda: picture_of(chart) != before, 90)
    store = RunStore(server.home)
    for run_id in store.runs()["id"]:
        store.request_stop(run_id)


@pytest.mark.long
def test_many_seeds_give_a_verdict_and_a_higher_rate_turns_it(server, page):
    page.goto(f"{server.url}/evidence?seeds=16")
    page.get_by_role("heading", name="Evidence", level=1).wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text(re.compile(r"\d+ of 16 seeds still train")).wait_for(timeout=150_000)
    page.get_by_text(re.compile("16 seeds, .* every seed has ended")).wait_for(timeout=150_000)
    verdict = page.get_by_text(re.compile("^Over 16 seeds, "))
    verdict.wait_for()
    assert "averaging lowers" not in verdict.inner_text()
    page.get_by_text("Asked in other ways").click()
    page.get_by_text(re.compile(r"one run gained 20 %: [\d.]+ % of the 16 seeds gained less")).first.wait_for()
    page.get_by_role("button", name="A higher learning rate").click()
    page.wait_for_url(re.compile("max_epochs=60"))  # a click that comes before it would start the settings of before
    settled(page)
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text(re.compile("16 seeds, 60 epochs, .* every seed has ended")).wait_for(timeout=150_000)
    page.get_by_text(re.compile("^Over 16 seeds, averaging lowers the final loss by")).wait_for()


@pytest.mark.long
def test_a_sweep_shows_where_it_helps_and_a_click_opens_the_cell(server, page):
    page.goto(
        f"{server.url}/where_it_helps?sweep_seeds=8&values_optimizer_learning_rate=0.001,0.01&max_epochs=10&stop_curve=none&rate_rule=constant"
    )
    page.get_by_role("heading", name="Where it helps", level=1).wait_for()
    page.get_by_role("button", name="Start", exact=True).click()
    page.get_by_text(re.compile("cells of 8 seeds, .* every cell has ended")).wait_for(timeout=150_000)
    settled(page)
    picture = page.locator("[data-testid=stVegaLiteChart]").first
    wait_for(lambda: drawn(picture, ORIGINAL) > 1000)  # a decay of 0.9999 is too long for 500 steps
    click_in(picture, 0.85, 0.3)
    page.get_by_text(re.compile(r"Final\. .*(over|from) 8 seeds")).first.wait_for()
    assert "sweep_cell=" in page.url
    page.get_by_role("button", name="Its curves, on the Evidence page").click()
    page.get_by_role("heading", name="Evidence", level=1).wait_for()
    page.get_by_text(re.compile("8 seeds, 10 epochs, .* every seed has ended")).wait_for(timeout=150_000)


def test_pages_have_names_draw_each_curve_in_its_colour_and_in_words_and_ask_no_other_host(server, page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{server.url}/?play=false")
    settled(page)
    for path, title, colours in (
        ("?play=false", "Overview", (ORIGINAL, AVERAGED)),
        ("low_pass_filter?noise=spikes", "Low-pass filter", (ORIGINAL, AVERAGED)),
        ("decay_schedule?quantity=memory&pins=Constant(beta%3D0.99)", "Decay schedule", (AVERAGED, OTHERS[0])),
    ):
        visit(page, path)
        settled(page)
        assert page.title() == f"{title} - Weight-averaging explorer"
        charts = page.locator("[data-testid=stVegaLiteChart]")
        for colour in colours:
            wait_for(lambda charts=charts, colour=colour: drawn(charts.first, colour) > 150)
        described = page.locator(
            "[data-testid=stVegaLiteChart] [aria-label], [data-testid=stVegaLiteChart][aria-label]"
        )
        assert described.count() >= charts.count() > 0
    assert len(asked) > 10
    assert {url for url in asked if not url.startswith((server.url, "data:", "blob:"))} == set()


@pytest.mark.long
def test_a_killed_server_keeps_what_was_trained(tmp_path, page):
    server = Server(tmp_path)
    try:
        page.goto(f"{server.url}/train{ENDLESS}")
        page.get_by_role("button", name="Start", exact=True).click()
        progress = page.get_by_text(re.compile(r"^Epoch [1-9]\d* of at most 100,000"))
        progress.wait_for(timeout=120_000)
        server.kill()
        run_id = RunStore(tmp_path).runs()["id"][0]
        server.start()
        page.goto(f"{server.url}/train?run={run_id}")
        page.get_by_text(re.compile("The run was interrupted after [1-9]")).wait_for()
        assert RunStore(tmp_path).result(run_id).state == "interrupted"
    finally:
        server.stop()


def test_a_link_plants_nothing_into_a_page_and_tells_what_it_cannot_have(server, page):
    planted = "[x](http://evil.example) ![x](http://evil.example/p.png) :material/home: www.evil.example $x$ :red[x]"
    query = f"pins={quote(planted)}&steps=inf&power={quote(planted)}"
    page.goto(f"{server.url}/decay_schedule?{query}")
    settled(page)
    alerts = page.locator("[data-testid=stAlert]")
    said = "\n".join(alerts.all_inner_texts()).replace("\N{WORD JOINER}", "")
    assert f"power = {planted} (0.666666666667 is shown)" in said
    assert "steps = inf (5000 is shown)" in said
    assert f"Left out: not a schedule or window: '{planted}'" in said
    assert alerts.locator("a, img, .katex, .stMarkdownColoredText").count() == 0
    assert page.locator("[href*=evil], [src*=evil]").count() == 0
    page.get_by_role("spinbutton", name="Steps", exact=True).fill("6000")
    page.get_by_role("spinbutton", name="Steps", exact=True).press("Enter")
    page.get_by_text("The average after step 5,999").wait_for()
    page.go_back()  # to the link that asks for endless steps
    settled(page)
    assert page.locator("[data-testid=stException]").count() == 0
