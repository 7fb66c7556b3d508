"""What a merge of stored files is: the coefficients, and how near they come to what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emacore.averaging.coefficients import (
    FITS,
    Certificate,
    Coefficients,
    Fit,
    LastFiles,
    Merge,
    Profile,
    Span,
    best_coefficients,
    certificate,
    split_linearly,
    target_of,
)
from emacore.checks import check_choice
from emacore.formatting import counted, number
from emacore.limits import MERGED_STEPS, check_most

Floats = NDArray[np.float64]


class Planned(NamedTuple):
    """A merge of N files.

    Attributes:
        coefficients: Of each file, shape (N,).
        target: What each call weighs in the average that it stands for, shape (T,); ``None`` where it stands for none,
            as explicit coefficients, or a schedule of files.
        certificate: Beside the target; without one, ``error`` and ``wanted`` are NaN.
        nonnegative, free: The least errors that any coefficients of these files reach: with none below 0, and with any;
            NaN without a target, and where they were not looked for.
    """

    coefficients: Floats
    target: Floats | None
    certificate: Certificate
    nonnegative: float
    free: float


def planned(
    asked: Merge, profiles: Sequence[Profile], calls: int, fit: Fit | None = None, *, bests: bool = True
) -> Planned:
    """The coefficients of a merge of files with ``profiles``, and its certificate.

    Args:
        profiles: Of N files, by rising calls.
        calls: So many are averaged; no file is of a later one.
        fit: By default the weight of a step that is not stored is split between its neighbours ("linear"), where all
            files are raw; means of windows get the best coefficients not below 0, other averages the best ones.
        bests: Whether the least errors of any coefficients are looked for, which takes most of the time.

    Raises:
        ValueError: for a merge, or a fit, that these files cannot give.
    """
    check_most("steps of a merge", calls, MERGED_STEPS)
    raw = all(isinstance(one, Span) and one.begin == one.end for one in profiles)
    target = None
    if isinstance(asked, (LastFiles, Coefficients)):
        coefficients = asked.coefficients(len(profiles))
        first = profiles[int(np.flatnonzero(coefficients)[0])]
        if isinstance(asked, LastFiles) and asked.schedule is None and isinstance(first, Span):
            target = np.zeros(calls)
            target[first.begin :] = 1
            target /= target.sum()
    else:
        first = profiles[0]
        target = target_of(asked, first.begin if isinstance(first, Span) else first.end, calls)
        if fit is None:
            fit = "linear" if raw else "nonnegative" if all(isinstance(one, Span) for one in profiles) else "free"
        check_choice("fit", fit, FITS)
        if fit == "linear" and not raw:
            raise ValueError(
                "fit='linear' is for raw weights; means and averages are combined by the best coefficients"
            )
        if fit == "linear":
            coefficients = split_linearly(target, [one.end for one in profiles])
        else:
            coefficients = best_coefficients(target, profiles, nonnegative=fit == "nonnegative")
    if target is None:
        found = certificate(np.full(calls, 1 / calls), profiles, coefficients)
        return Planned(coefficients, None, found._replace(error=np.nan, wanted=np.nan), np.nan, np.nan)
    if not bests:
        return Planned(coefficients, target, certificate(target, profiles, coefficients), np.nan, np.nan)
    best = (
        certificate(target, profiles, best_coefficients(target, profiles, nonnegative=nonnegative)).error
        for nonnegative in (True, False)
    )
    return Planned(coefficients, target, certificate(target, profiles, coefficients), *best)


#: What holds of every certificate.
PROMISE = (
    "The certificate is about the weights of steps alone. It promises how much of the noise of single steps a merge "
    "keeps, and how near it is to the average that would have been kept at every step. It says nothing of the loss: "
    "neighbouring steps are much alike, so a few raw files are often nearly as good as all steps, whatever the error. "
    "Whether a merge is better than the last file only an evaluation can tell."
)


def planned_in_words(found: Planned) -> str:
    """What the certificate of a merge says."""
    one = found.certificate
    files = counted(int((found.coefficients != 0).sum()), "file weighs something", "files weigh something")
    told = (
        f"{files}. Where the noise of single steps is independent, the merge keeps as much of it as the mean of "
        f"{number(one.reached, 3)} steps does"
    )
    if np.isnan(one.error):
        told += "; it stands for no average over all steps, so nothing is compared with it."
    else:
        best = min(found.nonnegative, found.free)
        told += (
            f"; the average over all steps that it stands for, as that of {number(one.wanted, 3)}. The weights of its "
            f"steps miss that average's by {number(one.error, 3)} times their size (L2)"
        )
        told += (
            f", those by the best coefficients for these files by {number(best, 3)} times."
            if best < 0.98 * one.error
            else "; no other coefficients for these files miss them by much less."
        )
    if abs(one.total - 1) > 1e-6:
        told += f" The coefficients add to {number(one.total)}, not 1: such a merge is not on the scale of the weights."
    if one.amplification > 1.5 * abs(one.total):
        told += f" Rounding in the files is amplified by up to {number(one.amplification, 3)}."
    return told
