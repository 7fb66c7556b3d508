"""What the integrations share: several averages of one module, moved, swapped in and saved together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from emacore.averaging.schedules import Schedule, check_schedule
from emacore.checks import check_choice, check_named
from emacore.ema import EMA
from emacore.tensors.pairing import listed

#: What is validated: the training weights, the first average in their place, or both beside each other.
Validate = Literal["average", "original", "both"]

_SNAPSHOTS = "snapshots"
_PARTS = "averages"


class Tracker(Protocol):
    """What follows a run beside its averages and can go on with it: :class:`emacore.Snapshots`, or another."""

    def update(self) -> None: ...
    def close(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


#: Called with the module that trains and ``resume=``, which is true where :meth:`Tracker.load_state_dict` comes next:
#: ``functools.partial(Snapshots, folder="snapshots", every=1000)``.
MakeTracker = Callable[..., Tracker]


class Several:
    """Averages of one module by name, each an :class:`emacore.EMA`; the first is the one that is kept in the end.

    Args:
        module: What trains.
        schedules: As :func:`named` gives them.
        feed_back: ``"epoch"``, or after so many calls: the first average is written into the model.
        options: Of :class:`emacore.EMA`.
        snapshots: What makes a tracker: see :data:`MakeTracker`.  It is made by :meth:`load_state_dict`, or else by
            :meth:`begin` or the first call of :meth:`update`.

    Raises:
        ValueError: if an average has the name under which the state of the snapshots is kept.
    """

    def __init__(
        self,
        module: nn.Module,
        schedules: Mapping[str, Schedule],
        feed_back: int | str | None,
        options: dict[str, Any],
        snapshots: MakeTracker | None = None,
    ) -> None:
        if snapshots is not None and _SNAPSHOTS in schedules:
            raise ValueError(f"an average beside snapshots cannot be called {_SNAPSHOTS!r}: choose another name")
        self._module, self._make = module, snapshots
        self.snapshots: Tracker | None = None
        self.main = next(iter(schedules))
        every = feed_back if isinstance(feed_back, int) else None
        self.emas = {
            name: EMA(
                module,
                schedule=schedule,
                include_online_model=False,
                update_model_with_ema_every=every if name == self.main else None,
                **options,
            )
            for name, schedule in schedules.items()
        }
        self.inside: str | None = None

    def begin(self) -> None:
        """Have the snapshots of a run that begins, unless they are there."""
        if self._make is not None and self.snapshots is None:
            self.snapshots = self._make(self._module, resume=False)

    def update(self) -> None:
        """Take one call of each schedule; the first average last, because it may change the model."""
        self.begin()
        if self.snapshots is not None:
            self.snapshots.update()
        for name, ema in self.emas.items():
            if name != self.main:
                ema.update()
        self.emas[self.main].update()

    @contextmanager
    def swapped(self, name: str | None = None) -> Iterator[None]:
        """Put an average into the model, by default the first; inside another such block, leave what is there."""
        if self.inside is not None:
            yield
            return
        chosen = self.main if name is None else name
        if chosen not in self.emas:
            raise KeyError(f"there is no average {chosen!r}; there are {listed(self.emas)}")
        # Frameworks validate in inference mode, whose tensors no later step could change.
        with torch.inference_mode(False), torch.no_grad():
            block = self.emas[chosen].average_parameters()
            block.__enter__()
        self.inside = chosen
        try:
            yield
        finally:
            self.inside = None
            with torch.inference_mode(False), torch.no_grad():
                block.__exit__(None, None, None)

    def close(self) -> None:
        """Write what the snapshots have not written yet."""
        if self.snapshots is not None:
            self.snapshots.close()

    def state_dict(self) -> dict[str, Any]:
        """All that the averages and the snapshots need to go on, without the weights of the model."""
        self.begin()
        state: dict[str, Any] = {name: ema.state_dict() for name, ema in self.emas.items()}
        if self.snapshots is not None:
            state[_SNAPSHOTS] = self.snapshots.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken.

        Raises:
            ValueError: if it is of averages of other names.
        """
        self._load_averages(state)
        self._load_snapshots(state)

    def _load_averages(self, state: Mapping[str, Any]) -> None:
        averages = {name: one for name, one in state.items() if name != _SNAPSHOTS or name in self.emas}
        if set(averages) != set(self.emas):
            raise ValueError(f"the state is of the averages {listed(averages)}, these are {listed(self.emas)}")
        for name, ema in self.emas.items():
            ema.load_state_dict(dict(averages[name]))

    def _load_snapshots(self, state: Mapping[str, Any]) -> None:
        kept = None if _SNAPSHOTS in self.emas else state.get(_SNAPSHOTS)
        if self._make is None:
            if kept is not None:
                warnings.warn(
                    "the run was saved with snapshots, and goes on without: give them to keep on", stacklevel=3
                )
        elif kept is None:
            warnings.warn(
                "the run was saved without snapshots: they begin now, and count their steps from here", stacklevel=3
            )
            self.begin()
        else:
            if self.snapshots is None:
                self.snapshots = self._make(self._module, resume=True)
            self.snapshots.load_state_dict(kept)

    def save_parts(self, folder: Path) -> None:
        """Have each process of a sharded module write its part of the state, by ``torch.distributed.checkpoint``."""
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        save({_PARTS: self.state_dict()}, storage_writer=FileSystemWriter(folder, overwrite=True))

    def load_parts(self, folder: Path, *, snapshots: bool = True) -> None:
        """Go on where :meth:`save_parts` was called, in any number of processes.

        Args:
            snapshots: Whether the snapshots go on from there, too.

        Raises:
            FileNotFoundError: if nothing was saved there.
            ValueError: if it holds no averages of some of the names.
        """
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load

        if not (folder / ".metadata").exists():
            raise FileNotFoundError(f"{folder} holds no averages of a sharded model: the run was saved without them")
        found = FileSystemReader(folder).read_metadata().state_dict_metadata
        state: dict[str, Any] = {name: ema.state_dict() for name, ema in self.emas.items()}
        lacking = [name for name in state if f"{_PARTS}.{name}.step" not in found]
        if lacking:
            raise ValueError(f"{folder} holds no averages {listed(lacking)}, these are {listed(state)}")
        kept = any(key.startswith(f"{_PARTS}.{_SNAPSHOTS}.") for key in found) and _SNAPSHOTS not in state
        if kept and snapshots:
            state[_SNAPSHOTS] = {}
            if self._make is not None:
                self.snapshots = self.snapshots or self._make(self._module, resume=True)
                state[_SNAPSHOTS] = self.snapshots.state_dict()
        load({_PARTS: state}, checkpoint_id=folder)
        self._load_averages(state)
        if snapshots:
            self._load_snapshots(state)


def named(schedule: Schedule | Mapping[str, Schedule]) -> dict[str, Schedule]:
    """Schedules by the names of their averages; one alone is called "average".

    Raises:
        ValueError: if there is none.
        TypeError: for what is no schedule.
    """
    if not isinstance(schedule, Schedule):
        check_named("schedule", schedule)
    found = {"average": schedule} if isinstance(schedule, Schedule) else dict(schedule)
    if not found:
        raise ValueError("schedule must name at least one schedule")
    for name, one in found.items():
        check_schedule(f"schedule: {name!r}", one)
    return found


def check_settings(validate: str, at_end: str, feed_back: int | str | None, options: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a setting that the integrations do not know."""
    check_choice("validate", validate, ("average", "original", "both"))
    check_choice("at_end", at_end, ("average", "original"))
    if isinstance(feed_back, str):
        check_choice("feed_back", feed_back, ("epoch",))
    for name in options.keys() & {"schedule", "include_online_model", "ema_model", "update_model_with_ema_every"}:
        raise ValueError(f"{name} is set by the integration; give a schedule, and feed_back to write averages back")
