"""The command that trains a small masked diffusion language model from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.checks import at_least, positive


def train_text(
    *,
    out: Path,
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
) -> None:
    """Train a small masked diffusion language model on generated tasks: word problems, sudoku, facts of an invented world.

    The result, in OUT/model, is what `fewstep decode` and the other text commands take. Which tasks take turns changes at
    fixed steps (fewstep.toys.tasks.text_stages), so a much shorter run sees little but sudoku.

    Args:
        out: folder of the run.
        items: training items to see, each once; about a third of them are of each family.
        batch: items a step.
        hidden: width of the network.
        layers: of the network.
        heads: of its attention.
        intermediate: width inside a layer.
        rate: peak learning rate; falls to 0 along a cosine.
        seed: of weights and of what is hidden.
        save_every: seconds between saved states; Ctrl-C and SIGTERM save, too.
        resume: go on from the last state in out, if there is one.
    """
    import torch

    from ..core.files import alone_in, atomic_folder
    from ..core.receipt import receipt
    from ..toys.masked import Hidden, new_masked_lm
    from ..toys.tasks import bundled_families, text_stages
    from ..toys.tokens import word_tokenizer
    from ..toys.training import Numbered, fit

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
    settings: dict[str, Any] = {
        "items": items,
        "batch": batch,
        "rate": rate,
        "seed": seed,
        "resumed": resume,
    }
    facts = {"stages": stages, "network": network.config.to_diff_dict()} | settings
    with alone_in(out), receipt(out / "receipt.json", **facts) as entries:
        fit(
            network, Numbered(examples, items), examples.collate, out,
            batch=batch, rate=rate, seed=seed, resume=resume, save_every=save_every,
        )  # fmt: skip
        entries["parameters"] = network.num_parameters()
        with atomic_folder(out / "model") as folder:
            network.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    print(f"the language model is in {out / 'model'}")
