"""Your checkpoints, and what was opened on the page What if."""

import json

import numpy as np
import pytest
import torch
from streamlit.dataframe_util import convert_arrow_bytes_to_pandas_df

from emacore import Constant, PowerFunction
from emacore.averaging.code import merge_from_code
from emacore.averaging.coefficients import certificate, merged_profile
from emacore.averaging.expected import expected_distances
from emacore.averaging.held import held, squared_distances
from emacore.averaging.planned import PROMISE, planned, planned_in_words
from emacore.averaging.weights import weights
from emacore.experiments.opened import example, opened
from emacore.experiments.store import RunStore
from emacore.replay.measure import Metric
from emacore.widgets.opened import MOST_MERGES, SUGGESTED
from tests.experiments.opened_folders import stored_rows
from tests.pages.conftest import BUTTONS, answered, drag, drawn, enter_recorded, frames, run, texts, worked


def table_with(app, *columns):
    return next(one.value for one in app.dataframe if set(columns) <= set(one.value.columns))


def test_without_anything_opened_there_is_an_example(open_page):
    app = open_page("your_checkpoints", stored="means of windows", stored_files="10", stored_steps="2000", beta="0.99")
    series = example(2000, 10, "window")
    coefficients, growth = drawn(app)
    for name in coefficients["merge"].unique() if "merge" in coefficients else coefficients["line"].unique():
        code = name if name != "now" else "InversePower(beta=0.99, update_every=1)"
        found = planned(merge_from_code(code), series.profiles, series.calls)
        shown = coefficients[coefficients["line"] == name]
        np.testing.assert_allclose(shown.sort_values("step")["coefficient"], found.coefficients)
        if name == "now":
            assert planned_in_words(found) in texts(app)
    assert growth["weight"].max() == pytest.approx(1)
    assert PROMISE in texts(app)
    assert "Nothing of yours is open, so this is an example: 10 files of a run of 2,000 steps." in texts(app)
    assert any("Snapshots" in block.value for block in app.code)
    assert "`emacore checkpoints snapshots` lists them" in texts(app)


def test_as_many_merges_as_can_be_chosen_look_different(open_page):
    app = open_page("your_checkpoints", stored_steps="1000", merges=list(SUGGESTED[:MOST_MERGES]))
    above = json.loads(app.get("vega_lite_chart")[0].proto.spec)["vconcat"][0]["layer"][0]["encoding"]
    for channel in ("color", "strokeDash"):
        scale = above[channel]["scale"]
        assert len(scale["domain"]) == len({str(look) for look in scale["range"]}) == MOST_MERGES + 1


def test_names_at_the_ends_of_curves_stand_apart_on_the_axis_that_is_drawn(open_page):
    app = open_page("your_checkpoints", stored_files="20", stored_steps="2000")
    chart = app.get("vega_lite_chart")[0].proto
    tables = {one.name: convert_arrow_bytes_to_pandas_df(one.data.data) for one in chart.datasets}
    ends, names = tables["ends0"].iloc[0], tables["rows0_2"]
    assert len(names) == 4
    gaps = np.diff(np.sort(names["y"])) / (ends["y_1"] - ends["y_0"])
    assert (gaps * 170 > 14.9).all()  # pixels of a line of text, in a plot of 170


def test_merges_and_certificates_follow_the_handle(open_page):
    app = open_page(
        "your_checkpoints", stored="means of windows", stored_files="8", stored_steps="800", family="Constant"
    )
    series = example(800, 8, "window")
    found = frames(app)
    text = next(one for one in found.values() if "x" in one)
    coefficients = next(one for one in found.values() if "line" in one)
    growth = next(one for one in found.values() if set(one.get("curve", ())) == {"these files"})
    columns = [name for name in text if name.startswith("reached_0_")]
    assert len(columns) > 5
    last = []
    for name in columns:
        mark = name.removeprefix("reached_0_")
        factors = coefficients[f"coefficient_0_{mark}"].to_numpy()
        one = certificate(np.full(800, 1 / 800), series.profiles, factors)
        assert text[name].item() == pytest.approx(one.reached)
        weights = np.cumsum(merged_profile(800, series.profiles, factors))
        shown = np.interp(np.arange(800) + series.shift, growth["step"], growth[f"weight_0_{mark}"])
        np.testing.assert_allclose(shown, weights, atol=0.005 * 1.05)
        last.append(one.reached)
    assert max(last) > 2 * min(last)
    drag(app, beta=int(columns[3].rpartition("_")[2]))
    run(app)
    shown = table_with(app, "reached", "amplification")
    assert shown["reached"][0] == pytest.approx(text[columns[3]].item())


