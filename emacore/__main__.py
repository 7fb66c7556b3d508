"""``python -m emacore``, or ``emacore`` once installed: the command line of :mod:`emacore.cli.commands`."""

from emacore.start import main

if __name__ == "__main__":
    main()
