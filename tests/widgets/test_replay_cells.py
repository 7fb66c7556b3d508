"""Which cell of the atlas is kept."""

from types import SimpleNamespace

import streamlit as st

from emacore.widgets.replay_cells import _keep_moved, atlas_key, kept_cell


def test_keys_that_were_pressed_on_the_map_of_before_keep_no_cell(monkeypatch):
    run, session = SimpleNamespace(id="one"), {}
    monkeypatch.setattr(st, "session_state", session)
    for at, key, kept in (
        (1, atlas_key(run), "b"),
        (0, "atlas-one-power-beta-best", "b"),  # another map is shown by now
        (2, atlas_key(run), "b"),  # empty
        (7, atlas_key(run), "b"),  # a map of more cells
        (None, atlas_key(run), "b"),
        (0, atlas_key(run), "a"),
    ):
        session["cell-keys"] = {"kept": at}
        _keep_moved(run, key, ("a", "b", None))
        assert kept_cell(run) == kept
