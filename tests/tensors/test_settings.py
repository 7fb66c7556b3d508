import pytest

from emacore.tensors.settings import OnNonfinite


def test_another_choice_is_checked_and_told():
    told = []

    class Average:
        on_nonfinite = OnNonfinite(told.append)

    average = Average()
    average.on_nonfinite = "skip"
    assert average.on_nonfinite == "skip"
    assert told == [average]
    with pytest.raises(ValueError, match="on_nonfinite must be .*got 'drop'"):
        average.on_nonfinite = "drop"
    assert average.on_nonfinite == "skip"
