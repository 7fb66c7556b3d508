"""Files of weights that others wrote: what is in them, merges of them, and what their averages really did."""

from emacore.checkpoints.diagnosis import diagnose as diagnose
from emacore.checkpoints.reading import Checkpoint as Checkpoint
from emacore.checkpoints.reading import Checkpoints as Checkpoints
from emacore.checkpoints.reading import open_checkpoints as open_checkpoints
from emacore.checkpoints.stored import CheckpointError as CheckpointError
