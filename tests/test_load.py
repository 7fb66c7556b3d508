"""The short form of benchmarks/load.py: that it measures what it says, not how long that takes."""

import pytest

from benchmarks.load import table


@pytest.mark.long
def test_one_session_moves_and_is_measured():
    rows = table([1], moves=1, pause=0.0)
    assert [row["what"] for row in rows] == [
        "cold start, empty app",
        "cold start, app with a chart",
        "cold start, this app",
        "idle",
        "while a run trains",
    ]
    assert all(row["median (s)"] > 0 and row["CPU a move (s)"] > 0 for row in rows)
