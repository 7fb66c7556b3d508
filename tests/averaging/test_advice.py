"""What is advised: round settings that keep what was asked, each with a source, for runs of any length at once."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emacore.averaging import advice
from emacore.averaging.advice import (
    MOST_STEPS,
    PUBLISHED,
    RATES,
    ROUNDING,
    TRAINED,
    WISHES,
    Measured,
    Recommendation,
    Run,
    advise,
    constant_of_window,
    gamma_of_fraction,
    half_life_in,
    published_range,
    reason_in,
    rescaled_settings,
    rescaling_remarks,
    rounded_decay,
    rounded_schedule,
    settings_table,
    steps_of_samples,
    steps_of_tokens,
    warnings,
)
from emacore.averaging.code import from_code
from emacore.averaging.families import Constant, InversePower, PowerFunction, UniformAverage
from emacore.averaging.filters import equivalent_window, half_life
from emacore.averaging.schedules import Schedule, final_half_life, last_move
from emacore.averaging.solving import at_batch_size, with_half_life
from emacore.averaging.weights import mean_age, relative_width

ANSWERS = list(itertools.product(TRAINED, RATES, WISHES))
LENGTHS = [10, 100, 5_000, 400_000, MOST_STEPS]
STUDY = {
    name: Measured("a task", 32, wins, 0.1, -0.05, 0.2)
    for name, wins in (("high rate", 28), ("lowered rate", 19), ("steadiness", 31))
}


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("every", [1, 10])
def test_every_answer_has_two_or_three_settings_with_sources(steps, every):
    for trained, rate, wish in ANSWERS:
        found = advise(Run(steps, every, trained, rate, wish, 512, 3), STUDY)
        assert 2 <= len(found.settings) <= 3
        assert len({setting.name for setting in found.settings}) == len(found.settings)
        assert found.unknown
        for setting in found.settings:
            assert setting.schedule.update_every == every
            assert setting.reason
        for one in (*found.settings, *found.expected):
            assert one.source.kind in ("formula", "our study", "paper", "code")
        for one in found.warnings:
            assert one.source.kind in ("formula", "paper", "code", "reasoning")
            assert one.source.text
            assert bool(one.source.url) == (one.source.kind in ("paper", "code"))


@pytest.mark.parametrize("steps", [10**6, MOST_STEPS])
def test_no_more_than_some_thousand_steps_are_looked_at(monkeypatch, steps):
    asked = []
    at = Schedule.at

    def counting(self, calls):
        asked.append(np.size(calls))
        return at(self, calls)

    def never(self, num_steps):
        raise AssertionError("all decays of a run were asked for")

    monkeypatch.setattr(Schedule, "at", counting)
    monkeypatch.setattr(Schedule, "decays", never)
    for trained, rate, wish in ANSWERS:
        advise(Run(steps, 1, trained, rate, wish, 512), STUDY)
    assert max(asked) < 10


@given(st.floats(1e-8, 1 - 1e-8))
def test_a_rounded_decay_keeps_its_half_life(rest):
    found = rounded_decay(1 - rest)
    if 1 - rest < 1e-4:
        assert found == 0
    else:
        assert half_life(found) == pytest.approx(half_life(1 - rest), rel=ROUNDING)
    digits = f"{min(found, 1 - found):.6g}".replace(".", "").split("e")[0].strip("0")
    assert len(digits) <= 2


def test_rounded_decays_are_round():
    assert [rounded_decay(x) for x in (0.0, 1.0, 0.999803, 0.9999, 0.99949987)] == [0.0, 1.0, 0.9998, 0.9999, 0.9995]
    assert rounded_decay(0.9999**8) == 0.9992
    assert repr(rounded_decay(1 - 1.96e-9)) == "0.999999998"


@given(
    st.one_of(
        st.builds(Constant, st.floats(0.01, 1 - 1e-8)),
        st.builds(
            InversePower, st.floats(0.9, 1 - 1e-8), st.floats(0.1, 100), st.floats(0.4, 1.0), update_every=st.just(1)
        ),
        st.builds(PowerFunction, st.floats(0, 100)),
    ),
    st.integers(1000, MOST_STEPS),
)
def test_rounding_a_schedule_keeps_its_half_life(schedule, steps):
    found = rounded_schedule(schedule)
    assert final_half_life(found, steps) == pytest.approx(final_half_life(schedule, steps), rel=1.3 * ROUNDING)


@given(st.integers(1_000, MOST_STEPS), st.integers(1, 20))
def test_a_window_becomes_a_decay_of_the_same_delay(window, every):
    found = constant_of_window(window, every)
    if window / every < 30:
        return
    # A plain mean of so many steps is half as old; in moves of the average, each of which spans ``every`` steps.
    delay = every * found.beta / (1 - found.beta)
    assert delay == pytest.approx((window - every) / 2, rel=1.2 * ROUNDING)


@pytest.mark.parametrize("steps", [5_000, 400_000, MOST_STEPS])
@pytest.mark.parametrize("every", [1, 4])
def test_one_percent_is_one_percent_of_the_run(steps, every):
    setting = advise(Run(steps, every, "other")).settings[0]
    assert setting.name == "Window of 1 %"
    assert "the last 1 % of the run" in setting.reason
    assert half_life_in(Run(steps, every), setting.schedule).share == pytest.approx(0.005 * math.log(2), rel=0.08)


@given(st.integers(2, MOST_STEPS) | st.integers(2, 10_000), st.integers(1, 10**6) | st.integers(1, 50))
def test_a_window_is_what_it_is_called(steps, every):
    setting = advise(Run(steps, every, "other")).settings[0]
    updates, share = equivalent_window(setting.schedule.beta), float(setting.name.split()[2]) / 100
    assert max(share * steps / every, 1) == pytest.approx(updates, rel=0.08)
    assert share == pytest.approx(min(max(0.01, 3 * every / steps), 1), rel=0.01)
    assert f"the last {setting.name.removeprefix('Window of ')} of the run" in setting.reason
    assert ("too few updates" in setting.reason) == (share > 0.01)


@pytest.mark.parametrize("fraction", [0.05, 0.02, 0.3])
def test_a_half_life_that_is_a_fraction_of_the_time_tends_to_a_power_function(fraction):
    gamma = gamma_of_fraction(fraction)
    assert gamma == pytest.approx(math.log(2) / fraction - 1)
    assert fraction != 0.05 or gamma == pytest.approx(12.863, abs=1e-3)
    steps = np.arange(1, 200_001)
    rule = 2.0 ** (-1 / (fraction * steps))
    power = PowerFunction(gamma=gamma).decays(200_001)[1:]
    off = np.abs((1 - power) / (1 - rule) - 1)
    assert off[100_000:].max() < 2e-4
    assert off[100_000:].max() < off[1_000:2_000].max() / 50
    assert relative_width(np.r_[0, rule]) == pytest.approx(PowerFunction(gamma=gamma).width, rel=1e-3)


def test_a_fraction_that_no_power_function_has_is_told():
    for fraction in (0.0, 0.8, math.nan):
        with pytest.raises(ValueError, match="fraction must be above 0 and at most ln 2"):
            gamma_of_fraction(fraction)


def test_the_published_widths_are_those_of_the_presets():
    assert len(PUBLISHED) == 28
    assert (min(one.width for one in PUBLISHED), max(one.width for one in PUBLISHED)) == (0.015, 0.2)
    assert published_range(512, "FID", False) == "7 to 13.5 %"
    assert published_range(512, "FID", True) == "1.5 to 4.5 %"
    by_name = {(one.model, one.pixels, one.metric, one.guidance): one.width for one in PUBLISHED}
    assert by_name["S", 512, "FID", False] == 0.13
    assert by_name["XXL", 512, "FD-DINOv2", True] == 0.015


def test_a_diffusion_run_of_400_000_steps():
    run = Run(400_000, 1, "diffusion", "constant", "final quality", 256, 80)
    found = advise(run)
    assert [one.schedule for one in found.settings] == [
        PowerFunction(sigma_rel=0.1),
        PowerFunction(sigma_rel=0.03),
        Constant(0.9999),
    ]
    told = half_life_in(run, found.settings[2].schedule)
    assert str(told) == "6,931 steps, 1.73 % of the run, 1.39 epochs"
    assert any("beta never acts: that takes 1,000,100 steps" in one.text for one in found.warnings)
    assert not any("beta never acts" in one.text for one in advise(Run(1_100_000)).warnings)


def test_a_decay_of_another_batch_size_is_carried_over():
    def decay(batch, every=1):
        run = Run(400_000, every, "teacher of a student", batch=batch)
        return advise(run).settings[0].schedule.beta

    assert decay(256) == 0.9995
    assert half_life(decay(2048)) == pytest.approx(half_life(0.9995) / 8, rel=ROUNDING)
    assert half_life(decay(64)) == pytest.approx(half_life(0.9995) * 4, rel=ROUNDING)
    assert half_life(decay(256, 5)) == pytest.approx(half_life(0.9995) / 5, rel=ROUNDING)
    assert decay(None) == 0.9995


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("batch", [0.25, 8])
def test_another_batch_size_keeps_the_memory_in_samples(trained, batch):
    run = Run(400_000, 1, trained, batch=256)
    settings = advise(run).settings
    for old, new in zip(settings, rescaled_settings(settings, batch=batch), strict=True):
        assert new.name == old.name
        samples = final_half_life(old.schedule, run.steps)
        assert batch * final_half_life(new.schedule, run.rescaled(batch=batch).steps) == pytest.approx(
            samples, rel=2 * ROUNDING
        )
        assert new.schedule == rounded_schedule(at_batch_size(old.schedule, batch))


def test_what_comes_with_another_batch_size_is_told():
    settings = [
        Recommendation("a", Constant(), "", advice.PRODUCT),
        Recommendation("b", InversePower(), "", advice.PRODUCT),
    ]
    assert rescaling_remarks(settings, 1) == []
    first, second = rescaling_remarks(settings, 8)
    assert "learning rate was chosen for the other batch size and must be scaled" in first.text
    assert "d becomes d^8" in first.text
    assert "2307.13813" in first.source.text
    assert second.text == InversePower.rescaling
    assert len(rescaling_remarks(settings[:1], 0.25)) == 1
    assert "d becomes d^0.25" in rescaling_remarks(settings, 0.25)[0].text


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("length", [0.25, 4])
def test_another_length_keeps_the_share_of_the_run(trained, length):
    run = Run(400_000, 1, trained, batch=256, epochs=10)
    settings = advise(run).settings
    longer = run.rescaled(length=length)
    assert (longer.steps, longer.epochs, longer.batch) == (400_000 * length, 10 * length, 256)
    for old, new in zip(settings, rescaled_settings(settings, length=length), strict=True):
        share = half_life_in(run, old.schedule).share
        assert half_life_in(longer, new.schedule).share == pytest.approx(share, rel=2 * ROUNDING)
        if isinstance(old.schedule, UniformAverage):
            assert new.schedule.update_after_step == pytest.approx(0.9 * longer.steps, rel=0.01)


def test_steps_from_samples_and_tokens():
    assert steps_of_samples(1600, 32, 100) == 5000
    assert steps_of_samples(1000, 64, 3) == 48
    assert steps_of_tokens(10**12, 4 * 10**6) == 250_000
    assert steps_of_tokens(1001, 100, 2) == 21
    with pytest.raises(ValueError, match="a batch of 64 is larger than the 10 samples"):
        steps_of_samples(10, 64, 1)
    with pytest.raises(ValueError, match="a batch of 64 is larger than the 20 tokens"):
        steps_of_tokens(10, 64, 2)
    with pytest.raises(ValueError, match="epochs"):
        steps_of_samples(10, 2, 0)


def test_a_run_beyond_the_limits_is_told():
    for wrong, match in (
        ({"steps": 1}, "steps must be"),
        ({"steps": 10**10 + 1}, "steps must be"),
        ({"steps": 10, "update_every": 0}, "update_every must be"),
        ({"steps": 10, "trained": "a dog"}, "trained must be one of diffusion"),
        ({"steps": 10, "rate": "x"}, "rate must be one of constant"),
        ({"steps": 10, "wish": "x"}, "wish must be one of noisy evaluation"),
        ({"steps": 10, "batch": 0}, "batch must be"),
    ):
        with pytest.raises(ValueError, match=match):
            Run(**wrong)


def told(run, *schedules):
    return "\n".join(
        one.text
        for one in warnings(run, [Recommendation(f"s{i}", s, "why", advice.PRODUCT) for i, s in enumerate(schedules)])
    )


def test_warnings_are_of_what_happens_in_the_run():
    assert "feeds back" in told(Run(10_000, trained="teacher of a student"), Constant(0.99))
    assert "feeds back" not in told(Run(10_000), Constant(0.99))
    assert "expect little" in told(Run(10_000, rate="cosine or linear to zero"), Constant(0.99))
    assert "expect little" not in told(Run(10_000, rate="constant"), Constant(0.99))
    assert "s0: 37 % of the final average are still the weights it started with" in told(Run(10_001), Constant(0.9999))
    assert "still the weights" not in told(Run(100_000), Constant(0.9999))
    late = Constant(0.9, update_after_step=20_000)
    assert "it begins at step 20,000, and the run is over before it moves" in told(Run(10_000), late)
    capped = InversePower(0.9999, update_after_step=0, update_every=1)
    assert "s1: beta = 0.9999 never acts, the decay ends at 0.9978" in told(Run(10_000), Constant(0.9), capped)
    assert "s0: beta" not in told(Run(2_000_000), capped)
    coarse = "update_every = 10 is not small against a half-life of 65.8 steps (s0)"
    assert coarse in told(Run(10_000, 10), Constant(0.9, update_every=10), Constant(0.999, update_every=10))
    assert "is not small" not in told(Run(10_000, 10), Constant(0.999, update_every=10))


def test_a_run_without_a_move_is_told_once():
    found = warnings(Run(50, 60), advise(Run(50, 60)).settings)
    assert sum("update_every = 60 is longer than the run (50 steps)" in one.text for one in found) == 1
    assert not any("starts" in one.text or "not small" in one.text for one in found)
    assert "99.99 % of the final average are still the weights it started with" in told(Run(2), Constant(0.9999))
    assert "still the weights" not in told(Run(2), UniformAverage())


def test_tiny_shares_and_epochs_have_no_exponent():
    assert str(half_life_in(Run(10**10, epochs=0.1), Constant(0.9))) == (
        "6.579 steps, less than 0.0001 % of the run, less than 0.0001 epochs"
    )


def test_noise_is_by_the_formula():
    run = Run(400_000, 2, wish="noisy evaluation")
    found = advise(run, STUDY)
    decay = found.settings[0].schedule.beta
    first = next(one for one in found.expected if one.source.kind == "formula")
    assert f"{100 * (1 - decay) / (1 + decay):.2g} %" in first.text
    assert mean_age(found.settings[0].schedule.decays(400_000)) == pytest.approx(2 * decay / (1 - decay), abs=1.5)
    assert "steadier in 31 of 32 seeds" in found.expected[1].text


def test_our_study_is_told_with_its_task_and_seeds():
    for rate, wins in (("constant", 28), ("cosine or linear to zero", 19)):
        found = [one for one in advise(Run(10_000, rate=rate), STUDY).expected if one.source.kind == "our study"]
        assert [one.source.text for one in found] == ["a task, 32 seeds; page Evidence"]
        assert f"in {wins} of 32 seeds (median gain 10 %, 95 % interval -5 % to 20 %)" in found[0].text
    assert not any(one.source.kind == "our study" for one in advise(Run(10_000)).expected)


def test_the_table_of_settings_is_what_is_shown():
    run = Run(400_000, 1, "diffusion", batch=256, epochs=80)
    table = settings_table(run, advise(run).settings)
    assert [from_code(text) for text in table["schedule"]] == [one.schedule for one in advise(run).settings]
    assert table["half_life_steps"][2] == pytest.approx(half_life(0.9999))
    assert table["half_life_percent"][2] == pytest.approx(100 * half_life(0.9999) / 400_000)
    assert table["half_life_epochs"][2] == pytest.approx(80 * half_life(0.9999) / 400_000)
    assert settings_table(Run(400_000), advise(Run(400_000)).settings)["half_life_epochs"][0] is None


def test_the_half_life_of_a_power_function_is_what_a_solver_finds():
    solved = with_half_life(
        PowerFunction(gamma=1), 400_000, half_life_in(Run(400_000), PowerFunction(gamma=12.9)).steps
    )
    assert solved.gamma == pytest.approx(12.9, rel=1e-6)


def test_what_nobody_knows_is_of_what_is_trained():
    words = {
        "diffusion": "EDM2",
        "language model": "how long to merge",
        "teacher of a student": "best memory of a teacher",
    }
    for trained, rate, wish in ANSWERS:
        told = " ".join(advise(Run(5000, 1, trained, rate, wish, 512, 3), STUDY).unknown)
        expected = words.get(trained, "best final quality")
        for text in (*words.values(), "best final quality"):
            assert (text in told) == (text == expected), (trained, text)


def words(answer, run):
    """All that an answer says."""
    table = settings_table(run, answer.settings)
    return [
        *(
            f"{code} {half_life_in(run, one.schedule)}"
            for code, one in zip(table["schedule"], answer.settings, strict=True)
        ),
        *table["reason"],
        *(one.text for one in (*answer.expected, *answer.warnings)),
    ]


@given(
    st.integers(2, MOST_STEPS),
    st.integers(1, MOST_STEPS),
    st.floats(1, 1e12),
    st.floats(1e-9, 1e17),
    st.sampled_from(ANSWERS),
)
def test_no_answer_has_an_exponent_or_one_of_many(steps, every, batch, epochs, answer):
    run = Run(steps, every, *answer, batch, epochs)
    for text in words(advise(run, STUDY), run):
        assert not re.search(r"\de[-+]?\d", text), text
        assert not re.search(r"(?<![\d.,])1 (steps|epochs|seeds|samples|tokens)\b", text), text


def test_an_average_of_one_snapshot_is_told():
    for run in (Run(400_000, batch=10**7, trained="teacher of a student"), Run(10**7, 10**6, "image classifier")):
        found = advise(run)
        copies = [one.text for one in found.warnings if "nothing is averaged" in one.text]
        last = {one.name: last_move(one.schedule, run.steps) for one in found.settings}
        moving = [one for one in found.settings if last[one.name] > one.schedule.start]  # of the others another warning
        names = [one.name for one in moving if one.schedule.at([last[one.name]])[0] < 0.05]
        assert names
        assert [text.partition(":")[0] for text in copies] == names


def test_a_reason_says_to_which_batch_it_was_carried_over():
    run = Run(400_000, batch=256)
    usual = advise(Run(400_000, trained="diffusion", batch=256)).settings[2]
    assert "carried over" not in reason_in(run, usual)
    (moved,) = rescaled_settings([usual], batch=8)
    assert reason_in(run.rescaled(8), moved).endswith("carried over to batch 2,048")
    typed = advise(Run(400_000, trained="diffusion", batch=2048)).settings[2]
    assert typed.schedule == moved.schedule
    assert reason_in(Run(400_000, batch=2048), typed) == reason_in(run.rescaled(8), moved)
    unknown = Run(400_000, trained="diffusion")
    (moved,) = rescaled_settings(advise(unknown).settings[2:], batch=8)
    assert reason_in(unknown.rescaled(8), moved).endswith("carried over to 8 times the batch")


def test_a_teachers_decay_is_told_as_where_it_begins_and_what_follows_from_no_formula_as_that():
    found = advise(Run(400_000, batch=256, trained="teacher of a student"))
    assert (
        found.settings[0].reason
        == "0.9995 a step at batch 256 at the start; DINO raises it to 1 over the run, by a cosine"
    )
    for run in (Run(400_000, trained="teacher of a student"), Run(100, 1000)):
        assert advise(run).warnings[0].source.kind == "reasoning"


def test_what_is_said_of_a_setting_holds_at_another_length():
    for trained, rate, wish in ANSWERS:
        run = Run(20_000, 1, trained, rate, wish, 512, 3)
        for one in advise(run).settings:
            assert not re.search(r"\d steps", one.reason), one.reason


def test_a_run_that_would_be_too_short_is_told():
    with pytest.raises(ValueError, match="steps must be a whole number of at least 2, got 0"):
        Run(2).rescaled(length=1 / 8)
