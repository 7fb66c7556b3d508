"""What was opened, replayed like a run of our own: what it measures comes from a worker, in answers that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from emacore.averaging.code import scheme_from_code, scheme_to_code, to_code
from emacore.averaging.families import Constant
from emacore.averaging.remarks import remarks
from emacore.averaging.schedules import Schedule
from emacore.charts.lines import lines
from emacore.charts.style import AVERAGED, CHOSEN, CLEAN, ORIGINAL, palette
from emacore.experiments.measuring import Question
from emacore.experiments.opened import Contents, Series, by_sections, merges_over_steps
from emacore.formatting import counted
from emacore.replay.curves import curve_figures, curve_in_words, stacked
from emacore.replay.measure import Metric
from emacore.replay.trajectory import Table
from emacore.replay.weight_space import Space
from emacore.widgets.asking import Unanswered, answer_to, version
from emacore.widgets.opened import can_measure, contents
from emacore.widgets.page import BOUND, beside_controls, show_chart, show_table
from emacore.widgets.replay import CELL_NAME, NOW, ORIGINAL_NAME, OWN, metric_columns
from emacore.widgets.replay_cells import kept_cell
from emacore.widgets.replay_views import show_views
from emacore.widgets.schedules import pin_controls, schedule_controls, schedule_defaults

#: The weights as they are stored, as a schedule.
_AS_STORED = to_code(Constant(0.0))
#: Curves are measured without a button where they are known to take no longer, in seconds.
_AT_ONCE = 5.0


@dataclass(frozen=True)
class OpenedRun:
    """What was opened as the views of a page take a run; what is not answered yet is asked for on the page.

    Attributes:
        metrics: What is measured; the first is the loss.
        seconds: What measuring one network took.
        curves: The measured curves of schemes, by their code.
    """

    name: str
    found: Contents
    series: Series
    metrics: tuple[Metric, ...]
    seconds: float
    curves: Mapping[str, Table]

    training: ClassVar[bool] = False
    follows_pointer: ClassVar[bool] = False

    @cached_property
    def run(self) -> Any:
        """By what its charts and controls are told apart."""
        return SimpleNamespace(id=self.name.replace("/", "-"))

    @property
    def epochs(self) -> int:
        """How many of the stored files, or epochs of a recording, are measured."""
        return len(self.curves[_AS_STORED]["epoch"])

    @property
    def loss(self) -> Metric:
        """By which the best is chosen."""
        return self.metrics[0]

    @property
    def loss_title(self) -> str:
        """The title of its axes."""
        return self.loss.name

    def curve(self, code: str) -> Table:
        """The curve under a scheme: epoch, step, each metric's column."""
        return self.curves[code]

    def measured(self, model: str) -> Table:
        """The curve of the weights as they are stored."""
        return self.curves[_AS_STORED]

    def steps_of(self, epochs: NDArray[np.integer]) -> NDArray[np.int64]:
        """The steps after which files, counted from 1, were stored."""
        return np.asarray(self.curves[_AS_STORED]["step"][epochs - 1])

    def atlas(self, epochs: int, code: str, x: str, y: str, metric: str) -> tuple[Table, float]:
        """The atlas of a schedule, and the original's loss on its terms."""
        settings = {"code": code, "x": x, "y": y, "metric": metric}
        found = self._asked("atlas", "Measure this atlas", settings)
        return found["cells"], float(found["original"])

    def relatives(self, epochs: int) -> Table:
        """What the EMA is set beside."""
        found: Table = self._asked("family", "Measure these averages", {})
        return found

    def widths(self, epochs: int) -> Table:
        """Power-function averages over their width."""
        found: Table = self._asked("widths", "Measure these widths", {})
        return found

    def space(self, epochs: int, code: str, kind: str, from_percent: int) -> Space:
        """The weights from so many percent of the run on, seen on a plane."""
        settings = {"code": code, "plane": kind, "since": from_percent}
        found: Space = self._asked("space", "Measure the loss on this plane", settings)
        return found

    def _asked(self, kind: str, what: str, settings: Mapping[str, Any]) -> Any:
        question = Question(self.name, self.found.identity, (self.series.name,), kind, settings, version())
        answer = answer_to(question, what, files=self.epochs)
        if answer is None:
            raise Unanswered
        return answer["found"]


def measured_curves(name: str, found: Contents, series: Series, codes: list[str], *, at_once: bool) -> Any | None:
    """The curves of schemes over the stored files, once they are measured."""
    settings = {"codes": list(dict.fromkeys(codes))}
    question = Question(name, found.identity, (series.name,), "curves", settings, version())
    what = "Measure what is stored" if len(codes) == 1 else "Measure these curves"
    return answer_to(question, what, files=len(series.steps), measured=can_measure(found), at_once=at_once)


