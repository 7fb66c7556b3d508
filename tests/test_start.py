import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.skipif(os.name != "posix", reason="a shell of POSIX")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_what_is_closed_is_printed_to_by_nobody(tmp_path, closed):
    """Neither is it the end of the command, nor does a file that is opened later take its place."""
    command = f'"{sys.executable}" -m emacore schedule "Constant(beta=0.9)" --steps 5 -o "$1/kept.csv" {closed}'
    command += f' && "{sys.executable}" -m emacore schedule "Constant(beta=0.9)" --steps 5 {closed}'
    result = subprocess.run(["sh", "-c", command, "sh", tmp_path], capture_output=True, text=True, check=False)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr[-1000:]
    lines = (tmp_path / "kept.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == ("step,decay,weight", 6)


#: How far the loading has come: the package's first line, and modules between that and the first epoch.
LOADED = ("emacore", "numpy", "click", "emacore.averaging.smoothing", "emacore.cli.options", "pandas", "torch")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("number", "loaded"),
    [*((signal.SIGINT, module) for module in LOADED), (signal.SIGTERM, "numpy"), (signal.SIGHUP, "numpy")],
)
def test_a_signal_while_all_is_still_loaded_ends_it_without_a_traceback(tmp_path, number, loaded):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "emacore", "train", "--set", "max_epochs=100000"],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"EMACORE_HOME": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    said = _said_until(process.stderr, loaded.encode())
    process.send_signal(number)
    said += process.communicate(timeout=60)[1]
    assert said
    assert process.returncode in (-number, 128 + number)  # a shell gives 128 + number for both
    assert b"Traceback" not in said, said[-2000:]


def _said_until(lines, module):
    """The lines that tell of imports, up to that of a module."""
    said = b""
    for line in iter(lines.readline, b""):
        said += line
        if line.split(b"|")[-1].strip() == module:
            break
    return said
