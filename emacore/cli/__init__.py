"""What the commands of :mod:`emacore.cli.commands` are made of: their options, and how they behave in a terminal."""
