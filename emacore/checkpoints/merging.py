"""Merges of stored weights: any schedule, window or coefficients, many results in one pass over the files."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emacore.averaging.coefficients import Merge
from emacore.checkpoints.hashing import Hashes
from emacore.checkpoints.planning import Options, Plan, is_copied, plan_merge, provenance
from emacore.checkpoints.reading import Checkpoints
from emacore.checkpoints.stored import CheckpointError, StoredTensor
from emacore.checkpoints.writing import Writer, targets_of, told_beside
from emacore.checks import check_choice
from emacore.formatting import number

Floats = NDArray[np.float64]
#: Numbers of one tensor that are merged at a time, by one thread; fewer where many files or results would make them
#: more than so many bytes.
_BLOCK = 2**19
_BLOCK_BYTES = 2**26
#: So many of them are added up at a time: few, so that the sums of all results stay in the processor's cache.
_STRIP = 2**15
#: So many bytes of all files are read at a time: few, so that they stay in the processor's cache, too.
_READ_BYTES = 2**21


def merge(
    checkpoints: Checkpoints,
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
    plan = plan_merge(checkpoints, merges, **options)
    return carry_out(plan, checkpoints, Path(out), accumulate, form, tell)


def carry_out(
    plan: Plan,
    checkpoints: Checkpoints,
    out: Path,
    accumulate: torch.dtype = torch.float32,
    form: str = "safetensors",
    tell: Callable[[int, int], None] | None = None,
    *,
    hashed: bool = True,
) -> list[Path]:
    """Read and write what a plan says; raises as :func:`merge`.

    Args:
        hashed: Whether what the results were made of is told with the files' hashes.
    """
    targets = targets_of(plan, out, form)
    _check_free(targets)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file, and the results need a folder: choose another place")
    with _whole_or_nothing(out) as (partial, moves):
        free, needed = shutil.disk_usage(out.parent).free, plan.write_bytes * (2 if form == "pt" else 1)
        if needed > free:
            raise OSError(
                f"the results need {number(needed / 1e9)} GB, and {out.parent} has {number(free / 1e9)} GB left"
            )
        stages = [partial / str(n) for n in range(len(targets))]
        hashes = Hashes(
            set() if not hashed else {file for n in plan.used.tolist() for file in plan.sources[n].checkpoint.files}
        )
        writers = [Writer(stage, plan, form == "pt") for stage in stages]
        with hashes.followed() as follow:

            def progress(done: int) -> None:
                follow(done / max(1, plan.read_bytes))
                if tell is not None:
                    tell(done, plan.read_bytes)

            _pass(plan, writers, accumulate, progress)
        checkpoints.check_unchanged()
        for writer, result, target in zip(writers, plan.results, targets, strict=True):
            writer.finish(provenance(plan, result, hashes.digests), target)
        moves += _moves(stages, targets)
        _check_free(targets)
        for staged, place in moves:
            place.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(place)
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


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[tuple[Path, list[tuple[Path, Path]]]]:
    """A folder beside ``out``, and a list for the moves from there: unless all goes well, nothing stays, no moved
    result, nor a folder that was made for it.

    An interruption can come between any two steps; one that comes when all is moved leaves all of it.
    """
    partial = out.parent / f".{out.name}.partial-{secrets.token_hex(4)}"  # known before it is made
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    moves: list[tuple[Path, Path]] = []
    done = False

    def clear() -> None:
        for staged, place in [] if done else moves:
            if not staged.exists():
                _remove(place)
        _remove(partial)
        for folder in made:
            with suppress(OSError):  # there is none, or it holds something
                folder.rmdir()

    try:
        try:
            partial.mkdir(parents=True)
            yield partial, moves
            done = True
        finally:
            clear()
    finally:
        clear()  # all of it, where an interruption ended the other


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def _pass(plan: Plan, writers: Sequence[Writer], accumulate: torch.dtype, progress: Callable[[int], None]) -> None:
    """Read every source once, block by block, and write all results."""
    used = plan.used.tolist()
    factors = np.array([result.coefficients for result in plan.results])
    newest = plan.sources[-1].section.tensors
    names = sorted(newest, key=lambda name: (str(newest[name].file), newest[name].offset))
    width = max(tensor.dtype.itemsize for tensor in newest.values()) * len(used) + 8 * len(writers)
    block = max(_STRIP, min(_BLOCK, _BLOCK_BYTES // width // _STRIP * _STRIP))
    blocks = (
        (name, start, min(start + block, newest[name].numel))
        for name in names
        for start in range(0, max(1, newest[name].numel), block)
    )

    def work(name: str, start: int, stop: int) -> int:
        if is_copied(name, newest[name]):
            values = newest[name].read(start, stop)
            for writer in writers:
                writer.write(name, start, values)
            return values.nbytes * len(used)
        tensors = [plan.sources[n].section.tensors[name] for n in used]
        sums = merged_block(tensors, factors[:, used], start, stop, accumulate)
        for writer, values in zip(writers, sums, strict=True):
            writer.write(name, start, values)
        return sum((stop - start) * tensor.dtype.itemsize for tensor in tensors)

    done = 0
    workers = min(4, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        waiting: set[Future[int]] = set()
        try:
            for name, start, stop in blocks:
                waiting.add(pool.submit(work, name, start, stop))
                if len(waiting) > workers:
                    finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    done += sum(one.result() for one in finished)
                    progress(done)
            for one in waiting:
                done += one.result()
            progress(done)
        finally:
            for one in waiting:
                one.cancel()


def merged_block(
    tensors: Sequence[StoredTensor], factors: Floats, start: int, stop: int, accumulate: torch.dtype = torch.float32
) -> list[Tensor]:
    """Weighted sums of the numbers ``start`` to ``stop - 1`` of tensors of one shape, added one after the other.

    Args:
        factors: Shape (R, N); where one is 0, its tensor takes no part.

    Returns:
        R tensors of shape (stop - start,), in ``accumulate``, or what is stored where that is more precise; or the
        complex dtype of that precision.

    Raises:
        CheckpointError: if a number that takes part is not finite, unless all tensors have it there (a mask).
    """
    size = stop - start
    stored_as = {tensor.dtype for tensor in tensors}
    kind = torch.float64 if stored_as & {torch.float64, torch.complex128} else accumulate
    if any(dtype.is_complex for dtype in stored_as):
        kind = torch.complex64 if kind == torch.float32 else torch.complex128
    sums, by_result = torch.zeros(len(factors), size, dtype=kind), factors.tolist()
    width = max(dtype.itemsize for dtype in stored_as)
    most = max(_STRIP, min(size, _READ_BYTES // (width * len(tensors)) // _STRIP * _STRIP))
    buffers = _buffers(len(tensors), most * width)
    for first in range(0, size, most):
        last = min(first + most, size)
        at = start + first, start + last
        stored = [tensor.read(*at, buffer) for tensor, buffer in zip(tensors, buffers, strict=True)]
        for left in range(first, last, _STRIP):
            right = min(left + _STRIP, last)
            strips = [total[left:right] for total in sums]
            for n, values in enumerate(stored):
                part = values[left - first : right - first].to(kind)
                for total, row in zip(strips, by_result, strict=True):
                    if row[n]:
                        total.add_(part, alpha=row[n])
    if not torch.isfinite(sums.sum()):
        _keep_masks(tensors, factors, start, stop, sums)
    return list(sums)


_OF_THREAD = threading.local()


def _buffers(count: int, size: int) -> list[Tensor]:
    """Bytes that a thread reads into again and again, because new memory takes longer than what is read into it."""
    held: list[Tensor] = getattr(_OF_THREAD, "buffers", [])
    if len(held) < count or held[0].numel() < size:
        held = _OF_THREAD.buffers = [torch.empty(size, dtype=torch.uint8) for _ in range(count)]
    return held[:count]


def _keep_masks(tensors: Sequence[StoredTensor], factors: Floats, start: int, stop: int, sums: Tensor) -> None:
    for total, row in zip(sums, factors, strict=True):
        bad = ~total.isfinite()
        if not bad.any():
            continue
        values = [
            tensor.read(start, stop).to(sums.dtype)[bad] for tensor, factor in zip(tensors, row, strict=True) if factor
        ]
        if any(not torch.equal(one, values[-1]) for one in values) or values[-1].isfinite().any():
            broken = next(tensor for tensor in tensors if not tensor.read(start, stop).to(sums.dtype).isfinite().all())
            raise CheckpointError(
                f"{broken.file.name} holds numbers that are not finite: a run that broke down cannot be averaged; "
                "leave the file out"
            )
        total[bad] = values[-1]
