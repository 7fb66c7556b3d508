"""The weight-averaging explorer: streamlit run app.py"""

import os

import streamlit as st

from emacore.widgets.link import link_told

st.session_state["navigated"] = True  # see emacore.widgets.page.through_app
st.set_page_config(page_title="Weight-averaging explorer", page_icon=":material/ssid_chart:", layout="wide")
page = st.navigation(
    [
        st.Page("pages/overview.py", title="Overview", icon=":material/explore:", default=True),
        st.Page("pages/decay_schedule.py", title="Decay schedule", icon=":material/show_chart:"),
        st.Page("pages/low_pass_filter.py", title="Low-pass filter", icon=":material/graphic_eq:"),
        st.Page("pages/train.py", title="Train", icon=":material/model_training:"),
        st.Page("pages/what_if.py", title="What if", icon=":material/alt_route:"),
        st.Page("pages/evidence.py", title="Evidence", icon=":material/query_stats:"),
        st.Page("pages/where_it_helps.py", title="Where it helps", icon=":material/grid_on:"),
        st.Page("pages/runs.py", title="Runs", icon=":material/list:"),
    ],
    position="top",
)
with link_told(page.url_path):
    page.run()
if os.environ.get("EMACORE_EXAMPLE") != "0":
    from emacore.widgets.jobs import begin_example  # after the page, which need not wait for it

    begin_example()
