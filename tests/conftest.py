import os

from hypothesis import settings

# A busy machine is no failure; and the gate should judge a change, not the luck of its draw.
settings.register_profile("house", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("house")

# No test trains what it did not ask for, nor do the servers that tests start; those of the example say otherwise.
os.environ["EMACORE_EXAMPLE"] = "0"
