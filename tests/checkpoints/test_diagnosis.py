"""Planted faults and healthy runs on plain tensors; of the libraries themselves in a short form of the benchmark."""

import re
from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks.diagnosis import FAULTS, LIBRARIES, faulty_rows, healthy_rows, table
from emacore import Constant, InversePower, RationalWarmup, Window, diagnose
from emacore.checkpoints.diagnosis import diagnosed
from emacore.checkpoints.observed import gathered
from emacore.checkpoints.stored import CheckpointError
from tests.helpers import section_of

STEPS = (300, 340, 380)


def walk(decays, files=STEPS, seed=0, drift=0.0, keep=lambda average: average):
    """Evidence of weights that walk at random, and of an average with these decays, shape (steps,)."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(2000, generator=generator, dtype=torch.float64)
    average, raws, averages = raw, [], []
    straight = drift * torch.randn(2000, generator=generator, dtype=torch.float64)
    for step, decay in enumerate(decays, 1):
        raw = raw + straight + 0.02 * torch.randn(2000, generator=generator, dtype=torch.float64)
        average = keep(decay * average + (1 - decay) * raw)
        if step in files:
            raws.append(section_of({"w": raw.float()}))
            averages.append(section_of({"w": average.float()}, "average"))
    return gathered(files, raws, averages)


def constant(decay, steps=STEPS[-1]):
    return np.full(steps, decay)


def kinds(found):
    return [(finding.fault, *finding.or_else) for finding in found.findings]


def test_a_healthy_average_is_found_healthy_with_its_decay():
    found = diagnosed(walk(constant(0.99)), Constant(0.99))
    assert kinds(found) == []
    assert found.sentences[0] == "Nothing wrong was found."
    for stretch in found.stretches:
        low, best, high = stretch.decays
        assert low < 0.99 < high
        assert best == pytest.approx(0.99, abs=3e-4)
        assert re.search(
            r"^From step 3\d0 to 3\d0 a step had decay 0\.9[89]\d* \(0\.98\d+ to 0\.99\d+\)", stretch.sentence
        )
        assert stretch.sentence.endswith("; configured: 0.99.")
    columns = found.table
    assert columns["from_step"].tolist() == [300, 340]
    assert columns["configured"] == pytest.approx(0.99)
    assert np.all(columns["low"] < columns["decay"])
    assert np.isnan(diagnosed(walk(constant(0.99))).table["configured"]).all()


@pytest.mark.parametrize("files", [STEPS, STEPS[1:]])
@pytest.mark.parametrize(
    ("decays", "configured", "expected", "words"),
    [
        (constant(0.95), Constant(0.99), "decay", "each step had a decay "),
        (constant(0.999), Constant(0.99), "decay", "each step had a decay from 0.99"),
        (constant(0.01), Constant(0.99), "flipped", "decay and 1 - decay were exchanged, which gives 0.01"),
        (constant(0.99), Constant(0.01), "flipped", "which gives 0.99"),
        (np.where(np.arange(380) % 8, 1, 0.97), Constant(0.97), "update_every", "update_every were"),
        (constant(0.97), Constant(0.97, update_every=8), "update_every", "not 8"),
        (constant(0.98**4), Constant(0.98), "update_every", " times a step, once a micro-batch"),
        (constant(0.98**2), Constant(0.98), "update_every", "update() were called 2 times a step"),
        (RationalWarmup(0.9999).decays(380), Constant(0.9999), "never reached", "(1 + n) / (10 + n)"),
        (
            InversePower(0.9999, update_after_step=0, update_every=1).decays(380),
            InversePower(0.9999, update_after_step=0, update_every=1),
            "never reached",
            "has not reached beta = 0.9999: at step 380 it is 0.98",
        ),
    ],
)
def test_what_was_done_instead(decays, configured, expected, words, files):
    found = diagnosed(walk(decays, files), configured)
    assert len(found.findings) == 1
    assert found.names(expected)
    assert words in found.findings[0].sentence


def test_a_reset_needs_no_configuration_where_a_file_before_shows_the_memory():
    decays = constant(0.99)
    decays[360] = 0
    for configured in (None, Constant(0.99)):
        found = diagnosed(walk(decays), configured)
        assert found.findings[0].fault == "reset"
        assert "340" in found.findings[0].sentence
    assert "reset" in kinds(diagnosed(walk(decays, STEPS[1:]), Constant(0.99)))[0]
    decays[379] = 0  # just before the last file
    assert "equals the raw weights, as it did not before" in diagnosed(walk(decays)).findings[0].sentence


@pytest.mark.parametrize("at", [343, 360, 376])
@pytest.mark.parametrize("configured", [None, Constant(0.99)])
def test_a_reset_is_told_beside_what_looks_the_same(at, configured):
    decays = constant(0.99, 420)
    decays[at] = 0
    [found] = diagnosed(walk(decays), configured).findings
    assert (found.fault, *found.or_else)[:2] == ("reset", "decay")
    assert "a later file would tell" in found.sentence
    two = diagnosed(walk(decays, STEPS[1:]), configured)
    # Just before the last file it trails as little as with decay and 1 - decay exchanged, but not at the first.
    assert all(one.fault != "flipped" for one in two.findings)
    assert two.names("reset") or configured is None
    half = "(50 steps, as configured) " if configured else ""
    assert any(f"files at most half a memory of the average apart {half}would tell" in note for note in two.notes)
    after = diagnosed(walk(decays, (300, 340, 380, 420)), configured)
    assert kinds(after) == ([("reset",)] if configured else [("reset", "decay")])


def test_a_reset_just_before_the_last_file_is_no_exchange_of_decays_unless_the_first_file_is_the_weights_too():
    for configured, late, kept in ((Constant(0.99), slice(378, 380), (0, 0.5)), (None, 379, 1e-4)):
        decays = constant(0.99)
        decays[late] = kept
        found = diagnosed(walk(decays, STEPS[1:], drift=0.5), configured)
        assert found.findings[0].fault != "flipped"
        assert found.names("reset")
        assert diagnosed(walk(constant(0.01), STEPS[1:], drift=0.5), configured).findings[0].fault == "flipped"
    decays = constant(0.99)
    decays[[339, 378, 379]] = 0, 0, 0.5
    assert kinds(diagnosed(walk(decays, STEPS[1:], drift=0.5), Constant(0.99))) == [("flipped", "reset")]


def test_an_average_in_half_precision_may_have_lost_steps():
    def half(average):
        return average.bfloat16().double()

    found = diagnosed(walk(constant(0.9), keep=half), Constant(0.9))
    assert any("All numbers of the average are 'bfloat16'" in note for note in found.notes) != found.names("dtype")
    assert not any("All numbers" in note for note in diagnosed(walk(constant(0.9)), Constant(0.9)).notes)


@pytest.mark.parametrize(
    ("coarse", "fault"),
    [("", ("frozen",)), ("wv", ("frozen", "dtype")), ("v", ("frozen",))],  # in single precision nothing is rounded away
)
def test_an_average_that_never_moved_may_have_lost_its_steps_in_half_precision_only(coarse, fault):
    generator = torch.Generator().manual_seed(0)
    raw = {name: torch.randn(2000, generator=generator) for name in "wv"}
    kept = {name: one.bfloat16().float() if name in coarse else one for name, one in raw.items()}
    raws = [{name: one + 0.1 * number for name, one in raw.items()} for number in (1, 2, 3)]
    found = diagnosed(gathered(STEPS, [*map(section_of, raws)], [section_of(kept, "average")] * 3), Constant(0.99))
    assert kinds(found) == [fault]
    assert ("each step was rounded away in 'bfloat16'" in found.findings[0].sentence) == ("dtype" in fault)


def test_a_counter_that_fell_is_a_reset_and_one_that_lags_counts_updates():
    evidence = walk(np.where(np.arange(380) % 8, 1, 0.97))
    fell = type(evidence)(evidence.steps, evidence.tensors, (), (300, 20, 60), evidence.sums)
    assert "its counter fell from 300 to 20" in diagnosed(fell).findings[0].sentence
    lags = type(evidence)(evidence.steps, evidence.tensors, (), (38, 43, 48), evidence.sums)
    assert "10 times in 80 steps" in diagnosed(lags, Constant(0.97)).findings[0].sentence


def test_a_warm_up_that_copies_still_is_no_loss():
    found = diagnosed(walk(constant(0.0)), Constant(0.99, update_after_step=1000))
    assert kinds(found) == [("never reached",)]
    assert "its warm-up lasts until step 1,000" in found.findings[0].sentence
    assert kinds(diagnosed(walk(constant(0.0)), Constant(0.99))) == [("equal",)]


def test_an_average_that_stood_still_between_two_files_is_found_unless_it_was_to():
    stopped = np.where(np.arange(STEPS[-1]) < STEPS[1], 0.99, 1.0)
    found = diagnosed(walk(stopped), Constant(0.99))
    assert ("frozen", "update_every") in kinds(found)
    assert "stood still from step 340 to 380, though the raw weights moved" in found.findings[0].sentence
    alone = diagnosed(walk(stopped))
    assert alone.findings == ()
    assert any("1 stretch of 2 left the average as it was" in note for note in alone.notes)
    seldom = Constant(0.5, update_every=50)  # moves at 300 and 350
    assert not diagnosed(walk(seldom.decays(STEPS[-1])), seldom).names("frozen")


def test_what_cannot_be_told_is_said():
    short = diagnosed(walk(constant(0.5)), Constant(0.6))
    assert short.findings == ()
    assert "set no lower end" in short.stretches[0].sentence
    assert any("a reset and a short memory look alike" in note for note in short.notes)
    assert any("Two files are one stretch" in note for note in diagnosed(walk(constant(0.99), STEPS[1:])).notes)
    alone = diagnosed(walk(constant(0.99), STEPS[:1]), Constant(0.9))
    assert alone.findings == alone.stretches == ()
    assert "give two or more of one run" in alone.notes[0]


@pytest.fixture
def folder(tmp_path):
    """Files of a list of averages without steps, but for what the average counts, if that."""

    def write(name, **about):
        model = {"w": torch.zeros(500), "running_mean": torch.zeros(8)}
        average = {name: one.clone() for name, one in model.items()}
        generator = torch.Generator().manual_seed(0)
        for step in range(1, 121):
            for key, one in model.items():
                model[key] = one + torch.randn(one.shape, generator=generator)
                average[key] = torch.lerp(average[key], model[key], 0.02)
            if step in (60, 90, 120):
                counter = {"n_averaged": torch.tensor(step)} if about else {}
                averages = {f"module.{key}": one for key, one in average.items()}
                torch.save({"model": model, "ema": averages | counter}, tmp_path / name.format(step))
        return tmp_path

    return write


def test_where_files_do_not_tell_steps_the_counter_does(folder):
    found = diagnose(folder("epoch={}.pt", counted=True), Constant(0.98))
    assert found.findings == ()
    assert [(one.begin, one.end) for one in found.stretches] == [(60, 90), (90, 120)]
    assert "the average's own counter stands for them" in found.notes[0]


def test_without_either_nothing_is_compared(folder):
    found = diagnose(folder("epoch={}.pt"), Constant(0.5))
    assert found.findings == ()
    assert "nothing can be compared with what was configured" in found.notes[0]
    with pytest.raises(TypeError, match="configured must be a schedule"):
        diagnose(folder("epoch={}.pt"), Window(3))
    with pytest.raises(CheckpointError, match="no file or folder"):
        diagnose("nowhere")


@pytest.mark.slow
def test_all_planted_faults_of_five_libraries_are_found_and_healthy_runs_raise_no_alarm():
    torch.manual_seed(0)
    sound, faulty = healthy_rows(4, first=3), faulty_rows(1, steps=200)
    assert [(row.library, row.alarms, row.sentences) for row in sound if row.alarms] == []
    given = [row for row in faulty if row.with_configuration]
    assert Counter((row.library, row.planted) for row in given) == Counter(
        (library, fault) for library in LIBRARIES for fault in FAULTS
    )
    assert [(row.library, row.planted, row.sentences) for row in given if not row.named] == []
    shown = table(faulty, sound)
    assert "| reset | 5 | 1 of 1 |" in shown


@pytest.mark.long
def test_no_false_alarm_in_two_hundred_healthy_runs():
    assert [(row.library, row.about, row.sentences) for row in healthy_rows(200) if row.alarms] == []


@pytest.mark.parametrize("files", [STEPS, STEPS[1:]])
def test_exchanged_sections_are_found_and_little_evidence_is_no_all_clear(tmp_path, files):
    generator = torch.Generator().manual_seed(0)
    raw = average = torch.randn(2000, generator=generator)
    for step in range(1, STEPS[-1] + 1):
        raw = raw + 0.02 * torch.randn(2000, generator=generator)
        average = torch.lerp(average, raw, 0.01)
        if step in files:
            torch.save({"model": {"w": average}, "ema": {"w": raw}}, tmp_path / f"step_{step}.pt")
    for configured in (None, Constant(0.99)):
        found = diagnose(tmp_path, configured)
        assert kinds(found) == [("exchanged", "reset", "decay") if len(files) == 2 else ("exchanged", "decay")]
        assert "model moves as an average of ema would" in found.findings[0].sentence
        assert diagnose(tmp_path, configured, average="model", raw="ema").sentences[0] == "Nothing wrong was found."
    one = diagnose(tmp_path / f"step_{STEPS[-1]}.pt")
    assert one.sentences[0] == "These files do not tell whether something is wrong."


def test_numbers_that_cannot_be_squared_count_as_not_finite():
    numbers = torch.arange(1.0, 100, dtype=torch.float64) * 1e200
    raws = [section_of({"w": numbers * step}) for step in (1, 2)]
    averages = [section_of({"w": numbers * step * 3}, "average") for step in (1, 2)]
    assert kinds(diagnosed(gathered(STEPS[:2], raws, averages))) == [("broken",)]


def test_numbers_that_are_not_finite_are_found_but_masks_are_not():
    whole = {"w": torch.arange(100.0), "mask": torch.tensor([0.0, -torch.inf])}
    raws = [section_of({"w": whole["w"] + step, "mask": whole["mask"]}) for step in (1, 2, 3)]
    averages = [section_of({**whole, "w": whole["w"] + step / 2}, "average") for step in (1, 2, 3)]
    assert "broken" not in {finding.fault for finding in diagnosed(gathered(STEPS, raws, averages)).findings}
    averages[1] = section_of({**whole, "w": torch.full((100,), torch.nan)}, "average")
    found = diagnosed(gathered(STEPS, raws, averages))
    assert found.findings[0].fault == "broken"
    assert "At step 340 there are numbers that are not finite, in 'w'" in found.sentences[0]


def test_weights_that_the_average_has_not_are_told():
    raws = [section_of({"a": torch.arange(64.0) + step, "b": torch.arange(9.0)}) for step in (1, 2)]
    averages = [section_of({"a": torch.arange(64.0) + step / 2}, "average") for step in (1, 2)]
    assert "Not in the average, and so not looked at: 'b'." in diagnosed(gathered(STEPS[:2], raws, averages)).notes


@pytest.mark.parametrize(
    ("factor", "decay", "told"), [(10, 0.999, True), (0.1, 0.999, True), (1, 0.999, False), (1.5, 0.98, True)]
)
def test_weights_that_do_not_add_to_one_are_told_and_not_taken_for_exchanged_sections(tmp_path, factor, decay, told):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2000, generator=generator)
    average = raw * factor
    for step in range(1, 101):
        raw = raw + 0.02 * torch.randn(2000, generator=generator)
        average = decay * average + factor * (1 - decay) * raw
        if step in (20, 60, 100):
            torch.save({"model": {"w": raw}, "model_ema": {"w": average}}, tmp_path / f"step_{step}.pt")
    found = diagnose(tmp_path, Constant(decay))
    assert any("did not add to 1" in words and "cannot tell" in words for words in found.notes) == told
    assert (found.verdict == "These files do not tell whether something is wrong.") == told
    assert not found.names("exchanged")
