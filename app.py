"""The weight-averaging explorer: streamlit run app.py"""

import os

import streamlit as st

from emacore.courtesy import answering
from emacore.memory import give_back, settle

#: Served by the app itself: an icon that is only named, here or of a page, would be fetched from a font service.
ICON = "docs/icon.svg"
#: Streamlit leaves 100 pixels above a title: too much where a bar of pages is at the top.
STYLE = "<style>.stMainBlockContainer { padding-top: 4.5rem; padding-bottom: 3rem; }</style>"


def main() -> None:
    give_back()
    from emacore.widgets.link import link_told  # after give_back(), because it loads libraries that begin threads

    st.session_state["navigated"] = True  # see emacore.widgets.page.through_app
    page = st.navigation(
        [
            st.Page("pages/overview.py", title="Overview", default=True),
            st.Page("pages/for_my_run.py", title="For my run"),
            st.Page("pages/decay_schedule.py", title="Decay schedule"),
            st.Page("pages/low_pass_filter.py", title="Low-pass filter"),
            st.Page("pages/train.py", title="Train"),
            st.Page("pages/what_if.py", title="What if"),
            st.Page("pages/evidence.py", title="Evidence"),
            st.Page("pages/where_it_helps.py", title="Where it helps"),
            st.Page("pages/your_checkpoints.py", title="Your checkpoints"),
            st.Page("pages/runs.py", title="Runs"),
        ],
        position="top",
    )
    st.set_page_config(page_title=f"{page.title} - Weight-averaging explorer", page_icon=ICON, layout="wide")
    st.html(STYLE)
    with answering(), link_told(page.url_path):
        page.run()
    if os.environ.get("EMACORE_EXAMPLE") != "0":
        from emacore.widgets.jobs import begin_example  # after the page, which need not wait for it

        begin_example()
    settle()


# A worker process that the server spawns reads this file again, and has no page to show.
if __name__ == "__main__":
    main()
