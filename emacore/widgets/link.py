"""What a link asks of the controls: numbers that no control can have are kept from them, and what was not taken is
told."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.state import get_session_state

from emacore.limits import LETTERS
from emacore.widgets.page import escaped, number_text
from emacore.widgets.schedules import schedule_defaults

#: Parameters of controls that take any text: "inf" may be the name of a column.
FREE_TEXT = ("metrics", "own_x", "pins", "target", "features", "widths", "values_", "find_job", "picked")

#: Parameters with the id of a job or the name of something opened: "12e456789012" is an id, and no endless number.
NAMES = ("run", "study", "sweep", "replayed", "overlay", "opened", "section", "diagnosed_average", "diagnosed_raw")

_SMALL = re.compile(r"\d+(\.\d+)?e-\d{1,2}", re.IGNORECASE)

#: Parameters of controls of which nothing may be chosen.
MAY_BE_EMPTY = ("filters", "kinds", "states", "ways")

#: The page, the number of its visit, and what was refused of its link: one entry, since a run can be cut short between
#: two.
_VISITED = "link_visited"
_NONE_YET: tuple[str | None, int, dict[str, tuple[str, Any]]] = (None, 0, {})


@contextmanager
def link_told(page: str) -> Iterator[None]:
    """Around the run of a page: above it, a sentence says which values of its link no control has taken.

    Streamlit falls back on a control's default without a word where a link asks for what it cannot have, and fails
    where a whole number is asked to be infinite.

    Args:
        page: The page's name; another one forgets what was told of the last.
    """
    state = st.session_state
    last, visit, refused = state.get(_VISITED, _NONE_YET)
    if last != page:
        _keep_what_was_there()
        visit, refused = visit + 1, {}
        state[_VISITED] = page, visit, refused
        known: set[str] = set()
    else:
        known = {str(key) for key in state}
    refused = refused | _cleaned()
    asked = {key: st.query_params.get_all(key) for key in st.query_params}
    place = st.container()
    try:
        yield
        _without_foreign()  # not where a page ended early: its controls are still to come
    finally:
        for key, texts in asked.items():
            if key not in known and key in state and _is_bound(key) and f"gone-{key}" not in state:
                missing = _not_taken(texts, state[key])
                refused |= {key: (", ".join(missing), None)} if missing else {}
        # A value is told for as long as the one that is shown instead is there.
        refused = {key: (text, state.get(key) if shown is None else shown) for key, (text, shown) in refused.items()}
        refused = {key: (text, shown) for key, (text, shown) in refused.items() if state.get(key) == shown}
        state[_VISITED] = page, visit, refused
        if refused:
            place.warning(f"Not taken from the link: {'; '.join(_told(refused))}.", icon=":material/link_off:")


def from_link(key: str) -> str | None:
    """A text that the session keeps under ``key``, as the link has it: for controls that Streamlit cannot bind.

    Streamlit puts what an option is called into the link; where that changes with time, the link must hold what does
    not.  A link that is opened, or gone back to, is asked once; then the session has its say, and :func:`to_link`
    writes it.
    """
    state, asked = st.session_state, st.query_params.get(key) or None
    visit, written = state.get(f"linked-{key}", (None, None))
    if visit != _visit():  # another page was here meanwhile, and its link says nothing of this
        state[key] = asked or state.get(key)
    elif asked != written:
        state[key] = asked
    found: str | None = state.setdefault(key, None)
    return found


def to_link(key: str) -> None:
    """Write what the session has under ``key`` into the link."""
    state = st.session_state
    if state.get(key):
        if st.query_params.get(key) != state[key]:
            st.query_params[key] = state[key]
    elif key in st.query_params:
        del st.query_params[key]
    state[f"linked-{key}"] = _visit(), state.get(key) or None


def _visit() -> int:
    visit: int = st.session_state.get(_VISITED, _NONE_YET)[1]
    return visit


def _keep_what_was_there() -> None:
    """Let the browser's Back show a page as it was left.

    Streamlit takes the parameters of a page out of the browser's history when one leaves it, and would read the entry
    without them as a wish for the defaults.
    """
    context = get_script_run_ctx()
    if context is not None and not st.query_params:
        context.is_history_navigation = False


def _without_foreign() -> None:
    """Take settings of schedules that no control of this page has out of the link: those of another family or page."""
    for key in schedule_defaults():
        if key in st.query_params and not _is_bound(key):
            del st.query_params[key]


def _told(refused: Mapping[str, tuple[str, Any]]) -> Iterator[str]:
    for key, (text, shown) in refused.items():
        words = f"{escaped(key)} = {escaped(text) or 'nothing'}"
        if shown is None or isinstance(shown, (list, tuple)):
            yield words
        else:
            yield f"{words} ({number_text(shown) if isinstance(shown, float) else escaped(shown)} is shown)"


def _cleaned() -> dict[str, tuple[str, Any]]:
    """Take what reads as a number but is not finite out of the link, before a control reads it; returns it by key.

    Small numbers with an exponent are written without it.
    """
    found = {}
    rewritten = False
    with get_session_state().query_params() as link:
        for key in list(st.query_params):
            texts = link.get_all(key)
            if key.startswith(FREE_TEXT):
                if sum(map(len, texts)) > LETTERS:
                    found[key] = (f"{sum(map(len, texts)):,} letters", None)
                    link.remove_param(key)
            elif key in NAMES:
                continue
            elif (texts == [""] and key not in MAY_BE_EMPTY) or any(_is_endless(text) for text in texts):
                found[key] = (", ".join(texts), None)
                link.remove_param(key)
            elif len(texts) == 1 and _SMALL.fullmatch(texts[0]):
                st.query_params[key] = number_text(float(texts[0]))  # as sliders write it: they compare texts
                rewritten = True
        if found or rewritten:
            link.set_initial_query_params_from_current()
    return found


def _is_bound(key: str) -> bool:
    with get_session_state().query_params() as link:
        return link.is_bound(key)


def _is_endless(text: str) -> bool:
    try:
        return not math.isfinite(float(text))
    except ValueError:
        return False


def _not_taken(texts: Sequence[str], value: Any) -> list[str]:
    """What a link asks of a control and its ``value`` is not; of a control with many values, those it does not have."""
    if isinstance(value, (list, tuple)):
        return [text for text in texts if text and text not in map(str, value)]
    return [] if _is_same(texts[-1], value) else [texts[-1]]


def _is_same(text: str, value: Any) -> bool:
    if value is None:
        return text == ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return math.isclose(float(text), value, rel_tol=1e-11)
        except ValueError:
            return False
    return text.lower() == str(value).lower() if isinstance(value, bool) else text == str(value)
