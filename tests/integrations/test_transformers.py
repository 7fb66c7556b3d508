"""Averages in Transformers' Trainer itself, and of PEFT's adapters, against plain loops over what was written down."""

import copy
import json
from functools import partial

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

from emacore import EMA, Averages, Constant, InversePower, PowerFunction, Snapshots, open_checkpoints
from emacore.integrations.transformers import FILE, Averaging
from emacore.snippets import snippets
from emacore.tensors.sharded import gathered, is_sharded
from tests.helpers import (
    assert_close,
    assert_same,
    assert_same_files,
    averaged,
    check_in_two_processes,
    meet,
    shard_on_the_cpu,
    tensors,
)

SCHEDULES = {"fast": InversePower(0.8, update_after_step=1, update_every=1), "slow": Constant(0.95)}


class Data(Dataset):
    def __init__(self, count=24, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(5, 40, (count, 6), generator=generator)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": int(self.tokens[index].sum()) % 2}


def made():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=40, max_position_embeddings=8, **sizes))


def adapted(model=None):
    torch.manual_seed(1)
    return get_peft_model(model or made(), LoraConfig(r=2, target_modules=["query", "value"], task_type="SEQ_CLS"))


class Notes(TrainerCallback):
    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(whole(model))


class Sharding(Trainer):
    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        shard_on_the_cpu(self.accelerator)
        self.is_fsdp_enabled = True


def whole(module):
    return {name: gathered(tensor) for name, tensor in tensors(module).items()}


