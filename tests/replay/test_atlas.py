import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emacore import RunConfig, train
from emacore.averaging.code import from_code, scheme_from_code, scheme_to_code
from emacore.averaging.families import Constant, ExponentialRamp, InversePower, PowerFunction
from emacore.averaging.filters import half_life
from emacore.averaging.schedules import TIMING
from emacore.averaging.weights import average, relative_width
from emacore.averaging.windows import Window
from emacore.replay import atlas as atlas_module
from emacore.replay.atlas import axes, original, partners, plateau, without_axes
from emacore.replay.measure import OneByOne
from emacore.replay.recording import Recorder, read_recording
from emacore.replay.rows import Rows
from emacore.replay.trajectory import Trajectory
from emacore.tasks import open_run
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import OptimizerConfig, StoppingConfig


def atlas(*arguments):
    return pd.DataFrame(atlas_module.atlas(*arguments))


AXES = axes(InversePower)
POWERS = np.geomspace(1e-3, 50, 500)
CONFIG = RunConfig(data=DataConfig(n_samples=200), stopping=StoppingConfig("none"), max_epochs=6)


@pytest.fixture(scope="module")
def trajectory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas") / "run"
    train(CONFIG, record=folder)
    return open_run(folder)


@pytest.mark.parametrize(("x", "y"), [("power", "beta"), ("inv_gamma", "power"), ("beta", "update_after_step")])
def test_a_cell_is_the_final_of_its_schedule(trajectory, x, y):
    schedule = InversePower(0.9, update_after_step=3, update_every=1)
    cells = atlas(trajectory, schedule, x, y)
    assert len(cells) == len(AXES[x](30)) * len(AXES[y](30))
    assert cells["loss"].notna().all()
    for row in cells.iloc[[0, 57, -1]].itertuples():
        named = from_code(row.code)
        assert getattr(named, x) == row.x
        assert getattr(named, y) == row.y
        assert named.update_every == 1
        alone = trajectory.final({"a": named})
        assert alone["loss"][0] == pytest.approx(row.loss, rel=1e-4)
    assert cells["loss"].nunique() > 20


@pytest.mark.parametrize("steps", [1, 30, 5000, 400_000])
def test_no_axis_has_a_value_twice(steps):
    for values in AXES.values():
        assert 1 <= len(np.unique(values(steps))) == len(values(steps)) <= 20


def test_axes_must_be_two(trajectory):
    for x, y in (("power", "power"), ("power", "nope"), ("beta", "half_life")):
        with pytest.raises(ValueError, match="two of power.*are one"):
            atlas(trajectory, InversePower(), x, y)


@pytest.mark.parametrize("base", [InversePower(), Constant(0.9), PowerFunction(sigma_rel=0.1)], ids=repr)
def test_schedules_that_are_the_same_without_the_axes_have_the_same_atlas(base):
    """And what a setting changes in any cell is not left out."""
    base, family = base.varied(update_after_step=4, update_every=3), type(base)

    def codes(schedule, x, y):
        values = {axis: axes(family)[axis](50)[[2, -4]].tolist() for axis in (x, y)}
        cells = [atlas_module._scheme(schedule, {x: a, y: b}, 50) for a in values[x] for b in values[y]]
        return [cell and scheme_to_code(cell) for cell in cells]

    for x in axes(family):
        for y in partners(x, family):
            own = codes(base, x, y)
            for control in (*family.controls, *TIMING):
                middle = 5 if control.scale == "count" else control.at(0.37)
                other = base.varied(**{control.key: middle})
                same = without_axes(other, x, y) == without_axes(base, x, y)
                assert same == (codes(other, x, y) == own), (x, y, control.key)
            assert codes(without_axes(base, x, y), x, y) == own


