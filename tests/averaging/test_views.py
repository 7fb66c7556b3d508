import numpy as np
import pandas as pd
import pytest

from emacore.averaging import filters, views
from emacore.averaging.families import Constant, InversePower, UniformAverage
from emacore.averaging.signals import final_loss
from emacore.averaging.solving import with_half_life
from emacore.averaging.windows import Window
from emacore.charts.thin import kept_rows
from emacore.charts.tradeoff import tradeoff
from emacore.widgets.schedules import state_of

CURVATURES, START = (1.0, 0.25), (2.0, 1.6)


def found(rate=0.3, noise=1.0, beta=0.98, steps=300):
    return views.loss_by_decay(CURVATURES, rate, noise, steps, START, beta)


def test_the_loss_over_the_decay_is_a_u():
    table = found()
    assert np.all(np.diff(table.decays) > 0)
    assert table.decays[0] == 0
    assert table.decays[table.at(0.98)] == 0.98
    assert table.decays[-1] == pytest.approx(0.999999, abs=1e-12)
    expected = final_loss(CURVATURES, 0.3, 1.0, 300, table.decays, START)
    np.testing.assert_array_equal(table.expected.total, expected.bias + expected.variance)
    lowest = int(table.expected.total.argmin())
    assert 0.97 < table.decays[lowest] < 0.995
    assert np.all(np.diff(table.expected.total[: lowest + 1]) < 0)
    assert np.all(np.diff(table.expected.total[lowest:]) > 0)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3, 1.0, 1.5, 2.1])
@pytest.mark.parametrize("noise", [0.0, 0.05, 3.0])
def test_formula_and_simulation_agree_over_the_sliders_range(rate, noise):
    table = found(rate, noise, beta=0.9999)
    assert all(table.agrees(decay) for decay in table.decays)


def test_they_do_not_agree_where_the_numbers_do_not():
    table = found()
    other = table._replace(simulated=found(noise=1.2).simulated)
    assert not other.agrees(0.98)
    assert not table._replace(error=0 * table.error).agrees(0.98)
    assert table._replace(simulated=table.expected.total, error=0 * table.error).agrees(0.98)


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (0.2, 0.1, "lowers the expected loss of this run by 50 %"),
        (0.2, 0.0001, "lowers the expected loss of this run by more than 99.5 %"),
        (0.2, 0.25, "raises the expected loss of this run by 25 %"),
        (0.2, 2.19, "raises the expected loss of this run from 0.2 to 2.19"),
        (0.0, 1e-30, "practically at the minimum, with and without averaging"),
        (1.8e-21, 1.6e-5, "practically at the minimum, with and without averaging"),
        (6.2e-76, 1.4e-75, "practically at the minimum, with and without averaging"),
        (3.2e-6, 1.3e-5, "practically at the minimum, with and without averaging"),
        (8e-5, 1.2e-4, "raises the expected loss of this run by 50 %"),
        (1.8e-21, 0.02, "raises the expected loss of this run from less than 0.0001 to 0.02"),
        (2e-7, 1e-7, "lowers the expected loss of this run by 50 %"),
        (0.2, 0.20001, "leaves the expected loss of this run as it is"),
        (0.0, 0.0, "leaves the expected loss of this run as it is"),
        (np.inf, np.inf, "This run diverges"),
    ],
)
def test_the_headline_follows_the_numbers(before, after, words):
    assert words in views.change_in_words(before, after)


def test_the_table_of_decays_has_the_calls_that_are_looked_at():
    table = views.decay_table(Constant(0.9, update_after_step=6, update_every=3), 14)
    assert table["step"].tolist() == [0, 3, 6, 9, 12]
    assert table["decay"].tolist() == [0, 0, 0, 0.9, 0.9]
    np.testing.assert_allclose(table["one_minus_decay"], [1, 1, 1, 0.1, 0.1])
    np.testing.assert_allclose(table["half_life_steps"], [0, 0, 0, *[3 * np.log(2) / -np.log(0.9)] * 2])