def test_what_was_opened_is_chosen_by_its_name_and_shown_without_its_path(open_page, of_mine, folder):
    app = open_page("your_checkpoints", opened="/etc")
    assert "Not taken from the link" in texts(app)
    assert app.selectbox(key="opened").options == ["tiny"]
    stored = table_with(app, "step_from", "dtypes")
    assert sorted(set(stored["step"])) == [10, 20, 30, 40, 50, 60]
    assert set(stored["section"]) == {"model", "ema"}
    command = next(block.value for block in app.code if "emacore merge" in block.value)
    assert "emacore merge tiny" in command
    shown = "\n".join([texts(app), *(block.value for block in app.code), *(str(one.value) for one in app.dataframe)])
    assert str(folder.parent) not in shown
    assert "Nothing says how these networks are measured" in shown
    assert "this is an example" not in shown


def test_several_merges_are_shown_side_by_side_as_they_would_be_made(open_page, of_mine):
    codes = ["Window(files=2)", "Coefficients(-0.5, 1.5)", "nonsense", "Coefficients(1, 1, 1, 1, 1, 1, 1)"]
    app = open_page("your_checkpoints", merges=codes, fit="free", beta="0.9")
    certificates = table_with(app, "reached", "amplification").set_index("merge")
    series = of_mine.series["model"]
    for code in codes[:2]:
        found = planned(merge_from_code(code), series.profiles, series.calls, "free")
        assert certificates.loc[code, "reached"] == pytest.approx(found.certificate.reached)
        assert certificates.loc[code, "amplification"] == pytest.approx(found.certificate.amplification)
    told = texts(app)
    assert "Left out" in told
    assert "7 coefficients for 6 files" in told
    assert "--fit free" in next(block.value for block in app.code if "emacore merge" in block.value)


def test_the_distance_to_be_expected_of_raw_files_is_beside_the_certificates(open_page, of_mine, folder, home):
    codes = ["PowerFunction(sigma_rel=0.2)", "Coefficients(-0.5, 1.5)"]
    app = worked(open_page("your_checkpoints", merges=codes, beta="0.9"), home)
    found = table_with(app, "expected", "reached").set_index("merge")["expected"]
    series = of_mine.series["model"]
    one = planned(merge_from_code(codes[0]), series.profiles, series.calls)
    squared = squared_distances(stored_rows(folder).astype(np.float64))
    assert found[codes[0]] == pytest.approx(
        expected_distances([one.target], series.profiles, one.coefficients[None], squared)[0]
    )
    assert np.isnan(found[codes[1]])


def test_files_that_cannot_be_read_end_the_page_with_a_sentence(open_page, of_mine, tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "step_1.pt").write_bytes(b"PK\x03\x04 not whole")
    monkeypatch.setenv("EMACORE_OPEN", str(tmp_path / "broken"))
    app = open_page("your_checkpoints")
    assert "broken cannot be read" in app.error[0].value
    assert str(tmp_path) not in texts(app)


def test_a_recording_is_looked_at_too(open_page, of_mine, home, monkeypatch):
    recording = RunStore(home).recording(enter_recorded(home))
    monkeypatch.setenv("EMACORE_OPEN", str(recording))
    app = open_page("your_checkpoints")
    assert "A recording of" in texts(app)
    assert not any("emacore merge" in block.value for block in app.code)
    assert [one for one in app.button if one.label == "Measure these merges"]


