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
STATE = "trainer_state.json"  # the last file that the Trainer writes


class Numbered(Dataset[Item], Generic[Item]):
    """Items 0 to n − 1, made at each access, so a resumed run gets the same items as an uninterrupted one."""

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
    """Trains `model` in place, once through `items` in order; the learning rate falls to 0 along a cosine.

    Args:
        model: takes the batches of `collate`; their `labels` give the loss unless `loss` computes it.
        items: training items.
        collate: makes a batch of tensors from items.
        out: folder of the run; `checkpoint-*` in it hold states to resume from, `settings.json` the settings.
        batch: items a step.
        rate: peak learning rate of AdamW, after `warmup` steps.
        warmup: steps in which the rate rises.
        seed: of dropout.
        resume: go on from the last checkpoint in `out`.
        bf16: mixed precision.
        save_every: seconds between checkpoints.
        loss: (outputs, labels, num_items_in_batch=…) -> scalar.

    Raises:
        ValueError: there is a run in `out` without `resume`, with other settings, or with a damaged checkpoint.
        FloatingPointError: the weights are no longer finite; earlier checkpoints are good.
        Interrupted: the run was told to stop; its last checkpoint is of that step.
        OSError: the run was told to stop and could not write that checkpoint.
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
            raise OSError(f"{done}; {checkpoints.missing}: make room; --resume goes on from the checkpoint before")
    if interrupt.by:
        raise Interrupted(f"{done}; the state is saved, go on with --resume", interrupt.by)


def _begun(out: Path, settings: dict[str, Any], *, resume: bool) -> Path | None:
    """The checkpoint to go on from; None for a new run, whose settings are written.

    Raises:
        ValueError: there is a run without `resume`, or with other settings.
    """
    last = _last_checkpoint(out)
    if goes_on(out, saved=last is not None, resume=resume):
        check_same(read_json(out / "settings.json", "it says how the run began; start it anew"), plain(settings))
    else:
        write_json(out / "settings.json", settings)
    return last


def _arguments(*, batch: int, rate: float, warmup: int, seed: int, bf16: bool) -> dict[str, Any]:
    """Arguments of the Trainer: once through the items in order, without saving of its own."""
    return {
        "per_device_train_batch_size": batch, "num_train_epochs": 1, "learning_rate": rate, "warmup_steps": warmup,
        "lr_scheduler_type": "cosine", "seed": seed, "train_sampling_strategy": "sequential", "save_strategy": "no",
        "save_total_limit": 1, "logging_steps": 100, "report_to": "none", "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(), "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False, "max_grad_norm": 1.0, "adam_beta2": 0.98,
    }  # fmt: skip


def _last_checkpoint(out: Path) -> Path | None:
    """The last complete checkpoint of the run in `out`, None without one; incomplete ones are removed."""
    folders = _checkpoints(out)
    for step, folder in [*folders.items()]:
        if not (folder / STATE).exists():
            shutil.rmtree(folders.pop(step))
    return folders[max(folders)] if folders else None


def steps_saved(out: Path) -> int:
    """The step of the last complete checkpoint of the run in `out`; 0 without one."""
    return max((step for step, folder in _checkpoints(out).items() if (folder / STATE).exists()), default=0)


def _checkpoints(out: Path) -> dict[int, Path]:
    return {int(folder.name.removeprefix("checkpoint-")): folder for folder in out.glob("checkpoint-*")}


@contextmanager
def _read(checkpoint: Path | None) -> Iterator[None]:
    """Raises ValueError if the checkpoint cannot be read; the Trainer's own message advises to run code in the file."""
    try:
        yield
    except (UnpicklingError, SafetensorError, JSONDecodeError, UnicodeDecodeError, EOFError, RuntimeError) as error:
        if checkpoint is None or (isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error)):
            raise
        raise ValueError(
            f"{checkpoint} is damaged, or not a checkpoint of fewstep; start the run anew in another folder"
        ) from error


class _Saves(TrainerCallback):  # type: ignore[misc]
    """Decides after each step whether to save the state, and whether to stop."""

    def __init__(self, interrupt: Interrupt, every: float) -> None:
        self.interrupt, self.every, self.saved = interrupt, every, time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **parts: Any
    ) -> TrainerControl:
        if not finite(parts["model"]):
            raise FloatingPointError(
                f"the weights after step {state.global_step} are not finite; start anew in another folder, with a lower "
                "--rate"
            )
        stop, due = self.interrupt.by > 0, time.monotonic() - self.saved >= self.every
        control.should_save = stop or due or state.global_step >= state.max_steps
        control.should_training_stop |= stop
        if control.should_save:
            self.saved = time.monotonic()
        return control


class _Checkpoints:
    """Writes the checkpoints of a trainer. On a full disk a checkpoint is lost, and the training goes on.

    Attributes:
        missing: why the last checkpoint is missing; "" if it was written.
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