@pytest.mark.parametrize(("x", "y"), [("half_life", "power"), ("update_after_step", "window")])
def test_axes_of_other_rules(trajectory, x, y):
    cells = atlas(trajectory, InversePower(update_every=1), x, y)
    row = cells.iloc[len(cells) // 2]
    scheme = scheme_from_code(row["code"])
    if "half_life" in (x, y):
        assert 0.5 ** (1 / row["x"]) == pytest.approx(scheme.beta)
    else:
        assert scheme == Window(min(int(row["y"]), 30 - int(row["x"])))
    assert trajectory.final({"a": scheme})["loss"][0] == pytest.approx(row["loss"], rel=1e-4)


@pytest.mark.parametrize("family", [Constant, ExponentialRamp])
@pytest.mark.parametrize("other", ["update_after_step", "window"])
def test_a_half_life_is_in_steps_also_where_the_average_moves_in_few(trajectory, family, other):
    schedule = family(0.9, update_every=3)
    pair = (other, "half_life") if other in partners("half_life", family) else ("half_life", other)
    cells = atlas(trajectory, schedule, *pair)
    for row in cells.iloc[:: len(cells) // 10].itertuples():
        scheme = scheme_from_code(row.code)
        rule = scheme.rule if isinstance(scheme, Window) else scheme
        wanted = row.y if pair[1] == "half_life" else row.x
        assert half_life(rule.beta) * rule.update_every == pytest.approx(wanted)
        assert rule.update_every == (1 if other == "window" else 3)


def test_any_two_axes_go_together(trajectory):
    for x in AXES:
        assert set(partners(x)) == set(AXES) - {x} - ({"beta", "half_life"} if x in ("beta", "half_life") else set())
        for y in set(partners(x)) & set(list(AXES)[: list(AXES).index(x)]):
            cells = atlas(trajectory, InversePower(update_after_step=3, update_every=1), x, y)
            assert cells["loss"].nunique() >= 20, "beside a start, a window has one of 20 lengths here"


@pytest.mark.parametrize(("x", "y"), [("power", "beta"), ("relative_width", "update_after_step"), ("window", "power")])
def test_turning_an_atlas_changes_nothing_else(trajectory, x, y):
    schedule = InversePower(update_after_step=3, update_every=1)
    cells = atlas(trajectory, schedule, x, y).sort_values(["x", "y"], ignore_index=True)
    turned = atlas(trajectory, schedule, y, x).rename(columns={"x": "y", "y": "x"})
    turned = turned.sort_values(["x", "y"], ignore_index=True)
    pd.testing.assert_frame_equal(turned[cells.columns], cells, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 30, 200])
def test_the_cap_acts_from_where_the_rule_reaches_it(steps):
    for schedule in (
        InversePower(0.9, update_after_step=7, update_every=3),
        InversePower(0.5, update_every=1, update_after_step=0),
        InversePower(0.999),
        Constant(0.5, update_after_step=29),
    ):
        call = schedule.reaches(schedule.beta)
        found = atlas_module._beta_from(schedule, steps)
        assert found == call if call < steps else np.isnan(found)


@pytest.mark.parametrize("other", ["power", "inv_gamma", "beta", "half_life"])
def test_a_relative_width_is_solved_for_beside_another_setting(trajectory, other):
    schedule = InversePower(0.99, update_after_step=3, update_every=1)
    cells = atlas(trajectory, schedule, "relative_width", other)
    there = cells[cells["code"].notna()]
    assert len(there) > 20
    assert there["loss"].notna().all()
    assert cells.loc[cells["code"].isna(), "loss"].isna().all()
    for row in there.iloc[:: len(there) // 10].itertuples():
        scheme = from_code(row.code)
        assert relative_width(scheme.decays(30)) == pytest.approx(row.x, rel=2e-3)
        beta = 0.5 ** (1 / row.y) if other == "half_life" else row.y
        assert getattr(scheme, "beta" if other == "half_life" else other) == pytest.approx(beta)
        assert trajectory.final({"a": scheme})["loss"][0] == pytest.approx(row.loss, rel=1e-4)


@pytest.mark.parametrize("steps", [30, 3000])
def test_a_width_has_a_rule_where_one_exists_and_it_follows_the_run(steps):
    for beta in (0.7, 0.99, 0.99999):
        schedule = InversePower(beta, update_after_step=3, update_every=1)
        reach = [relative_width(replace(schedule, power=power).decays(steps)) for power in POWERS]
        widest = int(np.argmax(reach))
        for width in np.linspace(0.01, 0.28, 20):
            found = atlas_module._of_width(schedule, "power", steps, width)
            if min(reach[:widest], default=1.0) < width < reach[widest]:
                assert found is not None
                assert relative_width(found.decays(steps)) == pytest.approx(width, rel=2e-3)
                assert found.power <= POWERS[widest + 1]
            elif width > reach[widest] + 1e-4:
                assert found is None


@given(
    st.floats(0.01, 0.3),
    st.sampled_from(["power", "inv_gamma"]),
    st.integers(5, 300),
    st.builds(
        InversePower,
        st.sampled_from([0.5, 0.99, 0.9999, 1.0]),
        st.sampled_from([0.01, 1.0, 300.0]),
        st.sampled_from([0.1, 2 / 3, 2.0]),
        st.sampled_from([0.0, 0.6, 0.98]),
        update_after_step=st.integers(0, 100),
        update_every=st.sampled_from([1, 2, 7]),
    ),
)
def test_a_rule_that_is_found_has_the_width(width, setting, steps, schedule):
    found = atlas_module._of_width(schedule, setting, steps, width)
    assert found is None or relative_width(found.decays(steps)) == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize("other", [axis for axis in AXES if axis != "relative_width"])
def test_a_relative_width_is_a_share_of_the_run_beside_every_other_axis(trajectory, other):
    cells = atlas(trajectory, InversePower(0.99, update_after_step=3, update_every=1), "relative_width", other)
    there = cells[cells["code"].notna()]
    assert len(there) > 20
    for row in there.itertuples():
        shares = trajectory.shares(scheme_from_code(row.code))
        steps = np.arange(1, len(shares) + 1)
        spread = np.sqrt(shares @ (steps - shares @ steps) ** 2)
        assert spread / trajectory.steps == pytest.approx(row.x, rel=2e-3)
        if other == "update_after_step":
            assert np.flatnonzero(shares)[0] >= row.y
        if other == "window":
            assert np.count_nonzero(shares) <= row.y
    if other in ("update_after_step", "window"):
        left = {row.y: 30 - row.y if other == "update_after_step" else row.y for row in cells.itertuples()}
        for row in cells[cells["code"].isna()].itertuples():
            widest = np.sqrt((left[row.y] ** 2 - 1) / 12) / 30
            assert row.x > widest * (1 - 1e-3)


@pytest.mark.parametrize("steps", [2, 30, 5000])
@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.25, 0.3])
def test_a_power_function_of_a_spread(steps, share):
    found = atlas_module._power_function(share * steps, steps)
    if share > np.sqrt((steps**2 - 1) / 12) / steps:
        assert found is None
    else:
        assert relative_width(found.decays(steps)) == pytest.approx(share, rel=1e-3)


