"""Schedules, windows and merges as text, both ways: ``Constant(beta=0.99)``, ``Window(size=100)``."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any, TypeVar

from emacore.averaging.coefficients import Coefficients, LastFiles, Merge, RateDecay
from emacore.averaging.schedules import Schedule, built_schedule, changed_settings
from emacore.averaging.windows import Scheme, Window

R = TypeVar("R")
_WINDOW = ("size", "schedule")


def to_code(schedule: Schedule) -> str:
    """The schedule as a Python expression that leaves defaults out, such as ``Constant(beta=0.99)``."""
    settings = (f"{name}={value!r}" for name, value in changed_settings(schedule).items())
    return f"{type(schedule).__name__}({', '.join(settings)})"


def scheme_to_code(scheme: Scheme) -> str:
    """A scheme as a Python expression, such as ``Window(size=100)``."""
    if isinstance(scheme, Schedule):
        return to_code(scheme)
    within = "" if scheme.schedule is None else f", schedule={to_code(scheme.schedule)}"
    return f"Window(size={scheme.size}{within})"


def from_code(text: str) -> Schedule:
    """The schedule that :func:`to_code` wrote; only names and plain values are read, nothing is run.

    Raises:
        ValueError: if it is anything else, a window included.
    """
    scheme = _read(text, "schedule", _scheme)
    if isinstance(scheme, Window):
        raise ValueError(  # noqa: TRY004  of a text that is wrong
            f"not a schedule: {text!r} (a window has no decays, so no average moves by it: what was recorded can be "
            "replayed with it)"
        )
    return scheme


def scheme_from_code(text: str) -> Scheme:
    """The scheme that :func:`scheme_to_code` wrote; nothing is run.  A window's settings may stand without names.

    Raises:
        ValueError: if it is anything else.
    """
    return _read(text, "schedule or window", _scheme)


def merge_to_code(merge: Merge) -> str:
    """What a merge is asked for as a Python expression, such as ``RateDecay(shape='cosine')``."""
    match merge:
        case LastFiles():
            within = "" if merge.schedule is None else f", schedule={to_code(merge.schedule)}"
            return f"Window(files={merge.files}{within})"
        case RateDecay():
            steps = "" if merge.steps is None else f", steps={merge.steps}"
            return f"RateDecay(shape={merge.shape!r}{steps})"
        case Coefficients():
            return f"Coefficients({', '.join(map(repr, merge.values))})"
        case _:
            return scheme_to_code(merge)


def merge_from_code(text: str) -> Merge:
    """What :func:`merge_to_code` wrote; nothing is run.

    Besides schedules and windows of steps there are ``Window(files=10)``, which counts files,
    ``RateDecay(shape='1-sqrt', steps=10000)`` and ``Coefficients(-0.5, 1.5)``, those of the last files.

    Raises:
        ValueError: if it is anything else.
    """
    return _read(text, "schedule, window, RateDecay or Coefficients", _merge)


def _merge(call: ast.expr) -> Merge:
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
        if call.func.id == "Coefficients":
            if call.keywords:
                raise ValueError("Coefficients takes numbers without names")
            return Coefficients(tuple(_constant(value) for value in call.args))
        if call.func.id == "RateDecay":
            settings = _settings(call, ("shape", "steps"))
            return RateDecay(**_known("RateDecay", settings, ("shape", "steps")))
        if call.func.id == "Window" and any(keyword.arg == "files" for keyword in call.keywords):
            return LastFiles(**_known("Window", _settings(call), ("files", "schedule")))
    return _scheme(call)


def _known(name: str, settings: dict[str, ast.expr], known: tuple[str, ...]) -> dict[str, Any]:
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"{name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    return {key: _value(value) for key, value in settings.items()}


def _read(text: str, wanted: str, read: Callable[[ast.expr], R]) -> R:
    try:
        return read(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a {wanted}: {text!r} ({error})") from error


def _scheme(call: ast.expr) -> Scheme:
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError("not of the form Family(name=value, ...)")  # noqa: TRY004
    if call.func.id == "Window":
        return _window(_settings(call, _WINDOW))
    values = {name: _constant(value) for name, value in _settings(call).items()}
    return built_schedule(call.func.id, values)


def _window(settings: dict[str, ast.expr]) -> Window:
    values = _known("Window", settings, _WINDOW)
    if "size" not in values:
        raise ValueError("a window needs its size, as in Window(size=100)")
    return Window(**values)


def _value(node: ast.expr) -> Any:
    return _scheme(node) if isinstance(node, ast.Call) else _constant(node)


def _constant(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError) as error:
        raise ValueError(f"{ast.unparse(node)!r} is no number or text as it stands") from error


def _settings(call: ast.Call, positional: tuple[str, ...] = ()) -> dict[str, ast.expr]:
    """What a call sets, by name; its unnamed values are those of ``positional``."""
    if len(call.args) > len(positional):
        raise ValueError("not of the form Family(name=value, ...)")
    settings = dict(zip(positional, call.args, strict=False))
    for keyword in call.keywords:
        name = keyword.arg
        if name is None:
            raise ValueError("** is not read: write each setting as name=value")
        if name in settings:
            raise ValueError(f"{name} is given twice")
        settings[name] = keyword.value
    return settings
