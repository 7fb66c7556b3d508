"""Merges of stored weights: any schedule, window or coefficients, many results in one pass over the files."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emacore.averaging.coefficients import Merge
from emacore.checkpoints.beside import whole_or_nothing
from emacore.checkpoints.lanes import Block, blocks_of, lanes_of
from emacore.checkpoints.planning import MergePlan, Options, is_copied, plan_merge, provenance
from emacore.checkpoints.reading import Checkpoints, open_checkpoints
from emacore.checkpoints.stored import CheckpointError
from emacore.checkpoints.writing import Writer, targets_of, told_beside
from emacore.checks import check_choice
from emacore.formatting import number

Floats = NDArray[np.float64]
_ONE_BY_ONE = threading.Lock()


def merge(
    checkpoints: Checkpoints | str | Path,
    merges: Mapping[str, Merge],
    out: str | Path,
    *,
    accumulate: torch.dtype = torch.float32,
    form: str = "safetensors",
    tell: Callable[[int, int], None] | None = None,
    **options: Unpack[Options],
) -> list[Path]:
    """Merge checkpoints by one or more schemes, in one pass over the files.

    Raw weights stand for the steps around them: the weight of a step that is not stored goes to the two files beside
    it, by their distances.  Means of windows and stored averages are combined by least squares.

    Args:
        checkpoints: What :func:`~emacore.checkpoints.open_checkpoints` returned, or what it takes.
        merges: Schedules and windows of steps, :class:`~emacore.averaging.coefficients.RateDecay`,
            :class:`~emacore.averaging.coefficients.LastFiles` or
            :class:`~emacore.averaging.coefficients.Coefficients`, by the names of the results.
        out: A new folder, or one without results of these names: for each a file, or a folder where the input is
            sharded or has a ``config.json``.  With one result, also a new file.
        accumulate: In which sums are kept: float32 or float64; those of float64 tensors in float64 in any case.
        form: ``safetensors`` or ``pt``.
        tell: Called with bytes read so far and all.
        options: ``section``, ``last``, ``at``, ``fit``, ``sigma_rel``, ``update_every`` and ``dtype``, as of
            :func:`~emacore.checkpoints.planning.plan_merge`.

    Returns:
        The file or folder of each result.  Besides the weights there is a JSON file that says what it was made of.

    Raises:
        FileExistsError: if there is a result already.
        CheckpointError: if the files do not go together, change meanwhile, or hold numbers that are not finite.
        OSError: if the disk is too full.

    Example:
        >>> from emacore import open_checkpoints
        >>> from emacore.averaging.coefficients import LastFiles
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (100, 200, 300):
        ...     torch.save({"weight": torch.full((2,), float(step))}, folder / f"step_{step}.pt")
        >>> found = merge(open_checkpoints(folder), {"last two": LastFiles(2)}, folder / "merged", form="pt")
        >>> torch.load(found[0])["weight"].tolist()
        [250.0, 250.0]
    """
    check_choice("form", form, ("safetensors", "pt"))
    if accumulate not in (torch.float32, torch.float64):
        raise ValueError(f"accumulate must be torch.float32 or torch.float64, got {accumulate}")
    opened = checkpoints if isinstance(checkpoints, Checkpoints) else open_checkpoints(checkpoints)
    plan = plan_merge(opened, merges, **options)
    return carry_out(plan, opened, Path(out), accumulate, form, tell)


def carry_out(
    plan: MergePlan,
    checkpoints: Checkpoints,
    out: Path,
    accumulate: torch.dtype = torch.float32,
    form: str = "safetensors",
    tell: Callable[[int, int], None] | None = None,
    *,
    hashed: bool = True,
    say: Callable[[str], None] | None = None,
) -> list[Path]:
    """Read and write what a plan says; raises as :func:`merge`.

    Args:
        say: Gets a sentence on each result that a killed merge left half written, and that is removed; by default it is
            a warning.
        hashed: Whether what the results were made of is told with the files' hashes.
    """
    targets = check_place(plan, out, form)
    with whole_or_nothing(out, say) as (partial, moves):
        free, needed = shutil.disk_usage(out.parent).free, plan.write_bytes * (2 if form == "pt" else 1)
        if needed > free:
            raise OSError(
                f"the results need {number(needed / 1e9)} GB, and {out.parent} has {number(free / 1e9)} GB left"
            )
        stages = [partial / str(n) for n in range(len(targets))]
        writers = [Writer(stage, plan, form == "pt") for stage in stages]

        def progress(done: int) -> None:
            if tell is not None:
                tell(done, plan.read_bytes)

        digests = _pass(plan, writers, accumulate, progress, hashed=hashed)
        checkpoints.check_unchanged()
        for writer, result, target in zip(writers, plan.results, targets, strict=True):
            writer.finish(provenance(plan, result, digests), target)
        moves += _moves(stages, targets)
        _check_free(targets)
        for staged, place in moves:
            place.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(place)
    return targets


def check_place(plan: MergePlan, out: Path, form: str = "safetensors") -> list[Path]:
    """The file or folder of each result, if all of them can be written there.

    Raises:
        FileExistsError: if there is something already.
        ValueError: if the place is named like a file, and is to be a folder.
        OSError: if nothing can be written there.
    """
    targets = targets_of(plan, out, form)
    _check_free(targets)
    above = next(folder for folder in (out, *out.absolute().parents) if folder.exists() or folder.is_symlink())
    if not above.is_dir():
        what = "a link to nothing" if above.is_symlink() and not above.exists() else "a file"
        raise FileExistsError(f"{above} is {what}, and the results need a folder: choose another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"nothing can be written into {above}: choose another place")
    return targets


def _check_free(targets: Sequence[Path]) -> None:
    for target in targets:
        if target.exists():  # what tells of a result is none without it, but the rest of one
            raise FileExistsError(f"{target} is there already, and nothing is overwritten: choose another place")


def _moves(stages: Sequence[Path], targets: Sequence[Path]) -> list[tuple[Path, Path]]:
    """From where to where: a whole folder, or a file after what tells of it."""
    found = []
    for stage, target in zip(stages, targets, strict=True):
        if (stage / target.name).exists():
            found += [(stage / place.name, place) for place in (told_beside(target), target)]
        else:
            found.append((stage, target))
    return found


def _pass(
    plan: MergePlan,
    writers: Sequence[Writer],
    accumulate: torch.dtype,
    progress: Callable[[int], None],
    *,
    hashed: bool,
) -> dict[Path, str]:
    """Read every source once, block by block, and write all results; returns the hashes of the files."""
    # One to read and one to add for each two processors: more are in each other's way, because each step is short.
    workers = min(4, max(1, (os.cpu_count() or 1) // 2))
    adder, lanes = _Adder(plan, writers, accumulate), lanes_of(plan, workers, hashed=hashed)
    largest = max(block.stop - block.start for block in blocks_of(plan))
    done = 0
    with ExitStack() as threads:
        readers = [threads.enter_context(ThreadPoolExecutor(1)) for _ in lanes]
        adders = threads.enter_context(ThreadPoolExecutor(workers, initializer=_alone))
        free = [[lane.buffers(largest) for lane in lanes] for _ in range(workers + 2)]
        waiting: dict[Future[None], tuple[Block, list[list[Tensor]]]] = {}

        def reap() -> None:
            nonlocal done
            for one in wait(waiting, return_when=FIRST_COMPLETED).done:
                block, buffers = waiting.pop(one)
                one.result()
                free.append(buffers)
                done += block.nbytes
            progress(done)

        try:
            for block in blocks_of(plan):
                while not free:
                    reap()
                buffers = free.pop()
                reads = [
                    reader.submit(lane.read, block, into)
                    for reader, lane, into in zip(readers, lanes, buffers, strict=True)
                ]
                waiting[adders.submit(adder.add, block, reads)] = block, buffers
            while waiting:
                reap()
            digests: dict[Path, str] = {}
            for rest in [reader.submit(lane.finish) for reader, lane in zip(readers, lanes, strict=True)]:
                digests |= rest.result()
            return digests
        finally:
            for lane in lanes:
                lane.hashes.stop()
            for one in waiting:
                one.cancel()


class _Adder:
    """Adds up what was read of a block, and writes it."""

    def __init__(self, plan: MergePlan, writers: Sequence[Writer], accumulate: torch.dtype) -> None:
        self._sources, self._writers, self._accumulate = plan.sources, writers, accumulate
        self._used = plan.used.tolist()
        self._factors = np.array([result.coefficients for result in plan.results])[:, self._used]

    def add(self, block: Block, reads: Sequence[Future[dict[int, Tensor]]]) -> None:
        values: dict[int, Tensor] = {}
        for read in reads:
            values |= read.result()
        name, newest = block.name, len(self._sources) - 1
        if is_copied(name, self._sources[newest].section.tensors[name]):
            for writer in self._writers:
                writer.write(name, block.start, values[newest])
            return
        files = [self._sources[n].section.tensors[name].file for n in self._used]
        with torch.inference_mode():
            sums = _sums([values[n] for n in self._used], self._factors, files, self._accumulate)
            for writer, total in zip(self._writers, sums, strict=True):
                writer.write(name, block.start, total)


def _alone() -> None:
    """Let torch start no threads for what this one does: those of several would be in each other's way."""
    with _ONE_BY_ONE:
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # of this thread, and of those that begin later
        (others := threading.Thread(target=torch.set_num_threads, args=(before,))).start()
        others.join()