def test_a_window_lets_the_rule_begin_anew(trajectory):
    cells = atlas(trajectory, InversePower(0.9, update_after_step=3, update_every=2), "window", "power")
    row = cells[(cells["x"] == 12)].iloc[4]
    rule = InversePower(0.9, power=row["y"], update_after_step=0, update_every=1)
    assert scheme_from_code(row["code"]) == Window(12, rule)
    by_hand = average(np.asarray(trajectory.weights[-12:], dtype=float), rule.decays(12))[-1:]
    assert row["loss"] == pytest.approx(trajectory.measure(by_hand)["loss"][0], rel=1e-4)


def test_the_best_epoch_of_each_cell(trajectory):
    schedule = InversePower(0.9, update_after_step=3, update_every=1)
    cells = atlas(trajectory, schedule, "power", "beta", "best")
    final = atlas(trajectory, schedule, "power", "beta")
    assert (cells["loss"] <= final["loss"] * (1 + 1e-6)).all()
    row = cells.iloc[123]
    curve = pd.DataFrame(trajectory.replay({"a": from_code(row["code"])}))
    assert row["loss"] == pytest.approx(curve["loss"].min(), rel=1e-4)
    assert row["epoch"] == curve.loc[curve["loss"].idxmin(), "epoch"]
    with pytest.raises(ValueError, match="metric"):
        atlas(trajectory, schedule, "power", "beta", "worst")


