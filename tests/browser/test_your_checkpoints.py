"""What somebody sees of the files that the app was opened with."""

import re
import sys

import pytest

from tests.browser.conftest import Server, place_of, settled
from tests.experiments.opened_folders import small_run
from tests.helpers import wait_for

if sys.platform == "win32":
    pytest.skip("needs a POSIX system", allow_module_level=True)

pytestmark = pytest.mark.browser


def test_the_certificate_of_opened_files_follows_the_pointer_and_the_command_follows_the_handle(tmp_path, page):
    small_run(tmp_path / "my run")
    server = Server(tmp_path / "home", EMACORE_OPEN=str(tmp_path / "my run"))
    try:
        page.goto(f"{server.url}/your_checkpoints?family=Constant&beta=0.9&update_after_step=0&update_every=1")
        handle = page.get_by_role("slider", name="beta")
        handle.wait_for(timeout=240_000)  # a process of its own loads torch first
        settled(page)
        page.get_by_text("6 checkpoints of steps 10 to 60").wait_for()
        certificate = page.locator("[class*=st-key-moving-] svg").get_by_text(re.compile("averages noise as"))
        command = page.locator("[data-testid=stCode]").filter(has_text="emacore merge 'my run'")
        before, said, box = certificate.text_content(), command.inner_text(), place_of(handle)
        page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + box["height"] / 2)
        moved = wait_for(lambda: (now := certificate.text_content()) != before and now)
        assert command.inner_text() == said
        page.mouse.up()
        wait_for(lambda: command.inner_text() != said)
        settled(page)
        assert certificate.text_content() == moved
        beta = re.search(r"beta=([\d.]+)", page.url)[1]
        assert f"Constant(beta={beta}" in command.inner_text()
        steps = re.search(r"as ([\d.]+) steps", moved)[1]
        assert page.get_by_text(f"as the mean of {steps} steps does").count()
        assert str(tmp_path) not in page.content()
    finally:
        server.stop()