def _sums(values: Sequence[Tensor], factors: Floats, files: Sequence[Path], accumulate: torch.dtype) -> list[Tensor]:
    """Weighted sums of the same numbers in several files, added one after the other.

    Args:
        values: N times shape (size,).
        factors: Shape (R, N); where one is 0, its file takes no part.

    Returns:
        R tensors, in ``accumulate``, or what is stored where that is more precise; or the complex dtype of that
        precision.

    Raises:
        CheckpointError: if a number that takes part is not finite, unless all files have it there (a mask).
    """
    stored_as = {one.dtype for one in values}
    kind = torch.float64 if stored_as & {torch.float64, torch.complex128} else accumulate
    if any(dtype.is_complex for dtype in stored_as):
        kind = torch.complex64 if kind == torch.float32 else torch.complex128
    by_result = factors.tolist()
    *sums, part = torch.zeros(len(factors) + 1, len(values[0]), dtype=kind)
    for n, one in enumerate(values):
        part.copy_(one)
        for total, row in zip(sums, by_result, strict=True):
            if row[n]:
                total.add_(part, alpha=row[n])
    for total, row in zip(sums, by_result, strict=True):
        if not torch.isfinite(total.sum()):
            _keep_mask(total, [(files[n], values[n].to(kind)) for n, factor in enumerate(row) if factor])
    return sums


def _keep_mask(total: Tensor, parts: Sequence[tuple[Path, Tensor]]) -> None:
    """Give a sum the numbers that are not finite in any of its parts, if they are the same in all."""
    bad = ~total.isfinite()
    values = torch.stack([part[bad] for _, part in parts])
    broken = ~values.isfinite()
    odd = broken & ((values != values[-1]).any(0) | ~broken.all(0))
    if odd.any():
        file = parts[int(odd.any(1).nonzero()[0])][0]
        raise CheckpointError(
            f"{file.name} holds numbers that are not finite: a run that broke down cannot be averaged; "
            "leave the file out"
        )
    if not broken.all():
        kind = str(total.dtype).removeprefix("torch.")
        raise CheckpointError(f"a sum is beyond what {kind} holds: accumulate in float64 and write a wider dtype")
    total[bad] = values[-1]