def test_the_table_of_weights_by_hand():
    table = views.weight_table(Constant(0.9, update_every=2), 5)
    assert table["step"].tolist() == [0, 2, 4]
    np.testing.assert_allclose(table["weight"], [0.81, 0.09, 0.1])
    table = views.weight_table(Window(3, Constant(0.9)), 5)
    assert table["step"].tolist() == list(range(6))
    np.testing.assert_allclose(table["weight"], [0, 0, 0, 0.81, 0.09, 0.1])


@pytest.mark.parametrize(
    "scheme",
    [
        UniformAverage(update_after_step=60_000),
        Constant(0.999, update_after_step=60_000, update_every=7),
        Window(40_000),
        Window(40_000, Constant(0.9999)),
        Window(40_000, UniformAverage(update_after_step=10_000)),
        Window(1_000_000),
    ],
)
def test_no_cliff_lies_between_the_calls_that_are_drawn(scheme):
    whole = views.weight_table(scheme, 99_999)
    calls = views.sampled_calls(100_000, scheme, 2_000)
    drawn = np.interp(whole["step"], calls, whole["weight"][np.searchsorted(whole["step"], calls)])
    assert np.abs(drawn - whole["weight"]).max() <= 0.005 * whole["weight"].max()
    assert len(calls) <= 2_000


def test_the_figures_of_an_average_by_hand():
    shares, ages = np.array([0.81, 0.09, 0.1]), np.array([2, 1, 0])
    found = views.figures(Constant(0.9), 2)
    assert found.mean_age == pytest.approx(shares @ ages)
    assert found.effective_count == pytest.approx(1 / (shares @ shares))
    assert found.relative_width == pytest.approx(np.sqrt(shares @ (ages - shares @ ages) ** 2) / 3)
    assert found.start_share == pytest.approx(0.81)
    assert views.figures(Constant(0.0), 2).start_share == 0
    assert views.figures(Window(2), 9).mean_age == pytest.approx(0.5)


def test_when_decays_are_reached():
    table = views.reached_table(InversePower(0.999, update_after_step=100, update_every=1), 5000)
    assert table["decay"].tolist() == ["0.9", "0.99", "0.999", "0.9999", "beta = 0.999"]
    assert table["first step"][1] == 1099
    assert table["first step"][2] == table["first step"][4] > 31_000
    assert np.isnan(table["first step"][3])
    assert table["in this run"].tolist() == ["yes", "yes", "no, too short", "never, by this rule", "no, too short"]
    assert table["half-life there (moves)"][0] == pytest.approx(np.log(2) / -np.log(0.9))
    assert (
        len(views.reached_table(UniformAverage(), 50)["decay"])
        == len(views.reached_table(Constant(0.0), 9)["decay"])
        == 4
    )


def test_windows_that_an_average_is_held_against():
    assert views.equal_windows(0.98) == {views.DELAY: 99, views.NOISE: 99}
    assert views.equal_windows(0.98, 0.9)[views.DELAY] == 99
    other = views.equal_windows(0.98, 0.9)[views.NOISE]
    gains = [filters.moving_average_variance_gain(n, 0.9) for n in (other - 1, other, other + 1)]
    assert np.argmin(np.abs(np.array(gains) - filters.variance_gain(0.98, 0.9))) == 1
    assert views.shown_windows(["x", views.NOISE], {views.DELAY: 2, views.NOISE: 3}) == {views.NOISE: 3}


def one_by_one(values, beta, average, n=None):
    found = []
    for t, value in enumerate(values):
        average = beta * average + (1 - beta) * value
        found.append(average / (1 - beta ** (t + 1)) if n else average)
    return found


