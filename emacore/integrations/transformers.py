"""Averages in Transformers' Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from emacore.averaging.schedules import Schedule
from emacore.ema import EMA
from emacore.integrations.several import MakeTracker, Several, Validate, check_settings, named
from emacore.tensors.pairing import unwrapped
from emacore.tensors.sharded import is_sharded
from emacore.tensors.steps import after_each_step

#: The file in a checkpoint with all averages, and the training weights in whose place the first average is saved.
FILE = "averages.pt"
#: The folder in a checkpoint of a sharded model with all averages, in parts.
PARTS = "averages"


class Averaging(TrainerCallback):  # type: ignore[misc]
    """Keeps averages of the weights that a Trainer trains, one call of the schedule for each step of its optimiser.

    It adds itself to the trainer.  What the trainer saves is the first average, in the form of ``save_pretrained``, so
    that ``from_pretrained`` gives the averaged model and the best checkpoint is the best average.  Training weights and
    averages are beside it in ``averages.pt``: ``train(resume_from_checkpoint=...)`` goes on from both, bit for bit.

    Where the trainer shards by FSDP2, each process averages its part, and all averages are in the folder ``averages``;
    the training weights are in the trainer's own files then, and the best average is put into the model at the end.
    With the state dictionary type ``SHARDED_STATE_DICT`` the trainer writes no file in the form of ``save_pretrained``,
    and so none of the average.

    Args:
        trainer: A ``transformers.Trainer``, or a trainer of a class derived from it.
        schedule: A schedule, or several by the names of their averages; the first is the one that is kept.
        validate: ``"average"`` evaluates the first average, as ``eval_loss``; ``"both"`` also the training weights, as
            ``eval_original_loss``, and further averages, as ``eval_NAME_loss``.
        at_end: What the model holds after ``train()``, if it does not load the best checkpoint then.
        feed_back: ``"epoch"`` makes the model its first average after each epoch, a number after so many steps.
        snapshots: Makes :class:`emacore.Snapshots` of the model, ``functools.partial(Snapshots, folder="snapshots",
            every=1000)`` for instance; they take the same steps, and are saved and go on with the averages.
        options: Of :class:`emacore.EMA`: ``trainable_only=True`` for adapters, ``names``, ``device``, ...

    Attributes:
        averages: The averages by name, each an :class:`emacore.EMA`, from the start of the training on.

    Raises:
        ValueError: for a trainer that shards by FSDP1, DeepSpeed or tensor parallelism, or has an ``Averaging``.

    Example::

        trainer = Trainer(model, arguments, train_dataset=data)
        Averaging(trainer, PowerFunction(sigma_rel=0.1))
        trainer.train()
    """

    def __init__(
        self,
        trainer: Any,
        schedule: Schedule | Mapping[str, Schedule],
        *,
        validate: Validate = "average",
        at_end: Literal["average", "original"] = "average",
        feed_back: int | Literal["epoch"] | None = None,
        snapshots: MakeTracker | None = None,
        **options: Any,
    ) -> None:
        check_settings(validate, at_end, feed_back, options)
        if any(isinstance(callback, Averaging) for callback in trainer.callback_handler.callbacks):
            raise ValueError("the trainer has an Averaging already: give that one several schedules, by name")
        if trainer.is_fsdp_enabled and trainer.accelerator.state.fsdp_plugin.fsdp_version == 1:
            raise ValueError(
                "the trainer shards by FSDP1, which flattens weights and keeps pieces of them: choose FSDP2 "
                "(fsdp_config={'fsdp_version': 2})"
            )
        if trainer.is_deepspeed_enabled:
            raise ValueError(
                "the trainer shards by DeepSpeed, which keeps weights where they cannot be averaged: choose FSDP2, or "
                "keep an emacore.EMA in a loop of yours with ZeRO-2"
            )
        self._trainer, self._schedules = trainer, named(schedule)
        self._validate, self._at_end, self._feed_back, self._options = validate, at_end, feed_back, options
        self._snapshots = snapshots
        self._several: Several | None = None
        self._trains = self._is_sharded = False
        self._handle: Any = None
        self._resumed: Path | None = None
        self._own = {name: getattr(trainer, name) for name in ("train", "evaluate", "save_model")}
        trainer.train, trainer.evaluate, trainer.save_model = self._train, self._evaluate, self._save_model
        trainer.add_callback(self)

    @property
    def averages(self) -> Mapping[str, EMA]:
        return {} if self._several is None else self._several.emas

    # Events of the trainer ----------------------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model = unwrapped(self._trainer.model)
        self._is_sharded = any(map(is_sharded, model.parameters()))
        if self._is_sharded and not self._trainer.is_fsdp_enabled:
            raise ValueError(
                "the model is sharded otherwise than by the trainer's FSDP2 (tensor parallelism), and is not saved "
                "with its training weights: keep an emacore.EMA in a loop of yours"
            )
        self._several = Several(model, self._schedules, self._feed_back, self._options, self._snapshots)
        if self._resumed is not None:
            self._resume(self._several, self._resumed)
        self._several.begin()
        self._handle = after_each_step(self._trainer.optimizer, model, self._several.update)
        self._trains = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._feed_back == "epoch" and self._several is not None:
            self._several.emas[self._several.main].update_model_with_ema()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._stop()
        if self._several is not None:
            self._several.close()
        if self._several is None:
            return
        at_end = self._at_end
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            if not self._is_sharded:
                return  # the best checkpoint has been loaded, which holds an average
            # Of a sharded model, the training weights beside that average have been loaded.
            self._several.load_parts(Path(state.best_model_checkpoint) / PARTS, snapshots=False)
            at_end = "average"
        if at_end == "average":
            self._several.emas[self._several.main].update_model_with_ema(decay=0.0)

    # In place of the trainer's methods ----------------------------------------------------------------------------

    def _train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(resume_from_checkpoint, bool):
            found = get_last_checkpoint(self._trainer.args.output_dir) if resume_from_checkpoint else None
        else:
            found = resume_from_checkpoint
        self._resumed = None if found is None else Path(found)
        try:
            return self._own["train"](resume_from_checkpoint, *args, **kwargs)
        finally:
            self._stop()

    def _evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        def evaluated(prefix: str) -> dict[str, float]:
            found: dict[str, float] = self._own["evaluate"](eval_dataset, ignore_keys, prefix, **kwargs)
            return found

        several = self._several
        # After the training the model is evaluated as it is; and a trainer calls itself for each of several data sets.
        if several is None or not self._trains or several.inside is not None or self._validate == "original":
            return evaluated(metric_key_prefix)
        metrics: dict[str, float] = {}
        if self._validate == "both":
            several.inside = "the training weights"  # for those data sets
            try:
                metrics |= evaluated(f"{metric_key_prefix}_original")
            finally:
                several.inside = None
            for name in several.emas:
                if name != several.main:
                    with several.swapped(name):
                        metrics |= evaluated(f"{metric_key_prefix}_{name}")
        with several.swapped():
            return metrics | evaluated(metric_key_prefix)

    def _save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        several = self._several
        if several is None or not self._trains:
            self._own["save_model"](output_dir, _internal_call)
            return
        ema, folder = several.emas[several.main], Path(output_dir or self._trainer.args.output_dir)
        training = {} if self._is_sharded else {name: tensor.clone() for name, tensor in ema.followed().items()}
        with several.swapped():
            self._own["save_model"](output_dir, _internal_call)
        if _internal_call and self._is_sharded:
            several.save_parts(folder / PARTS)
        elif _internal_call and self._trainer.args.should_save:
            torch.save({"training": training, "averages": several.state_dict()}, folder / FILE)

    # ----------------------------------------------------------------------------------------------------------------

    def _resume(self, several: Several, folder: Path) -> None:
        if not (folder / (PARTS if self._is_sharded else FILE)).exists():
            warnings.warn(f"{folder} holds no averages: they begin anew, from its weights", stacklevel=2)
            return
        if self._is_sharded:
            several.load_parts(folder / PARTS)
            return
        kept = torch.load(folder / FILE, map_location="cpu", weights_only=True)
        followed = several.emas[several.main].followed()
        if followed.keys() != kept["training"].keys():
            raise ValueError(f"{folder / FILE} is of another model, or of another part of it")
        for name, tensor in followed.items():
            tensor.copy_(kept["training"][name])
        several.load_state_dict(kept["averages"])

    def _stop(self) -> None:
        self._trains = False
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
