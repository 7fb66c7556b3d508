"""A run in, settings and code out: filled in as a person would, and the code that comes out is run."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from emacore.averaging.code import from_code
from emacore.averaging.families import Constant, PowerFunction
from emacore.averaging.parts import memory
from emacore.averaging.weights import relative_width, weights
from emacore.formatting import number, percent
from emacore.widgets.schedules import family_names, state_of
from tests.pages.conftest import drawn, run, texts

STEPS = 400_000


def settings(app):
    """The schedules that are shown, in their order, and what is said of each."""
    told = [line.value for line in app.markdown if " · half-life " in line.value]
    codes = [caption.value.split("`")[1] for caption in app.caption if caption.value.startswith("`")]
    return [from_code(code) for code in codes], told


def test_400_000_steps_of_diffusion_and_code_that_a_loop_can_run(open_page):
    app = open_page("for_my_run")
    app.get_by_key("run_steps").set_value(STEPS)
    app.get_by_key("run_batch").set_value(256)
    app.get_by_key("trained").set_value("diffusion")
    app.get_by_key("library").set_value("ema-pytorch")
    run(app)
    schedules, told = settings(app)
    assert schedules == [PowerFunction(sigma_rel=0.1), PowerFunction(sigma_rel=0.03), Constant(0.9999)]
    assert "half-life 6,931 steps, 1.73 % of the run" in told[2]
    for schedule, code in zip(schedules, app.code, strict=True):
        assert "update_every=1" in code.value
        model, values = nn.Linear(1, 1, bias=False), np.linspace(0, 1, 300)
        names = {"model": model, "batches": range(300)}
        names["train_on"] = lambda batch, model=model, values=values: nn.init.constant_(model.weight, values[batch])
        exec(code.value, names)
        found = names["ema"].ema_model.weight.item()
        expected = weights(schedule.decays(300)) @ values
        assert found == pytest.approx(expected, abs=0.02)
        assert abs(found - 1) > 1e-3
    assert torch.equal(model.weight, torch.ones(1, 1))


def test_the_picture_is_of_the_settings(open_page):
    app = open_page("for_my_run", run_steps="100000")
    schedules, told = settings(app)
    (table,) = drawn(app)
    assert table["series"].nunique() == 3
    name = told[1].split("**")[1]
    own = table[table["series"] == name]
    exact = weights(schedules[1].decays(100_000))
    size = round(np.diff(own["run_percent"])[0] * 1000)  # steps a part
    shares = exact[-size * len(own) :].reshape(len(own), size).sum(axis=1)
    np.testing.assert_allclose(own["weight_percent"], 100 * shares, atol=1e-6)
    assert own["weight_percent"].sum() > 98
    assert own["run_percent"].iloc[-1] == pytest.approx(100 - size / 2000)


def test_a_memory_that_is_short_for_the_run_is_drawn_by_its_last_steps(open_page):
    table = drawn(open_page("for_my_run", run_steps=str(10**8), trained="teacher of a student"))[0]
    assert "run_percent" not in table
    assert -20_000 < table["steps_to_end"].min() < table["steps_to_end"].max() < 0
    last = table[table["series"] == "MoCo's momentum"].iloc[-1]
    assert last["weight_percent"] == pytest.approx(100 * (1 - 0.999 ** (-2 * last["steps_to_end"])))


def test_ten_billion_steps_are_answered(open_page):
    app = open_page("for_my_run", run_steps=str(10**10), own="true", memory="relative width", want_width="5")
    assert len(settings(app)[0]) == 3
    assert 120 < len(drawn(app)[0]) <= 180
    solved = from_code(next(code.value for code in app.code if code.value.startswith("InversePower")))
    assert memory(solved, 10**10).relative_width == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize(("times", "batch", "steps"), [("× 8", 2048, 50_000), ("÷ 4", 64, 1_600_000)])
def test_another_batch_size_is_one_click(open_page, times, batch, steps):
    app = open_page("for_my_run")
    before = settings(app)[0]
    app.get_by_key("times_batch").set_value(times)
    run(app)
    after = settings(app)[0]
    assert after[:2] == before[:2]
    factor = batch / 256
    assert math.log(after[2].beta) == pytest.approx(factor * math.log(before[2].beta), rel=0.06)
    said = texts(app)
    assert "learning rate was chosen for the other batch size" in said
    assert f"batch {batch:,}" in said
    assert f"{steps:,} steps" in said


def test_another_length_is_one_click(open_page):
    app = open_page("for_my_run", times_length="× 4")
    schedules, told = settings(app)
    assert "1.73 % of the run" in told[2]
    assert schedules[2].beta == pytest.approx(1 - 1e-4 / 4, abs=2e-6)
    assert "1,600,000 steps" in texts(app)
    assert "learning rate was chosen" not in texts(app)


@pytest.mark.parametrize(
    ("query", "steps"),
    [
        ({"run_length": "Samples", "run_rows": "1600", "run_batch": "32", "run_epochs": "100"}, "5,000 steps in all"),
        (
            {"run_length": "Tokens", "run_tokens": "1000000", "run_token_batch": "1000", "run_token_epochs": "2"},
            "2,000 steps",
        ),
    ],
)
def test_the_length_may_be_samples_or_tokens(open_page, query, steps):
    app = open_page("for_my_run", **query)
    assert steps in texts(app)
    assert "epochs" in settings(app)[1][0]


def test_epochs_are_told_where_the_data_are_known(open_page):
    assert "epochs" not in settings(open_page("for_my_run"))[1][0]
    told = settings(open_page("for_my_run", run_samples="1024000"))[1]
    assert "1.73 % of the run, 1.73 epochs" in told[2]


def test_what_cannot_be_is_told(open_page):
    app = open_page("for_my_run", run_length="Samples", run_rows="10", run_batch="64")
    assert "A batch of 64 is larger than the 10 samples" in app.error[0].value
    app = open_page("for_my_run", run_length="Samples", run_rows="10000000000", run_batch="1", run_epochs="100")
    assert "10,000,000,000" in app.error[0].value


def test_a_run_that_would_be_too_long_is_told(open_page):
    for query in ({"times_length": "× 2"}, {"times_batch": "÷ 8"}):
        app = open_page("for_my_run", run_steps=str(10**10), **query)
        assert "steps must be a whole number from 2 to 10,000,000,000" in app.warning[0].value
        assert "10,000,000,000 steps in all" in texts(app)
        assert len(settings(app)[0]) == 3


def test_each_kind_of_warning_and_where_nobody_knows(open_page):
    app = open_page("for_my_run", trained="teacher of a student")
    assert "feeds back into the training" in texts(app)
    assert "Nobody knows the best memory of a teacher" in texts(app)
    app = open_page("for_my_run", rate="cosine or linear to zero", run_steps="5000")
    said = texts(app)
    assert "expect little" in said
    assert "beta never acts" in said
    assert "DiT's default: 61 % of the final average" in said
    links = {link.proto.label: link.proto for link in app.get("page_link")}
    decays = links["Decays of DiT's default"]
    assert "beta=0.9999" in decays.query_string
    assert "steps=5000" in decays.query_string
    labels = [link.proto.label for link in app.get("page_link")]
    assert any("What if" in label for label in labels)
    assert any("Evidence" in label for label in labels)


def test_our_own_study_is_told_with_task_and_seeds(open_page):
    said = texts(open_page("for_my_run", rate="constant"))
    assert "28 of 32 seeds" in said
    assert "the article's regression" in said


def test_every_library_has_code_for_every_setting(open_page):
    app = open_page("for_my_run", wish="several lengths to choose from later")
    for library in app.get_by_key("library").options:
        app.get_by_key("library").set_value(library)
        run(app)
        missing = sum("makes power functions only" in caption.value for caption in app.caption)
        assert len(app.code) + missing == 3
        assert missing == (library == "ema-pytorch PostHocEMA")


def test_a_memory_of_my_own_is_solved_for_and_can_be_used(open_page):
    app = open_page("for_my_run", own="true", family="Constant", want_half_life="2.0", update_after_step="0")
    solved = next(from_code(code.value) for code in app.code if code.value.startswith("Constant("))
    assert solved.beta == pytest.approx(0.5 ** (1 / 8000), rel=1e-9)
    next(button for button in app.button if button.label == "Use these settings").click()
    run(app)
    assert app.get_by_key("beta").value == pytest.approx(0.5 ** (1 / 8000))
    app = open_page("for_my_run", own="true", family="Rational warm-up", want_half_life="50.0")
    assert "No beta of RationalWarmup gives a half-life of" in texts(app)
    app = open_page("for_my_run", own="true", family="Running mean", update_every="1", want_half_life="30.0")
    assert len(app.code) == 5


def test_the_published_widths_are_a_table(open_page):
    table = open_page("for_my_run").dataframe[-1].value
    assert len(table) == 28
    assert (table["width_percent"].min(), table["width_percent"].max()) == (1.5, 20)


def test_reset(open_page):
    app = open_page("for_my_run", trained="other", run_steps="77", times_batch="× 2")
    next(button for button in app.button if button.label == "Reset").click()
    run(app)
    assert app.get_by_key("run_steps").value == STEPS
    assert app.get_by_key("trained").value == "diffusion"
    assert app.get_by_key("times_batch").value == "as above"


def solved(app, label):
    name = family_names()[label]
    return next(from_code(code.value) for code in app.code if code.value.startswith(f"{name}("))


@pytest.mark.parametrize("label", [label for label in family_names() if label != "Rational warm-up"])
def test_a_width_is_solved_for_in_every_family_and_can_be_used(open_page, label):
    settings = {"family": label, "tau": "100", "memory": "relative width", "want_width": "8"}
    app = open_page("for_my_run", own="true", run_steps="5000", **settings)
    found = solved(app, label)
    assert relative_width(found.decays(5000)) == pytest.approx(0.08, rel=0.02)
    next(button for button in app.button if button.label == "Use these settings").click()
    run(app)
    assert app.get_by_key("family").value == label
    shown = state_of(found)
    assert {key: app.session_state[key] for key in (control.key for control in found.controls)} == {
        control.key: pytest.approx(shown[control.key]) for control in found.controls
    }


def test_a_width_is_one_of_the_whole_run(open_page):
    settings = {"family": "Power function", "width": "0.1", "update_after_step": "4000", "run_steps": "5000"}
    app = open_page("for_my_run", own="true", memory="relative width", want_width="2", **settings)
    assert relative_width(solved(app, "Power function").decays(5000)) == pytest.approx(0.02, rel=1e-4)


def test_a_cap_that_was_raised_and_a_floor_in_the_way_are_told(open_page):
    asked = {"own": "true", "run_steps": "5000", "want_half_life": "5.0"}
    app = open_page("for_my_run", beta="0.9", **asked)
    assert solved(app, "Inverse power").beta == pytest.approx(0.5 ** (1 / 250))
    assert "`beta` was in the way, so it is 0.997" in texts(app)
    assert "was in the way" not in texts(open_page("for_my_run", **asked))
    app = open_page("for_my_run", beta="0.9999", min_value="0.999", **asked)
    assert "No power of InversePower gives a half-life of 250 steps" in texts(app)
    assert "the nearest is 692.8: ask for that, or lower min_value = 0.999" in texts(app)


def test_only_published_widths_are_told(open_page):
    width = open_page("for_my_run", own="true", memory="relative width").get_by_key("want_width")
    assert "EDM2's authors chose 1.5 to 20 %, without and with classifier-free guidance" in width.help
    assert "depends on the model, the metric and the guidance" in width.help
    assert "usual" not in open_page("for_my_run", own="true").get_by_key("want_half_life").help


def test_what_the_solved_schedule_remembers_is_told(open_page):
    settings = {"family": "Constant", "update_after_step": "0", "want_half_life": "2.0", "run_steps": "5000"}
    app = open_page("for_my_run", own="true", **settings)
    found, ages = solved(app, "Constant"), 4999 - np.arange(5000)
    shares = (1 - found.beta) * found.beta**ages
    shares[0] = found.beta**4999
    mean = shares @ ages
    width = np.sqrt(shares @ (ages - mean) ** 2) / 5000
    assert f"half-life 100 steps, relative width {percent(width)}, mean age {number(mean)} steps" in texts(app)
