"""What ``emacore`` calls once it is installed: as ``python -m emacore``, and as light as that."""

from __future__ import annotations

import runpy


def main() -> None:
    """Run the command line."""
    runpy.run_module("emacore", run_name="__main__", alter_sys=True)
