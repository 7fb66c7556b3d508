"""Pages without a browser, a store of their own for them, and what workers leave in it."""

import json
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
import streamlit as st
from streamlit.components.v2 import manifest_scanner
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df
from streamlit.testing.v1 import AppTest

from emacore import RunConfig, train
from emacore.averaging.code import to_code
from emacore.averaging.families import Constant, InversePower
from emacore.experiments import jobs, opened
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study, Sweep
from emacore.experiments.sweep import sweep
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import OptimizerConfig, StoppingConfig, article_schedule
from emacore.training.replicas import replicate
from emacore.widgets import moving
from tests.experiments.opened_folders import MEASURE, small_run
from tests.helpers import ME

APP = Path(__file__).parents[2] / "app.py"

#: A short run that no curve ends.
FREE = RunConfig(
    data=DataConfig(n_samples=200),
    optimizer=OptimizerConfig(rate_rule="constant", learning_rate=0.01),
    stopping=StoppingConfig("none"),
    schedule=InversePower(0.9, update_after_step=5, update_every=1),
    max_epochs=12,
)
STUDY_CONFIG = RunConfig(
    data=DataConfig(n_samples=200),
    optimizer=OptimizerConfig(rate_rule="constant", learning_rate=0.01),
    stopping=StoppingConfig("none"),
    max_epochs=25,
)
STUDY = Study(STUDY_CONFIG, tuple(range(8)), (Constant(0.5),))
SWEEP_CONFIG = RunConfig(
    data=DataConfig(n_samples=200),
    optimizer=OptimizerConfig(rate_rule="constant"),
    stopping=StoppingConfig("none"),
    max_epochs=3,
)
SWEEP = Sweep(
    SWEEP_CONFIG,
    {"optimizer.learning_rate": [0.001, 0.01], "schedule": [to_code(article_schedule()), "Constant(beta=0.9)"]},
    tuple(range(8)),
)
#: A cell of that.
CELL = "optimizer.learning_rate 0.01, schedule Constant(beta=0.9)"
#: What asks a worker, in each view of what was opened.
BUTTONS = {
    "Atlas": "Measure this atlas",
    "Family": "Measure these averages",
    "Weight space": "Measure the loss on this plane",
    "Best width": "Measure these widths",
}
#: What a Weights & Biases panel saves: two runs.
PANEL = (
    '"Step","run-1 - loss","run-1 - loss__MIN","run-1 - loss__MAX",'
    '"run-2 - loss","run-2 - loss__MIN","run-2 - loss__MAX"\n'
    + "".join(f'"{10 * n}","{v}","{v}","{v}","","",""\n' for n, v in enumerate([4.0, 2.0, 3.0, 1.0]))
    + "".join(f'"{10 * n + 5}","","","","{v}","{v}","{v}"\n' for n, v in enumerate([8.0, 6.0, 7.0]))
).encode()


@pytest.fixture(scope="session", autouse=True)
def packages_looked_through_once():
    """Each AppTest looks for components in all packages there are, which takes longer than most pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", cache(manifest_scanner.scan_component_manifests))
        yield


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A store of its own for each test, and no worker processes: a queued run stays queued."""
    monkeypatch.setenv("EMACORE_HOME", str(tmp_path / "home"))
    for name in ("EMACORE_OPEN", "EMACORE_EVALUATE"):  # as the shell may have them
        monkeypatch.delenv(name, raising=False)

    def no_worker(folder, limit):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(jobs, "_start_worker", no_worker)
    monkeypatch.setattr(jobs.JobQueue, "tend", lambda self, *, warm=False: None)
    yield tmp_path / "home"
    st.cache_resource.clear()


MARKS = {name: getattr(moving, name) for name in ("_MOST_MARKS", "_FEWEST_MARKS")}


@pytest.fixture(autouse=True)
def few_marks(monkeypatch):
    """Handles with few marks: each is a curve, and pages are drawn some hundred times here."""
    monkeypatch.setattr(moving, "_MOST_MARKS", 12)
    monkeypatch.setattr(moving, "_FEWEST_MARKS", 3)


