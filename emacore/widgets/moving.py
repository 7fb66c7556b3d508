"""Charts with handles: the picture follows the pointer in the browser, and on release the setting follows the handle.

One number input holds a setting, for the link, Reset, presets, typing and the arrow keys.  The chart's handle starts
from it, and where it is let go, or a key has moved it, the chart's callback writes it.  In a page::

    with controls:
        values = typed controls                      # st.number_input(..., key="power", **BOUND)
    with charts:
        finish = show_moving(
            "decays",
            [HandledSetting("power", "power", POWER.marks(), values["power"])],
            [View(lines(...))],                      # what is drawn at once
            lambda handles: [(line_frames(...),)],   # for each view, what it draws at the handles' marks
            alt_text="...",
        )
    ...                                              # the rest of the page
    finish()                                         # last: frames, which nothing else must wait for

The frames' function should be cached by what it depends on.  For a schedule's settings there is
:func:`schedule_settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
import streamlit as st

from emacore.averaging.schedules import Control, Schedule
from emacore.averaging.solving import possible
from emacore.charts.moving import Frames, Handle, Moving, Signal, View, fixed_part, moving
from emacore.formatting import decay as decay_text
from emacore.formatting import number
from emacore.widgets.page import escaped
from emacore.widgets.schedules import MORE

#: The frames of a page take at most this many bytes in all.
MOST_BYTES = 3_000_000
#: At most about this many calls are computed for a page's frames; the handles of a longer run have fewer marks.
_MOST_CALLS = 12_000_000
_FEWEST_MARKS, _MOST_MARKS = 10, 80

#: Handles in rows above the picture, without Vega's own label, which would be the mark's number; the picture's title
#: has the values.  On a narrow screen the picture comes first, before its handles and other controls.
_STYLE = """<style>
[class*="st-key-moving-"] [data-stale="true"] {opacity: 1 !important;}
[class*="st-key-moving-"] .vega-embed {display: flex !important; flex-direction: column;}
[class*="st-key-moving-"] form.vega-bindings {order: -1; padding: 0 0 0.5rem 0;}
[class*="st-key-moving-"] form.vega-bindings {flex-direction: row; flex-wrap: wrap; column-gap: 2rem; row-gap: 0;}
[class*="st-key-moving-"] form.vega-bindings .vega-bind {width: auto; flex: 1 1 15rem; max-width: 24rem;}
[class*="st-key-moving-"] form.vega-bindings .vega-bind label {width: 100%; flex-wrap: nowrap;}
[class*="st-key-moving-"] form.vega-bindings .vega-bind-name {min-width: 6.5rem;}
[class*="st-key-moving-"] form.vega-bindings input[type="range"] {flex: 1 1 6rem; width: 6rem; min-height: 1.75rem;}
[class*="st-key-moving-"] form.vega-bindings input[type="range"] + span {display: none;}
@media (max-width: 640px) {
.st-key-beside [data-testid="stLayoutWrapper"]:has(> [class*="st-key-moving-"]) {order: -1;}
[class*="st-key-moving-"] form.vega-bindings {order: 1;}
}
</style>"""


#: Vega gives a handle the number of its mark; who hears it instead of seeing it should be told the value.
_JS = """export default function ({data}) {
  const chart = document.querySelector(".st-key-" + data.chart);
  const say = (handle) => {
    const text = data.labels[handle.name]?.[handle.value];
    if (text !== undefined) handle.setAttribute("aria-valuetext", text);
  };
  const all = () => chart.querySelectorAll("input[type=range]").forEach(say);
  const moved = (event) => say(event.target);
  const made = new MutationObserver(all);
  all();
  made.observe(chart, {childList: true, subtree: true});
  chart.addEventListener("input", moved, true);
  return () => { made.disconnect(); chart.removeEventListener("input", moved, true); };
}"""
_spoken = st.components.v2.component("emacore_handle_values", js=_JS)


class HandledSetting(NamedTuple):
    """A setting that a handle moves: the key of the number input that holds it, what stands beside the handle, the
    handle's marks (increasing), and the value now, which may lie between two marks."""

    key: str
    title: str
    marks: tuple[float, ...]
    value: float
    text: Callable[[float], str] = number


class Animation(NamedTuple):
    """A signal that counts up in the browser, from ``first`` to ``last``, in ``seconds``; moving a handle ends it.

    Where it does not play (``plays``) it is ``last``.  Another number of ``again`` plays it once more.
    """

    name: str
    first: int
    last: int
    seconds: float
    plays: bool
    again: int = 0

    def signals(self, *, running: bool) -> list[Signal]:
        """The signals for the browser: at ``last``, or running from the moment at which the browser draws them."""
        if not running:
            return [Signal(self.name, self.last)]
        past = f"floor((now() - began) * {(self.last - self.first) / (1000 * self.seconds)!r})"
        # The first tick notes when it began.
        return [
            Signal("began", 0, "began || now()"),
            Signal(self.name, self.first, f"moved >= 0 ? {self.last} : min({self.last}, {self.first} + {past})"),
        ]


def schedule_settings(schedule: Schedule, calls: int = 1) -> list[HandledSetting]:
    """The settings of a schedule's family that have a handle, with the marks that go with its other settings.

    Args:
        calls: How many calls have to be computed for one frame: the more, the fewer marks.
    """
    shown = [control for control in schedule.controls if control.scale != "count" and _has_handle(control, schedule)]
    most = marks_for(calls, len(shown))
    return [
        HandledSetting(
            control.key,
            control.title,
            possible(schedule, control.key, control.marks(most)),
            getattr(schedule, control.key),
            decay_text if control.scale == "log(1 - value)" else number,
        )
        for control in shown
    ]


