from pathlib import Path

import pyarrow as pa
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from emacore.experiments import jobs

APP = Path(__file__).parents[2] / "app.py"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A store of its own for each test, and no worker processes: a queued run stays queued."""
    monkeypatch.setenv("EMACORE_HOME", str(tmp_path / "home"))

    def no_worker(folder, limit):
        raise AssertionError("a worker was started")

    monkeypatch.setattr(jobs, "_start_worker", no_worker)
    monkeypatch.setattr(jobs.JobQueue, "tend", lambda self, *, warm=False: None)
    yield tmp_path / "home"
    st.cache_resource.clear()


@pytest.fixture
def open_page():
    """Open a page of the app as its link does; fails on any exception the page shows."""

    def opened(page, **query):
        app = AppTest.from_file(str(APP), default_timeout=60)
        for key, value in query.items():
            app.query_params[key] = value
        if page != "overview":
            app.switch_page(f"pages/{page}.py")
        return run(app)

    return opened


def run(app):
    app.run()
    assert not app.exception, app.exception
    return app


def texts(app):
    """All that the page says."""
    kinds = (app.markdown, app.caption, app.info, app.warning, app.error, app.success)
    return "\n".join(element.value for elements in kinds for element in elements)


def drawn(app, number=0):
    """The rows that a page's chart draws, the first one by default."""
    return pa.ipc.open_stream(app.get("vega_lite_chart")[number].proto.data.data).read_pandas()
