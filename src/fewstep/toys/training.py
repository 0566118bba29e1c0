"""Training by transformers' Trainer, on items that are a function of their number."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from ..core.device import finite
from ..core.files import disk_errors
from ..core.interrupts import Interrupt, Interrupted
from ..core.private import around_checkpoints
from ..core.receipt import plain, write_json
from ..core.resuming import check_same, goes_on, running
from ..core.source import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
STATE = "trainer_state.json"  # what the Trainer writes last


class Numbered(Dataset[Item], Generic[Item]):
    """Items 0 to n − 1, made when they are asked for; so a resumed run sees what an uninterrupted one would."""

    def __init__(self, make: Callable[[int], Item], n: int) -> None:
        self.make, self.n = make, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: int) -> Item:
        return self.make(number)


def fit(
    model: PreTrainedModel,
    items: Numbered[Item],
    collate: Callable[[Sequence[Item]], dict[str, Tensor]],
    out: Path,
    *,
    batch: int = 128,
    rate: float = 1e-3,
    warmup: int = 100,
    seed: int = 0,
    resume: bool = False,
    bf16: bool = False,
    save_every: float = 120.0,
    loss: Callable[..., Tensor] | None = None,
) -> None:
    """Trains `model` in place, once through `items` in order, the rate falling to 0 along a cosine.

    Args:
        model: takes what `collate` returns; `labels` among it give the loss unless `loss` computes it.
        items: what to see.
        collate: makes a batch of tensors of items.
        out: folder of the run; `checkpoint-*` in it hold what `resume` goes on from, `settings.json` how it began.
        batch: items a step.
        rate: peak learning rate of AdamW, after `warmup` steps.
        warmup: steps.
        seed: of dropout.
        resume: go on from the last checkpoint in `out`.
        bf16: mixed precision.
        save_every: seconds between checkpoints.
        loss: (outputs, labels, num_items_in_batch=…) -> scalar.

    Raises:
        ValueError: there is a run in `out` and `resume` is not asked for, or it began otherwise, or its checkpoint is
            damaged.
        FloatingPointError: the weights are no longer finite; what was saved before is good.
        Interrupted: the run was told to stop; its last checkpoint is of that step.
        OSError: it was told to stop and could not write that checkpoint.
    """
    with running(out) as interrupt:
        settings = {"items": len(items), "batch": batch, "rate": rate, "warmup": warmup, "seed": seed, "bf16": bf16}
        last = _begun(out, settings | {"network": model.config.to_diff_dict()}, resume=resume)
        arguments = _arguments(batch=batch, rate=rate, warmup=warmup, seed=seed, bf16=bf16)
        trainer = Trainer(
            model=model, args=TrainingArguments(output_dir=str(out), **arguments), train_dataset=items,
            data_collator=collate, compute_loss_func=loss, callbacks=[_Saves(interrupt, save_every)],
        )  # fmt: skip
        checkpoints = _Checkpoints(trainer)
        with _read(last):
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        done = f"stopped after {min(trainer.state.global_step * batch, len(items))} of {len(items)} items"
        if interrupt.by and checkpoints.missing:
            raise OSError(f"{done}; {checkpoints.missing}: make room, and --resume goes on from what was saved before")
    if interrupt.by:
        raise Interrupted(f"{done}; they are saved, go on with --resume", interrupt.by)


def _begun(out: Path, settings: dict[str, Any], *, resume: bool) -> Path | None:
    """The checkpoint to go on from, None for a new run, whose settings are kept.

    Raises:
        ValueError: there is a run and `resume` is not asked for, or it began with other settings.
    """
    last = _last_checkpoint(out)
    if goes_on(out, saved=last is not None, resume=resume):
        check_same(read_json(out / "settings.json", "it says how the run began; start it anew"), plain(settings))
    else:
        write_json(out / "settings.json", settings)
    return last


def _arguments(*, batch: int, rate: float, warmup: int, seed: int, bf16: bool) -> dict[str, Any]:
    """The Trainer's, by which it goes once through the items in order and leaves saving to us."""
    return {
        "per_device_train_batch_size": batch, "num_train_epochs": 1, "learning_rate": rate, "warmup_steps": warmup,
        "lr_scheduler_type": "cosine", "seed": seed, "train_sampling_strategy": "sequential", "save_strategy": "no",
        "save_total_limit": 1, "logging_steps": 100, "report_to": "none", "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(), "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False, "max_grad_norm": 1.0, "adam_beta2": 0.98,
    }  # fmt: skip


def _last_checkpoint(out: Path) -> Path | None:
    """Where the run in `out` goes on; what a killed one left without its state, which comes last, is removed."""
    folders = _checkpoints(out)
    for step, folder in [*folders.items()]:
        if not (folder / STATE).exists():
            shutil.rmtree(folders.pop(step))
    return folders[max(folders)] if folders else None


def steps_saved(out: Path) -> int:
    """The steps that the run in `out` has done when it was saved last."""
    return max((step for step, folder in _checkpoints(out).items() if (folder / STATE).exists()), default=0)


def _checkpoints(out: Path) -> dict[int, Path]:
    return {int(folder.name.removeprefix("checkpoint-")): folder for folder in out.glob("checkpoint-*")}


@contextmanager
def _read(checkpoint: Path | None) -> Iterator[None]:
    """Says so where a checkpoint cannot be read; the Trainer takes plain tensors, and of others it says how to run them."""
    try:
        yield
    except (UnpicklingError, SafetensorError, JSONDecodeError, UnicodeDecodeError, EOFError, RuntimeError) as error:
        if checkpoint is None or (isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error)):
            raise
        raise ValueError(f"{checkpoint} is damaged, or not of our making; start the run anew in another folder") from error


class _Saves(TrainerCallback):  # type: ignore[misc]
    """Decides after each step whether the state is to be saved, and whether to stop."""

    def __init__(self, interrupt: Interrupt, every: float) -> None:
        self.interrupt, self.every, self.saved = interrupt, every, time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> TrainerControl:
        if not finite(parts["model"]):
            raise FloatingPointError(
                f"step {state.global_step}: the weights after it are not finite; start anew, in another folder and with a "
                "lower --rate"
            )
        stop, due = self.interrupt.by > 0, time.monotonic() - self.saved >= self.every
        control.should_save = stop or due or state.global_step >= state.max_steps
        control.should_training_stop |= stop
        if control.should_save:
            self.saved = time.monotonic()
        return control


class _Checkpoints:
    """Writes those of a trainer: a full disk costs one of them, not the weights in memory.

    Attributes:
        missing: why the last one is not there, if it is not.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.missing = trainer, ""
        around_checkpoints(trainer, self.save)

    def save(self, write: Callable[[], None]) -> None:
        folder = Path(str(self.trainer.args.output_dir)) / f"checkpoint-{self.trainer.state.global_step}"
        try:
            with disk_errors(folder):
                write()
            self.missing = ""
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            self.missing = f"{folder} could not be written ({error.strerror or error})"
            logger.warning("%s: make room", self.missing)
