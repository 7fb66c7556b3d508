import os
from importlib import import_module

import numpy as np
import pytest

from emacore import limits
from emacore.apart import call_apart
from emacore.metric_files import read_metrics
from emacore.tables import TableError

#: A module that is imported at once, as that of the tests is not.
FUNCTIONS = """
import os

def fails(content):
    raise MemoryError

def own_process(content):
    return os.getpid()
"""


def test_the_same_comes_back_from_another_process():
    content = b"step,loss\n0,2.5\n10,nan\n20,1.5\n"
    found, here = call_apart(read_metrics, content), read_metrics(content)
    assert found.frame.equals(here.frame)
    assert np.array_equal(found.lines, here.lines)
    assert found.told() == here.told()


def test_what_goes_wrong_there_is_told_here(monkeypatch, tmp_path):
    (tmp_path / "of_apart.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    functions = import_module("of_apart")
    with pytest.raises(TableError, match="The file is empty"):
        call_apart(read_metrics, b"")
    assert call_apart(functions.own_process, b"") != os.getpid()
    with pytest.raises(ValueError, match="at most 6 GB of memory"):
        call_apart(functions.fails, b"")
    monkeypatch.setattr(limits, "APART_SECONDS", 0.01)
    with pytest.raises(ValueError, match="at most 0.01 seconds to read a file"):
        call_apart(functions.own_process, b"")
