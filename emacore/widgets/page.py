"""What every page is made of: its start and its errors, charts and tables with their CSV, presets, links."""

from __future__ import annotations

import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime.pages_manager import PagesManager

from emacore.formatting import decay, plain

if TYPE_CHECKING:  # what counts, draws and formats takes its time to load, and a title need not wait for it here
    import pandas as pd
    from pandas.io.formats.style import Styler

    from emacore.charts.figure import Figure
    from emacore.charts.thin import Scale
    from emacore.experiments.store import StoreError

#: Arguments of every control: its value is in the link, and outlives a page change.
BOUND: dict[str, Any] = {"bind": "query-params", "persist_state": "session"}


Table: TypeAlias = "pd.DataFrame | Callable[[], pd.DataFrame]"

#: A download lies in the corner of what it holds: of a picture below, beside the axis' title; of a table in a margin of
#: its own.  Its name stays, for those who do not see it, and comes up under the pointer.  Links to pages wrap, which
#: Streamlit would cut off.
_CORNERS = """<style>
[class*="st-key-picture-"], [class*="st-key-table-"] { position: relative; }
[class*="st-key-table-"] { padding-right: 2rem; }
:is([class*="st-key-picture-"], [class*="st-key-table-"]) > [class*="st-key-download-"] {
    position: absolute; right: 0; width: auto; z-index: 1;
}
[class*="st-key-picture-"] > [class*="st-key-download-"] { bottom: 0; }
[class*="st-key-table-"] > [class*="st-key-download-"] { top: 0; }
:is([class*="st-key-picture-"], [class*="st-key-table-"]) > [class*="st-key-download-"] button {
    min-height: 0; padding: 0.1rem; font-size: 0; gap: 0;
}
:is([class*="st-key-picture-"], [class*="st-key-table-"]) > [class*="st-key-download-"] button p { font-size: 0; }
[data-testid="stPageLink-NavLink"] :is(span, div, p) { white-space: normal; overflow: visible; }
</style>"""


def through_app() -> None:
    """First line of every page: run it through app.py if it is not.

    Until app.py has called ``st.navigation`` once, a server takes pages/ for the older kind of multipage app, so a link
    to a page that is a new server's first request would be run on its own.
    """
    if "navigated" not in st.session_state:
        PagesManager.uses_pages_directory = False  # what st.navigation does
        st.rerun()
    st.html(_CORNERS)


@contextmanager
def told(*, but: type[StoreError] | tuple[()] = ()) -> Iterator[None]:
    """Show what is wrong with the store in a sentence, and end the page there; ``but`` is left to the caller."""
    from emacore.experiments.store import StoreError

    try:
        yield
    except but:
        raise
    except StoreError as error:
        stop_with(str(error))


def leave_if_run_anew() -> None:
    """Where long work can be left: a page ends here if somebody has moved on meanwhile, and it is to be run anew.

    Streamlit ends a run only where the page calls it, or asks the session.
    """
    st.session_state.get("view")


def run_anew() -> NoReturn:
    """Run the whole page anew, or the one to which somebody has gone meanwhile: ``st.rerun`` alone takes them back."""
    leave_if_run_anew()
    st.rerun()


#: On a narrow screen, where columns stand below each other, the picture comes before the controls.  Of a picture that
#: stands beside an answer, its column alone moves up: the rows of columns are no boxes then.
_NARROW = """<style>@media (max-width: 640px) {
[class*="st-key-above-"] > [data-testid="stLayoutWrapper"]:has(> * > * > * > * > [class*="st-key-picture-"]),
[class*="st-key-above-"] > * > [data-testid="stHorizontalBlock"]:has(> * > * > * > [class*="st-key-picture-"])
{display: contents;}
[class*="st-key-above-"] > * > * > [data-testid="stColumn"] {flex: none; width: 100%;}
[class*="st-key-above-"] > * > * > [data-testid="stColumn"]:has(> * > * > [class*="st-key-picture-"]) {order: -1;}
.st-key-beside > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"]:first-child,
.st-key-beside > * > [data-testid="stHorizontalBlock"] > [data-testid="stColumn"]:first-child {order: 1;}
}</style>"""