def test_filters_one_value_after_the_other():
    values = [2.0, -1.0, 4.0, 0.5, 3.0]
    windows = {views.DELAY: 2, views.NOISE: 3}

    def answer(name):
        return views.filtered(values, name, 0.8, windows, UniformAverage())

    np.testing.assert_allclose(answer(views.FIRST), one_by_one(values, 0.8, values[0]))
    np.testing.assert_allclose(answer(views.ZERO), one_by_one(values, 0.8, 0.0))
    np.testing.assert_allclose(answer(views.CORRECTED), one_by_one(values, 0.8, 0.0, n=True))
    np.testing.assert_allclose(answer(views.DELAY), [2, 0.5, 1.5, 2.25, 1.75])
    np.testing.assert_allclose(answer(views.NOISE), [2, 0.5, 5 / 3, 3.5 / 3, 2.5])
    np.testing.assert_allclose(answer(views.SCHEDULE), np.cumsum(values) / np.arange(1, 6))
    for name in ("nothing", views.SCHEDULE):
        with pytest.raises(ValueError, match="name must be one of"):
            views.filtered(values, name, 0.8, windows)


def test_the_gain_is_that_of_a_sine_that_is_filtered():
    table = views.gain_table(0.9, {views.DELAY: 19, views.NOISE: 19})
    assert list(table) == ["frequency", "EMA", views.DELAY]
    assert table["frequency"][-1] == 0.5
    assert table["frequency"][0] == pytest.approx(1e-4)
    k = 1650
    wave = np.exp(2j * np.pi * table["frequency"][k] * np.arange(4000))
    for name in ("EMA", views.DELAY):
        filter_name = views.ZERO if name == "EMA" else name
        parts = [views.filtered(part, filter_name, 0.9, {views.DELAY: 19}) for part in (wave.real, wave.imag)]
        assert np.hypot(*parts)[-1] == pytest.approx(table[name][k], abs=1e-9)
    assert list(views.gain_table(0.9, {views.DELAY: 19, views.NOISE: 30})) == [
        "frequency",
        "EMA",
        views.DELAY,
        views.NOISE,
    ]


@pytest.mark.parametrize("beta", [0.2, 0.9, 0.98, 0.999, 0.999999])
def test_no_lobe_of_a_gain_lies_between_the_points_that_are_drawn(beta):
    windows = views.equal_windows(beta, 0.9)
    table = views.gain_table(beta, windows)
    across = np.log(table["frequency"])
    fine = np.linspace(across[0], across[-1], 400_000)
    frequency = np.exp(fine).clip(max=0.5)
    truth = {name: np.abs(filters.moving_average_response(size, frequency)) for name, size in windows.items()}
    truth["EMA"] = np.abs(filters.frequency_response(beta, frequency))
    for name in table.keys() - {"frequency"}:
        kept = kept_rows(table["frequency"], table[name], x_scale="log")
        drawn = np.interp(fine, across[kept], table[name][kept])
        np.testing.assert_allclose(drawn, truth[name], atol=0.005)


def test_the_answer_to_a_jump_and_to_a_spike():
    jump = views.step_table(0.9, {views.DELAY: 19})
    assert jump["steps"].tolist() == list(range(1, 58))
    np.testing.assert_allclose(jump["EMA"], one_by_one(np.ones(57), 0.9, 0.0))
    np.testing.assert_allclose(jump[views.DELAY], np.minimum(np.arange(1, 58) / 19, 1))
    ages = views.age_table(0.9, {views.DELAY: 19})
    assert ages["age"].tolist() == list(range(57))
    np.testing.assert_allclose(ages["EMA"], one_by_one([1.0, *[0.0] * 56], 0.9, 0.0))
    np.testing.assert_allclose(np.cumsum(ages[views.DELAY]), jump[views.DELAY])
    assert len(views.step_table(0.2, {})["EMA"]) == 20


@pytest.mark.parametrize("beta", [0.98, 0.9999, 0.999999])
@pytest.mark.parametrize("table", [views.step_table, views.age_table])
def test_an_answer_is_seen_whole_however_long_the_memory(beta, table):
    windows = views.equal_windows(beta)
    found = table(beta, windows)
    across = next(iter(found.values()))
    every = np.arange(across[0], across[-1] + 1)
    whole = {
        "EMA": 1 - beta**every if table is views.step_table else (1 - beta) * beta**every,
        **{
            name: np.minimum(every / size, 1) if table is views.step_table else (every < size) / size
            for name, size in windows.items()
        },
    }
    assert every[-1] > 2 * filters.half_life(beta)
    for name, truth in whole.items():
        np.testing.assert_allclose(np.interp(every, across, found[name]), truth, atol=0.001 * truth.max())
    assert len(across) < 21_000


