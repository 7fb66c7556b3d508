"""Tables as pages show them."""

import pandas as pd
from streamlit.testing.v1 import AppTest

from emacore.widgets.page import readable


def test_a_table_is_written_for_people_and_keeps_its_numbers():
    table = pd.DataFrame(
        {
            "loss": [0.6176929390770008, 20000.0, float("nan")],
            "final beta": [0.99999, 0.5, 1.0],
            "steps": pd.array([400_000, None, 1], dtype="Int64"),
            "kept": [True, False, True],
            "code": ["a", "b", "c"],
        }
    )
    shown = readable(table)
    cells = [
        line.split(",")
        for line in shown.hide().to_string(delimiter=";").replace(",", "'").replace(";", ",").split("\n")
    ]
    assert cells[1:4] == [
        ["0.6177", "0.99999", "400'000", "True", "a"],
        ["20'000", "0.5", "", "False", "b"],
        ["", "1", "1", "True", "c"],
    ]
    assert shown.data is table


def gone_meanwhile():
    import streamlit as st
    from streamlit.runtime.scriptrunner import RerunData, get_script_run_ctx

    from emacore.widgets.page import run_anew

    runs = st.session_state.setdefault("runs", [])
    runs.append(st.query_params.get("gone", "here"))
    if len(runs) == 1:
        context = get_script_run_ctx()
        # As the session enters it when the browser's wish arrives.
        context.script_requests.request_rerun(RerunData("gone=there", page_script_hash=context.page_script_hash))
        run_anew()


def test_a_page_that_runs_itself_anew_takes_nobody_back_who_has_gone_to_another():
    app = AppTest.from_function(gone_meanwhile).run()
    assert not app.exception
    assert app.session_state["runs"] == ["here", "there"]
