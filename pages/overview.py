"""Overview: SGD circling a minimum, its average, and what the formulas say of both."""

import streamlit as st

from emacore.averaging.filters import half_life
from emacore.averaging.views import change_in_words
from emacore.formatting import bounded, counted, number
from emacore.memory import uncollected
from emacore.widgets.overview import (
    CURVATURES,
    DEFAULTS,
    DRAWN,
    RUNS,
    circling_controls,
    losses_of,
    path_of,
    what_a_decay_leaves,
)
from emacore.widgets.page import BOUND, csv_button, number_text, query_of, reset_button, show_table, through_app
from emacore.widgets.schedules import schedule_defaults


def replay() -> None:
    st.session_state["replays"] = st.session_state.get("replays", 0) + 1


def short(loss: float) -> str:
    return bounded(loss, 3).replace("less than", "<")  # a metric is cut where it is longer


through_app()
st.title("What does averaging do to your weights?")
st.markdown(
    "Near a minimum, SGD does not settle: the noise of its batches keeps it :orange[**circling**]. An "
    ":blue[**exponential moving average**] of its weights is calmer, and later: closer to the minimum if its decay "
    "fits the length of the run, still on its way if it is too large. Move the handles."
)
picture, numbers = st.columns([1.7, 1], gap="medium")
with numbers:
    st.markdown("`average = decay * average + (1 - decay) * weights`")
    learning_rate, noise, beta = circling_controls()
    st.caption(f"It forgets half in {counted(half_life(beta), 'step', digits=3)}.")
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button("Play again", on_click=replay, icon=":material/replay:")
        reset_button(DEFAULTS)
        plays = st.toggle("Play", True, key="play", help="Off: show the whole path at once.", **BOUND)

path, found = path_of(learning_rate, noise, beta), losses_of(learning_rate, noise, beta)
last, now, best = found.at(0.0), found.at(beta), found.lowest
expected = found.expected.total
with numbers:
    st.header(change_in_words(expected[last], expected[now]))
    one, two = st.columns(2)
    one.metric(
        "SGD's last step", short(expected[last]), help="Expected loss of the last weights: the mean over all noise."
    )
    two.metric(
        "Its average",
        short(expected[now]),
        help=f"Expected loss of this path's average, with decay {number_text(beta)}, after the same {DRAWN - 1} steps.",
    )
with picture, uncollected():  # what draws takes a second to load; all above is seen meanwhile
    import pandas as pd

    from emacore.widgets.circling import compared, show_circling
with picture:
    finish = show_circling(learning_rate, noise, beta, plays=plays, again=st.session_state.get("replays", 0))
    with st.container(horizontal=True):
        csv_button(pd.DataFrame(path.table()), "paths")
        csv_button(pd.DataFrame(found.table()), "loss_by_decay")
    st.caption(
        "Above, a unit is as long across as it is up; grey: lines of equal loss around the minimum. "
        f"Below: {what_a_decay_leaves(noise)} Dots are simulated. "
        f"Lowest of these: {bounded(expected[best], 3)}, at decay {number(found.decays[best], 6)}."
    )

agrees = all(found.agrees(decay) for decay in (0.0, beta))
st.header("Formula and simulation agree" if agrees else "Formula and simulation do not agree")
show_table(compared(learning_rate, noise, beta), name="loss")
st.caption(
    f"Expected: exact for these {DRAWN - 1} steps from this start. Each direction of SGD is AR(1) noise with "
    "coefficient 1 - learning rate x curvature, added to the path that it would take without noise; the average "
    "weighs both. "
    f"Simulated: the mean of {RUNS:,} runs of the same steps from the same start, curvatures {CURVATURES[0]:g} and "
    f"{CURVATURES[1]:g}. The path drawn is one such run, and can have more loss or less. "
    "After endless steps only noise is left, and the calmest average is best; a run with an end has a best decay."
)
st.markdown(
    "**Look for:** a larger decay makes the blue path calmer *and later*: it needs longer to come in from the start. A "
    "small learning rate does the same to the orange path itself."
)


@st.cache_data(max_entries=1, show_spinner=False)
def evidence() -> str:
    """The sentences that the shipped study bears out, and what made it, in Markdown."""
    from emacore.experiments.article_study import shipped_words

    sentences, made = shipped_words()
    told = "\n".join(f"- {sentence}" for sentence in sentences)
    return f"{told}\n\nMade by `{made.partition(',')[0]}`,{made.partition(',')[2]}."


st.divider()
st.header("Three questions")
for column, (question, text, page, label, changes) in zip(
    st.columns(3),
    [
        (
            "What is it?",
            "A low-pass filter: noise goes, slow changes stay, and everything comes a little later. Its cut-off "
            "frequency, delay and noise reduction are formulas.",
            "pages/low_pass_filter.py",
            "See the filter at work",
            {"signal": "step", "noise": "white", "f_decay": 0.98},
        ),
        (
            "What do I set?",
            "A decay that fits the length of your run, and a warm-up. See what each past step weighs, and which "
            "settings never act.",
            "pages/decay_schedule.py",
            "Bend a schedule",
            schedule_defaults(),
        ),
        (
            "Does it help me?",
            "One run is one draw, and it depends on how one asks: at the end of a run whose stop looks at the average, "
            "at a fixed length, or each curve by its own rule. Below, the article's experiment is asked in these ways.",
            "pages/evidence.py",
            "Ask your own seeds",
            {},
        ),
    ],
    strict=True,
):
    with column, st.container(border=True):
        st.markdown(f"**{question}** {text}")
        st.page_link(page, label=label, query_params=query_of(changes))

st.header("The article's experiment, over 32 seeds")
st.markdown(evidence())
finish()
