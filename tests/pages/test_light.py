"""What the first page needs not load: it is what one waits for when the server has just started."""

import json
import os
import subprocess
import sys

from emacore import courtesy, memory
from tests.pages.conftest import APP

CODE = """
import json, sys
from streamlit.delta_generator import DeltaGenerator
from streamlit.testing.v1 import AppTest
drawn, before = [], {}
class Noting:
    def find_spec(name, path=None, target=None):
        before.setdefault(name, list(drawn))
enqueue = DeltaGenerator._enqueue
def noting(self, kind, *arguments, **further):
    drawn.append(kind)
    return enqueue(self, kind, *arguments, **further)
DeltaGenerator._enqueue = noting
sys.meta_path.insert(0, Noting)
app = AppTest.from_file(sys.argv[1], default_timeout=120).run()
assert not app.exception, app.exception
print(json.dumps({"loaded": list(sys.modules), "drawn before": before}))
"""
#: What takes half of the time of a first page.
SLOW = ("pandas", "pyarrow", "altair")
HEAVY = ("torch", "sklearn", "scipy.stats", "scipy.signal", "scipy.optimize", "scipy.linalg")


def test_the_first_page_loads_nothing_that_it_does_not_show_and_draws_last_what_takes_long_to_load(tmp_path):
    environment = os.environ | {"EMACORE_HOME": str(tmp_path), "EMACORE_EXAMPLE": "0"}
    command = [sys.executable, "-c", CODE, str(APP)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=APP.parent, check=True)
    noted = json.loads(result.stdout.splitlines()[-1])
    assert not set(HEAVY) & set(noted["loaded"])
    for slow in SLOW:  # the title, the handles' values, and what the page says in numbers
        drawn = noted["drawn before"][slow]
        assert drawn.count("heading") == 2, (slow, drawn)
        assert drawn.count("number_input") == 3, (slow, drawn)
        assert drawn.count("metric") == 2, (slow, drawn)


def test_who_waits_for_a_page_goes_first_and_what_it_leaves_is_tidied(open_page, monkeypatch):
    done = []
    monkeypatch.setattr(memory, "give_back", lambda: done.append("memory is given back"))
    monkeypatch.setattr(memory, "settle", lambda: done.append("what is loaded is left alone"))
    monkeypatch.setattr(courtesy, "LISTENERS", {done.append})
    open_page("overview")
    assert done == ["memory is given back", True, False, "what is loaded is left alone"]
