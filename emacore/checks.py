"""What constructors ask of their settings: each check raises an error that names the setting and the value.

It is a ``ValueError`` where nothing else is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

#: What a setting without natural bounds may be.  Powers and quotients of such numbers are still finite.
SMALLEST, LARGEST = 1e-100, 1e100


def check_whole(name: str, value: object, minimum: int, maximum: int | None = None) -> None:
    """Raise unless ``value`` is a whole number from ``minimum`` to ``maximum``, if there is one."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, got {shown(value)}")
    if maximum is not None and value > maximum:
        told = f"{value:,}" if value < 10**20 else shown(value)
        raise ValueError(f"{name} must be a whole number from {minimum:,} to {maximum:,}, got {told}")


def check_unit(name: str, value: object) -> None:
    """Raise unless ``value`` is in [0, 1]."""
    if not (is_real(value) and 0 <= value <= 1):  # type: ignore[operator]
        raise ValueError(f"{name} must be in [0, 1], got {shown(value)}")


def check_positive(name: str, value: object) -> None:
    """Raise unless ``value`` is a number above 0, and neither tiny nor huge beyond all use."""
    if not (is_real(value) and 0 < value < math.inf):  # type: ignore[operator]
        raise ValueError(f"{name} must be a finite number above 0, got {shown(value)}")
    # Half precision knows neither bound, and a float no whole number beyond 1e308.
    if not SMALLEST <= (value if isinstance(value, int) else float(value)) <= LARGEST:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be from {SMALLEST:g} to {LARGEST:g}, got {shown(value)}")


def check_at_least_zero(name: str, value: object) -> None:
    """Raise unless ``value`` is a finite number of at least 0."""
    if not (is_real(value) and 0 <= value < math.inf):  # type: ignore[operator]
        raise ValueError(f"{name} must be a finite number of at least 0, got {shown(value)}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {shown(value)}")


def check_named(name: str, value: object) -> None:
    """Raise ``TypeError`` unless ``value`` is a mapping, of schedules by the names of their averages."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be given by name, such as {{'slow': Constant(beta=0.999)}}, got {value!r}")


def is_real(value: object) -> bool:
    """Whether ``value`` is a number, and no truth value."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def numbers(name: str, values: object) -> list[float]:
    """A list, tuple, set or array of numbers, or one alone, as a list of Python's own.

    Raises:
        ValueError: for anything else.
    """
    found = [values] if is_real(values) else list(values) if isinstance(values, Iterable) else [None]
    if isinstance(values, (str, bytes)) or not all(map(is_real, found)):
        raise ValueError(f"{name} must be a list of numbers, such as [0.05, 0.1], got {values!r}")
    return [plain(value) for value in found]


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's own, also in a tuple: narrow ones overflow, and neither JSON nor code has any."""
    if isinstance(value, (np.integer, np.floating)):
        return int(value) if isinstance(value, np.integer) else float(value)
    return tuple(map(plain, value)) if type(value) is tuple else value


def keep_plain(settings: Any) -> None:
    """Have a frozen dataclass, and those in it, keep Python's own numbers in place of NumPy's."""
    for name, value in getattr(settings, "__dict__", {}).items():
        if isinstance(value, (np.generic, tuple)):
            object.__setattr__(settings, name, plain(value))
        elif hasattr(value, "__dataclass_fields__") and not isinstance(value, type):
            keep_plain(value)


def shown(value: object) -> str:
    """A refused value as a message has it; Python itself refuses to write whole numbers of very many digits."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"a whole number of {value.bit_length():,} bits"
    return repr(value)
