import pytest
import torch

from tests.helpers import Network, change, tensors

STEPS = (3, 5, 10, 12)


@pytest.fixture
def folder(tmp_path):
    """A network after some of its steps, as files, and what it was."""
    model = Network()
    states = {}
    for step in STEPS:
        change(model, step)
        states[step] = tensors(model)
        torch.save({"model": states[step], "optimizer": {}}, tmp_path / f"step_{step:04d}.pt")
    return tmp_path, states
