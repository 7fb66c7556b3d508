"""The metrics of the article's comparison, for one network or many at once."""

from __future__ import annotations

import torch
from torch import Tensor

#: Their names in histories and tables: mean squared error, mean absolute error, coefficient of determination.
METRICS = ("loss", "mae", "r2")


def metrics(predicted: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Each of :data:`METRICS`, float64, of predictions of shape (..., rows, 1) for targets of shape (rows, 1).

    R2 follows scikit-learn's convention for targets that are all alike: 1 where the error is 0, else 0.
    """
    target = target.double()
    error = predicted.double() - target
    loss = error.square().mean(dim=(-2, -1))
    spread = (target - target.mean()).square().mean()
    r2 = 1 - loss / spread if spread else (loss == 0).double()
    return {"loss": loss, "mae": error.abs().mean(dim=(-2, -1)), "r2": torch.as_tensor(r2)}
