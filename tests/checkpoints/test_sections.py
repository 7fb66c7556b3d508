import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from emacore import EMA, Constant, open_checkpoints
from emacore.averaging.coefficients import LastFiles
from emacore.checkpoints.planning import plan_merge
from emacore.checkpoints.sections import sections_of, step_beside, step_of
from emacore.checkpoints.stored import CheckpointError, open_file

WEIGHTS = {"a.weight": torch.ones(2, 3), "a.count": torch.tensor(4)}


def saved(folder, content, name="a.pt"):
    torch.save(content, folder / name)
    return open_file(folder / name)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (WEIGHTS, {"": "raw"}),
        ({"model": WEIGHTS, "model_ema": WEIGHTS}, {"model": "raw", "model_ema": "average"}),
        ({"state_dict": WEIGHTS, "state_dict_ema": WEIGHTS}, {"state_dict": "raw", "state_dict_ema": "average"}),
        (
            {"current_model_state": WEIGHTS, "state_dict": WEIGHTS},
            {"current_model_state": "raw", "state_dict": "average"},
        ),
        ({"net": WEIGHTS, "swa_net": WEIGHTS, "epoch": 3}, {"net": "raw", "swa_net": "average"}),
        ({"schema": WEIGHTS, "demand": WEIGHTS}, {"schema": "raw", "demand": "raw"}),
        (
            {"gan": {"generator": WEIGHTS, "generator_ema": WEIGHTS}},
            {"gan.generator": "raw", "gan.generator_ema": "average"},
        ),
        (
            {"state_dict": WEIGHTS, "callbacks": {"SWA": {"average_model_state": WEIGHTS}}},
            {"state_dict": "raw", "callbacks.SWA": "average"},
        ),
        (
            {"model": WEIGHTS, "ema": {"decay": 0.9, "shadow_params": [torch.ones(2, 3)]}},
            {"model": "raw", "ema": "average"},
        ),
    ],
)
def test_which_part_is_what(tmp_path, content, expected):
    state = {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}} if content is not WEIGHTS else {}
    found = sections_of(saved(tmp_path, {**content, **state}))
    assert {section.name: section.kind for section in found} == expected
    for section in found:
        assert torch.equal(section.tensors["a.weight"].value(), WEIGHTS["a.weight"])


def test_edm2s_averages_tell_their_widths(tmp_path):
    content = {"net": WEIGHTS, "ema": {"stds": [0.05, 0.1], "emas": [WEIGHTS, WEIGHTS]}}
    found = sections_of(saved(tmp_path, content, "training-state-0000512.pt"))
    assert [(section.name, section.about) for section in found if section.kind == "average"] == [
        ("ema-0.050", {"sigma_rel": 0.05}),
        ("ema-0.100", {"sigma_rel": 0.1}),
    ]
    assert [section.name for section in found if section.kind == "raw"] == ["net"]


def test_prefixes_of_wrappers_are_no_part_of_names(tmp_path):
    model = nn.Linear(2, 2)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(model)
    [section] = sections_of(saved(tmp_path, averaged.state_dict()))
    assert (section.kind, section.about, list(section.tensors)) == ("average", {"updates": 1}, ["weight", "bias"])
    wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    [section] = sections_of(saved(tmp_path, {"model": wrapped}))
    assert list(section.tensors) == ["weight", "bias"]


def test_ties_are_there_once(tmp_path):
    weight = torch.randn(4, 2)
    [section] = sections_of(saved(tmp_path, {"in.weight": weight, "bias": torch.ones(4), "out.weight": weight}))
    assert (list(section.tensors), section.ties) == (["in.weight", "bias"], {"out.weight": "in.weight"})
    assert section.nbytes == 8 * 4 + 4 * 4


def test_a_file_named_after_an_average_holds_one(tmp_path):
    for name, kind in [("ema_0.9999_010000.pt", "average"), ("step_5-EMA.ckpt", "average"), ("schema_3.pt", "raw")]:
        assert [section.kind for section in sections_of(saved(tmp_path, WEIGHTS, name))] == [kind]


def test_an_average_without_names_keeps_numbers_where_none_fit(tmp_path):
    shadow = {"decay": 0.9, "optimization_step": 5, "shadow_params": [torch.ones(3), torch.zeros(2)]}
    [section] = sections_of(saved(tmp_path, shadow))
    assert (list(section.tensors), section.about["decay"]) == (["0", "1"], 0.9)


