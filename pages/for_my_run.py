"""For my run: one says what is trained and for how long; out come settings, what they weigh, and code."""

import pandas as pd
import streamlit as st

from emacore.averaging import parts
from emacore.averaging.advice import PUBLISHED, advise, rescaling_remarks, settings_table, warnings
from emacore.averaging.code import scheme_from_code, to_code
from emacore.charts.lines import lines
from emacore.charts.style import AVERAGED, palette
from emacore.formatting import counted
from emacore.widgets.my_run import (
    RUN_DEFAULTS,
    carried_over,
    measured,
    published_table,
    run_controls,
    run_in_words,
    show_code,
    show_decays,
    show_remarks,
    show_settings,
)
from emacore.widgets.page import csv_button, picture_above, reset_button, show_chart, show_table, through_app
from emacore.widgets.solving import own_memory


@st.cache_data(max_entries=64, show_spinner=False)
def parts_of(codes: dict[str, str], num_steps: int) -> pd.DataFrame:
    schemes = {name: scheme_from_code(code) for name, code in codes.items()}
    return pd.DataFrame(parts.part_table(schemes, num_steps))


through_app()
st.title("For my run")
st.markdown("Say what you train and for how long; settings with round numbers come out, with where each comes from.")
with picture_above("run"):
    run = run_controls()
    advice = advise(run, measured())
    answer, picture = st.columns([1.15, 1], gap="medium")
    run, settings, batch = carried_over(run, advice.settings)

    with answer:
        st.caption(f"For a run of {run_in_words(run)}:")
        with st.container(gap="xsmall"):
            show_settings(run, settings)
        csv_button(pd.DataFrame(settings_table(run, settings)), "settings")
    with picture:
        names = [setting.name for setting in settings]
        table = parts_of({setting.name: to_code(setting.schedule) for setting in settings}, run.steps)
        zoomed = table["run_percent"].min() > 99
        size = float((table["to_step"] - table["from_step"]).max())
        show_chart(
            lines(
                table,
                x="steps_to_end" if zoomed else "run_percent",
                y="weight_percent",
                series="series",
                colours=palette(names, {names[0]: AVERAGED}),
                x_title="steps to the end of the run" if zoomed else "part of the run (%)",
                y_title=f"weight (%) per {counted(size, 'step', digits=3)}",
                height=250,
            ),
            alt_text=f"What each part of a run of {counted(run.steps, 'step')} weighs in the final average, for "
            f"{', '.join(names)}",
            table=table,
            name="parts",
        )
        st.caption("Further to the left: older weights, calmer and later. A peak at the right follows the run closely.")

show_remarks(rescaling_remarks(advice.settings, batch), warn=False)
show_remarks(warnings(run, settings), warn=True)
show_code(run, settings)
show_decays(run, settings)

st.header("What to expect, and what nobody knows")
show_remarks(advice.expected, warn=False)
for sentence in advice.unknown:
    st.markdown(f":material/help: {sentence}")
with st.container(horizontal=True):
    st.page_link("pages/what_if.py", label="What if: another average of a recorded run", icon=":material/alt_route:")
    st.page_link("pages/evidence.py", label="Evidence: does it help, over many seeds?", icon=":material/query_stats:")
with st.expander("A memory of my own choice, of any family", key="own", bind="query-params") as own:
    if own.open:
        own_memory(run)
with st.expander(
    f"The {len(PUBLISHED)} widths that EDM2's authors chose, by model, metric and classifier-free guidance"
):
    show_table(published_table(PUBLISHED), name="published_widths")
reset_button(RUN_DEFAULTS)
