"""The run that the server trains by itself on an empty store, so that no first visit is blank."""

import pytest
import streamlit as st

from emacore import RunConfig, train
from emacore.experiments.store import RunStore
from emacore.training.config import StoppingConfig
from tests.helpers import ME
from tests.pages.conftest import drawn, enter_run, run, texts


@pytest.fixture(autouse=True)
def wanted(monkeypatch):
    monkeypatch.setenv("EMACORE_EXAMPLE", "1")


def test_any_page_begins_it_once_for_each_store(open_page, home):
    open_page("overview")
    (example,) = RunStore(home).runs()["id"]
    assert RunStore(home).result(example).job == RunConfig()
    st.cache_resource.clear()  # another server
    open_page("train")
    assert RunStore(home).runs()["id"].tolist() == [example]
    RunStore(home).delete(example)
    st.cache_resource.clear()
    open_page("overview")
    assert RunStore(home).runs().empty


def test_a_store_with_runs_has_none(open_page, home):
    enter_run(home, epochs=1)
    open_page("overview")
    assert len(RunStore(home).runs()) == 1


def test_a_store_that_cannot_be_opened_leaves_the_first_page_alone(open_page, home):
    home.write_text("a file where the folder should be")
    assert open_page("overview").title
    assert "cannot be made" in open_page("train").error[0].value


def test_train_and_what_if_show_it_with_its_progress_in_words(open_page, home):
    app = open_page("train")
    runs = RunStore(home)
    (example,) = runs.runs()["id"]
    assert app.get("progress")[0].proto.text.startswith("The article's run, trained for you: it starts once")
    assert "The newest: the article's run, trained for you · queued" in app.get_by_key("pick-run").placeholder
    what_if = open_page("what_if")
    assert "not over yet" in texts(what_if)
    assert "the article's run, trained for you · queued" in what_if.get_by_key("pick-replayed").placeholder
    runs.claim(ME, 1)
    config = RunConfig(max_epochs=3, stopping=StoppingConfig("none"))
    train(config, on_epoch=lambda row: runs.append(example, ME, row), record=runs.recording(example))
    assert "trained for you: epoch 3 of at most 500" in run(app).get("progress")[0].proto.text
    assert len(drawn(app)) == 3
    assert len(drawn(run(what_if))) >= 1
    runs.finish(example, ME, "done", stopped="early stop")
    assert "The article's run, trained for you: ended after 3 epochs" in texts(run(app))
    assert "the article's run, trained for you · done" in app.get_by_key("pick-run").placeholder
