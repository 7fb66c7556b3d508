"""Pictures that follow a handle: what they show at each of its marks comes with them, and the browser picks.

A handle is a range input below the picture, bound to a signal of Vega, with a mark for each of some values of a
setting.  For each mark a frame holds what the moving layers draw there.  Nothing is asked of the server while one
drags: a signal says which handle moved last and where it is, and an expression takes that frame's columns.  The server
hears of a selection, which takes the mark over where the handle is let go or a key has moved it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from emacore.charts.ends import NAME, WRITTEN, names_apart, plot_height, round_ticks
from emacore.charts.figure import Figure
from emacore.charts.thin import Scale, common_rows, drawable
from emacore.formatting import IN_CHARTS

Floats = NDArray[np.float64]
Spec = dict[str, Any]
#: Tables that are made here are Arrow's, in which Streamlit sends them: with pandas, hundreds of columns take ten times
#: as long.
Table: TypeAlias = pd.DataFrame | pa.Table
#: Values of shape (rows,), or what computes them.
Line = Floats | Callable[[], Floats]
#: Points of a moving line that answer the pointer: few, because at each move all are drawn, and looked up, anew.
_PROBES = 40
#: Lines of at most this many bytes together are computed once and held; longer ones are computed twice, one at a time.
MOST_HELD = 100_000_000
#: Pictures above each other have their own colours.
_RESOLVED = {"scale": {"color": "independent", "strokeDash": "independent"}}
#: The style of the picture's title, which says where the handles are.
_TITLE = {"fontSize": 13, "fontWeight": "normal", "offset": 8, "anchor": "start"}
#: Pixels that a letter of that title takes on average, and those of the y axis beside the plot.
_LETTER, _AXIS = 5.8, 60


class Handle(NamedTuple):
    """A setting that one drags.

    ``key`` is the setting's, ``title`` what stands beside the handle, with the unit; ``values`` are those of its marks,
    ``labels`` the same as people read them, and ``at`` says which mark it starts from.
    """

    key: str
    title: str
    values: tuple[float, ...]
    labels: tuple[str, ...]
    at: int

    @property
    def selection(self) -> str:
        """The name of the selection in which its mark arrives once it is let go, as ``[{"mark": 12}]``."""
        return f"drag_{self.key}"

    @property
    def signal(self) -> str:
        """The name of the signal that has its mark at any time."""
        return f"{self.selection}_mark"


class Frames(NamedTuple):
    """What the layers of a view draw of some of its series while handles move.

    Args:
        rows: The columns that are the same in all frames: the series, and what the layers draw that does not move.
        moving: By the handle's key and the name of a column that moves: its values, shape (rows, marks); those that are
            not finite are not drawn.
        column: The column of the series.  The rows of the same series in the figure's table are hidden meanwhile.
        line: The columns of a line's x and y, at whose end its name stands.
        layers: The layers of the figure that draw them; by default all that draw the figure's table.
        ends: How far the view's axes ("x", "y") must go for them, where that is further than the view's own ends.
    """

    rows: pd.DataFrame
    moving: Mapping[str, Mapping[str, Floats]]
    column: str
    line: tuple[str, str] = ("x", "y")
    layers: tuple[int, ...] = ()
    ends: Mapping[str, tuple[float, float]] = {}

    @property
    def size(self) -> int:
        """Bytes of the frames' numbers."""
        return sum(values.nbytes for columns in self.moving.values() for values in columns.values())


class View(NamedTuple):
    """A picture, its frames, and the fixed ends of its axes ("x", "y") where frames would change them.

    With ``square``, the x axis goes as far to both sides as a unit is as long on it as on the y axis.
    """

    figure: Figure
    frames: tuple[Frames, ...] = ()
    ends: Mapping[str, tuple[float, float]] = {}
    square: bool = False


class Signal(NamedTuple):
    """A further signal of the picture: its name, its first value, and a Vega expression of its value at each tick."""

    name: str
    value: float
    ticking: str = ""


class Moving(NamedTuple):
    """What the browser needs: a specification and its tables by name.

    ``still`` are the names of the tables drawn while no handle moves, in the order of the views; ``left_out`` says what
    the views' axes cannot show.
    """

    spec: Spec
    tables: dict[str, Table]
    still: tuple[str, ...]
    left_out: str


