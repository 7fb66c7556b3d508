"""The pictures of the Overview: SGD around a minimum with its average, and the loss over the decay, with handles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
import streamlit as st

from emacore.averaging.filters import half_life
from emacore.averaging.schedules import BETA
from emacore.averaging.signals import sgd_on_quadratic, stationary_loss
from emacore.averaging.views import Path, averaged_path, loss_by_decay
from emacore.charts.moving import Floats, Frames, View
from emacore.charts.plane import border_of, path_frames, paths, playing
from emacore.charts.tradeoff import tradeoff, tradeoff_frames
from emacore.formatting import decay as decay_text
from emacore.widgets.moving import Animation, HandledSetting, show_moving
from emacore.widgets.overview import CURVATURES, DECAY, DRAWN, NOISE, RATE, START, losses_of, path_of
from emacore.widgets.page import leave_if_run_anew, number_text

#: Marks of the handles; values between them can be typed.
_RATES = (0.01, 0.02, *(round(0.05 * k, 2) for k in range(1, 31)))
_NOISES = tuple(round(0.1 * k, 1) for k in range(31))
_DECAYS = BETA.marks(40)


def compared(rate: float, noise: float, beta: float) -> pd.DataFrame:
    """The losses of the last iterate and of its average: by formula, simulated, of the path that is drawn, and of a run
    without an end."""
    path, found = path_of(rate, noise, beta), losses_of(rate, noise, beta)
    places = [found.at(0.0), found.at(beta)]
    return pd.DataFrame(
        {
            f"loss after step {DRAWN - 1}": ["SGD's last step", f"average, decay {number_text(beta)}"],
            "left of the start": found.expected.bias[places],
            "from the noise": found.expected.variance[places],
            "expected: both": found.expected.total[places],
            "simulated": found.simulated[places],
            "standard error": found.error[places],
            "the path drawn": path.final_losses(CURVATURES),
            "after endless steps": [stationary_loss(CURVATURES, rate, noise, decay) for decay in (None, beta)],
        }
    )


#: A unit is as long across as it is up, so on a wide screen most of a wider picture would be empty.
_NO_WIDER = """<style>@media (min-width: 641px) {
[data-testid="stColumn"]:has([class*="st-key-moving-circling"]) {flex: 0 1 36rem;}
}</style>"""


def show_circling(rate: float, noise: float, beta: float, *, plays: bool, again: int) -> Callable[[], None]:
    """Both pictures; to be finished as :func:`emacore.widgets.moving.show_moving` says.

    Args:
        plays: Whether the paths grow by themselves when the page is opened, and whenever ``again`` is another number.
    """
    path, found = path_of(rate, noise, beta), losses_of(rate, noise, beta)
    border = border_of(path.reach)
    curve = pd.DataFrame(found.table())
    formulas = tradeoff(curve[curve["decay"] > 0], chosen=half_life(beta), label=_label(beta), height=115)
    (bottom, top) = formulas.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    views = [
        View(
            playing(paths(path.iterates, path.averaged, CURVATURES, reach=path.reach, height=245)),
            ends={"x": (-border, border), "y": (-border, border)},
            square=True,
        ),
        View(formulas, ends={"y": (bottom, top)}),
    ]
    st.html(_NO_WIDER)
    return show_moving(
        "circling",
        [
            HandledSetting(RATE, "learning rate", _RATES, rate),
            HandledSetting(NOISE, "gradient noise", _NOISES, noise),
            HandledSetting(DECAY, "decay of the average", _DECAYS, beta, decay_text),
        ],
        views,
        lambda handles: circling_frames(rate, noise, beta, tuple((handle.key, handle.values) for handle in handles)),
        alt_text="The path of SGD (orange) and of its average (blue) in a plane of two weights around the minimum in "
        f"the middle, and below it the expected loss of the average after {DRAWN - 1} steps over its decay, lowest at "
        f"{decay_text(float(found.decays[found.lowest]))}; the chosen {_label(beta)} is marked",
        plays=Animation("shown", 20, DRAWN - 1, 6.0, plays, again),
    )


def _label(beta: float) -> str:
    return f"decay {decay_text(beta)}"


@st.cache_data(max_entries=16, show_spinner=False)
def circling_frames(
    rate: float, noise: float, beta: float, marks: Sequence[tuple[str, tuple[float, ...]]]
) -> list[tuple[Frames, ...]]:
    """The frames of both pictures at the marks of each handle; ``marks`` holds a handle's key and its marks."""
    now = {RATE: rate, NOISE: noise, DECAY: beta}
    runs = {key: [_path(**{**now, key: value}) for value in values] for key, values in marks}
    values = dict(marks)
    originals = {key: [run.iterates for run in runs[key]] for key in (RATE, NOISE)}
    averages = {key: [run.averaged for run in own] for key, own in runs.items()}
    tables = {key: [_formula(**{**now, key: value}) for value in values[key]] for key in (RATE, NOISE)}
    decays = values[DECAY]
    marked = [half_life(decay) for decay in decays], [_label(decay) for decay in decays]
    return [path_frames(originals, averages), tradeoff_frames(tables, DECAY, *marked)]


def _path(quad_rate: float, quad_noise: float, quad_decay: float) -> Path:
    leave_if_run_anew()
    return averaged_path(
        sgd_on_quadratic(CURVATURES, quad_rate, quad_noise, DRAWN, seed=1, start=START).noisy, quad_decay
    )


def _formula(quad_rate: float, quad_noise: float, quad_decay: float) -> dict[str, Floats]:
    leave_if_run_anew()
    found = loss_by_decay(CURVATURES, quad_rate, quad_noise, DRAWN, START, quad_decay, runs=0)
    averaged = found.decays > 0
    return {name: column[averaged] for name, column in found.table().items()}
