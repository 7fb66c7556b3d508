import subprocess
import sys

CODE = """
import signal, sys
from emacore.start import main

sys.argv = ["emacore", "--version"]
try:
    main()
finally:
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "no traceback of what is imported in the first second"
"""


def test_it_is_the_command_line_and_ctrl_c_just_ends_it():
    result = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("emacore, version ")
