import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from emacore.averaging.code import from_code
from emacore.averaging.families import Constant, UniformAverage
from emacore.averaging.schedules import changed_settings
from emacore.experiments.studies import (
    Study,
    Sweep,
    job_from_json,
    json_value,
    json_values,
    shared_json,
    with_settings,
)
from emacore.experiments.sweep import columns_of
from emacore.limits import LETTERS, VALUES
from emacore.tasks.regression.config import DataConfig, RunConfig
from emacore.training.config import dotted


def test_settings_by_dotted_names():
    changed = with_settings(RunConfig(), {"schedule.beta": 0.7, "schedule": "Constant(beta=0.5)", "data.n_samples": 50})
    assert changed == replace(RunConfig(), schedule=Constant(0.7), data=replace(RunConfig().data, n_samples=50))
    of_family = with_settings(RunConfig(), {"schedule.beta": 0.7, "schedule.family": "Constant"})
    assert type(of_family.schedule) is Constant
    assert of_family.schedule.beta == 0.7
    for name in ("optimizer.rate", "optimizer", "nope.x", "schedule.powers", "seed.x"):
        with pytest.raises(ValueError, match=r"there is no setting '.*optimizer.learning_rate"):
            with_settings(RunConfig(), {name: 1})
    with pytest.raises(ValueError, match="optimizer.learning_rate must be"):
        with_settings(RunConfig(), {"optimizer.learning_rate": -1})


@pytest.mark.parametrize(
    "code",
    [
        "Constant(beta=0.9)",
        "BiasCorrected(beta=0.9)",
        "InversePower(inv_gamma=5.0, min_value=0.1, update_every=1)",
        "RationalWarmup(beta=0.9)",
        "ExponentialRamp(beta=0.9, tau=50.0)",
        "PowerFunction(sigma_rel=0.1)",
        "PowerFunction(gamma=3.0)",
        "UniformAverage(update_every=3)",
    ],
)
def test_a_family_and_its_settings_one_by_one_are_the_whole_schedule(code):
    schedule = from_code(code)
    given = {f"schedule.{name}": value for name, value in changed_settings(schedule).items()}
    found = with_settings(RunConfig(), {**given, "schedule.family": type(schedule).__name__}).schedule
    shared = {"update_after_step": 100, "beta": 0.999}  # the article's, of which both families have these
    kept = {k: v for k, v in shared.items() if f"schedule.{k}" not in given and hasattr(schedule, k)}
    assert found == replace(schedule, **kept)


def test_a_study_goes_to_json_and_back():
    study = Study(RunConfig(max_epochs=3), (1, 2), (Constant(0.5), UniformAverage()))
    assert job_from_json(study.to_json()) == study
    assert job_from_json(RunConfig(seed=3).to_json()) == RunConfig(seed=3)
    assert job_from_json('{"seeds": [3]}') == Study(RunConfig(), (3,))


def test_a_study_names_no_schedule_twice():
    with pytest.raises(ValueError, match=r"schedules must be different ones, got Constant\(beta=0.5\) twice"):
        Study(RunConfig(), (1, 2), (Constant(0.5), UniformAverage(), Constant(beta=0.5)))
    # one that was stored while it could is still read
    study = Study(RunConfig(), (1, 2), (Constant(0.5), UniformAverage()))
    stored = json.loads(study.to_json())
    stored["schedules"].append(stored["schedules"][0])
    assert job_from_json(json.dumps(stored)) == study


def test_no_setting_is_named_like_a_column_of_a_sweeps_table():
    known = set(dotted(json.loads(RunConfig().to_json()))) | {"schedule"}
    assert not (known - {"seed"}) & set(columns_of(RunConfig()))
    with pytest.raises(ValueError, match="leave 'seed' out"):
        Sweep(RunConfig(), {"seed": [1]}, (1, 2))


def test_a_sweep_goes_to_json_and_back_and_has_its_cells():
    sweep = Sweep(RunConfig(max_epochs=3), {"schedule": ("Constant(beta=0.5)",), "max_epochs": [2, 3]}, (1, 2))
    assert job_from_json(sweep.to_json()) == sweep
    settings, configs = zip(*sweep.cells(), strict=True)
    assert settings[1] == {"schedule": "Constant(beta=0.5)", "max_epochs": 3}
    assert configs[1] == RunConfig(schedule=Constant(0.5), max_epochs=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"seeds": []}', "at least one"),
        ('{"seeds": [1, 1]}', "different"),
        ('{"seeds": [-1]}', "at least 0"),
        ('{"seeds": 3}', "not a study"),
        ('{"seeds": [1], "seed": 2}', "no setting seed of a study"),
        ('{"seeds": [1], "config": {"nope": 2}}', "no setting nope"),
        ('{"seeds": [1], "grid": {"max_epochs": [1, 0]}}', "max_epochs"),
        ('{"seeds": [1], "grid": {"max_epochs": [1, 1]}}', "same value twice"),
        ('{"seeds": [1], "grid": {"max_epochs": {"a": 1}}}', "needs a list"),
        ('{"seeds": [1], "grid": 3}', "not a sweep"),
        ('{"seeds": [1], "grid": {}, "schedules": []}', "no setting schedules of a sweep"),
        ("[]", "object"),
        ("{", "not JSON"),
    ],
)
def test_what_is_no_job_is_told(text, message):
    with pytest.raises(ValueError, match=message):
        job_from_json(text)


