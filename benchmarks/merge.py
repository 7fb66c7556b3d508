"""How long merging checkpoints takes, as ratios to merely reading and writing them, beside how others average them.

The files hold a transformer's shapes in bfloat16, as safetensors and as torch.save, in a folder that is removed
afterwards.  Each way runs in a process of its own, after the system has dropped the files from its memory.

    python -m benchmarks.merge                  a tenth of a billion weights, 10 files, 8 results
    python -m benchmarks.merge --scale 1        a billion: 20 GB are read, 16 GB written
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file

from emacore import Constant, PowerFunction, UniformAverage, Window, open_checkpoints
from emacore.averaging.coefficients import LastFiles, RateDecay
from emacore.checkpoints.merging import merge

FILES = 10
MERGES = {
    "mean": UniformAverage(),
    "last 5": LastFiles(5),
    "window": Window(4000),
    "ema 0.999": Constant(0.999),
    "ema 0.9997": Constant(0.9997),
    "power": PowerFunction(sigma_rel=0.1),
    "linear decay": RateDecay("linear"),
    "1-sqrt decay": RateDecay("1-sqrt"),
}
WAYS = {
    "read": "the files read once (plain reads, 8 MB each)",
    "write": "as many bytes as 8 results written once",
    "emacore": "emacore: 8 results in one pass, SHA-256 of all files",
    "emacore, 1": "emacore: 1 result",
    "load": "torch.load of whole files, summed: 1 result",
    "fairseq": "as fairseq averages: 1 result",
    "timm": "as timm averages: 1 result",
}


def shapes(scale: float) -> dict[str, tuple[int, ...]]:
    """The shapes of a decoder of 24 blocks by name: about ``scale`` billion weights in all."""
    width = round(1792 * scale**0.5 / 64) * 64
    found: dict[str, tuple[int, ...]] = {"embed.weight": (32_000, width)}
    for block in range(24):
        name = f"blocks.{block}"
        found |= {f"{name}.attention.{part}.weight": (width, width) for part in "qkvo"}
        found |= {f"{name}.mlp.up.weight": (4 * width, width), f"{name}.mlp.down.weight": (width, 4 * width)}
        found |= {f"{name}.norm{n}.weight": (width,) for n in (1, 2)}
    return found


def make(folder: Path, scale: float, *, as_torch: bool) -> None:
    for number in range(1, FILES + 1):
        generator = torch.Generator().manual_seed(number)
        most = max(map(math.prod, shapes(scale).values()))
        some = torch.empty(min(most, 2**24), dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        state = {}
        for name, shape in shapes(scale).items():
            size = math.prod(shape)
            whole = some if size <= len(some) else some.repeat(-(-size // len(some)))
            state[name] = whole[:size].clone().reshape(shape)
        path = folder / f"step_{number * 1000}"
        torch.save(state, f"{path}.pt") if as_torch else save_file(state, f"{path}.safetensors")


def drop(folder: Path) -> None:
    """Have the system drop the files of a folder from its memory, so that they are read from the disk."""
    on_disk(folder)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def on_disk(folder: Path) -> None:
    """Wait until the files of a folder, and no others, are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())


def read(folder: Path) -> None:
    buffer = bytearray(2**23)
    for path in sorted(folder.glob("step_*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def write(folder: Path) -> None:
    size = next(folder.glob("step_*.safetensors")).stat().st_size
    buffer = os.urandom(2**23)
    for n in range(len(MERGES)):
        with (folder / "out" / f"{n}").open("wb", buffering=0) as file:
            for _ in range(0, size, len(buffer)):
                file.write(buffer)
            os.fsync(file.fileno())


def emacore(folder: Path, count: int) -> None:
    found = open_checkpoints(sorted(folder.glob("step_*.safetensors")))
    merge(found, dict(list(MERGES.items())[:count]), folder / "out" / "merged")


def load(folder: Path) -> None:
    """What a plain loop does: whole files, one after the other."""
    paths = sorted(folder.glob("*.pt"))
    total: dict[str, torch.Tensor] = {}
    for path in paths:
        for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
            part = tensor.float() / len(paths)
            total[name] = total[name] + part if name in total else part
    torch.save({name: tensor.to(torch.bfloat16) for name, tensor in total.items()}, folder / "out" / "mean.pt")


def fairseq(folder: Path) -> None:
    """From the description of fairseq's script: a copy of the first, sums in place, half precision as float32."""
    paths = sorted(folder.glob("*.pt"))
    sums: OrderedDict[str, torch.Tensor] = OrderedDict()
    for path in paths:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name in list(state):
            tensor = state[name].float()
            if name in sums:
                sums[name] += tensor
            else:
                sums[name] = tensor.clone()
    for tensor in sums.values():
        tensor.div_(len(paths))
    torch.save(sums, folder / "out" / "mean.pt")


def timm(folder: Path) -> None:
    """From the description of timm's script: sums in float64, the result as float32, within its range."""
    paths = sorted(folder.glob("*.pt"))
    sums: dict[str, torch.Tensor] = {}
    for path in paths:
        for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
            if name in sums:
                sums[name] += tensor.to(torch.float64)
            else:
                sums[name] = tensor.clone().to(torch.float64)
    bounds = torch.finfo(torch.float32)
    final = {name: (tensor / len(paths)).clamp(bounds.min, bounds.max).float() for name, tensor in sums.items()}
    torch.save(final, folder / "out" / "mean.pt")


def memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def timed(folder: Path, way: str) -> None:
    """Run one of :data:`WAYS` in this process, and print as JSON its seconds, CPU seconds and peaks of memory."""
    peaks = {"RssAnon": 0, "VmRSS": 0}
    base = {field: memory(field) for field in peaks}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            for field in peaks:
                peaks[field] = max(peaks[field], memory(field) - base[field])

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin, busy = time.perf_counter(), time.process_time()
    match way:
        case "emacore":
            emacore(folder, len(MERGES))
        case "emacore, 1":
            emacore(folder, 1)
        case _:
            globals()[way](folder)
    on_disk(folder / "out")
    seconds, cpu = time.perf_counter() - begin, time.process_time() - busy
    over.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "cpu": cpu, **peaks}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.1, help="Billions of weights of the model.")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), help="What is timed: some of %(default)s.")
    parser.add_argument("--folder", type=Path, help="Where the files are made; by default among temporary files.")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        timed(Path(arguments.one[0]), arguments.one[1])
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        make(folder, arguments.scale, as_torch=False)
        if set(arguments.ways) & {"load", "fairseq", "timm"}:
            make(folder, arguments.scale, as_torch=True)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        print(f"{FILES} files of {size / FILES / 1e9:.2f} GB, {os.cpu_count()} cores")
        found = {}
        for way in arguments.ways:
            (folder / "out").mkdir()
            drop(folder)
            command = [sys.executable, "-m", "benchmarks.merge", "--one", folder, way]
            found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            shutil.rmtree(folder / "out")
            one = found[way]
            shares = []
            if least := [found[name] for name in ("read", "write") if name in found]:
                shares = [one[key] / max(sum(part[key] for part in least), 1e-9) for key in ("seconds", "cpu")]
            print(
                f"{WAYS[way]}: {one['seconds']:.1f} s, of the processor {one['cpu']:.1f} s"
                + (f" ({shares[0]:.2f} and {shares[1]:.2f} x reading once and writing 8 once)" if shares else "")
                + f", {one['RssAnon'] / 1e6:,.0f} MB of memory, {one['VmRSS'] / 1e6:,.0f} MB with mapped files",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
