"""What ``python -m emacore`` and ``emacore`` call: so light that Ctrl-C can come while the rest is loaded."""

from __future__ import annotations

# "signal" itself takes as long to load as all else here.
from _signal import SIG_DFL, SIGINT, signal  # type: ignore[import-not-found]


def main() -> None:
    """Run the command line."""
    signal(SIGINT, SIG_DFL)  # until there is something to keep, Ctrl-C just ends it
    from emacore.cli.commands import main

    main()
