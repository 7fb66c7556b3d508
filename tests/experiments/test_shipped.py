import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from emacore.averaging.code import to_code
from emacore.experiments import article_study, shipped
from emacore.experiments.evidence import answers, patience_of, per_seed
from emacore.experiments.sweep import columns_of, summary
from emacore.training.config import StoppingConfig, article_schedule
from emacore.training.replicas import replicate


def rows_of(experiment):
    """What the study of the article's experiments, which is trained by another command, has of one."""
    table, _ = article_study.shipped()
    return table[table["experiment"] == experiment].drop(columns="experiment").reset_index(drop=True)


def test_the_shipped_study_is_that_of_the_articles_run():
    run, history = shipped.study()
    assert (run.id, run.state, run.job) == (shipped.SHIPPED, "done", shipped.STUDY)
    found = per_seed(history, patience=patience_of(run.config))
    expected = rows_of(article_study.ARTICLE)
    pd.testing.assert_frame_equal(found, expected[found.columns], check_dtype=False, rtol=2e-5)
    wins, theirs = (
        {name: one.wins for name, one in answers(table).items()} for table in (found, expected.dropna(axis=1))
    )
    assert wins == theirs


def test_the_shipped_history_is_what_training_gives():
    """Of three seeds and three epochs, before rounding has grown."""
    config = replace(shipped.STUDY.config, max_epochs=3, stopping=StoppingConfig("none"))
    trained = replicate(config, (0, 7, 31)).history.set_index(["seed", "epoch"])
    kept = shipped.study()[1].set_index(["seed", "epoch"])
    pd.testing.assert_frame_equal(kept.loc[trained.index], trained[kept.columns], rtol=1e-4)


def test_the_shipped_sweep_has_every_cell_and_the_one_that_was_also_trained_alone():
    run, table = shipped.sweep()
    sweep = shipped.SWEEP
    assert (run.id, run.job) == (shipped.SHIPPED, sweep)
    assert list(table) == [*sweep.grid, *columns_of(sweep.config)]
    assert len(summary(table, list(sweep.grid))) == len(sweep.cells()) == 20
    assert (table.groupby(list(sweep.grid))["seed"].apply(tuple) == shipped.SEEDS).all()
    cell = (table["optimizer.learning_rate"] == 0.01) & (table["schedule"] == to_code(article_schedule()))
    expected = rows_of(article_study.HIGH_RATE)
    for name in ("final_original", "final_ema", "best_ema", "steadiness_original", "epochs"):
        np.testing.assert_allclose(table.loc[cell, name], expected[name], rtol=2e-5)


@pytest.mark.parametrize("path", [shipped.STUDY_FILE, shipped.SWEEP_FILE], ids=lambda path: path.stem)
def test_a_shipped_file_is_small_and_says_what_it_was_made_with(path):
    assert path.stat().st_size < 300_000
    assert shipped.made(path).startswith(f"{shipped.COMMAND}, 20")
    assert "torch 2" in shipped.made(path)


def test_what_a_page_changes_stays_its_own():
    for table in (shipped.study()[1], shipped.sweep()[1]):
        table["seed"] = -1
    assert set(shipped.study()[1]["seed"]) == set(shipped.sweep()[1]["seed"]) == set(shipped.SEEDS)


def test_neither_it_nor_what_is_told_of_a_study_needs_torch():
    code = """
import sys
from emacore.experiments import article_study, coverage, evidence, shipped, statistics
shipped.study(), shipped.sweep()
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
