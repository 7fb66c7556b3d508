"""What the commands of :mod:`emacore.__main__` are made of: their options, and how they behave in a terminal."""