@pytest.fixture
def all_marks(few_marks, monkeypatch):
    """Handles with as many as people have."""
    for name, marks in MARKS.items():
        monkeypatch.setattr(moving, name, marks)


@pytest.fixture
def open_page():
    """Open a page of the app as its link does; fails on any exception the page shows."""

    def open_it(page, **query):
        app = AppTest.from_file(str(APP), default_timeout=60)
        for key, value in query.items():
            app.query_params[key] = value
        if page != "overview":
            app.switch_page(f"pages/{page}.py")
        return run(app)

    return open_it


def run(app):
    app.run()
    assert not app.exception, app.exception
    return app


def drawn(app):
    """The tables that the page's charts draw, in its order; of charts with handles, those drawn while none moves."""
    tables = []
    for chart in app.get("vega_lite_chart"):
        still = [data.data.data for data in chart.proto.datasets if data.name.startswith("still")]
        tables += still or [chart.proto.data.data]
    return [convert_arrow_bytes_to_pandas_df(table) for table in tables]


def frames(app):
    """The tables that charts draw while handles move, by name."""
    return {
        data.name: convert_arrow_bytes_to_pandas_df(data.data.data)
        for chart in app.get("vega_lite_chart")
        for data in chart.proto.datasets
        if data.name.startswith("frames")
    }


def ranges_across(app):
    """Of each chart with several pictures below each other, the different ranges of their x axes in pixels."""
    found = []
    for chart in app.get("vega_lite_chart"):
        views = json.loads(chart.proto.spec).get("vconcat", [])
        if views:
            places = [layer.get("encoding", {}).get("x", {}) for view in views for layer in view["layer"]]
            found.append({json.dumps(x["scale"]["range"]) for x in places if "range" in x.get("scale", {})})
    return found


def marked(app):
    """Where the labelled rules of the page's charts stand, by their labels."""
    found = {}
    for chart in app.get("vega_lite_chart"):
        for layer in json.loads(chart.proto.spec).get("layer", []):
            rows = layer.get("data", {}).get("values", [])
            found |= {row["label"]: row["at"] for row in rows if {"label", "at"} <= row.keys()}
    return found


def drag(app, **marks):
    """Let go of a chart's handles at these marks, by the keys of their settings, as the browser does."""
    for chart in app.get("vega_lite_chart"):
        chosen = {f"drag_{key}": [{"mark": mark}] for key, mark in marks.items()}
        if set(chosen) <= set(chart.proto.selection_mode):
            return select(app, chart.proto.id, **chosen)
    raise AssertionError(f"no chart has handles for {', '.join(marks)}")


def select(app, chart_id, **chosen):
    """Select in a chart, as the browser does; and what was set before, but not run yet, with it."""
    states = app._tree.get_widget_states()
    states.widgets.add(id=chart_id, string_value=json.dumps({"selection": chosen}))
    app._run(states)
    assert not app.exception, app.exception
    return app


def texts(app):
    """All that the page says."""
    kinds = (app.markdown, app.caption, app.info, app.warning, app.error, app.success)
    return "\n".join(element.value for elements in kinds for element in elements)


def assert_verdict_first(app, begin, picker):
    """That a sentence and a picture come first; below them what they are of, how to have one's own, and the choice."""
    order = list(app.main)
    places = [
        next(n for n, element in enumerate(order) if is_it(element))
        for is_it in (
            lambda e: e.type == "markdown" and e.value.startswith(begin),
            lambda e: e.type == "vega_lite_chart",
            lambda e: e.type == "caption" and "Shipped with the app" in e.value,
            lambda e: e.type == "info" and "to run your own" in e.value.lower(),
            lambda e: getattr(e, "key", None) == picker,
        )
    ]
    assert places == sorted(places)


#: What was trained, by its settings: many tests begin with the same.
_TRAINED = {}


def once(job, make, *how):
    """What ``make()`` gave for these settings, trained once for all tests."""
    key = (job.to_json(), *how)
    if key not in _TRAINED:
        _TRAINED[key] = make()
    return _TRAINED[key]


