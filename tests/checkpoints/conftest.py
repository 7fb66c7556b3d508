import pytest
import torch

from tests.helpers import Network, change, tensors

STEPS = (3, 5, 10, 12)


def stored(path, steps):
    """A network after some of its steps, as files, and what it was."""
    model = Network()
    states = {}
    for step in steps:
        change(model, step)
        states[step] = tensors(model)
        torch.save({"model": states[step], "optimizer": {}}, path / f"step_{step:04d}.pt")
    return path, states


@pytest.fixture
def folder(tmp_path):
    return stored(tmp_path, STEPS)
