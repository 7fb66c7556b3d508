import json
from dataclasses import replace

import pytest

from emacore.averaging.schedules import Constant, UniformAverage
from emacore.experiments.studies import Study, Sweep, _dotted, job_from_json, json_value, json_values, with_settings
from emacore.experiments.sweep import columns_of
from emacore.tasks.regression.config import RunConfig


def test_settings_by_dotted_names():
    changed = with_settings(RunConfig(), {"schedule.beta": 0.7, "schedule": "Constant(beta=0.5)", "data.n_samples": 50})
    assert changed == replace(RunConfig(), schedule=Constant(0.7), data=replace(RunConfig().data, n_samples=50))
    for name in ("optimizer.rate", "optimizer", "nope.x", "schedule.powers", "seed.x"):
        with pytest.raises(ValueError, match=r"there is no setting '.*optimizer.learning_rate"):
            with_settings(RunConfig(), {name: 1})
    with pytest.raises(ValueError, match="optimizer.learning_rate must be"):
        with_settings(RunConfig(), {"optimizer.learning_rate": -1})


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
    known = set(_dotted(json.loads(RunConfig().to_json()))) | {"schedule"}
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
    assert [json_value(text) for text in ("0.1", "[1, 2]", "adam", "true")] == [0.1, [1, 2], "adam", True]
    assert json_values("0.1, adam; [1, 2],") == [0.1, "adam", [1, 2]]
    codes = ["Constant(beta=0.5, update_every=2)", "UniformAverage()"]
    assert json_values(", ".join(codes)) == codes
    assert json_values(" ") == []
