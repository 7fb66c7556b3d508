"""What a merge of checkpoints is going to be: files, coefficients, certificates, bytes; only headers are read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray

from emacore.averaging.code import merge_to_code
from emacore.averaging.coefficients import (
    FITS,
    Averaged,
    Certificate,
    Coefficients,
    Fit,
    Merge,
    Profile,
    Span,
    karras_decays,
)
from emacore.averaging.families import PowerFunction
from emacore.averaging.planned import planned
from emacore.checkpoints.reading import Checkpoint, Checkpoints, check_alike
from emacore.checkpoints.sections import Section
from emacore.checkpoints.stored import DTYPE_NAMES, CheckpointError, StoredTensor
from emacore.checks import check_choice, check_named, check_whole, numbers
from emacore.formatting import number, percent
from emacore.limits import MERGED_STEPS, check_most
from emacore.tensors.pairing import listed

Floats = NDArray[np.float64]
#: Vectors that fit one weight matrix only, as spectral normalisation keeps them; and what BatchNorm measured.
_OF_ONE_MATRIX = re.compile(r"(^|\.)(weight_[uv]|_[uv])$")
_STATISTICS = re.compile(r"(^|\.)running_(mean|var)$")

#: Share of the largest coefficient below which one is what least squares leave in rounding: its file is not read.
_NOTHING = 1e-14

UPDATE_BN = "torch.optim.swa_utils.update_bn(loader, model)"


@dataclass(frozen=True)
class MergeSource:
    """One stored set of weights that takes part in a merge."""

    checkpoint: Checkpoint
    section: Section
    profile: Profile


@dataclass(frozen=True)
class Result:
    """What one merge is going to be.

    Attributes:
        coefficients: Of each source, shape (N,).
        told: Its certificate; of explicit coefficients, or a schedule of files, which no average over steps stands for,
            without what is compared with it.
        nonnegative, free: The least errors that any coefficients of these files reach, adding to 1: with none below 0,
            and with any; not known where there is nothing to compare with.
    """

    name: str
    merge: Merge
    coefficients: Floats
    told: Certificate
    nonnegative: float
    free: float

    def in_words(self) -> str:
        """The certificate as a sentence."""
        told = self.told
        weight = "" if abs(told.total - 1) < 1e-9 else f"; the coefficients add to {number(told.total)}, not to 1"
        if math.isnan(told.error):
            return (
                f"averages noise as {_mean_of(told.reached)} does; rounding is amplified by up to "
                f"{number(told.amplification)}; there is no average over steps to compare with{weight}"
            )
        return (
            f"the weights of its steps miss the true ones by {percent(told.error)}, and no coefficients of these files "
            f"by less than {percent(self.free)} ({percent(self.nonnegative)} with none below 0); averages noise as "
            f"{_mean_of(told.reached)} does, wanted {number(told.wanted)}; rounding is amplified by up to "
            f"{number(told.amplification)}{weight}"
        )


def _mean_of(steps: float) -> str:
    return f"the mean of {number(steps)} {'step' if steps == 1 else 'steps'}"


@dataclass(frozen=True)
class MergePlan:
    """What a merge reads and writes.

    Attributes:
        sources: By rising step.
        remarks: Sentences on what to know of it.
        read_bytes, write_bytes: Of the tensors, and of all results together.
        calls: So many are averaged.
        fit: As it was asked for.
    """

    sources: tuple[MergeSource, ...]
    results: tuple[Result, ...]
    remarks: tuple[str, ...]
    read_bytes: int
    write_bytes: int
    dtype: torch.dtype | None = None
    calls: int = 0
    fit: Fit | None = None

    @property
    def used(self) -> NDArray[np.int64]:
        """The sources that some result needs."""
        return np.flatnonzero(np.any([result.coefficients != 0 for result in self.results], axis=0))

    @property
    def needs_update_bn(self) -> list[str]:
        """The statistics of BatchNorm in it: averages of them are not those of the averaged weights."""
        return [name for name in self.sources[-1].section.tensors if _STATISTICS.search(name)]


class Options(TypedDict, total=False):
    """What :func:`plan_merge` can be told; :func:`~emacore.checkpoints.merging.merge` hands it on."""

    section: str | None
    last: int | None
    at: int | None
    fit: Fit | None
    sigma_rel: Sequence[float]
    update_every: int
    dtype: torch.dtype | None


def plan_merge(
    checkpoints: Checkpoints,
    merges: Mapping[str, Merge],
    *,
    section: str | None = None,
    last: int | None = None,
    at: int | None = None,
    fit: Fit | None = None,
    sigma_rel: Sequence[float] = (),
    update_every: int = 1,
    dtype: torch.dtype | None = None,
) -> MergePlan:
    """What :func:`~emacore.checkpoints.merging.merge` would do; nothing is read but headers.

    Args:
        merges: As of that.
        section: What to merge, by name: by default the only one of raw weights, or the snapshots there are.
        last: Only of the last so many checkpoints; then schedules begin at the first of them.
        at: The step after which the average is wanted; no later file is used.
        fit: How coefficients are found: ``linear``, where the weight of a step that is not stored goes to the two files
            beside it, or the best ones, adding to 1: ``nonnegative`` or ``free``.
        sigma_rel: Of the averages in ema-pytorch's ``PostHocEMA`` files, which do not tell it, in their order.
        update_every: With which those moved.
        dtype: Of the result; by default as stored.

    Raises:
        CheckpointError: if the files do not go together.
        ValueError: for a setting that does not fit them.
    """
    check_named("merges", merges)
    sigma_rel = numbers("sigma_rel", sigma_rel)
    if not merges:
        raise ValueError("name at least one scheme to merge by")
    if fit is not None:
        check_choice("fit", fit, FITS)
    if last is not None:
        check_whole("last", last, 1)
    if at is not None:
        check_whole("at", at, 0)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"dtype must be one of floating-point numbers, such as torch.float32, got {dtype!r}")
    if update_every != 1 and not sigma_rel:
        raise ValueError(f"update_every={update_every} is of stored averages whose widths sigma_rel tells: give both")
    if checkpoints.damaged:
        raise CheckpointError(
            f"a file cannot be read, and a merge without it would be another: {checkpoints.damaged[0]}; move it away, "
            "or name the files one by one"
        )
    chosen, names, remarks = _chosen(checkpoints, section, last, at, sigma_rel)
    sources, begin = _sources(chosen, names, last, sigma_rel, update_every)
    if len(names) == 1 and (kind := sources[0].section.kind) == "average" and isinstance(sources[0].profile, Span):
        remarks.append(
            f"{names[0]!r} holds an {kind} whose memory is not known: each file is taken for the weights of its own "
            "step, so the result remembers more than the certificate says"
        )
    if last is not None and begin:
        remarks.append(f"schedules begin at step {begin:,}, before which these files hold nothing")
    if at is not None and at > (newest := int(chosen.steps[-1])):
        remarks.append(f"no file is later than step {newest:,}: it gets the weight of all steps up to {at:,}")
    calls = (at if at is not None else int(chosen.steps[-1])) - begin + (not chosen.steps[0])
    results = tuple(_result(name, one, sources, calls, fit) for name, one in merges.items())
    tensors = sources[-1].section.tensors
    _check_writable(tensors, dtype)
    remarks += _remarks(sources, tensors)
    used = np.flatnonzero(np.any([result.coefficients != 0 for result in results], axis=0))
    size = sum(_stored_bytes(tensor, dtype) for tensor in tensors.values())
    return MergePlan(
        tuple(sources),
        results,
        tuple(remarks),
        sum(sources[n].section.nbytes for n in used.tolist()),
        size * len(results),
        dtype,
        calls,
        fit,
    )


def provenance(plan: MergePlan, result: Result, digests: Mapping[Path, str]) -> dict[str, Any]:
    """What a result was made of, as JSON can hold it."""
    files = [
        {
            "step": source.checkpoint.step,
            "section": source.section.name,
            "coefficient": float(factor),
            "files": {file.name: digests.get(file) for file in source.checkpoint.files},
        }
        for source, factor in zip(plan.sources, result.coefficients, strict=True)
        if factor
    ]
    return {
        "made_by": f"emacore {_version()}",
        "scheme": merge_to_code(result.merge),
        "step": plan.sources[-1].checkpoint.step,
        "sources": files,
        "certificate": {key: one for key, one in result.told._asdict().items() if math.isfinite(one)},
        "ties": dict(plan.sources[-1].section.ties),
        "needs_update_bn": plan.needs_update_bn,
        "remarks": list(plan.remarks),
    }


def _version() -> str:
    # The package's own module names all of it, so that nothing in it may import it.
    return str(import_module("emacore").__version__)


def _chosen(
    checkpoints: Checkpoints, section: str | None, last: int | None, at: int | None, sigma_rel: Sequence[float]
) -> tuple[Checkpoints, list[str], list[str]]:
    """The checkpoints and sections that take part, and what to say of that."""
    remarks = []
    averages = checkpoints.names("average")
    powers = _powers(checkpoints, averages)
    if sigma_rel and section is None and averages:
        names = sorted(averages)
    elif section is None and len(powers) > 1:
        names = powers
        if checkpoints.names("raw"):
            remarks.append(f"made of the averages {listed(powers)}, which hold more steps than raw weights do")
    elif section is not None or checkpoints.names("raw"):
        names = [checkpoints.chosen(section)]
    elif windows := checkpoints.names("window"):
        names = [checkpoints.chosen(windows[0])]
    else:
        names = [checkpoints.chosen(None)]
    if section is None and (others := [one for one in checkpoints.names("raw") if one not in names]):
        remarks.append(f"made of {listed(names)}; there are {listed(others)}, too")
    found, _ = checkpoints.series(names[0])
    if len(found) < len(checkpoints):
        remarks.append(f"{len(checkpoints) - len(found)} of {len(checkpoints)} checkpoints have no {names[0]!r}")
    if at is not None:
        kept = int((found.steps <= at).sum())
        if not kept:
            raise ValueError(f"there is no checkpoint up to step {at:,}; the first is of step {found.steps[0]:,}")
        found = found[:kept]
    if last is not None:
        if last > len(found):
            remarks.append(f"there are only {len(found)} checkpoints")
        found = found[-last:]
    return found, names, remarks


def _powers(checkpoints: Checkpoints, averages: Sequence[str]) -> list[str]:
    """The power functions' averages: of each width the section that most checkpoints have."""
    found: dict[float, list[str]] = {}
    for name in averages:
        widths = {width for one in checkpoints if (width := _width(one.section(name))) is not None}
        for width in widths:
            found.setdefault(width, []).append(name)
    most = [
        max(names, key=lambda name: sum(one.section(name) is not None for one in checkpoints))
        for names in found.values()
    ]
    return [name for name in averages if name in most]


