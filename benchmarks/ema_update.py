"""One update of EMA, and of eight averages at once, against ema-pytorch 0.8.3 and the memory limit, on one thread.

Run: python -m benchmarks.ema_update
"""

import torch
from ema_pytorch import EMA as EMAPytorch
from torch import nn

from benchmarks.interleaved import medians, report
from emacore import EMA, Averages
from emacore.averaging.families import Constant

SETTINGS = {"beta": 0.999, "update_after_step": 0, "update_every": 1}


def article_network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 1)
    )


class ResNet50Shapes(nn.Module):
    """161 parameters in the shapes of ResNet-50: 25.6 million floats."""

    def __init__(self) -> None:
        super().__init__()
        shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
        inputs = 64
        for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
            for block in range(blocks):
                convolutions = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
                if block == 0:
                    convolutions.append((4 * width, inputs, 1, 1))
                for shape in convolutions:
                    shapes += [shape, shape[:1], shape[:1]]
                inputs = 4 * width
        shapes += [(1000, 2048), (1000,)]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)


def compare(title: str, build: type[nn.Module] | object, rounds: int, calls: int) -> None:
    model = build()  # type: ignore[operator]
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    target = torch.zeros_like(flat)
    ours = EMA(model, **SETTINGS)
    theirs = EMAPytorch(model, **SETTINGS)
    foreach = EMAPytorch(model, use_foreach=True, **SETTINGS)
    tensors = len(list(model.parameters()))
    seconds = medians(
        {
            "emacore.EMA": ours.update,
            "ema-pytorch": theirs.update,
            "ema-pytorch, use_foreach": foreach.update,
            "one lerp_ over as many floats (memory limit)": lambda: target.lerp_(flat, 0.001),
        },
        rounds=rounds,
        calls=calls,
    )
    report(f"{title}: {tensors} tensors, {len(flat):,} floats; x = ema-pytorch / candidate", seconds, "ema-pytorch")
    limit = seconds["one lerp_ over as many floats (memory limit)"]
    print(f"  emacore.EMA takes {seconds['emacore.EMA'] / limit:.2f} x the memory limit")


def compare_many(count: int = 8) -> None:
    model = article_network()
    betas = {f"{n}": 1 - 10 ** -(1 + n / 3) for n in range(count)}
    ours = Averages(model, {name: Constant(beta) for name, beta in betas.items()})
    single = [EMA(model, schedule=Constant(beta)) for beta in betas.values()]
    theirs = [EMAPytorch(model, **{**SETTINGS, "beta": beta}) for beta in betas.values()]
    target, weights = torch.zeros_like(ours.averages), torch.full((count, 1), 0.001)
    flat = torch.zeros(target.shape[1])
    limit = f"one lerp_ of the {tuple(target.shape)} tensor (memory limit)"
    candidates = {
        "emacore.Averages": ours.update,
        f"{count} x emacore.EMA": lambda: [ema.update() for ema in single],
        f"{count} x ema-pytorch": lambda: [ema.update() for ema in theirs],
        limit: lambda: target.lerp_(flat, weights),
    }
    batch = torch.randn(32, 20), torch.randn(32, 1)
    optimizer = torch.optim.Adam(model.parameters())

    def train() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
        optimizer.step()

    every = medians(candidates, rounds=15, calls=1024)  # Averages looks up decays for so many calls at a time
    # A training step before each call leaves little of what the call needs in the caches.
    apart = medians(candidates, rounds=25, calls=32, between=train)
    for words, seconds in (("call after call", every), ("a training step before each call", apart)):
        title = f"{count} averages of the article's network, {words}; x = {count} ema-pytorch / candidate"
        report(title, seconds, f"{count} x ema-pytorch")
        print(f"  emacore.Averages takes {seconds['emacore.Averages'] / seconds[limit]:.2f} x the memory limit")


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare("The article's network", article_network, rounds=25, calls=400)
    compare("ResNet-50's shapes", ResNet50Shapes, rounds=25, calls=1)
    compare_many()
