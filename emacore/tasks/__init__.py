"""What is trained: data, a network, a loss and metrics, a task each.

Every module in here is a task, and importing it imports its settings only; no torch.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

# Settings are read back by the task that they name, so all tasks have to be known first.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
