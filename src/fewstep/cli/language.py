"""The command that trains a small masked diffusion language model from nothing."""

from __future__ import annotations

from pathlib import Path


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

    `fewstep decode` and the other text commands take the result, OUT/model. The mix of tasks changes at fixed steps
    (fewstep.toys.tasks.text_stages), so a much shorter run sees almost only sudoku.

    Args:
        out: folder of the run.
        items: number of training items, each used once; about a third belong to each family of tasks.
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
    from ..toys.bundled import train_masked

    train_masked(
        out, items=items, batch=batch, hidden=hidden, layers=layers, heads=heads, intermediate=intermediate, rate=rate,
        seed=seed, save_every=save_every, resume=resume,
    )  # fmt: skip
    print(f"the language model is in {out / 'model'}")