def _width(section: Section | None) -> float | None:
    """The relative width of a power function's average, where a file tells it."""
    value = None if section is None else section.about.get("sigma_rel")
    return float(value) if isinstance(value, (int, float)) else None


def _sources(
    chosen: Checkpoints, names: Sequence[str], last: int | None, sigma_rel: Sequence[float], update_every: int
) -> tuple[list[MergeSource], int]:
    """What takes part, with its profile, and the step before the first call."""
    if sigma_rel and len(sigma_rel) != len(names):
        raise ValueError(
            f"sigma_rel must be {len(names)} numbers, one for each of {listed(names)}; got {len(sigma_rel)}"
        )
    for name in names if sigma_rel else ():
        if any(part is not None and part.kind != "average" for part in (one.section(name) for one in chosen)):
            raise ValueError(f"sigma_rel is told of stored averages, and {name!r} holds none")
    steps = chosen.steps
    shift = 0 if steps[0] == 0 else 1  # a call follows each step, and one the initial weights
    calls = int(steps[-1]) + 1 - shift
    check_most("steps of a merge", calls, MERGED_STEPS)
    decays: dict[str, Floats] = {}
    for place, name in enumerate(names):
        width = _width(chosen[-1].section(name))
        if sigma_rel:
            decays[name] = karras_decays(PowerFunction(sigma_rel=sigma_rel[place]).exponent, calls, update_every)
        elif width is not None:
            decays[name] = PowerFunction(sigma_rel=width).decays(calls)
    begin = 0
    sources: list[MergeSource] = []
    for one in chosen:
        for name in names:
            section = one.section(name)
            if section is None:
                raise CheckpointError(f"the checkpoint of step {one.step} has no {name!r}, which the others have")
            if sources:
                check_alike(
                    sources[0].section, section, f"{names[0]!r} of step {chosen[0].step}", f"that of {one.step}"
                )
            call = one.step - shift
            profile: Profile
            if name in decays:
                profile = Averaged(call, decays[name])
            elif section.kind == "window":
                first = int(section.about["begin"]) - shift
                if not sources:
                    begin = first if last is not None else 0
                profile = Span(first - begin, call - begin)
            else:
                if not sources:
                    begin = call if last is not None else 0
                profile = Span(call - begin, call - begin)
            sources.append(MergeSource(one, section, profile))
    return sources, begin


