"""What was opened, on the page What if like a recorded run: a worker measures its networks, and answers are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from emacore.widgets.asking import Unanswered, answer_to, known, version
from emacore.widgets.opened import can_measure, contents, distances_between, plans_of
from emacore.widgets.opened_curves import Losses, known_so_far, show_opened_curves
from emacore.widgets.opened_merges import show_merges_moving
from emacore.widgets.page import beside_controls, csv_button, escaped, loss_axis, show_chart, show_table
from emacore.widgets.replay import CELL_NAME, NOW, ORIGINAL_NAME, OWN, metric_columns
from emacore.widgets.replay_cells import kept_cell
from emacore.widgets.replay_views import show_views
from emacore.widgets.schedules import pin_controls, schedule_controls, schedule_defaults

#: The weights as they are stored, as a schedule.
_AS_STORED = to_code(Constant(0.0))
#: Seconds: curves that are known to take less are measured without a button.
_AT_ONCE = 5.0


@dataclass(frozen=True)
class OpenedRun:
    """What was opened, with the methods of :class:`~emacore.widgets.replay.Recorded` that the views of a page call.

    What is not measured yet is asked for on the page: those methods raise ``Unanswered``.

    Attributes:
        name: The name under which it was opened.
        found: What is in it.
        series: The set of weights that is replayed.
        metrics: What is measured; the first is the loss.
        seconds: How long measuring one network took.
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
        """An object whose ``id`` tells its charts and controls from others'."""
        return SimpleNamespace(id=self.name.replace("/", "-"))

    @property
    def epochs(self) -> int:
        """How many of the stored files, or epochs of a recording, are measured."""
        return len(self.curves[_AS_STORED]["epoch"])

    @property
    def loss(self) -> Metric:
        """The metric by which the best is chosen."""
        return self.metrics[0]

    @property
    def loss_title(self) -> str:
        """The title of an axis of losses."""
        return self.loss.name

    def curve(self, code: str) -> Table:
        """The curve under a scheme: epoch, step, each metric's column."""
        if code not in self.curves:
            raise Unanswered
        return self.curves[code]

    def measured(self, model: str) -> Table:
        """The curve of the weights as they are stored, whichever ``model`` is asked for."""
        return self.curves[_AS_STORED]

    def steps_of(self, epochs: NDArray[np.integer]) -> NDArray[np.int64]:
        """The steps after which files, counted from 1, were stored."""
        return np.asarray(self.curves[_AS_STORED]["step"][epochs - 1])

    def atlas(self, epochs: int, code: str, x: str, y: str, metric: str) -> tuple[Table, float]:
        """The table of :func:`emacore.replay.atlas.atlas`, and the original's loss, final or best as there."""
        settings = {"code": code, "x": x, "y": y, "metric": metric}
        found = self._asked("atlas", "Measure this atlas", settings)
        return found["cells"], float(found["original"])

    def relatives(self, epochs: int) -> Table:
        """The table of :func:`emacore.replay.relatives.relatives`."""
        found: Table = self._asked("family", "Measure these averages", {})
        return found

    def widths(self, epochs: int) -> Table:
        """The table of :func:`emacore.replay.atlas.widths`."""
        found: Table = self._asked("widths", "Measure these widths", {})
        return found

    def space(self, epochs: int, code: str, kind: str, from_percent: int) -> Space:
        """What :func:`emacore.replay.weight_space.space` finds from ``from_percent`` % of the run on."""
        settings = {"code": code, "plane": kind, "since": from_percent}
        found: Space = self._asked("space", "Measure the loss on this plane", settings)
        return found

    def _asked(self, kind: str, what: str, settings: Mapping[str, Any]) -> Any:
        question = Question(self.name, self.found.identity, (self.series.name,), kind, settings, version())
        answer = answer_to(question, what, files=self.epochs)
        if answer is None:
            raise Unanswered
        return answer["found"]


def curves_known(name: str, found: Contents, series: Series, codes: Iterable[str]) -> dict[str, Any]:
    """The answers that hold the curves of schemes, of those that are measured already, by their code."""
    return {code: answer for code in codes if (answer := known(_curves(name, found, series, [code]))) is not None}


def measured_curves(
    name: str, found: Contents, series: Series, codes: Sequence[str], *, at_once: bool
) -> dict[str, Any]:
    """The answers of :func:`curves_known`; what is not measured yet is asked for on the page, or, ``at_once``, of a
    worker without a button."""
    answers = curves_known(name, found, series, codes)
    if missing := [code for code in dict.fromkeys(codes) if code not in answers]:
        what = "Measure what is stored" if missing == [_AS_STORED] else "Measure these curves"
        question, files = _curves(name, found, series, missing), len(series.steps)
        answer = answer_to(question, what, files=files, measured=can_measure(found), at_once=at_once)
        if answer is not None:
            answers |= {code: {**answer, "found": {code: answer["found"][code]}} for code in missing}
    return answers


def _curves(name: str, found: Contents, series: Series, codes: Sequence[str]) -> Question:
    return Question(name, found.identity, (series.name,), "curves", {"codes": list(codes)}, version())


