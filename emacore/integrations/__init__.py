"""Averages in other people's training loops; each module imports its library, so import the one that is used.

``emacore.integrations.lightning``, ``emacore.integrations.transformers``, ``emacore.integrations.accelerate``.
"""