def test_merges_are_measured_by_a_worker_and_kept(open_page, of_mine, evaluated, folder, home):
    codes = ["Window(files=2)", "Coefficients(-0.5, 1.5)"]
    app = open_page("your_checkpoints", merges=codes)
    answered(app, home, "Measure these merges")
    rows = stored_rows(folder).astype(np.float64)
    losses = table_with(app, "merge", "loss").set_index("merge")["loss"]
    expected = {"the last file": rows[-1], codes[0]: rows[-2:].mean(axis=0), codes[1]: 1.5 * rows[-1] - 0.5 * rows[-2]}
    for name, numbers in expected.items():
        assert losses[name] == pytest.approx((numbers**2).sum(), rel=1e-5)
    assert "flatters itself" in texts(app)
    again = open_page("your_checkpoints", merges=codes)
    assert table_with(again, "merge", "loss").equals(table_with(app, "merge", "loss"))


def test_a_measurement_shows_how_far_it_is_and_can_be_stopped(open_page, of_mine, evaluated, home):
    app = open_page("your_checkpoints")
    next(one for one in app.button if one.label == "Measure these merges").click()
    run(app)
    assert [one.label for one in app.button if one.label == "Stop"]
    next(one for one in app.button if one.label == "Stop").click()
    run(app)
    assert "you stopped it" in texts(app)
    assert RunStore(home).jobs().empty


def test_a_function_that_fails_is_told(open_page, of_mine, evaluated, home, monkeypatch):
    monkeypatch.setenv("EMACORE_EVALUATE", "small_eval:broken")
    app = answered(open_page("your_checkpoints"), home, "Measure these merges")
    assert "the data are not there" in texts(app)
    assert [one for one in app.button if one.label == "Measure these merges"]


def test_the_diagnosis_is_told_and_drawn(open_page, of_mine, home):
    pytest.importorskip("emacore.checkpoints.diagnosis")
    app = answered(open_page("your_checkpoints"), home, "Diagnose")
    assert "Nothing wrong was found" in texts(app)
    decays = drawn(app)[-1]
    between = decays[decays["curve"].isin(["at least", "at most"])].groupby("step")["forgets"]
    assert (between.min() <= 0.1).all()
    assert (between.max() >= 0.1).all()


def test_of_several_averages_the_chosen_one_is_merged_and_diagnosed(open_page, of_mine, home, tmp_path, monkeypatch):
    decays, folder = {"ema_slow": 0.95, "ema_quick": 0.8}, tmp_path / "several"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    value = torch.zeros(400)
    averages = {}
    for step in range(1, 61):
        value = value + 0.1 * torch.randn(400, generator=generator)
        averages = {name: torch.lerp(averages.get(name, value), value, 1 - decay) for name, decay in decays.items()}
        if step % 10 == 0:
            states = {"model": value, **averages}
            torch.save({name: {"w": one} for name, one in states.items()}, folder / f"step_{step}.pt")
    monkeypatch.setenv("EMACORE_OPEN", str(folder))
    gone = {"diagnosed_average": "ema_gone", "fit": "best"}
    app = open_page("your_checkpoints", section="ema_quick", merges=["Window(files=2)"], **gone)
    assert [app.get_by_key(key).value for key in gone] == ["ema_slow", "default"]
    assert app.selectbox(key="section").options == ["model", "ema_slow", "ema_quick"]
    shown = drawn(app)[0]
    own = shown.loc[shown["line"] == "Window(files=2)"].sort_values("step")
    assert own["coefficient"].tolist() == [0, 0, 0, 0, 0.5, 0.5]
    assert "--section ema_quick" in next(block.value for block in app.code if "emacore merge" in block.value)
    app.selectbox(key="diagnosed_average").set_value("ema_quick")
    answered(run(app), home, "Diagnose")
    found = drawn(app)[-1]
    between = found[found["curve"].isin(["at least", "at most"])].groupby("step")["forgets"]
    inside = {name: ((between.min() <= 1 - one) & (between.max() >= 1 - one)).all() for name, one in decays.items()}
    assert inside == {"ema_slow": False, "ema_quick": True}


