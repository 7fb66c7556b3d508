"""One colour each, on every page: the same in light and dark, and told apart by colour-blind readers."""

from __future__ import annotations

from collections.abc import Iterable

ORIGINAL = "#E8790C"  # orange: the trained weights, or a noisy sequence
AVERAGED = "#3B82D6"  # blue: their average
CLEAN = "#8A8F98"  # grey: what is under the noise, or a reference
CHOSEN = "#D6246E"  # crimson: what was clicked on a map
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
    """A colour for each name: the fixed ones, and the others in their order."""
    rest = iter(OTHERS * 4)
    return {name: (fixed or {}).get(name) or next(rest) for name in names}
