"""The article's regression."""

from emacore.tasks.regression.config import RunConfig as RunConfig
