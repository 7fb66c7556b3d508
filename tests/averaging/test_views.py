import numpy as np
import pytest

from emacore.averaging import views
from emacore.averaging.signals import final_loss

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
        (0.0, 1e-30, "raises the expected loss of this run from 0 to 1e-30"),
        (0.2, 0.20001, "leaves the expected loss of this run as it is"),
        (0.0, 0.0, "leaves the expected loss of this run as it is"),
        (np.inf, np.inf, "This run diverges"),
    ],
)
def test_the_headline_follows_the_numbers(before, after, words):
    assert words in views.change_in_words(before, after)


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
    assert [table[name].tolist() for name in ("average_w1", "average_w2")] == path.averaged.T.tolist()
    assert path.final_losses((1.0, 0.25)) == pytest.approx([(9 + 0.25) / 2, (1.75**2 + 0.25 * 0.875**2) / 2])
