"""Links that ask for what a control cannot have."""

import ast
import os
import sqlite3
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from emacore.experiments.store import RunStore
from emacore.widgets.link import FREE_TEXT
from tests.pages.conftest import APP, enter_recorded, enter_run, enter_study, enter_sweep, run, texts

#: Each page, with settings that bring out controls which are not there at first.
PAGES = {
    "overview": [{}],
    "for_my_run": [{}, {"own": "true"}],
    "decay_schedule": [
        {"length": "Epochs"},
        {"family": "Exponential ramp"},
        {"family": "Power function"},
    ],
    "low_pass_filter": [{"noise": "AR(1)", "signal": "sine", "filters": ["the schedule"]}],
    "train": [{"optimizer": "sgd"}, {"data": "friedman1", "family": "Power function"}],
    "what_if": [{"view": "Weight space", "begin": "article"}, {"view": "Best width", "begin": "article"}],
    "evidence": [{}],
    "where_it_helps": [{"optimizer": "sgd"}],
    "runs": [{}],
    "your_checkpoints": [{}],
}
NEVER = ["inf", "-inf", "nan", "1e400", "-1e30", "9" * 400, "", "many", "2020-01-01"]
ENTER = {
    "train": lambda home: enter_run(home, epochs=3),
    "what_if": enter_recorded,
    "evidence": enter_study,
    "where_it_helps": enter_sweep,
    "runs": enter_sweep,
}


def numeric(app):
    """The controls of numbers that are in the link: sliders whose marks are numbers among them."""
    controls = [*app.number_input, *app.slider, *app.select_slider]
    return {control.key: control.value for control in controls if control.proto.query_param_key}


def told(app):
    return next((w.value for w in app.warning if w.value.startswith("Not taken from the link")), "")


def test_all_pages_are_walked():
    assert set(PAGES) == {path.stem for path in (APP.parent / "pages").glob("*.py")}


@pytest.mark.parametrize("page", PAGES)
def test_no_number_in_a_link_fails_and_what_is_not_taken_is_told(open_page, home, page):
    if page in ENTER:
        ENTER[page](home)
    seen = set()
    for number, settings in enumerate(PAGES[page]):
        expected = numeric(open_page(page, **settings))
        seen |= set(expected)
        # Each control is asked for another of these at a time, and for a third of them in all.
        for shift in range(0, len(NEVER), 3 if not number else 9):
            asked = {key: NEVER[(place + shift) % len(NEVER)] for place, key in enumerate(expected)}
            app = open_page(page, **settings, **asked)
            assert numeric(app) == expected, asked
            words = told(app).replace("\u2060", "")
            for key, bad in asked.items():
                if bad == "" and expected[key] is None:
                    continue  # nothing is what an optional number has
                assert f"{key} = {bad or 'nothing'}" in words, (bad, key)
    kinds = ("number_input", "slider", "log_slider", "beta_slider")
    source = (APP.parent / f"pages/{page}.py").read_text()
    keys = {
        keyword.value.value
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", "")) in kinds
        for keyword in call.keywords
        if keyword.arg == "key" and isinstance(keyword.value, ast.Constant)
    }
    assert keys <= seen


def app_of(**query):
    """A page of its own: AppTest runs the app's pages without app.py from their second run on."""

    def script():
        import streamlit as st

        from emacore.widgets.link import link_told
        from emacore.widgets.page import BOUND

        with link_told(st.session_state.get("page", "one")):
            st.number_input("Steps", 2, 100, 50, key="steps", **BOUND)
            st.slider("Power", 0.0, 3.0, 2 / 3, key="power", **BOUND)
            st.multiselect("Pins", [], key="pins", accept_new_options=True, max_selections=2, **BOUND)
            if st.toggle("More", key="more", **BOUND):
                st.number_input("Rows", 1, 100, 16, key="rows", **BOUND)

    app = AppTest.from_function(script)
    for key, value in query.items():
        app.query_params[key] = value
    return run(app)


def test_a_control_that_comes_later_does_not_find_it():
    app = app_of(rows="inf", steps="1e400")
    assert told(app) == "Not taken from the link: rows = inf; steps = 1e400 (50 is shown)."
    app.get_by_key("more").set_value(True)
    assert run(app).get_by_key("rows").value == 16
    assert "rows = inf (16 is shown)" in told(app)
    app.get_by_key("rows").set_value(32)
    assert told(run(app)) == "Not taken from the link: steps = 1e400 (50 is shown)."
    app.get_by_key("steps").set_value(51)
    assert told(run(app)) == ""


def test_what_does_not_read_as_endless_is_told_once_its_control_is_there():
    app = app_of(rows="-3")
    assert told(app) == ""
    app.get_by_key("more").set_value(True)
    assert told(run(app)) == "Not taken from the link: rows = -3 (16 is shown)."


def test_a_part_of_a_number_is_told_and_another_page_forgets():
    app = app_of(steps="77.5", power="1e400")
    assert "steps = 77.5 (77 is shown)" in told(app)
    assert "power = 1e400 (0.666666666667 is shown)" in told(app)
    app.session_state["page"] = "two"
    assert told(run(app)) == ""


@pytest.mark.parametrize("text", ["1e-05", "2E-5", "3.5e-4", "0.00001"])
def test_a_small_number_may_have_an_exponent_and_is_written_without(open_page, home, text):
    app = open_page("train", lr=text)
    assert app.get_by_key("lr").value == float(text)
    assert app.query_params["lr"] == f"{float(text):.6f}".rstrip("0")
    assert told(app) == ""


