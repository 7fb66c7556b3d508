"""A metric file of one's own on the Low-pass filter page: uploaded, read, drawn and smoothed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from emacore.apart import call_apart
from emacore.averaging import views
from emacore.averaging.code import to_code
from emacore.averaging.schedules import Schedule
from emacore.averaging.smoothing import WAYS, Smoothing
from emacore.averaging.trackers import VIEWPORT_SCALE
from emacore.charts.lines import lines
from emacore.charts.moving import Frames, Handle, View, line_frames
from emacore.charts.style import AVERAGED, CLEAN, ORIGINAL, palette
from emacore.charts.thin import Floats, Scale, axis_ends, left_out_of, rows_with_gaps
from emacore.formatting import decay as decay_text
from emacore.formatting import in_bytes, number
from emacore.limits import TABLE_BYTES
from emacore.metric_files import Curve, MetricFile, curves, figures_table, read_metrics, with_smoothed
from emacore.tables import is_light, numeric_columns
from emacore.widgets.moving import HandledSetting, show_moving
from emacore.widgets.page import BOUND, csv_button, escaped, sentence, show_table, stop_with
from emacore.widgets.schedules import schedule_controls
from emacore.widgets.signals import HANDLED_STEPS
from emacore.widgets.smoothing import FEWEST_STEPS, Small

SYNTHETIC, OWN = "Synthetic", "Own file"
SCHEDULE = "The schedule"
#: The controls of each way's number, by the way's name in WAYS.
AMOUNTS = {
    "tensorboard": "tb_smoothing",
    "wandb": "wandb_smoothing",
    "pandas": "ewm_half_life",
    "first": "first_decay",
    "zero": "zero_decay",
    "moving-average": "window_values",
}
LABELS = {way.label: name for name, way in WAYS.items()}
OWN_DEFAULTS: dict[str, Any] = {
    "ways": [WAYS["tensorboard"].label],
    "viewport_scale": VIEWPORT_SCALE,
    "own_order": "x",
    "own_repeats": "all",
    "own_y": "linear",
    **{
        key: int(WAYS[name].default) if name == "moving-average" else WAYS[name].default
        for name, key in AMOUNTS.items()
    },
}
#: How many metrics are drawn at first, and at most.
_FIRST_METRICS, _MOST_METRICS = 3, 8
#: A line of more values is thinned before it becomes a table.
_LONG = 20_000
#: At most this many numbers come as frames of handles, each with at most this many marks.
_MOST_NUMBERS = 300_000
_MOST_MARKS = 40


class Upload(NamedTuple):
    """A file that was dropped: its name, and what was read, or why not."""

    name: str
    file: MetricFile | None
    error: str = ""


def source_controls() -> MetricFile | None:
    """Where the sequence comes from: ``None`` for one that is made here.  The page ends where a file cannot be used."""
    source = st.segmented_control(
        "Sequence",
        [SYNTHETIC, OWN],
        default=SYNTHETIC,
        key="source",
        required=True,
        help="Synthetic: a known signal with noise, so that what an average does can be checked by formula. Own file: "
        "the metrics of a file of yours, smoothed as tools do it.",
        **BOUND,
    )
    st.file_uploader(
        "A metric file",
        key="own",
        on_change=_dropped,
        help="What TensorBoard (CSV or event files), W&B, MLflow, Lightning, Keras, Hugging Face, DVC and others "
        f"write: CSV, JSON, logs, Parquet, also packed with gzip; up to {in_bytes(TABLE_BYTES)}. It stays in this "
        "session, and is not part of the link.",
        max_upload_size=TABLE_BYTES // 2**20,
    )
    if source == SYNTHETIC:
        return None
    upload: Upload | None = st.session_state.get("own_upload")
    if upload is None:
        st.info(
            "Drop a file above, such as a training log: its metrics are drawn and smoothed.", icon=":material/upload:"
        )
        st.stop()
    if upload.file is None:
        stop_with(upload.error)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"From {escaped(upload.name)}")
        if st.session_state.get("own") is None:  # the page was left meanwhile, and the uploader has forgotten it
            st.button("Forget it", on_click=_forget, key="forget_own", type="tertiary", help="Drop it, to use another.")
    return upload.file


def _forget() -> None:
    st.session_state.pop("own_upload", None)


def _dropped() -> None:
    """Read a file that was dropped, and show it: a callback."""
    state = st.session_state
    dropped = state.get("own")
    if dropped is None:
        state.pop("own_upload", None)
        return
    content = dropped.getvalue()
    try:
        state["own_upload"] = Upload(dropped.name, read(content))
    except ValueError as error:
        state["own_upload"] = Upload(dropped.name, None, str(error))
    state["source"] = OWN


def read(content: bytes) -> MetricFile:
    """A metric file, read here if that takes a moment only, and else in a process of its own."""
    return read_metrics(content) if is_light(content) else call_apart(read_metrics, content)


def show_own(file: MetricFile, controls: Any, charts: Any) -> Callable[[], None]:
    """Controls and pictures of a file; what is returned is to be called at the end of the page."""
    with controls:
        file, names = _columns(file)
        smoothings = _smoothings()
        choices = _choices(file, names)
    try:
        found = curves(file, names, smoothings, **choices)
    except ValueError as error:
        with charts:
            st.error(sentence(error), icon=":material/error:")
            _told(file)
        st.stop()
    colours = {"value": ORIGINAL, **palette(smoothings, {next(iter(smoothings)): AVERAGED} if smoothings else {})}
    with charts:
        finish = _pictures(found, smoothings, file.span(names), colours)
        csv_button(lambda: _table(file, names, smoothings, choices), "smoothed")
        _told(file)
    if smoothings:
        st.header("What each smoothing does")
        show_table(figures_table(found), name="smoothings", column_config=_COLUMNS)
        st.caption(
            "Each figure is of values at the usual distance (the median), once the smoothing has settled: lag and "
            "half-life in the unit of x, the cut-off in cycles per unit, and what is left of white noise as a share of "
            "its standard deviation. The lag is by how much slow changes come out late."
        )
        _small_pictures(found[0], smoothings, colours)
    return finish


_COLUMNS = {
    "half_life": st.column_config.NumberColumn("half-life"),
    "cutoff": st.column_config.NumberColumn("cut-off"),
    "noise_left": st.column_config.NumberColumn("noise left"),
}


def _columns(file: MetricFile) -> tuple[MetricFile, list[str]]:
    """The choice of metrics and of what is x."""
    state = st.session_state
    there = numeric_columns(file.frame)
    options = [*file.metrics, *(name for name in there if name not in file.metrics)]
    if set(state.get("metrics") or ()) - set(options):
        del state["metrics"]
    names = st.multiselect(
        "Metrics",
        options,
        default=options[:_FIRST_METRICS] if not file.metrics else file.metrics[:_FIRST_METRICS],
        key="metrics",
        max_selections=_MOST_METRICS,
        help="Columns to draw and to smooth, each in a picture of its own. Those that look like metrics come first.",
        **BOUND,
    )
    if not names:
        stop_with("Choose a metric to draw.")
    row = "number of the row"
    xs = [*file.xs, row]
    x = st.selectbox(
        "x",
        xs,
        xs.index(file.step) if file.step is not None else len(xs) - 1,
        key="own_x",
        help="What the curves are drawn over, and what smoothings that act on distances count: steps, or a time.",
        **BOUND,
    )
    chosen = None if x == row else x
    return (file if chosen == file.step else file.with_x(chosen)), names


def _smoothings() -> dict[str, Smoothing]:
    """The chosen smoothings by their labels, with a control for the number of each."""
    chosen = st.pills(
        "Smoothings",
        [*LABELS, SCHEDULE],
        selection_mode="multi",
        default=OWN_DEFAULTS["ways"],
        key="ways",
        wrap=True,
        help="Each adds a line, smoothed exactly as its tool does it. *The schedule* is the one of the Decay schedule "
        "page.",
        **BOUND,
    )
    found = {}
    for label in chosen:
        if label == SCHEDULE:
            with st.expander("The schedule", expanded=True):
                schedule: Schedule = schedule_controls(typed=True)
            st.caption(f"`{to_code(schedule)}`")
            found[label] = Smoothing("schedule", schedule=schedule)
            continue
        name = LABELS[label]
        found[label] = Smoothing(name, _amount(name), viewport_scale=_viewport() if name == "wandb" else VIEWPORT_SCALE)
    return found


def _amount(name: str) -> float:
    way = WAYS[name]
    whole = name == "moving-average"
    kind: Callable[[float], Any] = int if whole else float
    steps = {"Smoothing": 0.05, "Decay": 0.001, "Half-life": 10.0, "Window": 1}
    value = st.number_input(
        f"{way.number}, {way.label}",
        kind(way.low),
        kind(way.high),
        OWN_DEFAULTS[AMOUNTS[name]],
        steps[way.number],
        key=AMOUNTS[name],
        format="%d" if whole else "%.7g",
        help=f"{way.about} {'In the unit of x: more' if name == 'pandas' else 'More'} is calmer, and later.",
        **BOUND,
    )
    return float(value)


def _viewport() -> float:
    value = st.number_input(
        "Viewport scale",
        1.0,
        1e6,
        VIEWPORT_SCALE,
        100.0,
        key="viewport_scale",
        format="%.6g",
        help="By how much W&B multiplies a distance's share of the x-axis. Its documentation (Smooth line plots) names "
        "VIEWPORT_SCALE and gives no number; 1,000 is taken. Larger is less smoothing.",
        **BOUND,
    )
    return float(value)


def _choices(file: MetricFile, names: Sequence[str]) -> dict[str, bool]:
    """Controls that are there only where steps are out of order, or repeated: the arguments of ``curves`` they set."""
    ordered, last = True, False
    if file.unsorted(names):
        order = st.segmented_control(
            "Order",
            ["x", "rows"],
            default="x",
            key="own_order",
            required=True,
            help="x goes back in this file. Smooth along x, or in the order in which the rows stand; what acts on "
            "distances needs the order of x.",
            **BOUND,
        )
        ordered = order == "x"
    if file.repeated(names):
        kept = st.segmented_control(
            "Several values at an x",
            ["all", "last"],
            default="all",
            key="own_repeats",
            required=True,
            help="A restart writes some steps twice. all: each of these values is drawn and smoothed; last: at each x "
            "only the one that was written last.",
            **BOUND,
        )
        last = kept == "last"
    return {"in_order_of_steps": ordered, "last_of_step_only": last}


def _told(file: MetricFile) -> None:
    """Show what was taken of the file, and what was left out."""
    first, *more = file.told()
    st.caption(escaped(first))
    if more:
        with st.expander(f"What was taken, and what was left out ({len(more)})", expanded=len(more) <= 4):
            for words in more[:100]:
                st.markdown(f"- {escaped(words)}")
            if len(more) > 100:
                st.markdown(f"- and {len(more) - 100:,} more")


def _table(
    file: MetricFile, names: Sequence[str], smoothings: Mapping[str, Smoothing], choices: Mapping[str, bool]
) -> pd.DataFrame:
    """The file's table with a further column for each metric and smoothing, "loss, TensorBoard"."""
    span, table = file.span(names), file.frame
    for label, one in smoothings.items():
        suffix = f", {label}"
        added = with_smoothed(file, names, lambda v, x, one=one: one.smooth(v, x, span), suffix=suffix, **choices)  # type: ignore[misc]
        table = table.assign(**{f"{name}{suffix}": added[f"{name}{suffix}"] for name in names})
    return table


