"""The cell of the atlas that a person looks at: the one under the pointer, and the one that a click or a key keeps.

The server never hears of the one under the pointer.  The map, the curves and the keys share it in the browser, as the
value of the document's body, and whoever changes it sends the event :data:`MOVED`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import pandas as pd
import streamlit as st

from emacore.charts.heatmap import CELL
from emacore.replay.frames import most_epochs
from emacore.widgets.replay import Recorded, frames_of_codes, looked_at


class Named(Protocol):
    """A run, or something else with an id of its own."""

    @property
    def id(self) -> str: ...


#: The browser's event that the cell under the pointer is another one.
MOVED = "emacore-cell"
#: The session's key of the kept cell: the chart it is of, its code, and how often keys have moved it.
_STATE = "cell"

_HTML = """<div class="keys" tabindex="0" role="group" aria-label="Move the kept cell with the arrow keys">
<button data-by="-1,0" aria-label="Cell to the left">&larr;</button>
<button data-by="0,-1" aria-label="Cell below">&darr;</button>
<button data-by="0,1" aria-label="Cell above">&uarr;</button>
<button data-by="1,0" aria-label="Cell to the right">&rarr;</button>
<span></span></div>"""

_CSS = """.keys {display: flex; align-items: center; gap: 0.25rem; font: 0.85rem var(--st-font);
  color: var(--st-text-color); border-radius: 0.5rem; padding: 0.1rem;}
.keys:focus-visible {outline: 2px solid var(--st-primary-color);}
.keys span {opacity: 0.75; margin-left: 0.35rem;}
button {font: inherit; color: inherit; cursor: pointer; width: 1.75rem; height: 1.75rem; border-radius: 0.4rem;
  background: var(--st-secondary-background-color); border: 1px solid var(--st-border-color);}
button:hover, button:focus-visible {border-color: var(--st-primary-color); outline: none;}"""

#: Each press shows the next cell at once, and it is kept when no further one comes.  Until the pointer really moves, a
#: map that is drawn anew below it changes nothing.
_JS = """const STEPS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1]};
export default function ({parentElement, data, setTriggerValue}) {
  const keys = parentElement.querySelector(".keys");
  keys.querySelector("span").textContent = data.says;
  if (!keys.waiting) [keys.at, keys.begun] = [data.at, data.kept];
  const show = (value) => {
    document.body.value = value;
    document.body.dispatchEvent(new Event(data.event));
  };
  const within = (value, count) => Math.min(Math.max(value, 0), count - 1);
  const move = ([across, up]) => {
    const [x, y] = [keys.at % data.columns, Math.floor(keys.at / data.columns)];
    if (keys.begun) keys.at = within(y + up, data.rows) * data.columns + within(x + across, data.columns);
    [keys.begun, keys.holds] = [true, true];
    show(String(keys.at));
    clearTimeout(keys.waiting);
    keys.waiting = setTimeout(() => { keys.waiting = null; setTriggerValue("kept", keys.at); }, 300);
  };
  const hold = () => { if (keys.holds && document.body.value !== String(keys.at)) show(String(keys.at)); };
  const look = (event) => {
    if (event.clientX !== keys.x || event.clientY !== keys.y) keys.holds = false;
    [keys.x, keys.y] = [event.clientX, event.clientY];
  };
  keys.onkeydown = (event) => {
    if (STEPS[event.key]) { event.preventDefault(); move(STEPS[event.key]); }
  };
  const leave = (event) => {
    if (!keys.contains(event.relatedTarget)) { keys.holds = false; show(null); }
  };
  for (const button of keys.querySelectorAll("button")) {
    button.onclick = () => move(button.dataset.by.split(",").map(Number));
  }
  const map = document.querySelector(".st-key-" + data.map);
  const follow = () => keys.focus({preventScroll: true});
  const listening = [
    [map, "click", follow], [keys, "focusout", leave],
    [document, "pointermove", look], [document.body, data.event, hold],
  ];
  listening.forEach(([where, what, answer]) => where?.addEventListener(what, answer, true));
  return () => listening.forEach(([where, what, answer]) => where?.removeEventListener(what, answer, true));
}"""

_keys = st.components.v2.component("emacore_cell_keys", html=_HTML, css=_CSS, js=_JS)
#: The key of the container around the map.
MAP = "atlas-map"


def atlas_key(run: Named) -> str:
    """The key of the atlas' chart, which changes with its axes: another map begins with no cell kept."""
    return "-".join(["atlas", run.id, *(str(st.session_state.get(f"atlas_{name}")) for name in ("x", "y", "metric"))])


def kept_cell(run: Named) -> str | None:
    """The code of the cell that is kept, while its map is the view."""
    state = st.session_state.get(_STATE)
    if state is None or state["of"] != atlas_key(run) or st.session_state.get("view", "Atlas") != "Atlas":
        return None
    code: str | None = state["code"]
    return code


def clicks(run: Named) -> int:
    """How often keys have moved the cell of this map; a click after a further move counts as a new one.

    Showing another map forgets the cell of the one before.
    """
    state = st.session_state.get(_STATE)
    if state is None or state["of"] != atlas_key(run):
        state = st.session_state[_STATE] = {"of": atlas_key(run), "code": None, "moves": 0}
    return int(state["moves"])


def keep_clicked(run: Named, key: str) -> None:
    """Keep the cell that was clicked in the chart with this key, unless another map is shown by now: a callback."""
    if key != atlas_key(run):
        return
    cells: list[dict[str, Any]] = st.session_state[key]["selection"].get(CELL, [])
    code = next((cell["code"] for cell in cells if cell.get("code")), None)
    st.session_state[_STATE] = {"of": key, "code": code, "moves": clicks(run)}


def cell_keys(run: Named, codes: Sequence[str | None], columns: int, best: int) -> None:
    """Buttons, and the arrow keys, that move the kept cell; with none kept they begin at the ``best``.

    Args:
        codes: The codes of all cells, row by row from the bottom; ``None`` for an empty one.
        columns: How many cells a row has.
        best: The place of the best cell in ``codes``.
    """
    kept = kept_cell(run)
    _keys(
        key="cell-keys",
        data={
            "event": MOVED,
            "map": MAP,
            "columns": columns,
            "rows": len(codes) // columns,
            "at": list(codes).index(kept) if kept in codes else best,
            "kept": kept in codes,
            "says": "or the arrow keys move the cell",
        },
        on_kept_change=partial(_keep_moved, run, atlas_key(run), tuple(codes)),
    )


def _keep_moved(run: Named, key: str, codes: Sequence[str | None]) -> None:
    at = st.session_state["cell-keys"]["kept"]
    # Keys may have been pressed on a map of more cells, which the browser had until now.
    if key == atlas_key(run) and at is not None and int(at) < len(codes) and codes[int(at)] is not None:
        st.session_state[_STATE] = {"of": key, "code": codes[int(at)], "moves": clicks(run) + 1}


def cell_curves(recorded: Recorded, codes: Sequence[str | None]) -> pd.DataFrame:
    """The curve of each cell as a column ``cell_0``, ``cell_1``, ... of losses, beside the ``step`` of each row, at as
    many epochs as :func:`~emacore.replay.frames.most_epochs` allows."""
    there = {f"cell_{number}": code for number, code in enumerate(codes) if code is not None}
    epochs = looked_at(recorded)
    shown, losses = frames_of_codes(recorded.folder, epochs, list(there.values()), most_epochs(len(there)))
    table = pd.DataFrame(losses, columns=list(there))
    table.insert(0, "step", recorded.steps_of(shown))
    return table
