"""Your checkpoints: what is stored, what merges of it come to, and what an average in it really did."""

import streamlit as st

from emacore.averaging.code import merge_to_code, to_code
from emacore.experiments.opened import example, merge_command
from emacore.widgets.opened import (
    FIRST,
    NOW,
    OPENED,
    chosen_fit,
    chosen_merges,
    chosen_opened,
    chosen_series,
    distances_between,
    expected_of,
    plans_of,
    show_certificate,
    show_certificates,
    show_command,
    show_contents,
    show_diagnosis,
    show_measurements,
)
from emacore.widgets.opened_merges import show_merges_moving
from emacore.widgets.page import BOUND, beside_controls, reset_button, through_app
from emacore.widgets.schedules import schedule_controls, schedule_defaults

SNIPPET = """from emacore import Snapshots

snapshots = Snapshots(model, "snapshots", every=500, kind="windows")
for batch in batches:
    train_on(batch)
    snapshots.update()"""

through_app()
st.title("Your checkpoints")
found = None
controls, charts = beside_controls(2.3)
with controls:
    found = chosen_opened()
    if found is None:
        kind = st.segmented_control(
            "Stored are",
            ["raw weights", "means of windows"],
            default="raw weights",
            key="stored",
            required=True,
            help="Raw weights are those of one step. The mean of a window is of all steps since the file before: a "
            "merge of such files comes closer to the average over all steps.",
            **BOUND,
        )
        left, right = st.columns(2)
        steps = left.number_input(
            "Steps",
            100,
            1_000_000,
            10_000,
            1000,
            key="stored_steps",
            help="Optimiser steps of the example's run. More of them between as many files are harder to follow for "
            "an average with a short memory.",
            **BOUND,
        )
        files = right.number_input(
            "Files",
            2,
            100,
            20,
            key="stored_files",
            help="Stored evenly over the run. With more of them a merge comes closer to the average over all steps.",
            **BOUND,
        )
        series = example(steps, files, "raw" if kind == "raw weights" else "window")
    else:
        series = chosen_series(found[1])
    fit = chosen_fit(series)
    schedule = schedule_controls(typed=True)
    merges = chosen_merges(to_code(schedule))
    reset_button({**schedule_defaults(), "merges": FIRST, "fit": "default"})
codes = {name: merge_to_code(one) for name, one in merges.items()}
name = "example" if found is None else found[0]
with charts:
    if found is None:
        st.markdown(
            "An average can be made after the training, from what was stored. Nothing of yours is open, so this is an "
            f"example: {len(series.steps)} files of a run of {series.steps[-1]:,} steps. Open your own by "
            "`emacore app --open FOLDER`: files of safetensors or torch.save, Lightning, Transformers, timm, "
            "diffusers, or a recording."
        )
    of = f"{name}-{'' if found is None else found[1].identity}-{series.steps}"
    plans, growths = plans_of(of, series, codes, fit)
    if NOW in plans:
        finish = show_merges_moving(of, name, series, schedule, plans, growths, fit)
        show_certificate(plans[NOW])
if plans:
    expected = None
    if found is not None and series.kind == "raw" and (apart := distances_between(name, found[1], series)) is not None:
        expected = expected_of(of, series.name, [codes[key] for key in plans], fit, series, apart)
    show_certificates(name, plans, codes, expected)
if found is None:
    st.header("Leave such files")
    st.code(SNIPPET, language="python")
    st.caption("Then `emacore checkpoints snapshots` lists them, and the command below merges them, all at once.")
    st.code(merge_command("snapshots", [codes[key] for key in plans], None, fit), language="bash")
else:
    st.header("The same as a command")
    show_command(name, found[1], series, [codes[key] for key in plans], fit)
    st.header("What is in it")
    show_contents(*found)
    st.header("Measured")
    show_measurements(name, found[1], series, plans)
    st.page_link(
        "pages/what_if.py",
        label="Replay it under any schedule: What if",
        icon=":material/arrow_forward:",
        query_params={"replayed": f"{OPENED}{name}"},
    )
    st.page_link(
        "pages/for_my_run.py",
        label=f"Settings for a run of its {series.calls:,} steps: For my run",
        icon=":material/directions_run:",
        query_params={"run_length": "Steps", "run_steps": str(series.calls)},
    )
    st.header("What did its average really do?")
    show_diagnosis(name, found[1], codes[NOW])
if NOW in plans:
    finish()
