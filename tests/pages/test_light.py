"""What the first page needs not load: it is what one waits for when the server has just started."""

import os
import subprocess
import sys

from emacore import courtesy, memory
from tests.pages.conftest import APP

CODE = """
import sys
from streamlit.testing.v1 import AppTest
app = AppTest.from_file(sys.argv[1], default_timeout=120).run()
assert not app.exception, app.exception
print(*sys.modules)
"""
HEAVY = ("torch", "sklearn", "scipy.stats", "scipy.signal", "scipy.optimize", "scipy.linalg")


def test_the_first_page_loads_nothing_that_it_does_not_show(tmp_path):
    environment = os.environ | {"EMACORE_HOME": str(tmp_path), "EMACORE_EXAMPLE": "0"}
    command = [sys.executable, "-c", CODE, str(APP)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=APP.parent, check=True)
    assert not set(HEAVY) & set(result.stdout.split())


def test_who_waits_for_a_page_goes_first_and_what_it_leaves_is_tidied(open_page, monkeypatch):
    done = []
    monkeypatch.setattr(memory, "give_back", lambda: done.append("memory is given back"))
    monkeypatch.setattr(memory, "settle", lambda: done.append("what is loaded is left alone"))
    monkeypatch.setattr(courtesy, "LISTENERS", {done.append})
    open_page("overview")
    assert done == ["memory is given back", True, False, "what is loaded is left alone"]
