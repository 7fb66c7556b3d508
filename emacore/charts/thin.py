"""Fewer points for the eye: what a line of a few hundred pixels can show, extremes kept."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

#: Points a line gets at most: two for each pixel of a narrow chart.
MAX_POINTS = 800


def kept_rows(values: ArrayLike, max_points: int = MAX_POINTS) -> NDArray[np.intp]:
    """Positions of the rows to draw: the first, the last, and the lowest and highest of equal stretches between.

    Args:
        values: Shape (rows,) or (rows, lines); of several lines every one keeps its extremes within the same budget.
    """
    numbers = np.asarray(values, dtype=np.float64)
    rows = len(numbers)
    if rows <= max_points:
        return np.arange(rows)
    columns = numbers.reshape(rows, -1)
    stretches = max(1, (max_points - 2) // (2 * columns.shape[1]))
    # Padded with NaN to whole stretches; nanargmin skips the padding, and a stretch of NaN alone keeps its first row.
    length = -(-rows // stretches)
    padded = np.full((stretches * length, columns.shape[1]), np.nan)
    padded[:rows] = columns
    blocks = padded.reshape(stretches, length, -1)
    starts = (np.arange(stretches) * length)[:, np.newaxis]
    low = np.where(np.isnan(blocks), np.inf, blocks).argmin(axis=1) + starts
    high = np.where(np.isnan(blocks), -np.inf, blocks).argmax(axis=1) + starts
    kept = np.unique(np.concatenate([[0, rows - 1], low.ravel(), high.ravel()]))
    return np.asarray(kept[kept < rows])


def thin(table: pd.DataFrame, y: str, series: str | None = None, max_points: int = MAX_POINTS) -> pd.DataFrame:
    """``table`` with at most about ``max_points`` rows for each value of ``series``, the extremes of ``y`` kept."""
    if series is None:
        return table.iloc[kept_rows(table[y], max_points)]
    parts = [part.iloc[kept_rows(part[y], max_points)] for _, part in table.groupby(series, sort=False)]
    return pd.concat(parts) if parts else table
