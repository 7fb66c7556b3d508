import numpy as np
import pandas as pd
import pytest
import torch

from emacore.averaging.families import Constant, InversePower, PowerFunction
from emacore.averaging.weights import average
from emacore.averaging.windows import Window
from emacore.replay import curves
from emacore.replay.atlas import original, plateau
from emacore.replay.curves import (
    curve_figures,
    curve_in_words,
    smaller_rate_in_words,
    stacked,
    thinning_in_words,
)
from emacore.replay.measure import Metric, OneByOne
from emacore.replay.rows import Rows
from emacore.replay.trajectory import Trajectory
from emacore.replay.weight_space import space

LOSS, ERRORS, HITS = Metric("loss", "nats"), Metric("errors", "errors"), Metric("hits", "hits", higher_is_better=True)
METRICS = (LOSS, ERRORS, HITS)


def curve(epochs, losses):
    losses = np.asarray(losses, dtype=float)
    return {"epoch": np.asarray(epochs), "loss": losses, "errors": losses / 2, "hits": 1 - losses / 10}


def table(original, *others):
    """Curves of one run: the original, and others named a, b, ..."""
    named = dict(zip("abc", others, strict=False))
    return stacked({n: curve(range(1, len(v) + 1), v) for n, v in {"original": original, **named}.items()})


def figures(curves, from_epoch=1, original="original"):
    return pd.DataFrame(curve_figures(curves, METRICS, original, from_epoch)).set_index("curve")


def test_figures_of_curves_take_each_metric_by_its_own_direction():
    found = table([4.0, 3.0, 1.0, 2.0], [5.0, 2.0, 0.9, 0.8], [1.0, 1.0, 1.0, 3.0])
    rows = figures(found, 3)
    assert rows.loc["original", ["final", "best", "best_epoch"]].tolist() == [2.0, 1.0, 3]
    assert rows["ahead_since"].isna().tolist() == [True, False, True]
    others = rows.loc["b", ["final_errors", "best_errors", "final_hits", "best_hits"]]
    assert others.tolist() == pytest.approx([1.5, 0.5, 0.7, 0.9])
    assert rows.columns.tolist()[-4:] == ["final_errors", "best_errors", "final_hits", "best_hits"]
    assert rows.loc["a", "ahead_since"] == 2
    assert rows["ahead_for"].tolist() == [0, 3, 0]
    assert rows.loc["a", "steadiness"] == pytest.approx(np.std([0.9, 0.8], ddof=1))
    assert figures(found, 4)["steadiness"].isna().all()
    late = {name: values[found["epoch"] > 1] for name, values in found.items()}
    assert figures(late).loc["a", "ahead_since"] == 2
    backwards = {name: values[::-1] for name, values in found.items()}
    pd.testing.assert_frame_equal(figures(backwards, 3).loc[rows.index], rows)


def test_a_best_epoch_is_none_that_has_no_number():
    found = figures(table([np.nan, 2.0, 3.0], [np.nan, np.nan, np.nan]))
    assert found.loc["original", ["best", "best_epoch"]].tolist() == [2.0, 2]
    assert np.isnan(found.loc["a", "best"])
    assert np.isnan(found.loc["a", "ahead_since"])


