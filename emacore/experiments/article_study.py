"""The article's experiment over many seeds, asked as a practitioner would: the study that ships.  Imports no torch."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pandas as pd

from emacore.experiments.evidence import comparison_of
from emacore.experiments.statistics import PairedComparison, interval_in_words, over_pairs, paired_comparison
from emacore.formatting import signed_percent
from emacore.tasks.regression.article import LAST_EPOCH
from emacore.tasks.regression.config import RunConfig
from emacore.training.config import OptimizerConfig, StoppingConfig

#: The study: a line that says how it was made, then one row for each experiment and seed.
SHIPPED = Path(__file__).with_name("article_study.csv")
#: What it says, :func:`in_words`, a line each: found once, since the statistics take longer to load than a page.
WORDS = SHIPPED.with_suffix(".txt")

ARTICLE, ON_ORIGINAL = "rules on the average", "rules on the original"
FIXED, FIXED_ON_ORIGINAL = "fixed length, plateau on the average", "fixed length, plateau on the original"
HIGH_RATE = "a learning rate of 0.01, never lowered"

_FIXED_LENGTH = RunConfig(stopping=StoppingConfig("none"), max_epochs=LAST_EPOCH)
_PLATEAU_ON_ORIGINAL = OptimizerConfig(plateau_curve="original")
#: The article's settings, under rules that look at one curve or the other, and a setting of which averaging has more.
EXPERIMENTS = {
    ARTICLE: RunConfig(),
    ON_ORIGINAL: RunConfig(optimizer=_PLATEAU_ON_ORIGINAL, stopping=StoppingConfig("original")),
    FIXED: _FIXED_LENGTH,
    FIXED_ON_ORIGINAL: replace(_FIXED_LENGTH, optimizer=_PLATEAU_ON_ORIGINAL),
    HIGH_RATE: RunConfig(
        optimizer=OptimizerConfig(learning_rate=0.01, rate_rule="constant"),
        stopping=StoppingConfig("none"),
        max_epochs=60,
    ),
}


def shipped() -> tuple[pd.DataFrame, str]:
    """The shipped study and how, when and with what it was made.

    The columns are those of :func:`~emacore.experiments.evidence.per_seed` and ``experiment``, of :data:`EXPERIMENTS`.
    """
    made, _, content = SHIPPED.read_text().partition("\n")
    return pd.read_csv(io.StringIO(content)), made.removeprefix("# ")


def shipped_words() -> tuple[list[str], str]:
    """What the shipped study says, in sentences, and how, when and with what it was made."""
    with SHIPPED.open() as file:
        return WORDS.read_text().splitlines(), file.readline().strip().removeprefix("# ")


def comparisons(table: pd.DataFrame) -> dict[str, PairedComparison]:
    """What the shipped study says of the loss of original and average, by how it is asked.

    Returns:
        ``as the article``: the final loss of its own runs.  ``fixed length`` and ``fixed length, plateau on the
        original``: the loss after 97 epochs.  ``own rules``: seed by seed, the original at the end of a run whose rules
        look at it, against the average at the end of one whose rules look at the average.  ``best``: the lowest losses
        of 97 epochs.  ``steadiness``: the standard deviation from epoch 20 on, of the article's runs.  ``high rate``:
        the final loss at a learning rate that stays high.
    """
    parts = {name: rows.set_index("seed") for name, rows in table.groupby("experiment")}
    own = parts[ON_ORIGINAL]["final_original"], parts[ARTICLE]["final_ema"].reindex(parts[ON_ORIGINAL].index)
    found = {
        "as the article": comparison_of(parts[ARTICLE], "final"),
        "fixed length": comparison_of(parts[FIXED], "final"),
        "fixed length, plateau on the original": comparison_of(parts[FIXED_ON_ORIGINAL], "final"),
        "own rules": paired_comparison(*own),
        "best": comparison_of(parts[FIXED], "best"),
        "steadiness": comparison_of(parts[ARTICLE], "steadiness"),
        "high rate": comparison_of(parts[HIGH_RATE], "final"),
    }
    return {name: one for name, one in found.items() if one is not None}


def in_words(table: pd.DataFrame) -> list[str]:
    """What the shipped study says, in sentences; each names what it was chosen on."""
    found = comparisons(table)
    article = EXPERIMENTS[ARTICLE]
    steady = found["steadiness"]
    return [
        f"With the article's settings the average's curve is steadier in {steady.wins} of {steady.seeds} seeds. At the "
        f"end of the run its loss is {_beside(found['as the article'])}: but early stop and learning rate look at the "
        f"average there, and a run that ends {article.stopping.patience} epochs after the average's best shows the "
        "average past its best.",
        f"At a fixed length of {LAST_EPOCH} epochs, that of the article's one run, it is "
        f"{_beside(found['fixed length'])}; there the learning rate still looks at the average, and if it looks at the "
        f"original, it is {_beside(found['fixed length, plateau on the original'])}.",
        "Each as it would be trained alone, the original where rules that look at the original end it, the average "
        "where rules that look at the average do, both on the validation rows they are judged by, it is "
        f"{_beside(found['own rules'])}.",
        f"The lowest of {LAST_EPOCH} epochs, picked on the validation rows it is judged by, which favours the less "
        f"steady curve, is {_beside(found['best'])}.",
        f"With {HIGH_RATE}, after {EXPERIMENTS[HIGH_RATE].max_epochs} epochs, it is {_beside(found['high rate'])}.",
    ]


def _beside(one: PairedComparison) -> str:
    """The average's loss beside the original's."""
    median = one.median
    return (
        f"lower in {one.wins} of {one.seeds} seeds (median gain {signed_percent(median.estimate)} over "
        f"{over_pairs(one)}, "
        f"{interval_in_words(median)})"
    )
