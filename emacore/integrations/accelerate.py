"""Averages in a loop with accelerate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from emacore.averaging.schedules import Schedule
from emacore.ema import EMA
from emacore.integrations.several import MakeTracker, Several, check_settings, named
from emacore.tensors.sharded import is_sharded
from emacore.tensors.steps import after_each_step

#: How many there have been by their accelerator, for the names of their files.
_numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class Averaging:
    """Keeps averages of a model that ``accelerator.prepare`` has given, one call of the schedule for each real step.

    Batches whose gradients are only accumulated, and steps that AMP skips, are no calls.  ``accelerator.save_state``
    and ``load_state`` keep the averages with all the rest.  Where accelerate shards the model by FSDP2, all processes
    make the same calls, and each saves its part: in a folder beside what accelerate writes, from which another number
    of processes can go on.

    Args:
        accelerator: The ``accelerate.Accelerator``.
        model, optimizer: As ``prepare`` returns them.
        schedule: A schedule, or several by the names of their averages; the first is the one that is saved.
        feed_back: The model becomes its first average after so many steps.
        snapshots: Makes :class:`emacore.Snapshots` of the model, ``functools.partial(Snapshots, folder="snapshots",
            every=1000)`` for instance; they take the same steps, and are saved and go on with the averages.
        options: Of :class:`emacore.EMA`: ``trainable_only=True``, ``names``, ``device``, ...

    Attributes:
        averages: The averages by name, each an :class:`emacore.EMA`.

    Raises:
        TypeError: for a model sharded by FSDP1: see ``fsdp_version=2`` of accelerate's plugin.

    Example::

        model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
        averaging = Averaging(accelerator, model, optimizer, PowerFunction(sigma_rel=0.1))
        ...
        with averaging.swapped():
            validate(model)
        averaging.save_model("averaged")
    """

    def __init__(
        self,
        accelerator: Any,
        model: Any,
        optimizer: Any,
        schedule: Schedule | Mapping[str, Schedule],
        *,
        feed_back: int | None = None,
        snapshots: MakeTracker | None = None,
        **options: Any,
    ) -> None:
        check_settings("average", "average", feed_back, options)
        plain = accelerator.unwrap_model(model)
        self._accelerator, self._model = accelerator, model
        self._several = Several(plain, named(schedule), feed_back, options, snapshots)
        after_each_step(optimizer, plain, self._several.update)
        self._is_sharded = any(map(is_sharded, plain.parameters()))
        if self._is_sharded:
            number = _numbers[accelerator] = _numbers.get(accelerator, -1) + 1
            parts = f"averages_{number}"
            accelerator.register_save_state_pre_hook(lambda _, __, to: self._several.save_parts(Path(to) / parts))
            accelerator.register_load_state_pre_hook(lambda _, found: self._several.load_parts(Path(found) / parts))
        else:
            accelerator.register_for_checkpointing(self)

    @property
    def averages(self) -> Mapping[str, EMA]:
        return self._several.emas

    @contextmanager
    def swapped(self, name: str | None = None) -> Iterator[None]:
        """Put an average, by default the first, into the model for the time of a ``with`` block."""
        with self._several.swapped(name):
            yield

    def save_model(self, folder: str | Path, name: str | None = None) -> None:
        """Write an average as the plain model: by its own ``save_pretrained``, or else ``accelerator.save_model``."""
        with self.swapped(name):
            plain = self._accelerator.unwrap_model(self._model)
            if hasattr(plain, "save_pretrained"):
                whole = {"state_dict": self._accelerator.get_state_dict(self._model)} if self._is_sharded else {}
                plain.save_pretrained(folder, is_main_process=self._accelerator.is_main_process, **whole)
            else:
                self._accelerator.save_model(self._model, folder)

    def close(self) -> None:
        """After the training: have the snapshots write what they have averaged since their last file."""
        self._several.close()

    def state_dict(self) -> dict[str, Any]:
        """All averages, and the snapshots; ``accelerator.save_state`` asks for it, unless the model is sharded."""
        return self._several.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; ``accelerator.load_state`` calls it."""
        self._several.load_state_dict(state)
