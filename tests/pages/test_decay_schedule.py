import numpy as np
import pytest

from emacore.averaging.code import from_code
from emacore.averaging.filters import half_lives
from emacore.averaging.schedules import FAMILIES
from emacore.widgets.schedules import family_names, schedule_defaults, state_of
from tests.pages.conftest import drag, drawn, frames, run, texts

LABELS = family_names()


def test_the_articles_settings_say_that_beta_never_acts(open_page):
    app = open_page("decay_schedule")
    assert "beta = 0.999 is never reached in this run: the decay ends at 0.99653" in texts(app)
    reached = app.dataframe[1].value.set_index("decay")
    assert reached.loc["0.99", "first step"] == 1099
    assert reached.loc["beta = 0.999", "in this run"] == "no, too short"


@pytest.mark.parametrize("label", LABELS)
def test_every_family_shows(open_page, label):
    app = open_page("decay_schedule", family=label)
    assert app.get_by_key("family").value == label
    assert len(app.dataframe[0].value) == 1
    assert next(tab.label for tab in app.tabs) == "emacore"
    courses = {family.label: family.course for family in FAMILIES.values()}
    assert [name for name, course in courses.items() if f"*{name}* {course}" in app.markdown[0].value] == [label]


def test_a_slider_changes_the_figures(open_page):
    app = open_page("decay_schedule")
    before = app.metric[0].value
    app.get_by_key("power").set_value(0.9)
    assert run(app).metric[0].value != before
    assert "power=0.9" in app.code[-1].value or any("power=0.9" in code.value for code in app.code)


