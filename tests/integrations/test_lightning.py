"""The callback in Lightning itself, against averages of the weights that a plain callback wrote down."""

from functools import partial

import lightning.pytorch as pl
import pytest
import schedulefree
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from emacore import Constant, InversePower, PowerFunction, Snapshots, open_checkpoints
from emacore.integrations.lightning import AveragingCallback
from emacore.snippets import snippets
from tests.helpers import assert_close, assert_same, assert_same_files, averaged, tensors

X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
DATA = TensorDataset(X, X.sum(1, keepdim=True))
SCHEDULES = {"fast": InversePower(0.8, update_after_step=1, update_every=1), "slow": Constant(0.95)}


class Model(pl.LightningModule):
    def __init__(self, optimizer=torch.optim.AdamW):
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
        self.mean = MeanMetric()
        self._kind = optimizer

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, index):
        return (self(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch, index):
        loss = (self(batch[0]) - batch[1]).square().mean()
        self.mean(loss)
        self.log_dict({"val_loss": loss})
        self.log("val_mean", self.mean)

    def configure_optimizers(self):
        return self._kind(self.parameters(), lr=0.05)


class Notes(pl.Callback):
    """The weights after each batch, and the validation losses of the weights that are in the model then."""

    def __init__(self, averages):
        self.weights, self.losses, self._averages = [], [], averages

    def on_train_batch_end(self, trainer, model, *args):
        self.weights.append(weights(model))

    def on_validation_end(self, trainer, model):
        if not trainer.sanity_checking:
            with torch.no_grad():
                self.losses.append((loss(model), {name: loss(ema) for name, ema in self._averages.averages.items()}))


class Saves(pl.Callback):
    """One that comes first, and saves while the average may still be in the model."""

    def __init__(self, folder):
        self._path = folder / "validated.ckpt"

    def on_validation_end(self, trainer, model):
        trainer.save_checkpoint(self._path)


def weights(model):
    return tensors(model.net)


def loss(model):
    model.eval()
    return sum((model(x) - y).square().mean() * len(x) for x, y in DataLoader(DATA, 8)).item() / len(DATA)


def fit(folder, averaging, model=None, *, epochs=2, steps=-1, path=None, every=1, **options):
    model = model or Model()
    notes = Notes(averaging)
    checkpoints = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, **options)
    trainer = pl.Trainer(
        max_epochs=epochs,
        max_steps=steps,
        accelerator="cpu",
        callbacks=[Saves(folder), averaging, notes, checkpoints],
        accumulate_grad_batches=every,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(DATA, 4), DataLoader(DATA, 8), ckpt_path=path)
    return model, notes, trainer


@pytest.mark.parametrize("every", [1, 2])
def test_each_step_of_the_optimiser_is_a_call(every, tmp_path, recwarn):
    averaging = AveragingCallback(SCHEDULES)
    model, notes, trainer = fit(tmp_path, averaging, every=every)
    stepped = notes.weights[every - 1 :: every]
    for name, schedule in SCHEDULES.items():
        assert averaging.averages[name].step.item() == trainer.global_step == len(stepped) == 12 // every
        assert_close(weights(averaging.averages[name].ema_model), averaged(stepped, schedule))
    assert_same(weights(model), weights(averaging.averages["fast"].ema_model))
    assert not any("average keeps its own" in str(warning.message) for warning in recwarn)  # of what metrics count


@pytest.mark.parametrize("validate", ["average", "original", "both"])
def test_what_is_validated(validate, tmp_path):
    averaging = AveragingCallback(SCHEDULES, validate=validate)
    _, notes, trainer = fit(tmp_path, averaging)
    (original, averages), logged = notes.losses[-1], trainer.callback_metrics
    assert original != pytest.approx(averages["fast"], rel=1e-3)
    expected = averages["fast"] if validate == "average" else original
    assert logged["val_loss"].item() == pytest.approx(expected, rel=1e-5)
    assert logged["val_mean"].item() == pytest.approx(expected, rel=1e-5)
    assert ("val_loss/fast" in logged) == (validate == "both")
    if validate == "both":
        for name, value in averages.items():
            assert logged[f"val_loss/{name}"].item() == pytest.approx(value, rel=1e-5)
            assert logged[f"val_mean/{name}"].item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"names": ["net.3.weight", "net.3.bias"]}], ids=["all", "a part"])
