"""What an average costs a training step on a GPU: kept there, and kept in the host's memory.

Run: python -m benchmarks.offload   # needs CUDA

The model has GPT-2's size (124 million weights); a step is forward and backward in bfloat16 and a fused AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import torch
from torch import nn

from benchmarks.interleaved import report
from emacore import EMA, Constant

WITHOUT = "no average"
STEPS = 10


class Model(nn.Module):
    """GPT-2's widths and depth; embedding and head share their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50257, 768)
        layer = nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.layers(self.words(tokens)) @ self.words.weight.T


def in_line(ema: EMA) -> EMA:
    """Have an average copy weights in line with the computation, as it does once somebody else has written them."""
    while (arrivals := ema._now.plan.arrivals) is None:  # type: ignore[union-attr]
        ema.update()
    arrivals._was_overtaken = True
    return ema


def seconds_a_step(model: nn.Module, optimizer: torch.optim.Optimizer, update: Callable[[], object]) -> float:
    tokens = torch.randint(50257, (32, 512), device="cuda")
    torch.cuda.synchronize()
    begin = perf_counter()
    for _ in range(STEPS):
        with torch.autocast("cuda", torch.bfloat16):
            found = model(tokens)
            loss = nn.functional.cross_entropy(found.flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        update()
    torch.cuda.synchronize()
    return (perf_counter() - begin) / STEPS


def main(rounds: int = 3) -> None:
    """Print the seconds of a training step without an average and with each kind, as ratios."""
    torch.manual_seed(0)
    model = Model().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    candidates: dict[str, Callable[[], object]] = {WITHOUT: lambda: None}
    for every in (1, 10):
        schedule = Constant(0.999, update_every=every)
        candidates[f"on the GPU, every {every}"] = EMA(model, schedule=schedule).update
        candidates[f"host, beside, every {every}"] = EMA(model, schedule=schedule, device="cpu").update
        candidates[f"host, in line, every {every}"] = in_line(EMA(model, schedule=schedule, device="cpu")).update
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, update in candidates.items():
            seconds[name].append(seconds_a_step(model, optimizer, update))
    medians = {name: sorted(found[1:])[rounds // 2] for name, found in seconds.items()}
    report(f"{torch.cuda.get_device_name()}, {torch.get_num_threads()} threads: seconds a step", medians, WITHOUT)


if __name__ == "__main__":
    main()