def test_letting_go_of_a_handle_changes_words_figures_and_link(open_page, all_marks):
    app = open_page("decay_schedule", steps="500", pins=["Constant(beta=0.9)"])
    before, age = app.get("vega_lite_chart")[0].proto, app.metric[0].value
    drag(app, power=39)
    value = app.get_by_key("power").value
    assert value != pytest.approx(2 / 3)
    assert app.metric[0].value != age
    assert f"power={value:.12g}" in app.code[-1].value or any(f"power={value:.12g}" in c.value for c in app.code)
    # Its own frames stay, and those of the others are of the new value.
    after = app.get("vega_lite_chart")[0].proto
    assert after.spec == before.spec
    table = frames(app)["frames0_0"]
    marks = [column for column in table if column.startswith("one_minus_decay_2_")]
    rows = table[table["step"] > 102]
    for column in marks[:: len(marks) // 4]:
        cap = 1 - float(rows[column].min())
        rule = 1 - np.minimum(1 - (rows["step"] - 1 - 100 + 1.0) ** -value, cap)
        np.testing.assert_allclose(rows[column], rule, rtol=1e-9)
    drag(app, at=10)
    assert app.get_by_key("at").value == 20
    assert "The average after step **100**" in texts(app)


@pytest.mark.parametrize("steps", ["2", "3", "50000"])
def test_frames_are_small(open_page, all_marks, steps):
    app = open_page("decay_schedule", steps=steps, pins=LONG[:2])
    data = [data.data.data for chart in app.get("vega_lite_chart") for data in chart.proto.datasets]
    assert sum(map(len, data)) < 3_000_000


def test_it_leads_to_settings_for_a_run(open_page):
    links = open_page("decay_schedule").get("page_link")
    assert [link.proto.page for link in links] == ["for_my_run"]


def test_rare_settings_are_folded_until_they_matter(open_page):
    app = open_page("decay_schedule")
    more = next(block for block in app.get("expander") if block.label == "More settings")
    assert not more.proto.expanded
    assert "drag_min_value" not in app.get("vega_lite_chart")[0].proto.selection_mode
    app = open_page("decay_schedule", min_value="0.5")
    assert next(block for block in app.get("expander") if block.label == "More settings").proto.expanded
    assert "drag_min_value" in app.get("vega_lite_chart")[0].proto.selection_mode
    drag(app, min_value=0)
    assert app.get_by_key("min_value").value == 0


def test_pins_are_in_the_link_and_limited(open_page):
    app = open_page("decay_schedule", pins=["Constant(beta=0.99)", "nonsense", "PowerFunction(sigma_rel=0.1)"])
    assert app.dataframe[0].value["curve"].tolist()[1:] == ["Constant(beta=0.99)", "PowerFunction(sigma_rel=0.1)"]
    assert "Left out: not a schedule or window: 'nonsense'" in texts(app)
    pin = next(button for button in app.button if button.label == "Pin this curve")
    for power in (0.5, 0.6, 0.7):
        app.get_by_key("power").set_value(power)
        pin = next(button for button in run(app).button if button.label == "Pin this curve")
        if not pin.disabled:
            pin.click()
        run(app)
    assert len(app.get_by_key("pins").value) == 5
    assert next(button for button in app.button if button.label == "Pin this curve").disabled


def test_windows_are_shown_by_their_weights(open_page):
    windows = ["Window(size=100)", "Window(size=100, schedule=Constant(beta=0.9))"]
    app = open_page("decay_schedule", pins=[*windows, "Constant(beta=0.99)"])
    assert not app.warning
    assert app.dataframe[0].value["curve"].tolist()[1:] == [*windows, "Constant(beta=0.99)"]
    figures = app.dataframe[0].value.set_index("curve")
    assert figures.loc[windows[0], "mean age (steps)"] == pytest.approx(49.5)
    assert figures.loc[windows[0], "effective count (snapshots)"] == pytest.approx(100)
    ages, shares = np.arange(100), 0.1 * 0.9 ** np.arange(100)
    shares[-1] = 0.9**99
    assert figures.loc[windows[1], "mean age (steps)"] == pytest.approx(ages @ shares)
    decays, weighed = drawn(app)
    assert set(decays["curve"]) == {"now", "Constant(beta=0.99)"}
    assert set(weighed["curve"]) == {"now", *windows, "Constant(beta=0.99)"}
    own = weighed[weighed["curve"] == windows[0]].set_index("step")["weight"]
    assert own[own > 0.005].index.min() == 4900
    assert own.max() == pytest.approx(0.01)
    for window in windows:
        assert f"`{window}` has no decay" in texts(app)


def test_run_length_in_epochs(open_page):
    app = open_page("decay_schedule", length="Epochs", rows="1000", batch="64", epochs="3")
    assert "16 steps an epoch, 48 in all" in texts(app)
    assert "warm-up is longer than the run" in texts(app)
    app = open_page("decay_schedule", length="Epochs", rows="10", batch="64")
    assert "A batch of 64 is larger than the 10 rows" in app.error[0].value
    app = open_page("decay_schedule", length="Epochs", rows="1000000", batch="1", epochs="100")
    assert "100,000,000 steps" in app.error[0].value
    app = open_page("decay_schedule", length="Epochs", rows="1", batch="1", epochs="1")
    assert "a run of 1 step; this page shows 2 to" in app.error[0].value


def test_the_smallest_and_the_longest_run(open_page):
    assert "only step 0 is looked at" in texts(open_page("decay_schedule", steps="2", update_every="10"))
    app = open_page("decay_schedule", steps="1000000", quantity="memory", x="log", w="log")
    assert app.dataframe[1].value.set_index("decay").loc["0.999", "in this run"] == "yes"


LONG = ["InversePower(beta=0.999, update_every=1)", "Constant(update_after_step=100)", "BiasCorrected(beta=0.999999)"]


@pytest.mark.parametrize("steps", [5_000, 400_000])
def test_a_long_run_is_drawn_as_it_is_between_its_points_too(open_page, steps):
    app = open_page("decay_schedule", steps=str(steps), quantity="1 - decay", x="log", pins=LONG)
    table = drawn(app)[0]
    for code in LONG:
        line = table[table["curve"] == code]
        truth = 1 - from_code(code).decays(steps)
        between = np.interp(np.log(np.arange(steps) + 1), np.log(line["step"]), np.log(line["one_minus_decay"]))
        assert np.abs(between - np.log(truth)).max() < 0.005 * -np.log(table["one_minus_decay"].min()), code
    cliff = table[table["curve"] == "Constant(update_after_step=100)"].set_index("step")["one_minus_decay"]
    assert cliff[101] == 1  # the copy at step 100, counted from 1
    assert cliff[102] == pytest.approx(0.001)


def test_what_a_log_axis_cannot_show_is_told(open_page):
    pins = ["Constant(beta=1.0)", "Constant(update_after_step=9)"]
    app = open_page("decay_schedule", quantity="memory", pins=pins)
    assert drawn(app)[0]["curve"].unique().tolist() == ["now", pins[1]]
    told = next(caption.value for caption in app.caption if "Not drawn" in caption.value)
    assert "102 of 5,000 values of now (0)" in told
    assert "5,000 of 5,000 values of Constant(beta=1.0) (infinite, 0)" in told
    assert "10 of 5,000 values of Constant(update_after_step=9) (0)" in told
    assert "Not drawn" not in texts(open_page("decay_schedule", quantity="decay", pins=pins))


def test_memory_is_the_half_life_of_each_decay(open_page):
    line = drawn(open_page("decay_schedule", quantity="memory", x="linear", family="Inverse power", update_every="10"))[
        0
    ]
    schedule = from_code("InversePower(beta=0.999, update_every=10)")
    expected = 10 * half_lives(schedule.at(line["step"]))
    np.testing.assert_allclose(line["half_life_steps"], expected)


def test_with_beta_0_nothing_is_left_of_the_start(open_page):
    app = open_page("decay_schedule", family="Constant", pins=["Constant(beta=0)", "Constant(beta=0.9999)"])
    figures = next(d.value for d in app.dataframe if "share of the start" in d.value).set_index("curve")
    assert figures.loc["Constant(beta=0)", "share of the start"] == 0
    assert figures.loc["Constant(beta=0.9999)", "share of the start"] == pytest.approx(0.9999**4999)


def test_a_power_of_1_is_told_with_what_it_takes(open_page):
    told = open_page("decay_schedule").get_by_key("power").help
    assert "With inv_gamma 1 and update_every 1, power 1 is the plain mean" in told


def test_a_width_says_what_it_is_a_share_of(open_page):
    settings = {"family": "Power function", "width": "0.1", "update_after_step": "4000"}
    app = open_page("decay_schedule", **settings)
    shown = next(metric for metric in app.metric if metric.label.startswith("Width"))
    assert (shown.label, float(shown.value)) == ("Width (% of the run)", pytest.approx(2, rel=0.01))
    assert "2 % of this run wide, not 10 %" in texts(app)
    assert "share of the steps since update_after_step" in app.get_by_key("width").help
    app = open_page("decay_schedule", at="90", **settings)
    shown = next(metric for metric in app.metric if metric.label.startswith("Width"))
    assert (shown.label, float(shown.value)) == (
        "Width (% of the steps so far)",
        pytest.approx(10 * 499 / 4499, rel=0.01),
    )


def test_reset(open_page):
    app = open_page("decay_schedule", power="1.5", beta="0.5", steps="77")
    next(button for button in app.button if button.label == "Reset").click()
    run(app)
    assert app.get_by_key("steps").value == 5000
    assert app.get_by_key("power").value == schedule_defaults()["power"]


def test_garbage_in_the_link_falls_back(open_page):
    app = open_page(
        "decay_schedule", power="NaN", beta="2", inv_gamma="-1", update_every="0", steps="1e99", at="x", family="?"
    )
    assert app.get_by_key("power").value == schedule_defaults()["power"]
    assert app.get_by_key("beta").value == 0.999
    assert app.get_by_key("update_every").value == 1


def test_every_family_has_a_label_and_its_controls():
    assert set(LABELS.values()) == set(FAMILIES)
    for name, family in FAMILIES.items():
        schedule = family(sigma_rel=0.1) if name == "PowerFunction" else family()
        assert state_of(schedule)["update_every"] == schedule.update_every
    with pytest.raises(ValueError, match="power = 9 is outside"):
        state_of(FAMILIES["InversePower"](power=9.0))


PIN = "Constant(beta=0.9, update_after_step=40, update_every=4)"


def by_hand(num_steps):
    """The decays of PIN."""
    return np.array([1.0 if t % 4 else 0.0 if t <= 40 else 0.9 for t in range(num_steps)])


def weighed(decays):
    return np.array([(1 - decays[s]) * np.prod(decays[s + 1 :]) for s in range(len(decays))])


@pytest.mark.parametrize(
    ("quantity", "column", "of_decay"),
    [
        ("decay", "decay", lambda decay: decay),
        ("1 - decay", "one_minus_decay", lambda decay: 1 - decay),
        ("memory", "half_life_steps", lambda decay: 4 * np.log(2) / -np.log(decay)),
    ],
)
def test_each_quantity_is_drawn_of_each_curve(open_page, quantity, column, of_decay):
    table = drawn(open_page("decay_schedule", steps="400", quantity=quantity, x="linear", pins=[PIN]))[0]
    assert set(table["curve"]) == {"now", PIN}
    line = table[table["curve"] == PIN]
    moves = line[line["step"] > 40]
    assert set(line["step"] % 4) == {0}
    np.testing.assert_allclose(moves[column], of_decay(0.9))
    own = table[(table["curve"] == "now") & (table["step"] > 101)]
    if quantity != "memory":
        rule = 1 - (own["step"] - 99.0) ** (-2 / 3)  # 1 + e, with e = step - 100
        np.testing.assert_allclose(own[column], of_decay(rule))


@pytest.mark.parametrize("percent", [100, 50])
def test_weights_and_figures_are_those_of_the_step(open_page, percent):
    app = open_page("decay_schedule", steps="401", at=str(percent), pins=[PIN])
    step = 4 * percent
    shares = weighed(by_hand(step + 1))
    table = drawn(app)[1]
    line = table[table["curve"] == PIN].set_index("step")["weight"]
    np.testing.assert_allclose(line, shares[line.index], atol=1e-12)
    ages = step - np.arange(step + 1)
    figures = app.dataframe[0].value.set_index("curve").loc[PIN]
    mean = shares @ ages
    assert figures["mean age (steps)"] == pytest.approx(mean)
    assert figures["effective count (snapshots)"] == pytest.approx(1 / (shares @ shares))
    width = np.sqrt(shares @ (ages - mean) ** 2) / (step + 1)
    assert figures["relative width (share of the steps so far)"] == pytest.approx(width)
    assert figures["share of the start"] == pytest.approx(0.9 ** (step // 4 - 10))
    own = app.dataframe[0].value.iloc[0]
    shown = {metric.label.split(" (")[0]: float(metric.value.replace(",", "")) for metric in app.metric}
    assert shown["Mean age"] == pytest.approx(own["mean age (steps)"], rel=1e-3)
    assert shown["Counts as"] == pytest.approx(own["effective count (snapshots)"], rel=1e-3)
    assert shown["Width"] == pytest.approx(100 * own["relative width (share of the steps so far)"], rel=1e-2)
    assert shown["Start still in it"] == pytest.approx(100 * own["share of the start"], rel=0.05)


def test_the_table_of_decays_that_are_reached(open_page):
    table = (
        open_page("decay_schedule", family="Exponential ramp", tau="100", beta="0.995", steps="1000").dataframe[1].value
    )
    assert table["decay"].tolist() == ["0.9", "0.99", "0.999", "0.9999", "beta = 0.995"]
    moves = [-100 * np.log(1 - level / 0.995) for level in (0.9, 0.99)]  # n counts from 1 at step 100
    assert table["first step"].tolist()[:2] == [int(np.ceil(n)) + 99 for n in moves]
    assert table["first step"].isna().tolist() == [False, False, True, True, True]
    assert table["in this run"].tolist() == ["yes", "yes", *["never, by this rule"] * 3]
    np.testing.assert_allclose(
        table["half-life there (moves)"], [half_lives(x) for x in (0.9, 0.99, 0.999, 0.9999, 0.995)]
    )
    app = open_page("decay_schedule", family="Running mean")
    assert "This family has no beta" in texts(app)
    assert len(app.dataframe[1].value) == 4


def test_no_name_of_a_setting_is_broken_over_half_a_column(open_page):
    app = open_page("decay_schedule")
    halves = [box.label for column in app.columns if column.weight == 0.5 for box in column.number_input]
    assert {"power", "beta", "update_every"} <= set(halves)
    assert max(len(word) for label in halves for word in label.split()) <= 14
    assert "update_after_step" in [box.label for box in app.number_input]