def _result(name: str, asked: Merge, sources: Sequence[MergeSource], calls: int, fit: Fit | None) -> Result:
    found = planned(asked, [source.profile for source in sources], calls, fit)
    coefficients = found.coefficients.copy()
    if not isinstance(asked, Coefficients):
        coefficients[np.abs(coefficients) < _NOTHING * np.abs(coefficients).max()] = 0.0
    return Result(name, asked, coefficients, found.certificate, found.nonnegative, found.free)


def _remarks(sources: Sequence[MergeSource], tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    if copied := [name for name, tensor in tensors.items() if is_copied(name, tensor)]:
        yield f"copied from step {sources[-1].checkpoint.step:,}, not averaged: {listed(copied)}"
        if sum(tensors[name].nbytes for name in copied) > sum(tensor.nbytes for tensor in tensors.values()) / 2:
            yield "more than half of the bytes are whole numbers: these are quantised weights, which no merge averages"
    if statistics := [name for name in tensors if _STATISTICS.search(name)]:
        yield f"statistics of BatchNorm are not those of merged weights ({listed(statistics, 2)}): call {UPDATE_BN}"


def _check_writable(tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None) -> None:
    for name, tensor in tensors.items():
        if (kind := dtype_of(tensor, dtype)) not in DTYPE_NAMES:
            cure = "write another dtype, such as float32" if kind.is_floating_point else "cast it in the files first"
            raise CheckpointError(f"{name!r} is {str(kind).removeprefix('torch.')}, which cannot be written: {cure}")


def is_copied(name: str, tensor: StoredTensor) -> bool:
    return not tensor.is_averaged or bool(_OF_ONE_MATRIX.search(name))


def _stored_bytes(tensor: StoredTensor, dtype: torch.dtype | None) -> int:
    return tensor.numel * dtype_of(tensor, dtype).itemsize


def dtype_of(tensor: StoredTensor, dtype: torch.dtype | None) -> torch.dtype:
    """What a tensor has in the result; whole numbers and complex ones stay what they are."""
    return tensor.dtype if dtype is None or not tensor.dtype.is_floating_point else dtype
