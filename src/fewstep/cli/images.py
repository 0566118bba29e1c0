"""The commands that use a model: sample, export, and the demo."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from ..core.checks import at_least
from .after import after_exporting, after_sampling

if TYPE_CHECKING:
    from ..diffusion.cond import Cond
    from ..diffusion.model import Model
    from ..diffusion.walk import Walk

SamplerName = Literal["consistency", "heun", "ddim"]


def sample(
    checkpoint: Positional[str],
    /,
    *,
    out: Path,
    n: int = 16,
    steps: int | None = None,
    sampler: SamplerName | None = None,
    middle: float | None = None,
    label: int | None = None,
    seed: int = 0,
    batch: int = 250,
) -> None:
    """Sample images, one PNG a seed, and a sheet of them all; latents go to samples.npz.

    Args:
        checkpoint: a run, a diffusers folder or a hub id, tuned or not.
        out: folder for the images.
        n: how many.
        steps: of the sampler, by default what the model was tuned for, or 2, or 18 of heun, which makes 2·steps − 1 network
            calls.
        sampler: consistency for a tuned model, ddim for one of several segments, heun or ddim for a diffusion model; by
            default what the model was tuned for, and heun for a diffusion model.
        middle: noise level of the second of two steps, EDM students only.
        label: class of the images, for conditional models.
        seed: of the first image; image k has seed + k and is the same at any batch size.
        batch: images at once.
    """
    from ..core.device import best_device
    from ..core.files import writable
    from ..core.nfe import count_nfe
    from ..core.progress import progress
    from ..core.receipt import receipt
    from ..diffusion import walk as walks
    from ..diffusion.cond import NOTHING
    from ..diffusion.formats.folder import load

    at_least(1, n=n, steps=steps, batch=batch)
    at_least(0, seed=seed, label=label)
    if middle is not None and (steps == 1 or sampler not in (None, "consistency")):
        raise ValueError("--middle is the second of two consistency steps; leave it out with one step or another --sampler")
    writable(out)
    model = load(checkpoint).to(best_device())
    walk, denoiser = _walk(model, sampler, steps, middle), model.denoiser
    if bool(denoiser.takes) != (label is not None):
        raise ValueError("this checkpoint " + ("needs a --label" if denoiser.takes else "takes no --label"))
    cond = NOTHING if label is None else _one_class(label, n)
    seeds = range(seed, seed + n)
    levels = walk.levels(denoiser).tolist()
    with receipt(out / "receipt.json", checkpoint=checkpoint, walk=walk, levels=levels, seed=seed) as entries:
        with progress("sampling", n * walk.calls) as done, count_nfe(denoiser.network, done) as nfe:
            x0 = walks.sample(denoiser, seeds, walk, cond, batch=batch)
        denoiser.space.save(denoiser.space.decode(x0), out, [f"{k:06d}" for k in seeds])
        entries |= {"nfe_per_sample": nfe.rows / n, "network_calls": nfe.calls}
    print(f"{n} samples in {out}, {nfe.rows / n:.0f} network calls each")
    after_sampling(checkpoint, model)


def _walk(model: Model, sampler: SamplerName | None, steps: int | None, middle: float | None) -> Walk:
    """The model's own walk, changed as the flags say."""
    from ..diffusion.walk import DDIM, Consistency, Heun

    kinds: dict[str, Callable[..., Walk]] = {"consistency": Consistency, "heun": Heun, "ddim": DDIM}
    walk = model.walk
    if sampler is not None and kinds[sampler] is not type(walk):
        walk = DDIM(walk.steps) if sampler == "ddim" else kinds[sampler]()
    return dataclasses.replace(model, walk=walk).walk_in(steps, middle)


def export(
    checkpoint: Positional[str],
    /,
    *,
    out: Path,
    steps: tuple[int, ...] = (),
    middle: float | None = None,
    measured: Path | None = None,
) -> None:
    """Export a tuned model as a folder that plain diffusers samples, verified in a fresh process.

    Args:
        checkpoint: a run or the model in it; the run's receipt says its segments and goes into the model card.
        out: the folder to write; with several numbers of steps, a folder each in it.
        steps: network calls of the verification and of the card's example. A student of any number of calls becomes a
            pipeline for each number; one of several segments has its own. By default what the model was tuned for.
        middle: noise level of the second of two steps, EDM students only.
        measured: a measure.json whose scores go into the model card.
    """
    from ..diffusion.formats.exporting import check_free
    from ..diffusion.formats.exporting import export as write
    from ..diffusion.formats.folder import load
    from ..diffusion.measuring import scores_in

    for each in steps:
        at_least(1, steps=each)
    if middle is not None and 1 in steps:
        raise ValueError("--middle is the second of two consistency steps; leave it out with --steps 1")
    folders = {out / f"{each}-step": each for each in steps} if len(steps) > 1 else {out: steps[0] if steps else None}
    for folder in folders:
        check_free(folder)
    card: dict[str, object] = {"checkpoint": checkpoint, **(scores_in(measured) if measured else {})}
    model = load(checkpoint)
    if not model.is_student:
        raise ValueError(f"{checkpoint} is a diffusion model; tune it first, then export the few-step generator")
    walks = {folder: model.walk_in(each, middle) for folder, each in folders.items()}
    shown = ("teacher", "source", "classes", "recipe_name", "recipe", "versions")
    card |= {name: model.receipt[name] for name in shown if model.receipt.get(name) is not None}
    for folder, walk in walks.items():
        agreement = write(model, folder, walk=walk, card=card)
        print(f"{folder} is verified: its images differ from ours {agreement}")
    after_exporting(folder, walk.steps)


def _one_class(label: int, n: int) -> Cond:
    import torch

    from ..diffusion.cond import labelled

    return labelled(torch.full((n,), label))


def demo(*, out: Path = Path("demo"), images: int = 15_000, n: int = 1000, seed: int = 0) -> None:
    """Turn the bundled diffusion checkpoint into a few-step generator, with pictures and scores.

    Args:
        out: folder for everything it makes; an earlier demo there is replaced.
        images: training images to see; more buys quality, fewer is quicker.
        n: samples for each score.
        seed: of everything random.
    """
    at_least(2, images=images)  # it tunes in two stages
    at_least(20, n=n)
    at_least(0, seed=seed)
    from ..demo import demo as run

    run(out, images=images, n=n, seed=seed)
