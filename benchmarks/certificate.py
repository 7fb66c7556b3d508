"""What the certificate of a merge promises: its numbers beside real distances and losses, on recorded runs.

For each seed of the article's run, 100 random schemes are merged from what 32 steps left in files, of three kinds: raw
weights, means of windows, EDM2's two power-function averages.  The true average, over all steps, is known, because
every step was recorded.

    python -m benchmarks.certificate
    python -m benchmarks.certificate --table       only the table of files against error
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from emacore import Constant, PowerFunction, RunConfig, Trajectory, Window, train
from emacore.averaging.coefficients import (
    Averaged,
    Profile,
    Span,
    best_coefficients,
    certificate,
    split_linearly,
    target_of,
)
from emacore.averaging.expected import expected_distances
from emacore.averaging.held import squared_distances
from emacore.averaging.weights import weights
from emacore.averaging.windows import Scheme
from emacore.tasks import open_run

KINDS = ("raw", "windows", "power")
FILES = 32
WIDTHS = (0.02, 0.07, 0.15, 0.25)

Floats = NDArray[np.float64]


def stored(kind: str, calls: int, count: int) -> list[Profile]:
    """The profiles of files stored at ``count`` steps, evenly spread over ``calls``; "power" has two files at each."""
    ends = [calls * (n + 1) // count - 1 for n in range(count)]
    if kind == "raw":
        return [Span(end, end) for end in ends]
    if kind == "windows":
        return [Span(begin + 1, end) for begin, end in zip([-1, *ends[:-1]], ends, strict=True)]
    both = [PowerFunction(sigma_rel=width).decays(calls) for width in (0.05, 0.10)]
    return [Averaged(end, decays) for end in ends for decays in both]


def coefficients(kind: str, target: Floats, profiles: list[Profile]) -> Floats:
    """The coefficients of the files, as ``emacore merge`` finds them."""
    if kind == "raw":
        return split_linearly(target, [profile.end for profile in profiles])
    return best_coefficients(target, profiles, nonnegative=kind == "windows")


def weighed(profile: Profile, calls: int) -> Floats:
    result = np.zeros(calls)
    if isinstance(profile, Span):
        result[profile.begin : profile.end + 1] = 1 / (profile.end - profile.begin + 1)
    else:
        result[: profile.end + 1] = weights(profile.decays[: profile.end + 1])
    return result


def random_schemes(calls: int, count: int) -> list[Scheme]:
    generator = np.random.default_rng(0)
    found: list[Scheme] = []
    for _ in range(count):
        memory = float(np.exp(generator.uniform(np.log(3), np.log(calls / 3))))
        match generator.integers(3):
            case 0:
                found.append(Constant(1 - 1 / memory))
            case 1:
                found.append(Window(max(2, round(memory))))
            case _:
                found.append(PowerFunction(sigma_rel=float(generator.uniform(0.01, 0.28))))
    return found


def compared(run: Trajectory, count: int) -> dict[str, Floats]:
    """For each kind of files a row a scheme: the noise that the certificate tells of, its error, the distance of the
    merge from the true average (L2), the relative difference in loss, and the distance that was to be expected."""
    rows = np.asarray(run.weights, dtype=np.float64)
    calls = len(rows)
    schemes = random_schemes(calls, count)
    targets = np.stack([target_of(scheme, 0, calls) for scheme in schemes])
    exact = targets @ rows
    loss = run.measured[0].column
    true_loss = run.measure(exact.astype(np.float32))[loss]
    result = {}
    for kind in KINDS:
        profiles = stored(kind, calls, FILES)
        files = np.stack([weighed(profile, calls) @ rows for profile in profiles])
        found = np.stack([coefficients(kind, target, profiles) for target in targets])
        told = [certificate(target, profiles, factors) for target, factors in zip(targets, found, strict=True)]
        merged = found @ files
        away = np.linalg.norm(merged - exact, axis=1)
        loss_away = np.abs(run.measure(merged.astype(np.float32))[loss] / true_loss - 1)
        # By how much independent noise of size 1 a step moves merge and true average apart.
        noise = [one.error / np.sqrt(one.wanted) for one in told]
        expected = expected_distances(list(targets), profiles, found, squared_distances(files))
        result[kind] = np.column_stack([noise, [one.error for one in told], away, loss_away, expected])
    return result


def table() -> None:
    calls = 20_000
    print(f"Relative L2 error of the profile, and the sum of absolute coefficients, {calls:,} steps")
    print("kind     files  " + "".join(f"sigma_rel {width:<10g}" for width in WIDTHS))
    for kind in KINDS:
        for count in (8, 16, 32, 64, 128):
            profiles = stored(kind, calls, count)
            cells = []
            for width in WIDTHS:
                target = target_of(PowerFunction(sigma_rel=width), 0, calls)
                told = certificate(target, profiles, coefficients(kind, target, profiles))
                cells.append(f"{told.error:.2g} ({told.amplification:.3g})")
            print(f"{kind:<9}{len(profiles):<7}" + "".join(f"{cell:<20}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="Runs that are recorded.")
    parser.add_argument("--schemes", type=int, default=100, help="Merges of each kind of files in a run.")
    parser.add_argument("--epochs", type=int, default=30, help="Length of a run.")
    parser.add_argument("--table", action="store_true", help="Print only the table of files against error.")
    arguments = parser.parse_args()
    table()
    if arguments.table:
        return
    found: dict[str, list[Floats]] = {kind: [] for kind in KINDS}
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            train(RunConfig(seed=seed, max_epochs=arguments.epochs), record=Path(folder) / "run")
            for kind, rows in compared(open_run(Path(folder) / "run"), arguments.schemes).items():
                found[kind].append(rows)
    print(f"\n{arguments.seeds} seeds, {arguments.schemes} schemes, {FILES} files: Spearman's rank correlation of the")
    print("certificate's noise with the distance from the true average, and with the relative difference in loss")
    for kind in (*KINDS, "all"):
        parts = found[kind] if kind != "all" else [np.concatenate(one) for one in zip(*found.values(), strict=True)]
        both = [[spearmanr(part[:, 0], part[:, column]).statistic for part in parts] for column in (2, 3)]
        whole = np.concatenate(parts)
        print(
            f"{kind:<8} distance {np.mean(both[0]):.2f} (from {min(both[0]):.2f} to {max(both[0]):.2f}), "
            f"loss {np.mean(both[1]):.2f} (from {min(both[1]):.2f} to {max(both[1]):.2f}); profile error "
            f"{np.median(whole[:, 1]):.2g} (median), loss off by {np.median(whole[:, 3]):.2%} (median), "
            f"{np.max(whole[:, 3]):.1%} (most)"
        )
    both = [[spearmanr(part[:, 4], part[:, column]).statistic for part in found["raw"]] for column in (2, 3)]
    ratios = np.concatenate([part[:, 4] / part[:, 2] for part in found["raw"]])
    low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
    print(
        f"raw, by how the files lie to each other: distance {np.mean(both[0]):.2f} (from {min(both[0]):.2f} to "
        f"{max(both[0]):.2f}), loss {np.mean(both[1]):.2f} (from {min(both[1]):.2f} to {max(both[1]):.2f}); expected "
        f"{middle:.2f} times the real distance (median), from {low:.2f} to {high:.2f} in 90 % of cases"
    )


if __name__ == "__main__":
    main()