def test_curves_of_different_length_are_not_compared():
    for epochs, missing in (([1, 2], 3), ([1, 2, 3, 4], 4), ([1, 3], 2)):
        parts = {"original": [1, 2, 3], "a": [1, 2, 3], "now": epochs}
        found = stacked({name: curve(its, np.ones(len(its))) for name, its in parts.items()})
        with pytest.raises(ValueError, match=f"only one of 'now' and 'original' has epoch {missing}"):
            curve_figures(found, METRICS, "original", 1)
    two, other = [1.0, 2.0], [1.0, 2.0, 3.0]
    for name, arguments in {
        "rates": (two, other, two, two),
        "original": (two, two, other, two),
        "averaged": (two, two, two, other),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must have the 2 epochs of the history, got 3"):
            smaller_rate_in_words(*arguments)
    for name, arguments in {"exact": (two, other, two, 5), "replayed": (two, two, other, 5)}.items():
        with pytest.raises(ValueError, match=f"{name} must have the 2 epochs of the history, got 3"):
            thinning_in_words(*arguments)


@pytest.mark.parametrize("lost", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_standard_deviations_are_over_epochs_that_are_finite_in_both(lost, which):
    losses = [[4.0, 3.0, 1.0, 2.0, 7.0], [5.0, 2.0, 0.9, 0.8, 0.1]]
    losses[which][4] = lost
    expected = [np.std(values[1:4], ddof=1) for values in losses]
    assert figures(table(*losses), 2)["steadiness"].tolist() == pytest.approx(expected)


def test_a_path_that_does_not_move_has_no_share_of_variance():
    told, nan = curves.shown_in_words, float("nan")
    assert "shows 99 % of the variance of the weights' path and 50 % of the average's;" in told(0.99, 0.5)
    assert told(0.99, nan).startswith("The plane shows 99 % of the variance of the weights' path; the rest")
    assert told(0.99, nan).endswith("The average stands still.")
    assert told(nan, 0.99).startswith("The plane shows 99 % of the variance of the average's path; the rest")
    assert told(nan, 0.99).endswith("The weights stand still.")
    assert told(nan, nan) == "Neither the weights nor their average move."


def test_losses_below_0_are_compared_as_others_are():
    found = curve_figures(table([-2.0, -2.0], [-1.0, -3.0]), METRICS, "original", 1)
    told = curve_in_words(found, "original", "a")
    assert "the average ends 50 % below the original's (-3 and -2); its lowest loss is 50 % below" in told
    assert plateau([-2.0, -1.95, -1.0, np.nan]) == 0.5
    assert plateau([2.0, 2.05, 3.0, np.nan]) == 0.5


def test_a_gain_of_rounding_is_not_divided_by():
    rates, original = [1.0] * 6 + [0.1] * 4, np.r_[np.full(6, 0.5), np.full(4, 0.2)]
    told = smaller_rate_in_words(np.arange(1, 11), rates, original, original * (1 - 1e-9))
    assert told.endswith("At the high rate averaging gained nothing here that a smaller rate could replace.")


def test_a_difference_of_rounding_is_none():
    found = curve_figures(table([0.07, 0.0619], [0.0619 * (1 + 2e-8), 0.0619 * (1 - 2e-8)]), METRICS, "original", 1)
    told = curve_in_words(found, "original", "a")
    assert told.count("equal in four digits to the original's (0.0619)") == 2


def test_a_curve_in_words():
    found = table([4.0, 2.0, 4.0], [5.0, 1.0, 3.0])
    told = curve_in_words(curve_figures(found, METRICS, "original", 2), "original", "a")
    assert "ends 25 % below the original's (3 and 4); its lowest loss is 50 % below" in told
    assert "standard deviation is 100 % of" in told
    assert "It is below the original at the last 2 epochs only, too few to be called a lead." in told
    long = curve_in_words(curve_figures(table([4.0] * 9, [5.0] + [3.0] * 8), METRICS, "original", 2), "original", "a")
    assert "stays below the original from epoch 2 on, for 8 epochs up to the end" in long
    assert "does not stay below" in curve_in_words(curve_figures(found, METRICS, "a", 2), "a", "original")
    assert "ends equal to the original's (1)" in curve_in_words(
        curve_figures(table([2.0, 1.0], [3.0, 1.0]), METRICS, "original", 1), "original", "a"
    )
    assert "deviation" not in curve_in_words(curve_figures(found, METRICS, "original", 3), "original", "a")


@pytest.mark.parametrize(
    ("original", "average", "told"),
    [
        ([4.0, np.nan], [5.0, np.inf], "ends not finite (the original's is not finite either); its lowest"),
        ([4.0, 2.0], [5.0, np.nan], "ends not finite (the original's is 2); its lowest loss is 150 % above"),
        ([4.0, np.inf], [5.0, 3.0], "ends at 3, where the original's is not finite; its lowest loss is 25 % below"),
        ([np.nan, np.nan], [np.nan, np.inf], "no loss is finite, whatever is averaged"),
        ([np.nan, np.nan], [7.0, np.inf], "its lowest loss is at 7, where the original's is not finite"),
    ],
)
def test_a_run_that_diverged_in_words(original, average, told):
    with np.errstate(all="ignore"):
        found = curve_in_words(curve_figures(table(original, average), METRICS, "original", 1), "original", "a")
    assert told in found
    assert "nan" not in found
    assert "inf " not in found


def test_of_losses_that_are_not_finite_no_smaller_rate_is_told():
    told = smaller([9.0, np.nan, np.nan, np.nan], [1.0, 1.0, 1.0], [2.0] * 7)
    assert "not all finite, so this run cannot say" in told
    told = smaller([9.0, 9.0, 4.0, 4.0], [np.inf, np.inf, 2.0], [9.0, 9.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    assert "at 2, where the original's is not finite" in told
    assert "By itself" not in told


def smaller(high, low, averaged):
    """The words on a run whose rate falls to a tenth after ``len(high)`` epochs."""
    losses = [*high, *low]
    rates = [0.01] * len(high) + [0.001] * len(low)
    return smaller_rate_in_words(range(1, len(losses) + 1), rates, losses, averaged)


def test_whether_a_smaller_rate_did_the_same():
    told = smaller([9.0, 9.0, 4.0, 4.0], [3.0, 2.5, 2.0], [9.0, 9.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    assert "epochs 3 to 4), the average's median loss was 50 % below the original's (2 and 4)" in told
    assert "from epoch 5 on) it was 20 % below the original's (2 and 2.5)" in told
    assert "from 4 to 2.5: 75 % of what averaging gained" in told
    assert "gained nothing" in smaller([9.0, 9.0, 4.0, 4.0], [3.0, 2.5, 2.0], [9.0, 9.0, 5.0, 5.0, 2.0, 2.0, 2.0])
    assert "cannot say" in smaller([4.0, 4.0], [], [2.0, 2.0])


def test_how_far_a_thinned_recording_misses_is_measured_on_its_own_run():
    epochs, exact = range(1, 13), [0.5] * 9 + [0.2, 0.4, 0.8]
    told = thinning_in_words(epochs, exact, [5.0] * 9 + [0.23, 0.36, 0.792], 5)
    assert "one step in 5 only" in told
    assert "by 1 % after epoch 12, and by up to 15 % from epoch 10 on" in told
    assert "look back few steps, or still hold much of their start, miss theirs by more" in told
    assert "by up to 25 % from epoch 1 on" in thinning_in_words(epochs[:3], exact[:3], [0.5, 0.4, 0.625], 2)
    assert "by 10 % after epoch 1" in thinning_in_words([1, 2], [0.5, np.nan], [0.55, np.nan], 3)
    assert thinning_in_words([1], [np.inf], [1.0], 3).endswith("so replays are close, not exact.")


def test_stacked_tables_name_their_rows_and_have_the_same_columns():
    parts = {"b": {"x": np.array([1, 2]), "y": np.array([3.0, 4.0])}, "a": {"y": np.array([5.0]), "x": np.array([6])}}
    found = stacked(parts)
    assert list(found) == ["curve", "x", "y"]
    assert found["curve"].tolist() == ["b", "b", "a"]
    assert found["x"].tolist() == [1, 2, 6]
    assert found["y"].tolist() == [3.0, 4.0, 5.0]
    with pytest.raises(ValueError, match="must have the columns x, y; 'c' has x"):
        stacked(parts | {"c": {"x": np.array([1])}})
    with pytest.raises(ValueError, match="at least one table"):
        stacked({})


@pytest.fixture(scope="module")
def trajectory():
    """A run whose rows are uneven, measured by two numbers of its weights."""
    values = np.random.default_rng(3).standard_normal((8, 4)).astype(np.float32)
    steps = np.array([0, 1, 4, 5, 9, 10, 12, 15])
    rows = Rows(values, steps, {"w": torch.empty(4, device="meta")}, epoch_ends=[2, 4, 7])
    measure = OneByOne(lambda state: {"loss": state["w"].square().sum(), "hits": state["w"][0]}, (LOSS, HITS))
    return Trajectory(rows, measure)


def every_step(trajectory):
    """The weights after each step, as if the weights had moved only where there is a row, and at once."""
    return trajectory.weights[np.searchsorted(trajectory.rows.steps, np.arange(trajectory.steps))].astype(float)


def test_a_replayed_curve_has_the_steps_and_metrics_of_its_epochs(trajectory):
    found = curves.curve(trajectory, Constant(0.6))
    assert list(found) == ["epoch", "step", "loss", "hits"]
    assert found["epoch"].tolist() == [1, 2, 3]
    assert found["step"].tolist() == [4, 9, 15]
    expected = average(every_step(trajectory), Constant(0.6).decays(16))[[4, 9, 15]]
    np.testing.assert_allclose(found["loss"], (expected**2).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["hits"], expected[:, 0], rtol=1e-5)


def test_the_weights_of_rows_are_those_that_count(trajectory):
    found = curves.weights_of_rows(trajectory, Window(6))
    assert found["step"].tolist() == [10, 12, 15]
    assert found["weight"].tolist() == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    late = curves.weights_of_rows(trajectory, Constant(0.5, update_after_step=9))
    assert late["step"].tolist() == [9, 10, 12, 15]
    assert late["weight"][-1] == pytest.approx(1 - 0.5**3)
    assert late["weight"].sum() == pytest.approx(1)


def test_where_beta_never_acts_only_among_axes_that_have_one():
    cells = {"beta_from": np.array([np.nan, 3.0, None], dtype=object)}
    assert curves.beta_never_acts(cells, InversePower(), "power", "beta").tolist() == [True, False, True]
    for x, y in (("window", "beta"), ("power", "relative_width")):
        assert not curves.beta_never_acts(cells, InversePower(), x, y).any()
    assert not curves.beta_never_acts(cells, PowerFunction(sigma_rel=0.1), "width", "update_after_step").any()


def test_the_best_row_and_how_many_are_near_it():
    cells = {"loss": np.array([np.nan, 1.04, 1.0, 1.2]), "code": np.array([None, "A()", "B()", "C()"], dtype=object)}
    best = curves.best_row(cells, LOSS)
    assert best == (2, 1.0, pytest.approx(2 / 3))
    assert best.near == plateau([1.04, 1.0, 1.2])
    assert curves.best_row({"loss": cells["loss"]}, LOSS).near == 0.5
    assert curves.best_row({"loss": np.array([np.nan])}, LOSS) is None
    told = curves.atlas_in_words(cells, best, 1.5, "final")
    assert "`B()`, has 1; the original 1.5. It was **chosen on these very validation rows**" in told
    assert "67 % of the cells" in told
    assert "the original at its lowest of the same epochs 1.5." in curves.atlas_in_words(cells, best, 1.5, "best")


def test_why_a_map_has_no_lowest_cell_follows_its_cells():
    empty = {"code": np.array([None, None], dtype=object)}
    assert {curves.no_best_in_words(empty, metric) for metric in ("final", "best")} == {
        "All cells of this map are empty: no such average can be had in this run. Choose other axes or settings."
    }
    lost = {"code": np.array(["A()", None], dtype=object)}
    assert "after the last epoch of this run. Its lowest may be finite" in curves.no_best_in_words(lost, "final")
    assert curves.no_best_in_words(lost, "best").endswith("after any of the epochs that are looked at.")


def test_the_widths_that_are_drawn_are_shares_of_the_run_in_percent():
    table = {"width": np.array([0.1, 0.2]), "relative_width": np.array([0.09, 0.15]), "loss": np.array([2.0, 1.0])}
    drawn = curves.width_curves(table, LOSS, 3.0)
    assert drawn["curve"].tolist() == ["average"] * 2 + ["original"] * 2
    assert drawn["width"].tolist() == pytest.approx([9.0, 15.0] * 2)
    assert drawn["loss"].tolist() == [2.0, 1.0, 3.0, 3.0]
    told = curves.width_in_words(table, curves.best_row(table, LOSS), 3.0)
    assert "relative width **15 %** was best: 1, the original 3; 50 % of the widths" in told


def test_distances_are_from_the_last_weights(trajectory):
    found = space(trajectory, Constant(0.6), "principal components")
    drawn = curves.distances(found, "trained", "now")
    weights = trajectory.weights.astype(float)
    averaged = average(every_step(trajectory), Constant(0.6).decays(16))[trajectory.rows.steps]
    for name, path in (("trained", weights), ("now", averaged)):
        own = drawn["curve"] == name
        assert drawn["step"][own].tolist() == trajectory.rows.steps.tolist()
        np.testing.assert_allclose(drawn["distance"][own], np.linalg.norm(path - weights[-1], axis=1), rtol=1e-5)


def test_a_range_is_of_what_is_finite(trajectory):
    assert curves.finite_range([3.0, np.nan, 1.0, np.inf]) == (1.0, 3.0)
    assert np.isnan(curves.finite_range([np.nan])).all()
    assert original(trajectory)["loss"] == pytest.approx((trajectory.weights[-1] ** 2).sum(), rel=1e-6)


def test_of_a_first_metric_of_which_more_is_better_ahead_is_above():
    curves_of = table([0.5, 0.6, 0.7], [0.4, 0.7, 0.8])
    found = curve_figures(curves_of, (Metric("loss", "accuracy", higher_is_better=True),), "original", 1)
    assert (found["ahead_since"][1], found["ahead_for"][1], found["best"][1]) == (2, 2, 0.8)


def test_a_loss_of_0_is_left_out_of_the_misses_and_a_run_without_epochs_is_refused():
    told = curves.thinning_in_words([1, 2, 3], [0.0, 2.0, 1.0], [0.5, 2.0, 1.1], 3, from_epoch=1)
    assert "by 10 % after epoch 3, and by up to 10 % from epoch 1 on" in told
    with pytest.raises(ValueError, match="at least one epoch"):
        curves.smaller_rate_in_words([], [], [], [])