def moving(views: Sequence[View], handles: Sequence[Handle], signals: Sequence[Signal] = ()) -> Moving:
    """The views, one above the other, with the handles below them, and further ``signals`` for expressions in them.

    Each view's figure has layers; those that draw the figure's table are drawn a second time, of the frames, and the
    figure's own rows of these series are hidden while a handle that moves them is away from its start.
    """
    tables: dict[str, Table] = {}
    views = [view._replace(ends=_across(view) | _with_room(view)) for view in views]
    drawn = [_moving_view(view, number, handles, tables) for number, view in enumerate(views)]
    params: dict[str, Spec] = {}
    lit = [signal for number, view in enumerate(views) for signal in _lit(number, view, handles)]
    for number, view in enumerate(views):
        for param in view.figure.spec.get("params", []):
            places = [n for n, layer in enumerate(view.figure.spec["layer"]) if layer.get("name") in param["views"]]
            names = [f"view{number}_layer{place}" for place in places]
            params |= _params_of(param, names, drawn[number]["layer"], params)
    if handles:
        place = drawn[0]["layer"][0]["name"]
        params |= {handle.selection: _selection(handle, place) for handle in handles}
    spec: Spec = {
        **(drawn[0] if len(drawn) == 1 else {"vconcat": drawn, "spacing": 12, "resolve": _RESOLVED}),
        "params": [*_signals(handles), *map(_ticking, signals), *params.values(), *map(_letting_go, handles), *lit],
        "autosize": {"type": "fit" if len(drawn) == 1 else "fit-x", "contains": "padding"},
    }
    if handles:
        spec["title"] = {"text": {"expr": _said(handles)}, **_TITLE}
    left_out = " ".join(dict.fromkeys(view.figure.left_out for view in views if view.figure.left_out))
    return Moving(spec, tables, tuple(f"still{number}" for number in range(len(views))), left_out)


def fixed_part(views: Sequence[View]) -> str:
    """What of the views makes another picture: their specifications without data and the axes' fixed ends."""
    drawn = [_moving_view(view, number, [], {}) for number, view in enumerate(views)]
    return json.dumps(drawn, default=str)


