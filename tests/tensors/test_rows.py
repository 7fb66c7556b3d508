import pytest
import torch

from emacore.tensors.rows import by_name, in_rows, rows_of_state


def test_rows_are_tensors_by_name_and_back_be_they_complex_or_not():
    like = {"a": torch.empty(2, 2, device="meta"), "b": torch.empty(1, dtype=torch.complex64, device="meta")}
    rows = torch.arange(12.0).reshape(2, 6)
    first, second = by_name(rows, like)
    assert first["a"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert second["b"].tolist() == [10 + 11j]
    assert torch.equal(in_rows([first, second], like, rows), rows)
    for state in (rows, {"second": second, "first": first}):
        assert torch.equal(rows_of_state(state, ["first", "second"], like, rows), rows)
    for state in (rows[:, :4], {"first": {"a": first["a"]}, "second": second}):
        with pytest.raises(ValueError, match=r"averages of 4 weights, this module has 6|has 'b' in place of"):
            rows_of_state(state, ["first", "second"], like, rows)