def show_combined(name: str, found: Contents, series: Series) -> None:
    """The page of What if for averages that belong together: each point of a curve is the merge of those until then."""
    st.caption(
        f":material/info: `{series.name}` are averages of one run, so each point is the merge of what is stored until "
        "then that comes nearest to the schedule's average. The atlas and other views replay single sets of weights."
    )
    controls, charts = beside_controls(1.8)
    with controls:
        schedule = schedule_controls(typed=True)
        code = to_code(schedule)
        pinned = pin_controls(code, schedule_defaults(), scheme_from_code)
    merges = {key: merges_over_steps(series, text) for key, text in {NOW: code, **_schedules(pinned)}.items()}
    rows = [by_sections(series, one) for _, own in merges.values() for one in own]
    sections = tuple(dict.fromkeys(series.sections))
    question = Question(name, found.identity, sections, "merges", {"coefficients": rows}, version())
    with charts:
        answer = answer_to(question, "Measure these curves", files=len(rows), measured=can_measure(found))
        if answer is None:
            return
        steps = [step for own, _ in merges.values() for step in own]
        names = [key for key, (own, _) in merges.items() for _ in own]
        loss = Metric(**answer["metrics"][0])
        show_chart(
            lines(
                table := pd.DataFrame({"curve": names, "step": steps, **answer["found"]}),
                x="step",
                y=loss.column,
                series="curve",
                colours=palette(merges, {NOW: AVERAGED}),
                x_title="step of the run",
                y_title=loss.name,
                height=300,
            ),
            alt_text=f"{loss.name} of {len(merges)} merges over the steps at which averages are stored",
            table=table,
            name=f"combined-{name.replace('/', '-')}",
            look_for="The first points are made of few files: their certificates are on the page Your checkpoints.",
        )


def _schedules(pinned: Mapping[str, Any]) -> dict[str, str]:
    """Of what is pinned, the schedules; windows are none."""
    return {key: to_code(one) for key, one in pinned.items() if isinstance(one, Schedule)}


def show_opened_run(name: str) -> None:
    """The page of What if for what was opened."""
    found = contents(name)
    usable = {key: one for key, one in found.series.items() if len(set(one.sections)) == 1}
    if found.default is not None and found.default not in usable:
        show_combined(name, found, found.series[found.default])
        return
    series = usable.get(found.first) or next(iter(usable.values()))
    st.caption(
        f":material/info: {counted(len(series.steps), 'stored set')} of `{series.name}`: each stands for all steps "
        "since the one before it, so replays are of a run that moved only then. What merges weigh step by step is on "
        "the page Your checkpoints."
    )
    first = measured_curves(name, found, series, [_AS_STORED], at_once=False)
    if first is None:
        return
    verdict = st.container()
    controls, charts, views = beside_controls(1.8, 1.7)
    run = SimpleNamespace(id=name.replace("/", "-"))
    with controls:
        schedule = schedule_controls(typed=True)
        code = to_code(schedule)
        pinned = pin_controls(code, schedule_defaults(), scheme_from_code)
    kept = kept_cell(run)
    codes = {NOW: code, **({CELL_NAME: kept} if kept else {})}
    codes |= {key: scheme_to_code(scheme) for key, scheme in pinned.items()}
    average = next((one for one in usable.values() if one.kind == "average" and one.steps == series.steps), None)
    with charts:
        cost = first["seconds"] * len(series.steps) * len(codes)
        answer = measured_curves(name, found, series, [_AS_STORED, *codes.values()], at_once=bool(cost < _AT_ONCE))
        own = None
        if average is not None and answer is not None:
            own = measured_curves(name, found, average, [_AS_STORED], at_once=bool(cost < _AT_ONCE))
    if answer is None:
        return
    metrics = tuple(Metric(**one) for one in answer["metrics"])
    opened = OpenedRun(name, found, series, metrics, first["seconds"], answer["found"])
    parts = {ORIGINAL_NAME: opened.measured("original")}
    if own is not None:
        parts[OWN] = own["found"][_AS_STORED]
    curves = stacked({**parts, **{key: opened.curve(text) for key, text in codes.items()}})
    hues = {ORIGINAL_NAME: ORIGINAL, OWN: CLEAN, **palette(codes, {NOW: AVERAGED, CELL_NAME: CHOSEN})}
    with charts:
        scale = st.segmented_control(
            "Loss axis",
            ["log", "linear"],
            default="log",
            key="loss_axis",
            required=True,
            help="log shows what happens at small losses; linear shows how large the differences are.",
            label_visibility="collapsed",
            **BOUND,
        )
        show_chart(
            lines(
                pd.DataFrame(curves),
                x="step",
                y=opened.loss.column,
                series="curve",
                colours=hues,
                x_title="step of the run",
                y_title=opened.loss_title,
                y_scale=scale,
                height=260,
            ),
            alt_text=f"{opened.loss_title} over the stored files: as stored, and {len(codes)} replayed schemes",
            table=pd.DataFrame(curves),
            name=f"replayed-{run.id}",
            look_for="Where the blue line lies below the orange one, averaging helps.",
        )
        for remark in remarks(schedule, max(2, series.calls)):
            st.caption(remark)
        figures = curve_figures(curves, opened.metrics, ORIGINAL_NAME, 1)
        show_table(
            pd.DataFrame(figures).astype({"ahead_since": "Int64"}),
            name=f"figures-{run.id}",
            column_config=metric_columns(opened, "file"),
        )
    verdict.markdown(curve_in_words(figures, ORIGINAL_NAME, NOW, "file"))
    with views:
        show_views(opened, schedule, kept)