def test_what_is_taken_is_not_told(open_page):
    taken = {"steps": "1e3", "power": "0.5", "beta": "0.98765", "x": "log", "pins": ["Constant(beta=0.9)"], "at": "50"}
    app = open_page("decay_schedule", **taken)
    assert told(app) == ""
    assert app.get_by_key("steps").value == 1000
    assert told(open_page("overview", play="False", utm_source="x")) == ""
    app = app_of(steps="60", pins=["a", "b"])
    assert told(app) == ""
    for value in (70, 50):
        app.get_by_key("steps").set_value(value)
        assert told(run(app)) == ""


def test_of_many_values_those_are_told_that_are_not_there():
    assert told(app_of(pins=["a", "b", "c"])) == "Not taken from the link: pins = c."


def test_words_that_no_control_has_are_told_too(open_page):
    words = told(open_page("decay_schedule", family="Magic", x="cubic", quantity="memory"))
    assert "family = Magic (Inverse power is shown)" in words
    assert "x = cubic (log is shown)" in words
    assert "quantity" not in words
    app = open_page("train", run="nowhere")
    assert "There is no run nowhere" in texts(app)
    assert told(app) == ""


@pytest.mark.parametrize("page", ["overview", "low_pass_filter", "decay_schedule", "what_if"])
def test_a_link_holds_settings_of_schedules_only_where_they_are_set(open_page, home, page):
    if page == "what_if":
        assert set(open_page(page, tau="77", power="0.5").query_params) == {"tau", "power"}, "nothing is drawn yet"
        enter_recorded(home)
    asked = {"tau": "77", "width": "0.2", "power": "0.5", "family": "Power function", "utm_source": "x"}
    app = open_page(page, **asked)
    controls = [*app.number_input, *app.select_slider, *app.selectbox]
    drawn = {control.proto.query_param_key for control in controls} & set(asked)
    assert drawn == ({"width", "family"} if page in ("decay_schedule", "what_if") else set())
    assert set(app.query_params) - {"begin"} == drawn | {"utm_source"}


def test_free_text_may_say_inf(open_page):
    assert "not a schedule or window: 'inf'" in texts(open_page("decay_schedule", pins="inf"))
    assert "whole numbers such as 64, 32; got 'nan'" in texts(open_page("train", widths="nan"))
    keys = set()
    for path in [*(APP.parent / "pages").glob("*.py"), *Path(APP.parent, "emacore/widgets").glob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("text_input", "text_area"):
                keys |= {ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg == "key"}
    assert keys == {"'widths'", "_values_key(name)", "'find_job'", "key"}  # the last one, of a name, is no setting
    assert {"widths", "values_", "find_job"} < set(FREE_TEXT)


@pytest.mark.parametrize("job_id", ["12e456789012", "1e9999999999", "000000000001"])
@pytest.mark.parametrize(
    ("page", "key", "enter"),
    [
        ("train", "run", lambda home: enter_run(home, epochs=2)),
        ("train", "overlay", lambda home: (enter_run(home, epochs=2), enter_run(home, epochs=2))[0]),
        ("evidence", "study", lambda home: enter_study(home)[0]),
        ("where_it_helps", "sweep", lambda home: enter_sweep(home)[0]),
        ("what_if", "replayed", enter_recorded),
    ],
)
def test_an_id_that_reads_as_a_number_is_one(open_page, home, page, key, enter, job_id):
    found = enter(home)
    store = RunStore(home)
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE runs SET id = ? WHERE id = ?", (job_id, found))
        connection.execute("UPDATE epochs SET run_id = ? WHERE run_id = ?", (job_id, found))
    if store.recording(found).exists():
        store.recording(found).rename(store.recording(job_id))
    app = open_page(page, **{key: job_id})
    assert not told(app)
    assert app.query_params[key] == job_id
    assert app.get_by_key(f"pick-{key}").value == job_id


@pytest.mark.parametrize("name", ["inf", "1e999", "nan"])
def test_what_was_opened_may_be_called_like_a_number(open_page, of_mine, folder, tmp_path, monkeypatch, name):
    for other in (name, "other"):
        (tmp_path / other).symlink_to(folder)
    monkeypatch.setenv("EMACORE_OPEN", os.pathsep.join(str(tmp_path / other) for other in ("other", name)))
    app = open_page("your_checkpoints", opened=name)
    assert not told(app)
    assert app.get_by_key("opened").value == name


def test_a_choice_of_a_job_is_in_the_link_by_its_id_whatever_it_is_called(open_page, home):
    older, newer = enter_run(home, epochs=2), enter_run(home, epochs=2)
    app = open_page("train")
    picker = app.get_by_key("pick-run")
    assert picker.value is None
    assert "The newest: regression, Adam 0.001 plateau" in picker.placeholder
    assert "run" not in app.query_params
    assert len(set(picker.options)) == 2
    assert all(" · done · just now · loss " in option for option in picker.options)
    picker.set_value(older)
    assert run(app).query_params["run"] == older
    RunStore(home).rename(older, "mine")
    assert run(app).get_by_key("pick-run").value == older
    assert any(option.startswith("mine · done") for option in app.get_by_key("pick-run").options)
    app.query_params["run"] = newer  # as Back does
    assert run(app).get_by_key("pick-run").value == newer
    del app.query_params["run"]
    assert run(app).get_by_key("pick-run").value is None
    app.session_state["run"] = older  # as a button does that starts one
    assert run(app).query_params["run"] == older


def test_a_choice_outlives_a_page_change(open_page, home):
    older, _ = enter_run(home, epochs=2), enter_run(home, epochs=2)
    app = open_page("train", run=older)
    page, visit, refused = app.session_state["link_visited"]
    app.session_state["link_visited"] = page, visit + 1, refused  # another page was here
    del app.query_params["run"]
    assert run(app).get_by_key("pick-run").value == older
    assert app.query_params["run"] == older