def _pictures(
    found: Sequence[Curve], smoothings: Mapping[str, Smoothing], span: float, colours: Mapping[str, str]
) -> Callable[[], None]:
    """A picture for each curve, one above the other, with handles for the smoothings' numbers."""
    scale = st.segmented_control(
        "y axis",
        ["linear", "log"],
        default="linear",
        key="own_y",
        required=True,
        help="log shows what happens at small values; what is not above 0 cannot be drawn there, and is told.",
        **BOUND,
    )
    drawn = []
    for curve in found:
        both = np.concatenate([curve.values, *curve.smoothed.values()])
        low, high = axis_ends(both, scale)
        edge = 0.04 * (high - low)
        ends = (low - edge, high + edge) if scale == "linear" and high > low else (low, high)
        figure = lines(
            _drawn(curve, scale),
            x="x",
            y="value",
            series="line",
            colours=colours,
            x_title=curve.unit,
            y_title=curve.name,
            y_scale=scale,
            faint=["value"],
            height=300 if len(found) == 1 else 200,
        )
        whole = {label: {"x": curve.steps, "value": values} for label, values in _lines_of(curve).items()}
        figure = figure._replace(left_out=left_out_of(whole, {"x": "linear", "value": scale}))
        drawn.append(View(figure, ends={"y": ends} if high > low else {}))
    settings = _settings(found, smoothings, span) if scale == "linear" else []

    def frames_of(handles: Sequence[Handle]) -> list[tuple[Frames, ...]]:
        return [_frames(curve, smoothings, handles, span) for curve in found]

    names = ", ".join(curve.name for curve in found)
    return show_moving(
        "own",
        settings,
        drawn,
        frames_of,
        alt_text=f"{names} (orange), smoothed by {', '.join(smoothings) or 'nothing'}",
    )


