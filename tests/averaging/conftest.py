"""Schedules of every family, with settings of every kind, for Hypothesis."""

from hypothesis import strategies as st

from emacore.averaging.families import (
    BiasCorrected,
    Constant,
    ExponentialRamp,
    InversePower,
    PowerFunction,
    RationalWarmup,
    UniformAverage,
)

steps_between = st.integers(1, 12)
warm_ups = st.integers(0, 60)
decays = st.floats(0.0, 1.0)

INVERSE_POWERS = st.builds(
    InversePower,
    beta=decays,
    inv_gamma=st.floats(0.01, 1e4),
    power=st.floats(0.01, 10),
    min_value=decays,
    update_after_step=warm_ups,
    update_every=steps_between,
)
TIMING = {"update_after_step": warm_ups, "update_every": steps_between}
ANY = st.one_of(
    INVERSE_POWERS,
    st.builds(Constant, decays, **TIMING),
    st.builds(BiasCorrected, decays, **TIMING),
    st.builds(RationalWarmup, decays, **TIMING),
    st.builds(ExponentialRamp, decays, st.floats(0.1, 1e5), **TIMING),
    st.builds(PowerFunction, st.floats(0, 100), **TIMING),
    st.builds(UniformAverage, **TIMING),
)
#: One of each, whose setting can be solved for.
SOLVABLE = [
    InversePower(beta=0.99, update_every=1),
    InversePower(beta=0.99, update_every=10),
    Constant(update_every=3),
    BiasCorrected(),
    RationalWarmup(),
    ExponentialRamp(tau=200),
    PowerFunction(gamma=1),
    UniformAverage(update_every=5),
]
