"""How early the trajectories of a checkpoint predict their final images: what `fewstep settle` does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core.checks import at_least, positive
from ..core.files import writable
from ..core.parts import hidden
from ..core.processes import together
from ..core.receipt import receipt
from ..core.weights import mark
from .cond import labelled
from .deciding import decided_by
from .measure.comparing import image_shape
from .measure.features import fitting
from .measure.seen import Setting
from .measure.settling import QUANTILES, Settling, settled
from .measuring import diffusion_model
from .report import plot_settling
from .walk import DDIM


@dataclass(frozen=True)
class Settled:
    """How early a checkpoint predicts its final images, and the name of the features that measured it."""

    settling: Settling
    features: str


def settle_checkpoint(
    checkpoint: str,
    out: Path,
    *,
    steps: int = 50,
    within: float = 0.1,
    n: int = 500,
    features: str | None = None,
    label: int | None = None,
    seed: int = 0,
    batch: int = 250,
    precision: str = "no",
) -> Settled:
    """Measures how early a diffusion checkpoint predicts its final images. Writes settle.json and settle.png into `out`.

    Args:
        checkpoint: a diffusers folder or hub id.
        out: folder for the results.
        steps, within, batch, precision: as for `settled`.
        n: number of trajectories, at least 2.
        features: name of an extractor; by default fashion for grey images of 28 pixels and random for all others.
        label: class of the images, for conditional models.
        seed: seed of the first trajectory; the others count up from it.

    Raises:
        ValueError: a number is out of its range, the checkpoint does not exist or is a student, `label` is missing or not
            taken, or the features do not fit the images.
    """
    at_least(2, n=n, steps=steps)
    at_least(1, batch=batch)
    at_least(0, seed=seed, label=label)
    positive(within=within)
    writable(out)
    denoiser = diffusion_model(checkpoint).denoiser
    shape = image_shape(denoiser)
    if bool(denoiser.takes) != (label is not None):
        raise ValueError("this checkpoint " + ("needs a --label" if denoiser.takes else "takes no --label"))
    cond = labelled(None if label is None else torch.full((n,), label))
    taken = features or ("fashion" if shape == (1, 28, 28) else "random")
    network = fitting(taken, shape)[taken]
    facts = {"checkpoint": checkpoint, "features": taken, "label": label, "seed": seed, "n": n, "precision": precision}
    file = out / "settle.json"
    decided = decided_by([Setting("", denoiser, DDIM(steps))]) | {"extractor": mark(network.state_dict())}
    made = settled(
        denoiser, range(seed, seed + n), network, steps=steps, within=within, batch=batch, precision=precision, cond=cond,
        folder=hidden(file), facts=facts | decided,
    )  # fmt: skip
    with together() as here, receipt(file if here.is_main else None, **facts) as entries, made as result:
        entries.update(_said(result), nfe_per_sample=result.calls)
        if here.is_main:
            plot_settling(result, out / "settle.png", features=taken)
    return Settled(result, taken)


def _said(result: Settling) -> dict[str, Any]:
    """The entries of the receipt."""
    return {
        "within": result.within,
        "sigmas": result.sigmas.tolist(),
        "quantiles": {str(q): result.curve(q).tolist() for q in QUANTILES},
        "settled_after_calls": result.settled_at().tolist(),
        "sentence": result.sentence(),
    }