def line_frames(
    x: str,
    y: str,
    series: str,
    name: str,
    across: Floats,
    moving: Mapping[str, Sequence[Line]],
    *,
    x_scale: Scale = "linear",
    y_scale: Scale = "linear",
    y_ends: tuple[float, float],
) -> Frames:
    """The frames of one curve of :func:`emacore.charts.lines.lines`, thinned to rows that all of them share.

    Args:
        x, y, series: Names of columns.
        name: The curve's name, its value in ``series``.
        across: The curve's x, shape (rows,), increasing.
        moving: By the handle's key, the curve's y at each mark.
        y_ends: The ends of the y axis; a thinned frame is off by at most a share of its length, see
            :func:`~emacore.charts.thin.common_rows`.
    """
    if 8 * len(across) * sum(map(len, moving.values())) <= MOST_HELD:
        moving = {key: [_values(line) for line in own] for key, own in moving.items()}
    every = (_values(line) for own in moving.values() for line in own)
    kept = common_rows(across, every, x_scale=x_scale, y_scale=y_scale, y_range=y_ends)
    parts = {key: np.stack([_values(line)[kept] for line in own], axis=1) for key, own in moving.items()}
    places = np.arange(len(kept))
    rows = pd.DataFrame(
        {
            x: across[kept],
            series: name,
            "piece": 0,
            "alone": False,
            "probe": places % -(-len(kept) // _PROBES) == 0,
        }
    )
    shown = {key: {y: np.where(drawable(values, y_scale), values, np.nan)} for key, values in parts.items()}
    return Frames(rows, shown, series, (x, y))


def _values(line: Line) -> Floats:
    return line() if callable(line) else line


def _moving_view(view: View, number: int, handles: Sequence[Handle], tables: dict[str, Table]) -> Spec:
    order = [handle.key for handle in handles]
    sets = _moved_by(handles, view)
    tables[f"still{number}"] = view.figure.data
    tables |= {f"frames{number}_{place}": _wide(frames, order) for place, frames in enumerate(sets)}
    answering = _answering(view.figure.spec)
    layers: list[Spec] = []
    for place, layer in enumerate(view.figure.spec["layer"]):
        name = f"view{number}_layer{place}"  # Altair's names change with what is drawn
        table, column = f"still{number}", ""
        then = {own: frames for own, frames in enumerate(sets) if place in frames.layers}
        if "data" not in layer:
            then |= {own: frames for own, frames in enumerate(sets) if not frames.layers}
        else:
            # Rows of a layer's own are data, too, or other ones would draw the whole picture anew.
            table = f"rows{number}_{place}"
            rows = layer["data"]["values"]
            cells = {key: [row[key] for row in rows] for key in (rows[0] if rows else ())}
            if layer["encoding"].get("text", {}).get("field") == WRITTEN and rows:
                column = NAME
                if "y" in view.ends:  # the figure took them to be those of its own curves
                    ends = np.asarray(cells["y"], dtype=np.float64)
                    cells |= {"y": _apart(cells[NAME], ends, view), "low": _apart(cells[NAME], ends, view, narrow=True)}
                then |= _names(sets, view)
            tables[table] = _arrow(cells)
        hidden = [
            {"filter": f"!({_moves(sets[own], order)} && {_is_of(sets[own], column or sets[own].column)})"}
            for own in sorted(then)
        ]
        layers.append(_drawing(layer, name, table, hidden))
        for own, frames in sorted(then.items()):
            drawn = f"frames{number}_{own}" if frames is sets[own] else f"names{number}_{own}"
            if drawn not in tables:
                tables[drawn] = _wide(frames, order)
            answers, lit = place in answering, f"lit{number}_{own}"
            layers.append(_following(layer, f"{name}_{own}", drawn, frames, order, answers=answers, lit=lit))
    if view.ends:
        square = f"width / {view.figure.spec['height']}" if view.square else ""
        layers = [_with_ends(layer, number, view.ends, square) for layer in layers]
        tables |= _tables_of_ends(number, view)
        # Nothing to see: only a table that something draws is there for the axes.
        layers += [
            {"data": {"name": name}, "mark": {"type": "point", "size": 0, "opacity": 0}}
            for name in tables
            if name.startswith((f"ends{number}", f"ticks{number}"))
        ]
    return {"layer": layers} | {key: view.figure.spec[key] for key in ("height", "resolve") if key in view.figure.spec}


def _apart(names: Sequence[str], places: Floats, view: View, *, narrow: bool = False) -> list[float]:
    """Where names stand on the y axis of a view, in a narrow picture or another, so that they do not lie over each
    other."""
    scale: Scale = "log" if any(_is_log(layer, "y") for layer in view.figure.spec["layer"]) else "linear"
    height = plot_height(int(view.figure.spec["height"]))
    return names_apart(names, places, height, view.ends["y"], scale, narrow=narrow)


def _moved_by(handles: Sequence[Handle], view: View) -> list[Frames]:
    return [frames for frames in view.frames if any(handle.key in frames.moving for handle in handles)]


def _names(sets: Sequence[Frames], view: View) -> dict[int, Frames]:
    """Where the name of each series stands at each mark, by the place of its frames: apart from all that move with
    it."""
    found = {own: _at_ends(frames, view) for own, frames in enumerate(sets) if not frames.layers}
    for key in dict.fromkeys(key for one in found.values() for key in one.moving) if "y" in view.ends else ():
        moved = [one for one in found.values() if key in one.moving]
        names = np.concatenate([one.rows[NAME].to_numpy() for one in moved])
        places = np.concatenate([one.moving[key]["y"] for one in moved])
        lows = places.copy()
        for told, first, drawn in zip(places.T, lows.T, np.isfinite(places).T, strict=True):
            own = names[drawn].astype(str).tolist()
            first[drawn], told[drawn] = _apart(own, first[drawn], view, narrow=True), _apart(own, told[drawn], view)
        row = 0
        for one in moved:
            rows = slice(row, row := row + len(one.rows))
            one.moving[key]["y"][:], one.moving[key]["low"][:] = places[rows], lows[rows]
    return found


def _at_ends(frames: Frames, view: View) -> Frames:
    """The names of the frames' series at the last row that the axis can show."""
    x, y = frames.line
    low, high = view.ends.get("y", (-np.inf, np.inf))
    parts = [np.flatnonzero(frames.rows[frames.column] == name) for name in frames.rows[frames.column].unique()]
    names = frames.rows[frames.column].to_numpy()[[part[0] for part in parts]]
    moving = {}
    for key, columns in frames.moving.items():
        up = columns[y]
        across = columns[x] if x in columns else np.broadcast_to(frames.rows[x].to_numpy()[:, None], up.shape)
        shown = np.where(np.isfinite(up) & (up >= low) & (up <= high), across, -np.inf)
        last = np.stack([part[shown[part].argmax(axis=0)] for part in parts])
        seen = np.isfinite(np.take_along_axis(shown, last, axis=0))
        places = np.where(seen, np.take_along_axis(up, last, axis=0), np.nan)
        moving[key] = {"x": np.take_along_axis(across, last, axis=0), "y": places, "low": places.copy()}
    return Frames(pd.DataFrame({frames.column: names, NAME: names}), moving, frames.column)


def _across(view: View) -> dict[str, tuple[float, float]]:
    """The ends of the x axis: those of all that is drawn.

    A scale that finds its ends in what moves is another one at each move, and all that stands still is drawn anew.
    """
    found: list[Floats] = []
    for layer in view.figure.spec["layer"]:
        told = layer["encoding"].get("x") or {}
        if isinstance(domain := (told.get("scale") or {}).get("domain"), list):
            found.append(np.asarray(domain, dtype=np.float64))
        field = told.get("field")
        if "data" in layer:
            own = [row[field] for row in layer["data"]["values"] if field in row]
            found += [np.asarray(own, dtype=np.float64)] if own else []
        else:
            tables = [view.figure.data, *(frames.rows for frames in view.frames)]
            found += [table[field].to_numpy(dtype=np.float64) for table in tables if field in table]
    values = np.concatenate(found) if found else np.empty(0)
    values = values[np.isfinite(values)]
    return {"x": (float(values.min()), float(values.max()))} if len(values) else {}


def _with_room(view: View) -> dict[str, tuple[float, float]]:
    """The fixed ends of the view's axes, as far out as its frames need them."""
    found = dict(view.ends)
    for frames in view.frames:
        for channel, (low, high) in frames.ends.items():
            own = found.get(channel, (low, high))
            found[channel] = min(own[0], low), max(own[1], high)
    return found


def _tables_of_ends(number: int, view: View) -> dict[str, Table]:
    """The ends of a view's axes, one row; and for each log axis its ticks."""
    sides = {f"{channel}_{end}": [side] for channel, ends in view.ends.items() for end, side in enumerate(ends)}
    ticks = {
        f"ticks{number}_{channel}": _arrow({"at": round_ticks(*ends)})
        for channel, ends in view.ends.items()
        if any(_is_log(layer, channel) for layer in view.figure.spec["layer"])
    }
    return {f"ends{number}": _arrow(sides), **ticks}


def _is_log(layer: Spec, channel: str) -> bool:
    return ((layer["encoding"].get(channel) or {}).get("scale") or {}).get("type") == "log"


def _drawing(layer: Spec, name: str, table: str, before: Sequence[Spec]) -> Spec:
    """The layer, drawing another table, after some further transforms."""
    return {**layer, "name": name, "data": {"name": table}, "transform": [*before, *layer.get("transform", [])]}


def _following(
    layer: Spec, name: str, table: str, frames: Frames, order: Sequence[str], *, answers: bool, lit: str
) -> Spec:
    """The layer, drawing nothing or the frame that is shown.

    A browser computes each expression for each row at each move.  So the layer's own transforms come first as long as
    they read nothing that moves; points that answer the pointer are left out while it drags a handle; and what only a
    reader of the screen is told of each mark is left out, since the picture as a whole is told.
    """
    columns = sorted({column for moving in frames.moving.values() for column in moving})
    held, own = " && !held" if answers else "", layer.get("transform", [])
    named = re.compile(rf"\b({'|'.join(map(re.escape, columns))})\b")
    fixed = next((place for place, one in enumerate(own) if named.search(json.dumps(one))), len(own))
    transforms = [
        *own[:fixed],
        {"filter": _moves(frames, order) + held},
        *({"calculate": f"datum['{column}' + frame]", "as": column} for column in columns),
        *({"filter": f"isValid(datum['{column}'])"} for column in columns if table.startswith("names")),
        *own[fixed:],
    ]
    mark = {**({"type": layer["mark"]} if isinstance(layer["mark"], str) else layer["mark"]), "aria": False}
    encoding = dict(layer["encoding"])
    if mark["type"] == "line":
        encoding.pop("tooltip", None)
        if all(np.isfinite(values).all() for columns in frames.moving.values() for values in columns.values()):
            mark["invalid"] = None
        encoding |= _same_for_all(encoding, frames, lit)
    return {**layer, "name": name, "data": {"name": table}, "mark": mark, "encoding": encoding, "transform": transforms}


def _same_for_all(encoding: Spec, frames: Frames, lit: str) -> Spec:
    """Those channels that are the same for all rows, where there is one series only."""
    name, *others = frames.rows[frames.column].unique().tolist()
    found: Spec = {}
    if others:
        return found
    for channel, told in encoding.items():
        scale, conditions = told.get("scale") or {}, told.get("condition", [])
        test = conditions[0].get("test") if len(conditions) == 1 else None
        if told.get("field") in (NAME, frames.column) and name in scale.get("domain", []):
            found[channel] = {"value": scale["range"][scale["domain"].index(name)]}
        elif isinstance(test, dict) and test["field"] in (NAME, frames.column):
            found[channel] = {"value": conditions[0]["value"] if name in test["oneOf"] else told["value"]}
        elif len(conditions) == 1 and "param" in conditions[0]:
            found[channel] = {"value": {"expr": f"{lit} ? {conditions[0]['value']} : {told['value']}"}}
    return found


def _lit(number: int, view: View, handles: Sequence[Handle]) -> list[Spec]:
    """Signals: whether the series of frames, where there is one only, is among those that were clicked, if any was."""
    clicked = [param["name"] for param in view.figure.spec.get("params", []) if not param["select"].get("nearest")]
    found = []
    for place, frames in enumerate(_moved_by(handles, view) if clicked else []):
        row = json.dumps(dict.fromkeys((NAME, frames.column), str(frames.rows[frames.column].iloc[0])))
        store = f"{clicked[0]}_store"
        test = f"!length(data('{store}')) || vlSelectionTest('{store}', {row})"
        found.append({"name": f"lit{number}_{place}", "expr": test})
    return found


def _answering(spec: Spec) -> set[int]:
    """The places of the layers of which the nearest point answers the pointer."""
    asked = [name for param in spec.get("params", []) if param["select"].get("nearest") for name in param["views"]]
    return {place for place, layer in enumerate(spec["layer"]) if layer.get("name") in asked}


def _params_of(param: Spec, names: Sequence[str], layers: list[Spec], known: Mapping[str, Spec]) -> dict[str, Spec]:
    """A view's selection for its layers, which begin with these names, and those made of them: that of the nearest
    point is each layer's own, others are one for all."""
    own = [
        place
        for place, layer in enumerate(layers)
        if any(layer.get("name", "") == name or layer.get("name", "").startswith(f"{name}_") for name in names)
    ]
    if not param["select"].get("nearest"):
        return {} if param["name"] in known else {param["name"]: {**param, "views": [layers[own[0]]["name"]]}}
    found = {}
    for place in own:
        name = f"{param['name']}_{layers[place]['data']['name']}"
        text = json.dumps(layers[place]).replace(f'"param": "{param["name"]}"', f'"param": "{name}"')
        layers[place] = json.loads(text)
        found[name] = {**param, "name": name, "views": [layers[place]["name"]]}
    return found


def _with_ends(layer: Spec, number: int, ends: Mapping[str, tuple[float, float]], square: str) -> Spec:
    """The layer with axes whose ends are data, so that other ones do not draw the picture anew."""
    encoding = dict(layer["encoding"])
    for channel in ends:
        if channel in encoding and encoding[channel].get("scale", {}) is not None:
            row, scale = f"data('ends{number}')[0]", encoding[channel].get("scale", {})
            sides = [f"{row}['{channel}_{end}']" for end in (0, 1)]
            if square and channel == "x":
                sides = [f"{row}['y_{end}'] * {square}" for end in (0, 1)]
            domain = {"expr": f"[{', '.join(sides)}]"}
            encoding[channel] = {**encoding[channel], "scale": {**scale, "domain": domain, "nice": False}}
            if _is_log(layer, channel):
                ticks = {"values": {"expr": f"pluck(data('ticks{number}_{channel}'), 'at')"}, "format": IN_CHARTS}
                encoding[channel]["axis"] = {**(encoding[channel].get("axis") or {}), **ticks}
    return {**layer, "encoding": encoding}


def _arrow(columns: Mapping[Any, Any]) -> pa.Table:
    """A table of columns by name; what is not a number is empty, as in a table of pandas that is sent."""
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})


