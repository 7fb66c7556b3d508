"""What pages say, in words: their sentences, controls and pictures, as somebody read them and found them right.

Each number but the limits of controls is a 0, for other tests look at numbers.  After a change of words, have them
written anew, and read what changed:

    EMACORE_SAID=new .venv/bin/python -m pytest tests/pages/test_said.py; git diff tests/pages/said
"""

import difflib
import json
import os
import re
import sqlite3
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emacore import RunConfig
from emacore.averaging.families import Constant
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study
from emacore.tasks.regression.config import DataConfig
from emacore.training.config import OptimizerConfig
from tests.helpers import ME
from tests.pages.conftest import (
    BUTTONS,
    CELL,
    FREE,
    PANEL,
    STUDY,
    SWEEP,
    answered,
    enter_recorded,
    enter_run,
    enter_study,
    enter_sweep,
    own,
    run,
    worked,
)

SAID = Path(__file__).parent / "said"
#: What differs from run to run, and what stands there instead.
MASKED = {
    r"\b\d+\.\d+(?:e[+-]?\d+)?\b": "0",
    r"\b[0-9a-f]{10,12}\b": "ID",
    r"\b\d\d:\d\d(:\d\d)?\b": "TIME",
    r"(?<![A-Za-z])\d[\d,.]*(?:e[+-]?\d+)?(?<![,.])": "0",
    r"\b0 (?:bytes|kB|MB|GB)\b": "0 bytes",
    r"\b0 (?:ms|s|min|h)\b(?: 0 (?:s|min)\b)?": "0 s",
}
#: What nobody reads of elements: how they are laid out, what they run, and code, which other tests look at.
UNREAD = {"accept_new_options", "code_text", "color", "css_content", "css_source_path", "data_type", "deferred_file_id"}
UNREAD |= {"direction", "editing_mode", "element_type", "form_id", "format", "has_max", "has_min", "html_content", "id"}
UNREAD |= {"ignore_rerun", "isolate_styles", "js_content", "js_source_path", "json", "language", "page_script_hash"}
UNREAD |= {"query_param_key", "required", "select_all", "spec", "tag", "theme", "type", "url", "wrap"}
UNREAD |= {"columns", "use_content", "use_stretch", "uuid"}
#: Numbers of controls, which are no results.
LIMITS = ("min", "max", "step", "default", "max_selections", "max_upload_size_mb")


def said(app, unread=UNREAD):
    """A page as text: a line for each element with its words, a deeper one for what is in it."""
    return "".join(f"{line}\n" for child in app.main.children.values() for line in _lines(child, "", unread))


def _lines(node, begin, unread):
    proto = getattr(node, "proto", None)
    words = [*map(_masked, _words(proto, unread))] if hasattr(proto, "ListFields") else []
    if node.type == "dataframe":
        words += map(str, node.value.columns)
    if "help" not in unread and words:
        words += _limits(proto)
    if words or node.type.startswith("vega"):
        yield from _wrapped(f"{node.type}: {' | '.join(words)}", begin)
        begin += "  "
    if node.type == "vega_lite_chart":
        for line in _drawn(json.loads(proto.spec)):
            yield from _wrapped(_masked(line), begin)
    for child in getattr(node, "children", {}).values():
        yield from _lines(child, begin, unread)


def _wrapped(line, begin):
    deeper = begin + "    "
    return textwrap.wrap(begin + line, 118, subsequent_indent=deeper, break_long_words=False, break_on_hyphens=False)


def _masked(text):
    for pattern, instead in MASKED.items():
        text = re.sub(pattern, instead, text)
    return text


def _words(proto, unread):
    """The texts of an element, and what it is (disabled, open), those of its parts after its own."""
    for field, value in proto.ListFields():
        if field.name in unread:
            continue
        if isinstance(value, bool):
            yield field.name
        for one in [value] if isinstance(value, str) or hasattr(value, "ListFields") else _listed(value):
            yield from [one] if isinstance(one, str) else _words(one, unread)


def _limits(proto):
    for field, value in proto.ListFields():
        if field.name in LIMITS and not isinstance(value, str):
            yield f"{field.name} {' '.join(f'{one:.10g}' for one in np.atleast_1d(value))}"


