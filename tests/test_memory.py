import gc
import os
import platform
import subprocess
import sys
import weakref
from importlib import import_module
from types import ModuleType

import pytest

from emacore.memory import settle, uncollected


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_within_and_what_is_there_is_left_alone_afterwards(monkeypatch):
    before = gc.get_freeze_count()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():  # of another session
            pass
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]
        monkeypatch.setitem(sys.modules, "loaded_within", ModuleType("loaded_within"))
    assert gc.isenabled()
    assert gc.get_freeze_count() > before + len(kept)


def test_where_nothing_was_left_to_import_nothing_is_left_alone():
    before = gc.get_freeze_count()
    with uncollected():
        import_module("json")
    assert gc.isenabled()
    assert gc.get_freeze_count() == before


def test_it_goes_on_after_an_import_that_fails():
    with pytest.raises(ImportError), uncollected():
        import_module("nothing_of_this_name")
    assert gc.isenabled()


def test_who_had_it_rest_has_it_rest():
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


def test_once_settled_what_was_there_is_left_alone_and_what_is_circular_by_then_is_gone():
    settle.cache_clear()
    one = Circular()
    one.itself, gone = one, weakref.ref(one)
    del one
    before = gc.get_freeze_count()
    settle()
    assert gone() is None
    frozen = gc.get_freeze_count()
    assert frozen > before
    kept = [[] for _ in range(1000)]
    settle()
    assert gc.get_freeze_count() < frozen + len(kept)


class Circular:
    pass


#: Threads that hold 20 MB each at the same time, and let go of it; what the process holds 50 MB less of is given back.
THREADS = """
import os, sys, threading, time
from emacore.memory import give_back
if sys.argv[1] == "give":
    give_back(0.05)
together = threading.Barrier(6)
def work():
    held = [bytearray(40_000) for _ in range(500)]
    together.wait()
    kept.append(held.pop())
kept = []
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
end = time.monotonic() + 5
while sys.argv[1] == "give" and held() > 60 and time.monotonic() < end:
    threading.Event().wait(0.05)
print(held())
import ctypes
library = ctypes.CDLL(None)
library.fopen.restype = ctypes.c_void_p
told = ctypes.c_void_p(library.fopen(sys.argv[2].encode(), b"w"))
library.malloc_info(0, told)
library.fclose(told)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back by itself")
def test_memory_of_threads_that_ended_is_given_back(tmp_path):
    def held(how):
        command = [sys.executable, "-c", THREADS, how, tmp_path / how]
        return float(subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout)

    assert held("give") < held("keep") - 50
    parts = {how: (tmp_path / how).read_text().count("<heap ") for how in ("give", "keep")}
    assert parts["give"] <= 2 < parts["keep"]