def test_spectra_keep_what_is_slow():
    noise = np.random.default_rng(0).normal(size=20_000)
    table = views.spectrum_table(noise, views.filtered(noise, views.ZERO, 0.9, {}))
    ratio = table["EMA"] / table["sequence"]
    gain = np.abs(filters.frequency_response(0.9, table["frequency"])) ** 2
    np.testing.assert_allclose(ratio[2:], gain[2:], rtol=0.2)


def test_the_columns_of_the_losses_over_the_decay():
    found = views.loss_by_decay((1.0, 0.25), 0.3, 1.0, 50, (2.0, 1.6), 0.9, runs=20)
    table = found.table()
    assert list(table) == [
        "decay",
        "half_life",
        "bias",
        "variance",
        "expected",
        "simulated",
        "standard_error",
        "last",
    ]
    np.testing.assert_allclose(table["expected"], table["bias"] + table["variance"])
    np.testing.assert_allclose(table["half_life"][1:], np.log(0.5) / np.log(table["decay"][1:]))
    assert (table["last"] == table["expected"][table["decay"] == 0]).all()
    assert table["expected"][found.lowest] == table["expected"][1:].min()


@pytest.mark.parametrize("rate", [0.01, 0.2, 1.5])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1, 3.0])
def test_no_bend_of_a_loss_lies_between_the_decays_that_are_drawn(rate, noise):
    run = (1.0, 0.25), rate, noise, 300
    found = views.loss_by_decay(*run, (2.0, 1.6), 0.9, runs=0).table()
    drawn = found["decay"] > 0
    fine = 1 - np.geomspace(0.8, 1e-6, 5000)
    across, exact = np.log(filters.half_lives(fine)), final_loss(*run, fine, (2.0, 1.6))
    figure = tradeoff(pd.DataFrame(found)[drawn], chosen=10.0, label="")
    ends = figure.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    low, high = np.log(ends)
    for name, truth in {"bias": exact.bias, "variance": exact.variance, "expected": exact.total}.items():
        line = np.interp(across, np.log(found["half_life"][drawn]), np.log(np.maximum(found[name][drawn], 1e-300)))
        true = np.log(np.maximum(truth, 1e-300))
        np.testing.assert_allclose(line.clip(low, high), true.clip(low, high), atol=0.005 * (high - low))


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_the_lowest_is_an_average_even_where_none_is_better_than_the_last_iterate(noise):
    found = views.loss_by_decay((1.0, 0.25), 0.01, noise, 50, (2.0, 1.6), 0.9, runs=20)
    assert found.expected.total.argmin() == 0
    assert found.lowest == 1


def test_a_path_and_its_average():
    iterates = np.array([[1.0, -2.0], [0.0, -3.5], [3.0, 1.0]])
    path = views.averaged_path(iterates, 0.5)
    np.testing.assert_allclose(path.averaged, [[1.0, -2.0], [0.5, -2.75], [1.75, -0.875]])
    assert path.reach == 3.5
    table = path.table()
    assert table["step"].tolist() == [0, 1, 2]
    assert [table[name].tolist() for name in ("sgd_w1", "sgd_w2")] == iterates.T.tolist()
    assert [table[name].tolist() for name in ("ema_w1", "ema_w2")] == path.averaged.T.tolist()
    assert path.final_losses((1.0, 0.25)) == pytest.approx([(9 + 0.25) / 2, (1.75**2 + 0.25 * 0.875**2) / 2])


def test_a_decay_near_1_is_not_told_as_1():
    assert views.reached_table(Constant(0.9999999), 100)["decay"][-1] == "beta = 0.9999999"
    with pytest.raises(ValueError, match=r"or lower min_value = 0.9999999"):
        with_half_life(InversePower(beta=0.99999999, min_value=0.9999999), 5000, 250)
    with pytest.raises(ValueError, match="beta = 0.9999999 is outside the slider's range, 0.2 to 0.999999"):
        state_of(Constant(0.9999999))