def _listed(value):
    return [one for one in value if isinstance(one, str) or hasattr(one, "ListFields")] if _is_listing(value) else []


def _is_listing(value):
    return hasattr(value, "__iter__") and not isinstance(value, bytes)


def _drawn(view):
    """The marks of a picture, each with what its channels show and are called."""
    if "mark" in view:
        mark = view["mark"] if isinstance(view["mark"], str) else view["mark"]["type"]
        channels = [f"{name}={_channel(how)}" for name, how in sorted(view.get("encoding", {}).items())]
        yield f"{mark}: {' '.join(channels)}"
    for layout in ("layer", "hconcat", "vconcat", "concat"):
        for part in view.get(layout, []):
            yield from _drawn(part)


def _channel(how):
    if isinstance(how, list):
        return "+".join(map(_channel, how))
    axis = how.get("axis") or how.get("legend") or {}
    told = [how.get(name) for name in ("field", "datum", "title")] + [axis.get("title")]
    return "/".join(str(one) for one in told if isinstance(one, str)) or "-"


@pytest.fixture(autouse=True)
def as_long(monkeypatch):
    """Each epoch takes a second, and each job twelve."""
    append = RunStore.append

    def timed(row):
        times = {name: float(row["epoch"]) if "epoch" in row else 1.0 for name in ("seconds", "elapsed") if name in row}
        return row | times | ({"rows": [timed(one) for one in row["rows"]]} if "rows" in row else {})

    monkeypatch.setattr(RunStore, "append", lambda store, job, worker, row: append(store, job, worker, timed(row)))
    monkeypatch.setattr(RunStore, "_took", lambda store, job: 12.0)


@pytest.fixture
def as_before():
    """That a page says what it said when it was read."""

    def check(app, name, with_helps=False):
        path = SAID / f"{name.replace(', ', '-').replace(' ', '_')}.txt"
        now = said(app, UNREAD if with_helps else UNREAD | {"help"})
        if os.environ.get("EMACORE_SAID") == "new":
            path.parent.mkdir(exist_ok=True)
            path.write_text(now)
        before = path.read_text()
        assert now == before, "\n".join(difflib.unified_diff(before.splitlines(), now.splitlines(), lineterm="", n=1))

    return check


#: Pages as links open them, with nothing in the store.
LINKS = {
    "overview": ("overview", {}),
    "overview, long memory": ("overview", {"decay": "0.9999", "rate": "0.001"}),
    "decay schedule": ("decay_schedule", {}),
    "decay schedule, long run": (
        "decay_schedule",
        {"steps": "400000", "family": "Power function", "update_every": "10", "pins": ["Window(size=9)"], "at": "50"},
    ),
    "for my run": ("for_my_run", {}),
    "for my run, teacher": ("for_my_run", {"trained": "teacher of a student", "rate": "constant"}),
    "for my run, own memory": (
        "for_my_run",
        {"own": "true", "run_length": "Samples", "run_rows": "50000", "run_batch": "64", "times_batch": "× 2"},
    ),
    "low-pass filter": ("low_pass_filter", {}),
    "low-pass filter, sine": ("low_pass_filter", {"signal": "sine", "noise": "AR(1)", "filters": ["the schedule"]}),
    "train": ("train", {}),
    "for my run, to choose later": (
        "for_my_run",
        {"wish": "several lengths to choose from later"},
    ),
    "for my run, tokens": ("for_my_run", {"run_length": "Tokens", "times_length": "× 4"}),
    "for my run, nobody knows": ("for_my_run", {"rate": "cosine or linear to zero", "run_steps": "5000"}),
    "for my run, too long": ("for_my_run", {"own": "true", "want_half_life": "90000000", "run_steps": "50"}),
    "low-pass filter, own": ("low_pass_filter", {"source": "Own file"}),
    "train, own table": ("train", {"data": "csv", "optimizer": "sgd", "rate_rule": "constant"}),
    "what if": ("what_if", {}),
    "your checkpoints": ("your_checkpoints", {}),
    "evidence": ("evidence", {}),
    "where it helps": ("where_it_helps", {}),
    "where it helps, a cell": (
        "where_it_helps",
        {"sweep_cell": "optimizer.learning_rate 0.001, schedule Constant(beta=0.99)", "optimizer": "sgd"},
    ),
    "runs": ("runs", {}),
    "a link with what cannot be": ("train", {"max_epochs": "inf", "seed": "[x](y)", "nothing": "1"}),
    "a link to what is gone": ("what_if", {"replayed": "abc", "pins": ["Constant(beta=2)", "<b>"]}),
}