def _wide(frames: Frames, order: Sequence[str]) -> pa.Table:
    """The frames' table: a column for each moving column, handle and mark."""
    common = _arrow(dict(frames.rows.items()))
    names, columns = list(common.column_names), list(common.columns)
    for key, moving in frames.moving.items():
        for column, values in moving.items() if key in order else ():
            names += [f"{column}_{order.index(key)}_{mark}" for mark in range(values.shape[1])]
            columns += [pa.array(values[:, mark], from_pandas=True) for mark in range(values.shape[1])]
    return pa.table(columns, names=names)


def _moves(frames: Frames, order: Sequence[str]) -> str:
    """Whether the handle that moved last is one of the frames'."""
    places = [order.index(key) for key in frames.moving if key in order]
    return f"indexof({json.dumps(places)}, moved) >= 0"


def _is_of(frames: Frames, column: str) -> str:
    """Whether a row is of one of the frames' series, which stands in this column."""
    names = frames.rows[frames.column].unique().tolist()
    return f"indexof({json.dumps(names)}, datum[{json.dumps(column)}]) >= 0"


def _selection(handle: Handle, layer: str) -> Spec:
    """What the server is told of; no event of the picture's own changes it."""
    return {
        "name": handle.selection,
        "select": {"type": "point", "fields": ["mark"], "on": "window:nothing", "clear": False},
        "value": [{"mark": handle.at}],
        "views": [layer],
    }


