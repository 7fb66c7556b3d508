import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from streamlit.runtime.scriptrunner import RerunException, get_script_run_ctx
from streamlit.runtime.scriptrunner_utils.script_requests import RerunData
from streamlit.runtime.state import SCRIPT_RUN_WITHOUT_ERRORS_KEY
from streamlit.runtime.state.safe_session_state import SafeSessionState

from emacore import RunConfig
from emacore.charts import style
from tests.pages.conftest import enter_recorded, enter_run, ranges_across, worked

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_pages_import_no_torch():
    code = """
import sys
from functools import cache
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest
manifest_scanner.scan_component_manifests = cache(manifest_scanner.scan_component_manifests)  # as in conftest.py
from emacore.experiments.jobs import JobQueue
from emacore.widgets import moving
moving._MOST_MARKS, moving._FEWEST_MARKS = 12, 3  # many curves of the same kind take as many seconds
JobQueue.tend = lambda self, *, warm=False: None
for page in ("overview", "for_my_run", "decay_schedule", "low_pass_filter", "train", "your_checkpoints"):
    app = AppTest.from_file("app.py", default_timeout=60)
    app.switch_page(f"pages/{page}.py").run()
    assert not app.exception, app.exception
    assert app.title, page
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    "page",
    [
        "overview",
        "for_my_run",
        "decay_schedule",
        "low_pass_filter",
        "train",
        "what_if",
        "your_checkpoints",
        "runs",
    ],
)
def test_every_control_has_help_and_its_place_in_the_link(open_page, page, home):
    if page == "what_if":
        enter_recorded(home)
    if page in ("train", "runs"):
        enter_run(home, epochs=3)
    for query in (
        {},
        {"length": "Epochs", "noise": "AR(1)", "signal": "sine", "optimizer": "sgd", "family": "Power function"},
    ):
        app = open_page(page, **query)
        kinds = ("slider", "select_slider", "number_input", "selectbox", "segmented_control", "pills", "toggle")
        controls = [control for kind in (*kinds, "multiselect", "text_input") for control in getattr(app, kind)]
        assert len(controls) >= {"overview": 3, "runs": 4}.get(page, 8)
        for control in controls:
            assert control.help, control.label
            if not control.key.startswith("pick-"):  # their links are tested with links
                assert control.proto.query_param_key == control.key, control.label


def test_presets_set_what_their_words_say():
    said = 0
    for page in ("train", "evidence", "where_it_helps"):
        body = ast.parse((ROOT / "pages" / f"{page}.py").read_text()).body
        until = next(place for place, node in enumerate(body) if ast.unparse(node) == "through_app()")
        names = {}
        exec(compile(ast.Module(body[:until], []), page, "exec"), names)
        for name, (words, config, *_) in names["PRESETS"].items():
            optimizer, article = config.optimizer, RunConfig().schedule
            for pattern, number in {
                r"(?:earning rate|Adam) ([\d.]*\d)|([\d.]*\d) and never lowered": optimizer.learning_rate,
                r"momentum ([\d.]*\d)": optimizer.momentum,
                r"batches of (\d+)": optimizer.batch_size,
                r"(?<!about )\b(\d+) epochs": config.max_epochs,
                r"([\d,]+) steps": config.max_epochs * config.steps_per_epoch,
                r"Constant ([\d.]*\d)": getattr(config.schedule, "beta", None),
            }.items():
                for found in re.finditer(pattern, words):
                    assert float((found[1] or found[2]).replace(",", "")) == number, (page, name)
                    said += 1
            for pattern, holds in {
                "never lowered": optimizer.rate_rule == "constant",
                "No early stop|fixed length": config.stopping.curve == "none",
                "early stop on the average": config.stopping.curve == "ema",
                "article's schedule": config.schedule == article,
                "SGD": optimizer.name == "sgd",
                "No dropout|without the noise of dropout": config.network.dropout == 0,
                "Five epochs": config.max_epochs == 5,
            }.items():
                assert holds or not re.search(pattern, f"{name}: {words}"), (page, name, pattern)
    assert said > 15


def test_colours_are_the_same_in_streamlit_and_in_the_charts():
    theme = tomllib.loads((ROOT / ".streamlit/config.toml").read_text())["theme"]
    expected = [style.ORIGINAL, style.AVERAGED, *style.OTHERS, style.CLEAN]
    assert theme["chartCategoricalColors"] == expected
    assert theme["primaryColor"] == style.AVERAGED


QUICK = ("for_my_run", "runs", "your_checkpoints")
OTHERS = sorted({path.stem for path in ROOT.glob("pages/*.py")} - set(QUICK))


@pytest.mark.parametrize("page", [*QUICK, *(pytest.param(page, marks=[pytest.mark.long]) for page in OTHERS)])
def test_a_run_of_a_page_that_is_cut_short_between_two_writes_breaks_no_later_one(open_page, home, page, monkeypatch):
    """A click ends the run under way wherever that asks the session: here before its first write, then its second..."""
    enter_recorded(home)
    cuts = written = 0

    def write(self, key, value, really=SafeSessionState.__setitem__):
        nonlocal cuts, written
        if key != SCRIPT_RUN_WITHOUT_ERRORS_KEY and (context := get_script_run_ctx()):
            written += 1
            if written > cuts:
                cuts, written = written, 0
                raise RerunException(RerunData(context.query_string, page_script_hash=context.page_script_hash))
        really(self, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(SafeSessionState, "__setitem__", write)
        app = open_page(page)
    assert cuts > 1
    assert app.title[0].value == open_page(page).title[0].value


@pytest.mark.parametrize("query", [{}, {"pins": ["Window(size=9)"]}, {"pins": ["Constant(beta=0.5)"]}])
def test_pictures_below_each_other_have_one_x_axis(open_page, home, of_mine, query):
    enter_recorded(home)
    opened = {"replayed": "opened-tiny", "family": "Constant", "update_after_step": "0", "update_every": "1"}
    for app in (
        open_page("decay_schedule", **query),
        open_page("what_if", **query),
        worked(open_page("what_if", **opened, **query), home),
        worked(open_page("your_checkpoints", merges=["Window(files=2)"] if query else []), home),
    ):
        ranges = ranges_across(app)
        assert ranges
        assert all(len(those) == 1 for those in ranges)
