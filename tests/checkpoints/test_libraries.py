"""Files that libraries wrote themselves: which section is what, after which step, and that its numbers are theirs."""

import shutil
import warnings

import ema_pytorch
import lightning
import pytest
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainerCallback, TrainingArguments

from emacore import EMA, Constant, LastFiles, Snapshots, merge, open_checkpoints
from tests.helpers import Network, change, tensors


def values(section):
    return {name: tensor.value() for name, tensor in section.tensors.items()}


def assert_holds(section, expected):
    found = values(section)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_lightnings_state_dict_is_the_average_where_it_averages(tmp_path):
    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"width": 3})
            self.net = nn.Linear(3, 1)

        def training_step(self, batch, index):
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    raw = {}

    class Keep(lightning.Callback):
        def on_train_batch_end(self, trainer, *rest):
            raw[trainer.global_step] = tensors(trainer.lightning_module)

    class Keeping(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            Snapshots(pl_module, tmp_path / "snapshots", every=3).attach(trainer.optimizers[0])

    averaging = EMAWeightAveraging(decay=0.5, update_starting_at_step=0)
    trainer = lightning.Trainer(
        max_epochs=1,
        callbacks=[
            averaging,
            Keep(),
            Keeping(),
            ModelCheckpoint(tmp_path / "own", every_n_train_steps=2, save_top_k=-1, save_last=True),
        ],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, DataLoader(TensorDataset(torch.randn(18, 3)), batch_size=3))
    snapshots = open_checkpoints(tmp_path / "snapshots")
    assert snapshots.steps.tolist() == [3, 6]
    mean = sum(raw[step]["net.weight"] for step in (4, 5, 6)) / 3
    torch.testing.assert_close(snapshots[1].sections[0].tensors["net.weight"].value(), mean)
    found = open_checkpoints(tmp_path / "own")
    assert found.steps.tolist() == [2, 4, 6]
    assert not found.damaged
    assert [words for words in found.told if "left out" in words] == [
        "last.ckpt: left out, because epoch=0-step=6.ckpt is of step 6, too"
    ]
    for one in found:
        kinds = {section.name: section.kind for section in one.sections}
        assert kinds == {"state_dict": "average", "current_model_state": "raw"}
        assert one.step_from == "global_step"
        assert_holds(one.section("current_model_state"), raw[one.step])
    assert [one.section("state_dict").about["updates"] for one in found] == [2, 4, 6]
    average = values(found[-1].section("state_dict"))
    expected = {name: tensor.clone() for name, tensor in raw[1].items()}
    for step in range(2, 7):
        expected = {name: 0.5 * tensor + 0.5 * raw[step][name] for name, tensor in expected.items()}
    for name, tensor in expected.items():
        torch.testing.assert_close(average[name], tensor)


@pytest.fixture(scope="module")
def trainer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    config = BertConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    ids = torch.randint(0, 50, (12, 8))
    data = [{"input_ids": row, "labels": row} for row in ids]
    settings = TrainingArguments(
        output_dir=folder, max_steps=6, save_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_steps=100,
    )  # fmt: skip

    class Keeping(TrainerCallback):
        def on_train_begin(self, args, state, control, model, optimizer, **kwargs):
            Snapshots(model, folder / "snapshots", every=3).attach(optimizer)

    trainer = Trainer(model=model, args=settings, train_dataset=data, callbacks=[Keeping()])
    trainer.train()
    trainer.save_model(folder)
    model.save_pretrained(folder / "sharded" / "checkpoint-8", max_shard_size="2KB")
    return folder, model


def test_trainers_checkpoints_have_the_step_of_their_state(trainer_folder):
    folder, model = trainer_folder
    assert open_checkpoints(folder / "snapshots").steps.tolist() == [3, 6]
    shutil.rmtree(folder / "snapshots")
    found = open_checkpoints(folder)
    assert found.steps.tolist() == [2, 4, 6, 8]
    assert {one.step_from for one in found[:3]} == {"global_step in trainer_state.json"}
    assert not found.damaged
    assert "model.safetensors: left out, because it does not tell its step, nor does its name" in found.told
    sharded = found[3]
    assert len(sharded.files) == 3
    expected = {name: tensor.detach() for name, tensor in model.named_parameters()}  # ties once
    for one in (found[2], sharded):
        assert_holds(one.sections[0], expected)


def test_a_merge_of_trainers_checkpoints_loads_as_a_model(trainer_folder, tmp_path):
    folder, _ = trainer_folder
    found = open_checkpoints([folder / f"checkpoint-{step}" for step in (2, 4, 6)])
    [place] = merge(found, {"mean": LastFiles(3)}, tmp_path / "out")
    loaded = BertForMaskedLM.from_pretrained(place)
    name = "bert.embeddings.word_embeddings.weight"
    mean = sum(one.sections[0].tensors[name].value() for one in found) / 3
    torch.testing.assert_close(loaded.state_dict()[name], mean)
    assert loaded.cls.predictions.decoder.weight is loaded.bert.embeddings.word_embeddings.weight


def test_timms_savers_files(tmp_path):
    from argparse import Namespace

    model = Network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ema = ModelEmaV3(model, decay=0.9)
    saver = CheckpointSaver(
        model, optimizer, args=Namespace(model="net", lr=0.1), model_ema=ema, checkpoint_dir=tmp_path, max_history=9
    )
    kept = {}
    for epoch in range(3):
        change(model, epoch)
        ema.update(model)
        saver.save_checkpoint(epoch, metric=float(epoch))
        kept[epoch + 1] = tensors(model), tensors(ema.module)
    found = open_checkpoints(tmp_path)
    assert found.steps.tolist() == [1, 2, 3]
    assert any("epochs stand for steps" in words for words in found.told)
    for one in found:
        raw, average = kept[one.step]
        assert (one.section("state_dict").kind, one.section("state_dict_ema").kind) == ("raw", "average")
        assert_holds(one.section("state_dict"), raw)
        assert_holds(one.section("state_dict_ema"), average)


def test_diffusers_averages_as_a_model_and_as_a_state(tmp_path):
    from diffusers import AutoencoderTiny

    model = AutoencoderTiny(encoder_block_out_channels=(4, 4, 4, 4), decoder_block_out_channels=(4, 4, 4, 4))
    ema = EMAModel(model.parameters(), decay=0.9, model_cls=AutoencoderTiny, model_config=model.config)
    for step in (1, 2):
        change(model, step)
        ema.step(model.parameters())
        model.save_pretrained(tmp_path / f"checkpoint-{step}" / "unet")
        ema.save_pretrained(tmp_path / f"checkpoint-{step}" / "unet_ema")
    found = open_checkpoints(tmp_path)
    assert found.steps.tolist() == [1, 2]
    kinds = {section.name: section.kind for section in found[1].sections}
    assert sorted(kinds.values()) == ["average", "raw"]
    average = next(section for section in found[1].sections if section.kind == "average")
    assert average.about["decay"] == 0.9
    named = [name for name, _ in model.named_parameters()]
    expected = dict(zip(named, (one.detach() for one in ema.shadow_params), strict=True))
    assert_holds(average, expected)

    torch.save({"model": model.state_dict(), "ema": ema.state_dict(), "step": 7}, tmp_path / "state.pt")
    state = open_checkpoints(tmp_path / "state.pt")[0]
    assert state.step == 7
    assert_holds(state.section("ema"), expected)
    assert state.section("ema").about["optimization_step"] == 2


def test_ema_pytorchs_states(tmp_path):
    model = Network()
    ema = ema_pytorch.EMA(model, beta=0.5, update_after_step=0, update_every=1)
    post_hoc = ema_pytorch.PostHocEMA(
        model,
        sigma_rels=(0.05, 0.28),
        update_every=1,
        checkpoint_every_num_steps=2,
        checkpoint_folder=tmp_path / "many",
    )
    for step in range(4):
        change(model, step)
        ema.update()
        post_hoc.update()
    torch.save(ema.state_dict(), tmp_path / "state.pt")
    state = open_checkpoints(tmp_path / "state.pt")[0]
    assert state.step == 4
    assert [(section.name, section.kind) for section in state.sections] == [
        ("ema_model", "average"),
        ("online_model", "raw"),
    ]
    assert_holds(state.section("ema_model"), tensors(ema.ema_model))
    assert_holds(state.section("online_model"), tensors(model))
    many = open_checkpoints(tmp_path / "many")
    assert many.steps.tolist() == [2, 4]
    assert [section.name for section in many[0].sections] == ["0.*:ema_model", "1.*:ema_model"]
    assert {section.kind for section in many[0].sections} == {"average"}


def test_our_own_state_with_its_accumulators(tmp_path):
    model = Network().to(torch.bfloat16)
    ema = EMA(model, schedule=Constant(0.9))
    for step in range(3):
        change(model, step)
        ema.update()
    torch.save({"ema": ema.state_dict(), "step": 3}, tmp_path / "state.pt")
    section = open_checkpoints(tmp_path / "state.pt")[0].section("ema.ema_model")
    assert (section.kind, section.about["step"]) == ("average", 3)
    assert section.tensors["first.weight"].dtype == torch.float32  # the exact average, not the rounded shadow
    assert section.tensors["norm.num_batches_tracked"].value().item() == 2
