"""Numbers as people read them: one way to write each kind, on pages, in charts, in messages and in the terminal.

Files keep every digit; nothing here is for them.
"""

from __future__ import annotations

import math
import sys

#: :func:`number` for charts, where d3 writes the numbers: significant digits, no exponent, no idle zeros.
IN_CHARTS = ",.4~r"
#: For whole numbers in charts: steps, epochs, seeds.
WHOLE_IN_CHARTS = ",d"

#: Between these no number has an exponent.
_SMALL, _LARGE = 1e-4, 1e15
#: Nearer to 0 what stands beside larger numbers is told to be.
_SMALLEST = 1e-7
#: What is nearer to all than this is so by rounding.
_WHOLE = 1 - 1e-9


def number(value: float, digits: int = 4) -> str:
    """``value`` with the digits that matter: 0.6177, 6,931, 20,000; whole numbers whole, thousands separated.

    Below 0.0001 and from 10^15 on it has an exponent: 2.5e-06.

    Args:
        digits: Significant digits of a number that is not whole.
    """
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return "beyond all bounds"
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "-infinite"
    if value == round(value) and abs(value) < _LARGE:
        return f"{round(value):,}"
    rounded = float(f"{value:.{digits}g}")
    if not _SMALL <= abs(rounded) < _LARGE:
        return f"{rounded:.{digits}g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    text = f"{rounded:,.{places}f}"
    return text.rstrip("0").rstrip(".") if places else text


def bounded(value: float, digits: int = 4) -> str:
    """:func:`number` of what cannot be below 0, with words where it would have an exponent: "less than 0.0001", "more
    than 10^15"."""
    if 0 < value < _SMALL:
        return f"less than {_SMALL:.4f}"
    return "more than 10^15" if _LARGE <= value < math.inf else number(value, digits)


def plain(value: float, digits: int = 4) -> str:
    """:func:`number` without an exponent near 0, for what is looked at beside larger numbers: 0.0000025, and, below
    that, "< 0.0000001"."""
    if value == 0 or not abs(value) < _SMALL:
        return number(value, digits)
    if abs(value) < _SMALLEST:
        return f"< {_SMALLEST:.7f}" if value > 0 else f"> -{_SMALLEST:.7f}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{value:.{places}f}".rstrip("0")


def decay(value: float) -> str:
    """A decay with the digits by which it differs from 1: 0.9 and 0.99998765, not 1.0."""
    distance = abs(1 - value)
    if not 0 < distance < 0.1:
        return number(value)
    return f"{value:.{min(16, 2 - math.floor(math.log10(distance)))}f}".rstrip("0").rstrip(".")


def percent(share: float, digits: int = 3) -> str:
    """A share as "12.3 %"; what is not quite all is not "100 %" but "99.96 %"."""
    text = number(100 * share, digits)
    if not math.isfinite(share):
        return text
    if text.lstrip("-") == "100" and abs(share) < _WHOLE:
        places = max(1, -math.floor(math.log10(100 * (1 - abs(share))) + 1e-9))
        text = f"{100 * share:.{places}f}".rstrip("0")
    return f"{text} %"


def signed_percent(share: float, digits: int = 3) -> str:
    """A gain or loss as "+12.3 %" or "-4 %"; nothing is "0 %"."""
    return f"{'+' if share > 0 else ''}{percent(share, digits)}"


def p_value(p: float) -> str:
    """What follows "p": "= 0.031", or "< 0.0001", beyond which no test of this kind is to be believed."""
    if math.isnan(p):
        return "undefined"
    return "< 0.0001" if p < _SMALL else f"= {number(p, 2)}"


def duration(seconds: float) -> str:
    """A time in the two units that matter: "0.4 s", "12 s", "3 min 5 s", "2 h 10 min"."""
    if not math.isfinite(seconds):
        return "an unknown time"
    if seconds < 10:
        return f"{number(seconds, 2)} s"
    if seconds < 3600 - 0.5:
        return _two_units(round(seconds), 60, "min", "s")
    if seconds < 48 * 3600:
        return _two_units(round(seconds / 60), 60, "h", "min")
    return f"{round(seconds / 86400):,} days"


def _two_units(count: int, size: int, large: str, small: str) -> str:
    whole, rest = divmod(count, size)
    return " ".join(f"{part} {unit}" for part, unit in ((whole, large), (rest, small)) if part)


def compared(value: float, reference: float, lower: str, higher: str) -> str:
    """How a finite number stands beside another, in these words: "12 % below", "equal in four digits to"."""
    if value == reference:
        return "equal to"
    if number(value) == number(reference):
        return "equal in four digits to"
    where = lower if value < reference else higher
    return where if reference == 0 else f"{percent(abs((value - reference) / reference))} {where}"


def in_bytes(count: float) -> str:
    """Bytes as "87 bytes", "293 kB", "12 MB", "3.2 GB", each unit 1,024 of the one before."""
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if count >= 0.9995 * size:
            return f"{number(count / size, 2 if count < 100 * size else 3)} {unit}"
    return counted(round(count), "byte")


def counted(count: float, noun: str, plural: str | None = None, digits: int = 4) -> str:
    """A count with its noun: "1 schedule", "20,000 steps", "0.35 epochs", "less than 0.0001 epochs"."""
    text = bounded(count, digits)
    return f"{text} {noun if text == '1' else plural or noun + 's'}"