@pytest.mark.parametrize("name", LINKS)
def test_of_links(open_page, as_before, name):
    page, query = LINKS[name]
    as_before(open_page(page, **query), name, with_helps=True)


FILES = {
    "panel": (PANEL, {"ways": ["TensorBoard", "Weights & Biases"]}),
    "gaps": (b"step,loss\n1,1\n2,\n2,nan\n4,3\n7,2\n", {"own_scale": "log"}),
    "no numbers": (b"a,b\nx,y\n", {}),
}


@pytest.mark.parametrize("name", FILES)
def test_of_a_file(open_page, as_before, name):
    content, query = FILES[name]
    as_before(own(open_page, content, **query), f"low-pass filter, {name}")


def test_of_files_to_train_with(open_page, as_before):
    app = open_page("train", data="csv", batch_size="8")
    rows = "".join(f"{n},{n * n % 7},{'xy'[n % 2]},{'?' if n == 3 else n % 5},{n % 2 == 0}\n" for n in range(40))
    app.get_by_key("own_data").set_value(("mine.csv", f"a,y,kind,gap,even\n{rows}".encode(), "text/csv"))
    as_before(run(app), "train, with a table")
    settings = RunConfig(data=DataConfig("csv", path="t.csv", sha256="0" * 64, target="y")).to_json()
    app = open_page("train")
    app.get_by_key("config_file").set_value(("c.json", settings.encode(), "application/json"))
    as_before(run(app), "train, with settings of a table")


#: Jobs in the store, as they went on or ended.
STATES = {
    "queued": {},
    "running": {},
    "done": {"stopped": "max epochs"},
    "stopped": {},
    "failed": {"error": "No [x](y) data."},
    "interrupted": {},
}


@pytest.mark.parametrize("state", STATES)
def test_of_a_run(open_page, home, as_before, state):
    run_id = RunStore(home).create(FREE) if state == "queued" else enter_run(home, FREE, state=state, **STATES[state])
    as_before(open_page("train", run=run_id), f"train, {state}")


@pytest.mark.parametrize("state", [state for state in STATES if state not in ("running", "done")])
@pytest.mark.parametrize(("page", "job"), [("train", FREE), ("evidence", STUDY), ("where_it_helps", SWEEP)])
def test_of_a_job_that_has_nothing_yet_or_will_never(open_page, home, as_before, page, job, state):
    store = RunStore(home)
    job_id = store.create(job) if isinstance(job, RunConfig | Study) else store.enter(job, ME)
    if state != "queued":
        store.claim(ME, 99)
        store.finish(job_id, ME, state, **STATES[state])
    key = {"train": "run", "evidence": "study", "where_it_helps": "sweep"}[page]
    app = open_page(page, **{key: job_id})
    found = [element for element in app.main if element.type in ("progress", "warning", "error", "info")]
    assert found
    as_before(app, f"{page.replace('_', ' ')}, nothing, {state}")


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_of_a_study_and_a_sweep_that_are_not_whole(open_page, home, as_before, state):
    study, sweep = (enter(home, state=state, **STATES[state])[0] for enter in (enter_study, enter_sweep))
    as_before(open_page("evidence", study=study), f"evidence, {state}")
    as_before(open_page("where_it_helps", sweep=sweep), f"where it helps, {state}")


def test_of_two_runs_and_of_one_that_diverged(open_page, home, as_before):
    first = enter_run(home, FREE)
    second = enter_run(home, replace(FREE, seed=7, schedule=Constant(0.5)))
    as_before(open_page("train", run=second, overlay=first), "train, overlaid")
    wild = OptimizerConfig("sgd", learning_rate=10.0, momentum=0.99, rate_rule="constant")
    run_id = enter_run(home, RunConfig(optimizer=wild))
    as_before(open_page("train", run=run_id), "train, diverged")