def show_combined(name: str, found: Contents, series: Series) -> None:
    """Show What if of averages that belong together: each point of a curve is a merge of those stored until then."""
    st.caption(
        f":material/info: `{series.name}` are averages of one run, so each point is the merge of what is stored until "
        "then that comes nearest to the schedule's average. The atlas and other views replay single sets of weights."
    )
    controls, charts = beside_controls(1.8)
    with controls:
        schedule = schedule_controls(typed=True)
        code = to_code(schedule)
        pinned = pin_controls(code, schedule_defaults(), scheme_from_code)
    codes = {NOW: code, **_schedules(pinned)}
    merges = {key: merges_over_steps(series, text) for key, text in codes.items()}
    rows = [by_sections(series, one) for _, own in merges.values() for one in own]
    sections = tuple(dict.fromkeys(series.sections))
    question = Question(name, found.identity, sections, "merges", {"coefficients": rows}, version())
    with charts:
        of = f"{name}-{found.identity}-{series.steps}"
        plans, growths = plans_of(of, series, codes, None)
        if NOW in plans:
            finish = show_merges_moving(of, name, series, schedule, plans, growths, None)
        answer = answer_to(question, "Measure these curves", files=len(rows), measured=can_measure(found))
    if answer is not None:
        with charts:
            _show_measured(name, merges, answer)
    if NOW in plans:
        finish()


def _show_measured(name: str, merges: Mapping[str, tuple[list[int], list[Any]]], answer: Mapping[str, Any]) -> None:
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
    """The code of those pinned curves that are schedules, not windows."""
    return {key: to_code(one) for key, one in pinned.items() if isinstance(one, Schedule)}


def show_opened_run(name: str) -> None:
    """Show the page What if of what was opened under a name."""
    found = contents(name)
    usable = {key: one for key, one in found.series.items() if len(set(one.sections)) == 1}
    if found.default is not None and found.default not in usable:
        show_combined(name, found, found.series[found.default])
        return
    series = next(iter(usable.values()))
    st.caption(
        f":material/info: {counted(len(series.steps), 'stored set')} of `{series.name}`: each stands for all steps "
        "since the one before it, so replays are of a run that moved only then. What merges weigh step by step is on "
        "the page Your checkpoints."
    )
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
    hues = {ORIGINAL_NAME: ORIGINAL, OWN: CLEAN, **palette(codes, {NOW: AVERAGED, CELL_NAME: CHOSEN})}
    average = next((one for one in usable.values() if one.kind == "average" and one.steps == series.steps), None)
    with charts:
        axis, screen, asking, told = (st.container() for _ in range(4))
    with asking:
        squared = distances_between(name, found, series)
        answers = measured_curves(name, found, series, [_AS_STORED], at_once=False)
        own = None
        if answers:
            cost = answers[_AS_STORED]["seconds"] * len(series.steps) * len(codes)
            at_once = bool(cost < _AT_ONCE)
            answers |= measured_curves(name, found, series, [*codes.values()], at_once=at_once)
            if average is not None:
                own = measured_curves(name, found, average, [_AS_STORED], at_once=at_once).get(_AS_STORED)
    opened = curves = losses = None
    if answers:
        metrics = tuple(Metric(**one) for one in answers[_AS_STORED]["metrics"])
        found_curves = {text: one["found"][text] for text, one in answers.items()}
        opened = OpenedRun(name, found, series, metrics, answers[_AS_STORED]["seconds"], found_curves)
        original, loss = opened.measured("original"), opened.loss.column
        parts = {ORIGINAL_NAME: original} | ({OWN: own["found"][_AS_STORED]} if own is not None else {})
        parts |= {NOW: known_so_far(original, found_curves.get(code))}
        parts |= {key: found_curves[text] for key, text in codes.items() if key != NOW and text in found_curves}
        curves = stacked(parts)
        with axis:
            scale = loss_axis(label_visibility="collapsed")

        def measured(some: Sequence[str]) -> dict[str, NDArray[np.float64]]:
            return {text: one["found"][text][loss] for text, one in curves_known(name, found, series, some).items()}

        losses = Losses(pd.DataFrame(curves), loss, opened.loss_title, scale, measured)
    with screen:
        finish = show_opened_curves(found.identity, series, schedule, codes, squared, losses, hues)
    with told:
        st.caption(
            "While a handle is dragged, what needs no evaluation follows it: how far the average is from the weights "
            "that were stored at each step, what each stored set weighs in the end, and the certificate of that. The "
            "loss is drawn where it was measured, and never guessed in between; where the handle is let go, a worker "
            "is asked for it."
        )
        for remark in remarks(schedule, max(2, series.calls)):
            st.caption(remark)
        if opened is not None and curves is not None and code in opened.curves:
            figures = curve_figures(curves, opened.metrics, ORIGINAL_NAME, 1)
            csv_button(pd.DataFrame(curves), f"replayed-{run.id}")
            show_table(
                pd.DataFrame(figures).astype({"ahead_since": "Int64"}),
                name=f"figures-{run.id}",
                column_config=metric_columns(opened, "file"),
            )
            if not opened.loss.higher_is_better:
                verdict.markdown(curve_in_words(figures, ORIGINAL_NAME, NOW, "file"))
    if opened is not None and opened.loss.higher_is_better:
        verdict.info(
            f"More {escaped(opened.loss.name)} is better, but sentences and maps here compare losses: they are there "
            "once a loss comes first in the metrics of what measures.",
            icon=":material/info:",
        )
    elif opened is not None:
        with views:
            show_views(opened, schedule, kept)
    finish()
