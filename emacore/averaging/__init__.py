"""The mathematics of averaging: schedules of decays, what they weigh, and what they filter.

Everything here is NumPy and SciPy; nothing imports torch.
"""

import os
from importlib import import_module

from emacore.averaging import families as families

# A person's own families: the modules that register them, with commas.
for _module in filter(None, os.environ.get("EMACORE_FAMILIES", "").split(",")):
    try:
        import_module(_module.strip())
    except ModuleNotFoundError as error:
        if error.name != _module.strip().partition(".")[0]:
            raise  # one that it imports itself
        raise ImportError(
            f"EMACORE_FAMILIES names the module {_module.strip()!r}, which is not on the Python path: set PYTHONPATH "
            "to its folder"
        ) from error
