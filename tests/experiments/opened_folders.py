"""Folders of checkpoints as small runs leave them, and what measures their networks."""

import numpy as np
import torch
from torch import nn

from emacore import EMA, Constant


def small_run(folder, steps=60, every=10, decay=0.9, seed=0):
    """Files of raw and averaged weights of a linear regression; returns its last model."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 400, generator=generator) / 20
    y = x @ torch.randn(400, 1, generator=generator) + 0.3 * torch.randn(64, 1, generator=generator)
    model = nn.Linear(400, 1)
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.bias.zero_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ema = EMA(model, schedule=Constant(decay))
    for step in range(1, steps + 1):
        rows = torch.randint(0, 64, (4,), generator=generator)
        optimizer.zero_grad()
        ((model(x[rows]) - y[rows]) ** 2).mean().backward()
        optimizer.step()
        ema.update()
        if step % every == 0:
            state = {"ema": ema.ema_model.state_dict(), "model": model.state_dict()}  # merges take the raw ones first
            torch.save(state, folder / f"step_{step}.pt")
    return model


def stored_rows(folder, section="model"):
    """The raw weights as they are stored, shape (files, weights), by rising step."""
    files = sorted(folder.glob("step_*.pt"), key=lambda file: int(file.stem[5:]))
    states = [torch.load(file)[section] for file in files]
    return np.stack([torch.cat([tensor.reshape(-1) for tensor in state.values()]).numpy() for state in states])


#: A module that measures, as an owner writes one.
MEASURE = """
calls = []

def distance(tensors):
    calls.append(1)
    return sum(float((tensor.double() ** 2).sum()) for tensor in tensors.values())

def level(tensors):
    return 5.0

def broken(tensors):
    raise RuntimeError("the data are not there")
"""