def test_of_the_articles_run(open_page, home, as_before):
    article = RunConfig(seed=3, max_epochs=500)
    short = enter_run(home, article, state="stopped", stop_after=3)
    as_before(open_page("train", run=short), "train, the article's first epochs")
    RunStore(home).delete(short)  # two of one second would be told apart by their ids
    run_id = enter_run(home, article, state="running", stop_after=12)
    as_before(open_page("train", run=run_id), "train, as in the article", with_helps=True)


def test_of_a_run_whose_store_is_damaged(open_page, home, as_before):
    run_id = enter_run(home, FREE)
    broken = RunStore(home).create(RunConfig())
    with sqlite3.connect(home / "runs.sqlite") as connection:
        connection.execute("UPDATE epochs SET row = '{' WHERE epoch = 5")
        connection.execute("UPDATE runs SET config = '{' WHERE id = ?", (broken,))
    as_before(open_page("train", run=run_id), "train, damaged")
    as_before(open_page("runs"), "runs, damaged")


@pytest.mark.parametrize("view", ["Family", "Atlas", "Best width", "Weight space"])
def test_of_a_replay(open_page, home, as_before, view):
    enter_recorded(home)
    app = open_page("what_if", view=view, begin="article", update_after_step="5", pins=["Constant(beta=0.9)"])
    as_before(app, f"what if, {view.lower()}", with_helps=True)


def test_of_a_study(open_page, home, as_before):
    as_before(open_page("evidence", study=enter_study(home)[0]), "evidence, a study", with_helps=True)


def test_of_a_sweep(open_page, home, as_before):
    as_before(
        open_page("where_it_helps", sweep=enter_sweep(home)[0], sweep_cell=CELL),
        "where it helps, a sweep",
        with_helps=True,
    )


def test_of_all_jobs(open_page, home, as_before):
    ids = [enter_recorded(home), enter_run(home, epochs=12), enter_study(home)[0], enter_sweep(home)[0]]
    for job_id, name in zip(ids, ("one", "two", "study", "sweep"), strict=True):
        RunStore(home).rename(job_id, name)
    as_before(open_page("runs", picked=",".join(ids[:2])), "runs, of all kinds", with_helps=True)


def test_of_what_was_opened(open_page, home, as_before, of_mine, evaluated):
    app = worked(open_page("your_checkpoints", merges=["Window(files=2)"]), home)
    answered(app, home, "Measure these merges")
    as_before(app, "your checkpoints, measured", with_helps=True)
    as_before(answered(app, home, "Diagnose"), "your checkpoints, opened", with_helps=True)


def test_of_what_was_opened_and_is_replayed(open_page, home, as_before, of_mine, evaluated):
    at_once = {"family": "Constant", "beta": "0.5", "update_after_step": "0", "update_every": "1"}
    app = worked(open_page("what_if", replayed="opened-tiny", **at_once), home)
    as_before(app, "what if, opened")
    answered(app, home, "Measure what is stored")
    as_before(worked(app, home), "what if, opened and measured")
    for view, label in BUTTONS.items():
        app.segmented_control(key="view").set_value(view)
        as_before(answered(run(app), home, label), f"what if, opened, {view.lower()}")


def test_of_what_cannot_be_measured_or_read(open_page, home, as_before, of_mine, monkeypatch, tmp_path):
    app = worked(open_page("what_if", replayed="opened-tiny", family="Constant"), home)
    as_before(app, "what if, opened, without a measure", with_helps=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "step_1.pt").write_bytes(b"nothing")
    monkeypatch.setenv("EMACORE_OPEN", str(tmp_path / "broken"))
    as_before(open_page("your_checkpoints"), "your checkpoints, unreadable")


def test_of_a_function_that_fails(open_page, home, as_before, of_mine, evaluated, monkeypatch):
    monkeypatch.setenv("EMACORE_EVALUATE", "small_eval:nothing")
    app = worked(open_page("your_checkpoints", merges=["Window(files=2)"]), home)
    as_before(answered(app, home, "Measure these merges"), "your checkpoints, failed")
