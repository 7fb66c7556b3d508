"""Planes and lines through the weights of a recorded run, and the loss on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # whose parts are loaded where they are used
from numpy.typing import NDArray

from emacore.averaging.windows import Scheme
from emacore.checks import check_unit
from emacore.replay.trajectory import Table, Trajectory

Floats = NDArray[np.floating]

#: Most points of a path, and points along each side of a landscape.
PATH_POINTS = 400
SIDE = 28


@dataclass(frozen=True)
class Plane:
    """A plane in the space of the weights: ``origin`` of shape (P,) and two orthonormal ``axes`` of shape (2, P)."""

    origin: Floats
    axes: Floats

    def coordinates(self, networks: Floats) -> Floats:
        """The places, shape (N, 2), at which flat weights of shape (N, P) lie when looked at from above the plane."""
        return np.asarray((networks - self.origin) @ self.axes.T)

    def share(self, path: Floats) -> float:
        """The share of a path's variance, summed over all weights, that the plane shows; NaN for a path at rest."""
        shown = np.var(self.coordinates(path), axis=0).sum()
        whole = np.var(path.astype(np.float64), axis=0).sum()
        return float(shown / whole) if whole else float("nan")


def through_points(points: Floats) -> Plane:
    """The plane through three points, shape (3, P); the first axis points from the first to the second.

    Raises:
        ValueError: if they lie on a line.
    """
    first, second = (points[1:] - points[0]).astype(np.float64)
    length = np.linalg.norm(first)
    if length:
        first = first / length
        second = second - (second @ first) * first
    height = np.linalg.norm(second)
    if not length or height <= 1e-6 * length:
        raise ValueError("the three points lie on a line, so there is no one plane through them")
    return Plane(points[0].astype(np.float64), np.stack([first, second / height]))


def principal(path: Floats) -> Plane:
    """The plane of the first two principal components of a path, shape (N, P) with N of at least 3.

    Found from the N x N inner products, because a path has fewer points than weights.
    """
    origin = path.mean(axis=0, dtype=np.float64)
    centred = path.astype(np.float64) - origin
    _, vectors = scipy.linalg.eigh(centred @ centred.T, subset_by_index=(len(path) - 2, len(path) - 1))
    spanned, _ = np.linalg.qr(centred.T @ vectors[:, ::-1])
    return Plane(origin, spanned.T)


def path_rows(trajectory: Trajectory, from_share: float = 0.0) -> list[int]:
    """At most :data:`PATH_POINTS` recorded rows, evenly spread from a share of the run to its end.

    Raises:
        ValueError: if the share is outside [0, 1].
    """
    check_unit("from_share", from_share)
    rows = len(trajectory.weights)
    first = min(int(from_share * rows), max(0, rows - 3))
    return np.unique(np.linspace(first, rows - 1, PATH_POINTS).round().astype(int)).tolist()  # type: ignore[no-any-return]


def landscape(trajectory: Trajectory, plane: Plane, places: Floats, margin: float = 0.15) -> Table:
    """The validation loss on a grid of the plane, evaluated in one batched call: u, v, loss.

    The grid covers ``places``, shape (N, 2), with a margin on each side.
    """
    low, high = places.min(axis=0), places.max(axis=0)
    room = margin * np.maximum(high - low, 1e-3 * np.ptp(places) + 1e-12)
    u, v = (np.linspace(a, b, SIDE) for a, b in zip(low - room, high + room, strict=True))
    grid = np.stack(np.meshgrid(u, v), axis=-1).reshape(-1, 2)
    networks = (plane.origin + grid @ plane.axes).astype(np.float32)
    return {"u": grid[:, 0], "v": grid[:, 1], "loss": _losses(trajectory, networks)}


def along_line(trajectory: Trajectory, start: Floats, end: Floats, points: int = 61) -> Table:
    """The validation loss on the line from ``start`` (position 0) to ``end`` (position 1) and half beyond both ways."""
    positions = np.linspace(-0.5, 1.5, points)
    networks = start + positions[:, np.newaxis] * (end.astype(np.float64) - start)
    return {"position": positions, "loss": _losses(trajectory, networks.astype(np.float32))}


@dataclass(frozen=True)
class Space:
    """What :func:`space` finds: of N steps of the run, the last included.

    Attributes:
        steps: Shape (N,).
        original, averaged: Places in the plane, shape (N, 2).
        original_share, averaged_share: The share of each path's variance that the plane shows.
        landscape: The loss over the plane: u, v, loss.
        line: The loss along the line from the last weights to their average: position, loss.
        distances: Euclidean distances from the last weights: step, original, ema.
    """

    steps: NDArray[np.integer]
    original: Floats
    averaged: Floats
    original_share: float
    averaged_share: float
    landscape: Table
    line: Table
    distances: Table


def space(trajectory: Trajectory, scheme: Scheme, kind: str, from_share: float = 0.0) -> Space:
    """The weights of a run and their average, from a share of the run to its end, seen on a plane.

    Args:
        kind: "principal components" of the weights' path, or "three points": its first weights, its last, and their
            average.

    Raises:
        ValueError: for another kind, a share outside [0, 1], fewer than three steps, weights that are not finite, or
            three points on a line.
    """
    rows = path_rows(trajectory, from_share)
    if len(rows) < 3:
        raise ValueError(f"a plane needs at least three recorded steps, there are {len(rows)}")
    original = np.asarray(trajectory.weights[rows], dtype=np.float32)
    averaged = trajectory.average([scheme], rows)[0]
    for whose, path in (("weights", original), ("averages", averaged)):
        lost = np.flatnonzero(~np.isfinite(path).all(axis=1))
        if lost.size:
            step = int(trajectory.rows.steps[rows[lost[0]]])
            told = f"its {whose} are not finite at step {step:,}"
            raise ValueError(f"there is no plane through a run that diverged: {told}")
    if kind == "principal components":
        plane = principal(original)
    elif kind == "three points":
        plane = through_points(np.stack([original[0], original[-1], averaged[-1]]))
    else:
        raise ValueError(f'kind must be "principal components" or "three points", got {kind!r}')
    steps = trajectory.rows.steps[rows]
    places = plane.coordinates(original), plane.coordinates(averaged)
    end = original[-1]
    return Space(
        steps,
        *places,
        plane.share(original),
        plane.share(averaged),
        landscape(trajectory, plane, np.concatenate(places)),
        along_line(trajectory, end, averaged[-1]),
        {"step": steps, "original": _distances(original, end), "ema": _distances(averaged, end)},
    )


def _losses(trajectory: Trajectory, networks: Floats) -> Floats:
    return trajectory.measure(networks)[trajectory.measured[0].column]


def _distances(path: Floats, end: Floats) -> Floats:
    return np.asarray(np.linalg.norm(path.astype(np.float64) - end, axis=1))
