import pytest

from emacore.limits import check_most


def test_more_than_the_most_is_told():
    check_most("seeds", 10, 10)
    with pytest.raises(ValueError, match="at most 1,000 seeds are possible, got 1,001"):
        check_most("seeds", 1001, 1000)