@pytest.mark.parametrize("step", [4, 6], ids=["in an epoch", "at its end"])
def test_a_run_goes_on_where_it_was_saved(options, step, tmp_path):
    whole = AveragingCallback(SCHEDULES, **options)
    model, notes, _ = fit(tmp_path / "whole", whole)
    fit(tmp_path / "first", AveragingCallback(SCHEDULES, **options), steps=step)
    path = tmp_path / "first" / f"step={step}.ckpt"
    # The module that the checkpoint gives by itself is the average; the run goes on from the training weights.
    plain = Model.load_from_checkpoint(path)
    resumed = AveragingCallback(SCHEDULES, **options)

    class Look(pl.Callback):
        def on_train_start(self, trainer, module):
            self.began = weights(module), weights(resumed.averages["fast"].ema_model)

    look = Look()
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[resumed, look],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    other = Model()
    trainer.fit(other, DataLoader(DATA, 4), DataLoader(DATA, 8), ckpt_path=path)
    assert_same(look.began[0], notes.weights[step - 1])
    assert_same(look.began[1], weights(plain))
    if step == 6:  # Lightning begins an epoch's data anew, where it was saved in the middle of one
        for name in SCHEDULES:
            assert_same(weights(resumed.averages[name].ema_model), weights(whole.averages[name].ema_model))
        assert_same(weights(other), weights(model))
    for name in SCHEDULES:
        assert resumed.averages[name].step.item() == 12


@pytest.mark.parametrize("alone", [False, True], ids=["whole", "weights alone"])
def test_checkpoints_hold_the_average(alone, tmp_path):
    averaging = AveragingCallback(Constant(0.9), at_end="original")
    model, notes, trainer = fit(tmp_path, averaging, save_weights_only=alone)
    assert_same(weights(model), notes.weights[-1])
    for step in (3, 12):
        plain = Model.load_from_checkpoint(tmp_path / f"step={step}.ckpt")
        assert_close(weights(plain), averaged(notes.weights[:step], Constant(0.9)))
    validated = torch.load(tmp_path / "validated.ckpt", weights_only=False)
    assert torch.equal(validated["emacore"]["training"]["net.0.weight"], notes.weights[-1]["0.weight"])
    assert torch.equal(validated["state_dict"]["net.0.weight"], plain.net[0].weight)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert_same(
        weights(Model.load_from_checkpoint(tmp_path / "after.ckpt")), weights(averaging.averages["average"].ema_model)
    )


class ByHand(Model):
    """Two optimisers, which it steps itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[n].parameters(), 0.05) for n in (0, 3)]

    def training_step(self, batch, index):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, index))
        for optimizer in self.optimizers():
            optimizer.step()


class Diverges(Model):
    """One batch's loss is not a number, and the weights are put back then."""

    def training_step(self, batch, index):
        return super().training_step(batch, index) * (torch.nan if index == 3 else 1)

    def on_train_batch_start(self, batch, index):
        self.kept = {name: tensor.clone() for name, tensor in self.state_dict().items()}

    def on_train_batch_end(self, outputs, batch, index):
        if not all(parameter.isfinite().all() for parameter in self.parameters()):
            self.load_state_dict(self.kept)


def test_two_optimisers_of_a_batch_are_one_call(tmp_path):
    averaging = AveragingCallback(SCHEDULES)
    _, notes, trainer = fit(tmp_path, averaging, ByHand())
    assert trainer.global_step == 2 * len(notes.weights)
    assert_close(weights(averaging.averages["slow"].ema_model), averaged(notes.weights, SCHEDULES["slow"]))


@pytest.mark.filterwarnings("ignore:.*not finite")
def test_steps_that_are_not_finite_are_skipped(tmp_path):
    averaging = AveragingCallback(Constant(0.5), on_nonfinite="skip")
    model = Diverges(torch.optim.SGD)
    fit(tmp_path, averaging, model, epochs=1)
    ema = averaging.averages["average"]
    assert ema.step.item() == 6
    assert ema.nonfinite_calls == 1
    assert all(tensor.isfinite().all() for tensor in ema.weights.values())


def test_an_error_in_the_validation_leaves_the_training_weights(tmp_path):
    class Fails(Model):
        def validation_step(self, batch, index):
            if not self.trainer.sanity_checking:
                raise ZeroDivisionError

    averaging, model = AveragingCallback(Constant(0.9)), Fails()
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, averaging, model)
    assert not torch.equal(model.net[0].weight, averaging.averages["average"].ema_model.net[0].weight)
    averaging.averages["average"].update()  # nothing stands open


