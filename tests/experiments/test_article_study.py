import re

import numpy as np
import pytest

from emacore.experiments.article_study import (
    ARTICLE,
    EXPERIMENTS,
    FIXED,
    FIXED_ON_ORIGINAL,
    HIGH_RATE,
    ON_ORIGINAL,
    comparisons,
    in_words,
    shipped,
    shipped_words,
)
from emacore.experiments.evidence import looking_at
from emacore.experiments.statistics import kind_of
from emacore.tasks.regression.article import LAST_EPOCH


def parts():
    return {name: rows.set_index("seed") for name, rows in shipped()[0].groupby("experiment", sort=False)}


def test_the_shipped_study_is_of_these_experiments_and_says_what_it_was_made_with():
    _, made = shipped()
    assert made.startswith("python -m benchmarks.article_study, 20")
    assert "torch 2" in made
    assert list(parts()) == list(EXPERIMENTS)
    assert {len(rows) for rows in parts().values()} == {32}


def test_each_experiment_has_the_rules_of_its_name():
    looks = {name: {curve: len(rules) for curve, rules in looking_at(c).items()} for name, c in EXPERIMENTS.items()}
    assert looks == {
        ARTICLE: {"ema": 2, "original": 0},
        ON_ORIGINAL: {"ema": 0, "original": 2},
        FIXED: {"ema": 1, "original": 0},
        FIXED_ON_ORIGINAL: {"ema": 0, "original": 1},
        HIGH_RATE: {"ema": 0, "original": 0},
    }
    found = parts()
    for name in (FIXED, FIXED_ON_ORIGINAL):
        assert (found[name]["epochs"] == LAST_EPOCH).all()
    # Where a rule looks at a curve, the run ends where that curve's own early stop ends it.
    assert (found[ARTICLE]["own_epoch_ema"] == found[ARTICLE]["epochs"]).all()
    assert (found[ON_ORIGINAL]["own_epoch_original"] == found[ON_ORIGINAL]["epochs"]).all()
    assert found[ARTICLE]["own_ended_ema"].all()


def test_the_answers_are_those_of_the_rows():
    rows, found = parts(), comparisons(shipped()[0])
    pairs = {
        "as the article": (rows[ARTICLE]["final_original"], rows[ARTICLE]["final_ema"]),
        "fixed length": (rows[FIXED]["final_original"], rows[FIXED]["final_ema"]),
        "own rules": (rows[ON_ORIGINAL]["final_original"], rows[ARTICLE]["final_ema"]),
        "best": (rows[FIXED]["best_original"], rows[FIXED]["best_ema"]),
        "high rate": (rows[HIGH_RATE]["final_original"], rows[HIGH_RATE]["final_ema"]),
    }
    for name, (original, averaged) in pairs.items():
        assert found[name].wins == (averaged < original).sum()
        assert found[name].median.estimate == pytest.approx(np.median(1 - averaged / original))
    assert found["steadiness"].wins == 32
    assert kind_of(found["as the article"]) not in ("helps", "hurts")
    assert kind_of(found["high rate"]) == "helps"


def test_the_words_name_the_stop_beside_the_articles_number_and_follow_the_file():
    table, _ = shipped()
    found, said = comparisons(table), in_words(table)
    named = [
        "as the article",
        "fixed length",
        "fixed length, plateau on the original",
        "own rules",
        "best",
        "high rate",
    ]
    told = re.findall(r"lower in (\d+) of (\d+) seeds \(median gain ([+-][\d.]+) %", " ".join(said))
    assert [(int(wins), int(seeds)) for wins, seeds, _ in told] == [(found[n].wins, found[n].seeds) for n in named]
    assert [float(gain) for *_, gain in told] == pytest.approx(
        [100 * found[n].median.estimate for n in named], rel=6e-3
    )
    assert "early stop and learning rate look at the average there" in said[0]
    table["final_ema"] = table["final_original"] / 2
    assert "lower in 32 of 32 seeds (median gain +50 %" in in_words(table)[0], "the words follow the file"


def test_the_words_that_ship_are_those_of_the_study_that_ships():
    table, made = shipped()
    assert shipped_words() == (in_words(table), made)
