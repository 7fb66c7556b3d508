"""Settings of averages as attributes that may be assigned in the middle of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, replace
from typing import Any

from emacore.checks import check_choice, check_unit, check_whole, plain
from emacore.tensors.pairing import as_names, listed, slots, ties


class ScheduleSetting:
    """A setting of the schedule as an attribute of the average, as the article's class has them."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, ema: Any, owner: type) -> Any:
        if ema is None:
            return self
        self.check(ema)
        return getattr(ema.schedule, self._name)

    def __set__(self, ema: Any, value: Any) -> None:
        self.check(ema)
        ema.schedule = replace(ema.schedule, **{self._name: value})

    def check(self, ema: Any) -> None:
        """Raise ``AttributeError`` if the schedule has no such setting."""
        if self._name not in {field.name for field in fields(ema.schedule)}:
            raise AttributeError(f"the schedule {ema.schedule!r} has no setting {self._name}: replace ema.schedule")


class Names:
    """Names of tensors as an attribute of the average: checked, and followed from the next call on.

    Args:
        rule: Which attribute of the average's rules they are.
        starts: Whether names that begin so are meant.
    """

    def __init__(self, rule: str, *, starts: bool = False) -> None:
        self._rule, self._starts = rule, starts

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, ema: Any, owner: type) -> Any:
        return self if ema is None else getattr(ema._rules, self._rule)

    def __set__(self, ema: Any, names: Collection[str]) -> None:
        chosen = as_names(self._name, names)
        known = set(ties(ema.ema_model)) | slots(ema.ema_model)
        for name in sorted(chosen):
            if self._starts and not any(other.startswith(name) for other in known):
                raise ValueError(f"{self._name}: no tensor of the model starts with {name!r}; it has {listed(known)}")
            if not self._starts and name not in known:
                raise ValueError(f"{self._name}: the model has no tensor {name!r}; it has {listed(known)}")
        setattr(ema._rules, self._rule, chosen)
        ema._now.forget_plan()


class OnNonfinite:
    """What becomes of a call where a weight is not finite: ``"take"``, ``"skip"`` or ``"raise"``.

    Args:
        changed: Called with the average when another one is assigned.
    """

    def __init__(self, changed: Callable[[Any], None] | None = None) -> None:
        self._changed = changed

    def __get__(self, average: Any, owner: type) -> Any:
        return self if average is None else average._on_nonfinite

    def __set__(self, average: Any, choice: str) -> None:
        check_choice("on_nonfinite", choice, ("take", "skip", "raise"))
        average._on_nonfinite = choice
        if self._changed is not None:
            self._changed(average)


class Followed:
    """A setting as an attribute that is checked where it is assigned, and followed from the next call on.

    Args:
        checked: Returns what is kept of a value, given the average, the attribute's name and the value, or raises.
    """

    def __init__(self, checked: Callable[[Any, str, Any], Any]) -> None:
        self._checked = checked

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, average: Any, owner: type) -> Any:
        return self if average is None else average.__dict__[self._name]

    def __set__(self, average: Any, value: Any) -> None:
        average.__dict__[self._name] = self._checked(average, self._name, value)
        average._now.move = None  # which knows nothing of it


def checked_every(average: Any, name: str, value: Any) -> int | None:
    """So many calls, or ``None`` for never."""
    if value is not None:
        check_whole(name, value, 1)
    return plain(value)  # type: ignore[no-any-return]


def checked_share(average: Any, name: str, value: Any) -> float:
    """A share from 0 to 1."""
    check_unit(name, value)
    return plain(value)  # type: ignore[no-any-return]


def checked_methods(average: Any, name: str, value: Any) -> frozenset[str]:
    """Names of methods that the shadow has."""
    names = as_names(name, value)
    if missing := [one for one in names if not callable(getattr(average.ema_model, one, None))]:
        raise ValueError(f"{name}: {type(average.ema_model).__name__} has no method {listed(missing)}")
    return names