def test_an_accumulated_run_goes_on_in_the_middle_of_an_epoch(tmp_path):
    whole, resumed = AveragingCallback(SCHEDULES), AveragingCallback(SCHEDULES)
    _, notes, _ = fit(tmp_path / "whole", whole, every=2)
    began = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer, module):
            began.update(weights(module), average=weights(resumed.averages["fast"].ema_model))

    trainer = pl.Trainer(
        max_epochs=2,
        accumulate_grad_batches=2,
        accelerator="cpu",
        callbacks=[resumed, Look()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(DATA, 4), DataLoader(DATA, 8), ckpt_path=tmp_path / "whole" / "step=2.ckpt")
    assert_close(began.pop("average"), averaged(notes.weights[1:4:2], SCHEDULES["fast"]))
    assert_same(began, notes.weights[3])
    assert resumed.averages["slow"].step.item() == trainer.global_step == 6


def test_training_goes_on_from_a_checkpoint_of_after_the_end(tmp_path):
    whole = AveragingCallback(Constant(0.9))
    fit(tmp_path / "whole", whole, epochs=3)
    *_, trainer = fit(tmp_path / "first", AveragingCallback(Constant(0.9)), epochs=2)
    trainer.save_checkpoint(tmp_path / "after.ckpt")
    resumed = AveragingCallback(Constant(0.9))
    fit(tmp_path / "second", resumed, epochs=3, path=tmp_path / "after.ckpt")
    for found, expected in zip(resumed.averages.values(), whole.averages.values(), strict=True):
        assert_same(weights(found.ema_model), weights(expected.ema_model))


@pytest.mark.parametrize("kind", ["windows", "power"])
def test_snapshots_go_on_with_the_averages(kind, tmp_path, monkeypatch):
    """Saved in the middle of an epoch, whose batches are all alike: Lightning begins its data anew."""
    monkeypatch.setattr(DATA, "tensors", tuple(tensor[:4].repeat(6, 1) for tensor in DATA.tensors))

    def run(name, **options):
        snapshots = partial(Snapshots, folder=tmp_path / name, every=2, kind=kind)
        averaging = AveragingCallback(Constant(0.9), snapshots=snapshots)
        return fit(tmp_path / "checkpoints" / name, averaging, every=1, **options)

    run("whole", steps=11)
    _, notes, _ = run("cut", steps=9)
    path = tmp_path / "checkpoints" / "cut" / "step=3.ckpt"
    for later in sorted((tmp_path / "cut").iterdir())[1 if kind == "windows" else 2 :]:
        later.write_bytes(b"what a run wrote that did not go on")
    run("cut", steps=11, path=path)
    assert_same_files(tmp_path / "cut", tmp_path / "whole")
    found = open_checkpoints(tmp_path / "cut")
    assert found.steps.tolist() == [2, 4, 6, 8, 10, 11]
    if kind == "windows":
        mean = found[1].sections[0].tensors["net.0.weight"].value()
        torch.testing.assert_close(mean, (notes.weights[2]["0.weight"] + notes.weights[3]["0.weight"]) / 2)
    with pytest.raises(FileExistsError, match="holds snapshots already"):
        run("cut")


def test_the_average_is_fed_back_after_each_epoch(tmp_path):
    averaging = AveragingCallback(Constant(0.9), feed_back="epoch", at_end="original", validate="original")
    model, notes, _ = fit(tmp_path, averaging)
    assert_same(weights(model), weights(averaging.averages["average"].ema_model))
    assert not torch.equal(model.net[0].weight, notes.weights[-1]["0.weight"])


def test_what_cannot_be_is_told(tmp_path):
    with pytest.raises(ValueError, match="validate must be one of"):
        AveragingCallback(Constant(0.9), validate="ema")
    with pytest.raises(TypeError, match="'a' must be a schedule, such as .*, got 0.9"):
        AveragingCallback({"a": 0.9})
    with pytest.raises(TypeError, match="schedule must be given by name, such as .*, got 0.9"):
        AveragingCallback(0.9)
    with pytest.raises(ValueError, match="at least one schedule"):
        AveragingCallback({})
    with pytest.raises(ValueError, match="include_online_model is set by the integration"):
        AveragingCallback(Constant(0.9), include_online_model=True)
    with pytest.raises(ValueError, match="is schedule-free"):
        fit(tmp_path, AveragingCallback(Constant(0.9)), Model(lambda p, lr: schedulefree.AdamWScheduleFree(p, lr=lr)))
    with pytest.raises(ValueError, match="several AveragingCallbacks"):
        pl.Trainer(
            callbacks=[AveragingCallback(Constant(0.9)), AveragingCallback(Constant(0.8))],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(Model(), DataLoader(DATA, 4))
    fit(tmp_path / "without", AveragingCallback(Constant(0.9)))
    checkpoint = torch.load(tmp_path / "without" / "step=3.ckpt", weights_only=False)
    del checkpoint["emacore"]
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    with pytest.warns(UserWarning, match="holds no averages"):
        fit(tmp_path / "again", AveragingCallback(Constant(0.9)), path=tmp_path / "foreign.ckpt")


def test_a_module_that_its_strategy_shards_is_refused():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = Model()
        fully_shard(model.net, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"no place for the parts of averages: keep an emacore\.EMA"):
            AveragingCallback(Constant(0.9)).on_sanity_check_start(None, model)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("schedule", [Constant(0.9, update_after_step=5, update_every=3), PowerFunction(sigma_rel=0.1)])
def test_the_snippet_averages_as_the_schedule_says(schedule, monkeypatch):
    (code,) = [snippet.code for snippet in snippets(schedule) if snippet.library == "Lightning"]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    model, notes = Model(), Notes(AveragingCallback(schedule))
    add = {"enable_model_summary": False, **quiet}
    trainer = pl.Trainer
    monkeypatch.setattr(
        pl, "Trainer", lambda callbacks, **given: trainer(callbacks=[*callbacks, notes], **given, **add)
    )
    exec(code, {"model": model, "batches": DataLoader(DATA, 2)})
    assert len(notes.weights) == 12
    expected = averaged(notes.weights, schedule)
    for name, tensor in model.net.named_parameters():
        torch.testing.assert_close(tensor.detach(), expected[name])
