"""Texts by a steered model, and where it was steered: all that `fewstep proxy` does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..core.device import best_device
from ..core.progress import progress
from ..core.receipt import receipt
from ..masked.prompts import bare, encode
from .acted import Acted, spelled, where_acted
from .choices import Writing
from .load import Trio
from .tuning import generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer


@dataclass(frozen=True)
class Written:
    """One text.

    Attributes:
        prompt: the text before it.
        text: the generated text.
        whole: both, as the large model's tokenizer decodes them.
        acted: where the text was steered.
    """

    prompt: str
    text: str
    whole: str
    acted: Acted


def write(
    models: Trio,
    prompts: Sequence[str],
    writing: Writing = Writing(),
    *,
    chat: bool = False,
    streamer: BaseStreamer | None = None,
    out: Path | None = None,
    **facts: Any,
) -> list[Written]:
    """Continues each prompt with the large model, steered by the small ones; no weights are changed.

    Args:
        models: from `load_trio`.
        prompts: texts, none of them empty.
        writing: how long, and how tokens are chosen.
        chat: the expert reads each prompt in its chat template; the others read it as it is.
        streamer: shows one text while it is written.
        out: folder for proxy.json, with all settings and every changed token.
        facts: for the receipt in proxy.json.

    Raises:
        ValueError: a prompt is empty, or there is no chat template.
    """
    options = writing.options(models.tokenizer.pad_token_id)
    inputs = encoded(models.tokenizer, prompts)
    own = encoded(models.small_tokenizer, prompts, chat=True) if chat else None
    facts |= {"chat": chat, "generation": options, "seed": writing.seed}
    with receipt(out / "proxy.json" if out else None, **facts) as entries:
        torch.manual_seed(writing.seed)
        made = _generated(models, inputs, own, options, streamer)
        ends = models.base.generation_config.eos_token_id
        texts = [up_to_end(row, ends) for row in made[:, inputs["input_ids"].shape[1] :].tolist()]
        acted = where_acted(models.base, models.proxy, _rows(inputs), texts, expert_prompts=_rows(own) if own else None)
        written = [
            Written(prompt, _read(models, ids), _read(models, [*before.tolist(), *ids]), each)
            for prompt, before, ids, each in zip(prompts, _rows(inputs), texts, acted, strict=True)
        ]
        entries["texts"] = [
            {"prompt": w.prompt, "text": w.text, "acted": spelled(w.acted, models.tokenizer)} for w in written
        ]
    return written


def check_texts(prompts: Sequence[str], alpha: Sequence[float]) -> None:
    """Raises ValueError for prompts or α that cannot be used, before anything is loaded."""
    if not prompts or not alpha:
        raise ValueError("--prompt and --alpha each need at least one value")
    if not all(text.strip() for text in prompts):
        raise ValueError("each --prompt needs some text")
    if not all(map(math.isfinite, alpha)):
        raise ValueError(f"--alpha must be a finite number, got {' '.join(map(str, alpha))}")


def _generated(
    models: Trio,
    inputs: dict[str, Tensor],
    own: dict[str, Tensor] | None,
    options: dict[str, Any],
    streamer: BaseStreamer | None,
) -> Tensor:
    """Ids of prompts and texts, (B, L); shows the progress if nothing streams."""
    with nullcontext() if streamer is not None else progress("writing", options["max_new_tokens"]) as done:
        made: Tensor = generate(
            models.base, models.proxy, inputs["input_ids"], attention_mask=inputs["attention_mask"], expert_inputs=own,
            streamer=streamer, stopping_criteria=[_Told(done)] if done else (), **options,
        )  # fmt: skip
    return made


def _read(models: Trio, ids: list[int]) -> str:
    return str(models.tokenizer.decode(ids, skip_special_tokens=True))


class _Told:
    """A stopping criterion that never stops, and reports the progress."""

    def __init__(self, done: Callable[[float], None]) -> None:
        self.done = done

    def __call__(self, ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        self.done(1)
        return ids.new_zeros(len(ids)).bool()


def encoded(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, chat: bool = False) -> dict[str, Tensor]:
    """Ids and mask of the prompts, (B, L) each, padded on the left."""
    if not all(bare(tokenizer, prompt) for prompt in prompts):
        raise ValueError("each --prompt needs some text")
    turns = [[{"role": "user", "content": prompt}] if chat else prompt for prompt in prompts]
    return padded([encode(tokenizer, turn) for turn in turns], tokenizer.pad_token_id)


def padded(rows: Sequence[Sequence[int]], fill: int) -> dict[str, Tensor]:
    """Ids and mask of texts, (B, L) each, padded on the left."""
    ids = [torch.tensor(row) for row in rows]
    all_ids = pad_sequence(ids, batch_first=True, padding_value=fill, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side="left")
    return {"input_ids": all_ids.to(best_device()), "attention_mask": mask.to(best_device())}


def _rows(inputs: dict[str, Tensor]) -> list[Tensor]:
    """The texts without their padding."""
    return [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]


def up_to_end(ids: list[int], ends: int | list[int] | None) -> list[int]:
    """`ids` up to the first token that ends a text, which is included."""
    known = set(ends) if isinstance(ends, list) else {ends}
    return next((ids[: place + 1] for place, token in enumerate(ids) if token in known), ids)