def _lines_of(curve: Curve) -> dict[str, Floats]:
    return {"value": curve.values, **curve.smoothed}


def _drawn(curve: Curve, scale: Scale) -> pd.DataFrame:
    """A curve and its smoothed ones as a long table: x, line, value; of a long line the rows that show it so."""
    found = _lines_of(curve)
    ends = axis_ends(np.concatenate([*found.values()]), scale)
    parts = []
    for label, values in found.items():
        rows: Any = slice(None)
        if len(values) > _LONG:
            rows = rows_with_gaps(curve.steps, values, y_scale=scale, y_range=ends)
        parts.append(pd.DataFrame({"x": curve.steps[rows], "line": label, "value": values[rows]}))
    return pd.concat(parts, ignore_index=True)


def _settings(found: Sequence[Curve], smoothings: Mapping[str, Smoothing], span: float) -> list[HandledSetting]:
    """Handles for the numbers of the smoothings, where frames are few enough."""
    moved = [one for one in smoothings.values() if one.way in AMOUNTS]
    numbers = sum(len(curve.values) for curve in found)
    increasing = all(np.all(np.diff(curve.steps) > 0) and np.isfinite(curve.values).all() for curve in found)
    if not moved or not increasing or max(len(curve.values) for curve in found) > HANDLED_STEPS:
        return []
    most = min(_MOST_NUMBERS // (numbers * len(moved)), _MOST_MARKS)
    if most < 8:
        return []
    return [
        HandledSetting(
            AMOUNTS[one.way],
            f"{WAYS[one.way].number.lower()}, {WAYS[one.way].label}",
            _marks(one.way, most, span, numbers // len(found)),
            one.amount,
            decay_text if WAYS[one.way].number == "Decay" else number,
        )
        for one in moved
    ]


def _marks(way: str, most: int, span: float, count: int) -> tuple[float, ...]:
    match WAYS[way].number:
        case "Smoothing":
            found = np.round(1 - np.geomspace(1.0, 0.001, most), 4)
        case "Decay":
            found = np.round(1 - np.geomspace(1.0, 1 / max(count, 10), most), 6)
        case "Half-life":
            found = np.array([float(f"{v:.2g}") for v in np.geomspace((span or 1.0) / 2000, (span or 1.0), most)])
        case _:
            found = np.round(np.geomspace(1, max(count, 2), most))
    return tuple(float(value) for value in np.unique(found))


def _frames(
    curve: Curve, smoothings: Mapping[str, Smoothing], handles: Sequence[Handle], span: float
) -> tuple[Frames, ...]:
    """The frames of each smoothed line, at the marks of the handle that moves it."""
    low, high = axis_ends(np.concatenate([curve.values, *curve.smoothed.values()]), "linear")
    by_key, frames = {handle.key: handle for handle in handles}, []
    for label, one in smoothings.items():
        handle = by_key.get(AMOUNTS.get(one.way, ""))
        if handle is None or not len(curve.values):
            continue
        at = [
            Smoothing(one.way, value, viewport_scale=one.viewport_scale).smooth(curve.values, curve.steps, span)
            for value in handle.values
        ]
        moving = {handle.key: at}
        frames.append(line_frames("x", "value", "line", label, curve.steps, moving, y_ends=(low, high)))
    return tuple(frames)


def _small_pictures(curve: Curve, smoothings: Mapping[str, Smoothing], colours: Mapping[str, str]) -> None:
    """Four small pictures of each smoothing of a curve: gain, spectrum, answer to a jump, what each age weighs."""
    unit = curve.unit
    gains, weights, answers, rules, times, since = [], [], [], {}, {}, {}
    for label, one in smoothings.items():
        settled = curve.settled[label]
        gains.append(pd.DataFrame(one.gain_table(settled)).assign(filter=label))
        table = pd.DataFrame(one.weight_table(settled)).assign(filter=label)
        weights.append(table[["age", "weight", "filter"]])
        answers.append(table[["age", "answer", "filter"]])
        if len(smoothings) == 1:
            rules, times, since = settled.frequencies, settled.times, settled.answer_times
    of = f"of {curve.name}, whose values usually stand {number(next(iter(curve.settled.values())).distance)} apart"
    pictures = [
        _small(
            "Gain over frequency", gains, "frequency", "gain", f"frequency (cycles per {unit})", rules, of, log=True
        ),
        _spectrum(curve, unit),
        _small("Step response and lag", answers, "age", "answer", f"since the jump ({unit})", since, of),
        _small("What a value of each age weighs", weights, "age", "weight", f"age ({unit})", times, of),
    ]
    own = {"sequence": ORIGINAL, "EMA": AVERAGED, "clean part": CLEAN, **colours}
    for pair in (pictures[:2], pictures[2:]):
        for column, picture in zip(st.columns(2, gap="medium"), pair, strict=True):
            with column:
                if isinstance(picture, Small):
                    picture.show(own, picture.name)
                else:
                    st.info(picture, icon=":material/info:")


def _small(
    title: str,
    tables: list[pd.DataFrame],
    x: str,
    y: str,
    x_title: str,
    rules: Mapping[str, float],
    of: str,
    *,
    log: bool = False,
) -> Small:
    """One small picture of tables with different ``x``; a line is blank where its table has no row.

    Args:
        rules: Labelled vertical lines.
        of: The end of the picture in words: of which curve it is.
        log: Whether the x axis is logarithmic.
    """
    wide = pd.concat(tables).pivot_table(index=x, columns="filter", values=y, sort=True).reset_index()
    titles = {"gain": "gain (amplitude out / in)", "answer": "answer (share of the jump)", "weight": "weight"}
    return Small(title, y, wide, titles[y], x_title, rules, f"{title} {of}", x_scale="log" if log else "linear")


def _spectrum(curve: Curve, unit: str) -> Small | str:
    """The spectra of a curve and its first smoothed one; or why there is none."""
    gaps = np.diff(curve.steps)
    if len(gaps) and not np.allclose(gaps, gaps[0], rtol=1e-6):
        return f"{escaped(curve.name)} has no spectrum: a spectrum needs values at even distances in x."
    label, smooth = next(iter(curve.smoothed.items()))
    finite = np.isfinite(curve.values)
    if finite.sum() < FEWEST_STEPS or not finite.all():
        return f"A spectrum needs at least {FEWEST_STEPS} steps, all of finite values."
    table = pd.DataFrame(views.spectrum_table(curve.values, smooth)).rename(columns={"EMA": label, "sequence": "value"})
    table["frequency"] /= float(gaps[0])
    return Small(
        "Spectrum before and after",
        "density",
        table,
        f"power density (value^2 x {unit})",
        f"frequency (cycles per {unit})",
        {},
        "Measured power spectra of the curve (orange) and of the smoothed one (blue), by Welch's method",
        x_scale="log",
        y_scale="log",
        series="line",
    )
