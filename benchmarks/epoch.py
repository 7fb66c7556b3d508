"""One epoch of the article's run, both evaluations included, against the plain loop, on one thread.

The plain loop is what a tutorial writes: DataLoader, torch.optim, ema-pytorch 0.8.3 and scikit-learn's metrics.

Run: python -m benchmarks.epoch
"""

import torch
from ema_pytorch import EMA as EMAPytorch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.interleaved import medians, report
from emacore import RunConfig
from emacore.tasks.regression.data import load
from emacore.training.loop import _never, _Run
from emacore.training.network import Perceptron


class PlainLoop:
    def __init__(self, config: RunConfig) -> None:
        data = [torch.from_numpy(part) for part in load(config.data)]
        self.x_val, self.y_val = data[1], data[3]
        self.batches = DataLoader(TensorDataset(data[0], data[2]), batch_size=32, shuffle=True)
        self.model = Perceptron(20, 1, config.network).build()
        self.ema = EMAPytorch(self.model, beta=0.999, update_after_step=100, update_every=1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, weight_decay=1e-5)
        self.rate_rule = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, factor=0.5, patience=10)

    def epoch(self) -> None:
        self.model.train()
        total = 0.0
        for x, y in self.batches:
            self.optimizer.zero_grad()
            loss = nn.functional.mse_loss(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            self.ema.update()
            total += loss.item()
        self.model.eval()
        self.ema.ema_model.eval()
        with torch.no_grad():
            target = self.y_val.numpy()
            for model in (self.model, self.ema):
                predicted = model(self.x_val).numpy()
                loss = mean_squared_error(target, predicted)
                mean_absolute_error(target, predicted)
                r2_score(target, predicted)
        self.rate_rule.step(loss)


if __name__ == "__main__":
    torch.set_num_threads(1)
    config = RunConfig()
    task = config.task()
    ours = _Run(config, task, task.load(config))
    plain = PlainLoop(config)
    seconds = medians(
        {"emacore.training": lambda: ours.epoch(1, _never), "plain loop": plain.epoch},
        rounds=40,
    )
    report("One epoch of 50 steps; x = plain loop / candidate", seconds, "plain loop")
