"""Averages in Lightning's Trainer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.data import extract_batch_size
from torch import Tensor

from emacore.averaging.schedules import Schedule
from emacore.integrations.several import MakeTracker, Several, Validate, check_settings, named
from emacore.tensors.sharded import is_sharded
from emacore.tensors.steps import after_each_step

_KEY = "emacore"


class AveragingCallback(pl.Callback):  # type: ignore[misc]
    """Keeps averages of a LightningModule's weights, one call of the schedule for each batch after which it stepped.

    Batches whose gradients are only accumulated, and steps that AMP skips, are no calls.

    A checkpoint's ``state_dict`` holds the first average, so that ``load_from_checkpoint`` gives the averaged model and
    the best checkpoint the best average, with ``save_weights_only``, too.  Training weights and averages are beside it:
    ``fit(ckpt_path=...)`` goes on from both, bit for bit.

    Args:
        schedule: A schedule, or several by the names of their averages; the first is the one that is kept.
        validate: ``"average"`` puts the first average into the model while it is validated.  ``"both"`` validates the
            training weights and logs each average beside them, as ``val_loss/average``; it calls ``validation_step``
            of the averaged copy, which has metrics of its own.
        at_end: What the model holds after ``fit``.
        feed_back: ``"epoch"`` makes the model its first average after each epoch, a number after so many calls.
        snapshots: Makes :class:`emacore.Snapshots` of the model, ``functools.partial(Snapshots, folder="snapshots",
            every=1000)`` for instance; they take the same steps, and are saved and go on with the averages.
        options: Of :class:`emacore.EMA`: ``trainable_only=True``, ``names``, ``device``, ...

    Attributes:
        averages: The averages by name, each an :class:`emacore.EMA`, from the start of the training on.

    A fit whose strategy shards the module raises ``ValueError``.

    Example::

        Trainer(callbacks=[AveragingCallback(PowerFunction(sigma_rel=0.1))]).fit(model, batches)
    """

    def __init__(
        self,
        schedule: Schedule | Mapping[str, Schedule],
        *,
        validate: Validate = "average",
        at_end: Literal["average", "original"] = "average",
        feed_back: int | Literal["epoch"] | None = None,
        snapshots: MakeTracker | None = None,
        **options: Any,
    ) -> None:
        check_settings(validate, at_end, feed_back, options)
        self._schedules = named(schedule)
        self._validate, self._at_end, self._feed_back, self._options = validate, at_end, feed_back, options
        self._snapshots = snapshots
        self._several: Several | None = None
        self._found: Mapping[str, Any] | None = None  # the state of a checkpoint, until the averages are made
        self._training: dict[str, Any] | None = None  # the training weights, where the model holds the average
        self._block = ExitStack()
        self._handles: list[Any] = []
        self._stepped = False
        self._metrics: dict[str, Any] = {}

    @property
    def averages(self) -> Mapping[str, Any]:
        return {} if self._several is None else self._several.emas

    # Training -----------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if sum(isinstance(callback, AveragingCallback) for callback in trainer.callbacks) > 1:
            raise ValueError("the trainer has several AveragingCallbacks: give one of them several schedules, by name")
        self._several = self._training = None

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer, pl_module)
        self._handles = [
            after_each_step(optimizer, pl_module, self._mark, several=True) for optimizer in trainer.optimizers
        ]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if self._stepped and self._several is not None:
            self._stepped = False
            self._several.update()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._feed_back == "epoch" and self._several is not None:
            self._several.emas[self._several.main].update_model_with_ema()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._several is not None:
            self._several.close()
        if self._at_end == "average" and self._several is not None:
            self._training = _copied(trainer.strategy.lightning_module_state_dict())
            self._several.emas[self._several.main].update_model_with_ema(decay=0.0)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._block.close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the averages once the model is where it trains, and has the weights of the checkpoint."""
        if self._several is not None:
            return
        if any(map(is_sharded, pl_module.parameters())):
            raise ValueError(
                "the trainer's strategy shards the module, and checkpoints have no place for the parts of averages: "
                "keep an emacore.EMA of the sharded network in hooks of the module, and save it with "
                "torch.distributed.checkpoint"
            )
        self._several = Several(pl_module, self._schedules, self._feed_back, self._options, self._snapshots)
        if self._found is not None:
            self._several.load_state_dict(self._found)
            self._found = None
        self._several.begin()
        if self._validate == "both":
            for name, ema in self._several.emas.items():
                self._prepare(ema.ema_model, pl_module, name)
        hook = pl_module.on_save_checkpoint
        pl_module.on_save_checkpoint = self._saving(pl_module, getattr(hook, "own", hook))

    def _mark(self) -> None:
        self._stepped = True

    # Validation ---------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._validate == "average" and self._is_fitting(trainer) and self._several is not None:
            self._block.enter_context(self._several.swapped())

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for shadow in self._shadows(trainer):
            shadow.on_validation_epoch_end()
        for name, metric in self._metrics.items():
            pl_module.log(name, metric.compute(), sync_dist=False)
            metric.reset()
        self._metrics.clear()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._block.close()

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for shadow in self._shadows(trainer):
            shadow.on_validation_epoch_start()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for shadow in self._shadows(trainer):
            several_loaders = len(trainer.num_val_batches) > 1
            with trainer.precision_plugin.val_step_context():
                shadow.emacore_batch_size = extract_batch_size(batch)
                shadow.validation_step(batch, batch_idx, *([dataloader_idx] if several_loaders else []))

    def _shadows(self, trainer: pl.Trainer) -> list[Any]:
        if self._validate != "both" or not self._is_fitting(trainer) or self._several is None:
            return []
        return [ema.ema_model for ema in self._several.emas.values()]

    def _prepare(self, shadow: Any, pl_module: pl.LightningModule, average: str) -> None:
        """Have a copy of the module log what it logs under the name of its average."""
        away = {p.device for p in shadow.parameters()} - {p.device for p in pl_module.parameters()}
        if away:
            raise ValueError(f"validate='both' runs the averages, which are on {away.pop()}: leave device out")
        shadow.trainer = pl_module.trainer

        def log(name: str, value: Any, **about: Any) -> None:
            if hasattr(value, "compute"):  # a metric of the copy's own, of which Lightning knows nothing
                self._metrics[f"{name}/{average}"] = value
                return
            about.pop("prog_bar", None)
            about["batch_size"] = about.get("batch_size") or shadow.emacore_batch_size
            pl_module.log(f"{name}/{average}", value, **about)

        shadow.log = log

    def _is_fitting(self, trainer: pl.Trainer) -> bool:
        return bool(trainer.state.fn == TrainerFn.FITTING)

    # Checkpoints --------------------------------------------------------------------------------------------------

    def _saving(
        self, pl_module: pl.LightningModule, own: Callable[[dict[str, Any]], None]
    ) -> Callable[[dict[str, Any]], None]:
        """The module's hook, because those of callbacks are not called for checkpoints of weights alone."""

        def on_save_checkpoint(checkpoint: dict[str, Any]) -> None:
            several = self._several
            if several is not None and self._training is None and several.inside != several.main:
                with several.swapped():
                    checkpoint["state_dict"] = _copied(pl_module.trainer.strategy.lightning_module_state_dict())
            own(checkpoint)

        on_save_checkpoint.own = own  # type: ignore[attr-defined]
        return on_save_checkpoint

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._several is not None:
            training = self._training or _copied(checkpoint["state_dict"])
            if self._several.inside is not None:  # a callback before this one saves while the average is validated
                self._block.close()
                training = _copied(trainer.strategy.lightning_module_state_dict())
                self._block.enter_context(self._several.swapped())
            checkpoint[_KEY] = {"training": training, "averages": self._several.state_dict()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._is_fitting(trainer):
            return  # what is tested is the average
        if _KEY not in checkpoint:
            rank_zero_warn("The checkpoint holds no averages: they begin anew, from its weights.")
            return
        self._found = checkpoint[_KEY]["averages"]
        trainer.strategy.load_model_state_dict(
            {"state_dict": checkpoint[_KEY]["training"]}, strict=pl_module.strict_loading
        )


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: t.detach().clone() if isinstance(t, Tensor) else copy.deepcopy(t) for name, t in state.items()}