def trained(folder, model=None, schedule=SCHEDULES, *, kind=Trainer, resume=None, arguments=None, **options):
    notes = Notes()
    settings = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "save_strategy": "steps",
        "save_steps": 4,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
    }
    trainer = kind(
        model or made(),
        TrainingArguments(folder, **settings | (arguments or {})),
        train_dataset=Data(),
        eval_dataset=Data(8, seed=1),
        callbacks=[notes],
    )
    averaging = Averaging(trainer, schedule, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, averaging, notes


@pytest.mark.parametrize("every", [1, 3])
def test_each_step_of_the_optimiser_is_a_call(every, tmp_path):
    trainer, averaging, notes = trained(tmp_path, arguments={"gradient_accumulation_steps": every})
    assert trainer.state.global_step == len(notes.weights) == 12 // every
    for name, schedule in SCHEDULES.items():
        assert averaging.averages[name].step.item() == 12 // every
        assert_close(tensors(averaging.averages[name].ema_model), averaged(notes.weights, schedule))
    assert_same(tensors(trainer.model), tensors(averaging.averages["fast"].ema_model))


def test_checkpoints_hold_the_average_and_runs_go_on_from_both(tmp_path):
    """Saved in the middle of an epoch of six steps, with data in an order drawn at random."""
    trainer, averaging, notes = trained(tmp_path / "whole", at_end="original")
    assert_same(tensors(trainer.model), notes.weights[-1])
    path = tmp_path / "whole" / "checkpoint-4"
    plain = BertForSequenceClassification.from_pretrained(path)
    assert_close(tensors(plain), averaged(notes.weights[:4], SCHEDULES["fast"]))
    kept = torch.load(path / FILE, weights_only=True)
    assert_same({name: kept["training"][name] for name in notes.weights[3]}, notes.weights[3])
    resumed, again, later = trained(tmp_path / "whole", resume=str(path), at_end="original")
    assert_same(later.weights[0], notes.weights[4])
    assert_same(tensors(resumed.model), tensors(trainer.model))
    for name in SCHEDULES:
        assert_same(again.averages[name].state_dict(), averaging.averages[name].state_dict())


def test_snapshots_go_on_with_the_averages(tmp_path):
    """Saved in the middle of an epoch of six steps, of two batches each, with data in an order drawn at random."""

    def run(name, resume=None, steps=-1):
        snapshots = partial(Snapshots, folder=tmp_path / name, every=3)
        arguments = {"eval_strategy": "no", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        arguments |= {"max_steps": steps, "lr_scheduler_type": "constant"}
        folder = tmp_path / f"{name}-run"
        return trained(folder, schedule=Constant(0.9), resume=resume, snapshots=snapshots, arguments=arguments)

    *_, notes = run("whole", steps=11)
    run("cut", steps=8)
    for later in sorted((tmp_path / "cut").iterdir())[1:]:
        later.write_bytes(b"what a run wrote that did not go on")
    run("cut", resume=str(tmp_path / "cut-run" / "checkpoint-4"), steps=11)
    assert_same_files(tmp_path / "cut", tmp_path / "whole")
    found = open_checkpoints(tmp_path / "cut")
    assert found.steps.tolist() == [3, 6, 9, 11]
    name = "classifier.weight"
    expected = sum(weights[name] for weights in notes.weights[3:6]) / 3
    torch.testing.assert_close(found[1].sections[0].tensors[name].value(), expected)


@pytest.mark.parametrize("validate", ["average", "original", "both"])
def test_what_is_validated(validate, tmp_path):
    trainer, averaging, _ = trained(tmp_path, validate=validate, at_end="original")
    logged = [entry for entry in trainer.state.log_history if any(name.endswith("loss") for name in entry)]
    found = {name: value for entry in logged for name, value in entry.items() if name.endswith("loss")}
    found.pop("train_loss")
    original = trainer.evaluate()["eval_loss"]
    for name in SCHEDULES:
        with averaging.averages[name].average_parameters():
            expected = trainer.evaluate()["eval_loss"]
        assert expected != pytest.approx(original, rel=1e-4)
        if name == "fast":
            assert found["eval_loss"] == pytest.approx(original if validate == "original" else expected, rel=1e-5)
        if validate == "both":
            assert found["eval_original_loss"] == pytest.approx(original, rel=1e-5)
        if validate == "both" and name == "slow":
            assert found["eval_slow_loss"] == pytest.approx(expected, rel=1e-5)
    assert ("eval_original_loss" in found) == (validate == "both")


def test_the_best_checkpoint_is_the_best_average(tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    trainer, _, notes = trained(tmp_path, validate="both", arguments=best)
    losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    step = min(losses, key=losses.get)
    assert trainer.state.best_global_step == step
    assert_close(tensors(trainer.model), averaged(notes.weights[:step], SCHEDULES["fast"]))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[step], rel=1e-5)


def test_adapters_alone_are_averaged_and_saved(tmp_path):
    trainer, averaging, notes = trained(tmp_path, adapted(), trainable_only=True, arguments={"save_steps": 6})
    ema = averaging.averages["fast"]
    trains = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert set(ema.weights) == trains
    expected = averaged(notes.weights, SCHEDULES["fast"])
    assert_close(ema.weights, {name: expected[name] for name in trains})
    path = tmp_path / "checkpoint-12"
    assert (path / "adapter_model.safetensors").stat().st_size < 20_000
    plain = PeftModel.from_pretrained(made(), path)
    assert_close(tensors(plain), expected)
    resumed, again, _ = trained(
        tmp_path, adapted(), trainable_only=True, resume=str(tmp_path / "checkpoint-6"), arguments={"save_steps": 6}
    )
    assert_same(again.averages["slow"].weights, averaging.averages["slow"].weights)
    assert_same(tensors(resumed.model), tensors(trainer.model))


@pytest.mark.parametrize("kind", [EMA, Averages])
def test_adapters_are_averaged_in_a_loop(kind, tmp_path):
    model = adapted().eval()
    base = copy.deepcopy(model.get_base_model().state_dict())
    average = (
        EMA(model, schedule=Constant(0.5), trainable_only=True)
        if kind is EMA
        else Averages(model, {"a": Constant(0.5)}, trainable_only=True)
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    average.attach(optimizer)
    batch = {name: torch.stack([torch.as_tensor(row[name]) for row in Data(4)]) for name in ("input_ids", "labels")}
    noted = []
    for _ in range(4):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        noted.append(tensors(model))
    expected = averaged(noted, Constant(0.5))
    with average.average_parameters(*([] if kind is EMA else ["a"])):
        assert_close(tensors(model), expected)
        model.save_pretrained(tmp_path)
        swapped = model(**batch).logits
    assert_same(tensors(model), noted[-1])
    assert_same(
        {
            n: t
            for n, t in model.get_base_model().state_dict().items()
            if "lora" not in n and "modules_to_save" not in n
        },
        {n: t for n, t in base.items() if "lora" not in n and "modules_to_save" not in n},
    )
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    plain = PeftModel.from_pretrained(made(), tmp_path).eval()
    torch.testing.assert_close(plain(**batch).logits, swapped)
    if kind is EMA:
        torch.testing.assert_close(average(**batch).logits, swapped)


def test_the_average_is_fed_back(tmp_path):
    trainer, averaging, _ = trained(tmp_path, feed_back="epoch", at_end="original")
    assert_same(tensors(trainer.model), tensors(averaging.averages["fast"].ema_model))


def test_a_checkpoint_without_averages_is_told(tmp_path):
    trained(tmp_path)
    path = tmp_path / "checkpoint-8"
    (path / FILE).unlink()
    with pytest.warns(UserWarning, match="checkpoint-8 holds no averages"):
        trained(tmp_path, resume=str(path))
    assert json.loads((path / "trainer_state.json").read_text())["global_step"] == 8


def test_an_accumulated_run_goes_on_in_the_middle_of_an_epoch(tmp_path):
    arguments = {"gradient_accumulation_steps": 2, "save_steps": 2, "eval_strategy": "no"}
    whole, averaging, notes = trained(tmp_path, arguments=arguments)
    assert averaging.averages["fast"].step.item() == len(notes.weights) == 6
    resumed, again, _ = trained(tmp_path, resume=str(tmp_path / "checkpoint-2"), arguments=arguments)
    assert_same(tensors(resumed.model), tensors(whole.model))
    for name in SCHEDULES:
        assert_same(again.averages[name].weights, averaging.averages[name].weights)


def test_a_trainer_has_one(tmp_path):
    trainer = Trainer(made(), TrainingArguments(tmp_path, report_to="none", use_cpu=True))
    Averaging(trainer, Constant(0.9))
    with pytest.raises(ValueError, match="has an Averaging already: give that one several schedules"):
        Averaging(trainer, Constant(0.5))


def test_schedule_free_training_is_told_apart(tmp_path):
    with pytest.raises(ValueError, match="AdamWScheduleFree is schedule-free"):
        trained(tmp_path, arguments={"optim": "schedule_free_adamw"})


def sharded_run(rank, folder):
    """In one of two processes: what is right of a trainer that shards by FSDP2."""
    meet(rank, folder)
    arguments = {"save_steps": 3, "eval_steps": 3, "load_best_model_at_end": True, "ddp_backend": "gloo"}
    arguments |= {"per_device_eval_batch_size": 4}
    trainer, averaging, notes = trained(folder / "run", kind=Sharding, arguments=arguments)
    assert all(map(is_sharded, trainer.model.parameters()))
    assert len(notes.weights) == 6
    assert {ema.step.item() for ema in averaging.averages.values()} <= {3, 6}  # the best of them has been loaded
    for step in (3, 6):
        plain = BertForSequenceClassification.from_pretrained(folder / "run" / f"checkpoint-{step}")
        assert_close(tensors(plain), averaged(notes.weights[:step], SCHEDULES["fast"]))
    best = int(trainer.state.best_model_checkpoint.rpartition("-")[2])
    assert_close(whole(trainer.model), averaged(notes.weights[:best], SCHEDULES["fast"]))
    arguments["load_best_model_at_end"] = False
    path = str(folder / "run" / "checkpoint-3")
    resumed, again, later = trained(folder / "run", kind=Sharding, resume=path, arguments=arguments)
    for found, expected in zip(later.weights, notes.weights[3:], strict=True):
        assert_same(found, expected)
    assert_close(whole(again.averages["slow"].ema_model), averaged(notes.weights, SCHEDULES["slow"]))
    assert_same(whole(resumed.model), whole(again.averages["fast"].ema_model))
    (folder / f"right{rank}").touch()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_trainer_that_shards_by_fsdp2_keeps_averages_and_goes_on(tmp_path):
    check_in_two_processes(sharded_run, tmp_path)


def test_the_snippet_averages_as_the_schedule_says(tmp_path, monkeypatch):
    schedule = PowerFunction(sigma_rel=0.1)
    (code,) = [snippet.code for snippet in snippets(schedule) if snippet.library == "Transformers"]
    monkeypatch.chdir(tmp_path)
    model, notes = made(), Notes()
    code = code.replace("batches)", "batches, callbacks=[notes])")
    code = code.replace('"none")', '"none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False)')
    exec(code, {"model": model, "batches": Data(), "notes": notes})
    assert_close(tensors(model), averaged(notes.weights, schedule))