def beside_controls(*widths: float) -> list[DeltaGenerator]:
    """Columns: the first, of width 1, for the controls, the others, of ``widths``, for what shows their effect."""
    st.html(_NARROW)
    with st.container(key="beside"):
        return st.columns([1, *widths], gap="medium")


def picture_above(name: str) -> DeltaGenerator:
    """A place for controls, and below them a row of columns of which one has a picture; on a narrow screen the picture
    comes first.

    Args:
        name: The name of the place, which no other place of the page has.
    """
    st.html(_NARROW)
    return st.container(key=f"above-{name}")


def sentence(error: Exception) -> str:
    """An error's message as a sentence in Markdown; a name of a setting at its beginning keeps its small letter."""
    text = str(error).rstrip(".") + "."
    return escaped(text if {".", "_"} & set(text.split()[0][:-1]) else text[0].upper() + text[1:])


#: What Markdown, and Streamlit's own additions to it, read as more than text; within words, _ is text.
_MARKUP = re.compile(r"[\\`*\[\]<$~]|(?<![^\W_])_|_(?![^\W_])|&(?=[#\w])")
#: What they read as more even where it is escaped: icons, emoji and addresses, which are looked for in the final text.
_NAMES = re.compile(r"(?<=:)(?=\S)|(?<=@)(?=\w)|(?<=www)(?=\.)", re.IGNORECASE)
#: What makes a line a list, a title, a quotation or a rule.
_BLOCK = re.compile(r"^(\d+)(?=[.)](?: |$))|^(?=[-+](?: |$)|#+(?: |$)|>|[-=]+$)")
_WORD_JOINER = "\N{WORD JOINER}"


def escaped(text: object) -> str:
    """Text of others (a link, a pin, a file, an error that quotes them) as Markdown that says just that, in one line.

    For everything that Streamlit takes as Markdown.  An invisible word joiner stands where a backslash is not enough.
    """
    line = " ".join(without_folders(str(text)).split())
    line = _NAMES.sub(_WORD_JOINER, _MARKUP.sub(r"\\\g<0>", line))
    return _BLOCK.sub(r"\1\\", line)


def without_folders(text: str) -> str:
    """A text without the folders of this machine: who serves a page to others shows them none."""
    for folder, name in _folders():
        text = text.replace(folder, name)
    return text


def _folders() -> list[tuple[str, str]]:
    """Folders that messages may name, the innermost first, and what they are called."""
    from emacore.experiments.database import default_folder

    named = {
        str(default_folder()): "the store",
        str(Path(__file__).parents[2]): "the program",
        sys.prefix: "Python",
        str(Path.home()): "~",
        tempfile.gettempdir(): "the folder of temporary files",
    }
    return sorted(((folder, name) for folder, name in named.items() if len(folder) > 1), key=lambda pair: -len(pair[0]))


def stop_with(message: str) -> NoReturn:
    """Show an error, a plain text, and end the page there."""
    st.error(escaped(message), icon=":material/error:")
    st.stop()


def number_text(value: float) -> str:
    """A number as a label and as it stands in the URL: all digits that matter, none that do not."""
    text = f"{value:.12g}"
    return f"{value:.{11 - math.floor(math.log10(abs(value)))}f}".rstrip("0") if "e-0" in text else text


def query_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The values of controls, by their keys, as the parameters of a link to another page."""

    def text(value: Any) -> Any:
        if isinstance(value, bool):
            return str(value).lower()
        return number_text(value) if isinstance(value, float) else value if isinstance(value, list) else str(value)

    return {key: text(value) for key, value in state.items()}


def put(state: Mapping[str, Any]) -> None:
    """Set controls by key: for callbacks of buttons."""
    for key, value in state.items():
        st.session_state[key] = value


def reset_button(state: Mapping[str, Any], label: str = "Reset", **arguments: Any) -> None:
    """A button that sets controls, by key, to these values, which are the article's."""
    st.button(
        label,
        on_click=put,
        args=(dict(state),),
        icon=":material/restart_alt:",
        help="Bring the article's settings back",
        **arguments,
    )


