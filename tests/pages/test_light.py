"""What the first page needs not load: it is what one waits for when the server has just started."""

import os
import subprocess
import sys

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
