"""Training by transformers' Trainer, on items that are a function of their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from ..core.receipt import check_same, plain, write_json
from ..core.source import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Item = TypeVar("Item")


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
    save_steps: int = 1000,
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
        save_steps: steps between checkpoints.
        loss: (outputs, labels, num_items_in_batch=…) -> scalar.

    Raises:
        ValueError: there is a run in `out` and `resume` is not asked for, or the other way round, or it began otherwise,
            or its checkpoint is damaged.
    """
    from json import JSONDecodeError
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError
    from transformers import Trainer, TrainingArguments

    # a run killed while it saved leaves a folder without its state, which is written last
    states = out.glob("checkpoint-*/trainer_state.json")
    whole = {int(state.parent.name.removeprefix("checkpoint-")): state.parent for state in states}
    last = str(whole[max(whole)]) if whole else None
    if last and not resume:
        raise ValueError(f"there already is a run in {out}; go on with --resume or choose another folder")
    if resume and not last:
        raise ValueError(f"there is no run in {out} to go on with; leave --resume out")
    settings = {"items": len(items), "batch": batch, "rate": rate, "warmup": warmup, "seed": seed, "bf16": bf16,
                "network": model.config.to_diff_dict()}  # fmt: skip
    if resume:
        check_same(read_json(out / "settings.json", "it says how the run began; start it anew"), plain(settings))
    else:
        write_json(out / "settings.json", settings)
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": batch, "num_train_epochs": 1, "learning_rate": rate, "warmup_steps": warmup,
        "lr_scheduler_type": "cosine", "seed": seed, "train_sampling_strategy": "sequential", "save_steps": save_steps,
        "save_total_limit": 1, "logging_steps": 100, "report_to": "none", "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(), "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False, "max_grad_norm": 1.0, "adam_beta2": 0.98,
    }  # fmt: skip
    trainer = Trainer(
        model=model, args=TrainingArguments(output_dir=str(out), **arguments), train_dataset=items,
        data_collator=collate, compute_loss_func=loss,
    )  # fmt: skip
    try:  # it reads plain tensors only; of others it says how to run their code
        trainer.train(resume_from_checkpoint=last)
    except (UnpicklingError, SafetensorError, JSONDecodeError, UnicodeDecodeError, EOFError, RuntimeError) as error:
        if last is None or (isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error)):
            raise
        raise ValueError(f"{last} is damaged, or not of our making; start the run anew in another folder") from error