def presets(choices: Mapping[str, tuple[str, Mapping[str, Any]]], defaults: Mapping[str, Any]) -> None:
    """Presets in a row: by name, what each shows and the settings in which it differs from ``defaults``.

    Each sets every control, and with them the link.
    """
    with st.container(horizontal=True):
        for name, (explanation, changes) in choices.items():
            st.button(name, help=explanation, on_click=put, args=({**defaults, **changes},), key=f"preset-{name}")


def loss_axis(**arguments: Any) -> Scale:
    """The choice of the scale of losses, one for all pages."""
    scale: Scale = st.segmented_control(
        "Loss axis",
        ["log", "linear"],
        default="log",
        key="loss_axis",
        required=True,
        help="On log, equal heights are equal ratios, so the gap between two small losses at the end can be seen; on "
        "linear, the large losses of the first epochs set the scale.",
        **{**BOUND, **arguments},
    )
    return scale


def show_chart(figure: Figure, *, alt_text: str, table: Table, name: str, look_for: str = "") -> None:
    """A chart with its whole table (nothing thinned) as CSV at its corner, and below it what its axes cannot show.

    Where they can show nothing, a sentence stands in place of the chart.

    Args:
        alt_text: The chart in words, for those who cannot see it.
        name: The name of the CSV, without its ending.
        look_for: A line of Markdown that says what there is to see.
    """
    if figure.empty:
        st.info(
            f"There is nothing to draw: no value is a finite number. {escaped(figure.left_out)}", icon=":material/info:"
        )
        csv_button(table, name)
        return
    with picture(table, name):
        st.vega_lite_chart(figure.data, figure.spec, alt=alt_text, width="stretch")
    if told := " ".join(filter(None, [look_for, escaped(figure.left_out)])):
        st.caption(told)


@contextmanager
def picture(table: Table, name: str) -> Iterator[None]:
    """What is drawn within has the download of its table at its lower right corner."""
    with st.container(key=f"picture-{name}"):
        yield
        csv_button(table, name)


def show_table(table: pd.DataFrame, *, name: str, wrapped: bool = False, **arguments: Any) -> None:
    """A table with the digits that matter, and at its corner the same as CSV with all of them.

    A column of decays is told by its name: it ends in "decay" or "beta".

    Args:
        wrapped: For a few rows of sentences: all of it is seen, without scrolling or sorting.
    """
    with st.container(key=f"table-{name}"):
        if wrapped:
            st.table(readable(table), border="horizontal", hide_index=True)
        else:
            st.dataframe(readable(table), hide_index=True, width="stretch", placeholder="", **arguments)
        csv_button(table, name)


def readable(table: pd.DataFrame) -> Styler:
    """The table with its numbers written for people; sorting goes by the numbers themselves."""
    numbers = table.select_dtypes("number").columns
    ways: dict[Any, Any] = {name: decay if str(name).endswith(("decay", "beta")) else plain for name in numbers}
    return table.style.format(ways, na_rep="")


def csv_button(table: Table, name: str) -> None:
    """A download of ``table`` (or of what it returns, when asked) as ``name``.csv; pandas reads it back unchanged."""

    def content() -> bytes:
        return (table() if callable(table) else table).to_csv(index=False).encode()

    st.download_button(
        f"{escaped(name)}.csv",
        data=content,
        file_name=f"{name}.csv",
        mime="text/csv",
        key=f"download-{name}",
        icon=":material/download:",
        type="tertiary",
        on_click="ignore",
        help="The whole table, with every digit",
    )
