"""Links, pins, files and errors whose text is Markdown: every page says it, and none lets it be more than text."""

import json

import pytest

from emacore import RunConfig
from emacore.experiments.store import RunStore
from emacore.experiments.studies import Study
from tests.helpers import ME
from tests.pages.conftest import SWEEP, enter_recorded, run
from tests.widgets.conftest import FOUND_BEFORE, FOUND_LATER, read

PLANTED = [
    "[x](http://evil)",
    ":material/x:",
    *(
        pytest.param(text, marks=pytest.mark.long)
        for text in ("![x](http://evil/p.png)", "<img src=http://evil/p.png>", "$x$")
    ),
]
TABLE = "{0},b\n1,2\n3,\n5,6\n7,8\n"


def said(app):
    """All that the page says in Markdown."""
    kinds = (app.markdown, app.caption, app.info, app.warning, app.error, app.success, app.title, app.header)
    elements = [element for kind in kinds for element in kind]
    labelled = [*app.button, *app.metric, *app.expander, *app.get("download_button"), *app.get("page_link")]
    labels = [getattr(element, "label", None) or element.proto.label for element in labelled]
    return [element.value for element in elements] + labels + [bar.proto.text for bar in app.get("progress")]


def assert_told(app, planted, *, times=1):
    """The page says ``planted``, at least so often, as text."""
    texts = {text: read(text) for text in said(app)}
    assert not [text for text in texts if planted in text]
    told = {text: found for text, found in texts.items() if planted in found[2].replace("\N{WORD JOINER}", "")}
    assert sum(found[2].replace("\N{WORD JOINER}", "").count(planted) for found in told.values()) >= times, texts
    for text, (_, parts, words) in told.items():
        assert parts <= {"text", "strong_open", "strong_close"}
        assert not FOUND_LATER.search(words)
        assert not FOUND_BEFORE.search(text)


@pytest.mark.parametrize("planted", PLANTED)
def test_links(open_page, home, planted):
    for page, query in {
        "decay_schedule": {"pins": [planted], "steps": planted, "family": planted, "power": planted},
        "overview": {"quad_decay": planted, "quad_rate": planted, "play": planted},
        "low_pass_filter": {"signal": planted, "filters": [planted], "seed_f": planted},
        "train": {"widths": planted, "run": planted, "optimizer": planted},
        "evidence": {"pins": planted, "study": planted, "seeds": planted},
        "where_it_helps": {"sweep": planted, "sweep_x": planted, "values_optimizer_learning_rate": planted},
        "what_if": {"replayed": planted},
    }.items():
        assert_told(open_page(page, **query), planted, times=min(2, len(query)))


@pytest.mark.parametrize("planted", PLANTED)
def test_pins_that_are_schedules(open_page, home, planted):
    pin = f"Constant(beta=1.0) # {planted}"
    assert_told(open_page("decay_schedule", pins=pin, quantity="memory"), planted)
    enter_recorded(home)
    app = open_page("what_if", pins=[pin, planted])
    assert_told(app, planted)


@pytest.mark.parametrize("planted", PLANTED)
def test_values_of_a_map(open_page, planted):
    for name in ("optimizer.name", "network.activation", "schedule", "data.noise"):
        key = f"values_{name.replace('.', '_')}"
        assert_told(open_page("where_it_helps", sweep_x=name, sweep_y="max_epochs", **{key: planted}), planted)


@pytest.mark.parametrize("planted", PLANTED)
def test_columns_of_a_table(open_page, planted):
    app = open_page("low_pass_filter")
    app.get_by_key("own").set_value((planted, TABLE.format("a").replace("b", planted).encode(), "text/csv"))
    run(app).get_by_key("metrics").set_value([planted])
    assert_told(run(app), planted)
    app = open_page("train", data="csv")
    app.get_by_key("own_data").set_value(("mine.csv", TABLE.format(planted).replace("1,", ",").encode(), "text/csv"))
    assert_told(run(app), planted)


@pytest.mark.parametrize("planted", PLANTED)
def test_settings_from_a_file(open_page, planted):
    for content in ({planted: 1}, {**json.loads(RunConfig().to_json()), "optimizer": {"name": planted}}):
        app = open_page("train")
        app.get_by_key("config_file").set_value(("c.json", json.dumps(content).encode(), "application/json"))
        assert_told(run(app), planted)


@pytest.mark.parametrize("planted", PLANTED)
def test_errors_of_jobs(open_page, home, planted):
    store = RunStore(home)
    for job in (RunConfig(), Study(RunConfig(), (0, 1)), SWEEP):
        job_id = store.create(job)
        store.claim(ME, 99)
        store.finish(job_id, ME, "failed", error=f"ValueError: {planted}")
    for page in ("train", "evidence", "where_it_helps"):
        assert_told(open_page(page), planted)


@pytest.mark.parametrize("planted", PLANTED)
def test_problems_of_the_store(open_page, home, monkeypatch, planted):
    from emacore.experiments import store

    def broken(self, *args):
        raise store.StoreError(f"The run store in {planted} is damaged")

    monkeypatch.setattr(store.RunStore, "runs", broken)
    assert_told(open_page("train"), planted)
