"""A handle and its number input are one setting."""

import json

import numpy as np
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df
from streamlit.testing.v1 import AppTest

from tests.pages.conftest import drag, select


def app_of(*, stop=False):
    def script():
        import numpy as np
        import pandas as pd
        import streamlit as st

        from emacore.charts.lines import lines
        from emacore.charts.moving import View, line_frames
        from emacore.widgets.moving import HandledSetting, show_moving
        from emacore.widgets.page import BOUND

        steps = np.arange(50.0)
        power = st.number_input("power", 0.1, 3.0, 1.0, key="power", **BOUND)
        table = pd.DataFrame({"step": steps, "curve": "now", "y": (1 + steps) ** -power})
        view = View(
            lines(
                table,
                x="step",
                y="y",
                series="curve",
                colours={"now": "#111"},
                x_title=st.session_state.get("title", "step"),
                y_title="y",
            )
        )

        def frames_of(handles):
            st.session_state["marks"] = handles[0].values
            values = {"power": [(1 + steps) ** -p for p in handles[0].values]}
            return [(line_frames("step", "y", "curve", "now", steps, values, y_ends=(0.0, 1.0)),)]

        finish = show_moving(
            "one",
            [HandledSetting("power", "power", (0.5, 1.0, 1.5), power)],
            [view],
            frames_of,
            alt_text=f"a curve of power {power}",
        )
        st.caption(f"power {power}")
        if st.session_state.get("stop"):
            st.stop()
        finish()

    app = AppTest.from_function(script, default_timeout=60)
    app.session_state["stop"] = stop
    return app.run()


def chart(app):
    return app.get("vega_lite_chart")[0].proto


def start(app):
    """Where the handle starts."""
    (mark,) = next(p["value"] for p in json.loads(chart(app).spec)["params"] if p["name"] == "drag_power")
    return app.session_state["marks"][mark["mark"]]


def test_a_handle_that_is_let_go_writes_the_number_input_and_stays_where_it_is():
    app = app_of()
    before = chart(app)
    drag(app, power=2)
    assert app.number_input[0].value == 1.5
    assert app.caption[0].value == "power 1.5"
    # The chart is the same, or it would be taken out of the hand that still holds it; only what it draws is another.
    assert (chart(app).id, chart(app).spec, chart(app).alt) == (before.id, before.spec, before.alt)
    drag(app, power=0)
    assert app.number_input[0].value == 0.5
    assert (chart(app).id, chart(app).spec) == (before.id, before.spec)


def test_another_value_that_no_handle_has_set_moves_the_handle():
    app = app_of()
    drag(app, power=2)
    before = chart(app)
    app.number_input[0].set_value(0.5).run()
    assert start(app) == 0.5
    assert chart(app).id != before.id  # or the browser would bring back where the handle was
    drag(app, power=2)  # the same mark as before, and yet another value than now
    assert app.number_input[0].value == 1.5


def test_what_was_typed_since_has_its_say_against_a_move_of_the_chart_before():
    app = app_of()
    before = chart(app)
    # The browser waits a moment with a move: meanwhile a value was typed, and its run of the page is cut short.
    app.session_state["stop"] = True
    app.number_input[0].set_value(0.5).run()
    app.session_state["stop"] = False
    select(app, before.id, drag_power=[{"mark": 2}])
    assert app.number_input[0].value == start(app) == 0.5
    drag(app, power=2)
    assert app.number_input[0].value == 1.5


def test_another_picture_has_its_handles_where_the_values_are():
    app = app_of()
    drag(app, power=0)
    app.session_state["title"] = "another"
    app.run()
    assert start(app) == 0.5


def test_a_typed_value_between_two_marks_has_a_mark_of_its_own():
    app = app_of()
    assert start(app) == 1.0
    app.number_input[0].set_value(0.7).run()
    assert app.session_state["marks"] == (0.5, 0.7, 1.0, 1.5)
    assert start(app) == 0.7
    (data,) = (data for data in chart(app).datasets if data.name == "frames0_0")
    frame = convert_arrow_bytes_to_pandas_df(data.data.data)
    np.testing.assert_array_equal(frame["y_0_1"], (1 + frame["step"]) ** -0.7)
    drag(app, power=2)
    assert app.number_input[0].value == 1.0


def test_the_first_picture_waits_for_no_frames():
    app = app_of(stop=True)
    assert not any(data.name.startswith("frames") for data in chart(app).datasets)
    assert "marks" not in app.session_state
