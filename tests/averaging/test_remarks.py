import pytest

from emacore.averaging.remarks import remarks
from emacore.averaging.schedules import (
    BiasCorrected,
    Constant,
    ExponentialRamp,
    InversePower,
    RationalWarmup,
    UniformAverage,
)

ARTICLE = InversePower(beta=0.999, update_after_step=100, update_every=1)


@pytest.mark.parametrize(
    ("schedule", "num_steps", "words"),
    [
        (
            ARTICLE,
            5000,
            ["beta = 0.999 is never reached in this run: the decay ends at 0.99653", "from step 31,722 on"],
        ),
        (ARTICLE, 80, ["warm-up is longer than the run: the average begins at step 101, and the run ends at step 79"]),
        (InversePower(update_every=500), 400, ["update_every = 500 is as long as the run (400 steps)"]),
        (
            InversePower(power=1.0, update_after_step=0, update_every=10),
            2000,
            ["first of the 199 snapshots weighs", "inv_gamma = 10 counts moves"],
        ),
        (InversePower(beta=0.5, min_value=0.7, update_every=1), 500, ["min_value = 0.7 is not below beta = 0.5"]),
        (InversePower(beta=0.5, min_value=0.1, update_every=1), 500, ["min_value = 0.1 has no effect"]),
        (Constant(0.9999), 1000, ["90% of the final average are still the weights of step 0"]),
        (RationalWarmup(1.0), 1000, ["beta = 1 is never reached", "no run is long enough"]),
        (ExponentialRamp(0.99, tau=1000), 500, ["39% of beta = 0.99"]),
        (BiasCorrected(0.9999), 50, ["% of beta"]),
    ],
)
def test_what_a_reader_should_know_is_said(schedule, num_steps, words):
    text = " ".join(remarks(schedule, num_steps))
    for expected in words:
        assert expected in text


@pytest.mark.parametrize(
    ("schedule", "num_steps"),
    [
        (Constant(0.99), 5000),
        (UniformAverage(), 100),
        (UniformAverage(update_after_step=50, update_every=10), 100),
        (InversePower(beta=0.9, update_after_step=0, update_every=1), 5000),
        (BiasCorrected(0.99), 3000),
    ],
)
def test_nothing_is_said_where_nothing_is_odd(schedule, num_steps):
    assert remarks(schedule, num_steps) == []