def marks_for(calls: int, settings: int) -> int:
    """How many marks each of ``settings`` handles may have, where ``calls`` calls have to be computed for one frame."""
    return int(min(max(_MOST_CALLS / max(calls * settings, 1), _FEWEST_MARKS), _MOST_MARKS))


def _has_handle(control: Control, schedule: Schedule) -> bool:
    return not control.rare or getattr(schedule, control.key) != control.default or bool(st.session_state.get(MORE))


def show_moving(
    name: str,
    settings: Sequence[HandledSetting],
    views: Sequence[View],
    frames_of: Callable[[Sequence[Handle]], Sequence[tuple[Frames, ...]]],
    *,
    alt_text: str,
    plays: Animation | None = None,
) -> Callable[..., None]:
    """Show ``views``, one above the other, with a handle for each setting below; the module shows how it is used.

    Args:
        name: The chart's name, which no other chart of the page has.
        frames_of: Returns the frames of each view at the marks of all handles (``handle.values``).  Those of one
            handle hold for the other settings as they are now.
        alt_text: The picture in words, for those who cannot see it.
        plays: An animation that runs in the browser when the page is opened, and whenever its ``again`` is another
            number.

    Returns:
        A function that makes the frames, to be called at the end of the page: until then a page that was just opened
        shows the picture that stands still.  It takes the rows of layers that draw rows of their own, where those take
        long to make, too: by the numbers of view and layer.
    """
    values = {setting.key: setting.value for setting in settings}
    fixed = fixed_part(views) + str(plays) + str([(setting.key, setting.title, setting.marks) for setting in settings])
    state = st.session_state.setdefault(f"moving-{name}", {"count": 0, "seen": None, "fixed": None, "start": {}})
    # Where the session is asked, a run whose values a further move has overtaken ends: it must not compare them.
    opened = _key(name, state) not in st.session_state
    if opened or state["seen"] != values or state["fixed"] != fixed:
        # Another chart than the one in the browser: its handles start from the values as they are now.  One whose
        # handle was dragged stays, or it would be taken out of the hand that still holds it.
        runs = plays is not None and plays.plays and (opened or state.get("plays") != plays)
        state |= {"count": state["count"] + 1, "seen": values, "fixed": fixed, "start": values}
        state |= {"runs": runs, "plays": plays, "alt": alt_text}
        new = True
    else:
        new = False
    alt_text = state["alt"]  # another one would have the browser make the chart anew, out of the hand that holds it
    handles = [_handle(setting, state["start"][setting.key]) for setting in settings]
    signals = plays.signals(running=state["runs"]) if plays else []
    waiting = [signal._replace(ticking="") for signal in signals]
    st.html(_STYLE)
    place = st.container(key=f"moving-{name}")
    still = _draw(place, moving(views, [], waiting), alt_text) if new else place

    def finish(rows: Mapping[tuple[int, int], pd.DataFrame] | None = None) -> None:
        frames = frames_of(handles)
        picture = moving([view._replace(frames=own) for view, own in zip(views, frames, strict=True)], handles, signals)
        picture.tables.update({f"rows{view}_{layer}": table for (view, layer), table in (rows or {}).items()})
        _draw(
            still,
            picture,
            alt_text,
            key=_key(name, state),
            on_select=partial(_taken, name, _key(name, state), handles),
            selection_mode=[handle.selection for handle in handles],
        )
        if picture.left_out:
            place.caption(escaped(picture.left_out))
        with place:
            labels = {handle.signal: handle.labels for handle in handles}
            _spoken(data={"chart": f"moving-{name}", "labels": labels}, key=f"spoken-{name}")

    return finish


def _key(name: str, state: dict[str, Any]) -> str:
    return f"chart-{name}-{state['count']}"


def _handle(setting: HandledSetting, start: float) -> Handle:
    """A handle with the setting's marks and, between them, where it starts."""
    marks = tuple(sorted({*setting.marks, start}))
    return Handle(setting.key, setting.title, marks, tuple(map(setting.text, marks)), marks.index(start))


def _draw(place: Any, picture: Moving, alt_text: str, **arguments: Any) -> Any:
    spec = {**picture.spec, "datasets": picture.tables}
    return place.vega_lite_chart(None, spec, alt=alt_text, width="stretch", **arguments)


def _taken(name: str, key: str, handles: Sequence[Handle]) -> None:
    """Write the settings whose handles were moved, so that all that shows them follows.

    A browser waits a moment before it tells of a move.  If Reset, Back or a typed value have had another chart put in
    the place of the one with this ``key`` meanwhile, they were later, and have their say.
    """
    state = st.session_state[f"moving-{name}"]
    if key != _key(name, state):
        return
    selected = st.session_state[key]["selection"]
    for handle in handles:
        chosen = selected.get(handle.selection)
        # A browser may answer with a mark of the picture that was there before.
        if chosen and 0 <= chosen[0]["mark"] < len(handle.values):
            value = handle.values[int(chosen[0]["mark"])]
            st.session_state[handle.key] = value
            state["seen"] = {**state["seen"], handle.key: value}