def test_what_is_no_model_is_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights of a model; it has 'lr', 'order'"):
        sections_of(saved(tmp_path, {"lr": 0.1, "order": torch.arange(3)}))
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(CheckpointError, match="'b' of a class that is no plain tensor"):
        sections_of(saved(tmp_path, {"a": torch.ones(2), "b": sparse}))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": WEIGHTS, "global_step": 70, "epoch": 2}, (70, "global_step")),
        ({"model": WEIGHTS, "step": torch.tensor(8)}, (8, "step")),
        ({"model": WEIGHTS, "train_state": {"step": torch.tensor(9)}}, (9, "train_state.step")),
        ({"model": WEIGHTS, "epoch": 2}, (3, "epoch, counted from 0")),
        ({"model": WEIGHTS, "step": torch.tensor(2050.0).half()}, None),
        ({"model": WEIGHTS, "step": True}, None),
        (WEIGHTS, None),
    ],
)
def test_the_step_that_a_file_tells(tmp_path, content, expected):
    assert step_of(saved(tmp_path, content)) == expected


def test_the_step_in_a_header_or_beside(tmp_path):
    folder = tmp_path / "run" / "checkpoint-30"
    folder.mkdir(parents=True)
    save_file(WEIGHTS, folder / "model.safetensors", {"step": "31"})
    assert step_of(open_file(folder / "model.safetensors")) == (31, "step in its metadata")
    assert step_beside(folder / "model.safetensors", tmp_path / "run") is None
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 30}))
    assert step_beside(folder / "model.safetensors", tmp_path / "run") == (30, "global_step in trainer_state.json")


@pytest.mark.parametrize(
    "told",
    ["", "1.0", "[]", "{", '{"kind": "mean"}', '{"kind": []}', '{"kind": "window"}', '{"kind": "window", "begin": -1}'],
)
def test_what_no_snapshot_says_of_itself_is_told_as_damage(tmp_path, told):
    save_file({"w": torch.ones(2)}, tmp_path / "1.safetensors", {"step": "1", "emacore": '{"kind": "raw"}'})
    save_file({"w": torch.ones(2)}, tmp_path / "2.safetensors", {"step": "2", "emacore": told})
    found = open_checkpoints(tmp_path)
    assert found.steps.tolist() == [1]
    assert [words.partition(" emacore")[0] for words in found.damaged] == ["2.safetensors says of itself"]


def test_weights_are_found_however_deep_and_losses_beside_them_are_none(tmp_path):
    state, optimizer = {"w": torch.ones(2)}, {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}
    content = {"a": {"b": {"c": {"model": state, "ema": state, "opt": optimizer}, "losses": {"x": torch.tensor(1.0)}}}}
    torch.save(content, tmp_path / "a.pt")
    found = sections_of(open_file(tmp_path / "a.pt"))
    assert [(one.name, one.kind) for one in found] == [("a.b.c.model", "raw"), ("a.b.c.ema", "average")]


def test_the_weights_beside_our_average_do_not_ask_for_a_choice(tmp_path):
    model = nn.Linear(2, 1)
    ema = EMA(model, schedule=Constant(0.9))
    ema.update()
    torch.save({"model": model.state_dict(), "ema": ema.state_dict(), "step": 1}, tmp_path / "a.pt")
    plan = plan_merge(open_checkpoints(tmp_path), {"a": LastFiles(1)})
    assert {source.section.name for source in plan.sources} == {"model"}
    assert "made of 'model'; there are 'ema.online_model', too" in plan.remarks


def test_tensors_that_are_no_models_are_told(tmp_path):
    torch.save({"callbacks": {"best": {"score": torch.rand(2)}}}, tmp_path / "step_1.pt")
    with pytest.raises(CheckpointError, match="step_1.pt holds no tensors of a model; it has 'callbacks'"):
        open_checkpoints(tmp_path)


def test_weights_that_an_average_follows_count_where_there_are_no_others(tmp_path):
    model = nn.Linear(2, 1)
    for step in (1, 2):
        torch.save(EMA(model).state_dict(), tmp_path / f"step_{step}.pt")
    found = open_checkpoints(tmp_path)
    assert found.names("raw") == [found.chosen()] == ["online_model"]


def test_other_names_that_a_header_tells_are_ties_and_its_form_is_none(tmp_path):
    save_file({"pt": torch.ones(2), "w": torch.ones(2)}, tmp_path / "a.safetensors", {"format": "pt", "tied": "w"})
    [section] = sections_of(open_file(tmp_path / "a.safetensors"))
    assert section.ties == {"tied": "w"}
