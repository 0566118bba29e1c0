"""A checkpoint in use: all that `fewstep sample` and `export` do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.checks import at_least
from ..core.device import best_device
from ..core.files import writable
from ..core.nfe import NFE, count_nfe
from .choices import SamplerName
from .cond import Cond, labelled
from .deciding import decided_by
from .denoiser import Denoiser
from .drawing import Wanted, arguments, draw, save_in_parts
from .formats.exporting import check_free, export
from .formats.exporting_adapters import Form, check_adapter, export_adapter, usual_form
from .formats.folder import load
from .formats.pipelines import check_exportable
from .formats.verifying import Agreement
from .measure.seen import Setting
from .measuring import scores_in
from .model import Model
from .two_times import TwoTimes
from .walk import DDIM, Consistency, Heun, Walk
from .walk import sample as walked

SAID = ("teacher", "source", "classes", "recipe_name", "recipe", "versions")  # of a receipt, in a model card


@dataclass(frozen=True)
class Sampled:
    """What `sample_checkpoint` did: the model, how many samples, and the calls of its network that each took."""

    model: Model
    count: int
    calls: float


@dataclass(frozen=True)
class Exported:
    """A folder that `export_checkpoint` wrote: of which student, for how many steps, and how well it agrees with ours."""

    model: Model
    steps: int
    agreement: Agreement


def sample_checkpoint(
    checkpoint: str,
    out: Path,
    *,
    n: int | None = None,
    steps: int | None = None,
    sampler: SamplerName | None = None,
    middle: float | None = None,
    label: int | None = None,
    number: float | None = None,
    prompt: str | None = None,
    prompts: Path | None = None,
    guidance: float | None = None,
    strength: float | None = None,
    call: Sequence[str] = (),
    seed: int = 0,
    batch: int = 250,
) -> Sampled:
    """Saves samples as their space does, pictures as a PNG a seed and a sheet of them all, with a receipt beside them.

    Args:
        checkpoint: a run, a diffusers folder or a hub id, tuned or not.
        out: folder for the samples.
        n: how many; 16, or one for each prompt.
        steps, middle: as for `Model.walk_in`.
        sampler: another than the model's own, which is the stock pipeline itself where a diffusion model has one.
        label: class of the samples, for conditional models.
        number: what a network is told that takes a number in the place of a class.
        prompt, prompts: what a pipeline is asked for: one, or a text file with one a line, which take turns.
        guidance: scale of a diffusion pipeline's classifier-free guidance.
        strength: of a LoRA student: 0 is its base, 1 the student.
        call: arguments for a stock pipeline where its defaults are not wanted, such as "height=256".
        seed: of the first sample; sample k has seed + k and is the same at any batch size.
        batch: samples at once.

    Raises:
        ValueError: numbers that cannot be, a run in `out`, no such checkpoint, or a walk or a label that is not for it.
    """
    at_least(1, n=n, steps=steps, batch=batch)
    at_least(0, seed=seed, label=label, strength=strength, guidance=guidance)
    wanted = Wanted(prompt, prompts, label, guidance)
    if middle is not None and (steps == 1 or sampler not in (None, "consistency")):
        raise ValueError("--middle is the second of two consistency steps; leave it out with one step or another --sampler")
    writable(out)
    if (out / "state.pt").exists():  # its receipt has the name of ours
        raise ValueError(f"there is a run in {out}; choose another folder for the samples")
    model = load(checkpoint, call=arguments(call) if call else None).to(best_device())
    model = model if strength is None else model.at(strength)
    if model.pipeline is not None:
        own = sampler is None and not model.is_student
        if own and middle is not None:
            raise ValueError("--middle is the second of two consistency steps; leave it out, or take --sampler consistency")
        chosen = None if own else _walk(model, sampler, steps, middle)
        drawn = draw(model, wanted, out, n=n, walk=chosen, seed=seed, steps=steps, batch=batch, checkpoint=checkpoint)
        return Sampled(model, *drawn)
    if wanted.is_any or call:
        raise ValueError("this checkpoint has no pipeline that could be asked; leave --prompt, --guidance and --call out")
    chosen, count = _walk(model, sampler, steps, middle), 16 if n is None else n
    asked = {"label": label, "number": number} | ({} if strength is None else {"strength": strength})
    cond = condition_of(model.denoiser, count, label, number)
    calls = _save_samples(model.denoiser, chosen, cond, out, range(seed, seed + count), batch, checkpoint, asked)
    return Sampled(model, count, calls)


def _save_samples(
    denoiser: Denoiser,
    walk: Walk,
    cond: Cond,
    out: Path,
    seeds: range,
    batch: int,
    checkpoint: str,
    asked: Mapping[str, object],
) -> float:
    """Writes samples and their receipt; returns how many calls of the network each took."""
    levels, n = walk.levels(denoiser).tolist(), len(seeds)
    facts = {"checkpoint": checkpoint, "walk": walk, "levels": levels, **asked, "seed": seeds[0], "n": n}

    def make(part: range, done: Callable[[int], None]) -> tuple[Tensor, NFE]:
        with count_nfe(denoiser.network, done) as nfe:
            x0 = walked(denoiser, seeds[part.start : part.stop], walk, cond.part(slice(part.start, part.stop)), batch=batch)
        return denoiser.space.decode(x0), nfe

    rows = save_in_parts(
        make, lambda raw: denoiser.space, out, seeds, batch=batch, calls=walk.calls, facts=facts,
        decided=decided_by([Setting("", denoiser, walk)]),
    )  # fmt: skip
    return rows / n


def export_checkpoint(
    checkpoint: str,
    out: Path,
    *,
    steps: Sequence[int] = (),
    middle: float | None = None,
    measured: Path | None = None,
    form: Form | None = None,
    strength: float | None = None,
) -> Mapping[Path, Exported]:
    """Exports a tuned model, with what its receipt says in the model card; see `export`.

    Args:
        checkpoint: a run or the model in it.
        out: the folder to write; with several numbers of steps, a folder each in it.
        steps: by default what the model was tuned for; a student of any number of calls becomes a pipeline for each.
        middle: noise level of the second of two steps, EDM students only.
        measured: a measure.json whose scores go into the model card.
        form: pipeline, in which a LoRA student is fused with its base; adapter, the file that `load_lora_weights` of
            diffusers takes; or comfyui, that file and a second one under the names that ComfyUI has. By default the
            adapter of a LoRA student, where stock diffusers loads it, and else a pipeline.
        strength: of a LoRA student: 1 is the student.

    Returns:
        The folders that were written.

    Raises:
        ValueError: a diffusion model, steps that are not for this student, or what `export` raises.
    """
    at_least(1, steps=steps)
    at_least(0, strength=strength)
    if middle is not None and 1 in steps:
        raise ValueError("--middle is the second of two consistency steps; leave it out with --steps 1")
    folders = {out / f"{each}-step": each for each in steps} if len(steps) > 1 else {out: steps[0] if steps else None}
    for folder in folders:
        check_free(folder)
    card: dict[str, object] = {"checkpoint": checkpoint, **(scores_in(measured) if measured else {})}
    model = load(checkpoint)
    model = model if strength is None else model.at(strength)
    if not model.is_student:
        raise ValueError(f"{checkpoint} is a diffusion model; tune it first, then export the few-step generator")
    walks = {folder: model.walk_in(each, middle) for folder, each in folders.items()}
    card |= {name: model.receipt[name] for name in SAID if model.receipt.get(name) is not None}
    card |= {} if strength is None else {"strength": strength}
    form = form or usual_form(model)
    if form != "pipeline":
        check_adapter(model, form)
        return {
            folder: Exported(model, walk.steps, export_adapter(model, folder, walk=walk, form=form, card=card))
            for folder, walk in walks.items()
        }
    for walk in walks.values():
        check_exportable(model.denoiser, walk, model.pipeline)  # all can be written, or none is
    return {
        folder: Exported(model, walk.steps, export(model, folder, walk=walk, card=card)) for folder, walk in walks.items()
    }


def condition_of(denoiser: Denoiser, n: int, label: int | None, number: float | None) -> Cond:
    """What `n` samples are about; ValueError where the checkpoint is asked by something else."""
    if number is not None and not math.isfinite(number):
        raise ValueError(f"--number must be a number, got {number}")
    takes_number = "number" in denoiser.takes
    for flag, given, takes in (
        ("label", label, bool(denoiser.takes) and not takes_number),
        ("number", number, takes_number),
    ):
        if takes != (given is not None):
            raise ValueError(f"this checkpoint {'needs a' if takes else 'takes no'} --{flag}")
    if number is not None:
        return Cond({"number": torch.full((n,), number)})
    return labelled(None if label is None else torch.full((n,), label))


def _walk(model: Model, sampler: SamplerName | None, steps: int | None, middle: float | None) -> Walk:
    """The model's own walk, or that of the sampler, in so many steps."""
    kinds: dict[str, Callable[..., Walk]] = {"consistency": Consistency, "heun": Heun, "ddim": DDIM}
    walk = model.walk
    if sampler == "heun" and isinstance(model.denoiser, TwoTimes):
        raise ValueError("--sampler heun is for diffusion models; this student takes --sampler ddim or consistency")
    if sampler is not None and kinds[sampler] is not type(walk):
        walk = DDIM(walk.steps) if sampler == "ddim" else kinds[sampler]()
    return dataclasses.replace(model, walk=walk).walk_in(steps, middle)
