import os
from pathlib import Path

import numpy as np
import pytest

from emacore import limits
from emacore.apart import call_apart
from emacore.metric_files import read_metrics
from emacore.tables import TableError


def fails(content):
    raise MemoryError


def own_process(content):
    return os.getpid()


def test_the_same_comes_back_from_another_process():
    content = b"step,loss\n0,2.5\n10,nan\n20,1.5\n"
    found, here = call_apart(read_metrics, content), read_metrics(content)
    assert found.frame.equals(here.frame)
    assert np.array_equal(found.lines, here.lines)
    assert found.told() == here.told()


def test_what_goes_wrong_there_is_told_here(monkeypatch):
    with pytest.raises(TableError, match="The file is empty"):
        call_apart(read_metrics, b"")
    root = str(Path(__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", root)
    assert call_apart(own_process, b"") != os.getpid()
    with pytest.raises(ValueError, match="at most 6 GB of memory"):
        call_apart(fails, b"")
    monkeypatch.setattr(limits, "APART_SECONDS", 0.01)
    with pytest.raises(ValueError, match="at most 0.01 seconds to read a file"):
        call_apart(own_process, b"")