def test_what_was_opened_is_replayed_like_a_run(open_page, of_mine, evaluated, folder, home):
    app = open_page("what_if", replayed="opened-tiny", family="Constant", beta="0.5")
    answered(app, home, "Measure what is stored")
    worked(app, home)
    curves = drawn(app)[0]
    rows = stored_rows(folder).astype(np.float64)
    own = curves[curves["curve"] == "original"]
    np.testing.assert_allclose(own["loss"], (rows**2).sum(axis=1), rtol=1e-5)
    assert set(curves["curve"]) == {"original", "the run's own EMA", "now"}
    averages = stored_rows(folder, "ema").astype(np.float64)
    np.testing.assert_allclose(
        curves.loc[curves["curve"] == "the run's own EMA", "loss"], (averages**2).sum(axis=1), rtol=1e-5
    )
    assert "In this run the average ends" in texts(app)


def test_a_loss_that_is_one_number_lies_on_the_axis_that_is_drawn(
    open_page, of_mine, evaluated, folder, home, monkeypatch
):
    monkeypatch.setenv("EMACORE_EVALUATE", "small_eval:level")
    app = open_page("what_if", replayed="opened-tiny", family="Constant", beta="0.5")
    answered(app, home, "Measure what is stored")
    worked(app, home)
    assert set(drawn(app)[0]["loss"]) == {5.0}
    ends = next(
        convert_arrow_bytes_to_pandas_df(data.data.data).iloc[0]
        for data in app.get("vega_lite_chart")[0].proto.datasets
        if data.name == "ends0"
    )
    assert ends["y_0"] < 5 < ends["y_1"]


def moving(app, column):
    return next(one for one in frames(app).values() if any(name.startswith(f"{column}_0_") for name in one))


def test_on_what_if_the_handle_moves_what_needs_no_evaluation_and_asks_for_the_loss(
    open_page, of_mine, evaluated, folder, home
):
    link = {"family": "Constant", "beta": "0.5", "update_after_step": "0", "update_every": "1"}
    app = worked(open_page("what_if", replayed="opened-tiny", **link), home)
    assert [set(one) & {"distance", "weight"} for one in drawn(app)] == [{"distance"}, {"weight"}]
    answered(app, home, "Measure what is stored")
    worked(app, home)
    rows, ends = stored_rows(folder).astype(np.float64), np.arange(9, 60, 10)
    losses, distances, shares = (moving(app, column) for column in ("loss", "distance", "weight"))
    marks = [name.removeprefix("distance_0_") for name in distances if name.startswith("distance_0_")]
    measured = [mark for mark in marks if losses[f"loss_0_{mark}"].iloc[1:].notna().any()]
    assert len(measured) == 1
    assert losses[[f"loss_0_{mark}" for mark in marks]].iloc[0].nunique() == 1
    mark = marks[-2]
    drag(app, beta=int(mark))
    worked(run(app), home)
    beta = app.number_input(key="beta").value
    found = held(Constant(beta), of_mine.series["model"].profiles, squared_distances(rows))
    for table, column, expected in ((distances, "distance", found.distances), (shares, "weight", found.shares)):
        at = np.searchsorted(ends, table["step"])
        np.testing.assert_allclose(table[f"{column}_0_{mark}"], expected[at], rtol=1e-5, atol=1e-7)
    curves = drawn(app)[0]
    loss = curves.loc[curves["curve"] == "now", "loss"].iloc[-1]
    assert loss == pytest.approx(((found.shares @ rows) ** 2).sum(), rel=1e-5)
    again = moving(app, "loss")
    assert [mark for mark in marks if again[f"loss_0_{mark}"].iloc[1:].notna().any()] == [*measured, mark]


def test_without_anything_that_measures_weights_and_distances_follow_all_the_same(open_page, of_mine, home):
    app = worked(open_page("what_if", replayed="opened-tiny", family="Constant", beta="0.5"), home)
    assert "Nothing says how these networks are measured" in texts(app)
    assert [set(one) & {"distance", "weight"} for one in drawn(app)] == [{"distance"}, {"weight"}]
    assert moving(app, "weight") is not None