def _letting_go(handle: Handle) -> Spec:
    """A signal: the mark of which the server was told, which is the handle's from its "change" event on.

    An input changes while it is dragged, too, and a selection bound to it would be sent wherever the hand rests: the
    answer would then be drawn under it.  As Vega-Lite's own selections do, the signal writes the selection's table.
    """
    told = f"{{unit: '', fields: [{{type: 'E', field: 'mark'}}], values: [{handle.signal}]}}"
    take_over = f"[modify('{handle.selection}_store', {told}, true), {handle.signal}][1]"
    return {
        "name": f"{handle.selection}_told",
        "value": handle.at,
        "on": [{"events": _let_go(handle), "update": take_over}],
    }


def _let_go(handle: Handle) -> Spec:
    return {"source": "window", "type": "change", "filter": f"event.target.name === '{handle.signal}'"}


def _signals(handles: Sequence[Handle]) -> list[Spec]:
    """A signal of each handle's mark; ``moved``, the place of the handle that moved last, -1 at first; ``held``, while
    it is not let go; ``frame``, the end of its columns' names."""
    marks = [{"name": handle.signal, "value": handle.at, "bind": _range(handle)} for handle in handles]
    moves = [{"events": {"signal": handle.signal}, "update": str(place)} for place, handle in enumerate(handles)]
    frame = f"moved < 0 ? '' : '_' + moved + '_' + [{', '.join(handle.signal for handle in handles)}][moved]"
    held = [
        {"events": [{"signal": handle.signal} for handle in handles], "update": "true"},
        {"events": [_let_go(handle) for handle in handles], "update": "false"},
    ]
    return [
        *marks,
        {"name": "moved", "value": -1, "on": moves},
        {"name": "held", "value": False, "on": held if handles else []},
        {"name": "frame", "expr": frame},
    ]


def _range(handle: Handle) -> Spec:
    return {"input": "range", "min": 0, "max": len(handle.values) - 1, "step": 1, "name": handle.title}


def _ticking(signal: Signal) -> Spec:
    ticks = [{"events": {"type": "timer", "throttle": 16}, "update": signal.ticking}] if signal.ticking else []
    return {"name": signal.name, "value": signal.value, "on": ticks}


def _said(handles: Sequence[Handle]) -> str:
    """An expression: where the handles are, in the settings' own words; below each other where the line is short."""
    parts = [f"'{_quoted(handle.title)}: ' + {json.dumps(list(handle.labels))}[{handle.signal}]" for handle in handles]
    if len(parts) < 2:
        return parts[0]
    line = " + '   \u00b7   ' + ".join(parts)
    # Of three spaces the browser draws one; the title begins above the y axis, so the axis' room is the title's, too.
    room = f"{_LETTER} * (length({line}) - {4 * (len(parts) - 1)}) - {_AXIS}"
    return f"width < {room} ? [{', '.join(parts)}] : {line}"


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")