def test_where_beta_never_acts(trajectory):
    cells = atlas(trajectory, InversePower(0.9, update_after_step=3, update_every=1), "power", "beta")
    for row in cells.iloc[[5, 200, 370]].itertuples():
        decays = from_code(row.code).decays(30)
        acts = np.flatnonzero((decays == row.y) & (decays > 0))
        assert (acts[0] if acts.size else pd.NA) is pd.NA if pd.isna(row.beta_from) else acts[0] == row.beta_from
    assert cells["beta_from"].isna().any()
    assert cells["beta_from"].notna().any()


def test_widths(trajectory):
    table = pd.DataFrame(atlas_module.widths(trajectory))
    row = table.iloc[20]
    expected = trajectory.final({"a": PowerFunction(sigma_rel=row["width"])})
    assert row["loss"] == pytest.approx(expected["loss"][0], rel=1e-5)
    assert row["relative_width"] == pytest.approx(relative_width(PowerFunction(sigma_rel=row["width"]).decays(30)))


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """A run of more epochs than are looked at for a cell's best, whose lowest is not among those."""
    folder = tmp_path_factory.mktemp("recordings") / "long"
    config = replace(CONFIG, seed=2, max_epochs=31, optimizer=OptimizerConfig(learning_rate=0.03, rate_rule="constant"))
    return train(config, record=folder).history, folder


@pytest.mark.parametrize("metric", ["final", "best"])
@pytest.mark.parametrize("epochs", [1, 7, 12, 13, 31])
def test_a_cell_that_is_the_original_is_level_with_it(long_run, metric, epochs):
    history, folder = long_run
    trajectory = open_run(folder, epochs)
    cells = atlas(trajectory, CONFIG.schedule, "window", "power", metric)
    alone = cells[cells["x"] == 1]  # a window of one step is the weights themselves
    reference = original(trajectory, metric)
    for column in set(reference) & set(cells.columns):
        np.testing.assert_allclose(alone[column], reference[column], rtol=1e-5)
    losses = history.set_index("epoch")["val_loss_original"].loc[:epochs]
    if metric == "final":
        assert reference["loss"] == pytest.approx(losses.iloc[-1], rel=1e-4)
    else:
        assert cells["epoch"].isin(losses.index).all()
        assert reference["loss"] == pytest.approx(losses[reference["epoch"]], rel=1e-4)
    if (metric, epochs) == ("best", 31):
        assert reference["loss"] > 1.01 * losses.min(), "else this shows nothing"


def test_a_run_that_diverged_at_once_has_an_atlas_without_losses(tmp_path):
    train(replace(CONFIG, optimizer=OptimizerConfig("sgd", 10.0, rate_rule="constant")), record=tmp_path)
    lost = open_run(tmp_path)
    for metric in ("final", "best"):
        assert atlas(lost, CONFIG.schedule, "power", "beta", metric)["loss"].isna().all()
        assert np.isnan(original(lost, metric)["loss"])
    Recorder(torch.nn.Linear(1, 1), tmp_path / "nothing", settings=json.loads(CONFIG.to_json())).close()
    nothing = Trajectory(read_recording(tmp_path / "nothing"), OneByOne(lambda state: 0.0))
    for metric in ("final", "best"):
        with pytest.raises(ValueError, match="no whole epoch yet"):
            original(nothing, metric)


def test_values_are_short_and_within_range():
    assert atlas_module._short(0.99923451234) == 0.9992345
    assert atlas_module._short(0.1234567) == 0.1235
    assert atlas_module._short(7) == 7
    assert all(0 <= beta < 1 for beta in AXES["beta"](100))


def test_plateau_counts_the_cells_near_the_lowest():
    assert plateau([1.0, 1.04, 1.06, np.nan]) == 0.5


@pytest.mark.parametrize(("rows", "metric"), [(0, "final"), (0, "best"), (4, "best")])
def test_an_atlas_of_nothing_says_so(rows, metric):
    tensors = {"a": torch.empty(2, device="meta")}
    opened = Trajectory(Rows(np.ones((rows, 2), np.float32), np.arange(rows), tensors), lambda state: 1.0)
    with pytest.raises(ValueError, match="no whole epoch yet"):
        atlas(opened, InversePower(), "power", "beta", metric)
