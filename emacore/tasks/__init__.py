"""What is trained: data, a network, a loss and metrics, a task each.

Every module in here is a task, and importing it imports its settings only; no torch.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from emacore.training.config import TaskConfig

if TYPE_CHECKING:
    from emacore.replay.trajectory import Trajectory

# Settings are read back by the task that they name, so all tasks have to be known first.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def open_run(folder: str | Path, epochs: int | None = None) -> Trajectory:
    """The recording of a run of :func:`emacore.train`, measured as the run was: on its validation rows.

    Args:
        epochs: Only so many of its first epochs; by default all that are whole.

    Raises:
        RecordingError: if there is none, or it is damaged.
        ValueError: if it has not so many epochs, or is of another loop, which does not say how its networks are
            measured.
    """
    from emacore.replay.recording import RecordingError, read_recording
    from emacore.replay.trajectory import Trajectory
    from emacore.tables import KEPT
    from emacore.training.task import ValidationMeasure

    rows = read_recording(folder, epochs)
    KEPT.add(Path(folder).resolve().parent.parent / "tables")  # where a store keeps the table of a run that it recorded
    if rows.settings is None:
        raise ValueError(
            "only runs of emacore.train say how they are measured: open others by Trajectory.open(folder, measure=...)"
        )
    try:
        config = TaskConfig.from_json(json.dumps(rows.settings))
    except ValueError as error:
        raise RecordingError(
            f"the settings of the recording in {folder} cannot be read: {error}; one of another loop opens by "
            "Trajectory.open(folder, measure=...)"
        ) from error
    return Trajectory(rows, ValidationMeasure(config))
