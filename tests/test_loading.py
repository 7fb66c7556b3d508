import gc

import pytest

from emacore.loading import uncollected


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()
    gc.enable()


def test_nothing_is_collected_within_and_what_is_there_is_left_alone_afterwards():
    before = gc.get_freeze_count()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():  # of another session
            pass
        assert not gc.isenabled()
        kept = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > before + len(kept)


def test_it_goes_on_after_an_import_that_fails():
    with pytest.raises(ImportError), uncollected():
        import nothing_of_this_name  # noqa: F401
    assert gc.isenabled()


def test_who_had_it_rest_has_it_rest():
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()
