"""What ``python -m emacore`` and ``emacore`` call: so light that Ctrl-C can come while the rest is loaded."""

from __future__ import annotations

import os
import sys

# "signal" itself takes as long to load as all else here.
from _signal import SIG_DFL, SIGINT, signal  # type: ignore[import-not-found]


def main() -> None:
    """Run the command line."""
    signal(SIGINT, SIG_DFL)  # until there is something to keep, Ctrl-C just ends it
    stand_in()
    try:
        from emacore.cli.commands import main
    except ImportError as error:
        if "EMACORE_FAMILIES" not in str(error):
            raise
        sys.exit(f"Error: {error}")
    main()


def stand_in() -> None:
    """Open what whoever started this has closed (``>&-``), or a file that is opened later would take its place."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), "r" if name == "stdin" else "w"))  # noqa: PTH123, SIM115
