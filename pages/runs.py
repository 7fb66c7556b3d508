"""Runs: all that was trained, found, named, compared, taken home and deleted."""

import streamlit as st

from emacore.formatting import counted
from emacore.widgets.jobs import follow_states, listed, show_damaged, show_problem, shown
from emacore.widgets.page import through_app
from emacore.widgets.stored_jobs import actions, budgets, compare, found_jobs, picked_jobs

SECONDS_BETWEEN_LOOKS = 2.0

through_app()
st.title("Runs")
st.markdown(
    "All runs, studies and sweeps of this store. Tick rows to lay their curves over each other, to see what their "
    "settings differ in, to name, download or delete them."
)
table = listed("jobs")
show_problem()
show_damaged()
if table.empty:
    st.info("Nothing has been trained yet.", icon=":material/model_training:")
    st.page_link("pages/train.py", label="Train the article's run", icon=":material/play_arrow:")
    st.stop()
jobs = shown(table)
found = found_jobs(jobs)
if found.empty:
    whose = f"None of the {len(jobs):,} jobs is" if len(jobs) > 1 else "The one job is not"
    st.info(f"{whose} like that: take a filter away.", icon=":material/filter_alt_off:")
else:
    st.caption(f"{len(found)} of {counted(len(jobs), 'job')}." if len(found) < len(jobs) else counted(len(jobs), "job"))
    picked = picked_jobs(found)
    actions(found, picked)
    if len(picked):
        compare(picked)
budgets(table)
follow_states(table, SECONDS_BETWEEN_LOOKS)