def test_values_as_people_write_them():
    assert [json_value(text) for text in ("0.1", ".9", "1.", "[1, 2]", "adam")] == [0.1, 0.9, 1.0, [1, 2], "adam"]
    assert [json_value(text) for text in ("true", "nan", ".", "1.2.3")] == [True, "nan", ".", "1.2.3"]
    assert json_values("0.1, adam; [1, 2],") == [0.1, "adam", [1, 2]]
    codes = ["Constant(beta=0.5, update_every=2)", "UniformAverage()"]
    assert json_values(", ".join(codes)) == codes
    assert json_values(" ") == []


#: What a person, or a link, may put where values belong.
GARBAGE = (
    *("0.9, 0.99", "-1", "1.5", "0", "1e400", "1e-400", "NaN", "-Infinity", "9" * 400, "9" * 5000, str(2**63)),
    *("[]", "{}", "null", "true", "0.5, true", "[[0.9]]", "[1, [2, {}]]", '{"family": "Constant"}', "[" * 10_000),
    *("", ",", ";;", '"', '"x"', "\\", "\x00", "é", "adam", "csv", "[1, 2", "2, 2", "2, 2.0", "lambda: 1"),
    *("Constant", "Constant(", "Constant(0.9)", "Constant(beta=[])", "Constant(beta=None)", "Constant(**{})"),
    *("Constant(beta=0.9).x", "Constant(family=1)", "Schedule()", "Constant(beta=0.9, update_every=0)", "(" * 10_000),
)
SETTINGS = (*dotted(json.loads(RunConfig().to_json())), "schedule", "seed", "optimizer", "schedule.", "nope", "", ".")


@pytest.mark.parametrize("name", SETTINGS)
def test_any_values_of_any_setting_are_a_sweep_or_a_sentence(name):
    other = {"max_epochs": [1]} if name != "max_epochs" else {"network.dropout": [0.1]}
    for text in GARBAGE:
        try:
            sweep = Sweep(RunConfig(), {name: json_values(text), **other}, (0, 1))
        except ValueError as error:
            told = str(error)
        else:
            told = "a sweep"
            assert job_from_json(sweep.to_json()) == sweep
        assert told


def test_a_bare_decay_is_a_constant_one():
    sweep = Sweep(RunConfig(), {"schedule": json_values("0.9, 0.99, UniformAverage(), 1")}, (0,))
    codes = ["Constant(beta=0.9)", "Constant(beta=0.99)", "UniformAverage()", "Constant(beta=1)"]
    assert [settings["schedule"] for settings, _ in sweep.cells()] == codes
    assert [config.schedule for _, config in sweep.cells()] == [
        Constant(0.9),
        Constant(0.99),
        UniformAverage(),
        Constant(1),
    ]
    assert with_settings(RunConfig(), {"schedule": "0.9"}).schedule == Constant(0.9)
    for value in ([], {}, None, True, [0.9]):
        with pytest.raises(ValueError, match="schedule must be code such as"):
            with_settings(RunConfig(), {"schedule": value})
    with pytest.raises(ValueError, match="same value twice"):
        Sweep(RunConfig(), {"schedule": [0.9, "Constant(beta=0.9)"]}, (0,))
    with pytest.raises(ValueError, match="must be numbers, texts"):
        Sweep(RunConfig(), {"optimizer.learning_rate": [Constant()]}, (0,))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1, 2;3", [1, 2, 3]),
        ("Constant(beta=0.9, update_after_step=5), 0.5", ["Constant(beta=0.9, update_after_step=5)", 0.5]),
        ("[1, 2], [3]", [[1, 2], [3]]),
        ("a), b(, c", ["a)", "b(, c"]),
        (" , ;", []),
        ("," * LETTERS, []),
    ],
)
def test_values_in_one_text(text, values):
    assert json_values(text) == values


def test_too_many_values_or_letters_are_told():
    for text, words in (("," * (LETTERS + 1), "letters of values"), ("1," * (VALUES + 1), "at most 1,000 values")):
        with pytest.raises(ValueError, match=words):
            json_values(text)


class Unread(Sequence):
    """A hundred million seeds, of which none may be looked at."""

    def __len__(self):
        return 10**8

    def __getitem__(self, place):
        raise AssertionError("a seed was looked at")


def test_too_many_seeds_and_cells_are_told_before_any_is_made():
    with pytest.raises(ValueError, match="at most 10,000 seeds"):
        Study(RunConfig(), Unread())
    many = list(range(1, 10**4))
    with pytest.raises(ValueError, match="at most 2,500 cells"):
        Sweep(RunConfig(), {"max_epochs": many, "stopping.patience": many}, (0,))
    with pytest.raises(ValueError, match="at most 1,000,000 trainings"):
        Sweep(RunConfig(), {"max_epochs": list(range(1, 1001))}, range(2000))


def test_settings_for_others_name_no_folder():
    data = DataConfig("csv", path="/home/somebody/tables/0123.csv", target="y")
    for job in (RunConfig(data=data), Study(RunConfig(data=data), (1,)), RunConfig()):
        shared = shared_json(job)
        assert "somebody" not in shared
        assert ("0123.csv" in shared) == (getattr(job, "config", job).data.path is not None)
        job_from_json(shared)
