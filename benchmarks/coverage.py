"""How often the 95 % intervals of median and mean hold the truth, over shapes of gains and numbers of seeds.

Writes the result that ships with the package, from which the pages take their words.

Run: python -m benchmarks.coverage
"""

import datetime
import platform
from importlib.metadata import version

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from emacore.experiments.coverage import SHAPES, SHIPPED, coverage
from emacore.experiments.statistics import BCA, CLASSICAL

#: By the kind of intervals: how many studies, and of how many seeds.  A bootstrap costs a thousand times as much.
CASES = {
    CLASSICAL: (40_000, (6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128, 256)),
    BCA: (2_000, (8, 16, 32, 64, 128)),
}


def rows(shape: str, intervals: str, seeds: int, studies: int) -> list[dict[str, object]]:
    rng = np.random.default_rng([list(SHAPES).index(shape), list(CASES).index(intervals), seeds])
    found = coverage(shape, intervals, seeds, studies, rng)
    case = {"shape": shape, "intervals": intervals, "seeds": seeds, "studies": studies}
    return [{**case, "statistic": name, "held": share} for name, share in found.items()]


if __name__ == "__main__":
    cases = [(shape, kind, n, studies) for kind, (studies, seeds) in CASES.items() for n in seeds for shape in SHAPES]
    parts = Parallel(n_jobs=2)(delayed(rows)(*case) for case in cases)
    table = pd.DataFrame([row for part in parts for row in part])
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy"))
    made = f"# python -m benchmarks.coverage, {datetime.date.today()}, Python {platform.python_version()}, {versions}"
    SHIPPED.write_text(f"{made}\n{table.to_csv(index=False)}")
    wide = table.pivot(index=["intervals", "statistic", "seeds"], columns="shape", values="held")
    print(wide.to_string(float_format="%.3f"))