@pytest.mark.slow
def test_each_view_asks_a_worker_and_shows_its_answer(open_page, of_mine, evaluated, home):
    app = open_page("what_if", replayed="opened-tiny", view="Atlas")
    answered(app, home, "Measure what is stored")
    for view, label in BUTTONS.items():
        app.segmented_control(key="view").set_value(view)
        run(app)
        before = len(drawn(app)) + len(app.dataframe)
        answered(app, home, label)
        assert len(drawn(app)) + len(app.dataframe) > before, view
        assert not [one for one in app.button if one.label == label]


@pytest.mark.parametrize("higher", [False, True])
def test_a_first_metric_of_another_name_and_one_of_which_more_is_better(open_page, of_mine, evaluated, home, higher):
    module = __import__("small_eval")
    distance = module.distance

    def measured(tensors):
        found = distance(tensors)
        return {"accuracy": 1 / found, "error": found}

    error, accuracy = Metric("error", "error"), Metric("accuracy", "accuracy", higher_is_better=True)
    measured.metrics = (accuracy, error) if higher else (error, accuracy)
    module.distance = measured
    app = open_page("what_if", replayed="opened-tiny", view="Atlas", update_after_step="0", beta="0.5")
    answered(app, home, "Measure what is stored")
    worked(app, home)
    if higher:
        assert "More accuracy is better, but sentences and maps here compare losses" in texts(app)
        assert not [words for words in ("lowest", "below the original", "above the original") if words in texts(app)]
        assert not [one for one in app.button if one.label == "Measure this atlas"]
        return
    answered(app, home, "Measure this atlas")
    cells = drawn(app)[-1]
    assert cells["loss"].tolist() == cells["error"].tolist()
    assert cells.loc[cells["best"], "error"].tolist() == [cells["error"].min()]


def test_averages_that_belong_together_are_merged_at_each_step(
    open_page, of_mine, evaluated, home, tmp_path, monkeypatch
):
    generator = torch.Generator().manual_seed(0)
    widths, emas, raw = (0.05, 0.1), [torch.zeros(3), torch.zeros(3)], []
    decays = [PowerFunction(sigma_rel=width).decays(60) for width in widths]
    folder = tmp_path / "pairs"
    folder.mkdir()
    for step in range(60):
        raw.append(torch.randn(3, generator=generator) + step / 60)
        emas = [torch.lerp(ema, raw[-1], 1 - decay[step]) for ema, decay in zip(emas, decays, strict=True)]
        if step % 10 == 9:
            states = [{"w": ema} for ema in emas]
            torch.save({"ema": {"stds": list(widths), "emas": states}}, folder / f"training-state-{step + 1}.pt")
    monkeypatch.setenv("EMACORE_OPEN", str(folder))
    app = open_page(
        "what_if",
        replayed="opened-pairs",
        family="Power function",
        width="0.07",
        update_after_step="0",
        update_every="1",
    )
    assert set(drawn(app)[0]["line"]) == {"now, ema-0.050", "now, ema-0.100"}
    assert "profile error" in str(app.get("vega_lite_chart")[0].proto.spec)
    answered(app, home, "Measure these curves")
    curve = drawn(app)[-1]
    rows = torch.stack(raw).double().numpy()
    schedule = PowerFunction(sigma_rel=0.07)
    expected = [(weights(schedule.decays(step)) @ rows[:step]) for step in range(10, 61, 10)]
    np.testing.assert_allclose(curve["loss"].tail(4), [(one**2).sum() for one in expected][-4:], rtol=0.1)


def test_names_are_offered_beside_runs(open_page, of_mine, home):
    enter_recorded(home)
    app = open_page("what_if")
    labels = app.selectbox(key="pick-replayed").options
    assert labels[-1] == "Your checkpoints: tiny"
    assert list(opened()) == ["tiny"]
    assert app.selectbox(key="pick-replayed").value is None