def enter_run(home, config=None, epochs=30, state="done", stop_after=None, **ending):
    """A run in the store, as a worker leaves it, or has it after so many epochs."""
    config = config or RunConfig(max_epochs=epochs, stopping=StoppingConfig("none"))
    runs = RunStore(home)
    run_id = runs.create(config)
    runs.claim(ME, 99)

    def trained():
        rows = []
        return rows, train(config, rows.append, lambda: len(rows) == stop_after).stopped

    rows, stopped = once(config, trained, "run", stop_after)
    for row in rows:
        runs.append(run_id, ME, row)
    if state != "running":
        runs.finish(run_id, ME, state, **({"stopped": stopped} | ending))
    return run_id


def enter_recorded(home, config=FREE, state="done", **options):
    """The same with its weights."""
    runs = RunStore(home)
    run_id = runs.create(config)
    runs.claim(ME, 99)

    def trained():
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            stopped = train(config, rows.append, record=Path(folder) / "run", **options).stopped
            files = {path.name: path.read_bytes() for path in (Path(folder) / "run").iterdir()}
        return rows, stopped, files

    rows, stopped, files = once(config, trained, "recorded", *options.items())
    folder = runs.recording(run_id)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    for row in rows:
        runs.append(run_id, ME, row)
    if state != "running":
        runs.finish(run_id, ME, state, stopped=stopped)
    return run_id


def enter_study(home, study=STUDY, state="done", **ending):
    """A study in the store, and the result that it has."""
    store = RunStore(home)
    study_id = store.create(study)
    store.claim(ME, 99)

    def trained():
        looks = []
        schedules = {to_code(schedule): schedule for schedule in study.schedules}
        return looks, replicate(study.config, study.seeds, looks.append, schedules=schedules)

    looks, result = once(study, trained)
    for rows in looks:
        store.append(study_id, ME, {"epoch": rows[0]["epoch"], "rows": rows})
    if state != "running":
        store.finish(study_id, ME, state, **({"stopped": "all seeds ended"} | ending))
    return study_id, result


def enter_sweep(home, job=SWEEP, state="done", **ending):
    """A sweep in the store, and its table."""
    store = RunStore(home)
    sweep_id = store.enter(job, ME)

    def trained():
        done = []
        return done, sweep(job.config, job.grid, job.seeds, on_result=done.append, workers=1)

    done, table = once(job, trained)
    for number, rows in enumerate(done, 1):
        store.append(sweep_id, ME, {"epoch": number, "rows": rows})
    if state != "running":
        store.finish(sweep_id, ME, state, **({"stopped": "all cells trained"} | ending))
    return sweep_id, table


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Checkpoints of a small run."""
    path = tmp_path_factory.mktemp("hidden") / "tiny"
    small_run(path)
    (path.parent / "small_eval.py").write_text(MEASURE)
    return path


@pytest.fixture
def of_mine(folder, monkeypatch):
    """The folder is opened; its headers are read here, because another process would have to load torch."""

    def here(name, path):
        try:
            answer = {**opened._read(Path(path)), "identity": opened.identity_of(Path(path))}
        except ValueError as error:
            answer = {"error": str(error)}
        return json.dumps(answer)

    monkeypatch.setattr(opened, "asked_elsewhere", here)
    monkeypatch.setenv("EMACORE_OPEN", str(folder))
    return opened.contents_of("tiny", folder)


@pytest.fixture
def evaluated(folder, monkeypatch):
    """There is a function that measures what is stored."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setenv("EMACORE_EVALUATE", "small_eval:distance")
    yield
    sys.modules.pop("small_eval", None)


def answered(app, home, label):
    """Press a button that asks, and let a worker answer."""
    (button,) = [one for one in app.button if one.label == label]
    button.click()
    run(app)
    return worked(app, home)


def worked(app, home):
    store = RunStore(home)
    while (claimed := store.claim(ME, 1)) is not None:
        jobs.work_off(store, ME, *claimed)
        run(app)
    return app


def own(open_page, content, **query):
    """The page of filters with a file of one's own."""
    app = open_page("low_pass_filter", **query)
    app.get_by_key("own").set_value(("mine.csv", content, "text/csv"))
    return run(app)
