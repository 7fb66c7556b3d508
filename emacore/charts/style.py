"""One colour each, on every page: the same in light and dark, and told apart by colour-blind readers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle

ORIGINAL = "#E8790C"  # orange: the trained weights, or a noisy sequence
AVERAGED = "#3B82D6"  # blue: their average
CLEAN = "#8A8F98"  # grey: what is under the noise, or a reference
CHOSEN = "#D6246E"  # crimson: what was clicked on a map
#: The colours of the page behind them, as .streamlit/config.toml sets them.
LIGHT_PAGE, DARK_PAGE = "#FFFFFF", "#12161D"
#: The rest of the palette, for other schemes; after Okabe and Ito, 2008, with the lightest ones darkened.
OTHERS = ("#009E73", "#CC79A7", "#B08900", "#7A5FC0", "#A65628")
#: A dash pattern for each of these, so that colour is not the only difference.
DASHES = {
    colour: list(pattern)
    for colour, pattern in zip(
        (*OTHERS, CHOSEN), ((6, 2), (2, 2), (8, 2, 2, 2), (4, 4), (10, 3), (12, 3, 2, 3)), strict=True
    )
}


def palette(names: Iterable[str], fixed: dict[str, str] | None = None) -> dict[str, str]:
    """A colour for each name: the fixed ones, and for up to six others one that no other name has, in their order."""
    own = fixed or {}
    rest = cycle([colour for colour in (*OTHERS, CHOSEN) if colour not in own.values()])
    return {name: own.get(name) or next(rest) for name in names}


def mixed(colour: str, page: str, share: float) -> str:
    """What one sees of a colour that covers ``share`` (0 to 1) of the page behind it; colours are "#RRGGBB"."""
    parts = zip(_parts(colour), _parts(page), strict=True)
    return "#" + "".join(f"{round(share * front + (1 - share) * behind):02X}" for front, behind in parts)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, "#RRGGBB": from 1 to 21.

    Source: WCAG 2.2, "contrast ratio" and "relative luminance", https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio.
    """
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def readable(letters: Iterable[str], on: str) -> str:
    """The one of the colours ``letters`` that stands out most ``on`` a colour."""
    return max(letters, key=lambda colour: contrast(colour, on))


def _luminance(colour: str) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in _parts(colour, 255)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _parts(colour: str, of: float = 1) -> list[float]:
    return [int(colour[place : place + 2], 16) / of for place in (1, 3, 5)]
