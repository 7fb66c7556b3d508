"""Schedules of every family, with settings of every kind, for Hypothesis."""

from dataclasses import fields

from hypothesis import strategies as st

from emacore.averaging import families, schedules
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


UNIT = st.sampled_from([0.0, 5e-324, 1e-300, 1e-16, 0.1, 0.5, 1 - 1e-9, schedules.LARGEST_DECAY, 1.0, 0, 1])


POSITIVE = st.sampled_from([1e-100, 1e-12, 1.0, 10**30, 1e100])


WHOLE = st.sampled_from([0, 1, 2, 7, 199, 200, 10**6, schedules.MOST_CALLS])


#: The edges of what each setting may be, and some values between.
EDGES = {
    "beta": UNIT,
    "min_value": UNIT,
    "inv_gamma": POSITIVE,
    "power": POSITIVE,
    "tau": POSITIVE,
    "gamma": st.one_of(st.none(), st.sampled_from([0, 0.0, 1e-12, 1.0, 10**30, 1e100])),
    "sigma_rel": st.sampled_from([1e-100, 1e-12, 0.1, families.MAX_SIGMA_REL]),
    "update_after_step": WHOLE,
    "update_every": WHOLE.filter(bool),
}


@st.composite
def extremes(draw):
    family = draw(st.sampled_from(sorted(schedules.FAMILIES)))
    settings = {f.name: draw(EDGES[f.name]) for f in fields(schedules.FAMILIES[family])}
    if settings.get("gamma") is not None:
        settings["sigma_rel"] = None
    return schedules.FAMILIES[family](**settings)
