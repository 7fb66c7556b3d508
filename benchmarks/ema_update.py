"""One update of EMA, and of eight averages at once, against other libraries and the memory limit, on one thread.

Run: python -m benchmarks.ema_update
     python -m benchmarks.ema_update --device cuda   # in wall-clock time, once the GPU has done its work
"""

from collections.abc import Callable
from time import perf_counter, process_time

import click
import torch
from ema_pytorch import EMA as EMAPytorch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.interleaved import medians, report
from emacore import EMA, Averages
from emacore.averaging.families import Constant

OURS = "emacore.EMA"
KEPT = "one _foreach_lerp_ of kept lists"
FLAT = "one lerp_ of as many floats"
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


class GPT2Shapes(nn.Module):
    """148 parameters in the shapes of GPT-2: 124 million floats."""

    def __init__(self) -> None:
        super().__init__()
        width = 768
        shapes: list[tuple[int, ...]] = [(50257, width), (1024, width)]
        for _ in range(12):
            shapes += [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
            shapes += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
        shapes += [(width,), (width,)]
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)


def candidates_for(model: nn.Module) -> dict[str, Callable[[], object]]:
    """One call of each average of a model, by its name."""
    # timm brings torchvision, whose operators do not load beside a CPU build of torch; nothing here calls them.
    if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
        for operator in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    from diffusers.training_utils import EMAModel
    from timm.utils.model_ema import ModelEmaV3
    from torch_ema import ExponentialMovingAverage

    parameters = list(model.parameters())
    kept, values = [p.detach().clone() for p in parameters], [p.detach() for p in parameters]
    flat = torch.cat([value.flatten() for value in values])
    target = torch.zeros_like(flat)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    timm = ModelEmaV3(model, decay=0.999)
    diffusers = EMAModel(parameters, decay=0.999)
    diffusers_foreach = EMAModel(parameters, decay=0.999, foreach=True)
    torch_ema = ExponentialMovingAverage(parameters, decay=0.999)
    return {
        OURS: EMA(model, **SETTINGS).update,
        "ema-pytorch": EMAPytorch(model, **SETTINGS).update,
        "ema-pytorch, use_foreach": EMAPytorch(model, use_foreach=True, **SETTINGS).update,
        "timm ModelEmaV3": lambda: timm.update(model),
        "diffusers EMAModel": lambda: diffusers.step(parameters),
        "diffusers EMAModel, foreach": lambda: diffusers_foreach.step(parameters),
        "torch-ema": torch_ema.update,
        "torch AveragedModel, multi_avg_fn": lambda: averaged.update_parameters(model),
        KEPT: lambda: torch._foreach_lerp_(kept, values, 0.001),
        FLAT: lambda: target.lerp_(flat, 0.001),
    }


def waited_for() -> float:
    """The wall-clock time once the GPU has done what is queued."""
    torch.cuda.synchronize()
    return perf_counter()


def compare(title: str, build: Callable[[], nn.Module], rounds: int, calls: int, device: str) -> None:
    model = build().to(device)
    # On the CPU the time of this process alone, because others run on the machine, too.
    clock = process_time if device == "cpu" else waited_for
    seconds = medians(candidates_for(model), rounds=rounds, calls=calls, clock=clock)
    tensors = list(model.parameters())
    floats = sum(p.numel() for p in tensors)
    report(f"{title}: {len(tensors)} tensors, {floats:,} floats; x = {KEPT} / candidate", seconds, KEPT)
    ratios = ", ".join(f"{seconds[OURS] / seconds[name]:.2f} x {name}" for name in (KEPT, FLAT))
    print(f"  {OURS} takes {ratios}")


def compare_memory() -> None:
    """Print the memory that an average of a bfloat16 model takes, as a multiple of the model's."""
    model = ResNet50Shapes().bfloat16()
    size = sum(p.nbytes for p in model.parameters())
    for words, arguments in (("as it is", {}), ("keep_half=False", {"keep_half": False})):
        ema = EMA(model, include_online_model=False, **SETTINGS, **arguments)
        kept = sum(tensor.nbytes for tensor in ema.state_dict().values())
        print(f"bfloat16, {words}: the average takes {kept / size:.2f} x the model")


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


@click.command()
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where the averages are; on cuda memory and many averages at once are not measured.",
)
def main(device: str) -> None:
    """Print the time of one update for three models, as ratios to one _foreach_lerp_ of kept lists."""
    torch.set_num_threads(1)
    compare("The article's network", article_network, rounds=200, calls=40, device=device)
    compare("ResNet-50's shapes", ResNet50Shapes, rounds=41, calls=1 if device == "cpu" else 20, device=device)
    compare("GPT-2's shapes", GPT2Shapes, rounds=13, calls=1 if device == "cpu" else 20, device=device)
    if device == "cpu":
        compare_memory()
        compare_many()


if __name__ == "__main__":
    main()
