"""How the bundled masked language model was trained: all that `fewstep train-text` does."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..core.checks import at_least, positive
from ..core.files import alone_in, atomic_folder
from ..core.receipt import receipt
from ..core.resuming import is_complete
from .masked import Hidden, new_masked_lm
from .tasks import bundled_families, text_stages
from .tokens import word_tokenizer
from .training import Numbered, fit, steps_saved

if TYPE_CHECKING:
    from transformers import ModernBertForMaskedLM

logger = logging.getLogger(__name__)


def train_masked(
    out: Path,
    *,
    items: int = 288_000,
    batch: int = 64,
    hidden: int = 128,
    layers: int = 6,
    heads: int = 4,
    intermediate: int = 192,
    rate: float = 2e-3,
    seed: int = 0,
    save_every: float = 120.0,
    resume: bool = False,
) -> ModernBertForMaskedLM:
    """Trains a small masked diffusion language model on generated tasks; writes it into `out`/model, with its tokenizer.

    Args:
        out: folder of the run.
        items: number of training items, each used once.
        batch: items a step.
        hidden, layers, heads, intermediate: of the network, as in `new_masked_lm`.
        rate: peak learning rate; falls to 0 along a cosine.
        seed: of weights and of what is hidden.
        save_every: seconds between saved states.
        resume: go on from the last state in `out`, if there is one.

    Raises:
        ValueError: a number that no network or training can have; and as for `fit`.
    """
    at_least(1, items=items, batch=batch, hidden=hidden, layers=layers, heads=heads, intermediate=intermediate)
    at_least(0, seed=seed, save_every=save_every)
    positive(rate=rate)
    if hidden % heads or hidden // heads % 2:
        raise ValueError(f"--hidden must be a multiple of twice --heads, got {hidden} and {heads}")
    tokenizer = word_tokenizer(word for family in bundled_families().values() for word in family.words)
    torch.manual_seed(seed)
    network = new_masked_lm(tokenizer, hidden=hidden, layers=layers, heads=heads, intermediate=intermediate)
    stages = text_stages()
    examples = Hidden(stages, tokenizer.get_vocab(), batch, seed)
    settings: dict[str, Any] = {"items": items, "batch": batch, "rate": rate, "seed": seed, "resumed": resume}
    facts = {"stages": stages, "network": network.config.to_diff_dict()} | settings
    with alone_in(out):
        complete = steps_saved(out) * batch >= items and is_complete(out, [out / "model"], items=items)
        with receipt(None if complete else out / "receipt.json", **facts) as entries:
            fit(
                network, Numbered(examples, items), examples.collate, out,
                batch=batch, rate=rate, seed=seed, resume=resume, save_every=save_every,
            )  # fmt: skip
            if complete:
                logger.info("the run in %s is complete: it has seen all its %d items", out, items)
                return network
            entries["parameters"] = network.num_parameters()
            with atomic_folder(out / "model") as folder:
                network.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
    return network
